"""Several replies to each of several ranking prompts, as a language model reads them; three ways, the same numbers.

| class | a prompt is read | base |
|---|---|---|
| PackedReplies | once, all prompts and replies in one row without padding | those that `LanguageModel.packs` |
| MaskedReplies | once, prompts padded, replies under a mask that separates them | `supports_shared_prefix` |
| SeparateReplies | again with every reply | any |

Replies are read whole, with gradient (`read`), or grow by one choice of each at a time (`begin`, `extend`).

Legend: B prompts, m replies to each, k choices in a reply, S tokens of a choice (its identifier and the separator),
R = B m replies in all, P prompt width, T tokens, H hidden size.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Cache

from generator.language_model import LanguageModel
from generator.packed_attention import KeptKeys
from generator.packed_sequences import AttentionLayout, CausalRun, PackedSequences, SharedKeys
from generator.padding import SharedPrefixTokens, pad_right
from indexes.batching import token_budget_batches


class Replies(ABC):
    """Hidden states where identifiers are due; under whatever adapter is active.

    Args:
        model: The model that reads.
        prompts: Token ids of each prompt.
    """

    def __init__(self, model: LanguageModel, prompts: Sequence[list[int]]) -> None:
        self._model, self._prompts = model, list(prompts)
        self._lengths = [len(prompt) for prompt in self._prompts]

    @abstractmethod
    def read(self, ids_BmkS: Tensor) -> tuple[Tensor, Tensor]:
        """Whole replies: hidden states at the end of each prompt `[B, H]` and of each choice `[B, m, k, H]`.

        Args:
            ids_BmkS: Token ids.
        """

    @abstractmethod
    def begin(self, m: int, *, grow: bool) -> Tensor:
        """Read the prompts, without gradient: hidden states `[B, H]` at their ends.

        Args:
            m: How many replies to each will grow.
            grow: Whether any will.
        """

    @abstractmethod
    def extend(self, ids_BmS: Tensor, parents_Bm: Tensor | None) -> Tensor:
        """Read one more choice of every reply, without gradient: hidden states `[B, m, H]` after it.

        Args:
            ids_BmS: Its token ids.
            parents_Bm: Which reply to the same prompt each reply goes on from; None: from itself.
        """


class PackedReplies(Replies):
    """Prompts and replies in one row."""

    def read(self, ids_BmkS: Tensor) -> tuple[Tensor, Tensor]:
        """As `Replies.read`: prompts and replies in one pass."""
        B, m, k, S = ids_BmkS.shape
        if not m * k:
            first_BH = self._read_prompts(None)
            return first_BH, first_BH.new_zeros(B, m, 0, first_BH.shape[-1])
        packed = PackedSequences.of_continuations(self._prompts, ids_BmkS.flatten(2).tolist())
        hidden_TH = self._model.hidden_of_packed(packed)
        first_B = [packed.places[b * m][length - 1] for b, length in enumerate(self._lengths)]
        later = [packed.places[r][self._lengths[r // m] + S - 1 :: S] for r in range(B * m)]
        device = hidden_TH.device
        later_Rk = torch.stack(later).to(device)
        return hidden_TH[torch.stack(first_B).to(device)], hidden_TH[later_Rk].view(B, m, k, -1)

    def begin(self, m: int, *, grow: bool) -> Tensor:
        """As `Replies.begin`."""
        self._kept, self._m, self._read = KeptKeys(), m, 0
        return self._read_prompts(self._kept if grow else None)

    def _read_prompts(self, kept: KeptKeys | None) -> Tensor:
        packed = PackedSequences.of(self._prompts, sharing=False)
        self._spans = [slice(int(places[0]), int(places[-1]) + 1) for places in packed.places]
        hidden_TH = self._model.hidden_of_packed(packed, kept=kept)
        return hidden_TH[torch.tensor([span.stop - 1 for span in self._spans], device=hidden_TH.device)]

    def extend(self, ids_BmS: Tensor, parents_Bm: Tensor | None) -> Tensor:
        """As `Replies.extend`: replies move to where their parents are, and only what is new is read."""
        B, m, S = ids_BmS.shape
        device = ids_BmS.device
        if parents_Bm is not None and self._read:
            self._kept.move((parents_Bm.to(device) + m * torch.arange(B, device=device)[:, None]).flatten())
        shared = [SharedKeys(slice(b * m * S, (b + 1) * m * S), span) for b, span in enumerate(self._spans)]
        layout = AttentionLayout((CausalRun(0, B * m, S),), kept=tuple(shared))
        starts_B11 = torch.tensor(self._lengths, device=device)[:, None, None] + self._read
        positions_BmS = (starts_B11 + torch.arange(S, device=device)).expand(B, m, S)
        self._model.tokens_read += ids_BmS.numel()
        self._read += S
        hidden_TH = self._model.hidden_in_row(ids_BmS.flatten(), positions_BmS.flatten(), layout, kept=self._kept)
        return hidden_TH.view(B, m, S, -1)[:, :, -1]


class MaskedReplies(Replies):
    """Prompts in a key-value cache, padded on the right; a mask lets each reply see its prompt and itself."""

    def __init__(self, model: LanguageModel, prompts: Sequence[list[int]]) -> None:
        super().__init__(model, prompts)
        self._ids_BP, self._lengths_B = pad_right(self._prompts, model.end_of_answer_id, model.device)

    def read(self, ids_BmkS: Tensor) -> tuple[Tensor, Tensor]:
        """As `Replies.read`."""
        B, m, k, S = ids_BmkS.shape
        if self._model.is_checkpointing and torch.is_grad_enabled() and m * k:
            return self._read_in_one_pass(ids_BmkS)
        first_BH = self.begin(m, grow=m * k > 0)
        if not m * k:
            return first_BH, first_BH.new_zeros(B, m, 0, first_BH.shape[-1])
        hidden_BTH = self._read_replies(ids_BmkS.flatten(1), SharedPrefixTokens.of_replies(m, 0, k * S, self._device))
        return first_BH, hidden_BTH.view(B, m, k, S, -1)[..., -1, :]

    @property
    def _device(self) -> torch.device:
        return self._model.device

    def begin(self, m: int, *, grow: bool) -> Tensor:
        """As `Replies.begin`.

        No real token looks at the padding on the right: causal attention needs no mask, and without one its kernels
        skip what lies above the diagonal.
        """
        model = self._model
        self._cache: Cache | None = model.new_cache() if grow else None
        self._seen = SharedPrefixTokens.of_replies(m, 0, 0, self._device)
        model.tokens_read += sum(self._lengths)
        hidden_BPH = model.hidden(self._ids_BP, None, cache=self._cache)
        return hidden_BPH[torch.arange(len(hidden_BPH), device=self._device), self._lengths_B - 1]

    def extend(self, ids_BmS: Tensor, parents_Bm: Tensor | None) -> Tensor:
        """As `Replies.extend`: replies move to where their parents are, and only what is new is read."""
        B, m, S = ids_BmS.shape
        if parents_Bm is not None:
            self._move(parents_Bm.to(self._device), S)
        tokens = SharedPrefixTokens.of_replies(m, len(self._seen.depth) // m, S, self._device)
        return self._read_replies(ids_BmS.flatten(1), tokens).view(B, m, S, -1)[:, :, -1]

    def _move(self, parents_Bm: Tensor, S: int) -> None:
        """Each step has left S tokens of all replies behind the prompt."""
        assert self._cache is not None
        start, m = self._ids_BP.shape[1], parents_Bm.shape[1]
        parents_B1m11 = parents_Bm[:, None, :, None, None]
        layers: Sequence[Any] = self._cache.layers if len(self._seen.depth) else []
        for layer in layers:
            for states in (layer.keys, layer.values):
                for first in range(start, states.shape[2], m * S):
                    step_BNmSD = states[:, :, first : first + m * S].unflatten(2, (m, S))
                    step_BNmSD.copy_(step_BNmSD.gather(2, parents_B1m11.expand_as(step_BNmSD)))

    def _read_replies(self, ids_BT: Tensor, tokens: SharedPrefixTokens) -> Tensor:
        model = self._model
        self._seen = self._seen.followed_by(tokens)
        model.tokens_read += ids_BT.numel()
        return model.hidden(
            ids_BT,
            model.shared_prefix_masks(self._lengths_B, self._ids_BP.shape[1], tokens, self._seen),
            position_ids_BQ=tokens.positions(self._lengths_B),
            cache=self._cache,
        )

    def _read_in_one_pass(self, ids_BmkS: Tensor) -> tuple[Tensor, Tensor]:
        """Prompt and replies in one sequence, because gradient checkpointing leaves no cache to read from."""
        model = self._model
        B, m, k, S = ids_BmkS.shape
        P = self._ids_BP.shape[1]
        model.tokens_read += sum(self._lengths) + ids_BmkS.numel()
        replies = SharedPrefixTokens.of_replies(m, 0, k * S, self._device)
        tokens = SharedPrefixTokens.of_prompt(P, self._device).followed_by(replies)
        hidden_BTH = model.hidden(
            torch.cat([self._ids_BP, ids_BmkS.flatten(1)], dim=1),
            model.shared_prefix_masks(self._lengths_B, P, tokens, replies),
            position_ids_BQ=tokens.positions(self._lengths_B),
        )
        first_BH = hidden_BTH[torch.arange(B, device=self._device), self._lengths_B - 1]
        return first_BH, hidden_BTH[:, P:].view(B, m, k, S, -1)[..., -1, :]


class SeparateReplies(Replies):
    """Each reply in a sequence of its own after its prompt.

    For models whose layers keep a state or make masks of their own, so that one prompt cannot serve several replies:
    the same probabilities, at the price of reading the prompt m times.

    Args:
        model: The model that reads.
        prompts: Token ids of each prompt.
        max_tokens_per_batch: Sequences x longest sequence of one forward pass.
    """

    def __init__(self, model: LanguageModel, prompts: Sequence[list[int]], max_tokens_per_batch: int) -> None:
        super().__init__(model, prompts)
        self._budget = max_tokens_per_batch

    def read(self, ids_BmkS: Tensor) -> tuple[Tensor, Tensor]:
        """As `Replies.read`."""
        B, m, k, S = ids_BmkS.shape
        first_BH = self._hidden_at(self._prompts, torch.zeros(1, dtype=torch.long))[:, 0]
        if not m * k:
            return first_BH, first_BH.new_zeros(B, m, 0, first_BH.shape[-1])
        rows = [self._prompts[r // m] + reply for r, reply in enumerate(ids_BmkS.flatten(2).flatten(0, 1).tolist())]
        return first_BH, self._hidden_at(rows, torch.arange(k - 1, -1, -1) * S).view(B, m, k, -1)

    def begin(self, m: int, *, grow: bool) -> Tensor:
        """As `Replies.begin`."""
        self._so_far: Tensor | None = None
        return self._hidden_at(self._prompts, torch.zeros(1, dtype=torch.long))[:, 0]

    def extend(self, ids_BmS: Tensor, parents_Bm: Tensor | None) -> Tensor:
        """As `Replies.extend`: prompt and reply are read from the beginning."""
        B, m, _ = ids_BmS.shape
        if self._so_far is not None:
            before_BmT = self._so_far
            if parents_Bm is not None:
                before_BmT = before_BmT.gather(1, parents_Bm.to(ids_BmS.device)[..., None].expand_as(before_BmT))
            ids_BmS = torch.cat([before_BmT, ids_BmS], dim=-1)
        self._so_far = ids_BmS
        rows = [self._prompts[r // m] + reply for r, reply in enumerate(ids_BmS.flatten(0, 1).tolist())]
        return self._hidden_at(rows, torch.zeros(1, dtype=torch.long)).view(B, m, -1)

    def _hidden_at(self, rows: Sequence[list[int]], from_end_k: Tensor) -> Tensor:
        """Hidden states `[rows, k, H]` so many tokens before the last one of each sequence."""
        model = self._model
        from_end_k = from_end_k.to(model.device) + 1
        found: dict[int, Tensor] = {}
        for numbers in token_budget_batches([len(row) for row in rows], self._budget):
            ids_RT, lengths_R = pad_right([rows[i] for i in numbers], model.end_of_answer_id, model.device)
            model.tokens_read += sum(len(rows[i]) for i in numbers)
            hidden_RTH = model.hidden(ids_RT, None)
            at_Rk = lengths_R[:, None] - from_end_k
            each_R1 = torch.arange(len(numbers), device=model.device)[:, None]
            found |= dict(zip(numbers, hidden_RTH[each_R1, at_Rk], strict=True))
        return torch.stack([found[i] for i in range(len(rows))])


def replies_to(
    model: LanguageModel, prompts: Sequence[list[int]], *, reply_tokens: int, max_tokens_per_batch: int
) -> Replies:
    """Replies to some prompts, read in the fastest way that the model supports.

    Args:
        model: The model that reads.
        prompts: Token ids of each prompt.
        reply_tokens: The most tokens of a reply.
        max_tokens_per_batch: As for `SeparateReplies`.
    """
    if model.packs(max(map(len, prompts)) + reply_tokens):
        return PackedReplies(model, prompts)
    if model.supports_shared_prefix or not reply_tokens:
        return MaskedReplies(model, prompts)
    return SeparateReplies(model, prompts, max_tokens_per_batch)
