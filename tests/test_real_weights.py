"""`benchmarks.real_weights`: what can be read here, and what is missing."""

import importlib.util
from pathlib import Path

import pytest

from benchmarks.real_weights import missing_weights


def test_only_gguf_files_need_their_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRO_RAG_CACHE", str(tmp_path / "cache"))
    (tmp_path / "base.gguf").touch()
    for weights in (tmp_path, tmp_path / "base.gguf"):
        assert missing_weights(str(weights)) is None
    assert "no weights at" in str(missing_weights(str(tmp_path / "nothing")))
    assert "rag models get smollm2" in str(missing_weights("smollm2"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert missing_weights(str(tmp_path)) is None
    assert "the package 'gguf'" in str(missing_weights(str(tmp_path / "base.gguf")))
