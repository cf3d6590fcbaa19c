"""How answers move when only an order changes: of the candidates that are selected from, and of the passages read.

An order carries no evidence, so a pipeline without order bias gives the same answer every time. Two audits, each on the
questions of an evaluation:

- `candidates`: the retriever's candidates are shuffled before the selector reads them, and the pipeline answers.
- `passages`: what the selector chose is shuffled before the generator reads it (pipelines that read what was selected,
  with K > 1). Here the passages are the same every time, so exact match by the place of the first gold passage shows
  where in the prompt the generator looks ("Lost in the Middle", arXiv 2307.03172).

Orders are drawn uniformly from those that are not the original one, by a seed and the id of the question alone. Answers
are compared after SQuAD's normalisation. Every interval resamples questions, never shuffles of one question.

Legend: n candidates, K passages read, R shuffles.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from indexes.corpora.chunk_ids import gold_document
from indexes.corpora.passage import Passage
from indexes.errors import UsageError
from rag.answering.answer import Answer
from rag.answering.permutation_mode import PermutationMode, permuted
from rag.evaluation.evaluation import Answerer, Evaluation, accepted_answers, by_id, progress_bar
from rag.evaluation.significance import estimate
from rag.metrics import exact_match, f1, normalize_answer
from rag.pipeline import RAG
from retriever.candidates import Candidates
from training.posterior import stable_seed
from training.questions.example import QAExample
from training.questions.self_retrieval import retrieve

_Order = tuple[int, ...]
_Draw = Callable[[str, int, int], list[_Order]]


@dataclass(frozen=True)
class OrderBias:
    """What shuffling does, over all questions and for each; ready for JSON."""

    summary: dict[str, Any]
    """`candidates` and, where it was done, `passages`, with `shuffles` and `seed`."""
    rows: list[dict[str, Any]]
    """The same two for each question, in the order of the evaluation; empty where nothing could be shuffled."""


def order_bias(
    rag: Answerer,
    evaluation: Evaluation,
    *,
    shuffles: int = 5,
    seed: int = 0,
    batch_size: int = 16,
    progress: bool = True,
) -> OrderBias:
    """Shuffle and answer again, R times per question and audit.

    Args:
        rag: Who gave the answers of the evaluation.
        evaluation: Answers to compare with.
        shuffles: R.
        seed: Of the orders.
        batch_size: Questions at a time.
        progress: Show a progress bar.

    Raises:
        UsageError: Fewer than one shuffle.
    """
    if shuffles < 1:
        raise UsageError(f"An order-bias audit needs at least one shuffle; {shuffles} came.")
    rows: list[dict[str, Any]] = [{} for _ in evaluation.examples]
    order = by_id(evaluation.examples)

    def draw(audit: str, n: int, i: int) -> list[_Order]:
        return other_orders(n, shuffles, seed, audit, evaluation.examples[i].id)

    with rag.generator.greedy_decoding(), progress_bar(len(order), "order bias", progress) as bar:
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            reader = _Reader(rag, {i: evaluation.answers[i] for i in batch})
            for i, row in _with_shuffled_candidates(rag, evaluation, batch, draw, reader).items():
                rows[i]["candidates"] = row
            if _permutation_mode(rag):  # other modes read one document at a time
                for i, row in _with_shuffled_passages(evaluation, batch, draw, reader).items():
                    rows[i]["passages"] = row
            bar.update(len(batch))
    ordered = [rows[i] for i in order]
    summary: dict[str, Any] = {"shuffles": shuffles, "seed": seed, "candidates": _summary(ordered, "candidates")}
    if _permutation_mode(rag):
        positions = _by_gold_position(ordered)
        summary["passages"] = _summary(ordered, "passages") | {"exact_match_by_gold_position": positions}
    return OrderBias(summary, rows)


def _permutation_mode(rag: Answerer) -> PermutationMode | None:
    """The answer mode, if the generator reads a whole permutation in one prompt."""
    mode = rag.answer_mode if isinstance(rag, RAG) else None
    return mode if isinstance(mode, PermutationMode) else None


def other_orders(n: int, count: int, *key: object) -> list[_Order]:
    """`count` orders of n things, uniform over all but the original, fixed by the key; none for fewer than two."""
    if n < 2:
        return []
    generator = torch.Generator().manual_seed(stable_seed(*key))
    orders: list[_Order] = []
    while len(orders) < count:
        drawn = tuple(torch.randperm(n, generator=generator).tolist())
        if drawn != tuple(range(n)):
            orders.append(drawn)
    return orders


# -- the two audits --------------------------------------------------------------------------------------------


class _Reader:
    """Answers to the questions of a batch from other passages; what was read in an order before is not read again."""

    def __init__(self, rag: Answerer, originals: Mapping[int, Answer]) -> None:
        self.rag, self.originals = rag, originals
        self.known = {self._key(i, answer.passages): answer.text for i, answer in originals.items()}

    @staticmethod
    def _key(i: int, passages: Sequence[Passage]) -> tuple[int, tuple[str, ...]]:
        return i, tuple(p.id for p in passages)

    def select(self, jobs: Sequence[tuple[int, Candidates]]) -> list[tuple[str, Sequence[Passage]]]:
        """The pipeline's answer from candidates, and what it read."""
        mode = _permutation_mode(self.rag)
        if mode is None:
            return [(answer.text, answer.passages) for answer in self.rag.answer_from([c for _, c in jobs])]
        permutations = mode.select([c for _, c in jobs])
        chosen = [(i, permuted(c, z)) for (i, c), z in zip(jobs, permutations, strict=True)]
        return list(zip(self.read(chosen), [passages for _, passages in chosen], strict=True))

    def read(self, jobs: Sequence[tuple[int, Sequence[Passage]]]) -> list[str]:
        """The generator's answer from passages in the order given."""
        new = {
            self._key(i, passages): (i, passages) for i, passages in jobs if self._key(i, passages) not in self.known
        }
        texts = self.rag.generator.generate(
            [self.originals[i].question for i, _ in new.values()], [passages for _, passages in new.values()]
        )
        self.known.update(zip(new, texts, strict=True))
        return [self.known[self._key(i, passages)] for i, passages in jobs]


def _with_shuffled_candidates(
    rag: Answerer, evaluation: Evaluation, batch: Sequence[int], draw: _Draw, reader: _Reader
) -> dict[int, dict[str, Any]]:
    """One row for each question of the batch that has two candidates or more."""
    examples, originals = evaluation.examples, evaluation.answers
    found = dict(zip(batch, retrieve(rag.retriever, [examples[i] for i in batch], rag.num_candidates), strict=True))
    orders = {i: drawn for i in batch if (drawn := draw("candidates", len(found[i]), i))}
    jobs = [(i, order) for i, drawn in orders.items() for order in dict.fromkeys(drawn)]
    given = dict(zip(jobs, reader.select([(i, found[i].reordered(order)) for i, order in jobs]), strict=True))
    rows = {}
    for i, drawn in orders.items():
        texts, chosen = zip(*(given[i, order] for order in drawn), strict=True)
        overlap = math.fsum(_overlap(originals[i].passages, passages) for passages in chosen) / len(chosen)
        rows[i] = _row(examples[i], originals[i].text, texts) | {"selected_overlap": overlap}
    return rows


def _overlap(one: Sequence[Passage], other: Sequence[Passage]) -> float:
    """Jaccard's index of two sets of passages."""
    ids, others = {p.id for p in one}, {p.id for p in other}
    return len(ids & others) / len(ids | others)


def _with_shuffled_passages(
    evaluation: Evaluation, batch: Sequence[int], draw: _Draw, reader: _Reader
) -> dict[int, dict[str, Any]]:
    """One row for each question of the batch that two passages or more were read for."""
    examples, originals = evaluation.examples, evaluation.answers
    orders = {i: drawn for i in batch if (drawn := draw("passages", len(originals[i].passages), i))}
    jobs = [(i, order) for i, drawn in orders.items() for order in drawn]
    texts = iter(reader.read([(i, [originals[i].passages[at] for at in order]) for i, order in jobs]))
    rows = {}
    for i, drawn in orders.items():
        ids = [p.id for p in originals[i].passages]
        gold = [_first_gold([ids[at] for at in order], examples[i]) for order in [range(len(ids)), *drawn]]
        rows[i] = _row(examples[i], originals[i].text, [next(texts) for _ in drawn]) | {"gold_positions": gold}
    return rows


def _first_gold(ids: Sequence[str], example: QAExample) -> int | None:
    """The place, from 1, of the first gold passage."""
    return next((place for place, id in enumerate(ids, 1) if gold_document(id, example.gold_ids) is not None), None)


# -- one question, and all of them -----------------------------------------------------------------------------


def _row(example: QAExample, original: str, texts: Sequence[str]) -> dict[str, Any]:
    """What R shuffles did to one question; `exact_match` and `f1` are lists, the unshuffled answer's first."""
    accepted, everything = accepted_answers(example), [original, *texts]
    normalised = [normalize_answer(text) for text in everything]
    return {
        "answers": list(texts),
        "changed": sum(other != normalised[0] for other in normalised[1:]) / len(texts),
        "agreement": max(Counter(normalised).values()) / len(normalised),
        "exact_match": [exact_match(text, accepted) for text in everything],
        "f1": [f1(text, accepted) for text in everything],
    }


def _summary(rows: Sequence[dict[str, Any]], audit: str) -> dict[str, Any]:
    found = [row[audit] for row in rows if audit in row]
    result = {
        "questions": len(found),
        "changed": estimate([float(row["changed"] > 0) for row in found]),
        "changed_per_shuffle": estimate([row["changed"] for row in found]),
        "agreement": estimate([row["agreement"] for row in found]),
        **{name: _spread([row[name] for row in found]) for name in ("exact_match", "f1")},
    }
    if audit == "candidates":
        result["selected_overlap"] = estimate([row["selected_overlap"] for row in found])
    return result


def _spread(scores: Sequence[Sequence[float]]) -> dict[str, Any]:
    """The mean over shuffles with its interval, the lowest and the highest of the R shuffles, and without shuffling."""
    if not scores:
        return {**estimate([]), "unshuffled": None, "lowest": None, "highest": None}
    columns = [math.fsum(column) / len(column) for column in zip(*scores, strict=True)]
    mean = estimate([math.fsum(row[1:]) / len(row[1:]) for row in scores])
    return {**mean, "unshuffled": columns[0], "lowest": min(columns[1:]), "highest": max(columns[1:])}


def _by_gold_position(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Exact match by the place of the first gold passage, the unshuffled reading included.

    A question counts once per place: as the mean over the orders that put it there.
    """
    places: dict[int, list[float]] = defaultdict(list)
    for row in (row["passages"] for row in rows if "passages" in row):
        seen: dict[int, list[float]] = defaultdict(list)
        for place, value in zip(row["gold_positions"], row["exact_match"], strict=True):
            if place is not None:
                seen[place].append(value)
        for place, values in seen.items():
            places[place].append(math.fsum(values) / len(values))
    return {str(place): estimate(places[place]) for place in sorted(places)}
