"""Files of FAISS indexes: reading them, memory-mapped or not, and writing a "Flat" one without holding its vectors.

Axes: N vectors in the index, n vectors of a block, d dimensions.
"""

import os
import struct
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from indexes.errors import ResourceError
from indexes.vectors.faiss.faiss_factory import parse, properties
from indexes.vectors.faiss.faiss_kinds import FAISS_KINDS
from indexes.vectors.faiss.faiss_layers import faiss, kind_of, searched_layer, untyped_faiss
from indexes.vectors.vector_store import checked_matrix

# Where FAISS writes the number of vectors and of floats into the file of a "Flat" index.
_COUNT_AT, _FLOATS_AT = 8, 37


def read_index(path: Path, *, mmap: bool, factory: str | None) -> tuple[Any, "np.memmap[Any, Any] | None"]:
    """Read the file of an index.

    Args:
        path: The file.
        mmap: Leave on disk what FAISS can.
        factory: FAISS's description of the index; None if it is not known.

    Returns:
        The index, and the mapped file that it points into, which must live as long.

    Raises:
        RuntimeError: FAISS cannot read it; also MemoryError, ValueError or OverflowError for damaged files.
    """
    if not mmap:
        return faiss.read_index(str(path)), None
    if _maps_lists(path, factory):
        return faiss.read_index(str(path), faiss.IO_FLAG_MMAP), None
    # Not IO_FLAG_MMAP_IFC: its reader rounds the remaining bytes of a truncated file up and reads beyond it, and it
    # asks the system not to read ahead. This reader refuses the first and leaves the second to the system.
    mapped = np.memmap(path, dtype=np.uint8, mode="r")
    reader = untyped_faiss.ZeroCopyIOReader(faiss.swig_ptr(mapped), mapped.size)
    index = faiss.read_index(reader)
    if reader.rp_ != mapped.size:
        raise ValueError(f"{mapped.size} bytes were found where {reader.rp_} belong")
    return index, mapped


def restore_after_reading(index: Any) -> None:
    """Repair what FAISS forgets when it reads an index of some kinds (`FaissKind.after_reading`)."""
    searched = searched_layer(index)
    kind = kind_of(searched)
    if kind is not None and kind.after_reading is not None:
        kind.after_reading(searched)


def _maps_lists(path: Path, factory: str | None) -> bool:
    """Whether most of a file is inverted lists of a kind that FAISS can leave on disk."""
    if factory is not None:
        spec = parse(factory)
        return bool(spec.lists) and not spec.refine and properties(factory).maps_lists
    with path.open("rb") as file:
        tag = file.read(4)
    return tag.startswith(b"Iw") and tag not in {kind.file_tag for kind in FAISS_KINDS if not kind.maps_lists}


def write_flat(path: str | Path, blocks: Iterable[ArrayLike], dimension: int) -> int:
    """Write the file of a "Flat" index, byte for byte what FAISS writes, without holding its vectors.

    Until the last block is on the disk the file is not a readable index.

    Args:
        path: The file; one that exists is replaced.
        blocks: float32 [n, d] each, in the order of their rows.
        dimension: d.

    Returns:
        N, how many vectors were written.

    Raises:
        DataError: A vector is not finite.
        MismatchError: A block has another dimension.
        OSError: The disk is full, or the file cannot be written.
    """
    header = _flat_header(dimension, 0)
    count = 0
    with Path(path).open("wb") as file:
        file.write(bytes(len(header)))
        for block in blocks:
            matrix_nd = checked_matrix(block, dimension)
            file.write(matrix_nd.data)
            count += len(matrix_nd)
        file.flush()
        os.fsync(file.fileno())
        file.seek(0)
        file.write(_flat_header(dimension, count))
        file.flush()
        os.fsync(file.fileno())
    return count


def _flat_header(dimension: int, count: int) -> bytes:
    _check_flat_layout()
    header = bytearray(faiss.serialize_index(faiss.IndexFlatIP(dimension)).tobytes())
    struct.pack_into("=q", header, _COUNT_AT, count)
    struct.pack_into("=Q", header, _FLOATS_AT, count * dimension)
    return bytes(header)


@cache
def _check_flat_layout() -> None:
    """Check that this version of FAISS writes a "Flat" index as `write_flat` does.

    Raises:
        ResourceError: It does not.
    """
    vectors_nd = np.arange(6, dtype=np.float32).reshape(3, 2)
    index = faiss.IndexFlatIP(2)
    header = bytearray(faiss.serialize_index(index).tobytes())
    index.add(vectors_nd)
    whole = faiss.serialize_index(index).tobytes()
    if len(header) == _FLOATS_AT + 8:
        struct.pack_into("=q", header, _COUNT_AT, 3)
        struct.pack_into("=Q", header, _FLOATS_AT, 6)
    if whole != bytes(header) + vectors_nd.tobytes():
        raise ResourceError(
            f'The file of a "Flat" index must have the layout of the faiss-cpu version in constraints.txt, but faiss '
            f"{faiss.__version__} writes another one. Install the version that constraints.txt names."
        )
