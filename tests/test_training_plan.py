"""`rag plan`: what it says follows from shapes alone, and no weights are touched."""

import json
import mmap
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from sentence_transformers import SentenceTransformer
from tiny_models import dro_config, tiny_model

from indexes.directory.passage_index import PassageIndex
from indexes.errors import ResourceError, UsageError
from indexes.host_memory import format_seconds, host_memory, resident_bytes
from rag.cli import main
from rag.planning.flops import ModelShape, Question, e_sample_flops, m_generator_flops
from rag.planning.machine import Machine, gemm_rate
from rag.planning.training_plan import (
    EncoderShape,
    Job,
    Texts,
    always,
    changes,
    count_index,
    count_passages,
    count_questions,
    encoder_shape,
    index_size,
    mean_question,
    peaks,
    plan,
    plan_dtype,
    render,
    shape_of,
    size,
    steps,
)
from retriever.selector_config import SelectorConfig
from training.config import DROConfig

SHAPE = ModelShape(
    hidden=896, layers=24, intermediate=4864, heads=14, kv_heads=2, head_dim=64, vocabulary=151936, tied=True
)
MACHINE = Machine("cpu", 2, memory=8 * 2**30, available=7 * 2**30, process=2**29, body_rate=1e11, head_rate=5e10)


def job(**changed: object) -> Job:
    """Qwen2.5-0.5B on 100 passages and 10 questions; changes are of the config."""
    return Job(
        base="a-model",
        shape=SHAPE,
        context=4096,
        dtype="float32",
        device="cpu",
        config=dro_config(**{"rounds": 3} | changed),
        selector=SelectorConfig(num_candidates=20, num_selected=5),
        encoder=EncoderShape(dimension=384, layers=6, intermediate=1536, parameters=20_000_000),
        texts=Texts(passages=100, passage_tokens=130, questions=10),
        question=Question(20, 5, 4, prompt=2840, row=808, answer=8),
        alone_row=270,
    )


def test_the_phases_of_a_run() -> None:
    found = {step.name: step for step in steps(job())}
    assert list(found) == [
        *("encode corpus", "warm-up", "E: draw", "E: candidates alone", "E: score"),
        *("M: selector", "M: generator + SelfAug"),
    ]
    assert [step.often for step in found.values()] == [1, 1, 3, 3, 3, 3, 3]
    generator = found["M: generator + SelfAug"]
    assert generator.flops == 10 * m_generator_flops(SHAPE, job().question)
    # Three products with the head at 799 of the 808 tokens of four rows, two at their 8 answer tokens.
    assert generator.head == 10 * 4 * (3 * 799 + 2 * 8) * 2 * 896 * 151936


def test_draws_without_replacement_read_their_replies_anew() -> None:
    """K = 3, S = 2, m = 4: five beams read 2, then 4 tokens each, and not four replies of 4 tokens.

    Pairs: 5 x (2 x 70 + 3) and 5 x (4 x 70 + 10), and not 4 x (4 x 70 + 10); id logits after 15 choices, and not 8.
    """
    shape = ModelShape(hidden=10, layers=2, intermediate=30, heads=4, kv_heads=2, head_dim=3, vocabulary=100, rank=5)
    q = Question(num_candidates=6, num_selected=3, num_permutations=4, prompt=70, row=50, answer=7, choice=2)
    once, anew = (e_sample_flops(shape, q, replacement=replacement) for replacement in (True, False))
    weights = shape.body_parameters + shape.adapter_parameters
    assert anew - once == 2 * weights * (30 - 16) + 4 * 2 * 12 * (715 + 1450 - 1160) + 2 * 10 * 6 * (15 - 8)


@pytest.mark.parametrize(
    ("changed", "missing"),
    [
        ({"e_step.proposals_per_sample": 1}, "E: candidates alone"),
        ({"train_selector": False}, "M: selector"),
        ({"train_generator": False}, "M: generator + SelfAug"),
        ({"supervised.num_train_epochs": 0}, "warm-up"),
    ],
)
def test_what_is_not_done_costs_nothing(changed: dict[str, object], missing: str) -> None:
    assert missing not in {step.name for step in steps(job(**changed))}


def test_evaluation_comes_after_every_round_and_before_the_first() -> None:
    texts = replace(job().texts, eval_questions=5)
    assert [(s.name, s.often) for s in steps(replace(job(), texts=texts))][-1] == ("evaluation", 4)


def test_seconds_are_operations_over_rates() -> None:
    data = plan(job(), MACHINE)
    phases = {p["name"]: p for p in data["time"]["phases"]}
    step = next(s for s in steps(job()) if s.name == "E: score")
    efficiency = data["time"]["efficiency"]
    assert phases["E: score"]["seconds"] == pytest.approx((step.body / 1e11 + step.head / 5e10) / efficiency)
    in_round = sum(p["seconds"] for name, p in phases.items() if name[:2] in ("E:", "M:"))
    assert data["time"]["round_seconds"] == pytest.approx(in_round)
    once = phases["warm-up"]["seconds"] + phases["encode corpus"]["seconds"]
    assert data["time"]["run_seconds"] == pytest.approx(3 * in_round + once)


def test_every_change_lowers_the_peak_or_leaves_it() -> None:
    """And what is proposed ends where it fits: 7 GiB hold no four rows of 808 tokens with all activations."""
    data = plan(job(), MACHINE)
    assert not data["fits"]["here"]
    proposed = [c["peak"] for c in data["changes"]]
    assert proposed == sorted(proposed, reverse=True)
    assert data["changes"][0]["change"] == "m_step.gradient_checkpointing: true"
    assert [c["fits"] for c in data["changes"]][-1]
    assert proposed[-1] <= data["room"] == int(0.85 * MACHINE.available)
    assert plan(job(), replace(MACHINE, available=2**40))["changes"] == []


def test_changes_leave_what_is_set_already() -> None:
    small = job(m_step__gradient_checkpointing=True, m_step__sequences_per_micro_batch=1, selfaug__permutations="one")
    names = [name for name, _ in changes(small)]
    assert names == ["selfaug.chunk_tokens: 64", "e_step.batch_size: 1", "dtype: bfloat16"]
    assert [name for name, _ in changes(replace(small, device="cuda"))][-1] == "quantization: 4bit"


def test_memory_by_setting() -> None:
    def peak(name: str = "M: generator + SelfAug", **changed: object) -> int:
        return peaks(job(**changed), 0)[name]

    assert peak(m_step__gradient_checkpointing=True) < peak() / 2
    assert peak(m_step__sequences_per_micro_batch=1) < peak(m_step__sequences_per_micro_batch=2) < peak()
    assert peak(m_step__per_device_train_batch_size=2) > peak()
    assert peak("E: score", e_step__batch_size=1) < peak("E: score")
    on_gpu = always(replace(job(), device="cuda"), 0)
    assert "index" not in on_gpu  # it stays in the host's memory
    assert always(job(), 7)["process"] == 7


def test_the_index_by_its_kind() -> None:
    """Flat: 4 d. HNSW32: 64 links of 4 bytes and 16 more. Clusters: codes of d / 4, d to refine, 8 of its number."""
    assert index_size(1000, 384) == pytest.approx(1000 * 1536, rel=1e-3)
    assert index_size(500_000, 384) == pytest.approx(500_000 * (1536 + 272), rel=1e-3)
    clusters = 16384  # the power of two next to 4 sqrt(21 million)
    assert index_size(21_000_000, 384) == pytest.approx(21_000_000 * (96 + 8 + 384) + clusters * 1536, rel=0.05)


def test_an_encoder_of_word_vectors_multiplies_nothing(tmp_path: Path) -> None:
    tiny = encoder_shape("tiny")
    assert tiny.layers == tiny.flops(100) == tiny.bytes(100) == 0
    vectors = SentenceTransformer(str(Path(__file__).parents[1] / "indexes/tiny_encoder/encoder"), device="cpu")
    assert tiny.dimension == vectors.get_embedding_dimension()
    assert tiny.parameters == sum(p.numel() for p in vectors.parameters())
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", "hidden_size": 8, "vocab_size": 100}))
    assert encoder_shape(str(tmp_path)).dimension == 8
    with pytest.raises(ResourceError, match=r"config\.json must be found at '/no/encoder'"):
        encoder_shape("/no/encoder")


def test_lengths_come_from_samples(index: PassageIndex, tmp_path: Path) -> None:
    """3000 passages of 43 characters, of which a third is read; 43 / 4 is 11 tokens."""
    corpus = tmp_path / "corpus.jsonl"
    line = json.dumps({"id": "00000", "text": "x" * 43})
    corpus.write_text("".join(line.replace("00000", f"{i:05d}") + "\n" for i in range(3000)))
    assert count_passages(str(corpus)) == (3000, 11)
    corpus.rename(tmp_path / "corpus.csv").write_text("id,text\na,eight ch\nb,eight ch\n")
    assert count_passages(str(tmp_path / "corpus.csv")) == (2, 2)
    passages, tokens, dimension = count_index(str(index.path))
    assert (passages, dimension) == (12, 24)
    assert 10 < tokens < 25
    questions = tmp_path / "train.jsonl"
    questions.write_text('{"question": "who is it that it was?", "golden_answers": ["nobody else"]}\n' * 1)
    assert count_questions(str(questions)) == (1, 6, 4)


def test_evaluation_questions_may_be_unanswerable(config_only: str, tmp_path: Path) -> None:
    dev = tmp_path / "dev.jsonl"
    dev.write_text('{"question": "a"}\n{"question": "b", "unanswerable": true}\n')
    words = ["plan", "--base", config_only, *COUNTS, "--eval_dataset", str(dev)]
    assert main(words) == 3
    dev.write_text('{"question": "a", "answer": "b"}\n{"question": "b", "unanswerable": true}\n')
    assert main(words) == 0


def test_prompts_are_cut_to_the_context() -> None:
    selector, config, texts = SelectorConfig(), DROConfig(), job().texts
    wide, alone = mean_question(selector, config, texts, 100_000)
    assert 20 * 130 < wide.prompt < 20 * 150
    assert 5 * 130 < wide.row < 1000
    assert 130 < alone < wide.row
    narrow, _ = mean_question(selector, config, texts, 512)
    assert (narrow.prompt, narrow.row) == (512, 512)


def test_dtype_is_what_loading_would_choose() -> None:
    assert plan_dtype("auto", "cpu", None) == ("cpu", "float32")
    assert plan_dtype("mixed", "cpu", None) == ("cpu", "mixed")
    assert plan_dtype("bfloat16", "cuda", "4bit") == ("cuda", "4bit")
    with pytest.raises(UsageError, match="'3bit' came"):
        plan_dtype("auto", "cpu", "3bit")


def test_a_base_without_gates_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(UsageError, match=r"gpt2\) has no \['intermediate_size'\]"):
        shape_of(str(tmp_path))


def test_the_machine_is_asked() -> None:
    total, available = host_memory()
    assert 0 < available <= total
    before = resident_bytes()
    # Straight from the system: an allocator may hand out what earlier tests left, which is resident already.
    held = mmap.mmap(-1, 2**26)
    for start in range(0, 2**26, 2**20):
        held[start : start + 2**20] = b"1" * 2**20
    assert before + 2**25 < resident_bytes() <= resident_bytes("VmHWM")
    held.close()


def test_the_rate_of_products_is_positive_for_every_dtype() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        assert gemm_rate(32, 48, dtype, "cpu", rows=8, seconds=0.01) > 1e5


def test_numbers_for_people() -> None:
    assert [size(n) for n in (0, 5 * 2**20, 3 * 2**30)] == ["-", "5.0 MiB", "3.00 GiB"]
    assert [format_seconds(s) for s in (0.012, 12, 600, 7200)] == ["12.0 ms", "12.0 s", "10 min", "2.0 h"]


# -- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture
def config_only(tmp_path: Path) -> str:
    """A base of which only config.json is there: anything that loads weights or a tokenizer fails."""
    tiny_model("qwen2").config.save_pretrained(tmp_path / "base")
    assert [f.name for f in (tmp_path / "base").iterdir()] == ["config.json"]
    return str(tmp_path / "base")


COUNTS = ["--passages", "1000", "--passage_tokens", "50", "--train_questions", "20", "--device", "cpu"]


def test_nothing_is_loaded(config_only: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The options of `rag train`, as YAML and flags; what is not there yet is not missed."""
    config = tmp_path / "train.yaml"
    config.write_text(f"base: {config_only}\nindex: not-yet\noutput_dir: run\nrounds: 2\nadapter:\n  r: 4\n")
    assert main(["plan", "--config", str(config), *COUNTS, "--eval_questions", "3", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert set(data) == {
        *("base", "adapter_parameters", "encoder", "texts", "question", "machine", "time", "memory", "disk", "fits"),
        *("room", "changes", "not_modelled"),
    }
    assert data["base"]["rank"] == 4
    assert [p["times"] for p in data["time"]["phases"]] == [1, 1, 2, 2, 2, 2, 2, 3]
    assert all(p["seconds"] >= 0 for p in data["time"]["phases"])
    assert set(data["memory"]["phases"]) == {p["name"] for p in data["time"]["phases"]}
    assert data["memory"]["peak"] == max(p["peak"] for p in data["memory"]["phases"].values())
    assert data["fits"]["80 GB GPU"] == {"peak": data["fits"]["24 GB GPU"]["peak"], "fits": True, "changes": []}
    assert main(["plan", "--config", str(config), *COUNTS]) == 0
    text = capsys.readouterr().out
    assert "M: generator + SelfAug" in text
    assert "Not modelled:" in text


def test_the_text_says_what_to_change() -> None:
    text = render(plan(job(), MACHINE))
    assert "DOES NOT FIT cpu with 7.00 GiB free of 8.00 GiB" in text
    assert "gradient_checkpointing: true" in text
    hopeless = render(plan(job(), replace(MACHINE, available=2**30)))
    assert "take a smaller base" in hopeless


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--base", "/no/base", *COUNTS], 5, "config.json must be found at '/no/base'"),
        (["--passages", "10"], 2, "--train_dataset FILE or --train_questions N"),
        (["--train_questions", "10"], 2, "--corpus FILE, --index DIR, or --passages N"),
        ([*COUNTS, "--selector.num_candidates", "2"], 2, "K=5, n=2"),
        ([*COUNTS, "--rounds", "0"], 2, "rounds must be at least 1"),
        ([*COUNTS, "--dtype", "float64"], 2, "got 'float64'"),
        ([*COUNTS, "--corpus", "/no/corpus.jsonl"], 0, ""),  # numbers win
        (["--train_questions", "10", "--corpus", "/no/corpus.jsonl"], 3, "/no/corpus.jsonl"),
    ],
)
def test_bad_input(words: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *words]) == code
    assert message in capsys.readouterr().err
