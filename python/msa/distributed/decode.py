# SPDX-License-Identifier: MIT
"""Decode over a cache that is dealt to ranks, step by step, in memory that is allocated once."""
from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..results import Attention, AttentionBlocks, OutBlocks
from .boxes import GatheredBoxes, SharedBoxes, make_boxes
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
        boxes = {"candidates": ((2, shard.rows, heads.index_heads, shard.settings.topk), torch.int32),
                 "states": ((shard.rows, heads.heads_q, heads.value_dim + STATE_PAD), torch.float32),
                 "pads": ((words_of(exchange.ranks),), torch.int32)}
        candidates, states, pads = make_boxes(exchange, boxes, shard.device, symmetric)
        self._candidates, self._states = candidates.own, states.own
        self._way: Collected | Meeting
        if isinstance(candidates, SharedBoxes) and isinstance(states, SharedBoxes) and isinstance(pads, SharedBoxes):
            self._way = Meeting(exchange.rank, shard, candidates, states, pads)
        else:
            assert isinstance(candidates, GatheredBoxes) and isinstance(states, GatheredBoxes)  # all alike
            self._way = Collected(shard, candidates, states)
        self.symmetric = isinstance(self._way, Meeting)

    def refresh(self) -> None:
        """Lengths, pages or positions have other contents."""
        self._shard.refresh()

    def run(self, q: Tensor, k: Tensor, v: Tensor, index_q: Tensor, index_k: Tensor, *, pages: Pages = Pages(),
            return_lse: bool = False, return_block_ids: bool = False) -> Any:
        """One layer, on all ranks: arguments and what it returns are those of ContextParallel.decode."""
        with self._exchange.together():
            self._shard.candidates(index_q, index_k, pages, self._candidates)
            ids, own = self._way.choose()
            self._shard.attend(q, k, v, own, pages, self._states)
            out, lse = self._way.join(q.dtype, return_lse)
            listed = self._shard.listed(ids) if return_block_ids else None
        return result_of(out, lse, listed)


def result_of(out: Tensor, lse: Tensor | None, ids: Tensor | None) -> Any:
    """What a call returns, by what was asked for."""
    if lse is not None:
        return Attention(out, lse) if ids is None else AttentionBlocks(out, lse, ids)
    return out if ids is None else OutBlocks(out, ids)
