r"""What training holds in memory at its peak, in bytes: pure formulas over the shape of a causal LM.

They follow from what autograd keeps for the backward pass. The base is frozen, so a linear layer keeps no input for its
own sake; its LoRA adapter does. Per token and layer, with H hidden size, I intermediate size, q = heads x head_dim,
k = key-value heads x head_dim and r the rank, a block keeps

    2 H             both norms' inputs, the residual stream
    2 H             what the adapters of q/k/v and of gate/up read
    2 q + 2 k       queries, keys, values after rotation and the attention's output, which the adapter of o reads
    4 I             gate, silu(gate), up and their product, which the adapter of down reads
    7 r             between the two matrices of each adapter

numbers, 4 bytes each in float32. In bfloat16 every adapter reads a float32 copy of its own (5 H + q + I); with
`"mixed"` a bfloat16 one, and the bfloat16 copy of each frozen weight is kept until its backward. Attention by SDPA
keeps no T x T matrix; with an explicit mask (replies behind a prompt) keys and values are repeated for every query
head. With gradient checkpointing the input of every block is all that is kept, and one block at a time is computed
again.

Legend: T tokens of a pass, P tokens of the ranking prompt, G tokens of an answer row, L answer tokens, V vocabulary,
C tokens of a chunk of the KL, N passages, d dimension of the encoder, m permutations, R rows of a micro-batch.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from rag.planning.flops import ModelShape, Question
from training.losses import default_chunk_tokens

FLOAT32 = 4
TOKENS_PER_BATCH = 16384
"""Rows x longest row of one forward pass of the E-step, as selector and generator have it by default."""


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
    adapter_input: int | None
    """The copy that each adapter makes of what it reads; None: no copy, layers with one input share it."""
    weight_copy: int = 0
    """Copy of every weight of the body that is kept until its backward."""


PRECISIONS: Mapping[str, Precision] = {
    "float32": Precision(4, 4, 4, 4, None),
    "bfloat16": Precision(2, 2, 2, 2, 4),
    "float16": Precision(2, 2, 2, 2, 4),
    "mixed": Precision(4, 4, 4, 2, 2, weight_copy=2),
    "8bit": Precision(1 + 4 / 4096, 2, 2, 2, 4),
    "4bit": Precision(0.5 + 4 / 64, 2, 2, 2, 4),
}
"""By `dtype` or quantization. 4bit: blocks of 64 weights share a float32 scale; 8bit: rows do."""


# -- what is there all the time --------------------------------------------------------------------------------------


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


def index_bytes(passages: int, dimension: int) -> int:
    """A flat FAISS index: 4 N d."""
    return FLOAT32 * passages * dimension


def cache_bytes(shape: ModelShape, precision: Precision, tokens: int) -> int:
    """Keys and values of so many tokens in all layers."""
    return tokens * shape.kv_size * precision.compute


# -- what a pass keeps -----------------------------------------------------------------------------------------------


def block_bytes(shape: ModelShape, precision: Precision, *, masked: bool = False, stored_attention: int = 0) -> int:
    """What one block keeps of one token for the backward pass.

    Args:
        shape: Of the model.
        precision: Of its numbers.
        masked: Under an explicit mask; then without keys and values, whose number is not that of the tokens.
        stored_attention: Keys per query where the attention is kept as a matrix (no fused kernel); 0: it is not.
    """
    H, ffn, r = shape.hidden, shape.intermediate, shape.rank
    query, key = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    copied = precision.adapter_input
    read = 2 * H * precision.residual + ffn * precision.compute if copied is None else (5 * H + query + ffn) * copied
    attention = (2 * query + (0 if masked else 2 * key)) * precision.compute
    middle = 7 * r * (copied or precision.compute)
    statistics = FLOAT32 * (shape.heads + 2)
    norms = 2 * H * FLOAT32
    matrix = shape.heads * stored_attention * FLOAT32
    return norms + read + attention + 3 * ffn * precision.compute + middle + statistics + matrix


def kept_bytes(
    shape: ModelShape, precision: Precision, tokens: int, *, checkpointing: bool = False, stored_attention: int = 0
) -> int:
    """Kept by a plain causal pass over so many tokens."""
    if checkpointing:
        return shape.layers * tokens * shape.hidden * precision.residual
    each = block_bytes(shape, precision, stored_attention=stored_attention)
    return shape.layers * tokens * each + _weight_copies(shape, precision)


def _weight_copies(shape: ModelShape, precision: Precision) -> int:
    return (shape.body_parameters + shape.adapter_parameters) * precision.weight_copy


def _replies_kept(shape: ModelShape, precision: Precision, prompt: int, replies: int) -> int:
    """Kept by replies behind one prompt that was read before: their blocks, and all keys and values repeated."""
    repeated = 2 * shape.heads * shape.head_dim * (prompt + replies) * precision.compute
    blocks = replies * block_bytes(shape, precision, masked=True) + repeated
    return shape.layers * blocks + replies * (prompt + replies) * precision.compute


def passing_bytes(shape: ModelShape, precision: Precision, tokens: int) -> int:
    """Alive within one block of a forward pass: silu(gate), and three like `up` while its adapter is added."""
    wide = 4 * shape.intermediate * precision.compute
    return tokens * (wide + shape.hidden * (2 * precision.residual + precision.compute))


def backward_bytes(shape: ModelShape, precision: Precision, tokens: int, *, checkpointing: bool = False) -> int:
    """Alive within one block of a backward pass, beside what was kept: gradients, and with checkpointing the block.

    Gradients take the place of what was kept and is let go; one of the size of `up` is all that comes on top.
    """
    gradients = tokens * (shape.intermediate * precision.compute + shape.hidden * precision.residual)
    if not checkpointing:
        return gradients
    copies = _weight_copies(shape, precision) // shape.layers
    return gradients + tokens * block_bytes(shape, precision) + copies


# -- logits ----------------------------------------------------------------------------------------------------------


def kl_bytes(shape: ModelShape, precision: Precision, chunk: int) -> int:
    """One chunk of the KL: the tuned and the base's logits; float32 exists for a few rows only and is left out."""
    return 2 * chunk * shape.vocabulary * precision.head


def answer_bytes(shape: ModelShape, precision: Precision, tokens: int, *, learning: bool) -> int:
    """Logits at answer tokens in float32, their exponentials, and two more in the backward pass."""
    copy = 0 if precision.head == FLOAT32 else precision.head
    return tokens * shape.vocabulary * ((4 if learning else 2) * FLOAT32 + copy)


# -- the phases of a round -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Phase:
    """The peak of one phase beyond what is there all the time."""

    kept: int = 0
    """For the backward pass."""
    logits: int = 0
    passing: int = 0
    """Within one block, and the key-value cache."""
    cache: int = 0

    @property
    def peak(self) -> int:
        """Blocks and logits are never computed at the same time."""
        return self.kept + self.cache + max(self.logits, self.passing)


def e_sample_bytes(shape: ModelShape, precision: Precision, q: Question, *, questions: int, decoding: str) -> Phase:
    """Drawing: prompts of up to `TOKENS_PER_BATCH` tokens in one pass, their cache, and m + 1 replies behind each."""
    replies = 0 if decoding == "single_pass" else (q.num_permutations + 1) * q.reply
    rows = _rows_at_once(q.prompt + replies, questions)
    cache = cache_bytes(shape, precision, rows * (q.prompt + replies)) if replies else 0
    masks = rows * replies * (q.prompt + replies) * (precision.compute + 2 * 8 + 2)
    repeated = rows * (q.prompt + replies) * 2 * shape.heads * shape.head_dim * precision.compute
    read = passing_bytes(shape, precision, rows * q.prompt)
    written = passing_bytes(shape, precision, rows * replies) + masks + repeated
    return Phase(passing=max(read, written), cache=cache)


def e_score_bytes(shape: ModelShape, precision: Precision, q: Question, *, rows: int) -> Phase:
    """Log p_g of so many rows, batched by tokens."""
    together = _rows_at_once(q.row, rows)
    tokens = together * q.row
    return Phase(
        kept=tokens * shape.hidden * precision.residual,
        logits=answer_bytes(shape, precision, together * q.answer, learning=False),
        passing=passing_bytes(shape, precision, tokens),
    )


def _rows_at_once(length: int, rows: int) -> int:
    return min(max(1, TOKENS_PER_BATCH // length), rows)


def m_selector_bytes(
    shape: ModelShape,
    precision: Precision,
    q: Question,
    *,
    questions: int = 1,
    checkpointing: bool = False,
    decoding: str = "autoregressive",
) -> Phase:
    """One prompt and m replies of each question of a micro-batch, forward and backward."""
    replies = 0 if decoding == "single_pass" else q.num_permutations * q.reply
    if checkpointing or not replies:
        tokens = questions * (q.prompt + replies)
        masks = questions * (q.prompt + replies) ** 2 * precision.compute if replies else 0
        kept = kept_bytes(shape, precision, tokens, checkpointing=checkpointing) + masks
        passing = backward_bytes(shape, precision, tokens, checkpointing=checkpointing)
        repeated = 2 * tokens * shape.heads * shape.head_dim * precision.compute if replies else 0
        return Phase(kept=kept, passing=passing + repeated)
    prompts = kept_bytes(shape, precision, questions * q.prompt)
    behind = questions * _replies_kept(shape, precision, q.prompt, replies) + _weight_copies(shape, precision)
    return Phase(kept=prompts + behind, passing=backward_bytes(shape, precision, questions * max(replies, q.prompt)))


def m_generator_bytes(
    shape: ModelShape,
    precision: Precision,
    q: Question,
    *,
    rows: int,
    aligned_rows: int,
    chunk: int | None = None,
    checkpointing: bool = False,
    stored_attention: bool = False,
    cuda: bool = False,
) -> Phase:
    """So many answer rows in one micro-batch, forward and backward, with SelfAug on some of them.

    The answer's logits are kept while the KL is formed; the hidden states of the reference and the KL's gradient have
    H numbers per aligned token each, as have the tuned ones.
    """
    tokens = rows * q.row
    states = (tokens + 3 * aligned_rows * q.row) * shape.hidden * precision.residual
    kept = kept_bytes(
        shape, precision, tokens, checkpointing=checkpointing, stored_attention=q.row if stored_attention else 0
    )
    answers = answer_bytes(shape, precision, rows * q.answer, learning=True)
    chunk = chunk or default_chunk_tokens(shape.vocabulary * precision.head, cuda=cuda)
    kl = answers // 4 + kl_bytes(shape, precision, min(chunk, tokens)) if aligned_rows else 0
    passing = backward_bytes(shape, precision, tokens, checkpointing=checkpointing)
    return Phase(kept=kept + states, logits=max(answers, kl), passing=passing)
