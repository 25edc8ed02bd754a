# SPDX-License-Identifier: MIT
"""A layer of sparse attention: projections, norms of heads, rotary positions, and the branch that chooses blocks."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .. import torch as ops
from .loss import index_loss

__all__ = ["Attended", "SparseAttention", "SparseAttentionConfig"]


@dataclass(frozen=True)
class SparseAttentionConfig:
    """Sizes of a layer; those of MiniMax-M3 but for the width."""

    width: int  # of what goes in and out
    heads: int = 64
    heads_kv: int = 4  # and index heads
    head_dim: int = 128
    index_dim: int = 128
    index_heads_k: int = 1
    block_size: int = 128
    topk: int = 16
    local_blocks: int = 1  # forced
    init_blocks: int = 0
    rotary_dims: int | None = None  # of head_dim and of index_dim, from the front; half of head_dim, 0: none
    rotary_base: float = 5e6
    norm_eps: float = 1e-6

    def rotated(self) -> int:
        return self.head_dim // 2 if self.rotary_dims is None else self.rotary_dims


class Attended(NamedTuple):
    out: Tensor  # as x
    index_loss: Tensor  # f32 [], of the whole call
    block_ids: Tensor | None  # i32 [T, heads_kv, topk]; None in the warm-up


class SparseAttention(nn.Module):
    """Attention over blocks that an index branch chooses, and what that branch has to learn.

    `warm_up` is plain state, to be switched by who trains: while it holds, attention is over all visible keys and so is
    the loss. A subclass that puts a convolution in front of its keys overrides key_input, one that chooses blocks in a way
    of its own overrides choose.
    """

    def __init__(self, config: SparseAttentionConfig, *, device: Any = None, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.config = config
        self.warm_up = False
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        c = config

        def linear(width_in: int, width_out: int) -> nn.Linear:
            return nn.Linear(width_in, width_out, bias=False, **made)

        self.q_proj = linear(c.width, c.heads * c.head_dim)
        self.k_proj = linear(c.width, c.heads_kv * c.head_dim)
        self.v_proj = linear(c.width, c.heads_kv * c.head_dim)
        self.out_proj = linear(c.heads * c.head_dim, c.width)
        self.index_q_proj = linear(c.width, c.heads_kv * c.index_dim)
        self.index_k_proj = linear(c.width, c.index_heads_k * c.index_dim)
        self.q_norm, self.k_norm = (nn.RMSNorm(c.head_dim, c.norm_eps, **made) for _ in range(2))
        self.index_q_norm, self.index_k_norm = (nn.RMSNorm(c.index_dim, c.norm_eps, **made) for _ in range(2))

    def key_input(self, x: Tensor, positions: Tensor) -> Tensor:
        """What keys and index keys are projected from, [T, width]; positions: i64 [T], in the sequence."""
        return x

    def choose(self, q: Tensor, k: Tensor, index_q: Tensor, index_k: Tensor, **batch: Any) -> Tensor:
        """The blocks that each row attends to, i32 [T, heads_kv, topk], from detached tensors."""
        c = self.config
        ids: Tensor = ops.select_blocks(index_q, index_k, topk=c.topk, local_blocks=c.local_blocks,
                                        init_blocks=c.init_blocks, **batch)
        return ids

    def forward(self, x: Tensor, cu_seqlens: Tensor | None = None, max_seqlen: int | None = None,
                row_weight: Tensor | None = None) -> Attended:
        """Sequences side by side, x: [B, S, width], or one behind the other, x: [T, width], with cu_seqlens: i32 [B + 1]
        and max_seqlen, the longest one; of one sequence both may be left out.

        row_weight: f32 [T], of each token in index_loss; left out: 1 / (T heads_kv), the mean.
        """
        c = self.config
        rows = x.reshape(-1, c.width)  # [T, width]
        batch: dict[str, Any] = {}
        if x.dim() == 3:
            if cu_seqlens is not None:
                raise ValueError("cu_seqlens: sequences in rows of their own have none")
            max_seqlen = x.shape[1]
            if x.shape[0] != 1:
                cu_seqlens = torch.arange(0, rows.shape[0] + 1, max_seqlen, dtype=torch.int32, device=x.device)
        if cu_seqlens is not None:
            batch = {"cu_seqlens_q": cu_seqlens, "seqlens_k": cu_seqlens[1:] - cu_seqlens[:-1]}
        longest = rows.shape[0] if max_seqlen is None and cu_seqlens is None else max_seqlen
        if longest is not None:
            batch |= {"max_seqlen_q": longest, "max_seqlen_k": longest}
        positions = _positions(rows.shape[0], cu_seqlens, x.device)
        q, k, v, index_q, index_k = self._project(rows, positions)

        ids: Tensor | None = None
        shape = {"block_size": c.block_size, **batch}
        if self.warm_up:
            attention = ops.dense_attention(q, k, v, return_lse=True, **shape)
        else:
            ids = self.choose(q.detach(), k.detach(), index_q.detach(), index_k.detach(), **shape)
            attention = ops.sparse_attention(q, k, v, ids, return_lse=True, **shape)
        loss = index_loss(q, k, attention.lse, index_q, index_k, ids, row_weight, **shape)
        out = self.out_proj(attention.out.reshape(-1, c.heads * c.head_dim))
        return Attended(out.reshape(x.shape), loss, ids)

    def _project(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        c = self.config
        of_keys = self.key_input(x, positions)
        v = self.v_proj(x).unflatten(-1, (c.heads_kv, c.head_dim))
        turn = _rotation(positions, c.rotated(), c.rotary_base)

        def heads(projected: Tensor, norm: nn.Module, count: int) -> Tensor:
            return _rotate(norm(projected.unflatten(-1, (count, -1))), turn).to(v.dtype)

        q = heads(self.q_proj(x), self.q_norm, c.heads)  # [T, heads, head_dim]
        k = heads(self.k_proj(of_keys), self.k_norm, c.heads_kv)  # [T, heads_kv, head_dim]
        # The index branch learns from its own loss alone, and hands nothing back to x.
        index_q = heads(self.index_q_proj(x.detach()), self.index_q_norm, c.heads_kv)
        index_k = heads(self.index_k_proj(of_keys.detach()), self.index_k_norm, c.index_heads_k)
        return q, k, v, index_q, index_k

    def extra_repr(self) -> str:
        return f"{self.config}, warm_up={self.warm_up}"


def _positions(rows: int, cu_seqlens: Tensor | None, device: torch.device) -> Tensor:
    """Of each row in its sequence, i64 [T]."""
    places = torch.arange(rows, device=device)
    if cu_seqlens is None:
        return places
    starts = cu_seqlens.long()
    return places - starts[torch.searchsorted(starts, places, right=True) - 1]


def _rotation(positions: Tensor, dims: int, base: float) -> tuple[Tensor, Tensor] | None:
    """Cosines and sines in f32, [T, 1, dims / 2]."""
    if dims == 0:
        return None
    steps = torch.arange(0, dims, 2, dtype=torch.float32, device=positions.device) / dims
    angles = positions[:, None, None].float() * base ** -steps
    return angles.cos(), angles.sin()


def _rotate(x: Tensor, turn: tuple[Tensor, Tensor] | None) -> Tensor:
    """The first dims, the halves of which are pairs; the others stay."""
    if turn is None:
        return x
    cos, sin = turn
    half = cos.shape[-1]
    first, second, rest = x[..., :half].float(), x[..., half:2 * half].float(), x[..., 2 * half:]
    turned = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
    return torch.cat((turned.to(x.dtype), rest), dim=-1)
