"""What each kind of FAISS index does, as measured: the one table that the rest of the library asks.

Neither the class nor the name of a FAISS index says what it does. In FAISS 1.15.1 a `FlatIPPanorama8` is a subclass of
`IndexFlat` that stores no rows, "IVF16,SQ0" calls itself trained before it has clusters, the vectors that come back
from "RaBitQ8" are those of one bit, and "PQ8x4fs_64" gives back vectors that nobody added. So every property below is
measured: `tests/test_faiss_kinds.py` builds a small index of every example of every row.

What is in no row is untested, and refused unless the caller allows it. A row with `refused` is known not to work,
and is refused in any case; such combinations are never built, not even by the tests.
"""

import re
from dataclasses import dataclass
from functools import cache
from typing import Literal, TypeAlias

Within: TypeAlias = Literal["", "IVF", "HNSW", "NSG"]
"""What holds the codes: nothing, an inverted file, or a graph."""
Vectors: TypeAlias = Literal["same", "near", "none"]
"""What `reconstruct` gives: the vectors that were added, approximations of them, or nothing usable."""
Scores: TypeAlias = Literal["exact", "rounded", "other"]
"""What a search score is, compared with the inner product of the query and the reconstructed vector: equal up to
float32 rounding, equal up to 1 % of the lengths (8-bit tables of the fast scan), or another estimate."""

_ADDITIVE = r"(?:RQ|LSQ)\d+x\d+(?:_\d+x\d+)*|(?:PRQ|PLSQ)\d+x\d+x\d+"
_ADDITIVE_SCAN = r"(?:RQ|LSQ)\d+x4fs|(?:PRQ|PLSQ)\d+x\d+x4fs"
_L2_ONLY = "compares by distance whatever it is asked for"
_NO_PAIRS = "cannot be built: FAISS compares no two of its codes, and the process ends at the first"


@dataclass(frozen=True, kw_only=True)
class Storage:
    """How vectors are stored, and what follows from it."""

    code: str
    """A regular expression for the code in a factory string."""
    within: Within = ""
    examples: tuple[str, ...] = ()
    """Codes that stand for the row where it is measured; none of a row that is refused."""
    classes: tuple[str, ...] = ()
    """FAISS's classes, exactly: not what is derived from them."""
    vectors: Vectors = "near"
    scores: Scores = "exact"
    is_trained: bool = False
    """Whether an empty index needs no training."""
    is_stable: bool = True
    """Whether what is read back and added again, eight times over, is found as well as before."""
    is_matrix: bool = False
    """Whether the memory of the index is its vectors, float32 [N, d], row after row."""
    maps_lists: bool = True
    """Whether FAISS can leave its inverted lists on the disk."""
    most_results: int | None = None
    """The most results of a search."""
    parameters: tuple[str, ...] = ()
    """Search parameters of the code itself."""
    can_refine: bool = False
    """Whether it may score the best of another index again, in `Refine(...)`."""
    refused: str = ""
    """Why it cannot be used at all."""
    refused_alone: str = ""
    """Why it can be used only where the best are scored again, as in "IVF16,SQ0,RFlat"."""


@dataclass(frozen=True, kw_only=True)
class Transform:
    """What is done to vectors and queries before they reach the index."""

    name: str
    """A regular expression for the transform in a factory string."""
    examples: tuple[str, ...]
    vectors: Vectors
    """What is left of a vector that is transformed and transformed back."""
    scores: Scores = "exact"
    is_trained: bool = False
    """Whether it needs no training."""
    irreversible: str = ""
    """Why no vectors come back."""


STORAGES: tuple[Storage, ...] = (
    # -- nothing around the codes -------------------------------------------------------------------------------
    Storage(
        code="Flat",
        examples=("Flat",),
        classes=("IndexFlat", "IndexFlatIP"),
        vectors="same",
        is_trained=True,
        is_matrix=True,
        can_refine=True,
    ),
    Storage(
        code=r"FlatIPPanorama\d+",
        examples=("FlatIPPanorama8",),
        classes=("IndexFlatIPPanorama",),
        vectors="same",
        is_trained=True,
        most_results=1024,
    ),
    Storage(code="SQ[468]", examples=("SQ4", "SQ6", "SQ8"), classes=("IndexScalarQuantizer",), can_refine=True),
    Storage(
        code="SQ(?:fp|bf)16",
        examples=("SQfp16", "SQbf16"),
        classes=("IndexScalarQuantizer",),
        is_trained=True,
        can_refine=True,
    ),
    Storage(
        code="SQtqmse[12348]",
        examples=("SQtqmse1", "SQtqmse2", "SQtqmse3", "SQtqmse4", "SQtqmse8"),
        classes=("IndexScalarQuantizer",),
        can_refine=True,
    ),
    Storage(
        code="SQtq[2-5]",
        examples=("SQtq2", "SQtq3", "SQtq4", "SQtq5"),
        classes=("IndexScalarQuantizer",),
        is_stable=False,
        can_refine=True,
    ),
    Storage(code="SQ0", refused="stores nothing of a vector"),
    Storage(code="SQ8_direct(?:_signed)?", refused="stores whole numbers from 0 to 255 only"),
    Storage(code=r"PQ\d+(?:x\d+)?(?:np)?", examples=("PQ8", "PQ8x4", "PQ8x4np"), classes=("IndexPQ",), can_refine=True),
    Storage(
        code=r"PQ\d+x4fs(?:_32)?",
        examples=("PQ8x4fs", "PQ8x4fs_32"),
        classes=("IndexPQFastScan",),
        scores="rounded",
    ),
    Storage(  # vectors of blocks of another size than 32 are read as if they were of 32
        code=r"PQ\d+x4fs_\d+",
        examples=("PQ8x4fs_64",),
        classes=("IndexPQFastScan",),
        vectors="none",
        scores="rounded",
    ),
    Storage(
        code="RaBitQ1?", examples=("RaBitQ", "RaBitQ1"), classes=("IndexRaBitQ",), scores="other", parameters=("qb",)
    ),
    Storage(  # one bit of each dimension is read back, however many are searched
        code="RaBitQ[2-9]",
        examples=("RaBitQ2", "RaBitQ4", "RaBitQ8"),
        classes=("IndexRaBitQ",),
        scores="other",
        is_stable=False,
        parameters=("qb",),
    ),
    Storage(
        code="RaBitQfs1?(?:_32)?",
        examples=("RaBitQfs",),
        classes=("IndexRaBitQFastScan",),
        scores="other",
    ),
    Storage(
        code="RaBitQfs[2-9](?:_32)?",
        examples=("RaBitQfs4",),
        classes=("IndexRaBitQFastScan",),
        scores="other",
        is_stable=False,
    ),
    Storage(
        code="EDEN[1-8]?(?:BIAS(?:ED)?)?",
        examples=("EDEN", "EDEN1", "EDEN2", "EDEN4", "EDEN8", "EDEN4BIASED"),
        classes=("IndexEDEN",),
        can_refine=True,
    ),
    Storage(
        code=f"(?:{_ADDITIVE})(?:_Nfloat|_Nnone)?",
        examples=("RQ4x4", "RQ4x4_Nfloat", "LSQ4x4", "PRQ4x2x4", "PLSQ4x2x4"),
        classes=(
            "IndexResidualQuantizer",
            "IndexLocalSearchQuantizer",
            "IndexProductResidualQuantizer",
            "IndexProductLocalSearchQuantizer",
        ),
    ),
    Storage(
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
    Storage(code="MinMax(?:FP16)?,.+", refused="cannot be added to"),
    # -- inverted files -----------------------------------------------------------------------------------------
    Storage(within="IVF", code="Flat", examples=("Flat",), classes=("IndexIVFFlat",), vectors="same"),
    Storage(
        within="IVF",
        code=r"FlatPanorama\d*(?:_\d+)?",
        examples=("FlatPanorama8", "FlatPanorama8_64"),
        classes=("IndexIVFFlatPanorama",),
        vectors="same",
        maps_lists=False,
    ),
    Storage(within="IVF", code="FlatDedup", examples=("FlatDedup",), classes=("IndexIVFFlatDedup",), vectors="none"),
    Storage(
        within="IVF",
        code="SQ[468]|SQ(?:fp|bf)16|SQtqmse[12348]",
        examples=("SQ4", "SQ6", "SQ8", "SQfp16", "SQbf16", "SQtqmse2", "SQtqmse4", "SQtqmse8"),
        classes=("IndexIVFScalarQuantizer",),
    ),
    Storage(
        within="IVF",
        code="SQtq[2-5]",
        examples=("SQtq2", "SQtq3", "SQtq4", "SQtq5"),
        classes=("IndexIVFScalarQuantizer",),
        is_stable=False,
    ),
    # It also calls itself trained while it has no clusters, and then finds nothing: FaissIndex.is_trained counts them.
    Storage(
        within="IVF",
        code="SQ0",
        classes=("IndexIVFScalarQuantizer",),
        refused_alone="stores nothing of a vector but its cluster, so that all in one score the same. Add RFlat",
    ),
    Storage(within="IVF", code="SQ8_direct(?:_signed)?", refused="stores whole numbers from 0 to 255 only"),
    Storage(
        within="IVF",
        code=r"PQ\d+(?:x\d+)?(?:np)?",
        examples=("PQ8", "PQ8x4", "PQ8x4np"),
        classes=("IndexIVFPQ",),
    ),
    Storage(
        within="IVF",
        code=r"PQ\d+x4fsr?(?:_32)?",
        examples=("PQ8x4fs", "PQ8x4fsr"),
        classes=("IndexIVFPQFastScan",),
        scores="rounded",
    ),
    Storage(
        within="IVF",
        code=r"PQ\d+x4fsr?_\d+",
        examples=("PQ8x4fs_64",),
        classes=("IndexIVFPQFastScan",),
        vectors="none",
        scores="rounded",
    ),
    Storage(
        within="IVF",
        code="RaBitQ[1-9]?",
        examples=("RaBitQ", "RaBitQ4", "RaBitQ8"),
        classes=("IndexIVFRaBitQ",),
        scores="other",
        is_stable=False,
        parameters=("qb",),
    ),
    Storage(
        within="IVF",
        code="RaBitQfs[1-9]?(?:_32)?",
        examples=("RaBitQfs", "RaBitQfs4"),
        classes=("IndexIVFRaBitQFastScan",),
        vectors="none",
        scores="other",
        parameters=("qb",),
    ),
    Storage(
        within="IVF",
        code="EDEN1?(?:BIAS(?:ED)?)?",
        examples=("EDEN",),
        classes=("IndexIVFEDEN",),
        is_stable=False,
    ),
    Storage(
        within="IVF",
        code="EDEN[2-8](?:BIAS(?:ED)?)?",
        examples=("EDEN2", "EDEN4", "EDEN8", "EDEN4BIASED"),
        classes=("IndexIVFEDEN",),
    ),
    Storage(
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
    Storage(
        within="IVF",
        code=f"(?:{_ADDITIVE_SCAN}r?).*",
        refused="cannot be told for one search how many lists to look into",
    ),
    # -- graphs -------------------------------------------------------------------------------------------------
    Storage(
        within="HNSW", code="Flat", examples=("Flat",), classes=("IndexHNSWFlat",), vectors="same", is_trained=True
    ),
    Storage(
        within="HNSW",
        code="SQ[468]|SQtqmse[12348]",
        examples=("SQ4", "SQ6", "SQ8", "SQtqmse2", "SQtqmse4"),
        classes=("IndexHNSWSQ",),
    ),
    Storage(
        within="HNSW",
        code="SQ(?:fp|bf)16",
        examples=("SQfp16", "SQbf16"),
        classes=("IndexHNSWSQ",),
        is_trained=True,
    ),
    Storage(within="HNSW", code="SQ0|SQtq[2-5]", refused=_NO_PAIRS),
    Storage(within="HNSW", code="SQ8_direct(?:_signed)?", refused="stores whole numbers from 0 to 255 only"),
    Storage(within="HNSW", code=r"PQ\d+(?:x\d+)?(?:np)?", refused=_L2_ONLY),
    Storage(within="NSG", code=".*", refused="cannot be added to"),
)

TRANSFORMS: tuple[Transform, ...] = (
    # PCA and ITQ subtract the mean of the vectors from queries as well, and L2norm shortens both.
    Transform(name=r"PCAR?\d+", examples=("PCA16", "PCAR16"), vectors="near", scores="other"),
    Transform(
        name=r"PCAWR?\d+",
        examples=("PCAW16",),
        vectors="none",
        scores="other",
        irreversible="whitens, which cannot be undone",
    ),
    Transform(
        name=r"ITQ\d*",
        examples=("ITQ", "ITQ16"),
        vectors="none",
        scores="other",
        irreversible="rotates and centres (ITQ), which FAISS does not undo",
    ),
    Transform(name="L2[nN]orm", examples=("L2norm",), vectors="near", scores="other", is_trained=True),
    Transform(name=r"RR\d*", examples=("RR", "RR16"), vectors="near"),
    Transform(name=r"HR\d*", examples=("HR", "HR7"), vectors="near", is_trained=True),
    Transform(name=r"OPQ\d+(?:_\d+)?", examples=("OPQ8", "OPQ8_16"), vectors="near"),
    Transform(name=r"Pad\d+", examples=("Pad48",), vectors="same", is_trained=True),
)

REFUSED_IN_REFINE = {
    r"(?:.+,)?IVF.+|.+fsr?\d*(?:_.+)?": "cannot score again: FAISS scores no single vector of it, and the process ends "
    "at the first search",
    r"(?:.+,)?FlatIPPanorama.+": "scores other vectors than its own, since FAISS then reads its blocks as rows",
    "SQ0": "stores nothing of a vector",
}
"""Indexes that cannot score the best of another one again, in `Refine(...)`, and why; never built."""

COARSE = {"Flat": ("Flat",), r"HNSW\d*": ("HNSW8",), "SQ8": ("SQ8",)}
"""Indexes that find the clusters of an inverted file, each with examples."""


@cache
def storage_row(within: str, code: str) -> Storage | None:
    """The row of a code inside of nothing, an inverted file or a graph; None when there is none."""
    return next((row for row in STORAGES if row.within == within and re.fullmatch(row.code, code)), None)


@cache
def transform_row(name: str) -> Transform | None:
    """The row of a transform; None when there is none."""
    return next((row for row in TRANSFORMS if re.fullmatch(row.name, name)), None)


def refused_in_refine(name: str) -> str:
    """Why an index cannot score the best of another one again; "" when nothing is known against it."""
    return next((reason for refused, reason in REFUSED_IN_REFINE.items() if re.fullmatch(refused, name)), "")


def is_coarse(name: str) -> bool:
    """Whether an index that finds clusters is in the table."""
    return any(re.fullmatch(known, name) for known in COARSE)
