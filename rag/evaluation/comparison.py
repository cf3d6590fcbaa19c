"""Paired comparisons of evaluations of the same questions.

Both pipelines answered each question, so differences are taken question by question. Next to the paired bootstrap there
is a test without resampling of questions: McNemar's exact test for exact match, and its generalisation to other scores,
the sign-flip test. p-values of one metric are adjusted together by Holm's method.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from indexes.dataclass_json import from_json_object, to_json_object
from indexes.errors import MismatchError, UsageError
from rag.evaluation.evaluation_file import DatasetDescription, EvaluationFile, without_header
from rag.evaluation.metric import columns
from rag.evaluation.significance import holm, paired_bootstrap, sign_flip_test

KIND = "comparison"
FORMAT_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class PairedComparison:
    """One metric of two pipelines on the same questions."""

    name: str
    against: str
    metric: str
    difference: float
    """Mean of `name` - mean of `against`."""
    interval: tuple[float, float]
    """95 % paired bootstrap interval of the difference."""
    relative: float | None
    """The difference over the mean of `against`; None where that is 0."""
    p: float
    """Paired bootstrap."""
    p_adjusted: float
    """Holm-adjusted over the pairs of this metric."""
    p_exact: float
    """Exact or sign-flip test."""
    p_exact_adjusted: float
    questions: int

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return to_json_object(self)


@dataclass(frozen=True, kw_only=True)
class ComparisonFile:
    """What `rag evaluate --compare --output` writes."""

    dataset: DatasetDescription
    comparisons: list[PairedComparison]

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it, with `kind` and `format_version`."""
        return {"kind": KIND, "format_version": FORMAT_VERSION, **to_json_object(self)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], *, where: str = "the comparison") -> "ComparisonFile":
        """Read what `to_dict` made.

        Raises:
            DataError: Another kind of file, or a key that is missing or wrong; it is named.
        """
        return from_json_object(cls, without_header(data, KIND, FORMAT_VERSION, where), where)


def compare_evaluations(
    evaluations: Sequence[EvaluationFile],
    *,
    metrics: Sequence[str] | None = None,
    pairs: Sequence[tuple[str, str]] | None = None,
    seed: int = 0,
) -> list[PairedComparison]:
    """Paired differences between evaluations of the same questions over the same corpus.

    Args:
        evaluations: Evaluation files, as `rag.evaluation.evaluation_file.read_evaluation` reads them.
        metrics: Names of the metrics to compare; default: those that registered metrics show in comparisons
            (`Metric.columns`) and that all evaluations have.
        pairs: Names (this, against that); default: every other one against the first.
        seed: Of the resampling.

    Returns:
        One comparison for each metric and pair; p-values are adjusted within each metric.

    Raises:
        MismatchError: Other questions, another corpus, or a metric that other questions have.
        UsageError: Fewer than two evaluations, the same name twice, or an unknown metric or name.
    """
    by_name = {e.name: e for e in evaluations}
    _check_names(evaluations, by_name)
    for other in evaluations[1:]:
        check_comparable(evaluations[0], other)
    first = evaluations[0].name
    pairs = [(name, first) for name in by_name if name != first] if pairs is None else list(pairs)
    if unknown := sorted({name for pair in pairs for name in pair} - set(by_name)):
        raise UsageError(f"Pairs must name some of {list(by_name)}, got {unknown}.")
    found = []
    for metric in _metrics(evaluations, metrics):
        found += adjusted([_compared(by_name[name], by_name[against], metric, seed) for name, against in pairs])
    return found


def adjusted(comparisons: Sequence[PairedComparison]) -> list[PairedComparison]:
    """The comparisons of one metric with p-values adjusted by Holm's method over all of them."""
    bootstrap, exact = holm([c.p for c in comparisons]), holm([c.p_exact for c in comparisons])
    return [
        replace(c, p_adjusted=p, p_exact_adjusted=p_exact)
        for c, p, p_exact in zip(comparisons, bootstrap, exact, strict=True)
    ]


def _check_names(evaluations: Sequence[EvaluationFile], by_name: Mapping[str, EvaluationFile]) -> None:
    if len(evaluations) < 2:
        raise UsageError(f"A comparison needs two evaluations or more, got {len(evaluations)}.")
    if len(by_name) < len(evaluations):
        names = [e.name for e in evaluations]
        raise UsageError(f"Evaluations must have different names, got {names}. Evaluate again with another --name.")


def check_comparable(one: EvaluationFile, other: EvaluationFile) -> None:
    """Refuse evaluations of other questions or over another corpus.

    Raises:
        MismatchError: They are.
    """
    names = f"{one.name!r} and {other.name!r}"
    corpora = [e.pipeline.index.corpus_fingerprint[:12] for e in (one, other)]
    if corpora[0] != corpora[1]:
        raise MismatchError(f"Paired tests need one corpus; {names} read {corpora[0]} and {corpora[1]}.")
    ids = [[record.id for record in e.records] for e in (one, other)]
    if one.dataset.sha256 != other.dataset.sha256 or ids[0] != ids[1]:
        raise MismatchError(
            f"Paired tests need the same questions; {names} answered {len(ids[0])} and {len(ids[1])}, of which "
            f"{len(set(ids[0]) & set(ids[1]))} have a common id, and their digests are "
            f"{one.dataset.sha256[:12]} and {other.dataset.sha256[:12]}. Evaluate both on one file, "
            "with the same --ignore_identical_ids."
        )


def _metrics(evaluations: Sequence[EvaluationFile], metrics: Sequence[str] | None) -> list[str]:
    common = [m for m in evaluations[0].metrics if all(m in e.metrics for e in evaluations)]
    if metrics is None:
        return [column.name for column in columns("comparison") if column.name in common]
    if unknown := sorted(set(metrics) - set(common)):
        raise UsageError(f"Metrics must be among {sorted(common)}, which all evaluations have, got {unknown}.")
    return list(metrics)


def _compared(one: EvaluationFile, other: EvaluationFile, metric: str, seed: int) -> PairedComparison:
    values, others = one.values(metric), other.values(metric)
    if values.keys() != others.keys():
        raise MismatchError(
            f"Paired tests need the same questions; {metric} is of {len(values)} questions of {one.name!r} and of "
            f"{len(others)} of {other.name!r}. Leave it out, or evaluate both with the same number of candidates."
        )
    return paired_comparison(one.name, other.name, metric, list(values.values()), list(others.values()), seed=seed)


def paired_comparison(
    name: str, against: str, metric: str, values: Sequence[float], others: Sequence[float], *, seed: int = 0
) -> PairedComparison:
    """Both paired tests of two lists of scores of the same questions; a single comparison needs no adjustment."""
    paired = paired_bootstrap(values, others, seed=seed)
    p_exact = sign_flip_test(values, others, seed=seed)
    mean = sum(others) / len(others)
    return PairedComparison(
        name=name,
        against=against,
        metric=metric,
        difference=paired.difference,
        interval=paired.interval,
        relative=paired.difference / mean if mean else None,
        p=paired.p,
        p_adjusted=paired.p,
        p_exact=p_exact,
        p_exact_adjusted=p_exact,
        questions=len(values),
    )
