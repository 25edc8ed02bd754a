# SPDX-License-Identifier: MIT
"""The indexer's forward: the blocks are chosen while they are scored, so no score matrix ever exists."""
from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from transformers.models.minimax_m3_vl import modeling_minimax_m3_vl as modeling

import msa.torch as ops

from . import NAME
from .layout import Lengths, key_rows, lengths_of
from .training import keep_states


def selecting(original: Callable[..., Any]) -> Callable[..., Any]:
    """The forward of MiniMaxM3VLIndexer, replaced where "msa" is chosen. The cache came as past_key_values before 5.24."""

    @functools.wraps(original)
    def forward(
        self: Any,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        cache: Any = None,
        position_ids: Any = None,
        past_key_values: Any = None,
    ) -> torch.Tensor:
        cache = past_key_values if cache is None else cache
        if self.config._attn_implementation != NAME:
            stock: torch.Tensor = original(self, hidden_states, position_embeddings, cache, position_ids)
            return stock
        return choose_blocks(self, hidden_states, position_embeddings, cache, position_ids)

    return forward


def index_states(
    indexer: Any, hidden_states: torch.Tensor, position_embeddings: tuple[torch.Tensor, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Index queries [B, Sq, Hi, Di] and keys [B, Sq, 1, Di], token by token as msa reads them."""
    batch, new, _ = hidden_states.shape
    dim = indexer.head_dim
    q = indexer.q_norm(indexer.q_proj(hidden_states).view(batch, new, -1, dim))
    k = indexer.k_norm(indexer.k_proj(hidden_states).view(batch, new, 1, dim))
    cos, sin = (x[..., :dim] for x in position_embeddings)
    rotate: Callable[..., tuple[torch.Tensor, torch.Tensor]] = modeling.apply_rotary_pos_emb
    return rotate(q, k, cos, sin, unsqueeze_dim=2)


def choose_blocks(
    indexer: Any,
    hidden_states: torch.Tensor,
    position_embeddings: tuple[torch.Tensor, torch.Tensor],
    cache: Any,
    position_ids: torch.Tensor,
) -> torch.Tensor:
    """int32 [B, index heads, Sq, k], ascending, -1 behind the last; block 0 begins at a row's first token."""
    batch, new, _ = hidden_states.shape
    # The index branch learns from its own loss alone, and hands nothing back.
    q, k = index_states(indexer, hidden_states.detach(), position_embeddings)
    if q.requires_grad or k.requires_grad:
        keep_states(indexer, q, k)
        q, k = q.detach(), k.detach()
    keys = k.transpose(1, 2)  # [B, 1, Sq, Di]
    end: int | torch.Tensor = new
    if cache is not None:
        layer = cache.layers[indexer.layer_idx]
        keys = layer.update_index(keys)
        # A static layer hands out its whole buffer and counts its tokens on the device.
        end = getattr(layer, "idx_cumulative_length", keys.shape[2])
    rows, apart = key_rows(keys)
    lengths = lengths_of(position_ids)
    if lengths is None:
        last = position_ids[:, -1]
        lengths = Lengths(last, end - 1 - last, batch, new)
    told = lengths.of(apart, rows.shape[0])
    ids: torch.Tensor = ops.select_blocks(
        q.flatten(0, 1), rows, cu_seqlens_q=told.cu_seqlens_q, seqlens_k=told.seqlens_k,
        cu_seqlens_k=told.cu_seqlens_k, block_size=indexer.block_size, topk=indexer.topk_blocks,
        local_blocks=indexer.local_blocks, max_seqlen_q=new, max_seqlen_k=keys.shape[2])
    return ids.view(batch, new, -1, indexer.topk_blocks).transpose(1, 2)
