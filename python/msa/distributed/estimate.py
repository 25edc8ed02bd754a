# SPDX-License-Identifier: MIT
"""What several GPUs would take: predicted from measured rows of one GPU and measured speeds of links, never measured.

Counted: kernels as they scale with each rank's share of the work, what does not shrink where that was measured, bytes
over links, the latency of collectives, and which of them hide behind kernels. Not counted: skew of lists.
"""
from __future__ import annotations

from typing import NamedTuple

from ..errors import InvalidArgument
from .layout import blocks_of, check_layout

__all__ = ["Estimate", "Links", "Measured", "Model", "estimate"]


class Model(NamedTuple):
    """One layer's attention."""

    heads_q: int = 64
    heads_kv: int = 4
    head_dim: int = 128
    value_dim: int = 128
    index_heads: int = 4
    index_heads_k: int = 1
    index_dim: int = 128
    block_size: int = 128
    topk: int = 16
    bytes_per_element: int = 2


class Links(NamedTuple):
    """bytes_per_s: what a rank receives in an all-gather; latency: seconds of a small collective, or of a meeting in
    kernels; hides: states of a decode leave while other rows are attended to
    """

    bytes_per_s: float
    latency: float
    hides: bool = False


class Measured(NamedTuple):
    """Seconds of one layer on one GPU, whole sequence; a decode that was measured whole has attend=0.

    fixed: seconds beside both that no rank is spared: launches, ids to and fro, merges
    """

    select: float
    attend: float = 0.0
    fixed: float = 0.0


class Estimate(NamedTuple):
    """A prediction for one layer.

    seconds: of the slowest rank; exposed: of which nothing but communication; received: bytes over its links
    shard: bytes of cache that a rank holds; beside: bytes that the call needs beside its shard
    speedup: over the one GPU that was measured
    """

    seconds: float
    exposed: float
    received: float
    shard: float
    beside: float
    speedup: float


def estimate(call: str, model: Model, tokens: int, gpus: int, links: Links, measured: Measured, *,
             layout: str = "zigzag", batch: int = 1, pieces: int = 1) -> Estimate:
    """Predicts a "prefill" of a sequence of `tokens`, or a "decode" of one token for each of `batch` such sequences.

    >>> links = msa.distributed.Links(bytes_per_s=255e9, latency=10.6e-6)
    >>> two = msa.distributed.estimate("prefill", msa.distributed.Model(), 1 << 20, 2, links,
    ...                                msa.distributed.Measured(select=0.784, attend=0.175))
    >>> 1.9 < two.speedup < 2.0
    True
    """
    if call not in ("prefill", "decode"):
        raise InvalidArgument(f"call: expected prefill or decode, got {call!r}", "call")
    if tokens < 1 or gpus < 1 or batch < 1:
        raise InvalidArgument(f"gpus: expected tokens, gpus and a batch of 1 or more, got {tokens}, {gpus}, {batch}",
                              "gpus")
    index = model.index_heads_k * model.index_dim * model.bytes_per_element
    kv = model.heads_kv * (model.head_dim + model.value_dim) * model.bytes_per_element
    shard = float(tokens) * batch * (index + kv) / gpus
    if call == "decode":
        return _decode(model, gpus, links, measured, batch, shard)
    causal, rows = _shares(check_layout(layout), -(-tokens // model.block_size), gpus)
    select, attend = measured.select * causal, measured.attend * rows
    others = (gpus - 1) / gpus * tokens * batch
    first = _takes(others * index, links, gpus)
    piece = 2 * _takes(others * kv / 2 / pieces, links, gpus)  # keys, then values
    exposed = first + max(0.0, piece - select) + (pieces - 1) * max(0.0, piece - attend / pieces)
    seconds = select + attend + measured.fixed + exposed
    beside = tokens * batch * (index + kv * min(2, pieces) / pieces)
    return Estimate(seconds, exposed, others * (index + kv), shard, beside,
                    sum(measured) / seconds)


def _decode(model: Model, gpus: int, links: Links, measured: Measured, batch: int, shard: float) -> Estimate:
    attend = measured.attend * -(-model.topk // gpus) / model.topk
    candidates = 8.0 * batch * model.index_heads * model.topk
    states = 4.0 * batch * model.heads_q * (model.value_dim + 4)
    hidden = attend if links.hides and gpus > 1 else 0.0
    sent = max(0.0, states * (gpus - 1) / links.bytes_per_s - hidden)
    exposed = _takes(candidates * (gpus - 1), links, gpus) + _takes(0.0, links, gpus) + sent
    seconds = measured.select / gpus + attend + measured.fixed + exposed
    return Estimate(seconds, exposed, (candidates + states) * (gpus - 1), shard, (candidates + states) * gpus,
                    sum(measured) / seconds)


def _takes(received: float, links: Links, gpus: int) -> float:
    return 0.0 if gpus == 1 else links.latency + received / links.bytes_per_s


# The largest share of any rank: of scoring, which grows with a block's position, and of rows.
def _shares(layout: str, blocks: int, gpus: int) -> tuple[float, float]:
    held = [blocks_of(layout, blocks, rank, gpus) for rank in range(gpus)]
    scored = max(sum(own) + len(own) for own in held)
    return scored / (blocks * (blocks + 1) / 2), max(map(len, held)) / blocks
