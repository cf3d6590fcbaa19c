"""What one model under one role can do: one score per item of a probe file, whichever model it is.

| kind | metric | an item's part |
|---|---|---|
| answers | exact_match | 1 when the greedy reply is right (`rag.forgetting.retention_tasks.Task.is_right`) |
| pairs | accuracy | 1 when log p(good) > log p(bad); a tie is 0 |
| text | word_perplexity, byte_perplexity, bits_per_byte | -log p of the document, over its words or bytes |
| drift | kl_drift | KL(base or tuned) per token of the prompt, nats |
| | total_variation | half the L1 distance of the two distributions, per token: 0 to 1 |
| | top1_agreement | share of tokens after which both find the same token the most probable |

Words are what stands between white space, or the characters of a text in a script without any
(`indexes.word_segmentation.word_count`), and bytes are those of UTF-8, so neither depends on the tokenizer: models with
different ones can be compared, which a perplexity per token does not allow.

Legend: N token positions, C of them at a time, H hidden size, V vocabulary.
"""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor
from tqdm.auto import tqdm

from generator.generator import Generator
from generator.language_model import BASE
from generator.likelihood import (
    Continuation,
    Likelihood,
    continuation_likelihoods,
    prefix_id,
    rolling_windows,
    tokens_at_a_time,
)
from generator.padding import pad_right
from generator.prompts import encode_document
from indexes.batching import token_budget_batches
from indexes.errors import DataError
from indexes.word_segmentation import word_count
from rag.evaluation.ratios import Ratio
from rag.forgetting.retention_tasks import (
    Item,
    ItemType,
    Pair,
    Probes,
    Prompt,
    Task,
    read_pairs,
    read_prompts,
    read_tasks,
    read_texts,
    task_name,
)

logger = logging.getLogger(__name__)

Encoded = TypeVar("Encoded")
# A core's cache holds the activations of so many tokens: a fifth faster on the tiny base than four times as many.
_CPU_TOKENS = 4096


@dataclass(frozen=True, kw_only=True)
class Score:
    """One metric of one task: an item is a row of the probe file, sorted by its id."""

    task: str
    metric: str
    higher_is_better: bool
    is_exponential: bool = False
    """Whether the value is exp(sum of numerators / sum of denominators): a perplexity."""
    items: tuple[str, ...] = ()
    """Their ids, the same for every model."""
    groups: tuple[tuple[str, ...], ...] = ()
    """Of each item."""
    numerators: tuple[float, ...] = ()
    denominators: tuple[float, ...] = ()
    reported: float | None = None
    """The value as somebody else computed it (lm-evaluation-harness) where it is no ratio of sums over items."""
    stderr: float | None = None
    """Its standard error, if that was reported too."""

    def ratio(self, group: str | None = None) -> Ratio:
        """Of all items, or of those in a group."""
        kept = [i for i, groups in enumerate(self.groups) if group is None or group in groups]
        return Ratio([self.numerators[i] for i in kept], [self.denominators[i] for i in kept], self.is_exponential)


@dataclass(frozen=True)
class Drift:
    """How far a model moved from its base on the tokens of one prompt; means over its positions."""

    kl: float
    """KL(base || tuned), nats."""
    total_variation: float
    top1_agreement: float


def check_lengths(generator: Generator, probes: Probes) -> None:
    """Find what does not fit the model's context, before hours of measuring.

    Raises:
        DataError: An item of a file that does not fit, unless they are left out; or none of a file that does.
    """
    for file in probes.answers:
        _tasks(generator, file, probes.max_new_tokens, probes.on_error)
    for file in probes.pairs:
        _pairs(generator, file, probes.on_error)
    for file in probes.drift:
        _prompts(generator, file, probes.on_error)


def measure_answers(
    generator: Generator,
    role: str,
    file: str | Path,
    *,
    max_new_tokens: int = 256,
    on_error: str = "raise",
    progress: bool = True,
) -> list[Score]:
    """Let `role` reply to every prompt of a file, greedily, as one chat turn.

    Args:
        generator: Whose model it is.
        role: Who replies.
        file: Prompts with answers.
        max_new_tokens: Of a reply.
        on_error: Of a prompt that does not fit the context: "raise", or "skip" it and count it.
        progress: Show a progress bar.

    Raises:
        DataError: As `rag.forgetting.retention_tasks.read_tasks`, or a prompt that does not fit the context.
    """
    items, prompts = _tasks(generator, file, max_new_tokens, on_error)
    model, config = generator.language_model, replace(generator.config, max_new_tokens=max_new_tokens, temperature=0.0)
    greedy = Generator(model, config=config, max_tokens_per_batch=generator.max_tokens_per_batch)
    lengths = [len(prompt) + max_new_tokens for prompt in prompts]
    replies = [""] * len(items)
    for batch in _batches(lengths, generator, f"{task_name(file)}: replies", progress):
        for i, text in zip(batch, greedy.continuations([prompts[i] for i in batch], role=role), strict=True):
            replies[i] = text
    right = [float(item.content.is_right(reply)) for item, reply in zip(items, replies, strict=True)]
    return [_mean(file, "exact_match", items, right)]


def measure_pairs(
    generator: Generator, role: str, file: str | Path, *, on_error: str = "raise", progress: bool = True
) -> list[Score]:
    """Ask which of two sentences `role` finds more probable, whole sentences behind the beginning of a sequence.

    Raises:
        DataError: As `read_pairs`, or a sentence that does not fit the context; `on_error` as
            `measure_answers`.
    """
    items, encoded = _pairs(generator, file, on_error)
    rows = {text: row for of_item in encoded for text, row in of_item.items()}
    texts = sorted(rows)
    found = likelihoods(generator, role, [rows[text] for text in texts], f"{task_name(file)}: pairs", progress)
    log_p = {text: likelihood.log_prob for text, likelihood in zip(texts, found, strict=True)}
    right = [float(log_p[item.content.good] > log_p[item.content.bad]) for item in items]
    return [_mean(file, "accuracy", items, right)]


def measure_text(
    generator: Generator, role: str, file: str | Path, *, window: int | None = None, progress: bool = True
) -> list[Score]:
    """Perplexity of plain text per word and per byte, and bits per byte; each token is scored once.

    Args:
        generator: Whose model it is.
        role: Who reads.
        file: One document per row, or per paragraph of a .txt file.
        window: Tokens of context; None: as many as the model reads. No token is scored twice.
        progress: Show a progress bar.

    Raises:
        DataError: As `rag.forgetting.retention_tasks.read_texts`.
    """
    items = read_texts(file)
    nats = text_nats(
        generator,
        role,
        [item.content for item in items],
        [item.where for item in items],
        window=window,
        title=f"{task_name(file)}: text",
        progress=progress,
    )
    words = [float(word_count(item.content)) for item in items]
    sizes = [float(len(item.content.encode())) for item in items]
    bits = [value / math.log(2) for value in nats]
    return [
        _score(file, "word_perplexity", items, nats, words, higher_is_better=False, is_exponential=True),
        _score(file, "byte_perplexity", items, nats, sizes, higher_is_better=False, is_exponential=True),
        _score(file, "bits_per_byte", items, bits, sizes, higher_is_better=False),
    ]


def text_nats(
    generator: Generator,
    role: str,
    texts: Sequence[str],
    names: Sequence[str],
    *,
    window: int | None = None,
    title: str = "text",
    progress: bool = True,
) -> list[float]:
    """-log p of each text, nats, in rolling windows (`generator.likelihood.rolling_windows`)."""
    model = generator.language_model
    width = min(window or model.context_length, model.context_length)
    prefix = prefix_id(model.tokenizer)
    rows, owners = [], []
    for i, (text, name) in enumerate(zip(texts, names, strict=True)):
        windows = rolling_windows(_plain_ids(generator, text, name), prefix, width)
        rows += windows
        owners += [i] * len(windows)
    parts: list[list[float]] = [[] for _ in texts]
    for owner, found in zip(owners, likelihoods(generator, role, rows, title, progress), strict=True):
        parts[owner].append(-found.log_prob)
    return [math.fsum(part) for part in parts]


def measure_drift(
    generator: Generator, role: str, file: str | Path, *, on_error: str = "raise", progress: bool = True
) -> list[Score]:
    """How far `role` is from the base on the tokens of prompts (chat turns) or plain text (its first window).

    Raises:
        DataError: As `read_prompts`, or a prompt that does not fit the context; `on_error` as
            `measure_answers`.
    """
    items, prompts = _prompts(generator, file, on_error)
    found = drifts(generator, role, prompts, title=f"{task_name(file)}: drift", progress=progress)
    return [
        _mean(file, "kl_drift", items, [drift.kl for drift in found], higher_is_better=False),
        _mean(file, "total_variation", items, [drift.total_variation for drift in found], higher_is_better=False),
        _mean(file, "top1_agreement", items, [drift.top1_agreement for drift in found]),
    ]


# -- models ------------------------------------------------------------------------------------------------------


def likelihoods(
    generator: Generator, role: str, rows: Sequence[Continuation], title: str, progress: bool
) -> list[Likelihood]:
    """Of any number of continuations, in the order given."""
    found: list[Likelihood | None] = [None] * len(rows)
    with generator.language_model.use(role):
        for batch in _batches([len(row) for row in rows], generator, title, progress):
            read = continuation_likelihoods(generator.language_model, [rows[i] for i in batch])
            for i, likelihood in zip(batch, read, strict=True):
                found[i] = likelihood
    return [likelihood for likelihood in found if likelihood is not None]


@torch.inference_mode()
def drifts(
    generator: Generator,
    role: str,
    prompts: Sequence[list[int]],
    *,
    title: str = "drift",
    progress: bool = False,
) -> list[Drift]:
    """Distance between the next-token distributions of the base and of `role` at every position of each prompt."""
    model = generator.language_model
    found = [Drift(0.0, 0.0, 1.0)] * len(prompts)
    for batch in _batches([len(prompt) for prompt in prompts], generator, title, progress):
        input_ids_BT, lengths_B = pad_right([prompts[i] for i in batch], model.end_of_answer_id, model.device)
        seen_BT = torch.arange(input_ids_BT.shape[1], device=model.device) < lengths_B[:, None]
        with model.use(BASE):
            base_NH = model.hidden(input_ids_BT, None)[seen_BT]
        with model.use(role):
            tuned_NH = base_NH if role == BASE else model.hidden(input_ids_BT, None)[seen_BT]
        distances_N3 = _distances(base_NH, tuned_NH, generator)
        for i, part in zip(batch, distances_N3.split(lengths_B.tolist()), strict=True):
            found[i] = Drift(*part.mean(0).tolist())
    return found


def _distances(base_NH: Tensor, tuned_NH: Tensor, generator: Generator) -> Tensor:
    """KL(base || tuned), total variation and agreement of each position, float64 `[N, 3]` on the CPU."""
    head = generator.language_model.head
    size = tokens_at_a_time(head, base_NH)
    found = []
    for base_CH, tuned_CH in zip(base_NH.split(size), tuned_NH.split(size), strict=True):
        log_p_CV, log_q_CV = head(base_CH).float().log_softmax(-1), head(tuned_CH).float().log_softmax(-1)
        p_CV = log_p_CV.exp()
        kl_C = (p_CV * (log_p_CV - log_q_CV)).sum(-1)
        variation_C = (p_CV - log_q_CV.exp()).abs().sum(-1) / 2
        agrees_C = (log_p_CV.argmax(-1) == log_q_CV.argmax(-1)).float()
        found.append(torch.stack([kl_C, variation_C, agrees_C], -1).double().cpu())
    return torch.cat(found)


def _batches(lengths: Sequence[int], generator: Generator, title: str, progress: bool) -> Iterator[list[int]]:
    on_cpu = generator.language_model.device.type == "cpu"
    budget = min(generator.max_tokens_per_batch, _CPU_TOKENS) if on_cpu else generator.max_tokens_per_batch
    with tqdm(total=len(lengths), desc=title, disable=not progress, leave=False) as bar:
        for batch in token_budget_batches(lengths, budget):
            yield batch
            bar.update(len(batch))


# -- rows --------------------------------------------------------------------------------------------------------


def _tasks(
    generator: Generator, file: str | Path, reserve: int, on_error: str
) -> tuple[list[Item[Task]], list[list[int]]]:
    def encode(item: Item[Task]) -> list[int]:
        return _chat_ids(generator, item, item.content.prompt, reserve=reserve)

    return _that_fit(read_tasks(file), encode, file, on_error)


def _pairs(
    generator: Generator, file: str | Path, on_error: str
) -> tuple[list[Item[Pair]], list[dict[str, Continuation]]]:
    model = generator.language_model
    prefix = prefix_id(model.tokenizer)

    def encode(item: Item[Pair]) -> dict[str, Continuation]:
        texts = (item.content.good, item.content.bad)
        rows = {text: Continuation([prefix], _plain_ids(generator, text, item.where)) for text in texts}
        for text, row in rows.items():
            if len(row) > model.context_length:
                raise DataError(
                    f"{file}: a sentence must fit into {model.context_length} tokens; {text[:60]!r} ({item.where}) has "
                    f"{len(row)}. Cut it, or leave it out (--on_error skip)."
                )
        return rows

    return _that_fit(read_pairs(file), encode, file, on_error)


def _prompts(generator: Generator, file: str | Path, on_error: str) -> tuple[list[Item[Prompt]], list[list[int]]]:
    return _that_fit(read_prompts(file), lambda item: _read_ids(generator, item), file, on_error)


def _that_fit(
    items: Sequence[Item[ItemType]], encode: Callable[[Item[ItemType]], Encoded], file: str | Path, on_error: str
) -> tuple[list[Item[ItemType]], list[Encoded]]:
    """The items that fit the model's context, and their tokens."""
    kept, encoded, errors = [], [], []
    for item in items:
        try:
            encoded.append(encode(item))
            kept.append(item)
        except DataError as error:
            if on_error == "raise":
                raise
            errors.append(error)
    if errors and not kept:
        raise errors[0]
    if errors:
        logger.warning("Left out %d of %d rows of %s. The first: %s", len(errors), len(items), file, errors[0])
    return kept, encoded


def _plain_ids(generator: Generator, text: str, where: str) -> list[int]:
    ids = encode_document(generator.language_model.tokenizer, text)
    if not ids:
        raise DataError(f"{where}: a text must have at least one token; {text[:60]!r} has none. Leave it out.")
    return ids


def _chat_ids(generator: Generator, item: Item[Task] | Item[Prompt], text: str, *, reserve: int = 0) -> list[int]:
    model = generator.language_model
    ids = model.chat.encode(model.chat.escape_special_tokens(text))
    if (room := model.context_length - reserve) < len(ids):
        raise DataError(
            f"{item.where}: a prompt must leave {reserve} of the model's {model.context_length} tokens free for the "
            f"reply; it takes {len(ids)}, and {max(room, 0)} are there. Shorten it, allow fewer new tokens, or leave "
            "it out (--on_error skip)."
        )
    return ids


def _read_ids(generator: Generator, item: Item[Prompt]) -> list[int]:
    if item.content.is_chat:
        return _chat_ids(generator, item, item.content.text)
    model = generator.language_model
    ids = [prefix_id(model.tokenizer), *_plain_ids(generator, item.content.text, item.where)]
    return ids[: model.context_length]


def _mean(
    file: str | Path, metric: str, items: Sequence[Item], values: Sequence[float], *, higher_is_better: bool = True
) -> Score:
    return _score(file, metric, items, values, [1.0] * len(items), higher_is_better=higher_is_better)


def _score(
    file: str | Path,
    metric: str,
    items: Sequence[Item],
    numerators: Sequence[float],
    denominators: Sequence[float],
    *,
    higher_is_better: bool,
    is_exponential: bool = False,
) -> Score:
    return Score(
        task=task_name(file),
        metric=metric,
        higher_is_better=higher_is_better,
        is_exponential=is_exponential,
        items=tuple(item.id for item in items),
        groups=tuple(item.groups for item in items),
        numerators=tuple(numerators),
        denominators=tuple(denominators),
    )
