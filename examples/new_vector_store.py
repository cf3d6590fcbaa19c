"""A vector store of your own: exact search in NumPy, with one ``.npy`` file for each segment of the index.

    python examples/new_vector_store.py

A package of your own names its module as an entry point of ``dro_rag.plugins``.
"""

import tempfile
from pathlib import Path

import numpy as np

from indexes import Corpus, Passage, PassageIndex, build_index
from indexes.vectors.vector_store import FileVectorStore, SearchResult, StoreConfig, StoreProperties, best_first
from indexes.vectors.vector_stores import VECTOR_STORES


@VECTOR_STORES.register("numpy")
class NumpyStore(FileVectorStore):
    extension, factory, dimension = "npy", "NumPy", 0  # suffix of the files; name in the manifest
    properties = StoreProperties()  # the defaults: exact search over the vectors as they were added

    def __init__(self, vectors_Nd: np.ndarray) -> None:
        self.vectors_Nd, self.dimension = vectors_Nd, vectors_Nd.shape[1]

    @classmethod
    def create(cls, config: StoreConfig) -> "NumpyStore":
        return cls(np.empty((0, config.dimension), np.float32))

    @classmethod
    def open(cls, path: Path, config: StoreConfig, *, mmap: bool = False) -> "NumpyStore":
        return cls(np.load(path, mmap_mode="r" if mmap else None))

    def save(self, path: str | Path) -> None:
        with Path(path).open("wb") as stream:
            np.save(stream, self.vectors_Nd)

    def __len__(self) -> int:
        return len(self.vectors_Nd)

    def add(self, vectors: np.ndarray) -> None:
        self.vectors_Nd = np.concatenate([self.vectors_Nd, vectors])

    def search(self, queries_Bd: np.ndarray, k: int, *, parameters: str | None = None) -> SearchResult:
        scores_BN = np.asarray(queries_Bd, np.float32) @ self.vectors_Nd.T
        scores_BN, rows_BN = best_first(scores_BN, np.broadcast_to(np.arange(len(self)), scores_BN.shape))
        padding = [(0, 0), (0, max(k - len(self), 0))]
        scores_Bk = np.pad(scores_BN[:, :k], padding, constant_values=-np.inf)
        return scores_Bk, np.pad(rows_BN[:, :k], padding, constant_values=-1)

    def reconstruct(self, rows: np.ndarray) -> np.ndarray:
        return self.vectors_Nd[np.asarray(rows)]


with tempfile.TemporaryDirectory() as folder:
    passages = [Passage("faust", "Faust", "a play by Goethe"), Passage("seine", "Seine", "a river in France")]
    build_index(Corpus.from_passages(passages), "tiny", f"{folder}/index", store="numpy", progress=False)
    index = PassageIndex.open(f"{folder}/index")
    _, positions_Bk = index.vectors.search(index.load_encoder().encode_questions(["river in France"]), 2)
    print(index, [index.corpus[position].title for position in positions_Bk[0].tolist()])
