"""One causal language model, its adapters, its prompts, its log-probabilities and its answers."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

import indexes as _indexes  # noqa: F401  (sets the OpenMP wait policy before torch is imported)

if TYPE_CHECKING:
    from generator.chat import Chat
    from generator.configs import AdapterConfig, ChatConfig, DecodingConfig
    from generator.generator import Generator
    from generator.language_model import LanguageModel
    from generator.prompts import AnswerPrompt, Identifiers, RankingPrompt

_EXPORTS = {
    "AdapterConfig": "generator.configs",
    "AnswerPrompt": "generator.prompts",
    "Chat": "generator.chat",
    "ChatConfig": "generator.configs",
    "DecodingConfig": "generator.configs",
    "Generator": "generator.generator",
    "Identifiers": "generator.prompts",
    "LanguageModel": "generator.language_model",
    "RankingPrompt": "generator.prompts",
}

__all__ = [
    "AdapterConfig",
    "AnswerPrompt",
    "Chat",
    "ChatConfig",
    "DecodingConfig",
    "Generator",
    "Identifiers",
    "LanguageModel",
    "RankingPrompt",
]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'generator' has no attribute {name!r}")
    return getattr(import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return __all__
