# SPDX-License-Identifier: MIT
"""Upstream's reference utilities: inverses made one query at a time, to test against."""
from __future__ import annotations

import torch

from ._checks import BLOCK, check_block_size


def build_k2q_csr_torch_reference(
    q2k_indices: torch.Tensor, cu_seqlens_q: torch.Tensor, cu_seqlens_k: torch.Tensor, blk_kv: int = BLOCK
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same rows, one query at a time on the host."""
    check_block_size("blk_kv", blk_kv)
    heads, tokens, topk = q2k_indices.shape
    starts = cu_seqlens_q.tolist()
    blocks = ((cu_seqlens_k.diff() + (BLOCK - 1)) // BLOCK).tolist()
    levels = range(max(blocks, default=0))
    row_of = {place: n for n, place in enumerate((b, i) for i in levels for b, end in enumerate(blocks) if i < end)}
    row_ptr = torch.zeros((heads, len(row_of) + 1), dtype=torch.int32)
    q_indices = torch.full((heads, tokens * topk), -1, dtype=torch.int32)
    for h in range(heads):
        rows: list[list[int]] = [[] for _ in row_of]
        for b in range(len(blocks)):
            for t in range(starts[b], starts[b + 1]):
                for block in q2k_indices[h, t].tolist():
                    if block < 0:
                        break
                    rows[row_of[b, block]].append(t - starts[b])
        row_ptr[h, 1:] = torch.tensor([len(r) for r in rows], dtype=torch.int32).cumsum(0)
        flat = torch.tensor([q for r in rows for q in r], dtype=torch.int32)
        q_indices[h, : len(flat)] = flat
    return row_ptr.to(q2k_indices.device), q_indices.to(q2k_indices.device)


def q2k_to_k2q(q2k: torch.Tensor, num_kv_blocks: int) -> tuple[torch.Tensor, torch.Tensor]:
    """[B, H, Sq, topK] to (int32 [B, H, blocks, Sq] of queries, ascending, -1 behind them; counts)."""
    batch, heads, queries, _ = q2k.shape
    block = torch.arange(num_kv_blocks, device=q2k.device)
    listed = (q2k[:, :, None] == block[:, None, None]).any(-1)  # [B, H, blocks, Sq]
    query = torch.arange(queries, device=q2k.device).expand(batch, heads, num_kv_blocks, queries)
    ordered = torch.where(listed, query, queries).sort(-1).values
    return torch.where(ordered < queries, ordered, -1).to(torch.int32), listed.sum(-1, dtype=torch.int32)


def k2q_to_q2k(k2q_indices: torch.Tensor, k2q_counts: torch.Tensor, Sq: int, topK: int) -> torch.Tensor:
    """The way back: int32 [B, H, Sq, topK], ascending blocks, -1 behind them."""
    blocks, width = k2q_indices.shape[2:]
    counted = torch.arange(width, device=k2q_indices.device) < k2q_counts[..., None]
    query = torch.arange(Sq, device=k2q_indices.device)
    entries = torch.where(counted, k2q_indices, -1)
    listed = (entries[..., None] == query).any(3).transpose(2, 3)  # [B, H, Sq, blocks]
    block = torch.arange(blocks, device=k2q_indices.device).expand_as(listed)
    ordered = torch.where(listed, block, blocks).sort(-1).values[..., :topK]
    padded = torch.nn.functional.pad(ordered, (0, max(topK - ordered.shape[-1], 0)), value=blocks)
    return torch.where(padded < blocks, padded, -1).to(torch.int32)
