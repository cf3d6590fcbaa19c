"""The index types of Milvus: their search parameters and what their scores are.

Milvus and milvus-lite 3.2 accept search parameters that are wrong or belong to another type: with "ef=0" a graph finds
one of ten results, and it ignores "efSearch=64" and "nprobe=64". So parameters are checked before they are sent.
Names and ranges are those of Milvus's documentation ("Index Explained", the page of each type); a server's own limits
may be narrower, such as nprobe up to the number of clusters.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from indexes.errors import UsageError
from indexes.vectors.vector_store import Scores, StoreProperties

Range = tuple[float, float]

_MOST = 2**31 - 1
_EF: dict[str, Range] = {"ef": (1, _MOST)}
_NPROBE: dict[str, Range] = {"nprobe": (1, 65_536)}
_IVF: dict[str, Range] = {**_NPROBE, "max_empty_result_buckets": (1, 65_535)}
_REFINE: dict[str, Range] = {"refine_k": (1.0, _MOST)}
# These say how many candidates are kept, which are at least the k results.
_CANDIDATES = ("ef", "search_list", "reorder_k", "itopk_size")
_FRACTIONS = ("refine_k",)


@dataclass(frozen=True)
class MilvusKind:
    """An index type: its search parameters with the lowest and the highest value, and its scores."""

    parameters: Mapping[str, Range] = field(default_factory=dict)
    scores: Scores = "exact"
    """Compared with inner products of the vectors that Milvus returns, which are always those that were added."""
    is_exhaustive: bool = False
    """Whether a search compares every vector."""


_LITE = {
    "AUTOINDEX": MilvusKind(_EF),  # a graph, once a segment is sealed and the library faiss is installed
    "FLAT": MilvusKind(is_exhaustive=True),
    "HNSW": MilvusKind(_EF),
    "HNSW_SQ": MilvusKind(_EF, "other"),
    "IVF_FLAT": MilvusKind(_NPROBE),
    "IVF_SQ8": MilvusKind(_NPROBE, "other"),
}
"""What milvus-lite builds. It accepts any other name as well, and then searches without an index."""

_SERVER = {
    "AUTOINDEX": MilvusKind({"level": (1, 10)}, "other"),  # only the server knows which index it is
    "FLAT": MilvusKind(is_exhaustive=True),
    "HNSW": MilvusKind(_EF),
    "HNSW_SQ": MilvusKind(_EF | _REFINE, "other"),
    "HNSW_PQ": MilvusKind(_EF | _REFINE, "other"),
    "HNSW_PRQ": MilvusKind(_EF | _REFINE, "other"),
    "IVF_FLAT": MilvusKind(_IVF),
    "IVF_SQ8": MilvusKind(_IVF, "other"),
    "IVF_PQ": MilvusKind(_IVF, "other"),
    "IVF_RABITQ": MilvusKind(_NPROBE | _REFINE | {"rbq_query_bits": (0, 8)}, "other"),
    "SCANN": MilvusKind(_NPROBE | {"reorder_k": (1, _MOST)}, "other"),
    "DISKANN": MilvusKind({"search_list": (1, _MOST)}),
    "GPU_IVF_FLAT": MilvusKind(_NPROBE),
    "GPU_IVF_PQ": MilvusKind(_NPROBE, "other"),
    "GPU_BRUTE_FORCE": MilvusKind(is_exhaustive=True),
    "GPU_CAGRA": MilvusKind(
        {
            "itopk_size": (1, _MOST),
            "search_width": (1, _MOST),
            "min_iterations": (0, _MOST),
            "max_iterations": (0, _MOST),
            "team_size": (2, 32),
            "ef": (1, _MOST),
        }
    ),
}

LITE_TYPES = tuple(_LITE)
"""Index types that milvus-lite builds."""


def milvus_kind(index_type: str, *, is_lite: bool = False) -> MilvusKind:
    """The entry of an index type; the worst is assumed of one that is not known."""
    return (_LITE if is_lite else _SERVER).get(index_type, MilvusKind(scores="other"))


def milvus_properties(index_type: str) -> StoreProperties:
    """What an index type returns and how it searches: the vectors that were added, whatever it searches by."""
    kind = milvus_kind(index_type)
    return StoreProperties(scores=kind.scores, is_exhaustive=kind.is_exhaustive)


def search_settings(parameters: str | None, index_type: str, k: int, *, is_lite: bool) -> dict[str, float]:
    """Search parameters as Milvus takes them.

    Numbers of candidates are raised to k, since Milvus refuses smaller ones.

    Args:
        parameters: Such as "ef=64" or "nprobe=32,max_empty_result_buckets=1"; None or "" names none.
        index_type: As Milvus names it.
        k: How many results a query asks for.
        is_lite: Whether milvus-lite searches.

    Raises:
        UsageError: A parameter is not of this index type, or out of its range.
    """
    allowed = milvus_kind(index_type, is_lite=is_lite).parameters
    settings: dict[str, float] = {}
    for part in parameters.split(",") if parameters else []:
        match = re.fullmatch(r"\s*([A-Za-z_]\w*)=(-?\d+(?:\.\d+)?)\s*", part)
        if match is None:
            raise UsageError(f'Search parameters must be like "ef=64" or "nprobe=32", but got {parameters!r}.')
        name, text = match.groups()
        if name not in allowed:
            known = ", ".join(allowed) or "none"
            where = "milvus-lite" if is_lite else "Milvus"
            raise UsageError(
                f"Search parameters must be those of the index type {index_type!r} in {where} ({known}), but got "
                f"{name!r}. Leave {name} out."
            )
        settings[name] = _within(name, text, *allowed[name])
    return {name: max(value, k) if name in _CANDIDATES else value for name, value in settings.items()}


def _within(name: str, text: str, low: float, high: float) -> float:
    value = float(text)
    if not low <= value <= high or (name not in _FRACTIONS and not value.is_integer()):
        kind = "a number" if name in _FRACTIONS else "a whole number"
        raise UsageError(
            f"The search parameter {name} must be {kind} from {low:,.0f} to {high:,.0f}, but got {text!r}."
        )
    return value if name in _FRACTIONS else int(value)
