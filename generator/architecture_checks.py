"""What an architecture can do, found by trying it on a few tokens when a model is loaded.

Some properties are required (causal attention, logits that follow from the last hidden states), others only decide how
batches are formed (several replies after one shared prompt, padding on the left).

Legend: B batch elements, T tokens.
"""

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from transformers import Cache, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from generator.adapters import Adapters, first_line
from generator.architecture_findings import ArchitectureFindings
from generator.base_config import text_config
from generator.packed_attention import NAME as PACKED
from generator.packed_attention import KeptKeys
from generator.packed_sequences import AttentionLayout, CausalRun, PackedSequences, SharedKeys
from generator.padding import SharedPrefixTokens
from indexes.errors import UsageError

logger = logging.getLogger(__name__)

_KNOWN_WINDOWS = {
    "sliding_window",
    "max_window_layers",
    "sliding_window_pattern",
    "_sliding_window_pattern",
    "prefix_dense_sliding_window_pattern",
}
"""Fields of configs about how far attention looks back that `shared_prefix_masks` heeds or that change nothing."""


class CheckedModel(Protocol):
    """What the checks need of a `generator.language_model.LanguageModel`."""

    tokenizer: PreTrainedTokenizerBase
    adapters: Adapters

    @property
    def base_model(self) -> PreTrainedModel:
        """The causal LM."""
        ...

    @property
    def device(self) -> torch.device:
        """Where it is."""
        ...

    def use(self, role: str) -> AbstractContextManager[Any]:
        """Activate an adapter."""
        ...

    def autocast(self) -> torch.autocast:
        """The number format of its products."""
        ...

    def hidden(
        self,
        input_ids_BQ: Tensor,
        attention_mask: Tensor | dict[str, Tensor] | None,
        *,
        position_ids_BQ: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        """Last hidden states."""
        ...

    def hidden_in_row(
        self,
        token_ids_T: Tensor,
        positions_T: Tensor,
        layout: AttentionLayout,
        *,
        kept: KeptKeys | None = None,
    ) -> Tensor:
        """Last hidden states of packed tokens."""
        ...

    def head(self, hidden_NH: Tensor) -> Tensor:
        """Logits of hidden states."""
        ...

    def logits_for_positions(self, hidden_NH: Tensor, token_ids_n: Tensor) -> Tensor:
        """Logits of a few tokens."""
        ...

    def shared_prefix_masks(
        self, prompt_lengths_B: Tensor, prompt_width: int, query: SharedPrefixTokens, keys: SharedPrefixTokens
    ) -> Tensor | dict[str, Tensor]:
        """Attention masks of several replies after one prompt."""
        ...

    def attention_types(self) -> tuple[list[str], float]:
        """Kinds of attention layers, and the width of the sliding window."""
        ...

    def new_cache(self) -> Cache:
        """An empty cache."""
        ...


@torch.no_grad()
def check_causal(model: CheckedModel) -> None:
    """Refuse a base in which a token attends to a later one: padding on the right would change results.

    Raises:
        UsageError: It is not causal, or does not read plain sequences of tokens.
    """
    both = torch.cat([_some_tokens(model, 5, last=last) for last in (1, 2)])
    try:
        # With an adapter: a router that is a linear layer, yet gives more than a tensor, as Llama 4's, cannot have one.
        with model.use("generator"):
            first, second = model.hidden(both, None)[:, :-1].float()
    except Exception as error:  # whatever an architecture raises that is no language model by itself
        raise UsageError(
            f"The base must read plain sequences of tokens; {type(model.base_model).__name__} cannot: "
            f"{type(error).__name__}: {first_line(error)} Use another architecture, or other target_modules."
        ) from error
    if not _agree(model, first, second):
        raise UsageError(
            f"The base must be causal, so that no token sees a later one; in {type(model.base_model).__name__} the "
            "last token changes what is read before it. Use a decoder (of the BERT family: with is_decoder=true in its "
            "config.json)."
        )


@torch.no_grad()
def check_head(model: CheckedModel) -> None:
    """Refuse a base whose logits are not those of its head on its last hidden states.

    Raises:
        UsageError: Log-probabilities would be silently wrong.
    """
    probe = torch.tensor([[model.tokenizer.eos_token_id] * 2], device=model.device)
    expected = model.base_model(input_ids=probe).logits.float()
    ids = torch.arange(min(3, expected.shape[-1]), device=model.device)
    try:
        hidden = model.hidden(probe, None)
        found = model.head(hidden).float()
        rows = model.logits_for_positions(hidden, ids)
        close = torch.allclose(found, expected, rtol=1e-2, atol=1e-2)
        close = close and torch.allclose(rows, expected[..., ids], rtol=5e-2, atol=5e-2)
    except RuntimeError:  # RemBERT's head does not even take hidden states of that size
        close = False
    if not close:
        raise UsageError(
            f"{type(model.base_model).__name__} changes its logits after the output head in a way that is not "
            "known here, or its hidden states before it (as the BERT family does); selection and alignment would be "
            "wrong. Use another architecture or report it."
        )


def supports_shared_prefix(model: CheckedModel) -> bool:
    """Whether several replies after one prompt are read as in sequences of their own."""
    return _works(model, _shared_prefix_matches)


def supports_left_padding(model: CheckedModel) -> bool:
    """Whether prompts of unequal lengths continue in one batch as each does in a batch of its own."""
    return _works(model, _left_padding_matches)


def supports_packing(model: CheckedModel) -> bool:
    """Whether sequences in one row are read as each is by itself; switches the base to attention that can do so.

    That attention is `sdpa` with the kernel for CPUs. A base with attention of its own, or with another implementation,
    is left as it is.
    """
    base: Any = model.base_model
    before = base.config._attn_implementation
    if before != "sdpa" or model.device.type != "cpu" or not base._can_set_attn_implementation():
        return False
    use_packed_attention(model)
    if _works(model, _packing_matches):
        return True
    base.set_attn_implementation(before)
    return False


def use_packed_attention(model: CheckedModel) -> None:
    """Switch the base to the attention that `supports_packing` tries."""
    base: Any = model.base_model
    base.set_attn_implementation(PACKED)


def find_out(model: CheckedModel, key: str) -> ArchitectureFindings:
    """Try everything.

    Args:
        model: A model that has just been loaded.
        key: The `architecture_key` of its base.

    Raises:
        UsageError: A required property is missing.
    """
    check_causal(model)
    check_head(model)
    return ArchitectureFindings(
        key=key,
        supports_shared_prefix=supports_shared_prefix(model),
        supports_left_padding=supports_left_padding(model),
        supports_packing=supports_packing(model),
        linear_without_tensor=model.adapters.linear_without_tensor,
    )


@torch.no_grad()
def _works(model: CheckedModel, matches: Callable[[CheckedModel], bool]) -> bool:
    """Whether a way of reading several sequences at once works; one that raises does not."""
    try:
        return matches(model)
    except Exception as error:  # masks of four dimensions, caches of another kind, positions: anything may be raised
        logger.debug("%s reads sequences one by one: %s", type(model.base_model).__name__, error)
        return False


def _shared_prefix_matches(model: CheckedModel) -> bool:
    text = text_config(model.base_model.config).to_dict()
    # A limited look-back that `shared_prefix_masks` does not know of shows only in long prompts.
    limits = {name for name, v in text.items() if ("window" in name or "chunk" in name) and type(v) is int and v > 0}
    if limits - _KNOWN_WINDOWS or not {*model.attention_types()[0]} <= {"full_attention", "sliding_attention"}:
        return False
    rows = _some_tokens(model, 11)
    prompt, replies = rows[:, :5], (rows[:, 5:8], rows[:, 8:])
    lengths_B, width = torch.tensor([5], device=model.device), 7  # two tokens of padding after the prompt
    padded = nn.functional.pad(prompt, (0, 2))
    replied = SharedPrefixTokens.of_replies(2, 0, 3, model.device)
    cache = model.new_cache()
    model.hidden(padded, None, cache=cache)
    after_cache = model.hidden(
        torch.cat(replies, dim=1),
        model.shared_prefix_masks(lengths_B, width, replied, replied),
        position_ids_BQ=replied.positions(lengths_B),
        cache=cache,
    )
    tokens = SharedPrefixTokens.of_prompt(width, model.device).followed_by(replied)
    in_one_row = model.hidden(
        torch.cat([padded, *replies], dim=1),
        model.shared_prefix_masks(lengths_B, width, tokens, replied),
        position_ids_BQ=tokens.positions(lengths_B),
    )[:, width:]
    separate = [model.hidden(torch.cat([prompt, reply], dim=1), None)[:, 5:] for reply in replies]
    expected = torch.cat(separate, dim=1)
    return _agree(model, after_cache, expected) and _agree(model, in_one_row, expected)


def _packing_matches(model: CheckedModel) -> bool:
    text = text_config(model.base_model.config).to_dict()
    if not {*model.attention_types()[0]} <= {"full_attention", "sliding_attention"}:
        return False
    # Frequencies that depend on the longest sequence that is read together.
    scaling = str(text.get("rope_parameters") or text.get("rope_scaling"))
    if "dynamic" in scaling or "longrope" in scaling:
        return False
    rows = _some_tokens(model, 12)
    beginning, (first, second) = rows[:, :5], (rows[:, 5:8], rows[:, 8:12])
    separate = [model.hidden(torch.cat([beginning, reply], dim=1), None)[0, 5:] for reply in (first, second)]
    packed = PackedSequences.of_continuations([beginning[0].tolist()], [[first[0].tolist(), second[0].tolist()]])
    ids_T, positions_T = (torch.tensor(row, device=model.device) for row in (packed.token_ids, packed.positions))
    hidden_TH = model.hidden_in_row(ids_T, positions_T, packed.layout)
    in_one_row = [hidden_TH[places[5:]] for places in packed.places]
    return _agree(model, torch.cat(in_one_row), torch.cat(separate)) and _steps_match(model, rows[0, :8], separate[0])


def _steps_match(model: CheckedModel, ids: Tensor, expected: Tensor) -> bool:
    """Whether a prompt of five tokens and then one token after another are read as all of them at once."""
    kept, positions = KeptKeys(), torch.arange(len(ids), device=ids.device)
    model.hidden_in_row(ids[:5], positions[:5], AttentionLayout((CausalRun(0, 1, 5),)), kept=kept)
    step = AttentionLayout((CausalRun(0, 1, 1),), kept=(SharedKeys(slice(0, 1), slice(0, 5)),))
    found = [model.hidden_in_row(ids[i : i + 1], positions[i : i + 1], step, kept=kept) for i in range(5, len(ids))]
    return _agree(model, torch.cat(found), expected)


def _left_padding_matches(model: CheckedModel) -> bool:
    base: Any = model.base_model
    short, long = _some_tokens(model, 4), _some_tokens(model, 7)
    padding = torch.full_like(long[:, :3], int(model.tokenizer.eos_token_id))
    mask = torch.ones_like(long).repeat(2, 1)
    mask[0, :3] = 0

    def logits(ids: Tensor, mask: Tensor) -> Tensor:
        # Two steps: the second one reads from the cache.
        config = GenerationConfig(
            max_new_tokens=2,
            min_new_tokens=2,
            do_sample=False,
            pad_token_id=0,
            output_logits=True,
            return_dict_in_generate=True,
        )
        with model.autocast():
            found = base.generate(ids, attention_mask=mask, generation_config=config)
        return torch.stack(found.logits, dim=1)

    together = logits(torch.cat([torch.cat([padding, short], dim=1), long]), mask)
    separate = torch.cat([logits(ids, torch.ones_like(ids)) for ids in (short, long)])
    return _agree(model, together, separate)


def _some_tokens(model: CheckedModel, length: int, *, last: int = 0) -> Tensor:
    """Some tokens `[1, T]`, none of them special in most vocabularies."""
    size = len(cast(Tensor, model.base_model.get_input_embeddings().weight))
    ids = torch.arange(length, device=model.device) * 7 + size // 2
    ids[-1] += last
    return (ids % size).unsqueeze(0)


def _agree(model: CheckedModel, first: Tensor, second: Tensor) -> bool:
    """Whether two results for the same tokens agree, to the precision of the base's dtype."""
    allowed = 1e-3 if model.base_model.dtype == torch.float32 else 5e-2
    difference, size = (first.float() - second.float()).norm(), second.float().norm()
    return bool(torch.isfinite(difference)) and float(difference) <= allowed * float(size) + 1e-6
