"""The table of FAISS index types: everything that the library knows of one is its entry here.

    [transform,]... [IVF<lists>[_HNSW<M>],] [HNSW<M>,] code [,RFlat | ,Refine(factory)]

A type is a code (how a vector is stored) inside of nothing, an inverted file (IVF) or a graph. Its entry holds the
pattern of its name, examples, the size of a code, what it is trained on, its search parameters, and its properties:
whether vectors come back as they were added, what a score is, and why it is refused if it is. A new type is one entry.

Neither the class nor the name of a FAISS index tells its properties. In FAISS 1.15.1 a `FlatIPPanorama8` is a subclass
of `IndexFlat` that does not store one vector after another, "IVF16,SQ0" reports that it is trained before it has
clusters, the vectors that come back from "RaBitQ8" have one bit for each dimension, and "PQ8x4fs_64" returns vectors
that were never added. So the properties are measured: `tests/test_faiss_kinds.py` builds a small index of every
example.

A type without an entry is untested, and refused unless the caller allows it. An entry with `refused` is known not to
work; it is refused in any case and never built, not even by the tests.

Axes: d dimensions of a vector as it is stored.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, TypeAlias

from indexes.vectors.vector_store import Fidelity, Scores

Within: TypeAlias = Literal["", "IVF", "HNSW", "NSG"]
"""What holds the codes: nothing, an inverted file, or a graph."""

FLOAT_BYTES = 4
CLUSTERING_ROUNDS = 10
"""Iterations of FAISS's k-means over the lists of an inverted file."""
MAX_POINTS_PER_LIST = 256
"""FAISS trains the clusters of an inverted file on at most so many vectors for each."""

_ADDITIVE = r"(?:RQ|LSQ)\d+x\d+(?:_\d+x\d+)*|(?:PRQ|PLSQ)\d+x\d+x\d+"
_ADDITIVE_SCAN = r"(?:RQ|LSQ)\d+x4fs|(?:PRQ|PLSQ)\d+x\d+x4fs"
_PQ = r"PQ(?P<parts>\d+)(?:x(?P<bits>\d+))?(?:np)?"
_PQ_SCAN = r"PQ(?P<parts>\d+)x(?P<bits>4)fs"
_L2_ONLY = "compares by distance whatever it is asked for"
_NO_PAIRS = "cannot be built: FAISS compares no two of its codes, and the process ends at the first"
# FAISS's fast scan compares so many vectors at once, and pads each list to a multiple of it.
_SCAN_BLOCK = 32
_SCALAR_BITS = {"SQ0": 0, "SQ4": 4, "SQ6": 6, "SQ8": 8, "SQfp16": 16, "SQbf16": 16}


# ---------------------------------------------------------------------------------------------------------
# Sizes of codes in bytes, from the match of a name and d; None where only FAISS knows it
# ---------------------------------------------------------------------------------------------------------


def _no_size(name: re.Match[str], d: int) -> int | None:
    return None


def _float_bytes(name: re.Match[str], d: int) -> int:
    return FLOAT_BYTES * d


def _scalar_bytes(name: re.Match[str], d: int) -> int | None:
    bits = _SCALAR_BITS.get(name[0])
    return None if bits is None else -(-d * bits // 8)


def _panorama_bytes(name: re.Match[str], d: int) -> int:
    """The vector, and the norm of what is left of it at the beginning and after each level."""
    return FLOAT_BYTES * (d + int(name["levels"] or 8) + 1)


def _product_bytes(name: re.Match[str], d: int) -> int:
    return -(-int(name["parts"]) * _product_bits(name) // 8)


def _rabitq_bytes(name: re.Match[str], d: int) -> int:
    """Signs and two factors; with more than one bit the other bits and three more factors."""
    bits, signs = int(name["bits"] or 1), -(-d // 8)
    return signs + 8 if bits == 1 else signs + 12 + -(-d * (bits - 1) // 8) + 8


def _eden_bytes(name: re.Match[str], d: int) -> int | None:
    return None if "BIAS" in name[0] else -(-d * int(name["bits"] or 1) // 8) + 8


def _product_bits(name: re.Match[str]) -> int:
    return int(name["bits"] or 8)


def _no_bits(name: re.Match[str]) -> int:
    return 0


def _no_padding(name: re.Match[str], code_bytes: int) -> int:
    return 0


def _scan_padding(name: re.Match[str], code_bytes: int) -> int:
    """The last block of a list is half full on average."""
    return _SCAN_BLOCK // 2 * code_bytes


def _panorama_padding(name: re.Match[str], code_bytes: int) -> int:
    return (int(name["block"] or 1024) - 1) * code_bytes // 2


def _restore_codebook(index: Any) -> None:
    """Point an inverted file for the fast scan at its codebook, which reading forgets and reconstructing needs."""
    index.fine_quantizer = index.pq


@dataclass(frozen=True, kw_only=True)
class FaissKind:
    """A type of FAISS index: how a vector is stored, and all that follows from it."""

    code: str
    """A regular expression for the code in a factory string."""
    within: Within = ""
    examples: tuple[str, ...] = ()
    """Codes that are built where the properties are measured; none of a type that is refused."""
    classes: tuple[str, ...] = ()
    """FAISS's classes, exactly: not their subclasses."""
    vectors: Fidelity = "near"
    scores: Scores = "exact"
    is_trained: bool = False
    """Whether an empty index needs no training."""
    is_stable: bool = True
    """Whether what is read back and added again, eight times over, is found as well as before."""
    is_matrix: bool = False
    """Whether the memory of the index is its vectors, float32 [N, d], one after another."""
    maps_lists: bool = True
    """Whether FAISS can leave its inverted lists on the disk."""
    file_tag: bytes = b""
    """The first four bytes of its file, where `maps_lists` is false."""
    most_results: int | None = None
    """The most results of a search."""
    code_bytes: Callable[[re.Match[str], int], int | None] = _no_size
    """Bytes of one code; None where FAISS has to be asked."""
    code_bits: Callable[[re.Match[str]], int] = _no_bits
    """Bits of each part of a product quantizer; 0 for others."""
    list_padding: Callable[[re.Match[str], int], int] = _no_padding
    """Bytes by which a list is padded on average, from the bytes of a code."""
    has_product_quantizer: bool = False
    """Whether it learns codes by k-means, with the settings in `pq.cp` of the index."""
    after_reading: Callable[[Any], None] | None = None
    """What to repair in an index that FAISS has read from a file."""
    parameters: tuple[str, ...] = ()
    """Search parameters of the code itself, of `SEARCH_PARAMETERS`."""
    parameter_class: str = ""
    """FAISS's class of search parameters, where the code has some of its own."""
    can_refine: bool = False
    """Whether it may score the best of another index again, in `Refine(...)`."""
    refused: str = ""
    """Why it cannot be used at all."""
    refused_alone: str = ""
    """Why it can be used only where the best are scored again, as in "IVF16,SQ0,RFlat"."""

    def bytes_of(self, code: str, dimension: int) -> int | None:
        """Bytes of one code of this name; None where FAISS has to be asked."""
        return self.code_bytes(self._match(code), dimension)

    def bits_of(self, code: str) -> int:
        """Bits of each part of a product quantizer of this name; 0 for others."""
        return self.code_bits(self._match(code))

    def padding_of(self, code: str, code_bytes: int) -> int:
        """Bytes by which a list of codes of this name is padded on average."""
        return self.list_padding(self._match(code), code_bytes)

    def _match(self, code: str) -> re.Match[str]:
        match = re.fullmatch(self.code, code)
        assert match is not None, f"{code!r} is not of the kind {self.code!r}"
        return match


def _one_point(out: int, codes: int) -> int:
    return 1


def _dimension_points(out: int, codes: int) -> int:
    return out


def _rotation_points(out: int, codes: int) -> int:
    """As many as the codes behind it need, or codes of 8 bits."""
    return max(codes or 2**8, out)


def _named_dimension(name: re.Match[str], dimension: int) -> int:
    return int(name.groupdict().get("out") or dimension)


def _power_of_two(name: re.Match[str], dimension: int) -> int:
    return 1 << (dimension - 1).bit_length()


def _no_matrix(dimension: int, out: int) -> int:
    return 0


def _rotation_matrix(dimension: int, out: int) -> int:
    return dimension * out


def _all_components(dimension: int, out: int) -> int:
    """All principal components are kept, beside those that are used."""
    return dimension * (out + dimension)


@dataclass(frozen=True, kw_only=True)
class Transform:
    """What is done to vectors and queries before they reach the index."""

    name: str
    """A regular expression for the transform in a factory string; its group "out" is the dimension of the result."""
    examples: tuple[str, ...]
    vectors: Fidelity
    """What is left of a vector that is transformed and transformed back."""
    scores: Scores = "exact"
    is_trained: bool = False
    """Whether it needs no training."""
    irreversible: str = ""
    """Why no vectors come back."""
    out_dimension: Callable[[re.Match[str], int], int] = _named_dimension
    """The dimension of the result, from that of a vector."""
    floats: Callable[[int, int], int] = _rotation_matrix
    """Numbers in its matrices, from both dimensions."""
    training_points: Callable[[int, int], int] = _one_point
    """The fewest vectors to train on, from the dimension of the result and the centroids of the codes behind it."""

    def dimension_of(self, name: str, dimension: int) -> int:
        """The dimension of the result of a transform of this name."""
        match = re.fullmatch(self.name, name)
        assert match is not None, f"{name!r} is not of the kind {self.name!r}"
        return self.out_dimension(match, dimension)


@dataclass(frozen=True, kw_only=True)
class SearchParameter:
    """A setting of one search."""

    lowest: int = 1
    highest: int = 2**31 - 1
    is_fraction: bool = False
    values: tuple[int, ...] = ()
    """What tuning tries for a parameter of a code, from fast to thorough; the highest is the default."""


SEARCH_PARAMETERS: dict[str, SearchParameter] = {
    "nprobe": SearchParameter(),
    "efSearch": SearchParameter(),
    "quantizer_efSearch": SearchParameter(),
    "k_factor_rf": SearchParameter(is_fraction=True),
    "qb": SearchParameter(highest=8, values=(4, 8)),
}
"""By the names that FAISS's `ParameterSpace` uses."""


FAISS_KINDS: tuple[FaissKind, ...] = (
    # -- nothing around the codes -------------------------------------------------------------------------------
    FaissKind(
        code="Flat",
        examples=("Flat",),
        classes=("IndexFlat", "IndexFlatIP"),
        code_bytes=_float_bytes,
        vectors="same",
        is_trained=True,
        is_matrix=True,
        can_refine=True,
    ),
    FaissKind(
        code=r"FlatIPPanorama(?P<levels>\d+)",
        code_bytes=_panorama_bytes,
        examples=("FlatIPPanorama8",),
        classes=("IndexFlatIPPanorama",),
        vectors="same",
        is_trained=True,
        most_results=1024,
    ),
    FaissKind(
        code="SQ[468]",
        examples=("SQ4", "SQ6", "SQ8"),
        classes=("IndexScalarQuantizer",),
        code_bytes=_scalar_bytes,
        can_refine=True,
    ),
    FaissKind(
        code="SQ(?:fp|bf)16",
        examples=("SQfp16", "SQbf16"),
        classes=("IndexScalarQuantizer",),
        code_bytes=_scalar_bytes,
        is_trained=True,
        can_refine=True,
    ),
    FaissKind(
        code="SQtqmse[12348]",
        examples=("SQtqmse1", "SQtqmse2", "SQtqmse3", "SQtqmse4", "SQtqmse8"),
        classes=("IndexScalarQuantizer",),
        can_refine=True,
    ),
    FaissKind(
        code="SQtq[2-5]",
        examples=("SQtq2", "SQtq3", "SQtq4", "SQtq5"),
        classes=("IndexScalarQuantizer",),
        is_stable=False,
        can_refine=True,
    ),
    FaissKind(code="SQ0", code_bytes=_scalar_bytes, refused="stores nothing of a vector"),
    FaissKind(code="SQ8_direct(?:_signed)?", refused="stores whole numbers from 0 to 255 only"),
    FaissKind(
        code=_PQ,
        examples=("PQ8", "PQ8x4", "PQ8x4np"),
        classes=("IndexPQ",),
        code_bytes=_product_bytes,
        code_bits=_product_bits,
        has_product_quantizer=True,
        can_refine=True,
    ),
    FaissKind(
        code=f"{_PQ_SCAN}(?:_32)?",
        examples=("PQ8x4fs", "PQ8x4fs_32"),
        classes=("IndexPQFastScan",),
        code_bytes=_product_bytes,
        code_bits=_product_bits,
        has_product_quantizer=True,
        scores="rounded",
    ),
    FaissKind(  # FAISS reads vectors of blocks of another size than 32 as if they were of 32
        code=rf"{_PQ_SCAN}_\d+",
        examples=("PQ8x4fs_64",),
        classes=("IndexPQFastScan",),
        code_bytes=_product_bytes,
        code_bits=_product_bits,
        has_product_quantizer=True,
        vectors="none",
        scores="rounded",
    ),
    FaissKind(
        code="RaBitQ(?P<bits>1?)",
        examples=("RaBitQ", "RaBitQ1"),
        classes=("IndexRaBitQ",),
        scores="other",
        code_bytes=_rabitq_bytes,
        parameters=("qb",),
        parameter_class="RaBitQSearchParameters",
    ),
    FaissKind(  # one bit of each dimension is read back, however many are searched
        code="RaBitQ(?P<bits>[2-9])",
        examples=("RaBitQ2", "RaBitQ4", "RaBitQ8"),
        classes=("IndexRaBitQ",),
        scores="other",
        is_stable=False,
        code_bytes=_rabitq_bytes,
        parameters=("qb",),
        parameter_class="RaBitQSearchParameters",
    ),
    FaissKind(
        code="RaBitQfs(?P<bits>1?)(?:_32)?",
        code_bytes=_rabitq_bytes,
        examples=("RaBitQfs",),
        classes=("IndexRaBitQFastScan",),
        scores="other",
    ),
    FaissKind(
        code="RaBitQfs(?P<bits>[2-9])(?:_32)?",
        code_bytes=_rabitq_bytes,
        examples=("RaBitQfs4",),
        classes=("IndexRaBitQFastScan",),
        scores="other",
        is_stable=False,
    ),
    FaissKind(
        code="EDEN(?P<bits>[1-8]?)(?:BIAS(?:ED)?)?",
        code_bytes=_eden_bytes,
        examples=("EDEN", "EDEN1", "EDEN2", "EDEN4", "EDEN8", "EDEN4BIASED"),
        classes=("IndexEDEN",),
        can_refine=True,
    ),
    FaissKind(
        code=f"(?:{_ADDITIVE})(?:_Nfloat|_Nnone)?",
        examples=("RQ4x4", "RQ4x4_Nfloat", "LSQ4x4", "PRQ4x2x4", "PLSQ4x2x4"),
        classes=(
            "IndexResidualQuantizer",
            "IndexLocalSearchQuantizer",
            "IndexProductResidualQuantizer",
            "IndexProductLocalSearchQuantizer",
        ),
    ),
    FaissKind(
        code=_ADDITIVE_SCAN,
        examples=("RQ4x4fs", "LSQ4x4fs", "PRQ4x2x4fs", "PLSQ4x2x4fs"),
        classes=(
            "IndexResidualQuantizerFastScan",
            "IndexLocalSearchQuantizerFastScan",
            "IndexProductResidualQuantizerFastScan",
            "IndexProductLocalSearchQuantizerFastScan",
        ),
        scores="rounded",
    ),
    FaissKind(code="MinMax(?:FP16)?,.+", refused="cannot be added to"),
    # -- inverted files -----------------------------------------------------------------------------------------
    FaissKind(
        within="IVF",
        code="Flat",
        examples=("Flat",),
        classes=("IndexIVFFlat",),
        vectors="same",
        code_bytes=_float_bytes,
    ),
    FaissKind(
        within="IVF",
        code=r"FlatPanorama(?P<levels>\d*)(?:_(?P<block>\d+))?",
        code_bytes=_panorama_bytes,
        list_padding=_panorama_padding,
        file_tag=b"IwP2",
        examples=("FlatPanorama8", "FlatPanorama8_64"),
        classes=("IndexIVFFlatPanorama",),
        vectors="same",
        maps_lists=False,
    ),
    FaissKind(
        within="IVF",
        code="FlatDedup",
        examples=("FlatDedup",),
        classes=("IndexIVFFlatDedup",),
        vectors="none",
        code_bytes=_float_bytes,
    ),
    FaissKind(
        within="IVF",
        code="SQ[468]|SQ(?:fp|bf)16|SQtqmse[12348]",
        code_bytes=_scalar_bytes,
        examples=("SQ4", "SQ6", "SQ8", "SQfp16", "SQbf16", "SQtqmse2", "SQtqmse4", "SQtqmse8"),
        classes=("IndexIVFScalarQuantizer",),
    ),
    FaissKind(
        within="IVF",
        code="SQtq[2-5]",
        examples=("SQtq2", "SQtq3", "SQtq4", "SQtq5"),
        classes=("IndexIVFScalarQuantizer",),
        is_stable=False,
    ),
    # It also reports that it is trained while it has no clusters, and then finds nothing: FaissIndex counts them.
    FaissKind(
        within="IVF",
        code="SQ0",
        classes=("IndexIVFScalarQuantizer",),
        code_bytes=_scalar_bytes,
        refused_alone="stores nothing of a vector but its cluster, so that all in one score the same. Add RFlat",
    ),
    FaissKind(within="IVF", code="SQ8_direct(?:_signed)?", refused="stores whole numbers from 0 to 255 only"),
    FaissKind(
        within="IVF",
        code=_PQ,
        examples=("PQ8", "PQ8x4", "PQ8x4np"),
        classes=("IndexIVFPQ",),
        code_bytes=_product_bytes,
        code_bits=_product_bits,
        has_product_quantizer=True,
    ),
    FaissKind(
        within="IVF",
        code=f"{_PQ_SCAN}r?(?:_32)?",
        code_bytes=_product_bytes,
        code_bits=_product_bits,
        list_padding=_scan_padding,
        has_product_quantizer=True,
        after_reading=_restore_codebook,
        examples=("PQ8x4fs", "PQ8x4fsr"),
        classes=("IndexIVFPQFastScan",),
        scores="rounded",
    ),
    FaissKind(
        within="IVF",
        code=rf"{_PQ_SCAN}r?_\d+",
        code_bytes=_product_bytes,
        code_bits=_product_bits,
        list_padding=_scan_padding,
        has_product_quantizer=True,
        after_reading=_restore_codebook,
        examples=("PQ8x4fs_64",),
        classes=("IndexIVFPQFastScan",),
        vectors="none",
        scores="rounded",
    ),
    FaissKind(
        within="IVF",
        code="RaBitQ(?P<bits>[1-9]?)",
        examples=("RaBitQ", "RaBitQ4", "RaBitQ8"),
        classes=("IndexIVFRaBitQ",),
        scores="other",
        is_stable=False,
        code_bytes=_rabitq_bytes,
        parameters=("qb",),
        parameter_class="IVFRaBitQSearchParameters",
    ),
    FaissKind(
        within="IVF",
        code="RaBitQfs(?P<bits>[1-9]?)(?:_32)?",
        code_bytes=_rabitq_bytes,
        list_padding=_scan_padding,
        parameter_class="IVFRaBitQSearchParameters",
        examples=("RaBitQfs", "RaBitQfs4"),
        classes=("IndexIVFRaBitQFastScan",),
        vectors="none",
        scores="other",
        parameters=("qb",),
    ),
    FaissKind(
        within="IVF",
        code="EDEN(?P<bits>1?)(?:BIAS(?:ED)?)?",
        code_bytes=_eden_bytes,
        examples=("EDEN",),
        classes=("IndexIVFEDEN",),
        is_stable=False,
    ),
    FaissKind(
        within="IVF",
        code="EDEN(?P<bits>[2-8])(?:BIAS(?:ED)?)?",
        code_bytes=_eden_bytes,
        examples=("EDEN2", "EDEN4", "EDEN8", "EDEN4BIASED"),
        classes=("IndexIVFEDEN",),
    ),
    FaissKind(
        within="IVF",
        code=f"(?:{_ADDITIVE})(?:_Nfloat|_Nnone)?",
        examples=("RQ4x4", "LSQ4x4", "PRQ4x2x4", "PLSQ4x2x4"),
        classes=(
            "IndexIVFResidualQuantizer",
            "IndexIVFLocalSearchQuantizer",
            "IndexIVFProductResidualQuantizer",
            "IndexIVFProductLocalSearchQuantizer",
        ),
    ),
    FaissKind(
        within="IVF",
        code=f"(?:{_ADDITIVE_SCAN}r?).*",
        refused="cannot be told for one search how many lists to look into",
    ),
    # -- graphs -------------------------------------------------------------------------------------------------
    FaissKind(
        within="HNSW",
        code="Flat",
        examples=("Flat",),
        classes=("IndexHNSWFlat",),
        vectors="same",
        is_trained=True,
        code_bytes=_float_bytes,
    ),
    FaissKind(
        within="HNSW",
        code="SQ[468]|SQtqmse[12348]",
        code_bytes=_scalar_bytes,
        examples=("SQ4", "SQ6", "SQ8", "SQtqmse2", "SQtqmse4"),
        classes=("IndexHNSWSQ",),
    ),
    FaissKind(
        within="HNSW",
        code="SQ(?:fp|bf)16",
        code_bytes=_scalar_bytes,
        examples=("SQfp16", "SQbf16"),
        classes=("IndexHNSWSQ",),
        is_trained=True,
    ),
    FaissKind(within="HNSW", code="SQ0|SQtq[2-5]", refused=_NO_PAIRS),
    FaissKind(within="HNSW", code="SQ8_direct(?:_signed)?", refused="stores whole numbers from 0 to 255 only"),
    FaissKind(within="HNSW", code=r"PQ\d+(?:x\d+)?(?:np)?", refused=_L2_ONLY),
    FaissKind(within="NSG", code=".*", refused="cannot be added to"),
)

TRANSFORMS: tuple[Transform, ...] = (
    # PCA and ITQ subtract the mean of the vectors from queries as well, and L2norm shortens both.
    Transform(
        name=r"PCAR?(?P<out>\d+)",
        examples=("PCA16", "PCAR16"),
        vectors="near",
        scores="other",
        floats=_all_components,
        training_points=_dimension_points,
    ),
    Transform(
        name=r"PCAWR?(?P<out>\d+)",
        floats=_all_components,
        training_points=_dimension_points,
        examples=("PCAW16",),
        vectors="none",
        scores="other",
        irreversible="whitens, which cannot be undone",
    ),
    Transform(
        name=r"ITQ(?P<out>\d*)",
        training_points=_dimension_points,
        examples=("ITQ", "ITQ16"),
        vectors="none",
        scores="other",
        irreversible="rotates and centres (ITQ), which FAISS does not undo",
    ),
    Transform(
        name="L2[nN]orm", examples=("L2norm",), vectors="near", scores="other", is_trained=True, floats=_no_matrix
    ),
    Transform(name=r"RR(?P<out>\d*)", examples=("RR", "RR16"), vectors="near"),
    Transform(  # its number is a seed
        name=r"HR\d*",
        examples=("HR", "HR7"),
        vectors="near",
        is_trained=True,
        out_dimension=_power_of_two,
        floats=_no_matrix,
    ),
    Transform(
        name=r"OPQ\d+(?:_(?P<out>\d+))?",
        examples=("OPQ8", "OPQ8_16"),
        vectors="near",
        training_points=_rotation_points,
    ),
    Transform(name=r"Pad(?P<out>\d+)", examples=("Pad48",), vectors="same", is_trained=True, floats=_no_matrix),
)

REFUSED_IN_REFINE = {
    r"(?:.+,)?IVF.+|.+fsr?\d*(?:_.+)?": "cannot score again: FAISS scores no single vector of it, and the process ends "
    "at the first search",
    r"(?:.+,)?FlatIPPanorama.+": "scores other vectors than its own, since FAISS then reads its blocks as vectors",
    "SQ0": "stores nothing of a vector",
}
"""Indexes that cannot score the best of another one again, in `Refine(...)`, and why; never built."""

COARSE = {"Flat": ("Flat",), r"HNSW\d*": ("HNSW8",), "SQ8": ("SQ8",)}
"""Indexes that find the clusters of an inverted file, each with examples."""


@cache
def find_kind(within: str, code: str) -> FaissKind | None:
    """The entry of a code inside of nothing, an inverted file or a graph; None when there is none."""
    return next((kind for kind in FAISS_KINDS if kind.within == within and re.fullmatch(kind.code, code)), None)


@cache
def find_kind_of_class(*classes: str) -> FaissKind | None:
    """The first entry that lists one of these classes of FAISS, the most derived first; None when there is none."""
    return next((kind for name in classes for kind in FAISS_KINDS if name in kind.classes), None)


@cache
def find_transform(name: str) -> Transform | None:
    """The entry of a transform; None when there is none."""
    return next((entry for entry in TRANSFORMS if re.fullmatch(entry.name, name)), None)


def points_per_centroid(bits: int) -> int:
    """FAISS learns a product quantizer from at most so many vectors for each centroid of a part of so many bits."""
    return 1024 if bits <= 4 else 256


def refused_in_refine(name: str) -> str:
    """Why an index cannot score the best of another one again; "" when nothing is known against it."""
    return next((reason for refused, reason in REFUSED_IN_REFINE.items() if re.fullmatch(refused, name)), "")


def is_coarse(name: str) -> bool:
    """Whether an index that finds clusters is in the table."""
    return any(re.fullmatch(known, name) for known in COARSE)
