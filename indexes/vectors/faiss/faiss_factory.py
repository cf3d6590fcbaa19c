"""What a FAISS factory string costs and needs, worked out from the string alone; no index is made.

    [transform,]... [IVF<lists>[_HNSW<M>],] [HNSW<M>,] code [,RFlat | ,Refine(factory)]

Axes: N vectors in the index, d dimensions of a vector.
"""

import math
import re
from dataclasses import dataclass
from functools import cache

from indexes.errors import UsageError
from indexes.vectors.faiss.faiss_kinds import (
    Scores,
    Storage,
    Vectors,
    is_coarse,
    refused_in_refine,
    storage_row,
    transform_row,
)
from indexes.vectors.milvus_kinds import milvus_kind

EXAMPLES = '"Flat", "HNSW32", "IVF1024,Flat", "IVF4096,PQ48x4fs,Refine(SQ8)"'

_FLOAT = 4
_LIST_ID = 8
# FAISS's fast scan compares so many vectors at once, and pads each list to a multiple of it.
_SCAN_BLOCK = 32
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

_PANORAMA = re.compile(r"Flat(?:IP)?Panorama(\d*)(?:_(\d+))?")  # levels, vectors of a block
_MULTIPLES = {"": 1, "k": 1024, "M": 1024**2}
_SCALAR_BITS = {"SQ0": 0, "SQ4": 4, "SQ6": 6, "SQ8": 8, "SQfp16": 16, "SQbf16": 16}


@dataclass(frozen=True)
class Parts:
    """A factory string taken apart."""

    transforms: tuple[str, ...]
    """What is done to a vector first, in order, such as ("OPQ8_64",)."""
    lists: int
    """Clusters of an inverted file; 0 without one."""
    coarse: str
    """The index that finds a vector's cluster, "Flat" unless said otherwise; "" without clusters."""
    graph: str
    """"HNSW" or "NSG"; "" without a graph."""
    neighbours: int
    """M of a graph; 0 without one."""
    code: str
    """How a vector is stored in the lists or in the graph."""
    refine: str
    """The index by which the best are scored again; "" without."""

    @property
    def within(self) -> str:
        """What holds the codes: "IVF", "HNSW", "NSG" or ""."""
        return "IVF" if self.lists else self.graph


@dataclass(frozen=True)
class Properties:
    """What an index of a factory string does, put together from the rows of `indexes.vectors.faiss.faiss_kinds`.

    Of an untested kind nothing good is assumed.
    """

    untested: str
    """The part of the factory string of which nothing was measured; "" where all of it was."""
    refused: str
    """Why such an index cannot be used; "" when it can."""
    vectors: Vectors
    """What `reconstruct` gives."""
    scores: Scores
    """What a search score is, compared with the inner product of the query and the reconstructed vector."""
    is_stable: bool
    """Whether vectors that are read back and added again are found as well as before."""
    is_matrix: bool
    """Whether the memory of the index is its vectors, float32 [N, d]."""
    is_exhaustive: bool
    """Whether a search compares every vector as it was added: the results are exact."""
    maps_lists: bool
    """Whether FAISS can leave its inverted lists on the disk."""
    most_results: int | None
    """The most results of a search."""


def parse(factory: str) -> Parts:
    """Take a factory string apart; whether FAISS can build it is FAISS's to say.

    Raises:
        UsageError: Brackets are open, or something is missing.
    """
    rest, refine = _split_refine(factory)
    transforms = []
    while (head := rest.partition(","))[1] and transform_row(head[0]) is not None:
        transforms.append(head[0])
        rest = head[2]
    lists, coarse, graph, neighbours = 0, "", "", 0
    if found := re.fullmatch(r"IVF(\d+)([kM]?)(?:_([A-Za-z]+\d*)|\((.*?)\))?,(.+)", rest):
        lists, coarse, rest = int(found[1]) * _MULTIPLES[found[2]], found[3] or found[4] or "Flat", found[5]
    elif found := re.fullmatch(r"(HNSW|NSG)(\d*)(?:[,_](.+))?", rest):
        graph, neighbours, rest = found[1], int(found[2] or 32), found[3] or "Flat"
    if not rest or rest.count("(") != rest.count(")"):
        raise UsageError(f"The factory must name an index, such as {EXAMPLES}, but {factory!r} came.")
    return Parts(tuple(transforms), lists, coarse, graph, neighbours, rest, refine)


def _split_refine(factory: str) -> tuple[str, str]:
    if factory.endswith(",RFlat"):
        return factory.removesuffix(",RFlat"), "Flat"
    found = re.fullmatch(r"(.+),Refine(?:Panorama)?\((.+)\)", factory)
    return (found[1], found[2]) if found else (factory, "")


def stored_dimension(factory: str, dimension: int) -> int:
    """The dimension that is left after the transforms of a factory, for vectors of `dimension`."""
    for transform in parse(factory).transforms:
        kind, number = re.fullmatch(r"([A-Za-z]+|L2[nN]orm)(?:\d+_)?(\d*)", transform).groups()  # type: ignore[union-attr]
        if kind == "HR":  # its number is a seed
            dimension = 1 << (dimension - 1).bit_length()
        elif number and not re.fullmatch(r"OPQ\d+", transform):
            dimension = int(number)
    return dimension


# ---------------------------------------------------------------------------------------------------------
# Bytes
# ---------------------------------------------------------------------------------------------------------


def bytes_per_vector(factory: str, dimension: int) -> float:
    """Bytes that one more vector takes, on disk and in memory alike.

    Args:
        factory: FAISS's description of the index.
        dimension: d.

    Raises:
        UsageError: The factory stores vectors in a way of which the size is not known.
    """
    parts = parse(factory)
    size: float = _code_bytes(parts.code, stored_dimension(factory, dimension))
    if parts.lists:
        size += _LIST_ID
    if parts.neighbours:
        size += _graph_bytes(parts.neighbours)
    if parts.refine:
        size += bytes_per_vector(parts.refine, dimension)
    return size


def fixed_bytes(factory: str, dimension: int) -> int:
    """Bytes that do not grow with the vectors: rotations, centroids, and the padding of lists that are blocks."""
    parts, inner = parse(factory), stored_dimension(factory, dimension)
    size = sum(_transform_bytes(transform, dimension, inner) for transform in parts.transforms)
    if parts.lists:
        size += int(parts.lists * bytes_per_vector(parts.coarse, inner))
        if parts.code.find("fs") > 0:
            size += parts.lists * _SCAN_BLOCK // 2 * int(_code_bytes(parts.code, inner))
        if found := _PANORAMA.fullmatch(parts.code):
            size += parts.lists * (int(found[2] or 1024) - 1) * int(_code_bytes(parts.code, inner)) // 2
    if bits := _code_bits(parts.code):
        size += 2**bits * inner * _FLOAT
    return size + (fixed_bytes(parts.refine, dimension) if parts.refine else 0)


def _transform_bytes(transform: str, dimension: int, inner: int) -> int:
    if re.match("L2[nN]orm|Pad|HR", transform):
        return 0
    # Principal components are kept whole, beside those that are used.
    matrices = dimension * (inner + dimension) if transform.startswith("PCA") else dimension * inner
    return matrices * _FLOAT


def _code_bytes(code: str, dimension: int) -> int:
    if code in ("Flat", "FlatDedup"):
        return _FLOAT * dimension
    if code in _SCALAR_BITS:
        return -(-dimension * _SCALAR_BITS[code] // 8)
    if found := _PANORAMA.fullmatch(code):  # and what is left of a vector at the beginning and after each level
        return _FLOAT * (dimension + int(found[1] or 8) + 1)
    if found := re.fullmatch(r"PQ(\d+)x4fsr?", code):
        return -(-int(found[1]) // 2)
    if found := re.fullmatch(r"PQ(\d+)(?:x(\d+))?(?:np)?", code):
        return -(-int(found[1]) * int(found[2] or 8) // 8)
    if found := re.fullmatch(r"RaBitQ(?:fs)?(\d?)", code):
        return _rabitq_bytes(dimension, int(found[1] or 1))
    if found := re.fullmatch(r"EDEN(\d?)", code):
        return -(-dimension * int(found[1] or 1) // 8) + 8
    return _measured_code_bytes(code, dimension)


def _rabitq_bytes(dimension: int, bits: int) -> int:
    """Signs and two factors; beyond one bit a third factor, and two more beside the other bits."""
    signs = -(-dimension // 8)
    return signs + 8 if bits == 1 else signs + 12 + -(-dimension * (bits - 1) // 8) + 8


def _measured_code_bytes(code: str, dimension: int) -> int:
    """Of rare codes, such as additive quantizers: FAISS says it."""
    import faiss

    try:
        return int(faiss.index_factory(dimension, code, faiss.METRIC_INNER_PRODUCT).sa_code_size())
    except RuntimeError as error:
        raise UsageError(
            f"The size of a vector must be known, but that of {code!r} in {dimension} dimensions is not. "
            f"Use a factory such as {EXAMPLES}."
        ) from error


def _graph_bytes(neighbours: int) -> float:
    """2 M links on the ground, and M on each level above, which one in M vectors of the level below reaches."""
    levels_above = 1 / (neighbours - 1) if neighbours > 1 else 1
    return _GRAPH_RECORD + _LINK * (2 * neighbours + neighbours * levels_above)


def build_bytes(factory: str, n: int, dimension: int) -> int:
    """Bytes of memory that it takes to train an index and to hold it while n vectors are added.

    The vectors that are handed over are not counted, those that are kept are.

    Args:
        factory: FAISS's description of the index.
        n: N.
        dimension: d.
    """
    held, fixed = n * bytes_per_vector(factory, dimension), fixed_bytes(factory, dimension)
    sample = training_sample(factory, n) * dimension * _FLOAT
    # The sample, what is left of it once centroids are taken off, and a rotated copy.
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
    parts = parse(factory)
    codes = 2 ** _code_bits(parts.code) if _code_bits(parts.code) else 0
    points = [parts.lists, codes]
    if parts.refine:
        points.append(training_points(parts.refine, dimension))
    for transform in parts.transforms:
        if transform.startswith("OPQ"):  # learned for the codes behind it, or for codes of 8 bits
            points += [codes or 2**8, int(transform.partition("_")[2] or dimension)]
        else:
            points.append(int(re.sub(r"\D", "", transform) or dimension) if re.match("PCA|ITQ", transform) else 1)
    if parts.code != "Flat":
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
    parts = parse(factory)
    wanted = max(
        _SMALLEST_SAMPLE, parts.lists * _POINTS_PER_LIST, 2 ** _code_bits(parts.code) * _POINTS_PER_CODE, fewest
    )
    return min(n, max(fewest, min(wanted, _LARGEST_SAMPLE)))


def _code_bits(code: str) -> int:
    """Bits of each part of a product quantizer; 0 for others."""
    found = re.fullmatch(r"PQ\d+(?:x(\d+))?(?:fsr?|np)?", code)
    return int(found[1] or 8) if found else 0


# ---------------------------------------------------------------------------------------------------------
# What it does
# ---------------------------------------------------------------------------------------------------------


@cache
def properties(factory: str) -> Properties:
    """What an index of this kind does, as it was measured.

    Args:
        factory: FAISS's description of the index, or "Milvus(<index type>)".

    Raises:
        UsageError: As `parse`.
    """
    if factory.startswith(_MILVUS):
        return _of_milvus(factory)
    parts = parse(factory)
    row = storage_row(parts.within, parts.code)
    steps = [step for name in parts.transforms if (step := transform_row(name)) is not None]
    untested = "" if row is not None else _part(parts)
    if parts.lists and not is_coarse(parts.coarse):
        untested = untested or f"IVF{parts.lists}({parts.coarse})"
    if row is None:
        row = _ASSUMED
    if parts.refine:
        return _refined(factory, parts, row, untested)
    irreversible = next((step.irreversible for step in steps if step.irreversible), "")
    vectors = min([row.vectors, *(step.vectors for step in steps)], key=_VECTORS.index)
    return Properties(
        untested=untested,
        refused=row.refused or row.refused_alone or irreversible or _without_vectors(vectors),
        vectors=vectors,
        scores=min([row.scores, *(step.scores for step in steps)], key=_SCORES.index),
        is_stable=row.is_stable,
        is_matrix=row.is_matrix and not steps,
        is_exhaustive=not parts.within and vectors == "same" and row.scores == "exact",
        maps_lists=row.maps_lists,
        most_results=row.most_results,
    )


def _of_milvus(factory: str) -> Properties:
    """Of vectors in Milvus, which gives back what was added whatever it searches by."""
    found = milvus_kind(factory.removeprefix(_MILVUS).removesuffix(")"))
    return Properties(
        untested="",
        refused="",
        vectors="same",
        scores=found.scores,
        is_stable=True,
        is_matrix=False,
        is_exhaustive=found.is_exhaustive,
        maps_lists=False,
        most_results=None,
    )


def _refined(factory: str, parts: Parts, row: Storage, untested: str) -> Properties:
    """Of an index whose best are scored again: vectors and scores are those of the second index."""
    panorama = factory.endswith(f",RefinePanorama({parts.refine})")
    second = storage_row("", parts.refine)
    if panorama or second is None or not second.can_refine:
        untested = untested or (f"RefinePanorama({parts.refine})" if panorama else f"Refine({parts.refine})")
    reason = "" if panorama else refused_in_refine(parts.refine)
    if second is None:
        second = _ASSUMED
    return Properties(
        untested=untested,
        refused=row.refused or (f"refines with {parts.refine!r}, which {reason}" if reason else ""),
        vectors=second.vectors,
        scores=second.scores,
        is_stable=second.is_stable,
        is_matrix=False,
        is_exhaustive=False,
        maps_lists=row.maps_lists,
        most_results=row.most_results,
    )


_MILVUS = "Milvus("
_VECTORS = ("none", "near", "same")
_SCORES = ("other", "rounded", "exact")
_ASSUMED = Storage(code="", scores="other", is_stable=False, maps_lists=False)


def _without_vectors(vectors: Vectors) -> str:
    return "gives no vectors back" if vectors == "none" else ""


def _part(parts: Parts) -> str:
    return f"{parts.within},{parts.code}" if parts.within else parts.code


def refusal(factory: str, *, allow_untested: bool = False) -> str:
    """Why an index of this kind is not used: known faults, or nothing measured; "" when it is.

    Args:
        factory: FAISS's description of the index.
        allow_untested: Let kinds pass of which nothing was measured.

    Raises:
        UsageError: As `parse`.
    """
    found = properties(factory)
    if found.refused or not found.untested or allow_untested:
        return found.refused
    return (
        f"is untested: {found.untested!r} is not in the table of kinds whose results were measured (indexes."
        "faiss_kinds). Allow it by allow_untested (--allow_untested) if you have compared its results with exact ones"
    )


def stores_exact_vectors(factory: str) -> bool:
    """Whether `reconstruct` gives back the very vectors that were added."""
    return properties(factory).vectors == "same"


def reencoding_is_stable(factory: str) -> bool:
    """Whether a vector that is read back and added again is found as well as before, however often.

    RaBitQ gives one bit of each dimension back, and the residual of SQtq is drawn anew: each time more is lost.
    """
    return properties(factory).is_stable


# ---------------------------------------------------------------------------------------------------------
# Searching
# ---------------------------------------------------------------------------------------------------------


def search_parameters(factory: str) -> dict[str, tuple[int, ...]]:
    """The parameters that trade recall for time, each with values from fast to thorough; empty for exact kinds."""
    parts = parse(factory)
    found: dict[str, tuple[int, ...]] = {}
    if parts.lists:
        found["nprobe"] = (*_powers(1, parts.lists), parts.lists)
        if parts.coarse.startswith("HNSW"):
            found["quantizer_efSearch"] = _powers(16, 1024)
    if parts.graph == "HNSW":
        found["efSearch"] = _powers(16, 2048)
    if parts.refine:
        found["k_factor_rf"] = _powers(1, 128)
    if (row := storage_row(parts.within, parts.code)) is not None:
        found |= {name: (4, 8) for name in row.parameters}
    return found


def _powers(low: int, end: int) -> tuple[int, ...]:
    return tuple(2**i for i in range(low.bit_length() - 1, end.bit_length()) if low <= 2**i < end)


# ---------------------------------------------------------------------------------------------------------
# Choosing
# ---------------------------------------------------------------------------------------------------------


def choose_factory(n: int, dimension: int, *, memory: int | None = None) -> tuple[str, str]:
    """The index for n vectors, and the reason in words.

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
    too_large = f"{n:,} vectors need {_in_words(build_bytes(first, n, dimension))} as {first}, more than the "
    too_large += f"{_in_words(memory)} allowed: "
    for factory, why in wanted[1:]:
        if build_bytes(factory, n, dimension) <= memory:
            return factory, f"{too_large}{factory} needs {_in_words(build_bytes(factory, n, dimension))}, {why}"
    smallest = min((factory for factory, _ in wanted), key=lambda factory: build_bytes(factory, n, dimension))
    needed = _in_words(build_bytes(smallest, n, dimension))
    return smallest, f"{too_large}nothing fits, and {smallest} comes closest with {needed}"


def _wanted(n: int, dimension: int) -> list[tuple[str, str]]:
    """Kinds from the best to the smallest, each with what speaks for it."""
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


def _in_words(size: int) -> str:
    for unit, bytes in (("GB", 10**9), ("MB", 10**6)):
        if size >= bytes:
            return f"{size / bytes:.1f} {unit}"
    return f"{size / 1000:.1f} kB"
