# SPDX-License-Identifier: MIT
"""Context parallelism: one sequence over several ranks of a torch.distributed process group.

    ranks = msa.distributed.ContextParallel(group, layout="zigzag")
    rows = ranks.rows(lengths)                               # which tokens this rank computes
    out = ranks.prefill(q, k, v, index_q, index_k, lengths)  # of those rows, each rank its own

The group is the caller's: it is neither made nor destroyed here, and a member of a DeviceMesh is as good
(axis= names its dimension). What all ranks must say alike is compared before anybody waits for data.
"""
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..arrays import dtype_name
from ..errors import Error, InvalidArgument
from ..results import AttentionBlocks
from . import prefill as _prefill
from .decode import Decoder, Heads, result_of
from .errors import RankError
from .estimate import Estimate, Links, Measured, Model, estimate
from .exchange import Exchange, Pending
from .layout import LAYOUTS, Span, blocks_of, check_layout, local_length, owner, spans
from .shard import Deal, Pages, Settings, Shard, value_dim_of
from .training import Sequences, Trained, sequences, train

__all__ = ["LAYOUTS", "ContextParallel", "Decoder", "Estimate", "Links", "Measured", "Model", "Pages", "RankError", "Span",
           "Trained", "blocks_of", "estimate", "local_length", "owner", "spans"]

_MOST_RANKS = 63  # merges take 64 parts, and forced blocks are one


class ContextParallel:
    """Whole sparse attention over the ranks of a group; made once, on all of them, with the same numbers.

    group: a process group, or a DeviceMesh with axis=, the name of one of its dimensions
    layout: "contiguous", "zigzag" or "interleaved": which rank holds which block of a sequence
    ranks: how many ranks the group must have, where the caller knows
    block_size, topk, local_blocks, init_blocks, softmax_scale, backend, threads: as in msa.msa_attention
    agree: compare shapes and numbers of all ranks before each call; on GPUs the host also waits for each collective,
        so that one that fails is an error of this call. Without it a disagreement ends in a timeout, and on GPUs nothing
        waits but streams: for steady state, and a must under CUDA graphs
    patience: seconds that a failed collective waits for signs of life before it names the ranks that gave none
    """

    def __init__(self, group: Any, layout: str = "zigzag", *, axis: str | None = None, ranks: int | None = None,
                 block_size: int = 128, topk: int = 16, local_blocks: int = 1, init_blocks: int = 0,
                 softmax_scale: float | None = None, backend: str | None = None, threads: int = 0,
                 agree: bool = True, patience: float = 5.0) -> None:
        if axis is not None:
            group = group.get_group(axis)
        self.layout, self.agree = check_layout(layout), agree
        self.settings = Settings(block_size, topk, local_blocks, init_blocks, softmax_scale, backend, threads)
        self.exchange = Exchange(group, patience, agree)
        self.rank, self.ranks = self.exchange.rank, self.exchange.ranks
        if self.ranks > _MOST_RANKS:
            raise InvalidArgument(f"group: expected at most {_MOST_RANKS} ranks, got {self.ranks}", "group")
        if ranks is not None and ranks != self.ranks:
            raise InvalidArgument(f"ranks: expected {self.ranks}, the size of the group, got {ranks}", "ranks")
        self._deals: dict[Any, _prefill.Deal] = {}
        self._sequences: dict[Any, Sequences] = {}

    # ---- who holds what ----

    def rows(self, lengths: list[int]) -> Tensor:
        """i64: this rank's rows of a batch whose sequences lie one after the other."""
        starts = [sum(lengths[:b]) for b in range(len(lengths))]
        own = [torch.arange(starts[b] + begin, starts[b] + end) for b, begin, end in self.spans(lengths)]
        return torch.cat(own) if own else torch.zeros(0, dtype=torch.int64)

    def spans(self, lengths: list[int]) -> list[Span]:
        """This rank's tokens of each sequence, as runs (request, begin, end)."""
        return spans(self.layout, tuple(lengths), self.rank, self.ranks, self.settings.block_size)

    def local_length(self, length: int) -> int:
        """Tokens of a sequence that lie on this rank."""
        return local_length(self.layout, length, self.rank, self.ranks, self.settings.block_size)

    # ---- prefill ----

    def prefill(self, q: Tensor, k: Tensor, v: Tensor, index_q: Tensor, index_k: Tensor, lengths: list[int], *,
                pieces: int = 1, return_lse: bool = False, return_block_ids: bool = False) -> Any:
        """Whole causal attention of sequences that begin here; each rank has the rows that rows(lengths) names.

        q: [T, Hq, D]; k: [T, Hkv, D]; v: [T, Hkv, Dv]; index_q: [T, Hi, Di]; index_k: [T, Hik, Di]: this rank's rows
        lengths: tokens of each whole sequence, host numbers
        pieces: KV heads are gathered in so many pieces, the next one while one is attended: two pieces lie in memory

        Returns out [T, Hq, Dv], or Attention(out, lse), OutBlocks(out, block_ids), AttentionBlocks(out, lse, block_ids)
        of the same rows. The selection is that of one process; outputs differ from it by roundings, where a kernel
        puts other rows together.
        """
        plan = self._deal(lengths, q.device)
        tensors = {"q": q, "k": k, "v": v, "index_q": index_q, "index_k": index_k}
        self._agree("prefill", tensors, _fault_of_rows(tensors, plan.rows, pieces),
                    {"lengths": tuple(lengths), "pieces": pieces}, q.device)
        with self.exchange.together():
            out, lse, ids = self._prefill_pieces(tensors, plan, pieces)
        return result_of(out, lse if return_lse else None, ids if return_block_ids else None)

    # A piece is given back before the next but one is asked for: at no time do three of them lie in memory.
    def _prefill_pieces(self, tensors: dict[str, Tensor], plan: _prefill.Deal,
                        pieces: int) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v, index_q, index_k = tensors.values()
        gathered = self._gather_blocks(index_k, plan, "index_k")
        heads, group = k.shape[1], q.shape[1] // k.shape[1]
        cuts = [heads * n // pieces for n in range(pieces + 1)]
        waiting = [self._gather_heads(k, v, plan, cuts, 0)]
        ids = _prefill.select(index_q, gathered.wait(), plan, self.settings)
        del gathered
        out = q.new_empty((q.shape[0], q.shape[1], v.shape[2]))
        lse = q.new_empty(q.shape[:2], dtype=torch.float32)
        for n in range(pieces):
            if n + 1 < pieces:
                waiting.append(self._gather_heads(k, v, plan, cuts, n + 1))
            own = slice(cuts[n] * group, cuts[n + 1] * group)
            into = AttentionBlocks(out[:, own], lse[:, own], ids[:, cuts[n]:cuts[n + 1]])
            self._attend_piece(q[:, own], waiting.pop(0), into, plan)
        return out, lse, ids

    def _attend_piece(self, q: Tensor, kv: tuple[Pending, Pending], into: AttentionBlocks, plan: _prefill.Deal) -> None:
        keys, values = kv
        _prefill.attend(q, keys.wait(), values.wait(), into, plan, self.settings)

    def _deal(self, lengths: list[int], device: torch.device) -> _prefill.Deal:
        key = (tuple(lengths), device)
        if key not in self._deals:
            if len(self._deals) >= 16:
                self._deals.clear()
            self._deals[key] = _prefill.deal(self.layout, key[0], self.rank, self.ranks, self.settings, device)
        return self._deals[key]

    def _gather_blocks(self, rows: Tensor, plan: _prefill.Deal, argument: str) -> Pending:
        return self.exchange.gather(_prefill.to_blocks(rows, plan, self.settings.block_size), argument)

    def _gather_heads(self, k: Tensor, v: Tensor, plan: _prefill.Deal, cuts: list[int],
                      n: int) -> tuple[Pending, Pending]:
        own = slice(cuts[n], cuts[n + 1])
        return self._gather_blocks(k[:, own], plan, "k"), self._gather_blocks(v[:, own], plan, "v")

    # ---- training ----

    def train(self, q: Tensor, k: Tensor, v: Tensor, index_q: Tensor, index_k: Tensor, lengths: list[int], *,
              warm_up: bool = False, row_weight: Tensor | None = None) -> Trained:
        """A prefill with gradients, and the loss of the index branch: Trained(out, index_loss, block_ids).

        Tensors are those of prefill. Gradients of q, k and v come from out alone, those of index_q and index_k from
        index_loss alone.
        warm_up: attention and loss are over all visible keys; block_ids is None
        row_weight: f32 [T], of each of this rank's rows in index_loss; left out: 1 / (Hi times the tokens of all
            ranks), so that the losses of all ranks add up to the mean

        Every rank runs its backward pass, in which keys are gathered again and their gradients come back, added up in
        f32 in rank order: the same bits every time for one size of group. What arrives at index_loss is the same on
        every rank. A rank without rows takes part: its out is empty.
        """
        plan = self._deal(lengths, q.device)
        tensors = {"q": q, "k": k, "v": v, "index_q": index_q, "index_k": index_k}
        fault = _fault_of_rows(tensors, plan.rows, 1)
        if fault is None and row_weight is not None and tuple(row_weight.shape) != (plan.rows,):
            fault = _refuse("row_weight", f"[{plan.rows}]", row_weight.shape)
        self._agree("train", tensors, fault, {"lengths": tuple(lengths), "warm_up": warm_up}, q.device)
        return train(self, tensors, lengths, row_weight, warm_up)

    def plan_of(self, lengths: list[int], device: torch.device) -> _prefill.Deal:
        return self._deal(lengths, device)

    def sequences_of(self, lengths: list[int], device: torch.device) -> Sequences:
        key = (tuple(lengths), device)
        if key not in self._sequences:
            if len(self._sequences) >= 16:
                self._sequences.clear()
            self._sequences[key] = sequences(self.spans(lengths), key[0], self._deal(lengths, device),
                                             self.settings, device)
        return self._sequences[key]

    # ---- decode ----

    def positions(self, blocks: int, device: Any = None) -> Tensor:
        """i32 [blocks]: the global blocks that this rank's first ones are, where blocks are dealt round robin."""
        first = torch.arange(blocks, dtype=torch.int32, device=device)
        return torch.add(self.rank, first, alpha=self.ranks)

    def decode(self, q: Tensor, k: Tensor, v: Tensor, index_q: Tensor, index_k: Tensor, page_table: Tensor,
               seqlens_k: Tensor, *, pages: Pages = Pages(), positions: Tensor | None = None,
               queries: list[int] | None = None, causal: bool = True, return_lse: bool = False,
               return_block_ids: bool = False) -> Any:
        """Attention of the last tokens of each sequence over a cache that is dealt to the ranks in blocks.

        q: [T, Hq, D]; index_q: [T, Hi, Di]: the same on every rank
        k, v, index_k: this rank's pages [P, S, heads, dim], block_size a multiple of S
        page_table: i32 [B, columns], this rank's pages of each request, in the order of their positions
        seqlens_k: i32 [B], lengths of the whole sequences, new tokens included
        pages: scales and formats of these pages, and a filter of the index keys, where they have some
        positions: i32 [L] or [B, L], the block of the whole sequence that each local block is, ascending, INT32_MAX
            where there is none; left out: round robin, as the layout "interleaved" deals them
        queries: rows of each request, host numbers; left out: one each

        Returns out [T, Hq, Dv], or Attention(out, lse), OutBlocks(out, block_ids), AttentionBlocks(out, lse,
        block_ids), the same bits on every rank. The selection is that of one process; outputs differ from it by the
        order of additions alone.
        """
        tensors = {"q": q, "k": k, "v": v, "index_q": index_q, "index_k": index_k}
        fault = self._fault_of_cache(tensors, page_table, seqlens_k, positions, queries)
        lengths = list(seqlens_k.shape) if seqlens_k.is_cuda else seqlens_k.tolist()  # nobody reads a GPU's
        self._agree("decode", tensors, fault, {"seqlens_k": lengths, "queries": queries,
                                               "rows": q.shape[0], "pages": [field for field in pages
                                                                             if not isinstance(field, Tensor)]},
                    q.device)
        with self.exchange.together():
            deal = Deal(self.rank, self.ranks) if positions is None else positions
            shard = Shard(page_table, k.shape[1], deal, seqlens_k, self.settings, queries, causal)
            step = Decoder(self.exchange, shard, Heads(q.shape[1], index_q.shape[1], value_dim_of(v, pages)), False)
        return step.run(q, k, v, index_q, index_k, pages=pages, return_lse=return_lse,
                        return_block_ids=return_block_ids)

    def decoder(self, page_table: Tensor, seqlens_k: Tensor, *, page_size: int, heads_q: int, index_heads: int,
                value_dim: int, positions: Tensor | None = None, queries: list[int] | None = None, causal: bool = True,
                symmetric: bool | None = None) -> Decoder:
        """What decodes step after step, layer after layer, in memory that is allocated once. All ranks call it.

        page_table, seqlens_k, positions, queries, causal: as in decode; the tensors stay where they are, and their
            contents may change before each step
        page_size: tokens of a page
        heads_q, index_heads, value_dim: of the layers to come
        symmetric: True: ranks read each other's memory where it lies, or Unsupported is raised on all of them; False:
            a collective gathers it; left out: what all of them can, and a collective with agree=True, as a host cannot
            see that a rank never came. GPUs of one host can, where torch has it
        """
        heads, requests = Heads(heads_q, index_heads, value_dim), seqlens_k.shape[0]
        self._agree("decoder", {}, self._fault_of_table(page_table, requests, page_size, positions),
                    {"heads": heads, "page_size": page_size, "seqlens_k": requests, "queries": queries,
                     "positions": positions is None, "symmetric": symmetric}, page_table.device)
        deal: Tensor | Deal
        if positions is not None:
            deal = positions
        else:
            blocks = page_table.shape[1] * page_size // self.settings.block_size
            said = self.exchange.gather(torch.tensor([blocks], dtype=torch.int64).to(page_table.device), "page_table")
            of_each = said.wait()
            deal = Deal(self.rank, self.ranks, int(of_each.max()), int(of_each.min()))
        with self.exchange.together():
            shard = Shard(page_table, page_size, deal, seqlens_k, self.settings, queries, causal)
            return Decoder(self.exchange, shard, heads, symmetric)

    def _fault_of_cache(self, tensors: dict[str, Tensor], page_table: Tensor, seqlens_k: Tensor,
                        positions: Tensor | None, queries: list[int] | None) -> Error | None:
        size, page = self.settings.block_size, tensors["k"].shape[1]
        requests, rows = seqlens_k.shape[0], tensors["q"].shape[0]
        for name in ("k", "v", "index_k"):
            if tensors[name].dim() != 4 or tensors[name].shape[:2] != tensors["k"].shape[:2] or size % page != 0:
                return _refuse(name, f"pages [P, S, heads, dim] alike, S a divisor of {size}", tensors[name].shape)
        fault = self._fault_of_table(page_table, requests, page, positions)
        if fault is not None:
            return fault
        if (sum(queries) if queries is not None else requests) != rows or len(queries or seqlens_k) != requests:
            return _refuse("queries", f"{requests} numbers with the sum {rows}", queries)
        return None

    def _fault_of_table(self, page_table: Tensor, requests: int, page: int, positions: Tensor | None) -> Error | None:
        size = self.settings.block_size
        if page < 1 or size % page != 0:
            return _refuse("page_size", f"a divisor of {size}", page)
        if positions is None and self.layout != "interleaved":
            return _refuse("positions", f"the blocks of this shard, as {self.layout} depends on lengths", None)
        if page_table.dim() != 2 or page_table.shape[0] != requests or page_table.shape[1] % (size // page) != 0:
            return _refuse("page_table", f"{requests} rows of whole blocks", page_table.shape)
        blocks = page_table.shape[1] * page // size
        if positions is not None and tuple(positions.shape) not in ((blocks,), (requests, blocks)):
            return _refuse("positions", f"[{blocks}] or [{requests}, {blocks}]", positions.shape)
        return None

    # ---- agreement ----

    def _agree(self, call: str, tensors: dict[str, Tensor], fault: Error | None, said: dict[str, Any],
               device: torch.device) -> None:
        if not self.agree:
            if fault is not None:
                raise fault
            return
        said = {"call": call, "ranks": self.ranks, "layout": self.layout, "settings": self.settings, **said}
        for name, tensor in tensors.items():  # how many rows a rank has is its own affair
            said[name] = f"{dtype_name(tensor.dtype)} [.., {', '.join(map(str, tensor.shape[-2:]))}]"
        self.exchange.agree(said, fault, device)


def _refuse(argument: str, expected: str, given: Any) -> InvalidArgument:
    given = list(given) if isinstance(given, torch.Size) else given
    return InvalidArgument(f"{argument}: expected {expected}, got {given}", argument)


def _fault_of_rows(tensors: dict[str, Tensor], rows: int, pieces: int) -> Error | None:
    for name, tensor in tensors.items():
        if tensor.dim() != 3 or tensor.shape[0] != rows:
            return _refuse(name, f"[{rows}, heads, dim], the rows that this rank has", tensor.shape)
    if not 1 <= pieces <= tensors["k"].shape[1]:
        return _refuse("pieces", f"1 to {tensors['k'].shape[1]}, the KV heads", pieces)
    return None
