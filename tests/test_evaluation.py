"""`rag evaluate`: same command, same bytes; order irrelevant; every odd question does what docs/evaluation.md says."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from evaluation_records import evaluation_of
from tiny_models import PASSAGES, randomize_adapters, reply_with

from indexes.errors import DataError, MismatchError, UsageError
from rag.cli import main
from rag.evaluation.evaluation import evaluate
from rag.evaluation.evaluation_file import (
    base_digest,
    bundle_digest,
    dataset_digest,
    evaluation_file,
    read_evaluation,
    write_results,
)
from rag.evaluation.significance import bootstrap_interval
from rag.pipeline import RAG
from training.questions.example import QAExample
from training.questions.loading import write_examples

EXAMPLES = [
    QAExample("q2", "what is the capital of Germany?", ("Berlin",), ("p4",)),
    QAExample("q10", "who wrote Hamlet?", ("Shakespeare", "William Shakespeare"), ("p0",)),
    QAExample("q1", "which river flows into the Black Sea?", ("The Danube",)),
    QAExample("q3", "the capital of France", ("Paris",), ("p3", "p7")),
]


@pytest.fixture
def rag(make_rag: Callable[..., RAG]) -> RAG:
    """A pipeline whose selector listens to its language model."""
    pipeline = make_rag()
    randomize_adapters(pipeline.generator.language_model)
    with torch.no_grad():
        pipeline.selector.prior.gate.fill_(0.7)
    return pipeline


@pytest.fixture
def bundle(rag: RAG, tmp_path: Path) -> Path:
    return rag.save_pretrained(tmp_path / "tuned")


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    file = tmp_path / "dev.jsonl"
    write_examples(EXAMPLES, file)
    return file


def replies(rag: RAG, monkeypatch: pytest.MonkeyPatch, texts: dict[str, str]) -> None:
    reply_with(monkeypatch, lambda question, passages: texts[question])


def run(words: Sequence[object], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main([str(word) for word in words])
    return code, *capsys.readouterr()


# -- the numbers -----------------------------------------------------------------------------------------------


def test_every_metric_has_an_interval_and_a_count(rag: RAG) -> None:
    found = evaluate(rag, EXAMPLES, progress=False)
    assert set(found.intervals) == set(found.counts) == set(found.metrics) - {"n"}
    ids = [e.id for e in found.examples]
    values = [found.scores[i]["f1"] for i in sorted(range(len(ids)), key=ids.__getitem__)]
    assert found.intervals["f1"] == pytest.approx(bootstrap_interval(values), abs=1e-12)
    assert found.counts["retriever_ndcg@3"] == found.counts["selector_mrr"] == 3  # q1 has no gold ids
    assert found.counts["selector_answer_recall@3"] == found.metrics["n"] == 4
    assert "retriever_ndcg@20" not in found.metrics  # five candidates


def test_a_question_with_fewer_candidates_counts_at_every_cut_off(rag: RAG, monkeypatch: pytest.MonkeyPatch) -> None:
    """An approximate index may find fewer for some; left out there, they would only make recall@5 look better."""
    search = rag.retriever.search

    def three_of_germany(questions: Sequence[str], k: int, **options: Any) -> list[Any]:
        return [c.reordered(range(3)) if "Germany" in c.question else c for c in search(questions, k, **options)]

    monkeypatch.setattr(rag.retriever, "search", three_of_germany)
    found = evaluate(rag, EXAMPLES, progress=False)
    assert all(found.counts[f"{stage}_recall@5"] == 3 for stage in ("retriever", "selector"))
    assert found.counts["retriever_answer_recall@5"] == found.counts["selector_answer_recall@5"] == 4
    assert found.scores[0]["retriever_recall@5"] == found.scores[0]["retriever_recall@3"]
    assert "retriever_recall@20" not in found.metrics


def test_results_are_in_the_order_of_the_questions(rag: RAG) -> None:
    found = evaluate(rag, EXAMPLES, batch_size=2, progress=False)
    assert [e.id for e in found.examples] == [e.id for e in EXAMPLES]
    assert [a.question for a in found.answers] == [e.question for e in EXAMPLES]
    for example, candidates in zip(EXAMPLES, found.candidates, strict=True):
        searched = rag.retriever.search(example.question, 5)
        assert [c.id for c in candidates] == searched.ids
        assert [c.score for c in candidates] == pytest.approx(searched.scores.tolist(), abs=1e-5)


def test_mrr_is_the_reciprocal_rank_of_the_first_gold_passage(rag: RAG) -> None:
    found = evaluate(rag, EXAMPLES[:1], progress=False)
    ids = [c.id for c in found.candidates[0]]
    assert found.scores[0]["retriever_mrr"] == (1 / (ids.index("p4") + 1) if "p4" in ids else 0.0)
    read = [p.id for p in found.answers[0].passages]
    ranked = [*read, *(i for i in ids if i not in read)]
    assert found.scores[0]["selector_mrr"] == (1 / (ranked.index("p4") + 1) if "p4" in ranked else 0.0)


def test_decoding_is_greedy_whatever_the_temperature(rag: RAG) -> None:
    greedy = evaluate(rag, EXAMPLES, progress=False)
    sampling = rag.generator.config = replace(rag.generator.config, temperature=5.0, top_p=0.9)
    hot = evaluate(rag, EXAMPLES, progress=False)
    assert [a.text for a in hot.answers] == [a.text for a in greedy.answers]
    assert rag.generator.config is sampling
    written = evaluation_file(rag, hot, name="hot")
    assert written.pipeline.decoding == {"max_new_tokens": 3, "temperature": 0.0, "top_p": 1.0}


# -- odd questions ---------------------------------------------------------------------------------------------


def test_an_empty_prediction_is_scored(rag: RAG, monkeypatch: pytest.MonkeyPatch) -> None:
    replies(rag, monkeypatch, {e.question: "" for e in EXAMPLES[:2]})
    found = evaluate(rag, EXAMPLES[:2], progress=False)
    assert (found.metrics["exact_match"], found.metrics["f1"], found.metrics["n"]) == (0.0, 0.0, 2)
    assert [a.citations for a in found.answers] == [[], []]
    assert all(a.log_prob < 0 for a in found.answers)


def test_unanswerable_questions_are_scored_against_the_empty_answer(rag: RAG, monkeypatch: pytest.MonkeyPatch) -> None:
    """Right are one of the two answerable and one of the two unanswerable ones."""
    nothing = [QAExample(f"n{i}", f"who is nobody {i}?", (), ("p1",), unanswerable=True) for i in range(2)]
    texts = {
        EXAMPLES[0].question: "berlin",
        EXAMPLES[1].question: "",
        nothing[0].question: "",
        nothing[1].question: "x",
    }
    replies(rag, monkeypatch, texts)
    found = evaluate(rag, [*EXAMPLES[:2], *nothing], progress=False)
    for name in ("exact_match", "f1"):
        assert found.metrics[name] == found.metrics[f"{name}_answerable"] == 0.5
        assert found.metrics[f"{name}_unanswerable"] == 0.5
        assert found.counts[f"{name}_unanswerable"] == 2
    assert found.counts["retriever_answer_recall@1"] == 2  # nothing is found nowhere
    assert found.counts["retriever_recall@1"] == 4
    assert evaluation_file(rag, found, name="x").records[0].unanswerable


def test_a_question_without_answers_is_an_error_or_left_out(rag: RAG) -> None:
    lacking = QAExample("q0", "who knows?")
    with pytest.raises(DataError, match="1 of 5 have none, the first is 'q0'"):
        evaluate(rag, [*EXAMPLES, lacking], progress=False)
    found = evaluate(rag, [*EXAMPLES, lacking], on_error="skip", progress=False)
    assert (found.skipped, found.metrics["n"]) == (1, 4)
    assert found.metrics == evaluate(rag, EXAMPLES, progress=False).metrics
    with pytest.raises(DataError, match="1 of 1 have none"):
        evaluate(rag, [lacking], on_error="skip", progress=False)
    with pytest.raises(UsageError, match='on_error must be "raise" or "skip", got'):
        evaluate(rag, EXAMPLES, on_error="ignore", progress=False)


def test_the_command_refuses_broken_records_and_questions_without_answers(
    bundle: Path, questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken.jsonl"
    broken.write_text(questions.read_text() + '{"id": "q9", "question": "cut of')
    words = ["evaluate", "--bundle", bundle, "--questions", broken]
    code, _, error = run(words, capsys)
    assert code == 3
    assert "broken.jsonl:5" in error
    whole = json.loads(run([*words[:-1], questions, "--json"], capsys)[1])
    code, out, _ = run([*words, "--on_error", "skip", "--json"], capsys)
    assert code == 0
    assert json.loads(out)["metrics"] == whole["metrics"]
    assert json.loads(out)["dataset"] == whole["dataset"] | {"file": "broken.jsonl", "skipped": 1}
    lacking = tmp_path / "lacking.jsonl"
    lacking.write_text(questions.read_text() + '{"id": "q0", "question": "who knows?", "golden_answers": []}\n')
    words = ["evaluate", "--bundle", bundle, "--questions", lacking]
    code, _, error = run(words, capsys)
    assert code == 3
    assert "1 of 5 have none, the first is 'q0'" in error
    code, out, _ = run([*words, "--on_error", "skip", "--json"], capsys)
    assert code == 0
    assert json.loads(out)["dataset"] | {"sha256": ""} == {"sha256": "", "file": "lacking.jsonl", "n": 4, "skipped": 1}


# -- the file --------------------------------------------------------------------------------------------------


def test_the_same_command_writes_the_same_bytes_whatever_the_order_of_the_questions(
    bundle: Path, questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In this process, in another one with another salt of hashes, and with the question file turned around."""
    (tmp_path / "turned").mkdir()
    turned = tmp_path / "turned" / questions.name
    write_examples(EXAMPLES[::-1], turned)
    words = ["evaluate", "--bundle", str(bundle), "--order_bias", "2", "--attribution", "--quiet", "--output"]
    for number, file in enumerate([questions, turned]):
        assert run([*words, tmp_path / f"{number}.json", "--questions", file], capsys)[0] == 0
    subprocess.run(
        [sys.executable, "-m", "rag", *words, str(tmp_path / "2.json"), "--questions", str(turned)],
        check=True,
        capture_output=True,
        cwd=Path(__file__).parents[1],
        env={**os.environ, "PYTHONHASHSEED": "17"},
    )
    first = (tmp_path / "0.json").read_bytes()
    assert (tmp_path / "1.json").read_bytes() == first
    assert (tmp_path / "2.json").read_bytes() == first
    assert str(tmp_path).encode() not in first
    data = read_evaluation(tmp_path / "0.json")
    assert data.to_dict() == json.loads(first)
    assert [record.id for record in data.records] == ["q1", "q10", "q2", "q3"]
    assert data.n == data.n_scored == data.dataset.n == 4
    assert data.name == data.label == "tuned"
    assert data.pipeline.bundle_sha256 == bundle_digest(bundle)
    assert data.dataset.sha256 == dataset_digest(EXAMPLES)
    assert data.order_bias.candidates.questions == 4
    assert data.attribution.answers == 4
    for record in data.records:
        assert len(record.passages) == len(record.permutation) == len(record.attribution) == 2
        assert [record.candidates[rank].id for rank in record.permutation] == [p.id for p in record.passages]
        assert len(record.order_bias.candidates.answers) == 2


@pytest.mark.parametrize("below", ["", "dev.jsonl/found.json"])
def test_an_unwritable_output_is_refused_before_the_evaluation(
    bundle: Path, questions: Path, tmp_path: Path, below: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["evaluate", "--bundle", bundle / "not-opened-yet", "--questions", questions, "--output", tmp_path / below]
    code, _, error = run(words, capsys)
    assert code == 2 and "The output must be a file in a folder" in error


def test_limit_takes_the_first_of_the_file(bundle: Path, questions: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(["evaluate", "--bundle", bundle, "--questions", questions, "--limit", "2", "--json"], capsys)
    assert code == 0
    assert [record["id"] for record in json.loads(out)["records"]] == ["q10", "q2"]


def test_the_table_has_intervals(bundle: Path, questions: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["evaluate", "--bundle", bundle, "--questions", questions, "--name", "ours", "--order_bias", "1"]
    code, out, _ = run([*words, "--attribution"], capsys)
    assert code == 0
    assert "ours: 4 questions scored" in out
    assert "95 % interval" in out
    assert "Order of candidates" in out
    assert "Order of passages" in out
    assert "Attribution: " in out


def test_files_are_compared(bundle: Path, questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, other, fewer = tmp_path / "one.json", tmp_path / "other.json", tmp_path / "fewer.json"
    words = ["evaluate", "--bundle", bundle, "--questions", questions, "--output"]
    assert run([*words, one], capsys)[0] == 0
    assert run([*words, other, "--name", "other"], capsys)[0] == 0
    assert run([*words, fewer, "--name", "fewer", "--limit", "3"], capsys)[0] == 0
    code, out, _ = run(["evaluate", "--compare", one, other, "--output", tmp_path / "compared.json"], capsys)
    assert code == 0
    assert "other - tuned" in out
    compared = json.loads((tmp_path / "compared.json").read_text())
    assert compared["kind"] == "comparison"
    assert {(c["difference"], c["p_exact"]) for c in compared["comparisons"]} == {(0.0, 1.0)}
    code, _, error = run(["evaluate", "--compare", one, fewer], capsys)
    assert code == 4
    assert "answered 4 and 3" in error
    for wrong in (["--compare", one, one], ["--compare", one], ["--compare", one, other, "--questions", questions], []):
        assert run(["evaluate", *wrong], capsys)[0] == 2
    _, _, error = run(["evaluate", "--compare", one, other, "--attribution", "--limit", "3"], capsys)
    assert "leave --limit, --attribution out" in error
    code, _, error = run(["evaluate", "--questions", questions, "--metrics", "f1"], capsys)
    assert code == 2 and "--metrics names what --compare compares" in error
    assert run(["evaluate", "--compare", one, tmp_path / "missing.json"], capsys)[0] == 3
    without_records = json.loads(one.read_text())
    del without_records["records"]
    write_results({**without_records, "name": "short"}, other)
    code, _, error = run(["evaluate", "--compare", one, other], capsys)
    assert code == 3 and "the key 'records' is missing" in error
    assert run(["evaluate", "--compare", one, questions], capsys)[0] == 4


def test_a_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    file = evaluation_of("x", {"exact_match": [1.0, 0.0]}, label="\u00e9")
    write_results(file.to_dict(), tmp_path / "new" / "good.json")
    assert read_evaluation(tmp_path / "new" / "good.json") == file


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "sweep"}, r"the key 'kind' must be 'evaluation', got 'sweep'"),
        ({"format_version": 9}, r"the key 'format_version' must be 1, got 9"),
        ({"support": {}}, r"the key 'support' is unknown"),
        ({"n": None}, r"the key 'n' must be int, got 'None'"),
        ({"n": True}, r"the key 'n' must be int, got 'True'"),
        ({"metrics": {"f1": "high"}}, r"the key 'metrics\.f1' must be float, got 'high'"),
        ({"intervals": {"f1": [0.5]}}, r"the key 'intervals\.f1' must be a list of 2, got '\[0\.5\]'"),
        ({"pipeline": {}}, r"the key 'pipeline\.bundle_sha256' is missing"),
        ({"records": [{"id": "q"}]}, r"the key 'records\[0\]\.question' is missing"),
        ({"records": {}}, r"the key 'records' must be list, got '{}'"),
        ({"attribution": []}, r"the key 'attribution' must be an object \(AttributionSummary\)"),
    ],
)
def test_a_file_of_another_version_or_kind_names_the_key(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    file = tmp_path / "bad.json"
    file.write_text(json.dumps(evaluation_of("x", {"f1": [1.0]}).to_dict() | change))
    with pytest.raises(DataError, match=rf"bad\.json: {message}"):
        read_evaluation(file)


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_damaged_file_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text(text)
    with pytest.raises(MismatchError, match=r"bad\.json must hold a JSON object"):
        read_evaluation(tmp_path / "bad.json")


def test_a_question_file_is_evaluated_as_its_questions(rag: RAG, questions: Path) -> None:
    assert evaluate(rag, questions, progress=False) == evaluate(rag, EXAMPLES, progress=False)
    questions.write_text(questions.read_text() + '{"id": "q9", "question": "cut of')
    with pytest.raises(DataError, match=r"dev\.jsonl:5"):
        evaluate(rag, str(questions), progress=False)
    assert evaluate(rag, questions, on_error="skip", progress=False).skipped == 1


def test_repeated_ids_in_a_file_are_refused(rag: RAG) -> None:
    found = evaluate(rag, [EXAMPLES[0], EXAMPLES[0]], progress=False)
    with pytest.raises(DataError, match="'q2' is there twice"):
        evaluation_file(rag, found, name="x")


# -- digests ---------------------------------------------------------------------------------------------------


def test_the_digest_of_questions_is_of_their_content() -> None:
    digest = dataset_digest(EXAMPLES)
    assert dataset_digest(EXAMPLES[::-1]) == digest
    changes: list[dict[str, Any]] = [{"question": "x"}, {"golden_answers": ("x",)}, {"gold_ids": ()}, {"id": "x"}]
    others = [dataset_digest([replace(EXAMPLES[0], **change), *EXAMPLES[1:]]) for change in changes]
    assert len({digest, *others, dataset_digest(EXAMPLES[1:])}) == 6


def test_the_digest_of_a_bundle_covers_weights_and_not_its_location(rag: RAG, bundle: Path, tmp_path: Path) -> None:
    digest = bundle_digest(bundle)
    moved = tmp_path / "deep" / "down" / "moved"
    shutil.copytree(bundle, moved)
    (moved / "README.md").write_text("another card")
    os.utime(moved / "rag_config.json", (1, 1))
    assert bundle_digest(moved) == digest
    whole = rag.save_pretrained(tmp_path / "whole", include_index=True, include_encoder=True, include_base=True)
    assert bundle_digest(whole) == digest
    with torch.no_grad():
        rag.selector.prior.gate.add_(0.001)
    assert bundle_digest(rag.save_pretrained(tmp_path / "learned")) != digest
    config = json.loads((moved / "rag_config.json").read_text())
    config["selector"]["num_selected"] = 1
    (moved / "rag_config.json").write_text(json.dumps(config))
    assert bundle_digest(moved) != digest
    with pytest.raises(MismatchError, match="has none"):
        bundle_digest(tmp_path)


def test_the_digest_of_the_base_is_of_its_weights(make_rag: Callable[..., RAG]) -> None:
    model, same = make_rag().generator.language_model, make_rag().generator.language_model
    same.name = "elsewhere"
    randomize_adapters(same)  # they are not the base
    assert base_digest(model) == base_digest(same)
    next(iter(p for n, p in same.base_model.named_parameters() if "lora_" not in n)).data.view(-1)[0] += 1
    assert base_digest(model) != base_digest(same)


def test_another_corpus_has_another_fingerprint(rag: RAG) -> None:
    found = evaluation_file(rag, evaluate(rag, EXAMPLES, progress=False), name="x").pipeline.index
    assert found.corpus_fingerprint == rag.retriever.index.manifest.corpus_fingerprint
    assert found.passages == len(PASSAGES)
