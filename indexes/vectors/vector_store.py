"""What every home of vectors asks of them, and the order in which it returns what it found.

Axes: B queries, k results, n vectors, d dimensions.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from indexes.errors import DataError, MismatchError


def checked_matrix(vectors: ArrayLike, dimension: int) -> NDArray[np.float32]:
    """Vectors as a contiguous float32 [n, d].

    Raises:
        MismatchError: They have another dimension.
        DataError: One is not finite.
    """
    matrix = np.ascontiguousarray(vectors, dtype=np.float32)
    if matrix.ndim != 2 or matrix.shape[1] != dimension:
        raise MismatchError(
            f"Vectors for this index must have the shape [n, {dimension}], but {list(matrix.shape)} "
            "came. Use the encoder that the index was built with."
        )
    if not np.isfinite(matrix).all():
        raise DataError("Vectors must be finite, but NaN or infinity came. Check the encoder that made them.")
    return matrix


def best_first(
    scores_Bk: NDArray[np.float32], ids_Bk: NDArray[np.int64]
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Each row from the highest score to the lowest; equal scores are ordered by id."""
    order_Bk = np.lexsort((ids_Bk, -scores_Bk), axis=1)
    return np.take_along_axis(scores_Bk, order_Bk, axis=1), np.take_along_axis(ids_Bk, order_Bk, axis=1)
