# SPDX-License-Identifier: MIT
"""Sparse attention from inverted lists, and upstream's module `fmha_sm100.sparse`."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ._attend import sparse_attention
from ._checks import (
    BLOCK,
    E4M3,
    check_attention_tensors,
    check_block_size,
    check_keys,
    check_queries,
    invalid,
    not_served,
    output_dtype,
    slots_inside,
    want_int32,
)
from ._four_bits import bytes_of
from .csr import (
    SparseAttentionSchedule,
    SparseK2qCsrBuilderSm100,
    SparseSchedulePlan,
    build_k2q_csr,
    lists_of_csr,
)
from .decode import SparseDecodePagedAttentionWrapper, sparse_decode_atten_func
from .fp4_indexer import fp4_indexer_block_scores
from .kvouter import can_run_sparse_kvouter, kvouter_attention
from .nvfp4 import (
    Nvfp4QuantizedTensor,
    dequantize_nvfp4_128x4_to_bf16,
    global_scale,
    group_scales,
    nvfp4_global_scale_from_amax,
    nvfp4_scale_128x4_offset,
    quantize_bf16_to_nvfp4_128x4,
    quantize_kv_bf16_to_nvfp4_128x4,
    swizzle_nvfp4_scale_to_128x4,
    unswizzle_nvfp4_scale_from_128x4,
)
from .reference import build_k2q_csr_torch_reference, k2q_to_q2k, q2k_to_k2q
from .refused import (
    BatchDecodeIndexerQ8KV4Wrapper,
    BatchDecodeIndexerQ8KV8Wrapper,
    BatchPrefillIndexerQ8KV8Wrapper,
    sparse_atten_nvfp4_kv_cache_func,
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
    "unswizzle_nvfp4_scale_from_128x4",
]

_PARTIALS = (torch.float32, torch.bfloat16, torch.float16, E4M3)


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

    q: [T, Hq, D]. k, v: [total_k, Hkv, D], or pages [P, Hkv, 128, D] with page_table int32 [B, pages]; of
    q's dtype, or e4m3 beside any q, without a scale. O has q's dtype, beside q in e4m3 bf16.
    k2q_row_ptr, k2q_q_indices: int32 [Hkv, rows + 1], [Hkv, >= entries], level-major, as cu_seqlens_k
    tells; they are turned back into lists of queries on the device, fastest with their schedule.
    seqused_k: int32 [B], with pages: keys that count, also for the causal alignment. qk_dtype: q's.
    pv_dtype: q's; beside q in e4m3 also bf16, which is what weights are rounded to at most.

    partial_dtype and usable_SM_count are accepted and change nothing: partial results stay fp32 and
    need no buffer.
    """
    del usable_SM_count
    check_attention_tensors(q, k, v)
    check_keys(k, v, BLOCK if page_table is not None else -1)
    _refuse_options(q, qk_dtype, pv_dtype, output_scale, enable_fp16_softmax or enable_2x_fp8)
    _check_numbers(blk_kv, partial_dtype, return_softmax_lse, return_temperature_lse)
    rows = _Rows(k2q_row_ptr, k2q_q_indices, int(topK), schedule)
    batch = _batch(q, cu_seqlens_q, cu_seqlens_k, page_table, seqused_k)
    batch |= {"max_seqlen_q": int(max_seqlen_q), "max_seqlen_k": int(max_seqlen_k), "causal": bool(causal)}
    ids = rows.lists(q, k.shape[1], cu_seqlens_q, cu_seqlens_k, seqused_k)
    if page_table is not None:
        k, v = slots_inside(k), slots_inside(v)
    scale = q.shape[-1] ** -0.5 if softmax_scale is None else float(softmax_scale)
    if out is None:
        out = q.new_empty((q.shape[0], q.shape[1], v.shape[-1]), dtype=output_dtype(q))
    temperature = lse_temperature_scale if return_temperature_lse else None
    return _attend(q, k, v, ids, batch, scale, out=out, wants_lse=return_softmax_lse, temperature=temperature)


def sparse_atten_nvfp4_kv_func(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    k_scale_128x4: torch.Tensor,
    v_scale_128x4: torch.Tensor,
    k_global_scale: torch.Tensor | None,
    v_global_scale: torch.Tensor | None,
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
    out: torch.Tensor | None = None,
    scale_layout: str = "128x4",
) -> torch.Tensor | tuple[torch.Tensor, ...]:
    """sparse_atten_func over keys and values in NVFP4: bytes [total_k, Hkv, D / 2] or pages [P, Hkv, 128, D / 2].

    k_scale_128x4, v_scale_128x4: e4m3 or its bytes, [rows, cols] in tiles of 128 x 4, rows in the order of k, which is
    contiguous then: at each call they are written out row after row, a copy of an eighth of the codes' size, pages
    that nobody lists included. Beyond upstream, scale_layout="linear" takes them as [total_k, Hkv, D / 16] or
    [P, Hkv, 128, D / 16], in any strides, and copies nothing; unswizzle_nvfp4_scale_from_128x4 makes that once.
    k_global_scale, v_global_scale: f32 of one element, on the device; None is 1. q: bf16, f16, e4m3 (f32 on the CPU).
    """
    check_queries(q)
    k, v = bytes_of("k", k), bytes_of("v", v)
    check_keys(k, v, BLOCK if page_table is not None else -1)
    _check_numbers(blk_kv, partial_dtype, return_softmax_lse, return_temperature_lse)
    rows = _Rows(k2q_row_ptr, k2q_q_indices, int(topK), schedule)
    batch = _batch(q, cu_seqlens_q, cu_seqlens_k, page_table, seqused_k)
    batch |= {"max_seqlen_q": int(max_seqlen_q), "max_seqlen_k": int(max_seqlen_k), "causal": bool(causal)}
    ids = rows.lists(q, k.shape[1], cu_seqlens_q, cu_seqlens_k, seqused_k)
    scales = {
        "k_scale": group_scales("k", k, "k_scale_128x4", k_scale_128x4, scale_layout),
        "v_scale": group_scales("v", v, "v_scale_128x4", v_scale_128x4, scale_layout),
    }
    if page_table is not None:
        k, v = slots_inside(k), slots_inside(v)
        scales = {name: slots_inside(scale) for name, scale in scales.items()}
    batch |= {"kv_format": "nvfp4", **scales}
    if k_global_scale is not None or v_global_scale is not None:
        batch["kv_format"] = "nvfp4/tensor"
        batch["k_global_scale"] = global_scale("k_global_scale", k_global_scale, q.device)
        batch["v_global_scale"] = global_scale("v_global_scale", v_global_scale, q.device)
    scale = q.shape[-1] ** -0.5 if softmax_scale is None else float(softmax_scale)
    if out is None:
        out = q.new_empty((q.shape[0], q.shape[1], 2 * v.shape[-1]), dtype=output_dtype(q))
    temperature = lse_temperature_scale if return_temperature_lse else None
    return _attend(q, k, v, ids, batch, scale, out=out, wants_lse=return_softmax_lse, temperature=temperature)


# ---- what both share ----


@dataclass
class _Rows:
    """Inverted lists as they were given."""

    row_ptr: torch.Tensor
    q_indices: torch.Tensor
    topk: int
    schedule: SparseAttentionSchedule | None

    def lists(
        self,
        q: torch.Tensor,
        heads: int,
        cu_seqlens_q: torch.Tensor,
        cu_seqlens_k: torch.Tensor,
        used_k: torch.Tensor | None,
    ) -> torch.Tensor:
        """int32 [T, Hkv, topk]."""
        _check_csr(self.row_ptr, self.q_indices, heads, q.device)
        schedule = _checked_schedule(self.schedule, self.q_indices)
        return lists_of_csr(
            self.row_ptr,
            self.q_indices,
            self.topk,
            cu_seqlens_q,
            cu_seqlens_k,
            q.shape[0],
            used_k=used_k,
            schedule=schedule,
        )


def _batch(
    q: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    page_table: torch.Tensor | None,
    seqused_k: torch.Tensor | None,
) -> dict[str, Any]:
    """Lengths and places as the library takes them, checked."""
    want_int32("cu_seqlens_q", cu_seqlens_q, 1, q.device)
    want_int32("cu_seqlens_k", cu_seqlens_k, 1, q.device)
    batch: dict[str, Any] = {"cu_seqlens_q": cu_seqlens_q, "block_size": BLOCK}
    if page_table is None:
        if seqused_k is not None:
            invalid("seqused_k", "None with ragged keys", "a tensor")
        return batch | {"seqlens_k": cu_seqlens_k.diff(), "cu_seqlens_k": cu_seqlens_k}
    batch["page_table"] = want_int32("page_table", page_table, 2, q.device)
    used = cu_seqlens_k.diff() if seqused_k is None else want_int32("seqused_k", seqused_k, 1, q.device)
    return batch | {"seqlens_k": used}


def _attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    ids: torch.Tensor,
    batch: dict[str, Any],
    scale: float,
    *,
    out: torch.Tensor,
    wants_lse: bool,
    temperature: float | None,
) -> torch.Tensor | tuple[torch.Tensor, ...]:
    """temperature: of the second lse; None: there is none."""
    lse = q.new_empty(q.shape[:2], dtype=torch.float32) if wants_lse else None
    sparse_attention(q, k, v, ids, out=out, lse=lse, softmax_scale=scale, **batch)
    if lse is None:
        return out
    if temperature is None:
        return out, lse
    if temperature == 1.0:
        return out, lse, lse.clone()
    # Sums of other exponents: a second run, whose output nobody wants.
    cooled = torch.empty_like(lse)
    sparse_attention(
        q, k, v, ids, out=torch.empty_like(out), lse=cooled, softmax_scale=scale / temperature, **batch
    )
    return out, lse, cooled


def _refuse_options(
    q: torch.Tensor,
    qk_dtype: torch.dtype | None,
    pv_dtype: torch.dtype | None,
    output_scale: float | torch.Tensor | None,
    rubin: bool | None,
) -> None:
    if qk_dtype not in (None, q.dtype):
        not_served(f"qk_dtype {qk_dtype} with q of {q.dtype}", "products are of q's dtype", "qk_dtype")
    if pv_dtype not in (None, q.dtype, output_dtype(q)):
        not_served(f"pv_dtype {pv_dtype} with q of {q.dtype}", "products are of q's dtype", "pv_dtype")
    if output_scale is not None:
        not_served("output_scale", "it goes with outputs of 8 bits; multiply the output", "output_scale")
    if rubin:
        not_served("enable_fp16_softmax or enable_2x_fp8", "they name features of other GPUs", "enable_fp16_softmax")


def _check_numbers(
    blk_kv: int, partial_dtype: torch.dtype, return_softmax_lse: bool, return_temperature_lse: bool
) -> None:
    check_block_size("blk_kv", blk_kv)
    if partial_dtype not in _PARTIALS:
        not_served(f"partial_dtype {partial_dtype}", "f32, bf16, f16 and e4m3 are accepted", "partial_dtype")
    if return_temperature_lse and not return_softmax_lse:
        invalid("return_temperature_lse", "return_softmax_lse beside it", False)


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
