"""Pages of evaluations, runs, forgetting files and sweeps: their numbers equal those of the data, also in a browser."""

import html
import json
import math
import random
import re
import xml.etree.ElementTree as ET
import zlib
from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations, permutations
from pathlib import Path
from typing import Any

import pytest
from pages import by_class, by_id, find_browser, hostile, loads, number, parse, placed, sections, text, ticks, visit

from indexes.errors import DataError
from rag.cli import main
from rag.report import parse_result, read_source, render_report, with_evaluation_records, write_report
from rag.report.drawing.axes import ticks as axis_ticks
from rag.report.report_data import ComparisonData, EvaluationData, RunData
from rag.report.sections.question_lists import best_and_worst
from rag.report.series_style import SeriesStyles

NONE = "\u2013"
CANDIDATES = [{"id": f"p{i}", "title": f"Brost {i}", "score": 0.9 - i / 10} for i in range(5)]


def question(id: str, f1: float, log_prob: float, gold: list[str], **more: Any) -> dict[str, Any]:
    """One row of an evaluation: candidates 2 and 0 were read, in that order, and the first is cited."""
    read = [{"id": f"p{i}", "title": f"Brost {i}", "text": f"The Brost {i} of {id}."} for i in (2, 0)]
    return {
        "id": id, "question": f"how long is {id}?", "golden_answers": ["2,914 km"], "gold_ids": gold,
        "prediction": "2,914 km" if f1 == 1 else "far", "log_prob": log_prob, "citations": ["p2"],
        "permutation": [2, 0], "passages": read, "candidates": CANDIDATES,
        "scores": {"exact_match": float(f1 == 1), "f1": f1}, **more,
    }  # fmt: skip


@pytest.fixture
def evaluation() -> dict[str, Any]:
    attribution = [
        {"id": "p2", "cited": True, "log_prob_drop": 2.345, "answer_changed": True},
        {"id": "p0", "cited": False, "log_prob_drop": -0.1, "answer_changed": False},
    ]

    def estimate(value: float) -> dict[str, Any]:
        return {"value": value, "interval": [value - 0.05, value + 0.05], "n": 3}

    return {
        "kind": "evaluation", "format_version": 1, "name": "dro", "label": "DRO, \u00fcber alles",
        "pipeline": {"bundle_sha256": "ab" * 32, "selector": {"num_selected": 2}, "answer_mode": "permutation"},
        "dataset": {"sha256": "cd" * 32, "file": "dev.jsonl", "n": 3, "skipped": 2}, "n": 3, "n_scored": 3,
        "metrics": {
            "exact_match": 0.25, "f1": 0.5, "selector_recall@1": 0.5, "selector_recall@3": 0.75,
            "retriever_recall@1": 0.125, "retriever_recall@3": 0.625, "selector_mrr": 0.8, "selector_ndcg@3": 0.7,
        },
        "intervals": {"exact_match": [0.125, 0.375], "selector_recall@1": [0.375, 0.625]},
        "counts": {"exact_match": 3, "selector_recall@1": 2}, "settings": {"confidence": 0.95},
        "order_bias": {
            "shuffles": 5, "seed": 0,
            "candidates": {"questions": 3, "changed": estimate(0.111)},
            "passages": {
                "questions": 3,
                "exact_match": {**estimate(0.222), "unshuffled": 0.25, "lowest": 0.2, "highest": 0.3},
                "exact_match_by_gold_position": {"1": estimate(0.333), "2": estimate(0.444)},
            },
        },
        "attribution": {"threshold": 0.1, "citations": 3, "supported": 2, "supported_citations": estimate(0.666)},
        "records": [
            question("q1", 1.0, -0.5, ["p0", "p9"], attribution=attribution),
            question("q2", 0.5, -1.0, ["p2", "p0", "p4"]),
            question("q3", 0.0, -9.0, []),
        ],
    }  # fmt: skip


ROWS = ("no_training", "sft", "sft_selfaug", "dro_selfaug")
GAINS = {"sft": 0.08, "sft_selfaug": 0.06, "dro_selfaug": 0.16}
PERPLEXITIES = {"base": 60.0, "sft": 90.0, "sft_selfaug": 66.0, "dro_selfaug": 30.0}
ACCURACIES = {"base": 0.7, "sft": 0.6, "sft_selfaug": 0.69, "dro_selfaug": 0.72}


@pytest.fixture
def forgetting() -> dict[str, Any]:
    measurements, comparisons = [], []
    tasks = [("wikitext", "word_perplexity", PERPLEXITIES, False), ("blimp", "accuracy", ACCURACIES, True)]
    for task, metric, values, up in tasks:
        about = {"task": task, "metric": metric}
        for place, (model, value) in enumerate(values.items()):
            groups = {"all": value} | ({f"group {g}": value - g * place / 100 for g in range(3)} if up else {})
            for group, here in groups.items():
                named = {**about, "model": model, "group": group, "n": 10}
                measurements.append(
                    {**named, "value": here, "interval": [here - 0.01, here + 0.01], "higher_is_better": up}
                )
                if model != "base":
                    start = values["base"]
                    entry = {"difference": here - start, "interval": [here - start - 0.01, here - start + 0.02]}
                    comparisons.append({**named, **entry, "against": "base", "p": 0.01 if model == "sft" else 0.4})
    return {
        "kind": "forgetting", "format_version": 1, "base": {"name": "tiny", "sha256": "ef" * 32},
        "models": [{"name": "base"}, *({"name": n, "bundle_sha256": "12" * 32} for n in ROWS[1:])],
        "measurements": measurements, "comparisons": comparisons,
    }  # fmt: skip


@pytest.fixture
def sweep(evaluation: dict[str, Any], forgetting: dict[str, Any]) -> dict[str, Any]:
    def row(name: str) -> dict[str, Any]:
        gain = GAINS.get(name, 0.0)
        return {
            "name": name, "label": f"label of {name}", "recipe": name.removesuffix("_selfaug"), "seed": 42,
            "selfaug": name.endswith("_selfaug"), "exact_match": 0.1 + gain, "f1": 0.2 + gain, "general": 0.9 - gain,
            "selector_recall@1": 0.125 if name != "dro_selfaug" else 0.5, "kl_drift": gain,
            "intervals": {"exact_match": [0.05 + gain, 0.15 + gain], "selector_recall@1": [0.1, 0.6]},
        }  # fmt: skip

    def compared(name: str, metric: str, difference: float, p: float) -> dict[str, Any]:
        ends = [difference - 0.02, difference + 0.03]
        return {
            "name": name, "against": "no_training", "metric": metric, "difference": difference, "interval": ends,
            "p": p, "p_adjusted": min(1.0, 3 * p), "p_exact": 0.017, "questions": 300,
        }  # fmt: skip

    def answered(kind: str, n: int) -> dict[str, Any]:
        answers = [
            {**question(f"q{n}", f1, -1.0, []), "trial": name, "text": f"said by {name}", "exact_match": f1, "f1": f1}
            for name, f1 in zip(ROWS, (0.0, 1.0, 0.0, 1.0), strict=True)
        ]
        about = {"id": f"q{n}", "question": f"{kind} {n}?", "golden_answers": ["42 km"], "gold_ids": ["p0", "p7"]}
        return {**about, "list": kind, "candidates": CANDIDATES, "answers": answers}

    alone = {key: value for key, value in evaluation.items() if key not in ("records", "order_bias", "attribution")}
    like_retriever = {**alone, "metrics": {**alone["metrics"], "selector_recall@1": 0.125, "selector_recall@3": 0.625}}
    metrics = ("exact_match", "f1", "general", "selector_mrr", "selector_recall@1")
    return {
        "kind": "sweep", "format_version": 1, "settings": {"rounds": 2, "training": {"lora": {"r": 16}}},
        "dataset": evaluation["dataset"], "trials": [row(name) for name in ROWS],
        "retriever": {"retriever_recall@1": 0.125},
        "comparisons": [compared(n, m, -g if m == "general" else g, 0.02) for m in metrics for n, g in GAINS.items()],
        "evaluations": {name: alone if name == "dro_selfaug" else like_retriever for name in ROWS},
        "curves": {
            name: [
                {"round": r, "eval_f1": 0.2 + g * r / 2, "eval_intervals": {"f1": [0.15 + g * r / 2, 0.3 + g * r / 2]}}
                for r in range(3)
            ]
            for name, g in GAINS.items()
        },
        "forgetting": forgetting,
        "questions": [answered("best", n) for n in range(10)] + [answered("worst", n) for n in range(10, 20)],
        "failed": [{"name": "replug", "error": "RuntimeError: no room"}],
    }  # fmt: skip


def run_folder(folder: Path, rounds: int = 2) -> Path:
    folder.mkdir()
    config = {"rounds": rounds, "e_step": {"num_permutations": 4, "proposals_per_sample": 8}}
    (folder / "run.json").write_text(json.dumps({"config": config, "index": "ab" * 32, "base": "tiny"}))
    records = [
        {
            "round": r, "eval_exact_match": [0.1, 0.4, 0.4][r], "eval_f1": 0.2 + r / 10, "ess": 4.0 - r,
            "eval_intervals": {"exact_match": [0.05, 0.5]}, "generator_loss": 1.5 / (r + 1), "seconds": 1.25,
        }
        for r in range(rounds + 1)
    ]  # fmt: skip
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


@pytest.fixture
def pages(
    tmp_path: Path, evaluation: dict[str, Any], forgetting: dict[str, Any], sweep: dict[str, Any]
) -> dict[str, Any]:
    """One result of each kind."""
    folder = run_folder(tmp_path / "my run")
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    written = json.loads((folder / "run.json").read_text())
    run = {"kind": "run", "name": folder.name, "run": written, "records": records}
    return {"evaluation": evaluation, "forgetting": forgetting, "sweep": sweep, "run": run}


def table(tree: ET.Element) -> list[list[str]]:
    return [[text(cell) for cell in row] for row in tree.iter("tr")]


def tables(tree: ET.Element, section: str) -> list[list[list[str]]]:
    return [table(found) for found in by_id(tree, section).iter("table")]


# An evaluation.


def test_evaluation_facts_and_settings(evaluation: dict[str, Any]) -> None:
    tree = parse(render_report(evaluation))
    assert text(tree.findall("body/header/h1")[0]) == "Evaluation: DRO, \u00fcber alles"
    facts = {text(fact[0]): text(fact[1]) for fact in by_class(tree, "facts")[0]}
    assert facts == {
        "Name": "dro", "Questions": "3, 2 skipped", "Question file": "dev.jsonl", "Answers by": "permutation",
        "Its questions, sha256": "cdcdcdcdcdcd\u2026", "Scored": "3 of 3", "Bundle, sha256": "abababababab\u2026",
    }  # fmt: skip
    assert [code.get("title") for code in tree.iter("code")] == ["cd" * 32, "ab" * 32]
    assert "some were not scored" in text(parse(render_report({**evaluation, "n_scored": 2})))
    assert sections(tree) == ["metrics", "recall", "order", "support", "questions", "settings"]
    settings = dict(row[:2] for row in tables(tree, "settings")[0])
    assert settings["pipeline.selector.num_selected"] == "2"


def test_evaluation_metrics_with_intervals_and_counts(evaluation: dict[str, Any]) -> None:
    answers, passages = tables(parse(render_report(evaluation)), "metrics")
    assert answers == [
        ["Answers", "Mean", "Questions"],
        ["Exact matchShare of answers that equal a golden answer after normalisation.", "0.2500.125 to 0.375", "3"],
        ["F1Overlap of answer and golden answer in words: the harmonic mean of precision and recall.", "0.500", NONE],
    ]
    assert passages[0] == ["Passages", "Selector", "Retriever", "Questions"]
    assert {row[0].split("@")[0][:8]: row[1:] for row in passages[1:3]} == {
        "MRROne o": ["0.800", NONE, NONE],
        "nDCG": ["0.700", NONE, NONE],
    }
    assert passages[3][1:] == ["0.5000.375 to 0.625", "0.125", "2"]
    assert passages[4][1:] == ["0.750", "0.625", NONE]


def test_recall_ceilings_computed_by_hand(evaluation: dict[str, Any]) -> None:
    """q1: gold p0 and p9, of which only p0 is a candidate; q2: three, all candidates; q3 has none and does not count.

    All gold first: k=1 (1/2 + 1/3)/2, k=3 (1 + 1)/2, k=5 the same. The best order of the candidates: k=1 the same
    5/12, k=3 and k=5 (1/2 + 1)/2.
    """
    rows = {row[0]: row[1:] for row in table(by_id(parse(render_report(evaluation)), "chart-recall-vs-ceiling"))}
    values = {name: [cell[:5] for cell in cells] for name, cells in rows.items()}
    assert values["all gold first"] == ["0.417", "1.000"]
    assert values["best order"] == ["0.417", "0.750"]
    assert values["dro"] == ["0.500", "0.750"]
    assert values["retriever"] == ["0.125", "0.625"]
    assert rows["K"] == ["1", "3"]
    assert rows["dro"][0] == "0.5000.375 to 0.625"


def test_evaluation_audits(evaluation: dict[str, Any]) -> None:
    tree = parse(render_report(evaluation))
    candidates, passages, positions = tables(tree, "order")
    assert candidates[1] == ["questions whose answer some shuffle changes", "0.1110.061 to 0.161", *[NONE] * 3, "3"]
    assert passages[1][1:] == ["0.2220.172 to 0.272", "0.250", "0.200", "0.300", "3"]
    assert positions == [
        ["Place of the first gold passage", "1", "2"],
        ["Exact match", "0.3330.283 to 0.3833 questions", "0.4440.394 to 0.4943 questions"],
    ]
    assert "Each question was shuffled 5 times." in text(by_id(tree, "order"))
    assert tables(tree, "support")[0][1] == [
        "citations that are supported, mean over questions",
        "0.6660.616 to 0.716",
        "3",
    ]
    assert "by more than 0.1 nats. 3 citations, 2 of them supported." in text(by_id(tree, "support"))


def test_question_shows_candidates_permutation_citations_and_attribution(evaluation: dict[str, Any]) -> None:
    tree = parse(render_report(evaluation))
    samples = by_class(by_id(tree, "questions"), "sample")
    assert [text(by_class(sample, "question")[0]) for sample in samples] == [f"how long is q{i}?" for i in (1, 2, 3)]
    candidates, said = (table(found) for found in samples[0].iter("table"))
    assert candidates == [
        ["Rank", "Candidate", "Score", "Read", "Support, nats"],
        ["0", "Brost 0 p0 goldThe Brost 0 of q1.", "0.900", "2.", "\u22120.10"],
        ["1", "Brost 1 p1", "0.800", NONE, NONE],
        ["2", "Brost 2 p2 citedThe Brost 2 of q1.", "0.700", "1.", "+2.35without it, another answer"],
        ["3", "Brost 3 p3", "0.600", NONE, NONE],
        ["4", "Brost 4 p4", "0.500", NONE, NONE],
    ]
    assert "Gold, but no candidate: p9" in text(samples[0])
    assert said[1][1:] == ["\u2713DRO, \u00fcber alles: right. 2,914 km", "1.00", "\u22120.50", "2 (cited) 0 (gold)"]
    assert "Support" not in text(samples[1])


def test_chunk_of_a_gold_document_is_gold(evaluation: dict[str, Any]) -> None:
    chunked = json.loads(json.dumps(evaluation).replace('"id": "p0"', '"id": "p0#3"'))
    tree = parse(render_report(chunked))
    sample = by_class(by_id(tree, "questions"), "sample")[0]
    candidates, said = (table(found) for found in sample.iter("table"))
    assert candidates[1][1] == "Brost 0 p0#3 goldThe Brost 0 of q1."
    assert said[1][-1] == "2 (cited) 0 (gold)"
    assert "Gold, but no candidate: p9" in text(sample)
    plain = parse(render_report(evaluation))
    assert table(by_id(tree, "chart-recall-vs-ceiling")) == table(by_id(plain, "chart-recall-vs-ceiling"))


def test_best_and_worst_do_not_depend_on_the_order_of_records() -> None:
    """By F1, then log p; ids break ties in both lists; no question is in both."""
    rows = [question(f"q{i:02d}", f1, -1.0, []) for i, f1 in enumerate([1.0] * 12 + [0.5] + [0.0] * 12)]
    rows[5]["log_prob"], rows[20]["log_prob"], rows[7]["log_prob"] = -0.1, -30.0, None
    expected = ["q05", *(f"q{i:02d}" for i in (0, 1, 2, 3, 4, 6, 8, 9, 10))]
    expected += ["q20", *(f"q{i:02d}" for i in (13, 14, 15, 16, 17, 18, 19, 21, 22))]
    for seed in range(3):
        random.Random(seed).shuffle(rows)
        lists = lists_of(rows)
        assert list(lists) == ["Best", "Worst"]
        assert lists["Best"] + lists["Worst"] == expected
    for count in range(4):
        ids = [id for found in lists_of(rows[:count]).values() for id in found]
        assert len(ids) == len(set(ids)) == count


def lists_of(rows: list[dict[str, Any]]) -> dict[str, list[str]]:
    """Ids of the best and the worst questions."""
    data = parse_result({"kind": "evaluation", "records": rows})
    assert isinstance(data, EvaluationData)
    return {found.heading: [view.question.id for view in found.questions] for found in best_and_worst(data.records)}


# A run.


def run_of(folder: Path) -> RunData:
    data = read_source(folder)
    assert isinstance(data, RunData)
    return data


def sweep_of(folder: Path) -> ComparisonData:
    data = read_source(folder)
    assert isinstance(data, ComparisonData)
    return data


def test_run_rounds_and_settings(tmp_path: Path) -> None:
    run = run_of(run_folder(tmp_path / "my run"))
    tree = parse(render_report(run))
    assert text(tree.findall("head/title")[0]) == "Training run: my run"
    facts = {text(fact[0]): text(fact[1]) for fact in by_class(tree, "facts")[0]}
    assert facts == {
        "Rounds": "2 of 2", "Best round by exact match": "1", "Best round by F1": "2", "Base": "tiny",
        "Index, sha256": "abababababab\u2026",
    }  # fmt: skip
    assert sections(tree) == ["rounds", "table", "settings"]
    (rounds,) = tables(tree, "table")
    assert rounds[0] == ["Round", "exact match", "f1", "ess", "generator loss", "seconds"]
    assert rounds[2] == ["1", "0.4000.050 to 0.500", "0.300", "3.000", "0.750", "1.250"]
    charts = [figure.get("id") for figure in by_id(tree, "rounds").iter("figure")]
    assert charts == [f"chart-{key}" for key in ("eval-exact-match", "eval-f1", "ess", "generator-loss")]
    assert ["config.e_step.proposals_per_sample", "8"] in tables(tree, "settings")[0]
    kept = parse(render_report(replace(run, kept_round=1)))
    assert "1kept" in [row[0] for row in tables(kept, "table")[0]]
    assert {text(fact[0]) for fact in by_class(kept, "facts")[0]} >= {"Round kept"}


def test_the_teacher_is_shown_beside_the_selector_with_the_warning(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "my run")
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for record in records[1:]:
        record |= {"posterior_gold_share": 0.6, "selector_gold_share": 0.5, "likelihood_exponent": 0.3}
    records[2]["warnings"] = ["The posterior is <no> better a teacher."]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    tree = parse(render_report(run_of(folder)))
    facts = {text(fact[0]): text(fact[1]) for fact in by_class(tree, "facts")[0]}
    assert facts["Warning in round 2"] == "The posterior is <no> better a teacher."
    assert not any("round 1" in term for term in facts)
    (rounds,) = tables(tree, "table")
    at = rounds[0].index("posterior gold share")
    assert [row[at : at + 2] for row in rounds[2:]] == [["0.600", "0.500"]] * 2
    assert by_id(tree, "chart-teacher") is not None
    plain = parse(render_report(run_of(run_folder(tmp_path / "plain"))))
    assert "chart-teacher" not in [figure.get("id") for figure in plain.iter("figure")]


def test_intervals_are_bands_and_whiskers(tmp_path: Path) -> None:
    tree = parse(render_report(read_source(run_folder(tmp_path / "run"))))
    chart = by_id(tree, "chart-eval-exact-match")
    x_axis, y_axis = ticks(tree, "eval-exact-match")
    (band,) = by_class(chart, "band")
    whiskers = re.findall(r"M([\d.]+) ([\d.]+)V([\d.]+)", band.findall("path")[0].get("d", ""))
    low, high = placed(y_axis, 0.05), placed(y_axis, 0.5)
    assert [tuple(map(float, whisker)) for whisker in whiskers] == [
        pytest.approx((placed(x_axis, r), low, high), abs=0.11) for r in range(3)
    ]
    corners = band.findall("polygon")[0].get("points", "").split()
    assert len(corners) == 6
    assert text(chart.findall(".//tbody/tr")[0][1]) == "0.1000.050 to 0.500"
    assert "0.400 (0.050 to 0.500)" in text(by_class(chart, "mark")[1])
    assert by_class(by_id(tree, "chart-eval-f1"), "band") == []
    (box,) = by_class(by_id(tree, "rounds"), "intervals")
    assert "checked" in box.attrib  # a single line covers no other


def test_incomplete_last_line_of_metrics_is_left_out(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run")
    file = folder / "metrics.jsonl"
    lines = file.read_text().splitlines()
    file.write_text("\n".join([*lines, '{"round": 3, "eva']))
    assert len(run_of(folder).records) == 3
    file.write_text("\n".join(["{oops", *lines]))
    with pytest.raises(DataError, match=r"metrics.jsonl, line 1: must be JSON"):
        read_source(folder)
    file.write_text("")
    with pytest.raises(DataError, match=r"has none in metrics.jsonl. Train first\."):
        read_source(folder)


# Forgetting.


def test_forgetting_tables(forgetting: dict[str, Any]) -> None:
    tree = parse(render_report(forgetting))
    whole, groups = tables(tree, "forgetting")
    assert whole[0] == ["Model", "wikitextword perplexity, lower is better", "blimpaccuracy, higher is better"]
    assert whole[1] == ["base", "60.0059.99 to 60.01", "0.7000.690 to 0.710"]
    assert whole[2] == [
        "sft",
        "90.0089.99 to 90.01+30.00 (+29.99 to +30.02)",
        "0.6000.590 to 0.610\u22120.100 (\u22120.110 to \u22120.080)",
    ]
    cells = by_id(tree, "forgetting").findall(".//table")[0].findall("tbody/tr")
    assert [bool(row.findall(".//small/b")) for row in cells] == [False, True, False, False]  # p below 0.05
    # The changes of group g are those of the whole less g, 2 g and 3 g points.
    assert [row[0] for row in groups[1:]] == ["group 2", "group 1", "group 0"]
    assert groups[0] == ["Group", "Items", "base", "sft", "sft_selfaug", "dro_selfaug"]
    assert groups[1] == [
        "group 2", "10", "0.7000.690 to 0.710", "0.580\u22120.120", "0.650\u22120.050", "0.660\u22120.040",
    ]  # fmt: skip
    assert "blimp: accuracy by group (3)" in text(by_id(tree, "forgetting"))


def test_adjusted_p_decides_what_is_bold(forgetting: dict[str, Any]) -> None:
    for entry in forgetting["comparisons"]:
        entry["p_adjusted"] = 0.06
    assert by_id(parse(render_report(forgetting)), "forgetting").findall(".//table//b") == []


def test_many_groups_are_cut_with_a_note(forgetting: dict[str, Any]) -> None:
    first = forgetting["measurements"][-1]
    forgetting["measurements"] += [{**first, "group": f"g{i}"} for i in range(500)]
    tree = parse(render_report(forgetting))
    assert len(tables(tree, "forgetting")[1]) == 201
    assert "200 of 503 groups are shown." in text(tree)


# A sweep.


def marks(tree: ET.Element, figure: str) -> dict[str, tuple[float, float]]:
    """Label to place of the marks of one trade-off figure."""
    found = {}
    for mark in by_class(by_id(tree, figure), "mark"):
        titles = mark.findall("title")
        if titles:
            x, y = re.findall(r"[\d.]+", mark.get("transform", ""))[:2]
            found[text(titles[0]).split(":")[0].removeprefix("label of ")] = (float(x), float(y))
    return found


def tradeoff_axes(tree: ET.Element, figure: str) -> tuple[dict[float, float], dict[float, float]]:
    found = [(number(text(e)), e) for e in by_class(by_id(tree, figure), "tick")]
    below = {value: float(e.get("x", "")) for value, e in found if e.get("text-anchor") == "middle"}
    return below, {value: float(e.get("y", "")) - 4 for value, e in found if e.get("text-anchor") == "end"}


def test_tradeoff_marks_are_at_gain_and_forgetting(sweep: dict[str, Any]) -> None:
    """General tasks fall by the gain; perplexities by the log of base / tuned; accuracies by their difference."""
    tree = parse(render_report(sweep))
    assert [figure.get("id") for figure in by_id(tree, "tradeoff").iter("figure")] == [
        "tradeoff-general",
        "tradeoff-0",
        "tradeoff-1",
    ]
    heights = {
        "tradeoff-general": {name: -gain for name, gain in GAINS.items()},
        "tradeoff-0": {name: math.log(60 / PERPLEXITIES[name]) for name in GAINS},
        "tradeoff-1": {name: ACCURACIES[name] - 0.7 for name in GAINS},
    }
    for key, changes in heights.items():
        x_axis, y_axis = tradeoff_axes(tree, key)
        expected = {name: (placed(x_axis, GAINS[name]), placed(y_axis, change)) for name, change in changes.items()}
        expected["no_training"] = (placed(x_axis, 0), placed(y_axis, 0))
        found = marks(tree, key)
        assert found == {name: pytest.approx(place, abs=0.11) for name, place in expected.items()}, key
        (cross,) = [c for c in by_class(by_id(tree, key), "cross") if c.get("class") == "cross s1"]
        across = re.match(r"M([\d.]+) [\d.]+H([\d.]+)", cross.get("d", ""))
        assert across is not None
        ends = [placed(x_axis, GAINS["sft"] + end) for end in (-0.02, 0.03)]
        assert [float(end) for end in across.groups()] == pytest.approx(ends, abs=0.11)
    words = {text(word) for word in by_class(by_id(tree, "tradeoff-general"), "quarter")}
    assert {"learned and kept", "learned, but forgot"} <= words


def test_tradeoff_table_inverts_intervals_of_perplexities(sweep: dict[str, Any]) -> None:
    rows = {row[0]: row for row in tables(parse(render_report(sweep)), "tradeoff")[0]}
    assert rows["Pipeline"] == [
        "Pipeline", "Gain of Exact match", "General taskschange of the share of tasks solved",
        "wikitext: word perplexitylog (base / tuned), nats", "blimp: accuracychange of accuracy", "KL drift",
    ]  # fmt: skip
    low, high = (-math.log(end / 60) for end in (90.02, 89.99))
    sign = "\u2212"
    assert rows["sft"][3] == f"{sign}0.405{sign}{-low:.3f} to {sign}{-high:.3f}forgot"
    assert rows["dro_selfaug"][3] == "+0.693+0.692 to +0.693gained"
    assert rows["sft_selfaug"][4] == f"{sign}0.010{sign}0.020 to +0.010forgot (may be chance)"
    assert rows["no_training"][1:] == ["+0.000no change"] * 4 + ["0.000"]


def test_bits_per_byte_and_perplexities_have_one_figure(sweep: dict[str, Any]) -> None:
    for kind in ("measurements", "comparisons"):
        entries = sweep["forgetting"][kind]
        entries += [{**e, "metric": "bits_per_byte"} for e in entries if e["metric"] == "word_perplexity"]
    headings = [text(h) for h in by_id(parse(render_report(sweep)), "tradeoff").findall(".//figcaption/h3")]
    assert headings == ["General tasks", "blimp: accuracy", "wikitext: bits per byte"]
    # Upwards is better, so what is better when it is lower is shown by how far it fell.
    assert "fall of bits per byte" in text(by_id(parse(render_report(sweep)), "tradeoff"))


def test_perplexity_interval_below_zero_is_left_out(sweep: dict[str, Any]) -> None:
    """Resampled differences of heavy-tailed perplexities may be greater than the base's perplexity."""
    for entry in sweep["forgetting"]["comparisons"]:
        if entry["metric"] == "word_perplexity":
            entry["interval"] = [-1e6, -1.0]
    rows = {row[0]: row for row in tables(parse(render_report(sweep)), "tradeoff")[0]}
    assert rows["dro_selfaug"][3] == "+0.693gained"


def test_trial_without_drift_has_no_forgetting(sweep: dict[str, Any]) -> None:
    sweep["trials"].append({"name": "replug", "exact_match": 0.2, "kl_drift": 0.0})
    sweep["trials"].append({"name": "unknown", "exact_match": 0.2, "kl_drift": 0.1})
    tree = parse(render_report(sweep))
    _, y_axis = tradeoff_axes(tree, "tradeoff-1")
    found = marks(tree, "tradeoff-1")
    assert found["replug"][1] == pytest.approx(placed(y_axis, 0), abs=0.11)
    assert "unknown" not in found


def test_tradeoff_of_a_trial_that_only_a_paired_test_names(sweep: dict[str, Any]) -> None:
    """The base was compared with it, and the table of trials does not show it."""
    about = {"name": "no_training", "against": "hidden"}
    sweep["comparisons"] += [{**about, "metric": m, "difference": 0.1} for m in ("exact_match", "general")]
    assert "hidden" in marks(parse(render_report(sweep)), "tradeoff-general")


def test_tradeoff_needs_a_base_trial(sweep: dict[str, Any]) -> None:
    sweep["trials"] = sweep["trials"][1:]
    assert "tradeoff" not in sections(parse(render_report(sweep)))


def boxes(figure: ET.Element) -> list[tuple[float, float, float, float]]:
    """Rectangles of the names in a figure, by the size of their letters."""
    return [
        (
            float(name.get("x", "")),
            float(name.get("y", "")) - 10,
            float(name.get("x", "")) + 6 * len(text(name)),
            float(name.get("y", "")) + 2,
        )
        for name in by_class(figure, "name")
    ]


@pytest.mark.parametrize("spread", [1.0, 0.05, 0.0])
def test_names_in_a_tradeoff_figure_do_not_overlap(spread: float) -> None:
    """Thirteen trials, far apart, close together, and all in one place."""
    random_ = random.Random(7)
    names = ["no_training", *(f"recipe_{i}{s}" for i in range(6) for s in ("", "_selfaug"))]
    rows = [{"name": n, "exact_match": spread * random_.random(), "general": spread * random_.random()} for n in names]
    figure = by_id(parse(render_report({"kind": "sweep", "trials": rows})), "tradeoff-general")
    found = boxes(figure)
    assert len(found) == 13
    for one, other in combinations(found, 2):
        apart = one[0] >= other[2] or other[0] >= one[2] or one[1] >= other[3] or other[1] >= one[3]
        assert apart, (one, other)
    _, _, width, height = map(float, figure.findall("svg")[0].get("viewbox", "").split())
    assert all(0 <= left and right <= width and 0 <= top and bottom <= height for left, top, right, bottom in found)


def test_selfaug_trial_has_the_hollow_mark_of_its_recipe() -> None:
    styles = SeriesStyles.of({}, ("no_training", "sft", "sft_selfaug", "dro-seed=7", "dro_selfaug-seed=7"))
    colours = dict(re.findall(r"\.(s\d+){--c:(#\w+)}", styles.css().partition("@media")[0]))
    assert [colours[f"s{i}"] == colours[f"s{j}"] for i, j in ((1, 2), (3, 4), (0, 1), (1, 3))] == [
        True,
        True,
        False,
        False,
    ]
    shapes = [styles.shape(name) for name in styles.places]
    assert [shapes.index(shape) for shape in shapes] == [0, 1, 1, 3, 3]
    assert ["hollow" in styles.classes(name) for name in styles.places] == [False, False, True, False, True]


def test_paired_tests_by_metric_with_adjusted_p(sweep: dict[str, Any]) -> None:
    tree = parse(render_report(sweep))
    found = tables(tree, "comparisons")
    assert len(found) == 5
    assert found[0][0] == ["Pipeline", "against", "Difference", "Relative", "p", "p, Holm", "Questions"]
    assert found[0][1][2:] == ["+0.080+0.060 to +0.110", NONE, "0.0200.017", "0.060", "300"]
    assert by_id(tree, "comparisons").findall(".//td/b") == []  # 0.02 is below 0.05, and 0.06 is not
    few = parse(render_report({**sweep, "comparisons": sweep["comparisons"][:4]}))
    assert tables(few, "comparisons")[0][0][2] == "Metric"


def test_selectors_that_keep_the_order_are_listed_and_not_drawn(sweep: dict[str, Any]) -> None:
    tree = parse(render_report(sweep))
    section = by_id(tree, "recall")
    assert "In the retriever's own order: no_training, sft, sft_selfaug." in text(section)
    drawn = [text(name) for name in by_class(by_id(tree, "chart-recall-vs-ceiling"), "name")]
    assert drawn == ["dro +SA", "retriever"]
    rows = {row[0]: row for row in tables(tree, "recall")[-1]}
    assert rows["dro_selfaug"][1:] == ["0.5000.375 to 0.625", "0.750", "0.700", "0.800"]
    assert rows["The retriever alone"][1:] == ["0.125", "0.625", NONE, NONE]


def test_order_of_trials_and_settings_of_nested_parts(sweep: dict[str, Any]) -> None:
    """A file sorts its keys; the retriever is that of the first row, before training moved it."""
    sweep["settings"] = {"world": {"domain": "unseen", "test_questions": 40}, "training": {"rounds": 2}}
    sweep["evaluations"]["dro_selfaug"]["metrics"] = {
        **sweep["evaluations"]["sft"]["metrics"],
        "retriever_recall@1": 0.9,
    }
    written = json.loads(json.dumps({**sweep, "answerable_questions": 14}, sort_keys=True))
    tree = parse(render_report(written))
    assert [row[0] for row in tables(tree, "recall")[-1][1:]] == [*ROWS, "The retriever alone"]
    assert tables(tree, "recall")[-1][-1][1] == "0.125"
    boxes = [text(label) for label in by_class(by_id(tree, "rounds"), "switches")[0].iter("label")]
    assert boxes[:3] == list(ROWS[1:])
    lead = text(by_class(tree, "lead")[0])
    assert "This run: domain unseen, 14 training questions, 40 test questions, 2 rounds." in lead
    assert "invented" in lead
    assert "invented" not in text(by_class(parse(render_report({**sweep, "settings": {}})), "lead")[0])


def test_retriever_recall_is_that_of_the_base_trial(sweep: dict[str, Any]) -> None:
    moved = sweep["evaluations"]["dro_selfaug"]["metrics"]
    changed = {"retriever_recall@1": 0.9, "retriever_recall@20": 1.0}
    moved |= sweep["evaluations"]["no_training"]["metrics"] | moved | changed
    sweep["trials"].reverse()
    sweep |= {"settings": {"retriever": "bm25", "focus_recipe": "<sft>"}, "retriever": {"retriever_recall@1": 0.125}}
    tree = parse(render_report(sweep))
    assert tables(tree, "recall")[-1][-1][:2] == ["The retriever alone", "0.125"]
    assert tables(tree, "results")[0][-1][0] == "The bm25 retriever alone"
    assert "that of <sft>, or of the last trial" in text(by_id(tree, "questions"))


def test_sweep_questions(sweep: dict[str, Any]) -> None:
    tree = parse(render_report(sweep))
    samples = by_class(by_id(tree, "questions"), "sample")
    assert [text(by_class(s, "question")[0]) for s in samples] == [
        f"{'best' if n < 10 else 'worst'} {n}?" for n in range(20)
    ]
    candidates, said = (table(found) for found in samples[0].iter("table"))
    assert candidates[1] == ["0", "Brost 0 p0 goldThe Brost 0 of q0.", "0.900", "by 4 of 4"]
    assert candidates[3][3] == "by 4 of 4cited by 4"
    assert [row[0] for row in said[1:]] == [f"label of {name}" for name in ROWS]
    assert said[2][1:] == ["\u2713label of sft: right. said by sft", "1.00", "\u22121.00", "2 (cited) 0 (gold)"]
    assert "replug: RuntimeError: no room" in text(by_id(tree, "results"))
    assert "label of sft" in text(by_id(tree, "forgetting"))


# From files.


def test_report_command_recognises_every_kind(
    tmp_path: Path, pages: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "sweep"
    (folder / "trials/dro_selfaug").mkdir(parents=True)
    (folder / "sweep.json").write_text(json.dumps(pages["sweep"]))
    file = folder / "trials/dro_selfaug/evaluation.json"
    file.write_text(json.dumps(pages["evaluation"]))
    (tmp_path / "f.json").write_text(json.dumps(pages["forgetting"]))
    (tmp_path / "demo.json").write_text(json.dumps({"kind": "sweep", "trials": [{"name": "base"}]}))
    expected = {
        folder: ("sweep", folder / "report.html"), folder / "sweep.json": ("sweep", folder / "sweep.html"),
        file: ("evaluation", file.with_suffix(".html")), tmp_path / "f.json": ("forgetting", tmp_path / "f.html"),
        tmp_path / "demo.json": ("sweep", tmp_path / "demo.html"),
        tmp_path / "my run": ("run", tmp_path / "my run/report.html"),
        tmp_path / "my run/run.json": ("run", tmp_path / "my run/run.html"),
    }  # fmt: skip
    for path, (kind, page) in expected.items():
        assert main(["report", str(path), "--json"]) == 0
        assert json.loads(capsys.readouterr().out) == {"report": str(page), "kind": kind}
        assert sections(parse(page.read_text(encoding="utf-8")))
    (folder / "seconds.json").write_text(json.dumps({"total": 7380, "trials": dict.fromkeys(ROWS, 321.0)}))
    assert sweep_of(folder).trials[1].value("seconds") == 321.0
    assert "123 min 0 s in all trials together" in render_report(read_source(folder))
    # The sweep took the questions of its widest evaluation, from which the ceilings are found.
    assert "all gold first" in (folder / "report.html").read_text(encoding="utf-8")
    other = ["--forgetting", str(tmp_path / "f.json"), "--output", str(tmp_path / "new/page.html")]
    assert main(["report", str(file), *other]) == 0
    assert "forgetting" in sections(parse((tmp_path / "new/page.html").read_text(encoding="utf-8")))


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (None, "there is no .*x.json. Check the path."),
        ("{", r"x.json is not JSON \("),
        ("[1]", "x.json holds a list"),
        ('{"metrics": {}}', r"x.json holds the keys \['metrics'\]. Name another file."),
        ('{"kind": "manifest", "trials": []}', "x.json is of kind 'manifest'"),
    ],
)
def test_other_files_are_rejected_by_name(tmp_path: Path, content: str | None, found: str) -> None:
    file = tmp_path / "x.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(DataError, match=f"A report is made from a run folder .*; .*{found}"):
        read_source(file)
    with pytest.raises(DataError, match=r"empty. Name another path" if content is None else "holds x.json. Name"):
        read_source(tmp_path)


def test_forgetting_option_needs_a_forgetting_file(tmp_path: Path, evaluation: dict[str, Any]) -> None:
    file = tmp_path / "e.json"
    file.write_text(json.dumps(evaluation))
    with pytest.raises(DataError, match=r"--forgetting takes a file of `rag forgetting`; .* is of kind 'evaluation'"):
        read_source(file, forgetting=file)
    with pytest.raises(DataError, match=r"one of the kinds \['evaluation', 'forgetting', 'run', 'sweep'\]; got 'x'"):
        render_report({"kind": "x"})


def test_evaluation_records_are_read_from_the_sweep_folder_only(tmp_path: Path, evaluation: dict[str, Any]) -> None:
    (tmp_path / "evaluation.json").write_text(json.dumps(evaluation))
    sweep = {"kind": "sweep", "trials": [], "evaluations": {"..": {"metrics": {}}}}
    (tmp_path / "s/trials").mkdir(parents=True)
    assert with_evaluation_records(sweep, tmp_path / "s") == sweep


# Any input.


@pytest.mark.parametrize("kind", ["evaluation", "forgetting", "sweep", "run"])
def test_text_of_every_kind_is_escaped(pages: dict[str, Any], kind: str) -> None:
    page, attacked = pages[kind], hostile(pages[kind])
    found, peaceful = parse(render_report(attacked)), parse(render_report(page))
    assert list(loads(found)) == []
    # A longer name has another place in a trade-off figure, and is connected to its mark only when far from it.
    built = [[(e.tag, *e.attrib) for e in t.iter() if e.get("class") != "leader"] for t in (found, peaceful)]
    assert built[0] == built[1]


def fields(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, entry in entries:
        yield (*place, key)
        yield from fields(entry, (*place, key))


@pytest.mark.parametrize("kind", ["evaluation", "forgetting", "run", "sweep"])
def test_any_part_may_be_missing_or_malformed(pages: dict[str, Any], kind: str) -> None:
    """Values at every kind of place are replaced or removed, a few at a time."""
    whole = pages[kind]
    if kind == "sweep":
        whole = {**whole, "questions": whole["questions"][9:11], "comparisons": whole["comparisons"][:4]}
    shapes = {tuple(0 if isinstance(step, int) else step for step in place): place for place in fields(whole)}
    places = [place for place in shapes.values() if place not in (("kind",), ("trials",))]
    assert len(places) > 15
    random.Random(0).shuffle(places)
    nothings = [math.nan, None, {}, [], "\ud800", -1e300]
    for turn in range(0, len(places), 5):
        poorer = json.loads(json.dumps(whole))  # nothing in it is shared
        # Inner places first, so that what holds them is still there.
        for place in sorted(places[turn : turn + 5], key=len, reverse=True):
            holder = poorer
            for step in place[:-1]:
                holder = holder[step]
            if turn % 10:
                del holder[place[-1]]
            else:
                holder[place[-1]] = nothings[turn // 10 % len(nothings)]
        parse(render_report(poorer))


@pytest.mark.parametrize("kind", ["evaluation", "forgetting", "run", "sweep"])
def test_same_data_give_the_same_bytes(pages: dict[str, Any], kind: str) -> None:
    first = render_report(pages[kind])
    assert first == render_report(json.loads(json.dumps(pages[kind])))
    if kind == "evaluation":
        orders = {
            render_report({**pages[kind], "records": list(records)}) for records in permutations(pages[kind]["records"])
        }
        assert orders == {first}


def test_page_of_a_large_sweep_is_small(sweep: dict[str, Any]) -> None:
    """Thirteen trials with long passages; what is left out is counted."""
    names = [*ROWS, *(f"row {i}" for i in range(9))]
    for entry in sweep["questions"]:
        first = entry["answers"][0]
        long = [{**passage, "text": "long " * 2000} for passage in first["passages"]]
        entry["answers"] = [{**first, "trial": name, "passages": long} for name in names]
    sweep["trials"] = [{**sweep["trials"][0], "name": name} for name in names]
    assert len(render_report(sweep).encode()) < 1_000_000
    sweep["trials"] = [{**sweep["trials"][0], "name": f"row {i}"} for i in range(5000)]
    sweep["comparisons"] = sweep["comparisons"] * 400
    page = render_report(sweep)
    assert "60 of 5,000 trials are shown." in page
    assert "400 of 6,000 comparisons are shown." in page
    assert len(page.encode()) < 2_000_000


# In a browser.

# Every page in frames of a phone's and a screen's width; a frame's load is only heard on its way down.
FRAMES = """<!DOCTYPE html><meta charset="utf-8"><link rel="icon" href="data:,"><script>
const seen = [];
document.addEventListener("load", (event) => {{
  const frame = event.target;
  const page = frame.contentDocument, view = frame.contentWindow;
  page.querySelectorAll("details").forEach((entry) => {{ entry.open = true }});
  const style = (element) => view.getComputedStyle(element);
  const light = (colour) => {{
    const [r, g, b] = colour.match(/[\\d.]+/g).map((part) => part / 255)
      .map((part) => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  }};
  const ground = (element) => {{
    for (; element; element = element.parentElement)
      if (!/(, 0\\)|transparent)$/.test(style(element).backgroundColor)) return style(element).backgroundColor;
  }};
  let least = 99;
  for (const element of page.querySelectorAll("body *:not(svg *):not(.unseen)")) {{
    if (![...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim())) continue;
    const [dark, bright] = [light(style(element).color), light(ground(element))].sort((a, b) => a - b);
    least = Math.min(least, (bright + 0.05) / (dark + 0.05));
  }}
  const out = [...page.querySelectorAll(".plot text")].filter((label) => {{
    const box = label.getBBox(), view = label.ownerSVGElement.viewBox.baseVal;
    return box.x < -1 || box.y < -1 || box.x + box.width > view.width + 1 || box.y + box.height > view.height + 1;
  }}).map((label) => label.textContent);
  const band = page.querySelector(".band"), box = page.querySelector(".intervals"), shown = [];
  if (band) for (box.checked of [true, false]) shown.push(style(band).opacity);
  seen.push([frame.title, page.documentElement.scrollWidth, style(page.body).backgroundColor, least, out, shown]);
  if (seen.length === 10) document.getElementById("seen").textContent = JSON.stringify(seen);
}}, true);
</script><p id="seen"></p>{frames}"""


@pytest.mark.parametrize("dark", [False, True])
def test_pages_of_every_kind_in_a_browser(tmp_path: Path, pages: dict[str, Any], dark: bool) -> None:
    """No console messages, no overflow, enough contrast, no label is cut, and switches show intervals."""
    control = '<p style="width:500px;color:#777">wide</p>'
    written = {kind: render_report(data) for kind, data in pages.items()}
    written["control"] = render_report(pages["run"]).replace("</main>", f"{control}</main>")
    frames = "".join(
        f'<iframe title="{kind} {width}" style="width:{width}px;height:800px;border:0" srcdoc="{html.escape(page)}">'
        "</iframe>"
        for kind, page in written.items()
        for width in (390, 1200)
    )
    file = tmp_path / "frames.html"
    file.write_text(FRAMES.format(frames=frames), encoding="utf-8")
    theme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    visited = visit(find_browser(), file, tmp_path, theme)
    assert visited.messages == []
    found = re.search(r'<p id="seen">(.*?)</p>', visited.dom)
    assert found is not None
    seen = {entry[0]: entry[1:] for entry in json.loads(html.unescape(found[1]))}
    assert len(seen) == 10
    for kind in pages:
        for width in (390, 1200):
            wide, ground, contrast, cut, shown = seen[f"{kind} {width}"]
            assert wide <= width, kind
            assert ground == ("rgb(20, 22, 26)" if dark else "rgb(250, 250, 248)")
            assert contrast >= 4.5, kind
            assert cut == [], kind
            assert shown == ([] if kind == "forgetting" else ["1", "0"]), kind
    assert seen["control 390"][0] > 390
    assert seen["control 1200"][2] < 4.5


def test_screenshot_is_not_blank(tmp_path: Path, sweep: dict[str, Any]) -> None:
    page, picture = write_report(sweep, tmp_path / "report.html"), tmp_path / "report.png"
    visit(find_browser(), page, tmp_path, f"--screenshot={picture}", "--window-size=1000,1000")
    assert lines_of_a_picture(picture) > 300


def lines_of_a_picture(file: Path) -> int:
    """How many different lines of pixels a PNG has (its filtered lines, which is enough to tell blank from drawn)."""
    data, at, packed, size = file.read_bytes(), 8, b"", (0, 0)
    while at < len(data):
        length, kind = int.from_bytes(data[at : at + 4]), data[at + 4 : at + 8]
        body = data[at + 8 : at + 8 + length]
        size = (int.from_bytes(body[:4]), int.from_bytes(body[4:8])) if kind == b"IHDR" else size
        packed += body if kind == b"IDAT" else b""
        at += 12 + length
    raw = zlib.decompress(packed)
    stride = len(raw) // size[1]
    return len({raw[i : i + stride] for i in range(0, len(raw), stride)})


@pytest.mark.parametrize(
    ("rounds", "expected"), [([1], [0, 1]), ([4], [3, 4]), ([0], [0, 1]), ([0, 1, 2], [0, 1, 2]), ([1, 2], [1, 2])]
)
def test_single_round_is_at_the_end_of_its_axis(rounds: list[float], expected: list[float]) -> None:
    assert axis_ticks(rounds, whole=True) == expected
