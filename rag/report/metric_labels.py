"""Labels, meanings and columns of metrics on a page, from the registry of metrics (`rag.evaluation.metric`)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rag.report.formatting import count, decimal

if TYPE_CHECKING:  # importing the report loads no other package
    from rag.evaluation.metric import Column


@dataclass(frozen=True)
class MetricLabel:
    """A metric in the table of trials.

    Attributes:
        name: Its name in files.
        label: Its heading.
        meaning: One sentence for readers.
        is_share: It lies in [0, 1], and higher is better.
        of_retriever: The name of the same metric of the retriever's ranking; empty if it is of something else.
    """

    name: str
    label: str
    meaning: str = ""
    is_share: bool = True
    of_retriever: str = ""

    @classmethod
    def of(cls, column: "Column") -> "MetricLabel":
        """Of a registered metric; that of the selector's ranking is named without the stage."""
        metric, (_, k) = column.metric, split_cutoff(column.name)
        return cls(
            name=column.name,
            label=metric.label + (f"@{k}" if k else ""),
            meaning=metric.meaning,
            is_share=metric.unit == "share" and metric.higher_is_better,
            of_retriever=metric.name_at("retriever", k or None) if metric.scores == "ranking" else "",
        )

    def text(self, value: float | None) -> str:
        """A value of this metric."""
        return count(value) if self.name == "seconds" else decimal(value)


def trial_columns() -> list[MetricLabel]:
    """Columns of the table of trials."""
    from rag.evaluation.metric import columns

    return [MetricLabel.of(column) for column in columns("trials")]


def round_columns() -> list[str]:
    """Columns of the table of a run's rounds."""
    from rag.evaluation.metric import columns

    return [*(f"eval_{column.name}" for column in columns("rounds")), *TRAINING_COLUMNS]


def ranking_metrics() -> list[str]:
    """Ranking metrics in the order of their table."""
    from rag.evaluation.metric import metrics_of

    return [metric.name for metric in metrics_of("ranking")]


TRAINING_COLUMNS = (
    *("likelihood_exponent", "ess", "posterior_entropy", "distinct_permutations"),
    *("log_likelihood", "selector_log_likelihood", "posterior_gold_share", "selector_gold_share"),
    *("posterior_recall", "selector_recall", "posterior_cross_entropy", "selector_cross_entropy"),
    *("log_marginal", "selector_loss", "generator_loss", "selfaug_kl"),
    *("tokens_per_second", "seconds"),
)
"""What training measures in a round."""
STAGES = ("selector", "retriever")
"""Who ranked the passages: prefixes of ranking metrics."""
_AUDIT_LABELS = {
    "changed": "questions whose answer some shuffle changes",
    "changed_per_shuffle": "answers that one shuffle changes",
    "agreement": "answers that agree with the most frequent one",
    "selected_overlap": "overlap of what was selected (Jaccard's index)",
    "supported_citations": "citations that are supported, mean over questions",
    "supported_answers": "answers with a supported citation",
    "drop_cited": "fall of log p without a cited passage, nats",
    "drop_not_cited": "fall of log p without a passage that was read and not cited, nats",
    "changed_cited": "answers that change without a cited passage",
    "changed_not_cited": "answers that change without a passage that was read and not cited",
    "exact_match": "exact match, mean over shuffles",
    "f1": "F1, mean over shuffles",
}
_ACRONYMS = {"ndcg": "nDCG", "mrr": "MRR", "f1": "F1", "kl": "KL", "em": "EM"}


def metric_label(name: str) -> str:
    """The heading of a metric; an unknown name without its underscores."""
    from rag.evaluation.metric import metric_of

    metric = metric_of(name)
    if metric is not None and name == metric.name and metric.scores != "ranking":
        return metric.label
    words = [word.partition("@") for word in name.split("_")]
    return " ".join(_ACRONYMS.get(word, word) + at + k for word, at, k in words)


def metric_within_sentence(name: str) -> str:
    """The heading of a metric within a sentence: `F1` keeps its capital."""
    label = metric_label(name)
    return label[:1].lower() + label[1:] if label[1:2].islower() else label


def round_label(name: str) -> str:
    """The heading of a number of a round."""
    return name.removeprefix("eval_").replace("_", " ")


def metric_meaning(name: str) -> str:
    """What a metric of an evaluation measures; empty if it is unknown."""
    from rag.evaluation.metric import metric_of

    metric = metric_of(name)
    return "" if metric is None else metric.meaning


def audit_label(name: str) -> str:
    """What an estimate of an audit is of."""
    return _AUDIT_LABELS.get(name, metric_label(name))


def audit_place(name: str) -> int:
    """The place of an estimate in its table; files sort their keys."""
    places = list(_AUDIT_LABELS)
    return places.index(name) if name in places else len(places)


def split_cutoff(metric: str) -> tuple[str, int]:
    """`ndcg@5` as ("ndcg", 5); 0 for a metric without a cut-off."""
    kind, _, k = metric.partition("@")
    return kind, int(k) if k.isdecimal() else 0
