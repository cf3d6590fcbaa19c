"""Evaluations of the same questions, compared pair by pair.

Each question was answered by both, so differences are taken question by question. Beside the bootstrap stands a test
that needs no resampled questions: McNemar's exact test for exact match, and its generalisation, sign flips, for scores
in between. Where a metric is compared more than once its p-values are adjusted together, by Holm's method.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from indexes.errors import MismatchError, UsageError
from rag.evaluation.significance import holm, paired_bootstrap, sign_flip_test

METRICS = ("exact_match", "f1", "selector_recall@1", "selector_recall@5", "selector_ndcg@5", "selector_mrr")


def compare_evaluations(
    evaluations: Sequence[Mapping[str, Any]],
    *,
    metrics: Sequence[str] | None = None,
    pairs: Sequence[tuple[str, str]] | None = None,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Paired differences between evaluations of the same questions over the same corpus.

    Args:
        evaluations: Contents of evaluation files (`rag.evaluation.evaluation_file`), with their rows.
        metrics: What to compare; default: those of `METRICS` that all of them have.
        pairs: Names (this, against that); default: every other against the first.
        seed: Of the resampling.

    Returns:
        For each metric and pair `name`, `against`, `metric`, `difference` (name - against), its 95 % `interval`,
        `relative` (to the mean of `against`; None when that is 0), `p` of the paired bootstrap and `p_adjusted`,
        `p_exact` of the exact or sign-flip test and `p_exact_adjusted`, and `questions`. Adjusted within each metric.

    Raises:
        MismatchError: Other questions, another corpus, or a metric that stands for other questions.
        UsageError: Fewer than two, the same name twice, or an unknown metric or name.
    """
    by_name = {e["name"]: e for e in evaluations}
    _check_names(evaluations, by_name)
    for other in evaluations[1:]:
        check_comparable(evaluations[0], other)
    first = evaluations[0]["name"]
    pairs = [(name, first) for name in by_name if name != first] if pairs is None else list(pairs)
    if unknown := sorted({name for pair in pairs for name in pair} - set(by_name)):
        raise UsageError(f"Pairs must name some of {list(by_name)}; {unknown} came.")
    found = []
    for metric in _metrics(evaluations, metrics):
        found += adjusted([_compared(by_name[name], by_name[against], metric, seed) for name, against in pairs])
    return found


def adjusted(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The comparisons of one metric with `p_adjusted` and `p_exact_adjusted`, by Holm's method over all of them."""
    bootstrap, exact = (holm([row[p] for row in rows]) for p in ("p", "p_exact"))
    return [
        {**row, "p_adjusted": p, "p_exact_adjusted": p_exact}
        for row, p, p_exact in zip(rows, bootstrap, exact, strict=True)
    ]


def _check_names(evaluations: Sequence[Mapping[str, Any]], by_name: Mapping[str, Any]) -> None:
    if len(evaluations) < 2:
        raise UsageError(f"A comparison needs two evaluations or more; {len(evaluations)} came.")
    if len(by_name) < len(evaluations):
        names = [e["name"] for e in evaluations]
        raise UsageError(f"Evaluations must have different names; {names} came. Evaluate again with another --name.")


def check_comparable(one: Mapping[str, Any], other: Mapping[str, Any]) -> None:
    """Refuse evaluations of other questions or over another corpus.

    Raises:
        MismatchError: They are.
    """
    names = f"{one['name']!r} and {other['name']!r}"
    corpora = [e["pipeline"]["index"]["corpus_fingerprint"][:12] for e in (one, other)]
    if corpora[0] != corpora[1]:
        raise MismatchError(f"Paired tests need one corpus; {names} read {corpora[0]} and {corpora[1]}.")
    ids = [[row["id"] for row in e["rows"]] for e in (one, other)]
    if one["dataset"]["sha256"] != other["dataset"]["sha256"] or ids[0] != ids[1]:
        raise MismatchError(
            f"Paired tests need the same questions; {names} answered {len(ids[0])} and {len(ids[1])}, of which "
            f"{len(set(ids[0]) & set(ids[1]))} have a common id, and their digests are "
            f"{one['dataset']['sha256'][:12]} and {other['dataset']['sha256'][:12]}. Evaluate both on one file, "
            "with the same --ignore_identical_ids."
        )


def _metrics(evaluations: Sequence[Mapping[str, Any]], metrics: Sequence[str] | None) -> list[str]:
    common = [m for m in evaluations[0]["metrics"] if all(m in e["metrics"] for e in evaluations)]
    if metrics is None:
        return [m for m in METRICS if m in common]
    if unknown := sorted(set(metrics) - set(common)):
        raise UsageError(f"Metrics must be among {sorted(common)}, which all of them have; {unknown} came.")
    return list(metrics)


def _compared(one: Mapping[str, Any], other: Mapping[str, Any], metric: str, seed: int) -> dict[str, Any]:
    ours, theirs = _column(one, metric), _column(other, metric)
    if ours.keys() != theirs.keys():
        raise MismatchError(
            f"Paired tests need the same questions; {metric} stands for {len(ours)} questions of {one['name']!r} and "
            f"for {len(theirs)} of {other['name']!r}. Leave it out, or evaluate both with as many candidates."
        )
    return paired_row(one["name"], other["name"], metric, list(ours.values()), list(theirs.values()), seed=seed)


def paired_row(
    name: str, against: str, metric: str, values: Sequence[float], others: Sequence[float], *, seed: int = 0
) -> dict[str, Any]:
    """Both paired tests of two lists of scores of the same questions; `compare_evaluations` says what is in it."""
    paired = paired_bootstrap(values, others, seed=seed)
    mean = sum(others) / len(others)
    return {
        "name": name,
        "against": against,
        "metric": metric,
        "difference": paired.difference,
        "interval": list(paired.interval),
        "relative": paired.difference / mean if mean else None,
        "p": paired.p,
        "p_exact": sign_flip_test(values, others, seed=seed),
        "questions": len(values),
    }


def _column(evaluation: Mapping[str, Any], metric: str) -> dict[str, float]:
    """Scores by id, in the order of the rows, which is the same for every evaluation of the same questions."""
    return {row["id"]: row["scores"][metric] for row in evaluation["rows"] if metric in row["scores"]}
