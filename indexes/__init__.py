"""Passages and their vectors on disk: corpora, encoders, vector stores and index directories.

The names below are imported on first use: ``import indexes`` imports neither torch nor FAISS.
"""

import os

# OpenMP reads this once, when the first library that links it is loaded. Threads that spin while they wait
# make torch and FAISS many times slower on a machine whose cores are busy. A setting of the user is kept.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from typing import TYPE_CHECKING

from indexes.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from indexes.corpora.chunking import Chunker
    from indexes.corpora.corpus import Corpus
    from indexes.corpora.corpus_format import CorpusFormat
    from indexes.corpora.corpus_formats import CORPUS_FORMATS
    from indexes.corpora.passage import Passage
    from indexes.directory.builder import build_index
    from indexes.directory.manifest import Manifest
    from indexes.directory.passage_index import PassageIndex
    from indexes.directory.writer import Change, IndexWriter
    from indexes.encoder import Encoder
    from indexes.errors import DataError, MismatchError, RAGError, ResourceError, UsageError
    from indexes.vectors.bm25_index import BM25Index
    from indexes.vectors.faiss.faiss_factory import choose_factory
    from indexes.vectors.faiss.faiss_index import FaissIndex
    from indexes.vectors.milvus_index import MilvusIndex
    from indexes.vectors.vector_store import FileVectorStore, VectorStore
    from indexes.vectors.vector_stores import VECTOR_STORES

__all__ = [
    "CORPUS_FORMATS",
    "VECTOR_STORES",
    "BM25Index",
    "Change",
    "Chunker",
    "Corpus",
    "CorpusFormat",
    "DataError",
    "Encoder",
    "FaissIndex",
    "FileVectorStore",
    "IndexWriter",
    "Manifest",
    "MilvusIndex",
    "MismatchError",
    "Passage",
    "PassageIndex",
    "RAGError",
    "ResourceError",
    "UsageError",
    "VectorStore",
    "build_index",
    "choose_factory",
]

_EXPORTS = {
    "VectorStore": "indexes.vectors.vector_store",
    "FileVectorStore": "indexes.vectors.vector_store",
    "VECTOR_STORES": "indexes.vectors.vector_stores",
    "Change": "indexes.directory.writer",
    "BM25Index": "indexes.vectors.bm25_index",
    "Chunker": "indexes.corpora.chunking",
    "CORPUS_FORMATS": "indexes.corpora.corpus_formats",
    "Corpus": "indexes.corpora.corpus",
    "CorpusFormat": "indexes.corpora.corpus_format",
    "DataError": "indexes.errors",
    "Encoder": "indexes.encoder",
    "FaissIndex": "indexes.vectors.faiss.faiss_index",
    "IndexWriter": "indexes.directory.writer",
    "Manifest": "indexes.directory.manifest",
    "MilvusIndex": "indexes.vectors.milvus_index",
    "MismatchError": "indexes.errors",
    "Passage": "indexes.corpora.passage",
    "PassageIndex": "indexes.directory.passage_index",
    "RAGError": "indexes.errors",
    "ResourceError": "indexes.errors",
    "UsageError": "indexes.errors",
    "build_index": "indexes.directory.builder",
    "choose_factory": "indexes.vectors.faiss.faiss_factory",
}

__getattr__, __dir__ = lazy_exports(__name__, _EXPORTS)
