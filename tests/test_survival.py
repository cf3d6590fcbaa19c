"""Builds and changes that die at any moment lose nothing, and end with the bytes of those that did not die.

The processes that are killed are forks of one that has only imported what they need: a process for each would spend
most of its time importing.
"""

import json
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tiny_models import tiny_encoder

PARENT = """
import os, random, shutil, signal, sys, time
from pathlib import Path

import torch
import indexes.directory.shards

torch.set_num_threads(1)
indexes.directory.shards.ROWS = 64  # of a few thousand passages, before anybody looks
from indexes import Corpus, Encoder, IndexWriter, Passage, PassageIndex, ResourceError, build_index

folder = Path(sys.argv[1])


def contents(path):
    return {f.relative_to(path).as_posix(): f.read_bytes() for f in path.rglob("*") if f.is_file()}


def fork(work):
    child = os.fork()
    if child:
        return child
    try:
        work()
        os._exit(0)
    except BaseException:
        import traceback

        traceback.print_exc()
        os._exit(1)


def wait(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def run(work):
    assert wait(fork(work)) == 0


def build(output, **options):
    encoder = Encoder.from_pretrained(folder / "encoder", device="cpu")
    build_index(folder / "corpus.jsonl", encoder, folder / output, progress=False, **options)
"""


def words(number: int) -> str:
    return " ".join(f"w{(number * k * k + k) % 97}" for k in range(1, 12))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_encoder([words(n) for n in range(97)], dimension=16).save_pretrained(tmp_path / "encoder")
    rows = [{"id": f"p{n}", "title": f"w{n % 97}", "text": words(n)} for n in range(3000)]
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


def run_parent(script: str, folder: Path, *prefix: str) -> str:
    """Run a script in a process of its own; returns what it printed."""
    command = [*prefix, sys.executable, "-W", "ignore", "-c", PARENT + textwrap.dedent(script), str(folder)]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


# Runs each script that it is sent in a fork of itself, with its outputs in files and five minutes of time.
FORK_FOR_EACH = """
import json

for line in sys.stdin:
    script, folder = json.loads(line)
    folder = Path(folder)

    def begin():
        signal.alarm(300)
        for descriptor, name in ((1, "printed"), (2, "errors")):
            os.dup2(os.open(folder / name, os.O_CREAT | os.O_WRONLY), descriptor)
        exec(script, globals())
        sys.stdout.flush()

    print(wait(fork(begin)), flush=True)
"""


@pytest.fixture(scope="module")
def run_fork() -> Iterator[Callable[[str, Path], str]]:
    """Like `run_parent`, in forks of one process: importing takes longer than most of what is tested."""
    command = [sys.executable, "-W", "ignore", "-c", PARENT + FORK_FOR_EACH, "unused"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, env=ENVIRONMENT, text=True, **pipes) as process:  # type: ignore[call-overload]

        def run(script: str, folder: Path) -> str:
            process.stdin.write(json.dumps([textwrap.dedent(script), str(folder)]) + "\n")
            process.stdin.flush()
            code = int(process.stdout.readline())
            printed = (folder / "printed").read_text()
            assert code == 0, printed[-2000:] + (folder / "errors").read_text()[-4000:]
            return printed

        yield run
        process.stdin.close()


@pytest.mark.parametrize("options", [{"bm25": True}, {"factory": "IVF8,PQ4x4,Refine(SQ8)"}, {"factory": "SQ8"}])
def test_a_build_killed_at_twenty_random_moments_ends_with_the_same_bytes(
    options: dict[str, object], folder: Path, run_fork: Callable[[str, Path], str]
) -> None:
    script = f"""
    options, random_ = {options!r}, random.Random(7)
    started = time.monotonic()
    run(lambda: build("clean", **options))
    duration = time.monotonic() - started
    expected, kills, finished, stages = contents(folder / "clean"), 0, 0, set()
    while kills < 20:
        child = fork(lambda: build("killed", resume=True, **options))
        # Most of what is left of a build is done after few kills: the later ones must come early.
        time.sleep(random_.random() ** 2 * duration)
        os.kill(child, signal.SIGKILL)
        code = wait(child)
        work = folder / ".killed.building"
        if code == -signal.SIGKILL:
            kills += 1
            stages.add((len(list(work.glob("vectors/*.f32"))), (work / "layout.json").is_file()))
        if (folder / "killed").exists():
            assert contents(folder / "killed") == expected
            shutil.rmtree(folder / "killed")
            shutil.rmtree(work, ignore_errors=True)
            finished += 1
    run(lambda: build("killed", resume=True, **options))
    assert contents(folder / "killed") == expected
    assert not [p.name for p in folder.iterdir() if "building" in p.name or "old" in p.name]
    print(kills, finished, len(stages))
    """
    kills, _, stages = map(int, run_fork(script, folder).split())
    assert kills == 20
    assert stages >= 3, "the moments were not different enough to show anything"


def test_a_build_killed_at_each_step_of_its_files_ends_with_the_same_bytes(
    folder: Path, run_fork: Callable[[str, Path], str]
) -> None:
    """Dies right before the n-th renaming, for every n: that is where a half and a whole file differ."""
    script = """
    Path(folder / "corpus.jsonl").write_text("".join(open(folder / "corpus.jsonl").readlines()[:200]))
    options = {"factory": "IVF2,PQ4x2,Refine(SQ8)", "bm25": True, "overwrite": False}
    run(lambda: build("clean", **options))
    expected, rename, died = contents(folder / "clean"), os.replace, 0

    def dying(n):
        def replace(*names):
            nonlocal_count[0] += 1
            if nonlocal_count[0] == n:
                os.kill(os.getpid(), signal.SIGKILL)
            rename(*names)

        nonlocal_count = [0]
        os.replace = replace
        build("killed", resume=True, **options)

    for n in range(1, 100):
        if wait(fork(lambda: dying(n))) == 0:
            break
        died += 1
        assert not (folder / "killed/manifest.json").exists()
        run(lambda: build("killed", resume=True, **options))
        assert contents(folder / "killed") == expected, n
        shutil.rmtree(folder / "killed")
    print(died)
    """
    assert int(run_fork(script, folder)) >= 10


def test_a_writer_killed_at_each_step_leaves_the_old_version_or_the_new_one(
    folder: Path, run_fork: Callable[[str, Path], str]
) -> None:
    script = """
    Path(folder / "corpus.jsonl").write_text("".join(open(folder / "corpus.jsonl").readlines()[:200]))
    run(lambda: build("base", bm25=True))
    rename = os.replace
    new = [Passage(f"n{i}", "w1", f"w2 w3 w{i % 97}") for i in range(90)] + [Passage("p5", "w5", "w6 changed")]
    old_ids = {f"p{i}" for i in range(200)}
    new_ids = old_ids | {p.id for p in new}

    def change():
        with IndexWriter(folder / "index", progress=False) as writer:
            writer.update(new)

    def dying(n):
        count = 0

        def replace(*names):
            nonlocal count
            count += 1
            if count == n:
                os.kill(os.getpid(), signal.SIGKILL)
            rename(*names)

        os.replace = replace
        change()

    def check():
        index = PassageIndex.open(folder / "index", verify="checksums")
        index.verify(encoder=index.load_encoder())
        ids = {p.id for p in index.corpus}
        assert ids == (old_ids if index.manifest.version == 1 else new_ids)

    died = 0
    for n in range(1, 100):
        shutil.rmtree(folder / "index", ignore_errors=True)
        shutil.copytree(folder / "base", folder / "index")
        ended = wait(fork(lambda: dying(n))) == 0
        run(check)
        run(change)
        run(check)
        names = set(contents(folder / "index"))
        if ended:
            break
        died += 1
    run(lambda: print(names == {"manifest.json", *PassageIndex.open(folder / "index").manifest.files}, flush=True))
    print(died)
    """
    clean, died = run_fork(script, folder).split()
    assert clean == "True"
    assert int(died) >= 5


FULL_DISK = """
encoder = Encoder.from_pretrained(folder / "encoder", device="cpu")
disk, shards = folder / "disk", 0


class Neighbour(Encoder):
    # Somebody else fills the disk while we encode.
    def encode_passages(self, passages, **options):
        global shards
        shards += 1
        if shards == 20:
            with open(disk / "ballast", "wb") as ballast:
                try:
                    while True:
                        ballast.write(bytes(4096))
                        ballast.flush()
                except OSError:
                    pass
        return super().encode_passages(passages, **options)


try:
    build_index(folder / "corpus.jsonl", Neighbour(encoder.model, name=encoder.name), disk / "index", progress=False)
except ResourceError as error:
    print(error)
kept = len(list((disk / ".index.building/vectors").glob("*.f32")))
(disk / "ballast").unlink()
build_index(folder / "corpus.jsonl", encoder, disk / "index", resume=True, progress=False)
build_index(folder / "corpus.jsonl", encoder, folder / "clean", progress=False)
assert contents(disk / "index") == contents(folder / "clean")
assert kept == 19, kept
"""


def _mounting(size: str, disk: Path) -> list[str]:
    """A shell that mounts a small disk only it and its children see; it needs no rights of its own."""
    disk.mkdir()
    probe = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    mount = f"mount -t tmpfs -o size={size} tmpfs {disk}"
    if shutil.which("unshare") is None or subprocess.run([*probe, mount], capture_output=True).returncode:
        pytest.skip("this system allows no mount of a small disk")
    return [*probe, f'{mount} && exec "$@"', "sh"]


def test_a_full_disk_is_a_clean_error_and_resumes(folder: Path) -> None:
    printed = run_parent(FULL_DISK, folder, *_mounting("2m", folder / "disk"))
    assert "the disk is full" in printed and "with resume (--resume) to continue" in printed


def test_a_disk_that_is_too_small_is_refused_before_encoding(folder: Path) -> None:
    script = """
    encoder = Encoder.from_pretrained(folder / "encoder", device="cpu")
    encoder.encode_passages = None  # nobody may get that far
    try:
        build_index(folder / "corpus.jsonl", encoder, folder / "disk/index", progress=False)
    except ResourceError as error:
        print(error)
    """
    printed = run_parent(script, folder, *_mounting("900k", folder / "disk"))
    assert "The build needs another" in printed and "are free. Make room" in printed
