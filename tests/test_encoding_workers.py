"""Several processes encode one corpus: the bytes of one process, one clear error, nothing left behind, and resuming."""

import errno
import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_models import tiny_encoder

from indexes import (
    Corpus,
    DataError,
    Encoder,
    IndexWriter,
    MismatchError,
    Passage,
    PassageIndex,
    ResourceError,
    UsageError,
    build_index,
)
from indexes.corpora.passage_files import write_passages
from indexes.directory import shard_encoding, shards
from indexes.directory.shard_encoding import _error_of, _work, _write_job, check_workers
from indexes.directory.shards import Shards
from indexes.worker_processes import WorkerProcesses
from rag.cli import main

ROWS = 16
TEXTS = [f"w{n % 31} w{n * n % 31} w{n % 7}" for n in range(150)]  # ten shards


def notes_what_it_encodes(notes: str, behaviour: str) -> Callable[..., np.ndarray]:
    """An `Encoder.encode_passages` that notes which process encodes which passages.

    The first process waits for the worker process after it has begun its first shard, and "is interrupted" then; or the
    worker "fails", "dies" or simply "works".
    """
    encode = Encoder.encode_passages

    def encode_passages(self: Encoder, passages: Any, **options: Any) -> np.ndarray:
        if len(passages) < ROWS - 10:  # the probe, or the last shard, which is no matter here
            return encode(self, passages, **options)
        with (Path(notes) / f"encoded-{os.getpid()}").open("a") as file:
            file.write(passages[0].id + "\n")
        if os.environ.get("TQDM_POSITION") == "1":
            if behaviour == "fails":
                raise DataError("A vector must be finite, but this one is not.")
            if behaviour == "dies":
                os.kill(os.getpid(), signal.SIGKILL)
            if behaviour == "is interrupted":
                time.sleep(300)
        else:
            _wait_for(lambda: len(list(Path(notes).iterdir())) > 1)
            if behaviour == "is interrupted":
                raise KeyboardInterrupt
        return encode(self, passages, **options)

    return encode_passages


@pytest.fixture
def behave(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Makes this process and its workers note what they encode, and behave in a certain way."""

    def patch(behaviour: str) -> None:
        arguments = f"{str(folder / 'notes')!r}, {behaviour!r}"
        worker = f"import {__name__} as t; t.Encoder.encode_passages = t.notes_what_it_encodes({arguments}); "

        def start(count: int, code: str, arguments: list[str]) -> WorkerProcesses:
            return WorkerProcesses(count, worker + code, arguments)

        monkeypatch.setattr(shard_encoding, "WorkerProcesses", start)
        monkeypatch.setattr(Encoder, "encode_passages", notes_what_it_encodes(str(folder / "notes"), behaviour))

    return patch


def _wait_for(found: Callable[[], object]) -> None:
    end = time.monotonic() + 120
    while not found():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A corpus, an encoder, and the index that one process builds; shards are small in this process only."""
    from indexes.directory import builder

    monkeypatch.setattr(shards, "ROWS", ROWS)
    monkeypatch.setattr(builder, "ROWS", ROWS)
    tiny_encoder(TEXTS, dimension=12).save_pretrained(tmp_path / "encoder")
    rows = [{"id": str(n), "text": text} for n, text in enumerate(TEXTS)]
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "notes").mkdir()
    return tmp_path


def tiny(folder: Path) -> Encoder:
    return Encoder.from_pretrained(folder / "encoder", device="cpu")


def build(folder: Path, name: str, encoder: Encoder, **options: Any) -> PassageIndex:
    return build_index(
        folder / "corpus.jsonl", encoder, folder / name, factory="IVF2,Flat", bm25=True, progress=False, **options
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {f.relative_to(folder).as_posix(): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def encoded(folder: Path) -> dict[int, list[int]]:
    """The shards that each process has encoded."""
    return {
        int(file.name.partition("-")[2]): [int(id) // ROWS for id in file.read_text().split()]
        for file in (folder / "notes").iterdir()
    }


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_two_processes_give_the_bytes_of_one_and_share_the_shards(folder: Path, behave: Callable[[str], None]) -> None:
    build(folder, "alone", tiny(folder))
    behave("works")
    build(folder, "shared", tiny(folder), workers=2)
    assert contents(folder / "shared") == contents(folder / "alone")
    found = encoded(folder)
    assert len(found) == 2 and all(found.values())
    assert sorted(number for numbers in found.values() for number in numbers) == list(range(10))
    assert not any(is_running(pid) for pid in found if pid != os.getpid())


@pytest.mark.parametrize(
    ("behaviour", "error", "message"),
    [
        ("fails", DataError, "must be finite, but this one is not"),
        ("dies", ResourceError, r"must live until the end, but one was ended by signal 9.*fewer workers \(--workers\)"),
        ("is interrupted", KeyboardInterrupt, "^$"),
    ],
)
def test_an_error_in_either_process_ends_the_build_which_can_be_resumed(
    folder: Path,
    behave: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
    behaviour: str,
    error: type[BaseException],
    message: str,
) -> None:
    behave(behaviour)
    with pytest.raises(error, match=message) as caught:
        build(folder, "shared", tiny(folder), workers=2)
    monkeypatch.undo()
    monkeypatch.setattr(shards, "ROWS", ROWS)
    if behaviour == "fails":
        assert str(caught.value) == "A vector must be finite, but this one is not."
        assert "Traceback" in caught.value.__notes__[0]
    worker = next(pid for pid in encoded(folder) if pid != os.getpid())
    assert not is_running(worker)
    assert not (folder / "shared").exists()
    plain = tiny(folder)
    written = len(list((folder / ".shared.building/vectors").glob("*.f32")))
    assert written < 10
    build(folder, "shared", plain, resume=True)
    build(folder, "alone", plain)
    assert contents(folder / "shared") == contents(folder / "alone")


class Idle:
    """In place of worker processes: none of them does anything."""

    started: list[int]

    def __init__(self, count: int, code: str, arguments: list[str]) -> None:
        self.started.append(count)

    def __enter__(self) -> "Idle":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def are_running(self) -> bool:
        return True

    def failure(self) -> str:
        return ""

    def stop(self) -> None:
        pass


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of worker processes that would have been started."""
    monkeypatch.setattr(shard_encoding, "WorkerProcesses", Idle)
    monkeypatch.setattr(Idle, "started", [], raising=False)
    return Idle.started


def test_no_more_workers_than_shards_and_none_is_waited_for(folder: Path, started: list[int]) -> None:
    """The ten shards are done before any worker has claimed one."""
    encoder = tiny(folder)
    for workers, expected in [(1, []), (3, [2]), (40, [9])]:
        started.clear()
        build(folder, "shared", encoder, workers=workers, overwrite=True)
        assert started == expected
    assert not list(folder.glob(".*building"))


def test_a_worker_encodes_what_it_claims(folder: Path, started: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """The work of a worker process, done here while the first process is about to take its second shard."""
    encoder, done = tiny(folder), []

    def claim(path: Path, job: str) -> bool:
        if job == "000001" and not done:
            done.append(True)
            shard_encoding.run_worker(str(path))
        return claim_first(path, job)

    claim_first = shard_encoding.claim
    monkeypatch.setattr(shard_encoding, "claim", claim)
    build(folder, "shared", encoder, workers=2)
    build(folder, "alone", encoder)
    assert done and contents(folder / "shared") == contents(folder / "alone")


def test_workers_encode_what_is_added(folder: Path, started: list[int]) -> None:
    encoder = tiny(folder)
    corpus = Corpus.from_passages([Passage(f"new {n}", "", f"w{n % 31} w3") for n in range(40)])
    for name, workers in (("shared", 3), ("alone", 1)):
        build(folder, name, encoder)
        with IndexWriter(folder / name, encoder, workers=workers, progress=False) as writer:
            assert writer.add(corpus).added == 40
    assert started == [2]
    assert contents(folder / "shared") == contents(folder / "alone")


def test_the_command_takes_workers(folder: Path, started: list[int], capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--corpus", str(folder / "corpus.jsonl"), "--quiet"]
    build_options = [*options, "--encoder", str(folder / "encoder"), "--output_dir", str(folder / "i")]
    assert main(["index", "build", *build_options, "--device", "cpu", "--workers", "2"]) == 0
    (folder / "more.jsonl").write_text("".join(json.dumps({"id": f"m{n}", "text": "w1 w2"}) + "\n" for n in range(40)))
    assert main(["index", "add", str(folder / "i"), "--corpus", str(folder / "more.jsonl"), "--workers", "4"]) == 0
    assert started == [1, 2]
    assert main(["index", "build", *build_options, "--overwrite", "--workers", "0"]) == 2
    assert "workers must be at least 1, but got 0" in capsys.readouterr().err


def test_impossible_workers_are_refused(folder: Path) -> None:
    encoder = tiny(folder)
    with pytest.raises(UsageError, match="launcher started share the encoding already, but workers is 2"):
        build(folder, "shared", encoder, workers=2, distributed=True)
    encoder.model.to("meta")
    with pytest.raises(UsageError, match=r"share the cores of a CPU, but the encoder is on meta.*accelerate launch"):
        check_workers(2, encoder)
    check_workers(1, encoder)


def test_a_copy_of_the_encoder_that_gives_other_vectors_is_refused(folder: Path, started: list[int]) -> None:
    """The probe is what the first process made of the passages; a copy that was changed is noticed."""
    encoder = tiny(folder)

    def work(change: Callable[[Path], None]) -> None:
        job = folder / "job"
        shutil.rmtree(job, ignore_errors=True)
        job.mkdir()
        corpus = Corpus.from_file(folder / "corpus.jsonl")
        write_passages(job / "passages", corpus)
        _write_job(job, job / "passages", corpus, encoder, Shards(folder / "s", len(TEXTS), 12), [3, 4], 8)
        change(job)
        _work(job)

    work(lambda job: None)
    assert Shards(folder / "s", len(TEXTS), 12).missing() == [0, 1, 2, 5, 6, 7, 8, 9]
    with pytest.raises(MismatchError, match="must give the same vectors, but it does not"):
        work(lambda job: tiny_encoder(["other words"], dimension=12).save_pretrained(job / "encoder"))


def test_errors_of_workers_keep_their_class() -> None:
    def error(kind: str, number: int | None = None) -> Exception:
        return _error_of({"kind": kind, "message": "what", "errno": number, "traceback": "where"})

    for kind, expected in [("UsageError", UsageError), ("DataError", DataError), ("MemoryError", MemoryError)]:
        assert type(error(kind)) is expected and str(error(kind)) == "what"
        assert error(kind).__notes__ == ["In a worker process:\nwhere"]
    full = error("OSError", errno.ENOSPC)
    assert isinstance(full, OSError) and full.errno == errno.ENOSPC
    assert str(error("ZeroDivisionError")) == "A process that encodes passages failed: ZeroDivisionError: what"


def test_a_failed_worker_is_reported_by_how_it_ended() -> None:
    with WorkerProcesses(1, "import os; os._exit(3)", []) as workers:
        _wait_for(lambda: not workers.are_running())
        assert workers.failure() == "exited with 3"
        workers.stop()
    with WorkerProcesses(1, "import time; time.sleep(60)", []) as workers:
        assert workers.are_running() and workers.failure() == ""
        workers.stop()
        assert not workers.are_running()


def test_shards_of_another_size(tmp_path: Path) -> None:
    vectors = Shards(tmp_path, 25, 2, 10)
    assert (len(vectors), vectors.rows(2)) == (3, range(20, 25))
    for number in range(3):
        vectors.write(number, np.full((len(vectors.rows(number)), 2), number, np.float32))
    assert [vectors.is_whole(number) for number in range(3)] == [True] * 3
    np.testing.assert_array_equal(np.concatenate(list(vectors.blocks(8, 22)))[:, 0], [0] * 2 + [1] * 10 + [2] * 2)
    assert Shards(tmp_path, 25, 2).size == shards.ROWS
