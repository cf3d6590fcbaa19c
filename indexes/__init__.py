"""Passages and their vectors on disk: corpora, their encoder, FAISS indexes and the manifest.

The names below are loaded on first use: ``import indexes`` costs nothing and ``--help`` stays instant.
"""

import os

# OpenMP reads this once, when the first library that links it is loaded. Threads that spin while they wait
# make torch and FAISS many times slower on a machine whose cores are already busy. Your own setting wins.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from indexes.bm25_index import BM25Index
    from indexes.builder import build_index
    from indexes.chunking import Chunker
    from indexes.corpus import Corpus, Passage
    from indexes.encoder import Encoder
    from indexes.errors import DataError, MismatchError, RAGError, ResourceError, UsageError
    from indexes.factory import choose_factory
    from indexes.faiss_index import FaissIndex
    from indexes.manifest import Manifest
    from indexes.milvus_index import MilvusIndex
    from indexes.passage_index import PassageIndex
    from indexes.writer import Change, IndexWriter

__all__ = [
    "BM25Index",
    "Change",
    "Chunker",
    "Corpus",
    "DataError",
    "Encoder",
    "FaissIndex",
    "IndexWriter",
    "Manifest",
    "MilvusIndex",
    "MismatchError",
    "Passage",
    "PassageIndex",
    "RAGError",
    "ResourceError",
    "UsageError",
    "build_index",
    "choose_factory",
]

_EXPORTS = {
    "Change": "indexes.writer",
    "BM25Index": "indexes.bm25_index",
    "Chunker": "indexes.chunking",
    "Corpus": "indexes.corpus",
    "DataError": "indexes.errors",
    "Encoder": "indexes.encoder",
    "FaissIndex": "indexes.faiss_index",
    "IndexWriter": "indexes.writer",
    "Manifest": "indexes.manifest",
    "MilvusIndex": "indexes.milvus_index",
    "MismatchError": "indexes.errors",
    "Passage": "indexes.corpus",
    "PassageIndex": "indexes.passage_index",
    "RAGError": "indexes.errors",
    "ResourceError": "indexes.errors",
    "UsageError": "indexes.errors",
    "build_index": "indexes.builder",
    "choose_factory": "indexes.factory",
}


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'indexes' has no attribute {name!r}")
    value = vars(import_module(_EXPORTS[name]))[name]
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
