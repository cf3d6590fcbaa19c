"""The layers of a FAISS index (refinement, transforms, the index that is searched), their types and their faults."""

import re
from collections.abc import Iterator
from typing import Any

# Before faiss: both bring an OpenMP runtime, and with torch loaded first the two share one pool of threads.
import torch  # noqa: F401

# isort: split
# The modules of this folder import faiss from here.
import faiss as faiss
from faiss.contrib.factory_tools import reverse_index_factory

from indexes.vectors.faiss.faiss_factory import parse
from indexes.vectors.faiss.faiss_kinds import FaissKind, find_kind, find_kind_of_class

untyped_faiss: Any = faiss
"""The stub of faiss lacks some of the classes that are used here."""


def layers_of(index: Any) -> Iterator[Any]:
    """An index and what it wraps, from outside in: refinement, transforms, then the index that is searched."""
    index = faiss.downcast_index(index)
    yield index
    if isinstance(index, faiss.IndexRefine):
        yield from layers_of(index.base_index)
    elif isinstance(index, faiss.IndexPreTransform):
        yield from layers_of(index.index)


def searched_layer(index: Any) -> Any:
    """The innermost layer, which holds the codes."""
    return list(layers_of(index))[-1]


def kind_of(index: Any) -> FaissKind | None:
    """The entry of the table that lists the class of an index, or a class that it derives from; None without one."""
    return find_kind_of_class(*(cls.__name__ for cls in type(index).__mro__))


def unrefined_ivf(index: Any) -> Any:
    """The inverted file by which vectors are reconstructed; None where another index keeps them."""
    layers = list(layers_of(index))
    refined = any(isinstance(layer, faiss.IndexRefine) for layer in layers)
    return layers[-1] if isinstance(layers[-1], faiss.IndexIVF) and not refined else None


def unsupported_reason(index: Any, factory: str) -> str:
    """What is wrong with an index itself, besides what the table says of its kind; "" when nothing is."""
    if isinstance(index, faiss.IndexIDMap | faiss.IndexIDMap2):
        return "maps ids, but ids are rows here"
    if any(layer.metric_type != faiss.METRIC_INNER_PRODUCT for layer in layers_of(index)):
        return "compares by distance whatever it is asked for"
    return _other_class(index, factory)


def factory_of(index: Any) -> str:
    """The factory string of an index; the name of its class where FAISS has none, or the one of another kind."""
    searched = searched_layer(index)
    try:
        factory = str(reverse_index_factory(index))
    except (NotImplementedError, AssertionError, KeyError):
        return type(searched).__name__
    # It calls a FlatIPPanorama8 "Flat", and leaves the size of a block out of "PQ8x4fs_64".
    misnamed = _other_class(index, factory) or getattr(searched, "bbs", 32) != 32
    return type(searched).__name__ if misnamed else factory


def _other_class(index: Any, factory: str) -> str:
    """How the classes of an index differ from those of its kind; "" when they do not, or the kind is unknown."""
    spec, layers = parse(factory), list(layers_of(index))
    found = [(spec.kind, layers[-1])]
    if isinstance(layers[0], faiss.IndexRefine):
        found.append((find_kind("", spec.refine), faiss.downcast_index(layers[0].refine_index)))
    for kind, layer in found:
        if kind is not None and kind.classes and type(layer).__name__ not in kind.classes:
            return f"holds a {type(layer).__name__} where {' or '.join(kind.classes)} belongs"
    return ""


def faiss_reason(error: BaseException) -> str:
    """FAISS's message without the C++ signature and file in front of it."""
    text = str(error).strip()
    return re.sub(r"^Error in .*? at \S+: (?:Error: )?", "", text, flags=re.S) or type(error).__name__
