# SPDX-License-Identifier: MIT
"""The fork's keys-outermost entry: sparse attention from lists of queries and pages of any size."""
from __future__ import annotations

import torch

from ._attend import sparse_attention
from ._checks import (
    BLOCK,
    E4M3,
    check_attention_tensors,
    check_block_size,
    check_keys,
    invalid,
    output_dtype,
    slots_inside,
    want_int32,
)

HEAD_DIM = 128
BLOCK_SIZE = BLOCK


def can_run_sparse_kvouter(dtype: torch.dtype | None = None) -> bool:
    """Whether kvouter_attention serves queries of this dtype here."""
    if dtype in (None, torch.bfloat16, torch.float16):
        return not torch.cuda.is_available() or torch.cuda.get_device_capability() == (9, 0)
    return dtype in (torch.float32, E4M3) and not torch.cuda.is_available()


def kvouter_attention(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    selected: torch.Tensor,
    block_tables: torch.Tensor,
    *,
    cu_seqlens_q: torch.Tensor,
    softmax_scale: float | None = None,
    causal: bool = False,
    used_kv_lens: torch.Tensor | None = None,
    block_size: int = BLOCK,
    page_size: int = 64,
    out_dtype: torch.dtype = torch.bfloat16,
    return_lse: bool = False,
    out: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(O [T, Hq, Dv], natural LSE f32 [T, Hq] or None).

    k_cache, v_cache: pages [P, Hkv, page_size, D]. selected: int32 [T, Hkv, k]. block_tables: int32
    [B, pages]. used_kv_lens: int32 [B]; left out: all that block_tables lists.
    """
    check_block_size("block_size", block_size)
    check_attention_tensors(q, k_cache, v_cache)
    check_keys(k_cache, v_cache, page_size)
    want_int32("selected", selected, 3, q.device)
    requests, pages = want_int32("block_tables", block_tables, 2, q.device).shape
    if out_dtype not in (output_dtype(q), torch.float32):
        invalid("out_dtype", f"{output_dtype(q)} or torch.float32", out_dtype)
    if out is None:
        out = q.new_empty((q.shape[0], q.shape[1], v_cache.shape[-1]), dtype=out_dtype)
    lse = q.new_empty(q.shape[:2], dtype=torch.float32) if return_lse else None
    if used_kv_lens is None:
        used_kv_lens = torch.full((requests,), pages * page_size, dtype=torch.int32, device=q.device)
    sparse_attention(
        q,
        slots_inside(k_cache),
        slots_inside(v_cache),
        selected,
        k_name="k_cache",
        cu_seqlens_q=want_int32("cu_seqlens_q", cu_seqlens_q, 1, q.device),
        seqlens_k=want_int32("used_kv_lens", used_kv_lens, 1, q.device),
        page_table=block_tables,
        max_seqlen_q=q.shape[0],
        max_seqlen_k=pages * page_size,
        causal=bool(causal),
        block_size=BLOCK,
        softmax_scale=q.shape[-1] ** -0.5 if softmax_scale is None else float(softmax_scale),
        out=out,
        lse=lse,
    )
    return out, lse
