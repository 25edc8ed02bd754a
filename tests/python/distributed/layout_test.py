# SPDX-License-Identifier: MIT
"""Who holds which block: every token once, in order, whatever the lengths and the group."""
from __future__ import annotations

import pytest

import msa

torch = pytest.importorskip("torch", reason="ranks exchange tensors of torch")

from msa import distributed  # noqa: E402

CASES = [(length, ranks) for length in (0, 1, 31, 32, 33, 64, 257, 1000) for ranks in (1, 2, 3, 4, 7)]


@pytest.mark.parametrize("layout", distributed.LAYOUTS)
@pytest.mark.parametrize("length, ranks", CASES)
def test_every_token_lies_on_one_rank(layout, length, ranks):
    held = []
    for rank in range(ranks):
        runs = distributed.spans(layout, (length,), rank, ranks, 32)
        tokens = [t for run in runs for t in range(run.begin, run.end)]
        assert tokens == sorted(tokens) and all(run.begin % 32 == 0 for run in runs)
        assert all(a.end < b.begin for a, b in zip(runs, runs[1:])), "runs that touch are one"
        assert distributed.local_length(layout, length, rank, ranks, 32) == len(tokens)
        blocks = -(-length // 32)
        own = distributed.blocks_of(layout, blocks, rank, ranks)
        assert own == [b for b in range(blocks) if distributed.owner(layout, b, blocks, ranks) == rank]
        held += tokens
    assert sorted(held) == list(range(length))


def test_zigzag_is_even_where_contiguous_is_not():
    def most(layout):
        return max(sum(b + 1 for b in distributed.blocks_of(layout, 64, rank, 4)) for rank in range(4))

    assert most("zigzag") == sum(range(1, 65)) // 4
    assert most("contiguous") > 1.7 * most("zigzag")


def test_blocks_dealt_round_robin_stay_where_they_are():
    for blocks in range(1, 40):
        for rank in range(3):
            shorter = distributed.blocks_of("interleaved", blocks, rank, 3)
            assert distributed.blocks_of("interleaved", blocks + 1, rank, 3)[:len(shorter)] == shorter


def test_an_unknown_layout_is_named():
    with pytest.raises(msa.InvalidArgument, match="layout: expected one of .*zigzag, interleaved, got 'ring'"):
        distributed.ContextParallel(None, "ring")
