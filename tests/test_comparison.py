"""Paired comparisons of evaluation files: by hand, adjusted together, and refused where the questions differ."""

from dataclasses import replace

import pytest
from evaluation_records import INDEX, PIPELINE, evaluation_of

from indexes.errors import DataError, MismatchError, UsageError
from rag.evaluation.comparison import ComparisonFile, compare_evaluations
from rag.evaluation.evaluation_file import EvaluationFile


def evaluation(name: str, scores: list[float], metric: str = "exact_match") -> EvaluationFile:
    return evaluation_of(name, {metric: scores})


BASE = evaluation("base", [0.0] * 30 + [1.0] * 10)
BETTER = evaluation("better", [1.0] * 9 + [0.0] * 21 + [1.0] * 9 + [0.0])
SAME = evaluation("same", [0.0] * 30 + [1.0] * 10)


def test_a_comparison_by_hand() -> None:
    """9 won and 1 lost of 40: +0.2 over 0.25; two-sided binomial p = 2 (1 + 10) / 2^10."""
    [found] = compare_evaluations([BASE, BETTER])
    assert (found.name, found.against, found.metric, found.questions) == ("better", "base", "exact_match", 40)
    assert found.difference == pytest.approx(0.2)
    assert found.relative == pytest.approx(0.8)
    assert found.p_exact == found.p_exact_adjusted == pytest.approx(22 / 1024)
    assert found.interval[0] > 0
    assert found.p == found.p_adjusted < 0.05


def test_several_are_adjusted_together() -> None:
    """Two against the base model: the smaller p is doubled, the larger one stays 1."""
    better, same = compare_evaluations([BASE, BETTER, SAME])
    assert better.p_exact_adjusted == pytest.approx(2 * better.p_exact)
    assert better.p_adjusted == pytest.approx(2 * better.p)
    assert (same.difference, same.p_exact_adjusted, same.relative) == (0.0, 1.0, 0.0)


def test_pairs_to_compare_can_be_given() -> None:
    [found] = compare_evaluations([BASE, BETTER, SAME], pairs=[("same", "better")])
    assert (found.name, found.against, found.difference) == ("same", "better", pytest.approx(-0.2))
    with pytest.raises(UsageError, match=r"got \['unknown'\]"):
        compare_evaluations([BASE, BETTER], pairs=[("unknown", "base")])


def test_no_relative_difference_to_a_mean_of_zero() -> None:
    zero, one = evaluation("zero", [0.0] * 4), evaluation("one", [1.0] * 4)
    assert compare_evaluations([zero, one])[0].relative is None


def test_metrics_are_those_that_all_have() -> None:
    assert compare_evaluations([BASE, evaluation("f1", [0.5] * 40, "f1")]) == []
    with pytest.raises(UsageError, match=r"got \['f2'\]"):
        compare_evaluations([BASE, BETTER], metrics=["f2"])


def test_other_questions_and_corpora_are_refused() -> None:
    other = replace(BETTER, dataset=replace(BETTER.dataset, sha256="e" * 64))
    with pytest.raises(MismatchError, match="answered 40 and 40, of which 40"):
        compare_evaluations([BASE, other])
    records = [*BETTER.records[:3], replace(BETTER.records[3], id="q999"), *BETTER.records[4:]]
    with pytest.raises(MismatchError, match="of which 39"):
        compare_evaluations([BASE, replace(BETTER, records=records)])
    elsewhere = replace(PIPELINE, index=replace(INDEX, corpus_fingerprint="f" * 64))
    with pytest.raises(MismatchError, match="read cccccccccccc and ffffffffffff"):
        compare_evaluations([BASE, replace(BETTER, pipeline=elsewhere)])
    records = [replace(BETTER.records[0], scores={}), *BETTER.records[1:]]
    with pytest.raises(MismatchError, match="39 questions of 'better' and of 40 of 'base'"):
        compare_evaluations([BASE, replace(BETTER, records=records)])


def test_a_single_file_and_equal_names_are_refused() -> None:
    with pytest.raises(UsageError, match="two evaluations or more, got 1"):
        compare_evaluations([BASE])
    with pytest.raises(UsageError, match="different names"):
        compare_evaluations([BASE, BASE])


def test_a_comparison_file_is_read_as_it_was_written() -> None:
    file = ComparisonFile(dataset=BASE.dataset, comparisons=compare_evaluations([BASE, BETTER]))
    data = file.to_dict()
    assert (data["kind"], data["format_version"]) == ("comparison", 1)
    assert ComparisonFile.from_dict(data) == file
    del data["comparisons"][0]["p_exact"]
    with pytest.raises(DataError, match=r"the key 'comparisons\[0\]\.p_exact' is missing"):
        ComparisonFile.from_dict(data)
