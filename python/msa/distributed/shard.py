# SPDX-License-Identifier: MIT
"""One rank's part of a decode over a cache whose blocks are dealt to ranks, without any communication.

The library knows nothing of ranks: here a shard is a sequence of its own, its blocks numbered 0, 1, ... in the order of
their positions. Because that order is the global one, each query row sees a prefix of it, and a row is a request of its
own with that many keys. Forced blocks are everybody's knowledge: candidates come from what lies between the first ones
and the last ones, and both join the merge as a part of their own.

What depends on lengths and pages alone is made once a step (refresh) and shared by its layers; ids.py turns ids of the
sequence into those of the shard and back.
"""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import _core
from .. import operations as msa
from .ids import Dealt, Ids, Own, Placed, behind_first, count

__all__ = ["STATE_PAD", "Deal", "Pages", "Settings", "Shard", "join", "value_dim_of"]

_FOUR_BITS = ("nvfp4", "nvfp4/tensor", "q8kv4")  # two values in a byte
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


class Deal(NamedTuple):
    """A round robin: this rank, of how many; and the most and the fewest blocks that one has, where somebody asked."""

    rank: int
    ranks: int
    most: int | None = None
    least: int | None = None


class Shard:
    """Pages of this rank, what lies in them, and what the rows of one step see of it.

    page_table: i32 [B, columns], block l of a request in its columns l * n .. l * n + n - 1, n = block_size / page size
    positions: i32 [L] or [B, L], the block of the whole sequence that each one is, ascending; INT32_MAX behind the last;
        or a Deal
    seqlens_k: i32 [B], lengths of the whole sequences
    queries: rows of each request, its last tokens; None: one each. causal: a row does not see those behind it

    refresh() reads the tensors again and writes where it wrote before: layers captured in a graph see what it wrote
    last, and so it may be captured itself.
    """

    def __init__(self, page_table: Tensor, page_size: int, positions: Tensor | Deal, seqlens_k: Tensor,
                 settings: Settings, queries: list[int] | None = None, causal: bool = True) -> None:
        self.settings, self.device = settings, page_table.device
        self._page_table, self._given_positions, self._seqlens_k = page_table, positions, seqlens_k
        self._columns_per_block = settings.block_size // page_size
        self.blocks = page_table.shape[1] // self._columns_per_block
        self.rows = seqlens_k.shape[0] if queries is None else sum(queries)
        self._requests, self._behind = _rows_of(queries, causal, self.device)
        self._starts = self._integers(self.rows + 1)
        self._ids = self._make_ids()
        self._allocate()
        self.refresh()

    def list_own(self) -> bool:
        """Candidates and lists of attend() are local from now on, where blocks are dealt; whether they are."""
        if isinstance(self._ids, Dealt):
            self._ids = Own()
            self._allocate()
            self.refresh()
        return isinstance(self._ids, Own)

    @property
    def forced_ids(self) -> Tensor | None:
        """i32 [T, F]: blocks that each row must choose, -1 where there is none; of lists without spare ids."""
        forced = self._forced_ids.squeeze(1)
        return forced if forced.shape[-1] > 0 else None

    def refresh(self) -> None:
        """Lengths, pages or positions have other contents."""
        page_table = self._page_table
        if self._deals_at_once():
            return self._deal_at_once()
        last = self._seqlens_k - 1  # position of the last key that a row sees; below 0: none
        if self._requests is not None:
            last, page_table = last[self._requests] - self._behind, page_table[self._requests]
        if self._ids.spare is not None:  # lengths at fault must not lead out of a table of ids
            last = last.clamp(max=self._ids.spare.begin * self.settings.block_size - 1)
        block = last // self.settings.block_size
        self._force(block)
        if self.blocks == 0:
            return
        if isinstance(self._ids, Placed):
            self._read_positions(self._ids)
        visible = self._count_keys(last, block)
        # A page that no row sees is page 0, for the blocks behind all others, too.
        torch.mul(page_table, self._first_keys_of_pages < visible.unsqueeze(1),
                  out=self._pages_seen[:, :page_table.shape[1]])
        if self.settings.init_blocks > 0:
            page_table = behind_first(page_table, self._first_blocks * self._columns_per_block)
        if self._candidate_table is not page_table:
            self._candidate_table.copy_(page_table)

    # One launch for it all, where a row is a request: else torch takes some twenty.
    def _deals_at_once(self) -> bool:
        table = self._page_table
        return (isinstance(self._ids, Own) and table.is_cuda and self._requests is None and table.is_contiguous()
                and self._seqlens_k.is_contiguous() and table.shape == self._pages_seen.shape and table.numel() > 0)

    def _deal_at_once(self) -> None:
        s, deal = self.settings, self._given_positions
        assert isinstance(deal, Deal)  # Own comes of one
        _core.peers_deal(deal.rank, deal.ranks, s.block_size, s.init_blocks, s.local_blocks, self._columns_per_block,
                         self._seqlens_k, self._page_table, self._unforced_keys, self._last_seen, self.forced_ids,
                         self._pages_seen)
        if s.init_blocks > 0:
            self._candidate_table.copy_(behind_first(self._page_table, self._first_blocks * self._columns_per_block))

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
        ids = to = into[0]
        if not isinstance(self._ids, Own):
            ids = torch.empty_like(to)
        msa.select_blocks(index_q, index_k, page_table=self._candidate_table, seqlens_k=self._unforced_keys,
                          cu_seqlens_q=self._starts, block_size=s.block_size, topk=s.topk, local_blocks=0,
                          init_blocks=0, index_k_scale=pages.index_k_scale,
                          index_k_global_scale=pages.index_k_global_scale, index_k8=pages.index_k8,
                          index_k8_bounds=pages.index_k8_bounds, index_k_format=pages.index_k_format,
                          index_filter=pages.index_filter, precision=pages.precision, max_seqlen_q=1,
                          max_seqlen_k=self.blocks * s.block_size, backend=s.backend, threads=s.threads,
                          block_ids=ids, chosen_scores=scores)
        self._ids.to_global(ids, to)
        return into

    def merge(self, parts: Sequence[Tensor]) -> Tensor:
        """Lists for attend(), i32 [T, Hi, k]. parts: of each rank, in rank order, what candidates() gave there."""
        ids, scores = [part[0] for part in parts], [part[1].view(torch.float32) for part in parts]
        if self._forced_ids.shape[-1] > 0:
            heads = parts[0].shape[2]
            ids.append(self._forced_ids.expand(-1, heads, -1))
            scores.append(self._forced_scores.expand(-1, heads, -1))
        merged: Tensor = msa.merge_selections(ids, scores, topk=self.settings.topk, backend=self.settings.backend,
                                              threads=self.settings.threads)
        return merged

    def listed(self, block_ids: Tensor) -> Tensor:
        """What a caller sees of such lists: the selection."""
        return self._ids.listed(block_ids)

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
        msa.sparse_attention(q, k, v, self._ids.to_local(block_ids), page_table=self._pages_seen,
                             seqlens_k=self._every_key, cu_seqlens_q=self._starts, q_offsets=self._last_seen,
                             k_scale=pages.k_scale, v_scale=pages.v_scale, k_global_scale=pages.k_global_scale,
                             v_global_scale=pages.v_global_scale, kv_format=pages.kv_format, block_size=s.block_size,
                             softmax_scale=s.softmax_scale, max_seqlen_q=1,
                             max_seqlen_k=self._planned(self.blocks + self._ids.unseen), backend=s.backend,
                             threads=s.threads, out_dtype="f32", out=out, lse=lse)
        return into

    # Keys that attention is planned for: as many as a full list has, so that every way takes rows in the same pieces;
    # and, where ranks attend together, the same for all of them, who have one plan or none.
    def _planned(self, blocks: int) -> int:
        return max(blocks, self.settings.topk) * self.settings.block_size

    def may_attend_among(self, pages: Pages) -> bool:
        """Whether attend_among() may be asked, as far as the ranks' deal says."""
        deal = self._given_positions
        return (isinstance(self._ids, Own) and isinstance(deal, Deal) and deal.least is not None and deal.least > 0
                and self.settings.init_blocks == 0 and pages.index_k8 is None and self.device.type == "cuda")

    def attend_among(self, peers: tuple[Any, ...], q: Tensor, k: Tensor, v: Tensor, index_q: Tensor, index_k: Tensor,
                     pages: Pages, into: Tensor, ids: Tensor) -> None:
        """candidates(), the exchange and attend() at once; `ids` are of the sequence. Raises Unsupported where the
        library has no kernel for it, and nothing is launched.

        peers: rank, addresses, pads, timeout_ms, states, as msa_peers_attend takes them
        """
        s, deal = self.settings, self._given_positions
        assert isinstance(deal, Deal) and deal.most is not None
        value_dim = value_dim_of(v, pages)
        _core.msa_attention(q, k, v, index_q, index_k, page_table=self._candidate_table,
                            seqlens_k=self._unforced_keys, cu_seqlens_q=self._starts, k_scale=pages.k_scale,
                            v_scale=pages.v_scale, k_global_scale=pages.k_global_scale,
                            v_global_scale=pages.v_global_scale, kv_format=pages.kv_format,
                            index_k_scale=pages.index_k_scale, index_k_global_scale=pages.index_k_global_scale,
                            index_k_format=pages.index_k_format, block_size=s.block_size, topk=s.topk,
                            local_blocks=0, init_blocks=0, softmax_scale=s.softmax_scale, max_seqlen_q=1,
                            max_seqlen_k=self._planned(deal.most), backend=s.backend, threads=s.threads,
                            out_dtype="f32", out=into[..., :value_dim], lse=into[..., value_dim], block_ids=ids,
                            among=(*peers, self.forced_ids, self._last_seen))

    # ---- what a step's layers share ----

    def _integers(self, count: int) -> Tensor:
        return torch.arange(count, dtype=torch.int32, device=self.device)

    def _make_ids(self) -> Ids:
        s, given = self.settings, self._given_positions
        if not isinstance(given, Deal):
            return Placed(self.blocks, s.init_blocks, s.topk, self.device)
        first = len(range(given.rank, s.init_blocks, given.ranks))
        self._positions = self._integers(self.blocks) * given.ranks + given.rank
        self._first_blocks = torch.full((1,), first, dtype=torch.int64, device=self.device)
        return Dealt(given.rank, given.ranks, self.blocks, first, s.init_blocks + s.local_blocks, s.topk, given.most,
                     self.device)

    def _read_positions(self, ids: Placed) -> None:
        positions = self._given_positions
        assert isinstance(positions, Tensor)  # Placed comes of them
        if self._requests is not None and positions.dim() == 2:
            positions = positions[self._requests]
        self._positions = positions.contiguous()
        self._first_blocks = ids.read(positions)

    def _allocate(self) -> None:
        s, page_table, spare = self.settings, self._page_table, self._ids.spare

        def new(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.int32, device=self.device)

        # For a selection and for attention: keys of each row, and where they lie.
        self._unforced_keys, self._last_seen = new(self.rows), new(self.rows)
        aliased = s.init_blocks == 0 and self._requests is None and page_table.is_contiguous()
        self._candidate_table = page_table if aliased else new(self.rows, page_table.shape[1])
        self._pages_seen = new(self.rows, (self.blocks + self._ids.unseen) * self._columns_per_block)
        self._first_keys_of_pages = self._integers(page_table.shape[1]) * (s.block_size // self._columns_per_block)
        self._every_key = torch.full_like(self._last_seen, (self.blocks + self._ids.unseen) * s.block_size)
        # First blocks by their slot, last ones by their slot and the row's last block; spare ids behind them, and
        # instead of those that are not there.
        forced = s.init_blocks + s.local_blocks
        self._forced_slots = self._integers(forced)
        self._forced_late = (self._forced_slots >= s.init_blocks).int()
        self._forced_ids = new(self.rows, 1, forced + (spare.topk if spare is not None else 0))
        self._not_there = torch.full_like(self._forced_slots, -1)
        if spare is not None:
            self._not_there = self._forced_slots + (spare.begin + spare.topk)
            self._forced_ids[..., forced:] = self._integers(spare.topk) + spare.begin
        self._forced_scores = torch.full_like(self._forced_ids, float("-inf"), dtype=torch.float32)
        self._most, self._least = (torch.full((1,), float(x), device=self.device) for x in ("inf", "-inf"))

    # Keys here that each row sees; and those that candidates come from, between the first blocks and the last ones.
    def _count_keys(self, last: Tensor, block: Tensor) -> Tensor:
        s = self.settings
        before = count(self._positions, block)
        here = count(self._positions, block, right=True) - before  # 1 where a row's last block lies here
        visible = torch.add(here * (torch.sub(last, block, alpha=s.block_size) + 1), before, alpha=s.block_size)
        torch.sub(visible, 1, out=self._last_seen)
        keys = visible
        if s.local_blocks > 0:
            keys = count(self._positions, block - (s.local_blocks - 1)) * s.block_size
        if s.init_blocks > 0:
            keys = (keys - self._first_blocks.squeeze(-1) * s.block_size).clamp(min=0)
        self._unforced_keys.copy_(keys)
        return visible

    # Blocks that each row must choose, whoever has them. The first ones, then the last ones that are none of them; both
    # are runs, so there is no gap to close.
    def _force(self, block: Tensor) -> None:
        s = self.settings
        forced = s.init_blocks + s.local_blocks
        if forced == 0:
            return
        late = (block.view(-1, 1, 1) + (1 - forced)).clamp(min=0)
        ids = torch.addcmul(self._forced_slots, self._forced_late, late)
        seen = ids <= block.view(-1, 1, 1)
        self._forced_ids[..., :forced] = torch.where(seen, ids, self._not_there)
        self._forced_scores[..., :forced] = torch.where(seen, self._most, self._least)


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
