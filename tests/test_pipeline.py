"""`RAG`: answers, and bundles that answer the same in another process with no network."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from kills import survives
from tiny_models import (
    PASSAGES,
    added_tokenizer,
    byte_tokenizer,
    randomize_adapters,
    reply_with,
    successor_model,
    tiny_encoder,
    tiny_language_model,
    tiny_model,
)

from generator.configs import AdapterConfig, ChatConfig, DecodingConfig, ModelConfig
from generator.generator import Generator
from generator.prompt_reading import ReadPrompts
from generator.prompts import AnswerPrompt
from indexes import IndexWriter
from indexes.corpora.corpus import Corpus
from indexes.corpora.passage import Passage
from indexes.directory.builder import build_index
from indexes.directory.passage_index import PassageIndex
from indexes.encoder import Encoder
from indexes.errors import DataError, MismatchError, ResourceError, UsageError
from rag.answering.answer import Answer
from rag.bundle import load_generator
from rag.cli import main
from rag.evaluation.evaluation import evaluate, filter_answerable
from rag.evaluation.evaluation_file import describe_pipeline
from rag.forgetting.measurement import measure_forgetting
from rag.forgetting.retention_tasks import RetentionTasks
from rag.hub import can_be_found_elsewhere
from rag.pipeline import RAG
from retriever.selector_config import SelectorConfig
from training.questions.example import QAExample

QUESTIONS = ["who wrote Hamlet?", "the capital of France", "which river flows into the Black Sea?"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "base"
    tiny_model().save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def rag(base: Path, index: PassageIndex) -> RAG:
    """A pipeline whose every learned part differs from its start."""
    pipeline = RAG.create(
        index=index,
        base=base,
        selector=SelectorConfig(num_candidates=6, num_selected=2),
        decoding=DecodingConfig(max_new_tokens=4),
        adapter=AdapterConfig(r=3),
        answer_prompt=AnswerPrompt(template="{passages}\n{question} Answer: "),
        device="cpu",
    )
    randomize_adapters(pipeline.generator.language_model)
    with torch.no_grad():
        pipeline.selector.prior.gate.fill_(0.4)
        pipeline.retriever.adapter.up.copy_(torch.randn(24, 32, generator=torch.Generator().manual_seed(3)) * 0.5)
    return pipeline


def log_prob_of(rag: RAG, answer: Answer) -> float:
    """log p of an answer by a forward pass of its own."""
    prompt = rag.generator.prompt_ids(answer.question, answer.passages)
    row = rag.generator.generated_sequence(prompt, answer.text)
    return float(rag.generator.log_probs([row])[0])


def test_an_answer_contains_candidates_passages_and_log_prob(rag: RAG) -> None:
    for answer in rag.answer(QUESTIONS):
        found = rag.retriever.search(answer.question, 6)
        assert [c.passage.id for c in answer.candidates] == found.ids
        assert [c.score for c in answer.candidates] == pytest.approx(found.scores.tolist(), abs=1e-5)
        assert [p.id for p in answer.passages] == [found.ids[i] for i in answer.permutation]
        assert len(answer.passages) == 2
        assert answer.log_prob == pytest.approx(log_prob_of(rag, answer), abs=1e-4)
        assert Answer.from_dict(json.loads(json.dumps(answer.to_dict()))) == answer
        assert f"text={answer.text!r}, passages={[p.id for p in answer.passages]}" in repr(answer)


def test_k_and_decoding_hold_for_one_call(rag: RAG) -> None:
    plain, configs = rag.answer(QUESTIONS), (rag.selector.config, rag.generator.config)
    longer = rag.answer(QUESTIONS, k=3, decoding=DecodingConfig(max_new_tokens=9))
    assert [len(answer.passages) for answer in longer] == [3, 3, 3]
    assert any(len(new.text) > len(old.text) for new, old in zip(longer, plain, strict=True))
    assert "".join(rag.stream(QUESTIONS[0], k=3, decoding=DecodingConfig(max_new_tokens=9))).strip() == longer[0].text
    assert (rag.selector.config, rag.generator.config) == configs
    assert rag.answer(QUESTIONS) == plain
    again = RAG(rag.retriever, rag.selector, rag.generator)
    again.selector.config = replace(configs[0], num_selected=3)
    again.generator.config = DecodingConfig(max_new_tokens=9)
    assert again.answer(QUESTIONS) == longer
    with pytest.raises(UsageError, match="K=7, n=6"):
        rag.answer(QUESTIONS[0], k=7)


@pytest.mark.parametrize("mode", ["rag_sequence", "rag_token"])
def test_k_is_the_number_of_documents_that_are_marginalised_over(rag: RAG, mode: str) -> None:
    rag.selector.config = replace(rag.selector.config, num_selected=1)
    answer = RAG(rag.retriever, rag.selector, rag.generator, answer_mode=mode).answer(QUESTIONS[0], k=2)
    assert len(answer.candidates) == len(answer.passages) == 2


def test_parts_are_fixed_at_construction(rag: RAG) -> None:
    """A part replaced later would be saved in bundles, while the answer mode still used the old one."""
    for name in ("retriever", "selector", "generator", "answer_mode"):
        with pytest.raises(AttributeError):
            setattr(rag, name, getattr(rag, name))


def test_repr_names_the_parts(rag: RAG) -> None:
    assert repr(rag) == (
        f"RAG(base={rag.generator.language_model.name!r}, index={str(rag.retriever.index.path)!r} with "
        f"{len(PASSAGES)} passages, retriever='dense', num_candidates=6, num_selected=2, answer_mode='permutation', "
        "device='cpu')"
    )


def test_a_model_config_replaces_the_options_of_the_base(base: Path, index: PassageIndex) -> None:
    config = ModelConfig(name=str(base), device="cpu", context_length=900)
    model = RAG.create(index=index, base=config).generator.language_model
    assert (model.context_length, model.name) == (900, str(base))
    with pytest.raises(UsageError, match=r"got \['device'\] in addition. Set them in the ModelConfig"):
        RAG.create(index=index, base=config, device="cpu")


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_log_prob_comes_from_the_generating_pass(rag: RAG, monkeypatch: pytest.MonkeyPatch, temperature: float) -> None:
    """Also where it was cut off or reads otherwise; no answer is read a second time behind its prompt."""
    end = rag.generator.language_model.end_of_answer_id
    with torch.no_grad():
        rag.generator.language_model.base_model.get_output_embeddings().weight[end] *= 3
    rag.generator.config = DecodingConfig(max_new_tokens=40, temperature=temperature)
    monkeypatch.setattr(rag.generator, "log_probs", lambda rows: pytest.fail("an answer was read again"))
    torch.manual_seed(1)
    answers = rag.answer(QUESTIONS * 4)
    monkeypatch.undo()
    for answer in answers:
        # Draws may be unlikely: many nats, with the rounding of float32.
        assert answer.log_prob == pytest.approx(log_prob_of(rag, answer), abs=1e-4, rel=1e-5)


@pytest.mark.parametrize("answer_mode", ["permutation", "rag_sequence"])
def test_prompts_are_tokenized_once(
    answer_mode: str, index: PassageIndex, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer that is scored follows the prompt it was generated from: its token ids are there already."""
    one = answer_mode == "rag_sequence"
    config = SelectorConfig(num_candidates=3, num_selected=1 if one else 2)
    rag = RAG.create(index=index, base=base, selector=config, answer_mode=answer_mode, device="cpu")
    calls: list[str] = []
    encode = AnswerPrompt.encode
    monkeypatch.setattr(
        AnswerPrompt,
        "encode",
        lambda self, tokenizer, question, *a, **k: calls.append(question) or encode(self, tokenizer, question, *a, **k),
    )
    assert all(answer.log_prob is not None for answer in rag.answer(QUESTIONS))
    assert len(calls) == len(QUESTIONS) * (3 if one else 1)


def test_log_prob_false_scores_nothing(rag: RAG, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the end of answers that are cut off nor those that are written with other tokens."""
    expected = [answer.text for answer in rag.answer(QUESTIONS)]
    monkeypatch.setattr(rag.generator, "log_probs", lambda rows: pytest.fail("an answer was read again"))
    monkeypatch.setattr(ReadPrompts, "log_probs", lambda *both: pytest.fail("an answer was scored"))
    answers = rag.answer(QUESTIONS, log_prob=False)
    assert [(answer.text, answer.log_prob) for answer in answers] == [(text, None) for text in expected]


def test_citations_are_passages_that_contain_the_answer(rag: RAG, monkeypatch: pytest.MonkeyPatch) -> None:
    reply_with(monkeypatch, lambda question, passages: passages[1].title)
    answer = rag.answer(QUESTIONS[0])
    assert answer.passages[1].id in answer.citations
    reply_with(monkeypatch, lambda question, passages: "nowhere to be found")
    assert rag.answer(QUESTIONS[0]).citations == []


def test_batched_answers_equal_single_answers(rag: RAG) -> None:
    together = rag.answer(QUESTIONS)
    for one, question in zip(together, QUESTIONS, strict=True):
        alone = rag.answer(question)
        assert (alone.text, alone.permutation) == (one.text, one.permutation)
        assert alone.log_prob == pytest.approx(one.log_prob, abs=1e-4)
    assert rag.answer([]) == []


def test_streaming(rag: RAG) -> None:
    assert "".join(rag.stream(QUESTIONS[1])).strip() == rag.answer(QUESTIONS[1]).text


def test_a_bundle_answers_the_same_in_a_new_process_offline(rag: RAG, tmp_path: Path) -> None:
    """Everything inside the bundle, which is then moved, with the network switched off."""
    before = [a.to_dict() for a in rag.answer(QUESTIONS)]
    rag.save_pretrained(tmp_path / "made", include_index=True, include_encoder=True, include_base=True)
    moved = tmp_path / "elsewhere" / "bundle"
    shutil.copytree(tmp_path / "made", moved)
    shutil.rmtree(tmp_path / "made")
    script = (
        "import json, sys; from rag import RAG; r = RAG.from_pretrained(sys.argv[1], device='cpu');"
        "print(json.dumps([a.to_dict() for a in r.answer(json.loads(sys.argv[2]))]))"
    )
    result = subprocess.run(
        [sys.executable, "-c", script, str(moved), json.dumps(QUESTIONS)],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[1],
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert json.loads(result.stdout.strip().splitlines()[-1]) == before
    assert not [f for f in moved.rglob("*") if f.suffix in (".bin", ".pkl", ".pt", ".pickle")]


def test_a_bundle_points_to_its_parts(rag: RAG, tmp_path: Path) -> None:
    bundle = rag.save_pretrained(tmp_path / "bundle", report=[{"round": 0, "eval_f1": 0.25}])
    again = RAG.from_pretrained(bundle, device="cpu")
    assert again.answer(QUESTIONS) == rag.answer(QUESTIONS)
    assert again.generator.prompt == rag.generator.prompt
    assert "| 0 | 0.250 |" in (bundle / "README.md").read_text()
    assert sum(f.stat().st_size for f in bundle.rglob("*") if f.is_file()) < 200_000


def test_saving_a_bundle_onto_itself_keeps_its_parts(rag: RAG, tmp_path: Path) -> None:
    """Load, train on, save: the index, encoder and base inside must survive."""
    folder = tmp_path / "b"
    rag.save_pretrained(folder, include_index=True, include_encoder=True, include_base=True)
    RAG.from_pretrained(folder, device="cpu").save_pretrained(folder)
    assert RAG.from_pretrained(folder, device="cpu").answer(QUESTIONS) == rag.answer(QUESTIONS)
    assert [p.name for p in tmp_path.iterdir()] == ["b"]


def test_bundle_records_the_precision(base: Path, index: PassageIndex, tmp_path: Path) -> None:
    made = RAG.create(index=index, base=base, dtype="bfloat16", device="cpu")
    bundle = made.save_pretrained(tmp_path / "bundle")
    assert RAG.from_pretrained(bundle, device="cpu").generator.language_model.base_model.dtype == torch.bfloat16
    again = RAG.from_pretrained(bundle, device="cpu", dtype="float32")
    assert again.generator.language_model.base_model.dtype == torch.float32


@pytest.mark.parametrize(
    ("retriever", "expected"),
    [
        ("dense", {"kind": "dense"}),
        ("bm25", {"kind": "bm25"}),
        ("hybrid", {"kind": "hybrid", "depth": 100, "rrf_k": 10, "weights": [1.0, 1.0]}),
        (
            {"kind": "hybrid", "depth": 4, "rrf_k": 60, "weights": [2.0, 0.5]},
            {"kind": "hybrid", "depth": 4, "rrf_k": 60, "weights": [2.0, 0.5]},
        ),
    ],
)
def test_bundle_records_the_retriever(
    base: Path, index: PassageIndex, tmp_path: Path, retriever: str | dict, expected: dict
) -> None:
    small = SelectorConfig(num_candidates=6, num_selected=2)
    rag = RAG.create(index=index, base=base, retriever=retriever, selector=small, device="cpu")
    with torch.no_grad():
        rag.retriever.adapter.up.copy_(torch.randn(24, 32, generator=torch.Generator().manual_seed(3)) * 0.5)
    rag.save_pretrained(tmp_path / "bundle")
    assert json.loads((tmp_path / "bundle" / "rag_config.json").read_text())["retriever"] == {
        **expected,
        "package": "retriever",
    }
    again = RAG.from_pretrained(tmp_path / "bundle", device="cpu")
    assert {"kind": again.retriever.kind, **again.retriever.settings} == expected
    assert again.selector.retriever is again.retriever
    for mine, theirs in zip(rag.retriever.search(QUESTIONS, 6), again.retriever.search(QUESTIONS, 6), strict=True):
        assert mine.ids == theirs.ids
        torch.testing.assert_close(mine.scores, theirs.scores, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("retriever", "message"),
    [
        ("sparse", r"must be one of \['dense', 'bm25', 'hybrid'\], got 'sparse'"),
        ({"depth": 3}, "got ''"),
        ({"kind": "hybrid", "width": 3}, r"are \['depth', 'rrf_k', 'weights'\], got \['width'\]"),
        ({"kind": "bm25", "depth": 3}, r"options of a bm25 retriever are \[\], got \['depth'\]"),
    ],
)
def test_unknown_retrievers(base: Path, index: PassageIndex, retriever: str | dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        RAG.create(index=index, base=base, retriever=retriever)


def test_the_same_call_makes_the_same_pipeline(base: Path, index: PassageIndex) -> None:
    """LoRA's random half must not depend on what was drawn before, nor change what is drawn after."""
    torch.manual_seed(1)
    first = RAG.create(index=index, base=base, device="cpu").generator.language_model
    after = torch.rand(1)
    torch.manual_seed(2)
    second = RAG.create(index=index, base=base, device="cpu").generator.language_model
    for role in ("selector", "generator"):
        ours, theirs = first.adapter_parameters(role), second.adapter_parameters(role)
        assert all(torch.equal(ours[n], theirs[n]) for n in ours)
    torch.manual_seed(1)
    RAG.create(index=index, base=base, device="cpu")
    assert torch.equal(torch.rand(1), after)


def test_selector_and_generator_share_one_model(rag: RAG) -> None:
    with pytest.raises(UsageError, match="must share one LanguageModel"):
        RAG(rag.retriever, rag.selector, Generator(tiny_language_model()))


def test_answering_during_a_stream(rag: RAG) -> None:
    """One set of adapters: the second call waits, and both answers are what they are alone."""
    alone = [rag.answer(q).text for q in QUESTIONS[:2]]
    stream = rag.stream(QUESTIONS[0])
    first = next(stream)
    assert rag.answer(QUESTIONS[1]).text == alone[1]
    assert (first + "".join(stream)).strip() == alone[0]
    abandoned = rag.stream(QUESTIONS[0])
    next(abandoned)
    abandoned.close()
    assert rag.generator.language_model.role == "base"


@pytest.mark.parametrize("kind", ["dense", "hybrid"])
def test_bundle_opens_after_changes_of_its_index(
    kind: str, base: Path, index: PassageIndex, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(index.path, tmp_path / "index")
    rag = RAG.create(index=tmp_path / "index", base=base, device="cpu", retriever=kind)
    with torch.no_grad():
        rag.retriever.adapter.up[0, 0] = 0.5  # something was learned
    bundle = rag.save_pretrained(tmp_path / "bundle")
    assert rag.retriever.refresh() is False
    with IndexWriter(tmp_path / "index", progress=False) as writer:
        writer.delete(["p0"])
        writer.add([Passage("new", "Hamlet", "who wrote Hamlet")])
    assert rag.retriever.refresh() is True
    assert rag.retriever.adapter.up[0, 0] == 0.5
    found = rag.retriever.search("who wrote Hamlet", 12).ids
    assert "new" in found and "p0" not in found
    assert RAG.from_pretrained(bundle, device="cpu").retriever.search("who wrote Hamlet", 12).ids == found
    assert "it is at version 3 now" in caplog.text


def test_saving_over_something_else_is_refused(rag: RAG, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match="holds something else"):
        rag.save_pretrained(tmp_path)
    bundle = rag.save_pretrained(tmp_path / "bundle")
    rag.save_pretrained(bundle)  # an earlier bundle may be replaced
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bundle", "thesis.txt"]


def test_a_failed_save_leaves_nothing(rag: RAG, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = rag.save_pretrained(tmp_path / "bundle")
    before = {f: f.read_bytes() for f in bundle.rglob("*") if f.is_file()}
    monkeypatch.setattr("rag.bundle._model_card", lambda config, report: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        rag.save_pretrained(bundle)
    assert {f: f.read_bytes() for f in bundle.rglob("*") if f.is_file()} == before
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]


def test_a_save_killed_at_any_step_leaves_the_old_bundle_or_the_new_one(rag: RAG, tmp_path: Path) -> None:
    from rag.hub import bundle_folder

    def contents(folder: Path) -> dict[str, bytes]:
        return {f.relative_to(folder).as_posix(): f.read_bytes() for f in folder.rglob("*") if f.is_file()}

    old = contents(rag.save_pretrained(tmp_path / "old"))
    new = contents(rag.save_pretrained(tmp_path / "new", report=[{"round": 0, "eval_f1": 0.25}]))
    found = []
    for step in range(1, 200):
        place = tmp_path / "bundle"
        rag.save_pretrained(place)
        ended = survives(lambda: rag.save_pretrained(tmp_path / "bundle", report=[{"round": 0, "eval_f1": 0.25}]), step)
        bundle = bundle_folder(place)
        assert contents(bundle) in (old, new), step
        if bundle != place:
            RAG.from_pretrained(place, device="cpu")
        found.append(bundle == place)
        if ended:
            break
    assert ended and len(found) > 10 and not all(found)


def test_damaged_bundles(rag: RAG, tmp_path: Path) -> None:
    with pytest.raises(MismatchError, match=r"must be a folder with rag_config\.json"):
        RAG.from_pretrained(tmp_path)
    bundle = rag.save_pretrained(tmp_path / "bundle")
    (bundle / "learned/selector/adapter_model.safetensors").unlink()
    with pytest.raises(MismatchError, match="is missing"):
        RAG.from_pretrained(bundle, device="cpu")
    (bundle / "rag_config.json").write_text("{")
    with pytest.raises(MismatchError, match="must hold a JSON object"):
        RAG.from_pretrained(bundle)
    (bundle / "rag_config.json").write_text('{"format_version": 99}')
    with pytest.raises(MismatchError, match="format_version 4, got 99"):
        RAG.from_pretrained(bundle)


def test_a_damaged_configuration_names_the_part(rag: RAG, tmp_path: Path) -> None:
    file = rag.save_pretrained(tmp_path / "bundle") / "rag_config.json"
    whole = json.loads(file.read_text())
    for part in whole.keys() - {"format_version"}:
        file.write_text(json.dumps({name: value for name, value in whole.items() if name != part}))
        with pytest.raises(MismatchError, match=f"must describe a whole pipeline, but it has no '{part}'"):
            RAG.from_pretrained(tmp_path / "bundle", device="cpu")
    for part, damaged in (("base", {"name": "x"}), ("chat", {"datum": "today"}), ("adapter", None), ("index", [])):
        file.write_text(json.dumps({**whole, part: damaged}))
        with pytest.raises(MismatchError, match=f"'{part}' in .* must hold the settings of this version"):
            RAG.from_pretrained(tmp_path / "bundle", device="cpu")


def test_an_index_of_another_corpus(rag: RAG, encoder: Encoder, tmp_path: Path) -> None:
    bundle = rag.save_pretrained(tmp_path / "bundle")
    other = [*PASSAGES[:-1], Passage("new", "New", "a new passage")]
    index = build_index(Corpus.from_passages(other), encoder, tmp_path / "other", progress=False)
    with pytest.raises(MismatchError, match="was trained over a corpus with fingerprint"):
        RAG.from_pretrained(bundle, index=index, device="cpu")


def test_create_refuses(base: Path, index: PassageIndex, tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="must be found at"):
        RAG.create(index=index, base=tmp_path / "no-model")
    with pytest.raises(MismatchError):
        RAG.create(index=index, base=base, encoder=tiny_encoder(["else"], seed=9))
    with pytest.raises(UsageError, match="got K=9, n=6"):
        RAG.create(index=index, base=base, selector=SelectorConfig(num_candidates=6, num_selected=9))
    pipeline = RAG.create(index=index, base=base, selector=SelectorConfig(num_candidates=20, num_selected=13))
    with pytest.raises(DataError, match=r"At least K=13 candidates must be retrieved; .* has 12"):
        pipeline.answer("who?")
    with pytest.raises(DataError, match="empty"):
        pipeline.answer(" ")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A Hub in a folder; `calls` holds what it was asked."""
    folder, calls = tmp_path / "hub", {}

    class Api:
        def __init__(self, token: str | None = None) -> None:
            calls["token"] = token

        def create_repo(self, repo_id: str, *, private: bool | None, exist_ok: bool) -> SimpleNamespace:
            calls["repository"] = (repo_id, private, exist_ok)
            return SimpleNamespace(repo_id=repo_id if "/" in repo_id else f"me/{repo_id}")

        def create_branch(self, repo_id: str, *, branch: str, exist_ok: bool) -> None:
            calls["branch"] = (repo_id, branch, exist_ok)

        def upload_folder(self, *, repo_id: str, folder_path: str, **options: object) -> str:
            calls["upload"] = (repo_id, options)
            shutil.copytree(folder_path, folder / repo_id)
            return "https://huggingface.co/me/my-rag/commit/1"

    def snapshot_download(repo_id: str, **options: object) -> str:
        calls["download"] = (repo_id, options)
        if not (folder / repo_id).is_dir():
            raise LocalEntryNotFoundError("it is not in the cache and the Hub cannot be reached")
        return str(folder / repo_id)

    monkeypatch.setattr("rag.bundle.HfApi", Api)
    monkeypatch.setattr("rag.hub.snapshot_download", snapshot_download)
    return SimpleNamespace(folder=folder, calls=calls)


@pytest.fixture
def movable(rag: RAG, tmp_path: Path) -> tuple[RAG, Path]:
    """A pipeline, and the folder that holds all its parts."""
    parts = rag.save_pretrained(tmp_path / "parts", include_index=True, include_encoder=True, include_base=True)
    return RAG.from_pretrained(parts, device="cpu"), parts


def test_parts_of_a_bundle_stay_in_it_when_the_directory_changes(
    movable: tuple[RAG, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bundle was opened by a relative path: looked for from elsewhere, its own index was not found, and deleted."""
    parts = movable[1]
    monkeypatch.chdir(tmp_path)
    rag = RAG.from_pretrained(parts.name, device="cpu")
    before = rag.answer(QUESTIONS[0])
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    rag.save_pretrained(f"../{parts.name}")
    assert {"index", "encoder", "base", "learned"} <= {child.name for child in parts.iterdir()}
    assert RAG.from_pretrained(parts, device="cpu").answer(QUESTIONS[0]) == before


def test_pointers_hold_when_the_directory_changes(
    movable: tuple[RAG, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = movable[1]
    monkeypatch.chdir(parts)
    rag = RAG.create(index="index", base="base", encoder="encoder", device="cpu", selector=movable[0].selector.config)
    monkeypatch.chdir(tmp_path)
    rag.save_pretrained("pointing")
    assert RAG.from_pretrained("pointing", device="cpu").answer(QUESTIONS[0]) == rag.answer(QUESTIONS[0])
    shutil.rmtree(parts / "index")
    with pytest.raises(MismatchError, match="index is gone"):
        rag.save_pretrained("later", include_index=True)
    assert not (tmp_path / "later").exists()


def test_bundle_over_a_file_is_refused(rag: RAG, tmp_path: Path) -> None:
    (tmp_path / "corpus.jsonl").write_text("{}")
    with pytest.raises(UsageError, match=r"must be a folder, but .* is a file"):
        rag.save_pretrained(tmp_path / "corpus.jsonl")


def test_pushed_bundle_opens_elsewhere(
    movable: tuple[RAG, Path], hub: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rag, parts = movable
    before = rag.answer(QUESTIONS)
    options = {"include_index": True, "include_encoder": True, "include_base": True}
    address = rag.push_to_hub("my-rag", private=True, token="t", revision="v2", **options)
    assert address == "https://huggingface.co/me/my-rag/commit/1"
    assert hub.calls["token"] == "t"
    assert hub.calls["repository"] == ("my-rag", True, True)
    assert hub.calls["branch"] == ("me/my-rag", "v2", True)
    repository, uploaded = hub.calls["upload"]
    assert (repository, uploaded["revision"], uploaded["create_pr"]) == ("me/my-rag", "v2", False)
    del rag
    shutil.rmtree(parts)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    again = RAG.from_pretrained("me/my-rag", device="cpu", revision="v2", token="t", cache_dir="c")
    assert hub.calls["download"] == (
        "me/my-rag",
        {"revision": "v2", "token": "t", "cache_dir": "c", "local_files_only": False, "ignore_patterns": []},
    )
    assert again.answer(QUESTIONS) == before
    text = (hub.folder / "me/my-rag/rag_config.json").read_text()
    assert ".." not in text and str(tmp_path) not in text
    generator = load_generator("me/my-rag", device="cpu", local_files_only=True)
    assert hub.calls["download"][1]["ignore_patterns"] == ["index/*", "encoder/*"]
    assert hub.calls["download"][1]["local_files_only"] is True
    passages = before[0].passages
    assert generator.log_prob(QUESTIONS[0], passages, "x") == again.generator.log_prob(QUESTIONS[0], passages, "x")


@pytest.fixture
def pushed(movable: tuple[RAG, Path], hub: SimpleNamespace) -> tuple[RAG, Path]:
    """The same, whose bundle with all its parts is on the Hub as "me/my-rag"."""
    movable[0].push_to_hub("me/my-rag", include_index=True, include_encoder=True, include_base=True)
    return movable


@pytest.mark.parametrize("part", ["index", "encoder", "base"])
def test_push_refuses_parts_that_are_only_local(movable: tuple[RAG, Path], hub: SimpleNamespace, part: str) -> None:
    others = {f"include_{name}": True for name in {"index", "encoder", "base"} - {part}}
    with pytest.raises(UsageError, match=rf"its {part} is only here .*include_{part}=True"):
        movable[0].push_to_hub("me/my-rag", **others)
    assert "repository" not in hub.calls


def test_models_of_the_hub_are_named_and_not_uploaded(
    movable: tuple[RAG, Path], hub: SimpleNamespace, tmp_path: Path
) -> None:
    rag, _ = movable
    rag.generator.language_model.name = "me/base"
    rag.generator.language_model.revision = "v1"
    rag.retriever.encoder.name = "tiny"
    rag.push_to_hub("me/my-rag", include_index=True)
    config = json.loads((hub.folder / "me/my-rag/rag_config.json").read_text())
    assert (config["base"]["name"], config["base"]["revision"]) == ("me/base", "v1")
    assert config["encoder"] == {"name": "tiny", "is_path": False, "revision": None, "trust_remote_code": False}
    assert {p.name for p in (hub.folder / "me/my-rag").iterdir()} == {
        "README.md",
        "rag_config.json",
        "learned",
        "index",
    }


def test_an_index_that_is_left_out_on_purpose_must_be_given(
    movable: tuple[RAG, Path], hub: SimpleNamespace, index: PassageIndex
) -> None:
    rag, parts = movable
    rag.push_to_hub("me/my-rag", include_index=False, include_encoder=True, include_base=True)
    assert not (hub.folder / "me/my-rag/index").exists()
    assert "index=an_index_of_this_corpus" in (hub.folder / "me/my-rag/README.md").read_text()
    with pytest.raises(UsageError, match=r"uploaded without its index\. Give one of the same corpus"):
        RAG.from_pretrained("me/my-rag", device="cpu")
    again = RAG.from_pretrained("me/my-rag", index=parts / "index", device="cpu")
    assert hub.calls["download"][1]["ignore_patterns"] == ["index/*"]
    assert again.answer(QUESTIONS) == rag.answer(QUESTIONS)


def test_local_folder_takes_precedence_over_the_hub(
    rag: RAG, hub: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rag.save_pretrained(tmp_path / "me/my-rag")
    monkeypatch.chdir(tmp_path)
    assert RAG.from_pretrained("me/my-rag", device="cpu").answer(QUESTIONS[0]) == rag.answer(QUESTIONS[0])
    assert "download" not in hub.calls


def test_a_local_folder_has_no_revision(
    rag: RAG, hub: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It was ignored, so that whoever asked for one revision got whatever the folder held."""
    rag.save_pretrained(tmp_path / "me/my-rag")
    monkeypatch.chdir(tmp_path)
    for opened in (RAG.from_pretrained, load_generator):
        with pytest.raises(UsageError, match=r"me/my-rag is a local folder; got revision 'v2'\. Leave"):
            opened("me/my-rag", device="cpu", revision="v2")
    (tmp_path / "q.jsonl").write_text('{"id": "q", "question": "who?", "golden_answers": ["x"]}\n')
    for words in (["ask", "who?"], ["evaluate", "--questions", "q.jsonl"], ["forgetting", "--answers", "q.jsonl"]):
        assert main([*words, "--bundle", "me/my-rag", "--revision", "v2", "--device", "cpu"]) == 2
        assert "is a local folder; got revision 'v2'" in capsys.readouterr().err
    assert "download" not in hub.calls


def test_an_evaluation_downloads_no_part_that_is_given(
    pushed: tuple[RAG, Path], hub: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rag, parts = pushed
    questions = tmp_path / "questions.jsonl"
    questions.write_text(json.dumps({"id": "q", "question": QUESTIONS[0], "golden_answers": ["x"]}) + "\n")
    words = ["evaluate", "--bundle", "me/my-rag", "--revision", "v2", "--questions", str(questions), "--device", "cpu"]
    words += ["--index", str(parts / "index"), "--json"]
    for encoder, left_out in (([], ["index/*"]), (["--encoder", str(parts / "encoder")], ["index/*", "encoder/*"])):
        assert main([*words, *encoder]) == 0
        assert json.loads(capsys.readouterr().out)["records"][0]["prediction"] == rag.answer(QUESTIONS[0]).text
        options = hub.calls["download"][1]
        assert (options["revision"], options["ignore_patterns"]) == ("v2", left_out)


def test_forgetting_downloads_one_revision_without_index_and_encoder(
    pushed: tuple[RAG, Path], hub: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text('{"good": "It rains.", "bad": "It rain."}\n')
    tasks = RetentionTasks(pairs=(str(pairs),))
    found = measure_forgetting(
        [("ours", "me/my-rag")], tasks, revision="v2", token="t", progress=False, device="cpu"
    ).to_dict()
    options = {"revision": "v2", "token": "t", "cache_dir": None, "local_files_only": False}
    options["ignore_patterns"] = ["index/*", "encoder/*"]
    assert hub.calls["download"] == ("me/my-rag", options)
    words = ["forgetting", "--bundle", "me/my-rag", "--name", "ours", "--revision", "v3", "--pairs", str(pairs)]
    assert main([*words, "--device", "cpu", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == found
    assert hub.calls["download"] == ("me/my-rag", {**options, "revision": "v3", "token": None})


def test_a_bundle_keeps_the_revision_of_its_encoder(
    rag: RAG, encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = []

    def from_pretrained(name: str, *, revision: str | None, **options: object) -> Encoder:
        loaded.append((name, revision))
        return encoder

    monkeypatch.setattr("indexes.directory.manifest.Encoder.from_pretrained", from_pretrained)
    monkeypatch.setattr(encoder, "name", "me/encoder")
    monkeypatch.setattr(encoder, "revision", "v7")
    rag.retriever.encoder = encoder
    bundle = rag.save_pretrained(tmp_path / "bundle")
    config = json.loads((bundle / "rag_config.json").read_text())
    assert config["encoder"]["revision"] == "v7"
    RAG.from_pretrained(bundle, device="cpu")
    assert loaded == [("me/encoder", "v7")]


@pytest.mark.parametrize(
    ("name", "elsewhere"),
    [
        ("gpt2", True),  # the Hub's first models have no owner
        ("all-MiniLM-L6-v2", True),  # sentence-transformers 6.2 looks such names up among its own
        ("me/base", True),
        ("tiny", True),
        ("here", False),
        ("me/here", False),
        ("/no/such/base", False),
        ("../base", False),
        ("", False),
    ],
)
def test_names_of_models_on_the_hub_are_recognised(
    name: str, elsewhere: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "me" / "here").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert can_be_found_elsewhere(name) is elsewhere


def test_models_without_an_owner_are_pushed_by_name(
    movable: tuple[RAG, Path], hub: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rag, _ = movable
    monkeypatch.chdir(tmp_path)
    rag.generator.language_model.name, rag.retriever.encoder.name = "gpt2", "all-MiniLM-L6-v2"
    rag.push_to_hub("me/my-rag", include_index=True)
    config = json.loads((hub.folder / "me/my-rag/rag_config.json").read_text())
    assert [(config[part]["name"], config[part]["is_path"]) for part in ("base", "encoder")] == [
        ("gpt2", False),
        ("all-MiniLM-L6-v2", False),
    ]
    with pytest.raises(MismatchError, match="is neither"):
        load_generator("gpt2")  # a bundle has an owner


def test_a_mixed_bundle_opens_mixed(base: Path, index: PassageIndex, tmp_path: Path) -> None:
    """It was recorded as float32, and answered in float32 when it was opened again."""
    small = SelectorConfig(num_candidates=3, num_selected=2)
    rag = RAG.create(index=index, base=base, selector=small, dtype="mixed", device="cpu")
    randomize_adapters(rag.generator.language_model)
    bundle = rag.save_pretrained(tmp_path / "bundle")
    assert json.loads((bundle / "rag_config.json").read_text())["base"]["dtype"] == "mixed"
    assert describe_pipeline(rag).base.dtype == "mixed"
    again = RAG.from_pretrained(bundle, device="cpu")
    assert again.generator.language_model.mixed and load_generator(bundle, device="cpu").language_model.mixed
    assert again.answer(QUESTIONS) == rag.answer(QUESTIONS)
    exact = RAG.from_pretrained(bundle, device="cpu", dtype="float32")
    assert not exact.generator.language_model.mixed
    assert describe_pipeline(exact).base.dtype == "float32"


def test_missing_bundle_is_a_resource_error(
    hub: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ResourceError, match=r"there is no folder 'me/gone', and downloading it failed: it is not in"):
        RAG.from_pretrained("me/gone")
    with pytest.raises(MismatchError, match="is neither"):
        RAG.from_pretrained(tmp_path / "gone")
    with pytest.raises(MismatchError, match="is neither"):
        load_generator("/no/such/bundle")
    assert main(["ask", "--bundle", "me/gone", "--revision", "v3", "who?"]) == 5
    assert hub.calls["download"][1]["revision"] == "v3"
    assert "downloading it failed" in capsys.readouterr().err


def test_the_hub_cannot_be_reached_offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The real client, told to stay offline."""
    with pytest.raises(ResourceError, match=r"there is no folder 'me/gone', and downloading it failed"):
        RAG.from_pretrained("me/gone", cache_dir=tmp_path, local_files_only=True)


# -- evaluation ------------------------------------------------------------------------------------------------

EXAMPLES = [
    QAExample("q1", QUESTIONS[0], ("Shakespeare",), ("p0",)),
    QAExample("q2", QUESTIONS[1], ("Paris",), ("p3", "p7")),
    QAExample("q3", QUESTIONS[2], ("The Danube", "Danube")),
]


def test_evaluation_by_hand(rag: RAG, monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers "Shakespeare", "Paris France", "the danube!": EM (1 + 0 + 1)/3, F1 (1 + 2/3 + 1)/3."""
    replies = dict(zip(QUESTIONS, ["Shakespeare", "Paris France", "the danube!"], strict=True))
    reply_with(monkeypatch, lambda question, passages: replies[question])
    result = evaluate(rag, EXAMPLES, progress=False)
    assert result.metrics["exact_match"] == pytest.approx(2 / 3)
    assert result.metrics["f1"] == pytest.approx((1 + 2 / 3 + 1) / 3)
    assert result.metrics["n"] == 3
    found = [c.ids for c in rag.retriever.search(QUESTIONS, 6)]
    expected = (float("p0" in found[0][:3]) + len({"p3", "p7"} & set(found[1][:3])) / 2) / 2
    assert result.metrics["retriever_recall@3"] == pytest.approx(expected)
    assert "selector_recall@1" in result.metrics
    asked = rag.retriever.search(QUESTIONS, 6)
    orders = [[*(p.id for p in a.passages), *c.ids] for a, c in zip(result.answers, asked, strict=True)]
    first = [list(dict.fromkeys(order))[:3] for order in orders]  # K = 2 are read, then as retrieved
    expected = (float("p0" in first[0]) + len({"p3", "p7"} & set(first[1])) / 2) / 2
    assert result.metrics["selector_recall@3"] == pytest.approx(expected)
    assert "retriever_recall@20" not in result.metrics  # n = 6
    assert [answer.text for answer in result.answers] == ["Shakespeare", "Paris France", "the danube!"]


def test_evaluation_does_not_depend_on_order_or_batches(rag: RAG) -> None:
    first = evaluate(rag, EXAMPLES, progress=False)
    second = evaluate(rag, EXAMPLES[::-1], batch_size=1, progress=False)
    assert first.metrics == second.metrics


def test_evaluation_needs_answers(rag: RAG) -> None:
    with pytest.raises(DataError, match="1 of 2 have none, the first is 'x'"):
        evaluate(rag, [EXAMPLES[0], QAExample("x", "q?")], progress=False)
    with pytest.raises(DataError, match="0 of 0"):
        evaluate(rag, [], progress=False)


def test_only_questions_that_a_candidate_answers_are_kept(rag: RAG) -> None:
    """A passage that holds the answer but is not retrieved does not count."""
    far = rag.retriever.search(QUESTIONS[0], len(PASSAGES)).passages[-1]
    questions = [*EXAMPLES, QAExample("q4", QUESTIONS[0], (far.title,)), QAExample("q5", "who?", ("Nobody Ever",))]
    found = rag.retriever.search([e.question for e in questions], rag.num_candidates)
    expected = [
        e.id
        for e, c in zip(questions, found, strict=True)
        if any(a.removeprefix("The ") in p.contents for a in e.golden_answers for p in c.passages)
    ]
    assert [e.id for e in filter_answerable(rag, questions, batch_size=2)] == expected
    assert "q3" in expected
    assert "q4" not in expected
    with pytest.raises(DataError, match="no candidate of any of 1 holds an answer"):
        filter_answerable(rag, questions[-1:])


# -- the chat template of the base -------------------------------------------------------------------------------

NEWLINE = "\u010a"  # as byte-level tokenizers spell it
TEMPLATE = (
    "{{ 'Today is ' + strftime_now('%d %b %Y') + '.' }}{% for m in messages %}"
    "{{ '<|start|>' + m.role + '\n' + m.content + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant\n' }}"
    "{% if enable_thinking is defined and not enable_thinking %}{{ '</think>' }}{% endif %}{% endif %}"
)


@pytest.fixture
def thinking_base(tmp_path: Path) -> Path:
    """Thinks for ever behind the opening of a reply and says "Rom" behind a thought; only its generation config names
    the end of a turn."""
    tokenizer = added_tokenizer(["<|start|>", "<|end|>"], plain=["<think>", "</think>"], template=TEMPLATE)
    successors = {NEWLINE: "<think>", "<think>": "h", "h": "h", "</think>": "R", "R": "o", "o": "m", "m": "<|end|>"}
    model = successor_model(tokenizer, successors | {"<|end|>": "R"})
    model.generation_config.eos_token_id = tokenizer.convert_tokens_to_ids(["<eos>", "<|end|>"])
    model.save_pretrained(tmp_path / "thinking")
    tokenizer.save_pretrained(tmp_path / "thinking")
    return tmp_path / "thinking"


def thinking_rag(base: Path, index: PassageIndex, chat: ChatConfig | None) -> RAG:
    return RAG.create(
        index=index,
        base=base,
        selector=SelectorConfig(num_candidates=3, num_selected=2),
        decoding=DecodingConfig(max_new_tokens=6),
        adapter=AdapterConfig(r=2),
        device="cpu",
        chat=chat,
    )


@pytest.mark.parametrize("include_base", [False, True])
def test_bundle_records_the_chat_options(
    thinking_base: Path, index: PassageIndex, tmp_path: Path, include_base: bool
) -> None:
    chat = ChatConfig(chat_template_kwargs={"enable_thinking": False}, system_message="Be short.", date="2025-01-02")
    rag = thinking_rag(thinking_base, index, chat)
    assert thinking_rag(thinking_base, index, None).answer("Where?").text == ""
    assert rag.answer("Where?").text == "Rom"
    folder = rag.save_pretrained(tmp_path / "bundle", include_base=include_base)
    again = RAG.from_pretrained(folder, device="cpu")
    assert again.answer("Where?").to_dict() == rag.answer("Where?").to_dict()
    for generator in (again.generator, load_generator(folder, device="cpu")):
        assert generator.language_model.chat.config == chat
        text = generator.language_model.chat.render("hi")
        assert text.startswith("Today is 02 Jan 2025.<|start|>system\nBe short.<|end|><|start|>user\nhi<|end|>")
        assert generator.prompt_ids("Where?", PASSAGES[:1]) == rag.generator.prompt_ids("Where?", PASSAGES[:1])
    assert json.loads((folder / "rag_config.json").read_text())["chat"]["chat_template_kwargs"] == {
        "enable_thinking": False
    }


def test_answers_do_not_depend_on_the_date(
    thinking_base: Path, index: PassageIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    """sglang#3296: the clock of transformers 5.23, which templates read by `strftime_now`, says another day."""
    from datetime import datetime

    from transformers.utils import chat_template_utils

    rag = thinking_rag(thinking_base, index, ChatConfig(chat_template_kwargs={"enable_thinking": False}))
    randomize_adapters(rag.generator.language_model)
    found = []
    for day in (1, 2):
        clock = type("Clock", (datetime,), {"now": classmethod(lambda cls, tz=None, day=day: datetime(2026, 3, day))})
        monkeypatch.setattr(chat_template_utils, "datetime", clock)
        found.append((rag.answer("Where?").to_dict(), rag.generator.prompt_ids("Where?", PASSAGES[:1])))
    assert found[0] == found[1]
    assert rag.generator.language_model.chat.render("hi").startswith("Today is 26 Jul 2024.")
