# SPDX-License-Identifier: MIT
"""One rank's part of a decode over a cache whose blocks are dealt to ranks, without any communication.

The library knows nothing of ranks: here a shard is a sequence of its own, its blocks numbered 0, 1, ... in the order of
their positions. Because that order is the global one, each query row sees a prefix of it, and a row is a request of its
own with that many keys. Forced blocks are everybody's knowledge: the last ones are left out of the prefix that
candidates come from, the first ones taken out of them, and both join the merge as a part of their own.
"""
from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .. import operations as msa

__all__ = ["Pages", "Rows", "Settings", "Shard", "join", "merge", "rows_of"]

_FOUR_BITS = ("nvfp4", "nvfp4/tensor", "q8kv4")  # two values in a byte
_NONE = torch.iinfo(torch.int32).max  # sorts behind every id


class Settings(NamedTuple):
    """What every call of a group shares."""

    block_size: int
    topk: int
    local_blocks: int
    init_blocks: int
    softmax_scale: float | None
    backend: str | None
    threads: int


class Pages(NamedTuple):
    """Scales and formats of a rank's pages, and a filter of its index keys: as in msa.msa_attention."""

    k_scale: Tensor | None = None
    v_scale: Tensor | None = None
    k_global_scale: Tensor | None = None
    v_global_scale: Tensor | None = None
    index_k_scale: Tensor | None = None
    index_k_global_scale: Tensor | None = None
    index_k8: Tensor | None = None
    index_k8_bounds: Tensor | None = None
    kv_format: str | None = None
    index_k_format: str | None = None
    index_filter: str | None = None
    precision: str | None = None


class Rows(NamedTuple):
    """Query rows of a decode call."""

    requests: Tensor | None  # i64 [T], the request of each row; None: one row a request
    last: Tensor             # i32 [T], position of the last key that a row sees; below 0: none


def rows_of(seqlens_k: Tensor, queries: list[int] | None, causal: bool) -> Rows:
    """The rows of requests whose last tokens they are: seqlens_k i32 [B], the whole lengths."""
    last = seqlens_k - 1
    if queries is None:
        return Rows(None, last)
    counts = torch.tensor(queries, device=seqlens_k.device)
    requests = torch.repeat_interleave(counts, output_size=sum(queries))
    last = last[requests]
    if causal:
        behind = [n - 1 - i for n in queries for i in range(n)]
        last = last - torch.tensor(behind, dtype=torch.int32, device=last.device)
    return Rows(requests, last)


class Shard:
    """Pages of this rank, and what lies in them.

    page_table: i32 [B, columns], block l of a request in its columns l * n .. l * n + n - 1, n = block_size / page size
    positions: i32 [L] or [B, L], the block of the whole sequence that each one is, ascending; INT32_MAX behind the last
    """

    def __init__(self, rows: Rows, page_table: Tensor, page_size: int, positions: Tensor, settings: Settings,
                 pages: Pages = Pages()) -> None:
        self.rows, self.settings, self.pages = rows, settings, pages
        self.blocks = page_table.shape[1] * page_size // settings.block_size
        if rows.requests is not None:
            page_table = page_table[rows.requests]
            positions = positions[rows.requests] if positions.dim() == 2 else positions
        self.page_table, self.positions = page_table, positions.contiguous()
        self.starts = torch.arange(page_table.shape[0] + 1, dtype=torch.int32, device=page_table.device)

    def candidates(self, index_q: Tensor, index_k: Tensor) -> Tensor:
        """The best unforced blocks here: i32 [2, T, Hi, k], global ids and the bits of their scores."""
        s, pages, shape = self.settings, self.pages, (*index_q.shape[:2], self.settings.topk)
        if self.blocks == 0:
            none = torch.full(shape, -1, dtype=torch.int32, device=index_q.device)
            return torch.stack((none, torch.full_like(none, float("-inf"), dtype=torch.float32).view(torch.int32)))
        found = msa.select_blocks(index_q, index_k, page_table=self.page_table, seqlens_k=self._unforced_keys(),
                                  cu_seqlens_q=self.starts, block_size=s.block_size, topk=s.topk, local_blocks=0,
                                  init_blocks=0, index_k_scale=pages.index_k_scale,
                                  index_k_global_scale=pages.index_k_global_scale, index_k8=pages.index_k8,
                                  index_k8_bounds=pages.index_k8_bounds, index_k_format=pages.index_k_format,
                                  index_filter=pages.index_filter, precision=pages.precision, max_seqlen_q=1,
                                  max_seqlen_k=self.blocks * s.block_size,
                                  backend=s.backend, threads=s.threads, return_scores=True)
        ids = torch.where(found.block_ids >= 0, self._positions_at(found.block_ids), -1)
        scores = found.chosen_scores
        if s.init_blocks > 0:
            ids = torch.where(ids < s.init_blocks, -1, ids)
            ids, order = _ascending(ids)
            scores = torch.where(ids >= 0, scores.gather(-1, order), float("-inf"))
        return torch.stack((ids, scores.view(torch.int32)))

    def attend(self, q: Tensor, k: Tensor, v: Tensor, block_ids: Tensor) -> Tensor:
        """Attention to the listed blocks that lie here: f32 [T, Hq, Dv + 4], the lse behind the output."""
        s, pages = self.settings, self.pages
        value_dim = v.shape[-1] * (2 if pages.kv_format in _FOUR_BITS else 1)
        state = torch.zeros((*q.shape[:2], value_dim + 4), device=q.device)  # rows stay aligned to 16 bytes
        if self.blocks == 0:
            state[..., value_dim] = float("-inf")
            return state
        out, lse = msa.sparse_attention(q, k, v, self._here(block_ids), page_table=self.page_table,
                                        seqlens_k=self._visible_keys(), cu_seqlens_q=self.starts,
                                        k_scale=pages.k_scale, v_scale=pages.v_scale,
                                        k_global_scale=pages.k_global_scale, v_global_scale=pages.v_global_scale,
                                        kv_format=pages.kv_format,
                                        block_size=s.block_size, softmax_scale=s.softmax_scale, max_seqlen_q=1,
                                        max_seqlen_k=self.blocks * s.block_size, backend=s.backend, threads=s.threads,
                                        out_dtype="f32", return_lse=True)
        state[..., :value_dim] = out
        state[..., value_dim] = lse
        return state

    # ---- from the whole sequence to this part of it ----

    # Local blocks whose global ids are below `blocks` [T]: they are the first ones.
    def _below(self, blocks: Tensor) -> Tensor:
        if self.positions.dim() == 1:
            return torch.searchsorted(self.positions, blocks)
        return torch.searchsorted(self.positions, blocks.unsqueeze(1)).squeeze(1)

    def _positions_at(self, local: Tensor) -> Tensor:
        local = local.long().clamp(0, self.blocks - 1)
        if self.positions.dim() == 1:
            return self.positions[local]
        return self.positions.gather(1, local.flatten(1)).view(local.shape)

    # Keys here that each row sees: its last block may lie here, and ends where the row does. Where it lies behind all
    # that are here, the last one here is another.
    def _visible_keys(self) -> Tensor:
        size = self.settings.block_size
        block = self.rows.last // size
        count = self._below(block)
        last_here = self._positions_at(count.unsqueeze(1)).squeeze(1) == block
        return (count * size + torch.where(last_here, self.rows.last - block * size + 1, 0)).int()

    # Keys of the blocks here that are not forced as last ones.
    def _unforced_keys(self) -> Tensor:
        if self.settings.local_blocks == 0:
            return self._visible_keys()
        block = self.rows.last // self.settings.block_size
        return (self._below(block - self.settings.local_blocks + 1) * self.settings.block_size).int()

    # The listed blocks that lie here, by their numbers here.
    def _here(self, block_ids: Tensor) -> Tensor:
        flat = block_ids.flatten(1).contiguous()
        local = torch.searchsorted(self.positions, flat).view(block_ids.shape)
        here = (block_ids >= 0) & (self._positions_at(local) == block_ids)
        return _ascending(torch.where(here, local.int(), -1))[0]


def merge(gathered: Tensor, rows: Rows, settings: Settings) -> Tensor:
    """The selection, i32 [T, Hi, k]. gathered: i32 [ranks, 2, T, Hi, k], what candidates() gave on each rank."""
    ids = [part[0] for part in gathered]
    scores = [part[1].view(torch.float32) for part in gathered]
    forced = _forced(rows, settings)
    if forced.shape[-1] > 0:
        forced = forced.expand(-1, gathered.shape[3], -1)
        ids.append(forced)
        scores.append(torch.where(forced >= 0, float("inf"), float("-inf")))
    merged: Tensor = msa.merge_selections(ids, scores, topk=settings.topk, backend=settings.backend,
                                          threads=settings.threads)
    return merged


def join(gathered: Tensor, settings: Settings) -> tuple[Tensor, Tensor]:
    """Output and lse in f32. gathered: f32 [ranks, T, Hq, Dv + 4], what attend() gave on each rank."""
    value_dim = gathered.shape[-1] - 4
    out, lse = msa.merge_states(gathered[..., :value_dim], gathered[..., value_dim], return_lse=True,
                                backend=settings.backend, threads=settings.threads)
    return out, lse


# Blocks that each row must choose: i32 [T, 1, init + local].
def _forced(rows: Rows, settings: Settings) -> Tensor:
    device = rows.last.device
    visible = (rows.last // settings.block_size + 1).view(-1, 1, 1)
    first = torch.arange(settings.init_blocks, dtype=torch.int32, device=device).expand(visible.shape[0], 1, -1)
    late = visible - settings.local_blocks + torch.arange(settings.local_blocks, dtype=torch.int32, device=device)
    late = torch.where(late >= settings.init_blocks, late, -1)  # the first ones are there already
    forced = torch.cat((torch.where(first < visible, first, -1), late), dim=-1)
    return _ascending(forced)[0]


# Ids ascending with -1 behind them, and where each one stood.
def _ascending(ids: Tensor) -> tuple[Tensor, Tensor]:
    found, order = torch.where(ids < 0, _NONE, ids).sort(dim=-1)
    return torch.where(found == _NONE, -1, found), order
