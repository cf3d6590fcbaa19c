"""Tiny models, built in memory: a byte-level tokenizer, causal LMs of five architectures, an encoder.

Nothing is downloaded. This module imports torch, transformers and sentence-transformers; conftest.py imports it only
inside the fixtures that need it, so that a test file without models starts in about a second.
"""

from collections.abc import Callable, Sequence

import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import WordLevel
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    GemmaConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from generator.configs import AdapterConfig
from generator.generator import Generator
from generator.language_model import LanguageModel
from indexes.corpora.passage import Passage
from indexes.encoder import Encoder
from rag.pipeline import RAG
from retriever.candidates import Candidates
from retriever.selector import Selector
from training.config import DROConfig
from training.questions.example import QAExample

CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)

PASSAGES = [
    Passage("p0", "Hamlet", "Hamlet is a tragedy that William Shakespeare wrote around 1600."),
    Passage("p1", "Faust", "Faust is a play by Goethe about a scholar and the devil."),
    Passage("p2", "Oxygen", "Oxygen is a chemical element with symbol O and atomic number 8."),
    Passage("p3", "Paris", "Paris is the capital of France and lies on the river Seine."),
    Passage("p4", "Berlin", "Berlin is the capital of Germany."),
    Passage("p5", "Python", "Python is a programming language that Guido van Rossum designed in 1991."),
    Passage("p6", "Mars", "Mars is the fourth planet from the Sun and has two moons."),
    Passage("p7", "Seine", "The Seine is a river in France that flows into the English Channel."),
    Passage("p8", "Ohio", "Ohio is a state of the United States; its capital is Columbus."),
    Passage("p9", "Curie", "Marie Curie was a physicist born in Warsaw who discovered radium."),
    Passage("p10", "Danube", "The Danube is a river that flows into the Black Sea."),
    Passage("p11", "Radium", "Radium is a chemical element with symbol Ra."),
]

EXAMPLES_FOR_WORKERS = [
    QAExample("q1", "who wrote Hamlet?", ("Shakespeare",), ("p0",)),
    QAExample("q2", "what is the capital of Germany?", ("Berlin",), ("p4",)),
]

ARCHITECTURES = {
    "llama": LlamaConfig,
    "qwen2": Qwen2Config,
    "qwen3": Qwen3Config,
    "mistral": MistralConfig,
    "gemma": GemmaConfig,
}


def byte_tokenizer(*, chat: bool = True) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer without merges: every ASCII character is one token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    specials = ["<pad>", "<eos>", "<|user|>", "<|assistant|>", "<|end|>"]
    vocabulary = {token: i for i, token in enumerate(specials + alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevelDecoder()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        additional_special_tokens=specials[2:],
    )
    fast.chat_template = CHAT_TEMPLATE if chat else None
    return fast


def tiny_model(
    architecture: str = "llama", *, seed: int = 0, context: int = 4096, **changes: object
) -> PreTrainedModel:
    """A random causal LM whose logits are far from uniform (wide initialisation)."""
    settings: dict[str, object] = {
        "vocab_size": len(byte_tokenizer()),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": context,
        "initializer_range": 0.3,
        "tie_word_embeddings": False,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": None,
    }
    config = ARCHITECTURES[architecture](**{**settings, **changes})
    torch.manual_seed(seed)
    return MODEL_FOR_CAUSAL_LM_MAPPING[type(config)](config)


def tiny_language_model(architecture: str = "llama", *, chat: bool = True, **changes: object) -> LanguageModel:
    """A `LanguageModel` over `tiny_model`."""
    return LanguageModel(
        tiny_model(architecture, **changes),
        byte_tokenizer(chat=chat),
        adapter=AdapterConfig(r=3, lora_alpha=6),
    )


def randomize_adapters(model: LanguageModel, *, scale: float = 0.3, seed: int = 1) -> None:
    """Give both adapters random weights, so that roles differ from each other and from the base."""
    generator = torch.Generator().manual_seed(seed)
    for role in ("selector", "generator"):
        for parameter in model.adapter_parameters(role).values():
            parameter.data = torch.randn(parameter.shape, generator=generator) * scale


def tiny_encoder(texts: list[str], *, dimension: int = 24, seed: int = 0) -> Encoder:
    """A bag-of-words sentence-transformers model with random word vectors."""
    words = sorted({w for t in texts for w, _ in Whitespace().pre_tokenize_str(t.lower())})
    tokenizer = Tokenizer(WordLevel({w: i for i, w in enumerate(["[UNK]", *words])}, unk_token="[UNK]"))
    tokenizer.normalizer = Lowercase()
    tokenizer.pre_tokenizer = Whitespace()
    torch.manual_seed(seed)
    return Encoder(SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=dimension)], device="cpu"))


def learned(rag: RAG) -> dict[str, torch.Tensor]:
    """Copies of everything that a pipeline learns, by name."""
    model = rag.generator.language_model
    tensors = {n: p for role in ("selector", "generator") for n, p in model.adapter_parameters(role).items()}
    tensors |= {f"prior.{n}": p for n, p in rag.selector.prior.named_parameters()}
    tensors |= {f"question.{n}": p for n, p in rag.retriever.adapter.named_parameters()}
    return {n: p.detach().clone() for n, p in tensors.items()}


def added_tokenizer(
    special: Sequence[str] = (),
    *,
    plain: Sequence[str] = (),
    template: str | None = None,
    eos: str = "<eos>",
    **roles: object,
) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with added tokens that no role names: marked special, or `plain`."""
    vocabulary = {token: i for i, token in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevelDecoder()
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in (eos, *special)])
    tokenizer.add_tokens([AddedToken(name, special=False, normalized=False) for name in plain])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=eos, **roles)
    fast.chat_template = template
    return fast


def successor_model(tokenizer: PreTrainedTokenizerFast, successors: dict[str, str]) -> LlamaForCausalLM:
    """A Llama that looks at the last token only and says its successor; the rest of its mass is uniform.

    Attention and MLP add nothing, so a token's hidden state is its own one-hot vector, normalised, and the head reads
    the successor off it.
    """
    size = -(-len(tokenizer) // 8) * 8
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=size,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        model.model.layers[0].self_attn.o_proj.weight.zero_()
        model.model.layers[0].mlp.down_proj.weight.zero_()
        model.model.embed_tokens.weight.copy_(torch.eye(size)[: len(tokenizer)])
        model.lm_head.weight.zero_()
        for token, successor in successors.items():
            now, then = tokenizer.convert_tokens_to_ids([token, successor])
            model.lm_head.weight[then, now] = 1.0
    return model


@torch.no_grad()
def log_probs_of(selector: Selector, candidates: Candidates, z_mK: torch.Tensor) -> torch.Tensor:
    """Log p_s(z | x) of permutations of one question, without gradient, on the CPU."""
    return selector.log_prob([candidates], [z_mK])[0].cpu()


def reply_with(monkeypatch: pytest.MonkeyPatch, reply: Callable[[str, Sequence[Passage]], str]) -> None:
    """Replace the language model of every generator by a function of question and passages."""
    asked: dict[tuple[int, ...], tuple[str, Sequence[Passage]]] = {}
    encode = Generator.prompt_ids

    def prompt_ids(self: Generator, question: str, passages: Sequence[Passage]) -> list[int]:
        ids = encode(self, question, passages)
        asked[tuple(ids)] = (question, passages)
        return ids

    monkeypatch.setattr(Generator, "prompt_ids", prompt_ids)

    def complete(self: Generator, prompts: Sequence[list[int]]) -> list[str]:
        return [reply(*asked[tuple(p)]) for p in prompts]

    def complete_scored(self: Generator, prompts: Sequence[list[int]]) -> tuple[list[str], list[float]]:
        texts = complete(self, prompts)
        rows = [self.generated_sequence(*both) for both in zip(prompts, texts, strict=True)]
        return texts, self.log_probs(rows).tolist()

    monkeypatch.setattr(Generator, "complete", complete)
    monkeypatch.setattr(Generator, "complete_scored", complete_scored)


def dro_config(**settings: object) -> DROConfig:
    """Settings of training by their names with a dot or two underscores: `dro_config(e_step__exact=True)`."""
    return DROConfig().with_settings({name.replace("__", "."): value for name, value in settings.items()})
