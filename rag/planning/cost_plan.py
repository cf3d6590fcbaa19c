"""The result of `rag plan` and of `rag plan index`: predicted time, memory and disk space, and what would fit.

Both models (`training_plan`, `index_plan`) fill a `Plan`; `plan_text` prints it. Sizes are in bytes, times in seconds.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, is_dataclass
from typing import Any, Self, get_args, get_origin, get_type_hints

from indexes.errors import DataError
from rag.planning.index_job import IndexSetting
from rag.planning.training_job import TrainingSetting

SETTINGS: Mapping[str, type[TrainingSetting] | type[IndexSetting]] = {
    "training": TrainingSetting,
    "index": IndexSetting,
}
"""What is planned, by the plan's `kind`."""


_SUMS = ("seconds", "measured_seconds")
"""Properties of `Plan` that its JSON has."""


@dataclass(frozen=True, kw_only=True)
class PlannedPhase:
    """One phase of a run or a build."""

    name: str
    seconds: float
    """Of one execution; 0 where no time is predicted."""
    times: int = 1
    """Executions in the whole run."""
    flops: int | None = None
    """Floating-point operations of one execution; None where the time rests on a measurement instead."""
    basis: str = ""
    """What `seconds` rests on; empty where no time is predicted."""
    peak: int
    """Bytes that all processes together allocate at the worst moment."""
    mapped: int = 0
    """Bytes of mapped files besides: resident, but the system can drop them when memory is short."""
    parts: dict[str, int] = field(default_factory=dict)
    """Bytes of this phase only, by what they hold; part of `peak`."""

    @property
    def total_seconds(self) -> float:
        """Of all executions."""
        return self.seconds * self.times

    @property
    def resident(self) -> int:
        """Allocated and mapped bytes."""
        return self.peak + self.mapped


@dataclass(frozen=True, kw_only=True)
class MeasuredPhase:
    """What a phase took on a few items with the real model, beside what the plan says of as many."""

    name: str
    items: int
    """Questions or passages that it was measured on."""
    seconds: float
    """Of these."""
    predicted_seconds: float
    """Of as many by the plan."""
    run_items: int
    """Items in the whole run or build, each counted as often as it is worked on."""
    peak: int | None
    """Bytes at the worst moment of the measurement; None where the system does not say."""
    predicted_peak: int
    """Bytes by the plan, for batches of these items."""

    @property
    def run_seconds(self) -> float:
        """Of the whole run or build, from what was measured."""
        return self.seconds / self.items * self.run_items

    @property
    def predicted_run_seconds(self) -> float:
        """The same from the prediction."""
        return self.predicted_seconds / self.items * self.run_items


@dataclass(frozen=True, kw_only=True)
class PlannedMemory:
    """Memory over all phases."""

    always: dict[str, int]
    """Bytes that each process has in use in every phase, by what they hold."""
    optimizer: int = 0
    """Bytes of gradients and Adam moments, in phases that train."""
    peak: int
    """The largest `peak` of a phase."""
    peak_phase: str
    resident: int
    """The largest sum of allocated and mapped bytes of a phase."""


@dataclass(frozen=True, kw_only=True)
class PlannedDisk:
    """Disk space."""

    parts: dict[str, int]
    """Bytes that stay, by what they hold."""
    temporary: int = 0
    """Bytes of intermediate files, removed in the end."""
    peak: int
    """Bytes at the fullest moment."""
    free: int | None = None
    """Free bytes at the output; None where no output was given."""

    @property
    def after(self) -> int:
        """Bytes that stay."""
        return sum(self.parts.values())


@dataclass(frozen=True, kw_only=True)
class Fit:
    """Whether one limit holds."""

    limit: str
    """The limit's name: a device, "memory", "max_memory", "disk", "builder"."""
    fits: bool
    needed: int
    """Bytes that are needed at the worst moment."""
    available: int | None = None
    """Bytes that may be used; None where the limit is no number of bytes."""
    reason: str = ""
    """Why not, where that is not the number of bytes."""


@dataclass(frozen=True, kw_only=True)
class Change:
    """A changed setting that lowers what is needed."""

    limit: str
    """Name of the `Fit` that it is meant for."""
    change: str
    """The setting and its new value."""
    peak: int
    """Peak memory with it, in bytes."""
    fits: bool
    detail: str = ""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a training run or an index build is predicted to take."""

    kind: str
    """A key of `SETTINGS`."""
    setting: TrainingSetting | IndexSetting
    """What is planned, and where."""
    phases: tuple[PlannedPhase, ...]
    round_seconds: float | None = None
    """Of one round with its evaluation; None where there are no rounds."""
    memory: PlannedMemory
    disk: PlannedDisk
    fits: tuple[Fit, ...]
    changes: tuple[Change, ...]
    """Proposed for the limits that do not hold; empty where all hold or nothing helps."""
    not_modelled: tuple[str, ...]
    measured: tuple[MeasuredPhase, ...] = ()
    """With `--measure`."""

    @property
    def seconds(self) -> float:
        """Of all phases."""
        return sum(phase.total_seconds for phase in self.phases)

    @property
    def measured_seconds(self) -> float | None:
        """Of all phases, with what was measured in place of predictions; None where nothing was measured."""
        if not self.measured:
            return None
        difference = sum(phase.run_seconds - phase.predicted_run_seconds for phase in self.measured)
        return self.seconds + difference

    def phase(self, name: str) -> PlannedPhase:
        """The phase of this name (KeyError: there is none)."""
        return {phase.name: phase for phase in self.phases}[name]

    def fit(self, limit: str) -> Fit | None:
        """The verdict on one limit; None where there is no such limit."""
        return {fit.limit: fit for fit in self.fits}.get(limit)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary, which `from_dict` reads; sums such as `seconds` are in it for convenience."""
        data = asdict(self)
        computed = {"seconds": self.seconds, "measured_seconds": self.measured_seconds}
        return data | computed | {"disk": data["disk"] | {"after": self.disk.after}}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Read what `to_dict` wrote.

        Raises:
            DataError: It is no plan, or one of another version.
        """
        try:
            rest = {name: value for name, value in data.items() if name not in ("setting", "disk", *_SUMS)}
            setting = _read(SETTINGS[data["kind"]], data["setting"])
            disk = {name: value for name, value in data["disk"].items() if name != "after"}
            hints = get_type_hints(cls)
            found = {name: _read(hints[name], value) for name, value in rest.items()}
            return cls(**found, setting=setting, disk=_read(PlannedDisk, disk))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(
                "A plan must be what `rag plan --json` or `rag plan index --json` of this version prints; reading it "
                f"failed with {type(error).__name__}: {error}. Plan again."
            ) from error


def _read(hint: Any, value: Any) -> Any:
    """`value` from JSON as the type that `hint` names: dataclasses and tuples of them, else unchanged."""
    if is_dataclass(hint) and isinstance(hint, type):
        hints = get_type_hints(hint)
        return hint(**{name: _read(hints[name], item) for name, item in value.items()})
    if get_origin(hint) is tuple:
        return tuple(_read(get_args(hint)[0], item) for item in value)
    return value
