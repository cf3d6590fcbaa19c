"""`rag plan index`: what it says is what `build_index` then does, and nothing is encoded for it."""

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_models import PASSAGES
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import BertConfig

from indexes import PassageIndex, UsageError
from rag.cli import main
from rag.planning.index_plan import (
    IndexJob,
    Kind,
    Measured,
    Room,
    Words,
    answer,
    disk,
    graph_growth,
    index_seconds,
    invented_passages,
    layout,
    measure_kind,
    peaks,
    render,
    speedup,
    words_bytes,
)
from rag.planning.training_plan import EncoderShape

GB = 10**9
SHAPE = EncoderShape(dimension=384, layers=6, intermediate=1536, parameters=22_700_000)
MEASURED = Measured(
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
ROOM = Room(memory=16 * GB, process=600 * 10**6, disk=None)


def job(**changed: object) -> IndexJob:
    return IndexJob(
        **{"encoder": "an-encoder", "shape": SHAPE, "count": 100_000, "sample": PASSAGES, "basis": "counted", **changed}
    )


def planned(changed: IndexJob, measured: Measured = MEASURED, room: Room = ROOM) -> dict[str, Any]:
    """A plan without any measuring."""
    return answer(changed, measured, layout(changed, measured.passages), {"read": (1.0, "said")}, room)


# -- what the builder does, too --------------------------------------------------------------------------------------


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
def test_bytes_and_segments_are_those_of_the_index(
    factory: str, options: list[str], segments: list[int], corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--corpus", str(corpus), "--factory", factory, "--device", "cpu", *options]
    assert main(["plan", "index", *words, "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert main(["index", "build", *words, "--output_dir", str(corpus.parent / "index"), "--quiet", "--json"]) == 0
    built = json.loads(capsys.readouterr().out)
    assert built["segments"] == segments
    assert plan["index"]["factory"] == built["factory"]
    assert (plan["index"]["segments"], plan["index"]["rows"]) == (len(segments), segments[0])
    assert plan["corpus"]["indexed"] == 9000
    assert plan["disk"]["after"] == pytest.approx(built["bytes_on_disk"], rel=0.05)
    files = PassageIndex.open(corpus.parent / "index").manifest.files
    vectors = sum(record.bytes for name, record in files.items() if name.endswith(".faiss"))
    assert plan["disk"]["vectors"] == pytest.approx(vectors, rel=0.02)


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


def test_a_transformer_is_cut_and_counted_by_its_own_tokenizer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Six words in chunks of at most four tokens, by an encoder of which there are no weights."""
    source = encoder_and_corpus(tmp_path)
    options = ["--corpus", str(source), "--encoder", str(tmp_path), "--chunk_tokens", "4", "--chunk_overlap", "0"]
    assert main(["plan", "index", *options, "--device", "cpu", "--dtype", "mixed", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert (data["corpus"]["passages"], data["corpus"]["indexed"]) == (10, 20)
    assert (data["corpus"]["tokens"], data["corpus"]["tokens_basis"]) == (3, "its own tokenizer")
    assert (data["encoder"]["dimension"], data["encoder"]["layers"]) == (24, 3)
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
def test_a_prompt_takes_its_part_of_every_chunk(
    prompt: str, options: list[str], indexed: int, tokens: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Six words in chunks of at most four tokens, of which the prompt before each passage takes two, one or none."""
    corpus = encoder_and_corpus(tmp_path, prompts={"query": "five ", "passage": prompt})
    words = ["plan", "index", "--corpus", str(corpus), "--encoder", str(tmp_path), "--device", "cpu", *options]
    assert main([*words, "--chunk_tokens", "4", "--chunk_overlap", "0", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert (data["corpus"]["indexed"], data["corpus"]["tokens"]) == (indexed, tokens)


@pytest.mark.parametrize("said", [[], ["--passage_tokens", "6"]])
def test_chunks_that_a_prompt_fills_are_refused_as_by_the_build(
    said: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = encoder_and_corpus(tmp_path, prompts={"document": "one two "})
    words = ["plan", "index", "--corpus", str(corpus), "--encoder", str(tmp_path), "--device", "cpu", *said]
    assert main([*words, "--chunk_tokens", "2", "--chunk_overlap", "0"]) == 2
    assert "must have room for 2 tokens of prompt and special tokens" in capsys.readouterr().err


# -- formulas --------------------------------------------------------------------------------------------------------


def test_bytes_on_the_disk() -> None:
    """Flat: 100,000 x (500 + 1536); while it is built shards and the passages again, or at first two copies of them."""
    flat = disk(job(factory="Flat"), layout(job(factory="Flat"), 100_000), MEASURED)
    assert flat == {
        "passages": 50_000_000,
        "vectors": 153_600_000,
        "bm25": 0,
        "shards": 153_600_000,
        "building": 50_000_000 + 153_600_000 + 203_600_000,
        "after": 203_600_000,
    }
    # A million words of 8 bytes each, and a vocabulary that doubles with four times as many passages.
    counted = Words(seconds=0.0, pairs=10.0, vocabulary=500, growth=0.5, word_bytes=20.0)
    assert words_bytes(replace(MEASURED, words=counted)) == 8 * 1_000_000 + 20 * 500 * 10
    server = disk(job(milvus=True), layout(job(milvus=True), 100_000), MEASURED)
    assert (server["vectors"], server["after"]) == (0, 50_000_000)


def test_seconds_of_an_index() -> None:
    """IVF64 of 16 dimensions: 2 x 64 x 16 operations for a vector; ten rounds over 16,384 of them, and all once."""
    kind = Kind(train_seconds=1e-6, add_seconds=2e-6, coarse_rate=1e6)
    train, add = index_seconds("IVF64,SQ8", 100_000, 100_000, 16, kind)
    assert train == pytest.approx(10 * 16_384 * 2048 / 1e6 + 16_384e-6)
    assert add == pytest.approx(100_000 * (2048 / 1e6 + 2e-6))
    assert index_seconds("Flat", 100_000, 100_000, 16, Kind()) == (0, 0)
    assert index_seconds("HNSW32", 100, 16_384, 16, Kind(add_seconds=0.5)) == (0, 100 * 0.5 * 2)
    assert [graph_growth(n) for n in (1024, 4096, 32_768)] == [0.5, 1.0, 2.5]


def test_more_passages_never_cost_less() -> None:
    before: list[float] = []
    for passages in (1000, 10_000, 100_000, 199_999):
        measured = replace(MEASURED, passages=passages)
        data = planned(job(factory="HNSW32"), measured)
        now = [data["disk"]["after"], data["disk"]["building"], data["memory"]["peak"], data["memory"]["resident"]]
        now += index_seconds("IVF16,PQ48", passages, passages, 384, Kind(train_seconds=1e-6, add_seconds=1e-6))
        assert not before or all(b <= a for a, b in zip(now, before, strict=True))
        assert not before or now[0] > before[0]
        before = now


def test_processes_share_out_shards_and_cores() -> None:
    """100,000 passages are 25 shards: four processes have 7 at most; two cores do no more than two."""
    assert speedup(job(processes=4), 100_000, threads=1, cores=8) == pytest.approx(25 / 7)
    assert speedup(job(processes=4), 100_000, threads=1, cores=2) == 2
    assert speedup(job(processes=4), 4000, threads=1, cores=8) == 1
    assert speedup(job(processes=2), 100_000, threads=8, cores=8) == 1
    one, four = (peaks(j, layout(j, 100_000), MEASURED, 600, free=GB) for j in (job(), job(processes=4)))
    assert four["encode"].held == 4 * one["encode"].held
    assert four["read"].held - one["read"].held == 3 * (600 + 4 * 22_700_000)


# -- the verdict -----------------------------------------------------------------------------------------------------


def test_what_does_not_fit_is_told_and_mended() -> None:
    """600 MB of process, 91 of weights, 210 of tokens; HNSW32 of 100,000 x 384 takes 258 more, Flat 154 once open."""
    small = replace(ROOM, memory=1_100 * 10**6)
    data = planned(job(factory="HNSW32"), room=small)
    assert data["fits"] == {"builder": True, "max_memory": None, "machine": False, "disk": None}
    assert "DOES NOT FIT" in render(data)
    changes = {c["change"]: c for c in data["changes"]}
    assert changes["--factory Flat"]["peak"] < 1_100 * 10**6
    assert all(c["peak"] <= 1_100 * 10**6 for c in data["changes"])
    assert planned(job(factory="HNSW32"))["changes"] == []
    full = planned(job(), room=replace(ROOM, disk=10**6))
    assert full["fits"]["disk"] is False
    assert full["changes"][-1]["change"] == "another --output_dir"


def test_segments_are_a_way_to_fit() -> None:
    room = replace(ROOM, memory=1_200 * 10**6)
    million = replace(MEASURED, passages=1_000_000)
    data = planned(job(factory="HNSW32"), million, room)
    (change,) = (c for c in data["changes"] if c["change"] == "--max_memory 1200MB")
    assert change["segments"] > 4
    assert change["peak"] <= 1_200 * 10**6


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--max_memory", "100MB"], "max_memory must leave room for Python"),
        (["--max_memory", "901MB", "--factory", "HNSW32"], "needs at least"),
        (["--factory", "IVF4096,Flat"], "needs at least 4096 vectors to train on"),
    ],
)
def test_a_refusal_of_the_builder_is_a_verdict(
    options: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["plan", "index", "--passages", "3000", "--passage_tokens", "20", "--device", "cpu", *options]
    assert main(words) == 0
    assert reason in capsys.readouterr().out
    assert main([*words, "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["fits"]["builder"] is False
    assert [p["name"] for p in data["phases"]] == ["read", "encode"]
    assert data["changes"]


# -- the command -----------------------------------------------------------------------------------------------------


def test_json_is_complete(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--passages", "300000", "--passage_tokens", "30", "--bm25", "--output_dir", str(tmp_path / "no/index")]
    assert main(["plan", "index", *words, "--max_memory", "1GB", "--processes", "2", "--device", "cpu", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert set(data) == {
        *("corpus", "encoder", "index", "processes", "phases", "seconds", "memory", "disk", "fits", "changes"),
        "not_modelled",
    }
    assert list(tmp_path.iterdir()) == []
    names = [p["name"] for p in data["phases"]]
    assert names[:2] == ["read", "encode"]
    assert names[-3:] == ["segments", "bm25", "open"]
    assert all(p["basis"] for p in data["phases"][:-1])
    assert data["seconds"] == pytest.approx(sum(p["seconds"] for p in data["phases"]))
    assert data["memory"]["peak"] == max(p["held"] for p in data["phases"])
    assert data["disk"]["free"] > 0
    assert data["index"]["reason"].startswith("300,000 vectors")
    assert main(["plan", "index", *words, "--device", "cpu"]) == 0
    text = capsys.readouterr().out
    assert "Not modelled:" in text
    assert "seconds rest on" in text


def test_invented_passages_have_the_length_asked_for() -> None:
    passages = invented_passages(5, 50)
    assert [p.id for p in passages] == ["0", "1", "2", "3", "4"]
    assert all(190 <= len(p.text) <= 200 for p in passages)
    assert len(invented_passages(5000, 5)) == 1000


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ([], 2, "--corpus FILE, or --passages N"),
        (["--passages", "0"], 2, "--passages must be at least 1, but got 0"),
        (["--passages", "10", "--processes", "0"], 2, "--processes must be at least 1"),
        (["--passages", "10", "--encoder", "/no/encoder"], 5, "config.json must be found"),
        (["--passages", "10", "--factory", "IVF"], 2, "factory"),
        (["--passages", "10", "--max_memory", "lots"], 2, "got 'lots'"),
        (["--passages", "10", "--chunk_tokens", "4", "--chunk_overlap", "4"], 2, "--chunk_overlap 4 came"),
        (["--corpus", "/no/corpus.jsonl"], 3, "/no/corpus.jsonl"),
    ],
)
def test_bad_input(words: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "index", *words]) == code
    assert message in capsys.readouterr().err


def test_rag_plan_is_still_there(capsys: pytest.CaptureFixture[str]) -> None:
    """Its help is not hidden by that of the second word."""
    with pytest.raises(SystemExit) as stopped:
        main(["plan", "--help"])
    assert stopped.value.code == 0
    assert "--train_questions" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["plan", "index", "--help"])
    assert "--processes" in capsys.readouterr().out
    assert main(["--help"]) == 0
    assert "plan index" in capsys.readouterr().out
    assert main(["plan", "indes"]) == 2


def test_parts_of_an_index_are_timed_that_would_be_none_alone() -> None:
    """What scores again gives the vectors back, so the lists before it need not."""
    kind = measure_kind("IVF16,RaBitQfs,Refine(SQ8)", 16)
    assert kind.train_seconds >= 0 and kind.add_seconds > 0


def test_an_untested_kind_is_planned_when_it_is_allowed() -> None:
    with pytest.raises(UsageError, match=r"'IVF16\(SQ6\),Flat' is untested: .*--allow_untested"):
        layout(job(factory="IVF16(SQ6),Flat"), 100_000)
    assert layout(job(factory="IVF16(SQ6),Flat", allow_untested=True), 100_000).factory == "IVF16(SQ6),Flat"
