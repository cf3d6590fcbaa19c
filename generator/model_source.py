"""Where a base model is: the one place that turns a name into what transformers takes.

A name is a Hub id, a folder, a GGUF file, or a GGUF file of a repository on the Hub ("owner/repo:file.gguf"). What GGUF
files need in addition is done here: their weights are unpacked, and config and tokenizer are made to say what the file
says (`generator.gguf_config`, `generator.gguf_tokenizer`).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import hf_hub_download
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from generator.adapters import first_line
from generator.gguf_config import ROPE_FACTORS, correct_config, refused
from generator.gguf_file import GGUFFile
from generator.gguf_tokenizer import ends_of_reply, tokenizer_of
from generator.model_names import GGUF_SUFFIX, hub_file
from indexes.errors import ResourceError
from indexes.named_models import nearest


@dataclass(frozen=True)
class ModelSource:
    """A base model that can be read, part by part."""

    name: str
    """As it was given."""
    revision: str | None
    trust_remote_code: bool
    file: GGUFFile | None
    """The GGUF file, which may have been downloaded; None for a Hub id or a folder."""

    @property
    def errors(self) -> tuple[type[Exception], ...]:
        """What its methods raise where the model cannot be loaded."""
        # transformers looks up what a GGUF file says in tables, and builds what it finds without looking.
        more = (LookupError, TypeError, AttributeError, RuntimeError) if self.file is not None else ()
        return (OSError, ValueError, ImportError, KeyError, *more)

    def not_loaded(self, error: Exception) -> ResourceError:
        """The error for a user, of one of `errors`."""
        if self.file is not None:
            return refused(self.file, f"it does not: {type(error).__name__}: {first_line(error)}")
        return ResourceError(
            f"A causal language model must be found at {self.name!r}; loading it failed: {first_line(error)} Give a "
            "Hub name that this machine can reach, a local folder with config.json, tokenizer and weights, or a GGUF "
            f"file.{nearest(self.name)}"
        )

    def config(self) -> Any:
        """Its config; no weights are read.

        Raises:
            OSError: It is not there; also ValueError, ImportError and others, as transformers has them.
            ResourceError: A GGUF file of an architecture that transformers does not read exactly.
        """
        with self._read_from() as (place, options):
            config = AutoConfig.from_pretrained(place, **options)
        if self.file is not None:
            correct_config(config, self.file)
            config.name_or_path = str(self.file.path)
        return config

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Its tokenizer.

        Raises:
            As `config`.
        """
        with self._read_from() as (place, options):
            # The class of an architecture would add nothing to what the file says, and costs another reading of it.
            kind = AutoTokenizer if self.file is None else PreTrainedTokenizerFast
            tokenizer: PreTrainedTokenizerBase = kind.from_pretrained(place, **options)
        if self.file is not None:
            tokenizer = tokenizer_of(tokenizer, self.file)
            tokenizer.name_or_path = str(self.file.path)
        return tokenizer

    def model(self, config: Any, **options: Any) -> PreTrainedModel:
        """The model itself, of a GGUF file with unpacked weights.

        Args:
            config: What `config` gave.
            options: `dtype` and others of `AutoModelForCausalLM.from_pretrained`.

        Raises:
            As `config`.
        """
        with self._read_from() as (place, source):
            if self.file is None:
                plain: PreTrainedModel = AutoModelForCausalLM.from_pretrained(place, config=config, **source, **options)
                return plain
            return _unpacked(self.file, config, place, {**source, **options})

    @contextmanager
    def _read_from(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """What `from_pretrained` takes: place and options."""
        if self.file is None:
            yield self.name, {"revision": self.revision, "trust_remote_code": self.trust_remote_code}
            return
        # A tokenizer_config.json beside the file would be read as well, and a file of that name in the working
        # directory in its place: so an empty folder, and the whole path.
        with TemporaryDirectory() as empty:
            yield empty, {"gguf_file": str(self.file.path.absolute()), "trust_remote_code": False}


def find_source(name: str | Path, *, revision: str | None = None, trust_remote_code: bool = False) -> ModelSource:
    """Where a model of this name is; a GGUF file on the Hub is downloaded, once.

    Args:
        name: A Hub id, a folder, a GGUF file, or "owner/repo:file.gguf".
        revision: Branch, tag or commit on the Hub.
        trust_remote_code: Run Python code that comes with the model; a GGUF file has none.

    Raises:
        ResourceError: There is no such GGUF file, it is damaged, or the extra ``gguf`` is missing.
    """
    path = _gguf_path(name, revision)
    return ModelSource(str(name), revision, trust_remote_code, None if path is None else GGUFFile(path))


def _gguf_path(name: str | Path, revision: str | None) -> Path | None:
    path = Path(name)
    if path.is_file():
        return path
    if path.is_dir() or not str(name).lower().endswith(GGUF_SUFFIX):
        return None
    place = hub_file(str(name))
    if place is None:
        raise ResourceError(
            f"A GGUF file must be there, but there is no {str(name)!r}. Give the path of a file, or a file of a "
            "repository on the Hub as owner/repo:file.gguf."
        )
    try:
        return Path(hf_hub_download(*place, revision=revision))
    except (OSError, ValueError) as error:  # all errors of the Hub are among them
        raise ResourceError(
            f"A GGUF file must be found on the Hub as {str(name)!r}; downloading it failed: {first_line(error)} Check "
            "the name of the file, the revision and the network (HF_HUB_OFFLINE forbids it)."
        ) from error


def _unpacked(file: GGUFFile, config: Any, place: str, options: dict[str, Any]) -> PreTrainedModel:
    from transformers import GgufConfig  # not there before 5.23, which the extra asks for

    # Without the flag transformers 5.23 unpacks the weights of most architectures all the same, but calls the model
    # quantized and refuses to save it; where it has a kernel it leaves them packed, and they cannot be trained.
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        place,
        config=config,
        quantization_config=GgufConfig(dequantize=True),
        output_loading_info=True,
        **options,
    )
    model: PreTrainedModel = loaded[0]
    loading: dict[str, Any] = loaded[1]
    if missing := sorted({*loading["missing_keys"], *loading["mismatched_keys"]}):
        raise refused(file, f"{len(missing)} weights are missing, such as {missing[0]!r}")
    expected, found = _count_in_file(file, config), _count(model)
    if expected != found:
        raise refused(file, f"its weights have {expected:,} elements, and {found:,} in the model")
    model.config.name_or_path = str(file.path)
    if model.generation_config is not None:
        ends = ends_of_reply(file)
        model.generation_config.eos_token_id = ends[0] if len(ends) == 1 else (ends or None)
        model.generation_config.bos_token_id = model.config.bos_token_id
        model.generation_config.pad_token_id = model.config.pad_token_id
    return model


def _count_in_file(file: GGUFFile, config: Any) -> int:
    """Elements of all weights of a file: were a weight left out, the model would have fewer."""
    beyond = f"blk.{config.num_hidden_layers}."  # blocks that predict several tokens, which transformers has not
    return sum(file.count(name) for name in file.tensors if name != ROPE_FACTORS and not name.startswith(beyond))


def _count(model: PreTrainedModel) -> int:
    stored = model.state_dict().keys()
    return sum(p.numel() for p in model.parameters()) + sum(
        b.numel() for name, b in model.named_buffers() if name in stored
    )
