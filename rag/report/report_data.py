"""What the pages of a report show, as typed values.

`rag.report.result_files` makes these from files and decides there, once, what a missing or malformed value is: a number
is a finite float or None, a list holds only entries of its type, a text is a string. Pages and charts need no checks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

Interval = tuple[float, float]
"""Lower and upper end of a 95 % confidence interval."""
BASE_TRIALS = ("no_training", "base")
"""Names (or recipes) of the trial whose model was not trained."""
WHOLE_TASK = "all"
"""The group that stands for all items of a retention task."""
BASE_MODEL = "base"
"""The name of the base model in a forgetting file."""


@dataclass(frozen=True)
class Estimate:
    """A mean over `n` questions with its interval; of an order-bias audit also what other orders gave."""

    value: float | None
    interval: Interval | None = None
    n: float | None = None
    unshuffled: float | None = None
    lowest: float | None = None
    highest: float | None = None


Metrics = Mapping[str, Estimate]
"""Metric name to its mean; only metrics whose mean is a finite number."""


@dataclass(frozen=True)
class Dataset:
    """The questions that were asked."""

    n: float | None = None
    skipped: float | None = None
    file: str = ""
    sha256: str = ""


# Questions and their answers.


@dataclass(frozen=True)
class RetrievedPassage:
    """A candidate, or a passage that the generator read."""

    id: str
    title: str = ""
    text: str = ""
    score: float | None = None


@dataclass(frozen=True)
class Attribution:
    """What leaving a passage out does to the answer."""

    log_prob_drop: float | None
    answer_changed: bool


@dataclass(frozen=True)
class GivenAnswer:
    """The answer of one trial, and what the generator read for it."""

    name: str
    text: str
    exact_match: float | None = None
    f1: float | None = None
    log_prob: float | None = None
    citations: Sequence[str] = ()
    """Ids of the cited passages."""
    permutation: Sequence[str] = ()
    """Ranks of the passages in the retriever's order (0 = best), in the order they were read."""
    passages: Sequence[RetrievedPassage] = ()
    """In the order they were read."""
    attributions: Mapping[str, Attribution] = field(default_factory=dict)
    """By passage id."""

    @property
    def cited_unread(self) -> list[str]:
        """Ids that are cited although the generator did not read them."""
        read = {passage.id for passage in self.passages}
        return [id for id in self.citations if id not in read]


@dataclass(frozen=True)
class AnsweredQuestion:
    """A question, its candidates in the retriever's order, and the answers to it."""

    id: str
    question: str
    golden_answers: Sequence[str] = ()
    gold_ids: Sequence[str] = ()
    candidates: Sequence[RetrievedPassage] = ()
    answers: Sequence[GivenAnswer] = ()
    listed_as: str | None = None
    """"best", "worst", or None."""


# Forgetting.


@dataclass(frozen=True)
class TaskMetric:
    """A metric of a retention task; the column of a forgetting table."""

    task: str
    metric: str


@dataclass(frozen=True)
class Measurement:
    """The value of one model on a task, or on a group of its items."""

    model: str
    column: TaskMetric
    group: str
    estimate: Estimate
    higher_is_better: bool | None = None


@dataclass(frozen=True)
class ForgettingDifference:
    """A model minus the base model on the same items."""

    model: str
    column: TaskMetric
    group: str
    difference: float | None
    interval: Interval | None = None
    p: float | None = None
    """Adjusted by Holm for the number of groups where the file has that."""


@dataclass(frozen=True)
class ForgettingData:
    """A forgetting file."""

    kind = "forgetting"

    models: Sequence[str] = ()
    """Every model that is listed or measured."""
    bundles: Mapping[str, str] = field(default_factory=dict)
    """Model name to the SHA-256 of its bundle."""
    measurements: Sequence[Measurement] = ()
    differences: Sequence[ForgettingDifference] = ()
    base: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, str] = field(default_factory=dict)


# An evaluation.


@dataclass(frozen=True)
class OrderAudit:
    """What shuffling one kind of passages changes."""

    estimates: Mapping[str, Estimate] = field(default_factory=dict)
    by_gold_position: Mapping[str, Estimate] = field(default_factory=dict)
    """Exact match by the position of the first gold passage."""


@dataclass(frozen=True)
class OrderBiasAudits:
    """The order-bias audits of an evaluation."""

    shuffles: float | None = None
    candidates: OrderAudit = field(default_factory=OrderAudit)
    passages: OrderAudit = field(default_factory=OrderAudit)


@dataclass(frozen=True)
class AttributionAudit:
    """Leave-one-out attribution over all answers of an evaluation."""

    threshold: float | None = None
    """Nats by which log p must fall for a citation to count as supported."""
    citations: float | None = None
    supported: float | None = None
    estimates: Mapping[str, Estimate] = field(default_factory=dict)


@dataclass(frozen=True)
class EvaluationData:
    """An evaluation file."""

    kind = "evaluation"

    name: str
    label: str
    metrics: Metrics = field(default_factory=dict)
    records: Sequence[AnsweredQuestion] = ()
    """Every question, with one answer each."""
    dataset: Dataset = field(default_factory=Dataset)
    n: float | None = None
    n_scored: float | None = None
    answer_mode: str = ""
    bundle: str = ""
    order_bias: OrderBiasAudits = field(default_factory=OrderBiasAudits)
    attribution: AttributionAudit = field(default_factory=AttributionAudit)
    forgetting: ForgettingData = field(default_factory=ForgettingData)
    settings: Mapping[str, str] = field(default_factory=dict)


# A training run.


@dataclass(frozen=True)
class RoundRecord:
    """The numbers of one round of training; round 0 is the pipeline before training."""

    round: float | None
    values: Mapping[str, float] = field(default_factory=dict)
    intervals: Mapping[str, Interval] = field(default_factory=dict)
    """Of the values that carry the prefix `eval_`, by their name without it."""
    warnings: Sequence[str] = ()
    """What training warned of in this round."""


Curves = Mapping[str, Sequence[RoundRecord]]
"""Trial name to the records of its rounds."""


@dataclass(frozen=True)
class RunData:
    """The folder of a training run."""

    kind = "run"

    name: str
    records: Sequence[RoundRecord] = ()
    rounds: float | None = None
    """How many rounds were asked for."""
    kept_round: float | None = None
    permutations_drawn: str = ""
    """How many permutations the E-step draws for each question."""
    base: str = ""
    digests: Mapping[str, str] = field(default_factory=dict)
    """What was used to its fingerprint."""
    forgetting: ForgettingData = field(default_factory=ForgettingData)
    settings: Mapping[str, str] = field(default_factory=dict)

    @property
    def curves(self) -> Curves:
        """The run as the only series."""
        return {self.name: self.records}

    @property
    def retriever(self) -> Mapping[str, float]:
        """Recall of the retriever on other questions: unknown."""
        return {}


# A comparison of trials.


@dataclass(frozen=True)
class Trial:
    """One pipeline of a comparison."""

    name: str
    label: str
    recipe: str = ""
    seed: str = ""
    metrics: Metrics = field(default_factory=dict)

    def value(self, metric: str) -> float | None:
        """The mean of a metric; None if it was not measured."""
        found = self.metrics.get(metric)
        return None if found is None else found.value


@dataclass(frozen=True)
class PairedTest:
    """Two trials on the same questions, by one metric."""

    name: str
    against: str
    metric: str
    difference: float | None = None
    interval: Interval | None = None
    relative: float | None = None
    p: float | None = None
    p_exact: float | None = None
    p_adjusted: float | None = None
    p_exact_adjusted: float | None = None
    questions: float | None = None


@dataclass(frozen=True)
class FailedTrial:
    """A trial that raised an error."""

    name: str
    error: str


@dataclass(frozen=True)
class EncyclopediaReading:
    """How one trained trial answers questions about real facts."""

    name: str = ""
    exact_match: float | None = None
    questions: float | None = None
    samples: Sequence[AnsweredQuestion] = ()


@dataclass(frozen=True)
class ComparisonData:
    """The trials of a sweep or of the demo experiment on the same questions."""

    kind = "sweep"

    trials: Sequence[Trial] = ()
    retriever: Mapping[str, float] = field(default_factory=dict)
    """Recall of the untrained retriever."""
    retriever_kind: str = "dense"
    paired_tests: Sequence[PairedTest] = ()
    curves: Curves = field(default_factory=dict)
    evaluations: Mapping[str, Metrics] = field(default_factory=dict)
    """Trial name to its metrics; empty where only the trials' own numbers are known."""
    records: Sequence[AnsweredQuestion] = ()
    """The questions of one evaluation with their candidates; from them the ceilings of recall are computed."""
    questions: Sequence[AnsweredQuestion] = ()
    """The best and the worst ones."""
    samples: Sequence[AnsweredQuestion] = ()
    encyclopedia: EncyclopediaReading = field(default_factory=EncyclopediaReading)
    failed: Sequence[FailedTrial] = ()
    forgetting: ForgettingData = field(default_factory=ForgettingData)
    dataset: Dataset = field(default_factory=Dataset)
    mode: str = ""
    seconds: float | None = None
    focus_recipe: str = "auto"
    """The recipe by which best and worst questions were chosen."""
    invented_world: bool = False
    """Whether the questions are about a generated world."""
    sizes: Mapping[str, str] = field(default_factory=dict)
    """Numbers of questions, rounds, candidates and so on, by the name of the setting."""
    permutations_drawn: str = ""
    settings: Mapping[str, str] = field(default_factory=dict)

    @property
    def base_trial(self) -> str | None:
        """The name of the trial that was not trained: by its name, else by its recipe."""
        names = [trial.name for trial in self.trials]
        by_name = [name for name in BASE_TRIALS if name in names]
        by_recipe = [trial.name for trial in self.trials if trial.recipe in BASE_TRIALS]
        return next(iter([*by_name, *by_recipe]), None)


ReportData = EvaluationData | ForgettingData | RunData | ComparisonData
