"""How FAISS trains an index: seeds and limits of its clusterings, and rotations learned for the codes behind them."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from indexes.errors import UsageError
from indexes.vectors.faiss.faiss_factory import EXAMPLES
from indexes.vectors.faiss.faiss_kinds import MAX_POINTS_PER_LIST, points_per_centroid
from indexes.vectors.faiss.faiss_layers import faiss, faiss_reason, kind_of, layers_of, searched_layer

# A rotation is as good after so many rounds on so many points (docs/decisions.md); FAISS's 50 rounds on 65,536 points
# take minutes.
_ROTATION_ROUNDS, _ROTATION_POINTS = 10, 16_384
# FAISS's own default of a clustering that is not seeded here.
_DEFAULT_SEED = 1234


def new_faiss_index(dimension: int, factory: str, *, seed: int = 0) -> Any:
    """An empty index as FAISS makes it, with seeded clusterings, whether or not its kind can be used.

    Args:
        dimension: d.
        factory: FAISS's description of the index.
        seed: Of the clustering that some kinds need.

    Raises:
        UsageError: FAISS cannot make it.
    """
    try:
        index = faiss.index_factory(dimension, factory, faiss.METRIC_INNER_PRODUCT)
    except (RuntimeError, ValueError) as error:
        raise UsageError(
            f"The factory must be an index that FAISS can make for {dimension} dimensions and the inner "
            f"product, but {factory!r} is not: {faiss_reason(error)}. Try one of {EXAMPLES}."
        ) from error
    _prepare_training(index, seed)
    return index


def _prepare_training(index: Any, seed: int) -> None:
    """Seed every clustering, limit its points, and silence FAISS's warning of few points: the caller checks them."""
    for layer in layers_of(index):
        if isinstance(layer, faiss.IndexIVF):
            _prepare_clustering(layer.cp, seed, MAX_POINTS_PER_LIST)
            _prepare_training(layer.quantizer, seed)
        if isinstance(layer, faiss.IndexHNSW):
            _prepare_training(layer.storage, seed)
        if isinstance(layer, faiss.IndexRefine):
            _prepare_training(layer.refine_index, seed)
        if _has_product_quantizer(layer):
            _prepare_clustering(layer.pq.cp, seed, points_per_centroid(layer.pq.nbits))
        if hasattr(layer, "do_polysemous_training"):
            # Seconds to minutes of annealing for a filter by Hamming distance that no search here uses.
            layer.do_polysemous_training = False


def _has_product_quantizer(layer: Any) -> bool:
    kind = kind_of(layer)
    return kind is not None and kind.has_product_quantizer


def _prepare_clustering(parameters: Any, seed: int, most_points: int) -> None:
    parameters.seed = seed
    parameters.min_points_per_centroid = 1
    parameters.max_points_per_centroid = most_points


@contextmanager
def rotations_for_codes(index: Any) -> Iterator[None]:
    """While training: rotations (OPQ) are learned for the very codes that follow them, not for codes of 8 bits."""
    searched = searched_layer(index)
    quantizer = searched.pq if _has_product_quantizer(searched) else None
    rotations, codes = _rotations(index), []
    for rotation in rotations:
        codes.append(faiss.ProductQuantizer(rotation.d_out, rotation.M, quantizer.nbits if quantizer else 8))
        _prepare_clustering(codes[-1].cp, quantizer.cp.seed if quantizer else _DEFAULT_SEED, points_per_centroid(4))
        rotation.pq = codes[-1]
        rotation.niter, rotation.max_train_points = _ROTATION_ROUNDS, _ROTATION_POINTS
    try:
        yield
    finally:
        for rotation in rotations:
            rotation.pq = None


def _rotations(index: Any) -> list[Any]:
    chains: list[Any] = [layer.chain for layer in layers_of(index) if isinstance(layer, faiss.IndexPreTransform)]
    steps = [faiss.downcast_VectorTransform(chain.at(i)) for chain in chains for i in range(chain.size())]
    return [step for step in steps if isinstance(step, faiss.OPQMatrix)]
