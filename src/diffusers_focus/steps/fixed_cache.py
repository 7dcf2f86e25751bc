"""Keys and values with room for what is still to be written (FOCUS section "Visual tokens").

transformers' `DynamicCache` makes a new tensor of all keys for every token, and its shapes differ from token to token. How long an
image block is, is known before it is written, so here the room is there from the start, a step writes into its slots, and one mask
says what a query may look at: what is filled, or all of the room, so that `torch.compile` sees the same shapes at every step. In
the manner of transformers' `StaticCache` (Apache-2.0); begun from a prefix, the slots of a step computed once for all layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin


class _Layer(CacheLayerMixin):
    """Keys and values [R, kv heads, S, head dim] of one layer."""

    is_compileable = True
    is_sliding = False
    supports_early_init = False
    keys: torch.Tensor
    values: torch.Tensor

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, rows: torch.Tensor, size: int) -> None:
        super().__init__()
        length = keys.shape[2]
        self.keys = keys.new_zeros((len(rows), keys.shape[1], size, keys.shape[3]))
        self.values = values.new_zeros((len(rows), values.shape[1], size, values.shape[3]))
        rows = rows.to(keys.device)
        self.keys[:, :, :length] = keys[rows]
        self.values[:, :, :length] = values[rows]
        self.slots = rows[:0]
        self.stop: int | None = None
        self.is_initialized = True

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Nothing to do: the layer is born with its tensors."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the new states [R, kv heads, t, head dim] into the slots taken for them; returns those up to `stop`, uncopied."""
        self.keys.index_copy_(2, self.slots, key_states)
        self.values.index_copy_(2, self.slots, value_states)
        return self.keys[:, :, : self.stop], self.values[:, :, : self.stop]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset of what `update` returns."""
        return self.keys.shape[2] if self.stop is None else self.stop, 0

    def get_seq_length(self) -> torch.Tensor:  # type: ignore[override]
        """The first slot of the running step; a tensor, so that a compiled step does not depend on its value."""
        return self.slots[0]

    def get_max_length(self) -> int:
        """S."""
        return self.keys.shape[2]


class FixedCache(Cache):
    """The cache of R rows.

    Args:
        layers: (keys, values) of each layer, [B, kv heads, P, head dim]; copied.
        mask: bool [B, P], False at padding.
        rows: int64 [R], which of the B each row goes on from.
        room: how many positions may follow; S is P + `room`.
    """

    def __init__(
        self, layers: Sequence[tuple[torch.Tensor, torch.Tensor]], mask: torch.Tensor, rows: torch.Tensor, room: int
    ) -> None:
        self.filled = mask.shape[1]
        size = self.filled + room
        self.states = [_Layer(keys, values, rows, size) for keys, values in layers]
        super().__init__(layers=list(self.states))
        self.mask = mask.new_zeros((len(rows), size))
        self.mask[:, : self.filled] = mask[rows]
        self.unpadded = bool(mask[rows].all())  # asked of the device once, before anything is written
        self.slots = torch.arange(size, device=mask.device)
        self.steady: dict[int, torch.Tensor] = {}

    def take(self, length: int, new: torch.Tensor | None = None, *, whole: bool = False) -> torch.Tensor | None:
        """Take the next t slots for a forward; must be called before each.

        Args:
            length: t.
            new: bool [R, t], False where a row has nothing to say; None where all have.
            whole: look at all of the room, so that no shape differs from that of the last step; otherwise at what is filled. The
                layers then read their slots from one tensor for each t, so that a recorded step reads what it read.

        Returns:
            bool [R, 1, t, S or what is filled]: the slots that each new position sees, its own among them. None for one position
            that sees all there is.

        Raises:
            ValueError: there is not as much room left.
        """
        first, stop = self.filled, self.filled + length
        if stop > len(self.slots):
            raise ValueError(
                f"{length} positions do not fit into the {len(self.slots) - first} that are left. Ask for more room."
            )
        self.mask[:, first:stop] = True if new is None else new
        self.unpadded &= new is None
        self.filled = stop
        slots = self.slots[first:stop]
        if whole:
            slots = self.steady.setdefault(length, slots.clone()).copy_(slots)
        for layer in self.states:
            layer.slots, layer.stop = slots.to(layer.keys.device), None if whole else stop
        if self.unpadded and length == 1 and not whole:
            return None
        end = len(self.slots) if whole else stop
        return self.mask[:, None, None, :end] & (self.slots[:end] <= slots[:, None])
