"""The answer modes by kind, and how one is created from its kind or from a bundle (imports no torch).

@ANSWER_MODES.register("majority_vote")
class MajorityVote(AnswerMode): ...

RAG.create(index=..., answer_mode="majority_vote")
"""

from collections.abc import Mapping
from inspect import Parameter, signature
from typing import TYPE_CHECKING, Any

from indexes.errors import UsageError
from indexes.registry import Registry

if TYPE_CHECKING:
    from generator.generator import Generator
    from rag.answering.answer_mode import AnswerMode
    from retriever.retriever import Retriever
    from retriever.selector import Selector

PERMUTATION = "permutation"
"""The default: the generator reads a whole permutation in one prompt."""

ANSWER_MODES: "Registry[type[AnswerMode]]" = Registry(
    "answer mode",
    builtin={
        "permutation": "rag.answering.permutation_mode:PermutationMode",
        "rag_sequence": "rag.answering.rag_sequence:RAGSequence",
        "rag_token": "rag.answering.rag_token:RAGToken",
    },
)
"""Subclasses of `rag.answering.answer_mode.AnswerMode` by the kind that bundles record."""


def create_answer_mode(
    mode: str | Mapping[str, Any], retriever: "Retriever", selector: "Selector", generator: "Generator"
) -> "AnswerMode":
    """The answer mode of a kind, or of a mapping with "kind" and its options (and "package", in bundles).

    Raises:
        UsageError: The kind is not registered, or has no such option, or refuses this selector.
    """
    options = {"kind": mode} if isinstance(mode, str) else dict(mode)
    kind, package = options.pop("kind", None), options.pop("package", None)
    answer_mode = ANSWER_MODES.get(str(kind), package)
    known = [p.name for p in signature(answer_mode).parameters.values() if p.kind is Parameter.KEYWORD_ONLY]
    if unknown := sorted(options.keys() - set(known)):
        raise UsageError(f"The options of the answer mode {kind!r} are {known}, got {unknown}.")
    return answer_mode(retriever, selector, generator, **options)


def answer_mode_to_dict(mode: "AnswerMode") -> dict[str, Any]:
    """What a bundle records: kind, the package that registers it, and options."""
    return {"kind": mode.kind, "package": ANSWER_MODES.package_of(mode.kind), **mode.settings}
