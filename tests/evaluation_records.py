"""Evaluation files of given scores, for tests that compare or show evaluations."""

from collections.abc import Mapping, Sequence
from typing import Any

from rag.evaluation.evaluation_file import (
    BaseDescription,
    DatasetDescription,
    EvaluationFile,
    EvaluationRecord,
    IndexDescription,
    PipelineDescription,
)

BASE = BaseDescription(name="tiny", revision=None, sha256="b" * 64, dtype="float32", quantization=None)
INDEX = IndexDescription(
    corpus_fingerprint="c" * 64,
    origin="c" * 64,
    encoder_fingerprint="e" * 64,
    factory="Flat",
    search_parameters="",
    passages=8,
    chunking={},
)
PIPELINE = PipelineDescription(
    bundle_sha256=None,
    base=BASE,
    retriever={"kind": "dense"},
    selector={},
    decoding={},
    chat={},
    context_length=100,
    ranking_prompt={},
    answer_prompt={},
    index=INDEX,
    answer_mode="permutation",
)


def evaluation_of(name: str, scores: Mapping[str, Sequence[float]], **changes: Any) -> EvaluationFile:
    """An evaluation with these scores of the questions q000, q001 and so on; `changes` are other fields."""
    n = max(map(len, scores.values()))
    records = [
        EvaluationRecord(
            id=f"q{i:03}",
            question=f"question {i}",
            golden_answers=["x"],
            gold_ids=[],
            unanswerable=False,
            prediction="x",
            log_prob=-1.0,
            citations=[],
            permutation=[0],
            passages=[],
            candidates=[],
            scores={metric: values[i] for metric, values in scores.items() if i < len(values)},
        )
        for i in range(n)
    ]
    fields: dict[str, Any] = {
        "name": name,
        "label": name,
        "pipeline": PIPELINE,
        "dataset": DatasetDescription(sha256="d" * 64, file=None, n=n, skipped=0),
        "n": n,
        "n_scored": n,
        "metrics": {metric: sum(values) / len(values) for metric, values in scores.items()},
        "intervals": {metric: (0.0, 1.0) for metric in scores},
        "counts": {metric: len(values) for metric, values in scores.items()},
        "settings": {},
        "records": records,
    }
    return EvaluationFile(**{**fields, **changes})
