"""The encoder: questions and passages become vectors whose inner product is their similarity.

Vectors have unit length where the similarity is the cosine. Where it is the dot product (`similarity_fn_name` "dot" in
the model's config) their length is part of the similarity and is kept.

A text is tokenised once. Texts of similar length are then encoded together, so that little of a batch is padding, and a
batch holds as many tokens as suit the device.

Axes: B questions, N passages, W texts of a window, R texts of a batch, T tokens, d dimensions.
"""

import hashlib
import json
import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeAlias

import numpy as np
import torch
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from numpy.typing import NDArray
from safetensors import SafetensorError
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from tokenizers import Tokenizer
from torch import Tensor, nn
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from indexes.atomic_files import let_others_read_weights
from indexes.batching import token_budget_batches
from indexes.corpora.passage import Passage
from indexes.errors import DataError, ResourceError, UsageError
from indexes.named_models import nearest
from indexes.remote_code import code_refused, is_refusal, uses_remote_code
from indexes.tiny_encoder import encoder_path, is_portable_name

Vectors: TypeAlias = NDArray[np.float32]

COSINE, DOT = "cosine", "dot"
SIMILARITIES = (COSINE, DOT)
"""Similarities that an index searches by, as sentence-transformers names them."""

logger = logging.getLogger(__name__)

_DTYPES = {
    "mixed": torch.float32,
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
# Activations of a thousand tokens still lie in a CPU's cache; a GPU wants many more to be busy (docs/decisions.md).
_CPU_TOKENS = 1024
_GPU_TOKENS = 65_536
# Texts that are tokenised and sorted together, fewer when they may be very long: their ids are padded.
_WINDOW = 4096
_WINDOW_TOKENS = 2**21
_UNKNOWN_LENGTH = 512
# Features that `_cut` can cut; sentence-transformers encodes for models that read others.
_ROW_FEATURES = {"input_ids", "attention_mask", "token_type_ids"}
_TRANSFORMER_OUTPUTS = {"token_embeddings", "cls_token_embeddings", "sentence_embedding"}
# Names of the prompts in a model, in the order in which sentence-transformers looks them up.
_QUESTION_PROMPT_NAMES = ("query",)
_PASSAGE_PROMPT_NAMES = ("document", "passage", "corpus")
_LOAD_ERRORS = (
    OSError,
    ValueError,
    KeyError,
    RuntimeError,
    SafetensorError,
    HfHubHTTPError,
    HFValidationError,
)


@dataclass
class Truncation:
    """How much of some texts an encoder truncates, since they are longer than its limit."""

    passages: int = 0
    """Texts that were counted."""
    truncated: int = 0
    """Of these, those that are longer than the limit."""
    tokens: int = 0
    """Of all texts before truncation, with prompt and special tokens."""
    lost: int = 0
    """Tokens beyond the limit, which are in no vector."""

    def add(self, other: "Truncation | Mapping[str, int]") -> None:
        """Add the counts of other texts; a mapping has the names of the fields."""
        counts = vars(other) if isinstance(other, Truncation) else other
        for name in vars(self):
            setattr(self, name, getattr(self, name) + counts[name])

    def message(self, encoder: "Encoder", kind: str = "passage") -> str:
        """How much was truncated, as a share, and how to avoid it."""
        limit, room = encoder.max_length, encoder.position_limit
        cure = "Shorten them" if kind == "question" else f"Cut them into chunks (--chunk_tokens {limit}, or a Chunker)"
        if limit is not None and (room is None or room > limit):
            most = f", at most {room}" if room else ""
            cure += f", or let the encoder read more if it was made for that (--max_length{most})"
        return (
            f"{self.truncated:,} of {self.passages:,} {kind}s ({_percent(self.truncated, self.passages)}) are longer "
            f"than the {limit} tokens that the encoder reads and were truncated: {self.lost:,} of "
            f"{self.tokens:,} tokens ({_percent(self.lost, self.tokens)}) are in no vector. {cure}."
        )


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / max(whole, 1):.3g} %"


class EncodingBar:
    """A progress bar in texts, with tokens per second; it also counts what is truncated.

    Attributes:
        truncation: Of all texts that were encoded with this bar.
    """

    def __init__(self, total: int, unit: str, *, shown: bool) -> None:
        """Make a bar of `total` texts, each called a `unit`."""
        self._bar = tqdm(total=total, desc="encoding", unit=f" {unit}s", disable=not shown)
        self.truncation = Truncation()
        self._tokens = 0
        self._started = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def advance(self, texts: int, tokens: int) -> None:
        """Advance by `texts`; `tokens` is 0 when unknown."""
        self._tokens += tokens
        if self._tokens:
            rate = self._tokens / max(time.monotonic() - self._started, 1e-9)
            self._bar.set_postfix_str(f"{rate:,.0f} tokens/s", refresh=False)
        self._bar.update(texts)


class Encoder:
    """A sentence-transformers model with its two prompts made explicit.

    `model` is the wrapped model, for code that trains it. Encoding puts it into evaluation mode. With `mixed` its
    transformer multiplies in bfloat16; the modules after it, such as pooling, compute in float32.
    """

    def __init__(
        self,
        model: SentenceTransformer,
        *,
        name: str = "",
        revision: str | None = None,
        question_prompt: str | None = None,
        passage_prompt: str | None = None,
        similarity: str | None = None,
        mixed: bool = False,
    ) -> None:
        """Wrap a loaded model; `from_pretrained` loads one.

        Args:
            model: The model; its prompts are set to the ones in use, so that saving it keeps them.
            name: Its folder or Hub id, recorded in the manifest of an index.
            revision: The revision it was loaded at.
            question_prompt: Prefix of every question; None takes the model's own, or nothing.
            passage_prompt: Prefix of every passage; None takes the model's own, or nothing.
            similarity: "cosine" or "dot"; None takes the model's own (`similarity_fn_name`), or the cosine.
            mixed: Encode float32 weights with bfloat16 products.

        Raises:
            UsageError: The similarity is neither the cosine nor the dot product.
        """
        self.model = model
        self.mixed = mixed
        if mixed:
            _prefer_plain_products(model)
        self.name = name
        self.revision = revision
        self.question_prompt: str = _first_given(question_prompt, model.prompts, _QUESTION_PROMPT_NAMES)
        self.passage_prompt: str = own_passage_prompt(model.prompts) if passage_prompt is None else passage_prompt
        model.prompts.update(query=self.question_prompt, document=self.passage_prompt)
        self.similarity = _checked_similarity(similarity or model.similarity_fn_name)
        model.similarity_fn_name = self.similarity  # type: ignore[assignment]
        _respect_positions(model)
        self._warned: set[str] = set()

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        *,
        question_prompt: str | None = None,
        passage_prompt: str | None = None,
        device: str | None = None,
        dtype: str = "float32",
        revision: str | None = None,
        max_length: int | None = None,
        similarity: str | None = None,
        trust_remote_code: bool = False,
    ) -> "Encoder":
        """Load a model from a local folder or the Hugging Face hub.

        Args:
            name_or_path: A folder, a model id on the hub, a name in `indexes.named_models` such as "minilm", or "tiny"
                for the small encoder inside this package. Names are kept in the manifest of an index: the paths that
                they stand for say nothing on another machine.
            question_prompt: Prefix of every question; None takes the model's own, or nothing.
            passage_prompt: Prefix of every passage; None takes the model's own, or nothing.
            device: Such as "cpu" or "cuda:0"; None takes the best there is.
            dtype: Of the weights: "float32", "float16" or "bfloat16"; or "mixed": float32 weights, bfloat16 products in
                the transformer and float32 pooling. Vectors are always float32.
            revision: Branch, tag or commit on the hub.
            max_length: The most tokens of an input, special tokens included; None takes the model's own, or as many as
                it has positions for if that is less.
            similarity: "cosine" or "dot"; None takes the model's own (`similarity_fn_name`), or the cosine.
            trust_remote_code: Run Python code that comes with the model, where it has some.

        Raises:
            ResourceError: The model cannot be found or loaded, or has code of its own that may not run.
            UsageError: The dtype is unknown, the model's length cannot be set as asked, or the similarity is neither
                the cosine nor the dot product.
        """
        if dtype not in _DTYPES:
            raise UsageError(f"dtype must be one of {', '.join(_DTYPES)}, but got {dtype!r}.")
        folder = Path(encoder_path(name_or_path)).expanduser()
        local = folder.is_dir()
        # Absolute, so that an index finds its encoder from any working directory.
        name = str(folder.resolve()) if local else str(name_or_path)
        model = _load_model(
            name,
            local=local,
            device=device,
            dtype=_DTYPES[dtype],
            revision=revision,
            trust_remote_code=trust_remote_code,
        )
        if max_length is not None:
            _set_max_length(model, max_length)
        return cls(
            model,
            name=str(name_or_path) if is_portable_name(name_or_path) else name,
            revision=revision,
            question_prompt=question_prompt,
            passage_prompt=passage_prompt,
            similarity=similarity,
            mixed=dtype == "mixed",
        )

    def __repr__(self) -> str:
        return (
            f"Encoder({self.name!r}, {self.dimension} dimensions, similarity={self.similarity!r}, "
            f"dtype={self.dtype!r}, max_length={self.max_length})"
        )

    @property
    def tokenizer(self) -> Tokenizer | PreTrainedTokenizerFast:
        """The tokenizer, which a `Chunker` counts with."""
        tokenizer: Tokenizer | PreTrainedTokenizerFast = self.model.tokenizer
        return tokenizer

    @property
    def dimension(self) -> int:
        """d, the length of a vector."""
        dimension = self.model.get_embedding_dimension()
        if dimension is None:
            raise UsageError("An encoder must have a fixed dimension, but this model names none. Add a Pooling module.")
        return dimension

    @property
    def max_length(self) -> int | None:
        """The most tokens of an input that are read; None when there is no limit."""
        length = self.model.max_seq_length
        return None if length is None or math.isinf(length) else int(length)

    @property
    def position_limit(self) -> int | None:
        """The most tokens that the model has positions for, whatever `max_length` is; None without such a table."""
        return _shortest_table(self.model)

    @property
    def trust_remote_code(self) -> bool:
        """Whether Python code that comes with the model is used; loading it again requires this option."""
        # sentence-transformers 6 asks for the option before it imports any module that is not its own.
        foreign = any(type(m).__module__.partition(".")[0] != "sentence_transformers" for m in self.model)
        return foreign or uses_remote_code((self.model.tokenizer, *self.model.modules()))

    @property
    def dtype(self) -> str:
        """The dtype of the weights, such as "float32", or "mixed"."""
        if self.mixed:
            return "mixed"
        dtypes = (tensor.dtype for tensor in self.model.state_dict().values() if tensor.is_floating_point())
        return str(next(dtypes, torch.float32)).removeprefix("torch.")

    @property
    def fingerprint(self) -> str:
        """A SHA-256 (hex) over all that shapes the vectors: weights, prompts, length limit, pooling and similarity.

        It is the same on every device, after saving and loading, and for "mixed" and "float32", whose weights are the
        same. It is computed at each access, since training changes the weights.
        """
        digest = hashlib.sha256(json.dumps(self._settings(), sort_keys=True).encode())
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
            # Viewed as bytes, because numpy has no bfloat16.
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        return digest.hexdigest()

    def _settings(self) -> dict[str, object]:
        modules = list(self.model)
        # Left out for the cosine, so that the fingerprints of older indexes stay valid.
        similarity = {} if self.similarity == COSINE else {"similarity": self.similarity}
        return similarity | {
            "modules": [type(module).__name__ for module in modules],
            "pooling": [module.get_config_dict() for module in modules if isinstance(module, Pooling)],
            "question_prompt": self.question_prompt,
            "passage_prompt": self.passage_prompt,
            "max_length": self.max_length,
            "truncate_dim": self.model.truncate_dim,
        }

    def encode_questions(
        self, questions: Sequence[str], *, batch_size: int = 64, progress: bool | EncodingBar = False
    ) -> Vectors:
        """Embed questions.

        Args:
            questions: B texts, none of them empty.
            batch_size: The most questions that the model reads at once; fewer when they are long. It does not change
                the vectors.
            progress: Show a progress bar, or advance this one.

        Returns:
            float32 [B, d]; unit vectors where the similarity is the cosine.

        Raises:
            DataError: A question is empty, or its vector is not finite.
        """
        if isinstance(questions, str):
            raise UsageError("encode_questions needs a list of questions, but got a string. Put it into a list.")
        for number, question in enumerate(questions):
            if not question.strip():
                raise DataError(f"A question needs some text, but question {number} is empty. Remove or fill it.")
        with _bar(progress, len(questions), "question") as bar:
            vectors_Bd = self._encode(questions, self.question_prompt, "query", batch_size, bar)
        _check_finite(vectors_Bd, [repr(question) for question in questions], "question")
        self._warn(bar, progress, "question")
        return self._scaled(vectors_Bd)

    def encode_passages(
        self,
        passages: Sequence[Passage],
        *,
        batch_size: int = 64,
        progress: bool | EncodingBar = False,
    ) -> Vectors:
        """Embed passages: `Passage.contents`, which is title, newline, text.

        Args:
            passages: N passages.
            batch_size: The most passages that the model reads at once; fewer when they are long. It does not change
                the vectors.
            progress: Show a progress bar, or advance this one. Truncated texts are added to the `truncation` of a bar
                that is given; else the first call that truncates some logs a warning.

        Returns:
            float32 [N, d]; unit vectors where the similarity is the cosine.

        Raises:
            DataError: The vector of a passage is not finite; the message names its id.
        """
        contents = [passage.contents for passage in passages]
        with _bar(progress, len(contents), "passage") as bar:
            vectors_Nd = self._encode(contents, self.passage_prompt, "document", batch_size, bar)
        _check_finite(vectors_Nd, [repr(passage.id) for passage in passages], "passage")
        self._warn(bar, progress, "passage")
        return self._scaled(vectors_Nd)

    def _scaled(self, vectors_Nd: Vectors) -> Vectors:
        """Scale vectors to unit length for the cosine; leave them for the dot product."""
        return _normalised(vectors_Nd) if self.similarity == COSINE else vectors_Nd

    def _warn(self, bar: EncodingBar, given: bool | EncodingBar, kind: str) -> None:
        """Warn of truncation once for each encoder and kind of text; a caller who gave the bar warns instead."""
        if bar is not given and bar.truncation.truncated and kind not in self._warned:
            self._warned.add(kind)
            logger.warning(bar.truncation.message(self, kind))

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the model with its prompts, length limit and similarity; `from_pretrained` reads it back."""
        self.model.save_pretrained(str(folder), create_model_card=False)
        let_others_read_weights(Path(folder))

    def _encode(
        self,
        texts: Sequence[str],
        prompt: str,
        task: str,
        batch_size: int,
        bar: EncodingBar,
    ) -> Vectors:
        """The output of the model for each text, float32 [N, d], not yet scaled."""
        if batch_size < 1:
            raise UsageError(f"batch_size must be at least 1, but got {batch_size}.")
        if not texts:
            return np.empty((0, self.dimension), dtype=np.float32)
        step = window_texts(self.max_length)
        windows = (list(texts[start : start + step]) for start in range(0, len(texts), step))
        self.model.eval()
        with torch.inference_mode(), self._products():
            return np.concatenate([self._encode_window(w, prompt, task, batch_size, bar) for w in windows])

    def _encode_window(self, texts: list[str], prompt: str, task: str, batch_size: int, bar: EncodingBar) -> Vectors:
        # The task only matters to models with separate towers for questions and documents.
        features = self.model.preprocess(texts, prompt=prompt, task=task) if self._is_plain_transformer() else {}
        if not _are_padded_rows(features):
            bar.truncation.add(self._counted(texts, prompt, None))
            return self._encode_by_model(texts, prompt, task, batch_size, bar)
        lengths_W = features["attention_mask"].sum(1).tolist()
        bar.truncation.add(self._counted(texts, prompt, lengths_W))
        batches = token_budget_batches(lengths_W, batch_tokens(self.model.device.type), max_rows=batch_size)
        vectors: list[Tensor] = []
        for rows in batches:
            vectors.append(self._forward(_cut(features, rows)).float().cpu())
            bar.advance(len(rows), sum(lengths_W[i] for i in rows))
        order = np.argsort([i for rows in batches for i in rows])
        vectors_Wd: Vectors = torch.cat(vectors).numpy()[order]
        return vectors_Wd

    def _counted(self, texts: list[str], prompt: str, lengths_W: list[int] | None) -> Truncation:
        """Count the tokens of texts; only those that reach the limit are tokenised again, without truncation.

        `lengths_W` are the tokens that the model reads; None where they are not known.
        """
        tokenizer, limit = getattr(self.model, "tokenizer", None), self.max_length
        counts = Truncation(passages=len(texts))
        if limit is None or not isinstance(tokenizer, PreTrainedTokenizerBase):
            counts.tokens = sum(lengths_W or [])
            return counts
        read_W = [limit] * len(texts) if lengths_W is None else lengths_W
        counts.tokens = sum(length for length in read_W if length < limit)
        suspects = [prompt + text for text, length in zip(texts, read_W, strict=True) if length >= limit]
        if suspects:
            whole = tokenizer(suspects, truncation=False, verbose=False)["input_ids"]
            lengths = list(map(len, whole))
            counts.tokens += sum(lengths)
            counts.truncated = sum(length > limit for length in lengths)
            counts.lost = sum(max(0, length - limit) for length in lengths)
        return counts

    def _forward(self, features: dict[str, Any]) -> Tensor:
        """The modules of the model one after another; only the first, the transformer, may compute in bfloat16."""
        transformer, *others = self.model
        moved = {k: v.to(self.model.device) if isinstance(v, Tensor) else v for k, v in features.items()}
        out = transformer(moved)
        if self.mixed:
            out = {k: v.float() if k in _TRANSFORMER_OUTPUTS else v for k, v in out.items()}
        with torch.autocast(self.model.device.type, enabled=False):
            for module in others:
                out = module(out)
        vectors_Rd: Tensor = out["sentence_embedding"]
        return vectors_Rd[:, : self.model.truncate_dim]

    def _encode_by_model(self, texts: list[str], prompt: str, task: str, batch_size: int, bar: EncodingBar) -> Vectors:
        """Encode by sentence-transformers, for models that do not read padded batches, such as bags of words.

        They compute in the dtype of their weights: which of their modules could use bfloat16 products is not known.
        """
        with torch.autocast(self.model.device.type, enabled=False):
            vectors = self.model.encode(
                texts, prompt=prompt, batch_size=batch_size, show_progress_bar=False, convert_to_numpy=True, task=task
            )
        bar.advance(len(texts), 0)
        return np.asarray(vectors, dtype=np.float32)

    def _is_plain_transformer(self) -> bool:
        """Whether the model is one transformer and then modules that take no further arguments."""
        further = any((self.model.module_kwargs or {}).values())
        return isinstance(self.model[0], Transformer) and not further

    @contextmanager
    def _products(self) -> Iterator[None]:
        """Multiply in bfloat16 if `mixed`, else in the dtype of the weights, even inside a caller's autocast.

        One context for all batches: autocast keeps the bfloat16 copies of the weights until it ends.
        """
        with torch.autocast(self.model.device.type, dtype=torch.bfloat16, enabled=self.mixed):
            try:
                yield
            finally:
                # Inside a caller's autocast the copies would outlive this context, and training cannot use them.
                torch.clear_autocast_cache()


def batch_tokens(device: str) -> int:
    """The most tokens of a batch, padding included, on a device such as "cpu" or "cuda"."""
    return _CPU_TOKENS if device == "cpu" else _GPU_TOKENS


def window_texts(max_length: int | None) -> int:
    """How many texts are tokenised and sorted at once, for inputs of at most so many tokens."""
    return min(_WINDOW, max(1, _WINDOW_TOKENS // (max_length or _UNKNOWN_LENGTH)))


def _bar(progress: bool | EncodingBar, total: int, unit: str) -> AbstractContextManager[EncodingBar]:
    if isinstance(progress, EncodingBar):
        return nullcontext(progress)
    return EncodingBar(total, unit, shown=progress)


def _are_padded_rows(features: Mapping[str, Any]) -> bool:
    """Whether all tensors are matrices [W, T] of one shape that can be cut by rows and columns."""
    shapes = {name: value.shape for name, value in features.items() if isinstance(value, Tensor)}
    known = {"input_ids", "attention_mask"} <= shapes.keys() <= _ROW_FEATURES
    return known and len(set(shapes.values())) == 1 and features["input_ids"].ndim == 2


def _cut(features: Mapping[str, Any], rows: list[int]) -> dict[str, Any]:
    """These texts, without the columns that are padding in all of them, on either side."""
    used_T = features["attention_mask"][rows].any(0)
    used_T[0] |= ~used_T.any()  # a model cannot encode zero columns
    return {k: v[rows][:, used_T] if isinstance(v, Tensor) else v for k, v in features.items()}


def own_passage_prompt(prompts: Mapping[str, str | None]) -> str:
    """The prompt of a model that is the prefix of passages; empty if it has none."""
    return _first_given(None, prompts, _PASSAGE_PROMPT_NAMES)


def _first_given(prompt: str | None, own_prompts: Mapping[str, str | None], names: Sequence[str]) -> str:
    if prompt is not None:
        return prompt
    return next((own for name in names if (own := own_prompts.get(name))), "")


def _load_model(
    name: str,
    *,
    local: bool,
    device: str | None,
    dtype: torch.dtype,
    revision: str | None,
    trust_remote_code: bool,
) -> SentenceTransformer:
    try:
        model = SentenceTransformer(
            name,
            device=device,
            revision=revision,
            local_files_only=local,
            trust_remote_code=trust_remote_code,
            model_kwargs={"dtype": dtype},
        )
    except _LOAD_ERRORS as error:
        if is_refusal(error):
            raise code_refused("The encoder", name) from error
        tried = "the local folder" if local else "the Hugging Face hub, as there is no such local folder"
        raise ResourceError(
            f"The encoder must be a sentence-transformers model that can be loaded, but {name!r} cannot be. "
            f"Tried {tried} ({_first_line(error)}). Pass the path of a local folder that holds the model, or "
            f"check the name and the network.{nearest(name)}"
        ) from error
    # Modules other than the transformer ignore model_kwargs.
    return model.to(dtype)


def _prefer_plain_products(model: SentenceTransformer) -> None:
    """On a CPU two bfloat16 products are faster than the fused attention kernel, as long as texts are short."""
    transformer, length = model[0], model.max_seq_length
    if isinstance(transformer, Transformer) and model.device.type == "cpu" and length and length <= _CPU_TOKENS:
        transformer.auto_model.set_attn_implementation("eager")


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def position_limit(transformer: nn.Module) -> int | None:
    """The most tokens that a transformer has learned positions for; None when it has no table of them.

    RoBERTa and its relatives (XLM-R, CamemBERT, MPNet) count positions from `padding_idx` + 1, so that of the 514 of
    `max_position_embeddings` 512 can be used (transformers 5.23, `create_position_ids_from_input_ids` of
    `RobertaEmbeddings`); the length that sentence-transformers 6.2 takes from the config is the whole table.
    """
    for module in transformer.modules():
        table = getattr(module, "position_embeddings", None)
        if isinstance(table, nn.Embedding):
            padding = getattr(module, "padding_idx", None) if table.padding_idx is None else table.padding_idx
            return table.num_embeddings - (padding + 1 if isinstance(padding, int) else 0)
    return None


def _transformers(model: SentenceTransformer) -> list[Transformer]:
    return [module for module in model.modules() if isinstance(module, Transformer)]


def _shortest_table(model: SentenceTransformer) -> int | None:
    limits = [position_limit(module.auto_model) for module in _transformers(model)]
    return min((limit for limit in limits if limit is not None), default=None)


def _respect_positions(model: SentenceTransformer) -> None:
    """Lower the lengths that a model states to the positions it has: beyond them it fails on the first long text."""
    for module in _transformers(model):
        limit, stated = position_limit(module.auto_model), module.max_seq_length
        if limit is not None and (stated is None or stated > limit):
            module.max_seq_length = limit


def _checked_similarity(similarity: str) -> str:
    if similarity not in SIMILARITIES:
        raise UsageError(
            f"The similarity of an encoder must be one of {', '.join(SIMILARITIES)}, but got {similarity!r}, which "
            "an index by inner products cannot compute. To search by another one than it was trained for, pass "
            'similarity="cosine" or "dot" (--similarity).'
        )
    return similarity


def _set_max_length(model: SentenceTransformer, max_length: int) -> None:
    limit = _shortest_table(model)
    tokenizer = getattr(model, "tokenizer", None)
    special = tokenizer.num_special_tokens_to_add() if isinstance(tokenizer, PreTrainedTokenizerBase) else 0
    if max_length <= special or (limit is not None and max_length > limit):
        raise UsageError(
            f"max_length must be at least {special + 1}{f' and at most {limit}' if limit else ''}, since the encoder "
            f"adds {special} special tokens to an input{f' and has {limit} positions to use' if limit else ''}, but "
            f"got {max_length}. Leave it out to take the encoder's own; an index that records such a length must be "
            "built again."
        )
    try:
        model.max_seq_length = max_length
    except AttributeError as error:
        raise UsageError(
            f"max_length={max_length} needs a model with a length limit, but this one reads inputs of any "
            "length. Leave max_length out."
        ) from error


def _check_finite(vectors_Nd: Vectors, names: Sequence[str], kind: str) -> None:
    broken = np.flatnonzero(~np.isfinite(vectors_Nd).all(axis=1))
    if broken.size:
        raise DataError(
            f"A vector must be finite, but the encoder gave NaN or infinity for {broken.size} {kind}s, the "
            f"first is {names[int(broken[0])]}. Load the encoder in float32, or check its weights."
        )


def _normalised(vectors_Nd: Vectors) -> Vectors:
    """Scale to unit length; the zero vector, which has no direction, stays and scores 0 with everything."""
    norms_N1 = np.linalg.norm(vectors_Nd, axis=1, keepdims=True)
    unit_Nd: Vectors = vectors_Nd / np.maximum(norms_N1, np.finfo(np.float32).tiny)
    return unit_Nd
