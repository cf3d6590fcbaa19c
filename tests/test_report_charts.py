"""The door for new charts, the templates, and what they ship."""

import ast
import json
import re
import runpy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from pages import HOSTILE, by_class, by_id, loads, parse, sections, text

from indexes.errors import UsageError
from indexes.registry import Registry
from rag.report import parse_result, render_report
from rag.report.chart import PAGES, SECTIONS, Chart, Figure
from rag.report.charts import CHARTS
from rag.report.drawing.label_placement import Box, place_labels
from rag.report.drawing.line_figure import LineFigure, Point, Series
from rag.report.html.environment import environment
from rag.report.report_data import ComparisonData, EvaluationData, RunData
from rag.report.series_style import SeriesStyles

ROOT = Path(__file__).parents[1]
REPORT = ROOT / "rag/report"
RUN = {"kind": "run", "name": "my run", "records": [{"round": r, "speed": 10.0 * r} for r in range(3)]}


class Speed(Chart):
    """A chart of another package."""

    pages = ("run", "evaluation")

    def draw(self, data: RunData | EvaluationData, styles: SeriesStyles) -> Sequence[Figure]:
        if isinstance(data, EvaluationData):
            return []
        points = [Point(r.round or 0.0, r.round or 0.0, r.values["speed"]) for r in data.records]
        series = Series(data.name, styles.classes(data.name), styles.shape(data.name), points)
        return [LineFigure("speed", f"{HOSTILE}Speed", HOSTILE, "round", HOSTILE, [series])]


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Registry[Any]:
    """The registry of charts, without any."""
    empty: Registry[Any] = Registry("chart")
    monkeypatch.setattr("rag.report.sections.figure_sections.CHARTS", empty)
    return empty


# Charts.


def test_every_module_of_the_folder_is_a_chart_on_known_pages() -> None:
    modules = {file.stem for file in (REPORT / "charts").glob("*.py")} - {"__init__"}
    charts = {kind: chart for kind, chart in CHARTS.items() if kind in modules}
    assert charts.keys() == modules
    for kind, chart in charts.items():
        assert isinstance(chart, Chart), kind
        assert chart.pages and set(chart.pages) <= set(PAGES), kind
        assert chart.section in SECTIONS, kind


def test_registered_chart_is_drawn_on_its_pages_only(registry: Registry[Any]) -> None:
    before = {kind: render_report(data) for kind, data in (("run", RUN), ("forgetting", {"kind": "forgetting"}))}
    registry.register("speed")(Speed)
    tree = parse(render_report(RUN))
    assert sections(tree) == ["charts"]
    (line,) = by_id(tree, "chart-speed").iter("polyline")
    assert len(line.get("points", "").split()) == 3
    assert [text(mark.findall("title")[0]) for mark in by_class(tree, "mark")] == [
        f"my run, round {r}: {10.0 * r:.3f}" for r in range(3)
    ]
    assert "charts" not in sections(parse(before["run"]))
    assert render_report({"kind": "forgetting"}) == before["forgetting"]
    assert "charts" not in sections(parse(render_report({"kind": "evaluation"})))  # it draws nothing there


def test_texts_of_a_registered_chart_are_escaped(registry: Registry[Any]) -> None:
    registry.register("speed", Speed())
    tree = parse(render_report(RUN))
    assert list(loads(tree)) == []
    assert text(by_id(tree, "chart-speed").findall(".//h3")[0]).startswith(" ".join(HOSTILE.split()))


def test_chart_may_bring_a_template_of_its_own(registry: Registry[Any]) -> None:
    class Rounds:
        title = HOSTILE
        template = environment().from_string("<figure id='own'>{{ figure.title }} of {{ data.name }}</figure>")

    class OwnTemplate(Chart):
        pages = ("run",)

        def draw(self, data: RunData, styles: SeriesStyles) -> Sequence[Figure]:
            return [Rounds()]

    registry.register("own", OwnTemplate())
    tree = parse(render_report(RUN))
    assert list(loads(tree)) == []
    assert text(by_id(tree, "own")) == " ".join(f"{HOSTILE} of my run".split())


def test_charts_of_a_section_are_sorted_by_order(registry: Registry[Any]) -> None:
    class Late(Speed):
        order = 200

        def draw(self, data: Any, styles: SeriesStyles) -> Sequence[Figure]:
            series = Series("s", "s0", "", [Point(0, 0, 1)])
            return [LineFigure("late", "Late", "", "round", "y", [series])]

    registry.register("a", Late())
    registry.register("b", Speed())
    figures = [figure.get("id") for figure in parse(render_report(RUN)).iter("figure")]
    assert figures == ["chart-speed", "chart-late"]


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"pages": ("run", "runs")}, r"pages of a chart must be among .*'sweep'\]; Wrong names \['runs'\]"),
        ({"section": "round"}, r"section of a chart must be one of \['rounds', .*; Wrong names 'round'"),
    ],
)
def test_chart_on_an_unknown_page_or_section_is_rejected(attributes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        type("Wrong", (Chart,), attributes)


def test_example_of_a_new_chart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = ROOT / "examples/new_chart.py"
    assert len(file.read_text(encoding="utf-8").splitlines()) <= 60
    monkeypatch.setattr(CHARTS, "_registered", dict(CHARTS._registered))  # the example's chart is gone afterwards
    example = runpy.run_path(str(file))
    (tmp_path / "run.json").write_text("{}")
    records = [{"round": r, "tokens_per_second": 100.0 + r} for r in range(2)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    page = example["main"](str(tmp_path))
    assert "tokens per second" in text(by_id(parse(page.read_text(encoding="utf-8")), "chart-speed"))


# Labels.


def test_labels_keep_off_marks_lines_and_each_other() -> None:
    room = Box(0, 0, 400, 300)
    spots = [(200.0, 150.0), (210.0, 150.0), (200.0, 160.0)]
    lines = [Box(200, 149, 400, 151)]
    placed = place_labels(["first", "second", "third"], spots, lines, room)
    boxes = [box for box in placed if box is not None]
    assert len(boxes) == 3
    for place, box in enumerate(boxes):
        assert room.contains(box)
        assert not any(box.overlaps(other) for other in [*boxes[:place], *boxes[place + 1 :], *lines])
        assert not any(box.left < x < box.right and box.top < y < box.bottom for x, y in spots)


def test_label_without_room_is_left_out() -> None:
    assert place_labels(["a label that is much too long"], [(50.0, 50.0)], [], Box(0, 0, 100, 100)) == [None]


# Loading.


def test_missing_values_are_decided_on_loading() -> None:
    data = parse_result(
        {
            "kind": "sweep",
            "trials": [
                {"name": "dro", "f1": float("nan"), "exact_match": "0.5", "general": 0.5, "seed": None},
                7,
                None,
            ],
            "comparisons": [{"name": "dro", "interval": [0.3, 0.1], "p": None}, {"interval": [0.3]}, "x"],
            "curves": {"dro": [{"round": 1, "ess": float("inf"), "eval_intervals": {"f1": [0.2, 0.4]}}, []]},
            "samples": [{"golden_answers": "no list", "answers": [{"trial": "dro", "text": None}]}],
        }
    )
    assert isinstance(data, ComparisonData)
    (trial,) = data.trials
    assert (trial.label, trial.seed, list(trial.metrics)) == ("dro", "", ["general"])
    assert [test.interval for test in data.paired_tests] == [(0.1, 0.3), None]
    (record,) = data.curves["dro"]
    assert (record.round, record.values, record.intervals) == (1.0, {"round": 1.0}, {"f1": (0.2, 0.4)})
    assert data.samples[0].golden_answers == []
    assert data.samples[0].answers[0].text == ""


def test_adjusted_p_of_forgetting_replaces_the_plain_one() -> None:
    entry = {"model": "sft", "task": "t", "metric": "m", "group": "g", "p": 0.01}
    data = parse_result({"kind": "forgetting", "comparisons": [entry, {**entry, "p_adjusted": 0.04}]})
    assert data.kind == "forgetting"
    assert [difference.p for difference in data.differences] == [0.01, 0.04]


# Templates.


def test_environment_escapes_and_refuses_unknown_names() -> None:
    from jinja2 import UndefinedError

    page = environment().from_string("{{ text }}|{{ number }}").render(text='<b>"\x00&', number=1.5)
    assert page == "&lt;b&gt;&#34;\ufffd&amp;|1.5"
    with pytest.raises(UndefinedError):
        environment().from_string("{{ txet }}").render(text="")


@pytest.mark.parametrize(
    ("source", "page"),
    [
        ("<p>\n  <b>x</b>\n</p>\n", "<p><b>x</b></p>"),
        ("<p>one\n  two <b>x</b>\n  three</p>", "<p>one\n  two <b>x</b>\n  three</p>"),  # words stay apart
        ("<td>{{ 1 }}\n  {{ 2 }}</td>", "<td>12</td>"),
        ("<td>{{ 1 }} {{ 2 }}</td>", "<td>1 2</td>"),
        ("{% if true %}\n  <i>x</i>\n{% endif %}\n<i>y</i>", "<i>x</i><i>y</i>"),
    ],
)
def test_line_breaks_between_tags_leave_no_space(source: str, page: str) -> None:
    assert environment().from_string(source).render() == page


def test_no_text_is_marked_as_safe() -> None:
    """Only jinja2's own escaping decides; the style sheet is included as a file."""
    for file in (REPORT / "html").glob("*.jinja"):
        assert not re.search(r"\bsafe\b|autoescape", file.read_text(encoding="utf-8")), file.name
    for file in REPORT.rglob("*.py"):
        names = {
            node.id for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if isinstance(node, ast.Name)
        }
        assert not names & {"Markup", "escape"}, file.name


def test_every_template_is_used_and_compiles() -> None:
    files = {file.name for file in (REPORT / "html").glob("*.jinja")}
    sources = "".join(
        file.read_text(encoding="utf-8") for file in REPORT.rglob("*") if file.suffix in (".py", ".jinja")
    )
    assert sorted(name for name in files if f'"{name}"' not in sources) == []
    for name in files:
        environment().get_template(name)


def test_style_classes_of_templates_have_rules() -> None:
    """A class without a rule is a misspelt one, apart from those that only name an element."""
    sheet = (REPORT / "html/report.css").read_text(encoding="utf-8")
    templates = "".join(file.read_text(encoding="utf-8") for file in (REPORT / "html").glob("*.jinja"))
    used = {name for names in re.findall(r'class="([^"{]*)"', templates) for name in names.split()}
    assert len(used) > 30
    assert {name for name in used if not re.search(rf"\.{name}\b", sheet)} == {"lead"}
