"""Retrievers of any kind: the registry, settings in bundles, and a complete example."""

import json
import runpy
from pathlib import Path

import pytest
import torch

from indexes.directory.passage_index import PassageIndex
from indexes.encoder import Encoder
from indexes.errors import UsageError
from retriever.hybrid import HybridRetriever
from retriever.retrievers import RETRIEVERS, create_retriever, retriever_to_dict

EXAMPLE = Path(__file__).parents[1] / "examples/new_retriever.py"


@pytest.fixture(autouse=True)
def registry_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is gone after it."""
    monkeypatch.setattr(RETRIEVERS, "_registered", dict(RETRIEVERS._registered))


@pytest.mark.parametrize(
    "settings", ["dense", "bm25", {"kind": "hybrid", "depth": 7, "rrf_k": 3, "weights": [0.2, 0.8]}]
)
def test_settings_rebuild_the_retriever(
    settings: str | dict[str, object], index: PassageIndex, encoder: Encoder
) -> None:
    made = create_retriever(index, encoder, settings)
    written = json.loads(json.dumps(retriever_to_dict(made)))
    assert written["package"] == "retriever"
    again = create_retriever(index, encoder, written)
    assert type(again) is type(made)
    assert retriever_to_dict(again) == written
    if isinstance(settings, dict):
        assert isinstance(again, HybridRetriever)
        assert (again.depth, again.rrf_k, again.weights) == (7, 3, (0.2, 0.8))


def test_unknown_kinds_name_the_known_ones_and_the_package(index: PassageIndex, encoder: Encoder) -> None:
    with pytest.raises(UsageError, match=r"\['dense', 'bm25', 'hybrid'.*got 'densa'. Did you mean 'dense'\?"):
        create_retriever(index, encoder, "densa")
    with pytest.raises(UsageError, match="registered by the package 'their_package': install or import it"):
        create_retriever(index, encoder, {"kind": "colbert", "package": "their_package"})


def test_a_retriever_prints_its_settings(index: PassageIndex, encoder: Encoder) -> None:
    made = create_retriever(index, encoder, {"kind": "hybrid", "depth": 7})
    assert repr(made) == (
        f"HybridRetriever(index={str(index.path)!r}, untrained question adapter, depth=7, rrf_k=10, weights=[1.0, 1.0])"
    )
    with torch.no_grad():
        made.adapter.up.add_(1.0)
    assert "trained question adapter" in repr(made) and "untrained" not in repr(made)


def test_the_example_ranks_by_its_bonus_after_loading(capsys: pytest.CaptureFixture[str]) -> None:
    assert len(EXAMPLE.read_text(encoding="utf-8").splitlines()) <= 60
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    shown, ids = capsys.readouterr().out.splitlines()
    assert shown.startswith("TitleBonusRetriever(") and "bonus=0.3" in shown
    assert ids.startswith("['p2'")
