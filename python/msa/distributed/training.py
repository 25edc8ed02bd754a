# SPDX-License-Identifier: MIT
"""Training over ranks: a prefill with gradients, whose sums over ranks are made in rank order.

A rank's queries are runs of each sequence, all of which read the same keys. Gradients of keys are added up in f32 over a
rank's runs, one call of the library after the other, then sent to the ranks that hold the keys and added there in rank
order: the same bits every time for one size of group.
"""
from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from .. import operations as msa
from .layout import Span
from .prefill import Deal, to_blocks
from .shard import Settings

if TYPE_CHECKING:
    from . import ContextParallel

__all__ = ["Sequences", "Trained", "Turn", "sequences", "train"]


class Trained(NamedTuple):
    out: Tensor  # as q, of this rank's rows
    index_loss: Tensor  # f32 [], of this rank's rows
    block_ids: Tensor | None  # i32 [T, Hkv, topk]; None in the warm-up


class Turn(NamedTuple):
    """One run of each sequence, at most: what one call takes."""

    rows: Tensor | slice  # of this rank's
    batch: dict[str, Any]


class Sequences(NamedTuple):
    """Whole sequences, made of gathered blocks, and the turns in which this rank's rows read them."""

    places: Tensor  # i64 [N]: of each token in the gathered blocks
    tokens: int
    turns: list[Turn]


def sequences(own: list[Span], lengths: tuple[int, ...], plan: Deal, settings: Settings,
              device: torch.device) -> Sequences:
    """Of a batch of which this rank has the runs `own`."""
    size = settings.block_size
    places = [torch.zeros(0, dtype=torch.int64)]
    for pages, length in zip(plan.pages.long(), lengths):
        token = torch.arange(length)
        places.append(pages[token // size] * size + token % size)
    runs: list[list[tuple[int, Span]]] = [[] for _ in lengths]  # of each sequence, with its first row
    row = 0
    for run in own:
        runs[run.request].append((row, run))
        row += run.end - run.begin
    turns = [_turn([of[n] if n < len(of) else None for of in runs], lengths, settings, device)
             for n in range(max(map(len, runs), default=0))]
    return Sequences(torch.cat(places).to(device), sum(lengths), turns)


def _turn(runs: list[tuple[int, Span] | None], lengths: tuple[int, ...], settings: Settings,
          device: torch.device) -> Turn:
    starts, keys, offsets, first, rows = [0], [], [], [0], []
    for run, length in zip(runs, lengths):
        row, (_, begin, end) = run or (0, Span(0, 0, 0))
        rows.append(torch.arange(row, row + end - begin))
        starts.append(starts[-1] + end - begin)
        keys.append(end)  # what lies behind the run is not seen
        offsets.append(begin)
        first.append(first[-1] + length)

    def numbers(values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int32, device=device)

    longest = max(end - begin for begin, end in zip(starts, starts[1:]))
    batch = {"cu_seqlens_q": numbers(starts), "seqlens_k": numbers(keys), "q_offsets": numbers(offsets),
             "cu_seqlens_k": numbers(first), "max_seqlen_q": longest, "max_seqlen_k": max(keys),
             "block_size": settings.block_size, "softmax_scale": settings.softmax_scale, "backend": settings.backend,
             "threads": settings.threads}
    of_all = torch.cat(rows)
    begin = int(of_all[0])
    if torch.equal(of_all, torch.arange(begin, begin + len(of_all))):
        return Turn(slice(begin, begin + len(of_all)), batch)
    return Turn(of_all.to(device), batch)


def train(parallel: ContextParallel, tensors: dict[str, Tensor], lengths: list[int], row_weight: Tensor | None,
          warm_up: bool) -> Trained:
    """What ContextParallel.train says."""
    if row_weight is None:
        rows, heads = tensors["index_q"].shape[:2]
        weight = 1.0 / max(heads * sum(lengths), 1)
        row_weight = torch.full((rows,), weight, dtype=torch.float32, device=tensors["q"].device)
    apply: Any = _Train.apply
    out, loss, ids = apply(parallel, lengths, warm_up, row_weight, *tensors.values())
    return Trained(out, loss, None if warm_up else ids)


class _Train(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, parallel: ContextParallel, lengths: list[int], warm_up: bool, row_weight: Tensor,
                *tensors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v, index_q, index_k = (tensor.detach() for tensor in tensors)
        whole = parallel.sequences_of(lengths, q.device)
        with parallel.exchange.together():
            waiting = [(name, _gather(parallel, rows, lengths, name))
                       for name, rows in (("index_k", index_k), ("k", k), ("v", v))]
            keys = {name: pending.wait().flatten(0, 2)[whole.places] for name, pending in waiting}
            del waiting  # and the blocks
            out = q.new_empty((*q.shape[:2], v.shape[2]))
            lse = q.new_empty(q.shape[:2], dtype=torch.float32)
            ids = q.new_empty((q.shape[0], k.shape[1], parallel.settings.topk), dtype=torch.int32)
            d_index_q = torch.zeros_like(index_q)
            d_index_k = keys["index_k"].new_zeros(keys["index_k"].shape, dtype=torch.float32)
            loss = q.new_zeros((), dtype=torch.float32)
            for turn in whole.turns:
                rows = turn.rows
                chosen = None if warm_up else _select(index_q[rows], keys["index_k"], turn, parallel.settings)
                _attend(q[rows], keys, chosen, turn, rows, out, lse)
                if chosen is not None:
                    ids[rows] = chosen
                found = msa.index_loss(q[rows], keys["k"], lse[rows], index_q[rows], keys["index_k"], chosen,
                                       row_weight[rows], grad_dtype="f32", accumulate=True, d_index_k=d_index_k,
                                       **turn.batch)
                loss += (found.loss * row_weight[rows][:, None]).sum()
                d_index_q[rows] = found.d_index_q.to(index_q.dtype)
            own_index_k = _scatter(parallel, d_index_k, lengths, whole, "index_k").to(index_k.dtype)
        ctx.parallel, ctx.lengths, ctx.warm_up = parallel, lengths, warm_up
        ctx.save_for_backward(q, k, v, out, lse, ids, d_index_q, own_index_k)
        ctx.mark_non_differentiable(ids)
        return out, loss, ids

    # Keys are gathered again: in between, other layers have the memory.
    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dout: Tensor, d_loss: Tensor, _ids: Any) -> Any:
        q, k, v, out, lse, ids, d_index_q, d_index_k = ctx.saved_tensors
        parallel, lengths = ctx.parallel, ctx.lengths
        whole = parallel.sequences_of(lengths, q.device)
        with parallel.exchange.together():
            waiting = [_gather(parallel, rows, lengths, name) for name, rows in (("k", k), ("v", v))]
            keys, values = (pending.wait().flatten(0, 2)[whole.places] for pending in waiting)
            del waiting
            dq = torch.zeros_like(q)
            dk, dv = (torch.zeros_like(rows, dtype=torch.float32) for rows in (keys, values))
            given: dict[str, Any] = {"grad_dtype": "f32", "accumulate": True, "dk": dk, "dv": dv}
            for turn in whole.turns:
                rows = turn.rows
                given |= {"out": out[rows], "lse": lse[rows], "dout": dout[rows].contiguous(), **turn.batch}
                found = (msa.dense_attention_backward(q[rows], keys, values, **given) if ctx.warm_up else
                         msa.sparse_attention_backward(q[rows], keys, values, ids[rows], **given))
                dq[rows] = found.dq.to(q.dtype)
            dk, dv = (_scatter(parallel, rows, lengths, whole, name) for name, rows in (("k", dk), ("v", dv)))
        of_index = ((rows * d_loss).to(rows.dtype) for rows in (d_index_q, d_index_k))
        return None, None, None, None, dq, dk.to(k.dtype), dv.to(v.dtype), *of_index


def _select(index_q: Tensor, index_k: Tensor, turn: Turn, settings: Settings) -> Tensor:
    batch = {name: value for name, value in turn.batch.items() if name != "softmax_scale"}
    chosen: Tensor = msa.select_blocks(index_q, index_k, topk=settings.topk, local_blocks=settings.local_blocks,
                                       init_blocks=settings.init_blocks, **batch)
    return chosen


def _attend(q: Tensor, keys: dict[str, Tensor], ids: Tensor | None, turn: Turn, rows: Tensor | slice, out: Tensor,
            lse: Tensor) -> None:
    if ids is None:
        found = msa.dense_attention(q, keys["k"], keys["v"], return_lse=True, **turn.batch)
    else:
        found = msa.sparse_attention(q, keys["k"], keys["v"], ids, return_lse=True, **turn.batch)
    out[rows], lse[rows] = found.out, found.lse


def _gather(parallel: ContextParallel, rows: Tensor, lengths: list[int], argument: str) -> Any:
    plan = parallel.plan_of(lengths, rows.device)
    return parallel.exchange.gather(to_blocks(rows, plan, parallel.settings.block_size), argument)


def _scatter(parallel: ContextParallel, rows: Tensor, lengths: list[int], whole: Sequences, argument: str) -> Tensor:
    """This rank's rows of the sum over all ranks, f32, in rank order; rows: [N, heads, dim], of whole sequences."""
    plan = parallel.plan_of(lengths, rows.device)
    sent = rows.new_zeros((parallel.ranks, plan.slots * parallel.settings.block_size, *rows.shape[1:]))
    sent.flatten(0, 1)[whole.places] = rows
    return _sum(parallel.exchange.scatter(sent, argument).wait())[plan.row_slots]


def _sum(parts: Tensor) -> Tensor:
    first, *others = parts.unbind(0)
    for other in others:
        first += other
    return first
