"""Opening the parts of a pipeline: the base language model and the encoder of an index."""

from pathlib import Path

from generator.configs import AdapterConfig, ChatConfig, ModelConfig
from generator.language_model import LanguageModel
from indexes.directory.passage_index import PassageIndex
from indexes.encoder import Encoder
from indexes.tiny_encoder import TINY
from rag.tiny_base import base_path


def load_language_model(
    base: str | Path | ModelConfig, *, adapter: AdapterConfig | None = None, chat: ChatConfig | None = None
) -> LanguageModel:
    """The language model of a base: a Hub id, a folder or "tiny", or all settings of its loading.

    Raises:
        ResourceError: It cannot be found or loaded.
    """
    config = base if isinstance(base, ModelConfig) else ModelConfig(name=str(base))
    model = LanguageModel.from_pretrained(base_path(config.name), adapter=adapter, chat=chat, **config.options())
    # "tiny" means the same everywhere, unlike its folder. Any other folder is recorded by its absolute path, so that it
    # is found after the process changes its working directory.
    model.name = str(Path(config.name).absolute()) if is_model_folder(config.name) else config.name
    return model


def is_model_folder(name: str) -> bool:
    """Whether the name of a model is a local folder, and neither a Hub id nor "tiny"."""
    return name != TINY and Path(name).is_dir()


def encoder_of(
    index: PassageIndex,
    encoder: str | Path | Encoder | None = None,
    *,
    device: str | None = None,
    trust_remote_code: bool = False,
) -> Encoder:
    """The encoder of an index: the one its manifest names, or the given copy of it, with the same prompts.

    Raises:
        ResourceError: It cannot be found or loaded.
    """
    if isinstance(encoder, Encoder):
        return encoder
    return index.manifest.encoder.load(encoder, device=device, trust_remote_code=trust_remote_code)
