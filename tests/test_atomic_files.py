"""Files that the project writes are whole whenever a process dies, and a damaged one is named."""

import gzip
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from kills import survives
from safetensors.torch import save_file

from indexes import atomic_files
from indexes.errors import MismatchError
from rag.report import write_report
from rag.worlds import world
from rag.worlds.encyclopedia import render
from training.questions.example import QAExample
from training.questions.loading import write_examples

EXAMPLES = [QAExample(f"q{i}", "who wrote Hamlet?", ("Shakespeare",), ("p0",)) for i in range(300)]
ROWS = [{"id": f"p{i}", "title": "Hamlet", "text": "a play"} for i in range(300)]

WRITERS: dict[str, Callable[[Path], object]] = {
    "questions": lambda folder: write_examples(EXAMPLES, folder / "questions.jsonl"),
    "packed questions": lambda folder: write_examples(EXAMPLES, folder / "questions.jsonl.gz"),
    "encyclopedia": lambda folder: render._write_jsonl(folder / "corpus.jsonl", ROWS),  # writing all of it is slow
    "invented world": lambda folder: world._write(folder / "train.jsonl", ROWS),
    "report": lambda folder: write_report(
        {"kind": "sweep", "trials": [{"name": "a", "label": "A"}]}, folder / "report.html"
    ),
}


@pytest.mark.skipif(os.name == "nt", reason="Windows has other permissions")
@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
@pytest.mark.parametrize("write_folder", [atomic_files.write_directory, atomic_files.replace_directory])
def test_weights_have_the_permissions_of_other_files(
    write_folder: Callable[[Path, Callable[[Path], object]], None], umask: int, tmp_path: Path
) -> None:
    """safetensors 0.8.0 writes files that only their owner can read."""

    def write(partial: Path) -> None:
        (partial / "below").mkdir(parents=True)
        save_file({"a": torch.ones(2)}, partial / "below" / "weights.safetensors")
        (partial / "below" / "weights.safetensors").chmod(0o600)  # whatever the version of safetensors
        (partial / "secret.txt").write_text("")
        (partial / "secret.txt").chmod(0o600)

    before = os.umask(umask)
    try:
        write_folder(tmp_path / "folder", write)
        (tmp_path / "other").write_text("")
    finally:
        os.umask(before)
    written = tmp_path / "folder" / "below" / "weights.safetensors"
    assert written.stat().st_mode & 0o777 == (tmp_path / "other").stat().st_mode & 0o777 == 0o666 & ~umask
    assert (tmp_path / "folder" / "secret.txt").stat().st_mode & 0o777 == 0o600
    assert {path.name for path in (tmp_path / "folder").rglob("*")} == {"below", "weights.safetensors", "secret.txt"}


def contents(folder: Path) -> dict[str, bytes]:
    return {f.name: f.read_bytes() for f in folder.iterdir() if not f.name.endswith(".tmp") and f.name[0] != "."}


@pytest.mark.parametrize("name", WRITERS)
def test_a_killed_writer_leaves_old_files_or_new_ones(name: str, tmp_path: Path) -> None:
    """An empty file, or half of one, would be read as what was asked for."""
    work = WRITERS[name]
    (tmp_path / "clean").mkdir()
    work(tmp_path / "clean")
    new = contents(tmp_path / "clean")
    assert min(map(len, new.values())) > 100
    for step in range(1, 100):
        folder = tmp_path / str(step)
        folder.mkdir()
        for file in new:
            (folder / file).write_bytes(b"old")
        ended = survives(lambda folder=folder: work(folder), step)
        found = contents(folder)
        assert found.keys() == new.keys()
        assert all(found[file] in (b"old", new[file]) for file in new), step
        if ended:
            break
    assert ended and step > 1 and found == new
    assert not list(folder.glob("*.tmp"))


def test_an_interrupted_command_leaves_no_partial_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rag import cli
    from rag.commands.command import Report

    args = type("Args", (), {"json": str(tmp_path / "demo.json")})()
    cli._print(Report("", {"f1": 0.5}), args)
    whole = (tmp_path / "demo.json").read_bytes()
    for step in range(1, 20):
        ended = survives(lambda: cli._print(Report("", {"f1": 0.75}), args), step)
        found = (tmp_path / "demo.json").read_bytes()
        assert found == whole or json.loads(found) == {"f1": 0.75}, step
        if ended:
            break
    assert ended and step > 1


def test_a_failed_writer_leaves_nothing(tmp_path: Path) -> None:
    def failing() -> object:
        yield EXAMPLES[0]
        raise RuntimeError("the source ended early")

    with pytest.raises(RuntimeError):
        write_examples(failing(), tmp_path / "questions.jsonl")
    assert list(tmp_path.iterdir()) == []


def test_packed_questions_have_the_same_bytes_under_any_name(tmp_path: Path) -> None:
    write_examples(EXAMPLES, tmp_path / "a.jsonl.gz")
    write_examples(EXAMPLES, tmp_path / "b.jsonl.gz")
    assert (tmp_path / "a.jsonl.gz").read_bytes() == (tmp_path / "b.jsonl.gz").read_bytes()
    assert len(gzip.decompress((tmp_path / "a.jsonl.gz").read_bytes()).splitlines()) == 300


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_links_and_pipes_are_not_replaced(tmp_path: Path) -> None:
    """A renaming would put a file in the place of the link, or of /dev/stdout."""
    (tmp_path / "target").write_text("old")
    (tmp_path / "link").symlink_to("target")
    atomic_files.write_text(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_text() == "new"
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    try:
        atomic_files.write_text(tmp_path / "pipe", "through")
        assert os.read(reader, 100) == b"through"
    finally:
        os.close(reader)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["link", "pipe", "target"]


def test_a_killed_directory_replacement_leaves_a_readable_directory(tmp_path: Path) -> None:
    def make(text: str) -> Callable[[Path], object]:
        return lambda folder: (folder.mkdir(), (folder / "a").write_text(text), (folder / "b").write_text(text))

    seen = []
    for step in range(1, 50):
        place = tmp_path / str(step) / "place"
        place.parent.mkdir()
        atomic_files.replace_directory(place, make("old"))
        ended = survives(lambda place=place: atomic_files.replace_directory(place, make("new")), step)
        stands = atomic_files.readable_directory(place)
        assert {f.name for f in stands.iterdir()} == {"a", "b"}
        [text] = {f.read_text() for f in stands.iterdir()}
        seen.append((text, stands == place))
        atomic_files.replace_directory(place, make("newest"))
        assert [p.name for p in place.parent.iterdir()] == ["place"]
        if ended:
            break
    assert set(seen) == {("old", True), ("old", False), ("new", True)}


@pytest.mark.parametrize(
    "text",
    ['{"a": ', "[1]", "\ud800".encode("utf-8", "surrogatepass"), "[" * 100_000],
    ids=["cut", "list", "bytes", "deep"],
)
def test_a_damaged_file_is_named(text: str | bytes, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(MismatchError, match=r"run\.json must hold a JSON object, but it .*Train again"):
        atomic_files.read_json(tmp_path / "run.json", "Train again.")


def test_json_is_written_atomically_and_read_back(tmp_path: Path) -> None:
    file, value = tmp_path / "new" / "run.json", {"seed": 1, "name": "Zürich"}
    atomic_files.write_json(file, value)
    assert atomic_files.read_json(file, "") == value
    assert file.read_text(encoding="utf-8") == '{\n "name": "Zürich",\n "seed": 1\n}\n'
    with pytest.raises(TypeError):
        atomic_files.write_json(file, {"path": tmp_path})
    with pytest.raises(ValueError, match="not JSON compliant"):
        atomic_files.write_json(file, {"loss": float("nan")})
    assert atomic_files.read_json(file, "") == value
    assert [path.name for path in file.parent.iterdir()] == ["run.json"]
