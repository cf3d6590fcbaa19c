"""An evaluation as a file: metrics, a description of the pipeline, and the record of every question.

The same pipeline on the same questions gives the same bytes: no times, no paths, and records in the order of ids.
Digests say what was evaluated: of the questions, independent of their order and format, of the bundle and of the base
model.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from generator.language_model import LanguageModel
from indexes import atomic_files
from indexes.atomic_files import read_json
from indexes.dataclass_json import from_json_object, to_json_object
from indexes.errors import DataError, UsageError
from rag.bundle import CONFIG_FILE, LEARNED_FOLDER, read_config
from rag.evaluation.attribution import Attribution, AttributionSummary, PassageAttribution
from rag.evaluation.evaluation import Evaluation, ScoredCandidate, argsort_by_id
from rag.evaluation.order_bias import OrderBias, OrderBiasRecord, OrderBiasSummary
from rag.evaluation.significance import RESAMPLES
from rag.model_loading import is_model_path
from rag.pipeline import RAG
from retriever.retriever import Retriever
from training.questions.example import QAExample
from training.questions.self_retrieval import identical_ids

KIND = "evaluation"
FORMAT_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class BaseDescription:
    """The frozen base model: what models that are compared must share."""

    name: str
    """Hub name, "tiny", or the name of its folder or file without the path."""
    revision: str | None
    sha256: str
    """Digest of the weights in memory (`base_digest`)."""
    dtype: str
    quantization: str | None


@dataclass(frozen=True, kw_only=True)
class IndexDescription:
    """The index of a pipeline."""

    corpus_fingerprint: str
    origin: str
    """Fingerprint of the corpus before the index was changed."""
    encoder_fingerprint: str
    factory: str
    search_parameters: str
    passages: int
    chunking: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class PipelineDescription:
    """What answers depend on: settings, and fingerprints of everything that was learned or indexed."""

    bundle_sha256: str | None
    """None for a pipeline that was not opened from a bundle."""
    base: BaseDescription
    retriever: dict[str, Any]
    """`kind` and its options."""
    selector: dict[str, Any]
    decoding: dict[str, Any]
    """As evaluation decodes: greedily."""
    chat: dict[str, Any]
    context_length: int
    """Tokens of prompt and answer together."""
    ranking_prompt: dict[str, Any]
    answer_prompt: dict[str, Any]
    index: IndexDescription
    answer_mode: str
    answer_mode_settings: dict[str, Any] | None = None
    """None for an answer mode without options."""


@dataclass(frozen=True, kw_only=True)
class DatasetDescription:
    """The questions of an evaluation."""

    sha256: str
    """`dataset_digest` of the questions that were scored."""
    file: str | None
    """Name of the question file, without the path."""
    n: int
    skipped: int
    """Questions left out."""
    identical_ids: dict[str, int] | None = None
    """`training.questions.self_retrieval.IdenticalIds`; None where no question ignores the passage with its own id."""
    too_long: list[str] | None = None
    """Ids of questions left out because they do not fit the model's context."""


@dataclass(frozen=True, kw_only=True)
class PassageText:
    """A passage that was read."""

    id: str
    title: str
    text: str


@dataclass(frozen=True, kw_only=True)
class EvaluationRecord:
    """One question, its answer, the passages behind it and its scores."""

    id: str
    question: str
    golden_answers: list[str]
    gold_ids: list[str]
    unanswerable: bool
    prediction: str
    log_prob: float | None
    """Nats; see `Answer.log_prob`."""
    citations: list[str]
    permutation: list[int]
    """Ranks, from 0, that the retriever gave the passages read."""
    passages: list[PassageText]
    """Read by the generator, in this order."""
    candidates: list[ScoredCandidate]
    """Found by the retriever, best first."""
    scores: dict[str, float]
    """Value of each metric that the question has."""
    attribution: list[PassageAttribution] | None = None
    order_bias: OrderBiasRecord | None = None


@dataclass(frozen=True, kw_only=True)
class EvaluationFile:
    """Everything about an evaluation; docs/evaluation.md explains each key.

    Read one with `read_evaluation`, write it with ``write_results(file.to_dict(), path)``.
    """

    name: str
    """Name in tables."""
    label: str
    """Name in prose."""
    pipeline: PipelineDescription
    dataset: DatasetDescription
    n: int
    n_scored: int
    metrics: dict[str, float]
    """Means over questions."""
    intervals: dict[str, tuple[float, float]]
    """95 % bootstrap intervals of the means."""
    counts: dict[str, int]
    """Questions that have each metric."""
    settings: dict[str, Any]
    records: list[EvaluationRecord]
    """In the order of ids."""
    order_bias: OrderBiasSummary | None = None
    attribution: AttributionSummary | None = None

    def __repr__(self) -> str:
        return f"EvaluationFile({self.name!r}, {self.n_scored} questions, {len(self.metrics)} metrics)"

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it, with `kind` and `format_version`."""
        return {"kind": KIND, "format_version": FORMAT_VERSION, **to_json_object(self)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], *, where: str = "the evaluation") -> "EvaluationFile":
        """Read what `to_dict` made; `where` opens error messages.

        Raises:
            DataError: Another kind of file, another version, or a key that is missing or wrong; it is named.
        """
        return from_json_object(cls, without_header(data, KIND, FORMAT_VERSION, where), where)

    def values(self, metric: str) -> dict[str, float]:
        """The scores of a metric by question id, in the order of the records; questions without one are left out."""
        return {record.id: record.scores[metric] for record in self.records if metric in record.scores}


def without_header(data: Mapping[str, Any], kind: str, version: int, where: str) -> dict[str, Any]:
    """The contents of a result file without `kind` and `format_version`, which must be these.

    Raises:
        DataError: They are others.
    """
    for key, expected in (("kind", kind), ("format_version", version)):
        if data.get(key) != expected:
            raise DataError(
                f"{where}: the key {key!r} must be {expected!r}, got {data.get(key)!r}. Give a file that this version "
                f"of `rag` wrote for {kind}."
            )
    return {key: value for key, value in data.items() if key not in ("kind", "format_version")}


def evaluation_file(
    rag: RAG,
    evaluation: Evaluation,
    *,
    name: str,
    label: str = "",
    bundle: str | Path | None = None,
    questions: str | Path | None = None,
    order_bias: OrderBias | None = None,
    attribution: Attribution | None = None,
    settings: Mapping[str, Any] | None = None,
) -> EvaluationFile:
    """An evaluation with the description of its pipeline and its questions.

    Args:
        rag: The pipeline that answered.
        evaluation: Of `rag.evaluation.evaluation.evaluate`.
        name: Name in tables.
        label: Name in prose; default: the name.
        bundle: The folder that `rag` was opened from.
        questions: The question file; its name is recorded.
        order_bias: Of `rag.evaluation.order_bias.order_bias`.
        attribution: Of `rag.evaluation.attribution.leave_one_out_attribution`.
        settings: Recorded with those of the bootstrap.

    Raises:
        DataError: Two questions with the same id.
    """
    _check_ids(evaluation.examples)
    return EvaluationFile(
        name=name,
        label=label or name,
        pipeline=describe_pipeline(rag, bundle=bundle),
        dataset=_describe_dataset(rag, evaluation, questions),
        n=len(evaluation.examples),
        n_scored=len(evaluation.scores),
        metrics={name: value for name, value in evaluation.metrics.items() if name != "n"},
        intervals=dict(evaluation.intervals),
        counts=dict(evaluation.counts),
        settings={"bootstrap_resamples": RESAMPLES, "bootstrap_seed": 0, "confidence": 0.95, **(settings or {})},
        records=[_record(evaluation, i, order_bias, attribution) for i in argsort_by_id(evaluation.examples)],
        order_bias=None if order_bias is None else order_bias.summary,
        attribution=None if attribution is None else attribution.summary,
    )


def _check_ids(examples: Sequence[QAExample]) -> None:
    ids = [e.id for e in examples]
    if len(set(ids)) < len(ids):
        twice = next(id for id in ids if ids.count(id) > 1)
        raise DataError(f"Questions of an evaluation file must have different ids; {twice!r} is there twice.")


def _record(
    evaluation: Evaluation, i: int, order_bias: OrderBias | None, attribution: Attribution | None
) -> EvaluationRecord:
    example, answer = evaluation.examples[i], evaluation.answers[i]
    return EvaluationRecord(
        id=example.id,
        question=example.question,
        golden_answers=list(example.golden_answers),
        gold_ids=list(example.gold_ids),
        unanswerable=example.unanswerable,
        prediction=answer.text,
        log_prob=answer.log_prob,
        citations=answer.citations,
        permutation=answer.permutation,
        passages=[PassageText(id=p.id, title=p.title, text=p.text) for p in answer.passages],
        candidates=evaluation.candidates[i],
        scores=evaluation.scores[i],
        attribution=None if attribution is None else attribution.records[i],
        order_bias=None if order_bias is None else order_bias.records[i],
    )


def write_results(data: Mapping[str, Any], file: str | Path) -> None:
    """Write a file of results with `atomic_files.write_json`, and make its folder.

    Raises:
        UsageError: The path cannot be written.
    """
    file = Path(file)
    check_output(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    atomic_files.write_json(file, data)


def check_output(file: str | Path) -> None:
    """Refuse a path that cannot be written, before hours of work for it.

    Raises:
        UsageError: It is a folder, or has a file among its parents.
    """
    file = Path(file)
    above = next((folder for folder in file.parents if folder.exists()), file.parent)
    if file.is_dir() or not above.is_dir():
        found = "is a folder" if file.is_dir() else f"has the file {above} among its parents"
        raise UsageError(f"The output must be a file in a folder; {file} {found}. Give the name of a file.")


def read_evaluation(file: str | Path) -> EvaluationFile:
    """Read an evaluation file.

    Raises:
        DataError: There is no such file, or a key of it is missing, unknown or wrong; the key is named.
        MismatchError: It is not JSON.
    """
    file = Path(file)
    if not file.is_file():
        raise DataError(f"An evaluation is a file of `rag evaluate --output`; {file} does not exist. Check the path.")
    return EvaluationFile.from_dict(read_json(file, "Evaluate again."), where=str(file))


# -- descriptions ----------------------------------------------------------------------------------------------


def describe_pipeline(rag: RAG, *, bundle: str | Path | None = None) -> PipelineDescription:
    """What answers depend on: settings, and fingerprints of everything that was learned or indexed."""
    return PipelineDescription(
        bundle_sha256=None if bundle is None else bundle_digest(bundle),
        base=describe_base(rag.generator.language_model),
        retriever={"kind": rag.retriever.kind, **rag.retriever.settings},
        selector=asdict(rag.selector.config),
        decoding={**asdict(rag.generator.config), "temperature": 0.0, "top_p": 1.0},
        chat=asdict(rag.generator.language_model.chat.config),
        context_length=rag.generator.language_model.context_length,
        ranking_prompt=asdict(rag.selector.prompt),
        answer_prompt=asdict(rag.generator.prompt),
        index=_describe_index(rag.retriever),
        answer_mode=rag.answer_mode.kind,
        answer_mode_settings=dict(rag.answer_mode.settings) or None,
    )


def describe_base(model: LanguageModel) -> BaseDescription:
    """Name and weights of the frozen base model."""
    return BaseDescription(
        name=Path(model.name).name if is_model_path(model.name) else model.name,
        revision=model.revision,
        sha256=base_digest(model),
        dtype=model.dtype_name(),
        quantization=model.quantization,
    )


def _describe_index(retriever: Retriever) -> IndexDescription:
    manifest = retriever.index.manifest
    return IndexDescription(
        corpus_fingerprint=manifest.corpus_fingerprint,
        origin=manifest.origin,
        encoder_fingerprint=manifest.encoder.fingerprint,
        factory=manifest.factory,
        search_parameters=manifest.search_parameters,
        passages=manifest.passages,
        chunking=dict(manifest.chunking),
    )


def _describe_dataset(rag: RAG, evaluation: Evaluation, questions: str | Path | None) -> DatasetDescription:
    identical = identical_ids(evaluation.examples, rag.retriever.index)
    return DatasetDescription(
        sha256=dataset_digest(evaluation.examples),
        file=None if questions is None else Path(questions).name,
        n=len(evaluation.examples),
        skipped=evaluation.skipped,
        identical_ids=identical._asdict() if identical.ignoring else None,
        too_long=sorted(evaluation.too_long) or None,
    )


def dataset_digest(examples: Iterable[QAExample]) -> str:
    """SHA-256 (hex) of the questions with all their fields, independent of their order."""
    lines = sorted(json.dumps(e.to_dict(), ensure_ascii=False, sort_keys=True) for e in examples)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def bundle_digest(folder: str | Path) -> str:
    """SHA-256 (hex) of the learned weights and the settings of a bundle.

    It covers the names and contents of the files of weights, and the configuration. It does not cover what changes no
    answer (the model card, the version that wrote it) or *where* index, encoder and base model are: of the first two
    the fingerprints count, wherever they are, and the base model has a digest of its own.

    Raises:
        MismatchError: Not a bundle.
    """
    folder = Path(folder)
    config = _without_places(read_config(folder).to_dict())
    digest = hashlib.sha256(json.dumps({CONFIG_FILE: config}, sort_keys=True).encode())
    for file in sorted((folder / LEARNED_FOLDER).rglob("*.safetensors")):
        with file.open("rb") as stream:
            content = hashlib.file_digest(stream, "sha256").hexdigest()
        digest.update(f"\n{content}  {file.relative_to(folder).as_posix()}".encode())
    return digest.hexdigest()


def _without_places(config: Mapping[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in config.items() if key != "created_by"}
    kept["index"] = {key: value for key, value in config["index"].items() if key != "path"}
    for part in ("base", "encoder"):
        if config[part]["is_path"]:
            kept[part] = {key: value for key, value in config[part].items() if key not in ("name", "revision")}
    return kept


def base_digest(model: LanguageModel) -> str:
    """SHA-256 (hex) of the base model's weights in memory, by name: independent of their files and place."""
    digest = hashlib.sha256()
    for name, weight in sorted(model.base_weights().items()):
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}\n".encode())
        digest.update(weight.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
