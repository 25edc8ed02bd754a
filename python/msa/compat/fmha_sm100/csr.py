# SPDX-License-Identifier: MIT
"""The inverted lists of upstream: build_k2q_csr, and the way back to lists of queries.

Rows are level-major: block 0 of every request that has one, then block 1 of every such request, and
so on. msa's own inverse is request-major, so a batch of several requests is put into the other order
by device operations on shapes that the host knows; nothing here waits for the device.
"""
from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from msa import torch as ops

from ._checks import BLOCK, bad_content, check_block_size, invalid, want_int32

_SLOT_SHIFT = 24  # a payload of the schedule: query in the low bits, slot above them
_QUERY_MASK = (1 << _SLOT_SHIFT) - 1


@dataclass(frozen=True)
class Source:
    """Where a schedule's rows come from: the rows themselves and a copy of the lists that they were made of, so that
    attention over both need not turn rows back into lists, 0.2 ms at 32K tokens on an H100."""

    row_ptr: torch.Tensor
    q_indices: torch.Tensor
    version: tuple[int, int]
    lists: torch.Tensor  # int32 [T, Hkv, topk]

    def made(self, row_ptr: torch.Tensor, q_indices: torch.Tensor, topk: int) -> bool:
        """Whether these very tensors, unchanged since, are the rows of the lists."""
        same = row_ptr is self.row_ptr and q_indices is self.q_indices and topk == self.lists.shape[2]
        return same and _versions(row_ptr, q_indices) == self.version


def _versions(row_ptr: torch.Tensor, q_indices: torch.Tensor) -> tuple[int, int]:
    """torch counts writes in place, but not of tensors made in inference mode: rows that are written there after their
    schedule was made need a new schedule, as upstream's do."""
    if row_ptr.is_inference() or q_indices.is_inference():
        return (-1, -1)
    return (row_ptr._version, q_indices._version)


@dataclass
class SparseAttentionSchedule:
    """Upstream's work list. msa reads the slots in `qsplit_indices`, or, from the rows that build_k2q_csr made it
    for, the lists that went in."""

    enabled: bool
    scheduler_metadata: torch.Tensor | None  # int32 [capacity, 6]
    work_count: torch.Tensor | None  # int32 [1]
    qsplit_indices: torch.Tensor | None = None  # int32 like q_indices
    split_counts: torch.Tensor | None = None  # int32 [T, Hkv]
    target_q_per_cta: int = 0
    source: Source | None = field(default=None, repr=False)

    @property
    def work_capacity(self) -> int:
        return 0 if self.scheduler_metadata is None else int(self.scheduler_metadata.shape[0])


SparseSchedulePlan = SparseAttentionSchedule
Csr = tuple[torch.Tensor, torch.Tensor] | tuple[torch.Tensor, torch.Tensor, SparseAttentionSchedule]


class SparseK2qCsrBuilderSm100:
    """The callable behind build_k2q_csr."""

    def __call__(
        self,
        q2k_indices: torch.Tensor,
        cu_seqlens_q: torch.Tensor,
        cu_seqlens_k: torch.Tensor,
        *,
        total_k: int | None = None,
        blk_kv: int = BLOCK,
        max_seqlen_k: int | None = None,
        max_seqlen_q: int | None = None,
        total_rows: int | None = None,
        qhead_per_kv: int = 1,
        return_schedule: bool = False,
    ) -> Csr:
        return build_k2q_csr(
            q2k_indices,
            cu_seqlens_q,
            cu_seqlens_k,
            blk_kv,
            total_k=total_k,
            max_seqlen_k=max_seqlen_k,
            max_seqlen_q=max_seqlen_q,
            total_rows=total_rows,
            qhead_per_kv=qhead_per_kv,
            return_schedule=return_schedule,
        )


def build_k2q_csr(
    q2k_indices: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    kv_block_size: int = BLOCK,
    *,
    total_k: int | None = None,
    max_seqlen_k: int | None = None,
    max_seqlen_q: int | None = None,
    total_rows: int | None = None,
    qhead_per_kv: int = 1,
    return_schedule: bool = False,
) -> Csr:
    """(row_ptr, q_indices[, schedule]) of request-local block ids.

    q2k_indices: int32 [Hkv, T, topK], any strides; a -1 ends a row. cu_seqlens_q, cu_seqlens_k: int32
    [B + 1]. row_ptr: int32 [Hkv, rows + 1]. q_indices: int32 [Hkv, T * topK], request-local queries,
    ascending in each row, -1 behind the last. total_rows, or else total_k, bounds the rows; total_k
    may be 0 where total_rows is given.
    """
    check_block_size("kv_block_size", kv_block_size)
    want_int32("q2k_indices", q2k_indices, 3)
    device = q2k_indices.device
    heads, tokens, topk = q2k_indices.shape
    want_int32("cu_seqlens_q", cu_seqlens_q, 1, device)
    requests = want_int32("cu_seqlens_k", cu_seqlens_k, 1, device).shape[0] - 1
    rows = _row_count(total_rows, total_k, requests)
    _check_rows(cu_seqlens_k, rows)
    row_ptr = torch.zeros((heads, rows + 1), dtype=torch.int32, device=device)
    q_indices = torch.full((heads, tokens * topk), -1, dtype=torch.int32, device=device)
    slots = torch.full_like(q_indices, -1)
    if heads and tokens and topk and requests and rows:
        ops.invert_selection(
            q2k_indices.permute(1, 0, 2),
            cu_seqlens_q=cu_seqlens_q,
            seqlens_k=cu_seqlens_k.diff(),
            block_size=BLOCK,
            max_seqlen_q=tokens if max_seqlen_q is None else int(max_seqlen_q),
            max_seqlen_k=rows * BLOCK if max_seqlen_k is None else int(max_seqlen_k),
            row_ptr=row_ptr,
            q_indices=q_indices,
            q_slots=slots,
        )
        if requests > 1:
            row_ptr, q_indices, slots = _level_major(row_ptr, q_indices, slots, cu_seqlens_q, cu_seqlens_k)
    if not return_schedule:
        return row_ptr, q_indices
    if max_seqlen_q is None or max_seqlen_k is None:
        invalid("max_seqlen_q", "max_seqlen_q and max_seqlen_k, as a schedule is asked for", None)
    if max_seqlen_q > _QUERY_MASK:
        invalid("max_seqlen_q", f"at most {_QUERY_MASK} with a schedule", max_seqlen_q)
    places = row_places(cu_seqlens_q, cu_seqlens_k, rows)
    schedule = _schedule(row_ptr, q_indices, slots, q2k_indices, places, qhead_per_kv)
    lists = q2k_indices.permute(1, 0, 2).clone(memory_format=torch.contiguous_format)
    schedule.source = Source(row_ptr, q_indices, _versions(row_ptr, q_indices), lists)
    return row_ptr, q_indices, schedule


def _row_count(total_rows: int | None, total_k: int | None, requests: int) -> int:
    """Rows that always suffice: requests whose lengths are no multiples of a block need up to one more each."""
    if total_rows is not None:
        return int(total_rows)
    if total_k is None:
        invalid("total_k", "the number of keys, or total_rows", None)
    if total_k % BLOCK == 0 and requests <= 1:
        return int(total_k) // BLOCK
    return -(-(int(total_k) + (BLOCK - 1) * requests) // BLOCK)


def _check_rows(cu_seqlens_k: torch.Tensor, rows: int) -> None:
    """In host memory what a row count must hold can be read at once."""
    if cu_seqlens_k.device.type != "cpu" or cu_seqlens_k.shape[0] < 2:
        return
    needed = int(((cu_seqlens_k.diff() + (BLOCK - 1)) // BLOCK).sum())
    if needed > rows:
        invalid("total_rows", f"at least {needed} rows for these requests", rows)


# ---- the order of rows ----


class Places(NamedTuple):
    """Of each level-major row; rows that no request has stand last."""

    request: torch.Tensor  # int64 [rows]
    block: torch.Tensor  # int64 [rows]
    request_major: torch.Tensor  # int64 [rows]: the same row where request after request is counted
    exists: torch.Tensor  # bool [rows]


def row_places(cu_seqlens_q: torch.Tensor, cu_seqlens_k: torch.Tensor, rows: int) -> Places:
    requests = cu_seqlens_k.shape[0] - 1
    row = torch.arange(rows, device=cu_seqlens_k.device)
    if requests <= 1:
        blocks = (cu_seqlens_k[-1:] - cu_seqlens_k[:1] + (BLOCK - 1)) // BLOCK
        return Places(torch.zeros_like(row), row, row, row < blocks)
    blocks = (cu_seqlens_k.diff() + (BLOCK - 1)) // BLOCK
    ends = blocks.cumsum(0)
    request = torch.searchsorted(ends, row, right=True).clamp_(max=requests - 1)
    block = row - (ends - blocks)[request]
    exists = row < ends[-1]
    level = torch.where(exists, block * requests + request, torch.iinfo(torch.int64).max)
    order = level.argsort(stable=True)
    return Places(request[order], block[order], order, exists[order])


def _level_major(
    row_ptr: torch.Tensor,
    q_indices: torch.Tensor,
    slots: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Request-major rows of batch queries as level-major rows of request-local ones."""
    rows = row_ptr.shape[1] - 1
    places = row_places(cu_seqlens_q, cu_seqlens_k, rows)
    counts = row_ptr.diff(dim=1)[:, places.request_major]
    ends = counts.cumsum(1, dtype=torch.int32)
    ordered = torch.nn.functional.pad(ends, (1, 0))
    entry = torch.arange(q_indices.shape[1], dtype=torch.int32, device=q_indices.device).expand_as(q_indices)
    row = torch.searchsorted(ends, entry.contiguous(), right=True)
    inside = row < rows
    row = row.clamp_(max=rows - 1)
    first = row_ptr[:, :-1][:, places.request_major]  # where the row's entries stand now
    source = (entry - ordered.gather(1, row) + first.gather(1, row)).clamp_(0, q_indices.shape[1] - 1).to(torch.int64)
    start = cu_seqlens_q[places.request][row]
    queries = torch.where(inside, q_indices.gather(1, source) - start, -1)
    return ordered, queries.to(torch.int32), torch.where(inside, slots.gather(1, source), -1)


# ---- the schedule ----


def _schedule(
    row_ptr: torch.Tensor,
    q_indices: torch.Tensor,
    slots: torch.Tensor,
    q2k: torch.Tensor,
    places: Places,
    qhead_per_kv: int,
) -> SparseAttentionSchedule:
    """Items of at most target_q_per_cta queries of one row, head after head, row after row."""
    heads, tokens, topk = q2k.shape
    rows = row_ptr.shape[1] - 1
    target = target_q_per_cta(tokens, topk, heads, qhead_per_kv, q2k.device)
    capacity = rows * heads + -(-tokens * topk * heads // target)
    counts = row_ptr.diff(dim=1)
    items = ((counts + (target - 1)) // target).flatten().cumsum(0, dtype=torch.int32)
    work_count = items[-1:].clone() if items.numel() else torch.zeros(1, dtype=torch.int32, device=q2k.device)
    qsplit = torch.where(q_indices < 0, -1, q_indices | (slots << _SLOT_SHIFT))
    valid = (q2k >= 0).to(torch.int32).cumprod(2).sum(2, dtype=torch.int32)
    metadata = torch.zeros((capacity, 6), dtype=torch.int32, device=q2k.device)
    if items.numel():
        item = torch.arange(capacity, dtype=torch.int32, device=q2k.device)
        place = torch.searchsorted(items, item, right=True).clamp_(max=items.shape[0] - 1)
        before = torch.nn.functional.pad(items, (1, 0))[place]
        first = (item - before) * target
        count = torch.minimum(counts.flatten()[place] - first, torch.full_like(first, target)).clamp_(min=0)
        row = place % rows
        columns = (place // rows, row, first, count, places.request[row], places.block[row])
        metadata = torch.stack([c.to(torch.int32) for c in columns], 1)
    return SparseAttentionSchedule(True, metadata, work_count, qsplit, valid.t().contiguous(), target)


def target_q_per_cta(tokens: int, topk: int, heads: int, qhead_per_kv: int, device: torch.device) -> int:
    """Upstream's rule. On the CPU one processor is counted."""
    processors = torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
    group = max(128 // max(qhead_per_kv, 1), 1)
    groups = -(-max(tokens * topk * heads, 1) // group)
    target = group * min(512, max(1, -(-groups // (2 * processors))))
    cap = max(group, topk * BLOCK * 2)
    return -(-min(target, cap) // group) * group


# ---- the way back ----


def lists_of_csr(
    row_ptr: torch.Tensor,
    q_indices: torch.Tensor,
    topk: int,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    tokens: int,
    *,
    used_k: torch.Tensor | None = None,
    schedule: SparseAttentionSchedule | None = None,
) -> torch.Tensor:
    """int32 [T, Hkv, topk]: each query's blocks.

    Entries that name no query of the batch, and blocks behind used_k, are left out; in host memory the
    former are errors. A schedule's slots place every entry at once; without them entries are sorted.
    """
    heads, rows = row_ptr.shape[0], row_ptr.shape[1] - 1
    if not (heads and rows and tokens and q_indices.shape[1]):
        return torch.full((tokens, heads, topk), -1, dtype=torch.int32, device=row_ptr.device)
    source = None if schedule is None or used_k is not None else schedule.source
    if source is not None and source.lists.shape[0] == tokens and source.made(row_ptr, q_indices, topk):
        return source.lists
    tables = _row_tables(cu_seqlens_q, cu_seqlens_k, rows, used_k)
    row = _row_of_entries(row_ptr, q_indices.shape[1])
    if row_ptr.device.type == "cpu":
        _check_entries(row, q_indices, _row_tables(cu_seqlens_q, cu_seqlens_k, rows, None), topk, tokens)
    slots = None if schedule is None or used_k is not None else schedule.qsplit_indices
    if slots is not None:
        return _by_slots(row, q_indices, tables, slots, topk, tokens)
    return _by_order(row, q_indices, tables, topk, tokens)


class _RowTables(NamedTuple):
    """int32 [rows + 1], of each level-major row; the last one is that of entries in no row."""

    start: torch.Tensor  # first query of the row's request in the batch
    last: torch.Tensor  # its last query, request-local; -1: none
    block: torch.Tensor


def _row_tables(
    cu_seqlens_q: torch.Tensor, cu_seqlens_k: torch.Tensor, rows: int, used_k: torch.Tensor | None
) -> _RowTables:
    places = row_places(cu_seqlens_q, cu_seqlens_k, rows)
    visible = places.exists
    if used_k is not None:
        visible = visible & (places.block * BLOCK < used_k[places.request])
    last = torch.where(visible, cu_seqlens_q.diff()[places.request] - 1, -1)
    pad = torch.nn.functional.pad
    start = pad(cu_seqlens_q[places.request], (0, 1))
    return _RowTables(start, pad(last, (0, 1), value=-1), pad(places.block.to(torch.int32), (0, 1)))


def _row_of_entries(row_ptr: torch.Tensor, entries: int) -> torch.Tensor:
    """int32 [Hkv * entries]: the row that holds each entry; rows for those behind the last."""
    entry = torch.arange(entries, dtype=torch.int32, device=row_ptr.device).repeat(row_ptr.shape[0], 1)
    return torch.searchsorted(row_ptr[:, 1:].contiguous(), entry, right=True, out_int32=True).view(-1)


def _names_no_query(row: torch.Tensor, query: torch.Tensor, tables: _RowTables) -> torch.Tensor:
    """bool: query < 0 or query > last, by the sign of either."""
    left = tables.last.index_select(0, row).sub_(query)
    return left.bitwise_or_(query) < 0


def _by_slots(
    row: torch.Tensor, q_indices: torch.Tensor, tables: _RowTables, slots: torch.Tensor, topk: int, tokens: int
) -> torch.Tensor:
    """One pass for each step over millions of entries, so the steps are few, in place and of 32 bits."""
    heads = q_indices.shape[0]
    ids = torch.full((heads * tokens * topk + 257,), -1, dtype=torch.int32, device=row.device)  # room for any slot
    dtype = torch.int32 if ids.shape[0] < 2**31 else torch.int64
    query = q_indices.reshape(-1)
    place = (tables.start.to(dtype) * topk).index_select(0, row)
    place.add_(query, alpha=topk).add_((slots >> _SLOT_SHIFT).bitwise_and_(0xFF).view(-1))
    head = torch.arange(0, heads * tokens * topk, tokens * topk, dtype=dtype, device=row.device)
    place.view(heads, -1).add_(head[:, None])
    place.masked_fill_(_names_no_query(row, query, tables), ids.shape[0] - 1)
    ids.scatter_(0, place.to(torch.int64), tables.block.index_select(0, row))
    return ids[: heads * tokens * topk].view(heads, tokens, topk).permute(1, 0, 2)


def _by_order(
    row: torch.Tensor, q_indices: torch.Tensor, tables: _RowTables, topk: int, tokens: int
) -> torch.Tensor:
    """Entries sorted by query, stably: each query's blocks ascend, as rows do."""
    heads = q_indices.shape[0]
    lists = heads * tokens
    dtype = torch.int32 if lists < 2**31 - 1 else torch.int64
    query = q_indices.reshape(-1)
    key = tables.start.to(dtype).index_select(0, row).add_(query)
    head = torch.arange(0, lists, tokens, dtype=dtype, device=row.device)
    key.view(heads, -1).add_(head[:, None])
    key.masked_fill_(_names_no_query(row, query, tables), lists)
    ordered, source = key.sort(stable=True)
    ends = torch.searchsorted(ordered, torch.arange(lists, dtype=dtype, device=row.device), right=True)
    place = torch.nn.functional.pad(ends[:-1], (1, 0))[:, None] + torch.arange(topk, device=row.device)
    blocks = tables.block.index_select(0, row)[source[place.clamp(max=key.shape[0] - 1)]]
    ids = torch.where(place < ends[:, None], blocks, -1)
    return ids.view(heads, tokens, topk).permute(1, 0, 2)


def _check_entries(
    row: torch.Tensor, q_indices: torch.Tensor, tables: _RowTables, topk: int, tokens: int
) -> None:
    """What can be read at once, in host memory, is read."""
    heads, rows = q_indices.shape[0], tables.start.shape[0] - 1
    query = q_indices.reshape(-1)
    wrong = _names_no_query(row, query, tables) & (row < rows)
    if bool(wrong.any()):
        bad_content("k2q_q_indices", "queries of the row's request", int(query[wrong][0]))
    head = torch.arange(heads)[:, None] * tokens
    name = (tables.start.index_select(0, row) + query).view(heads, -1) + head
    counts = torch.bincount(name[(row < rows).view(heads, -1)], minlength=heads * tokens)
    if int(counts.max()) > topk:
        bad_content("k2q_q_indices", f"each query at most topK = {topk} times", int(counts.max()))
