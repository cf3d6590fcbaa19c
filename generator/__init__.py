"""One causal language model, its adapters, its prompts, its log-probabilities and its answers."""

from typing import TYPE_CHECKING

from indexes.lazy_exports import lazy_exports  # `indexes` sets the OpenMP wait policy before torch is imported

if TYPE_CHECKING:
    from generator.chat import Chat
    from generator.configs import AdapterConfig, ChatConfig, DecodingConfig, ModelConfig
    from generator.generator import Generator
    from generator.language_model import LanguageModel
    from generator.prompts import AnswerPrompt, Identifiers, QuestionPrompt, RankingPrompt

_EXPORTS = {
    "AdapterConfig": "generator.configs",
    "AnswerPrompt": "generator.prompts",
    "Chat": "generator.chat",
    "ChatConfig": "generator.configs",
    "DecodingConfig": "generator.configs",
    "Generator": "generator.generator",
    "Identifiers": "generator.prompts",
    "LanguageModel": "generator.language_model",
    "ModelConfig": "generator.configs",
    "QuestionPrompt": "generator.prompts",
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
    "ModelConfig",
    "QuestionPrompt",
    "RankingPrompt",
]

__getattr__, __dir__ = lazy_exports(__name__, _EXPORTS)
