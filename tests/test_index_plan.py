"""`rag plan index`: its predictions match what `build_index` does, and nothing is encoded for them."""

import json
import random
import re
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_models import PASSAGES
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import BertConfig

from indexes import PassageIndex, UsageError
from rag.cli import main
from rag.planning.cost_plan import Plan
from rag.planning.index_bytes import bm25_bytes, build_peaks, disk_space, plan_layout
from rag.planning.index_job import IndexJob, IndexSpeed, PassageMeasurements, WordStatistics
from rag.planning.index_plan import MachineLimits, assemble_plan
from rag.planning.index_seconds import PhaseTime, encoding_speedup, graph_growth, index_seconds, measure_index_speed
from rag.planning.model_sizes import EncoderShape
from rag.planning.plan_text import plan_text
from rag.planning.text_sizes import synthetic_passages

GB = 10**9
SHAPE = EncoderShape(dimension=384, layers=6, intermediate=1536, parameters=22_700_000)
MEASURED = PassageMeasurements(
    passages=100_000,
    sampled=1000,
    tokens=100.0,
    longest=250,
    tokens_basis="its own tokenizer",
    arrow_bytes=500.0,
    source_bytes=500.0,
    read_seconds=1e-5,
    write_seconds=2e-5,
    segment_seconds=2e-5,
    tokenise_seconds=3e-5,
    layers_seconds=4e-3,
)
LIMITS = MachineLimits(memory=16 * GB, process=600 * 10**6, disk=None)


def job(**changed: object) -> IndexJob:
    return IndexJob(
        **{"encoder": "an-encoder", "shape": SHAPE, "count": 100_000, "sample": PASSAGES, "basis": "counted", **changed}
    )


def planned(changed: IndexJob, measured: PassageMeasurements = MEASURED, limits: MachineLimits = LIMITS) -> Plan:
    """A plan without any measuring."""
    return assemble_plan(
        changed, measured, plan_layout(changed, measured.passages), {"read": PhaseTime(1.0, "given")}, limits
    )


# -- against the builder --------------------------------------------------------------------------------------------


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """9,000 passages of 14 words, some of which are frequent: three shards."""
    chance = random.Random(0)
    texts = (" ".join(f"w{5000 * chance.random() ** 3:04.0f}" for _ in range(14)) for _ in range(9000))
    rows = ({"id": f"{i:05d}", "title": "A title", "text": text} for i, text in enumerate(texts))
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "corpus.jsonl"


@pytest.mark.parametrize(
    ("factory", "options", "segments"),
    [
        ("auto", [], [9000]),
        ("HNSW32", ["--max_memory", "904MB"], [4096, 4096, 808]),
        ("IVF16,PQ16x4fs,Refine(SQ8)", [], [9000]),
        ("SQ8", ["--bm25"], [9000]),
    ],
)
def test_bytes_and_segments_equal_those_of_the_index(
    factory: str, options: list[str], segments: list[int], corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--corpus", str(corpus), "--factory", factory, "--device", "cpu", *options]
    assert main(["plan", "index", *words, "--json"]) == 0
    plan = Plan.from_dict(json.loads(capsys.readouterr().out))
    assert main(["index", "build", *words, "--output_dir", str(corpus.parent / "index"), "--quiet", "--json"]) == 0
    built = json.loads(capsys.readouterr().out)
    assert built["segments"] == segments
    layout = plan.setting.layout
    assert layout.factory == built["factory"]
    assert (layout.segments, layout.segment_rows) == (len(segments), segments[0])
    assert plan.setting.indexed == 9000
    assert plan.disk.after == pytest.approx(built["bytes_on_disk"], rel=0.05)
    files = PassageIndex.open(corpus.parent / "index").manifest.files
    vectors = sum(record.bytes for name, record in files.items() if name.endswith(".faiss"))
    assert plan.disk.parts["vectors"] == pytest.approx(vectors, rel=0.02)


def encoder_and_corpus(folder: Path, prompts: dict[str, str] | None = None) -> Path:
    """An encoder without its weights, which counts words, and ten passages of six words; returns their file."""
    words = {word: number for number, word in enumerate(["[UNK]", "one", "two", "three", "four", "five", "six"])}
    tokenizer = Tokenizer(WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    sizes = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 40}
    BertConfig(**sizes).save_pretrained(folder)
    if prompts is not None:
        (folder / "config_sentence_transformers.json").write_text(json.dumps({"prompts": prompts}))
    source = folder / "corpus.jsonl"
    source.write_text("".join(f'{{"id": "{i}", "text": "one two three four five six"}}\n' for i in range(10)))
    return source


def test_the_encoders_own_tokenizer_splits_and_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Six words in chunks of at most four tokens, by an encoder of which there are no weights."""
    source = encoder_and_corpus(tmp_path)
    options = ["--corpus", str(source), "--encoder", str(tmp_path), "--chunk_tokens", "4", "--chunk_overlap", "0"]
    assert main(["plan", "index", *options, "--device", "cpu", "--dtype", "mixed", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    setting = data["setting"]
    assert (setting["passages"], setting["indexed"]) == (10, 20)
    assert (setting["tokens"], setting["tokens_basis"]) == (3, "its own tokenizer")
    assert (setting["shape"]["dimension"], setting["shape"]["layers"]) == (24, 3)
    assert [p["name"] for p in data["phases"]] == ["read", "encode", "segments", "open"]
    assert all(p["seconds"] > 0 for p in data["phases"][:3])


@pytest.mark.parametrize(
    ("prompt", "options", "indexed", "tokens"),
    [
        ("one two ", [], 30, 4),
        ("one two ", ["--passage_prompt", ""], 20, 3),
        ("one two ", ["--passage_prompt", "six "], 20, 4),
        ("", ["--passage_prompt", "one two "], 30, 4),
    ],
)
def test_a_prompt_takes_room_in_every_chunk(
    prompt: str, options: list[str], indexed: int, tokens: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Six words in chunks of at most four tokens, of which the prompt before each passage takes two, one or none."""
    corpus = encoder_and_corpus(tmp_path, prompts={"query": "five ", "passage": prompt})
    words = ["plan", "index", "--corpus", str(corpus), "--encoder", str(tmp_path), "--device", "cpu", *options]
    assert main([*words, "--chunk_tokens", "4", "--chunk_overlap", "0", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert (data["setting"]["indexed"], data["setting"]["tokens"]) == (indexed, tokens)


@pytest.mark.parametrize("said", [[], ["--passage_tokens", "6"]])
def test_chunks_that_a_prompt_fills_are_refused_as_by_the_build(
    said: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = encoder_and_corpus(tmp_path, prompts={"document": "one two "})
    words = ["plan", "index", "--corpus", str(corpus), "--encoder", str(tmp_path), "--device", "cpu", *said]
    assert main([*words, "--chunk_tokens", "2", "--chunk_overlap", "0"]) == 2
    assert "must have room for 2 tokens of prompt and special tokens" in capsys.readouterr().err


# -- formulas --------------------------------------------------------------------------------------------------------


def test_disk_space() -> None:
    """Flat: 100,000 x (500 + 1536); while it is built shards and the passages again, or at first two copies of them."""
    flat = disk_space(job(factory="Flat"), plan_layout(job(factory="Flat"), 100_000), MEASURED)
    assert flat.parts == {"passages": 50_000_000, "vectors": 153_600_000, "bm25": 0}
    assert (flat.temporary, flat.after) == (153_600_000, 203_600_000)
    assert flat.peak == 50_000_000 + 153_600_000 + 203_600_000
    # A million words of 8 bytes each, and a vocabulary that doubles with four times as many passages.
    counted = WordStatistics(seconds=0.0, pairs=10.0, vocabulary=500, growth=0.5, word_bytes=20.0)
    assert bm25_bytes(replace(MEASURED, words=counted)) == 8 * 1_000_000 + 20 * 500 * 10
    server = disk_space(job(milvus=True), plan_layout(job(milvus=True), 100_000), MEASURED)
    assert (server.parts["vectors"], server.after) == (0, 50_000_000)


def test_seconds_of_an_index() -> None:
    """IVF64 of 16 dimensions: 2 x 64 x 16 operations for a vector; ten rounds over 16,384 of them, and all once."""
    kind = IndexSpeed(train_seconds=1e-6, add_seconds=2e-6, coarse_rate=1e6)
    train, add = index_seconds("IVF64,SQ8", 100_000, 100_000, 16, kind)
    assert train == pytest.approx(10 * 16_384 * 2048 / 1e6 + 16_384e-6)
    assert add == pytest.approx(100_000 * (2048 / 1e6 + 2e-6))
    assert index_seconds("Flat", 100_000, 100_000, 16, IndexSpeed()) == (0, 0)
    assert index_seconds("HNSW32", 100, 16_384, 16, IndexSpeed(add_seconds=0.5)) == (0, 100 * 0.5 * 2)
    assert [graph_growth(n) for n in (1024, 4096, 32_768)] == [0.5, 1.0, 2.5]


def test_costs_never_fall_with_more_passages() -> None:
    before: list[float] = []
    for passages in (1000, 10_000, 100_000, 199_999):
        measured = replace(MEASURED, passages=passages)
        plan = planned(job(factory="HNSW32"), measured)
        now = [plan.disk.after, plan.disk.peak, plan.memory.peak, plan.memory.resident]
        now += index_seconds("IVF16,PQ48", passages, passages, 384, IndexSpeed(train_seconds=1e-6, add_seconds=1e-6))
        assert not before or all(b <= a for a, b in zip(now, before, strict=True))
        assert not before or now[0] > before[0]
        before = now


def test_processes_share_shards_and_cores() -> None:
    """100,000 passages are 25 shards: four processes have 7 at most; two cores do no more than two."""
    assert encoding_speedup(job(processes=4), 100_000, threads=1, cores=8) == pytest.approx(25 / 7)
    assert encoding_speedup(job(processes=4), 100_000, threads=1, cores=2) == 2
    assert encoding_speedup(job(processes=4), 4000, threads=1, cores=8) == 1
    assert encoding_speedup(job(processes=2), 100_000, threads=8, cores=8) == 1
    one, four = (build_peaks(j, plan_layout(j, 100_000), MEASURED, 600, free=GB) for j in (job(), job(processes=4)))
    assert four["encode"].allocated == 4 * one["encode"].allocated
    assert four["read"].allocated - one["read"].allocated == 3 * (600 + 4 * 22_700_000)


# -- the verdict -----------------------------------------------------------------------------------------------------


def test_changes_are_proposed_for_what_does_not_fit() -> None:
    """600 MB of process, 91 of weights, 210 of tokens; HNSW32 of 100,000 x 384 takes 258 more, Flat 154 once open."""
    small = replace(LIMITS, memory=1_100 * 10**6)
    plan = planned(job(factory="HNSW32"), limits=small)
    assert {fit.limit: fit.fits for fit in plan.fits} == {"builder": True, "memory": False}
    assert "memory: DOES NOT FIT" in plan_text(plan)
    changes = {change.change: change for change in plan.changes}
    assert changes["--factory Flat"].peak < 1_100 * 10**6
    assert all(change.peak <= 1_100 * 10**6 and change.fits for change in plan.changes)
    assert planned(job(factory="HNSW32")).changes == ()
    full = planned(job(), limits=replace(LIMITS, disk=10**6))
    assert {fit.limit: fit.fits for fit in full.fits} == {"builder": True, "memory": True, "disk": False}
    assert full.changes[-1].change == "another --output_dir"


def test_text_of_a_plan_that_nothing_makes_fit() -> None:
    """An encoder of 91 MB and a process of 600 MB do not fit into 500 MB."""
    plan = planned(job(factory="Flat", max_memory=400 * 10**6), limits=replace(LIMITS, memory=500 * 10**6))
    assert {fit.limit: fit.fits for fit in plan.fits} == {"builder": False, "memory": False, "max_memory": False}
    assert plan.changes == ()
    limits = "builder, memory, max_memory"
    assert f"is enough for {limits}: use more memory, a smaller encoder, or fewer passages" in plan_text(plan)


def test_max_memory_makes_segments_that_fit() -> None:
    limits = replace(LIMITS, memory=1_200 * 10**6)
    million = replace(MEASURED, passages=1_000_000)
    plan = planned(job(factory="HNSW32"), million, limits)
    (change,) = (change for change in plan.changes if change.change == "--max_memory 1200MB")
    segments = re.fullmatch(r"HNSW32 in (\d+) segments", change.detail)
    assert segments and int(segments[1]) > 4
    assert change.peak <= 1_200 * 10**6


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--max_memory", "100MB"], "max_memory must leave room for Python"),
        (["--max_memory", "901MB", "--factory", "HNSW32"], "needs at least"),
        (["--factory", "IVF4096,Flat"], "needs at least 4096 vectors to train on"),
    ],
)
def test_a_refusal_by_the_builder_is_part_of_the_plan(
    options: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["plan", "index", "--passages", "3000", "--passage_tokens", "20", "--device", "cpu", *options]
    assert main(words) == 0
    assert reason in capsys.readouterr().out
    assert main([*words, "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["fits"][0]["limit"] == "builder"
    assert data["fits"][0]["fits"] is False
    assert reason in data["fits"][0]["reason"]
    assert [p["name"] for p in data["phases"]] == ["read", "encode"]
    assert data["changes"]


# -- the command -----------------------------------------------------------------------------------------------------


def test_json_of_an_index_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--passages", "300000", "--passage_tokens", "30", "--bm25", "--output_dir", str(tmp_path / "no/index")]
    assert main(["plan", "index", *words, "--max_memory", "1GB", "--workers", "2", "--device", "cpu", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    plan = Plan.from_dict(data)
    assert json.loads(json.dumps(plan.to_dict())) == data
    assert plan.kind == "index"
    assert list(tmp_path.iterdir()) == []
    names = [p["name"] for p in data["phases"]]
    assert names[:2] == ["read", "encode"]
    assert names[-3:] == ["segments", "bm25", "open"]
    assert all(p["basis"] for p in data["phases"][:-1])
    assert data["seconds"] == pytest.approx(sum(p["seconds"] for p in data["phases"]))
    assert data["memory"]["peak"] == max(p["peak"] for p in data["phases"])
    assert data["disk"]["free"] > 0
    assert data["setting"]["layout"]["reason"].startswith("300,000 vectors")
    assert main(["plan", "index", *words, "--device", "cpu"]) == 0
    text = capsys.readouterr().out
    assert "Not modelled:" in text
    assert "rests on" in text


def test_synthetic_passages_have_the_requested_length() -> None:
    passages = synthetic_passages(5, 50)
    assert [p.id for p in passages] == ["0", "1", "2", "3", "4"]
    assert all(190 <= len(p.text) <= 200 for p in passages)
    assert len(synthetic_passages(5000, 5)) == 1000


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ([], 2, "--corpus FILE, or --passages N"),
        (["--passages", "0"], 2, "--passages must be at least 1, got 0"),
        (["--passages", "10", "--workers", "0"], 2, "--workers must be at least 1"),
        (["--passages", "10", "--encoder", "/no/encoder"], 5, "config.json must be found"),
        (["--passages", "10", "--factory", "IVF"], 2, "factory"),
        (["--passages", "10", "--max_memory", "lots"], 2, "got 'lots'"),
        (["--passages", "10", "--chunk_tokens", "4", "--chunk_overlap", "4"], 2, "--chunk_overlap 4."),
        (["--corpus", "/no/corpus.jsonl"], 3, "/no/corpus.jsonl"),
    ],
)
def test_bad_input(words: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "index", *words]) == code
    assert message in capsys.readouterr().err


def test_both_plan_commands_have_help(capsys: pytest.CaptureFixture[str]) -> None:
    """The help of `rag plan` is not hidden by that of `rag plan index`."""
    with pytest.raises(SystemExit) as stopped:
        main(["plan", "--help"])
    assert stopped.value.code == 0
    assert "--train_questions" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["plan", "index", "--help"])
    assert "--workers" in capsys.readouterr().out
    assert main(["--help"]) == 0
    assert "plan index" in capsys.readouterr().out
    assert main(["plan", "indes"]) == 2


def test_parts_of_an_index_are_timed_that_are_no_index_by_themselves() -> None:
    """The refining part can reconstruct vectors, so the lists before it need not."""
    kind = measure_index_speed("IVF16,RaBitQfs,Refine(SQ8)", 16)
    assert kind.train_seconds >= 0 and kind.add_seconds > 0


def test_an_untested_kind_is_planned_when_it_is_allowed() -> None:
    with pytest.raises(UsageError, match=r"'IVF16\(SQ6\),Flat' is untested: .*--allow_untested"):
        plan_layout(job(factory="IVF16(SQ6),Flat"), 100_000)
    assert plan_layout(job(factory="IVF16(SQ6),Flat", allow_untested=True), 100_000).factory == "IVF16(SQ6),Flat"
