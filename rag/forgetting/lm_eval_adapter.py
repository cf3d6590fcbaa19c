"""The adapter of lm-evaluation-harness: IFEval, MMLU, GSM8K and hundreds of other tasks, by their names.

The harness (github.com/EleutherAI/lm-evaluation-harness; `pip install "dro-rag[harness]"`) defines tasks, prompts and
metrics; `HarnessModel` answers its three kinds of request. Base and tuned model are the same weights with the adapters
off and on, so that every difference between two results was learned.

Data sets come from the Hugging Face Hub unless a task file says otherwise; `--harness_path` names a folder with further
task files (YAML), which may read local JSONL and then need no network.
"""

import contextlib
import hashlib
import math
import os
import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import datasets
import numpy as np
import torch
from tqdm.auto import tqdm

from generator.generator import Generator
from generator.language_model import LanguageModel
from generator.likelihood import Continuation, prefix_id, rolling_windows
from generator.prompts import encode_document
from indexes.batching import token_budget_batches
from indexes.errors import DataError, MismatchError, ResourceError, UsageError
from rag.evaluation.ratios import Ratio
from rag.forgetting.file_tasks import likelihoods
from rag.forgetting.retention_task import RetentionOptions, RetentionTask, Score, check_at_least_one

try:
    from lm_eval.api.model import TemplateLM
except ImportError as error:  # nothing else in this package needs it
    raise ResourceError(
        f'Tasks of lm-evaluation-harness need it installed: pip install "dro-rag[harness]" ({error}). Files of '
        "retention tasks need nothing further."
    ) from error

# Resamples behind the standard error of the metrics that have no closed form.
_RESAMPLES = 1000
# Smaller differences between the harness's value and ours are rounding.
_CLOSE = 1e-6


class _PreparedTasks(NamedTuple):
    names: list[str]
    manager: Any
    """lm-evaluation-harness's TaskManager, which knows them."""


@dataclass(frozen=True)
class HarnessTasks(RetentionTask):
    """Tasks of lm-evaluation-harness: every metric of each, with the documents behind it where they are known."""

    kind = "harness"
    sources = "tasks of lm-evaluation-harness, by name"

    path: str | None = None
    """A folder with further task files (YAML)."""
    limit: int | None = None
    """Only the first so many documents of each task."""
    chat: bool = False
    """Write the prompts through the model's chat template."""

    def __post_init__(self) -> None:
        check_at_least_one(harness_limit=self.limit)

    def prepare(self, generator: Generator, source: str | Path, options: RetentionOptions) -> _PreparedTasks:
        """Look up a task; see `prepare_all`."""
        return self.prepare_all(generator, [source], options)[0]

    def prepare_all(
        self, generator: Generator, sources: Sequence[str | Path], options: RetentionOptions
    ) -> list[_PreparedTasks]:
        """Look up the tasks, all together: reading the harness's thousands of task files takes seconds.

        Raises:
            DataError: `path` is no folder.
            UsageError: There is no such task.
        """
        names = [str(source) for source in sources]
        return [_PreparedTasks(names, _task_manager(names, self.path))]

    def score(
        self,
        generator: Generator,
        role: str,
        prepared: _PreparedTasks,
        options: RetentionOptions,
        *,
        progress: bool = True,
    ) -> list[Score]:
        """See `RetentionTask.score`.

        Raises:
            DataError: A task whose data cannot be loaded.
            MismatchError: A task that asks for more than a language model can do, or breaks.
        """
        from lm_eval import simple_evaluate

        model = HarnessModel(generator, role, max_new_tokens=options.max_new_tokens, progress=progress)
        with _undisturbed(progress):
            try:
                results = simple_evaluate(
                    model=model,
                    tasks=prepared.names,
                    task_manager=prepared.manager,
                    limit=self.limit,
                    apply_chat_template=self.chat,
                    bootstrap_iters=_RESAMPLES,
                    log_samples=True,
                )
            except (OSError, ConnectionError) as error:
                raise DataError(
                    f"The data of {prepared.names} must be on the Hub or where the task file says; they are not: "
                    f"{str(error).splitlines()[0] if str(error) else type(error).__name__}. Go online once, or name a "
                    "local task with harness_path."
                ) from error
        return harness_scores(dict(results or {}))


def _task_manager(names: Sequence[str], folder: str | None) -> Any:
    """The tasks of the folder first, and those of the harness only where they are needed."""
    from lm_eval.tasks import TaskManager

    if folder is not None and not Path(folder).is_dir():
        raise DataError(f"harness_path must be a folder with task files (YAML); {folder} is none. Check the path.")
    manager = TaskManager(include_path=folder, include_defaults=False) if folder else None
    if manager is None or not set(names) <= set(manager.all_tasks):
        manager = TaskManager(include_path=folder)
    if unknown := [task for task in names if not manager.match_tasks([task])]:
        raise UsageError(
            f"lm-evaluation-harness must know every task; it does not know {unknown}. `lm_eval ls tasks` lists its "
            "own; harness_path adds a folder with others."
        )
    return manager


@contextlib.contextmanager
def _undisturbed(progress: bool) -> Iterator[None]:
    """The harness prints, starts processes and seeds every random generator; keep all of it from the caller."""
    from lm_eval.api import task

    states = random.getstate(), np.random.get_state()
    single = os.environ.get("DISABLE_MULTIPROC")
    os.environ["DISABLE_MULTIPROC"] = "1"
    try:
        bars = mock.patch.object(task, "tqdm", partial(tqdm, disable=not progress, leave=False))
        with torch.random.fork_rng(), contextlib.redirect_stdout(sys.stderr), bars, _dataset_bars(progress):
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        if single is None:
            os.environ.pop("DISABLE_MULTIPROC", None)
        else:
            os.environ["DISABLE_MULTIPROC"] = single


@contextlib.contextmanager
def _dataset_bars(progress: bool) -> Iterator[None]:
    hidden = datasets.are_progress_bars_disabled()
    if not progress:
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        if not hidden:
            datasets.enable_progress_bars()


# -- the model ---------------------------------------------------------------------------------------------------


class HarnessModel(TemplateLM):  # type: ignore[misc]
    """A `LanguageModel` in one role, as a model of the harness.

    Args:
        generator: Whose language model it is.
        role: "base" (adapters off), "generator" or "selector".
        max_new_tokens: Length of a reply where the task does not set one.
        progress: Show progress bars.
    """

    def __init__(self, generator: Generator, role: str, *, max_new_tokens: int = 256, progress: bool = True) -> None:
        super().__init__()
        self.generator, self.role, self.max_new_tokens, self.progress = generator, role, max_new_tokens, progress
        self.model: LanguageModel = generator.language_model
        self.tokenizer = self.model.tokenizer

    @property
    def eot_token_id(self) -> int:
        """End of a text."""
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """The token before the first one."""
        return prefix_id(self.tokenizer)

    @property
    def tokenizer_name(self) -> str:
        """The name of caches, which are not used."""
        return self.model.name

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The conversation as the model's chat template writes it, with the settings that its prompts have."""
        if self.tokenizer.chat_template is None:
            raise UsageError("harness_chat needs a chat template; this tokenizer has none. Leave harness_chat out.")
        messages = self.model.chat.with_system_message(chat_history)
        return (
            self.model.chat.open_reply(messages)
            if add_generation_prompt
            else self.model.chat.continue_messages(messages)
        )

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Token ids with the tokenizer's opening special tokens and without closing ones, as a reply follows."""
        opened = self.tokenizer.bos_token is not None and string.startswith(self.tokenizer.bos_token)
        if add_special_tokens is False or (add_special_tokens is None and opened):
            return encode_document(self.tokenizer, string)
        return self.model.chat.encode_open(string)

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Log-probability of each reply after its context, and whether it is the greedy one."""
        return list(super().loglikelihood(requests, disable_tqdm=True))  # `likelihoods` shows the progress

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        encoded = [self._fitted(context, target) for _, context, target in requests]
        found = likelihoods(self.generator, self.role, encoded, "harness: likelihoods", self.progress)
        return [(one.log_prob, one.is_greedy) for one in found]

    def _fitted(self, context_ids: list[int], target_ids: list[int]) -> Continuation:
        """A context that is too long is truncated on the left."""
        room = self.model.context_length + 1 - len(target_ids)
        if room < 1 or not target_ids:
            raise MismatchError(
                f"A reply to score must have 1 to {self.model.context_length} tokens; one has {len(target_ids)}. "
                "Choose another task, or a model with a longer context."
            )
        return Continuation(context_ids[-room:], target_ids)

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-probability of whole texts, each token once."""
        encoded, owners = [], []
        for i, request in enumerate(requests):
            ids = self.tok_encode(request.args[0], add_special_tokens=False)
            windows = rolling_windows(ids, self.prefix_token_id, self.model.context_length)
            encoded += windows
            owners += [i] * len(windows)
        parts: list[list[float]] = [[] for _ in requests]
        found = likelihoods(self.generator, self.role, encoded, "harness: texts", self.progress)
        for owner, one in zip(owners, found, strict=True):
            parts[owner].append(one.log_prob)
        return [math.fsum(part) for part in parts]

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Greedy replies, each up to the first of its stop texts."""
        replies = [""] * len(requests)
        kinds: dict[tuple[int, tuple[str, ...]], list[int]] = {}
        for i, request in enumerate(requests):
            kinds.setdefault(self._generation(request.args[1]), []).append(i)
        with tqdm(total=len(requests), desc="harness: replies", disable=not self.progress, leave=False) as bar:
            for (max_new_tokens, stop), members in kinds.items():
                found = self._replies([requests[i].args[0] for i in members], max_new_tokens, stop, bar)
                for i, text in zip(members, found, strict=True):
                    replies[i] = text
        return replies

    def _generation(self, settings: Mapping[str, Any]) -> tuple[int, tuple[str, ...]]:
        """Length and stop texts of a request; decoding is always greedy."""
        if settings.get("do_sample") and float(settings.get("temperature", 1.0)) > 0:
            raise MismatchError(
                f"Tasks are decoded greedily to be reproducible; {dict(settings)} asks for sampling. Choose a task "
                "without it."
            )
        names = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
        allowed = next((int(settings[name]) for name in names if settings.get(name)), self.max_new_tokens)
        until = settings.get("until") or []
        return allowed, tuple(text for text in ([until] if isinstance(until, str) else until) if text)

    def _replies(self, contexts: Sequence[str], max_new_tokens: int, stop: tuple[str, ...], bar: Any) -> list[str]:
        room = self.model.context_length - max_new_tokens
        if room < 1:
            raise MismatchError(
                f"A reply of {max_new_tokens} tokens must leave room for its prompt; the model reads "
                f"{self.model.context_length}. Take another task, or a model with a longer context."
            )
        config = replace(self.generator.config, max_new_tokens=max_new_tokens, temperature=0.0)
        greedy = Generator(self.model, config=config, max_tokens_per_batch=self.generator.max_tokens_per_batch)
        prompts = [self.tok_encode(context)[-room:] or [self.prefix_token_id] for context in contexts]
        found = [""] * len(prompts)
        for batch in token_budget_batches([len(p) + max_new_tokens for p in prompts], greedy.max_tokens_per_batch):
            texts = greedy.continuations([prompts[i] for i in batch], role=self.role, stop=stop)
            for i, text in zip(batch, texts, strict=True):
                found[i] = text
            bar.update(len(batch))
        return found


# -- results -----------------------------------------------------------------------------------------------------


def harness_scores(results: Mapping[str, Any]) -> list[Score]:
    """The results of `simple_evaluate` as scores.

    The value is the harness's. Where it can be computed again from the logged values of the documents (a mean, or a
    perplexity), these are kept: intervals resample documents, and two models are compared document by document.
    Elsewhere (BLEU, Matthews' correlation, groups that average over tasks) interval and comparison come from the
    harness's standard errors.
    """
    scores = []
    for task in sorted(results["results"]):
        values = results["results"][task]
        for key in sorted(key for key in values if _is_metric(key, values[key])):
            metric, filter_ = key.split(",", 1)
            stderr = values.get(f"{metric}_stderr,{filter_}")
            scores.append(
                _score(
                    results,
                    task,
                    metric,
                    filter_,
                    float(values[key]),
                    float(stderr) if isinstance(stderr, int | float) and math.isfinite(stderr) else None,
                )
            )
    return scores


def _is_metric(key: str, value: Any) -> bool:
    return "," in key and "_stderr," not in key and isinstance(value, int | float)


def _score(
    results: Mapping[str, Any], task: str, metric: str, filter_: str, value: float, stderr: float | None
) -> Score:
    higher = results["higher_is_better"].get(task, {}).get(metric)
    score = Score(
        task=task,
        metric=metric if filter_ == "none" else f"{metric} ({filter_})",
        higher_is_better=True if higher is None else bool(higher),
        reported=value if math.isfinite(value) else None,
        stderr=stderr,
    )
    documents = _documents(results, task, metric, filter_)
    for ratio in _ratios([document[2] for document in documents]):
        if math.isclose(ratio.value, value, rel_tol=_CLOSE, abs_tol=_CLOSE):
            return replace(
                score,
                is_exponential=ratio.is_exponential,
                items=tuple(document[0] for document in documents),
                groups=tuple(document[1] for document in documents),
                numerators=tuple(ratio.numerators),
                denominators=tuple(ratio.denominators),
            )
    return replace(score, items=tuple(document[0] for document in documents))


def _documents(
    results: Mapping[str, Any], task: str, metric: str, filter_: str
) -> list[tuple[str, tuple[str, ...], Any]]:
    """Id, groups and value of every document of a task, or of the tasks of a group, sorted by id."""
    leaves = _leaves(results, task)
    found = []
    for leaf in leaves:
        for sample in results["samples"][leaf]:
            if sample["filter"] == filter_ and metric in sample:
                # A document may occur twice; its position distinguishes the two.
                name = f"{sample['doc_hash']}{sample['doc_id']}"
                id_ = f"{leaf}:{hashlib.sha256(name.encode()).hexdigest()[:16]}"
                found.append((id_, () if leaf == task else (leaf,), sample[metric]))
    return sorted(found, key=lambda document: document[0])


def _leaves(results: Mapping[str, Any], task: str) -> list[str]:
    """The task itself, or the tasks of a group, of its subgroups and so on."""
    if task in results["samples"]:
        return [task]
    children = results.get("group_subtasks", {}).get(task, [])
    return sorted({leaf for child in children for leaf in _leaves(results, child)})


def _ratios(values: Sequence[Any]) -> Iterator[Ratio]:
    """Ratios that a metric may be of the values of its documents."""
    if values and all(isinstance(v, bool | int | float | np.number) for v in values):
        yield Ratio([float(v) for v in values], [1.0] * len(values))
    if values and all(isinstance(v, tuple | list) and len(v) == 2 for v in values):
        nats, sizes = [-float(v[0]) for v in values], [float(v[1]) for v in values]
        yield Ratio(nats, sizes, is_exponential=True)
        yield Ratio([value / math.log(2) for value in nats], sizes)
