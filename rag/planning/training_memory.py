r"""Peak memory of training, in bytes: pure formulas over the shape of a causal LM.

They follow from what autograd keeps for the backward pass. The base is frozen, so a linear layer keeps no input for its
own sake; its LoRA adapter does, unless that input can be computed again without a matrix product
(`generator.recomputation`). Per token and layer, with H hidden size, I intermediate size, q = heads x head_dim,
k = key-value heads x head_dim and r the rank, a block keeps

    2 H             both norms' inputs, the residual stream; where that is narrower than float32, float32 copies too
    2 q + 2 k       queries, keys, values after rotation and the attention's output, which the adapter of o reads
    2 I             gate and up
    7 r             between the two matrices of each adapter

numbers. On a quantized base every adapter keeps a float32 copy of what it reads (5 H + q + I). Attention by SDPA
keeps no T x T matrix; with an explicit mask (replies behind a prompt) keys and values are repeated for every query
head. With gradient checkpointing the input of every block is all that is kept, and one block at a time is computed
again.

Legend: T tokens of a pass, P tokens of the ranking prompt, G tokens of the generator's sequence, L answer tokens,
V vocabulary, C tokens of a chunk of the KL, N passages, d dimension of the encoder, m permutations, R sequences
of a micro-batch.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from generator.log_probs import logit_bytes
from rag.planning.flops import ModelShape, QuestionShape
from training.losses import default_chunk_tokens

FLOAT32 = 4
TOKENS_PER_BATCH = 16384
"""Sequences x longest sequence of one forward pass of the E-step; the default of selector and generator."""


@dataclass(frozen=True)
class Precision:
    """Bytes of one number, by what it is."""

    body: float
    """Weight of a linear layer of a block."""
    head: int
    """Weight of the embedding and of the output head."""
    residual: int
    """The stream between blocks."""
    compute: int
    """Results of products in a block."""
    adapter: int
    """Results between the two matrices of an adapter."""
    adapter_input: int = 0
    """The copy that each adapter keeps of what it reads."""


PRECISIONS: Mapping[str, Precision] = {
    "float32": Precision(4, 4, 4, 4, 4),
    "bfloat16": Precision(2, 2, 2, 2, 4),
    "float16": Precision(2, 2, 2, 2, 4),
    "mixed": Precision(2, 4, 4, 2, 2),
    "8bit": Precision(1 + 4 / 4096, 2, 2, 2, 4, adapter_input=4),
    "4bit": Precision(0.5 + 4 / 64, 2, 2, 2, 4, adapter_input=4),
}
"""By `dtype` or quantization. 4bit: 64 weights share one float32 scale; 8bit: one scale per matrix row of 4096."""


# -- memory that is always in use ------------------------------------------------------------------------------------


def base_bytes(shape: ModelShape, precision: Precision) -> int:
    """The frozen base: body, embedding, and the head where it is a matrix of its own."""
    heads = shape.head_parameters * (1 if shape.tied else 2)
    return round(shape.body_parameters * precision.body) + heads * precision.head


def adapter_bytes(shape: ModelShape) -> int:
    """The float32 weights of both roles' adapters."""
    return 2 * shape.adapter_parameters * FLOAT32


def optimizer_bytes(shape: ModelShape, roles: int = 2) -> int:
    """Gradient and both Adam moments, float32, of the adapters that are trained."""
    return roles * shape.adapter_parameters * 3 * FLOAT32


def cache_bytes(shape: ModelShape, precision: Precision, tokens: int) -> int:
    """Keys and values of this many tokens in all layers."""
    return tokens * shape.kv_size * precision.compute


# -- memory kept for the backward pass -------------------------------------------------------------------------------


def block_bytes(shape: ModelShape, precision: Precision, *, masked: bool = False, stored_attention: int = 0) -> int:
    """What one block keeps of one token for the backward pass.

    Args:
        shape: Of the model.
        precision: Of its numbers.
        masked: Under an explicit mask; then without keys and values, whose number is not that of the tokens.
        stored_attention: Keys per query where the attention is kept as a matrix (no fused kernel); 0: it is not.
    """
    H, ffn = shape.hidden, shape.intermediate
    query, key = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    norms = 2 * H * (FLOAT32 + (precision.residual if precision.residual < FLOAT32 else 0))
    copies = (5 * H + query + ffn) * precision.adapter_input
    attention = (2 * query + (0 if masked else 2 * key)) * precision.compute
    gated = 2 * ffn * precision.compute
    middle = 7 * shape.rank * precision.adapter
    statistics = FLOAT32 * (shape.heads + 2)
    matrix = shape.heads * stored_attention * FLOAT32
    return norms + copies + attention + gated + middle + statistics + matrix


def kept_bytes(
    shape: ModelShape, precision: Precision, tokens: int, *, checkpointing: bool = False, stored_attention: int = 0
) -> int:
    """Kept by a causal pass over this many tokens."""
    if checkpointing:
        return shape.layers * tokens * shape.hidden * precision.residual
    return shape.layers * tokens * block_bytes(shape, precision, stored_attention=stored_attention)


def _replies_kept(shape: ModelShape, precision: Precision, prompt: int, replies: int) -> int:
    """Kept by replies behind one prompt that was read before: their blocks, and all keys and values repeated."""
    repeated = 2 * shape.heads * shape.head_dim * (prompt + replies) * precision.compute
    blocks = replies * block_bytes(shape, precision, masked=True) + repeated
    return shape.layers * blocks + replies * (prompt + replies) * precision.compute


def passing_bytes(shape: ModelShape, precision: Precision, tokens: int) -> int:
    """In use within one block of a forward pass: silu(gate), up and their product."""
    wide = 3 * shape.intermediate * precision.compute
    return tokens * (wide + shape.hidden * (2 * precision.residual + precision.compute))


def backward_bytes(shape: ModelShape, precision: Precision, tokens: int, *, checkpointing: bool = False) -> int:
    """In use within one block of a backward pass, besides what was kept: gradients, and with checkpointing the block.

    The first layer of a block in this direction takes most: the activation and its product with `up` are there again,
    with the gradients of that product and of the residual stream.
    """
    wide = 3 * shape.intermediate * precision.compute
    gradients = tokens * (wide + shape.hidden * precision.residual)
    return gradients + (tokens * block_bytes(shape, precision) if checkpointing else 0)


# -- logits ----------------------------------------------------------------------------------------------------------


def kl_bytes(shape: ModelShape, precision: Precision, chunk: int) -> int:
    """One chunk of the KL: logits of the tuned model and the base; float32 copies of a few positions are left out."""
    return 2 * chunk * shape.vocabulary * precision.head


def answer_bytes(shape: ModelShape, precision: Precision, tokens: int, *, learning: bool) -> int:
    """Logits at answer tokens in float32, their exponentials, and two more in the backward pass."""
    copy = 0 if precision.head == FLOAT32 else precision.head
    return tokens * shape.vocabulary * ((4 if learning else 2) * FLOAT32 + copy)


# -- the phases of a round -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StepMemory:
    """Peak memory of one step besides what is always in use, in bytes."""

    kept: int = 0
    """For the backward pass."""
    logits: int = 0
    passing: int = 0
    """Within one block."""
    cache: int = 0
    """Keys and values."""

    @property
    def peak(self) -> int:
        """Blocks and logits are never computed at the same time."""
        return self.kept + self.cache + max(self.logits, self.passing)


def e_sample_bytes(
    shape: ModelShape, precision: Precision, q: QuestionShape, *, questions: int, decoding: str
) -> StepMemory:
    """Sampling: prompts of up to `TOKENS_PER_BATCH` tokens in one pass, their cache, and m + 1 replies behind each."""
    if q.scored:
        return _likelihood_bytes(shape, precision, q, questions=questions)
    replies = 0 if decoding == "single_pass" else (q.num_permutations + 1) * q.reply
    prompts = _sequences_per_pass(q.prompt + replies, questions)
    cache = cache_bytes(shape, precision, prompts * (q.prompt + replies)) if replies else 0
    masks = prompts * replies * (q.prompt + replies) * (precision.compute + 2 * 8 + 2)
    repeated = prompts * (q.prompt + replies) * 2 * shape.heads * shape.head_dim * precision.compute
    read = passing_bytes(shape, precision, prompts * q.prompt)
    written = passing_bytes(shape, precision, prompts * replies) + masks + repeated
    return StepMemory(passing=max(read, written), cache=cache)


def _likelihood_bytes(shape: ModelShape, precision: Precision, q: QuestionShape, *, questions: int) -> StepMemory:
    """Each candidate read alone, without gradient; logits of a few tokens at a time."""
    length = q.prompt // q.prompts
    tokens = length * _sequences_per_pass(length, questions * q.prompts)
    return StepMemory(
        kept=tokens * shape.hidden * precision.residual,
        logits=logit_bytes(cuda=False),
        passing=passing_bytes(shape, precision, tokens),
    )


def e_score_bytes(shape: ModelShape, precision: Precision, q: QuestionShape, *, sequences: int) -> StepMemory:
    """Log p_g of this many sequences, batched by tokens."""
    together = _sequences_per_pass(q.sequence, sequences)
    tokens = together * q.sequence
    return StepMemory(
        kept=tokens * shape.hidden * precision.residual,
        logits=answer_bytes(shape, precision, together * q.answer, learning=False),
        passing=passing_bytes(shape, precision, tokens),
    )


def _sequences_per_pass(length: int, sequences: int) -> int:
    return min(max(1, TOKENS_PER_BATCH // length), sequences)


def m_selector_bytes(
    shape: ModelShape,
    precision: Precision,
    q: QuestionShape,
    *,
    questions: int = 1,
    checkpointing: bool = False,
    decoding: str = "autoregressive",
) -> StepMemory:
    """The prompts and m replies of each question of a micro-batch, forward and backward."""
    replies = 0 if decoding == "single_pass" or q.scored else q.num_permutations * q.reply
    if checkpointing or not replies:
        tokens = questions * (q.prompt + replies)
        masks = questions * (q.prompt + replies) ** 2 * precision.compute if replies else 0
        kept = kept_bytes(shape, precision, tokens, checkpointing=checkpointing) + masks
        passing = backward_bytes(shape, precision, tokens, checkpointing=checkpointing)
        repeated = 2 * tokens * shape.heads * shape.head_dim * precision.compute if replies else 0
        return StepMemory(kept=kept, passing=passing + repeated)
    prompts = kept_bytes(shape, precision, questions * q.prompt)
    behind = questions * _replies_kept(shape, precision, q.prompt, replies)
    return StepMemory(
        kept=prompts + behind, passing=backward_bytes(shape, precision, questions * max(replies, q.prompt))
    )


def m_generator_bytes(
    shape: ModelShape,
    precision: Precision,
    q: QuestionShape,
    *,
    sequences: int,
    aligned_sequences: int,
    chunk: int | None = None,
    checkpointing: bool = False,
    stored_attention: bool = False,
    cuda: bool = False,
) -> StepMemory:
    """Generator step on one micro-batch of answer sequences, forward and backward, with SelfAug on some of them.

    The answer's logits are kept while the KL is formed; the hidden states of the reference and the KL's gradient have
    H numbers per aligned token each, as have the tuned ones.
    """
    tokens = sequences * q.sequence
    states = (tokens + 3 * aligned_sequences * q.sequence) * shape.hidden * precision.residual
    kept = kept_bytes(
        shape, precision, tokens, checkpointing=checkpointing, stored_attention=q.sequence if stored_attention else 0
    )
    answers = answer_bytes(shape, precision, sequences * q.answer, learning=True)
    chunk = chunk or default_chunk_tokens(shape.vocabulary * precision.head, cuda=cuda)
    kl = answers // 4 + kl_bytes(shape, precision, min(chunk, tokens)) if aligned_sequences else 0
    passing = backward_bytes(shape, precision, tokens, checkpointing=checkpointing)
    return StepMemory(kept=kept + states, logits=max(answers, kl), passing=passing)
