"""A key-value cache with room for every token of several sequences, allocated once.

transformers' `DynamicCache` concatenates all keys and values at every step, and under autocast keeps keys in float32,
which are then converted to bfloat16 for the attention kernel at every step too. Here a step writes its own tokens, in
the number format that the kernel takes, and sequences that have ended make room for others.

Legend: R sequences that there is room for, n of them in use, N key-value heads, T tokens of this pass, W width, D head
dimension.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin


@dataclass
class _Place:
    """Where the tokens of the present pass belong."""

    rows: slice | Tensor
    """Sequences that are read: a range of them, or int64 `[n]` where nothing is stored."""
    columns: int | Tensor
    """The column of the first token, the same for all sequences or int64 `[n]`, one for each."""
    width: int
    """Columns that the pass sees, its own tokens included."""
    keeps: bool = True
    """Whether the tokens are stored; otherwise they are seen in this pass only, after the first columns."""


class RowCache(Cache):
    """Keys and values of sequences that may have different lengths; which column a query sees is the mask's affair.

    Before each forward pass one of the methods `read`, `extend` and `look_ahead` says where its tokens belong. Columns
    that were never written are zero, as a masked value that is not finite would still spoil a product.

    Args:
        rows: R.
        width: Tokens that each sequence has room for.
        prefix: Keys and values of a common beginning of all sequences.
    """

    def __init__(self, rows: int, width: int, *, prefix: "RowCache | None" = None) -> None:
        self.rows, self.width = rows, width
        self.prefix_length = 0 if prefix is None else prefix.width
        self.place = _Place(slice(0, 0), 0, 0)
        self._prefix = prefix
        self.row_layers: list[_RowLayer] = []
        # transformers asks for a class; it is only called, to make the next layer.
        super().__init__(layer_class_to_replicate=self._new_layer)  # type: ignore[arg-type]

    def _new_layer(self) -> "_RowLayer":
        number = len(self.row_layers)
        self.row_layers.append(_RowLayer(self, None if self._prefix is None else self._prefix.row_layers[number]))
        return self.row_layers[-1]

    def read(self, first_row: int, num_rows: int, num_tokens: int) -> None:
        """The next pass reads the beginning of sequences, after the common one."""
        start = self.prefix_length
        self.place = _Place(slice(first_row, first_row + num_rows), start, start + num_tokens)

    def extend(self, starts_n: Tensor, width: int) -> None:
        """The next pass reads one more token of each of the first n sequences.

        Args:
            starts_n: Its column in each.
            width: Columns in use, the new ones included.
        """
        self.place = _Place(slice(0, len(starts_n)), starts_n, width)

    def look_ahead(self, rows_n: Tensor, width: int, num_tokens: int) -> None:
        """The next pass reads tokens that are not kept, after the first `width` columns of some sequences."""
        self.place = _Place(rows_n, width, width + num_tokens, keeps=False)

    def move(self, source: Sequence[int], target: Sequence[int]) -> None:
        """Overwrite sequences with others."""
        for layer in self.row_layers:
            for stored in layer.stored():
                for old, new in zip(source, target, strict=True):
                    stored[new] = stored[old]


class _RowLayer(CacheLayerMixin):
    """One layer of a `RowCache`."""

    is_sliding = False

    def __init__(self, owner: RowCache, prefix: "_RowLayer | None") -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._owner, self._prefix = owner, prefix

    def stored(self) -> tuple[Tensor, Tensor]:
        """Keys and values, once something has been read."""
        assert self.keys is not None and self.values is not None
        return self.keys, self.values

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate; called with the first keys and values `[n, N, T, D]`."""
        self.keys, self.values = (self._allocated(states) for states in (key_states, value_states))
        if self._prefix is not None:
            for mine, common in zip(self.stored(), self._prefix.stored(), strict=True):
                mine[:, :, : self._owner.prefix_length] = common
        self.is_initialized = True

    def _allocated(self, states: Tensor) -> Tensor:
        _, heads, _, dimension = states.shape
        device = states.device
        # Under autocast the kernel takes the dtype of autocast, whatever the keys were computed in.
        autocast = torch.is_autocast_enabled(device.type)
        dtype = torch.get_autocast_dtype(device.type) if autocast else states.dtype
        return torch.zeros(self._owner.rows, heads, self._owner.width, dimension, dtype=dtype, device=device)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Store the keys and values `[n, N, T, D]` of this pass; returns all that it sees, `[n, N, W, D]`."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        keys, values = self.stored()
        return self._updated(keys, key_states), self._updated(values, value_states)

    def _updated(self, stored: Tensor, states: Tensor) -> Tensor:
        place, states = self._owner.place, states.to(stored.dtype)
        if not place.keeps:
            return torch.cat([stored[:, :, : place.columns][place.rows], states], dim=2)
        rows = stored[place.rows]
        if isinstance(place.columns, Tensor):
            rows[torch.arange(len(rows), device=rows.device), :, place.columns] = states.squeeze(2)
        else:
            rows[:, :, place.columns : place.width] = states
        return rows[:, :, : place.width]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Keys that this pass sees, and the position of the first."""
        return self._owner.place.width, 0

    def get_seq_length(self) -> int:
        """The column of the first token of this pass."""
        place = self._owner.place
        return place.columns if isinstance(place.columns, int) else place.width - 1

    def get_max_length(self) -> int:
        """Tokens that a sequence has room for."""
        return self._owner.width


def bytes_per_token(cache: RowCache) -> int:
    """Bytes that one token of one sequence takes in a cache that has been read into."""
    return sum(
        int(stored.shape[1] * stored.shape[-1]) * stored.element_size()
        for layer in cache.row_layers
        for stored in layer.stored()
    )
