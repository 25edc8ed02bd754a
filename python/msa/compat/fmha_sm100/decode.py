# SPDX-License-Identifier: MIT
"""Paged decode: a function and a wrapper that plans first.

Upstream's entry is dense and refuses block ids; here they are taken. Nothing is planned that depends
on lengths: page_table and seqused_k may change in place between runs.
"""
from __future__ import annotations

from typing import Any

import torch

from ._attend import dense_attention, sparse_attention
from ._checks import (
    BLOCK,
    check_attention_tensors,
    check_block_size,
    check_keys,
    invalid,
    output_dtype,
    slots_inside,
    want_int32,
)


def sparse_decode_atten_func(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    q2k_indices: torch.Tensor | None = None,
    *,
    page_table: torch.Tensor,
    seqused_k: torch.Tensor,
    seqlen_q: int,
    max_seqlen_k: int,
    blk_kv: int = BLOCK,
    causal: bool = True,
    softmax_scale: float | None = None,
    return_softmax_lse: bool = False,
    schedule: Any = None,
    O_partial: torch.Tensor | None = None,
    LSE_partial: torch.Tensor | None = None,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """O [B * seqlen_q, Hq, Dv], and the natural LSE f32 [B * seqlen_q, Hq] on request.

    q: [B * seqlen_q, Hq, D]. k, v: pages [P, Hkv, 128, D], of q's dtype or in e4m3. q2k_indices: int32
    [Hkv, B * seqlen_q, topK], logical blocks of the request; left out: every block. page_table: int32
    [B, pages]. seqused_k: int32 [B]. O has q's dtype, beside q in e4m3 bf16. schedule, O_partial and
    LSE_partial are accepted and not used.
    """
    del schedule, O_partial, LSE_partial
    wrapper = SparseDecodePagedAttentionWrapper(blk_kv=blk_kv, causal=causal)
    wrapper.plan(
        page_table=page_table,
        seqused_k=seqused_k,
        seqlen_q=seqlen_q,
        max_seqlen_k=max_seqlen_k,
        q2k_indices=q2k_indices,
        head_dim=q.shape[-1],
    )
    return wrapper.run(q, k, v, softmax_scale=softmax_scale, return_softmax_lse=return_softmax_lse)


class SparseDecodePagedAttentionWrapper:
    """plan() keeps the tensors that say where keys are; run() reads them as they are then."""

    def __init__(self, *, blk_kv: int = BLOCK, causal: bool = True) -> None:
        check_block_size("blk_kv", blk_kv)
        self._causal = bool(causal)
        self._batch: dict[str, Any] | None = None
        self._ids: torch.Tensor | None = None
        self._planned: dict[str, int | None] = {}

    def plan(
        self,
        *,
        page_table: torch.Tensor,
        seqused_k: torch.Tensor,
        seqlen_q: int,
        max_seqlen_k: int,
        q2k_indices: torch.Tensor | None = None,
        num_qo_heads: int | None = None,
        num_kv_heads: int | None = None,
        head_dim: int = 128,
        enable_cuda_graph: bool = False,
        max_grid_size: int | None = None,
        fixed_split_size: int | None = None,
        disable_split_kv: bool = False,
    ) -> SparseDecodePagedAttentionWrapper:
        """enable_cuda_graph, max_grid_size, fixed_split_size and disable_split_kv say how upstream
        cuts its work; they are accepted and change nothing, and every plan can be captured."""
        del enable_cuda_graph, max_grid_size, fixed_split_size, disable_split_kv
        requests = want_int32("page_table", page_table, 2).shape[0]
        if want_int32("seqused_k", seqused_k, 1, page_table.device).shape[0] != requests:
            invalid("seqused_k", f"{requests} requests as in page_table", tuple(seqused_k.shape))
        if seqlen_q < 1:
            invalid("seqlen_q", "1 or more", seqlen_q)
        self._ids = None if q2k_indices is None else want_int32("q2k_indices", q2k_indices, 3, page_table.device)
        if q2k_indices is not None and q2k_indices.shape[1] != requests * seqlen_q:
            invalid("q2k_indices", f"[Hkv, {requests * seqlen_q}, topK]", tuple(q2k_indices.shape))
        self._planned = {"num_qo_heads": num_qo_heads, "num_kv_heads": num_kv_heads, "head_dim": head_dim}
        starts = torch.arange(requests + 1, dtype=torch.int32, device=page_table.device) * int(seqlen_q)
        self._batch = {
            "cu_seqlens_q": starts,
            "seqlens_k": seqused_k,
            "page_table": page_table,
            "max_seqlen_q": int(seqlen_q),
            "max_seqlen_k": int(max_seqlen_k),
            "causal": self._causal,
            "block_size": BLOCK,
        }
        self._tokens = requests * int(seqlen_q)
        return self

    def run(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        *,
        softmax_scale: float | None = None,
        return_softmax_lse: bool = False,
        out: torch.Tensor | None = None,
        lse: torch.Tensor | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Shapes as in sparse_decode_atten_func. A given lse is written either way."""
        if self._batch is None:
            raise RuntimeError("run: call plan first")
        check_attention_tensors(q, k, v)
        check_keys(k, v, BLOCK)
        self._check_planned(q, k)
        if out is None:
            out = q.new_empty((q.shape[0], q.shape[1], v.shape[-1]), dtype=output_dtype(q))
        if lse is None and return_softmax_lse:
            lse = q.new_empty(q.shape[:2], dtype=torch.float32)
        scale = q.shape[-1] ** -0.5 if softmax_scale is None else float(softmax_scale)
        pages = slots_inside(k), slots_inside(v)
        if self._ids is None:
            dense_attention(q, *pages, out=out, lse=lse, softmax_scale=scale, **self._batch)
        else:
            ids = self._ids.permute(1, 0, 2)
            sparse_attention(q, *pages, ids, out=out, lse=lse, softmax_scale=scale, **self._batch)
        if not return_softmax_lse:
            return out
        assert lse is not None
        return out, lse

    def _check_planned(self, q: torch.Tensor, k: torch.Tensor) -> None:
        given = {"num_qo_heads": q.shape[1], "num_kv_heads": k.shape[1], "head_dim": q.shape[2]}
        for name, number in given.items():
            if self._planned[name] not in (None, number):
                invalid("q", f"{name} {self._planned[name]} as planned", number)
        if q.shape[0] != self._tokens:
            invalid("q", f"{self._tokens} rows as planned", q.shape[0])
        if self._ids is not None and self._ids.shape[0] != k.shape[1]:
            invalid("q2k_indices", f"[{k.shape[1]}, {q.shape[0]}, topK]", tuple(self._ids.shape))
