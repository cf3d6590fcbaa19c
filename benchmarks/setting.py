"""What the benchmarks run on: random weights of real configurations, and questions of any length.

Nothing is downloaded. Prompts are random tokens of a given number, so that a length is exactly what a benchmark says;
everything behind the prompt is the library's own. Neither FAISS nor `datasets` is needed for any of it.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, LlamaConfig, PretrainedConfig, PreTrainedTokenizerFast, Qwen2Config
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from benchmarks.real_weights import load_weights
from benchmarks.timing import Options
from generator.answer_sequences import AnswerSequence
from generator.configs import AdapterConfig, DecodingConfig
from generator.generator import Generator
from generator.language_model import LanguageModel
from generator.prompts import AnswerPrompt, RankingPrompt
from indexes.corpora.passage import Passage
from indexes.encoder import COSINE
from rag.planning.flops import ModelShape
from retriever.candidates import Candidates
from retriever.dense import DenseRetriever
from retriever.listwise_selector import ListwiseSelector
from retriever.permutations import Permutations
from retriever.question_adapter import QuestionAdapter
from retriever.selector_config import SelectorConfig
from training.joint_model import JointModel
from training.micro_batches import PlannedQuestion, micro_batches
from training.posterior import Posterior, answer_sequence
from training.questions.example import QAExample

DIMENSION = 64


def decoder(
    kind: type[PretrainedConfig],
    vocabulary: int,
    hidden: int,
    intermediate: int,
    layers: int,
    heads: int,
    kv_heads: int,
    *,
    context: int = 8192,
    tied: bool = True,
) -> PretrainedConfig:
    """A configuration by its sizes."""
    return kind(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=context,
        tie_word_embeddings=tied,
    )


def tiny(vocabulary: int = 4096) -> PretrainedConfig:
    """A Llama of two million weights, for what a CPU can repeat many times."""
    return decoder(LlamaConfig, vocabulary, 192, 512, 4, 6, 2)


def small_qwen(vocabulary: int = 32000) -> PretrainedConfig:
    """A small body under a large head: the proportions at which the head is most of the work."""
    return decoder(Qwen2Config, vocabulary, 256, 704, 4, 4, 2)


def qwen_half_billion() -> PretrainedConfig:
    """Qwen2.5-0.5B."""
    return decoder(Qwen2Config, 151936, 896, 4864, 24, 14, 2, context=32768)


def qwen_seven_billion() -> PretrainedConfig:
    """Qwen2.5-7B."""
    return decoder(Qwen2Config, 152064, 3584, 18944, 28, 28, 4, context=32768, tied=False)


def smollm2() -> PretrainedConfig:
    """SmolLM2-135M."""
    return decoder(LlamaConfig, 49152, 576, 1536, 30, 9, 3)


def tiny_base() -> PretrainedConfig:
    """The embedded base."""
    return AutoConfig.from_pretrained(Path(__file__).parents[1] / "rag" / "tiny_base" / "base")


CONFIGS = {
    "tiny": tiny,
    "tiny-base": tiny_base,
    "smollm2": smollm2,
    "qwen2.5-0.5b": qwen_half_billion,
    "qwen2.5-7b": qwen_seven_billion,
    "7b": qwen_seven_billion,
}


@dataclass(frozen=True)
class Lengths:
    """Tokens of prompts."""

    prompt: int
    """Of the ranking prompt."""
    row: int
    """Of the answer prompt."""

    def __str__(self) -> str:
        return f"prompts of {self.prompt:,} and {self.row:,}"


FULL_LENGTHS = Lengths(2840, 800)
"""n = 20 candidates, K = 5 selected, passages of 120 tokens with their titles, and what stands around them."""
SHORT_LENGTHS = Lengths(640, 248)
"""The same with passages of 25 to 45 tokens, for models that take minutes otherwise."""


def lengths(options: Options, default: Lengths) -> Lengths:
    """Of a benchmark's prompts: its own, or as the options ask for."""
    if options.full:
        return FULL_LENGTHS
    return SHORT_LENGTHS if options.shape == "smollm2" and options.device == "cpu" else default


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    """Bytes, and the separator of a ranking in three tokens, as Qwen has it."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    specials = ["<pad>", "<eos>"]
    vocabulary = {token: i for i, token in enumerate([*specials, *alphabet, "Ġ>", "Ġ["])}
    raw = Tokenizer(models.BPE(vocab=vocabulary, merges=[("Ġ", ">"), ("Ġ", "[")]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", eos_token="<eos>")


def language_model(
    config: PretrainedConfig, dtype: torch.dtype, device: str, *, rank: int = 16, seed: int = 0
) -> LanguageModel:
    """Random weights, made where and as they are used, with adapters that are not the identity."""
    torch.manual_seed(seed)
    previous = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)](config)
    finally:
        torch.set_default_dtype(previous)
    loaded = LanguageModel(model, tokenizer(), adapter=AdapterConfig(r=rank, lora_alpha=2 * rank))
    with torch.no_grad():
        for role in ("selector", "generator"):
            for name, parameter in loaded.adapter_parameters(role).items():
                if "lora_B" in name:
                    parameter.normal_(std=0.02)
    return loaded


def load(options: Options, config: PretrainedConfig) -> LanguageModel:
    """The model that a benchmark is asked to run on: random weights of a configuration, or those of `--weights`."""
    dtype = torch.float32 if options.precision == "mixed" else options.dtype
    model = language_model(config, dtype, options.device)
    if options.weights:
        load_weights(model, options.weights)
    if options.precision == "mixed":
        model.use_mixed_precision()
    return model


def shape_of(model: LanguageModel) -> ModelShape:
    """For the formulas."""
    return ModelShape.of(model.base_model.config, rank=model.adapter.r)


# -- prompts of a given length ---------------------------------------------------------------------------------


def random_ids(count: int, *seed: object) -> list[int]:
    """Ordinary tokens, the same for the same seed."""
    draw = random.Random(repr(seed))
    special = set(tokenizer().all_special_ids)
    ordinary = [i for i in range(len(tokenizer())) if i not in special]
    return draw.choices(ordinary, k=count)


@dataclass(frozen=True, kw_only=True)
class RandomRankingPrompt(RankingPrompt):
    """So many random tokens."""

    length: int = 0

    def encode(
        self, tokenizer: Any, question: str, passages: Any, identifiers: Any, *, max_tokens: int, chat: Any = None
    ) -> list[int]:
        """`length` tokens that depend on the question and the order of its passages."""
        return random_ids(self.length, question, [p.id for p in passages])


@dataclass(frozen=True, kw_only=True)
class RandomAnswerPrompt(AnswerPrompt):
    """Random tokens of each passage in turn, which do not depend on its neighbours."""

    length: int = 0
    """With `selected` passages; in proportion shorter with fewer."""
    selected: int = 5

    def encode(self, tokenizer: Any, question: str, passages: Any, *, max_tokens: int, chat: Any = None) -> list[int]:
        """The question's few tokens, then those of each passage."""
        share = self.length // self.selected
        ids = [i for p in passages for i in random_ids(share, question, p.id)]
        return random_ids(self.length - share * self.selected, question) + ids


class StoredRetriever(DenseRetriever):
    """Finds what was put into it: retrieval is no part of what is raced here."""

    def __init__(self, candidates: Sequence[Candidates], device: str) -> None:
        self.adapter = QuestionAdapter(DIMENSION).to(device)
        self.encoder = SimpleNamespace(similarity=COSINE)
        self.stored = {c.question: c for c in candidates}

    def search(
        self, question: Any, k: int = 20, *, ignored_ids: Sequence[str | None] = (), explain: bool = False
    ) -> Any:
        """The stored candidates of each question."""
        return self.stored[question] if isinstance(question, str) else [self.stored[q] for q in question]


def candidates(number: int, n: int) -> Candidates:
    """A question with n passages, best first."""
    generator = torch.Generator().manual_seed(number)
    vectors_nd = torch.nn.functional.normalize(torch.randn(n, DIMENSION, generator=generator), dim=-1)
    question_d = torch.nn.functional.normalize(torch.randn(DIMENSION, generator=generator), dim=-1)
    scores_n, order_n = (vectors_nd @ question_d).sort(descending=True)
    passages = [Passage(f"{number}-{i}", "title", "text") for i in range(n)]
    return Candidates(f"question {number}", passages, scores_n, question_d, vectors_nd[order_n])


@dataclass
class Pipeline:
    """Selector and generator over one model, and the questions they are asked."""

    model: LanguageModel
    retriever: StoredRetriever
    selector: ListwiseSelector
    generator: Generator
    candidates: list[Candidates]
    examples: list[QAExample]

    @property
    def shape(self) -> ModelShape:
        """For the formulas."""
        return shape_of(self.model)


def pipeline(
    model: LanguageModel,
    *,
    questions: int,
    n: int = 20,
    K: int = 5,
    prompt: int = 1280,
    row: int = 448,
    answer: str = "Vivaldi",
    decoding: str = "autoregressive",
) -> Pipeline:
    """A selector that listens to its language model, prompts of `prompt` tokens, answer prompts of `row`."""
    device = str(model.device)
    found = [candidates(i, n) for i in range(questions)]
    retriever = StoredRetriever(found, device)
    selector = ListwiseSelector(
        model,
        retriever,
        prompt=RandomRankingPrompt(length=prompt),
        config=SelectorConfig(num_candidates=n, num_selected=K, decoding=decoding),
    )
    with torch.no_grad():
        selector.prior.gate.fill_(0.5)
    generator = Generator(
        model, prompt=RandomAnswerPrompt(length=row, selected=K), config=DecodingConfig(max_new_tokens=24)
    )
    examples = [QAExample(f"q{i}", c.question, (answer,), ()) for i, c in enumerate(found)]
    return Pipeline(model, retriever, selector, generator, found, examples)


def posteriors(p: Pipeline, m: int) -> list[Posterior]:
    """M different permutations of each question with uneven weights, as an E-step would leave them."""
    found = []
    for number, (example, c) in enumerate(zip(p.examples, p.candidates, strict=True)):
        generator = torch.Generator().manual_seed(number)
        z = torch.stack([torch.randperm(len(c), generator=generator) for _ in range(m)])
        z_mK = z[:, : p.selector.config.num_selected]
        log_p_m = torch.full((m,), -10.0)
        log_likelihood_m = torch.randn(m, generator=generator)
        weights_m = log_likelihood_m.softmax(-1)
        found.append(
            Posterior(
                example=example,
                answer=example.golden_answers[0],
                candidates=c,
                permutations=Permutations(z_mK, log_p_m, log_p_m),
                log_likelihood_m=log_likelihood_m,
                weights_m=weights_m,
                baseline_m=None,
                log_omega_m=log_likelihood_m,
            )
        )
    return found


def rows_of(p: Pipeline, posterior: Posterior) -> list[AnswerSequence]:
    """The generator's rows of one question."""
    z_mK = posterior.permutations.z
    return [answer_sequence(p.generator, posterior.candidates, z_K, posterior.answer) for z_K in z_mK]


def answer_rows(p: Pipeline, m: int) -> list[AnswerSequence]:
    """The generator's rows of all questions, m each."""
    return [row for posterior in posteriors(p, m) for row in rows_of(p, posterior)]


# -- one step of learning --------------------------------------------------------------------------------------


def our_step(p: Pipeline, joint: JointModel, role: str, found: Sequence[Posterior]) -> dict[str, torch.Tensor]:
    """`step` as the trainer makes it: in micro-batches."""
    questions = tuple(PlannedQuestion(posterior, seed=0) for posterior in found)
    config = replace(joint.settings, train_selector=role == "selector", train_generator=role == "generator")
    with p.model.use(role):
        for micro_batch in micro_batches(p.selector, p.generator, questions, config):
            joint(micro_batch)["loss"].backward()
    p.selector.prior.zero_grad()
    return adapter_gradients(p.model, role)


def step(p: Pipeline, role: str, loss: Callable[[], torch.Tensor]) -> dict[str, torch.Tensor]:
    """Forward and backward under a role's adapter; its gradients, which are cleared."""
    with p.model.use(role):
        loss().backward()
    p.selector.prior.zero_grad()
    return adapter_gradients(p.model, role)


def adapter_gradients(model: LanguageModel, role: str) -> dict[str, torch.Tensor]:
    """Float32 copies of a role's gradients, which are cleared."""
    found = {}
    for name, parameter in model.adapter_parameters(role).items():
        if parameter.grad is not None:
            found[name] = parameter.grad.float().clone()
            parameter.grad = None
    return found


def relative_error(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """Norm of the difference over the norm of what is expected, all tensors taken together."""
    if found.keys() != expected.keys():
        return float("inf")
    difference = sum(float((found[k] - expected[k]).square().sum()) for k in expected)
    return (difference / sum(float(v.square().sum()) for v in expected.values())) ** 0.5


def agree(what: str, error: float, control: float, tolerance: float) -> None:
    """Both ways give the same, and what is wrong on purpose does not.

    Raises:
        RuntimeError: Either does not hold, so that the race would mean nothing.
    """
    if not error <= tolerance < control / 2:
        raise RuntimeError(
            f"{what}: ours must be within {tolerance:g} of the rival's result and the control beyond twice that; "
            f"ours is off by {error:.2e}, the control by {control:.2e}."
        )
