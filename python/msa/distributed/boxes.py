# SPDX-License-Identifier: MIT
"""Small tensors that every rank writes and all of them read, in memory that is allocated once: what decode exchanges.

Two ways to the same: a collective of the group, or, where all ranks are GPUs of one host, torch's symmetric memory, in
which a rank's kernels read the others' boxes where they lie and a barrier on the stream is all that is exchanged.
A box may be written again once a later swap of another box is over, as every rank has read it by then: decode has two.

A box of parts has one for each rank, where boxes are shared: a rank writes its own part of every box, or of its own.

No host waits for a barrier, so where collectives are watched boxes are gathered. A barrier that waits longer than its
group grants a collective ends in an error of the GPU, as a rank that does not come would hold it for ever.
"""
from __future__ import annotations

import socket
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import Unsupported
from .exchange import Exchange, number_of

__all__ = ["Box", "Boxes", "GatheredBoxes", "SharedBoxes", "make_boxes"]


class Box(NamedTuple):
    """What a rank writes for all; in_parts: a part of that shape for each rank, where boxes are shared."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    in_parts: bool = False


class GatheredBoxes:
    """A box a rank; swap() gathers them all."""

    def __init__(self, exchange: Exchange, argument: str, box: Box, device: torch.device) -> None:
        self._exchange, self._argument = exchange, argument
        self.own = torch.zeros(box.shape, dtype=box.dtype, device=device)
        self._all = torch.empty((exchange.ranks, *box.shape), dtype=box.dtype, device=device)

    def swap(self) -> list[Tensor]:
        """What each rank wrote, in rank order. A collective."""
        return list(self._exchange.gather(self.own, self._argument, self._all).wait().unbind())


class SharedBoxes:
    """A box a rank in symmetric memory; swap() is a barrier of all ranks on the current stream. One rank alone shares
    what it has.

    own: what this rank writes; addresses: of each rank's box, as kernels of this one see them
    """

    def __init__(self, exchange: Exchange, argument: str, box: Box, device: torch.device) -> None:
        self._exchange, self.timeout_ms = exchange, int(1e3 * exchange.granted)
        shape = (exchange.ranks, *box.shape) if box.in_parts else box.shape
        self._handle, self._all = self._share(shape, box.dtype, device)
        whole = self._all[exchange.rank]
        whole.zero_()
        self.own = whole[exchange.rank] if box.in_parts else whole
        self.addresses = [other.data_ptr() for other in self._all]
        # Where each rank's part lies: in this rank's box, and in its own.
        self.parts_here = [part.data_ptr() for part in whole] if box.in_parts else []
        self.parts_there = [other[rank].data_ptr() for rank, other in enumerate(self._all)] if box.in_parts else []
        self._expect_every_box(whole)

    def _share(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> tuple[Any, list[Tensor]]:
        exchange = self._exchange
        if exchange.ranks == 1:
            return None, [torch.zeros(shape, dtype=dtype, device=device)]
        import torch.distributed._symmetric_memory as symmetric

        group = exchange.group if exchange.group is not None else torch.distributed.group.WORLD
        strides = torch.empty(shape, device="meta").stride()
        # An allocation of its own: symmetric.empty() may put several tensors into one.
        own = symmetric._SymmetricMemory.empty_strided_p2p(shape, strides, dtype, device)
        handle = symmetric.rendezvous(own, group)
        return handle, [own if rank == exchange.rank else handle.get_buffer(rank, shape, dtype)
                        for rank in range(exchange.ranks)]

    def swap(self) -> list[Tensor]:
        """What each rank wrote, in rank order. A collective."""
        self._exchange.expect_whole()
        if self._handle is not None:
            self._handle.barrier(timeout_ms=self.timeout_ms)
        return self._all

    # Each box says whose it is, once: addresses that are off by something would be seen here, not in outputs.
    def _expect_every_box(self, whole: Tensor) -> None:
        whole.fill_(1 + self._exchange.rank)
        found = [int(box.flatten()[-1]) for box in self.swap()]
        self.swap()  # nobody clears a box that another one still looks at
        whole.zero_()
        self.swap()
        if found != list(range(1, 1 + self._exchange.ranks)):
            raise Unsupported(f"symmetric: expected the boxes of ranks 0 to {self._exchange.ranks - 1}, got {found}",
                              "symmetric")


Boxes = GatheredBoxes | SharedBoxes


def make_boxes(exchange: Exchange, boxes: dict[str, Box], device: torch.device,
               symmetric: bool | None) -> list[Boxes]:
    """These boxes, by the argument that errors name. A collective.

    symmetric: True: in symmetric memory, or Unsupported on every rank; False: gathered; None: what all ranks can, and
        gathered where collectives are watched
    """
    if symmetric is False or (symmetric is None and exchange.watched) or not _may_share(exchange, device):
        if symmetric:
            raise Unsupported("symmetric: expected a GPU of one host on every rank, got others", "symmetric")
        return [GatheredBoxes(exchange, name, box, device) for name, box in boxes.items()]
    made: list[Boxes] = []
    reason = ""
    try:
        made += [SharedBoxes(exchange, name, box, device) for name, box in boxes.items()]
    except (ImportError, AttributeError, RuntimeError, TypeError) as error:
        reason = str(error).strip().split("\n", 1)[0]
    if all(_said_by_all(exchange, int(not reason), device)):
        return made
    if symmetric:
        raise Unsupported(f"symmetric: expected symmetric memory on every rank, got {reason or 'none elsewhere'}",
                          "symmetric")
    return [GatheredBoxes(exchange, name, box, device) for name, box in boxes.items()]


# Where ranks lie on several hosts torch would wait for what never comes, so that is asked before.
def _may_share(exchange: Exchange, device: torch.device) -> bool:
    if device.type != "cuda" or exchange.ranks == 1:
        return device.type == "cuda"
    return len(set(_said_by_all(exchange, number_of(socket.gethostname()), device))) == 1


def _said_by_all(exchange: Exchange, number: int, device: torch.device) -> list[int]:
    said = exchange.gather(torch.tensor([number], dtype=torch.int64).to(device), "symmetric").wait()
    return [int(other) for other in said.flatten().tolist()]
