"""Settings of models, adapters, chat templates and decoding, as dataclasses.

This module imports neither torch nor transformers, so that `--help` and argument errors of the command line are fast.
"""

import json
from dataclasses import dataclass, field, fields
from datetime import datetime
from inspect import signature
from typing import Any, TypedDict

from indexes.errors import UsageError

DEFAULT_DATE = "2024-07-26"
"""The date that the chat template of Llama 3.1 writes unless it is given another ("26 Jul 2024")."""
TODAY = "today"


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Which base model is loaded, and how; names and meaning as in `AutoModelForCausalLM.from_pretrained`."""

    name: str
    """A causal LM: Hub id, local folder, GGUF file, "owner/repo:file.gguf", or "tiny" for the built-in tiny model."""
    revision: str | None = None
    """Branch, tag or commit on the Hub."""
    dtype: str = "auto"
    """"auto" (by hardware), "float32", "bfloat16", "float16", or "mixed": linear weights and products in bfloat16,
    everything else in float32."""
    device: str | None = None
    """"cuda", "mps" or "cpu"; None: the best one available."""
    quantization: str | None = None
    """None, "4bit" or "8bit" (needs the `quantization` extra)."""
    context_length: int | None = None
    """Tokens of prompt and answer together; passages are truncated to fit. None: what its config or tokenizer states,
    else 2048."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model."""

    def options(self) -> dict[str, Any]:
        """Everything but the name, as keyword arguments of `LanguageModel.from_pretrained`."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "name"}


class ModelOptions(TypedDict, total=False):
    """The fields of `ModelConfig` besides the name, as keyword arguments."""

    revision: str | None
    dtype: str
    device: str | None
    quantization: str | None
    context_length: int | None
    trust_remote_code: bool


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """LoRA settings, the same for selector and generator; names and meaning are those of `peft.LoraConfig`."""

    r: int = 16
    """Rank. More rank, more capacity and more to forget."""
    lora_alpha: int = 32
    """Scale of the update: it is multiplied by lora_alpha / r."""
    lora_dropout: float = 0.0
    """Dropout inside the adapter during the M-step; it makes the SelfAug KL noisy, so 0 is the default."""
    target_modules: str | list[str] = "all-linear"
    """Modules that get an adapter; the output head may not be among them."""


@dataclass(frozen=True, kw_only=True)
class DecodingConfig:
    """How an answer is decoded. Greedy by default: the same input gives the same answer."""

    max_new_tokens: int = 32
    """Tokens an answer may have; this much of the context is kept free."""
    temperature: float = 0.0
    """0 is greedy; above 0 samples at that temperature."""
    top_p: float = 1.0
    """Nucleus mass when sampling."""

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise UsageError(f"max_new_tokens must be at least 1, got {self.max_new_tokens}.")
        if self.temperature < 0 or not 0 < self.top_p <= 1:
            raise UsageError(
                f"temperature must be >= 0 and top_p in (0, 1], got temperature={self.temperature}, top_p={self.top_p}."
            )


@dataclass(frozen=True, kw_only=True)
class ChatConfig:
    """What the chat template of a base model is given, and how reasoning is separated from the answer."""

    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)
    """Variables of the chat template, such as `{"enable_thinking": false}` (Qwen3, SmolLM3, GLM-4.5)."""
    system_message: str | None = None
    """Precedes every prompt and replaces the system message that a template may add by itself. None: none."""
    date: str = DEFAULT_DATE
    """The date for templates that ask for one (`strftime_now`, `date_string`), as YYYY-MM-DD with or without a time;
    or "today", which reads the clock for every prompt, so that answers and their log-probabilities change."""
    prefill: str = ""
    r"""Every reply begins with this text, which is part of the prompt: "</think>\n\n" closes reasoning that a template
    opens and has no variable to switch off (DeepSeek-R1)."""
    thought_start: str = "<think>"
    """A reply may begin with reasoning, from this mark (or immediately, where the template wrote the mark) ..."""
    thought_end: str = "</think>"
    """... to this one. Reasoning is removed from answers; with both marks empty it is not looked for."""

    def __post_init__(self) -> None:
        moment_of(self.date)
        if bool(self.thought_start) != bool(self.thought_end):
            raise UsageError(
                "thought_start and thought_end must both be given, or both be empty, got "
                f"{self.thought_start!r} and {self.thought_end!r}."
            )
        if taken := sorted(_reserved_variables() & set(self.chat_template_kwargs)) if self.chat_template_kwargs else []:
            raise UsageError(
                f"chat_template_kwargs must name variables of the chat template; {taken} are set by the library itself "
                "(a system message has an option of its own, system_message)."
            )
        try:
            json.dumps(self.chat_template_kwargs)
        except (TypeError, ValueError) as error:
            raise UsageError(f"chat_template_kwargs must be JSON, as bundles record them: {error}.") from error


def _reserved_variables() -> set[str]:
    """Parameters of `apply_chat_template` that are not variables of a template, and the messages themselves."""
    from transformers import PreTrainedTokenizerBase  # only here: this module must import fast

    named = set(signature(PreTrainedTokenizerBase.apply_chat_template).parameters) - {"self", "kwargs"}
    return named - {"tools", "documents"} | {"messages"}


def moment_of(date: str) -> datetime:
    """A date as a point in time.

    Raises:
        UsageError: It is not a date.
    """
    if date == TODAY:
        return datetime.now()
    try:
        return datetime.fromisoformat(date)
    except ValueError as error:
        raise UsageError(f'date must be YYYY-MM-DD, with or without a time, or "{TODAY}", got {date!r}.') from error
