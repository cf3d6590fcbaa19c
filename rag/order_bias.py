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
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from indexes.chunking import gold_document
from indexes.errors import UsageError
from rag.evaluation import Answerer, Evaluation, accepted_answers, by_id, progress_bar
from rag.metrics import exact_match, f1, normalize_answer
from rag.pipeline import RAG, Answer
from rag.significance import estimate
from training.data import QAExample
from training.estimation import stable_seed

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

    with rag.generator.greedily(), progress_bar(len(order), "order bias", progress) as bar:
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            for i, row in _with_shuffled_candidates(rag, evaluation, batch, draw).items():
                rows[i]["candidates"] = row
            if isinstance(rag, RAG):  # baselines that sum over documents read one at a time
                for i, row in _with_shuffled_passages(rag, evaluation, batch, draw).items():
                    rows[i]["passages"] = row
            bar.update(len(batch))
    ordered = [rows[i] for i in order]
    summary: dict[str, Any] = {"shuffles": shuffles, "seed": seed, "candidates": _summary(ordered, "candidates")}
    if isinstance(rag, RAG):
        positions = _by_gold_position(ordered)
        summary["passages"] = _summary(ordered, "passages") | {"exact_match_by_gold_position": positions}
    return OrderBias(summary, rows)


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


def _with_shuffled_candidates(
    rag: Answerer, evaluation: Evaluation, batch: Sequence[int], draw: _Draw
) -> dict[int, dict[str, Any]]:
    """One row for each question of the batch that has two candidates or more."""
    examples, originals = evaluation.examples, evaluation.answers
    found = dict(
        zip(batch, rag.retriever.search([examples[i].question for i in batch], rag.num_candidates), strict=True)
    )
    orders = {i: drawn for i in batch if (drawn := draw("candidates", len(found[i]), i))}
    answers = _each_once(orders, lambda jobs: rag.answer_from([found[i].reordered(order) for i, order in jobs]))
    rows = {}
    for i, drawn in orders.items():
        given = [answers[i, order] for order in drawn]
        overlap = math.fsum(_overlap(originals[i], answer) for answer in given) / len(given)
        rows[i] = _row(examples[i], originals[i].text, [a.text for a in given]) | {"selected_overlap": overlap}
    return rows


def _overlap(answer: Answer, other: Answer) -> float:
    """Jaccard's index of what was read for both."""
    ids, others = {p.id for p in answer.passages}, {p.id for p in other.passages}
    return len(ids & others) / len(ids | others)


def _with_shuffled_passages(
    rag: RAG, evaluation: Evaluation, batch: Sequence[int], draw: _Draw
) -> dict[int, dict[str, Any]]:
    """One row for each question of the batch that two passages or more were read for."""
    examples, originals = evaluation.examples, evaluation.answers
    orders = {i: drawn for i in batch if (drawn := draw("passages", len(originals[i].passages), i))}
    texts = _each_once(
        orders,
        lambda jobs: rag.generator.generate(
            [examples[i].question for i, _ in jobs],
            [[originals[i].passages[at] for at in order] for i, order in jobs],
        ),
    )
    rows = {}
    for i, drawn in orders.items():
        ids = [p.id for p in originals[i].passages]
        gold = [_first_gold([ids[at] for at in order], examples[i]) for order in [range(len(ids)), *drawn]]
        row = _row(examples[i], originals[i].text, [texts[i, order] for order in drawn])
        rows[i] = row | {"gold_positions": gold}
    return rows


def _each_once(
    orders: dict[int, list[_Order]], answer: Callable[[list[tuple[int, _Order]]], Sequence[Any]]
) -> dict[tuple[int, _Order], Any]:
    """The answer to every different (question, order): two passages have one other order, however often it is drawn."""
    jobs = list(dict.fromkeys((i, order) for i, drawn in orders.items() for order in drawn))
    return dict(zip(jobs, answer(jobs), strict=True)) if jobs else {}


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
