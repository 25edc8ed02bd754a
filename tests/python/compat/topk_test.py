# SPDX-License-Identifier: MIT
"""sparse_topk_select against a sort of Python numbers."""
import math

import pytest
import torch

INF = math.inf


def scores_of(tokens, heads, tiles, seed=1, integers=False):
    draw = torch.Generator().manual_seed(seed)
    if integers:
        return torch.randint(-3, 4, (tokens, heads, tiles), generator=draw).float()
    return torch.randn(tokens, heads, tiles, generator=draw)


def wanted(scores, counts, topk=16, begin=0, end=0):
    """int32 [T, H, topk]: forced tiles, then the best that are not -inf, ties to the lower tile."""
    tokens, heads, _ = scores.shape
    ids = torch.full((tokens, heads, topk), -1, dtype=torch.int32)
    for t in range(tokens):
        n = counts[t]
        for h in range(heads):
            row = scores[t, h, :n].tolist()
            forced = {i for i in range(n) if i < begin or i >= n - end}
            free = [i for i in range(n) if i not in forced and row[i] > -INF]
            free.sort(key=lambda i: (-row[i], i))
            chosen = sorted([*forced, *free[: topk - len(forced)]])
            ids[t, h, : len(chosen)] = torch.tensor(chosen, dtype=torch.int32)
    return ids


@pytest.mark.parametrize("layout", ["HKT", "THK", "hkt"])
@pytest.mark.parametrize("integers", [False, True])
def test_both_layouts_exactly(fmha, layout, integers):
    scores = scores_of(7, 3, 128, integers=integers)
    given = scores.permute(1, 2, 0).contiguous() if layout.upper() == "HKT" else scores
    ids = fmha.sparse_topk_select(given, 16, num_valid_pages=50, max_score_layout=layout)
    assert ids.dtype == torch.int32 and torch.equal(ids, wanted(scores, [50] * 7))


def test_the_default_is_upstreams(fmha):
    scores = scores_of(5, 2, 128)
    ids = fmha.sparse_topk_select(scores.permute(1, 2, 0).contiguous(), 16, 40)
    assert torch.equal(ids, wanted(scores, [40] * 5))


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize(("begin", "end"), [(0, 0), (1, 2), (0, 1), (8, 8)])
def test_a_count_for_each_token(fmha, dtype, begin, end):
    # In June one scalar served a mixed batch, and forced tiles stood at the end of its longest request.
    counts = torch.tensor([128, 3, 0, 16, 17, 60], dtype=dtype)
    scores = scores_of(6, 2, 128)
    ids = fmha.sparse_topk_select(
        scores, 16, counts, force_begin_blocks=begin, force_end_blocks=end, max_score_layout="THK"
    )
    assert torch.equal(ids, wanted(scores, counts.tolist(), begin=begin, end=end))


def test_without_a_count_padding_is_never_chosen(fmha):
    scores = scores_of(4, 2, 128)
    visible = [5, 1, 0, 40]
    for t, n in enumerate(visible):
        scores[t, :, n:] = -INF
    for end in (0, 1):
        ids = fmha.sparse_topk_select(scores, 16, force_end_blocks=end, max_score_layout="THK")
        assert torch.equal(ids, wanted(scores, visible, end=end))


def test_hidden_tiles_are_no_filler(fmha):
    # Upstream fills short rows up with tiles that score -inf.
    scores = scores_of(3, 1, 128)
    scores[1, 0, 2:] = -INF
    scores[2, 0, ::2] = -INF
    ids = fmha.sparse_topk_select(scores, 16, 20, max_score_layout="THK")
    assert torch.equal(ids, wanted(scores, [20] * 3))
    assert ids[1, 0].tolist() == [0, 1, *[-1] * 14]


def test_output_in_head_major_storage(fmha):
    scores = scores_of(6, 3, 128)
    storage = torch.full((3, 6, 16), 99, dtype=torch.int32)
    given = fmha.sparse_topk_select(scores, 16, 128, output=storage.permute(1, 0, 2), max_score_layout="THK")
    assert given.data_ptr() == storage.data_ptr()
    assert torch.equal(storage, wanted(scores, [128] * 6).permute(1, 0, 2))


def test_block_table(fmha):
    scores = scores_of(4, 2, 128)
    table = torch.randperm(4 * 2 * 128).to(torch.int32).view(2, 4, 128).permute(1, 0, 2)
    counts = torch.tensor([128, 2, 9, 30])
    ids = fmha.sparse_topk_select(scores, 16, counts, max_score_layout="THK", block_table=table)
    plain = wanted(scores, counts.tolist()).long()
    assert torch.equal(ids.long(), torch.where(plain < 0, -1, table.long().gather(2, plain.clamp(min=0))))


def test_other_widths(fmha):
    scores = scores_of(4, 2, 64)
    for topk in (1, 4, 32):
        ids = fmha.sparse_topk_select(scores, topk, 64, max_score_layout="THK")
        assert torch.equal(ids, wanted(scores, [64] * 4, topk=topk))


def test_an_empty_batch(fmha):
    assert fmha.sparse_topk_select(torch.empty(2, 128, 0), 16, 4).shape == (0, 2, 16)
    assert fmha.sparse_topk_select(torch.empty(2, 128, 0), 16).shape == (0, 2, 16)


CASES = {
    "max_score": lambda f, s: f(s.double(), 16),
    "max_score: rank": lambda f, s: f(s[0], 16),
    "max_score_layout": lambda f, s: f(s, 16, max_score_layout="KHT"),
    "topk": lambda f, s: f(s, 0),
    "force_begin_blocks": lambda f, s: f(s, 16, force_begin_blocks=9, force_end_blocks=8),
    "num_valid_pages": lambda f, s: f(s, 16, 129, max_score_layout="THK"),
    "num_valid_pages: none": lambda f, s: f(s, 16, 0, max_score_layout="THK"),
    "num_valid_pages: shape": lambda f, s: f(s, 16, torch.ones(3, dtype=torch.int32), max_score_layout="THK"),
    "output": lambda f, s: f(s, 16, 5, output=torch.empty(4, 2, 8, dtype=torch.int32), max_score_layout="THK"),
    "block_table": lambda f, s: f(
        s, 16, 5, block_table=torch.empty(4, 2, 8, dtype=torch.int32), max_score_layout="THK"
    ),
    "block_table: of requests": lambda f, s: f(s, 16, 5, block_table=torch.empty(4, 8, dtype=torch.int32)),
}


@pytest.mark.parametrize("name", CASES)
def test_refused_by_name(fmha, name):
    with pytest.raises((ValueError, TypeError, NotImplementedError), match=name.split(":")[0]):
        CASES[name](fmha.sparse_topk_select, scores_of(4, 2, 128))
