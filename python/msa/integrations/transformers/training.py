# SPDX-License-Identifier: MIT
"""Forwards that gradients are wanted of: attention with a backward pass, and what each index branch has to learn."""
from __future__ import annotations

from typing import Any

import torch
from transformers.models.minimax_m3_vl import modeling_minimax_m3_vl as modeling

import msa.torch as ops
from msa.nn import index_loss

from .layout import Lengths, query_rows
from .refusals import refuse

# On an indexer: what it scored with in this forward, its loss of the last one, whether it warms up.
_STATES, _LOSS, _WARM = "_msa_index_states", "_msa_index_loss", "_msa_warm_up"


def index_losses(model: Any) -> list[torch.Tensor]:
    """Of the last forward in grad mode: a number for each sparse layer whose index branch trains, first layer first, each
    the mean over tokens and index heads of KL(attention || index branch). Takes them away from the model."""
    found = [indexer.__dict__.pop(_LOSS) for indexer in _indexers(model) if _LOSS in indexer.__dict__]
    if not found:
        raise RuntimeError("index_losses: expected a forward in grad mode with index branches that train, found none since "
                           "the last call; activation checkpointing needs use_reentrant=False")
    return found


def forget_losses(model: Any) -> None:
    """Of the forward before, which nobody took."""
    for indexer in _indexers(model):
        indexer.__dict__.pop(_LOSS, None)


def warm_up(model: Any, on: bool = True) -> None:
    """While it is on, sparse layers attend to all visible keys where gradients are wanted, and their index branches learn
    over all of them."""
    for indexer in _indexers(model):
        indexer.__dict__[_WARM] = on


def keep_states(indexer: Any, q: torch.Tensor, k: torch.Tensor) -> None:
    """What the layer's attention, which runs next, works the loss out of. q: [B, S, Hi, Di]; k: [B, S, 1, Di]"""
    indexer.__dict__[_STATES] = (q.flatten(0, 1), k.flatten(0, 1))


def learns(module: Any, *tensors: torch.Tensor) -> bool:
    if not torch.is_grad_enabled():
        return False
    return any(x.requires_grad for x in tensors) or (module.indexer is not None and _STATES in module.indexer.__dict__)


def attend(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, lengths: Lengths, scaling: float | None,
    block_indices: torch.Tensor | None
) -> torch.Tensor:
    """As attention, [B * S, Hq, D]; the loss stays with the layer's indexer."""
    batch, _, length, _ = query.shape
    if key.shape[2] != length:
        refuse("grad", f"{key.shape[2] - length} cached tokens in grad mode")
    # Keys of all requests side by side: views that overlap themselves have no gradient of their own.
    q, k, v = (query_rows(x) for x in (query, key, value))
    told = lengths.of(length, batch * length)
    shape: dict[str, Any] = {**told._asdict(), "softmax_scale": scaling, "max_seqlen_q": length, "max_seqlen_k": length}
    indexer = module.indexer
    ids: torch.Tensor | None = None
    if block_indices is not None and not indexer.__dict__.get(_WARM, False):
        ids = query_rows(block_indices)
        found = ops.sparse_attention(q, k, v, ids, block_size=indexer.block_size, return_lse=True, **shape)
    else:
        found = ops.dense_attention(q, k, v, return_lse=True, **shape)
    states = None if indexer is None else indexer.__dict__.pop(_STATES, None)
    if states is not None:
        tokens = told.seqlens_k.sum() * indexer.num_heads  # padding teaches nothing
        weight = tokens.float().reciprocal().expand(batch * length).contiguous()
        index_q, index_k = states
        loss = index_loss(q, k, found.lse, index_q, index_k, ids, weight, block_size=indexer.block_size, **shape)
        if torch._C._current_graph_task_id() == -1:  # else a checkpoint that is worked out again, whose loss is known
            indexer.__dict__[_LOSS] = loss
    out: torch.Tensor = found.out
    return out


def _indexers(model: Any) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, modeling.MiniMaxM3VLIndexer)]
