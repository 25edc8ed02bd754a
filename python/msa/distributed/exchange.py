# SPDX-License-Identifier: MIT
"""The collectives of a group: what every rank holds, gathered in rank order, and one error where that fails.

A group that failed once is not used again: its ranks no longer agree about which collective comes next.

On a GPU a collective runs on a stream of its own, behind what the caller's stream held when it was started. Watched, the
host waits for its end before the caller's stream does: a rank that died or hangs is an error, and the caller's stream
never stands. Unwatched, the stream alone waits: what steady state and CUDA graphs want.
"""
from __future__ import annotations

import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor

from ..errors import Error
from .errors import RankError

__all__ = ["Exchange", "Pending", "number_of"]

# torch 2.13 has a new name for the same collective.
_all_gather: Any = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_WORDS = 15  # that a call may say of itself
_ARGUMENTS = ("q", "k", "v", "index_q", "index_k", "pieces", "page_table", "page_size", "positions",
              "queries", "row_weight")  # that ranks refuse
_FAULT = "fault:"  # the sign of a rank whose own part of a call failed; its argument behind
_LOOK = 0.2  # seconds that a rank waits before it looks whether another one has given up
_SPARE = 2.0  # seconds between giving up and torch's watchdog, beside the patience


class Pending:
    """A collective under way; wait() returns [ranks, ...]."""

    def __init__(self, exchange: Exchange, argument: str, gathered: Tensor, sent: Tensor, work: Any) -> None:
        self._exchange, self._argument, self._gathered, self._work = exchange, argument, gathered, work
        self._sent: Tensor | None = sent  # lives until the collective has read it

    def wait(self) -> Tensor:
        """What each rank sent, in rank order."""
        if self._work is not None:
            try:
                if self._exchange.watches(self._gathered):
                    self._watch()
                self._work.wait()
            except RuntimeError as error:
                self._exchange.fail(self._argument, error)
            self._work = None
        self._sent = None
        return self._gathered

    # A rank that failed says so in the store; others need not wait until the group's own timeout. Engines of CPUs end
    # their works by then; those of GPUs would end the process, so this gives up before.
    def _watch(self) -> None:
        start, pause, look = time.monotonic(), 0.00002, _LOOK
        limit = self._exchange.limit if self._gathered.is_cuda else float("inf")
        while not self._work.is_completed():
            time.sleep(pause)
            pause = min(pause * 1.5, 0.002)
            waited = time.monotonic() - start
            if waited > limit:
                raise RankError(f"no answer within {limit:.3g} s", self._argument)
            if waited > look:
                look += _LOOK
                if self._exchange.has_failed():
                    raise RankError("another rank has given up", self._argument)


class Exchange:
    """Collectives over the caller's group.

    patience: seconds that a failure waits for the other ranks' signs of life before it names those that gave none
    watched: the host waits for collectives on a GPU, too
    """

    def __init__(self, group: Any, patience: float, watched: bool = True) -> None:
        self.group, self.patience, self.watched = group, patience, watched
        self.rank, self.ranks = dist.get_rank(group), dist.get_world_size(group)
        self._store = _store_of(group)
        self._broken: RankError | None = None
        # The n-th object of a group has the same number on every rank that made as many.
        number = self._store.add(f"msa/objects/{self.rank}", 1) if self._store is not None else 0
        self._signs = f"msa/{number}/gave_up/"

    @cached_property
    def granted(self) -> float:
        """Seconds that the group grants a collective on GPUs."""
        return _timeout_of(self.group)

    @property
    def limit(self) -> float:
        """Seconds that a watched one may take: less, as torch's watchdog is to find nothing."""
        return max(self.granted / 2, self.granted - self.patience - _SPARE)

    def watches(self, tensor: Tensor) -> bool:
        """Whether the host waits for a collective of such a tensor."""
        return self.watched or not tensor.is_cuda

    def gather(self, tensor: Tensor, argument: str, into: Tensor | None = None) -> Pending:
        """Starts gathering a tensor that has the same shape on every rank; into: contiguous [ranks, ...]."""
        self.expect_whole()
        sent = tensor.contiguous()
        gathered = sent.new_empty((self.ranks, *sent.shape)) if into is None else into
        if self.ranks == 1 or sent.numel() == 0:
            gathered.copy_(sent.unsqueeze(0))
            return Pending(self, argument, gathered, sent, None)
        try:
            # As bytes: not every engine knows every dtype.
            work = _all_gather(gathered.view(-1).view(torch.uint8), sent.view(-1).view(torch.uint8), group=self.group,
                               async_op=True)
        except RuntimeError as error:
            self.fail(argument, error)
        return Pending(self, argument, gathered, sent, work)

    def scatter(self, tensor: Tensor, argument: str) -> Pending:
        """Starts sending part r of [ranks, ...] to rank r; wait() returns what each rank sent here, in rank order."""
        self.expect_whole()
        sent = tensor.contiguous()
        received = torch.empty_like(sent)
        if self.ranks == 1 or sent.numel() == 0:
            return Pending(self, argument, received.copy_(sent), sent, None)
        try:
            work = dist.all_to_all_single(received.view(-1).view(torch.uint8), sent.view(-1).view(torch.uint8),
                                          group=self.group, async_op=True)
        except RuntimeError as error:
            self.fail(argument, error)
        return Pending(self, argument, received, sent, work)

    @contextmanager
    def together(self) -> Iterator[None]:
        """A rank that raises in here leaves the call that the others are in: it tells them, and they raise, too."""
        self.expect_whole()
        try:
            yield
        except RankError:
            raise
        except BaseException as error:
            self._broken = RankError(f"an earlier call failed on rank {self.rank}: {error}", _argument_of(error),
                                     (self.rank,))
            with suppress(RuntimeError):
                self._sign(f"{_FAULT}{self._broken.argument}")
            raise

    def agree(self, said: dict[str, Any], fault: Error | None, device: torch.device) -> None:
        """Raises on every rank where one has a fault, or says something else than rank 0.

        said: what must be the same everywhere, by argument.
        """
        names = list(said)
        words = [number_of(value) for value in said.values()]
        at_fault = 0 if fault is None else 1 + number_of(fault.argument)
        padding = [0] * (_WORDS - len(words))  # as many for every call, so that ranks in different calls meet here
        sent = torch.tensor([at_fault, *words, *padding], dtype=torch.int64).to(device)
        heard = self.gather(sent, "agreement").wait().tolist()
        # GPUs bring what a rank sent before it gave up: one that comes late must not go on without the others.
        if sent.is_cuda and self.has_failed():
            self.fail("agreement", RuntimeError("another rank has given up"))
        if fault is not None:
            raise fault
        for rank, other in enumerate(heard):
            if other[0] != 0:
                argument = next(name for name in _ARGUMENTS if 1 + number_of(name) == other[0])
                raise RankError(f"{argument}: refused by rank {rank}, which says why", argument, (rank,))
        for place, name in enumerate(names):
            ranks = tuple(r for r, other in enumerate(heard) if other[1 + place] != heard[0][1 + place])
            if ranks:
                raise RankError(f"{name}: expected the same on every rank, got other than rank 0 has on"
                                f" {_listed(ranks)}; rank {self.rank} has {said[name]}", name, ranks)

    def expect_whole(self) -> None:
        """Raises what broke the group, where something did."""
        if self._broken is not None:
            raise self._broken

    def has_failed(self) -> bool:
        """Whether another rank has given up."""
        return bool(self._signs_of_others())

    def fail(self, argument: str, error: RuntimeError) -> NoReturn:
        """Tells the others, waits for their signs, and raises the error that names who gave none, or failed itself."""
        heard = self._wait_for_signs()
        faults = tuple(rank for rank, sign in (heard or {}).items() if sign.startswith(_FAULT))
        if heard is None:
            who, ranks = "nobody knows which rank failed, as the group's store is not there", tuple[int, ...]()
        elif faults:
            argument = heard[faults[0]].removeprefix(_FAULT) or argument
            who, ranks = f"the call failed on {_listed(faults)}, which says why", faults
        else:
            ranks = tuple(rank for rank in self._others() if rank not in heard)
            who = f"{_listed(ranks)} did not answer within {self.patience:g} s" if ranks else "every rank still answers"
        text = str(error).strip().split("\n", 1)[0]
        self._broken = RankError(f"{argument}: the exchange between {self.ranks} ranks broke off: {who} ({text})",
                                 argument, ranks)
        _abort(self.group)
        raise self._broken from error

    # ---- signs: what a rank that gives up leaves in the group's store ----

    def _wait_for_signs(self) -> dict[int, str] | None:
        end = time.monotonic() + self.patience
        try:
            self._sign("1")
            while len(heard := self._signs_of_others()) < self.ranks - 1 and time.monotonic() < end:
                time.sleep(0.01)
        except RuntimeError:  # the store went with the rank that held it
            return None
        return heard if self._store is not None else None

    def _sign(self, text: str) -> None:
        if self._store is not None:
            self._store.set(f"{self._signs}{self.rank}", text)

    def _signs_of_others(self) -> dict[int, str]:
        if self._store is None:
            return {}
        return {rank: self._store.get(key).decode() for rank in self._others()
                if self._store.check([key := f"{self._signs}{rank}"])}

    def _others(self) -> list[int]:
        return [rank for rank in range(self.ranks) if rank != self.rank]


def _argument_of(error: BaseException) -> str:
    return error.argument if isinstance(error, Error) else ""


def _listed(ranks: tuple[int, ...]) -> str:
    return f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {', '.join(map(str, ranks))}"


def number_of(value: Any) -> int:
    """What stands for a value where ranks compare what they say."""
    return zlib.crc32(repr(value).encode())


# What a group's engine for GPUs grants a collective; torch's default where it does not say.
def _timeout_of(group: Any) -> float:
    try:
        engine = (group if group is not None else dist.group.WORLD)._get_backend(torch.device("cuda"))
        return float(engine.options._timeout.total_seconds())
    except (AttributeError, RuntimeError, ValueError):
        return 600.0


# A collective of NCCL that hangs holds its stream, and torch's watchdog ends the process when its time is over. The group
# is lost anyway: its streams go on.
def _abort(group: Any) -> None:
    with suppress(AttributeError, RuntimeError, ValueError):
        engine = (group if group is not None else dist.group.WORLD)._get_backend(torch.device("cuda"))
        if type(engine).__name__ == "ProcessGroupNCCL":
            engine.abort()


# torch has no public way to a group's store; without one, an error names no rank.
def _store_of(group: Any) -> Any:
    try:
        world: Any = dist.distributed_c10d
        return world._get_process_group_store(group if group is not None else dist.group.WORLD)
    except (AttributeError, KeyError, RuntimeError, ValueError):
        return None
