# SPDX-License-Identifier: MIT
"""One rank's part of a decode over a cache whose blocks are dealt to ranks, without any communication.

The library knows nothing of ranks: here a shard is a sequence of its own, its blocks numbered 0, 1, ... in the order of
their positions. Because that order is the global one, each query row sees a prefix of it, and a row is a request of its
own with that many keys. Forced blocks are everybody's knowledge: candidates come from what lies between the first ones
and the last ones, and both join the merge as a part of their own.

Lists are translated by tables, three small kernels a layer, and nothing is sorted: a list of ids may have any order,
and a listed block that lies elsewhere becomes one that exists but that no row sees, `topk` of which stand behind all
others. What depends on lengths and pages alone is made once a step (refresh) and shared by its layers.
"""
from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .. import operations as msa

__all__ = ["STATE_PAD", "Pages", "Settings", "Shard", "join", "value_dim_of"]

_FOUR_BITS = ("nvfp4", "nvfp4/tensor", "q8kv4")  # two values in a byte
_NONE = torch.iinfo(torch.int32).max  # the position of a block that is not there
STATE_PAD = 4  # columns behind an output: its lse, and what keeps rows aligned to 16 bytes


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


class Shard:
    """Pages of this rank, what lies in them, and what the rows of one step see of it.

    page_table: i32 [B, columns], block l of a request in its columns l * n .. l * n + n - 1, n = block_size / page size
    positions: i32 [L] or [B, L], the block of the whole sequence that each one is, ascending; INT32_MAX behind the last
    seqlens_k: i32 [B], lengths of the whole sequences
    queries: rows of each request, its last tokens; None: one each. causal: a row does not see those behind it
    stay: positions never change

    refresh() reads the three tensors again and writes where it wrote before: layers captured in a graph see what it
    wrote last, and so it may be captured itself.
    """

    def __init__(self, page_table: Tensor, page_size: int, positions: Tensor, seqlens_k: Tensor, settings: Settings,
                 queries: list[int] | None = None, causal: bool = True, stay: bool = False) -> None:
        self.settings, self.device = settings, page_table.device
        self._given, self._stay = (page_table, positions, seqlens_k), stay
        self._columns_per_block = settings.block_size // page_size
        self.blocks = page_table.shape[1] // self._columns_per_block
        self.rows = seqlens_k.shape[0] if queries is None else sum(queries)
        self._requests, self._behind = _rows_of(queries, causal, self.device)
        self._starts = self._integers(self.rows + 1)
        self._allocate()
        self._edges: Tensor | None = None
        self.refresh()

    def refresh(self) -> None:
        """Lengths, pages or positions have other contents."""
        page_table, _, seqlens_k = self._given
        last = seqlens_k - 1  # position of the last key that a row sees; below 0: none
        if self._requests is not None:
            last, page_table = last[self._requests] - self._behind, page_table[self._requests]
        block = last // self.settings.block_size
        self._force(block)
        if self.blocks == 0:
            return
        if self._edges is None or not self._stay:
            self._tabulate()
        visible = self._count_keys(last, block)
        # A page that no row sees is page 0, for the blocks behind all others, too.
        torch.mul(page_table, self._first_keys_of_pages < visible.unsqueeze(1),
                  out=self._pages_seen[:, :page_table.shape[1]])
        if self.settings.init_blocks > 0:
            page_table = _behind_first(page_table, self._first_blocks * self._columns_per_block)
        if self._candidate_table is not page_table:
            self._candidate_table.copy_(page_table)

    def candidates(self, index_q: Tensor, index_k: Tensor, pages: Pages = Pages(), into: Tensor | None = None) -> Tensor:
        """The best unforced blocks here: i32 [2, T, Hi, k], global ids and the bits of their scores."""
        s = self.settings
        if into is None:
            into = torch.empty((2, *index_q.shape[:2], s.topk), dtype=torch.int32, device=index_q.device)
        scores = into[1].view(torch.float32)
        if self.blocks == 0:
            into[0].fill_(-1)
            scores.fill_(float("-inf"))
            return into
        ids = torch.empty_like(into[0])
        msa.select_blocks(index_q, index_k, page_table=self._candidate_table, seqlens_k=self._unforced_keys,
                          cu_seqlens_q=self._starts, block_size=s.block_size, topk=s.topk, local_blocks=0,
                          init_blocks=0, index_k_scale=pages.index_k_scale,
                          index_k_global_scale=pages.index_k_global_scale, index_k8=pages.index_k8,
                          index_k8_bounds=pages.index_k8_bounds, index_k_format=pages.index_k_format,
                          index_filter=pages.index_filter, precision=pages.precision, max_seqlen_q=1,
                          max_seqlen_k=self.blocks * s.block_size, backend=s.backend, threads=s.threads,
                          block_ids=ids, chosen_scores=scores)
        torch.take(self._global_ids, ids + self._global_row, out=into[0])
        return into

    def merge(self, parts: Sequence[Tensor]) -> Tensor:
        """The selection, i32 [T, Hi, k]. parts: of each rank, in rank order, what candidates() gave there."""
        ids, scores = [part[0] for part in parts], [part[1].view(torch.float32) for part in parts]
        if self._forced_ids.shape[-1] > 0:
            heads = parts[0].shape[2]
            ids.append(self._forced_ids.expand(-1, heads, -1))
            scores.append(self._forced_scores.expand(-1, heads, -1))
        merged: Tensor = msa.merge_selections(ids, scores, topk=self.settings.topk, backend=self.settings.backend,
                                              threads=self.settings.threads)
        return merged

    def attend(self, q: Tensor, k: Tensor, v: Tensor, block_ids: Tensor, pages: Pages = Pages(),
               into: Tensor | None = None) -> Tensor:
        """Attention to the listed blocks that lie here: f32 [T, Hq, Dv + 4], the lse behind the output."""
        s = self.settings
        value_dim = value_dim_of(v, pages)
        if into is None:
            into = torch.zeros((*q.shape[:2], value_dim + STATE_PAD), device=q.device)
        out, lse = into[..., :value_dim], into[..., value_dim]
        if self.blocks == 0:
            out.zero_()
            lse.fill_(float("-inf"))
            return into
        msa.sparse_attention(q, k, v, self._here(block_ids), page_table=self._pages_seen, seqlens_k=self._every_key,
                             cu_seqlens_q=self._starts, q_offsets=self._last_seen, k_scale=pages.k_scale,
                             v_scale=pages.v_scale, k_global_scale=pages.k_global_scale,
                             v_global_scale=pages.v_global_scale, kv_format=pages.kv_format, block_size=s.block_size,
                             softmax_scale=s.softmax_scale, max_seqlen_q=1,
                             max_seqlen_k=(self.blocks + s.topk) * s.block_size, backend=s.backend, threads=s.threads,
                             out_dtype="f32", out=out, lse=lse)
        return into

    # ---- what a step's layers share ----

    def _integers(self, count: int) -> Tensor:
        return torch.arange(count, dtype=torch.int32, device=self.device)

    def _allocate(self) -> None:
        s, page_table = self.settings, self._given[0]

        def new(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.int32, device=self.device)

        # For a selection and for attention: keys of each row, and where they lie.
        self._unforced_keys, self._last_seen = new(self.rows), new(self.rows)
        aliased = s.init_blocks == 0 and self._requests is None and page_table.is_contiguous()
        self._candidate_table = page_table if aliased else new(self.rows, page_table.shape[1])
        self._pages_seen = new(self.rows, (self.blocks + s.topk) * self._columns_per_block)
        self._first_keys_of_pages = self._integers(page_table.shape[1]) * (s.block_size // self._columns_per_block)
        self._every_key = torch.full_like(self._last_seen, (self.blocks + s.topk) * s.block_size)
        # The local id behind each odd place among the edges of blocks, and one that no row sees behind each even one.
        places = self._integers(2 * self.blocks + 1)
        slots = self._integers(s.topk).unsqueeze(1)
        self._local_ids = torch.where(places % 2 == 1, places // 2, self.blocks + slots)
        self._local_slot = slots.flatten().long() * (2 * self.blocks + 1)
        # First blocks by their slot, last ones by their slot and the row's last block.
        self._forced_slots = self._integers(s.init_blocks + s.local_blocks)
        self._forced_late = (self._forced_slots >= s.init_blocks).int()
        self._forced_ids = new(self.rows, 1, s.init_blocks + s.local_blocks)
        self._forced_scores = torch.zeros_like(self._forced_ids, dtype=torch.float32)
        self._none = torch.full_like(self._forced_slots[:1], -1)
        self._most, self._least = (torch.full_like(self._none, float(x), dtype=torch.float32) for x in ("inf", "-inf"))

    # What follows from positions alone.
    def _tabulate(self) -> None:
        positions = self._given[1]
        if self._requests is not None and positions.dim() == 2:
            positions = positions[self._requests]
        self._positions = positions.contiguous()
        # An id's place is odd where it is one of the positions.
        ends = torch.where(positions == _NONE, _NONE, positions + 1)
        edges = torch.stack((positions, ends), dim=-1).flatten(-2)
        self._first_blocks = (positions < self.settings.init_blocks).sum(-1, keepdim=True)  # [1] or [rows, 1]
        if self.settings.init_blocks > 0:
            positions = _behind_first(positions, self._first_blocks)
        # Local id -1, 0, 1, ... in column 0, 1, 2, ...; [L + 1] or [rows, L + 1].
        global_ids = torch.cat((torch.full_like(positions[..., :1], -1), positions), dim=-1)
        if self._edges is None:
            rows = torch.arange(len(positions) if positions.dim() == 2 else 1, device=self.device).view(-1, 1, 1)
            self._edges, self._global_ids, self._global_row = edges, global_ids, rows * (self.blocks + 1) + 1
        else:
            self._edges.copy_(edges)
            self._global_ids.copy_(global_ids)

    # Keys here that each row sees; and those that candidates come from, between the first blocks and the last ones.
    def _count_keys(self, last: Tensor, block: Tensor) -> Tensor:
        s = self.settings
        before = _count(self._positions, block)
        here = _count(self._positions, block, right=True) - before  # 1 where a row's last block lies here
        visible = torch.add(here * (torch.sub(last, block, alpha=s.block_size) + 1), before, alpha=s.block_size)
        torch.sub(visible, 1, out=self._last_seen)
        keys = visible
        if s.local_blocks > 0:
            keys = _count(self._positions, block - (s.local_blocks - 1)) * s.block_size
        if s.init_blocks > 0:
            keys = (keys - self._first_blocks.squeeze(-1) * s.block_size).clamp(min=0)
        self._unforced_keys.copy_(keys)
        return visible

    # Blocks that each row must choose, whoever has them: i32 [T, 1, init + local], -1 behind the last. The first ones,
    # then the last ones that are none of them; both are runs, so there is no gap to close.
    def _force(self, block: Tensor) -> None:
        s = self.settings
        if self._forced_slots.shape[0] == 0:
            return
        late = (block.view(-1, 1, 1) + (1 - s.local_blocks - s.init_blocks)).clamp(min=0)
        forced = torch.addcmul(self._forced_slots, self._forced_late, late)
        seen = forced <= block.view(-1, 1, 1)
        self._forced_ids.copy_(torch.where(seen, forced, self._none))
        self._forced_scores.copy_(torch.where(seen, self._most, self._least))

    # The listed blocks by their numbers here.
    def _here(self, block_ids: Tensor) -> Tensor:
        assert self._edges is not None  # refresh() has run
        flat = block_ids.flatten(1) if self._edges.dim() == 2 else block_ids
        places = torch.searchsorted(self._edges, flat, right=True).view(block_ids.shape)
        return torch.take(self._local_ids, places + self._local_slot)


def value_dim_of(v: Tensor, pages: Pages) -> int:
    """Elements of a value, two of which may lie in a byte."""
    return v.shape[-1] * (2 if pages.kv_format in _FOUR_BITS else 1)


def join(parts: Sequence[Tensor], settings: Settings) -> tuple[Tensor, Tensor]:
    """Output and lse in f32. parts: of each rank, in rank order, f32 [T, Hq, Dv + 4], what attend() gave there."""
    value_dim = parts[0].shape[-1] - STATE_PAD
    out, lse = msa.merge_states([part[..., :value_dim] for part in parts], [part[..., value_dim] for part in parts],
                                return_lse=True, backend=settings.backend, threads=settings.threads)
    return out, lse


# The request of each row and how many rows of it follow; none where a row is a request.
def _rows_of(queries: list[int] | None, causal: bool, device: torch.device) -> tuple[Tensor | None, Tensor]:
    if queries is None:
        return None, torch.zeros(1, dtype=torch.int32, device=device)
    requests = torch.tensor([b for b, n in enumerate(queries) for _ in range(n)], dtype=torch.int64, device=device)
    behind = [n - 1 - i if causal else 0 for n in queries for i in range(n)]
    return requests, torch.tensor(behind, dtype=torch.int32, device=device)


# How many local blocks have global ids below `blocks` [rows], or (right) up to them: they are the first ones.
def _count(positions: Tensor, blocks: Tensor, right: bool = False) -> Tensor:
    if positions.dim() == 1:
        return torch.searchsorted(positions, blocks, out_int32=True, right=right)
    return torch.searchsorted(positions, blocks.unsqueeze(1), out_int32=True, right=right).squeeze(1)


# Columns from `first` [1] or [rows, 1] on; the last one again where there are none left.
def _behind_first(table: Tensor, first: Tensor) -> Tensor:
    columns = (torch.arange(table.shape[-1], device=table.device) + first).clamp(max=table.shape[-1] - 1)
    if table.dim() == 1:
        return table[columns]
    return table.gather(1, columns.expand(table.shape))
