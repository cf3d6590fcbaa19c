"""Prompts that have been read, ready to be continued token by token or to have replies scored after them.

Every prompt is read once, and the common beginning of all prompts of a call (chat template, instructions) once for all
of them. Prompts are grouped by length, as many as the cache may hold, since a decoding step reads all weights whatever
the number of sequences.

Legend: R prompts of a group, n of them in a pass, P tokens of the common beginning, T tokens, U replies of a prompt, L
tokens of the longest reply, W width of the cache, H hidden size.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from generator.base_config import text_config
from generator.language_model import LanguageModel
from generator.log_probs import logit_bytes, sum_per_row, token_log_probs
from generator.padding import SharedPrefixTokens, pad_right, shared_prefix_visibility
from generator.row_cache import RowCache, bytes_per_token
from indexes.batching import token_budget_batches

SHORTEST_PREFIX = 8
"""A common beginning of fewer tokens is read with each prompt: a pass of its own would cost more than it saves."""
TOKENS_PER_PASS_ON_CPU = 512
"""A CPU reads prompts no faster in larger passes, and rows of one pass are padded to the longest."""


@dataclass(frozen=True)
class ReadingLimits:
    """How much is read and kept at one time."""

    max_tokens_per_batch: int
    """Sequences x longest sequence of one forward pass; one sequence may be longer."""
    max_cache_bytes: int
    """Of the keys and values of a group; one group may be larger, if it cannot be divided."""


@dataclass(frozen=True)
class _Prefix:
    """The common beginning of all prompts of a call, in a cache of one row; none where there is no cache."""

    cache: RowCache | None = None

    @property
    def length(self) -> int:
        """P."""
        return 0 if self.cache is None else self.cache.width


class ReadPrompts:
    """Prompts in a cache, each in a row of its own, longest first.

    Rows change their places when others leave, and with them the entries of `indices` and everything else that is
    listed by row. The methods must run under the adapter of the role, and without autograd.

    Args:
        model: The model that reads.
        prompts: Token ids of all prompts of the call.
        indices: Which of them to read.
        room: Tokens that may follow each.
        prefix: The common beginning of all prompts of the call, if it has been read.
        limits: Sizes of passes.
    """

    def __init__(
        self,
        model: LanguageModel,
        prompts: Sequence[list[int]],
        indices: Sequence[int],
        room: int,
        prefix: _Prefix,
        limits: ReadingLimits,
    ) -> None:
        self.model = model
        self.indices = sorted(indices, key=lambda i: (-len(prompts[i]), i))
        """The prompt in each row."""
        rows = [prompts[i] for i in self.indices]
        self.prompt_lengths = [len(row) for row in rows]
        self._lengths = list(self.prompt_lengths)
        """Tokens in each row, with what has followed the prompt."""
        self._limits = limits
        self._cache = RowCache(len(rows), self.prompt_lengths[0] + room, prefix=prefix.cache)
        self.last_RH = self._read(rows, prefix)
        """Hidden states of the last token of each prompt."""

    def __len__(self) -> int:
        return len(self.indices)

    def _read(self, rows: list[list[int]], prefix: _Prefix) -> Tensor:
        start = prefix.length
        budget = self._limits.max_tokens_per_batch
        if self.model.device.type == "cpu":
            budget = min(budget, TOKENS_PER_PASS_ON_CPU)
        found, first = [], 0
        for batch in token_budget_batches([len(row) - start for row in rows], budget):  # in order: longest first
            found.append(self._read_batch([rows[i][start:] for i in batch], first, start))
            first += len(batch)
        return torch.cat(found)

    def _read_batch(self, rows: list[list[int]], first_row: int, start: int) -> Tensor:
        """Last hidden states `[n, H]` of prompts that are read from token P on."""
        model = self.model
        ids_nT, lengths_n = pad_right(rows, model.end_of_answer_id, model.device)
        model.tokens_read += sum(map(len, rows))
        n, T = ids_nT.shape
        self._cache.read(first_row, n, T)
        if not start:
            # Padding is on the right, where no real token looks: the kernels' own causal mask is enough.
            hidden_nTH = model.hidden(ids_nT, None, cache=self._cache)
        else:
            position_T = torch.arange(start, start + T, device=model.device)
            distance_TK = position_T[:, None] - torch.arange(start + T, device=model.device)
            distance_nTK = distance_TK.expand(n, -1, -1)  # XGLM refuses a mask that is the same for all sequences
            masks = model.attention_masks(distance_nTK >= 0, distance_nTK)
            positions_nT = position_T.expand(n, -1)
            hidden_nTH = model.hidden(ids_nT, masks, position_ids_BQ=positions_nT, cache=self._cache)
        return hidden_nTH[torch.arange(n, device=model.device), lengths_n - 1]

    def extend(self, tokens: Sequence[int]) -> Tensor:
        """Read one more token of every row: its hidden states `[R, H]`."""
        model, device = self.model, self.model.device
        starts_R = torch.tensor(self._lengths, device=device)
        width = max(self._lengths) + 1
        self._cache.extend(starts_R, width)
        distance_RK = starts_R[:, None] - torch.arange(width, device=device)
        masks = model.attention_masks((distance_RK >= 0)[:, None], distance_RK[:, None])
        ids_R1 = torch.tensor(tokens, device=device).unsqueeze(1)
        model.tokens_read += len(tokens)
        hidden_R1H = model.hidden(ids_R1, masks, position_ids_BQ=starts_R.unsqueeze(1), cache=self._cache)
        self._lengths = [length + 1 for length in self._lengths]
        return hidden_R1H[:, 0]

    def keep(self, rows: Sequence[int]) -> list[int]:
        """Drop all other rows.

        Those that stay beyond the new number of rows move into the places of those that leave; nothing else is copied.

        Returns:
            The row that each place of the new order was before.
        """
        staying = set(rows)
        order = [row if row in staying else -1 for row in range(len(rows))]
        moving = [row for row in range(len(rows), len(self)) if row in staying]
        holes = [place for place, row in enumerate(order) if row < 0]
        self._cache.move(moving, holes)
        for place, row in zip(holes, moving, strict=True):
            order[place] = row
        self.indices = [self.indices[row] for row in order]
        self.prompt_lengths = [self.prompt_lengths[row] for row in order]
        self._lengths = [self._lengths[row] for row in order]
        self.last_RH = self.last_RH[order]
        return order

    def log_probs(self, rows: Sequence[int], replies: Sequence[Sequence[list[int]]]) -> list[Tensor]:
        """Log-probabilities of replies directly after the prompts, whatever has followed these in the meantime.

        Args:
            rows: Which prompts.
            replies: Token ids of several replies to each of them, all of which are scored.

        Returns:
            For each of the prompts, float32 `[U]` on the CPU, in nats.
        """
        longest = [max(map(len, of_row)) * len(of_row) for of_row in replies]
        found: dict[int, Tensor] = {}
        for batch in token_budget_batches(longest, self._limits.max_tokens_per_batch):
            scored = self._log_probs([rows[i] for i in batch], [replies[i] for i in batch])
            found |= dict(zip(batch, scored, strict=True))
        return [found[i] for i in range(len(rows))]

    def _log_probs(self, rows: list[int], replies: list[Sequence[list[int]]]) -> list[Tensor]:
        device = self.model.device
        rows_n = torch.tensor(rows, device=device)
        U, L = max(map(len, replies)), max(len(reply) for of_row in replies for reply in of_row)
        padded = [[*of_row, *[[]] * (U - len(of_row))] for of_row in replies]
        flat = [reply or [self.model.end_of_answer_id] for of_row in padded for reply in of_row]
        ids_NL, _ = pad_right(flat, self.model.end_of_answer_id, device)  # N = n U
        counts_N = torch.tensor([len(reply) for of_row in padded for reply in of_row], device=device)
        first_NH = self.last_RH[rows_n].repeat_interleave(U, dim=0)
        hidden_NLH = first_NH[:, None]
        self.model.tokens_read += sum(len(reply) - 1 for reply in flat)
        if L > 1:  # the last token is only predicted
            later_nTH = self._look_ahead(rows_n, ids_NL[:, :-1].reshape(len(rows), U * (L - 1)), U)
            hidden_NLH = torch.cat([hidden_NLH, later_nTH.reshape(len(flat), L - 1, -1)], dim=1)
        scored_NL = torch.arange(L, device=device) < counts_N[:, None]
        log_p = self._token_log_probs(hidden_NLH[scored_NL], ids_NL[scored_NL])
        reply_N = torch.arange(len(flat), device=device)
        sums_N = sum_per_row(log_p, reply_N.repeat_interleave(counts_N), len(flat)).cpu()
        return [sums_U[: len(of_row)] for sums_U, of_row in zip(sums_N.view(-1, U), replies, strict=True)]

    def _look_ahead(self, rows_n: Tensor, ids_nT: Tensor, num_replies: int) -> Tensor:
        """Hidden states `[n, T, H]` of several replies of one length after each of some prompts."""
        model = self.model
        lengths = [self.prompt_lengths[row] for row in rows_n.tolist()]
        lengths_n, width = torch.tensor(lengths, device=model.device), max(lengths)
        T = ids_nT.shape[1]
        tokens = SharedPrefixTokens.of_replies(num_replies, 0, T // num_replies, model.device)
        masks = model.attention_masks(*shared_prefix_visibility(lengths_n, width, tokens, tokens))
        self._cache.look_ahead(rows_n, width, T)
        return model.hidden(ids_nT, masks, position_ids_BQ=tokens.positions(lengths_n), cache=self._cache)

    def _token_log_probs(self, hidden_NH: Tensor, targets_N: Tensor) -> Tensor:
        head = self.model.head
        vocabulary = head(hidden_NH[:0]).shape[-1]  # no row, and so no work
        size = max(1, logit_bytes(cuda=hidden_NH.is_cuda) // (4 * vocabulary))
        pairs = zip(hidden_NH.split(size), targets_N.split(size), strict=True)
        return torch.cat([token_log_probs(head(hidden_CH), targets_C) for hidden_CH, targets_C in pairs])


def read_prompts(
    model: LanguageModel,
    prompts: Sequence[list[int]],
    room: int,
    limits: ReadingLimits,
    *,
    together: Sequence[Sequence[int]] | None = None,
) -> Iterator[ReadPrompts]:
    """Read prompts in groups that fit the cache, longest first.

    Args:
        model: Its active adapter reads; it must support several replies after one prompt, whose masks are used.
        prompts: Token ids; there may be none.
        room: Tokens that may follow each.
        limits: Sizes of passes and groups.
        together: Indices of prompts that must be in one group; None: each may be in any.
    """
    if not prompts:
        return
    units = [[i] for i in range(len(prompts))] if together is None else together
    prefix = _read_prefix(model, prompts)
    for members in _groups(model, prompts, units, room, prefix, limits.max_cache_bytes):
        yield ReadPrompts(model, prompts, members, room, prefix, limits)


def _read_prefix(model: LanguageModel, prompts: Sequence[list[int]]) -> _Prefix:
    length = _common_length(prompts) if len(prompts) > 1 and not _positions_depend_on_length(model) else 0
    if length < SHORTEST_PREFIX:
        return _Prefix()
    return _Prefix(_read_one(model, prompts[0][:length]))


def _read_one(model: LanguageModel, ids: list[int]) -> RowCache:
    cache = RowCache(1, len(ids))
    cache.read(0, 1, len(ids))
    model.tokens_read += len(ids)
    model.hidden(torch.tensor([ids], device=model.device), None, cache=cache)
    return cache


def _common_length(prompts: Sequence[list[int]]) -> int:
    """Tokens that all prompts begin with; at least one token of each prompt is left."""
    first, last = min(prompts), max(prompts)
    most = min(map(len, prompts)) - 1
    return next((i for i in range(most) if first[i] != last[i]), most)


def _positions_depend_on_length(model: LanguageModel) -> bool:
    """Whether the embedding of a position depends on the length of what is read, as in dynamic RoPE scaling."""
    config = text_config(model.base_model.config).to_dict()
    scaling = config.get("rope_parameters") or config.get("rope_scaling") or {}
    return any(kind in str(scaling) for kind in ("dynamic", "longrope"))


def _groups(
    model: LanguageModel,
    prompts: Sequence[list[int]],
    units: Sequence[Sequence[int]],
    room: int,
    prefix: _Prefix,
    max_bytes: int,
) -> list[list[int]]:
    """Indices of the prompts of each group."""
    if len(units) == 1:
        return [list(units[0])]
    size = bytes_per_token(prefix.cache or _read_one(model, prompts[0][:1]))
    longest = [max(len(prompts[i]) for i in unit) + room for unit in units]
    groups: list[list[int]] = []
    width = 0
    for unit in sorted(range(len(units)), key=lambda u: (-longest[u], u)):
        if not groups or (len(groups[-1]) + len(units[unit])) * width * size > max_bytes:
            groups.append([])
            width = longest[unit]
        groups[-1] += units[unit]
    return groups
