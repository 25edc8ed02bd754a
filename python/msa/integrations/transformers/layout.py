# SPDX-License-Identifier: MIT
"""How [B, H, S, D] of transformers is read as [rows, H, D] of msa, by strides and without copies of keys.

One request per row of the batch. A cache [B, H, S, D] lies head by head, so that a request's rows are D apart and
its heads S * D: rows of the next request begin H * S rows on. The view overlaps itself; requests do not."""
from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import NamedTuple

import torch


class Rows(NamedTuple):
    rows: torch.Tensor  # [N, H, D]
    apart: int  # rows from one request's first slot to the next one's


def query_rows(x: torch.Tensor) -> torch.Tensor:
    """[B, H, Sq, D] -> [B * Sq, H, D]; copied only where B > 1, Sq > 1 and x lies head by head."""
    batch, heads, length, dim = x.shape
    return x.transpose(1, 2).reshape(batch * length, heads, dim)


def key_rows(x: torch.Tensor) -> Rows:
    """[B, H, S, D] with any strides that put requests a whole number of rows apart."""
    batch, heads, length, dim = x.shape
    if batch == 1:
        return Rows(x[0].transpose(0, 1), length)
    if not _rows_apart(x):
        x = x.contiguous()  # a batch that repeats one row by stride 0
    step = x.stride(2)
    apart = x.stride(0) // step
    return Rows(x.as_strided(((batch - 1) * apart + length, heads, dim), (step, x.stride(1), 1)), apart)


def key_value_rows(key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Keys and values share one list of first rows, so both must put requests equally far apart. They do in every
    cache; new keys without a cache are head by head and new values token by token."""
    k, v = key_rows(key), key_rows(value)
    if k.apart != v.apart:
        k, v = key_rows(key.contiguous()), key_rows(value.contiguous())
    return k.rows, v.rows, k.apart


def _rows_apart(x: torch.Tensor) -> bool:
    batch, heads, length, dim = x.shape
    step = x.stride(2)
    return step > 0 and x.stride(0) % step == 0 and x.stride(0) // step >= length


class Batch(NamedTuple):
    cu_seqlens_q: torch.Tensor  # int32 [B + 1]
    seqlens_k: torch.Tensor  # int32 [B]
    cu_seqlens_k: torch.Tensor  # int32 [B + 1]


class Lengths:
    """What the layers of one forward tell the library about their batch; made on the device, without a look at values.

    `last`: position of each row's last new token, [B or 1]; `first`: its first slot. The first query's position need not
    be told: the library aligns the last query with the last key.
    """

    def __init__(self, last: torch.Tensor, first: torch.Tensor | None, batch: int, new: int) -> None:
        self._first = first
        self._steps = torch.arange(batch + 1, dtype=torch.int32, device=last.device)
        self._cu_seqlens_q = self._steps * new
        self._seqlens_k = (last + 1).to(torch.int32).expand(batch).contiguous()
        self._made: dict[tuple[int, int], Batch] = {}

    def of(self, apart: int, rows: int) -> Batch:
        """For keys whose requests lie `apart` rows from each other, of `rows` in all."""
        made = self._made.get((apart, rows))
        if made is None:
            begin = self._steps * apart
            if self._first is not None:
                begin = begin + torch.nn.functional.pad(self._first.to(torch.int32), (0, 1))
            made = Batch(self._cu_seqlens_q, self._seqlens_k, begin.clamp(max=rows))
            self._made[apart, rows] = made
        return made


class _Forward(threading.local):
    """The forward that this thread is in."""

    positions: torch.Tensor | None = None
    lengths: Lengths | None = None


_forward = _Forward()


@contextlib.contextmanager
def shared_lengths(positions: torch.Tensor, first: torch.Tensor | None, batch: int) -> Iterator[None]:
    """The layers below share one Lengths instead of making a dozen small tensors each: on a GPU, a dozen launches."""
    before = _forward.positions, _forward.lengths
    _forward.positions = positions
    _forward.lengths = Lengths(positions[:, -1], first, batch, positions.shape[1])
    try:
        yield
    finally:
        _forward.positions, _forward.lengths = before


def lengths_of(positions: torch.Tensor) -> Lengths | None:
    """Those of the forward whose positions, or a view of them, these are."""
    if torch.compiler.is_compiling() or _forward.positions is None:
        return None
    # Alive as long as the forward is, so the address cannot be another tensor's.
    return _forward.lengths if positions.data_ptr() == _forward.positions.data_ptr() else None
