# SPDX-License-Identifier: MIT
"""What a layer's attention costs in training, counted: operations and bytes of each call, for each token."""
from __future__ import annotations

from typing import NamedTuple

from .attention import SparseAttentionConfig

__all__ = ["Work", "training_work"]

ITEM, WORD = 2, 4  # bytes of 16-bit vectors, of f32 and i32


class Work(NamedTuple):
    flops: float  # a multiply-add is two
    bytes: float  # of tensors, each read or written once


def training_work(config: SparseAttentionConfig, tokens: int, *, dense: bool = False,
                  whole_blocks: bool = False) -> dict[str, Work]:
    """Of one causal sequence of `tokens`, a mean over its tokens: `select`, `attention`, `backward` and `index_loss`.

    dense: over all visible keys, as in the warm-up, which selects nothing
    whole_blocks: every token is charged topk whole blocks, as if all lay behind it, and half of all keys where it would
    see them all: what papers count

    Products alone are counted, five of them in a backward pass; projections are not.
    """
    c = config
    seen = tokens / 2 if whole_blocks else (tokens + 1) / 2
    pairs = seen if dense else float(c.topk * c.block_size) if whole_blocks else _listed(c, tokens) / tokens
    dims, index_dims = c.heads * c.head_dim, c.heads_kv * c.index_dim
    queries, keys = ITEM * dims, ITEM * c.heads_kv * c.head_dim  # of a token; values are as large as keys
    index = ITEM * (index_dims + c.index_heads_k * c.index_dim)
    lse, ids = WORD * c.heads, 0 if dense else WORD * c.heads_kv * c.topk
    return {
        "select": Work(0, 0) if dense else Work(2 * index_dims * seen, index + ids),
        "attention": Work(4 * dims * pairs, 2 * queries + 2 * keys + lse + ids),
        "backward": Work(10 * dims * pairs, 4 * queries + 4 * keys + lse + ids),
        # Attention's scores again, the branch's own, and the gradients of its queries and keys.
        "index_loss": Work((2 * dims + 6 * index_dims) * pairs,
                           queries + keys + lse + ids + 2 * index + WORD * c.heads_kv),
    }


def _listed(c: SparseAttentionConfig, tokens: int) -> int:
    """Keys that a sequence's tokens see in the blocks that they list, their own among them, under one head."""
    blocks, rest = divmod(tokens, c.block_size)
    before = sum(min(block, c.topk - 1) for block in range(min(blocks, c.topk)))
    before += max(blocks - c.topk, 0) * (c.topk - 1)
    own = blocks * c.block_size * (c.block_size + 1) // 2 + rest * (rest + 1) // 2
    return own + before * c.block_size ** 2 + rest * min(blocks, c.topk - 1) * c.block_size
