"""`Metric` and the registry `METRICS`: everything that has a value per question, and the numbers of a trial.

    METRICS.register("answer_length", Metric(
        name="answer_length", label="Answer length", unit="count", higher_is_better=False,
        function=lambda answer, example: float(len(answer.text.split())),
    ))

A metric that is registered is computed by `evaluate` for every question, written to evaluation files with its interval,
and shown in the tables of `rag evaluate`, `rag train`, `rag sweep` and the report; comparisons test it. Register before
evaluating: in an imported module, or in a package with an entry point of the group ``dro_rag.plugins``, which
the worker processes of a sweep load too.

What a value is computed from depends on `scores`:

- "answer": ``function(answer, example)``, the name is the metric's (`exact_match`);
- "ranking": ``function(ranked_passages, example, k)`` for two rankings: `retriever_NAME` is that of the retriever,
  `selector_NAME` the passages read in their order followed by the other candidates. With `cutoffs` it is called for
  every cut-off and `@k` is appended (`selector_recall@5`); without, k is None;
- "trial": one value for a whole pipeline, measured elsewhere (`rag.forgetting`, `rag.experiments`); no function.

A function returns a float, or None for a question that has no value. Its mean is over the questions that have one.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Literal, NamedTuple

from indexes.errors import UsageError
from indexes.registry import Registry
from rag.metrics import answer_recall, exact_match, f1, gold_recall, ranking_quality

if TYPE_CHECKING:
    from indexes.corpora.passage import Passage
    from training.questions.example import QAExample

Unit = Literal["share", "nats", "count", "seconds", "number"]
"""share: in [0, 1], shown in percent; nats; count: of things, not necessarily whole as a mean; seconds; number."""
Table = Literal["comparison", "trials", "trial_comparisons", "rounds"]
"""comparison: `rag evaluate --compare` and its default; trials: the table of a sweep; trial_comparisons: the paired
tests of a sweep; rounds: the table of `rag train`."""
STAGES = ("retriever", "selector")
"""Prefixes of ranking metrics: which ranking they are of."""
CUTOFFS = (1, 3, 5, 20)
_SCOPES = ("answer", "ranking", "trial")
_DIGITS: dict[Unit, str] = {"share": ".1f", "nats": ".3f", "count": ",.1f", "seconds": ",.0f", "number": ".4f"}
_NAME = re.compile(r"[a-z][a-z0-9_]*")


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A number by which pipelines are compared.

    Raises:
        UsageError: A name that is not a plain identifier, or a function that is missing or superfluous.
    """

    name: str
    """Key in files: lower-case letters, digits and underscores."""
    label: str
    """Name in prose and in the report ("Exact match")."""
    heading: str = ""
    """Column heading in the tables of the shell, where it is shorter than the label ("EM")."""
    meaning: str = ""
    """One sentence for readers of a report."""
    unit: Unit = "share"
    """What the value counts; decides how it is formatted."""
    higher_is_better: bool = True
    scores: Literal["answer", "ranking", "trial"] = "answer"
    """What it is computed from; see the module."""
    needs: Literal["golden_answers", "gold_ids"] | None = None
    """Questions without golden answers, or without gold ids, have no value; None: all questions have one. Questions
    marked unanswerable have no golden answers (see `accepted_answers`)."""
    function: Callable[..., float | None] | None = None
    """As the module describes; None for metrics of a trial."""
    cutoffs: bool = False
    """Whether a ranking metric is computed at each cut-off k."""
    columns: Mapping[Table, tuple[str, ...]] | None = None
    """The names that appear in a table, by table; a table that is not mentioned shows `default_names`."""

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name) or self.name == "n":
            raise UsageError(
                f"The name of a metric must be lower-case letters, digits and underscores, and not 'n', got "
                f"{self.name!r}. Rename it."
            )
        if self.unit not in _DIGITS or self.scores not in _SCOPES:
            raise UsageError(
                f"A metric must have one of the units {list(_DIGITS)} and score one of {list(_SCOPES)}, got "
                f"{self.unit!r} and {self.scores!r}."
            )
        if (self.function is None) != (self.scores == "trial"):
            raise UsageError(
                f"A metric needs a function unless it is one of trials; {self.name!r} scores {self.scores!r} and has "
                f"{'no' if self.function is None else 'a'} function."
            )

    def names(self, cutoffs: Sequence[int] = CUTOFFS) -> list[str]:
        """The keys under which its values appear in an evaluation."""
        if self.scores != "ranking":
            return [self.name]
        return [self.name_at(stage, k) for stage in STAGES for k in (cutoffs if self.cutoffs else [None])]

    def name_at(self, stage: str, k: int | None = None) -> str:
        """The key of a ranking metric: `selector_recall@5`; an empty stage leaves the prefix out."""
        return f"{stage}_{self.name}".removeprefix("_") + ("" if k is None else f"@{k}")

    def default_names(self, table: Table) -> tuple[str, ...]:
        """What a table shows of a metric whose registration does not say."""
        if self.scores == "trial":
            return (self.name,) if table == "trials" else ()
        if self.scores == "answer":
            return (self.name,)
        return () if table == "trial_comparisons" else (self.name_at("selector", 5 if self.cutoffs else None),)

    def of_answer(self, answer: object, example: "QAExample") -> dict[str, float]:
        """Its value for an answer by its key; empty where the question has none."""
        return self._values({self.name: ()}, example, answer)

    def of_ranking(
        self, stage: str, passages: "Sequence[Passage]", example: "QAExample", cutoffs: Sequence[int]
    ) -> dict[str, float]:
        """Its values for a ranking by their keys; empty where the question has none."""
        keys = {self.name_at(stage, k): (k,) for k in (cutoffs if self.cutoffs else [None])}
        return self._values(keys, example, passages)

    def _values(
        self, keys: Mapping[str, tuple[int | None, ...]], example: "QAExample", scored: object
    ) -> dict[str, float]:
        if self.function is None or (self.needs is not None and not getattr(example, self.needs)):
            return {}
        found = {key: self.function(scored, example, *arguments) for key, arguments in keys.items()}
        for key, value in found.items():
            if value is not None and not math.isfinite(value):
                raise UsageError(
                    f"The function of a metric must return a finite number, or None for no value; {key} of question "
                    f"{example.id!r} is {value}."
                )
        return {key: float(value) for key, value in found.items() if value is not None}

    def format(self, value: float | None, interval: Sequence[float] | None = None) -> str:
        """A value in its unit (shares in percent, without the sign), with its interval in brackets; "-" for None."""
        if value is None:
            return "-"
        text = self._number(value)
        return text if interval is None else f"{text} [{self._number(interval[0])}, {self._number(interval[1])}]"

    def format_difference(self, value: float | None, interval: Sequence[float] | None = None) -> str:
        """A difference of two values, with its sign; shares in points."""
        if value is None:
            return "-"
        text = self._number(value, "+")
        return text if interval is None else f"{text} [{', '.join(self._number(end, '+') for end in interval)}]"

    def _number(self, value: float, sign: str = "") -> str:
        return format(100 * value if self.unit == "share" else value, sign + _DIGITS[self.unit])


METRICS: Registry[Metric] = Registry("metric")


class Column(NamedTuple):
    """A metric in a table."""

    name: str
    """Key of the value: `selector_recall@5`."""
    heading: str
    metric: Metric


def metrics_of(scores: str) -> list[Metric]:
    """The registered metrics of answers, rankings or trials, in the order of their registration."""
    return [metric for _, metric in METRICS.items() if metric.scores == scores]


def columns(table: Table) -> list[Column]:
    """What a table shows: metrics of answers, then of rankings, then of trials."""
    return [
        Column(name, metric_heading(name), metric)
        for scope in _SCOPES
        for metric in metrics_of(scope)
        for name in (metric.columns or {}).get(table, metric.default_names(table))
    ]


def metric_of(name: str) -> Metric | None:
    """The metric behind a key such as `selector_recall@5`, `exact_match_answerable` or `eval_f1`; None: not registered.

    >>> metric_of("eval_retriever_ndcg@3").label
    'nDCG'
    """
    return _parsed(name)[0]


def metric_label(name: str) -> str:
    """A key in words; one of an unregistered metric without its underscores.

    >>> metric_label("retriever_recall@5"), metric_label("f1_unanswerable"), metric_label("bits_per_byte")
    ('Retriever recall@5', 'F1 (unanswerable)', 'Bits per byte')
    """
    metric, stage, end = _parsed(name)
    if metric is None:
        return name.replace("_", " ").capitalize()
    if not stage:
        return metric.label + end
    label = metric.label if metric.label[1:2].isupper() else metric.label[:1].lower() + metric.label[1:]
    return f"{stage.capitalize()} {label}{end}"


def metric_heading(name: str) -> str:
    """A key as the heading of a narrow column: that of the selector's ranking has no prefix.

    >>> metric_heading("exact_match"), metric_heading("selector_recall@1"), metric_heading("retriever_recall@1")
    ('EM', 'recall@1', 'retriever recall@1')
    """
    metric, stage, end = _parsed(name)
    if metric is None:
        return name
    heading = (metric.heading or metric.label) + end
    return heading if stage in ("", "selector") else f"{stage} {heading}"


def _parsed(name: str) -> tuple[Metric | None, str, str]:
    """The metric of a key, the stage of its ranking, and what follows its label (cut-off, group of questions)."""
    key, _, k = name.removeprefix("eval_").partition("@")
    group = next((g for g in ("unanswerable", "answerable") if key.endswith(f"_{g}")), "")
    if group:
        key = key.removesuffix(f"_{group}")
    stage = next((s for s in STAGES if key.startswith(f"{s}_")), "")
    metric = METRICS.get(key.removeprefix(f"{stage}_")) if key.removeprefix(f"{stage}_") in METRICS else None
    return metric, stage, (f"@{k}" if k else "") + (f" ({group})" if group else "")


# -- built-in metrics --------------------------------------------------------------------------------------------


def accepted_answers(example: "QAExample") -> Sequence[str]:
    """What an answer is scored against: the golden answers, or the empty answer of an unanswerable question."""
    return example.golden_answers or ("",)


def _recall(ranked: "Sequence[Passage]", example: "QAExample", k: int) -> float:
    return gold_recall([p.id for p in ranked], example.gold_ids, k)


def _answer_recall(ranked: "Sequence[Passage]", example: "QAExample", k: int) -> float:
    return answer_recall([p.contents for p in ranked], example.golden_answers, k)


def _ndcg(ranked: "Sequence[Passage]", example: "QAExample", k: int) -> float:
    return _quality(tuple(p.id for p in ranked), example.gold_ids, example.gold_grades)[f"ndcg@{k}"]


def _mrr(ranked: "Sequence[Passage]", example: "QAExample", k: None) -> float:
    return _quality(tuple(p.id for p in ranked), example.gold_ids, example.gold_grades)["mrr"]


@lru_cache(maxsize=8)  # one call of trec_eval's measures for all cut-offs of a ranking
def _quality(ids: tuple[str, ...], gold_ids: tuple[str, ...], grades: tuple[int, ...]) -> dict[str, float]:
    return ranking_quality(ids, gold_ids, CUTOFFS, grades)


for _metric in (
    Metric(
        name="exact_match",
        label="Exact match",
        heading="EM",
        meaning="Share of answers that equal a golden answer after normalisation.",
        function=lambda answer, example: exact_match(answer.text, accepted_answers(example)),
    ),
    Metric(
        name="f1",
        label="F1",
        meaning="Overlap of answer and golden answer in words: the harmonic mean of precision and recall.",
        function=lambda answer, example: f1(answer.text, accepted_answers(example)),
    ),
    Metric(
        name="recall",
        label="Recall",
        heading="recall",
        meaning="Share of the gold passages among the first k.",
        scores="ranking",
        needs="gold_ids",
        cutoffs=True,
        function=_recall,
        columns={
            "comparison": ("selector_recall@1", "selector_recall@5"),
            "trials": ("selector_recall@1", "selector_recall@3", "selector_recall@5"),
            "rounds": ("selector_recall@1", "retriever_recall@1"),
        },
    ),
    Metric(
        name="ndcg",
        label="nDCG",
        meaning="Normalised discounted cumulative gain of the gold passages among the first k.",
        unit="share",
        scores="ranking",
        needs="gold_ids",
        cutoffs=True,
        function=_ndcg,
        columns={"comparison": ("selector_ndcg@5",), "trials": (), "rounds": ()},
    ),
    Metric(
        name="mrr",
        label="MRR",
        meaning="One over the rank of the first gold passage, 0 where none is found.",
        scores="ranking",
        needs="gold_ids",
        function=_mrr,
        columns={"comparison": ("selector_mrr",), "trials": (), "rounds": ()},
    ),
    Metric(
        name="answer_recall",
        label="Answer recall",
        heading="answer recall",
        meaning="Share of questions for which one of the first k passages contains a golden answer.",
        scores="ranking",
        needs="golden_answers",
        cutoffs=True,
        function=_answer_recall,
        columns={"comparison": (), "trials": (), "rounds": ()},
    ),
    Metric(
        name="general",
        label="General tasks",
        heading="general",
        meaning="Share of tasks solved that need no retrieval and that the base model was made for.",
        scores="trial",
        columns={"trial_comparisons": ("general",)},
    ),
    Metric(
        name="kl_drift",
        label="KL drift",
        heading="KL",
        meaning="Mean KL(base || tuned) per input token of the general tasks, in nats; 0 is the base model.",
        unit="nats",
        higher_is_better=False,
        scores="trial",
    ),
    Metric(
        name="seconds",
        label="Seconds",
        heading="seconds",
        meaning="Time for training and evaluation of a trial.",
        unit="seconds",
        higher_is_better=False,
        scores="trial",
    ),
):
    METRICS.register(_metric.name, _metric)
