# SPDX-License-Identifier: MIT
"""The loss of the index branch as one number that gradients flow from."""
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import torch as ops

__all__ = ["index_loss"]


def index_loss(q: Tensor, k: Tensor, lse: Tensor, index_q: Tensor, index_k: Tensor, block_ids: Tensor | None = None,
               row_weight: Tensor | None = None, **settings: Any) -> Tensor:
    """The sum of row_weight times KL(attention || index branch) over rows and index heads, f32 [].

    q: [T, Hq, D]; k: [N, Hkv, D]; lse: f32 [T, Hq], of attention over the same keys; they get no gradient
    index_q: [T, Hi, Di]; index_k: [N, Hik, Di]; they get theirs
    block_ids: i32 [T, Hkv, topk]; left out: all visible keys, the warm-up
    row_weight: f32 [T]; left out: 1 / (T Hi), the mean. Ranks and micro-batches share one mean where each passes
    1 / (Hi times the tokens of all of them).
    settings: those of msa.index_loss, as block_size and cu_seqlens_q

    Value and gradients come from one call in the forward pass, 2 Di (Hi + Hik) bytes a token in 16 bits are kept.
    """
    rows, heads = index_q.shape[0], index_q.shape[1]
    if row_weight is None:
        row_weight = torch.full((rows,), 1.0 / max(rows * heads, 1), dtype=torch.float32, device=index_q.device)
    # Weights of a millionth and less are below what f16 can hold.
    grad_dtype = torch.float32 if index_q.dtype == torch.float16 else None
    wants_q, wants_k = (torch.is_grad_enabled() and x.requires_grad for x in (index_q, index_k))
    found = iter(_tensors(ops.index_loss(
        q.detach(), k.detach(), lse.detach(), index_q.detach(), index_k.detach(), block_ids, row_weight,
        grad_dtype=grad_dtype, return_d_index_q=wants_q, return_d_index_k=wants_k, **settings)))
    value = (next(found) * row_weight[:, None]).sum()
    gradients = next(found) if wants_q else None, next(found) if wants_k else None
    return _WithGradients.apply(value, index_q, index_k, *gradients) if wants_q or wants_k else value


def _tensors(found: Any) -> tuple[Tensor, ...]:
    return (found,) if isinstance(found, Tensor) else tuple(found)


class _WithGradients(torch.autograd.Function):
    """A number whose gradients are known already."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, index_q: Tensor, index_k: Tensor, d_index_q: Tensor | None,
                d_index_k: Tensor | None) -> Tensor:
        ctx.save_for_backward(d_index_q, d_index_k)
        ctx.dtype = index_q.dtype
        return value.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        scaled = [None if x is None else (x * gradient).to(ctx.dtype) for x in ctx.saved_tensors]
        return None, *scaled, None, None
