"""The selectors by their kinds, and how one is made from its configuration or from a file.

    @SELECTORS.register("nearest")
    class NearestSelector(Selector): ...

    RAG.create(index=..., selector=SelectorConfig(kind="nearest"))

A package that is not imported by the program registers its kinds by an entry point (`indexes.registry`).
"""

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

from generator.language_model import LanguageModel
from generator.prompts import QuestionPrompt, RankingPrompt
from indexes.errors import MismatchError
from indexes.registry import Registry
from retriever.retriever import Retriever
from retriever.selector import Selector
from retriever.selector_config import SelectorConfig

SELECTORS: Registry[type[Selector]] = Registry(
    "selector",
    builtin={
        "listwise": "retriever.listwise_selector:ListwiseSelector",
        "question_likelihood": "retriever.question_likelihood_selector:QuestionLikelihoodSelector",
    },
)
"""Subclasses of `retriever.selector.Selector`, by the name that `SelectorConfig.kind` gives them."""


def create_selector(
    config: SelectorConfig,
    language_model: LanguageModel,
    retriever: Retriever,
    *,
    prompt: RankingPrompt | QuestionPrompt | None = None,
) -> Selector:
    """An untrained selector of the kind that the configuration names.

    Raises:
        UsageError: No package registered this kind, or its settings or its prompt are refused.
    """
    return SELECTORS.get(config.kind)(language_model, retriever, prompt=prompt, config=config)


def config_to_dict(config: SelectorConfig) -> dict[str, Any]:
    """The configuration as a bundle writes it: ready for JSON, with the package that registers its kind."""
    return {"kind": config.kind, "package": SELECTORS.package_of(config.kind), **asdict(config)}


def config_from_dict(data: Mapping[str, Any]) -> SelectorConfig:
    """What `config_to_dict` wrote.

    Raises:
        MismatchError: A setting that no selector has.
        UsageError: No package registered the kind; the message names the package that does.
    """
    settings = {name: value for name, value in data.items() if name != "package"}
    if unknown := settings.keys() - {f.name for f in fields(SelectorConfig)}:
        raise MismatchError(
            f"A selector's settings must be fields of SelectorConfig, got {sorted(unknown)}. "
            "They were written by another version of this library."
        )
    config = SelectorConfig(**settings)
    SELECTORS.get(config.kind, data.get("package"))
    return config


def prompt_from_dict(kind: str, data: Mapping[str, Any]) -> RankingPrompt | QuestionPrompt:
    """The prompt of a selector of this kind, from its fields.

    Raises:
        TypeError: A field that this kind's prompt does not have.
        UsageError: No package registered the kind, or a template is refused.
    """
    return SELECTORS.get(kind).prompt_class(**data)
