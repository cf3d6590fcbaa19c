"""Leave-one-out attribution: how far each passage that was read accounts for the answer.

For an answer y to x that was generated from passages z, the attribution of passage d is, in nats,

    drop(d) = log p_g(y | x, z) - log p_g(y | x, z without d)

the "top-k log-probability drop" by which ContextCite (arXiv 2409.00729) evaluates attributions, for k = 1 and every
passage; no surrogate model is fitted. ALCE (arXiv 2305.14627) leaves citations out as well, but asks an entailment
model whether the rest still supports the statement. Here the generator itself is asked, so the result says what the
answer *depended on*, not what is true. Limitations: of two passages with the same content neither has a drop, and where
passages were truncated to fit the context, leaving one out gives the others more room.

A citation is a passage read that contains the answer. It is *supported* when its drop exceeds a threshold, by default
0.1 nats: the passage makes the answer a tenth more probable, more than rounding does. A pipeline that reads one passage
is compared with a prompt without passages.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from generator.answer_sequences import AnswerSequence
from generator.generator import Generator
from indexes.errors import UsageError
from rag.answering.answer import Answer
from rag.answering.answer_mode import AnswerMode
from rag.answering.permutation_mode import PermutationMode
from rag.evaluation.evaluation import Evaluation, argsort_by_id, progress_bar
from rag.evaluation.significance import Estimate, estimate
from rag.metrics import normalize_answer

THRESHOLD = 0.1


@dataclass(frozen=True)
class PassageAttribution:
    """One passage that was read for an answer."""

    id: str
    cited: bool
    log_prob_drop: float
    """log p(answer | all passages) - log p(answer | all but this one), nats."""
    answer_changed: bool
    """Whether the greedy answer without the passage differs after normalisation."""


@dataclass(frozen=True)
class AttributionSummary:
    """Means over questions; where a question has several passages of a kind, of the mean over its passages."""

    threshold: float
    """Nats; citations with a larger drop are supported."""
    answers: int
    citations: int
    supported: int
    """Citations that are supported."""
    supported_citations: Estimate
    """Share of an answer's citations that are supported; answers with citations only."""
    supported_answers: Estimate
    """Share of answers with at least one supported citation."""
    drop_cited: Estimate
    drop_not_cited: Estimate
    changed_cited: Estimate
    """How often leaving out a cited passage changes the answer."""
    changed_not_cited: Estimate


@dataclass(frozen=True)
class Attribution:
    """The attributions of an evaluation."""

    summary: AttributionSummary
    records: list[list[PassageAttribution]]
    """Of every passage read, by question in the order of the evaluation."""


class PromptedAnswerer(Protocol):
    """What attribution needs of a pipeline (`rag.RAG`)."""

    @property
    def generator(self) -> Generator:
        """Writes the answers."""
        ...

    @property
    def answer_mode(self) -> AnswerMode:
        """How answers are produced."""
        ...


def leave_one_out_attribution(
    rag: PromptedAnswerer,
    evaluation: Evaluation,
    *,
    threshold: float = THRESHOLD,
    batch_size: int = 16,
    progress: bool = True,
) -> Attribution:
    """Leave out each passage of each answer once, score the answer without it, and generate another.

    Args:
        rag: The pipeline that gave the answers.
        evaluation: The answers, with their log-probabilities and the passages read.
        threshold: Nats; a citation with a larger drop is supported.
        batch_size: Questions at a time.
        progress: Show a progress bar.

    Raises:
        UsageError: The pipeline marginalises over single documents, so no answer was read from several passages at
            once; or an answer has no log-probability.
    """
    if not isinstance(rag.answer_mode, PermutationMode):
        raise UsageError(
            "Attribution needs passages that are read together; this pipeline answers by "
            f"{rag.answer_mode.kind}, one document at a time. Leave the attribution out."
        )
    records: list[list[PassageAttribution]] = [[] for _ in evaluation.answers]
    order = argsort_by_id(evaluation.examples)
    with rag.generator.greedy_decoding(), progress_bar(len(order), "attribution", progress) as bar:
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            found = _attributions(rag, [evaluation.answers[i] for i in batch])
            for i, passages in zip(batch, found, strict=True):
                records[i] = passages
            bar.update(len(batch))
    return Attribution(summarize([records[i] for i in order], threshold), records)


def _attributions(rag: PromptedAnswerer, answers: Sequence[Answer]) -> list[list[PassageAttribution]]:
    """Of every passage of a few answers, in batches of the generator."""
    log_probs_of_all = [_log_prob(answer) for answer in answers]
    without = [row for answer in answers for row in _leaving_out(rag, answer)]
    log_probs = iter(rag.generator.log_probs(without).tolist())
    texts = iter(rag.generator.complete([row.prompt_ids for row in without]))
    return [
        [
            PassageAttribution(
                id=passage.id,
                cited=passage.id in answer.citations,
                log_prob_drop=log_prob - next(log_probs),
                answer_changed=normalize_answer(next(texts)) != normalize_answer(answer.text),
            )
            for passage in answer.passages
        ]
        for answer, log_prob in zip(answers, log_probs_of_all, strict=True)
    ]


def _log_prob(answer: Answer) -> float:
    if answer.log_prob is None:
        raise UsageError(
            f"Attribution compares log-probabilities, and the answer to {answer.question!r} has none. Answer with "
            "log_prob=True."
        )
    return answer.log_prob


def _leaving_out(rag: PromptedAnswerer, answer: Answer) -> Iterator[AnswerSequence]:
    """The answer after a prompt without its first passage, without its second and so on."""
    for i in range(len(answer.passages)):
        rest = [*answer.passages[:i], *answer.passages[i + 1 :]]
        yield rag.generator.generated_sequence(rag.generator.prompt_ids(answer.question, rest), answer.text)


def summarize(records: Sequence[Sequence[PassageAttribution]], threshold: float = THRESHOLD) -> AttributionSummary:
    """Means over questions of the mean over a question's passages, so that intervals can resample questions."""
    cited = [[p for p in passages if p.cited] for passages in records]
    others = [[p for p in passages if not p.cited] for passages in records]
    supported = [[float(p.log_prob_drop > threshold) for p in passages] for passages in cited]
    return AttributionSummary(
        threshold=threshold,
        answers=len(records),
        citations=sum(map(len, cited)),
        supported=int(sum(map(sum, supported))),
        supported_citations=estimate([_mean(values) for values in supported if values]),
        supported_answers=estimate([float(any(values)) for values in supported]),
        drop_cited=_over_questions(cited, "log_prob_drop"),
        drop_not_cited=_over_questions(others, "log_prob_drop"),
        changed_cited=_over_questions(cited, "answer_changed"),
        changed_not_cited=_over_questions(others, "answer_changed"),
    )


def _over_questions(records: Sequence[Sequence[PassageAttribution]], name: str) -> Estimate:
    return estimate([_mean([float(getattr(p, name)) for p in passages]) for passages in records if passages])


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
