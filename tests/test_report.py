"""The page of a comparison: parsed independently of how it was written, and opened in a real browser."""

import copy
import html
import math
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pages import (
    HOSTILE,
    Visit,
    by_class,
    by_id,
    find_browser,
    hostile,
    loads,
    parse,
    placed,
    sections,
    text,
    ticks,
    visit,
)

from indexes.errors import DataError
from rag.report import parse_result, render_report, write_report
from rag.report.pages.comparison_page import run_sentence

ROOT = Path(__file__).parents[1]


def answer(row: str, said: str, em: float | None, permutation: list[int], cited: list[str]) -> dict[str, Any]:
    passages = [
        {"id": f"e1-{i}", "title": f"Brost {i}", "text": f"The Brost {i} is a river of {row}."} for i in permutation
    ]
    return {
        "trial": row,
        "text": said,
        "exact_match": em,
        "citations": cited,
        "permutation": permutation,
        "passages": passages,
        "log_prob": -0.3,
    }


@pytest.fixture
def result() -> dict[str, Any]:
    """Every part of a page once; all counts differ."""
    sample = {
        "question": "how long is the Brost?",
        "golden_answers": ["2,914 km", "2914 km"],
        "gold_ids": ["e1-0"],
        "answers": [
            answer("base", "2,100 km", 0.0, [0, 1], ["e1-1"]),
            answer("dro", "2,914 km", 1.0, [2, 0], ["e1-0", "e9-9"]),
            answer("sft", "a river", None, [3, 1], []),
        ],
    }
    return {
        "kind": "sweep",
        "mode": "quick",
        "settings": {
            "recipes": ("sft", "dro"),
            "world": {"domain": "unseen", "train_questions": 400},
            "training": {"e_step.num_permutations": 4, "e_step.proposals_per_sample": 8, "rounds": 3},
        },
        "trials": [
            {
                "name": "base",
                "label": "Base model, retrieved top-K",
                "exact_match": 0.41,
                "f1": 0.5,
                "selector_recall@1": 0.4,
                "general": 0.93,
                "kl_drift": 0.0,
                "seconds": 60.2,
                "seed": 42,
                "intervals": {"exact_match": [0.35, 0.47]},
            },
            {
                "name": "sft",
                "label": "Supervised fine-tuning",
                "exact_match": 0.45,
                "f1": 0.55,
                "kl_drift": 0.5,
                "seconds": 1234.0,
            },
            {
                "name": "dro",
                "label": "DRO",
                "exact_match": 0.62,
                "f1": float("nan"),
                "selector_recall@1": 0.6,
                "general": 0.8,
            },
        ],
        "retriever": {"retriever_recall@1": 0.42, "retriever_recall@3": 0.6},
        "comparisons": [
            {
                "name": "dro",
                "against": "sft",
                "metric": "exact_match",
                "difference": 0.17,
                "interval": [0.085, 0.255],
                "relative": 0.378,
                "p": 0.0004,
                "questions": 200,
            },
            {"name": "sft", "against": "base", "metric": "general", "difference": -0.085, "p": 0.3},
        ],
        "curves": {
            "sft": [
                {"round": 0, "eval_exact_match": 0.41, "eval_f1": 0.5, "eval_selector_recall@1": 0.42},
                {"round": 1, "eval_exact_match": 0.43, "eval_f1": 0.52, "ess": 3.1, "log_marginal": -7.2},
                {"round": 2, "eval_exact_match": 0.44, "eval_f1": math.inf, "ess": 2.9, "log_marginal": -6.9},
                {"round": 3, "eval_exact_match": 0.45, "eval_f1": 0.55, "ess": None, "log_marginal": -6.5},
            ],
            "dro": [
                dro_record(0, 0.41, 0.42, 0.93, 0.0),
                {**dro_record(1, 0.55, 0.50, 0.85, 0.1), "ess": 2.5, "log_marginal": -6.0},
                {**dro_record(2, 0.62, 0.60, 0.80, 0.3), "ess": 2.0, "log_marginal": -5.0},
            ],
        },
        "samples": [sample],
        "encyclopedia": {
            "name": "dro",
            "exact_match": 0.4,
            "questions": 40,
            "samples": [{**copy.deepcopy(sample), "question": "what is the Nile?"}],
        },
        "seconds": 321.0,
    }


def dro_record(round: int, em: float, selector: float, general: float, drift: float) -> dict[str, float]:
    return {
        "round": round,
        "eval_exact_match": em,
        "eval_f1": em + 0.1,
        "eval_selector_recall@1": selector,
        "eval_retriever_recall@1": 0.42 + 0.01 * round,
        "eval_general": general,
        "eval_kl_drift": drift,
    }


@pytest.fixture
def tree(result: dict[str, Any]) -> ET.Element:
    return parse(render_report(result))


# The file.


def test_write_report_creates_folders_and_replaces_the_file(tmp_path: Path, result: dict[str, Any]) -> None:
    file = tmp_path / "new" / "folder" / "report.html"
    assert write_report(result, str(file)) == file
    first = file.read_text(encoding="utf-8")
    assert first == render_report(result)
    assert write_report({"kind": "sweep", "trials": []}, file) == file
    assert file.read_text(encoding="utf-8") != first


def test_lone_surrogates_and_control_characters_are_replaced(tmp_path: Path) -> None:
    file = write_report(
        {"kind": "sweep", "trials": [{"name": "base", "label": "lone \ud800 surrogate\x00\x1b"}]},
        tmp_path / "report.html",
    )
    assert "lone ? surrogate\ufffd\ufffd" in file.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("broken", "found"),
    [
        ({}, r"got the keys \['kind'\]"),
        ({"mode": "quick", "curves": {}}, r"got the keys \['curves', 'kind', 'mode'\]"),
        ({"trials": {"base": 1}}, "got dict"),
        ({"trials": None}, "got NoneType"),
    ],
)
def test_a_sweep_without_a_list_of_trials_is_rejected(tmp_path: Path, broken: dict[str, Any], found: str) -> None:
    with pytest.raises(DataError, match=f"must hold 'trials', a list with one mapping per pipeline; {found}. Pass the"):
        write_report({"kind": "sweep", **broken}, tmp_path / "report.html")
    assert list(tmp_path.iterdir()) == []


def test_importing_the_report_loads_no_dependency() -> None:
    code = "import sys; before = set(sys.modules); import rag.report; print(*sorted({m.partition('.')[0] for m in \
set(sys.modules) - before} - sys.stdlib_module_names))"
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert out.split() == ["indexes", "rag"]


# Nothing is loaded, nothing runs.


@pytest.mark.parametrize(
    "element",
    [
        "<script>1</script>",
        '<img src="x.png"></img>',
        '<link rel="stylesheet" href="x.css">',
        "<style>@import 'x.css'</style>",
        "<style>p{background:url(x.png)}</style>",
        '<p style="background:url(x)">x</p>',
        '<p onclick="x()">x</p>',
        '<a href="javascript:x()">x</a>',
        '<a href="https://example.org/">x</a>',
        '<svg><use href="x.svg#a"></use></svg>',
    ],
)
def test_loads_finds_everything_that_loads_or_runs(element: str) -> None:
    assert list(loads(parse(f"<html>{element}</html>")))


def test_page_loads_and_runs_nothing(tree: ET.Element) -> None:
    assert list(loads(tree)) == []
    (policy,) = [e.get("content", "") for e in tree.iter("meta") if e.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'")
    assert {e.get("href") for e in tree.iter("a") if "arxiv" in e.get("href", "")} == {
        "https://arxiv.org/abs/2505.03075",
        "https://arxiv.org/abs/2509.03934",
    }


def hostile_values(settings: dict[str, Any]) -> dict[str, Any]:
    """The same nested settings, all of whose values are hostile texts."""
    return {name: hostile_values(part) if isinstance(part, dict) else HOSTILE for name, part in settings.items()}


def test_text_from_data_is_escaped(result: dict[str, Any]) -> None:
    """A page of hostile texts has the same elements and attributes as one of harmless texts."""
    result["trials"][0]["seed"] = "42"  # what should be a number may be a text as well
    result["samples"][0]["answers"][0]["permutation"] = ["0", "1"]
    # Some settings choose the words of the introduction by their name, so these keep it.
    attacked = {**hostile(result), "settings": {**hostile_values(result["settings"]), HOSTILE: HOSTILE}}
    peaceful = parse(render_report({**result, "settings": result["settings"] | {"x": "y"}}))
    found = parse(render_report(attacked))
    assert list(loads(found)) == []
    assert [(e.tag, *e.attrib) for e in found.iter()] == [(e.tag, *e.attrib) for e in peaceful.iter()]
    whole = text(found)
    shown = " ".join(HOSTILE.split())
    for wanted in ("how long is the Brost?", "2,914 km", "Brost 2", "The Brost 1 is a river of", "DRO", "sft", "e9-9"):
        assert f"{shown} {wanted}" in whole, wanted


# The tables.


def test_results_table_has_the_numbers_of_every_trial(tree: ET.Element) -> None:
    (table,) = by_class(by_id(tree, "results"), "results")
    headings = [text(cell) for cell in table.findall("thead/tr/th")]
    assert headings == [
        "Pipeline", "Exact match", "F1", "Recall@1", "Recall@3", "General tasks", "KL drift", "Seconds",
    ]  # fmt: skip
    rows = [[text(cell) for cell in row] for row in table.findall("tbody/tr")]
    base = "Base model, retrieved top-Kbase \u00b7 seed 42"  # the label, and in small print below it the name
    none = "\u2013"
    assert rows == [
        [base, "0.4100.350 to 0.470", "0.500", "0.400", none, "0.930 (highest)", "0.000", "60"],
        ["Supervised fine-tuningsft", "0.450", "0.550 (highest)", none, none, none, "0.500", "1,234"],
        ["DROdro", "0.620 (highest)", none, "0.600 (highest)", none, "0.800", none, none],
        ["The dense retriever alone", none, none, "0.420", "0.600", none, none, none],
    ]
    explained = [text(term) for term in by_class(tree, "meanings")[0].iter("dt")]
    assert explained == headings[1:]


def test_length_of_bars_is_proportional_to_values(tree: ET.Element) -> None:
    (table,) = by_class(by_id(tree, "results"), "results")
    first, second, _, _ = table.findall("tbody/tr")
    track, bar = first.findall("td")[0].findall("svg/rect")
    assert (track.get("width"), bar.get("width")) == ("100", "41.0")
    line = first.findall("td")[0].findall("svg/path")[0].get("d", "")
    assert re.findall(r"M([\d.]+) 1V6", line) == ["35.0", "47.0"]  # the caps at both ends of the interval
    seconds = [row.findall("td")[6].findall("svg/rect")[1].get("width") for row in (first, second)]
    assert [float(width or "nan") for width in seconds] == pytest.approx([100 * 60.2 / 1234, 100], abs=0.01)


def test_header_cells_have_a_scope(tree: ET.Element) -> None:
    cells = list(tree.iter("th"))
    assert len(cells) > 40
    assert {cell.get("scope") for cell in cells} == {"col", "row"}
    for region in by_class(tree, "scroll"):
        assert (region.get("role"), region.get("tabindex")) == ("region", "0")
        assert region.get("aria-label")


def test_paired_tests_table(tree: ET.Element) -> None:
    rows = by_id(tree, "comparisons").findall(".//tbody/tr")
    base, none = "Base model, retrieved top-K", "\u2013"
    assert [[text(cell) for cell in row] for row in rows] == [
        ["DRO", "Supervised fine-tuning", "Exact match", "+0.170+0.085 to +0.255", "+38%", "< 0.001", "200"],
        ["Supervised fine-tuning", base, "General tasks", "\u22120.085", none, "0.300", none],
    ]
    assert [bool(row.findall("td/b")) for row in rows] == [True, False]
    bars = [row.findall("td/svg/rect")[1] for row in rows]
    # The greatest difference fills the right half, its opposite half of the left one.
    assert [(float(bar.get("x", "")), float(bar.get("width", ""))) for bar in bars] == [(50, 50), (25, 25)]


def test_introduction_describes_the_run(tree: ET.Element) -> None:
    introduction = text(by_class(tree, "lead")[0])
    assert (
        "This run: mode quick, domain unseen, 400 training questions, 3 rounds, 4 permutations scored per question, "
        "5 min 21 s in all." in introduction
    )
    assert "invented" in introduction
    short = {
        "kind": "sweep",
        "trials": [],
        "settings": {"world": {"domain": "unseen", "train_questions": 9}, "training": {"rounds": 1}},
        "answerable_questions": 7,
    }
    assert run_sentence(parse_result(short)) == (
        "This run: domain unseen, 9 training questions, 7 of which some candidate answers, and no others were learned "
        "from, 1 round."
    )
    settings = {text(row[0]): text(row[1]) for row in by_id(tree, "settings").findall(".//tbody/tr")}
    assert settings == {
        "mode": "quick", "recipes": "sft, dro", "world.domain": "unseen", "world.train_questions": "400",
        "training.e_step.num_permutations": "4", "training.e_step.proposals_per_sample": "8", "training.rounds": "3",
    }  # fmt: skip


# The charts.


def lines(tree: ET.Element, key: str) -> list[list[tuple[float, float]]]:
    """The points of every polyline of one chart."""
    return [
        [(float(x), float(y)) for x, y in (pair.split(",") for pair in line.get("points", "").split())]
        for line in by_id(tree, f"chart-{key}").iter("polyline")
    ]


def test_retriever_line_of_the_curves_is_measured_on_their_questions(result: dict[str, Any]) -> None:
    curves = {
        "dro": [{"round": r, "eval_selector_recall@1": 0.5 + r / 10, "eval_retriever_recall@1": 0.5} for r in (0, 1)]
    }
    tree = parse(render_report({**result, "retriever": {"retriever_recall@1": 0.1}, "curves": curves}))
    y_axis = ticks(tree, "selector")[1]
    assert [y for _, y in lines(tree, "selector")[-1]] == pytest.approx([placed(y_axis, 0.5)] * 2, abs=0.11)


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("eval-exact-match", [[(0, 0.41), (1, 0.43), (2, 0.44), (3, 0.45)], [(0, 0.41), (1, 0.55), (2, 0.62)]]),
        ("eval-f1", [[(0, 0.5), (1, 0.52), (3, 0.55)], [(0, 0.51), (1, 0.65), (2, 0.72)]]),
        # The retriever that training moved, two selectors, and the retriever alone wherever a selector was scored.
        (
            "selector",
            [
                [(0, 0.42), (1, 0.43), (2, 0.44)],
                [(0, 0.42)],
                [(0, 0.42), (1, 0.5), (2, 0.6)],
                [(0, 0.42), (1, 0.42), (2, 0.42)],
            ],
        ),
        ("ess", [[(1, 3.1), (2, 2.9)], [(1, 2.5), (2, 2.0)]]),
        ("log-marginal", [[(1, -7.2), (2, -6.9), (3, -6.5)], [(1, -6.0), (2, -5.0)]]),
        ("drift", [[(0.0, 0.93), (0.1, 0.85), (0.3, 0.8)]]),
    ],
)
def test_lines_go_through_their_points(tree: ET.Element, key: str, expected: list[list[tuple[float, float]]]) -> None:
    x_axis, y_axis = ticks(tree, key)
    found = lines(tree, key)
    assert [len(line) for line in found] == [len(line) for line in expected]
    for line, values in zip(found, expected, strict=True):
        for point, (x, y) in zip(line, values, strict=True):
            assert point == pytest.approx((placed(x_axis, x), placed(y_axis, y)), abs=0.11)  # one decimal is written


def test_charts_are_in_order_and_have_descriptions(tree: ET.Element) -> None:
    figures = [figure for figure in by_id(tree, "rounds").iter("figure")]
    assert [figure.get("id") for figure in figures] == [
        f"chart-{key}" for key in ("eval-exact-match", "eval-f1", "selector", "ess", "log-marginal", "drift")
    ]
    for figure in figures:
        (plot,) = figure.findall("svg")
        title, description = (by_id(tree, id) for id in plot.get("aria-labelledby", "").split())
        assert (plot.get("role"), title.tag, description.tag) == ("img", "title", "desc")
        assert text(title) == text(figure.findall("figcaption/h3")[0])
        assert len(by_class(plot, "unit")) == 2
        assert all(text(unit) for unit in by_class(plot, "unit"))
    assert text(by_id(tree, "drift-desc")) == (
        "general tasks over KL drift, nats: dro from 0.0000; 0.930 to 0.3000; 0.800."
    )


def test_table_of_a_chart_has_its_numbers(tree: ET.Element) -> None:
    rows = by_id(tree, "chart-ess").findall(".//tr")
    assert [[text(cell) for cell in row] for row in rows] == [
        ["Round", "1", "2"],
        ["sft", "3.100", "2.900"],
        ["dro", "2.500", "2.000"],
    ]
    f1 = by_id(tree, "chart-eval-f1").findall(".//tbody/tr")
    assert [text(cell) for cell in f1[0]] == ["sft", "0.500", "0.520", "\u2013", "0.550"]
    marks = [text(mark.findall("title")[0]) for mark in by_class(by_id(tree, "chart-ess"), "mark")]
    assert marks == ["sft, round 1: 3.100", "sft, round 2: 2.900", "dro, round 1: 2.500", "dro, round 2: 2.000"]


def drawn(values: list[float | None], key: str = "eval_exact_match") -> ET.Element:
    records = [{"round": i, key: value} for i, value in enumerate(values)]
    return parse(render_report({"kind": "sweep", "trials": [{"name": "dro"}], "curves": {"dro": records}}))


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        ([0.41, 0.62], [0.4, 0.5, 0.6, 0.7]),  # a quarter of the range is 0.0525: steps of 0.1
        ([0.3, 0.62], [0.3, 0.4, 0.5, 0.6, 0.7]),  # in floats 0.3 / 0.1 is less than 3
        ([0.22, 0.28], [0.22, 0.24, 0.26, 0.28]),  # and 0.28 / 0.02 is more than 14
        ([0.3, 0.9], [0.2, 0.4, 0.6, 0.8, 1.0]),  # 0.3 is no multiple of 0.2
        ([0.5, 0.54], [0.5, 0.51, 0.52, 0.53, 0.54]),
        ([0.0, 0.0], [0.0, 0.02, 0.04, 0.06]),  # nothing was right: not below zero
        ([1.0, 1.0], [0.94, 0.96, 0.98, 1.0]),  # everything was: not above one
        ([0.2], [0.15, 0.2, 0.25]),
        ([-31.0, -7.5, 12.0], [-40.0, -20.0, 0.0, 20.0]),
        ([10.0, 260000.0], [0.0, 1e5, 2e5, 3e5]),
    ],
)
def test_ticks_are_round_numbers_that_enclose_the_values(values: list[float | None], shown: list[float]) -> None:
    x_axis, y_axis = ticks(drawn(values), "eval-exact-match")
    assert sorted(y_axis) == shown
    places = [y_axis[value] for value in shown]
    assert [b - a for a, b in pairwise(places)] == pytest.approx([places[1] - places[0]] * (len(shown) - 1), abs=0.21)
    assert places == sorted(places, reverse=True)  # upwards on the page is towards smaller y
    assert sorted(x_axis) == list(range(max(len(values), 2)))


def test_ticks_of_many_rounds_are_few() -> None:
    x_axis, _ = ticks(drawn([0.1 * (i % 3) for i in range(61)]), "eval-exact-match")
    assert sorted(x_axis) == [0, 10, 20, 30, 40, 50, 60]


@pytest.mark.parametrize("hole", [None, math.nan, math.inf, -math.inf, "0.5", [0.5]])
def test_values_that_are_no_finite_numbers_are_left_out(hole: Any) -> None:
    (line,) = lines(drawn([0.1, hole, 0.3]), "eval-exact-match")
    assert len(line) == 2
    nothing = drawn([hole, hole])
    assert sections(nothing) == ["results"]


def test_numpy_scalars_are_numbers() -> None:
    values: list[Any] = [np.float32(0.25), np.float64(0.5), np.int64(1)]
    assert len(lines(drawn(values), "eval-exact-match")[0]) == 3


@pytest.mark.parametrize("value", [1.0, 2.0])
def test_names_of_lines_do_not_overlap(value: float) -> None:
    """Eight lines end at the lower or at the upper end of the axis, one at the other."""
    values = [value] * 8 + [3.0 - value]
    curves = {
        f"{i} a row with a very long name": [{"round": 0, "ess": 1.5}, {"round": 1, "ess": v}]
        for i, v in enumerate(values)
    }
    tree = parse(render_report({"kind": "sweep", "trials": [], "curves": curves}))
    names = by_class(by_id(tree, "chart-ess"), "name")
    heights = sorted(float(name.get("y", "")) for name in names)
    assert len(heights) == 9
    assert min(b - a for a, b in pairwise(heights)) >= 12.9
    _, y_axis = ticks(tree, "ess")
    assert y_axis[2.0] < heights[0] < heights[-1] < y_axis[1.0] + 5
    assert {text(name)[1:] for name in names} == {" a row with a very\u2026"}


def test_names_are_next_to_the_last_point(tree: ET.Element) -> None:
    for key in ("ess", "drift"):
        names = by_class(by_id(tree, f"chart-{key}"), "name")
        for name, line in zip(names, lines(tree, key), strict=True):
            place = float(name.get("x", "")), float(name.get("y", ""))
            assert place == pytest.approx((line[-1][0] + 14, line[-1][1] + 4), abs=0.5)


def styles(elements: list[ET.Element]) -> set[str]:
    return {name for element in elements for name in element.get("class", "").split() if re.fullmatch(r"s\d+", name)}


def test_trial_has_one_colour_and_one_shape_on_the_whole_page(tree: ET.Element) -> None:
    shapes: dict[str, set[str]] = {}
    for key in by_class(tree, "key"):
        (style,) = styles([key])
        shapes.setdefault(style, set()).add(key.findall("path")[0].get("d", ""))
    for series in by_class(tree, "series"):
        for style in styles([series]):
            shapes[style] |= {mark.findall("path")[0].get("d", "") for mark in by_class(series, "mark")}
    assert sorted(shapes) == ["s0", "s1", "s2"]
    assert [len(found) for found in shapes.values()] == [1, 1, 1]
    assert len(set.union(*shapes.values())) == 3
    (table,) = by_class(by_id(tree, "results"), "results")
    assert [sorted(styles(list(row.iter()))) for row in table.findall("tbody/tr")] == [["s0"], ["s1"], ["s2"], []]
    assert [sorted(styles(list(article.iter()))) for article in tree.iter("article")] == [["s0"], ["s2"], ["s1"]] * 2


def test_ten_trials_differ_in_colour_or_shape() -> None:
    tree = parse(render_report({"kind": "sweep", "trials": [{"name": f"row {i}"} for i in range(10)]}))
    colours = re.findall(r"\.s\d+{--c:(#\w+)}", text(tree.findall("head/style")[0]))[:10]
    shapes = [key.findall("path")[0].get("d") for key in by_class(tree, "key")]
    assert len(colours) == len(shapes) == 10
    assert len(set(zip(colours, shapes, strict=True))) == 10


def luminance(colour: str) -> float:
    """Relative luminance of the Web Content Accessibility Guidelines, of #rgb or #rrggbb."""
    digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
    parts = [part / 255 for part in bytes.fromhex(digits)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one: str, other: str) -> float:
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def test_contrast_equals_known_values() -> None:
    assert contrast("#000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#fff") == pytest.approx(4.48, abs=0.005)  # the usual example of just too little


@pytest.mark.parametrize("dark", [False, True])
def test_contrast_of_text_and_lines(dark: bool) -> None:
    tree = parse(render_report({"kind": "sweep", "trials": [{"name": f"row {i}"} for i in range(8)]}))
    style = text(tree.findall("head/style")[0])
    theme = re.findall(r":root {(.*?)}", style)[dark]
    names = dict(re.findall(r"--(\w+): (#\w+)", theme))
    series = re.findall(r"\.s\d+{--c:(#\w+)}", style)[8 * dark :][:8]
    for ground in ("bg", "card"):
        for ink in ("ink", "soft", "link", "right", "wrong"):
            assert contrast(names[ink], names[ground]) >= 4.5, (ink, ground)
    assert len(set(series)) == 8
    for badge in ("gold", "cite"):
        assert contrast(names["ink"], names[badge]) >= 4.5, badge
    assert min(contrast(colour, names["card"]) for colour in series) >= 3


# Sample answers.


def test_sample_shows_passages_and_answers(tree: ET.Element) -> None:
    (sample,) = by_class(by_id(tree, "samples"), "sample")
    assert text(by_class(sample, "question")[0]) == "how long is the Brost?"
    assert "Golden answers: 2,914 km \u00b7 2914 km" in text(sample)
    base, dro, sft = sample.iter("article")
    assert [text(by_class(article, "text")[0]) for article in (base, dro, sft)] == [
        "\u2717Base model, retrieved top-K: wrong. 2,100 km",
        "\u2713DRO: right. 2,914 km",
        "?Supervised fine-tuning: not scored. a river",
    ]
    assert "retriever ranks (0 = best): 2, 0." in text(dro)
    assert "log p = \u22120.30 nats" in text(dro)
    read = [text(summary) for summary in dro.findall("ol/li/details/summary")]
    assert read == ["Brost 2 e1-2", "Brost 0 e1-0 gold cited"]
    assert [text(summary) for summary in base.findall("ol/li/details/summary")] == [
        "Brost 0 e1-0 gold",
        "Brost 1 e1-1 cited",
    ]
    assert [text(passage) for passage in dro.findall("ol/li/details/p")] == [
        "The Brost 2 is a river of dro.",
        "The Brost 0 is a river of dro.",
    ]
    assert "Cited without being read: e9-9" in text(dro)
    assert "Cited without" not in text(base) + text(sft)


def test_encyclopedia_section(tree: ET.Element) -> None:
    section = by_id(tree, "encyclopedia")
    assert "Read by: DRO. Exact match 0.400 on 40 questions." in text(section)
    assert [text(question) for question in by_class(section, "question")] == ["what is the Nile?"]


# Missing parts.

SECTIONS = [
    "results", "comparisons", "tradeoff", "rounds", "recall", "samples", "encyclopedia", "settings",
]  # fmt: skip
PARTS = {
    "comparisons": "comparisons",
    "curves": "rounds",
    "samples": "samples",
    "encyclopedia": "encyclopedia",
}


def test_navigation_links_every_section(tree: ET.Element) -> None:
    assert sections(tree) == SECTIONS
    links = [link.get("href") for link in tree.findall("body/header/nav/a")]
    assert links == [f"#{section}" for section in sections(tree)]


@pytest.mark.parametrize("empty", ["gone", None, [], {}, float("nan")])
@pytest.mark.parametrize("part", ["mode", "settings", "retriever", "seconds", *PARTS])
def test_missing_part_removes_only_its_section(result: dict[str, Any], part: str, empty: Any) -> None:
    if empty == "gone":
        del result[part]
    else:
        result[part] = empty
    gone = {PARTS.get(part)}
    tree = parse(render_report(result))
    assert sections(tree) == [section for section in SECTIONS if section not in gone]


def test_sections_of_trials_only_and_of_nothing() -> None:
    tree = parse(render_report({"kind": "sweep", "trials": [{"name": "base"}]}))
    assert sections(tree) == ["results"]
    assert "base" in text(by_id(tree, "results"))
    assert sections(parse(render_report({"kind": "sweep", "trials": []}))) == []
    assert sections(parse(render_report({"kind": "sweep", "trials": [{}]}))) == ["results"]


def test_any_field_may_be_missing(result: dict[str, Any]) -> None:
    """A page is written without any one field except its kind, at every depth."""
    places = [place for place in fields(result, ()) if place != ("kind",)]
    assert len(places) > 150
    for place in places:
        poorer = copy.deepcopy(result)
        holder = poorer
        for step in place[:-1]:
            holder = holder[step]
        del holder[place[-1]]
        assert sections(parse(render_report(poorer))), place


def fields(value: Any, place: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, entry in entries:
        if (*place, key) != ("trials",):
            yield (*place, key)
            yield from fields(entry, (*place, key))


# In a browser.


@pytest.fixture(scope="module")
def browser() -> str:
    return find_browser()


@pytest.fixture
def open_page(browser: str, tmp_path: Path) -> Callable[[Path], Visit]:
    """Opens a file with `visit`."""
    return lambda file: visit(browser, file, tmp_path)


def test_browser_reports_no_console_message(
    open_page: Callable[[Path], Visit], tmp_path: Path, result: dict[str, Any]
) -> None:
    visited = open_page(write_report(result, tmp_path / "report.html"))
    assert visited.messages == []
    for row in result["trials"]:
        assert row["label"] in visited.dom
    assert visited.dom.count("<polyline") == 16  # 2 + 2 + 4 + 2 + 2 + 1, and 3 of recall@k
    hostile_page = open_page(write_report(hostile(result), tmp_path / "hostile.html"))
    assert hostile_page.messages == []
    assert "throw 1" in hostile_page.dom


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("<script>console.error('an error\\nof two lines')</script>", "an error\nof two lines"),
        ("<script>console.warn('a warning')</script>", "a warning"),
        ("<script>setTimeout(() => { throw new Error('thrown') }, 0)</script>", "Uncaught Error: thrown"),
        ("<script>Promise.reject(new Error('late'))</script>", "Uncaught (in promise) Error: late"),
        (
            "<meta http-equiv='Content-Security-Policy' content=\"default-src 'none'\"><img src='x.png'>",
            "violates the following Content Security Policy directive",
        ),
    ],
)
def test_browser_reports_faults_of_a_page(
    open_page: Callable[[Path], Visit], tmp_path: Path, content: str, message: str
) -> None:
    """Control: the same helper on pages with faults."""
    file = tmp_path / "faulty.html"
    file.write_text(f'<!DOCTYPE html><link rel="icon" href="data:,">{content}<p>here</p>', encoding="utf-8")
    visited = open_page(file)
    assert "<p>here</p>" in visited.dom
    assert any(message in found for found in visited.messages), visited.messages


# The page in a frame of a phone's width; the frame's load precedes the end of the outer page's.
FRAME = """<!DOCTYPE html><meta charset="utf-8"><link rel="icon" href="data:,"><iframe id="frame" style="width:390px;
height:800px;border:0" srcdoc="PAGE"></iframe><p id="seen"></p><script>
document.getElementById("frame").onload = (event) => {
  const page = event.target.contentDocument, seen = [page.documentElement.scrollWidth];
  const line = page.querySelector("#chart-ess .s2"), box = page.querySelector("#show-2");
  if (box) for (box.checked of [true, false]) seen.push(event.target.contentWindow.getComputedStyle(line).display);
  document.getElementById("seen").textContent = seen.join(" ");
}</script>"""


@pytest.mark.parametrize("wide", [False, True])
def test_phone_width_has_no_overflow_and_switches_hide_series(
    open_page: Callable[[Path], Visit], tmp_path: Path, result: dict[str, Any], wide: bool
) -> None:
    page = render_report(result)
    if wide:  # control: something that does stick out
        page = page.replace("</main>", '<p style="width:777px">wide</p></main>')
    file = tmp_path / "frame.html"
    file.write_text(FRAME.replace("PAGE", html.escape(page)), encoding="utf-8")
    visited = open_page(file)
    assert visited.messages == []
    found = re.search(r'<p id="seen">(\d+) (\w+) (\w+)</p>', visited.dom)
    assert found is not None
    assert (int(found[1]) > 390, found[2], found[3]) == (wide, "inline", "none")
