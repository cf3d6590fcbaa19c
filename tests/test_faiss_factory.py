"""The cost of a factory string against the indexes that FAISS makes of it."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from indexes import FaissIndex, UsageError
from indexes.vectors.faiss.faiss_factory import (
    build_bytes,
    bytes_per_vector,
    choose_factory,
    fixed_bytes,
    parse,
    search_parameters,
    stores_exact_vectors,
    training_points,
    training_sample,
)

D = 32
# Bytes of one vector of 32 dimensions, by hand.
SIZES = {
    "Flat": 128,
    "SQ8": 32,
    "SQ4": 16,
    "SQfp16": 64,
    "PQ8x4fs": 4,
    "PQ8": 8,
    "RaBitQ": 4 + 8,
    "RaBitQ4": 4 + 12 + 12 + 8,
    "RaBitQfs": 4 + 8,
    # 64 links on the ground, 32/31 above it, a level and an offset.
    "HNSW32": 128 + 4 * (64 + 32 / 31) + 12,
    "HNSW32,SQ8": 32 + 4 * (64 + 32 / 31) + 12,
    "IVF16,Flat": 128 + 8,
    "IVF16,SQ8": 32 + 8,
    "IVF16,FlatPanorama8_16": 128 + 4 * 9 + 8,
    "EDEN": 4 + 8,
    "IVF16,PQ8x4fs": 4 + 8,
    "IVF16,PQ8x4fs,RFlat": 4 + 8 + 128,
    "IVF16,PQ8x4fs,Refine(SQ8)": 4 + 8 + 32,
    "OPQ8,IVF16,PQ8x4fs,RFlat": 4 + 8 + 128,
    "OPQ8_16,IVF16,PQ8": 8 + 8,
    "IVF16,RaBitQ": 12 + 8,
    "IVF16,RaBitQ,Refine(SQ8)": 12 + 8 + 32,
    "IVF16,RaBitQfs,RFlat": 12 + 8 + 128,
    "IVF16_HNSW32,PQ8x4fs,RFlat": 4 + 8 + 128,
    "IVF16(HNSW32),Flat": 128 + 8,
    "PCA8,Flat": 32,
    "PCAR16,IVF16,SQ8": 16 + 8,
    "L2norm,Flat": 128,
    "Pad48,SQ8": 48,
    "HNSW16,RFlat": 128 + 4 * (32 + 16 / 15) + 12 + 128,
    "EDEN4": 16 + 8,
}


@pytest.fixture(scope="module")
def vectors_Nd() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((3000, D)).astype(np.float32)


@pytest.mark.parametrize("factory", SIZES)
def test_bytes_equal_file_sizes(factory: str, vectors_Nd: np.ndarray, tmp_path: Path) -> None:
    index = FaissIndex.build(vectors_Nd[:1000], factory=factory, train_vectors=vectors_Nd)
    index.save(tmp_path / "small")
    index.add(vectors_Nd[1000:])
    index.save(tmp_path / "large")
    small, large = ((tmp_path / name).stat().st_size for name in ("small", "large"))
    assert bytes_per_vector(factory, D) == pytest.approx(SIZES[factory], abs=1e-9)
    # The links of higher levels are drawn, and the last block of each list is half full on average.
    assert (large - small) / 2000 == pytest.approx(SIZES[factory], rel=0.03)
    assert large - 3000 * SIZES[factory] == pytest.approx(fixed_bytes(factory, D), rel=0.15, abs=3000)


def test_an_unknown_code_size_is_refused() -> None:
    with pytest.raises(UsageError, match="size of a vector must be known, but that of 'Flt' in 32 dimensions is not"):
        bytes_per_vector("IVF16,Flt", D)
    for factory in ("", "IVF16(HNSW32,Flat"):
        with pytest.raises(UsageError, match="must name an index"):
            parse(factory)


GROWTH = """
import sys, numpy as np
from indexes.vectors.faiss.faiss_index import FaissIndex
from indexes.vectors.faiss.faiss_factory import training_sample
from rag.planning.machine import resident_bytes
factory, n, d = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
block = np.random.default_rng(0).standard_normal((10_000, d)).astype(np.float32)
warm = FaissIndex.build(block[:1000], factory=factory)
warm.search(block[:1], 1)
before = resident_bytes()
index = FaissIndex.empty(d, factory)
if sample := training_sample(factory, n):
    index.train(np.tile(block, (sample // len(block) + 1, 1))[:sample])
for start in range(0, n, len(block)):
    index.add(block + start)
print(resident_bytes("VmHWM") - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory of a process is read from /proc")
@pytest.mark.parametrize(
    ("factory", "n", "dimension"),
    [
        ("Flat", 200_000, 64),
        ("SQ8", 400_000, 128),
        ("HNSW8", 10_000, 512),
        ("IVF64,PQ32x4fs,Refine(SQ8)", 300_000, 64),
        ("IVF64,SQ8", 400_000, 64),
    ],
)
def test_planned_memory_of_a_build_is_close_to_the_measured(factory: str, n: int, dimension: int) -> None:
    command = [sys.executable, "-c", GROWTH, factory, str(n), str(dimension)]
    run = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=True)
    assert int(run.stdout) == pytest.approx(build_bytes(factory, n, dimension), rel=0.4)


@pytest.mark.parametrize(
    ("factory", "fewest"),
    [
        ("Flat", 0),
        ("HNSW32", 0),
        ("SQ8", 1),
        ("HNSW32,SQ8", 1),
        ("PCA8,Flat", 8),
        ("RaBitQ", 1),
        ("IVF301,Flat", 301),
        ("IVF4,PQ8", 256),
        ("IVF16,PQ8x4fs,RFlat", 16),
        ("PQ4x9", 512),
        ("OPQ8,IVF16,PQ8x4fs", D),
        ("OPQ8_16,IVF4,PQ8x4fs", 16),
        ("OPQ8,Flat", 256),
        ("Flat,Refine(PQ8)", 256),
        ("IVF16(HNSW32),Flat", 16),
    ],
)
def test_the_minimum_of_training_points_is_sufficient_and_necessary(
    factory: str, fewest: int, vectors_Nd: np.ndarray
) -> None:
    assert training_points(factory, D) == fewest
    index = FaissIndex.empty(D, factory)
    assert index.is_trained == (fewest == 0)
    if fewest:
        with pytest.raises(UsageError, match=f"needs at least {fewest} vectors to train on, but got {fewest - 1}"):
            index.train(vectors_Nd[: fewest - 1])
        index.train(vectors_Nd[:fewest])
        assert index.is_trained


@pytest.mark.parametrize(
    ("factory", "n", "sample"),
    [
        ("Flat", 10**6, 0),
        ("HNSW32", 10**6, 0),
        ("SQ8", 10**6, 16_384),
        ("SQ8", 10, 10),
        ("IVF1024,Flat", 10**6, 65_536),
        ("IVF1024,Flat", 2000, 2000),
        ("PQ48", 10**6, 65_536),
        ("IVF65536,PQ8x4fs", 10**8, 2**20),
        ("IVF2097152,Flat", 10**8, 2**21),
    ],
)
def test_training_samples_are_ample_and_capped(factory: str, n: int, sample: int) -> None:
    assert training_sample(factory, n) == sample


@pytest.mark.parametrize("factory", SIZES)
def test_exactness_and_parameters_agree_with_the_index(factory: str, vectors_Nd: np.ndarray) -> None:
    index = FaissIndex.build(vectors_Nd, factory=factory)
    kept = np.array_equal(index.reconstruct(np.arange(50)), vectors_Nd[:50])
    assert stores_exact_vectors(factory) == kept
    named = [setting.partition("=")[0] for setting in index.parameters.split(",") if setting]
    assert sorted(search_parameters(factory)) == sorted(named)
    for name, values in search_parameters(factory).items():
        assert sorted(set(values)) == list(values)
        for value in (values[0], values[-1]):
            index.search(vectors_Nd[:2], 3, parameters=f"{name}={value}")


@pytest.mark.parametrize(
    ("n", "dimension", "memory", "factory", "reason"),
    [
        (1, 384, None, "Flat", "1 vectors: few enough for exact search (up to 200,000)"),
        (200_000, 384, None, "Flat", "200,000 vectors: few enough for exact search (up to 200,000)"),
        (200_001, 384, None, "HNSW32", "200,001 vectors: a graph finds neighbours fast (up to 2,000,000)"),
        (2_000_000, 384, None, "HNSW32", "2,000,000 vectors: a graph finds neighbours fast (up to 2,000,000)"),
        # 4 sqrt(4e6) = 8000, nearest power of two 8192; 384 / 2 = 192 parts of 4 bits, 96 bytes.
        (
            4_000_000,
            384,
            None,
            "IVF8192,PQ192x4fs,Refine(SQ8)",
            "4,000,000 vectors: 8,192 clusters of codes of 96 bytes (4 sqrt(n)), the best scored again at 8 bits",
        ),
        # 4 sqrt(21e6) = 18330, nearest power in the exponent 16384.
        (21_000_000, 100, None, "IVF16384,PQ50x4fs,Refine(SQ8)", "21,000,000 vectors: 16,384 clusters"),
        (4_000_000, 7, None, "IVF8192,PQ1x4fs,Refine(SQ8)", "4,000,000 vectors: 8,192 clusters"),
    ],
)
def test_choose_factory(n: int, dimension: int, memory: int | None, factory: str, reason: str) -> None:
    chosen, why = choose_factory(n, dimension, memory=memory)
    assert chosen == factory
    assert why.startswith(reason)
    assert FaissIndex.empty(dimension, chosen).factory == factory


def test_choose_factory_within_memory() -> None:
    """384 dimensions: a graph takes 1,536 + 272 bytes a vector, and three quarters again while it grows."""
    needed = build_bytes("HNSW32", 10**6, 384)
    assert 3.1e9 < needed < 3.2e9
    assert choose_factory(10**6, 384, memory=needed)[0] == "HNSW32"
    chosen, why = choose_factory(10**6, 384, memory=10**9)
    assert chosen == "IVF4096,PQ192x4fs,Refine(SQ8)"
    assert why.startswith(
        f"1,000,000 vectors need {needed / 1e9:.1f} GB as HNSW32, more than the 1.0 GB allowed: IVF4096"
    )
    assert choose_factory(10**6, 384, memory=60 * 10**6)[1].endswith("nothing fits, and EDEN comes closest with 98 MB")


@given(n=st.integers(1, 10**8), dimension=st.integers(2, 1024), memory=st.integers(10**3, 10**11))
def test_choose_factory_fits_if_possible_and_is_monotone_in_memory(n: int, dimension: int, memory: int) -> None:
    chosen, why = choose_factory(n, dimension, memory=memory)
    fits = build_bytes(chosen, n, dimension) <= memory
    assert fits != ("nothing fits" in why)
    if not fits:
        for more in (memory // 2, memory // 10):
            assert build_bytes(choose_factory(n, dimension, memory=more)[0], n, dimension) > more
    richer, _ = choose_factory(n, dimension, memory=2 * memory)
    assert not fits or bytes_per_vector(richer, dimension) >= bytes_per_vector(chosen, dimension)
