"""How metrics are called on a page: the only table of labels, meanings and columns."""

from dataclasses import dataclass

from rag.report.formatting import count, decimal


@dataclass(frozen=True)
class MetricLabel:
    """A metric on a page.

    Attributes:
        name: Its name in files.
        label: Its heading.
        meaning: One sentence for readers.
        is_share: It lies in [0, 1], and higher is better.
    """

    name: str
    label: str
    meaning: str = ""
    is_share: bool = True

    def text(self, value: float | None) -> str:
        """A value of this metric."""
        return count(value) if self.name == "seconds" else decimal(value)


RESULT_COLUMNS = (
    MetricLabel("exact_match", "Exact match", "Share of answers that equal a golden answer after normalisation."),
    MetricLabel("f1", "F1", "Overlap of answer and golden answer in words: the harmonic mean of precision and recall."),
    MetricLabel("recall_at_1", "Recall@1", "Share of the gold passages that come first: at most 1/2 if there are two."),
    MetricLabel("recall_at_3", "Recall@3", "The same among the first three: what is read, then the other candidates."),
    MetricLabel("recall_at_5", "Recall@5", "The same among the first five."),
    MetricLabel(
        "general",
        "General ability",
        "Share of tasks solved that need no retrieval and that the base model was made for.",
    ),
    MetricLabel(
        "kl_drift",
        "KL drift",
        "Mean KL(base || tuned) per input token of those tasks, in nats; 0 is the base.",
        is_share=False,
    ),
    MetricLabel("seconds", "Seconds", "Time for training and evaluation of this trial.", is_share=False),
)
"""Columns of the table of trials."""
ROUND_COLUMNS = (
    *("eval_exact_match", "eval_f1", "eval_selector_recall@1", "eval_retriever_recall@1", "ess"),
    *("distinct_permutations", "log_marginal", "selector_loss", "generator_loss", "selfaug_kl"),
    *("tokens_per_second", "seconds"),
)
"""Columns of the table of a run's rounds."""
STAGES = ("selector", "retriever")
"""Who ranked the passages: prefixes of ranking metrics."""
RANKING_METRICS = ("recall", "ndcg", "mrr", "answer_recall")
"""Ranking metrics in the order of their table."""

_MEANINGS = {
    "exact_match": "equals a golden answer after normalisation",
    "f1": "overlap with the golden answer in words",
    "answer_recall": "a golden answer is in the first k passages",
    "recall": "share of the gold passages among the first k",
    "ndcg": "normalised discounted cumulative gain of the gold passages",
    "mrr": "one over the rank of the first gold passage",
}
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
_LABELS = {column.name: column.label for column in RESULT_COLUMNS}
_ACRONYMS = {"ndcg": "nDCG", "mrr": "MRR", "f1": "F1", "kl": "KL", "em": "EM"}


def metric_label(name: str) -> str:
    """The heading of a metric; an unknown name without its underscores."""
    words = [word.partition("@") for word in name.split("_")]
    return _LABELS.get(name, " ".join(_ACRONYMS.get(word, word) + at + k for word, at, k in words))


def metric_within_sentence(name: str) -> str:
    """The heading of a metric within a sentence: `F1` keeps its capital."""
    label = metric_label(name)
    return label[:1].lower() + label[1:] if label[1:2].islower() else label


def round_label(name: str) -> str:
    """The heading of a number of a round."""
    return name.removeprefix("eval_").replace("_", " ")


def metric_meaning(name: str) -> str:
    """What a metric of an evaluation measures; empty if it is unknown."""
    kind = name.partition("@")[0]
    return next((text for key, text in _MEANINGS.items() if kind == key or kind.startswith(f"{key}_")), "")


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
