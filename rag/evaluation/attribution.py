"""Whether an answer rests on what it cites: each read passage is left out once.

For an answer y to x that was read from passages z, the support of passage d is, in nats,

    drop(d) = log p_g(y | x, z) - log p_g(y | x, z without d)

the "top-k log-probability drop" by which ContextCite (arXiv 2409.00729) judges attributions, for k = 1 and every
passage; no surrogate is fitted. ALCE (arXiv 2305.14627) leaves citations out as well, but asks an entailment model
whether the rest still supports the statement; here the generator itself is asked, so this says what the answer
*depended on*, not what is true. Known limits: of two passages that say the same neither is missed, and where passages
were cut to fit the context, leaving one out gives the others more room.

A citation is a read passage that contains the answer (`rag.answering.answer.citations`). It is *supported* when its
drop is above a threshold, by default 0.1 nats: the passage makes the answer a tenth more probable, which is more than
rounding changes. A pipeline that reads one passage is compared with a prompt without any.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from generator.generator import AnswerSequence
from indexes.errors import UsageError
from rag.answering.answer import Answer
from rag.answering.permutation_mode import PermutationMode
from rag.evaluation.evaluation import Evaluation, by_id, progress_bar
from rag.evaluation.significance import estimate
from rag.metrics import normalize_answer
from rag.pipeline import RAG

THRESHOLD = 0.1


@dataclass(frozen=True)
class Support:
    """What each passage does for its answer, over all questions and for each; ready for JSON."""

    summary: dict[str, Any]
    rows: list[list[dict[str, Any]]]
    """`id`, `cited`, `log_prob_drop` in nats and `answer_changed` of every passage read, by question in the order of
    the evaluation."""


def support(
    rag: RAG, evaluation: Evaluation, *, threshold: float = THRESHOLD, batch_size: int = 16, progress: bool = True
) -> Support:
    """Leave out each passage of each answer once, score the answer and let the generator answer again.

    Args:
        rag: Who gave the answers of the evaluation.
        evaluation: Answers, and what was read for them.
        threshold: Nats; a citation with a greater drop is supported.
        batch_size: Questions at a time.
        progress: Show a progress bar.

    Raises:
        UsageError: The pipeline sums over single documents, so none of its answers was read from a list.
    """
    if not isinstance(rag.answer_mode, PermutationMode):
        raise UsageError(
            f"Support is of passages that were read together; this pipeline answers by "
            f"{rag.answer_mode.kind}. Leave the audit out."
        )
    rows: list[list[dict[str, Any]]] = [[] for _ in evaluation.answers]
    order = by_id(evaluation.examples)
    with rag.generator.greedy_decoding(), progress_bar(len(order), "support", progress) as bar:
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            found = _left_out(rag, [evaluation.answers[i] for i in batch])
            for i, passages in zip(batch, found, strict=True):
                rows[i] = passages
            bar.update(len(batch))
    return Support(_summary([rows[i] for i in order], threshold), rows)


def _left_out(rag: RAG, answers: Sequence[Answer]) -> list[list[dict[str, Any]]]:
    """Every passage of a few answers, in batches of the generator."""
    rows = [row for answer in answers for row in _rows(rag, answer)]
    before = {id(answer): _log_prob(answer) for answer in answers}
    log_probs = iter(rag.generator.log_probs(rows).tolist())
    texts = iter(rag.generator.complete([row.prompt_ids for row in rows]))
    return [
        [
            {
                "id": passage.id,
                "cited": passage.id in answer.citations,
                "log_prob_drop": before[id(answer)] - next(log_probs),
                "answer_changed": normalize_answer(next(texts)) != normalize_answer(answer.text),
            }
            for passage in answer.passages
        ]
        for answer in answers
    ]


def _log_prob(answer: Answer) -> float:
    if answer.log_prob is None:
        raise UsageError(
            f"Support compares log-probabilities, and the answer to {answer.question!r} has none. Answer with "
            "log_prob=True."
        )
    return answer.log_prob


def _rows(rag: RAG, answer: Answer) -> Iterator[AnswerSequence]:
    """The answer behind a prompt without its first passage, without its second and so on."""
    for i in range(len(answer.passages)):
        rest = [*answer.passages[:i], *answer.passages[i + 1 :]]
        yield rag.generator.generated_sequence(rag.generator.prompt_ids(answer.question, rest), answer.text)


def _summary(rows: Sequence[Sequence[dict[str, Any]]], threshold: float) -> dict[str, Any]:
    """Means over questions of the mean over a question's passages, so that intervals can resample questions."""
    cited = [[p for p in passages if p["cited"]] for passages in rows]
    others = [[p for p in passages if not p["cited"]] for passages in rows]
    supported = [[float(p["log_prob_drop"] > threshold) for p in passages] for passages in cited]
    return {
        "threshold": threshold,
        "answers": len(rows),
        "citations": sum(map(len, cited)),
        "supported": int(sum(map(sum, supported))),
        "supported_citations": estimate([_mean(values) for values in supported if values]),
        "supported_answers": estimate([float(any(values)) for values in supported]),
        "drop_cited": _over_questions(cited, "log_prob_drop"),
        "drop_not_cited": _over_questions(others, "log_prob_drop"),
        "changed_cited": _over_questions(cited, "answer_changed"),
        "changed_not_cited": _over_questions(others, "answer_changed"),
    }


def _over_questions(rows: Sequence[Sequence[dict[str, Any]]], name: str) -> dict[str, Any]:
    return estimate([_mean([float(p[name]) for p in passages]) for passages in rows if passages])


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
