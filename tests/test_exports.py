"""Exports of the five packages: every name exists, and `import rag` loads no heavy library."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

import rag
from rag import RAG, DROTrainer, evaluate
from rag.evaluation import evaluation
from rag.pipeline import RAG as DEFINED_RAG
from training import trainer


@pytest.mark.parametrize("package", ["indexes", "generator", "retriever", "training", "rag"])
def test_every_export_exists(package: str) -> None:
    module = importlib.import_module(package)
    assert set(module.__all__) == set(module._EXPORTS)
    for name in module.__all__:
        assert getattr(module, name) is getattr(importlib.import_module(module._EXPORTS[name]), name)
    with pytest.raises(AttributeError, match="has no attribute 'NoSuchThing'"):
        module.NoSuchThing  # noqa: B018


def test_rag_exports_what_a_user_needs() -> None:
    assert RAG is DEFINED_RAG
    assert evaluate is evaluation.evaluate
    assert issubclass(DROTrainer, trainer.DROTrainer)
    needed = """AdapterConfig Answer ChatConfig Corpus DROConfig DataError DecodingConfig Encoder Evaluation IndexWriter
        MismatchError ModelConfig Passage PassageIndex QAExample RAGError ResourceError SelectorConfig UsageError
        build_index load_examples ANSWER_MODES SELECTORS RETRIEVERS"""
    assert set(needed.split()) <= set(dir(rag))


def test_importing_rag_loads_no_heavy_library() -> None:
    script = "import rag, sys; print({'torch', 'transformers', 'faiss', 'numpy', 'datasets'} & set(sys.modules))"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    found = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    ).stdout
    assert found.strip() == "set()"
