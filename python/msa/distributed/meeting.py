# SPDX-License-Identifier: MIT
"""The two exchanges of a decode: candidates become lists, states become outputs. In one of two ways, with the same bits.

Collected: the group gathers boxes, and merges read them. Meeting: GPUs of one host read and write each other's boxes where
they lie, and the barrier is part of the kernels that do. Where the library has one for what the layer is, attention does
the first exchange itself, between its selection and its blocks, and leaves its states in every rank's box; else merges
read the others' boxes, turn ids of the sequence into this rank's and round outputs.
"""
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _core
from ..errors import Unsupported
from .boxes import GatheredBoxes, SharedBoxes
from .shard import STATE_PAD, Pages, Shard, join

__all__ = ["Collected", "Meeting", "words_of"]

_FLOATS = (torch.float32, torch.float16, torch.bfloat16)


def words_of(ranks: int) -> int:
    """Of the pad of a rank, which all ranks write to."""
    return 2 * ranks + 2


class Collected:
    """Both exchanges by collectives."""

    def __init__(self, shard: Shard, candidates: GatheredBoxes, states: GatheredBoxes) -> None:
        self._shard, self._candidates, self._states = shard, candidates, states

    def attend(self, q: Tensor, k: Tensor, v: Tensor, index_q: Tensor, index_k: Tensor, pages: Pages) -> Tensor:
        """Lists of the sequence; states are this rank's."""
        self._shard.candidates(index_q, index_k, pages, self._candidates.own)
        ids = self._shard.merge(self._candidates.swap())
        self._shard.attend(q, k, v, ids, pages, self._states.own)
        return ids

    def join(self, dtype: torch.dtype, wants_lse: bool) -> tuple[Tensor, Tensor | None]:
        """Output and lse."""
        out, lse = join(self._states.swap(), self._shard.settings)
        return out.to(dtype), lse if wants_lse else None


class Meeting:
    """Both by kernels that meet those of the other ranks. They take turns: attend or choose, join, attend, ..."""

    def __init__(self, rank: int, shard: Shard, candidates: SharedBoxes, told: SharedBoxes, states: SharedBoxes,
                 pads: SharedBoxes) -> None:
        self._shard, self._candidates, self._told, self._states, self._pads = shard, candidates, told, states, pads
        self._rank, self._dealt = rank, shard.list_own()
        self._first = shard.settings.init_blocks if self._dealt else 0
        self._parts = states.parts_there  # where join() finds the states of each rank
        self._apart: set[Any] = set()  # layers that take a launch for each step

    def attend(self, q: Tensor, k: Tensor, v: Tensor, index_q: Tensor, index_k: Tensor, pages: Pages) -> Tensor:
        """Lists of the sequence; states are this rank's, or lie in every rank's box."""
        kind = (q.dtype, k.dtype, v.dtype, index_k.dtype, q.shape[1:], index_q.shape[1:], k.shape[1:],
                *(field for field in pages if isinstance(field, str)))
        if kind not in self._apart and self._shard.may_attend_among(pages):
            try:
                return self._attend_among(q, k, v, index_q, index_k, pages)
            except Unsupported:  # and on all ranks, as a layer is of one kind on all of them
                self._apart.add(kind)
        self._shard.candidates(index_q, index_k, pages, self._candidates.own)
        ids, own = self.choose()
        self._shard.attend(q, k, v, own, pages, self._states.own)
        self._parts = self._states.parts_there
        return ids

    def _attend_among(self, q: Tensor, k: Tensor, v: Tensor, index_q: Tensor, index_k: Tensor, pages: Pages) -> Tensor:
        ids = torch.empty_like(self._candidates.own[0])
        self._shard.attend_among((self._rank, self._told.addresses, self._pads.addresses, self._pads.timeout_ms,
                                  self._states.addresses), q, k, v, index_q, index_k, pages, self._states.own, ids)
        self._parts = self._states.parts_here
        return ids

    def choose(self) -> tuple[Tensor, Tensor]:
        """Lists of the sequence, and those that attend() of the shard takes."""
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
        _core.peers_join(self._rank, self._parts, self._pads.addresses, self._pads.timeout_ms, out, lse)
        return out.to(dtype), lse
