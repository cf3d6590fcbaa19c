"""Score a pipeline on questions with golden answers: greedy decoding, every question counted.

Metric names: `exact_match` and `f1` of the answer; `retriever_recall@k` and `selector_recall@k`, the share of gold
passages among the first k (questions with gold ids only); `retriever_answer_recall@k` and
`selector_answer_recall@k`, whether a golden answer stands in the first k passages. The selector's ranking is what was
read, in its order, then the other candidates in the retriever's.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from tqdm.auto import tqdm

from indexes.corpus import Passage
from indexes.errors import DataError
from rag.metrics import aggregate, answer_recall, exact_match, f1, gold_recall
from retriever.dense import Candidates, Retriever
from training.data import QAExample

if TYPE_CHECKING:
    from rag.pipeline import Answer

CUTOFFS = (1, 3, 5, 20)


class Answerer(Protocol):
    """Whoever answers from candidates: `rag.RAG`, or a baseline."""

    @property
    def retriever(self) -> Retriever:
        """Finds the candidates."""
        ...

    @property
    def num_candidates(self) -> int:
        """How many."""
        ...

    def answer_from(self, candidates: Sequence[Candidates]) -> list["Answer"]:
        """One answer for each question's candidates."""
        ...


@dataclass(frozen=True)
class Evaluation:
    """Means over all questions; for each question its scores and the whole answer."""

    metrics: dict[str, float]
    rows: list[dict[str, Any]]
    answers: list["Answer"]


def evaluate(
    rag: Answerer, examples: Sequence[QAExample], *, batch_size: int = 16, progress: bool = True
) -> Evaluation:
    """Answer every question and score the answers.

    Raises:
        DataError: A question without golden answers, or no question at all.
    """
    unanswerable = [e.id for e in examples if not e.golden_answers]
    if unanswerable or not examples:
        raise DataError(
            f"Evaluation needs questions with golden answers; {len(unanswerable)} of {len(examples)} have none"
            f"{f', the first is {unanswerable[0]!r}' if unanswerable else ''}. Leave them out."
        )
    rows: list[dict[str, Any]] = []
    answers: list[Answer] = []
    scores: list[dict[str, float]] = []
    with tqdm(total=len(examples), desc="evaluate", unit="question", disable=not progress, leave=False) as bar:
        for start in range(0, len(examples), batch_size):
            batch = examples[start : start + batch_size]
            candidates = rag.retriever.search([e.question for e in batch], rag.num_candidates)
            for example, found, answer in zip(batch, candidates, rag.answer_from(candidates), strict=True):
                scores.append(score(example, found, answer))
                rows.append({"id": example.id, "question": example.question, "prediction": answer.text, **scores[-1]})
                answers.append(answer)
            bar.update(len(batch))
    metrics = aggregate(scores)
    if metrics["n"] != len(examples):
        raise RuntimeError(f"Every question must be scored: {len(examples)} came, {metrics['n']:.0f} were.")
    return Evaluation(metrics, rows, answers)


def score(example: QAExample, candidates: Candidates, answer: "Answer") -> dict[str, float]:
    """All metrics of one question."""
    row = {
        "exact_match": exact_match(answer.text, example.golden_answers),
        "f1": f1(answer.text, example.golden_answers),
    }
    read = {p.id for p in answer.passages}
    ranked = [*answer.passages, *(p for p in candidates.passages if p.id not in read)]
    return row | _recalls("retriever", candidates.passages, example) | _recalls("selector", ranked, example)


def _recalls(stage: str, passages: Sequence[Passage], example: QAExample) -> dict[str, float]:
    ids, texts = [p.id for p in passages], [p.contents for p in passages]
    row: dict[str, float] = {}
    for k in CUTOFFS:
        if k > len(ids) and k != CUTOFFS[0]:
            continue  # recall@20 of five passages would be recall@5 under another name
        row[f"{stage}_answer_recall@{k}"] = answer_recall(texts, example.golden_answers, k)
        if example.gold_ids:
            row[f"{stage}_recall@{k}"] = gold_recall(ids, example.gold_ids, k)
    return row


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
        candidates = rag.retriever.search([e.question for e in batch], rag.num_candidates)
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
    """Recall of a retriever alone at the cut-offs up to `k_max`, over questions with gold ids or golden answers."""
    rows = []
    for example, found in zip(examples, candidates, strict=True):
        row: dict[str, float] = {}
        for k in (k for k in CUTOFFS if k <= k_max):
            if example.gold_ids:
                row[f"recall@{k}"] = gold_recall(found.ids, example.gold_ids, k)
            if example.golden_answers:
                texts = [p.contents for p in found.passages]
                row[f"answer_recall@{k}"] = answer_recall(texts, example.golden_answers, k)
        rows.append(row)
    return aggregate(rows)
