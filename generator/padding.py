"""Padding, and several replies after one shared prompt (pure functions of tensors).

Legend: B sequences, T tokens, P prompt width, Q query tokens, K key tokens.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


def pad_right(rows: list[list[int]], pad_id: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Sequences of ids to `(ids_BT, lengths_B)`, padded on the right."""
    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), pad_id, dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row, dtype=torch.long)
    return ids.to(device), torch.tensor([len(row) for row in rows], device=device)


def pad_left(rows: list[list[int]], pad_id: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Sequences of ids to `(ids_BT, mask_BT, lengths_B)`, padded on the left, where generation continues on the right.

    The mask is 1 for tokens and 0 for padding, int64.
    """
    reversed_ids, lengths_B = pad_right([row[::-1] for row in rows], pad_id, device)
    return reversed_ids.flip(1), length_mask(lengths_B, reversed_ids.shape[1]).flip(1), lengths_B


def length_mask(lengths_B: Tensor, width: int) -> Tensor:
    """1 for real tokens, 0 for right padding: int64 `[B, width]`."""
    return (torch.arange(width, device=lengths_B.device) < lengths_B[:, None]).long()


@dataclass(frozen=True)
class SharedPrefixTokens:
    """Tokens of one prompt and of several replies to it in one sequence: which reply each belongs to, and where in it.

    Both are int64 vectors with one entry per token. `reply == -1` marks prompt tokens, whose depth is their position in
    the prompt; a reply token of depth t stands at position P + t of its sequence.
    """

    reply: Tensor
    depth: Tensor

    @classmethod
    def of_replies(cls, num_replies: int, start: int, length: int, device: torch.device) -> "SharedPrefixTokens":
        """Tokens `start .. start+length-1` of every reply, reply by reply."""
        depth = torch.arange(start, start + length, device=device).repeat(num_replies)
        return cls(torch.arange(num_replies, device=device).repeat_interleave(length), depth)

    @classmethod
    def of_prompt(cls, length: int, device: torch.device) -> "SharedPrefixTokens":
        """The prompt itself."""
        depth = torch.arange(length, device=device)
        return cls(torch.full_like(depth, -1), depth)

    def followed_by(self, other: "SharedPrefixTokens") -> "SharedPrefixTokens":
        """Both, one after the other."""
        return SharedPrefixTokens(torch.cat([self.reply, other.reply]), torch.cat([self.depth, other.depth]))

    def positions(self, prompt_lengths_B: Tensor) -> Tensor:
        """Position ids `[B, tokens]`: replies restart right after each row's own prompt."""
        offset = torch.where(self.reply < 0, 0, prompt_lengths_B[:, None])
        return self.depth + offset


def shared_prefix_visibility(
    prompt_lengths_B: Tensor, prompt_width: int, query: SharedPrefixTokens, keys: SharedPrefixTokens
) -> tuple[Tensor, Tensor]:
    """Which key each query may see, and how far back it lies.

    A key is a prompt token of the same row, or an earlier-or-same token of the same reply.

    Args:
        prompt_lengths_B: True prompt lengths; the rest up to `prompt_width` is padding.
        prompt_width: P, the padded width of the prompt part of the keys.
        query: Reply and depth of each query token.
        keys: The same for the keys after the prompt.

    Returns:
        `(visible, distance)`, bool and int64, both `[B, Q, P + keys]`; distance is in positions.
    """
    prompt_P = torch.arange(prompt_width, device=prompt_lengths_B.device)
    in_prompt_Q1 = (query.reply < 0)[:, None]
    visible_prompt = (prompt_P < prompt_lengths_B[:, None, None]) & (~in_prompt_Q1 | (prompt_P <= query.depth[:, None]))
    same_reply = (query.reply[:, None] == keys.reply) & (keys.depth <= query.depth[:, None]) & ~in_prompt_Q1
    visible = torch.cat([visible_prompt, same_reply.expand(len(prompt_lengths_B), -1, -1)], -1)
    # A padded query sees nothing; let it see position 0, so that softmax stays finite everywhere.
    visible[..., 0] |= ~visible.any(-1)
    position_K = torch.cat([prompt_P.expand(len(prompt_lengths_B), -1), keys.positions(prompt_lengths_B)], dim=1)
    distance = query.positions(prompt_lengths_B)[:, :, None] - position_K[:, None, :]
    return visible, distance
