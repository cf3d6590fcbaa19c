"""Checkpoints: whole whenever a process dies, on the disk before they have their name, and refused when damaged."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from kills import survives
from tiny_models import randomize_adapters

from generator.language_model import LanguageModel
from indexes.errors import MismatchError
from retriever.listwise_selector import ListwiseSelector
from training.checkpoint import load_learned, save_learned


@pytest.fixture
def selector(language_model: LanguageModel, make_selector: Callable[..., ListwiseSelector]) -> ListwiseSelector:
    return make_selector(language_model)


def learn(selector: ListwiseSelector, seed: int) -> None:
    randomize_adapters(selector.language_model, seed=seed)
    with torch.no_grad():
        selector.prior.gate.fill_(seed / 10)


def tensors(selector: ListwiseSelector) -> list[torch.Tensor]:
    model = selector.language_model
    adapters = [p for role in ("selector", "generator") for p in model.adapter_parameters(role).values()]
    return [p.detach().clone() for p in [*adapters, *selector.prior.parameters()]]


def same(some: list[torch.Tensor], others: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(some, others, strict=True))


def test_a_process_killed_at_any_step_leaves_the_old_checkpoint_or_the_new_one(
    selector: ListwiseSelector, tmp_path: Path
) -> None:
    learn(selector, 2)
    old = tensors(selector)
    save_learned(selector, tmp_path / "old")
    learn(selector, 3)
    new = tensors(selector)
    outcomes = []
    for step in range(1, 200):
        place = tmp_path / f"{step}" / "round-1"
        shutil.copytree(tmp_path / "old", place)
        learn(selector, 3)
        ended = survives(lambda place=place: save_learned(selector, place), step)
        learn(selector, 4)
        load_learned(selector, place)
        found = tensors(selector)
        assert same(found, old) or same(found, new), step
        outcomes.append(same(found, new))
        save_learned(selector, place)  # what a killed process left behind is in nobody's way
        assert [p.name for p in place.parent.iterdir()] == ["round-1"]
        if ended:
            break
    assert ended and outcomes[0] is False and outcomes[-1] is True
    assert outcomes == sorted(outcomes), "there must be one moment at which the new one takes the place"
    assert len(outcomes) > 10


def test_a_checkpoint_is_on_the_disk_before_it_has_its_name(
    selector: ListwiseSelector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    named: list[set[int]] = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.fstat(fd).st_ino) or fsync(fd))
    monkeypatch.setattr(os, "replace", lambda a, b: named.append(set(synced)) or replace(a, b))
    save_learned(selector, tmp_path / "round-0")
    files = [path for path in (tmp_path / "round-0").rglob("*") if path.is_file()]
    assert len(files) == 5  # two adapters with their configurations, and what the retriever learned
    [before] = named
    assert {path.stat().st_ino for path in files} <= before
    assert tmp_path.stat().st_ino == synced[-1]  # and the name afterwards


@pytest.mark.parametrize("file", ["retrieval.safetensors", "selector/adapter_model.safetensors"])
def test_a_damaged_checkpoint_is_refused_by_name(selector: ListwiseSelector, tmp_path: Path, file: str) -> None:
    save_learned(selector, tmp_path / "round-0")
    whole = (tmp_path / "round-0" / file).read_bytes()
    (tmp_path / "round-0" / file).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(MismatchError, match=file):
        load_learned(selector, tmp_path / "round-0")
