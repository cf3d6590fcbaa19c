"""Vector stores of other packages: built, searched, changed, compacted and found again by the kind in the manifest."""

import json
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_models import PASSAGES, tiny_encoder

from indexes import (
    Corpus,
    Encoder,
    FaissIndex,
    IndexWriter,
    MilvusIndex,
    MismatchError,
    Passage,
    PassageIndex,
    UsageError,
    build_index,
)
from indexes.directory import builder, shards
from indexes.vectors.vector_store import StoreConfig, VectorStore
from indexes.vectors.vector_stores import VECTOR_STORES

EXAMPLE = Path(__file__).parents[1] / "examples" / "new_vector_store.py"
NEW = [Passage("n0", "Elbe", "The Elbe is a river that flows through Germany."), Passage("n1", "Vienna", "A capital.")]
QUESTIONS = ["river through germany", "who wrote hamlet", "symbol of radium"]


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[VectorStore]]:
    """The store of the example, registered for one test."""
    monkeypatch.setattr(VECTOR_STORES, "_registered", dict(VECTOR_STORES._registered))
    yield runpy.run_path(str(EXAMPLE), run_name="example_store")["NumpyStore"]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    folder = tmp_path_factory.mktemp("encoder") / "words"
    tiny_encoder([p.contents for p in [*PASSAGES, *NEW]] + QUESTIONS, dimension=18).save_pretrained(folder)
    return Encoder.from_pretrained(folder, device="cpu")


def build(encoder: Encoder, output: Path, **options: Any) -> PassageIndex:
    return build_index(Corpus.from_passages(PASSAGES), encoder, output, store="numpy", progress=False, **options)


def assert_exact(index: PassageIndex, encoder: Encoder, passages: list[Passage]) -> None:
    """The index holds these passages, and its results are those of a matrix product."""
    assert {passage.id for passage in index.corpus} == {passage.id for passage in passages}
    vectors_Nd, questions_Bd = encoder.encode_passages(list(index.corpus)), encoder.encode_questions(QUESTIONS)
    scores_Bk, ids_Bk = index.vectors.search(questions_Bd, 5)
    exact_BN = questions_Bd @ vectors_Nd.T
    np.testing.assert_allclose(scores_Bk, -np.sort(-exact_BN, axis=1)[:, :5], atol=1e-6)
    np.testing.assert_allclose(np.take_along_axis(exact_BN, ids_Bk, axis=1), scores_Bk, atol=1e-6)
    index.verify(encoder=encoder)


def test_the_example_finds_the_nearest_first() -> None:
    done = subprocess.run([sys.executable, str(EXAMPLE)], capture_output=True, text=True, check=True)
    assert "['Seine', 'Faust']" in done.stdout


def test_a_store_of_another_package_is_built_and_changed(
    store: type[VectorStore], encoder: Encoder, tmp_path: Path
) -> None:
    index = build(encoder, tmp_path / "index")
    assert type(index.vectors.parts[0]) is store
    assert index.manifest.storage == {"kind": "numpy", "package": "example_store", "options": {}}
    assert sorted(index.manifest.files) == ["segments/000000/passages.arrow", "segments/000000/vectors.npy"]
    assert_exact(index, encoder, PASSAGES)
    with IndexWriter(tmp_path / "index", encoder, progress=False) as writer:
        writer.add(NEW)
        assert_exact(PassageIndex.open(tmp_path / "index"), encoder, [*PASSAGES, *NEW])
        writer.delete(["p0", "n1"])
        left = [passage for passage in [*PASSAGES, *NEW] if passage.id not in ("p0", "n1")]
        assert_exact(PassageIndex.open(tmp_path / "index"), encoder, left)
        writer.compact()
    compacted = PassageIndex.open(tmp_path / "index", verify="checksums", mmap=True)
    assert len(compacted.manifest.segments) == 1
    assert_exact(compacted, encoder, left)
    assert_exact(build(encoder, tmp_path / "index", overwrite=True), encoder, PASSAGES)


def test_memory_cuts_any_store_into_segments(
    store: type[VectorStore], encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four vectors of 18 float32 numbers, twice, fit into 576 bytes."""
    monkeypatch.setattr(builder, "ROWS", 2)
    monkeypatch.setattr(shards, "ROWS", 2)
    monkeypatch.setattr(builder, "index_memory", lambda *_: 576)
    index = build(encoder, tmp_path / "index")
    assert [segment.rows for segment in index.manifest.segments] == [4, 4, 4]
    assert_exact(index, encoder, PASSAGES)


def test_an_index_of_an_unknown_store_names_its_package(
    store: type[VectorStore], encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(encoder, tmp_path / "index")
    monkeypatch.setattr(VECTOR_STORES, "_registered", {})
    with pytest.raises(UsageError, match=r"vector store must be one of \['faiss', 'milvus'.*'example_store'"):
        PassageIndex.open(tmp_path / "index")
    with pytest.raises(UsageError, match=r"got 'numpi'"):
        build_index(Corpus.from_passages(PASSAGES), encoder, tmp_path / "new", store="numpi", progress=False)
    assert not (tmp_path / "new").exists()


def test_the_storage_of_a_manifest_is_checked(store: type[VectorStore], encoder: Encoder, tmp_path: Path) -> None:
    build(encoder, tmp_path / "index")
    file = tmp_path / "index" / "manifest.json"
    data = json.loads(file.read_text())
    file.write_text(json.dumps(data | {"storage": {"kind": "numpy"}}))
    with pytest.raises(MismatchError, match=r"'storage' of a manifest must be empty or hold \['kind'"):
        PassageIndex.open(tmp_path / "index")


def test_a_resumed_build_keeps_its_store(store: type[VectorStore], encoder: Encoder, tmp_path: Path) -> None:
    build(encoder, tmp_path / "index")
    assert build(encoder, tmp_path / "index", resume=True).manifest.version == 1
    with pytest.raises(UsageError, match="already holds an index"):
        build_index(Corpus.from_passages(PASSAGES), encoder, tmp_path / "index", resume=True, progress=False)


def test_built_in_stores_are_registered_and_leave_the_manifest_of_faiss_as_it_was(
    encoder: Encoder, tmp_path: Path
) -> None:
    assert VECTOR_STORES.get("faiss") is FaissIndex
    assert VECTOR_STORES.get("milvus") is MilvusIndex
    index = build_index(Corpus.from_passages(PASSAGES), encoder, tmp_path / "index", progress=False)
    assert "storage" not in json.loads((tmp_path / "index" / "manifest.json").read_text())
    assert (index.manifest.store_kind, index.manifest.store_options) == ("faiss", {})
    with pytest.raises(UsageError, match='options have no "uri"'):
        MilvusIndex.new_options({})


def test_milvus_names_its_index_types(tmp_path: Path) -> None:
    options = MilvusIndex.new_options({"uri": str(tmp_path / "a.db"), "collection": "old"})
    assert options["collection"] != "old"
    assert MilvusIndex.factory_name("HNSW") == MilvusIndex.factory_name("Milvus(HNSW)") == "Milvus(HNSW)"
    assert MilvusIndex.disk_bytes(StoreConfig(dimension=8), 100) == 0


def test_reprs_say_what_an_object_holds(encoder: Encoder, tmp_path: Path) -> None:
    index = build_index(Corpus.from_passages(PASSAGES), encoder, tmp_path / "index", progress=False)
    assert repr(index).startswith(f"PassageIndex('{tmp_path}/index', 12 passages, 'Flat', encoder=")
    assert repr(index.vectors) == "Segments('Flat', 12 vectors of 18 dimensions in 1 segments)"
    assert repr(index.vectors.parts[0]) == "FaissIndex('Flat', 12 vectors of 18 dimensions)"
    assert repr(IndexWriter(tmp_path / "index")) == f"IndexWriter('{tmp_path}/index', closed)"
    assert "18 dimensions" in repr(encoder) and "cosine" in repr(encoder)
    assert repr(index.corpus).startswith("Corpus(") and "12 passages" in repr(index.corpus)
