# SPDX-License-Identifier: MIT
"""The attention function behind attn_implementation="msa": sparse layers, dense layers, and the vision tower, whose
attention is neither causal nor sparse and goes to sdpa."""
from __future__ import annotations

from typing import Any

import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.models.minimax_m3_vl import modeling_minimax_m3_vl as modeling

import msa.torch as ops

from .layout import Lengths, key_value_rows, lengths_of, query_rows
from .refusals import refuse
from .training import attend, learns


def attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    block_indices: torch.Tensor | None = None,
    position_ids: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """query [B, Hq, Sq, D], key and value [B, Hkv, Sk, D] -> [B, Sq, Hq, D]. `attention_mask` is each row's first slot."""
    if isinstance(module, modeling.MiniMaxM3VLVisionAttention):
        result: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs)
        return result
    _check(module, query, attention_mask, dropout, block_indices)
    batch, _, new, _ = query.shape
    of_batch = _lengths(query, key, attention_mask, position_ids)
    out: torch.Tensor
    if learns(module, query, key, value):
        out = attend(module, query, key, value, of_batch, scaling, block_indices)
        return out.view(batch, new, *out.shape[1:]), None
    k, v, apart = key_value_rows(key, value)
    lengths = of_batch.of(apart, k.shape[0])
    q = query_rows(query)
    if block_indices is None:
        out = ops.dense_attention(
            q, k, v, cu_seqlens_q=lengths.cu_seqlens_q, seqlens_k=lengths.seqlens_k, cu_seqlens_k=lengths.cu_seqlens_k,
            softmax_scale=scaling, max_seqlen_q=new, max_seqlen_k=key.shape[2])
    else:
        out = ops.sparse_attention(
            q, k, v, query_rows(block_indices), cu_seqlens_q=lengths.cu_seqlens_q, seqlens_k=lengths.seqlens_k,
            cu_seqlens_k=lengths.cu_seqlens_k, softmax_scale=scaling, max_seqlen_q=new, max_seqlen_k=key.shape[2],
            block_size=module.indexer.block_size)
    return out.view(batch, new, *out.shape[1:]), None


def _lengths(
    query: torch.Tensor, key: torch.Tensor, first: torch.Tensor | None, position_ids: torch.Tensor | None
) -> Lengths:
    batch, _, new, _ = query.shape
    if position_ids is None:  # a layer by itself
        last = torch.full((1,), key.shape[2] - 1, device=query.device)
        return Lengths(last if first is None else last - first, first, batch, new)
    return lengths_of(position_ids) or Lengths(position_ids[..., -1].reshape(-1), first, batch, new)


def _check(
    module: Any, query: torch.Tensor, mask: Any, dropout: float, block_indices: torch.Tensor | None
) -> None:
    if not isinstance(module, modeling.MiniMaxM3VLAttention):
        refuse("other_model", f"a layer of {type(module).__module__}.{type(module).__qualname__}")
    if module.indexer is not None and block_indices is None:
        refuse("sparse_without_blocks", "a sparse layer without blocks")
    if dropout:
        refuse("dropout", f"dropout = {dropout}")
    if mask is None:
        return
    if not isinstance(mask, torch.Tensor) or mask.ndim not in (1, 4) or (mask.ndim == 1 and mask.dtype != torch.int32):
        shape = tuple(mask.shape) if isinstance(mask, torch.Tensor) else type(mask).__name__
        refuse("mask_kind", f"a mask of {shape}")
    if mask.ndim == 4:
        refuse("mask_4d", f"a mask of shape {tuple(mask.shape)}")
