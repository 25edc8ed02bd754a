# SPDX-License-Identifier: MIT
"""Block ids of a whole sequence and of one rank's part of it, each to the other, in as few small kernels as may be.

Nothing is sorted: a list of ids may have any order. A listed block that lies elsewhere becomes one of some blocks behind
all that are here, which exist but which no row sees; `unseen` says how many of them there must be.
"""
from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Dealt", "Ids", "Own", "Placed", "Spare", "behind_first", "count"]

_NOWHERE = torch.iinfo(torch.int32).max  # the position of a block that is not there


class Spare(NamedTuple):
    """Ids that no block has, for a merge to choose where there are too few: every list is full then, and has no -1."""

    begin: int
    topk: int     # as many for every list,
    forced: int   # and one for each forced block that is not there


class Dealt:
    """Blocks that are dealt round robin: block l of a rank is block l * ranks + rank of the sequence.

    first: blocks here that are chosen anyway, and which candidates come behind
    most: the most blocks that any rank has, where somebody asked; a list may hold none that are not there then
    """

    def __init__(self, rank: int, ranks: int, blocks: int, first: int, forced: int, topk: int, most: int | None,
                 device: torch.device) -> None:
        self._ranks, self._first, self._trusts = ranks, first, most is not None
        self._rank = torch.full((1,), rank, dtype=torch.int32, device=device)
        end = ranks * max(blocks + 1, most or 0)  # no rank has a block from here on, where lengths are those of pages
        self.spare = Spare(end, topk, forced)
        ids = torch.arange(end + topk + forced, dtype=torch.int32, device=device)
        self._last = ids.shape[0] - 1
        self.unseen = ids.shape[0]
        self._local = torch.where((ids % ranks == rank) & (ids // ranks < blocks), ids // ranks, blocks + ids)
        own = torch.arange(first, first + blocks, dtype=torch.int32, device=device) * ranks + rank
        self._global = torch.cat((torch.full((1,), -1, dtype=torch.int32, device=device), own))
        self._one = torch.ones(1, dtype=torch.int64, device=device)

    def to_global(self, ids: Tensor, into: Tensor) -> None:
        """Of candidates: i32 [T, Hi, k], -1 behind the last."""
        if ids.is_cuda and self._first == 0:
            # What -1 becomes is below 0 too, and a GPU takes such ids for blocks that are not there.
            torch.add(self._rank, ids, alpha=self._ranks, out=into)
        else:
            torch.take(self._global, ids + self._one, out=into)

    def to_local(self, ids: Tensor) -> Tensor:
        """Of full lists, those that merges with spare ids give."""
        known = ids if self._trusts else ids.clamp(max=self._last)
        return torch.index_select(self._local, 0, known.flatten()).view(ids.shape)

    def listed(self, ids: Tensor) -> Tensor:
        """The same lists with -1 behind the last that there is."""
        return torch.where(ids < self.spare.begin, ids, -1)


class Placed:
    """Blocks whose positions a tensor holds: i32 [L] or, of each row, [rows, L]; ascending, INT32_MAX behind the last."""

    spare = None

    def __init__(self, blocks: int, init_blocks: int, topk: int, device: torch.device) -> None:
        self.unseen, self._init_blocks, self._blocks = topk, init_blocks, blocks
        # The local id behind each odd place among the edges of blocks, and an unseen one behind each even one.
        places = torch.arange(2 * blocks + 1, dtype=torch.int32, device=device)
        slots = torch.arange(topk, dtype=torch.int32, device=device).unsqueeze(1)
        self._local = torch.where(places % 2 == 1, places // 2, blocks + slots)
        self._slot = slots.flatten().long() * (2 * blocks + 1)
        self._edges: Tensor | None = None

    def read(self, positions: Tensor) -> Tensor:
        """Positions have other contents; returns how many of them are of first blocks, [1] or [rows, 1]."""
        # An id's place is odd where it is one of the positions.
        ends = torch.where(positions == _NOWHERE, _NOWHERE, positions + 1)
        edges = torch.stack((positions, ends), dim=-1).flatten(-2)
        first = (positions < self._init_blocks).sum(-1, keepdim=True)
        if self._init_blocks > 0:
            positions = behind_first(positions, first)
        # Local id -1, 0, 1, ... in column 0, 1, 2, ...; [L + 1] or [rows, L + 1].
        own = torch.cat((torch.full_like(positions[..., :1], -1), positions), dim=-1)
        if self._edges is None:
            rows = torch.arange(len(positions) if positions.dim() == 2 else 1, device=positions.device)
            self._edges, self._global, self._row = edges, own, rows.view(-1, 1, 1) * (self._blocks + 1) + 1
        else:
            self._edges.copy_(edges)
            self._global.copy_(own)
        return first

    def to_global(self, ids: Tensor, into: Tensor) -> None:
        """Of candidates: i32 [T, Hi, k], -1 behind the last."""
        torch.take(self._global, ids + self._row, out=into)

    def to_local(self, ids: Tensor) -> Tensor:
        """Of lists with -1 behind the last."""
        assert self._edges is not None  # read() came before
        flat = ids.flatten(1) if self._edges.dim() == 2 else ids
        places = torch.searchsorted(self._edges, flat, right=True).view(ids.shape)
        return torch.take(self._local, places + self._slot)

    def listed(self, ids: Tensor) -> Tensor:
        """The lists as they are."""
        return ids


class Own:
    """Lists of this rank's own blocks, in its own numbers: kernels that read other ranks' boxes turn ids themselves."""

    spare = None
    unseen = 0

    def to_global(self, ids: Tensor, into: Tensor) -> None:
        """Candidates stay what they are."""
        if ids is not into:
            into.copy_(ids)

    def to_local(self, ids: Tensor) -> Tensor:
        """The lists as they are."""
        return ids

    def listed(self, ids: Tensor) -> Tensor:
        """The lists as they are."""
        return ids


Ids = Dealt | Own | Placed


def count(positions: Tensor, blocks: Tensor, right: bool = False) -> Tensor:
    """i32 [rows]: how many positions, [L] or [rows, L], are below `blocks` [rows], or (right) up to them."""
    if positions.dim() == 1:
        return torch.searchsorted(positions, blocks, out_int32=True, right=right)
    return torch.searchsorted(positions, blocks.unsqueeze(1), out_int32=True, right=right).squeeze(1)


def behind_first(table: Tensor, first: Tensor) -> Tensor:
    """Columns from `first` [1] or [rows, 1] on; the last one again where there are none left."""
    columns = (torch.arange(table.shape[-1], device=table.device) + first).clamp(max=table.shape[-1] - 1)
    return table[columns] if table.dim() == 1 else table.gather(1, columns.expand(table.shape))
