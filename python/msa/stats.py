# SPDX-License-Identifier: MIT
"""Numbers of block lists: how alike neighbours choose, how far they look, what is forced anyway."""
from __future__ import annotations

from typing import Any, NamedTuple

__all__ = ["Stats", "of"]


class Stats(NamedTuple):
    """Of block ids [T, H, k], over rows that list anything.

    listed: blocks a row lists on average
    overlap: share of a row's blocks that the row before lists too (same head)
    distance: blocks between a row's last block and the one listed, on average
    sink: share of rows that list block 0
    local: share of the listed blocks that are a row's last one
    """

    rows: int
    listed: float
    overlap: float
    distance: float
    sink: float
    local: float


def lists_of(block_ids: Any) -> list[list[list[int]]]:
    """[T][H] lists of ids, each up to its first -1, of an array of any library that has tolist()."""
    if len(getattr(block_ids, "shape", ())) != 3:
        raise TypeError(f"block_ids: expected an array [T, H, k], got {type(block_ids).__name__}")

    def valid(row: list[int]) -> list[int]:
        return row[:row.index(-1)] if -1 in row else row

    return [[valid(row) for row in heads] for heads in block_ids.tolist()]


def of(block_ids: Any) -> Stats:
    """Statistics of block ids [T, H, k] of one sequence; the last block listed counts as the local one.

    >>> import numpy as np
    >>> stats = msa.stats.of(np.array([[[0, 3]], [[0, 4]]], np.int32))
    >>> stats.sink, stats.overlap, stats.distance
    (1.0, 0.5, 1.75)
    """
    rows = listed = distance = sink = local = shared = follows = 0
    before: list[set[int]] = []
    for heads in lists_of(block_ids):
        now = [set(ids) for ids in heads]
        for head, ids in enumerate(now):
            if not ids:
                continue
            rows += 1
            listed += len(ids)
            last = max(ids)
            distance += sum(last - one for one in ids)
            sink += 0 in ids
            local += 1
            if before:
                follows += len(ids)
                shared += len(ids & before[head])
        before = now

    def share(part: int, whole: int) -> float:
        return part / whole if whole else 0.0

    return Stats(rows, share(listed, rows), share(shared, follows), share(distance, listed), share(sink, rows),
                 share(local, listed))
