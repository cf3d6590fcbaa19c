"""FAISS factory strings: taken apart, sized and judged from the text and the table of types; no index is made.

    [transform,]... [IVF<lists>[_HNSW<M>],] [HNSW<M>,] code [,RFlat | ,Refine(factory)]

Axes: N vectors in the index, d dimensions of a vector.
"""

import math
import re
from dataclasses import dataclass
from functools import cache

from indexes.errors import UsageError
from indexes.host_memory import format_bytes
from indexes.vectors.faiss.faiss_kinds import (
    FLOAT_BYTES,
    SEARCH_PARAMETERS,
    FaissKind,
    Transform,
    find_kind,
    find_transform,
    is_coarse,
    points_per_centroid,
    refused_in_refine,
)
from indexes.vectors.vector_store import Fidelity, StoreProperties

EXAMPLES = '"Flat", "HNSW32", "IVF1024,Flat", "IVF4096,PQ48x4fs,Refine(SQ8)"'

_LIST_ID = 8
# Per vector of a graph: its level and where its links begin.
_GRAPH_RECORD = 4 + 8
_LINK = 4
# Arrays grow by being copied into larger ones, so that for a while both are there (tests/test_faiss_factory.py).
_GROWTH = 1.75

# k-means is well fed with this many points per centroid; more only takes longer.
_POINTS_PER_LIST = 64
_POINTS_PER_CODE = 256
_SMALLEST_SAMPLE = 16_384
_LARGEST_SAMPLE = 2**20

_FLAT_LIMIT = 200_000
_GRAPH_LIMIT = 2_000_000

_MULTIPLES = {"": 1, "k": 1024, "M": 1024**2}


@dataclass(frozen=True)
class FactorySpec:
    """The parts of a factory string."""

    transforms: tuple[str, ...]
    """What is done to a vector first, in order, such as ("OPQ8_64",)."""
    lists: int
    """Clusters of an inverted file; 0 without one."""
    coarse: str
    """The index that finds a vector's cluster, "Flat" unless it is named; "" without clusters."""
    graph: str
    """"HNSW" or "NSG"; "" without a graph."""
    neighbours: int
    """M of a graph; 0 without one."""
    code: str
    """How a vector is stored in the lists or in the graph."""
    refine: str
    """The index by which the best are scored again; "" without one."""

    @property
    def within(self) -> str:
        """What holds the codes: "IVF", "HNSW", "NSG" or ""."""
        return "IVF" if self.lists else self.graph

    @property
    def kind(self) -> FaissKind | None:
        """The entry of the code in the table of types; None when there is none."""
        return find_kind(self.within, self.code)

    @property
    def code_bits(self) -> int:
        """Bits of each part of a product quantizer; 0 for other codes."""
        return self.kind.bits_of(self.code) if self.kind else 0


@dataclass(frozen=True, kw_only=True)
class FaissProperties(StoreProperties):
    """The properties of a factory string, from the entries of its parts; the worst is assumed of an untested type."""

    is_matrix: bool = False
    """Whether the memory of the index is its vectors, float32 [N, d], one after another."""
    maps_lists: bool = False
    """Whether FAISS can leave its inverted lists on the disk."""
    most_results: int | None = None
    """The most results of a search."""


def parse(factory: str) -> FactorySpec:
    """Take a factory string apart, without asking whether FAISS can build it.

    Raises:
        UsageError: Brackets are not closed, or the code is missing.
    """
    rest, refine = _split_refine(factory)
    transforms = []
    while (head := rest.partition(","))[1] and find_transform(head[0]) is not None:
        transforms.append(head[0])
        rest = head[2]
    lists, coarse, graph, neighbours = 0, "", "", 0
    if found := re.fullmatch(r"IVF(\d+)([kM]?)(?:_([A-Za-z]+\d*)|\((.*?)\))?,(.+)", rest):
        lists, coarse, rest = int(found[1]) * _MULTIPLES[found[2]], found[3] or found[4] or "Flat", found[5]
    elif found := re.fullmatch(r"(HNSW|NSG)(\d*)(?:[,_](.+))?", rest):
        graph, neighbours, rest = found[1], int(found[2] or 32), found[3] or "Flat"
    if not rest or rest.count("(") != rest.count(")"):
        raise UsageError(f"The factory must name an index, such as {EXAMPLES}, but got {factory!r}.")
    return FactorySpec(tuple(transforms), lists, coarse, graph, neighbours, rest, refine)


def _split_refine(factory: str) -> tuple[str, str]:
    if factory.endswith(",RFlat"):
        return factory.removesuffix(",RFlat"), "Flat"
    found = re.fullmatch(r"(.+),Refine(?:Panorama)?\((.+)\)", factory)
    return (found[1], found[2]) if found else (factory, "")


def stored_dimension(factory: str, dimension: int) -> int:
    """The dimension that is left after the transforms of a factory, for vectors of `dimension`."""
    for name in parse(factory).transforms:
        dimension = _transform(name).dimension_of(name, dimension)
    return dimension


def _transform(name: str) -> Transform:
    found = find_transform(name)
    assert found is not None, f"{name!r} was parsed as a transform"
    return found


# ---------------------------------------------------------------------------------------------------------
# Bytes
# ---------------------------------------------------------------------------------------------------------


def bytes_per_vector(factory: str, dimension: int) -> float:
    """Bytes that one more vector takes, both on disk and in memory.

    Args:
        factory: FAISS's description of the index.
        dimension: d.

    Raises:
        UsageError: The size of a code is not known.
    """
    spec = parse(factory)
    size: float = _code_bytes(spec, stored_dimension(factory, dimension))
    if spec.lists:
        size += _LIST_ID
    if spec.neighbours:
        size += _graph_bytes(spec.neighbours)
    if spec.refine:
        size += bytes_per_vector(spec.refine, dimension)
    return size


def fixed_bytes(factory: str, dimension: int) -> int:
    """Bytes that do not grow with the vectors: rotations, centroids, and the padding of lists that are blocks."""
    spec, inner = parse(factory), stored_dimension(factory, dimension)
    size = sum(FLOAT_BYTES * _transform(name).floats(dimension, inner) for name in spec.transforms)
    if spec.lists:
        size += int(spec.lists * bytes_per_vector(spec.coarse, inner))
        if spec.kind is not None:
            size += spec.lists * spec.kind.padding_of(spec.code, _code_bytes(spec, inner))
    if spec.code_bits:
        size += 2**spec.code_bits * inner * FLOAT_BYTES
    return size + (fixed_bytes(spec.refine, dimension) if spec.refine else 0)


def _code_bytes(spec: FactorySpec, dimension: int) -> int:
    known = spec.kind.bytes_of(spec.code, dimension) if spec.kind else None
    return _measured_code_bytes(spec.code, dimension) if known is None else known


def _measured_code_bytes(code: str, dimension: int) -> int:
    """Bytes of a code whose size only FAISS knows, such as additive quantizers."""
    import faiss

    try:
        return int(faiss.index_factory(dimension, code, faiss.METRIC_INNER_PRODUCT).sa_code_size())
    except RuntimeError as error:
        raise UsageError(
            f"The size of a vector must be known, but that of {code!r} in {dimension} dimensions is not. "
            f"Use a factory such as {EXAMPLES}."
        ) from error


def _graph_bytes(neighbours: int) -> float:
    """2 M links on the lowest level, and M on each level above, which one in M vectors of the level below reaches."""
    levels_above = 1 / (neighbours - 1) if neighbours > 1 else 1
    return _GRAPH_RECORD + _LINK * (2 * neighbours + neighbours * levels_above)


def build_bytes(factory: str, n: int, dimension: int) -> int:
    """Bytes of memory that training an index and adding n vectors to it takes, with the index itself.

    The vectors that are passed in are not counted, those that are kept are.

    Args:
        factory: FAISS's description of the index.
        n: N.
        dimension: d.
    """
    held, fixed = n * bytes_per_vector(factory, dimension), fixed_bytes(factory, dimension)
    sample = training_sample(factory, n) * dimension * FLOAT_BYTES
    # The sample, its residuals from the centroids, and a copy for each transform.
    training = (2 + len(parse(factory).transforms)) * sample
    return fixed + max(int(held * _GROWTH), training)


# ---------------------------------------------------------------------------------------------------------
# Training
# ---------------------------------------------------------------------------------------------------------


def training_points(factory: str, dimension: int = 0) -> int:
    """The fewest vectors that this kind of index can be trained on; 0 when it needs no training.

    Args:
        factory: FAISS's description of the index.
        dimension: d, of which a rotation without a number (OPQ8) needs as many; 0 leaves that out.
    """
    spec = parse(factory)
    codes = 2**spec.code_bits if spec.code_bits else 0
    points = [spec.lists, codes]
    if spec.refine:
        points.append(training_points(spec.refine, dimension))
    for name in spec.transforms:
        transform = _transform(name)
        points.append(transform.training_points(transform.dimension_of(name, dimension), codes))
    if spec.code != "Flat":
        points.append(1)
    return max(points)


def training_sample(factory: str, n: int) -> int:
    """How many of n vectors to train on: enough for good centroids, and not more than helps.

    Args:
        factory: FAISS's description of the index.
        n: N.

    Returns:
        At most n; 0 when nothing is trained.
    """
    fewest = training_points(factory)
    if not fewest:
        return 0
    spec = parse(factory)
    wanted: int = max(_SMALLEST_SAMPLE, spec.lists * _POINTS_PER_LIST, 2**spec.code_bits * _POINTS_PER_CODE, fewest)
    return min(n, max(fewest, min(wanted, _LARGEST_SAMPLE)))


def code_training_points(factory: str, sample: int) -> int:
    """How many of the vectors of a training sample FAISS learns the codes of an index from."""
    bits = parse(factory).code_bits
    return min(sample, 2**bits * points_per_centroid(bits)) if bits else sample


# ---------------------------------------------------------------------------------------------------------
# Properties
# ---------------------------------------------------------------------------------------------------------


@cache
def properties(factory: str) -> FaissProperties:
    """The properties of an index of this kind, as they were measured.

    Args:
        factory: FAISS's description of the index.

    Raises:
        UsageError: As `parse`.
    """
    spec = parse(factory)
    kind = spec.kind
    steps = [_transform(name) for name in spec.transforms]
    untested = "" if kind is not None else _part(spec)
    if spec.lists and not is_coarse(spec.coarse):
        untested = untested or f"IVF{spec.lists}({spec.coarse})"
    if kind is None:
        kind = _ASSUMED
    if spec.refine:
        return _refined(factory, spec, kind, untested)
    irreversible = next((step.irreversible for step in steps if step.irreversible), "")
    vectors = min([kind.vectors, *(step.vectors for step in steps)], key=_VECTORS.index)
    return FaissProperties(
        untested=untested,
        refused=kind.refused or kind.refused_alone or irreversible or _without_vectors(vectors),
        vectors=vectors,
        scores=min([kind.scores, *(step.scores for step in steps)], key=_SCORES.index),
        is_stable=kind.is_stable,
        is_matrix=kind.is_matrix and not steps,
        is_exhaustive=not spec.within and vectors == "same" and kind.scores == "exact",
        maps_lists=kind.maps_lists,
        most_results=kind.most_results,
    )


def _refined(factory: str, spec: FactorySpec, kind: FaissKind, untested: str) -> FaissProperties:
    """Of an index whose best are scored again: vectors and scores are those of the second index."""
    panorama = factory.endswith(f",RefinePanorama({spec.refine})")
    second = find_kind("", spec.refine)
    if panorama or second is None or not second.can_refine:
        untested = untested or (f"RefinePanorama({spec.refine})" if panorama else f"Refine({spec.refine})")
    reason = "" if panorama else refused_in_refine(spec.refine)
    if second is None:
        second = _ASSUMED
    return FaissProperties(
        untested=untested,
        refused=kind.refused or (f"refines with {spec.refine!r}, which {reason}" if reason else ""),
        vectors=second.vectors,
        scores=second.scores,
        is_stable=second.is_stable,
        is_matrix=False,
        is_exhaustive=False,
        maps_lists=kind.maps_lists,
        most_results=kind.most_results,
    )


_VECTORS = ("none", "near", "same")
_SCORES = ("other", "rounded", "exact")
_ASSUMED = FaissKind(code="", scores="other", is_stable=False, maps_lists=False)


def _without_vectors(vectors: Fidelity) -> str:
    return "gives no vectors back" if vectors == "none" else ""


def _part(spec: FactorySpec) -> str:
    return f"{spec.within},{spec.code}" if spec.within else spec.code


def refusal(factory: str, *, allow_untested: bool = False) -> str:
    """Why an index of this kind is refused: known faults, or results that were never measured; "" when it is not.

    Args:
        factory: FAISS's description of the index.
        allow_untested: Accept kinds whose results were not measured.

    Raises:
        UsageError: As `parse`.
    """
    found = properties(factory)
    if found.refused or not found.untested or allow_untested:
        return found.refused
    return (
        f"is untested: {found.untested!r} is not in the table of kinds whose results were measured "
        "(faiss_kinds). Allow it by allow_untested (--allow_untested) if you have compared its results with exact ones"
    )


def stores_exact_vectors(factory: str) -> bool:
    """Whether `reconstruct` returns the very vectors that were added."""
    return properties(factory).vectors == "same"


# ---------------------------------------------------------------------------------------------------------
# Searching
# ---------------------------------------------------------------------------------------------------------


def search_parameters(factory: str) -> dict[str, tuple[int, ...]]:
    """The parameters that trade recall for time, each with values from fast to thorough; empty for exact kinds."""
    spec = parse(factory)
    found: dict[str, tuple[int, ...]] = {}
    if spec.lists:
        found["nprobe"] = (*_powers(1, spec.lists), spec.lists)
        if spec.coarse.startswith("HNSW"):
            found["quantizer_efSearch"] = _powers(16, 1024)
    if spec.graph == "HNSW":
        found["efSearch"] = _powers(16, 2048)
    if spec.refine:
        found["k_factor_rf"] = _powers(1, 128)
    if spec.kind is not None:
        found |= {name: SEARCH_PARAMETERS[name].values for name in spec.kind.parameters}
    return found


def _powers(low: int, end: int) -> tuple[int, ...]:
    return tuple(2**i for i in range(low.bit_length() - 1, end.bit_length()) if low <= 2**i < end)


# ---------------------------------------------------------------------------------------------------------
# Choosing
# ---------------------------------------------------------------------------------------------------------


def choose_factory(n: int, dimension: int, *, memory: int | None = None) -> tuple[str, str]:
    """Choose the index for n vectors, with the reason in words.

    Exact search while it is fast, then a graph, then compressed clusters whose best hits are scored again; smaller
    kinds where these do not fit.

    Args:
        n: N.
        dimension: d.
        memory: Bytes that building and holding the index may take (`build_bytes`); None is no limit.

    Returns:
        A factory string, and why.
    """
    wanted = _wanted(n, dimension)
    first, why = wanted[0]
    if memory is None or build_bytes(first, n, dimension) <= memory:
        return first, f"{n:,} vectors: {why}"
    too_large = f"{n:,} vectors need {format_bytes(build_bytes(first, n, dimension))} as {first}, more than the "
    too_large += f"{format_bytes(memory)} allowed: "
    for factory, why in wanted[1:]:
        if build_bytes(factory, n, dimension) <= memory:
            return factory, f"{too_large}{factory} needs {format_bytes(build_bytes(factory, n, dimension))}, {why}"
    smallest = min((factory for factory, _ in wanted), key=lambda factory: build_bytes(factory, n, dimension))
    needed = format_bytes(build_bytes(smallest, n, dimension))
    return smallest, f"{too_large}nothing fits, and {smallest} comes closest with {needed}"


def _wanted(n: int, dimension: int) -> list[tuple[str, str]]:
    """Kinds from the best to the smallest, each with its reason."""
    lists = _lists(n)
    parts = _pq_parts(dimension)
    clusters = f"{lists:,} clusters of codes of {-(-parts // 2)} bytes"
    kinds = [
        ("Flat", f"few enough for exact search (up to {_FLAT_LIMIT:,})"),
        ("HNSW32", f"a graph finds neighbours fast (up to {_GRAPH_LIMIT:,})"),
        (f"IVF{lists},PQ{parts}x4fs,Refine(SQ8)", f"{clusters} (4 sqrt(n)), the best scored again at 8 bits"),
        (f"IVF{lists},PQ{parts}x4fs", f"{clusters}, not scored again"),
        # RaBitQ is as small, but its scores are not those of the vectors that it gives back (faiss_kinds).
        (f"IVF{lists},EDEN", f"{lists:,} clusters of one bit for each dimension"),
        ("EDEN", "one bit for each dimension"),
    ]
    return kinds if n <= _FLAT_LIMIT else kinds[1:] if n <= _GRAPH_LIMIT else kinds[2:]


def _lists(n: int) -> int:
    """About 4 sqrt(n), a power of two."""
    return int(2 ** round(math.log2(max(1, 4 * math.sqrt(n)))))


def _pq_parts(dimension: int) -> int:
    """The largest divisor of the dimension that leaves at least two dimensions to each part."""
    return next(parts for parts in range(max(1, dimension // 2), 0, -1) if dimension % parts == 0)
