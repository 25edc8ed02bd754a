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

    All three tensors are read again by refresh(), which gives no memory back and takes none after the first time: the
    layers of a graph see what it wrote last.
    """

    def __init__(self, page_table: Tensor, page_size: int, positions: Tensor, seqlens_k: Tensor, settings: Settings,
                 queries: list[int] | None = None, causal: bool = True) -> None:
        self.settings = settings
        self._given = page_table, positions, seqlens_k
        self._columns_per_block = settings.block_size // page_size
        self.blocks = page_table.shape[1] // self._columns_per_block
        self._requests, self._behind = _rows_of(queries, causal, seqlens_k.device)
        self.device = page_table.device
        self.rows = seqlens_k.shape[0] if queries is None else sum(queries)
        self._starts = torch.arange(self.rows + 1, dtype=torch.int32, device=page_table.device)
        # What refresh() makes: keys and their pages for a selection and for attention, and tables of ids.
        self._unforced_keys = self._candidate_table = self._global_ids = self._global_row = torch.Tensor()
        self._last_seen = self._pages_seen = self._edges = self._local_ids = self._local_slot = torch.Tensor()
        self._every_key = self._forced_ids = self._forced_scores = torch.Tensor()
        self.refresh()

    def refresh(self) -> None:
        """Lengths, pages or positions have other contents. May be captured in a graph, and need not be."""
        size, page_table, positions, seqlens_k = self.settings.block_size, *self._given
        last = seqlens_k - 1
        if self._requests is not None:
            last, page_table = last[self._requests] - self._behind, page_table[self._requests]
            positions = positions[self._requests] if positions.dim() == 2 else positions
        self._force(last)
        if self.blocks == 0:
            return
        self._prepare_candidates(last, page_table, positions)
        # Keys here that each row sees: its last block may lie here, and ends where the row does.
        visible = _below(positions, last // size) * size
        self._prepare_attention(visible + self._share_of_last(last, positions), page_table, positions)

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

    # Candidates lie between the first blocks and the last ones: as many keys, in pages behind those of the first ones.
    def _prepare_candidates(self, last: Tensor, page_table: Tensor, positions: Tensor) -> None:
        s = self.settings
        if s.local_blocks > 0:
            keys = _below(positions, last // s.block_size - s.local_blocks + 1) * s.block_size
        else:
            keys = _below(positions, last // s.block_size) * s.block_size + self._share_of_last(last, positions)
        if s.init_blocks > 0:
            first = (positions < s.init_blocks).sum(-1, keepdim=True)  # [1] or [rows, 1]
            keys = (keys - first.squeeze(-1) * s.block_size).clamp(min=0)
            positions = _behind_first(positions, first)
            page_table = _behind_first(page_table, first * self._columns_per_block)
        self._keep("_unforced_keys", keys.int())
        self._keep("_candidate_table", page_table)
        # Local id -1, 0, 1, ... in column 0, 1, 2, ...; [L + 1] or [rows, L + 1].
        none = torch.full_like(positions[..., :1], -1)
        self._keep("_global_ids", torch.cat((none, positions), dim=-1))
        rows = torch.arange(positions.shape[0] if positions.dim() == 2 else 1, device=positions.device).view(-1, 1, 1)
        self._keep("_global_row", rows * (self.blocks + 1) + 1)

    # Behind the blocks that lie here stand as many as a list has entries, which no row sees: page 0 serves them all.
    def _prepare_attention(self, visible: Tensor, page_table: Tensor, positions: Tensor) -> None:
        s, device = self.settings, page_table.device
        self._keep("_last_seen", (visible - 1).int())
        pages = torch.nn.functional.pad(page_table, (0, s.topk * self._columns_per_block))
        blocks = torch.arange(pages.shape[1], device=device) // self._columns_per_block
        seen = blocks * s.block_size < visible.unsqueeze(1)
        self._keep("_pages_seen", torch.where(seen, pages, 0))
        self._keep("_every_key", torch.full((self.rows,), (self.blocks + s.topk) * s.block_size, dtype=torch.int32,
                                            device=device))
        # Where an id stands among the positions and what follows each: an odd place means that it is one of them.
        ends = torch.where(positions == _NONE, _NONE, positions + 1)
        self._keep("_edges", torch.stack((positions, ends), dim=-1).flatten(-2))
        places = torch.arange(2 * self.blocks + 1, dtype=torch.int32, device=device)
        slots = torch.arange(s.topk, dtype=torch.int32, device=device).unsqueeze(1)
        self._keep("_local_ids", torch.where(places % 2 == 1, places // 2, self.blocks + slots))
        self._keep("_local_slot", slots.flatten().long() * (2 * self.blocks + 1))

    # Blocks that each row must choose, whoever has them: i32 [T, 1, init + local], -1 behind the last.
    def _force(self, last: Tensor) -> None:
        s = self.settings
        visible = (last // s.block_size + 1).view(-1, 1, 1)
        slots = torch.arange(s.init_blocks + s.local_blocks, dtype=torch.int32, device=last.device)
        # The first ones, then the last ones that are none of them; both are runs, so there is no gap to close.
        late = slots + torch.clamp(visible - s.local_blocks - s.init_blocks, min=0)
        forced = torch.where(slots < s.init_blocks, slots, late)
        forced = torch.where(forced < visible, forced, -1)
        self._keep("_forced_ids", forced.int())
        self._keep("_forced_scores", torch.where(forced >= 0, float("inf"), float("-inf")))

    def _keep(self, name: str, made: Tensor) -> None:
        kept = getattr(self, name)
        if kept.shape == made.shape and kept.dtype == made.dtype:
            kept.copy_(made)
        else:
            setattr(self, name, made.contiguous())

    # Keys of a row's last block, where that lies here; where it lies behind all that are here, the last one is another.
    def _share_of_last(self, last: Tensor, positions: Tensor) -> Tensor:
        size = self.settings.block_size
        block = last // size
        place = _below(positions, block).clamp(max=self.blocks - 1).unsqueeze(-1).long()
        here = positions[place] if positions.dim() == 1 else positions.gather(1, place)
        return torch.where(here.squeeze(-1) == block, last - block * size + 1, 0)

    # The listed blocks by their numbers here.
    def _here(self, block_ids: Tensor) -> Tensor:
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


# How many local blocks have global ids below `blocks` [rows]: they are the first ones.
def _below(positions: Tensor, blocks: Tensor) -> Tensor:
    if positions.dim() == 1:
        return torch.searchsorted(positions, blocks.contiguous())
    return torch.searchsorted(positions, blocks.unsqueeze(1)).squeeze(1)


# Columns from `first` [1] or [rows, 1] on; the last one again where there are none left.
def _behind_first(table: Tensor, first: Tensor) -> Tensor:
    columns = (torch.arange(table.shape[-1], device=table.device) + first).clamp(max=table.shape[-1] - 1)
    if table.dim() == 1:
        return table[columns]
    return table.gather(1, columns.expand(table.shape))
