"""Encoding the shards of a corpus, in this process or in several on one machine.

    this process -- encoder, job --> folder beside the shards --> worker processes
                    each claims the next shard, encodes it and writes it

The batches of a shard depend on nothing outside it, so its vectors are the same whichever process encodes it. A worker
process loads a copy of the encoder, and encodes only if the copy gives the same vectors.
"""

import json
import logging
import os
import shutil
import sys
import time
import traceback
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from indexes import errors
from indexes.atomic_files import write_json
from indexes.corpora.corpus import Corpus
from indexes.corpora.passage_files import write_passages
from indexes.directory.segments import PASSAGES_FILE, open_passages
from indexes.directory.shards import Shards
from indexes.encoder import Encoder, EncodingBar, Truncation, Vectors
from indexes.errors import MismatchError, RAGError, ResourceError, UsageError
from indexes.worker_processes import WorkerProcesses, claim, exit_with_parent

WORKERS_FOLDER = "workers"
_JOB_FILE, _PROBE_FILE, _ENCODER_FOLDER = "job.json", "probe.npy", "encoder"
# Passages that a copy of the encoder must give the same vectors for.
_PROBED = 4
_POLL_SECONDS = 0.1

logger = logging.getLogger(__name__)


def encode_shards(
    corpus: Corpus,
    encoder: Encoder,
    shards: Shards,
    numbers: Sequence[int],
    *,
    batch_size: int,
    progress: bool,
    workers: int = 1,
    file: Path | None = None,
) -> None:
    """Encode these shards of a corpus and write each as soon as it is done.

    Args:
        corpus: All passages.
        encoder: The encoder.
        shards: Where the vectors are written.
        numbers: The shards to encode.
        batch_size: The most passages that the encoder reads at once.
        progress: Show a progress bar.
        workers: Processes that share the shards, this one included; each has its share of this one's threads.
        file: The file of all passages (`write_passages`), where there is one.

    Raises:
        MismatchError: The encoder gives other vectors in a worker process.
        ResourceError: A worker process was killed.
        RAGError: Whatever a worker process raised.
    """
    count = min(workers, len(numbers)) - 1
    if count > 0:
        _encode_in_processes(corpus, encoder, shards, numbers, batch_size, progress, count, file)
        return
    with EncodingBar(_rows(shards, numbers), "passage", shown=progress) as bar:
        for number in numbers:
            _encode_shard(corpus, encoder, shards, number, batch_size, bar)


def check_workers(workers: int, encoder: Encoder) -> None:
    """Refuse an impossible number of processes for an encoder.

    Raises:
        UsageError: It is below 1, or above 1 for an encoder that is not on a CPU.
    """
    if workers < 1:
        raise UsageError(f"workers must be at least 1, but got {workers}.")
    if workers > 1 and (device := encoder.model.device.type) != "cpu":
        raise UsageError(
            f"workers are processes that share the cores of a CPU, but the encoder is on {device}. Leave workers out; "
            "`accelerate launch -m rag index build ...` divides the encoding among several devices."
        )


def _encode_shard(
    corpus: Corpus, encoder: Encoder, shards: Shards, number: int, batch_size: int, bar: EncodingBar
) -> None:
    bar.truncation = Truncation()
    passages = corpus.take(shards.rows(number))
    vectors_nd = encoder.encode_passages(passages, batch_size=batch_size, progress=bar)
    shards.note(number, asdict(bar.truncation))
    shards.write(number, vectors_nd)


def _rows(shards: Shards, numbers: Iterable[int]) -> int:
    return sum(len(shards.rows(number)) for number in numbers)


# ---------------------------------------------------------------------------------------------------------
# Several processes
# ---------------------------------------------------------------------------------------------------------


def _encode_in_processes(
    corpus: Corpus,
    encoder: Encoder,
    shards: Shards,
    numbers: Sequence[int],
    batch_size: int,
    progress: bool,
    count: int,
    file: Path | None,
) -> None:
    """Encode shards in this process and in `count` worker processes."""
    folder = shards.folder / WORKERS_FOLDER
    shutil.rmtree(folder, ignore_errors=True)  # of processes that were killed
    folder.mkdir(parents=True)
    if file is None:
        write_passages(file := folder / PASSAGES_FILE, corpus)
    _write_job(folder, file, corpus, encoder, shards, numbers, batch_size)
    code = f"from {exit_with_parent.__module__} import exit_with_parent; exit_with_parent(); "
    code += f"from {__name__} import run_worker; run_worker(sys.argv[1])"
    with (
        WorkerProcesses(count, code, [str(folder)]) as workers,
        _SharedBar(folder, shards, numbers, workers, shown=progress) as bar,
    ):
        for number in numbers:
            if claim(folder, _job_name(number)):
                bar.others.discard(number)
                _encode_shard(corpus, encoder, shards, number, batch_size, bar)
                bar.advance_others()
        while bar.others and workers.are_running():
            time.sleep(_POLL_SECONDS)
            bar.advance_others()
        bar.advance_others()
        workers.stop()  # those that found nothing left to do, perhaps because they are still starting
    shutil.rmtree(folder, ignore_errors=True)


class _SharedBar(EncodingBar):
    """A bar over the shards of all processes, which stops this one when another has failed."""

    def __init__(self, folder: Path, shards: Shards, numbers: Sequence[int], workers: WorkerProcesses, *, shown: bool):
        super().__init__(_rows(shards, numbers), "passage", shown=shown)
        self._folder, self._shards, self._workers = folder, shards, workers
        self.others = set(numbers)
        """Shards that this process has not claimed, without those that are written."""

    def advance(self, texts: int, tokens: int) -> None:
        """Advance by a batch of this process.

        Raises:
            RAGError: A worker process has failed.
        """
        _raise_failure(self._folder, self._workers)
        super().advance(texts, tokens)

    def advance_others(self) -> None:
        """Advance by the shards that other processes have written since the last call."""
        written = {number for number in self.others if self._shards.is_whole(number)}
        self.others -= written
        self.advance(_rows(self._shards, written), 0)


def _write_job(
    folder: Path,
    file: Path,
    corpus: Corpus,
    encoder: Encoder,
    shards: Shards,
    numbers: Sequence[int],
    batch_size: int,
) -> None:
    """Write what a worker process needs."""
    encoder.save_pretrained(folder / _ENCODER_FOLDER)
    probe = shards.rows(numbers[0])[:_PROBED]
    np.save(folder / _PROBE_FILE, _probe_vectors(encoder, corpus, probe), allow_pickle=False)
    job = {
        "shards": str(shards.folder),
        "count": shards.count,
        "dimension": shards.dimension,
        "size": shards.size,
        "numbers": list(numbers),
        "passages": str(file),
        "batch_size": batch_size,
        "dtype": encoder.dtype,
        "truncate_dim": encoder.model.truncate_dim,
        "trust_remote_code": encoder.trust_remote_code,
        "probe": list(probe),
    }
    write_json(folder / _JOB_FILE, job)


def _probe_vectors(encoder: Encoder, corpus: Corpus, rows: Sequence[int]) -> Vectors:
    """Vectors of some passages; by one thread, since how products are divided among threads may change their bits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        bar = EncodingBar(len(rows), "passage", shown=False)  # truncation is counted when their shard is encoded
        return encoder.encode_passages(corpus.take(rows), progress=bar)
    finally:
        torch.set_num_threads(threads)


def _job_name(number: int) -> str:
    return f"{number:06d}"


def run_worker(path: str) -> None:
    """Encode shards that no other process has claimed, until none is left; `path` is the folder of the job."""
    folder = Path(path)
    try:
        _work(folder)
    except Exception as error:
        failure = {"kind": type(error).__name__, "message": str(error), "errno": getattr(error, "errno", None)}
        write_json(folder / f"failed-{os.getpid()}.json", {**failure, "traceback": traceback.format_exc()})
        sys.exit(1)


def _work(folder: Path) -> None:
    job: dict[str, Any] = json.loads((folder / _JOB_FILE).read_text(encoding="utf-8"))
    corpus = open_passages([Path(job["passages"])])
    encoder = _load_encoder(folder, job, corpus)
    shards = Shards(Path(job["shards"]), job["count"], job["dimension"], job["size"])
    with EncodingBar(0, "passage", shown=False) as bar:
        for number in job["numbers"]:
            if claim(folder, _job_name(number)):
                _encode_shard(corpus, encoder, shards, number, job["batch_size"], bar)


def _load_encoder(folder: Path, job: Mapping[str, Any], corpus: Corpus) -> Encoder:
    """The copy of the encoder.

    Raises:
        MismatchError: It gives other vectors.
    """
    encoder = Encoder.from_pretrained(
        folder / _ENCODER_FOLDER, device="cpu", dtype=job["dtype"], trust_remote_code=job["trust_remote_code"]
    )
    encoder.model.truncate_dim = job["truncate_dim"]
    expected = np.load(folder / _PROBE_FILE, allow_pickle=False)
    if not np.array_equal(_probe_vectors(encoder, corpus, job["probe"]), expected):
        raise MismatchError(
            "A copy of the encoder in another process must give the same vectors, but it does not: saving and loading "
            "it again loses something. Leave workers (--workers) out."
        )
    return encoder


def _raise_failure(folder: Path, workers: WorkerProcesses) -> None:
    """Raise the error by which a worker process has ended, if one has."""
    if not (how := workers.failure()):
        return
    for file in sorted(folder.glob("failed-*.json")):
        raise _error_of(json.loads(file.read_text(encoding="utf-8")))
    raise ResourceError(
        f"All processes that encode must live until the end, but one {how}. Run the same again with fewer workers "
        "(--workers); finished work is kept."
    )


def _error_of(failure: Mapping[str, Any]) -> Exception:
    """The error of a worker, of its own class where it is one of this library or of the system."""
    kind, message = failure["kind"], failure["message"]
    error: Exception
    known = getattr(errors, kind, None)
    if isinstance(known, type) and issubclass(known, RAGError):
        error = known(message)
    elif failure["errno"] is not None:
        error = OSError(failure["errno"], message)
    elif kind == MemoryError.__name__:
        error = MemoryError(message)
    else:
        error = RuntimeError(f"A process that encodes passages failed: {kind}: {message}")
    error.add_note(f"In a worker process:\n{failure['traceback']}")
    return error
