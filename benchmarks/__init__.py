"""Races between the rivals' way and ours. What must be settled before torch is imported is settled here."""

import importlib.util
import os
import sys
import types

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import indexes  # noqa: F401  (sets the OpenMP wait policy)

for _missing in ("faiss", "datasets"):
    if importlib.util.find_spec(_missing) is None:  # as on many GPU images; no path that is timed there uses them
        sys.modules[_missing] = types.ModuleType(_missing)
        sys.modules[_missing].__getattr__ = lambda name: type(name, (), {})  # type: ignore[method-assign]
