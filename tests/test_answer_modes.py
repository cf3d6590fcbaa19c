"""Answer modes as a door: registration, options, what a bundle records, and the example of a new one."""

import importlib.util
import json
import runpy
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from indexes.errors import UsageError
from rag.answering.answer_modes import ANSWER_MODES, create_answer_mode
from rag.pipeline import RAG

EXAMPLE = Path(__file__).parents[1] / "examples" / "new_answer_mode.py"
QUESTION = "who wrote Hamlet?"


@pytest.fixture
def example() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("new_answer_mode", EXAMPLE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    ANSWER_MODES._registered.pop("majority_vote")


def with_mode(rag: RAG, mode: object) -> RAG:
    return RAG(rag.retriever, rag.selector, rag.generator, answer_mode=mode)  # type: ignore[arg-type]


def test_the_example_is_one_short_file() -> None:
    assert len(EXAMPLE.read_text().splitlines()) <= 60


def test_the_example_answers_with_the_majority(
    example: ModuleType, make_rag: Callable[..., RAG], monkeypatch: pytest.MonkeyPatch
) -> None:
    rag = with_mode(make_rag(), {"kind": "majority_vote", "votes": 2})
    candidates = rag.retriever.search(QUESTION, rag.num_candidates)
    assert isinstance(rag.answer_mode, example.MajorityVote)
    [z] = rag.answer_mode.select([candidates])
    [forward] = rag.answer_mode.read([candidates], [z])
    assert rag.answer(QUESTION) in (forward, rag.answer_mode.read([candidates], [[*z[1:], z[0]]])[0])
    texts = {tuple(z): "Marlowe", (*z[1:], z[0]): "Shakespeare"}
    votes = [replace(forward, text=text, permutation=list(order)) for order, text in texts.items()]
    assert rag.answer_mode.elected([votes[0], votes[1], replace(votes[1], text="shakespeare")]) == votes[1]
    assert rag.answer_mode.elected(votes) == votes[0]


def test_a_bundle_finds_a_registered_mode_with_its_options(
    example: ModuleType, make_rag: Callable[..., RAG], tmp_path: Path
) -> None:
    rag = with_mode(make_rag(), {"kind": "majority_vote", "votes": 2})
    rag.save_pretrained(tmp_path / "bundle")
    written = json.loads((tmp_path / "bundle" / "rag_config.json").read_text())["answer_mode"]
    assert written == {"kind": "majority_vote", "package": "new_answer_mode", "votes": 2}
    opened = RAG.from_pretrained(tmp_path / "bundle", device="cpu")
    assert opened.answer_mode.settings == {"votes": 2}
    assert opened.answer(QUESTION) == rag.answer(QUESTION)


def test_a_bundle_of_an_unknown_mode_names_the_package_that_registers_it(
    make_rag: Callable[..., RAG], tmp_path: Path
) -> None:
    make_rag().save_pretrained(tmp_path / "bundle")
    file = tmp_path / "bundle" / "rag_config.json"
    config = json.loads(file.read_text())
    assert config["answer_mode"] == {"kind": "permutation", "package": "rag"}
    config["answer_mode"] = {"kind": "majority_vote", "package": "their_package"}
    file.write_text(json.dumps(config))
    with pytest.raises(UsageError, match=r"registered by the package 'their_package': install or import it"):
        RAG.from_pretrained(tmp_path / "bundle", device="cpu")


def test_the_nearest_kind_is_named(make_rag: Callable[..., RAG]) -> None:
    with pytest.raises(
        UsageError, match=r"answer mode must be one of \['permutation', .*got 'rag-token'. Did you mean 'rag_token'"
    ):
        with_mode(make_rag(), "rag-token")


def test_unknown_options_are_refused(example: ModuleType, make_rag: Callable[..., RAG]) -> None:
    rag = make_rag()
    parts = (rag.retriever, rag.selector, rag.generator)
    with pytest.raises(UsageError, match=r"options of the answer mode 'majority_vote' are \['votes'\], got \['vote'\]"):
        create_answer_mode({"kind": "majority_vote", "vote": 2}, *parts)
    with pytest.raises(UsageError, match=r"options of the answer mode 'permutation' are \[\], got \['votes'\]"):
        create_answer_mode({"kind": "permutation", "votes": 2}, *parts)


def test_the_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    """With the built-in tiny models."""
    try:
        runpy.run_path(str(EXAMPLE), run_name="__main__")
    finally:
        ANSWER_MODES._registered.pop("majority_vote")
    assert "Answer(question='who wrote Hamlet?'" in capsys.readouterr().out
