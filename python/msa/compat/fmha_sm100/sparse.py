# SPDX-License-Identifier: MIT
"""Sparse attention from inverted lists, and upstream's module `fmha_sm100.sparse`."""
from __future__ import annotations

from typing import Any

import torch

from msa import torch as ops

from ._checks import (
    BLOCK,
    check_attention_tensors,
    check_block_size,
    check_keys,
    invalid,
    not_served,
    slots_inside,
    want_int32,
)
from .csr import (
    SparseAttentionSchedule,
    SparseK2qCsrBuilderSm100,
    SparseSchedulePlan,
    build_k2q_csr,
    lists_of_csr,
)
from .decode import SparseDecodePagedAttentionWrapper, sparse_decode_atten_func
from .kvouter import can_run_sparse_kvouter, kvouter_attention
from .reference import build_k2q_csr_torch_reference, k2q_to_q2k, q2k_to_k2q
from .refused import (
    BatchDecodeIndexerQ8KV4Wrapper,
    BatchDecodeIndexerQ8KV8Wrapper,
    BatchPrefillIndexerQ8KV8Wrapper,
    Nvfp4QuantizedTensor,
    dequantize_nvfp4_128x4_to_bf16,
    fp4_indexer_block_scores,
    nvfp4_global_scale_from_amax,
    nvfp4_scale_128x4_offset,
    quantize_bf16_to_nvfp4_128x4,
    quantize_kv_bf16_to_nvfp4_128x4,
    sparse_atten_nvfp4_kv_cache_func,
    sparse_atten_nvfp4_kv_func,
    swizzle_nvfp4_scale_to_128x4,
)

__all__ = [
    "BatchDecodeIndexerQ8KV4Wrapper",
    "BatchDecodeIndexerQ8KV8Wrapper",
    "BatchPrefillIndexerQ8KV8Wrapper",
    "Nvfp4QuantizedTensor",
    "SparseAttentionSchedule",
    "SparseDecodePagedAttentionWrapper",
    "SparseK2qCsrBuilderSm100",
    "SparseSchedulePlan",
    "build_k2q_csr",
    "build_k2q_csr_torch_reference",
    "can_run_sparse_kvouter",
    "dequantize_nvfp4_128x4_to_bf16",
    "fp4_indexer_block_scores",
    "k2q_to_q2k",
    "kvouter_attention",
    "nvfp4_global_scale_from_amax",
    "nvfp4_scale_128x4_offset",
    "q2k_to_k2q",
    "quantize_bf16_to_nvfp4_128x4",
    "quantize_kv_bf16_to_nvfp4_128x4",
    "sparse_atten_func",
    "sparse_atten_nvfp4_kv_cache_func",
    "sparse_atten_nvfp4_kv_func",
    "sparse_decode_atten_func",
    "swizzle_nvfp4_scale_to_128x4",
]

_PARTIALS = (torch.float32, torch.bfloat16, torch.float16)


def sparse_atten_func(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    k2q_row_ptr: torch.Tensor,
    k2q_q_indices: torch.Tensor,
    topK: int,
    *,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    blk_kv: int = BLOCK,
    causal: bool = False,
    softmax_scale: float | None = None,
    lse_temperature_scale: float = 1.0,
    return_temperature_lse: bool = False,
    partial_dtype: torch.dtype = torch.bfloat16,
    return_softmax_lse: bool = False,
    page_table: torch.Tensor | None = None,
    seqused_k: torch.Tensor | None = None,
    schedule: SparseAttentionSchedule | None = None,
    usable_SM_count: int = -1,
    qk_dtype: torch.dtype | None = None,
    pv_dtype: torch.dtype | None = None,
    output_scale: float | torch.Tensor | None = None,
    out: torch.Tensor | None = None,
    enable_fp16_softmax: bool | None = None,
    enable_2x_fp8: bool | None = None,
) -> torch.Tensor | tuple[torch.Tensor, ...]:
    """Attention over the blocks that build_k2q_csr inverted: O [T, Hq, Dv], then the natural LSE f32
    [T, Hq] and that of logits divided by lse_temperature_scale, as asked for.

    q: [T, Hq, D]. k, v: [total_k, Hkv, D], or pages [P, Hkv, 128, D] with page_table int32 [B, pages].
    k2q_row_ptr, k2q_q_indices: int32 [Hkv, rows + 1], [Hkv, >= entries], level-major, as cu_seqlens_k
    tells; they are turned back into lists of queries on the device, fastest with their schedule.
    seqused_k: int32 [B], with pages: keys that count, also for the causal alignment.

    partial_dtype and usable_SM_count are accepted and change nothing: partial results stay fp32 and
    need no buffer. Formats of 8 and 4 bits are refused.
    """
    del usable_SM_count
    check_block_size("blk_kv", blk_kv)
    check_attention_tensors(q, k, v)
    check_keys(k, v, BLOCK if page_table is not None else -1)
    _refuse_options(q, partial_dtype, qk_dtype, pv_dtype, output_scale, enable_fp16_softmax or enable_2x_fp8)
    _check_csr(k2q_row_ptr, k2q_q_indices, k.shape[1], q.device)
    if page_table is None and seqused_k is not None:
        invalid("seqused_k", "None with ragged keys", "a tensor")
    if return_temperature_lse and not return_softmax_lse:
        invalid("return_temperature_lse", "return_softmax_lse beside it", False)
    ids = lists_of_csr(
        k2q_row_ptr,
        k2q_q_indices,
        int(topK),
        want_int32("cu_seqlens_q", cu_seqlens_q, 1, q.device),
        want_int32("cu_seqlens_k", cu_seqlens_k, 1, q.device),
        q.shape[0],
        used_k=None if seqused_k is None else want_int32("seqused_k", seqused_k, 1, q.device),
        schedule=_checked_schedule(schedule, k2q_q_indices),
    )
    batch: dict[str, Any] = {
        "cu_seqlens_q": cu_seqlens_q,
        "seqlens_k": cu_seqlens_k.diff() if seqused_k is None else seqused_k,
        "max_seqlen_q": int(max_seqlen_q),
        "max_seqlen_k": int(max_seqlen_k),
        "causal": bool(causal),
        "block_size": BLOCK,
    }
    if page_table is None:
        batch["cu_seqlens_k"] = cu_seqlens_k
    else:
        batch["page_table"] = want_int32("page_table", page_table, 2, q.device)
        k, v = slots_inside(k), slots_inside(v)
    scale = q.shape[-1] ** -0.5 if softmax_scale is None else float(softmax_scale)
    return _attend(q, k, v, ids, batch, scale, out, return_softmax_lse, lse_temperature_scale, return_temperature_lse)


def _attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    ids: torch.Tensor,
    batch: dict[str, Any],
    scale: float,
    out: torch.Tensor | None,
    wants_lse: bool,
    temperature: float,
    wants_temperature: bool,
) -> torch.Tensor | tuple[torch.Tensor, ...]:
    if out is None:
        out = q.new_empty((q.shape[0], q.shape[1], v.shape[-1]))
    lse = q.new_empty(q.shape[:2], dtype=torch.float32) if wants_lse else None
    ops.sparse_attention(q, k, v, ids, out=out, lse=lse, softmax_scale=scale, **batch)
    if lse is None:
        return out
    if not wants_temperature:
        return out, lse
    if temperature == 1.0:
        return out, lse, lse.clone()
    # Sums of other exponents: a second run, whose output nobody wants.
    cooled = torch.empty_like(lse)
    ops.sparse_attention(
        q, k, v, ids, out=torch.empty_like(out), lse=cooled, softmax_scale=scale / temperature, **batch
    )
    return out, lse, cooled


def _refuse_options(
    q: torch.Tensor,
    partial_dtype: torch.dtype,
    qk_dtype: torch.dtype | None,
    pv_dtype: torch.dtype | None,
    output_scale: float | torch.Tensor | None,
    rubin: bool | None,
) -> None:
    for name, dtype in (("qk_dtype", qk_dtype), ("pv_dtype", pv_dtype)):
        if dtype not in (None, q.dtype):
            not_served(f"{name} {dtype} with q of {q.dtype}", "products are of q's dtype", name)
    if partial_dtype not in _PARTIALS:
        not_served(f"partial_dtype {partial_dtype}", "f32, bf16 and f16 are accepted", "partial_dtype")
    if output_scale is not None:
        not_served("output_scale", "it goes with 8-bit formats; multiply the output", "output_scale")
    if rubin:
        not_served("enable_fp16_softmax or enable_2x_fp8", "they name features of other GPUs", "enable_fp16_softmax")


def _check_csr(row_ptr: torch.Tensor, q_indices: torch.Tensor, heads: int, device: torch.device) -> None:
    for name, tensor in (("k2q_row_ptr", row_ptr), ("k2q_q_indices", q_indices)):
        if want_int32(name, tensor, 2, device).shape[0] != heads:
            invalid(name, f"{heads} rows, one for each KV head", tuple(tensor.shape))
    if row_ptr.shape[1] < 1:
        invalid("k2q_row_ptr", "[Hkv, rows + 1]", tuple(row_ptr.shape))


def _checked_schedule(
    schedule: SparseAttentionSchedule | None, q_indices: torch.Tensor
) -> SparseAttentionSchedule | None:
    if schedule is None or not schedule.enabled:
        return None
    parts = (schedule.scheduler_metadata, schedule.work_count, schedule.qsplit_indices, schedule.split_counts)
    if any(part is None for part in parts):
        invalid("schedule", "a complete schedule, or None", "one without all of its tensors")
    assert schedule.qsplit_indices is not None
    if schedule.qsplit_indices.shape != q_indices.shape:
        invalid("schedule", f"qsplit_indices {tuple(q_indices.shape)}", tuple(schedule.qsplit_indices.shape))
    return schedule
