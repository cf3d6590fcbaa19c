#!/usr/bin/env bash
# faiss-cpu 1.15.1: an `IndexFlatIPPanorama` is an `IndexFlat` whose memory is no matrix, and everything that relies on that
# goes wrong without an error: `Refine(FlatIPPanorama8)` scores other vectors than its own, `get_xb()` is not row after row, and
# `faiss.contrib.factory_tools.reverse_index_factory` calls it "Flat".
#
# One would guess that a subclass of IndexFlat may stand wherever an IndexFlat may. What to do: search it as it is (then it is
# exact), compare `type(index)` instead of `isinstance`, and refine with "RFlat".
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check faiss-cpu==1.15.1 numpy==2.3.5
OMP_NUM_THREADS=1 "$folder/venv/bin/python" - <<'PYTHON'
import faiss
import numpy as np
from faiss.contrib.factory_tools import reverse_index_factory

random = np.random.default_rng(0)
vectors = random.normal(size=(2000, 64)).astype("float32")
vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)


def made(factory):
    index = faiss.index_factory(64, factory, faiss.METRIC_INNER_PRODUCT)
    index.train(vectors)
    index.add(vectors)
    return index


print("faiss", faiss.__version__)
alone = made("FlatIPPanorama8")
_, rows = alone.search(vectors[:200], 1)
first = faiss.rev_swig_ptr(alone.get_xb(), 64)
print("alone finds itself", (rows[:, 0] == np.arange(200)).mean())
print("is an IndexFlat:", isinstance(alone, faiss.IndexFlat), "- first row of get_xb():", np.allclose(first, vectors[0]))
print("its name:", reverse_index_factory(alone))
assert (rows[:, 0] == np.arange(200)).all() and isinstance(alone, faiss.IndexFlat)
assert not np.allclose(first, vectors[0]) and reverse_index_factory(alone) == "Flat"
for factory, right in (("SQ8,RFlat", True), ("SQ8,Refine(FlatIPPanorama8)", False)):
    scores, rows = made(factory).search(vectors[:200], 1)
    error = float(np.abs(scores[:, 0] - (vectors[:200] * vectors[rows[:, 0]]).sum(1)).max())
    print(f"{factory:28} largest error of a score {error:.3f}")
    assert (error < 1e-5) == right
PYTHON
