"""The colour and the mark of every series, the same all over a page."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from rag.report.formatting import shortened
from rag.report.report_data import AnsweredQuestion, ComparisonData

# Eight colours per theme, chosen so that any two differ for normal sight and for the three kinds of dichromacy (by at
# least 0.12 in OKLab), and each has a contrast of 3:1 on its background. Shapes repeat the distinction.
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
_NARROW = 20  # characters


@dataclass(frozen=True)
class SeriesStyles:
    """Place, label, colour and shape of every name on a page.

    A recipe and the same recipe with SelfAug (`X` and `X_selfaug`) share colour and shape; the mark of the latter is
    hollow. So thirteen trials need eight looks.

    Attributes:
        places: Name to its number on the page, from 0.
        labels: Name to what people read for it.
        looks: Name without SelfAug to the number of its colour and shape.
    """

    places: Mapping[str, int]
    labels: Mapping[str, str]
    looks: Mapping[str, int]

    @classmethod
    def of(cls, labels: Mapping[str, str], others: Iterable[str] = (), *, first_look: int = 0) -> "SeriesStyles":
        """Styles of the labelled names, in their order, and then of every other name on the page.

        The first colour is a muted one, for the base model; the page of a single pipeline starts with a later one.
        """
        names = dict.fromkeys([*labels, *others])
        looks = {plain: look for look, plain in enumerate(dict.fromkeys(map(_plain, names)), first_look)}
        return cls({name: place for place, name in enumerate(names)}, dict(labels), looks)

    @classmethod
    def of_comparison(cls, data: ComparisonData) -> "SeriesStyles":
        """Styles of everything that a comparison names."""
        others = [
            *data.curves,
            *(test.name for test in data.paired_tests),
            *_answering([*data.samples, *data.encyclopedia.samples, *data.questions]),
            *data.evaluations,
            *(test.against for test in data.paired_tests),
        ]
        return cls.of(_first_labels(data), others)

    def label(self, name: str) -> str:
        """What people read for this name."""
        return self.labels.get(name, name)

    def classes(self, name: str) -> str:
        """The style classes that colour the marks, lines and bars of a series."""
        return f"s{self.places[name]}" + (" hollow" if SELFAUG in name else "")

    def shape(self, name: str) -> str:
        """The SVG path of the series' mark, about ten units wide."""
        look = self.looks[_plain(name)]
        return _SHAPES[(look + look // len(_SHAPES)) % len(_SHAPES)]  # the ninth has only the first's colour

    def css(self) -> str:
        """Colours by place, and a rule per series that hides it in the charts while its box is not ticked."""
        looks = [(place, self.looks[_plain(name)]) for name, place in self.places.items()]
        light, dark = (
            "".join(f".s{place}{{--c:{colours[look % len(colours)]}}}" for place, look in looks)
            for colours in (_LIGHT, _DARK)
        )
        hide = "".join(f"body:has(#show-{place}:not(:checked)) .plot .s{place}{{display:none}}" for place, _ in looks)
        return f"{light}@media(prefers-color-scheme:dark){{{dark}}}{hide}"


def brief(name: str) -> str:
    """A name for narrow places: `dro +SA` for `dro_selfaug`, and no more than twenty characters."""
    return shortened(name.replace(SELFAUG, " +SA"), _NARROW)


def _first_labels(data: ComparisonData) -> dict[str, str]:
    """Of two trials of one name, the label of the first."""
    labels: dict[str, str] = {}
    for trial in data.trials:
        labels.setdefault(trial.name, trial.label)
    return labels


def _answering(questions: Iterable[AnsweredQuestion]) -> Iterable[str]:
    return (answer.name for question in questions for answer in question.answers)


def _plain(name: str) -> str:
    return name.replace(SELFAUG, "")
