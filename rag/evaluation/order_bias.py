"""Order bias: how answers change when only an order changes, of the candidates or of the passages read.

An order carries no evidence, so a pipeline without order bias gives the same answer every time. Two audits, each on the
questions of an evaluation:

- `candidates`: the retriever's candidates are shuffled before the selector reads them, and the pipeline answers.
- `passages`: the selected passages are shuffled before the generator reads them (pipelines that read a permutation,
  with K > 1). The passages are the same every time, so exact match by the position of the first gold passage shows
  where in the prompt the generator looks ("Lost in the Middle", arXiv 2307.03172).

Orders are drawn uniformly from those that are not the original one, by a seed and the id of the question only. Answers
are compared after SQuAD's normalisation. Every interval resamples questions, never shuffles of one question.

Legend: n candidates, K passages read, R shuffles.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from indexes.corpora.chunk_ids import gold_document
from indexes.corpora.passage import Passage
from indexes.errors import UsageError
from rag.answering.answer import Answer
from rag.answering.permutation_mode import PermutationMode, permuted
from rag.evaluation.evaluation import Answerer, Evaluation, argsort_by_id, progress_bar
from rag.evaluation.metric import accepted_answers
from rag.evaluation.significance import Estimate, estimate
from rag.metrics import exact_match, f1, normalize_answer
from retriever.candidates import Candidates
from training.posterior import stable_seed
from training.questions.example import QAExample
from training.questions.self_retrieval import retrieve

_Order = tuple[int, ...]
_Draw = Callable[[str, int, int], list[_Order]]


@dataclass(frozen=True)
class ShuffledScore:
    """A score over shuffles: the mean with its interval, and the scores of single shuffles."""

    value: float | None
    """Mean over shuffles, then over questions."""
    interval: tuple[float, float] | None
    n: int
    unshuffled: float | None
    lowest: float | None
    """Mean over questions of the shuffle with the lowest one."""
    highest: float | None


@dataclass(frozen=True, kw_only=True)
class OrderAuditSummary:
    """One audit over all questions."""

    questions: int
    """Those with at least two things to shuffle."""
    changed: Estimate
    """Share of questions whose answer some shuffle changes."""
    changed_per_shuffle: Estimate
    """Share of shuffles that change the answer."""
    agreement: Estimate
    """Share of the R + 1 answers that equal the most frequent one."""
    exact_match: ShuffledScore
    f1: ShuffledScore
    selected_overlap: Estimate | None = None
    """Audit of candidates: Jaccard index of the passages read with and without shuffling."""
    exact_match_by_gold_position: dict[str, Estimate] | None = None
    """Audit of passages: by the position, from 1, of the first gold passage."""


@dataclass(frozen=True, kw_only=True)
class OrderBiasSummary:
    """Both audits over all questions."""

    shuffles: int
    seed: int
    candidates: OrderAuditSummary
    passages: OrderAuditSummary | None = None
    """None where the pipeline does not read a permutation."""


@dataclass(frozen=True, kw_only=True)
class OrderAuditRecord:
    """One audit of one question."""

    answers: list[str]
    """One for each shuffle."""
    changed: float
    """Share of shuffles that change the answer."""
    agreement: float
    exact_match: list[float]
    """Of the unshuffled answer, then of each shuffle."""
    f1: list[float]
    selected_overlap: float | None = None
    gold_positions: list[int | None] | None = None
    """Position, from 1, of the first gold passage: unshuffled, then in each shuffle; None where none was read."""


@dataclass(frozen=True, kw_only=True)
class OrderBiasRecord:
    """Both audits of one question; None where there was nothing to shuffle."""

    candidates: OrderAuditRecord | None = None
    passages: OrderAuditRecord | None = None


@dataclass(frozen=True)
class OrderBias:
    """The order bias of an evaluation."""

    summary: OrderBiasSummary
    records: list[OrderBiasRecord]
    """Of each question, in the order of the evaluation."""


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
        rag: The pipeline that gave the answers of the evaluation.
        evaluation: Answers to compare with.
        shuffles: R.
        seed: Of the orders.
        batch_size: Questions at a time.
        progress: Show a progress bar.

    Raises:
        UsageError: Fewer than one shuffle.
    """
    if shuffles < 1:
        raise UsageError(f"An order-bias audit needs at least one shuffle, got {shuffles}.")
    candidates: dict[int, OrderAuditRecord] = {}
    passages: dict[int, OrderAuditRecord] = {}
    order = argsort_by_id(evaluation.examples)

    def draw(audit: str, n: int, i: int) -> list[_Order]:
        return other_orders(n, shuffles, seed, audit, evaluation.examples[i].id)

    with rag.generator.greedy_decoding(), progress_bar(len(order), "order bias", progress) as bar:
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            reader = _Reader(rag, {i: evaluation.answers[i] for i in batch})
            candidates |= _with_shuffled_candidates(rag, evaluation, batch, draw, reader)
            if _permutation_mode(rag):  # other answer modes read one document at a time
                passages |= _with_shuffled_passages(evaluation, batch, draw, reader)
            bar.update(len(batch))
    summary = OrderBiasSummary(
        shuffles=shuffles,
        seed=seed,
        candidates=_summary([candidates[i] for i in order if i in candidates], "candidates"),
        passages=_summary([passages[i] for i in order if i in passages], "passages")
        if _permutation_mode(rag)
        else None,
    )
    records = [
        OrderBiasRecord(candidates=candidates.get(i), passages=passages.get(i)) for i in range(len(evaluation.examples))
    ]
    return OrderBias(summary, records)


def _permutation_mode(rag: Answerer) -> PermutationMode | None:
    """The answer mode, if the generator reads a whole permutation in one prompt."""
    mode = getattr(rag, "answer_mode", None)
    return mode if isinstance(mode, PermutationMode) else None


def other_orders(n: int, count: int, *key: object) -> list[_Order]:
    """`count` orders of n things, uniform over all but the original, fixed by the key; none if n is below 2."""
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
    """Answers to the questions of a batch from other passages; the same passages in the same order are read once."""

    def __init__(self, rag: Answerer, originals: Mapping[int, Answer]) -> None:
        self.rag, self.originals = rag, originals
        self.known = {self._key(i, answer.passages): answer.text for i, answer in originals.items()}

    @staticmethod
    def _key(i: int, passages: Sequence[Passage]) -> tuple[int, tuple[str, ...]]:
        return i, tuple(p.id for p in passages)

    def select(self, jobs: Sequence[tuple[int, Candidates]]) -> list[tuple[str, Sequence[Passage]]]:
        """The pipeline's answer from candidates, and the passages it read."""
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
) -> dict[int, OrderAuditRecord]:
    """A record for each question of the batch that has at least two candidates."""
    examples, originals = evaluation.examples, evaluation.answers
    found = dict(zip(batch, retrieve(rag.retriever, [examples[i] for i in batch], rag.num_candidates), strict=True))
    orders = {i: drawn for i in batch if (drawn := draw("candidates", len(found[i]), i))}
    jobs = [(i, order) for i, drawn in orders.items() for order in dict.fromkeys(drawn)]
    given = dict(zip(jobs, reader.select([(i, found[i].reordered(order)) for i, order in jobs]), strict=True))
    records = {}
    for i, drawn in orders.items():
        texts, chosen = zip(*(given[i, order] for order in drawn), strict=True)
        overlap = math.fsum(_overlap(originals[i].passages, passages) for passages in chosen) / len(chosen)
        records[i] = replace(_record(examples[i], originals[i].text, texts), selected_overlap=overlap)
    return records


def _overlap(one: Sequence[Passage], other: Sequence[Passage]) -> float:
    """Jaccard index of two sets of passages."""
    ids, others = {p.id for p in one}, {p.id for p in other}
    return len(ids & others) / len(ids | others)


def _with_shuffled_passages(
    evaluation: Evaluation, batch: Sequence[int], draw: _Draw, reader: _Reader
) -> dict[int, OrderAuditRecord]:
    """A record for each question of the batch for which at least two passages were read."""
    examples, originals = evaluation.examples, evaluation.answers
    orders = {i: drawn for i in batch if (drawn := draw("passages", len(originals[i].passages), i))}
    jobs = [(i, order) for i, drawn in orders.items() for order in drawn]
    texts = iter(reader.read([(i, [originals[i].passages[at] for at in order]) for i, order in jobs]))
    records = {}
    for i, drawn in orders.items():
        ids = [p.id for p in originals[i].passages]
        gold = [_first_gold([ids[at] for at in order], examples[i]) for order in [range(len(ids)), *drawn]]
        record = _record(examples[i], originals[i].text, [next(texts) for _ in drawn])
        records[i] = replace(record, gold_positions=gold)
    return records


def _first_gold(ids: Sequence[str], example: QAExample) -> int | None:
    """The position, from 1, of the first gold passage."""
    return next(
        (position for position, id in enumerate(ids, 1) if gold_document(id, example.gold_ids) is not None), None
    )


# -- one question, and all of them -----------------------------------------------------------------------------


def _record(example: QAExample, original: str, texts: Sequence[str]) -> OrderAuditRecord:
    """The effect of R shuffles on one question."""
    accepted, everything = accepted_answers(example), [original, *texts]
    normalised = [normalize_answer(text) for text in everything]
    return OrderAuditRecord(
        answers=list(texts),
        changed=sum(other != normalised[0] for other in normalised[1:]) / len(texts),
        agreement=max(Counter(normalised).values()) / len(normalised),
        exact_match=[exact_match(text, accepted) for text in everything],
        f1=[f1(text, accepted) for text in everything],
    )


def _summary(records: Sequence[OrderAuditRecord], audit: str) -> OrderAuditSummary:
    overlaps = [record.selected_overlap for record in records if record.selected_overlap is not None]
    return OrderAuditSummary(
        questions=len(records),
        changed=estimate([float(record.changed > 0) for record in records]),
        changed_per_shuffle=estimate([record.changed for record in records]),
        agreement=estimate([record.agreement for record in records]),
        exact_match=_over_shuffles([record.exact_match for record in records]),
        f1=_over_shuffles([record.f1 for record in records]),
        selected_overlap=estimate(overlaps) if audit == "candidates" else None,
        exact_match_by_gold_position=_by_gold_position(records) if audit == "passages" else None,
    )


def _over_shuffles(scores: Sequence[Sequence[float]]) -> ShuffledScore:
    """Of the scores of each question, the unshuffled one first."""
    if not scores:
        return ShuffledScore(None, None, 0, None, None, None)
    columns = [math.fsum(column) / len(column) for column in zip(*scores, strict=True)]
    mean = estimate([math.fsum(of_one[1:]) / len(of_one[1:]) for of_one in scores])
    return ShuffledScore(mean.value, mean.interval, mean.n, columns[0], min(columns[1:]), max(columns[1:]))


def _by_gold_position(records: Sequence[OrderAuditRecord]) -> dict[str, Estimate]:
    """Exact match by the position of the first gold passage, the unshuffled order included.

    A question counts once per position: as the mean over the orders that have it there.
    """
    positions: dict[int, list[float]] = defaultdict(list)
    for record in records:
        seen: dict[int, list[float]] = defaultdict(list)
        for position, value in zip(record.gold_positions or [], record.exact_match, strict=True):
            if position is not None:
                seen[position].append(value)
        for position, values in seen.items():
            positions[position].append(math.fsum(values) / len(values))
    return {str(position): estimate(positions[position]) for position in sorted(positions)}
