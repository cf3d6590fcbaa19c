"""sweep.json: what a sweep compared and found, without times, so that the same sweep is the same file."""

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any

from indexes.dataclass_json import from_json_object, to_json_object
from indexes.errors import DataError
from rag.evaluation.comparison import PairedComparison
from rag.evaluation.evaluation_file import DatasetDescription, without_header
from rag.experiments.sweep_results import TrialScores
from rag.experiments.trial_store import FailedTrial
from rag.forgetting.measurement import ForgettingTable

KIND = "sweep"
FORMAT_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class SweepFile:
    """The content of sweep.json.

    Attributes:
        settings: `SweepSettings` as JSON.
        dataset: The test questions.
        answerable_questions: Number of training questions that were used.
        trials: The scores of finished trials, in the order of the table.
        retriever: Recall of the retriever before training, by metric.
        comparisons: Paired tests between trials.
        evaluations: By trial, its evaluation file without the records.
        curves: By trained trial, the records of its rounds without times.
        samples: The first questions with the answers of all trials.
        questions: The questions with the largest gains and losses.
        failed: Trials that failed.
        too_long: By split, ids of questions that did not fit the context; None: every question fitted.
        forgetting: Results on the retention tasks; None: the sweep has none.
    """

    settings: dict[str, Any]
    dataset: DatasetDescription
    answerable_questions: int
    trials: list[TrialScores]
    retriever: dict[str, float | None]
    comparisons: list[PairedComparison]
    evaluations: dict[str, dict[str, Any]]
    curves: dict[str, list[dict[str, Any]]]
    samples: list[dict[str, Any]]
    questions: list[dict[str, Any]]
    failed: list[FailedTrial]
    too_long: dict[str, list[str]] | None = None
    forgetting: ForgettingTable | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it, with `kind` and `format_version`."""
        forgetting = {} if self.forgetting is None else {"forgetting": self.forgetting.to_dict()}
        trials = [scores.to_dict() for scores in self.trials]
        return {
            "kind": KIND,
            "format_version": FORMAT_VERSION,
            **to_json_object(self),
            "trials": trials,
            **forgetting,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], *, where: str = "the sweep") -> "SweepFile":
        """Read what `to_dict` made.

        Args:
            data: The parsed JSON.
            where: Opens error messages: the file, say.

        Raises:
            DataError: Another kind of file, or a key that is missing or wrong; it is named.
        """
        found = dict(without_header(data, KIND, FORMAT_VERSION, where))
        if missing := [f.name for f in fields(cls) if f.default is MISSING and f.name not in found]:
            raise DataError(f"{where}: a sweep must have the keys {missing}. Run `rag sweep` again to write them.")
        found["dataset"] = from_json_object(DatasetDescription, found["dataset"], where)
        found["trials"] = [TrialScores.from_dict(entry) for entry in found["trials"]]
        found["comparisons"] = [from_json_object(PairedComparison, entry, where) for entry in found["comparisons"]]
        found["failed"] = [from_json_object(FailedTrial, entry, where) for entry in found["failed"]]
        if found.get("forgetting") is not None:
            found["forgetting"] = ForgettingTable.from_dict(found["forgetting"], where=where)
        return cls(**{f.name: found[f.name] for f in fields(cls) if f.name in found})
