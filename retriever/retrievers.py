"""The retrievers by their kinds, and how one is made from its settings.

    @RETRIEVERS.register("nearest")
    class NearestRetriever(Retriever): ...

    RAG.create(index=..., retriever={"kind": "nearest", "radius": 2})

A package that is not imported by the program registers its kinds by an entry point (`indexes.registry`).
"""

import inspect
from collections.abc import Mapping
from typing import Any

from indexes.directory.passage_index import PassageIndex
from indexes.encoder import Encoder
from indexes.errors import UsageError
from indexes.registry import Registry
from retriever.retriever import Retriever

RETRIEVERS: Registry[type[Retriever]] = Registry(
    "retriever",
    builtin={
        "dense": "retriever.dense:DenseRetriever",
        "bm25": "retriever.hybrid:BM25Retriever",
        "hybrid": "retriever.hybrid:HybridRetriever",
    },
)
"""Subclasses of `retriever.retriever.Retriever`, by the "kind" of settings and bundles."""


def create_retriever(index: PassageIndex, encoder: Encoder, settings: str | Mapping[str, Any]) -> Retriever:
    """A retriever over an index.

    Args:
        index: An opened index directory.
        encoder: The encoder that built it.
        settings: A kind, or a mapping with a "kind" and the options of that kind, as `retriever_to_dict` gives it.

    Raises:
        MismatchError: The encoder did not build this index.
        UsageError: No package registered this kind (the message names the package that does, where a file says it), or
            the kind has no such option.
    """
    options = {"kind": settings} if isinstance(settings, str) else dict(settings)
    package = options.pop("package", None)
    cls = RETRIEVERS.get(options.pop("kind", ""), package)
    known = option_names(cls)
    if unknown := sorted(options.keys() - set(known)):
        raise UsageError(f"The options of a {cls.kind} retriever are {known}, got {unknown}.")
    return cls.from_settings(index, encoder, options)


def option_names(cls: type[Retriever]) -> list[str]:
    """The options of a kind: the keyword-only arguments of its constructor, without the question adapter."""
    parameters = inspect.signature(cls).parameters.values()
    return [p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY and p.name != "adapter"]


def retriever_to_dict(retriever: Retriever) -> dict[str, Any]:
    """A retriever's settings as a bundle writes them, with its kind and the package that registers it."""
    kind = retriever.kind
    return {"kind": kind, "package": RETRIEVERS.package_of(kind), **retriever.settings}
