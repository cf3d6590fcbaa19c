"""What one question costs, in floating-point operations: pure formulas over the shape of a causal LM.

One multiply-add is two operations. Only matrix products count; norms, softmaxes and activations are the difference
between these numbers and what is measured. The base is frozen, so a backward pass has gradients of activations only:
as many operations as the forward one for the body, twice as many for attention.

Legend: T tokens of a sequence, P tokens of the ranking prompt (or of all candidates, where each is read alone), G
tokens of the generator's sequence (prompt and answer), C tokens that all G of a question begin with, L answer tokens, H
hidden size, V vocabulary, n candidates, K selected, m permutations, S tokens that follow one choice (its id and the
separator).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from generator.base_config import text_config


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a decoder with gated feed-forward layers (Llama, Qwen, Mistral, Gemma) and its LoRA adapters."""

    hidden: int
    layers: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    tied: bool = False
    """Whether the output head shares its weights with the embedding."""
    rank: int = 16
    """Of the LoRA adapters on all linear layers of the body."""
    attends: bool = True
    """False leaves attention out of what is counted, so that the difference is its share."""

    @classmethod
    def of(cls, config: Any, *, rank: int = 16) -> "ModelShape":
        """From a `transformers` config."""
        text = text_config(config)
        head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        return cls(
            hidden=text.hidden_size,
            layers=text.num_hidden_layers,
            intermediate=text.intermediate_size,
            heads=text.num_attention_heads,
            kv_heads=getattr(text, "num_key_value_heads", None) or text.num_attention_heads,
            head_dim=head_dim,
            vocabulary=text.vocab_size,
            tied=bool(getattr(config, "tie_word_embeddings", False)),
            rank=rank,
        )

    @property
    def linear_sizes(self) -> list[tuple[int, int]]:
        """Inputs and outputs of the linear layers of one block."""
        query, key = self.heads * self.head_dim, self.kv_heads * self.head_dim
        H, ffn = self.hidden, self.intermediate
        return [(H, query), (H, key), (H, key), (query, H), (H, ffn), (H, ffn), (ffn, H)]

    @property
    def pair_flops(self) -> int:
        """Operations of attention in all layers for one pair of query and visible key."""
        return 4 * self.layers * self.heads * self.head_dim if self.attends else 0

    @property
    def elementwise_numbers(self) -> int:
        """Numbers that operations other than products compute for one token in one block, each counted once.

        Two norms of six operations, rotation of queries and keys (six), two residual sums, activation and gate (three),
        and the sum of each linear layer and its adapter, of which the latter is scaled.
        """
        query, key = self.heads * self.head_dim, self.kv_heads * self.head_dim
        outputs = sum(outer for _, outer in self.linear_sizes)
        return 14 * self.hidden + 6 * (query + key) + 3 * self.intermediate + 2 * outputs

    @property
    def body_parameters(self) -> int:
        """Weights of the linear layers of all blocks."""
        return self.layers * sum(i * o for i, o in self.linear_sizes)

    @property
    def head_parameters(self) -> int:
        """H x V."""
        return self.hidden * self.vocabulary

    @property
    def parameters(self) -> int:
        """All weights of the base, norms left out."""
        return self.body_parameters + self.head_parameters * (1 if self.tied else 2)

    @property
    def adapter_parameters(self) -> int:
        """Weights of one LoRA adapter."""
        return self.layers * self.rank * sum(i + o for i, o in self.linear_sizes)

    @property
    def kv_size(self) -> int:
        """Numbers that the key-value cache holds for one token."""
        return 2 * self.layers * self.kv_heads * self.head_dim


def causal_pairs(lengths: Sequence[int]) -> int:
    """Pairs of query and visible key in sequences of these lengths under causal attention."""
    return sum(T * (T + 1) // 2 for T in lengths)


def forward_flops(shape: ModelShape, tokens: int, pairs: int, *, adapted: bool = True) -> int:
    """One forward pass of the body.

    Args:
        shape: Of the model.
        tokens: Read in this pass, padding left out.
        pairs: Of query and visible key, see `causal_pairs`.
        adapted: With a LoRA adapter, or only the base.
    """
    weights = shape.body_parameters + (shape.adapter_parameters if adapted else 0)
    return 2 * weights * tokens + shape.pair_flops * pairs


def training_flops(shape: ModelShape, tokens: int, pairs: int) -> int:
    """Forward and backward pass of the body, training only the adapter."""
    products = tokens * (4 * shape.body_parameters + 6 * shape.adapter_parameters)
    return products + 3 * shape.pair_flops * pairs


def head_flops(shape: ModelShape, positions: int) -> int:
    """Logits of all V tokens at this many positions."""
    return 2 * shape.head_parameters * positions


@dataclass(frozen=True)
class QuestionShape:
    """Sizes of one question that determine its cost."""

    num_candidates: int
    """n."""
    num_selected: int
    """K."""
    num_permutations: int
    """m: permutations that the generator scores and trains on."""
    prompt: int
    """P."""
    sequence: int
    """G: tokens of the generator's prompt and answer."""
    answer: int
    """L."""
    choice: int = 3
    """S."""
    prompts: int = 1
    """How many sequences the selector reads, of P tokens in all: one, or n where it reads each candidate alone."""
    scored: int = 0
    """Tokens at the end of each of these whose log-probabilities are wanted."""
    common: int = 0
    """C: tokens that all of the generator's sequences begin with, and that are read once."""

    @property
    def reply(self) -> int:
        """Tokens of one autoregressive permutation behind the prompt."""
        return (self.num_selected - 1) * self.choice


def sequences_read(q: QuestionShape, m: int) -> tuple[int, int]:
    """Tokens of m of the generator's sequences, read together, and the pairs of query and visible key of these."""
    tokens = q.common + m * (q.sequence - q.common)
    return tokens, m * causal_pairs([q.sequence]) - (m - 1) * causal_pairs([q.common])


def prompts_read(q: QuestionShape) -> tuple[int, int]:
    """Tokens that the selector reads besides its replies, and the pairs of query and visible key of these."""
    return q.prompt, q.prompts * causal_pairs([q.prompt // q.prompts])


def _replies(q: QuestionShape, m: int) -> tuple[int, int]:
    """Tokens of m replies behind one prompt, and the pairs of query and visible key of these."""
    return m * q.reply, m * (q.reply * q.prompt + causal_pairs([q.reply]))


def e_sample_flops(
    shape: ModelShape, q: QuestionShape, *, decoding: str = "autoregressive", replacement: bool = True
) -> int:
    """Sample m permutations: one prefill, then the replies on its cache (none for `"single_pass"`).

    Without replacement m + 1 beams grow, each on what was read of its parent.
    """
    prefill = forward_flops(shape, *prompts_read(q))
    if q.scored:
        return prefill + head_flops(shape, q.prompts * q.scored)
    if decoding == "single_pass":
        return prefill + 2 * shape.hidden * q.num_candidates
    grown = q.num_permutations + (0 if replacement else 1)
    ids = 2 * shape.hidden * q.num_candidates * (1 + grown * (q.num_selected - 1))
    return prefill + forward_flops(shape, *_replies(q, grown)) + ids


def e_score_flops(shape: ModelShape, q: QuestionShape) -> int:
    """Log p_g of m sequences: the body on all tokens, the head on answer tokens only."""
    read = forward_flops(shape, *sequences_read(q, q.num_permutations))
    return read + head_flops(shape, q.num_permutations * q.answer)


def reading_flops(shape: ModelShape, prompt: int) -> int:
    """Read a prompt that is to be continued: the body on all tokens, the head on the last one."""
    return forward_flops(shape, prompt, causal_pairs([prompt])) + head_flops(shape, 1)


def writing_flops(shape: ModelShape, prompt: int, written: int) -> int:
    """Write so many tokens behind a prompt in the cache, one at a time; each, the last one too, predicts one more."""
    pairs = causal_pairs([prompt + written]) - causal_pairs([prompt])
    return forward_flops(shape, written, pairs) + head_flops(shape, written)


def m_selector_flops(shape: ModelShape, q: QuestionShape, *, decoding: str = "autoregressive") -> int:
    """One selector step on m permutations: its prompts and m replies, forward and backward."""
    tokens, pairs = prompts_read(q)
    if q.scored:
        return training_flops(shape, tokens, pairs) + 2 * head_flops(shape, q.prompts * q.scored)
    if decoding == "autoregressive":
        more_tokens, more_pairs = _replies(q, q.num_permutations)
        tokens, pairs = tokens + more_tokens, pairs + more_pairs
    return training_flops(shape, tokens, pairs)


def m_generator_flops(shape: ModelShape, q: QuestionShape, *, aligned_sequences: int | None = None) -> int:
    """One generator step on m sequences, with SelfAug on `aligned_sequences` of them (None: all; 0: none).

    The reference is one more forward pass of the aligned sequences. The KL takes three products with the head at every
    input token (base logits, tuned logits, gradient), the answer two at each of its tokens.
    """
    aligned = q.num_permutations if aligned_sequences is None else aligned_sequences
    body = training_flops(shape, *sequences_read(q, q.num_permutations))
    reference = forward_flops(shape, *sequences_read(q, aligned), adapted=False) if aligned else 0
    answers = 2 * head_flops(shape, q.num_permutations * q.answer)
    return body + reference + answers + 3 * head_flops(shape, aligned * (q.sequence - q.answer - 1))
