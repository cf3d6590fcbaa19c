"""The command line: the whole road, and every bad input with its sentence and its exit code."""

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_models import PASSAGES, byte_tokenizer, tiny_model

from indexes.encoder import Encoder
from rag.cli import COMMANDS, main
from rag.experiments.demo_sizes import DemoResult

QUESTIONS = [
    {"id": "q1", "question": "who wrote Hamlet?", "golden_answers": ["Shakespeare"], "gold_ids": ["p0"]},
    {"id": "q2", "question": "what is the capital of Germany?", "golden_answers": ["Berlin"], "gold_ids": ["p4"]},
]
INDEX_VERBS = ["build", "info", "verify", "add", "delete", "update", "sync", "compact", "tune"]
SMALL = ["--selector.num_candidates", "4", "--selector.num_selected", "2", "--decoding.max_new_tokens", "3"]


def write_jsonl(file: Path, rows: Sequence[object]) -> Path:
    text = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    if file.suffix == ".gz":
        file.write_bytes(gzip.compress(text.encode()))
    else:
        file.write_text(text)
    return file


@pytest.fixture(scope="module")
def files(encoder: Encoder, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A corpus, questions, models, and an index built by the command."""
    folder = tmp_path_factory.mktemp("cli")
    corpus = write_jsonl(folder / "corpus.jsonl.gz", [{"id": p.id, "title": p.title, "text": p.text} for p in PASSAGES])
    questions = write_jsonl(folder / "questions.jsonl", QUESTIONS)
    tiny_model().save_pretrained(folder / "base")
    byte_tokenizer().save_pretrained(folder / "base")
    found = {"corpus": str(corpus), "questions": str(questions), "base": str(folder / "base"), "encoder": encoder.name}
    found["index"] = str(folder / "index")
    code = main(
        ["index", "build", "--corpus", found["corpus"], "--encoder", encoder.name, "--output_dir", found["index"]]
    )
    assert code == 0
    return found


def run(words: Sequence[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main(list(words))
    out, err = capsys.readouterr()
    return code, out, err


def result(words: Sequence[str], capsys: pytest.CaptureFixture[str]) -> dict:
    code, out, err = run([*words, "--json"], capsys)
    assert code == 0, err
    return json.loads(out)


def test_index_info_and_verify(files: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert result(["index", "info", files["index"]], capsys)["passages"] == len(PASSAGES)
    words = ["index", "verify", files["index"], "--encoder", files["encoder"], "--corpus", files["corpus"]]
    assert result(words, capsys)["lowest_cosine"] > 0.999


def test_search(files: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    found = result(["search", "--index", files["index"], "--questions", files["questions"], "-k", "5"], capsys)
    assert [r["id"] for r in found["results"]] == ["q1", "q2"]
    assert [len(r["hits"]) for r in found["results"]] == [5, 5]
    scores = [h["score"] for h in found["results"][0]["hits"]]
    assert scores == sorted(scores, reverse=True)
    expected = sum(q["gold_ids"][0] == r["hits"][0]["id"] for q, r in zip(QUESTIONS, found["results"], strict=True)) / 2
    assert found["metrics"]["recall@1"] == expected
    code, out, _ = run(["search", "--index", files["index"], "who wrote Hamlet?", "-k", "2"], capsys)
    assert code == 0
    assert "Hamlet" in out
    # --json takes no word away from the questions
    both = main(["search", "--index", files["index"], "--json", "who wrote Hamlet?", "and Faust?", "-k", "1"])
    data = json.loads(capsys.readouterr().out)
    assert both == 0
    assert [len(r["hits"]) for r in data["results"]] == [1, 1]


@pytest.mark.parametrize("retriever", ["dense", "bm25", "hybrid"])
def test_search_explains(files: dict[str, str], capsys: pytest.CaptureFixture[str], retriever: str) -> None:
    """Only the Hamlet passage holds "wrote" or "Hamlet", so it is the first of the words and has both."""
    words = ["search", "--index", files["index"], "who wrote Hamlet?", "-k", "3", "--retriever", retriever]
    plain = result(words, capsys)["results"][0]["hits"]
    hits = result([*words, "--explain"], capsys)["results"][0]["hits"]
    assert [{"id": h["id"], "score": h["score"]} for h in hits] == plain
    code, out, _ = run([*words, "--explain"], capsys)
    assert code == 0
    if retriever == "dense":
        assert [h["explanation"]["dense_rank"] for h in hits] == [1, 2, 3]
        assert "bm25" not in out
        return
    why = next(h for h in hits if h["id"] == "p0")["explanation"]
    assert why["bm25_rank"] == 1
    assert set(why["terms"]) == {"hamlet", "wrote"}
    assert sum(why["terms"].values()) == pytest.approx(why["bm25_score"])
    assert (why["fused_score"] is None) == (retriever == "bm25")
    terms = " + ".join(f"{word} {added:.4f}" for word, added in why["terms"].items())
    assert f"bm25 #1 ({why['bm25_score']:.4f})" in out
    assert terms in out
    assert "no word shared" in out
    code, out, _ = run([*words[:3], "--questions", files["questions"], *words[4:], "--explain"], capsys)
    assert terms in out
    assert "recall@1: " in out


def test_bundle_keeps_its_retriever(files: dict[str, str], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = ["train", "--index", files["index"], "--base", files["base"], *SMALL, "--retriever", "hybrid"]
    words += [
        "--train_dataset",
        files["questions"],
        "--rounds",
        "1",
        "--e_step.num_permutations",
        "2",
        "--output_dir",
        str(tmp_path / "run"),
    ]
    bundle = result(words, capsys)["bundle"]
    assert json.loads((Path(bundle) / "rag_config.json").read_text())["retriever"]["kind"] == "hybrid"
    assert len(result(["ask", "--bundle", bundle, "who wrote Hamlet?"], capsys)["answers"]) == 1
    code, _, err = run(["ask", "--bundle", bundle, "--retriever", "bm25", "who?"], capsys)
    assert code == 2
    assert "A bundle brings its own ['retriever']" in err
    code, _, err = run(["search", "--index", files["index"], "--retriever", "sparse", "who?"], capsys)
    assert code == 2
    assert "sparse" in err


def test_recall_is_reported_up_to_k(files: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    found = result(["search", "--index", files["index"], "--questions", files["questions"], "-k", "3"], capsys)
    assert {n for n in found["metrics"] if n.startswith("recall")} == {"recall@1", "recall@3"}


def test_verify_a_chunked_index(files: dict[str, str], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    chunks = ["--chunk_tokens", "6", "--chunk_overlap", "2"]
    words = ["--corpus", files["corpus"], "--encoder", files["encoder"]]
    assert run(["index", "build", *words, *chunks, "--output_dir", str(tmp_path / "chunked")], capsys)[0] == 0
    # The index knows how its passages were cut.
    assert result(["index", "verify", str(tmp_path / "chunked"), *words], capsys)["passages"] > len(PASSAGES)
    other = write_jsonl(tmp_path / "other.jsonl", [{"id": "x", "text": "something else"}])
    assert run(["index", "verify", str(tmp_path / "chunked"), "--corpus", str(other)], capsys)[0] == 4


def test_train_evaluate_ask(files: dict[str, str], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """YAML and flags together: the flag wins."""
    config = tmp_path / "train.yaml"
    config.write_text(
        "rounds: 3\ne_step:\n  num_permutations: 2\nm_step:\n  learning_rate: 0.001\nselector:\n  num_candidates: 4\n"
    )
    words = ["train", "--config", str(config), "--index", files["index"], "--base", files["base"], *SMALL]
    words += [
        "--train_dataset",
        files["questions"],
        "--eval_dataset",
        files["questions"],
        "--output_dir",
        str(tmp_path / "run"),
    ]
    trained = result([*words, "--rounds", "1"], capsys)
    assert [row["round"] for row in trained["rounds"]] == [0, 1]
    bundle = trained["bundle"]
    page = (tmp_path / "run/report.html").read_text(encoding="utf-8")
    assert trained["report"] == str(tmp_path / "run/report.html")
    assert f"<dt>Round kept</dt><dd>{trained['best_round']}</dd>" in page
    scored = result(["evaluate", "--bundle", bundle, "--questions", files["questions"]], capsys)
    best = trained["rounds"][trained["best_round"]]
    assert scored["metrics"]["f1"] == best["eval_f1"]
    assert len(scored["records"]) == 2
    answers = result(["ask", "--bundle", bundle, "who wrote Hamlet?", "and Faust?"], capsys)["answers"]
    assert [a["question"] for a in answers] == ["who wrote Hamlet?", "and Faust?"]
    assert len(answers[0]["passages"]) == 2
    code, _, err = run(["ask", "--bundle", bundle, "--selector.num_selected", "1", "who?"], capsys)
    assert code == 2
    assert "A bundle brings its own ['selector']" in err


def test_training_can_leave_out_what_no_candidate_answers(
    files: dict[str, str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    questions = tmp_path / "unanswerable.jsonl"
    questions.write_text('{"id": "x", "question": "who wrote Hamlet?", "golden_answers": ["Nobody Ever"]}\n')
    words = ["train", "--index", files["index"], "--base", files["base"], *SMALL, "--selector.num_candidates", "4"]
    words += ["--train_dataset", str(questions), "--output_dir", str(tmp_path / "run"), "--answerable_only", "true"]
    code, _, err = run(words, capsys)
    assert code != 0
    assert "no candidate of any of 1 holds an answer" in err


@pytest.mark.parametrize(("noun", "verbs"), [("inspect", ["prompts", "permutations", "batch"]), ("index", INDEX_VERBS)])
def test_help_of_a_command_group(noun: str, verbs: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    for flag in ("--help", "-h"):
        code, out, _ = run([noun, flag], capsys)
        assert code == 0
        assert [line.split()[:2] for line in out.splitlines()[2:]] == [[noun, verb] for verb in verbs]


def test_inspect_prints_prompts_permutations_and_batches(
    files: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    pipeline = ["--index", files["index"], "--base", files["base"], *SMALL, "--e_step.num_permutations", "3"]
    words = ["inspect", "permutations", "who wrote Hamlet?", "--answer", "Shakespeare", *pipeline]
    found = result([*words, "--gold_ids", "p0"], capsys)
    assert sum(row["scored"] for row in found["permutations"]) == 3 < len(found["permutations"])
    assert [c["id"] for c in found["candidates"] if c["gold"]] == ["p0"]
    assert result([*words, "--round", "2"], capsys)["candidates"] != found["candidates"]
    assert "answer that is scored: Shakespeare" in run(words, capsys)[1]
    batch = ["inspect", "batch", "--questions", files["questions"], *pipeline]
    sequences = result(batch, capsys)["sequences"]
    assert {sequence["question"] for sequence in sequences} == {QUESTIONS[0]["question"]}
    assert {token["part"] for sequence in sequences for token in sequence["tokens"]} >= {"prompt", "answer"}
    assert "answer + scored" in run([*batch, "--m_step.per_device_train_batch_size", "2"], capsys)[1]
    code, _, err = run([*words, "--ignore_identical_ids", "true"], capsys)
    assert code == 2 and "ignore_identical_ids" in err, "the question of a command line has no id"
    code, _, err = run(["inspect", "everything"], capsys)
    assert code == 2
    assert "`rag inspect` needs one of ['prompts', 'permutations', 'batch']" in err


def test_a_batch_is_inspected_as_training_sees_it(
    files: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A question that is a passage reads itself, or does not where training would not let it."""
    passage = PASSAGES[0]
    asked = {"id": passage.id, "question": passage.contents, "golden_answers": ["Shakespeare"]}
    words = ["--questions", str(write_jsonl(tmp_path / "q.jsonl", [asked])), "--e_step.exact", "true"]
    words = ["inspect", "batch", "--index", files["index"], "--base", files["base"], *SMALL, *words]
    for ignore, found in (("false", True), ("true", False)):
        sequences = result([*words, "--ignore_identical_ids", ignore], capsys)["sequences"]
        assert any(passage.id in sequence["ids"] for sequence in sequences) is found


def test_chat_options(files: dict[str, str], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """From options and from a configuration file, shown by `inspect prompts` and kept by a bundle."""
    pipeline = ["--index", files["index"], "--base", files["base"], *SMALL]
    words = ["inspect", "prompts", "who wrote Hamlet?", *pipeline]
    plain = result(words, capsys)
    assert plain["answer_prompt"].startswith("<|user|>You are an artificial intelligence assistant.")
    assert plain["ranking_prompt"].endswith("Your output: <|end|><|assistant|>[")
    assert (plain["end_of_answer"], plain["stop_tokens"]) == ("<|end|>", ["<eos>", "<|end|>"])
    assert plain["template_system_message"] is None
    settings = ["--chat.system_message", "Be short.", "--chat.prefill", "So: ", "--chat.date", "2025-01-02"]
    given = result([*words, *settings], capsys)
    assert given["answer_prompt"] == f"<|system|>Be short.<|end|>{plain['answer_prompt']}So: "
    assert given["chat"]["date"] == "2025-01-02"
    config = tmp_path / "config.yaml"
    config.write_text('chat:\n  system_message: Be short.\n  prefill: "So: "\n  date: 2025-01-02\n')
    assert result([*words, "--config", str(config)], capsys) == given
    shown = run([*words, *settings], capsys)[1]
    assert "system message of the chat template itself: none" in shown
    assert given["answer_prompt"] in shown
    train = [
        "train",
        *pipeline,
        *settings,
        "--train_dataset",
        files["questions"],
        "--output_dir",
        str(tmp_path / "run"),
    ]
    bundle = result([*train, "--rounds", "1", "--e_step.num_permutations", "2"], capsys)["bundle"]
    assert result(["inspect", "prompts", "who wrote Hamlet?", "--bundle", bundle], capsys)["chat"] == given["chat"]
    code, _, err = run(["ask", "who?", "--bundle", bundle, *settings], capsys)
    assert (code, "A bundle brings its own ['chat']" in err) == (2, True)
    evaluated = result(["evaluate", "--bundle", bundle, "--questions", files["questions"]], capsys)
    assert evaluated["pipeline"]["chat"] == given["chat"]


def test_the_demo_writes_its_json_beside_its_table(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "rag.experiments.demo_sizes.run_demo",
        lambda **settings: DemoResult("the table", {"trials": [settings["rounds"]]}),
    )
    code, out, _ = run(["demo", "--rounds", "3", "--json", str(tmp_path / "demo.json")], capsys)
    assert code == 0
    assert out == "the table\n"
    assert json.loads((tmp_path / "demo.json").read_text()) == {"trials": [3]}
    assert run(["demo", "--json", str(tmp_path / "no/such/folder.json")], capsys)[0] == 2


@pytest.mark.parametrize(
    ("flags", "mode"), [([], "default"), (["--quick"], "quick"), (["--full", "--seed", "7", "--lora_r", "4"], "full")]
)
def test_the_demo_has_three_sizes(
    flags: list[str], mode: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, object] = {}
    monkeypatch.setattr(
        "rag.experiments.demo_sizes.run_demo", lambda **settings: seen.update(settings) or DemoResult("", {})
    )
    assert run(["demo", *flags], capsys)[0] == 0
    assert seen["mode"] == mode
    assert seen["seed"] == (7 if mode == "full" else 42)
    assert ("lora_r" in seen) == (mode == "full")
    assert "recipes" not in seen
    assert run(["demo", *flags, "--recipes", "dro", "dro_selfaug"], capsys)[0] == 0
    assert seen["recipes"] == ("dro", "dro_selfaug")
    assert run(["demo", *flags, "--domain", "encyclopedia", "--selfaug_alpha", "0.5"], capsys)[0] == 0
    assert (seen["domain"], seen["selfaug_alpha"]) == ("encyclopedia", 0.5)


def test_the_demo_is_quick_or_full(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(["demo", "--quick", "--full"], capsys)
    assert code == 2
    assert "either quick or full; got both --quick and --full" in err


def test_doctor_prints_its_findings(capsys: pytest.CaptureFixture[str]) -> None:
    report = result(["doctor", "--no_measure"], capsys)
    assert report["packages"]["torch"]
    assert any("OMP_WAIT_POLICY" in f["text"] for f in report["findings"])
    assert report["thread_policies"] == {}
    assert run(["doctor", "--no_measure"], capsys)[0] == 0


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([*name.split(), "--help"])
    assert stopped.value.code == 0
    assert COMMANDS[name].help in " ".join(capsys.readouterr().out.split())


def bad(files: dict[str, str], tmp_path: Path) -> dict[str, tuple[list[str], int, str]]:
    """Name -> (command, exit code, what the message must contain)."""
    broken = write_jsonl(tmp_path / "broken.jsonl", [{"id": "a", "text": "x"}, '{"id": "b", "text"'])
    twice = write_jsonl(tmp_path / "twice.jsonl", [{"id": "a", "text": "x"}, {"id": "a", "text": "y"}])
    empty = write_jsonl(tmp_path / "empty.jsonl", [])
    no_answers = write_jsonl(tmp_path / "no-answers.jsonl", [{"id": "q", "question": "who?"}])
    blank = write_jsonl(tmp_path / "blank.jsonl", [{"id": "q", "question": " ", "golden_answers": ["a"]}])
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "thesis.txt").write_text("mine")
    truncated = tmp_path / "truncated"
    subprocess.run(["cp", "-r", files["index"], str(truncated)], check=True)
    vectors = truncated / "segments/000000/vectors.faiss"
    vectors.write_bytes(vectors.read_bytes()[:-7])
    config = tmp_path / "typo.yaml"
    config.write_text("learning_rat: 0.1\n")

    def build(corpus: Path, *more: str) -> list[str]:
        words = ["index", "build", "--corpus", str(corpus), "--encoder", files["encoder"]]
        return [*words, "--output_dir", str(tmp_path / "new"), *more]

    pipeline = ["--index", files["index"], "--base", files["base"]]
    train = ["train", *pipeline, *SMALL, "--output_dir", str(tmp_path / "new"), "--train_dataset"]
    long_question = "what " * 2000 + "?"
    return {
        "broken line": (build(broken), 3, "broken.jsonl:2: "),
        "duplicate id": (build(twice), 3, "'a'"),
        "empty corpus": (build(empty), 3, "empty.jsonl"),
        "missing corpus": (build(tmp_path / "nowhere.jsonl"), 3, "nowhere.jsonl"),
        "bad factory": (build(Path(files["corpus"]), "--factory", "Flatt"), 2, "Flatt"),
        "output taken": (
            ["index", "build", "--corpus", files["corpus"], "--encoder", files["encoder"], "--output_dir", str(taken)],
            2,
            "already holds something",
        ),
        "missing encoder": (
            ["index", "build", "--corpus", files["corpus"], "--output_dir", "x", "--encoder", "/no/e"],
            5,
            "/no/e",
        ),
        "not an index": (["index", "info", str(taken)], 4, "manifest.json"),
        "truncated index": (["search", "--index", str(truncated), "who?"], 4, "vectors.faiss"),
        "another encoder": (["search", "--index", files["index"], "--encoder", "tiny", "who?"], 4, "encoder"),
        "no question": (["search", "--index", files["index"]], 2, "exactly one of the two"),
        "empty question": (["search", "--index", files["index"], " "], 3, "empty"),
        "no batch": (["search", "--index", files["index"], "--batch_size", "0", "who?"], 2, "batch_size must be"),
        "train without answers": ([*train, str(no_answers)], 3, "no-answers.jsonl"),
        "empty question in a file": ([*train, str(blank)], 3, "blank.jsonl"),
        "missing base": (["ask", "--index", files["index"], "--base", "/no/base", "who?"], 5, "/no/base"),
        "K > n": (["ask", *pipeline, "--selector.num_candidates", "2", "who?"], 2, "K=5, n=2"),
        "fewer than K": (["ask", *pipeline, "--selector.num_selected", "13", "who?"], 3, "At least K=13 candidates"),
        "question longer than the context": (["ask", *pipeline, *SMALL, long_question], 3, "Shorten the question"),
        "unknown key": (
            [*train, files["questions"], "--config", str(config)],
            2,
            "Did you mean 'm_step.learning_rate'?",
        ),
        "old name of an option": (
            [*train, files["questions"], "--selfaug_alpha", "1"],
            2,
            "It is now called 'selfaug.alpha'.",
        ),
        "unknown flag": ([*train, files["questions"], "--ronds", "3"], 2, "Did you mean 'rounds'?"),
        "bad value": ([*train, files["questions"], "--rounds", "0"], 2, "rounds must be at least 1; got 0"),
        "wrong type": ([*train, files["questions"], "--rounds", "many"], 2, "rounds"),
        "run folder taken": (
            ["train", *pipeline, *SMALL, "--train_dataset", files["questions"], "--output_dir", str(taken)],
            2,
            "holds something else",
        ),
        "unknown variable of the chat template": (
            ["ask", *pipeline, *SMALL, "--chat.chat_template_kwargs", '{"enable_thinking": false}', "who?"],
            2,
            "['enable_thinking'] is nowhere in it",
        ),
        "not a bundle": (["ask", "--bundle", str(taken), "who?"], 4, "rag_config.json"),
        "no index": (["ask", "--base", files["base"], "who?"], 2, "--index"),
        "unknown command": (["trian"], 2, "Did you mean 'train'?"),
        "half a command": (["index"], 2, str(INDEX_VERBS)),
    }


BAD = [
    *(
        "broken line",
        "duplicate id",
        "empty corpus",
        "missing corpus",
        "bad factory",
        "output taken",
        "missing encoder",
    ),
    *(
        "not an index",
        "truncated index",
        "another encoder",
        "no question",
        "empty question",
        "no batch",
        "train without answers",
    ),
    *("empty question in a file", "missing base", "K > n", "fewer than K", "question longer than the context"),
    *(
        "unknown key",
        "old name of an option",
        "unknown flag",
        "bad value",
        "wrong type",
        "run folder taken",
        "not a bundle",
        "no index",
    ),
    *("unknown command", "half a command", "unknown variable of the chat template"),
]


@pytest.mark.parametrize("name", BAD)
def test_invalid_input_gives_the_documented_exit_code(
    name: str, files: dict[str, str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The right exit code, a sentence on stderr, no traceback, and nothing half-written."""
    cases = bad(files, tmp_path)
    assert set(cases) == set(BAD)
    words, expected, message = cases[name]
    before = sorted(str(p) for p in tmp_path.rglob("*"))
    code, out, err = run(words, capsys)
    assert code == expected, err
    assert message in err
    assert "Traceback" not in err
    assert not out
    assert sorted(str(p) for p in tmp_path.rglob("*")) == before


def test_debug_shows_the_traceback(files: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(["index", "info", "/nowhere", "--debug"], capsys)
    assert code == 4
    assert "Traceback" in err


def test_an_interrupt_exits_with_code_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setitem(COMMANDS, "doctor", replace(COMMANDS["doctor"], run=interrupt))
    assert run(["doctor"], capsys)[0] == 130


def test_help_imports_no_heavy_library() -> None:
    """No torch for `rag --help`."""
    script = "import sys; from rag.cli import main; main(['--help']); sys.exit('torch' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    assert subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True).returncode == 0
