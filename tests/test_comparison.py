"""Comparisons of evaluation files: by hand, adjusted together, and refused where pairs are none."""

from copy import deepcopy
from typing import Any

import pytest

from indexes.errors import MismatchError, UsageError
from rag.evaluation.comparison import compare_evaluations


def evaluation(name: str, scores: list[float], metric: str = "exact_match") -> dict[str, Any]:
    return {
        "name": name,
        "pipeline": {"index": {"corpus_fingerprint": "c" * 64}},
        "dataset": {"sha256": "d" * 64},
        "metrics": {metric: sum(scores) / len(scores)},
        "rows": [{"id": f"q{i:03}", "scores": {metric: value}} for i, value in enumerate(scores)],
    }


BASE = evaluation("base", [0.0] * 30 + [1.0] * 10)
BETTER = evaluation("better", [1.0] * 9 + [0.0] * 21 + [1.0] * 9 + [0.0])
SAME = evaluation("same", [0.0] * 30 + [1.0] * 10)


def test_a_comparison_by_hand() -> None:
    """9 won and 1 lost of 40: +0.2 over 0.25; two-sided binomial p = 2 (1 + 10) / 2^10."""
    [found] = compare_evaluations([BASE, BETTER])
    assert (found["name"], found["against"], found["metric"], found["questions"]) == (
        "better",
        "base",
        "exact_match",
        40,
    )
    assert found["difference"] == pytest.approx(0.2)
    assert found["relative"] == pytest.approx(0.8)
    assert found["p_exact"] == found["p_exact_adjusted"] == pytest.approx(22 / 1024)
    assert found["interval"][0] > 0
    assert found["p"] == found["p_adjusted"] < 0.05


def test_several_are_adjusted_together() -> None:
    """Two against the base: the smaller p is doubled, the larger one stays 1."""
    better, same = compare_evaluations([BASE, BETTER, SAME])
    assert better["p_exact_adjusted"] == pytest.approx(2 * better["p_exact"])
    assert better["p_adjusted"] == pytest.approx(2 * better["p"])
    assert (same["difference"], same["p_exact_adjusted"], same["relative"]) == (0.0, 1.0, 0.0)


def test_pairs_can_be_named() -> None:
    [found] = compare_evaluations([BASE, BETTER, SAME], pairs=[("same", "better")])
    assert (found["name"], found["against"], found["difference"]) == ("same", "better", pytest.approx(-0.2))
    with pytest.raises(UsageError, match=r"\['nobody'\] came"):
        compare_evaluations([BASE, BETTER], pairs=[("nobody", "base")])


def test_nothing_to_be_relative_to() -> None:
    zero, one = evaluation("zero", [0.0] * 4), evaluation("one", [1.0] * 4)
    assert compare_evaluations([zero, one])[0]["relative"] is None


def test_metrics_are_those_that_all_have() -> None:
    assert compare_evaluations([BASE, evaluation("f1", [0.5] * 40, "f1")]) == []
    with pytest.raises(UsageError, match=r"\['f2'\] came"):
        compare_evaluations([BASE, BETTER], metrics=["f2"])


def test_other_questions_and_corpora_are_refused() -> None:
    other = deepcopy(BETTER)
    other["dataset"]["sha256"] = "e" * 64
    with pytest.raises(MismatchError, match="answered 40 and 40, of which 40"):
        compare_evaluations([BASE, other])
    other = deepcopy(BETTER)
    other["rows"][3]["id"] = "q999"
    with pytest.raises(MismatchError, match="of which 39"):
        compare_evaluations([BASE, other])
    other = deepcopy(BETTER)
    other["pipeline"]["index"]["corpus_fingerprint"] = "f" * 64
    with pytest.raises(MismatchError, match="read cccccccccccc and ffffffffffff"):
        compare_evaluations([BASE, other])
    other = deepcopy(BETTER)
    del other["rows"][0]["scores"]["exact_match"]
    with pytest.raises(MismatchError, match="39 questions of 'better' and for 40 of 'base'"):
        compare_evaluations([BASE, other])


def test_one_is_not_enough_and_names_must_differ() -> None:
    with pytest.raises(UsageError, match="two evaluations or more; 1 came"):
        compare_evaluations([BASE])
    with pytest.raises(UsageError, match="different names"):
        compare_evaluations([BASE, BASE])
