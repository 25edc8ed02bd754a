# SPDX-License-Identifier: MIT
"""A cache that grows in place: a new token is written behind the others, and only a full buffer is copied, into one of
twice the size. DynamicCache copies every key and value at every token."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicLayer

SPARSE = "minimax_m3_sparse"
ROOM = 256  # tokens of the first buffer at least: a power of two, a multiple of every block size in use


class Buffer:
    """[B, H, capacity, D], filled up to `length`."""

    def __init__(self) -> None:
        self.store: torch.Tensor | None = None
        self.length = 0

    def filled(self) -> torch.Tensor | None:
        return None if self.store is None else self.store[:, :, : self.length]

    def append(self, new: torch.Tensor) -> torch.Tensor:
        end = self.length + new.shape[2]
        store = self.store
        if store is None or end > store.shape[2] or _is_closed(store):
            store = self._grow(new, end)
        store[:, :, self.length : end].copy_(new.detach())
        self.length = end
        return store[:, :, :end]

    def _grow(self, new: torch.Tensor, end: int) -> torch.Tensor:
        capacity = ROOM if self.store is None else self.store.shape[2]
        while capacity < end:
            capacity *= 2
        batch, heads, _, dim = new.shape
        grown = new.new_empty((batch, heads, capacity, dim))
        filled = self.filled()
        if filled is not None:
            grown[:, :, : self.length].copy_(filled)
        self.store = grown
        return grown

    def change(self, rows: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Other rows of the batch; what lies behind `length` is not copied."""
        filled = self.filled()
        if filled is None or self.store is None:
            return
        changed = rows(filled)
        store = changed.new_empty((changed.shape[0], *self.store.shape[1:]))
        store[:, :, : self.length].copy_(changed)
        self.store = store

    def to(self, device: torch.device | str) -> None:
        if self.store is not None:
            self.store = self.store.to(device, non_blocking=True)


def _is_closed(store: torch.Tensor) -> bool:
    """Made under inference_mode and met outside of it, where it may not be written."""
    return store.is_inference() and not torch.is_inference_mode_enabled()


class GrowingLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """Keys and values of a dense layer."""

    is_croppable = True

    def __init__(self, *unused: Any, **unused_by_name: Any) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.buffers = {"keys": Buffer(), "values": Buffer()}

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.keys = self.buffers["keys"].append(key_states)
        self.values = self.buffers["values"].append(value_states)
        return self.keys, self.values

    def get_seq_length(self) -> int:
        return self.buffers["keys"].length

    def capacity(self) -> int:
        """Tokens that fit before the next copy."""
        store = self.buffers["keys"].store
        return 0 if store is None else store.shape[2]

    def reset(self) -> None:
        self.buffers = {name: Buffer() for name in self.buffers}
        self.is_initialized = False
        self._show()

    def crop(self, tokens_to_remove: int) -> None:
        """Minus the number of tokens to remove. A positive number, which early 5.x passed, is how many to keep."""
        change = int(tokens_to_remove)
        for buffer in self.buffers.values():
            buffer.length = min(buffer.length, change) if change > 0 else max(buffer.length + change, 0)
        self._show()

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        self._change(lambda x: x.index_select(0, beam_idx.to(x.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        self._change(lambda x: x.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        self._change(lambda x: x[indices])

    def offload(self) -> None:
        for buffer in self.buffers.values():
            buffer.to("cpu")
        self._show()

    def prefetch(self) -> None:
        if self.is_initialized:
            for buffer in self.buffers.values():
                buffer.to(self.device)
            self._show()

    def _change(self, rows: Callable[[torch.Tensor], torch.Tensor]) -> None:
        for buffer in self.buffers.values():
            buffer.change(rows)
        self._show()

    def _show(self) -> None:
        """The attributes that transformers reads are views of what is filled."""
        self.keys = self.buffers["keys"].filled()
        self.values = self.buffers["values"].filled()


class GrowingSparseLayer(GrowingLayer):  # type: ignore[no-untyped-call]
    """Index keys beside them."""

    def __init__(self, *unused: Any, **unused_by_name: Any) -> None:
        super().__init__()
        self.buffers["idx_keys"] = Buffer()
        self.idx_keys: torch.Tensor | None = None

    def update_index(self, idx_k: torch.Tensor) -> torch.Tensor:
        """[B, 1, new, Di] -> all index keys so far."""
        self.idx_keys = self.buffers["idx_keys"].append(idx_k)
        return self.idx_keys

    def _show(self) -> None:
        super()._show()
        self.idx_keys = self.buffers["idx_keys"].filled()


class GrowingCache(Cache):
    """model.generate(..., past_key_values=GrowingCache(model.config)); `cache=` from transformers 5.24 on."""

    def __init__(self, config: Any, **unused: Any) -> None:
        text = config.get_text_config(decoder=True)
        super().__init__(layers=[GrowingSparseLayer() if kind == SPARSE else GrowingLayer() for kind in text.layer_types])
