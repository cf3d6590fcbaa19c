"""Checksums of files: what the index, the cache of models and bundles compare them by."""

import hashlib
from pathlib import Path


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, as a hexadecimal number."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
