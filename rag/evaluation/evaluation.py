"""Score a pipeline on questions with golden answers: greedy decoding, every question counted, intervals.

Metric names: `exact_match` and `f1` of the answer; `retriever_recall@k` and `selector_recall@k`, the share of gold
passages among the first k, `retriever_ndcg@k`, `retriever_mrr` and the selector's (questions with gold ids only);
`retriever_answer_recall@k` and `selector_answer_recall@k`, whether a golden answer stands in the first k passages. The
selector's ranking is what was read, in its order, then the other candidates in the retriever's.

A question that is marked unanswerable is scored against the empty answer, as SQuAD 2.0 does, and where there are such
questions `exact_match_answerable`, `exact_match_unanswerable` and the same of F1 tell the two groups apart.
docs/evaluation.md has the whole contract.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from accelerate import PartialState
from accelerate.utils import gather_object
from tqdm.auto import tqdm

from generator.generator import Generator
from indexes.corpora.passage import Passage
from indexes.errors import DataError, check_on_error
from rag.answering.answer import Answer
from rag.evaluation.significance import bootstrap_intervals
from rag.metrics import aggregate, answer_recall, exact_match, f1, gold_recall, ranking_quality
from retriever.candidates import Candidates
from retriever.retriever import Retriever
from training.questions.context_fit import Fitted, refuse_too_long, split_by_length, warn_of_too_long
from training.questions.example import QAExample
from training.questions.self_retrieval import retrieve

logger = logging.getLogger(__name__)

CUTOFFS = (1, 3, 5, 20)


class Answerer(Protocol):
    """Whoever answers from candidates: `rag.RAG`, or a baseline."""

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
        """How many."""
        ...

    def answer_from(self, candidates: Sequence[Candidates]) -> list[Answer]:
        """One answer for each question's candidates."""
        ...

    def why_too_long(self, question: str) -> str | None:
        """Why a question is too long for the model's context; None where it fits."""
        ...


@dataclass(frozen=True)
class Evaluation:
    """Means over all questions, and what each of them got; the lists are in the order of the questions that came."""

    metrics: dict[str, float]
    """Mean of each metric over the questions that have it, and `n`, how many questions were scored."""
    rows: list[dict[str, Any]]
    """`id`, `question`, `prediction` and the scores of each question."""
    answers: list[Answer]
    """The whole answer to each question."""
    intervals: dict[str, tuple[float, float]]
    """95 % bootstrap interval of each mean, over questions."""
    counts: dict[str, int]
    """How many questions have each metric."""
    examples: list[QAExample]
    """The questions that were asked."""
    candidates: list[list[dict[str, Any]]]
    """`id`, `title` and `score` of what the retriever found for each question, best first."""
    skipped: int
    """Questions that were left out, because nothing says what is right or because they do not fit."""
    too_long: dict[str, str] = field(default_factory=dict)
    """Why each question that was left out is too long for the model's context, by id."""


def evaluate(
    rag: Answerer,
    examples: Sequence[QAExample],
    *,
    batch_size: int = 16,
    on_error: str = "raise",
    progress: bool = True,
    processes: PartialState | None = None,
) -> Evaluation:
    """Answer every question and score the answers.

    Decoding is greedy, whatever temperature the pipeline is set to. Questions are batched in the order of their ids, so
    the order in which they come changes nothing.

    Args:
        rag: Who answers.
        examples: Questions with golden answers, or marked unanswerable.
        batch_size: Questions at a time.
        on_error: What to do with a question that has no golden answer and is not marked unanswerable, or that does not
            fit the model's context beside passages that are cut to nothing: "raise" before anything is asked, or
            "skip" it and count it in `skipped` (and in `too_long`, by id).
        progress: Show a progress bar.
        processes: Share out the batches among the processes of `accelerate launch`, all of which call this and get the
            whole result. The batches are those of one process, so the result is the same.

    Raises:
        DataError: A question that nothing can be scored against or that does not fit, or no question at all.
        UsageError: Another `on_error`.
    """
    kept = scorable(examples, on_error)
    if len(kept) < len(examples):
        logger.warning("Left out %d questions without golden answers.", len(examples) - len(kept))
    kept, too_long = _that_fit(rag, kept, on_error)
    order = by_id(kept)
    # One list for all questions: who finds fewer candidates for one of them has still been asked for so many.
    cutoffs = _cutoffs(min(rag.num_candidates, rag.retriever.index.manifest.passages))
    done: dict[int, tuple[Answer, dict[str, float], list[dict[str, Any]]]] = {}
    count, mine = (processes.num_processes, processes.process_index) if processes else (1, 0)
    with rag.generator.greedy_decoding(), progress_bar(len(kept), "evaluate", progress) as bar:
        for start in range(mine * batch_size, len(kept), count * batch_size):
            batch = order[start : start + batch_size]
            candidates = retrieve(rag.retriever, [kept[i] for i in batch], rag.num_candidates)
            for i, found, answer in zip(batch, candidates, rag.answer_from(candidates), strict=True):
                done[i] = answer, score(kept[i], found, answer, cutoffs), _hits(found)
            bar.update(len(batch))
    if count > 1:
        done = {i: row for part in gather_object([done]) for i, row in part.items()}
    answers, scores, candidates_found = map(list, zip(*(done[i] for i in range(len(kept))), strict=True))
    evaluation = _evaluation(kept, answers, _with_groups(kept, scores), candidates_found, len(examples) - len(kept))
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
    candidates: list[list[dict[str, Any]]],
    skipped: int,
) -> Evaluation:
    metrics = aggregate(scores)
    if metrics["n"] != len(examples):
        raise RuntimeError(f"Every question must be scored: {len(examples)} came, {metrics['n']:.0f} were.")
    names = [name for name in metrics if name != "n"]
    # In the order of the ids, because a resampled question is a place in a list.
    columns = {name: [scores[i][name] for i in by_id(examples) if name in scores[i]] for name in names}
    rows = [
        {"id": example.id, "question": example.question, "prediction": answer.text, **row}
        for example, answer, row in zip(examples, answers, scores, strict=True)
    ]
    counts = {name: len(column) for name, column in columns.items()}
    return Evaluation(metrics, rows, answers, bootstrap_intervals(columns), counts, examples, candidates, skipped)


def scorable(examples: Sequence[QAExample], on_error: str = "raise") -> list[QAExample]:
    """The questions that something can be scored against; see `evaluate`."""
    check_on_error(on_error)
    kept = [e for e in examples if e.golden_answers or e.unanswerable]
    lacking = [e.id for e in examples if not (e.golden_answers or e.unanswerable)]
    if not kept or (lacking and on_error == "raise"):
        raise DataError(
            f"Evaluation needs questions with golden answers; {len(lacking)} of {len(examples)} have none"
            f"{f', the first is {lacking[0]!r}' if lacking else ''}. Leave them out (--on_error skip), or mark as "
            "unanswerable those whose right answer is none."
        )
    return kept


def by_id(examples: Sequence[QAExample]) -> list[int]:
    """Positions of the examples in the order of their ids."""
    return sorted(range(len(examples)), key=lambda i: (examples[i].id, examples[i].question))


def accepted_answers(example: QAExample) -> Sequence[str]:
    """What an answer is scored against: the golden answers, or the empty one where the right answer is none."""
    return example.golden_answers or ("",)


def score(
    example: QAExample, candidates: Candidates, answer: Answer, cutoffs: Sequence[int] = CUTOFFS
) -> dict[str, float]:
    """All metrics of one question, recall and nDCG at these cut-offs."""
    accepted = accepted_answers(example)
    row = {"exact_match": exact_match(answer.text, accepted), "f1": f1(answer.text, accepted)}
    read = {p.id for p in answer.passages}
    ranked = [*answer.passages, *(p for p in candidates.passages if p.id not in read)]
    stages = {"retriever": candidates.passages, "selector": ranked}
    for stage, passages in stages.items():
        row |= _ranking(stage, passages, example, cutoffs)
    return row


def _with_groups(examples: Sequence[QAExample], scores: list[dict[str, float]]) -> list[dict[str, float]]:
    """Scores of the answer once more under the name of the question's group, where there are two groups."""
    if not any(e.unanswerable for e in examples):
        return scores
    return [
        row | {f"{name}_{'un' * e.unanswerable}answerable": row[name] for name in ("exact_match", "f1")}
        for e, row in zip(examples, scores, strict=True)
    ]


def _cutoffs(k_max: int) -> list[int]:
    """Those up to `k_max`: recall@20 of five passages would be recall@5 under another name."""
    return [k for k in CUTOFFS if k <= k_max]


def _ranking(stage: str, passages: Sequence[Passage], example: QAExample, cutoffs: Sequence[int]) -> dict[str, float]:
    ids, texts = [p.id for p in passages], [p.contents for p in passages]
    row: dict[str, float] = {}
    if example.golden_answers:
        row |= {f"{stage}_answer_recall@{k}": answer_recall(texts, example.golden_answers, k) for k in cutoffs}
    if example.gold_ids:
        row |= {f"{stage}_recall@{k}": gold_recall(ids, example.gold_ids, k) for k in cutoffs}
        quality = ranking_quality(ids, example.gold_ids, cutoffs, example.gold_grades)
        row |= {f"{stage}_{name}": value for name, value in quality.items()}
    return row


def _hits(candidates: Candidates) -> list[dict[str, Any]]:
    return [
        {"id": passage.id, "title": passage.title, "score": value}
        for passage, value in zip(candidates.passages, candidates.scores.tolist(), strict=True)
    ]


def progress_bar(total: int, label: str, shown: bool) -> Any:
    """A bar that counts questions."""
    return tqdm(total=total, desc=label, unit="question", disable=not shown, leave=False)


def answerable(rag: Answerer, examples: Sequence[QAExample], *, batch_size: int = 64) -> list[QAExample]:
    """The questions whose answer stands in one of their candidates: those that reading can answer.

    Trained on the others, a generator learns to say what it has not read. DPR (arXiv 2004.04906, section 4.1) leaves
    out such training questions too. To be used on training questions only; a test without them would be another test.

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
            f"Training needs questions that reading can answer; no candidate of any of {len(examples)} holds an "
            "answer. Do the questions belong to this index?"
        )
    return kept


def search_metrics(examples: Sequence[QAExample], candidates: Sequence[Candidates], k_max: int) -> dict[str, float]:
    """What a retriever alone is worth at the cut-offs up to `k_max`.

    Recall, nDCG and MRR are means over questions with gold ids, answer recall over those with golden answers.
    """
    cutoffs = _cutoffs(k_max)
    rows = []
    for example, found in zip(examples, candidates, strict=True):
        row: dict[str, float] = {}
        if example.gold_ids:
            row |= {f"recall@{k}": gold_recall(found.ids, example.gold_ids, k) for k in cutoffs}
            row |= ranking_quality(found.ids, example.gold_ids, cutoffs, example.gold_grades)
        if example.golden_answers:
            texts = [p.contents for p in found.passages]
            row |= {f"answer_recall@{k}": answer_recall(texts, example.golden_answers, k) for k in cutoffs}
        rows.append(row)
    return aggregate(rows)
