# SPDX-License-Identifier: MIT
"""Decode over a cache that is dealt to ranks, step by step, in memory that is allocated once."""
from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..results import Attention, AttentionBlocks, OutBlocks
from .boxes import Box, GatheredBoxes, SharedBoxes, make_boxes
from .exchange import Exchange
from .meeting import Collected, Meeting, words_of
from .shard import STATE_PAD, Pages, Shard

__all__ = ["Decoder", "Heads", "result_of"]


class Heads(NamedTuple):
    """What a decoder must know of a layer to come."""

    heads_q: int
    index_heads: int
    value_dim: int


class Decoder:
    """Steps of a decode, layer by layer; made by ContextParallel.decoder, on all ranks together.

    A step is refresh(), where lengths, pages or positions have other contents, then run() for each layer. Both read the
    tensors that the decoder was made with where they lie, work on the current stream and, unwatched (agree=False), wait
    for nothing: captured in a CUDA graph, or in two, they may be replayed as long as the decoder and those tensors live.
    Run a step once before: kernels are loaded and ranks connect then.

    symmetric: whether ranks read each other's memory where it lies; else a collective gathers it
    """

    def __init__(self, exchange: Exchange, shard: Shard, heads: Heads, symmetric: bool | None) -> None:
        self._exchange, self._shard = exchange, shard
        lists = (shard.rows, heads.index_heads, shard.settings.topk)
        boxes = make_boxes(exchange, {
            "candidates": Box((2, *lists), torch.int32), "told": Box((*lists, 4), torch.int32, True),
            "states": Box((shard.rows, heads.heads_q, heads.value_dim + STATE_PAD), torch.float32, True),
            "pads": Box((words_of(exchange.ranks),), torch.int32)}, shard.device, symmetric)
        self._way: Collected | Meeting
        shared = [box for box in boxes if isinstance(box, SharedBoxes)]
        if shared:  # all alike
            self._way = Meeting(exchange.rank, shard, *shared)
        else:
            candidates, _, states, _ = (box for box in boxes if isinstance(box, GatheredBoxes))
            self._way = Collected(shard, candidates, states)
        self.symmetric = isinstance(self._way, Meeting)

    def refresh(self) -> None:
        """Lengths, pages or positions have other contents."""
        self._shard.refresh()

    def run(self, q: Tensor, k: Tensor, v: Tensor, index_q: Tensor, index_k: Tensor, *, pages: Pages = Pages(),
            return_lse: bool = False, return_block_ids: bool = False) -> Any:
        """One layer, on all ranks: arguments and what it returns are those of ContextParallel.decode."""
        with self._exchange.together():
            ids = self._way.attend(q, k, v, index_q, index_k, pages)
            out, lse = self._way.join(q.dtype, return_lse)
            listed = self._shard.listed(ids) if return_block_ids else None
        return result_of(out, lse, listed)


def result_of(out: Tensor, lse: Tensor | None, ids: Tensor | None) -> Any:
    """What a call returns, by what was asked for."""
    if lse is not None:
        return Attention(out, lse) if ids is None else AttentionBlocks(out, lse, ids)
    return out if ids is None else OutBlocks(out, ids)
