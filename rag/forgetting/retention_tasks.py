"""`RETENTION_TASKS`, the registry of retention tasks by kind, and `RetentionTasks`, what to measure; torch-free.

    tasks = RetentionTasks(pairs=["blimp.jsonl.gz"], text=["wikitext2_test.jsonl.gz"], max_new_tokens=64)

Keywords are the kinds, with their sources, and the options of a kind with the kind as prefix (`text_window`). The same
names are the options of `rag forgetting` and the keys of `retention` in a sweep.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, get_type_hints

from indexes.errors import UsageError
from indexes.registry import Registry

if TYPE_CHECKING:
    from rag.forgetting.retention_task import RetentionOptions, RetentionTask

RETENTION_TASKS: "Registry[type[RetentionTask]]" = Registry(
    "retention task",
    builtin={
        "answers": "rag.forgetting.file_tasks:AnsweredPrompts",
        "pairs": "rag.forgetting.file_tasks:MinimalPairs",
        "text": "rag.forgetting.file_tasks:PlainText",
        "drift": "rag.forgetting.file_tasks:Drift",
        "harness": "rag.forgetting.lm_eval_adapter:HarnessTasks",
    },
)


class TaskOption(NamedTuple):
    """A keyword of `RetentionTasks`: the sources of a kind, or an option of it."""

    name: str
    kind: str
    type: Any
    """Of one source, or of the option."""
    help: str
    field: str | None
    """The field of the task's class; None for its sources."""


# What the classes say, here because `--help` must not import them (a test compares both).
_BUILTIN_OPTIONS = (
    TaskOption("answers", "answers", str, "JSONL of prompts with answers", None),
    TaskOption("pairs", "pairs", str, "JSONL of minimal pairs, as BLiMP's", None),
    TaskOption("text", "text", str, "plain text: JSONL with text, or .txt", None),
    TaskOption("text_window", "text", int | None, "option window of text", "window"),
    TaskOption("drift", "drift", str, "prompts on which the distance from the base model is measured", None),
    TaskOption("harness", "harness", str, "tasks of lm-evaluation-harness, by name", None),
    TaskOption("harness_path", "harness", str | None, "option path of harness", "path"),
    TaskOption("harness_limit", "harness", int | None, "option limit of harness", "limit"),
    TaskOption("harness_chat", "harness", bool, "option chat of harness", "chat"),
)


def task_options() -> list[TaskOption]:
    """The keywords of all kinds; built-in ones are listed without importing them."""
    builtin = {option.kind for option in _BUILTIN_OPTIONS}
    registered = [kind for kind in RETENTION_TASKS if kind not in builtin]
    return [*_BUILTIN_OPTIONS, *(option for kind in registered for option in options_of(kind))]


def options_of(kind: str) -> list[TaskOption]:
    """The keywords of one kind, from its class."""
    task = RETENTION_TASKS.get(kind)
    hints = get_type_hints(task)
    found = [TaskOption(kind, kind, str, task.sources, None)]
    return found + [
        TaskOption(f"{kind}_{f.name}", kind, hints[f.name], f"option {f.name} of {kind}", f.name) for f in fields(task)
    ]


class RetentionTasks:
    """Which retention tasks to measure, with their options.

    Args:
        max_new_tokens: Tokens that a reply may have.
        on_error: A prompt or sentence that does not fit the model's context: "raise", or "skip" it for all models.
        tasks: Sources by kind (files, or task names of lm-evaluation-harness), and options with the kind as prefix.

    Raises:
        UsageError: No source, an unknown keyword, two files of one name in a kind, or an option out of range.
    """

    def __init__(self, *, max_new_tokens: int = 256, on_error: str = "raise", **tasks: Any) -> None:
        known = {option.name: option for option in task_options()}
        for name in tasks:
            if name not in known:
                nearest = get_close_matches(name, known, n=1)
                hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
                raise UsageError(f"Retention tasks must be among {sorted(known)}, got {name!r}.{hint}")
        self.max_new_tokens, self.on_error = max_new_tokens, on_error
        given = {name: value for name, value in tasks.items() if value or (value == 0 and value is not False)}
        self.sources: dict[str, tuple[str, ...]] = {
            name: _sources(name, value) for name, value in given.items() if known[name].field is None
        }
        self._options: dict[str, dict[str, Any]] = {kind: {} for kind in self.sources}
        for name, value in given.items():
            if (option := known[name].field) is not None:
                self._options.setdefault(known[name].kind, {})[option] = value
        if not self.sources:
            kinds = [option.name for option in known.values() if option.field is None]
            raise UsageError(f"Forgetting is measured on retention tasks: give sources of at least one of {kinds}.")
        self.shared()  # these refuse wrong values
        list(self.tasks())

    def __repr__(self) -> str:
        return f"RetentionTasks({', '.join(f'{name}={value!r}' for name, value in self.to_dict().items())})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RetentionTasks) and self.to_dict() == other.to_dict()

    def to_dict(self) -> dict[str, Any]:
        """The keywords, as JSON has them."""
        options = {f"{kind}_{name}": v for kind, found in self._options.items() for name, v in found.items()}
        sources = {kind: list(found) for kind, found in self.sources.items()}
        return {**sources, **options, "max_new_tokens": self.max_new_tokens, "on_error": self.on_error}

    def shared(self) -> "RetentionOptions":
        """The options of all kinds.

        Raises:
            UsageError: One is out of range.
        """
        from rag.forgetting.retention_task import RetentionOptions

        return RetentionOptions(max_new_tokens=self.max_new_tokens, on_error=self.on_error)

    def tasks(self) -> "Iterator[tuple[RetentionTask, tuple[str, ...]]]":
        """Each kind that has sources, built-in kinds first, with its options set; and its sources."""
        for kind in (kind for kind in RETENTION_TASKS if kind in self.sources):
            yield RETENTION_TASKS.get(kind)(**self._options[kind]), self.sources[kind]


def _sources(kind: str, value: Any) -> tuple[str, ...]:
    from rag.forgetting.retention_items import task_name

    sources: Sequence[str | Path] = [value] if isinstance(value, str | Path) else value
    names = Counter(task_name(source) for source in sources)
    if twice := sorted(name for name, count in names.items() if count > 1):
        raise UsageError(
            f"Sources of one kind must have different names, which are the names of their tasks; {twice} are there "
            f"twice among {kind}. Rename one."
        )
    return tuple(map(str, sources))


def retention_tasks_of(settings: Mapping[str, Any]) -> RetentionTasks | None:
    """`RetentionTasks` of a mapping of its keywords, such as `retention` of a sweep; None for an empty one."""
    return RetentionTasks(**settings) if settings else None
