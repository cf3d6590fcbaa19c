"""Bundles: what `RAG.save_pretrained` writes, `RAG.from_pretrained` opens and `RAG.push_to_hub` uploads.

rag_config.json   settings, and where index, encoder and base model are
learned/          adapters, retriever prior and question adapter (safetensors)
README.md         the model card
index/ encoder/ base/   copies, where they were asked for
"""

import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol, TypedDict, Unpack

from huggingface_hub import HfApi

from generator.architecture_findings import ArchitectureFindings
from generator.configs import AdapterConfig, ChatConfig, DecodingConfig, ModelConfig
from generator.generator import Generator
from generator.model_names import hub_file
from generator.prompts import AnswerPrompt, QuestionPrompt, RankingPrompt
from indexes.atomic_files import read_json, replace_directory
from indexes.checksums import file_sha256
from indexes.directory.passage_index import PassageIndex
from indexes.encoder import Encoder
from indexes.errors import MismatchError, ResourceError, UsageError
from indexes.named_models import is_named, named_model
from indexes.tiny_encoder import is_portable_name
from rag.answering.answer_mode import AnswerMode
from rag.answering.answer_modes import answer_mode_to_dict
from rag.hub import bundle_folder, can_be_found_elsewhere
from rag.model_loading import is_model_path, load_language_model
from retriever.question_adapter import QuestionAdapter
from retriever.retriever import Retriever
from retriever.retrievers import retriever_to_dict
from retriever.selector import Selector
from retriever.selector_config import SelectorConfig
from retriever.selectors import config_from_dict, config_to_dict, prompt_from_dict
from training.checkpoint import load_learned, write_learned

CONFIG_FILE = "rag_config.json"
LEARNED_FOLDER = "learned"
FORMAT_VERSION = 4
RESTORE = "Restore the bundle, or save it again."

logger = logging.getLogger(__name__)


class Pipeline(Protocol):
    """What a bundle holds; `rag.RAG` is one."""

    @property
    def retriever(self) -> Retriever:
        """Finds candidates."""
        ...

    @property
    def selector(self) -> Selector:
        """Ranks them."""
        ...

    @property
    def generator(self) -> Generator:
        """Answers."""
        ...

    @property
    def answer_mode(self) -> AnswerMode:
        """How."""
        ...


# -- rag_config.json -------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class BaseRecord:
    """Which base model a bundle uses, and how it was loaded."""

    name: str
    is_path: bool
    """Whether `name` is a folder or a file, relative to the bundle."""
    sha256: str | None
    """Digest (hex) of the weights of a GGUF file or of a model by name; None for a folder or a name on the Hub."""
    revision: str | None
    dtype: str
    quantization: str | None
    context_length: int
    trust_remote_code: bool


@dataclass(frozen=True, kw_only=True)
class EncoderRecord:
    """Which encoder a bundle uses."""

    name: str
    is_path: bool
    """Whether `name` is a folder, relative to the bundle."""
    revision: str | None
    trust_remote_code: bool


@dataclass(frozen=True, kw_only=True)
class IndexRecord:
    """Which index a bundle uses."""

    path: str | None
    """Relative to the bundle; None where it was left out of an upload."""
    corpus_fingerprint: str
    origin: str | None
    """The fingerprint that the corpus had before the index was first changed."""


@dataclass(frozen=True, kw_only=True)
class BundleConfig:
    """The contents of rag_config.json."""

    created_by: str
    base: BaseRecord
    findings: ArchitectureFindings
    """What trying the base has shown, so that it need not be tried again."""
    encoder: EncoderRecord
    index: IndexRecord
    adapter: AdapterConfig
    selector: SelectorConfig
    decoding: DecodingConfig
    chat: ChatConfig
    answer_prompt: AnswerPrompt
    ranking_prompt: RankingPrompt | QuestionPrompt
    """That of the selector, by its kind."""
    answer_mode: Mapping[str, Any]
    """Kind, the package that registers it, and options."""
    retriever: Mapping[str, Any]
    """Kind and options."""
    question_adapter_rank: int

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary, which `from_dict` reads."""
        return {"format_version": FORMAT_VERSION, **asdict(self), "selector": config_to_dict(self.selector)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], where: str | Path = CONFIG_FILE) -> "BundleConfig":
        """The configuration that `to_dict` made.

        Raises:
            MismatchError: It was written by another version, or something is missing or damaged.
            UsageError: A part is of an unregistered kind.
        """
        if data.get("format_version") != FORMAT_VERSION:
            raise MismatchError(
                f"{where} must have format_version {FORMAT_VERSION}, got {data.get('format_version')!r}. "
                "Install the version of dro-rag that wrote it."
            )
        names = [f.name for f in fields(cls)]
        if missing := [name for name in names if name not in data]:
            raise MismatchError(f"{where} must describe a whole pipeline, but it has no {missing[0]!r}. {RESTORE}")
        sections = {name: _section(name, data[name], where) for name in names if name != "ranking_prompt"}
        prompt = _ranking_prompt(sections["selector"].kind, data["ranking_prompt"], where)
        return cls(**sections, ranking_prompt=prompt)


_SECTIONS: dict[str, type] = {
    "base": BaseRecord,
    "findings": ArchitectureFindings,
    "encoder": EncoderRecord,
    "index": IndexRecord,
    "adapter": AdapterConfig,
    "decoding": DecodingConfig,
    "chat": ChatConfig,
    "answer_prompt": AnswerPrompt,
}


def _section(name: str, data: Any, where: str | Path) -> Any:
    with _of_this_version(name, where):
        if name == "selector":
            return config_from_dict(data)
        return _SECTIONS[name](**data) if name in _SECTIONS else data


def _ranking_prompt(kind: str, data: Any, where: str | Path) -> RankingPrompt | QuestionPrompt:
    """Which prompt it is follows from the selector."""
    with _of_this_version("ranking_prompt", where):
        return prompt_from_dict(kind, data)


@contextmanager
def _of_this_version(name: str, where: str | Path) -> Iterator[None]:
    """Refuse a part of the file that does not have the fields of this version."""
    try:
        yield
    except (TypeError, AttributeError) as error:
        raise MismatchError(
            f"{name!r} in {where} must hold the settings of this version: {error}. {RESTORE}"
        ) from error


def read_config(folder: Path) -> BundleConfig:
    """The configuration of a bundle.

    Raises:
        MismatchError: Not a bundle, damaged, or of another version.
    """
    file = folder / CONFIG_FILE
    if not file.is_file():
        raise MismatchError(f"A bundle must be a folder with {CONFIG_FILE}, but {folder} has none. Check the path.")
    return BundleConfig.from_dict(read_json(file, RESTORE), file)


def _config_of(pipeline: Pipeline, folder: Path, index: bool, encoder: bool, base: bool) -> BundleConfig:
    """The configuration for a bundle in `folder` that has copies of these parts."""
    model, retriever, selector = pipeline.generator.language_model, pipeline.retriever, pipeline.selector
    manifest = retriever.index.manifest
    return BundleConfig(
        created_by=f"dro-rag {version('dro-rag')}",
        base=BaseRecord(
            name="base" if base else _pointer(model.name, folder),
            is_path=base or is_model_path(model.name),
            sha256=None if base else _file_digest(model.name),
            revision=None if base else model.revision,
            dtype=model.dtype_name(),
            quantization=model.quantization,
            context_length=model.context_length,
            trust_remote_code=model.trust_remote_code,
        ),
        findings=model.findings,
        encoder=EncoderRecord(
            name="encoder" if encoder else _pointer(retriever.encoder.name, folder),
            is_path=encoder or is_model_path(retriever.encoder.name),
            revision=None if encoder else retriever.encoder.revision,
            trust_remote_code=retriever.encoder.trust_remote_code,
        ),
        index=IndexRecord(
            path="index" if index else os.path.relpath(retriever.index.path.resolve(), folder.resolve()),
            corpus_fingerprint=manifest.corpus_fingerprint,
            origin=manifest.origin,
        ),
        adapter=model.adapter,
        selector=selector.config,
        decoding=pipeline.generator.config,
        chat=model.chat.config,
        answer_prompt=pipeline.generator.prompt,
        ranking_prompt=selector.prompt,
        answer_mode=answer_mode_to_dict(pipeline.answer_mode),
        retriever=retriever_to_dict(retriever),
        question_adapter_rank=retriever.adapter.down.shape[0],
    )


# -- saving ----------------------------------------------------------------------------------------------------


def save_bundle(
    pipeline: Pipeline,
    folder: Path,
    *,
    include_index: bool = False,
    include_encoder: bool = False,
    include_base: bool = False,
    report: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Write a bundle; see `RAG.save_pretrained`.

    Raises:
        MismatchError: The index is gone, or the copy of the base model, read back, has other weights.
        UsageError: `folder` is a file, or holds something that is not a bundle.
    """
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"A bundle must be a folder, but {folder} is a file. Choose another place.")
    if folder.exists() and any(folder.iterdir()) and not (folder / CONFIG_FILE).is_file():
        raise UsageError(f"A bundle needs a new or empty folder, but {folder} holds something else.")
    if not pipeline.retriever.index.path.is_dir():
        raise MismatchError(
            f"The index of a bundle must be where it was opened, but {pipeline.retriever.index.path} is gone. "
            "Open the index again."
        )
    include_index |= _is_inside(pipeline.retriever.index.path, folder)
    include_encoder |= _is_inside(pipeline.retriever.encoder.name, folder)
    include_base |= _is_inside(pipeline.generator.language_model.name, folder)
    config = _config_of(pipeline, folder, include_index, include_encoder, include_base)
    _write_bundle(pipeline, folder, config, report)


def _write_bundle(
    pipeline: Pipeline, folder: Path, config: BundleConfig, report: Sequence[Mapping[str, Any]] = ()
) -> None:
    """Write a bundle with copies of the parts that its configuration says are inside."""

    def write(partial: Path) -> None:
        write_learned(pipeline.selector, partial / LEARNED_FOLDER)
        text = json.dumps(config.to_dict(), indent=2, sort_keys=True) + "\n"
        (partial / CONFIG_FILE).write_text(text, encoding="utf-8")
        if config.index.path == "index":
            shutil.copytree(pipeline.retriever.index.path, partial / "index")
        if config.encoder.is_path and config.encoder.name == "encoder":
            pipeline.retriever.encoder.save_pretrained(partial / "encoder")
        if config.base.is_path and config.base.name == "base":
            # Unmerged: the adapters are saved separately, and selector, generator and SelfAug's reference need it so.
            pipeline.generator.language_model.save_base(partial / "base")
        (partial / "README.md").write_text(_model_card(config, report), encoding="utf-8")

    replace_directory(folder, write)


def _pointer(name: str, folder: Path) -> str:
    """A model in a folder or file is pointed to relative to the bundle; any other name stays as it is."""
    return os.path.relpath(Path(name).resolve(), folder.resolve()) if is_model_path(name) else name


def _file_digest(name: str) -> str | None:
    """SHA-256 (hex) of a base that is one file, or whose name stands for one; None for any other."""
    if is_named(name):
        return named_model(name).sha256
    return file_sha256(Path(name)) if is_model_path(name) and Path(name).is_file() else None


def _is_inside(name: str | Path, folder: Path) -> bool:
    return not is_portable_name(name) and Path(name).exists() and Path(name).resolve().is_relative_to(folder.resolve())


def _model_card(config: BundleConfig, report: Sequence[Mapping[str, Any]]) -> str:
    repository = hub_file(config.base.name)
    arguments = "folder" if config.index.path else "folder, index=an_index_of_this_corpus"
    lines = [
        "---",
        "library_name: dro-rag",
        f"base_model: {repository[0] if repository else config.base.name}",
        "tags: [retrieval-augmented-generation, dro, selfaug, lora]",
        "---",
        "# RAG bundle",
        "",
        f"Selector and generator adapters (LoRA, rank {config.adapter.r}) over one frozen base model, a question "
        f"adapter for the retriever, prompts and settings. Open it with `RAG.from_pretrained({arguments})`.",
        "",
        f"- base model: `{config.base.name}`",
        f"- candidates n = {config.selector.num_candidates}, selected K = {config.selector.num_selected}",
        f"- answer mode: {config.answer_mode['kind']}",
        f"- corpus fingerprint: `{config.index.corpus_fingerprint[:16]}`",
    ]
    if report:
        columns = [k for k in ("round", "eval_exact_match", "eval_f1", "ess", "log_marginal") if k in report[-1]]
        lines += ["", "## Training", "", "| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
        lines += ["| " + " | ".join(_cell(record.get(c)) for c in columns) + " |" for record in report]
    return "\n".join(lines) + "\n"


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)


# -- opening ---------------------------------------------------------------------------------------------------


class HubOptions(TypedDict, total=False):
    """Where a bundle on the Hub is taken from; see `rag.hub.bundle_folder`."""

    revision: str | None
    token: str | bool | None
    cache_dir: str | Path | None
    local_files_only: bool


class LoadOptions(TypedDict, total=False):
    """How the base model of a bundle is loaded; see `RAG.from_pretrained`."""

    dtype: str
    device: str | None
    quantization: str | None
    trust_remote_code: bool


def base_config(config: BundleConfig, folder: Path, **options: Unpack[LoadOptions]) -> ModelConfig:
    """How the base model of a bundle is loaded: as recorded, but for the given options.

    Raises:
        MismatchError: It is a GGUF file, and another one is there now; or its name stands for other weights.
        ResourceError: The file is not there.
    """
    base = config.base
    if is_named(base.name):
        _check_named(base, folder)
    elif base.sha256 is not None:
        _check_file(Path(_resolve(base, folder)), base.sha256, folder)
    dtype = options.get("dtype", "auto")
    return ModelConfig(
        name=str(_resolve(base, folder)),
        revision=base.revision,
        dtype=base.dtype if dtype == "auto" else dtype,
        device=options.get("device"),
        quantization=options.get("quantization") or base.quantization,
        context_length=base.context_length,
        trust_remote_code=options.get("trust_remote_code", False),
    )


def _check_named(base: BaseRecord, folder: Path) -> None:
    model = named_model(base.name)
    if base.sha256 != model.sha256:
        raise MismatchError(
            f"The bundle {folder} was made over the model {base.name!r} whose weights have the SHA-256 {base.sha256}, "
            f"but in this version of dro-rag it is {model.requirement}, whose weights have {model.sha256}. Install the "
            "version that wrote the bundle."
        )


def _check_file(path: Path, expected: str, folder: Path) -> None:
    found = file_sha256(path) if path.is_file() else None
    if found == expected:
        return
    message = f"The bundle {folder} was made over the GGUF file {path} with SHA-256 {expected}, "
    advice = "Put that file there, or save the bundle with include_base=True."
    if found is None:
        raise ResourceError(f"{message}but there is no such file. {advice}")
    raise MismatchError(f"{message}but the file there has {found}. {advice}")


def bundled_index(config: BundleConfig, folder: Path, index: str | Path | PassageIndex | None = None) -> PassageIndex:
    """The index of a bundle, or the given one in its place.

    Raises:
        MismatchError: It is gone or damaged.
        UsageError: The bundle was uploaded without its index, and none is given.
    """
    if isinstance(index, PassageIndex):
        return index
    if index is None and config.index.path is None:
        raise UsageError(
            f"The bundle {folder} was uploaded without its index. Give one of the same corpus, whose fingerprint is "
            f"{config.index.corpus_fingerprint[:16]}, with index=... (--index DIR)."
        )
    return PassageIndex.open(folder / str(config.index.path) if index is None else index)


def bundled_encoder(
    config: BundleConfig, folder: Path, index: PassageIndex, *, device: str | None, trust_remote_code: bool
) -> Encoder:
    """The encoder that a bundle names, at its revision."""
    return index.manifest.encoder.load(
        _resolve(config.encoder, folder),
        revision=config.encoder.revision,
        device=device,
        trust_remote_code=trust_remote_code,
    )


def load_weights(pipeline: Pipeline, config: BundleConfig, folder: Path) -> None:
    """Load everything learned into a new pipeline of the bundle's configuration.

    Raises:
        MismatchError: The pipeline's index holds another corpus, or a file is missing, damaged or does not fit.
    """
    _check_corpus(pipeline.retriever.index, config, folder)
    adapter = QuestionAdapter(pipeline.retriever.encoder.dimension, config.question_adapter_rank)
    pipeline.retriever.adapter = adapter.to(pipeline.generator.language_model.device)
    load_learned(pipeline.selector, folder / LEARNED_FOLDER)


def _check_corpus(index: PassageIndex, config: BundleConfig, folder: Path) -> None:
    expected, found = config.index.corpus_fingerprint, index.manifest.corpus_fingerprint
    if expected == found:
        return
    # What was learned remains useful while passages are added and deleted; another corpus would be a mistake.
    if index.manifest.origin not in (expected, config.index.origin):
        raise MismatchError(
            f"The bundle {folder} was trained over a corpus with fingerprint {expected[:12]}, but the index at "
            f"{index.path} holds another ({found[:12]}). Give the right index with index=..."
        )
    logger.warning(
        "%s has changed since %s was trained: it is at version %d now.", index.path, folder, index.manifest.version
    )


def _resolve(part: BaseRecord | EncoderRecord, folder: Path) -> str | Path:
    return (folder / part.name).resolve() if part.is_path else part.name


class BundleOptions(HubOptions, LoadOptions, total=False):
    """All options for opening a bundle."""


def load_generator(bundle: str | Path, **options: Unpack[BundleOptions]) -> Generator:
    """The language model of a bundle with both adapters, without its index and encoder: for what asks no question.

    Args:
        bundle: What `RAG.save_pretrained` wrote, or the id of a repository on the Hub.
        options: `revision`, `token`, `cache_dir`, `local_files_only`, `dtype`, `device`, `quantization` and
            `trust_remote_code`, as in `RAG.from_pretrained`.

    Raises:
        MismatchError: Not a bundle, or damaged.
        ResourceError: The bundle or its base model cannot be found.
        UsageError: A revision of a local folder.
    """
    hub = {name: options.pop(name) for name in HubOptions.__annotations__ if name in options}  # type: ignore[misc]
    folder = bundle_folder(bundle, leave_out=("index", "encoder"), **hub)
    config = read_config(folder)
    base = base_config(config, folder, **options)  # type: ignore[misc]
    model = load_language_model(base, adapter=config.adapter, chat=config.chat, findings=config.findings)
    model.load_adapters(folder / LEARNED_FOLDER)
    return Generator(model, prompt=config.answer_prompt, config=config.decoding)


# -- uploading -------------------------------------------------------------------------------------------------


def push_bundle(
    pipeline: Pipeline,
    repo_id: str,
    *,
    include_index: bool | None,
    include_encoder: bool,
    include_base: bool,
    private: bool | None,
    token: str | bool | None,
    revision: str | None,
    commit_message: str,
    create_pr: bool,
) -> str:
    """Upload a bundle to the Hugging Face Hub; see `RAG.push_to_hub`.

    Raises:
        UsageError: A part that exists only on this machine is not included.
    """
    _check_parts_travel(pipeline, include_index, include_encoder, include_base)
    api = HfApi(token=token)
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    if revision is not None and not create_pr:
        api.create_branch(repo_id, branch=revision, exist_ok=True)
    with TemporaryDirectory() as work:
        bundle = Path(work) / "bundle"
        config = _config_of(pipeline, bundle, bool(include_index), include_encoder, include_base)
        if not include_index:
            config = replace(config, index=replace(config.index, path=None))
        _write_bundle(pipeline, bundle, config)
        commit = api.upload_folder(
            repo_id=repo_id,
            folder_path=str(bundle),
            revision=revision,
            commit_message=commit_message,
            create_pr=create_pr,
            # A commit replaces the whole bundle: files of an earlier one would not belong to this one.
            delete_patterns=["learned/**", "index/**", "encoder/**", "base/**"],
        )
    return str(commit)


def _check_parts_travel(pipeline: Pipeline, index: bool | None, encoder: bool, base: bool) -> None:
    """Refuse a bundle that would point to a folder of this machine."""
    names = {"encoder": (encoder, pipeline.retriever.encoder.name)}
    names["base"] = (base, pipeline.generator.language_model.name)
    for part, (included, name) in names.items():
        if not (included or can_be_found_elsewhere(name)):
            raise UsageError(
                f"An uploaded bundle must open elsewhere, but its {part} is only here ({name or 'unnamed'}). "
                f"Upload it too with include_{part}=True, or use one from the Hub."
            )
    if index is None:
        raise UsageError(
            f"An uploaded bundle must open elsewhere, but its index is only here ({pipeline.retriever.index.path}). "
            "Upload it too with include_index=True, or leave it out with include_index=False: then an index of the "
            "same corpus must be given to open the bundle."
        )
