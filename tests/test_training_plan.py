"""`rag plan`: predictions follow from shapes, and no weights are read."""

import inspect
import json
import mmap
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from sentence_transformers import SentenceTransformer
from tiny_models import dro_config, tiny_model

from generator.prompts import AnswerPrompt
from indexes.directory.passage_index import PassageIndex
from indexes.errors import DataError, ResourceError, UsageError
from indexes.host_memory import format_seconds, host_memory, resident_bytes
from rag.cli import main
from rag.evaluation.evaluation import evaluate
from rag.planning.cost_plan import Plan
from rag.planning.flops import ModelShape, QuestionShape, e_sample_flops, e_score_flops, m_generator_flops
from rag.planning.machine import Machine, product_rate
from rag.planning.model_sizes import EncoderShape, base_shape, encoder_shape, planned_dtype
from rag.planning.plan_text import plan_text
from rag.planning.text_sizes import (
    IndexSizes,
    QuestionSizes,
    TextSizes,
    count_passages,
    index_sizes,
    question_sizes,
)
from rag.planning.training_job import EVALUATION_BATCH, SINGLE_PASSAGES, TrainingJob, mean_question
from rag.planning.training_plan import (
    GPU_EFFICIENCY,
    always_used,
    auto_index_bytes,
    peaks,
    plan_training,
    possible_changes,
    product_share,
)
from rag.planning.training_steps import CALLS_PER_LAYER, training_steps
from retriever.selector_config import SelectorConfig
from training.config import DROConfig

SHAPE = ModelShape(
    hidden=896, layers=24, intermediate=4864, heads=14, kv_heads=2, head_dim=64, vocabulary=151936, tied=True
)
RATES = {"body_rate": 1e11, "head_rate": 5e10, "step_rate": 1e10, "step_head_rate": 5e9}
RATES |= {"attention_rate": 2e10, "elementwise_rate": 1e9, "read_rate": 1e10, "call_seconds": 1e-6}
MACHINE = Machine("cpu", 2, memory=8 * 2**30, available=7 * 2**30, process=2**29, **RATES)


def job(**changed: object) -> TrainingJob:
    """Qwen2.5-0.5B on 100 passages and 10 questions; changes are of the config."""
    return TrainingJob(
        base="a-model",
        shape=SHAPE,
        context=4096,
        dtype="float32",
        device="cpu",
        config=dro_config(**{"rounds": 3} | changed),
        selector=SelectorConfig(num_candidates=20, num_selected=5),
        encoder=EncoderShape(dimension=384, layers=6, intermediate=1536, parameters=20_000_000),
        texts=TextSizes(passages=100, passage_tokens=130, questions=10),
        question=QuestionShape(20, 5, 4, prompt=2840, sequence=808, answer=8),
        single_passage_sequence=270,
    )


def test_phases_of_a_run() -> None:
    found = {step.name: step for step in training_steps(job())}
    assert list(found) == [
        *("encode corpus", "supervised epochs", "E: sample", "E: score single passages", "E: score"),
        *("M: selector", "M: generator + SelfAug"),
    ]
    assert [step.times for step in found.values()] == [1, 1, 3, 1, 3, 3, 3]
    generator = found["M: generator + SelfAug"]
    assert generator.flops == 10 * m_generator_flops(SHAPE, job().question)
    # Three products with the head at 799 of the 808 tokens of four rows, two at their 8 answer tokens.
    assert generator.head == 10 * 4 * (3 * 799 + 2 * 8) * 2 * 896 * 151936


def test_sampling_without_replacement_grows_one_more_beam() -> None:
    """K = 3, S = 2, m = 4: five beams read four tokens each and choose two ids, instead of four.

    Pairs of one: 4 x 70 with the prompt, and 10 of its own tokens.
    """
    shape = ModelShape(hidden=10, layers=2, intermediate=30, heads=4, kv_heads=2, head_dim=3, vocabulary=100, rank=5)
    q = QuestionShape(num_candidates=6, num_selected=3, num_permutations=4, prompt=70, sequence=50, answer=7, choice=2)
    with_replacement, without = (e_sample_flops(shape, q, replacement=replacement) for replacement in (True, False))
    weights = shape.body_parameters + shape.adapter_parameters
    assert without - with_replacement == 2 * weights * 4 + 4 * 2 * 12 * 290 + 2 * 10 * 6 * 2


def test_what_all_sequences_begin_with_is_read_once() -> None:
    """Four sequences of 50 tokens that share 20: 60 tokens less, and 3 x 210 pairs less; logits as before."""
    shape = ModelShape(hidden=10, layers=2, intermediate=30, heads=4, kv_heads=2, head_dim=3, vocabulary=100, rank=5)
    q = QuestionShape(num_candidates=6, num_selected=3, num_permutations=4, prompt=70, sequence=50, answer=7)
    shared = replace(q, common=20)
    weights, pairs = shape.body_parameters + shape.adapter_parameters, 4 * 2 * 12 * 630
    assert e_score_flops(shape, q) - e_score_flops(shape, shared) == 2 * weights * 60 + pairs
    body = 60 * (4 * shape.body_parameters + 6 * shape.adapter_parameters) + 3 * pairs
    reference = 60 * 2 * shape.body_parameters + pairs
    assert m_generator_flops(shape, q) - m_generator_flops(shape, shared) == body + reference
    one = [m_generator_flops(shape, x, aligned_sequences=1) for x in (q, shared)]
    assert one[0] - one[1] == body


def likelihood_job(n: int, **changed: object) -> TrainingJob:
    """As `job`, with the selector by question likelihood: passages of 120 tokens, questions of 20."""
    options = {"prefilter": changed.pop("prefilter", None)}
    selector = SelectorConfig(kind="question_likelihood", num_candidates=n, num_selected=3, options=options)
    texts = TextSizes(passages=100, passage_tokens=120, questions=10, question_tokens=20, eval_questions=2)
    config = dro_config(**{"rounds": 3, "supervised.num_train_epochs": 0} | changed)
    question, single = mean_question(selector, config, texts, 4096)
    found = job()
    return replace(
        found, selector=selector, texts=texts, config=config, question=question, single_passage_sequence=single
    )


def test_each_candidate_alone_is_a_sequence_of_its_own() -> None:
    """15 tokens of instructions, 120 of the passage and 20 of the question, whose logits alone are computed."""
    found = {step.name: step for step in training_steps(likelihood_job(10))}
    read = 2 * (SHAPE.body_parameters + SHAPE.adapter_parameters) * 10 * 155
    pairs = 10 * 155 * 156 // 2
    assert found["E: sample"].body == 10 * read
    assert found["E: sample"].attention == 10 * SHAPE.pair_flops * pairs
    assert found["E: sample"].head == 10 * 2 * SHAPE.head_parameters * 10 * 20
    learning = found["M: selector"]
    assert learning.body == 10 * 10 * 155 * (4 * SHAPE.body_parameters + 6 * SHAPE.adapter_parameters)
    assert learning.attention == 3 * found["E: sample"].attention
    assert learning.head == 2 * found["E: sample"].head
    more = {step.name: step for step in training_steps(likelihood_job(50))}
    for name in ("E: sample", "M: selector"):
        assert more[name].flops == 5 * found[name].flops
        assert more[name].memory.peak <= 5.1 * found[name].memory.peak
    kept = {step.name: step for step in training_steps(likelihood_job(50, **{"m_step.selector_kl": 0.1}))}
    assert kept["M: selector"].flops - more["M: selector"].flops == more["E: sample"].flops


def test_prefilter_saves_gradients_of_those_that_are_not_drawn() -> None:
    """m = 2 permutations of K = 3 hold at most six: with the best 12, 18 of 50 are read with gradient."""
    few = {"e_step.num_permutations": 2, "e_step.proposals_per_sample": 1}
    whole, filtered = (
        {step.name: step for step in training_steps(likelihood_job(50, prefilter=prefilter, **few))}
        for prefilter in (None, 12)
    )
    learning, reading = whole["M: selector"], whole["E: sample"].flops
    assert filtered["M: selector"].flops == learning.flops * 18 // 50 + reading
    assert filtered["M: selector"].memory.kept == learning.memory.kept * 18 // 50
    assert filtered["E: sample"] == whole["E: sample"]


@pytest.mark.parametrize(
    ("changed", "missing"),
    [
        ({"e_step.proposals_per_sample": 1}, "E: score single passages"),
        ({"train_selector": False}, "M: selector"),
        ({"train_generator": False}, "M: generator + SelfAug"),
        ({"supervised.num_train_epochs": 0}, "supervised epochs"),
    ],
)
def test_disabled_phases_are_left_out(changed: dict[str, object], missing: str) -> None:
    assert missing not in {step.name for step in training_steps(job(**changed))}


def test_evaluation_runs_before_the_first_round_and_after_each() -> None:
    texts = replace(job().texts, eval_questions=5)
    assert [(s.name, s.times) for s in training_steps(replace(job(), texts=texts))][-1] == ("evaluation", 4)


def test_evaluation_writes_answers_token_by_token() -> None:
    """50 questions, 16 at a time as `evaluate` asks them, so 4 times 32 steps of 24 layers.

    A token at position 801 to 832 sees as many keys; keys and values of one take 2 x 24 x 2 x 64 numbers of 4 bytes.
    """
    planned = replace(job(), texts=replace(job().texts, eval_questions=50))
    step = next(step for step in training_steps(planned) if step.name == "evaluation")
    seen = sum(range(801, 833))
    weights = SHAPE.body_parameters + SHAPE.adapter_parameters
    assert step.writing.body == 50 * (2 * weights * 32 + 4 * 24 * 14 * 64 * seen)
    assert step.writing.head == 50 * 32 * 2 * 896 * 151936
    assert step.writing.cache_read == 50 * seen * 2 * 24 * 2 * 64 * 4
    assert step.writing.calls == 4 * 32 * 24 * CALLS_PER_LAYER
    together = inspect.signature(evaluate).parameters["batch_size"].default
    assert planned.answers_together == EVALUATION_BATCH == together
    few = replace(planned, texts=replace(planned.texts, eval_questions=3))
    assert few.answers_together == 3
    assert peaks(few, 0)["evaluation"] < peaks(planned, 0)["evaluation"]


def test_seconds_of_writing_are_at_the_speed_of_memory() -> None:
    """Besides the time of reading prompts; at a quarter of the speed it takes four times as long, calls excepted."""
    planned = replace(job(), texts=replace(job().texts, eval_questions=5))
    step = next(step for step in training_steps(planned) if step.name == "evaluation")
    reading = step.body / 1e11 / product_share(SHAPE, MACHINE) + step.head / 5e10 + step.attention / 2e10
    writing = step.writing.body / 1e10 + step.writing.head / 5e9 + step.writing.cache_read / 1e10
    calls = step.writing.calls * 1e-6
    assert plan_training(planned, MACHINE).phase("evaluation").seconds == pytest.approx(reading + writing + calls)
    slow = replace(MACHINE, step_rate=2.5e9, step_head_rate=1.25e9, read_rate=2.5e9)
    assert plan_training(planned, slow).phase("evaluation").seconds == pytest.approx(reading + 4 * writing + calls)


def test_seconds_are_operations_over_rates() -> None:
    """A block has 14,909,440 weights and its adapters 366,592, so 305.5 us per token for products.

    14 x 896 + 6 x (896 + 128) + 3 x 4864 + 2 x 12,672 = 58,624 other numbers take 58.6 us.
    """
    plan = plan_training(job(), MACHINE)
    share = 305.52064 / (305.52064 + 58.624)
    assert plan.setting.efficiency == product_share(SHAPE, MACHINE) == pytest.approx(share)
    assert product_share(SHAPE, replace(MACHINE, device="cuda")) == pytest.approx(GPU_EFFICIENCY * share)
    step = next(s for s in training_steps(job()) if s.name == "E: score")
    pairs = 4 * 808 * 809 // 2
    assert (step.attention, step.head) == (10 * 4 * 24 * 14 * 64 * pairs, 10 * 4 * 8 * 2 * 896 * 151936)
    expected = step.body / 1e11 / share + step.attention / 2e10 + step.head / 5e10
    assert plan.phase("E: score").seconds == pytest.approx(expected)
    once = sum(plan.phase(name).seconds for name in ("supervised epochs", "encode corpus", SINGLE_PASSAGES))
    in_round = sum(phase.seconds for phase in plan.phases if phase.name[:2] in ("E:", "M:"))
    assert plan.seconds == pytest.approx(3 * (in_round - plan.phase(SINGLE_PASSAGES).seconds) + once)


@pytest.mark.parametrize(("used", "times"), [(None, 1), (1, 3), (2, 2), (3, 1), (7, 1)])
def test_single_passages_are_scored_again_when_they_are_too_old(used: int | None, times: int) -> None:
    """Three rounds; the mean round has its share of what is not done in every round."""
    planned = job(**{"e_step.single_passage_rounds": used})
    plan = plan_training(planned, MACHINE)
    assert plan.phase(SINGLE_PASSAGES).times == times
    assert planned.first_round_phases == (() if used == 1 else (SINGLE_PASSAGES,))
    others = sum(p.seconds for p in plan.phases if p.name[:2] in ("E:", "M:") and p.name != SINGLE_PASSAGES)
    assert plan.round_seconds == pytest.approx(others + times / 3 * plan.phase(SINGLE_PASSAGES).seconds)
    assert job(**{"e_step.proposals_per_sample": 1}).first_round_phases == ()


def test_a_round_has_all_epochs_of_its_m_step() -> None:
    plan, one = (plan_training(job(**{"m_step.num_train_epochs": n}), MACHINE) for n in (2, 1))
    learning = sum(phase.seconds for phase in one.phases if phase.name.startswith("M:"))
    assert plan.round_seconds is not None and one.round_seconds is not None
    assert plan.round_seconds - one.round_seconds == pytest.approx(learning)


def test_proposed_changes_lower_the_peak_until_it_fits() -> None:
    """The proposals end where it fits: 7 GiB are too few for four sequences of 808 tokens with all activations."""
    plan = plan_training(job(), MACHINE)
    here = plan.fit("here")
    assert here is not None and not here.fits
    assert plan.memory.peak == here.needed == max(phase.peak for phase in plan.phases)
    proposed = [change for change in plan.changes if change.limit == "here"]
    assert [c.peak for c in proposed] == sorted((c.peak for c in proposed), reverse=True)
    assert proposed[0].change == "m_step.gradient_checkpointing: true"
    assert proposed[-1].fits
    assert proposed[-1].peak <= here.available == int(0.85 * MACHINE.available)
    assert plan_training(job(), replace(MACHINE, available=2**40)).changes == ()


def test_settings_that_already_hold_are_not_proposed() -> None:
    small = job(m_step__gradient_checkpointing=True, m_step__tokens_per_micro_batch=1, selfaug__permutations="one")
    names = [name for name, _ in possible_changes(small)]
    assert names == ["selfaug.chunk_tokens: 64", "e_step.batch_size: 1", "dtype: bfloat16"]
    assert [name for name, _ in possible_changes(replace(small, device="cuda"))][-1] == "quantization: 4bit"


def test_settings_that_save_memory() -> None:
    def peak(name: str = "M: generator + SelfAug", **changed: object) -> int:
        return peaks(job(**changed), 0)[name]

    assert peak(m_step__gradient_checkpointing=True) < 0.6 * peak()
    assert peak(m_step__tokens_per_micro_batch=1) < peak() < peak(m_step__tokens_per_micro_batch=4 * 808)
    assert peak(m_step__gradient_accumulation_steps=16) == peak()  # it is the passes that take memory
    assert peak("E: score", e_step__batch_size=1) < peak("E: score")
    on_gpu = always_used(replace(job(), device="cuda"), 0)
    assert "index" not in on_gpu  # it stays in the host's memory
    assert always_used(job(), 7)["process"] == 7


def test_bytes_of_the_automatic_index() -> None:
    """Flat: 4 d. HNSW32: 64 links of 4 bytes and 16 more. Clusters: codes of d / 4, d to refine, 8 of its number."""
    assert auto_index_bytes(1000, 384) == pytest.approx(1000 * 1536, rel=1e-3)
    assert auto_index_bytes(500_000, 384) == pytest.approx(500_000 * (1536 + 272), rel=1e-3)
    clusters = 16384  # the power of two next to 4 sqrt(21 million)
    assert auto_index_bytes(21_000_000, 384) == pytest.approx(21_000_000 * (96 + 8 + 384) + clusters * 1536, rel=0.05)


def test_an_encoder_of_word_vectors_has_no_operations(tmp_path: Path) -> None:
    tiny = encoder_shape("tiny")
    assert tiny.layers == tiny.flops(100) == tiny.bytes(100) == 0
    vectors = SentenceTransformer(str(Path(__file__).parents[1] / "indexes/tiny_encoder/encoder"), device="cpu")
    assert tiny.dimension == vectors.get_embedding_dimension()
    assert tiny.parameters == sum(p.numel() for p in vectors.parameters())
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", "hidden_size": 8, "vocab_size": 100}))
    assert encoder_shape(str(tmp_path)).dimension == 8
    with pytest.raises(ResourceError, match=r"config\.json must be found at '/no/encoder'"):
        encoder_shape("/no/encoder")


def test_sizes_are_read_from_samples(index: PassageIndex, tmp_path: Path) -> None:
    """3000 passages of 43 characters, of which a third is read; 43 / 4 is 11 tokens."""
    corpus = tmp_path / "corpus.jsonl"
    line = json.dumps({"id": "00000", "text": "x" * 43})
    corpus.write_text("".join(line.replace("00000", f"{i:05d}") + "\n" for i in range(3000)))
    assert count_passages(str(corpus)) == (3000, 11)
    corpus.rename(tmp_path / "corpus.csv").write_text("id,text\na,eight ch\nb,eight ch\n")
    assert count_passages(str(tmp_path / "corpus.csv")) == (2, 2)
    found = index_sizes(str(index.path))
    assert found == IndexSizes(passages=12, passage_tokens=found.passage_tokens, dimension=24)
    assert 10 < found.passage_tokens < 25
    questions = tmp_path / "train.jsonl"
    questions.write_text('{"question": "who is it that it was?", "golden_answers": ["anyone else"]}\n' * 1)
    assert question_sizes(str(questions)) == QuestionSizes(questions=1, question_tokens=6, answer_tokens=4)


def test_evaluation_questions_may_be_unanswerable(config_only: str, tmp_path: Path) -> None:
    dev = tmp_path / "dev.jsonl"
    dev.write_text('{"question": "a"}\n{"question": "b", "unanswerable": true}\n')
    words = ["plan", "--base", config_only, *COUNTS, "--eval_dataset", str(dev)]
    assert main(words) == 3
    dev.write_text('{"question": "a", "answer": "b"}\n{"question": "b", "unanswerable": true}\n')
    assert main(words) == 0


def test_prompts_are_truncated_to_the_context() -> None:
    selector, config, texts = SelectorConfig(), DROConfig(), job().texts
    wide, single = mean_question(selector, config, texts, 100_000)
    assert 20 * 130 < wide.prompt < 20 * 150
    assert 5 * 130 < wide.sequence < 1000
    assert 130 < single < wide.sequence
    narrow, _ = mean_question(selector, config, texts, 512)
    assert (narrow.prompt, narrow.sequence) == (512, 512)
    before = AnswerPrompt().template.partition("{passages}")[0]
    assert wide.common == narrow.common == len(before) // 4 + texts.question_tokens < single


def test_dtype_is_what_loading_would_choose() -> None:
    assert planned_dtype("auto", "cpu", None) == ("cpu", "float32")
    assert planned_dtype("mixed", "cpu", None) == ("cpu", "mixed")
    assert planned_dtype("bfloat16", "cuda", "4bit") == ("cuda", "4bit")
    with pytest.raises(UsageError, match="got '3bit'"):
        planned_dtype("auto", "cpu", "3bit")


def test_a_base_without_gates_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(UsageError, match=r"gpt2\) has no \['intermediate_size'\]"):
        base_shape(str(tmp_path))


def test_memory_of_machine_and_process() -> None:
    total, available = host_memory()
    assert 0 < available <= total
    before = resident_bytes()
    # Straight from the system: an allocator may hand out what earlier tests left, which is resident already.
    held = mmap.mmap(-1, 2**26)
    for start in range(0, 2**26, 2**20):
        held[start : start + 2**20] = b"1" * 2**20
    assert before + 2**25 < resident_bytes() <= resident_bytes("VmHWM")
    held.close()


def test_matrix_product_rate_is_positive_for_every_dtype() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        for settings in ({}, {"mixed": dtype == torch.bfloat16}, {"weights": 10_000}):
            assert product_rate(32, 48, dtype, "cpu", rows=8, seconds=0.01, **settings) > 1e5


def test_durations_as_text() -> None:
    assert [format_seconds(s) for s in (0.012, 12, 600, 7200)] == ["12.0 ms", "12.0 s", "10 min", "2.0 h"]


# -- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture
def config_only(tmp_path: Path) -> str:
    """A base of which only config.json is there: anything that loads weights or a tokenizer fails."""
    tiny_model("qwen2").config.save_pretrained(tmp_path / "base")
    assert [f.name for f in (tmp_path / "base").iterdir()] == ["config.json"]
    return str(tmp_path / "base")


COUNTS = ["--passages", "1000", "--passage_tokens", "50", "--train_questions", "20", "--device", "cpu"]


def test_json_of_a_training_plan_without_weights(
    config_only: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The options of `rag train`, as YAML and flags; the index and the output need not exist."""
    config = tmp_path / "train.yaml"
    config.write_text(f"base: {config_only}\nindex: not-yet\noutput_dir: run\nrounds: 2\nadapter:\n  r: 4\n")
    assert main(["plan", "--config", str(config), *COUNTS, "--eval_questions", "3", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    plan = Plan.from_dict(data)
    assert json.loads(json.dumps(plan.to_dict())) == data
    assert plan.kind == "training"
    assert plan.setting.shape.rank == 4
    assert [phase.times for phase in plan.phases] == [1, 1, 2, 1, 2, 2, 2, 3]
    assert all(phase.seconds >= 0 for phase in plan.phases)
    assert data["seconds"] == pytest.approx(sum(p["seconds"] * p["times"] for p in data["phases"]))
    assert data["memory"]["peak"] == max(p["peak"] for p in data["phases"])
    assert data["disk"]["after"] == sum(data["disk"]["parts"].values())
    small, large = (plan.fit(name) for name in ("24 GB GPU", "80 GB GPU"))
    assert small is not None and large is not None
    assert (large.needed, large.fits) == (small.needed, True)
    assert not [change for change in plan.changes if change.limit == "80 GB GPU"]
    assert main(["plan", "--config", str(config), *COUNTS]) == 0
    text = capsys.readouterr().out
    assert "M: generator + SelfAug" in text
    assert "Not modelled:" in text


def test_a_plan_of_another_version_is_refused() -> None:
    data = plan_training(job(), MACHINE).to_dict()
    with pytest.raises(DataError, match="must be what `rag plan --json`"):
        Plan.from_dict(data | {"kind": "milvus"})
    with pytest.raises(DataError, match="Plan again"):
        Plan.from_dict(data | {"phases": [{"name": "E: sample", "tflop": 1.0}]})


def test_text_names_what_to_change() -> None:
    text = plan_text(plan_training(job(), MACHINE))
    assert "here: DOES NOT FIT" in text
    assert "6.4 GB usable" in text  # 85 % of 7 GiB
    assert "gradient_checkpointing: true" in text
    hopeless = plan_text(plan_training(job(), replace(MACHINE, available=2**30)))
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
