"""Opening the base language model of a pipeline."""

from pathlib import Path

from generator.architecture_findings import ArchitectureFindings
from generator.configs import AdapterConfig, ChatConfig, ModelConfig
from generator.language_model import LanguageModel
from indexes.tiny_encoder import is_portable_name
from rag.tiny_base import base_path


def load_language_model(
    base: str | Path | ModelConfig,
    *,
    adapter: AdapterConfig | None = None,
    chat: ChatConfig | None = None,
    findings: ArchitectureFindings | None = None,
) -> LanguageModel:
    """The language model of a base: its name, Hub id, folder, GGUF file or "tiny", or all settings of its loading.

    Args:
        base: As above.
        adapter: LoRA settings.
        chat: Settings of the chat template.
        findings: What trying this base has shown before; see `LanguageModel`.

    Raises:
        ResourceError: It cannot be found or loaded.
    """
    config = base if isinstance(base, ModelConfig) else ModelConfig(name=str(base))
    model = LanguageModel.from_pretrained(
        base_path(config.name), adapter=adapter, chat=chat, findings=findings, **config.options()
    )
    # "tiny" and models by name mean the same everywhere, unlike their places. Any other path is recorded as an absolute
    # one, so that it is found after the process changes its working directory.
    model.name = str(Path(config.name).absolute()) if is_model_path(config.name) else config.name
    return model


def is_model_path(name: str) -> bool:
    """Whether the name of a model is a local folder or file, and not a name on the Hub, a model by name or "tiny"."""
    return bool(name) and not is_portable_name(name) and Path(name).exists()
