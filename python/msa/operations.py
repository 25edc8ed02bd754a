# SPDX-License-Identifier: MIT
"""The operations, for arrays of any library that speaks DLPack: shapes are those of docs/contract.md.

What all of them share:

cu_seqlens_q: i32 [B + 1], first query row of each request; left out: one request owns all rows
seqlens_k: i32 [B], keys of each request; left out: one request owns all keys
cu_seqlens_k: i32 [B + 1], ragged keys, first row of each request; left out: the sums of seqlens_k
page_table: i32 [B, pages], where keys and values come in pages [P, S, heads, dim]
q_offsets: i32 [B], position of a request's first query; left out: so that the last query sees the last key
key_offsets, total_seqlens_k: i32 [B], shards: position of the first key here, length of the whole sequence
max_seqlen_q, max_seqlen_k: bounds; must be given where the lengths lie on a GPU, where nobody reads them
backend, isa, threads: who computes and how; the library chooses where they are left out
batch_invariant: the bits of a request do not depend on the batch around it
dtype: what arrays of 16-bit unsigned words hold ("bf16"), for numpy, which has no such type
k_scale, v_scale: f32, where k and v are stored as e4m3 and scaled: [1], [Hkv], [P, Hkv] of pages, or one for each token
    and head, [N, Hkv] or [P, S, Hkv]; e4m3 (or bytes), where they are stored in four bits: [N, Hkv, D / 16] or
    [P, S, Hkv, D / 16]
k_global_scale, v_global_scale: f32 [1], of "nvfp4/tensor"
index_k_scale: f32, where index_k is stored as e4m3 and scaled: [1], [Hik], [P, Hik] of pages, or one for each token and
    head, [N, Hik] or [P, S, Hik]; e4m3 (or bytes), where it is stored in four bits: [N, Hik, Di / 16] or
    [P, S, Hik, Di / 16]
index_k_global_scale: f32 [1], of "nvfp4/tensor"
index_k8, index_k8_bounds: a filter, i8 codes of index_k and f32 {scale, error, norm} of each page, [P, Hik, 3], or of
    each 16 rows of ragged keys, [ceil(N / 16), Hik, 3]: the same selection, and most of index_k is not read
kv_dtype: what k and v of unsigned bytes hold ("e4m3"); index_k_dtype: the same of index_q and index_k
kv_format: the whole format of k and v, which bytes in four bits need ("nvfp4", "nvfp4/tensor", "q8kv4"); two elements
    lie in a byte, the even one in its low half, so that the last extent of the array is half the dim
index_k_format: the same of index_k
index_filter: "i8/page/rotated" where index_k8 was made so
precision: "fast": the selection goes by index_k8 alone, and index_k is not read; left out: "exact"
out_dtype: "f32" for an output of that type beside 16-bit queries
out, lse, ...: arrays to write into; what is left out and wanted (return_lse, ...) is allocated as q was
workspace: bytes on the device, as many as the plan says; left out: allocated for the call
stream: a CUDA stream, its number or an object that holds one; left out: the current one of the library that made q

Nothing is copied. Whatever cannot be computed correctly raises msa.Error and leaves the outputs untouched.
"""
from __future__ import annotations

from typing import Any

from . import _core
from .arrays import Array, Parts

__all__ = ["block_scores", "dense_attention", "dense_attention_backward", "index_loss", "invert_selection",
           "merge_selections", "merge_states", "msa_attention", "quantize_index", "quantize_kv", "select_blocks",
           "select_topk", "sparse_attention", "sparse_attention_backward"]


def dense_attention(q: Array, k: Array, v: Array | None = None, *, k_scale: Array | None = None,
                    v_scale: Array | None = None, k_global_scale: Array | None = None,
                    v_global_scale: Array | None = None, cu_seqlens_q: Array | None = None,
                    seqlens_k: Array | None = None, cu_seqlens_k: Array | None = None, page_table: Array | None = None,
                    q_offsets: Array | None = None, key_offsets: Array | None = None,
                    total_seqlens_k: Array | None = None, block_size: int = 128, causal: bool = True,
                    softmax_scale: float | None = None, max_seqlen_q: int | None = None,
                    max_seqlen_k: int | None = None, backend: str | None = None, isa: str | None = None,
                    threads: int = 0, batch_invariant: bool = False, kv_format: str | None = None, dtype: Any = None,
                    kv_dtype: Any = None, out_dtype: Any = None, out: Array | None = None, lse: Array | None = None,
                    block_max: Array | None = None, return_lse: bool = False, return_block_max: bool = False,
                    workspace: Array | None = None, stream: Any = None) -> Any:
    """Attends every visible key of every request.

    q: [T, Hq, D]
    k: [N, Hkv, D], or pages [P, S, Hkv, D]
    v: [N, Hkv, Dv], or pages; None where block maxima alone are wanted
    out: [T, Hq, Dv]; lse: f32 [T, Hq]; block_max: f32 [T, Hq, blocks], unscaled

    Returns out, or Attention(out, lse), OutMaxima(out, block_max), AttentionMaxima(out, lse, block_max); block_max
    alone without v.

    >>> import numpy as np
    >>> q = np.ones((3, 4, 16), np.float32)
    >>> k = v = np.ones((5, 2, 16), np.float32)
    >>> msa.dense_attention(q, k, v).shape
    (3, 4, 16)
    """
    return _core.dense_attention(q, k, v, k_scale=k_scale, v_scale=v_scale, k_global_scale=k_global_scale,
                                 v_global_scale=v_global_scale, cu_seqlens_q=cu_seqlens_q, seqlens_k=seqlens_k,
                                 cu_seqlens_k=cu_seqlens_k, page_table=page_table, q_offsets=q_offsets,
                                 key_offsets=key_offsets, total_seqlens_k=total_seqlens_k, out=out,
                                 lse=lse if lse is not None else return_lse,
                                 block_max=block_max if block_max is not None else return_block_max,
                                 block_size=block_size, causal=causal, softmax_scale=softmax_scale,
                                 max_seqlen_q=max_seqlen_q, max_seqlen_k=max_seqlen_k, backend=backend, isa=isa,
                                 threads=threads, batch_invariant=batch_invariant, kv_format=kv_format,
                                 out_dtype=out_dtype, dtype=dtype, workspace=workspace, stream=stream,
                                 kv_dtype=kv_dtype)


def block_scores(index_q: Array, index_k: Array, *, index_k_scale: Array | None = None,
                 index_k_global_scale: Array | None = None,
                 cu_seqlens_q: Array | None = None, seqlens_k: Array | None = None,
                 cu_seqlens_k: Array | None = None, page_table: Array | None = None, q_offsets: Array | None = None,
                 key_offsets: Array | None = None, total_seqlens_k: Array | None = None, block_size: int = 128,
                 causal: bool = True, max_seqlen_q: int | None = None, max_seqlen_k: int | None = None,
                 backend: str | None = None, isa: str | None = None, threads: int = 0, batch_invariant: bool = False,
                 index_k_format: str | None = None,
                 dtype: Any = None, index_k_dtype: Any = None, scores: Array | None = None,
                 workspace: Array | None = None,
                 stream: Any = None) -> Any:
    """The largest index score of each block that a query sees; -inf where it sees nothing.

    index_q: [T, Hi, Di]
    index_k: [N, Hik, Di], or pages [P, S, Hik, Di]
    scores: f32 [T, Hi, blocks], blocks = ceil(longest request / block_size)

    >>> import numpy as np
    >>> scores = msa.block_scores(np.ones((1, 2, 16), np.float32), np.ones((200, 1, 16), np.float32))
    >>> scores[0, 0].tolist()
    [16.0, 16.0]
    """
    return _core.block_scores(index_q, index_k, index_k_scale=index_k_scale,
                              index_k_global_scale=index_k_global_scale, cu_seqlens_q=cu_seqlens_q,
                              seqlens_k=seqlens_k,
                              cu_seqlens_k=cu_seqlens_k, page_table=page_table, q_offsets=q_offsets,
                              key_offsets=key_offsets, total_seqlens_k=total_seqlens_k, scores=scores,
                              block_size=block_size, causal=causal, max_seqlen_q=max_seqlen_q,
                              max_seqlen_k=max_seqlen_k, backend=backend, isa=isa, threads=threads,
                              batch_invariant=batch_invariant, index_k_format=index_k_format, dtype=dtype,
                              workspace=workspace, stream=stream,
                              index_k_dtype=index_k_dtype)


def select_topk(scores: Array, *, cu_seqlens_q: Array | None = None, seqlens_k: Array | None = None,
                q_offsets: Array | None = None, key_offsets: Array | None = None, total_seqlens_k: Array | None = None,
                block_size: int = 128, topk: int = 16, local_blocks: int = 1, init_blocks: int = 0, causal: bool = True,
                max_seqlen_q: int | None = None, max_seqlen_k: int | None = None, backend: str | None = None,
                isa: str | None = None, threads: int = 0, batch_invariant: bool = False, block_ids: Array | None = None,
                chosen_scores: Array | None = None, return_scores: bool = False, workspace: Array | None = None,
                stream: Any = None) -> Any:
    """Chooses the best visible blocks of each row of scores.

    scores: f32 [T, Hi, blocks]
    block_ids: i32 [T, Hi, topk], ascending, -1 behind the last; chosen_scores: f32 like it, +inf for forced blocks

    Returns block_ids, or Selection(block_ids, chosen_scores).

    >>> import numpy as np
    >>> scores = np.array([[[3.0, 1.0, 2.0, 0.0]]], np.float32)
    >>> lens = np.array([512], np.int32)
    >>> msa.select_topk(scores, seqlens_k=lens, topk=2, max_seqlen_q=1, max_seqlen_k=512)[0, 0].tolist()
    [0, 3]
    """
    return _core.select_topk(scores, cu_seqlens_q=cu_seqlens_q, seqlens_k=seqlens_k, q_offsets=q_offsets,
                             key_offsets=key_offsets, total_seqlens_k=total_seqlens_k, block_ids=block_ids,
                             chosen_scores=chosen_scores if chosen_scores is not None else return_scores,
                             block_size=block_size, topk=topk, local_blocks=local_blocks, init_blocks=init_blocks,
                             causal=causal, max_seqlen_q=max_seqlen_q, max_seqlen_k=max_seqlen_k, backend=backend,
                             isa=isa, threads=threads, batch_invariant=batch_invariant, workspace=workspace,
                             stream=stream)


def select_blocks(index_q: Array, index_k: Array, *, index_k_scale: Array | None = None,
                  index_k_global_scale: Array | None = None, index_k8: Array | None = None,
                  index_k8_bounds: Array | None = None, cu_seqlens_q: Array | None = None,
                  seqlens_k: Array | None = None, cu_seqlens_k: Array | None = None, page_table: Array | None = None,
                  q_offsets: Array | None = None, key_offsets: Array | None = None,
                  total_seqlens_k: Array | None = None, block_size: int = 128, topk: int = 16, local_blocks: int = 1,
                  init_blocks: int = 0, causal: bool = True, max_seqlen_q: int | None = None,
                  max_seqlen_k: int | None = None, backend: str | None = None, isa: str | None = None, threads: int = 0,
                  batch_invariant: bool = False,
                  index_k_format: str | None = None, index_filter: str | None = None, precision: str | None = None,
                  dtype: Any = None, index_k_dtype: Any = None,
                  block_ids: Array | None = None,
                  chosen_scores: Array | None = None, candidates: Array | None = None, return_scores: bool = False,
                  return_candidates: bool = False, workspace: Array | None = None, stream: Any = None) -> Any:
    """block_scores and select_topk in one, without the scores in memory.

    index_q: [T, Hi, Di]
    index_k: [N, Hik, Di], or pages [P, S, Hik, Di]
    block_ids: i32 [T, Hi, topk], ascending, -1 behind the last; chosen_scores: f32 like it, +inf for forced blocks
    candidates: i32 [T, Hi], with a filter: blocks that were scored from index_k, -1 where all were

    Returns block_ids, or Selection(block_ids, chosen_scores), SelectionCandidates(block_ids, candidates),
    ScoredCandidates(block_ids, chosen_scores, candidates).

    >>> import numpy as np
    >>> ids = msa.select_blocks(np.ones((1, 1, 16), np.float32), np.ones((300, 1, 16), np.float32), topk=2)
    >>> ids[0, 0].tolist()
    [0, 2]
    """
    return _core.select_blocks(index_q, index_k, index_k_scale=index_k_scale,
                               index_k_global_scale=index_k_global_scale, index_k8=index_k8,
                               index_k8_bounds=index_k8_bounds,
                               cu_seqlens_q=cu_seqlens_q, seqlens_k=seqlens_k, cu_seqlens_k=cu_seqlens_k,
                               page_table=page_table, q_offsets=q_offsets, key_offsets=key_offsets,
                               total_seqlens_k=total_seqlens_k, block_ids=block_ids,
                               chosen_scores=chosen_scores if chosen_scores is not None else return_scores,
                               candidates=candidates if candidates is not None else return_candidates,
                               block_size=block_size, topk=topk, local_blocks=local_blocks, init_blocks=init_blocks,
                               causal=causal, max_seqlen_q=max_seqlen_q, max_seqlen_k=max_seqlen_k, backend=backend,
                               isa=isa, threads=threads, batch_invariant=batch_invariant,
                               index_k_format=index_k_format, index_filter=index_filter, precision=precision,
                               dtype=dtype,
                               workspace=workspace, stream=stream, index_k_dtype=index_k_dtype)


def sparse_attention(q: Array, k: Array, v: Array, block_ids: Array, *, k_scale: Array | None = None,
                     v_scale: Array | None = None, k_global_scale: Array | None = None,
                     v_global_scale: Array | None = None, cu_seqlens_q: Array | None = None,
                     seqlens_k: Array | None = None, cu_seqlens_k: Array | None = None, page_table: Array | None = None,
                     q_offsets: Array | None = None, key_offsets: Array | None = None,
                     total_seqlens_k: Array | None = None, block_size: int = 128, causal: bool = True,
                     softmax_scale: float | None = None, max_seqlen_q: int | None = None,
                     max_seqlen_k: int | None = None, backend: str | None = None, isa: str | None = None,
                     threads: int = 0, batch_invariant: bool = False, kv_format: str | None = None, dtype: Any = None,
                     kv_dtype: Any = None, out_dtype: Any = None, out: Array | None = None, lse: Array | None = None,
                     return_lse: bool = False, workspace: Array | None = None, stream: Any = None) -> Any:
    """Attends the visible keys of the listed blocks.

    q: [T, Hq, D]
    k: [N, Hkv, D], or pages [P, S, Hkv, D]
    v: [N, Hkv, Dv], or pages
    block_ids: i32 [T, Hkv, topk], any order, a row ends at its first -1
    out: [T, Hq, Dv]; lse: f32 [T, Hq]

    Returns out, or Attention(out, lse).

    >>> import numpy as np
    >>> q, kv = np.ones((1, 2, 16), np.float32), np.ones((300, 1, 16), np.float32)
    >>> out, lse = msa.sparse_attention(q, kv, kv, np.array([[[0, 2]]], np.int32), softmax_scale=0.0, return_lse=True)
    >>> bool(np.isclose(lse[0, 0], np.log(128 + 44)))
    True
    """
    return _core.sparse_attention(q, k, v, block_ids, k_scale=k_scale, v_scale=v_scale, k_global_scale=k_global_scale,
                                  v_global_scale=v_global_scale, cu_seqlens_q=cu_seqlens_q, seqlens_k=seqlens_k,
                                  cu_seqlens_k=cu_seqlens_k, page_table=page_table, q_offsets=q_offsets,
                                  key_offsets=key_offsets, total_seqlens_k=total_seqlens_k, out=out,
                                  lse=lse if lse is not None else return_lse, block_size=block_size, causal=causal,
                                  softmax_scale=softmax_scale, max_seqlen_q=max_seqlen_q, max_seqlen_k=max_seqlen_k,
                                  backend=backend, isa=isa, threads=threads, batch_invariant=batch_invariant,
                                  kv_format=kv_format, out_dtype=out_dtype, dtype=dtype, workspace=workspace,
                                  stream=stream, kv_dtype=kv_dtype)


def msa_attention(q: Array, k: Array, v: Array, index_q: Array, index_k: Array, *, k_scale: Array | None = None,
                  v_scale: Array | None = None, k_global_scale: Array | None = None,
                  v_global_scale: Array | None = None, index_k_scale: Array | None = None,
                  index_k_global_scale: Array | None = None,
                  index_k8: Array | None = None,
                  index_k8_bounds: Array | None = None, cu_seqlens_q: Array | None = None,
                  seqlens_k: Array | None = None, cu_seqlens_k: Array | None = None, page_table: Array | None = None,
                  q_offsets: Array | None = None, key_offsets: Array | None = None,
                  total_seqlens_k: Array | None = None, block_size: int = 128, topk: int = 16, local_blocks: int = 1,
                  init_blocks: int = 0, causal: bool = True, softmax_scale: float | None = None,
                  max_seqlen_q: int | None = None, max_seqlen_k: int | None = None, backend: str | None = None,
                  isa: str | None = None, threads: int = 0, batch_invariant: bool = False, kv_format: str | None = None,
                  index_k_format: str | None = None, index_filter: str | None = None, precision: str | None = None,
                  dtype: Any = None, kv_dtype: Any = None, index_k_dtype: Any = None, out_dtype: Any = None,
                  out: Array | None = None,
                  lse: Array | None = None, block_ids: Array | None = None, return_lse: bool = False,
                  return_block_ids: bool = False, workspace: Array | None = None, stream: Any = None) -> Any:
    """select_blocks, then sparse_attention.

    q: [T, Hq, D]
    k: [N, Hkv, D], or pages [P, S, Hkv, D]
    v: [N, Hkv, Dv], or pages
    index_q: [T, Hi, Di], Hi = Hkv
    index_k: [N, Hik, Di], or pages [P, S, Hik, Di]
    out: [T, Hq, Dv]; lse: f32 [T, Hq]; block_ids: i32 [T, Hkv, topk]

    Returns out, or Attention(out, lse), OutBlocks(out, block_ids), AttentionBlocks(out, lse, block_ids).

    >>> import numpy as np
    >>> q, kv = np.ones((2, 4, 16), np.float32), np.ones((300, 2, 16), np.float32)
    >>> iq, ik = np.ones((2, 2, 16), np.float32), np.ones((300, 1, 16), np.float32)
    >>> msa.msa_attention(q, kv, kv, iq, ik, topk=2, return_block_ids=True).block_ids[1, 0].tolist()
    [0, 2]
    """
    return _core.msa_attention(q, k, v, index_q, index_k, k_scale=k_scale, v_scale=v_scale,
                               k_global_scale=k_global_scale, v_global_scale=v_global_scale,
                               index_k_scale=index_k_scale,
                               index_k_global_scale=index_k_global_scale, index_k8=index_k8,
                               index_k8_bounds=index_k8_bounds, cu_seqlens_q=cu_seqlens_q,
                               seqlens_k=seqlens_k, cu_seqlens_k=cu_seqlens_k, page_table=page_table,
                               q_offsets=q_offsets, key_offsets=key_offsets, total_seqlens_k=total_seqlens_k, out=out,
                               lse=lse if lse is not None else return_lse,
                               block_ids=block_ids if block_ids is not None else return_block_ids,
                               block_size=block_size, topk=topk, local_blocks=local_blocks, init_blocks=init_blocks,
                               causal=causal, softmax_scale=softmax_scale, max_seqlen_q=max_seqlen_q,
                               max_seqlen_k=max_seqlen_k, backend=backend, isa=isa, threads=threads,
                               batch_invariant=batch_invariant, kv_format=kv_format, index_k_format=index_k_format,
                               index_filter=index_filter, precision=precision, out_dtype=out_dtype, dtype=dtype,
                               workspace=workspace, stream=stream, kv_dtype=kv_dtype, index_k_dtype=index_k_dtype)


def merge_states(outs: Parts, lses: Parts, *, backend: str | None = None, isa: str | None = None, threads: int = 0,
                 batch_invariant: bool = False, dtype: Any = None, out_dtype: Any = None, out: Array | None = None,
                 lse: Array | None = None, return_lse: bool = False, workspace: Array | None = None,
                 stream: Any = None) -> Any:
    """Joins partial attention over disjoint sets of keys, in the order given.

    outs: parts of [T, Hq, Dv], as a list or as one array [parts, T, Hq, Dv]
    lses: parts of f32 [T, Hq], likewise
    out: [T, Hq, Dv]; may be outs[0]; lse: f32 [T, Hq]; may be lses[0]

    Returns out, or Attention(out, lse).

    >>> import numpy as np
    >>> outs = [np.full((1, 1, 2), value, np.float32) for value in (0.0, 1.0)]
    >>> lses = [np.zeros((1, 1), np.float32)] * 2
    >>> msa.merge_states(outs, lses)[0, 0].tolist()
    [0.5, 0.5]
    """
    return _core.merge_states(outs, lses, out=out, lse=lse if lse is not None else return_lse, backend=backend, isa=isa,
                              threads=threads, batch_invariant=batch_invariant, out_dtype=out_dtype, dtype=dtype,
                              workspace=workspace, stream=stream)


def merge_selections(block_ids_parts: Parts, chosen_scores_parts: Parts, *, topk: int = 16, backend: str | None = None,
                     isa: str | None = None, threads: int = 0, batch_invariant: bool = False,
                     block_ids: Array | None = None, chosen_scores: Array | None = None, return_scores: bool = False,
                     workspace: Array | None = None, stream: Any = None) -> Any:
    """Joins what shards chose into what one selection over all keys chooses.

    block_ids_parts: parts of i32 [T, Hkv, part k], global ids, as a list or as one array [parts, T, Hkv, part k]
    chosen_scores_parts: parts of f32 [T, Hkv, part k], likewise, +inf for forced blocks
    block_ids: i32 [T, Hkv, topk]; chosen_scores: f32 like it

    Returns block_ids, or Selection(block_ids, chosen_scores).

    >>> import numpy as np
    >>> ids = [np.array([[[0, 1]]], np.int32), np.array([[[7, 9]]], np.int32)]
    >>> scores = [np.array([[[5.0, 1.0]]], np.float32), np.array([[[2.0, np.inf]]], np.float32)]
    >>> msa.merge_selections(ids, scores, topk=2)[0, 0].tolist()
    [0, 9]
    """
    return _core.merge_selections(block_ids_parts, chosen_scores_parts, block_ids=block_ids,
                                  chosen_scores=chosen_scores if chosen_scores is not None else return_scores,
                                  topk=topk, backend=backend, isa=isa, threads=threads, batch_invariant=batch_invariant,
                                  workspace=workspace, stream=stream)


def invert_selection(block_ids: Array, *, cu_seqlens_q: Array | None = None, seqlens_k: Array | None = None,
                     q_offsets: Array | None = None, key_offsets: Array | None = None,
                     total_seqlens_k: Array | None = None, block_size: int = 128, max_seqlen_q: int | None = None,
                     max_seqlen_k: int | None = None, backend: str | None = None, isa: str | None = None,
                     threads: int = 0, batch_invariant: bool = False, row_ptr: Array | None = None,
                     q_indices: Array | None = None, q_slots: Array | None = None, workspace: Array | None = None,
                     stream: Any = None) -> Any:
    """For each block the queries that listed it, in ascending order, as compressed rows.

    block_ids: i32 [T, Hkv, topk]
    row_ptr: i32 [Hkv, rows + 1], rows: the blocks of request 0, then of request 1, ...
    q_indices: i32 [Hkv, T * topk], query rows of the batch; q_slots: i32 like it, the place in the query's list

    Returns Inverse(row_ptr, q_indices, q_slots).

    >>> import numpy as np
    >>> ids = np.array([[[0, 1]], [[1, -1]]], np.int32)
    >>> inverse = msa.invert_selection(ids, seqlens_k=np.array([256], np.int32))
    >>> inverse.row_ptr[0].tolist(), inverse.q_indices[0].tolist()
    ([0, 1, 3], [0, 0, 1, -1])
    """
    return _core.invert_selection(block_ids, cu_seqlens_q=cu_seqlens_q, seqlens_k=seqlens_k, q_offsets=q_offsets,
                                  key_offsets=key_offsets, total_seqlens_k=total_seqlens_k, row_ptr=row_ptr,
                                  q_indices=q_indices, q_slots=q_slots, block_size=block_size,
                                  max_seqlen_q=max_seqlen_q, max_seqlen_k=max_seqlen_k, backend=backend, isa=isa,
                                  threads=threads, batch_invariant=batch_invariant, workspace=workspace, stream=stream)


def quantize_kv(k_rows: Array, v_rows: Array, *, k_scale: Array | None = None, v_scale: Array | None = None,
                k_global_scale: Array | None = None, v_global_scale: Array | None = None,
                cu_seqlens_q: Array | None = None, seqlens_k: Array | None = None, page_table: Array | None = None,
                max_seqlen_q: int | None = None, max_seqlen_k: int | None = None, backend: str | None = None,
                isa: str | None = None, threads: int = 0, batch_invariant: bool = False, kv_format: str | None = None,
                dtype: Any = None, kv_dtype: Any = None, k_cache: Array | None = None, v_cache: Array | None = None,
                k_scale_cache: Array | None = None, v_scale_cache: Array | None = None, workspace: Array | None = None,
                stream: Any = None) -> Any:
    """Stores keys and values of new tokens in the format of a cache.

    k_rows: [T, Hkv, D]
    v_rows: [T, Hkv, Dv]
    k_scale, v_scale: f32, of "e4m3/tensor", "/head" and "/page"; scales of other formats are worked out
    k_cache, v_cache: what is written, row for row, or pages [P, S, Hkv, D] beside page_table: a request's rows go to
    its last positions, and nothing else of the pages is touched
    k_scale_cache, v_scale_cache: f32 of "e4m3/token", e4m3 of formats in four bits
    Index keys in four bits are stored by the same call, as rows of two halves: index_k[..., :Di / 2] for k and the rest
    for v, and caches and scales cut alike, where Di is a multiple of 32

    Returns Stored(k_cache, v_cache), or StoredScales(k_cache, v_cache, k_scale_cache, v_scale_cache) where scales are
    worked out.

    >>> import numpy as np
    >>> stored = msa.quantize_kv(np.full((1, 1, 16), 3.0, np.float32), np.ones((1, 1, 16), np.float32),
    ...                          kv_format="q8kv4")
    >>> hex(stored.k_cache[0, 0, 0]), stored.k_scale_cache[0, 0].tolist()
    ('0x77', [48])
    """
    return _core.quantize_kv(k_rows, v_rows, k_scale=k_scale, v_scale=v_scale, k_global_scale=k_global_scale,
                             v_global_scale=v_global_scale, cu_seqlens_q=cu_seqlens_q, seqlens_k=seqlens_k,
                             page_table=page_table, k_cache=k_cache, v_cache=v_cache, k_scale_cache=k_scale_cache,
                             v_scale_cache=v_scale_cache, max_seqlen_q=max_seqlen_q, max_seqlen_k=max_seqlen_k,
                             backend=backend, isa=isa, threads=threads, batch_invariant=batch_invariant,
                             kv_format=kv_format, dtype=dtype, workspace=workspace, stream=stream, kv_dtype=kv_dtype)


def quantize_index(index_k: Array, *, seqlens_k: Array | None = None, cu_seqlens_k: Array | None = None,
                   page_table: Array | None = None, q_offsets: Array | None = None, max_seqlen_k: int | None = None,
                   backend: str | None = None, isa: str | None = None, threads: int = 0, batch_invariant: bool = False,
                   index_filter: str | None = None, dtype: Any = None,
                   index_k8: Array | None = None, index_k8_bounds: Array | None = None,
                   workspace: Array | None = None, stream: Any = None) -> Any:
    """Makes the filter of index keys that select_blocks and msa_attention take: 8-bit codes, and bounds that are true.

    index_k: [N, Hik, Di], or pages [P, S, Hik, Di]
    index_filter: "i8/page", or "i8/page/rotated", whose bounds stay narrow where channels differ in size: Di is a power
    of two then
    q_offsets: i32 [B], the first new position of each request; left out: 0. Pages (groups of 16 rows of ragged keys)
    that hold a new key are made anew, of all their keys, and nothing else is touched
    index_k8: i8 like index_k; index_k8_bounds: f32 [P, Hik, 3], or [ceil(N / 16), Hik, 3]; both must be given beside
    q_offsets. Where they are left out, entries of no request hold anything

    Returns IndexCopy(index_k8, index_k8_bounds).

    >>> import numpy as np
    >>> copy = msa.quantize_index(np.array([[[1.0, -127.0, 0.5, 0.0]]], np.float32))
    >>> copy.index_k8[0, 0].tolist(), copy.index_k8_bounds[0, 0, :2].tolist()
    ([1, -127, 0, 0], [1.0, 0.5000000596046448])
    """
    return _core.quantize_index(index_k, seqlens_k=seqlens_k, cu_seqlens_k=cu_seqlens_k, page_table=page_table,
                                q_offsets=q_offsets, index_k8=index_k8, index_k8_bounds=index_k8_bounds,
                                max_seqlen_k=max_seqlen_k, backend=backend, isa=isa, threads=threads,
                                batch_invariant=batch_invariant, index_filter=index_filter, dtype=dtype,
                                workspace=workspace, stream=stream)


def sparse_attention_backward(q: Array, k: Array, v: Array, block_ids: Array, out: Array, lse: Array, dout: Array,
                              dlse: Array | None = None, *, cu_seqlens_q: Array | None = None,
                              seqlens_k: Array | None = None, cu_seqlens_k: Array | None = None,
                              page_table: Array | None = None, q_offsets: Array | None = None,
                              key_offsets: Array | None = None, total_seqlens_k: Array | None = None,
                              block_size: int = 128, causal: bool = True, softmax_scale: float | None = None,
                              max_seqlen_q: int | None = None, max_seqlen_k: int | None = None,
                              backend: str | None = None, isa: str | None = None, threads: int = 0,
                              batch_invariant: bool = False, dtype: Any = None, grad_dtype: Any = None,
                              accumulate: bool = False, dq: Array | None = None, dk: Array | None = None,
                              dv: Array | None = None, return_dq: bool = True, return_dk: bool = True,
                              return_dv: bool = True, workspace: Array | None = None, stream: Any = None) -> Any:
    """Gradients of sparse_attention, from those that arrive at its outputs.

    q: [T, Hq, D]
    k: [N, Hkv, D]; v: [N, Hkv, Dv], ragged
    block_ids: i32 [T, Hkv, topk], as the forward pass took them; they have no gradient
    out: [T, Hq, Dv]; lse: f32 [T, Hq], what the forward pass wrote
    dout: [T, Hq, Dv], the gradient of out; dlse: f32 [T, Hq], that of lse, left out: 0
    dq: [T, Hq, D]; dk: [N, Hkv, D]; dv: [N, Hkv, Dv], in q's dtype or grad_dtype "f32"
    accumulate: dk and dv are added to what lies in the arrays given

    Returns Gradients(dq, dk, dv), or those of them that are wanted.

    >>> import numpy as np
    >>> q, kv = np.ones((1, 1, 16), np.float32), np.ones((2, 1, 16), np.float32)
    >>> out, lse = msa.sparse_attention(q, kv, kv, np.array([[[0]]], np.int32), return_lse=True)
    >>> found = msa.sparse_attention_backward(q, kv, kv, np.array([[[0]]], np.int32), out, lse, np.ones_like(out))
    >>> found.dv[:, 0, 0].tolist()
    [0.5, 0.5]
    """
    return _core.sparse_attention_backward(q, k, v, block_ids, out, lse, dout, dlse, cu_seqlens_q=cu_seqlens_q,
                                           seqlens_k=seqlens_k, cu_seqlens_k=cu_seqlens_k, page_table=page_table,
                                           q_offsets=q_offsets, key_offsets=key_offsets,
                                           total_seqlens_k=total_seqlens_k,
                                           dq=dq if dq is not None else return_dq,
                                           dk=dk if dk is not None else return_dk,
                                           dv=dv if dv is not None else return_dv, block_size=block_size,
                                           causal=causal, softmax_scale=softmax_scale, max_seqlen_q=max_seqlen_q,
                                           max_seqlen_k=max_seqlen_k, backend=backend, isa=isa, threads=threads,
                                           batch_invariant=batch_invariant, grad_dtype=grad_dtype,
                                           accumulate=accumulate, dtype=dtype, workspace=workspace, stream=stream)


def dense_attention_backward(q: Array, k: Array, v: Array, out: Array, lse: Array, dout: Array,
                             dlse: Array | None = None, *, cu_seqlens_q: Array | None = None,
                             seqlens_k: Array | None = None, cu_seqlens_k: Array | None = None,
                             page_table: Array | None = None, q_offsets: Array | None = None,
                             key_offsets: Array | None = None, total_seqlens_k: Array | None = None,
                             block_size: int = 128, causal: bool = True, softmax_scale: float | None = None,
                             max_seqlen_q: int | None = None, max_seqlen_k: int | None = None,
                             backend: str | None = None, isa: str | None = None, threads: int = 0,
                             batch_invariant: bool = False, dtype: Any = None, grad_dtype: Any = None,
                             accumulate: bool = False,
                             dq: Array | None = None, dk: Array | None = None, dv: Array | None = None,
                             return_dq: bool = True, return_dk: bool = True, return_dv: bool = True,
                             workspace: Array | None = None, stream: Any = None) -> Any:
    """Gradients of dense_attention, from those that arrive at its outputs.

    q: [T, Hq, D]
    k: [N, Hkv, D]; v: [N, Hkv, Dv], ragged
    out: [T, Hq, Dv]; lse: f32 [T, Hq], what the forward pass wrote
    dout: [T, Hq, Dv], the gradient of out; dlse: f32 [T, Hq], that of lse, left out: 0
    dq: [T, Hq, D]; dk: [N, Hkv, D]; dv: [N, Hkv, Dv], in q's dtype or grad_dtype "f32"
    accumulate: dk and dv are added to what lies in the arrays given

    Returns Gradients(dq, dk, dv), or those of them that are wanted.

    >>> import numpy as np
    >>> q, kv = np.ones((1, 1, 16), np.float32), np.ones((2, 1, 16), np.float32)
    >>> out, lse = msa.dense_attention(q, kv, kv, return_lse=True)
    >>> found = msa.dense_attention_backward(q, kv, kv, out, lse, np.ones_like(out))
    >>> found.dv[:, 0, 0].tolist()
    [0.5, 0.5]
    """
    return _core.dense_attention_backward(q, k, v, out, lse, dout, dlse, cu_seqlens_q=cu_seqlens_q,
                                          seqlens_k=seqlens_k, cu_seqlens_k=cu_seqlens_k, page_table=page_table,
                                          q_offsets=q_offsets, key_offsets=key_offsets,
                                          total_seqlens_k=total_seqlens_k,
                                          dq=dq if dq is not None else return_dq,
                                          dk=dk if dk is not None else return_dk,
                                          dv=dv if dv is not None else return_dv, block_size=block_size,
                                          causal=causal, softmax_scale=softmax_scale, max_seqlen_q=max_seqlen_q,
                                          max_seqlen_k=max_seqlen_k, backend=backend, isa=isa, threads=threads,
                                          batch_invariant=batch_invariant, grad_dtype=grad_dtype,
                                          accumulate=accumulate, dtype=dtype, workspace=workspace, stream=stream)


def index_loss(q: Array, k: Array, lse: Array, index_q: Array, index_k: Array, block_ids: Array | None = None,
               row_weight: Array | None = None, *, cu_seqlens_q: Array | None = None, seqlens_k: Array | None = None,
               cu_seqlens_k: Array | None = None,
               page_table: Array | None = None, q_offsets: Array | None = None, block_size: int = 128,
               causal: bool = True, softmax_scale: float | None = None, index_scale: float | None = None,
               max_seqlen_q: int | None = None, max_seqlen_k: int | None = None, backend: str | None = None,
               isa: str | None = None, threads: int = 0, batch_invariant: bool = False, dtype: Any = None,
               grad_dtype: Any = None, accumulate: bool = False, loss: Array | None = None,
               d_index_q: Array | None = None, d_index_k: Array | None = None, return_loss: bool = True,
               return_d_index_q: bool = True, return_d_index_k: bool = True, workspace: Array | None = None,
               stream: Any = None) -> Any:
    """How far the index branch is from attention, KL(teacher || student) of each row, and its gradients.

    q: [T, Hq, D]; k: [N, Hkv, D], ragged
    lse: f32 [T, Hq], what attention over the same keys wrote
    index_q: [T, Hi, Di], Hi = Hkv; index_k: [N, Hik, Di], ragged
    block_ids: i32 [T, Hkv, topk], the blocks attended to; left out: all visible keys, as in a warm-up
    row_weight: f32 [T], of each row in the gradients; left out: 1
    loss: f32 [T, Hi], without weights
    d_index_q: [T, Hi, Di]; d_index_k: [N, Hik, Di]: of the sum of row_weight times loss, in index_q's dtype or
    grad_dtype "f32"
    index_scale: of the student's softmax; left out: 1 / sqrt(Di)
    accumulate: d_index_k is added to what lies in the array given

    The teacher is the mean of attention's weights over the heads of a group, and constant: q, k and lse have no
    gradient. Returns IndexLoss(loss, d_index_q, d_index_k), or those of them that are wanted.

    >>> import numpy as np
    >>> q, kv = np.ones((1, 1, 16), np.float32), np.ones((2, 1, 16), np.float32)
    >>> out, lse = msa.dense_attention(q, kv, kv, return_lse=True)
    >>> abs(round(float(msa.index_loss(q, kv, lse, q, kv).loss[0, 0]), 5))
    0.0
    """
    return _core.index_loss(q, k, lse, index_q, index_k, block_ids, row_weight, cu_seqlens_q=cu_seqlens_q,
                            seqlens_k=seqlens_k, cu_seqlens_k=cu_seqlens_k, page_table=page_table, q_offsets=q_offsets,
                            loss=loss if loss is not None else return_loss,
                            d_index_q=d_index_q if d_index_q is not None else return_d_index_q,
                            d_index_k=d_index_k if d_index_k is not None else return_d_index_k,
                            block_size=block_size, causal=causal, softmax_scale=softmax_scale, index_scale=index_scale,
                            max_seqlen_q=max_seqlen_q, max_seqlen_k=max_seqlen_k, backend=backend, isa=isa,
                            threads=threads, batch_invariant=batch_invariant, grad_dtype=grad_dtype,
                            accumulate=accumulate, dtype=dtype, workspace=workspace, stream=stream)
