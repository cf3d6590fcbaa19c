"""Which colour and which shape a row has, all over the page."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from rag.report.values import mapping, mappings

# Eight colours per theme, spread so that any two stay apart for normal sight and for the three kinds of dichromacy
# (at least 12 in OKLab, times 100), and each has a contrast of 3:1 on its background. Shapes say the same again.
_LIGHT = ("#a18d8f", "#e25415", "#157cff", "#b247b4", "#165f65", "#9e1e06", "#271a86", "#49161d")
_DARK = ("#a4a08c", "#ffb031", "#29ebf1", "#a250d9", "#39797e", "#cc420d", "#50aeff", "#faff24")
_SHAPES = (
    "M-4 0A4 4 0 0 1 4 0A4 4 0 0 1-4 0Z",  # disc
    "M-3.5-3.5H3.5V3.5H-3.5Z",  # square
    "M0-4.6L4.5 3.4H-4.5Z",  # triangle
    "M0-5L5 0L0 5L-5 0Z",  # diamond
    "M0 4.6L4.5-3.4H-4.5Z",  # triangle, tip down
    "M-1.6-4.5H1.6V-1.6H4.5V1.6H1.6V4.5H-1.6V1.6H-4.5V-1.6H-1.6Z",  # plus
    "M0-5L1.5-1.6L5-1.5L2.3.8L3.1 4.2L0 2.4L-3.1 4.2L-2.3.8L-5-1.5L-1.5-1.6Z",  # star
    "M-4.5-4H4.5L-4.5 4H4.5Z",  # hourglass
)
SELFAUG = "_selfaug"
_LETTERS = 20


@dataclass(frozen=True)
class Names:
    """The place of every row name, its label, and its look.

    A recipe and the same recipe with SelfAug (`X` and `X_selfaug`) share colour and shape; the mark of the latter is
    hollow. So thirteen rows need eight looks.
    """

    places: Mapping[str, int]
    labels: Mapping[str, str]
    looks: Mapping[str, int]

    @classmethod
    def of(cls, rows: Iterable[Mapping[str, Any]], others: Iterable[str] = (), *, first_look: int = 0) -> "Names":
        """Names of the rows, in their order, and then of whatever else is named on the page.

        The first colour recedes, as befits a base model; a page about a single pipeline starts with another.
        """
        rows = list(rows)
        found = dict.fromkeys([*map(name_of, rows), *others])
        looks = {plain: look for look, plain in enumerate(dict.fromkeys(map(_plain, found)), first_look)}
        labels = {name_of(row): str(row.get("label") or name_of(row)) for row in reversed(rows)}
        return cls({name: place for place, name in enumerate(found)}, labels, looks)

    @classmethod
    def of_comparison(cls, result: Mapping[str, Any]) -> "Names":
        """Everything that a comparison names."""
        samples = [
            *mappings(result.get("samples")),
            *mappings(mapping(result.get("encyclopedia")).get("samples")),
            *mappings(result.get("questions")),
        ]
        others = [
            *map(str, mapping(result.get("curves"))),
            *(name_of(entry) for entry in mappings(result.get("comparisons"))),
            *(answered_by(answer) for sample in samples for answer in mappings(sample.get("answers"))),
            *map(str, mapping(result.get("evaluations"))),
        ]
        return cls.of(mappings(result.get("rows")), others)

    def label(self, name: str) -> str:
        """What people read for this name."""
        return self.labels.get(name, name)

    def style(self, name: str) -> str:
        """The style classes that colour a row's marks, lines and bars."""
        return f"s{self.places[name]}" + (" hollow" if SELFAUG in name else "")

    def shape(self, name: str) -> str:
        """The path of the row's mark, about ten units wide."""
        look = self.looks[_plain(name)]
        return _SHAPES[(look + look // len(_SHAPES)) % len(_SHAPES)]  # the ninth has the first's colour only

    def key(self, name: str) -> str:
        """A small mark in the colour and the shape of the row; nothing for a name without a row."""
        if name not in self.places:
            return ""
        style, shape = self.style(name), self.shape(name)
        return f'<svg class="key {style}" viewBox="-6 -6 12 12" aria-hidden="true"><path d="{shape}"/></svg>'

    def css(self) -> str:
        """Colours by place, and a rule per series that hides it in the charts while its box is not ticked."""
        looks = [(place, self.looks[_plain(name)]) for name, place in self.places.items()]
        colours = _LIGHT, _DARK
        light, dark = ("".join(f".s{i}{{--c:{c[look % len(c)]}}}" for i, look in looks) for c in colours)
        hide = "".join(f"body:has(#show-{i}:not(:checked)) .plot .s{i}{{display:none}}" for i, _ in looks)
        return f"{light}@media(prefers-color-scheme:dark){{{dark}}}{hide}"


def _plain(name: str) -> str:
    return name.replace(SELFAUG, "")


def brief(name: str) -> str:
    """A row's name for narrow places: `dro +SA` for `dro_selfaug`, and no more than twenty letters."""
    text = name.replace(SELFAUG, " +SA")
    return text if len(text) <= _LETTERS else f"{text[: _LETTERS - 1]}\u2026"


def name_of(row: Mapping[str, Any]) -> str:
    """The name that a row, a comparison or a measurement is about."""
    return str(row.get("name", ""))


def answered_by(answer: Mapping[str, Any]) -> str:
    """The name of the row that gave an answer."""
    return str(answer.get("row", ""))
