"""Forgetting: exact counts, against transformers' own losses, independent of the order of items."""

import gzip
import itertools
import json
import math
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_retention_tasks import write
from tiny_models import (
    ARCHITECTURES,
    PASSAGES,
    added_tokenizer,
    randomize_adapters,
    successor_model,
    tiny_language_model,
)

from generator.chat import Chat
from generator.configs import AdapterConfig, ChatConfig, DecodingConfig
from generator.generator import Generator
from generator.language_model import LanguageModel
from generator.prompts import render_chat
from indexes.errors import DataError, MismatchError, UsageError
from rag.bundle import load_generator
from rag.cli import main
from rag.evaluation.evaluation_file import bundle_digest, write_results
from rag.forgetting.file_tasks import AnsweredPrompts, Drift, MinimalPairs, PlainText
from rag.forgetting.general_tasks import GeneralTask
from rag.forgetting.measurement import (
    ForgettingTable,
    MeasuredBase,
    ModelScores,
    forgetting_table,
    kl_drift,
    load_base,
    measure_forgetting,
    measure_general_tasks,
    measure_model,
    read_forgetting,
)
from rag.forgetting.retention_items import read_pairs, read_texts
from rag.forgetting.retention_task import RetentionOptions, Score
from rag.forgetting.retention_tasks import RetentionTasks
from rag.pipeline import RAG

PROMPTS = ["Repeat: abc", "What is 2 + 2?", "Sort these: 3 1 2, please."]
PAIRS = [
    {"good": "The cats sleep.", "bad": "The cats sleeps.", "task": "agreement"},
    {"good": "She is here.", "bad": "She are here.", "task": "agreement"},
    {"good": "Who did you see?", "bad": "Who did you see him?", "task": "island"},
    {"good": "He hurt himself.", "bad": "He hurt herself.", "task": "binding"},
    {"good": "It rains.", "bad": "It rain.", "task": "agreement"},
]
TEXTS = [passage.text for passage in PASSAGES]


def log_prob(model: LanguageModel, text: str, prefix: int) -> float:
    """transformers' loss with labels, behind the token that stands before a text."""
    ids = torch.tensor([[prefix, *model.tokenizer(text, add_special_tokens=False)["input_ids"]]])
    labels = ids.clone()
    labels[0, 0] = -100
    with torch.no_grad():
        return -float(model.base_model(input_ids=ids, labels=labels).loss) * (ids.shape[1] - 1)


def kl_of(model: LanguageModel, ids: list[int]) -> torch.Tensor:
    """KL(base || generator) at each position, by torch's own loss."""
    log_p = {}
    for role in ("base", "generator"):
        with torch.no_grad(), model.use(role):
            log_p[role] = model.base_model(torch.tensor([ids])).logits[0].log_softmax(-1)
    return torch.nn.functional.kl_div(log_p["generator"], log_p["base"], log_target=True, reduction="none").sum(-1)


# -- general tasks ---------------------------------------------------------------------------------------------


def test_an_untrained_model_has_zero_drift() -> None:
    model = tiny_language_model()
    prompts = [render_chat(model.tokenizer, text) for text in PROMPTS]
    assert kl_drift(Generator(model), prompts) == 0.0


@pytest.mark.parametrize("budget", [16384, 20])
def test_the_drift_is_the_mean_kl_of_the_next_token(language_model: LanguageModel, budget: int) -> None:
    prompts = [render_chat(language_model.tokenizer, text) for text in PROMPTS]
    expected = [float(kl_of(language_model, ids).mean()) for ids in prompts]
    found = kl_drift(Generator(language_model, max_tokens_per_batch=budget), prompts)
    assert found == pytest.approx(sum(expected) / len(expected), rel=1e-4)
    assert found > 0.01


def test_a_general_task_is_right_if_the_answer_is_exactly_equal() -> None:
    model = tiny_language_model()
    randomize_adapters(model)
    generator = Generator(model)
    replies = generator.complete([render_chat(model.tokenizer, text) for text in PROMPTS])
    tasks = [GeneralTask("any", PROMPTS[0], replies[0]), GeneralTask("any", PROMPTS[1], replies[1] + "x")]
    result = measure_general_tasks(generator, tasks)
    assert result.right == [1.0, 0.0]
    assert result.general == 0.5
    assert result.kl_drift > 0


# -- one measure at a time -------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("role", ["base", "generator"])
def test_pairs_are_decided_as_by_transformers(tmp_path: Path, architecture: str, role: str) -> None:
    model = tiny_language_model(architecture)
    randomize_adapters(model)
    file = write(tmp_path / "pairs.jsonl", PAIRS)
    (score,) = MinimalPairs().measure(Generator(model, max_tokens_per_batch=50), role, file, progress=False)
    with model.use(role):
        expected = {
            (pair["good"], pair["bad"]): float(log_prob(model, pair["good"], 1) > log_prob(model, pair["bad"], 1))
            for pair in PAIRS
        }
    found = {
        (item.content.good, item.content.bad): right
        for item, right in zip(read_pairs(file), score.numerators, strict=True)
    }
    assert found == expected


def test_a_tie_counts_as_wrong(generator: Generator, tmp_path: Path) -> None:
    file = write(tmp_path / "ties.jsonl", [{"good": "same here", "bad": "same here"}])
    assert MinimalPairs().measure(generator, "generator", file, progress=False)[0].numerators == (0.0,)


def test_accuracy_by_group(generator: Generator, tmp_path: Path) -> None:
    """One group of three pairs of which two are right, one of one wrong, one of one right: 3/5 over all."""
    with generator.language_model.use("base"):
        ordered = [
            sorted([p["good"], p["bad"]], key=lambda text: -log_prob(generator.language_model, text, 1)) for p in PAIRS
        ]
    right = [True, False, False, True, True]
    rows = [
        {"good": likely if is_right else unlikely, "bad": unlikely if is_right else likely, "task": pair["task"]}
        for (likely, unlikely), is_right, pair in zip(ordered, right, PAIRS, strict=True)
    ]
    scores = measure_model(
        generator, "base", RetentionTasks(pairs=(write(tmp_path / "p.jsonl", rows),)), progress=False
    )
    found = {row["group"]: (row["value"], row["n"]) for row in forgetting_table([scores]).to_dict()["measurements"]}
    assert found == {"all": (0.6, 5), "agreement": (2 / 3, 3), "binding": (1.0, 1), "island": (0.0, 1)}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_perplexity_of_text_that_fits(tmp_path: Path, architecture: str) -> None:
    model = tiny_language_model(architecture)
    randomize_adapters(model)
    file = write(tmp_path / "t.jsonl", [{"text": text} for text in TEXTS])
    scores = {s.metric: s for s in PlainText().measure(Generator(model), "generator", file, progress=False)}
    with model.use("generator"):
        nats = -sum(log_prob(model, text, 1) for text in TEXTS)
    words, sizes = sum(len(text.split()) for text in TEXTS), sum(len(text.encode()) for text in TEXTS)
    assert scores["word_perplexity"].ratio().value == pytest.approx(math.exp(nats / words), rel=1e-3)
    assert scores["byte_perplexity"].ratio().value == pytest.approx(math.exp(nats / sizes), rel=1e-4)
    assert scores["bits_per_byte"].ratio().value == pytest.approx(nats / sizes / math.log(2), rel=1e-5)


@pytest.mark.parametrize("window", [None, 10])
def test_perplexity_of_text_that_is_longer_than_the_context(tmp_path: Path, window: int | None) -> None:
    """Each window by itself under transformers: 16 tokens of context, or 10, the last with context before it."""
    model = tiny_language_model(context=16)
    randomize_adapters(model)
    width = window or 16
    text = TEXTS[0]
    ids = model.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert len(ids) > 3 * width and len(ids) % width
    nats = 0.0
    with model.use("generator"), torch.no_grad():
        for end in [*range(width, len(ids), width), len(ids)]:
            count = width if end % width == 0 else end % width
            seen = ([1, *ids][end - width : end], ids[end - width : end])
            log_p = model.base_model(torch.tensor([seen[0]])).logits[0].log_softmax(-1)
            nats -= float(log_p[torch.arange(width), torch.tensor(seen[1])][-count:].sum())
    file = write(tmp_path / "t.jsonl", [{"text": text}])
    score = PlainText(window=window).measure(Generator(model), "generator", file, progress=False)[0]
    assert score.numerators[0] == pytest.approx(nats, rel=1e-4)


def test_replies_are_the_greedy_ones_of_the_role(tmp_path: Path) -> None:
    model = tiny_language_model()
    randomize_adapters(model)
    generator = Generator(model, config=DecodingConfig(max_new_tokens=99, temperature=0.7))
    said = {}
    for role in ("base", "generator"):
        with model.use(role), torch.no_grad():
            ids = [torch.tensor([render_chat(model.tokenizer, text)]) for text in PROMPTS]
            said[role] = [
                model.tokenizer.decode(
                    model.base_model.generate(
                        i, max_new_tokens=6, do_sample=False, eos_token_id=[1, 4], pad_token_id=1
                    )[0, i.shape[1] :],
                    skip_special_tokens=True,
                )
                for i in ids
            ]
    assert said["base"] != said["generator"]
    rows = [{"prompt": p, "answer": a, "match": "exact"} for p, a in zip(PROMPTS, said["generator"], strict=True)]
    rows = [row for row in rows if row["answer"].strip()]
    file = write(tmp_path / "a.jsonl", [*rows, rows[0] | {"answer": "something else"}])
    (tuned,) = AnsweredPrompts().measure(
        generator, "generator", file, RetentionOptions(max_new_tokens=6), progress=False
    )
    (base,) = AnsweredPrompts().measure(generator, "base", file, RetentionOptions(max_new_tokens=6), progress=False)
    assert sum(tuned.numerators) == len(rows) == len(tuned.items) - 1
    assert sum(base.numerators) < len(rows)
    assert generator.config.temperature == 0.7


def test_drift_of_chat_turns_and_of_text(language_model: LanguageModel, tmp_path: Path) -> None:
    rows = [{"prompt": PROMPTS[0]}, {"question": PROMPTS[1], "answer": "4"}, {"text": TEXTS[0]}]
    kl, variation, agreement = Drift().measure(
        Generator(language_model), "generator", write(tmp_path / "d.jsonl", rows), progress=False
    )
    tokenizer = language_model.tokenizer
    ids = [render_chat(tokenizer, p) for p in PROMPTS[:2]] + [[1, *tokenizer(TEXTS[0])["input_ids"]]]
    assert sorted(kl.numerators) == pytest.approx(sorted(float(kl_of(language_model, i).mean()) for i in ids), rel=1e-4)
    assert kl.metric == "kl_drift" and not kl.higher_is_better
    expected, agreed = [], []
    for row in ids:
        p = {}
        for role in ("base", "generator"):
            with torch.no_grad(), language_model.use(role):
                p[role] = language_model.base_model(torch.tensor([row])).logits[0].softmax(-1)
        expected.append(float((p["base"] - p["generator"]).clamp_min(0).sum(-1).mean()))
        agreed.append(float((p["base"].argmax(-1) == p["generator"].argmax(-1)).float().mean()))
    assert sorted(variation.numerators) == pytest.approx(sorted(expected), rel=1e-4)
    assert sorted(agreement.numerators) == pytest.approx(sorted(agreed))


def test_an_item_that_does_not_fit_is_named_with_file_and_line(tmp_path: Path) -> None:
    generator = Generator(tiny_language_model(context=40))
    long = write(tmp_path / "long.jsonl", [{"prompt": "x" * 30, "answer": "y", "good": "x" * 50, "bad": "y"}])
    with pytest.raises(DataError, match=r"long\.jsonl:1: a prompt must leave 20 of the model's 40 tokens free"):
        AnsweredPrompts().measure(generator, "base", long, RetentionOptions(max_new_tokens=20), progress=False)
    with pytest.raises(DataError, match=r"long\.jsonl:1: a sentence must fit into 40 tokens; 'xx"):
        MinimalPairs().measure(generator, "base", long, progress=False)


# -- the table -------------------------------------------------------------------------------------------------


@pytest.fixture
def tasks(tmp_path: Path) -> RetentionTasks:
    """A little of everything."""
    rows = [{"prompt": p, "answer": str(i), "group": "even" if i % 2 else "odd"} for i, p in enumerate(PROMPTS)]
    return RetentionTasks(
        answers=(write(tmp_path / "answers.jsonl", rows),),
        pairs=(write(tmp_path / "pairs.jsonl.gz", PAIRS),),
        text=(write(tmp_path / "text.jsonl", [{"text": text} for text in TEXTS]),),
        drift=(write(tmp_path / "drift.jsonl", [{"prompt": p} for p in PROMPTS]),),
        max_new_tokens=3,
    )


def test_an_untrained_adapter_is_exactly_the_base(tasks: RetentionTasks) -> None:
    table = measure_forgetting([("untrained", Generator(tiny_language_model()))], tasks, progress=False).to_dict()
    values = {
        model: [m["value"] for m in table["measurements"] if m["model"] == model] for model in ("base", "untrained")
    }
    assert values["base"] == values["untrained"]
    assert len(values["base"]) == 3 + 4 + 3 + 3
    assert {(c["difference"], tuple(c["interval"] or (0.0, 0.0)), c["p"] or 1.0) for c in table["comparisons"]} == {
        (0.0, (0.0, 0.0), 1.0)
    }
    assert {m["value"] for m in table["measurements"] if m["metric"] == "kl_drift"} == {0.0}


def test_several_models_against_one_base(tasks: RetentionTasks) -> None:
    def generator(seed: int) -> Generator:
        model = tiny_language_model()
        randomize_adapters(model, seed=seed)
        return Generator(model)

    table = measure_forgetting([("a", generator(1)), ("b", generator(2))], tasks, progress=False).to_dict()
    assert [model["name"] for model in table["models"]] == ["base", "a", "b"]
    alone = measure_forgetting([("b", generator(2))], tasks, progress=False).to_dict()
    of_b = [m for m in table["measurements"] if m["model"] in ("base", "b")]
    assert of_b == alone["measurements"]
    assert [c for c in table["comparisons"] if c["model"] == "b"] == alone["comparisons"]
    assert {c["metric"] for c in alone["comparisons"]} == {
        "exact_match",
        "accuracy",
        "word_perplexity",
        "byte_perplexity",
        "bits_per_byte",
    }
    (bits,) = [c for c in alone["comparisons"] if c["metric"] == "bits_per_byte"]
    of = {m["model"]: m["value"] for m in of_b if m["metric"] == "bits_per_byte"}
    assert bits["difference"] == pytest.approx(of["b"] - of["base"])
    assert bits["interval"][0] <= bits["difference"] <= bits["interval"][1]
    assert bits["n"] == len(TEXTS) and 0 < bits["p"] <= 1


def test_the_selectors_adapter_can_be_measured(language_model: LanguageModel, tasks: RetentionTasks) -> None:
    generator = Generator(language_model)
    found = [
        measure_forgetting([("x", generator)], tasks, role=role, progress=False).to_dict()
        for role in ("generator", "selector")
    ]
    assert found[0]["measurements"] != found[1]["measurements"]
    assert found[1]["models"][1]["role"] == "selector"


def test_a_shuffled_file_gives_the_same_numbers(generator: Generator, tasks: RetentionTasks) -> None:
    before = measure_forgetting([("x", generator)], tasks, progress=False).to_dict()
    for file in [*tasks.sources["pairs"], *tasks.sources["text"], *tasks.sources["answers"], *tasks.sources["drift"]]:
        path = Path(file)
        lines = (gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()).splitlines()
        random.Random(3).shuffle(lines)
        write(path, [json.loads(line) for line in lines])
    assert measure_forgetting([("x", generator)], tasks, progress=False).to_dict() == before


def test_scores_are_equal_after_writing_and_reading(
    generator: Generator, tasks: RetentionTasks, tmp_path: Path
) -> None:
    table = measure_forgetting([("x", generator)], tasks, scores_folder=tmp_path / "scores", progress=False).to_dict()
    loaded = [ModelScores.load(tmp_path / "scores" / f"{name}.json") for name in ("base", "x")]
    write_results(table, tmp_path / "a.json")
    write_results(forgetting_table(loaded).to_dict(), tmp_path / "b.json")
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    with pytest.raises(DataError, match=r"a\.json: the key 'name' is missing"):
        ModelScores.load(tmp_path / "a.json")
    assert read_forgetting(tmp_path / "a.json") == forgetting_table(loaded)
    (tmp_path / "a.json").write_text(json.dumps(table | {"measurements": [{"model": "x"}]}))
    with pytest.raises(DataError, match=r"a\.json: the key 'measurements\[0\]\.task' is missing"):
        read_forgetting(tmp_path / "a.json")
    with pytest.raises(DataError, match=r"the key 'kind' must be 'forgetting', got None"):
        ForgettingTable.from_dict(loaded[0].to_dict())


def some_scores(name: str, role: str, sha256: str = "0" * 64, **changes: Any) -> ModelScores:
    score = Score(
        task="t",
        metric="accuracy",
        higher_is_better=True,
        items=("i", "j", "k"),
        groups=(("g",), ("g",), ()),
        numerators=(1.0, 0.0, 1.0),
        denominators=(1.0, 1.0, 1.0),
    )
    base = MeasuredBase(
        name="x", revision=None, sha256=sha256, dtype="float32", quantization=None, chat={}, context_length=100
    )
    return ModelScores(name=name, role=role, base=base, bundle_sha256=None, scores=(replace(score, **changes),))


def test_scores_of_different_items_or_bases_are_not_compared() -> None:
    base = some_scores("base", "base")
    with pytest.raises(MismatchError, match="compared over one base model; a is over 'x'"):
        forgetting_table([base, some_scores("a", "generator", "1" * 64)]).to_dict()
    with pytest.raises(MismatchError, match="a and base must be measured on the same items; those of t differ"):
        forgetting_table([base, some_scores("a", "generator", items=("i", "j", "l"))]).to_dict()
    with pytest.raises(UsageError, match="needs the base model exactly once, got it 0 times"):
        forgetting_table([some_scores("a", "generator")]).to_dict()
    with pytest.raises(UsageError, match="different names"):
        forgetting_table([base, some_scores("base", "generator")]).to_dict()
    with pytest.raises(UsageError, match="or of a base model; give one of them, got neither"):
        measure_forgetting([], RetentionTasks(text=("t.txt",))).to_dict()


def test_reported_values_are_compared_by_their_standard_errors() -> None:
    """0.5 and 0.2 with errors 0.03 and 0.04 differ by 0.3 with an error of 0.05: six of them."""
    known: dict[str, Any] = {"numerators": (), "denominators": ()}
    base = some_scores("base", "base", reported=0.5, stderr=0.03, **known)
    tuned = some_scores("a", "generator", reported=0.2, stderr=0.04, **known)
    table = forgetting_table([base, tuned]).to_dict()
    (found,) = [m for m in table["measurements"] if (m["model"], m["group"]) == ("a", "all")]
    assert found["value"] == 0.2 and found["interval"] == pytest.approx(
        [0.2 - 1.96 * 0.04, 0.2 + 1.96 * 0.04], abs=1e-4
    )
    (compared,) = [c for c in table["comparisons"] if c["group"] == "all"]
    assert compared["difference"] == pytest.approx(-0.3)
    assert compared["interval"] == pytest.approx([-0.3 - 1.96 * 0.05, -0.3 + 1.96 * 0.05], abs=1e-4)
    assert compared["p"] == pytest.approx(1.97e-9, rel=0.01)
    unsure = forgetting_table([base, some_scores("a", "generator", reported=0.2, **known)]).to_dict()
    assert {c["p"] for c in unsure["comparisons"]} == {None}


def test_p_values_of_groups_are_adjusted_and_that_of_the_whole_is_not() -> None:
    base = some_scores("base", "base")
    tuned = some_scores("a", "generator", numerators=(0.0, 0.0, 1.0), groups=base.scores[0].groups)
    found = {c["group"]: c for c in forgetting_table([base, tuned]).to_dict()["comparisons"]}
    assert found["all"]["p_adjusted"] == found["all"]["p"]
    assert found["g"]["p_adjusted"] == found["g"]["p"]  # a single group
    assert found["g"]["n"] == 2 and found["all"]["n"] == 3


def test_infinite_values_are_null_in_json(tmp_path: Path) -> None:
    """A perplexity that no float holds, and a score that a foreign task could not compute."""
    known: dict[str, Any] = {"metric": "word_perplexity", "is_exponential": True}
    base = some_scores("base", "base", numerators=(2000.0, 2100.0, 1900.0), **known)
    tuned = some_scores("a", "generator", numerators=(2010.0, 2120.0, 1930.0), **known)
    table = forgetting_table([base, tuned]).to_dict()
    write_results(table, tmp_path / "table.json")
    assert {(m["value"], m["interval"]) for m in table["measurements"]} == {(None, None)}
    (whole,) = [c for c in table["comparisons"] if c["group"] == "all"]
    assert (whole["difference"], whole["interval"]) == (None, None) and whole["p"] >= 0.25
    none: dict[str, Any] = {"numerators": (), "denominators": (), "reported": None, "stderr": None}
    table = forgetting_table([some_scores("base", "base", **none), some_scores("a", "generator", **none)]).to_dict()
    assert {m["value"] for m in table["measurements"]} == {None}
    assert {c["difference"] for c in table["comparisons"]} == {None}


# -- bundles and the command -----------------------------------------------------------------------------------


@pytest.fixture
def bundles(make_rag: Callable[..., RAG], tmp_path: Path) -> list[Path]:
    """Two bundles over one base whose index is gone."""
    found = []
    for name, seed in (("first", 1), ("second", 2)):
        rag = make_rag()
        randomize_adapters(rag.generator.language_model, seed=seed)
        found.append(rag.save_pretrained(tmp_path / name / "bundle"))
        file = found[-1] / "rag_config.json"
        config = json.loads(file.read_text())
        config["index"]["path"], config["encoder"]["name"] = "gone", "gone"
        file.write_text(json.dumps(config))
    return found


def test_a_generator_without_an_index(bundles: list[Path], make_rag: Callable[..., RAG]) -> None:
    rag = make_rag()
    randomize_adapters(rag.generator.language_model, seed=1)
    loaded = load_generator(bundles[0], device="cpu")
    assert loaded.generate(["who?"], [PASSAGES[:2]]) == rag.generator.generate(["who?"], [PASSAGES[:2]])
    assert loaded.config == rag.generator.config
    with pytest.raises(MismatchError, match="A bundle must be a folder"):
        load_generator(bundles[0].parent)


def test_the_command_writes_the_table_and_scores(
    bundles: list[Path], tasks: RetentionTasks, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["forgetting", "--bundle", *map(str, bundles), "--device", "cpu", "--max_new_tokens", "3"]
    words += [
        "--pairs",
        str(tasks.sources["pairs"][0]),
        "--text",
        str(tasks.sources["text"][0]),
        "--answers",
        str(tasks.sources["answers"][0]),
    ]
    words += ["--drift", str(tasks.sources["drift"][0])]
    for name in ("one.json", "two.json"):
        assert main([*words, "--output", str(tmp_path / name)]) == 0
    assert (tmp_path / "one.json").read_bytes() == (tmp_path / "two.json").read_bytes()
    shown = capsys.readouterr().out
    assert "first" in shown and "second - base" in shown and "word_perplexity" in shown
    data = json.loads((tmp_path / "one.json").read_text())
    assert (data["kind"], data["format_version"]) == ("forgetting", 1)
    assert [m.get("bundle_sha256") for m in data["models"]] == [None, *(bundle_digest(b) for b in bundles)]
    assert data["base"]["sha256"] and "/" not in data["base"]["name"]
    keys = {"model", "task", "group", "metric", "value", "interval", "n", "higher_is_better"}
    assert {frozenset(row) for row in data["measurements"]} == {frozenset(keys)}
    in_memory = measure_forgetting(
        [(n, load_generator(b, device="cpu")) for n, b in zip(("first", "second"), bundles, strict=True)],
        tasks,
        progress=False,
    ).to_dict()
    assert data["measurements"] == in_memory["measurements"]


def test_wrong_options_of_the_command_are_refused(
    bundles: list[Path], tasks: RetentionTasks, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = ["--pairs", str(tasks.sources["pairs"][0])]
    for words, code, message in [
        ([], 2, "give one of both"),
        (["--bundle", str(bundles[0]), "--base", "tiny", *pairs], 2, "give one of both"),
        (["--bundle", str(bundles[0])], 2, "give sources of at least one of"),
        (["--bundle", str(bundles[0]), str(bundles[0]), *pairs], 2, "got ['first'] twice"),
        (
            ["--bundle", str(bundles[0]), "--name", "a", "b", *pairs],
            2,
            "--name needs one name for each of 1 bundles, got 2",
        ),
        (["--bundle", "not-opened", "--name", "base", *pairs], 2, "only the base model is named 'base'"),
        (["--bundle", "not-opened", "--name", "a/b", "--scores", "s", *pairs], 2, "without folders, got 'a/b'"),
        (
            ["--base", "tiny", *pairs, "--output", str(Path(tasks.sources["pairs"][0]).parent)],
            2,
            "must be a file in a folder",
        ),
        (["--base", "tiny", "--pairs", "nowhere.jsonl"], 3, "does not exist"),
    ]:
        assert main(["forgetting", *words]) == code
        assert message in capsys.readouterr().err


def test_bundles_over_different_bases(bundles: list[Path], tasks: RetentionTasks) -> None:
    with pytest.raises(MismatchError, match="compared over one base model; other is over"):
        other = Generator(tiny_language_model(seed=7))
        measure_forgetting([("first", bundles[0]), ("other", other)], tasks, progress=False, device="cpu").to_dict()


def test_models_are_compared_on_the_same_prompts(
    make_rag: Callable[..., RAG], tasks: RetentionTasks, tmp_path: Path
) -> None:
    generators = [make_rag().generator for _ in range(2)]
    model = generators[1].language_model
    model.chat = Chat(model.tokenizer, ChatConfig(system_message="Be short."))
    with pytest.raises(MismatchError, match=r"second has other settings of the chat template.*\['system_message'\]"):
        measure_forgetting(list(zip(("first", "second"), generators, strict=True)), tasks, progress=False)


def test_models_are_compared_over_one_length_of_context(make_rag: Callable[..., RAG], tasks: RetentionTasks) -> None:
    generators = [make_rag().generator for _ in range(2)]
    generators[1].language_model.context_length = 200
    with pytest.raises(MismatchError, match=r"second has a context of 200 tokens, the others of \d+\. Measure"):
        measure_forgetting(list(zip(("first", "second"), generators, strict=True)), tasks, progress=False).to_dict()
    scores = [measure_model(generators[0], role, tasks, progress=False) for role in ("base", "generator")]
    assert scores[0].base.context_length == generators[0].language_model.context_length
    mixed = replace(scores[1], base=replace(scores[1].base, dtype="mixed"))
    with pytest.raises(MismatchError, match="compared over one base model"):
        forgetting_table([scores[0], mixed]).to_dict()


def test_context_and_revision_apply_to_a_base_without_a_bundle(
    base: Path,
    bundles: list[Path],
    tasks: RetentionTasks,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["forgetting", "--pairs", str(tasks.sources["pairs"][0]), "--device", "cpu", "--json"]
    assert main([*words, "--base", str(base), "--context_length", "100", "--revision", "v1"]) == 0
    found = json.loads(capsys.readouterr().out)["base"]
    assert (found["context_length"], found["revision"]) == (100, "v1")
    assert main([*words, "--bundle", str(bundles[0]), "--context_length", "100"]) == 2
    assert "A bundle brings its own ['context_length']" in capsys.readouterr().err


def test_chat_settings_apply_to_a_base_without_a_bundle(
    base: Path, bundles: list[Path], tasks: RetentionTasks, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["forgetting", "--answers", str(tasks.sources["answers"][0]), "--device", "cpu", "--json"]
    assert main([*words, "--base", str(base), "--chat.system_message", "Be short."]) == 0
    assert json.loads(capsys.readouterr().out)["base"]["chat"]["system_message"] == "Be short."
    assert main([*words, "--bundle", str(bundles[0]), "--chat.system_message", "Be short."]) == 2
    assert "A bundle brings its own ['chat']" in capsys.readouterr().err


def test_thoughts_are_removed_from_replies(tmp_path: Path) -> None:
    template = "{{ messages[-1].content }}{% if add_generation_prompt %}<|assistant|>{% endif %}"
    tokenizer = added_tokenizer(["<|assistant|>"], plain=["<think>", "</think>"], template=template)
    successors = {"<|assistant|>": "<think>", "<think>": "h", "h": "</think>", "</think>": "R", "R": "<eos>"}
    generator = Generator(LanguageModel(successor_model(tokenizer, successors), tokenizer, adapter=AdapterConfig(r=2)))
    (tmp_path / "answers.jsonl").write_text('{"prompt": "say R", "answer": "R"}\n')
    (score,) = AnsweredPrompts().measure(generator, "base", tmp_path / "answers.jsonl", progress=False)
    assert score.numerators == (1.0,)


# -- real tasks -----------------------------------------------------------------------------------------------


def test_the_tiny_base_on_real_retention_files(data_dir: Path, tmp_path: Path) -> None:
    """A subset, against transformers on one row of each; numbers of the whole files are in docs/forgetting.md."""
    generator = load_base("tiny", device="cpu")
    model = generator.language_model
    files = {}
    for name, count in {"blimp": 30, "wikitext2_test": 6, "ifeval": 4, "gsm8k_test": 2}.items():
        with gzip.open(data_dir / "probes" / f"{name}.jsonl.gz", "rt", encoding="utf-8") as lines:
            files[name] = write(
                tmp_path / f"{name}.jsonl", [json.loads(line) for line in itertools.islice(lines, count)]
            )
    (pairs,) = MinimalPairs().measure(generator, "base", files["blimp"], progress=False)
    for item, right in zip(read_pairs(files["blimp"]), pairs.numerators, strict=True):
        good, bad = (
            log_prob(model, text, model.tokenizer.eos_token_id) for text in (item.content.good, item.content.bad)
        )
        assert right == float(good > bad)
    text = PlainText().measure(generator, "base", files["wikitext2_test"], progress=False)[0]
    for item, nats in zip(read_texts(files["wikitext2_test"]), text.numerators, strict=True):
        assert nats == pytest.approx(-log_prob(model, item.content, model.tokenizer.eos_token_id), rel=1e-4)
    assert len(Drift().measure(generator, "generator", files["ifeval"], progress=False)[0].items) == 4
    (solved,) = AnsweredPrompts().measure(
        generator, "base", files["gsm8k_test"], RetentionOptions(max_new_tokens=8), progress=False
    )
    assert set(solved.numerators) <= {0.0, 1.0}
