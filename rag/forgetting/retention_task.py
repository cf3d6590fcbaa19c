"""`RetentionTask`: the interface of a kind of measurement of what fine-tuning must keep, and `Score`, its result.

A new kind is one file: a subclass registered with `rag.forgetting.retention_tasks.RETENTION_TASKS`. `rag forgetting`
and the settings of a sweep then take its sources under the name of the kind, and its fields as options
(`examples/new_retention_task.py`). It is measured for the base model (adapters off) and for every tuned model on the
same items; each item of a tuned model is compared with the same item of the base model.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from generator.generator import Generator
from indexes.errors import UsageError, check_on_error
from rag.evaluation.ratios import Ratio


@dataclass(frozen=True, kw_only=True)
class Score:
    """One metric of one task; every item has a numerator and a denominator."""

    task: str
    metric: str
    higher_is_better: bool
    is_exponential: bool = False
    """Whether the value is exp(sum of numerators / sum of denominators): a perplexity."""
    is_distance: bool = False
    """Whether it is a distance from the base model, so that comparing it with the base model's means nothing."""
    items: tuple[str, ...] = ()
    """Ids of the items, the same for every model."""
    groups: tuple[tuple[str, ...], ...] = ()
    """The groups of each item."""
    numerators: tuple[float, ...] = ()
    denominators: tuple[float, ...] = ()
    reported: float | None = None
    """The value as lm-evaluation-harness computed it, where it is no ratio of sums over items."""
    stderr: float | None = None
    """The reported standard error, if any."""

    def ratio(self, group: str | None = None) -> Ratio:
        """Of all items, or of those in a group."""
        kept = [i for i, groups in enumerate(self.groups) if group is None or group in groups]
        return Ratio([self.numerators[i] for i in kept], [self.denominators[i] for i in kept], self.is_exponential)


@dataclass(frozen=True, kw_only=True)
class RetentionOptions:
    """Options that all kinds of retention tasks share."""

    max_new_tokens: int = 256
    """Tokens that a reply may have."""
    on_error: str = "raise"
    """A prompt or sentence that does not fit the model's context: "raise", or "skip" it for all models alike."""

    def __post_init__(self) -> None:
        check_on_error(self.on_error)
        check_at_least_one(max_new_tokens=self.max_new_tokens)


@dataclass(frozen=True)
class RetentionTask(ABC):
    """A kind of retention task; the fields of a subclass, a frozen dataclass, are its options."""

    kind: ClassVar[str]
    """The name it is registered under, which is the name of the option with its sources."""
    sources: ClassVar[str]
    """What its sources are, for `--help`."""

    def prepare_all(self, generator: Generator, sources: Sequence[str | Path], options: RetentionOptions) -> list[Any]:
        """Read and tokenise all sources of this kind, before anything is measured; by default one by one."""
        return [self.prepare(generator, source, options) for source in sources]

    @abstractmethod
    def prepare(self, generator: Generator, source: str | Path, options: RetentionOptions) -> Any:
        """Read a source and encode its items for a model.

        Raises:
            DataError: A source that is broken, or an item that does not fit the model's context (left out with
                `options.on_error` "skip").
        """

    @abstractmethod
    def score(
        self, generator: Generator, role: str, prepared: Any, options: RetentionOptions, *, progress: bool = True
    ) -> list[Score]:
        """Score a model on what `prepare` returned; nothing is read or written.

        Args:
            generator: The model; its batches are as large as `max_tokens_per_batch` allows.
            role: "base" (adapters off), "generator" or "selector".
            prepared: Of `prepare`.
            options: The options of all kinds.
            progress: Show a progress bar.
        """

    def measure(
        self,
        generator: Generator,
        role: str,
        source: str | Path,
        options: RetentionOptions | None = None,
        *,
        progress: bool = True,
    ) -> list[Score]:
        """Prepare and score one source."""
        options = options or RetentionOptions()
        prepared = self.prepare_all(generator, [source], options)
        return [s for one in prepared for s in self.score(generator, role, one, options, progress=progress)]


def check_at_least_one(**values: int | None) -> None:
    """Refuse numbers below 1; None is no number.

    Raises:
        UsageError: One is below 1; it is named.
    """
    for name, value in values.items():
        if value is not None and value < 1:
            raise UsageError(f"{name} must be at least 1, got {value}.")
