"""The registry of vector stores: a kind for each, recorded in the manifest of an index and found again on opening it.

@VECTOR_STORES.register("numpy")
class NumpyStore(FileVectorStore): ...

build_index(corpus, encoder, "index", store="numpy")
"""

from indexes.registry import Registry
from indexes.vectors.vector_store import VectorStore

VECTOR_STORES: Registry[type[VectorStore]] = Registry(
    "vector store",
    builtin={
        "faiss": "indexes.vectors.faiss.faiss_index:FaissIndex",
        "milvus": "indexes.vectors.milvus_index:MilvusIndex",
    },
)
"""Kinds of vector store; "faiss" is the default of `build_index`."""
