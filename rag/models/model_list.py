"""The models by name, and what of them is on this machine."""

from dataclasses import dataclass
from typing import Any

from indexes.model_cache import cached_bytes
from indexes.named_models import NAMED_MODELS, NamedModel
from rag.text_tables import table


@dataclass(frozen=True)
class CachedModel:
    """A model by name, and what of it is on this machine."""

    model: NamedModel
    bytes: int
    """On the disk; 0 where it is not in the cache."""

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        m = self.model
        return {
            "name": m.name,
            "kind": m.kind,
            "model": m.model,
            "format": m.format,
            "source": m.requirement,
            "sha256": m.sha256,
            "licence": m.licence,
            "download_bytes": m.bytes,
            "cached_bytes": self.bytes,
        }

    def cells(self) -> list[str]:
        """Of its line in a table."""
        m = self.model
        state = f"{self.bytes / 1e6:.0f} MB" if self.bytes else "no"
        return [m.name, m.kind, m.model, m.format, m.requirement, f"{m.bytes / 1e6:.0f} MB", m.licence, state]


def models() -> list[CachedModel]:
    """All models by name."""
    return [CachedModel(model, cached_bytes(model.name)) for model in NAMED_MODELS.values()]


def models_table(listed: list[CachedModel]) -> str:
    """The models as a table."""
    columns = ["name", "kind", "model", "format", "source", "download", "licence", "in the cache"]
    return table(columns, [model.cells() for model in listed])
