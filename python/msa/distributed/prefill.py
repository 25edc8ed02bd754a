# SPDX-License-Identifier: MIT
"""One rank's part of a prefill: its query rows over keys that were gathered block by block.

What a rank sends are whole blocks, and what it receives is a pool of pages: the page table puts them in order, whatever
the layout, and is shared by all runs of queries that a rank has of a request. Nothing is sorted or copied again.
"""
from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .. import operations as msa
from ..results import AttentionBlocks
from .layout import blocks_of, spans
from .shard import Settings

__all__ = ["Deal", "attend", "deal", "select", "to_blocks"]


class Deal(NamedTuple):
    """How a batch lies on the ranks, and what one rank computes of it."""

    rows: int                # of this rank
    slots: int               # blocks that every rank sends; those with fewer leave some empty
    whole: bool              # this rank's rows fill its blocks, all of them
    row_slots: Tensor        # i64 [rows]: where in the slots' tokens each row goes
    cu_seqlens_q: Tensor     # i32 [runs + 1]
    q_offsets: Tensor        # i32 [runs]
    seqlens_k: Tensor        # i32 [runs]
    page_table: Tensor       # i32 [runs, blocks]
    pages: Tensor            # i32 [B, blocks], of each sequence, on the host
    max_seqlen_q: int
    max_seqlen_k: int


def deal(layout: str, lengths: tuple[int, ...], rank: int, ranks: int, settings: Settings,
         device: torch.device) -> Deal:
    """The deal of a batch of whole sequences."""
    size = settings.block_size
    counts = [-(-length // size) for length in lengths]
    slots = max(sum(len(blocks_of(layout, n, r, ranks)) for n in counts) for r in range(ranks))
    own = spans(layout, lengths, rank, ranks, size)
    row_slots: list[Tensor] = []
    slot = 0
    for _, begin, end in own:  # a run begins at a block, and only the last block of a request is shorter
        row_slots.append(torch.arange(slot * size, slot * size + end - begin))
        slot += -(-(end - begin) // size)
    starts = [0]
    for _, begin, end in own:
        starts.append(starts[-1] + end - begin)

    def numbers(values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int32, device=device)

    pages = _pages(layout, counts, ranks, slots)
    table = pages.to(device)
    runs = [run.request for run in own]
    rows_of_table = table.expand(len(own), -1) if len(lengths) == 1 else table[torch.tensor(runs, dtype=torch.int64)]
    return Deal(starts[-1], slots, starts[-1] == slots * size,
                torch.cat(row_slots).to(device) if row_slots else torch.zeros(0, dtype=torch.int64, device=device),
                numbers(starts), numbers([run.begin for run in own]), numbers([lengths[b] for b in runs]),
                rows_of_table, pages, max((end - begin for _, begin, end in own), default=0), max(lengths, default=0))


# The page of each block of each request: rank r's blocks lie in the pages r * slots, r * slots + 1, ...
def _pages(layout: str, counts: list[int], ranks: int, slots: int) -> Tensor:
    table = torch.zeros((len(counts), max(counts, default=0)), dtype=torch.int32)
    for rank in range(ranks):
        page = rank * slots
        for request, blocks in enumerate(counts):
            own = blocks_of(layout, blocks, rank, ranks)
            table[request, own] = torch.arange(page, page + len(own), dtype=torch.int32)
            page += len(own)
    return table


def to_blocks(rows: Tensor, plan: Deal, block_size: int) -> Tensor:
    """This rank's rows [T, heads, dim] as blocks [slots, block_size, heads, dim]; zeros where there are none."""
    shape = (plan.slots, block_size, *rows.shape[1:])
    if plan.whole:
        return rows.contiguous().view(shape)
    blocks = rows.new_zeros(shape)
    blocks.view(-1, *rows.shape[1:])[plan.row_slots] = rows
    return blocks


def select(index_q: Tensor, index_k: Tensor, plan: Deal, settings: Settings) -> Tensor:
    """The blocks of this rank's rows. index_k: [ranks, slots, block_size, Hik, Di], gathered."""
    chosen: Tensor = msa.select_blocks(
        index_q, index_k.flatten(0, 1), page_table=plan.page_table, seqlens_k=plan.seqlens_k,
        cu_seqlens_q=plan.cu_seqlens_q, q_offsets=plan.q_offsets, block_size=settings.block_size, topk=settings.topk,
        local_blocks=settings.local_blocks, init_blocks=settings.init_blocks, max_seqlen_q=plan.max_seqlen_q,
        max_seqlen_k=plan.max_seqlen_k, backend=settings.backend, threads=settings.threads)
    return chosen


def attend(q: Tensor, k: Tensor, v: Tensor, into: AttentionBlocks, plan: Deal, settings: Settings) -> None:
    """Attention of this rank's rows over gathered blocks, into out and lse. All of some heads alone."""
    msa.sparse_attention(q, k.flatten(0, 1), v.flatten(0, 1), into.block_ids, page_table=plan.page_table,
                         seqlens_k=plan.seqlens_k, cu_seqlens_q=plan.cu_seqlens_q, q_offsets=plan.q_offsets,
                         block_size=settings.block_size, softmax_scale=settings.softmax_scale,
                         max_seqlen_q=plan.max_seqlen_q, max_seqlen_k=plan.max_seqlen_k, backend=settings.backend,
                         threads=settings.threads, out=into.out, lse=into.lse)
