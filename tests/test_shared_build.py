"""Processes of `accelerate launch` share out the encoding, and the index is the one that one process builds."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_models import tiny_encoder

from indexes import Encoder, PassageIndex, build_index

ROOT = Path(__file__).parents[1]
TEXTS = [f"w{n % 31} w{n * n % 31} w{n % 7}" for n in range(300)]

WORKER = """
import json, os, sys
from pathlib import Path

import torch
import indexes.directory.shards

torch.set_num_threads(1)
indexes.directory.shards.ROWS = 16
from indexes import Encoder, build_index

folder, rank = Path(sys.argv[1]), os.environ["RANK"]


class Noting(Encoder):
    def encode_passages(self, passages, **options):
        with open(folder / f"encoded-{rank}", "a") as file:
            file.write(passages[0].id + "\\n")
        return super().encode_passages(passages, **options)


loaded = Encoder.from_pretrained(folder / "encoder", device="cpu")
encoder = Noting(loaded.model, name=loaded.name)
options = json.loads(sys.argv[2])
index = build_index(folder / "corpus.jsonl", encoder, folder / "shared", distributed=True, progress=False, **options)
(folder / f"seen-{rank}").write_text(f"{len(index)} {index.corpus[299].id}")
"""


def launch(folder: Path, **options: object) -> None:
    """Two processes on a CPU: by the launcher of GPUs, since the one of CPUs (`--cpu`) would need an MPI."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    (folder / "worker.py").write_text(WORKER)
    launcher = [sys.executable, "-W", "ignore", "-m", "accelerate.commands.launch", "--multi_gpu"]
    launcher += ["--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    done = subprocess.run(
        [*launcher, "--main_process_port", port, str(folder / "worker.py"), str(folder), json.dumps(options)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def contents(folder: Path) -> dict[str, bytes]:
    return {f.relative_to(folder).as_posix(): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    from indexes.directory import builder, shards

    monkeypatch.setattr(shards, "ROWS", 16)
    monkeypatch.setattr(builder, "ROWS", 16)
    tiny_encoder(TEXTS, dimension=12).save_pretrained(tmp_path / "encoder")
    rows = [{"id": str(n), "text": text} for n, text in enumerate(TEXTS)]
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    encoder = Encoder.from_pretrained(tmp_path / "encoder", device="cpu")
    build_index(tmp_path / "corpus.jsonl", encoder, tmp_path / "alone", factory="IVF2,Flat", progress=False)
    return tmp_path


@pytest.mark.slow
def test_two_processes_give_the_bytes_of_one_and_share_the_encoding(folder: Path) -> None:
    launch(folder, factory="IVF2,Flat")
    assert contents(folder / "shared") == contents(folder / "alone")
    first = [{int(i) // 16 for i in (folder / f"encoded-{rank}").read_text().split()} for rank in (0, 1)]
    # 300 passages are 19 shards of 16: the even ones and the odd ones.
    assert first == [set(range(0, 19, 2)), set(range(1, 19, 2))]
    assert [(folder / f"seen-{rank}").read_text() for rank in (0, 1)] == ["300 299", "300 299"]
    # What is complete is not built again, by either of them.
    launch(folder, factory="IVF2,Flat", resume=True)
    assert sum(len((folder / f"encoded-{rank}").read_text().split()) for rank in (0, 1)) == 19
    assert PassageIndex.open(folder / "shared", verify="checksums").manifest.version == 1
