"""The benchmarks' two ways are equal, in value and gradient, and the harness that races them is fair."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_models import dro_config
from transformers import LlamaConfig, Qwen2Config

from benchmarks import answering, growth, rag_sequence_loss, rivals, round, timing
from benchmarks.setting import (
    Pipeline,
    adapter_gradients,
    agree,
    answer_rows,
    language_model,
    pipeline,
    posteriors,
    relative_error,
)
from benchmarks.timing import Case, Make, Options
from rag.planning.flops import ModelShape, causal_pairs, forward_flops, head_flops
from retriever.selector_config import SamplingConfig
from training.config import DROConfig
from training.joint_model import JointModel
from training.micro_batches import MicroBatch

SIZES = {
    "vocab_size": 270,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
}


@pytest.fixture(params=[LlamaConfig, Qwen2Config])
def p(request: pytest.FixtureRequest) -> Pipeline:
    model = language_model(request.param(**SIZES), torch.float32, "cpu", rank=3)
    return pipeline(model, questions=3, n=7, K=3, prompt=60, row=45, answer="Bach")


def gradient(p: Pipeline, role: str, loss: Callable[[], torch.Tensor]) -> tuple[float, dict[str, torch.Tensor]]:
    with p.model.use(role):
        value = loss()
        value.backward()
    p.selector.prior.zero_grad()
    return float(value.detach()), adapter_gradients(p.model, role)


def ours(p: Pipeline, role: str, m: int = 5, **settings: object) -> Callable[[], torch.Tensor]:
    joint = JointModel(p.selector, p.generator, dro_config(train_retriever=False, **settings))
    found = tuple(posteriors(p, m))
    return lambda: joint(MicroBatch(role, found, num_questions=len(found)))["loss"]


@pytest.mark.parametrize("replacement", [True, False])
def test_sampled_permutations_have_the_probability_of_full_sequences(p: Pipeline, replacement: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    found = p.selector.propose(
        p.candidates, SamplingConfig(num_permutations=6, replacement=replacement), generator=generator
    )
    for c, drawn in zip(p.candidates, found, strict=True):
        posterior = replace(posteriors(p, 1)[0], candidates=c, permutations=drawn)
        with torch.no_grad(), p.model.use("selector"):
            expected = rivals.selector_log_probs(p, posterior)
            wrong = rivals.selector_log_probs(p, posterior, steps_late=-1)
        torch.testing.assert_close(drawn.log_p, expected, rtol=1e-4, atol=1e-4)
        assert float((drawn.log_p - wrong).abs().max()) > 0.1


def test_scores_are_those_of_full_logits(p: Pipeline) -> None:
    rows = answer_rows(p, 4)
    torch.testing.assert_close(p.generator.log_probs(rows), rivals.log_probs(p.model, rows), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_one_prompt_with_many_replies_has_the_gradient_of_many_sequences(p: Pipeline, checkpointing: bool) -> None:
    value, expected = gradient(p, "selector", lambda: rivals.selector_loss(p, posteriors(p, 5)))
    with p.model.gradient_checkpointing(checkpointing):
        found, slopes = gradient(p, "selector", ours(p, "selector"))
    assert found == pytest.approx(value, rel=1e-4)
    assert relative_error(slopes, expected) < 1e-4
    other, _ = gradient(p, "selector", lambda: rivals.selector_loss(p, posteriors(p, 4)))
    assert other != pytest.approx(value, rel=1e-2)


@pytest.mark.parametrize("chunk", [None, 7])
def test_generator_and_selfaug_have_the_gradient_of_full_logits(p: Pipeline, chunk: int | None) -> None:
    """With a KL that weighs as much as the answers do."""
    value, expected = gradient(p, "generator", lambda: rivals.generator_loss(p, posteriors(p, 5), alpha=50.0))
    found, slopes = gradient(p, "generator", ours(p, "generator", selfaug__alpha=50.0, selfaug__chunk_tokens=chunk))
    assert found == pytest.approx(value, rel=1e-4)
    assert relative_error(slopes, expected) < 1e-4
    without, other = gradient(p, "generator", lambda: rivals.generator_loss(p, posteriors(p, 5), alpha=0.0))
    assert without != pytest.approx(value, rel=1e-2)
    assert relative_error(other, expected) > 0.1


@pytest.mark.parametrize("settings", [round.AS_THE_PAPER, {}])
def test_a_round_learns_from_every_question(p: Pipeline, settings: dict[str, object]) -> None:
    """`round.check` raises where an adapter stays as it was: with a learning rate of 0 it must."""
    small = {"e_step.num_permutations": 2} | ({"e_step.proposals_per_sample": 2} if not settings else {})
    round.check(p, settings | small)
    with pytest.raises(RuntimeError, match="must move both adapters"):
        round.check(p, settings | small | {"m_step.learning_rate": 0.0})


def test_a_sampled_kl_has_the_gradient_of_the_whole_on_average(p: Pipeline) -> None:
    """60 draws: the mean is nearer to the exact gradient than single draws are, by more than chance would bring."""
    _, expected = gradient(p, "generator", ours(p, "generator", selfaug__alpha=50.0))
    joint = JointModel(p.selector, p.generator, dro_config(selfaug__alpha=50.0, selfaug__permutations="one"))
    found = tuple(posteriors(p, 5))
    drawn = [
        gradient(p, "generator", lambda s=seed: joint(MicroBatch("generator", found, num_questions=3, seed=s))["loss"])[
            1
        ]
        for seed in range(60)
    ]
    mean = {name: torch.stack([g[name] for g in drawn]).mean(0) for name in expected}
    typical = sum(relative_error(g, expected) for g in drawn) / len(drawn)
    assert typical > 0.005
    assert relative_error(mean, expected) < 2.0 * typical / 60**0.5


def on(device: str, dtype: torch.dtype) -> object:
    """A place to run the same in; a GPU is asked for by a mark, and missed in silence."""
    marks = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
    return pytest.param(device, dtype, marks=marks if device == "cuda" else [])


PLACES = [on("cpu", torch.bfloat16), on("cuda", torch.float32), on("cuda", torch.bfloat16)]


@pytest.mark.parametrize(("device", "dtype"), PLACES)
def test_fast_paths_agree_for_other_shapes(device: str, dtype: torch.dtype) -> None:
    """In bfloat16 both ways round, each in its own order: gradients agree to a tenth of what a wrong weight changes."""
    p = pipeline(
        language_model(LlamaConfig(**SIZES), dtype, device, rank=3),
        questions=2,
        n=7,
        K=3,
        prompt=60,
        row=45,
        answer="Bach",
    )
    tolerance = 1e-3 if dtype == torch.float32 else 0.1
    for role, rival in (("selector", rivals.selector_loss), ("generator", rivals.generator_loss)):
        _, expected = gradient(p, role, lambda r=rival: r(p, posteriors(p, 5)))
        _, slopes = gradient(p, role, ours(p, role))
        assert relative_error(slopes, expected) < tolerance
    found = p.generator.log_probs(answer_rows(p, 3))
    torch.testing.assert_close(found, rivals.log_probs(p.model, answer_rows(p, 3)).cpu().float(), rtol=0.02, atol=0.2)


@pytest.mark.parametrize(("device", "dtype"), PLACES)
def test_the_kl_starts_at_exactly_zero_and_fifty_steps_stay_finite(device: str, dtype: torch.dtype) -> None:
    model = language_model(LlamaConfig(**SIZES), dtype, device, rank=3)
    with torch.no_grad():
        for name, parameter in model.adapter_parameters("generator").items():
            parameter.mul_(0.0 if "lora_B" in name else 1.0)
    p = pipeline(model, questions=1, n=7, K=3, prompt=60, row=45, answer="Bach")
    joint = JointModel(p.selector, p.generator, DROConfig())
    batch = MicroBatch("generator", tuple(posteriors(p, 3)), num_questions=1)
    optimizer = torch.optim.AdamW(model.adapter_parameters("generator").values(), lr=1e-2)
    for step in range(50):
        with model.use("generator"):
            losses = joint(batch)
            losses["loss"].backward()
        assert (losses["selfaug_kl"].item() == 0.0) == (step == 0)
        assert all(bool(w.grad.isfinite().all()) for w in model.adapter_parameters("generator").values())
        optimizer.step()
        optimizer.zero_grad()


def test_rag_sequence_likelihoods_agree() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, scores = torch.randn(2, 3, 5, 11, generator=generator), torch.randn(2, 3, generator=generator)
    targets = torch.randint(11, (2, 5), generator=generator)
    log_p = logits.log_softmax(-1)
    by_hand = [
        torch.stack(
            [sum(log_p[b, d, t, targets[b, t]] for t in range(5)) + scores[b].log_softmax(-1)[d] for d in range(3)]
        ).logsumexp(0)
        for b in range(2)
    ]
    for way in (rag_sequence_loss.ours, rag_sequence_loss.rival):
        torch.testing.assert_close(way(logits, targets, scores), torch.stack(by_hand))


# -- the formulas ----------------------------------------------------------------------------------------------


def test_parameters_of_a_shape_are_those_of_the_model() -> None:
    model = language_model(LlamaConfig(**SIZES), torch.float32, "cpu", rank=3)
    shape = ModelShape.of(model.base_model.config, rank=3)
    linear = sum(
        w.numel() for n, w in model.base_model.named_parameters() if w.ndim == 2 and "lora" not in n and "proj" in n
    )
    assert shape.body_parameters == linear
    assert shape.adapter_parameters == sum(w.numel() for w in model.adapter_parameters("generator").values())
    assert shape.head_parameters == model.base_model.get_output_embeddings().weight.numel()


def test_operations_of_a_pass_by_hand() -> None:
    """One layer, H = 4, two heads of 2, one of keys, I = 6: 4 x (4 + 2 + 2 + 4) + 3 x 4 x 6 = 120 weights.

    Three tokens: 2 x 120 x 3 = 720, and 6 visible pairs at 4 x 4 each: 96. An adapter of rank 1 has
    (8 + 6 + 6 + 8 + 10 + 10 + 10) = 58 weights: 2 x 58 x 3 = 348 more.
    """
    shape = ModelShape(4, 1, 6, 2, 1, 2, vocabulary=10, rank=1)
    assert causal_pairs([3]) == 6
    assert forward_flops(shape, 3, 6, adapted=False) == 816
    assert forward_flops(shape, 3, 6) == 1164
    assert head_flops(shape, 3) == 240


@pytest.mark.parametrize("sweep", ["m", "n", "V", "prompt"])
def test_formulas_count_what_torch_counts(sweep: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """At both ends of a smaller sweep, so that growth is covered."""
    monkeypatch.setattr(
        growth, "config", lambda vocabulary: LlamaConfig(**{**SIZES, "vocab_size": vocabulary, "head_dim": 8})
    )
    monkeypatch.setattr(growth, "PLAIN", replace(growth.PLAIN, prompt=120, sequence=100, num_permutations=4))
    for value in {"m": (1, 8), "n": (5, 12), "V": (300, 3000), "prompt": (60, 240)}[sweep]:
        for point in growth.measure(sweep, value, growth.MEANT[sweep], repeats=1):
            assert point.counted == pytest.approx(point.all_pairs, rel=growth.TOLERANCE), point
            assert point.formula < point.all_pairs


# -- the harness -----------------------------------------------------------------------------------------------


def case(**changes: object) -> Case:
    plain = {"path": "p", "shape": "s", "rival": lambda: None, "ours": lambda: None, "check": lambda: None}
    return Case(**plain | changes)


class Clock:
    """Seconds that were written down before."""

    def __init__(self, times: list[float]) -> None:
        self.times = iter(times)

    def __call__(self, *args: object) -> float:
        return next(self.times)


def test_disturbed_pairs_are_discarded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The canary takes 1, 1, 1.2 (moved), 1.25, 1.2: the second pair is thrown away. Sides alternate."""
    canary = Clock([1.0, 1.0, 1.2, 1.25, 1.2])
    monkeypatch.setattr(timing, "Canary", lambda device: canary)
    monkeypatch.setattr(timing, "seconds", Clock([6.0, 2.0, 99.0, 1.0, 8.0, 2.0, 4.0, 9.0]))
    pairs, tried = timing.race(case(), Options(repeats=3))
    assert pairs == [(6.0, 2.0), (8.0, 2.0), (9.0, 4.0)]
    assert tried == 4


def test_implementations_that_disagree_are_not_timed() -> None:
    agree("it", 1e-6, 1.0, tolerance=1e-3)
    with pytest.raises(RuntimeError, match="ours is off by"):
        agree("it", 1e-2, 1.0, tolerance=1e-3)
    with pytest.raises(RuntimeError, match="the control by"):
        agree("it", 1e-6, 1e-3, tolerance=1e-3)


PEAKS = """
import torch
from benchmarks.timing import peak_memory

def one():
    for _ in range(2):
        torch.zeros(16 * 2**20)

def two():
    first = torch.zeros(16 * 2**20)
    torch.zeros(8 * 2**20)

print([peak_memory(run, "cpu") for run in (one, two)])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from Linux's /proc")
def test_peak_memory_is_the_maximum_of_live_tensors() -> None:
    """64 MB, twice one after the other, then 64 and 32 at a time; in a process of its own, as it forks."""
    root = Path(__file__).parents[1]
    command = [sys.executable, "-c", PEAKS]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=300, check=True)
    assert json.loads(done.stdout) == [pytest.approx(64, abs=16), pytest.approx(96, abs=16)]


def test_results_are_printed_as_json(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "product_rate", lambda dtype, device: 1e9)
    monkeypatch.setattr(timing, "copy_rate", lambda device: 1e9)
    monkeypatch.setattr(timing, "alone", lambda work, options: work())
    makes = [Make(lambda options: case(flops=1e3, target=2.0)), Make(lambda options: case(path="slow"), quick=False)]
    timing.main("what", makes, ["--json", "--quick", "--no_memory"])
    (row,) = json.loads(capsys.readouterr().out)
    assert list(row) == "path shape rival_s ours_s ratio rival_mb ours_mb floor_share target".split()
    assert (row["path"], row["target"], row["rival_mb"]) == ("p", 2.0, None)
    assert row["floor_share"] == pytest.approx(1e-6 / row["ours_s"])


@pytest.mark.parametrize("part", answering.PARTS)
def test_answers_are_those_of_transformers_and_of_a_scoring_pass(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`answering.check` raises where they are not: here one side writes a token less."""
    monkeypatch.setitem(answering.CONFIGS, "tiny", lambda: LlamaConfig(**SIZES))
    options = Options(quick=True, shape="tiny", precision="float32")
    sides = answering.sides(options, part)
    sides = replace(sides, prompts=sides.prompts[: 2 * sides.documents])
    answering.check(options, sides, part)
    ours = answering.ours

    def shorter(s: answering.Sides, part: str) -> answering.Answers:
        texts, log_p = ours(s, part)
        return [text[:-1] for text in texts], log_p

    monkeypatch.setattr(answering, "ours", shorter)
    with pytest.raises(RuntimeError, match="must be within"):
        answering.check(options, sides, part)
