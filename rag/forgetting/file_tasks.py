"""The retention tasks that are read from files; each item gets one score, whichever model it is.

| kind | metric | value of an item |
|---|---|---|
| answers | exact_match | 1 if the greedy reply is right (`rag.forgetting.retention_items.AnsweredPrompt.is_right`) |
| pairs | accuracy | 1 if log p(good) > log p(bad); a tie is 0 |
| text | word_perplexity, byte_perplexity, bits_per_byte | -log p of the document, over its words or bytes |
| drift | kl_drift | KL(base or tuned) per token of the prompt, nats |
| | total_variation | half the L1 distance of the two distributions, per token: 0 to 1 |
| | top1_agreement | share of tokens at which both have the same most probable next token |

Words are separated by white space, or are the characters of a text in a script without spaces
(`indexes.word_segmentation.word_count`), and bytes are those of UTF-8. Neither depends on the tokenizer, so that models
with different ones can be compared, which a perplexity per token does not allow.

Legend: N token positions, C of them at a time, H hidden size, V vocabulary.
"""

import logging
import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor
from tqdm.auto import tqdm

from generator.adapters import BASE
from generator.generator import Generator
from generator.likelihood import (
    Continuation,
    Likelihood,
    continuation_likelihoods,
    prefix_id,
    rolling_windows,
)
from generator.log_probs import tokens_at_a_time
from generator.padding import pad_right
from generator.prompts import encode_document
from indexes.batching import token_budget_batches
from indexes.errors import DataError
from indexes.word_segmentation import word_count
from rag.forgetting.retention_items import (
    AnsweredPrompt,
    Item,
    ItemType,
    Pair,
    Prompt,
    read_answered_prompts,
    read_pairs,
    read_prompts,
    read_texts,
    task_name,
)
from rag.forgetting.retention_task import RetentionOptions, RetentionTask, Score, check_at_least_one

logger = logging.getLogger(__name__)

Encoded = TypeVar("Encoded")
# The activations of this many tokens fit into a core's cache: a fifth faster on the tiny base than four times as many.
_CPU_TOKENS = 4096


@dataclass(frozen=True)
class DriftValues:
    """The distance of a model from its base model on the tokens of one prompt; means over positions."""

    kl: float
    """KL(base || tuned), nats."""
    total_variation: float
    top1_agreement: float


@dataclass(frozen=True)
class PreparedFile(Generic[ItemType]):
    """The items of a file that fit a model's context, tokenised."""

    task: str
    items: list[Item[ItemType]]
    encoded: list[Any]
    """One for each item; the class that prepared it knows of what type."""

    def mean(
        self, metric: str, values: Sequence[float], *, higher_is_better: bool = True, is_distance: bool = False
    ) -> Score:
        """A metric that is the mean of one value per item."""
        return self.ratio(
            metric, values, [1.0] * len(values), higher_is_better=higher_is_better, is_distance=is_distance
        )

    def ratio(
        self,
        metric: str,
        numerators: Sequence[float],
        denominators: Sequence[float],
        *,
        higher_is_better: bool,
        is_exponential: bool = False,
        is_distance: bool = False,
    ) -> Score:
        """A metric that is a ratio of two sums over items, or its exponential."""
        return Score(
            task=self.task,
            metric=metric,
            higher_is_better=higher_is_better,
            is_exponential=is_exponential,
            is_distance=is_distance,
            items=tuple(item.id for item in self.items),
            groups=tuple(item.groups for item in self.items),
            numerators=tuple(numerators),
            denominators=tuple(denominators),
        )


@dataclass(frozen=True)
class FileTask(RetentionTask, Generic[ItemType]):
    """A retention task whose sources are files; a subclass says how a file is read and how an item is encoded."""

    @abstractmethod
    def read(self, file: str | Path) -> list[Item[ItemType]]:
        """The items of a file.

        Raises:
            DataError: The file is broken.
        """

    @abstractmethod
    def encode(self, generator: Generator, item: Item[ItemType], options: RetentionOptions) -> Any:
        """The tokens of an item.

        Raises:
            DataError: It does not fit the model's context.
        """

    def prepare(self, generator: Generator, source: str | Path, options: RetentionOptions) -> PreparedFile[ItemType]:
        """Read a file and encode its items; see `RetentionTask.prepare`."""

        def encode(item: Item[ItemType]) -> Any:
            return self.encode(generator, item, options)

        items, encoded = _that_fit(self.read(source), encode, source, options.on_error)
        return PreparedFile(task_name(source), items, encoded)


@dataclass(frozen=True)
class AnsweredPrompts(FileTask[AnsweredPrompt]):
    """Prompts with right replies, each asked as one chat turn and answered greedily: exact_match."""

    kind = "answers"
    sources = "JSONL of prompts with answers"

    def read(self, file: str | Path) -> list[Item[AnsweredPrompt]]:
        """See `read_answered_prompts`."""
        return read_answered_prompts(file)

    def encode(self, generator: Generator, item: Item[AnsweredPrompt], options: RetentionOptions) -> list[int]:
        """The chat turn; the context must have room for the reply."""
        return _chat_ids(generator, item, item.content.prompt, reserve=options.max_new_tokens)

    def score(
        self,
        generator: Generator,
        role: str,
        prepared: PreparedFile[AnsweredPrompt],
        options: RetentionOptions,
        *,
        progress: bool = True,
    ) -> list[Score]:
        """See `RetentionTask.score`."""
        config = replace(generator.config, max_new_tokens=options.max_new_tokens, temperature=0.0)
        greedy = Generator(generator.language_model, config=config, max_tokens_per_batch=generator.max_tokens_per_batch)
        prompts = prepared.encoded
        lengths = [len(prompt) + options.max_new_tokens for prompt in prompts]
        replies = [""] * len(prompts)
        for batch in _batches(lengths, generator, f"{prepared.task}: replies", progress):
            for i, text in zip(batch, greedy.continuations([prompts[i] for i in batch], role=role), strict=True):
                replies[i] = text
        right = [float(item.content.is_right(reply)) for item, reply in zip(prepared.items, replies, strict=True)]
        return [prepared.mean("exact_match", right)]


@dataclass(frozen=True)
class MinimalPairs(FileTask[Pair]):
    """Pairs of sentences: accuracy of giving the grammatical one the higher probability (BLiMP, arXiv 1912.00582)."""

    kind = "pairs"
    sources = "JSONL of minimal pairs, as BLiMP's"

    def read(self, file: str | Path) -> list[Item[Pair]]:
        """See `read_pairs`."""
        return read_pairs(file)

    def encode(self, generator: Generator, item: Item[Pair], options: RetentionOptions) -> dict[str, Continuation]:
        """Both sentences after the beginning of a sequence, by their text."""
        model = generator.language_model
        prefix = prefix_id(model.tokenizer)
        texts = (item.content.good, item.content.bad)
        sentences = {text: Continuation([prefix], _plain_ids(generator, text, item.where)) for text in texts}
        for text, sentence in sentences.items():
            if len(sentence) > model.context_length:
                raise DataError(
                    f"{item.where}: a sentence must fit into {model.context_length} tokens; {text[:60]!r} has "
                    f"{len(sentence)}. Shorten it, or leave it out (--on_error skip)."
                )
        return sentences

    def score(
        self,
        generator: Generator,
        role: str,
        prepared: PreparedFile[Pair],
        options: RetentionOptions,
        *,
        progress: bool = True,
    ) -> list[Score]:
        """See `RetentionTask.score`."""
        sentences = {text: one for of_item in prepared.encoded for text, one in of_item.items()}
        texts = sorted(sentences)
        encoded = [sentences[text] for text in texts]
        found = likelihoods(generator, role, encoded, f"{prepared.task}: pairs", progress)
        log_p = {text: likelihood.log_prob for text, likelihood in zip(texts, found, strict=True)}
        right = [float(log_p[item.content.good] > log_p[item.content.bad]) for item in prepared.items]
        return [prepared.mean("accuracy", right)]


@dataclass(frozen=True)
class PlainText(FileTask[str]):
    """Documents: perplexity per word and per byte, and bits per byte; each token is scored once."""

    kind = "text"
    sources = "plain text: JSONL with text, or .txt"

    window: int | None = None
    """Tokens of context in which text is read; None: the context length of the model."""

    def __post_init__(self) -> None:
        check_at_least_one(text_window=self.window)

    def read(self, file: str | Path) -> list[Item[str]]:
        """See `read_texts`."""
        return read_texts(file)

    def encode(self, generator: Generator, item: Item[str], options: RetentionOptions) -> None:
        """Nothing: a text of any length is read in windows."""

    def score(
        self,
        generator: Generator,
        role: str,
        prepared: PreparedFile[str],
        options: RetentionOptions,
        *,
        progress: bool = True,
    ) -> list[Score]:
        """See `RetentionTask.score`."""
        texts = [item.content for item in prepared.items]
        nats = text_nats(
            generator,
            role,
            texts,
            [item.where for item in prepared.items],
            window=self.window,
            title=f"{prepared.task}: text",
            progress=progress,
        )
        words = [float(word_count(text)) for text in texts]
        sizes = [float(len(text.encode())) for text in texts]
        bits = [value / math.log(2) for value in nats]
        return [
            prepared.ratio("word_perplexity", nats, words, higher_is_better=False, is_exponential=True),
            prepared.ratio("byte_perplexity", nats, sizes, higher_is_better=False, is_exponential=True),
            prepared.ratio("bits_per_byte", bits, sizes, higher_is_better=False),
        ]


@dataclass(frozen=True)
class Drift(FileTask[Prompt]):
    """Distance from the base model on the tokens of prompts (chat turns) or of plain text (its first window)."""

    kind = "drift"
    sources = "prompts on which the distance from the base model is measured"

    def read(self, file: str | Path) -> list[Item[Prompt]]:
        """See `read_prompts`."""
        return read_prompts(file)

    def encode(self, generator: Generator, item: Item[Prompt], options: RetentionOptions) -> list[int]:
        """A chat turn, which must fit; or text, truncated to the context."""
        if item.content.is_chat:
            return _chat_ids(generator, item, item.content.text)
        model = generator.language_model
        ids = [prefix_id(model.tokenizer), *_plain_ids(generator, item.content.text, item.where)]
        return ids[: model.context_length]

    def score(
        self,
        generator: Generator,
        role: str,
        prepared: PreparedFile[Prompt],
        options: RetentionOptions,
        *,
        progress: bool = True,
    ) -> list[Score]:
        """See `RetentionTask.score`."""
        found = drifts(generator, role, prepared.encoded, title=f"{prepared.task}: drift", progress=progress)
        return [
            prepared.mean("kl_drift", [d.kl for d in found], higher_is_better=False, is_distance=True),
            prepared.mean(
                "total_variation", [d.total_variation for d in found], higher_is_better=False, is_distance=True
            ),
            prepared.mean("top1_agreement", [d.top1_agreement for d in found], is_distance=True),
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
) -> list[DriftValues]:
    """Distance between the next-token distributions of the base and of `role` at every position of each prompt."""
    model = generator.language_model
    found = [DriftValues(0.0, 0.0, 1.0)] * len(prompts)
    for batch in _batches([len(prompt) for prompt in prompts], generator, title, progress):
        input_ids_BT, lengths_B = pad_right([prompts[i] for i in batch], model.end_of_answer_id, model.device)
        seen_BT = torch.arange(input_ids_BT.shape[1], device=model.device) < lengths_B[:, None]
        with model.use(BASE):
            base_NH = model.hidden(input_ids_BT, None)[seen_BT]
        with model.use(role):
            tuned_NH = base_NH if role == BASE else model.hidden(input_ids_BT, None)[seen_BT]
        distances_N3 = _distances(base_NH, tuned_NH, generator)
        for i, part in zip(batch, distances_N3.split(lengths_B.tolist()), strict=True):
            found[i] = DriftValues(*part.mean(0).tolist())
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


# -- items -------------------------------------------------------------------------------------------------------


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
        logger.warning("Left out %d of %d records of %s. The first: %s", len(errors), len(items), file, errors[0])
    return kept, encoded


def _plain_ids(generator: Generator, text: str, where: str) -> list[int]:
    ids = encode_document(generator.language_model.tokenizer, text)
    if not ids:
        raise DataError(f"{where}: a text must have at least one token; {text[:60]!r} has none. Leave it out.")
    return ids


def _chat_ids(
    generator: Generator, item: Item[AnsweredPrompt] | Item[Prompt], text: str, *, reserve: int = 0
) -> list[int]:
    model = generator.language_model
    ids = model.chat.encode(model.chat.escape_special_tokens(text))
    if (room := model.context_length - reserve) < len(ids):
        raise DataError(
            f"{item.where}: a prompt must leave {reserve} of the model's {model.context_length} tokens free for the "
            f"reply; it takes {len(ids)}, and {max(room, 0)} are there. Shorten it, allow fewer new tokens, or leave "
            "it out (--on_error skip)."
        )
    return ids
