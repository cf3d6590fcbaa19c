"""lm-evaluation-harness runs offline on local task files, and finds what transformers finds by itself."""

import json
import math
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_forgetting import log_prob
from test_retention_tasks import write
from tiny_models import PASSAGES, added_tokenizer, randomize_adapters, successor_model, tiny_language_model

from generator.configs import AdapterConfig, ChatConfig, DecodingConfig
from generator.generator import Generator
from generator.language_model import LanguageModel
from indexes.errors import DataError, MismatchError, ResourceError, UsageError
from rag.cli import main
from rag.forgetting.file_tasks import PlainText
from rag.forgetting.measurement import forgetting_table, measure_forgetting, measure_model
from rag.forgetting.retention_tasks import RETENTION_TASKS, RetentionTasks

pytest.importorskip("lm_eval", reason="needs the harness extra")

CHOICES = [
    {"question": f"What is {i} and {7 * i}?", "choices": [f"no{i}", f"it{8 * i % 10}", f"as{5 - i}"], "label": i % 3}
    for i in range(9)
]
TEXTS = [passage.text for passage in PASSAGES[:5]]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """datasets copies what it reads; not into somebody's home."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def tuned() -> Generator:
    model = tiny_language_model()
    randomize_adapters(model)
    return Generator(model, config=DecodingConfig(max_new_tokens=5))


def task(folder: Path, name: str, rows: list[Any], **settings: Any) -> None:
    """A task file that reads local JSONL; JSON is YAML."""
    folder.mkdir(exist_ok=True)
    config = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(write(folder / f"{name}.jsonl", rows))}},
        "test_split": "test",
        **settings,
    }
    (folder / f"{name}.yaml").write_text(json.dumps(config))


def choice_task(folder: Path, rows: list[Any] = CHOICES, name: str = "toy_choice") -> None:
    task(
        folder,
        name,
        rows,
        output_type="multiple_choice",
        doc_to_text="Q: {{question}}\nA:",
        doc_to_choice="{{choices}}",
        doc_to_target="{{label}}",
        metric_list=[{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    )


def of(table: dict[str, Any], model: str, metric: str) -> float:
    (found,) = [
        m["value"] for m in table["measurements"] if (m["model"], m["metric"], m["group"]) == (model, metric, "all")
    ]
    return float(found)


def reply_log_prob(model: LanguageModel, context: str, reply: str) -> float:
    ids = {name: model.tokenizer(text)["input_ids"] for name, text in (("context", context), ("reply", reply))}
    row = torch.tensor([ids["context"] + ids["reply"]])
    labels = torch.tensor([[-100] * len(ids["context"]) + ids["reply"]])
    with torch.no_grad():
        return -float(model.base_model(input_ids=row, labels=labels).loss) * len(ids["reply"])


def test_multiple_choice(tuned: Generator, tmp_path: Path) -> None:
    choice_task(tmp_path / "tasks")
    tasks = RetentionTasks(harness=("toy_choice",), harness_path=tmp_path / "tasks")
    table = measure_forgetting([("tuned", tuned)], tasks, progress=False).to_dict()
    right: dict[str, list[float]] = {}
    for role, name in (("base", "base"), ("generator", "tuned")):
        with tuned.language_model.use(role):
            for row in CHOICES:
                context = f"Q: {row['question']}\nA:"
                scores = [reply_log_prob(tuned.language_model, context, f" {choice}") for choice in row["choices"]]
                right.setdefault(name, []).append(float(scores.index(max(scores)) == row["label"]))
        assert of(table, name, "acc") == pytest.approx(sum(right[name]) / 9)
    assert right["base"] != right["tuned"]
    (compared,) = table["comparisons"]
    differences = np.subtract(right["tuned"], right["base"])
    assert compared["difference"] == pytest.approx(differences.mean())
    assert compared["n"] == 9 and compared["interval"] is not None


def test_generation_ends_at_the_stop_text(tuned: Generator, tmp_path: Path) -> None:
    """Answers are what transformers decodes, cut where the task says; two of five are then made wrong."""
    model = tuned.language_model
    prompts = [f"Say {word}: " for word in ("one", "two", "three", "four", "five")]
    with model.use("generator"), torch.no_grad():
        said = []
        for prompt in prompts:
            ids = torch.tensor([model.tokenizer(prompt)["input_ids"]])
            out = model.base_model.generate(ids, max_new_tokens=8, do_sample=False, eos_token_id=[1, 4], pad_token_id=1)
            said.append(model.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True))
    stop = said[0][3]
    cut = [text.split(stop)[0] for text in said]
    assert cut[0] != said[0]
    rows = [
        {"prompt": p, "answer": a if i % 2 == 0 else a + "!"} for i, (p, a) in enumerate(zip(prompts, cut, strict=True))
    ]
    task(
        tmp_path / "tasks",
        "toy_reply",
        rows,
        output_type="generate_until",
        doc_to_text="{{prompt}}",
        doc_to_target="{{answer}}",
        generation_kwargs={"until": [stop], "max_gen_toks": 8, "do_sample": False},
        metric_list=[{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    )
    tasks = RetentionTasks(harness=("toy_reply",), harness_path=tmp_path / "tasks")
    table = measure_forgetting([("tuned", tuned)], tasks, progress=False).to_dict()
    assert of(table, "tuned", "exact_match") == pytest.approx(3 / 5)
    assert of(table, "base", "exact_match") < 3 / 5


def test_harness_perplexity_equals_the_text_task(tuned: Generator, tmp_path: Path) -> None:
    """Also by transformers' loss; texts are longer than a context of 24 only in our own tests of windows."""
    names = {"word_perplexity": False, "byte_perplexity": False, "bits_per_byte": False}
    aggregations = {"word_perplexity": "weighted_perplexity", "byte_perplexity": "weighted_perplexity"}
    task(
        tmp_path / "tasks",
        "toy_text",
        [{"text": text} for text in TEXTS],
        output_type="loglikelihood_rolling",
        doc_to_text="",
        doc_to_target="{{text}}",
        metric_list=[
            {"metric": name, "aggregation": aggregations.get(name, name), "higher_is_better": better}
            for name, better in names.items()
        ],
    )
    tasks = RetentionTasks(
        harness=("toy_text",),
        harness_path=tmp_path / "tasks",
        text=(write(tmp_path / "own.jsonl", [{"text": text} for text in TEXTS]),),
    )
    table = measure_forgetting([("tuned", tuned)], tasks, progress=False).to_dict()
    with tuned.language_model.use("generator"):
        nats = -sum(log_prob(tuned.language_model, text, 1) for text in TEXTS)
    (bits,) = [
        m
        for m in table["measurements"]
        if (m["model"], m["task"], m["metric"]) == ("tuned", "toy_text", "bits_per_byte")
    ]
    assert bits["value"] == pytest.approx(nats / sum(len(text.encode()) for text in TEXTS) / math.log(2), rel=1e-5)
    assert not bits["higher_is_better"]
    by_task: dict[tuple[str, str], dict[str, Any]] = {}
    for found in table["measurements"] + table["comparisons"]:
        values = (found.get("value", found.get("difference")), found["interval"], found["n"])
        by_task.setdefault((found["model"], found["metric"] + ("" if "value" in found else " -")), {})[
            found["task"]
        ] = values
    for (model, metric), values in by_task.items():
        (theirs, _, n), (ours, _, same) = values["toy_text"], values["own"]
        assert (theirs, n) == (pytest.approx(ours, rel=1e-5, abs=1e-9), same), (model, metric)


def test_a_group_of_tasks_keeps_its_documents(tuned: Generator, tmp_path: Path) -> None:
    """Weighted by size, the value of a group is the mean over all documents of its tasks: they are its groups."""
    choice_task(tmp_path / "tasks", CHOICES[:6], "toy_a")
    choice_task(tmp_path / "tasks", CHOICES[6:], "toy_b")
    group = {
        "group": "toy_all",
        "task": ["toy_a", "toy_b"],
        "aggregate_metric_list": [{"metric": "acc", "aggregation": "mean", "weight_by_size": True}],
    }
    (tmp_path / "tasks" / "toy_all.yaml").write_text(json.dumps(group))
    scores = measure_model(
        tuned, "base", RetentionTasks(harness=("toy_all",), harness_path=tmp_path / "tasks"), progress=False
    )
    found = {(m["task"], m["group"]): m for m in forgetting_table([scores]).to_dict()["measurements"]}
    assert set(found) == {
        ("toy_a", "all"),
        ("toy_b", "all"),
        ("toy_all", "all"),
        ("toy_all", "toy_a"),
        ("toy_all", "toy_b"),
    }
    for part in ("toy_a", "toy_b"):
        assert found["toy_all", part]["value"] == found[part, "all"]["value"]
    expected = (6 * found["toy_a", "all"]["value"] + 3 * found["toy_b", "all"]["value"]) / 9
    assert found["toy_all", "all"]["value"] == pytest.approx(expected)
    assert found["toy_all", "all"]["n"] == 9


def test_metrics_that_are_no_means_use_the_standard_error_of_the_harness(
    tuned: Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Matthews' correlation is of all documents at once: it comes with an error from resampling, and without pairs."""
    monkeypatch.setattr("rag.forgetting.lm_eval_adapter._RESAMPLES", 50)
    choice_task(tmp_path / "tasks")
    file = tmp_path / "tasks" / "toy_choice.yaml"
    config = json.loads(file.read_text())
    config["metric_list"] = [{"metric": "mcc", "aggregation": "matthews_corrcoef", "higher_is_better": True}]
    file.write_text(json.dumps(config))
    scores = measure_model(
        tuned, "base", RetentionTasks(harness=("toy_choice",), harness_path=tmp_path / "tasks"), progress=False
    )
    (score,) = scores.scores
    assert score.metric == "mcc" and score.numerators == () and len(score.items) == 9
    (found,) = forgetting_table([scores]).to_dict()["measurements"]
    assert score.stderr is not None and score.stderr > 0
    assert found["interval"][1] - found["interval"][0] == pytest.approx(2 * 1.96 * score.stderr, rel=1e-3)


def test_random_state_and_output_of_the_caller_are_unchanged(
    tuned: Generator, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    choice_task(tmp_path / "tasks")
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    measure_model(
        tuned, "base", RetentionTasks(harness=("toy_choice",), harness_path=tmp_path / "tasks"), progress=False
    )
    assert states == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
    assert capsys.readouterr().out == ""


def test_the_command_takes_a_limit_and_a_chat_template(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    choice_task(tmp_path / "tasks")
    words = ["forgetting", "--base", str(base), "--device", "cpu", "--json", "--harness", "toy_choice"]
    words += ["--harness_path", str(tmp_path / "tasks")]
    found = []
    for more in (["--harness_limit", "4"], ["--harness_limit", "4"], ["--harness_chat"]):
        assert main([*words, *more]) == 0
        found.append(capsys.readouterr().out)
    assert found[0] == found[1]
    assert [json.loads(out)["measurements"][0]["n"] for out in found] == [4, 4, 9]


def test_unsupported_tasks_are_refused(tuned: Generator, tmp_path: Path) -> None:
    choice_task(tmp_path / "tasks")
    with pytest.raises(DataError, match="harness_path must be a folder"):
        measure_model(tuned, "base", RetentionTasks(harness=("x",), harness_path=tmp_path / "nowhere"), progress=False)
    (tmp_path / "tasks" / "toy_choice.jsonl").unlink()
    with pytest.raises(DataError, match="or where the task file says"):
        measure_model(
            tuned, "base", RetentionTasks(harness=("toy_choice",), harness_path=tmp_path / "tasks"), progress=False
        )


def test_a_reply_longer_than_the_context_is_refused(tmp_path: Path) -> None:
    choice_task(tmp_path / "tasks", [CHOICES[0] | {"choices": ["x" * 60, "y", "z"]}])
    short = Generator(tiny_language_model(context=32))
    with pytest.raises(MismatchError, match="1 to 32 tokens; one has 61"):
        measure_model(
            short, "base", RetentionTasks(harness=("toy_choice",), harness_path=tmp_path / "tasks"), progress=False
        )


def test_an_unknown_task_is_refused(tuned: Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    choice_task(tmp_path / "tasks")
    # Its own thousands of tasks take seconds to list.
    from lm_eval.tasks import TaskManager

    build = TaskManager.__init__
    monkeypatch.setattr(
        TaskManager,
        "__init__",
        lambda self, include_path=None, include_defaults=True: build(self, None, include_path, False),
    )
    with pytest.raises(UsageError, match=r"does not know \['toy_chioce'\]"):
        measure_model(
            tuned, "base", RetentionTasks(harness=("toy_chioce",), harness_path=tmp_path / "tasks"), progress=False
        )


def test_a_missing_extra_is_named(tuned: Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval.api.model", None)
    monkeypatch.delitem(sys.modules, "rag.forgetting.lm_eval_adapter", raising=False)
    monkeypatch.delitem(RETENTION_TASKS._registered, "harness", raising=False)  # as in a new process
    with pytest.raises(ResourceError, match=r'pip install "dro-rag\[harness\]"'):
        measure_model(tuned, "base", RetentionTasks(harness=("x",)), progress=False)
    own = write(tmp_path / "t.jsonl", [{"text": "fine"}])
    assert PlainText().measure(tuned, "base", own, progress=False)


def test_conversations_are_written_with_the_settings_of_the_chat_template() -> None:
    """And replies are read without their thoughts, behind which the stop texts are looked for."""
    from lm_eval.api.instance import Instance

    from rag.forgetting.lm_eval_adapter import HarnessModel

    template = (
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% if not quick %}<think>{% endif %}{% endif %}"
    )
    tokenizer = added_tokenizer(["<|assistant|>"], plain=["<think>", "</think>"], template=template)
    successors = {"<think>": "h", "h": "</think>", "</think>": "R", "R": "o", "o": "<eos>", "<|assistant|>": "x"}

    def replies(until: str = "z", **settings: Any) -> list[str]:
        chat = ChatConfig(system_message="Be short.", **settings)
        base = successor_model(tokenizer, successors)
        language_model = LanguageModel(base, tokenizer, adapter=AdapterConfig(r=2), chat=chat)
        model = HarnessModel(Generator(language_model), "base", progress=False)
        text = model.apply_chat_template([{"role": "user", "content": "Where?"}])
        assert text.startswith("<|system|>Be short.<|user|>Where?<|assistant|>")
        own = model.apply_chat_template([{"role": "system", "content": "A"}, {"role": "user", "content": "B"}])
        assert own.startswith("<|system|>A<|user|>B")
        open_turn = [{"role": "user", "content": "B"}, {"role": "assistant", "content": "C"}]
        assert model.apply_chat_template(open_turn, add_generation_prompt=False).endswith("<|user|>B<|assistant|>C")
        instance = Instance("generate_until", {}, (text, {"max_gen_toks": 5, "until": [until]}), 0)
        return model.generate_until([instance])

    assert replies() == ["Ro"]
    assert replies(until="h") == ["Ro"], "a stop text in a thought ends nothing"
    assert replies(until="o") == ["R"]
    assert replies(chat_template_kwargs={"quick": True})[0].startswith("x")
