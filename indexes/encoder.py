"""The encoder: questions and passages become unit vectors whose inner product is their similarity.

It lives beside the index because it makes the vectors, and the index's manifest describes it. It knows
nothing of language models.

Axes: B questions, N passages, d dimensions.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from numpy.typing import NDArray
from safetensors import SafetensorError
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from indexes.corpus import Passage
from indexes.errors import DataError, ResourceError, UsageError

Vectors: TypeAlias = NDArray[np.float32]

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
# What model cards call the prompts, in the order in which sentence-transformers looks them up.
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


class Encoder:
    """A sentence-transformers model with its two prompts made explicit.

    `model` is the wrapped model, for code that trains it. Encoding puts it into evaluation mode.
    """

    def __init__(
        self,
        model: SentenceTransformer,
        *,
        name: str = "",
        revision: str | None = None,
        question_prompt: str | None = None,
        passage_prompt: str | None = None,
    ) -> None:
        """Wrap a model that is already loaded; `from_pretrained` loads one.

        Args:
            model: The model; its prompts are set to the ones in use, so that saving it keeps them.
            name: What the manifest of an index calls it.
            revision: The revision it was loaded at.
            question_prompt: Put before every question; None takes the model's own, or nothing.
            passage_prompt: Put before every passage; None takes the model's own, or nothing.
        """
        self.model = model
        self.name = name
        self.revision = revision
        self.question_prompt: str = _first_given(question_prompt, model.prompts, _QUESTION_PROMPT_NAMES)
        self.passage_prompt: str = _first_given(passage_prompt, model.prompts, _PASSAGE_PROMPT_NAMES)
        model.prompts.update(query=self.question_prompt, document=self.passage_prompt)

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
    ) -> "Encoder":
        """Load a model from a local folder or the Hugging Face hub.

        Args:
            name_or_path: A folder, or a model id on the hub.
            question_prompt: Put before every question; None takes the model's own, or nothing.
            passage_prompt: Put before every passage; None takes the model's own, or nothing.
            device: Such as "cpu" or "cuda:0"; None takes the best there is.
            dtype: Of the weights: "float32", "float16" or "bfloat16". Vectors are always float32.
            revision: Branch, tag or commit on the hub.
            max_length: The most tokens of an input; None takes the model's own.

        Raises:
            ResourceError: The model cannot be found or loaded.
            UsageError: The dtype is unknown, or the model's length cannot be set as asked.
        """
        if dtype not in _DTYPES:
            raise UsageError(f"dtype must be one of {', '.join(_DTYPES)}, but {dtype!r} came.")
        local = Path(name_or_path).expanduser().is_dir()
        # Absolute, so that an index finds its encoder from any working directory.
        name = str(Path(name_or_path).expanduser().resolve()) if local else str(name_or_path)
        model = _load_model(name, local=local, device=device, dtype=_DTYPES[dtype], revision=revision)
        if max_length is not None:
            _set_max_length(model, max_length)
        return cls(
            model,
            name=name,
            revision=revision,
            question_prompt=question_prompt,
            passage_prompt=passage_prompt,
        )

    @property
    def tokenizer(self) -> Tokenizer | PreTrainedTokenizerFast:
        """What cuts text into tokens; a `Chunker` counts with it."""
        tokenizer: Tokenizer | PreTrainedTokenizerFast = self.model.tokenizer
        return tokenizer

    @property
    def dimension(self) -> int:
        """d, the length of a vector."""
        dimension = self.model.get_embedding_dimension()
        if dimension is None:
            raise UsageError(
                "An encoder must say how long its vectors are, but this model does not. Add a Pooling module."
            )
        return dimension

    @property
    def max_length(self) -> int | None:
        """The most tokens of an input that are read; None when there is no limit."""
        length = self.model.max_seq_length
        return None if length is None or math.isinf(length) else int(length)

    @property
    def dtype(self) -> str:
        """The dtype of the weights, such as "float32"."""
        dtypes = (tensor.dtype for tensor in self.model.state_dict().values() if tensor.is_floating_point())
        return str(next(dtypes, torch.float32)).removeprefix("torch.")

    @property
    def fingerprint(self) -> str:
        """A SHA-256 (hex) over all that shapes the vectors: weights, prompts, length limit and pooling.

        It is the same on every device and after saving and loading. It is computed anew at each access, since
        training changes the weights.
        """
        digest = hashlib.sha256(json.dumps(self._settings(), sort_keys=True).encode())
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
            # Viewed as bytes, because numpy has no bfloat16.
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        return digest.hexdigest()

    def _settings(self) -> dict[str, object]:
        modules = list(self.model)
        return {
            "modules": [type(module).__name__ for module in modules],
            "pooling": [module.get_config_dict() for module in modules if isinstance(module, Pooling)],
            "question_prompt": self.question_prompt,
            "passage_prompt": self.passage_prompt,
            "max_length": self.max_length,
            "truncate_dim": self.model.truncate_dim,
        }

    def encode_questions(self, questions: Sequence[str], *, batch_size: int = 64, progress: bool = False) -> Vectors:
        """Embed questions.

        Args:
            questions: B texts, none of them empty.
            batch_size: How many the model reads at once; it does not change the vectors.
            progress: Show a progress bar.

        Returns:
            Unit vectors, float32 [B, d].

        Raises:
            DataError: A question is empty, or its vector is not finite.
        """
        if isinstance(questions, str):
            raise UsageError("encode_questions takes a list of questions, but one string came. Put it in a list.")
        for number, question in enumerate(questions):
            if not question.strip():
                raise DataError(f"A question needs some text, but question {number} is empty. Remove or fill it.")
        vectors_Bd = self._encode(questions, self.question_prompt, "query", batch_size=batch_size, progress=progress)
        _check_finite(vectors_Bd, [repr(question) for question in questions], "question")
        return _normalised(vectors_Bd)

    def encode_passages(self, passages: Sequence[Passage], *, batch_size: int = 64, progress: bool = False) -> Vectors:
        """Embed passages: `Passage.contents`, which is title, newline, text.

        Args:
            passages: N passages.
            batch_size: How many the model reads at once; it does not change the vectors.
            progress: Show a progress bar.

        Returns:
            Unit vectors, float32 [N, d].

        Raises:
            DataError: The vector of a passage is not finite; the message names its id.
        """
        contents = [passage.contents for passage in passages]
        vectors_Nd = self._encode(contents, self.passage_prompt, "document", batch_size=batch_size, progress=progress)
        _check_finite(vectors_Nd, [repr(passage.id) for passage in passages], "passage")
        return _normalised(vectors_Nd)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the model with its prompts and its length limit; `from_pretrained` reads it back."""
        self.model.save_pretrained(str(folder), create_model_card=False)

    def _encode(self, texts: Sequence[str], prompt: str, task: str, *, batch_size: int, progress: bool) -> Vectors:
        if not texts:
            return np.empty((0, self.dimension), dtype=np.float32)
        # The task only matters to models with separate towers for questions and documents.
        vectors = self.model.encode(
            list(texts),
            prompt=prompt,
            batch_size=batch_size,
            show_progress_bar=progress,
            convert_to_numpy=True,
            task=task,
        )
        return np.asarray(vectors, dtype=np.float32)


def _first_given(prompt: str | None, own_prompts: Mapping[str, str | None], names: Sequence[str]) -> str:
    if prompt is not None:
        return prompt
    return next((own for name in names if (own := own_prompts.get(name))), "")


def _load_model(
    name: str, *, local: bool, device: str | None, dtype: torch.dtype, revision: str | None
) -> SentenceTransformer:
    try:
        model = SentenceTransformer(
            name, device=device, revision=revision, local_files_only=local, model_kwargs={"dtype": dtype}
        )
    except _LOAD_ERRORS as error:
        tried = "the local folder" if local else "the Hugging Face hub, as there is no such local folder"
        raise ResourceError(
            f"The encoder must be a sentence-transformers model that can be loaded, but {name!r} cannot be. "
            f"Tried {tried} ({_first_line(error)}). Pass the path of a local folder that holds the model, or "
            "check the name and the network."
        ) from error
    # Modules other than the transformer do not look at model_kwargs.
    return model.to(dtype)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _set_max_length(model: SentenceTransformer, max_length: int) -> None:
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
    """Unit length; the zero vector, which has no direction, stays and scores 0 with everything."""
    norms_N1 = np.linalg.norm(vectors_Nd, axis=1, keepdims=True)
    unit_Nd: Vectors = vectors_Nd / np.maximum(norms_N1, np.finfo(np.float32).tiny)
    return unit_Nd
