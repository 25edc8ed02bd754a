# SPDX-License-Identifier: MIT
"""The two exchanges of a decode: candidates become lists, states become outputs. In one of two ways, with the same bits.

Collected: the group gathers boxes, and merges read them. Meeting: GPUs of one host read each other's boxes where they lie;
the barrier is part of the kernel that reads them, which also turns ids of the sequence into this rank's and rounds outputs.
"""
from __future__ import annotations

import torch
from torch import Tensor

from .. import _core
from .boxes import GatheredBoxes, SharedBoxes
from .shard import STATE_PAD, Shard, join

__all__ = ["Collected", "Meeting", "words_of"]

_FLOATS = (torch.float32, torch.float16, torch.bfloat16)


def words_of(ranks: int) -> int:
    """Of the pad of a rank, which all ranks write to."""
    return 2 * ranks + 2


class Collected:
    """Both exchanges by collectives."""

    def __init__(self, shard: Shard, candidates: GatheredBoxes, states: GatheredBoxes) -> None:
        self._shard, self._candidates, self._states = shard, candidates, states

    def choose(self) -> tuple[Tensor, Tensor]:
        """Lists of the sequence, and those that attend() takes."""
        merged = self._shard.merge(self._candidates.swap())
        return merged, merged

    def join(self, dtype: torch.dtype, wants_lse: bool) -> tuple[Tensor, Tensor | None]:
        """Output and lse."""
        out, lse = join(self._states.swap(), self._shard.settings)
        return out.to(dtype), lse if wants_lse else None


class Meeting:
    """Both by kernels that meet those of the other ranks. They take turns: choose, join, choose, ..."""

    def __init__(self, rank: int, shard: Shard, candidates: SharedBoxes, states: SharedBoxes, pads: SharedBoxes) -> None:
        self._shard, self._candidates, self._states, self._pads = shard, candidates, states, pads
        self._rank, self._dealt = rank, shard.list_own()
        self._first = shard.settings.init_blocks if self._dealt else 0

    def choose(self) -> tuple[Tensor, Tensor]:
        """Lists of the sequence, and those that attend() takes."""
        ids = torch.empty_like(self._candidates.own[0])
        own = torch.empty_like(ids) if self._dealt else None
        _core.peers_choose(self._rank, self._candidates.addresses, self._pads.addresses, self._pads.timeout_ms,
                           self._dealt, self._first, self._shard.forced_ids, ids, own)
        return ids, ids if own is None else own

    def join(self, dtype: torch.dtype, wants_lse: bool) -> tuple[Tensor, Tensor | None]:
        """Output and lse."""
        rows, heads, width = self._states.own.shape
        out = self._states.own.new_empty((rows, heads, width - STATE_PAD),
                                         dtype=dtype if dtype in _FLOATS else torch.float32)
        lse = self._states.own.new_empty((rows, heads)) if wants_lse else None
        _core.peers_join(self._rank, self._states.addresses, self._pads.addresses, self._pads.timeout_ms, out, lse)
        return out.to(dtype), lse
