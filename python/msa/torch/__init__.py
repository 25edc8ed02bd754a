# SPDX-License-Identifier: MIT
"""The operations of msa as registered torch ops: torch.compile keeps them whole, CUDA graphs capture them.

Same names, shapes and words as in msa.operations; tensors are torch's, the stream is torch's current one and workspaces
come from torch's allocator. Given outputs (out=, lse=, ...) are written by the variant torch.ops.msa.NAME.out.
dense_attention, sparse_attention and msa_attention have gradients of q, k and v through out and lse; block ids carry
none. A backward pass that reaches another op raises.
"""
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..results import IndexCopy, Inverse
from .fakes import scales_of
from .ops import overload, result, write

__all__ = ["block_scores", "dense_attention", "dense_attention_backward", "index_loss", "invert_selection",
           "merge_selections", "merge_states", "msa_attention", "quantize_index", "quantize_kv", "select_blocks",
           "select_topk", "sparse_attention", "sparse_attention_backward"]

# Looked up once, and called by place: both save as much as a small call takes.
_dense_attention = overload("dense_attention")
_block_scores = overload("block_scores")
_select_topk = overload("select_topk")
_select_blocks = overload("select_blocks")
_sparse_attention = overload("sparse_attention")
_msa_attention = overload("msa_attention")
_merge_states = overload("merge_states")
_merge_selections = overload("merge_selections")
_invert_selection = overload("invert_selection")
_quantize_kv = overload("quantize_kv")
_quantize_index = overload("quantize_index")
_sparse_attention_backward = overload("sparse_attention_backward")
_dense_attention_backward = overload("dense_attention_backward")
_index_loss = overload("index_loss")


def dense_attention(q: Tensor, k: Tensor, v: Tensor | None = None, *, k_scale: Tensor | None = None,
                    v_scale: Tensor | None = None, k_global_scale: Tensor | None = None,
                    v_global_scale: Tensor | None = None, cu_seqlens_q: Tensor | None = None,
                    seqlens_k: Tensor | None = None, cu_seqlens_k: Tensor | None = None,
                    page_table: Tensor | None = None, q_offsets: Tensor | None = None,
                    key_offsets: Tensor | None = None, total_seqlens_k: Tensor | None = None, block_size: int = 128,
                    causal: bool = True, softmax_scale: float | None = None, max_seqlen_q: int | None = None,
                    max_seqlen_k: int | None = None, backend: str | None = None, isa: str | None = None,
                    threads: int = 0, batch_invariant: bool = False, kv_format: str | None = None,
                    out_dtype: torch.dtype | None = None, out: Tensor | None = None, lse: Tensor | None = None,
                    block_max: Tensor | None = None, return_lse: bool = False, return_block_max: bool = False) -> Any:
    """Attends every visible key of every request. See msa.dense_attention."""
    if out is not None or lse is not None or block_max is not None:
        outputs = {"out": out if out is not None else v is not None, "lse": lse if lse is not None else return_lse,
                   "block_max": block_max if block_max is not None else return_block_max}
        return write("dense_attention", (q, k, v), outputs, out_dtype, k_scale=k_scale, v_scale=v_scale,
                     k_global_scale=k_global_scale, v_global_scale=v_global_scale, cu_seqlens_q=cu_seqlens_q,
                     seqlens_k=seqlens_k, cu_seqlens_k=cu_seqlens_k, page_table=page_table, q_offsets=q_offsets,
                     key_offsets=key_offsets, total_seqlens_k=total_seqlens_k, block_size=block_size, causal=causal,
                     softmax_scale=softmax_scale, max_seqlen_q=max_seqlen_q, max_seqlen_k=max_seqlen_k, backend=backend,
                     isa=isa, threads=threads, batch_invariant=batch_invariant, kv_format=kv_format)
    found = _dense_attention(q, k, v, k_scale, v_scale, k_global_scale, v_global_scale, cu_seqlens_q, seqlens_k,
                             q_offsets, key_offsets, total_seqlens_k, cu_seqlens_k, page_table, block_size, causal,
                             softmax_scale, max_seqlen_q, max_seqlen_k, backend, isa, threads, batch_invariant,
                             kv_format, out_dtype, None, return_lse, return_block_max)
    if len(found) == 1:
        return found[0]
    return result(found, ("out", v is not None), ("lse", return_lse), ("block_max", return_block_max))


def block_scores(index_q: Tensor, index_k: Tensor, *, index_k_scale: Tensor | None = None,
                  index_k_global_scale: Tensor | None = None,
                 cu_seqlens_q: Tensor | None = None,
                 seqlens_k: Tensor | None = None, cu_seqlens_k: Tensor | None = None, page_table: Tensor | None = None,
                 q_offsets: Tensor | None = None, key_offsets: Tensor | None = None,
                 total_seqlens_k: Tensor | None = None, block_size: int = 128, causal: bool = True,
                 max_seqlen_q: int | None = None, max_seqlen_k: int | None = None, backend: str | None = None,
                 isa: str | None = None, threads: int = 0, batch_invariant: bool = False,
                 index_k_format: str | None = None,
                 scores: Tensor | None = None) -> Any:
    """The largest index score of each block that a query sees; -inf where it sees nothing. See msa.block_scores."""
    if scores is not None:
        outputs = {"scores": scores if scores is not None else True}
        return write("block_scores", (index_q, index_k), outputs, None, index_k_scale=index_k_scale,
                     index_k_global_scale=index_k_global_scale,
                     cu_seqlens_q=cu_seqlens_q, seqlens_k=seqlens_k,
                     cu_seqlens_k=cu_seqlens_k, page_table=page_table, q_offsets=q_offsets, key_offsets=key_offsets,
                     total_seqlens_k=total_seqlens_k, block_size=block_size, causal=causal, max_seqlen_q=max_seqlen_q,
                     max_seqlen_k=max_seqlen_k, backend=backend, isa=isa, threads=threads,
                     batch_invariant=batch_invariant, index_k_format=index_k_format)
    found = _block_scores(index_q, index_k, index_k_scale, index_k_global_scale, cu_seqlens_q, seqlens_k, q_offsets,
                          key_offsets,
                          total_seqlens_k,
                          cu_seqlens_k, page_table, block_size, causal, max_seqlen_q, max_seqlen_k, backend, isa,
                          threads, batch_invariant, index_k_format)
    return found[0]


def select_topk(scores: Tensor, *, cu_seqlens_q: Tensor | None = None, seqlens_k: Tensor | None = None,
                q_offsets: Tensor | None = None, key_offsets: Tensor | None = None,
                total_seqlens_k: Tensor | None = None, block_size: int = 128, topk: int = 16, local_blocks: int = 1,
                init_blocks: int = 0, causal: bool = True, max_seqlen_q: int | None = None,
                max_seqlen_k: int | None = None, backend: str | None = None, isa: str | None = None, threads: int = 0,
                batch_invariant: bool = False, block_ids: Tensor | None = None, chosen_scores: Tensor | None = None,
                return_scores: bool = False) -> Any:
    """Chooses the best visible blocks of each row of scores. See msa.select_topk."""
    if block_ids is not None or chosen_scores is not None:
        outputs = {"block_ids": block_ids if block_ids is not None else True,
                   "chosen_scores": chosen_scores if chosen_scores is not None else return_scores}
        return write("select_topk", (scores,), outputs, None, cu_seqlens_q=cu_seqlens_q, seqlens_k=seqlens_k,
                     q_offsets=q_offsets, key_offsets=key_offsets, total_seqlens_k=total_seqlens_k,
                     block_size=block_size, topk=topk, local_blocks=local_blocks, init_blocks=init_blocks,
                     causal=causal, max_seqlen_q=max_seqlen_q, max_seqlen_k=max_seqlen_k, backend=backend, isa=isa,
                     threads=threads, batch_invariant=batch_invariant)
    found = _select_topk(scores, cu_seqlens_q, seqlens_k, q_offsets, key_offsets, total_seqlens_k, block_size, topk,
                         local_blocks, init_blocks, causal, max_seqlen_q, max_seqlen_k, backend, isa, threads,
                         batch_invariant, True, return_scores)
    if len(found) == 1:
        return found[0]
    return result(found, ("block_ids", True), ("chosen_scores", return_scores))


def select_blocks(index_q: Tensor, index_k: Tensor, *, index_k_scale: Tensor | None = None,
                  index_k_global_scale: Tensor | None = None,
                  index_k8: Tensor | None = None,
                  index_k8_bounds: Tensor | None = None, cu_seqlens_q: Tensor | None = None,
                  seqlens_k: Tensor | None = None, cu_seqlens_k: Tensor | None = None, page_table: Tensor | None = None,
                  q_offsets: Tensor | None = None, key_offsets: Tensor | None = None,
                  total_seqlens_k: Tensor | None = None, block_size: int = 128, topk: int = 16, local_blocks: int = 1,
                  init_blocks: int = 0, causal: bool = True, max_seqlen_q: int | None = None,
                  max_seqlen_k: int | None = None, backend: str | None = None, isa: str | None = None, threads: int = 0,
                  batch_invariant: bool = False, index_k_format: str | None = None, index_filter: str | None = None,
                  precision: str | None = None, block_ids: Tensor | None = None,
                  chosen_scores: Tensor | None = None,
                  candidates: Tensor | None = None, return_scores: bool = False,
                  return_candidates: bool = False) -> Any:
    """block_scores and select_topk in one, without the scores in memory. See msa.select_blocks."""
    if block_ids is not None or chosen_scores is not None or candidates is not None:
        outputs = {"block_ids": block_ids if block_ids is not None else True,
                   "chosen_scores": chosen_scores if chosen_scores is not None else return_scores,
                   "candidates": candidates if candidates is not None else return_candidates}
        return write("select_blocks", (index_q, index_k), outputs, None, index_k_scale=index_k_scale,
                     index_k_global_scale=index_k_global_scale, index_k8=index_k8,
                     index_k8_bounds=index_k8_bounds, cu_seqlens_q=cu_seqlens_q, seqlens_k=seqlens_k,
                     cu_seqlens_k=cu_seqlens_k, page_table=page_table, q_offsets=q_offsets, key_offsets=key_offsets,
                     total_seqlens_k=total_seqlens_k, block_size=block_size, topk=topk, local_blocks=local_blocks,
                     init_blocks=init_blocks, causal=causal, max_seqlen_q=max_seqlen_q, max_seqlen_k=max_seqlen_k,
                     backend=backend, isa=isa, threads=threads, batch_invariant=batch_invariant,
                     index_k_format=index_k_format, index_filter=index_filter, precision=precision)
    found = _select_blocks(index_q, index_k, index_k_scale, index_k_global_scale, index_k8, index_k8_bounds,
                           cu_seqlens_q, seqlens_k,
                           q_offsets,
                           key_offsets, total_seqlens_k, cu_seqlens_k, page_table, block_size, topk, local_blocks,
                           init_blocks, causal, max_seqlen_q, max_seqlen_k, backend, isa, threads, batch_invariant,
                           index_k_format, index_filter, precision, True, return_scores, return_candidates)
    if len(found) == 1:
        return found[0]
    return result(found, ("block_ids", True), ("chosen_scores", return_scores), ("candidates", return_candidates))


def sparse_attention(q: Tensor, k: Tensor, v: Tensor, block_ids: Tensor, *, k_scale: Tensor | None = None,
                     v_scale: Tensor | None = None, k_global_scale: Tensor | None = None,
                     v_global_scale: Tensor | None = None, cu_seqlens_q: Tensor | None = None,
                     seqlens_k: Tensor | None = None, cu_seqlens_k: Tensor | None = None,
                     page_table: Tensor | None = None, q_offsets: Tensor | None = None,
                     key_offsets: Tensor | None = None, total_seqlens_k: Tensor | None = None, block_size: int = 128,
                     causal: bool = True, softmax_scale: float | None = None, max_seqlen_q: int | None = None,
                     max_seqlen_k: int | None = None, backend: str | None = None, isa: str | None = None,
                     threads: int = 0, batch_invariant: bool = False, kv_format: str | None = None,
                     out_dtype: torch.dtype | None = None, out: Tensor | None = None, lse: Tensor | None = None,
                     return_lse: bool = False) -> Any:
    """Attends the visible keys of the listed blocks. See msa.sparse_attention."""
    if out is not None or lse is not None:
        outputs = {"out": out if out is not None else True, "lse": lse if lse is not None else return_lse}
        return write("sparse_attention", (q, k, v, block_ids), outputs, out_dtype, k_scale=k_scale, v_scale=v_scale,
                     k_global_scale=k_global_scale, v_global_scale=v_global_scale, cu_seqlens_q=cu_seqlens_q,
                     seqlens_k=seqlens_k, cu_seqlens_k=cu_seqlens_k, page_table=page_table, q_offsets=q_offsets,
                     key_offsets=key_offsets, total_seqlens_k=total_seqlens_k, block_size=block_size, causal=causal,
                     softmax_scale=softmax_scale, max_seqlen_q=max_seqlen_q, max_seqlen_k=max_seqlen_k, backend=backend,
                     isa=isa, threads=threads, batch_invariant=batch_invariant, kv_format=kv_format)
    found = _sparse_attention(q, k, v, block_ids, k_scale, v_scale, k_global_scale, v_global_scale, cu_seqlens_q,
                              seqlens_k, q_offsets, key_offsets, total_seqlens_k, cu_seqlens_k, page_table, block_size,
                              causal, softmax_scale, max_seqlen_q, max_seqlen_k, backend, isa, threads, batch_invariant,
                              kv_format, out_dtype, True, return_lse)
    if len(found) == 1:
        return found[0]
    return result(found, ("out", True), ("lse", return_lse))


def msa_attention(q: Tensor, k: Tensor, v: Tensor, index_q: Tensor, index_k: Tensor, *, k_scale: Tensor | None = None,
                  v_scale: Tensor | None = None, k_global_scale: Tensor | None = None,
                  v_global_scale: Tensor | None = None, index_k_scale: Tensor | None = None,
                  index_k_global_scale: Tensor | None = None,
                  index_k8: Tensor | None = None,
                  index_k8_bounds: Tensor | None = None, cu_seqlens_q: Tensor | None = None,
                  seqlens_k: Tensor | None = None, cu_seqlens_k: Tensor | None = None, page_table: Tensor | None = None,
                  q_offsets: Tensor | None = None, key_offsets: Tensor | None = None,
                  total_seqlens_k: Tensor | None = None, block_size: int = 128, topk: int = 16, local_blocks: int = 1,
                  init_blocks: int = 0, causal: bool = True, softmax_scale: float | None = None,
                  max_seqlen_q: int | None = None, max_seqlen_k: int | None = None, backend: str | None = None,
                  isa: str | None = None, threads: int = 0, batch_invariant: bool = False, kv_format: str | None = None,
                  index_k_format: str | None = None, index_filter: str | None = None, precision: str | None = None,
                  out_dtype: torch.dtype | None = None, out: Tensor | None = None, lse: Tensor | None = None,
                  block_ids: Tensor | None = None, return_lse: bool = False, return_block_ids: bool = False) -> Any:
    """select_blocks, then sparse_attention. See msa.msa_attention."""
    if out is not None or lse is not None or block_ids is not None:
        outputs = {"out": out if out is not None else True, "lse": lse if lse is not None else return_lse,
                   "block_ids": block_ids if block_ids is not None else return_block_ids}
        return write("msa_attention", (q, k, v, index_q, index_k), outputs, out_dtype, k_scale=k_scale, v_scale=v_scale,
                     k_global_scale=k_global_scale, v_global_scale=v_global_scale, index_k_scale=index_k_scale,
                     index_k_global_scale=index_k_global_scale,
                     index_k8=index_k8,
                     index_k8_bounds=index_k8_bounds, cu_seqlens_q=cu_seqlens_q,
                     seqlens_k=seqlens_k, cu_seqlens_k=cu_seqlens_k, page_table=page_table, q_offsets=q_offsets,
                     key_offsets=key_offsets, total_seqlens_k=total_seqlens_k, block_size=block_size, topk=topk,
                     local_blocks=local_blocks, init_blocks=init_blocks, causal=causal, softmax_scale=softmax_scale,
                     max_seqlen_q=max_seqlen_q, max_seqlen_k=max_seqlen_k, backend=backend, isa=isa, threads=threads,
                     batch_invariant=batch_invariant, kv_format=kv_format, index_k_format=index_k_format,
                     index_filter=index_filter, precision=precision)
    found = _msa_attention(q, k, v, index_q, index_k, k_scale, v_scale, k_global_scale, v_global_scale, index_k_scale,
                           index_k_global_scale,
                           index_k8,
                           index_k8_bounds, cu_seqlens_q, seqlens_k, q_offsets, key_offsets, total_seqlens_k,
                           cu_seqlens_k, page_table, block_size, topk, local_blocks, init_blocks, causal, softmax_scale,
                           max_seqlen_q, max_seqlen_k, backend, isa, threads, batch_invariant, kv_format,
                           index_k_format, index_filter, precision, out_dtype,
                           True, return_lse, return_block_ids)
    if len(found) == 1:
        return found[0]
    return result(found, ("out", True), ("lse", return_lse), ("block_ids", return_block_ids))


def merge_states(outs: list[Tensor], lses: list[Tensor], *, backend: str | None = None, isa: str | None = None,
                 threads: int = 0, batch_invariant: bool = False, out_dtype: torch.dtype | None = None,
                 out: Tensor | None = None, lse: Tensor | None = None, return_lse: bool = False) -> Any:
    """Joins partial attention over disjoint sets of keys, in the order given. See msa.merge_states."""
    if out is not None or lse is not None:
        outputs = {"out": out if out is not None else True, "lse": lse if lse is not None else return_lse}
        return write("merge_states", (outs, lses), outputs, out_dtype, backend=backend, isa=isa, threads=threads,
                     batch_invariant=batch_invariant)
    found = _merge_states(outs, lses, backend, isa, threads, batch_invariant, out_dtype, True, return_lse)
    if len(found) == 1:
        return found[0]
    return result(found, ("out", True), ("lse", return_lse))


def merge_selections(block_ids_parts: list[Tensor], chosen_scores_parts: list[Tensor], *, topk: int = 16,
                     backend: str | None = None, isa: str | None = None, threads: int = 0,
                     batch_invariant: bool = False, block_ids: Tensor | None = None,
                     chosen_scores: Tensor | None = None, return_scores: bool = False) -> Any:
    """Joins what shards chose into what one selection over all keys chooses. See msa.merge_selections."""
    if block_ids is not None or chosen_scores is not None:
        outputs = {"block_ids": block_ids if block_ids is not None else True,
                   "chosen_scores": chosen_scores if chosen_scores is not None else return_scores}
        return write("merge_selections", (block_ids_parts, chosen_scores_parts), outputs, None, topk=topk,
                     backend=backend, isa=isa, threads=threads, batch_invariant=batch_invariant)
    found = _merge_selections(block_ids_parts, chosen_scores_parts, topk, backend, isa, threads, batch_invariant, True,
                              return_scores)
    if len(found) == 1:
        return found[0]
    return result(found, ("block_ids", True), ("chosen_scores", return_scores))


def invert_selection(block_ids: Tensor, *, cu_seqlens_q: Tensor | None = None, seqlens_k: Tensor | None = None,
                     q_offsets: Tensor | None = None, key_offsets: Tensor | None = None,
                     total_seqlens_k: Tensor | None = None, block_size: int = 128, max_seqlen_q: int | None = None,
                     max_seqlen_k: int | None = None, backend: str | None = None, isa: str | None = None,
                     threads: int = 0, batch_invariant: bool = False, row_ptr: Tensor | None = None,
                     q_indices: Tensor | None = None, q_slots: Tensor | None = None) -> Any:
    """For each block the queries that listed it, in ascending order, as compressed rows. See msa.invert_selection."""
    if row_ptr is not None or q_indices is not None or q_slots is not None:
        outputs = {"row_ptr": row_ptr if row_ptr is not None else True,
                   "q_indices": q_indices if q_indices is not None else True,
                   "q_slots": q_slots if q_slots is not None else True}
        return write("invert_selection", (block_ids,), outputs, None, cu_seqlens_q=cu_seqlens_q, seqlens_k=seqlens_k,
                     q_offsets=q_offsets, key_offsets=key_offsets, total_seqlens_k=total_seqlens_k,
                     block_size=block_size, max_seqlen_q=max_seqlen_q, max_seqlen_k=max_seqlen_k, backend=backend,
                     isa=isa, threads=threads, batch_invariant=batch_invariant)
    found = _invert_selection(block_ids, cu_seqlens_q, seqlens_k, q_offsets, key_offsets, total_seqlens_k, block_size,
                              max_seqlen_q, max_seqlen_k, backend, isa, threads, batch_invariant)
    return Inverse(*found)


def quantize_kv(k_rows: Tensor, v_rows: Tensor, *, k_scale: Tensor | None = None, v_scale: Tensor | None = None,
                k_global_scale: Tensor | None = None, v_global_scale: Tensor | None = None,
                cu_seqlens_q: Tensor | None = None, seqlens_k: Tensor | None = None, page_table: Tensor | None = None,
                max_seqlen_q: int | None = None, max_seqlen_k: int | None = None, backend: str | None = None,
                isa: str | None = None, threads: int = 0, batch_invariant: bool = False, kv_format: str | None = None,
                k_cache: Tensor | None = None, v_cache: Tensor | None = None, k_scale_cache: Tensor | None = None,
                v_scale_cache: Tensor | None = None) -> Any:
    """Stores keys and values of new tokens in the format of a cache. See msa.quantize_kv."""
    if k_cache is not None or v_cache is not None or k_scale_cache is not None or v_scale_cache is not None:
        scales = scales_of(kv_format)
        outputs = {"k_cache": k_cache if k_cache is not None else True,
                   "v_cache": v_cache if v_cache is not None else True,
                   "k_scale_cache": k_scale_cache if k_scale_cache is not None else scales,
                   "v_scale_cache": v_scale_cache if v_scale_cache is not None else scales}
        return write("quantize_kv", (k_rows, v_rows), outputs, None, k_scale=k_scale, v_scale=v_scale,
                     k_global_scale=k_global_scale, v_global_scale=v_global_scale, cu_seqlens_q=cu_seqlens_q,
                     seqlens_k=seqlens_k, page_table=page_table, max_seqlen_q=max_seqlen_q, max_seqlen_k=max_seqlen_k,
                     backend=backend, isa=isa, threads=threads, batch_invariant=batch_invariant, kv_format=kv_format)
    found = _quantize_kv(k_rows, v_rows, k_scale, v_scale, k_global_scale, v_global_scale, cu_seqlens_q, seqlens_k,
                         page_table, max_seqlen_q, max_seqlen_k, backend, isa, threads, batch_invariant, kv_format)
    scales = len(found) > 2
    return result(found, ("k_cache", True), ("v_cache", True), ("k_scale_cache", scales), ("v_scale_cache", scales))


def quantize_index(index_k: Tensor, *, seqlens_k: Tensor | None = None, cu_seqlens_k: Tensor | None = None,
                   page_table: Tensor | None = None, q_offsets: Tensor | None = None, max_seqlen_k: int | None = None,
                   backend: str | None = None, isa: str | None = None, threads: int = 0, batch_invariant: bool = False,
                   index_filter: str | None = None,
                   index_k8: Tensor | None = None, index_k8_bounds: Tensor | None = None) -> Any:
    """Makes the filter of index keys that select_blocks and msa_attention take. See msa.quantize_index."""
    if index_k8 is not None or index_k8_bounds is not None:
        outputs = {"index_k8": index_k8 if index_k8 is not None else True,
                   "index_k8_bounds": index_k8_bounds if index_k8_bounds is not None else True}
        return write("quantize_index", (index_k,), outputs, None, seqlens_k=seqlens_k, cu_seqlens_k=cu_seqlens_k,
                     page_table=page_table, q_offsets=q_offsets, max_seqlen_k=max_seqlen_k, backend=backend, isa=isa,
                     threads=threads, batch_invariant=batch_invariant, index_filter=index_filter)
    return IndexCopy(*_quantize_index(index_k, seqlens_k, q_offsets, cu_seqlens_k, page_table, max_seqlen_k, backend,
                                      isa, threads, batch_invariant, index_filter))


def sparse_attention_backward(q: Tensor, k: Tensor, v: Tensor, block_ids: Tensor, out: Tensor, lse: Tensor,
                              dout: Tensor, dlse: Tensor | None = None, *, cu_seqlens_q: Tensor | None = None,
                              seqlens_k: Tensor | None = None, cu_seqlens_k: Tensor | None = None,
                              page_table: Tensor | None = None, q_offsets: Tensor | None = None,
                              key_offsets: Tensor | None = None,
                              total_seqlens_k: Tensor | None = None, block_size: int = 128, causal: bool = True,
                              softmax_scale: float | None = None, max_seqlen_q: int | None = None,
                              max_seqlen_k: int | None = None, backend: str | None = None, isa: str | None = None,
                              threads: int = 0, batch_invariant: bool = False, grad_dtype: torch.dtype | None = None,
                              accumulate: bool = False, dq: Tensor | None = None, dk: Tensor | None = None,
                              dv: Tensor | None = None, return_dq: bool = True, return_dk: bool = True,
                              return_dv: bool = True) -> Any:
    """Gradients of sparse_attention, from those that arrive at its outputs. See msa.sparse_attention_backward."""
    if dq is not None or dk is not None or dv is not None:
        outputs = {"dq": dq if dq is not None else return_dq, "dk": dk if dk is not None else return_dk,
                   "dv": dv if dv is not None else return_dv}
        return write("sparse_attention_backward", (q, k, v, block_ids, out, lse, dout, dlse), outputs, None,
                     cu_seqlens_q=cu_seqlens_q, seqlens_k=seqlens_k, cu_seqlens_k=cu_seqlens_k,
                     page_table=page_table, q_offsets=q_offsets,
                     key_offsets=key_offsets, total_seqlens_k=total_seqlens_k, block_size=block_size, causal=causal,
                     softmax_scale=softmax_scale, max_seqlen_q=max_seqlen_q, max_seqlen_k=max_seqlen_k, backend=backend,
                     isa=isa, threads=threads, batch_invariant=batch_invariant, grad_dtype=grad_dtype,
                     accumulate=accumulate)
    found = _sparse_attention_backward(q, k, v, block_ids, out, lse, dout, dlse, cu_seqlens_q, seqlens_k, q_offsets,
                                       key_offsets, total_seqlens_k, cu_seqlens_k, page_table, block_size, causal,
                                       softmax_scale, max_seqlen_q, max_seqlen_k, backend, isa, threads,
                                       batch_invariant, grad_dtype, accumulate, return_dq, return_dk, return_dv)
    if len(found) == 1:
        return found[0]
    return result(found, ("dq", return_dq), ("dk", return_dk), ("dv", return_dv))


def dense_attention_backward(q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor,
                             dout: Tensor, dlse: Tensor | None = None, *, cu_seqlens_q: Tensor | None = None,
                             seqlens_k: Tensor | None = None, cu_seqlens_k: Tensor | None = None,
                             page_table: Tensor | None = None, q_offsets: Tensor | None = None,
                             key_offsets: Tensor | None = None,
                             total_seqlens_k: Tensor | None = None, block_size: int = 128, causal: bool = True,
                             softmax_scale: float | None = None, max_seqlen_q: int | None = None,
                             max_seqlen_k: int | None = None, backend: str | None = None, isa: str | None = None,
                             threads: int = 0, batch_invariant: bool = False, grad_dtype: torch.dtype | None = None,
                             accumulate: bool = False, dq: Tensor | None = None, dk: Tensor | None = None,
                             dv: Tensor | None = None, return_dq: bool = True, return_dk: bool = True,
                             return_dv: bool = True) -> Any:
    """Gradients of dense_attention, from those that arrive at its outputs. See msa.dense_attention_backward."""
    if dq is not None or dk is not None or dv is not None:
        outputs = {"dq": dq if dq is not None else return_dq, "dk": dk if dk is not None else return_dk,
                   "dv": dv if dv is not None else return_dv}
        return write("dense_attention_backward", (q, k, v, out, lse, dout, dlse), outputs, None,
                     cu_seqlens_q=cu_seqlens_q, seqlens_k=seqlens_k, cu_seqlens_k=cu_seqlens_k,
                     page_table=page_table, q_offsets=q_offsets,
                     key_offsets=key_offsets, total_seqlens_k=total_seqlens_k, block_size=block_size, causal=causal,
                     softmax_scale=softmax_scale, max_seqlen_q=max_seqlen_q, max_seqlen_k=max_seqlen_k, backend=backend,
                     isa=isa, threads=threads, batch_invariant=batch_invariant, grad_dtype=grad_dtype,
                     accumulate=accumulate)
    found = _dense_attention_backward(q, k, v, out, lse, dout, dlse, cu_seqlens_q, seqlens_k, q_offsets, key_offsets,
                                      total_seqlens_k, cu_seqlens_k, page_table, block_size, causal, softmax_scale,
                                      max_seqlen_q, max_seqlen_k, backend, isa, threads, batch_invariant, grad_dtype,
                                      accumulate, return_dq, return_dk, return_dv)
    if len(found) == 1:
        return found[0]
    return result(found, ("dq", return_dq), ("dk", return_dk), ("dv", return_dv))


def index_loss(q: Tensor, k: Tensor, lse: Tensor, index_q: Tensor, index_k: Tensor, block_ids: Tensor | None = None,
               row_weight: Tensor | None = None, *, cu_seqlens_q: Tensor | None = None,
               seqlens_k: Tensor | None = None, cu_seqlens_k: Tensor | None = None,
               page_table: Tensor | None = None, q_offsets: Tensor | None = None,
               block_size: int = 128, causal: bool = True, softmax_scale: float | None = None,
               index_scale: float | None = None, max_seqlen_q: int | None = None, max_seqlen_k: int | None = None,
               backend: str | None = None, isa: str | None = None, threads: int = 0, batch_invariant: bool = False,
               grad_dtype: torch.dtype | None = None, accumulate: bool = False, loss: Tensor | None = None,
               d_index_q: Tensor | None = None, d_index_k: Tensor | None = None, return_loss: bool = True,
               return_d_index_q: bool = True, return_d_index_k: bool = True) -> Any:
    """How far the index branch is from attention, by row, and its gradients. See msa.index_loss."""
    if loss is not None or d_index_q is not None or d_index_k is not None:
        outputs = {"loss": loss if loss is not None else return_loss,
                   "d_index_q": d_index_q if d_index_q is not None else return_d_index_q,
                   "d_index_k": d_index_k if d_index_k is not None else return_d_index_k}
        return write("index_loss", (q, k, lse, index_q, index_k, block_ids, row_weight), outputs, None,
                     cu_seqlens_q=cu_seqlens_q, seqlens_k=seqlens_k, cu_seqlens_k=cu_seqlens_k,
                     page_table=page_table, q_offsets=q_offsets,
                     block_size=block_size, causal=causal, softmax_scale=softmax_scale, index_scale=index_scale,
                     max_seqlen_q=max_seqlen_q, max_seqlen_k=max_seqlen_k, backend=backend, isa=isa, threads=threads,
                     batch_invariant=batch_invariant, grad_dtype=grad_dtype, accumulate=accumulate)
    found = _index_loss(q, k, lse, index_q, index_k, block_ids, row_weight, cu_seqlens_q, seqlens_k, q_offsets,
                        cu_seqlens_k, page_table, block_size, causal, softmax_scale, max_seqlen_q, max_seqlen_k,
                        backend, isa, threads, batch_invariant, index_scale, grad_dtype, accumulate, return_loss,
                        return_d_index_q, return_d_index_k)
    if len(found) == 1:
        return found[0]
    return result(found, ("loss", return_loss), ("d_index_q", return_d_index_q), ("d_index_k", return_d_index_k))
