# SPDX-License-Identifier: MIT
"""Who holds which block of a sequence: pure arithmetic on host numbers, the same on every rank.

contiguous: a rank holds one run of blocks; zigzag: the sequence in 2 x ranks runs, rank r holds runs r and
2 x ranks - 1 - r, so that causal work is even; interleaved: block b lies on rank b % ranks, however long the sequence
becomes. Sequences that do not divide, or are shorter than the group, leave some ranks less, or nothing.
"""
from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from ..errors import InvalidArgument

__all__ = ["LAYOUTS", "Span", "blocks_of", "check_layout", "local_length", "owner", "spans"]

LAYOUTS = ("contiguous", "zigzag", "interleaved")


class Span(NamedTuple):
    """Tokens begin .. end - 1 of a request."""

    request: int
    begin: int
    end: int


def check_layout(layout: str) -> str:
    """The layout, where there is one of this name."""
    if layout not in LAYOUTS:
        raise InvalidArgument(f"layout: expected one of {', '.join(LAYOUTS)}, got {layout!r}", "layout")
    return layout


def owner(layout: str, block: int, blocks: int, ranks: int) -> int:
    """The rank that holds one block of a sequence of so many."""
    if layout == "interleaved":
        return block % ranks
    if layout == "contiguous":
        return block * ranks // blocks
    run = block * 2 * ranks // blocks
    return min(run, 2 * ranks - 1 - run)


def blocks_of(layout: str, blocks: int, rank: int, ranks: int) -> list[int]:
    """The blocks of a sequence that a rank holds, ascending."""
    if layout == "interleaved":
        return list(range(rank, blocks, ranks))
    runs = [(rank, ranks)] if layout == "contiguous" else [(rank, 2 * ranks), (2 * ranks - 1 - rank, 2 * ranks)]
    # Run n of N holds the blocks b with b * N // blocks == n.
    return [b for n, count in runs for b in range(-(-n * blocks // count), -(-(n + 1) * blocks // count))]


def local_length(layout: str, length: int, rank: int, ranks: int, block_size: int) -> int:
    """How many tokens of a sequence of `length` a rank holds."""
    return sum(end - begin for begin, end in _runs(layout, length, rank, ranks, block_size))


def spans(layout: str, lengths: tuple[int, ...], rank: int, ranks: int, block_size: int) -> list[Span]:
    """The tokens that a rank holds of each request, as runs, in the order in which its rows lie."""
    return [Span(request, begin, end) for request, length in enumerate(lengths)
            for begin, end in _runs(layout, length, rank, ranks, block_size)]


@lru_cache(maxsize=1024)
def _runs(layout: str, length: int, rank: int, ranks: int, block_size: int) -> tuple[tuple[int, int], ...]:
    runs: list[tuple[int, int]] = []
    for block in blocks_of(layout, -(-length // block_size), rank, ranks):
        begin, end = block * block_size, min((block + 1) * block_size, length)
        if runs and runs[-1][1] == begin:
            begin = runs.pop()[0]
        runs.append((begin, end))
    return tuple(runs)
