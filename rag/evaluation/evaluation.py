"""Score a pipeline on questions with golden answers: greedy decoding, every question counted, bootstrap intervals.

The scores are those of the registered metrics (`rag.evaluation.metric`). Names: `exact_match` and `f1` of the answer;
`retriever_recall@k` and `selector_recall@k`, the share of gold passages among the first k, `retriever_ndcg@k`,
`retriever_mrr` and the selector's (questions with gold ids only); `retriever_answer_recall@k` and
`selector_answer_recall@k`, whether one of the first k passages contains a golden answer. The selector's ranking is the
passages read, in their order, followed by the other candidates in the retriever's order.

A question that is marked unanswerable is scored against the empty answer, as SQuAD 2.0 does. Where there are such
questions, every metric of answers is also given for each of the two groups (`f1_answerable`, `f1_unanswerable`).
docs/evaluation.md describes every rule.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from accelerate import PartialState
from accelerate.utils import gather_object
from tqdm.auto import tqdm

from generator.generator import Generator
from indexes.corpora.passage import Passage
from indexes.errors import DataError, check_on_error
from rag.answering.answer import Answer
from rag.evaluation.metric import CUTOFFS, STAGES, metrics_of
from rag.evaluation.significance import bootstrap_intervals
from rag.metrics import aggregate, answer_recall
from retriever.candidates import Candidates
from retriever.retriever import Retriever
from training.questions.context_fit import Fitted, refuse_too_long, split_by_length, warn_of_too_long
from training.questions.example import QAExample
from training.questions.loading import read_questions
from training.questions.self_retrieval import retrieve

logger = logging.getLogger(__name__)


class Answerer(Protocol):
    """What can be evaluated: `rag.RAG`, or any pipeline that answers from candidate passages."""

    @property
    def retriever(self) -> Retriever:
        """Finds the candidates."""
        ...

    @property
    def generator(self) -> Generator:
        """Writes the answers."""
        ...

    @property
    def num_candidates(self) -> int:
        """n, the number of candidates per question."""
        ...

    def answer_from(self, candidates: Sequence[Candidates]) -> list[Answer]:
        """One answer for each question's candidates."""
        ...

    def why_too_long(self, question: str) -> str | None:
        """Why a question does not fit the model's context; None if it fits."""
        ...


@dataclass(frozen=True)
class ScoredCandidate:
    """A passage that the retriever found for a question."""

    id: str
    title: str
    score: float
    """The retriever's score."""


@dataclass(frozen=True)
class Evaluation:
    """Means over all questions, and the scores of each question; all lists are in the order of the questions given."""

    metrics: dict[str, float]
    """Mean of each metric over the questions that have it, and `n`, the number of questions scored."""
    intervals: dict[str, tuple[float, float]]
    """95 % bootstrap interval of each mean, over questions."""
    counts: dict[str, int]
    """Number of questions that have each metric."""
    examples: list[QAExample]
    """The questions."""
    answers: list["Answer"]
    """The answer to each question."""
    scores: list[dict[str, float]]
    """The metrics of each question."""
    candidates: list[list[ScoredCandidate]]
    """What the retriever found for each question, best first."""
    skipped: int
    """Questions left out because they have nothing to score against or do not fit the model's context."""
    too_long: dict[str, str] = field(default_factory=dict)
    """Why each question that was left out does not fit the model's context, by id."""

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={self.metrics[name]:.3f}" for name in list(self.metrics)[:2])
        return f"Evaluation({len(self.examples)} questions: {shown}, {len(self.intervals)} metrics)"


def evaluate(
    rag: Answerer,
    examples: Sequence[QAExample] | str | Path,
    *,
    batch_size: int = 16,
    on_error: str = "raise",
    progress: bool = True,
    processes: PartialState | None = None,
) -> Evaluation:
    """Answer every question and score the answers.

    Decoding is greedy, whatever temperature the pipeline is set to. Questions are batched in the order of their ids, so
    their order in the file changes nothing.

    Args:
        rag: The pipeline.
        examples: Questions with golden answers, or marked unanswerable; or a question file in any format that
            `training.load_examples` reads.
        batch_size: Questions at a time.
        on_error: What to do with a question that has no golden answer and is not marked unanswerable, or that does not
            fit the model's context even with passages truncated to nothing: "raise" before anything is answered, or
            "skip" it and count it in `skipped` (and in `too_long`, by id). In a file, also with broken records.
        progress: Show a progress bar.
        processes: Distribute the batches over the processes of `accelerate launch`, all of which call this and get the
            whole result. The batches are those of one process, so the result is the same.

    Raises:
        DataError: A question that has nothing to score against or does not fit, or no question at all.
        UsageError: An unknown `on_error`.
    """
    check_on_error(on_error)
    broken = 0
    if isinstance(examples, str | Path):
        examples, errors = read_questions(examples, on_error="skip" if on_error == "skip" else "raise")
        broken = len(errors)
    kept = filter_scorable(examples, on_error)
    if len(kept) < len(examples):
        logger.warning("Left out %d questions without golden answers.", len(examples) - len(kept))
    kept, too_long = _that_fit(rag, kept, on_error)
    order = argsort_by_id(kept)
    # The same cut-offs for all questions: a retriever that finds fewer candidates for one was still asked for as many.
    cutoffs = _cutoffs(min(rag.num_candidates, rag.retriever.index.manifest.passages))
    done: dict[int, tuple[Answer, dict[str, float], list[ScoredCandidate]]] = {}
    count, mine = (processes.num_processes, processes.process_index) if processes else (1, 0)
    with rag.generator.greedy_decoding(), progress_bar(len(kept), "evaluate", progress) as bar:
        for start in range(mine * batch_size, len(kept), count * batch_size):
            batch = order[start : start + batch_size]
            candidates = retrieve(rag.retriever, [kept[i] for i in batch], rag.num_candidates)
            for i, found, answer in zip(batch, candidates, rag.answer_from(candidates), strict=True):
                done[i] = answer, score(kept[i], found, answer, cutoffs), _scored_candidates(found)
            bar.update(len(batch))
    if count > 1:
        done = {i: result for part in gather_object([done]) for i, result in part.items()}
    answers, scores, candidates_found = map(list, zip(*(done[i] for i in range(len(kept))), strict=True))
    skipped = len(examples) - len(kept) + broken
    evaluation = _evaluation(kept, answers, _with_groups(kept, scores), candidates_found, skipped)
    return replace(evaluation, too_long=too_long)


def _that_fit(rag: Answerer, examples: Sequence[QAExample], on_error: str) -> Fitted:
    fitted = split_by_length(examples, [rag.why_too_long(e.question) for e in examples])
    if on_error == "raise" or not fitted.kept:
        refuse_too_long(fitted.too_long, len(examples), "questions", 'leave it out (on_error="skip", --on_error skip)')
    warn_of_too_long(fitted.too_long, len(examples), "questions")
    return fitted


def _evaluation(
    examples: list[QAExample],
    answers: list[Answer],
    scores: list[dict[str, float]],
    candidates: list[list[ScoredCandidate]],
    skipped: int,
) -> Evaluation:
    metrics = aggregate(scores)
    if metrics["n"] != len(examples):
        raise RuntimeError(f"Every question must be scored: {len(examples)} expected, got {metrics['n']:.0f}.")
    names = [name for name in metrics if name != "n"]
    # In the order of the ids, because a resampled question is a position in a list.
    by_id = argsort_by_id(examples)
    values = {name: [scores[i][name] for i in by_id if name in scores[i]] for name in names}
    return Evaluation(
        metrics=metrics,
        intervals=bootstrap_intervals(values),
        counts={name: len(column) for name, column in values.items()},
        examples=examples,
        answers=answers,
        scores=scores,
        candidates=candidates,
        skipped=skipped,
    )


def filter_scorable(examples: Sequence[QAExample], on_error: str = "raise") -> list[QAExample]:
    """The questions that have something to score against; see `evaluate`."""
    check_on_error(on_error)
    kept = [e for e in examples if e.golden_answers or e.unanswerable]
    lacking = [e.id for e in examples if not (e.golden_answers or e.unanswerable)]
    if not kept or (lacking and on_error == "raise"):
        raise DataError(
            f"Evaluation needs questions with golden answers; {len(lacking)} of {len(examples)} have none"
            f"{f', the first is {lacking[0]!r}' if lacking else ''}. Leave them out (--on_error skip), or mark as "
            "unanswerable those whose right answer is the empty one."
        )
    return kept


def argsort_by_id(examples: Sequence[QAExample]) -> list[int]:
    """Positions of the examples in the order of their ids."""
    return sorted(range(len(examples)), key=lambda i: (examples[i].id, examples[i].question))


def score(
    example: QAExample, candidates: Candidates, answer: Answer, cutoffs: Sequence[int] = CUTOFFS
) -> dict[str, float]:
    """All registered metrics of one question; those of rankings at these cut-offs."""
    found: dict[str, float] = {}
    for metric in metrics_of("answer"):
        found |= metric.of_answer(answer, example)
    read = {p.id for p in answer.passages}
    ranked = [*answer.passages, *(p for p in candidates.passages if p.id not in read)]
    rankings: Mapping[str, Sequence[Passage]] = dict(zip(STAGES, (candidates.passages, ranked), strict=True))
    for stage, passages in rankings.items():
        for metric in metrics_of("ranking"):
            found |= metric.of_ranking(stage, passages, example, cutoffs)
    return found


def _with_groups(examples: Sequence[QAExample], scores: list[dict[str, float]]) -> list[dict[str, float]]:
    """Where some questions are unanswerable: metrics of answers repeated under the name of the question's group."""
    if not any(e.unanswerable for e in examples):
        return scores
    names = [metric.name for metric in metrics_of("answer")]
    return [
        of_one | {f"{name}_{'un' * e.unanswerable}answerable": of_one[name] for name in names if name in of_one}
        for e, of_one in zip(examples, scores, strict=True)
    ]


def _cutoffs(k_max: int) -> list[int]:
    """Cut-offs up to `k_max`: recall@20 of five passages would be recall@5 under another name."""
    return [k for k in CUTOFFS if k <= k_max]


def _scored_candidates(candidates: Candidates) -> list[ScoredCandidate]:
    return [
        ScoredCandidate(passage.id, passage.title, value)
        for passage, value in zip(candidates.passages, candidates.scores.tolist(), strict=True)
    ]


def progress_bar(total: int, label: str, shown: bool) -> Any:
    """A progress bar that counts questions."""
    return tqdm(total=total, desc=label, unit="question", disable=not shown, leave=False)


def filter_answerable(rag: Answerer, examples: Sequence[QAExample], *, batch_size: int = 64) -> list[QAExample]:
    """The questions of which some candidate passage contains a golden answer.

    A generator trained on the others learns to give answers that it has not read. DPR (arXiv 2004.04906, section 4.1)
    leaves out such training questions as well. For training questions only: an evaluation set without them would be a
    different one.

    Raises:
        DataError: None is left.
    """
    kept: list[QAExample] = []
    for start in range(0, len(examples), batch_size):
        batch = examples[start : start + batch_size]
        candidates = retrieve(rag.retriever, batch, rag.num_candidates)
        for example, found in zip(batch, candidates, strict=True):
            if answer_recall([p.contents for p in found.passages], example.golden_answers, rag.num_candidates):
                kept.append(example)
    if not kept:
        raise DataError(
            f"Training needs questions that passages answer; no candidate of any of {len(examples)} holds an answer. "
            "Check that the questions belong to this index."
        )
    return kept


def search_metrics(examples: Sequence[QAExample], candidates: Sequence[Candidates], k_max: int) -> dict[str, float]:
    """The ranking metrics of a retriever, without a prefix, at the cut-offs up to `k_max`; means over questions."""
    cutoffs = _cutoffs(k_max)
    scores = []
    for example, found in zip(examples, candidates, strict=True):
        of_one: dict[str, float] = {}
        for metric in metrics_of("ranking"):
            of_one |= metric.of_ranking("", found.passages, example, cutoffs)
        scores.append(of_one)
    return aggregate(scores)
