"""An evaluation as a file: the numbers, what was measured with what, and every question with what was read for it.

The same pipeline on the same questions gives the same bytes: no time, no path, and rows in the order of ids. Digests
say what was measured: of the questions, in whatever order and format they came, of the bundle and of the base.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from generator.language_model import LanguageModel
from indexes.atomic_files import write_text
from indexes.errors import DataError, MismatchError, UsageError
from rag.bundle import CONFIG_FILE, LEARNED_FOLDER, read_config
from rag.evaluation.attribution import Support
from rag.evaluation.evaluation import Evaluation, by_id
from rag.evaluation.order_bias import OrderBias
from rag.evaluation.significance import RESAMPLES
from rag.pipeline import RAG
from retriever.retriever import Retriever
from training.questions.example import QAExample
from training.questions.self_retrieval import identical_ids

KIND = "evaluation"
FORMAT_VERSION = 1
# What comparisons read; a sweep keeps its evaluations without rows.
_COMPARED = ("name", "pipeline", "dataset", "metrics", "rows")


def evaluation_file(
    rag: RAG,
    evaluation: Evaluation,
    *,
    name: str,
    label: str = "",
    bundle: str | Path | None = None,
    questions: str | Path | None = None,
    order_bias: OrderBias | None = None,
    support: Support | None = None,
    settings: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Everything about an evaluation, ready for JSON; docs/evaluation.md explains each key.

    Args:
        rag: The pipeline that answered.
        evaluation: What came out.
        name: What tables call it.
        label: For people; default: the name.
        bundle: The folder that `rag` was opened from.
        questions: The question file, whose name is noted.
        order_bias: Of `rag.evaluation.order_bias.order_bias`.
        support: Of `rag.evaluation.attribution.support`.
        settings: Noted beside those of the bootstrap.

    Raises:
        DataError: Two questions of one id.
    """
    _check_ids(evaluation.examples)
    identical = identical_ids(evaluation.examples, rag.retriever.index)
    data = {
        "kind": KIND,
        "format_version": FORMAT_VERSION,
        "name": name,
        "label": label or name,
        "pipeline": describe_pipeline(rag, bundle=bundle),
        "dataset": {
            "sha256": dataset_digest(evaluation.examples),
            "file": None if questions is None else Path(questions).name,
            "n": len(evaluation.examples),
            "skipped": evaluation.skipped,
            # Only where it says something: files of before are the same bytes.
            **({"identical_ids": identical._asdict()} if identical.ignoring else {}),
            **({"too_long": sorted(evaluation.too_long)} if evaluation.too_long else {}),
        },
        "n": len(evaluation.examples),
        "n_scored": len(evaluation.rows),
        "metrics": {name: value for name, value in evaluation.metrics.items() if name != "n"},
        "intervals": {name: list(ends) for name, ends in evaluation.intervals.items()},
        "counts": evaluation.counts,
        "settings": {"bootstrap_resamples": RESAMPLES, "bootstrap_seed": 0, "confidence": 0.95, **(settings or {})},
        "rows": [_row(evaluation, i, order_bias, support) for i in by_id(evaluation.examples)],
    }
    if order_bias is not None:
        data["order_bias"] = order_bias.summary
    if support is not None:
        data["support"] = support.summary
    return data


def _check_ids(examples: Sequence[QAExample]) -> None:
    ids = [e.id for e in examples]
    if len(set(ids)) < len(ids):
        twice = next(id for id in ids if ids.count(id) > 1)
        raise DataError(f"Questions of an evaluation file must have different ids; {twice!r} is there twice.")


def _row(evaluation: Evaluation, i: int, order_bias: OrderBias | None, support: Support | None) -> dict[str, Any]:
    example, answer = evaluation.examples[i], evaluation.answers[i]
    about = ("id", "question", "prediction")
    row = {
        "id": example.id,
        "question": example.question,
        "golden_answers": list(example.golden_answers),
        "gold_ids": list(example.gold_ids),
        "unanswerable": example.unanswerable,
        "prediction": answer.text,
        "log_prob": answer.log_prob,
        "citations": answer.citations,
        "permutation": answer.permutation,
        "passages": [{"id": p.id, "title": p.title, "text": p.text} for p in answer.passages],
        "candidates": evaluation.candidates[i],
        "scores": {name: value for name, value in evaluation.rows[i].items() if name not in about},
    }
    if support is not None:
        row["support"] = support.rows[i]
    if order_bias is not None:
        row["order_bias"] = order_bias.rows[i]
    return row


def write_json(data: Mapping[str, Any], file: str | Path) -> None:
    """Write a file that is whole or not there; the same data are always the same bytes."""
    file = Path(file)
    check_output(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, json.dumps(data, ensure_ascii=False, allow_nan=False, indent=1, sort_keys=True) + "\n")


def check_output(file: str | Path) -> None:
    """Refuse a place where no file can be written, before hours of work for it.

    Raises:
        UsageError: It is a folder, or stands below a file.
    """
    file = Path(file)
    above = next((folder for folder in file.parents if folder.exists()), file.parent)
    if file.is_dir() or not above.is_dir():
        found = "is a folder" if file.is_dir() else f"stands below {above}, which is none"
        raise UsageError(f"The output must be a file in a folder; {file} {found}. Give the name of a file.")


def read_evaluation(file: str | Path) -> dict[str, Any]:
    """An evaluation that `write_json` wrote.

    Raises:
        DataError: There is no such file.
        MismatchError: It holds something else, or is damaged, or of another version.
    """
    file = Path(file)
    if not file.is_file():
        raise DataError(f"An evaluation is a file of `rag evaluate --output`; {file} is none. Check the path.")
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise MismatchError(f"{file} must be JSON; it is damaged ({error}). Evaluate again.") from error
    if not isinstance(data, dict) or data.get("kind") != KIND or data.get("format_version") != FORMAT_VERSION:
        raise MismatchError(
            f'{file} must hold "kind": "{KIND}" and "format_version": {FORMAT_VERSION}; it does not. Give a file that '
            "this version's `rag evaluate --output` wrote."
        )
    if missing := [key for key in _COMPARED if key not in data]:
        raise MismatchError(f"{file} must be a whole evaluation; it has no {missing[0]!r}. Evaluate again.")
    return data


# -- what was measured -----------------------------------------------------------------------------------------


def describe_pipeline(rag: RAG, *, bundle: str | Path | None = None) -> dict[str, Any]:
    """What answers depend on: settings, and fingerprints of everything that was learned or indexed."""
    return {
        "bundle_sha256": None if bundle is None else bundle_digest(bundle),
        "base": describe_base(rag.generator.language_model),
        "retriever": {"kind": rag.retriever.kind, **rag.retriever.settings},
        "selector": asdict(rag.selector.config),
        "decoding": {**asdict(rag.generator.config), "temperature": 0.0, "top_p": 1.0},  # as evaluate decodes
        "chat": asdict(rag.generator.language_model.chat.config),
        "context_length": rag.generator.language_model.context_length,
        "ranking_prompt": asdict(rag.selector.prompt),
        "answer_prompt": asdict(rag.generator.prompt),
        "index": _describe_index(rag.retriever),
        "answer_mode": rag.answer_mode.kind,
        **({"answer_mode_settings": dict(settings)} if (settings := rag.answer_mode.settings) else {}),
    }


def describe_base(model: LanguageModel) -> dict[str, Any]:
    """Name and weights of the frozen base: what models that are compared must share."""
    return {
        "name": Path(model.name).name if Path(model.name).is_dir() else model.name,
        "revision": model.revision,
        "sha256": base_digest(model),
        "dtype": model.dtype_name(),
        "quantization": model.quantization,
    }


def _describe_index(retriever: Retriever) -> dict[str, Any]:
    manifest = retriever.index.manifest
    return {
        "corpus_fingerprint": manifest.corpus_fingerprint,
        "origin": manifest.origin,
        "encoder_fingerprint": manifest.encoder.fingerprint,
        "factory": manifest.factory,
        "search_parameters": manifest.search_parameters,
        "passages": manifest.passages,
        "chunking": dict(manifest.chunking),
    }


def dataset_digest(examples: Iterable[QAExample]) -> str:
    """SHA-256 (hex) of the questions with all that is known of them, in whatever order they come."""
    lines = sorted(json.dumps(e.to_dict(), ensure_ascii=False, sort_keys=True) for e in examples)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def bundle_digest(folder: str | Path) -> str:
    """SHA-256 (hex) of what a bundle learned and how it is set.

    Covered are the names and the contents of the files with weights, and the configuration. Not covered is what changes
    no answer (the model card, the version that wrote it) and *where* index, encoder and base are: of the first two the
    fingerprints count, wherever they lie, and the base has a digest of its own.

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
        if config[part]["is_folder"]:
            kept[part] = {key: value for key, value in config[part].items() if key not in ("name", "revision")}
    return kept


def base_digest(model: LanguageModel) -> str:
    """SHA-256 (hex) of the base's weights as they are in memory, by name: the same wherever and however they lie."""
    digest = hashlib.sha256()
    for name, weight in sorted(model.base_weights().items()):
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}\n".encode())
        digest.update(weight.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
