# SPDX-License-Identifier: MIT
"""All ranks in one process, one after the other: what they would send is stacked instead of gathered."""
from __future__ import annotations

import random

import pytest

torch = pytest.importorskip("torch", reason="ranks exchange tensors of torch")

import msa  # noqa: E402
import problems  # noqa: E402
from msa import distributed  # noqa: E402
from msa.distributed import LAYOUTS, prefill  # noqa: E402
from msa.distributed.shard import Deal, Pages, Settings, Shard, join  # noqa: E402
from msa.results import AttentionBlocks  # noqa: E402

BLOCK = problems.BLOCK


def settings_of(batch, backend=None):
    return Settings(BLOCK, batch.topk, batch.local, batch.init, None, backend, 1)


def decode(batch, layout, ranks, page=BLOCK, stored=None, pages_of=lambda pools, table: Pages(), most=None):
    settings = settings_of(batch)
    lengths = torch.tensor(batch.lengths, dtype=torch.int32)
    caches = [batch.cache(layout, rank, ranks, page, stored) for rank in range(ranks)]
    deals = [positions for _, _, positions in caches]
    if most is not None:
        deals = [Deal(rank, ranks, max(deal.shape[1] for deal in deals) if most else None) for rank in range(ranks)]
    shards = [Shard(table, page, deal, lengths, settings, batch.new) for (_, table, _), deal in zip(caches, deals)]
    pages = [pages_of(pools, table) for pools, table, _ in caches]
    found = [s.candidates(batch.index_q, pools[2], own) for s, (pools, _, _), own in zip(shards, caches, pages)]
    lists = [s.merge(found) for s in shards]
    ids = [s.listed(own) for s, own in zip(shards, lists)]
    assert all(torch.equal(ids[0], other) for other in ids)
    states = [s.attend(batch.q, pools[0], pools[1], own, scales)
              for s, (pools, _, _), own, scales in zip(shards, caches, lists, pages)]
    return (*join(states, settings), ids[0])


def prefilled(batch, layout, ranks, backend=None):
    settings, lengths = settings_of(batch, backend), tuple(batch.lengths)
    plans = [prefill.deal(layout, lengths, rank, ranks, settings, torch.device("cpu")) for rank in range(ranks)]
    starts = [sum(lengths[:b]) for b in range(len(lengths))]
    rows = [torch.tensor([starts[b] + t for b, begin, end in prefill.spans(layout, lengths, rank, ranks, BLOCK)
                          for t in range(begin, end)], dtype=torch.int64) for rank in range(ranks)]

    def gathered(tensor):
        return torch.stack([prefill.to_blocks(tensor[own], plan, BLOCK) for own, plan in zip(rows, plans)])

    k, v, index_k = gathered(batch.k), gathered(batch.v), gathered(batch.index_k)
    out = torch.full((batch.q.shape[0], 4, 48), float("nan"), dtype=batch.q.dtype)
    lse = torch.full(batch.q.shape[:2], float("nan"))
    ids = torch.full((batch.q.shape[0], 2, batch.topk), 77, dtype=torch.int32)
    for own, plan in zip(rows, plans):
        into = AttentionBlocks(torch.empty_like(out[own]), torch.empty_like(lse[own]),
                               prefill.select(batch.index_q[own], index_k, plan, settings))
        prefill.attend(batch.q[own], k, v, into, plan, settings)
        out[own], lse[own], ids[own] = into
    return out, lse, ids


def drawn(seed, least=1):
    draw = random.Random(seed)
    lengths = [draw.choice([least, 17, 32, 33, 96, 200, 333]) for _ in range(draw.randint(1, 4))]
    new = [draw.randint(0, min(5, length)) for length in lengths]
    kept = {"init": draw.choice([0, 0, 1, 2]), "local": draw.choice([0, 1, 2]), "topk": draw.choice([4, 5, 8])}
    return lengths, new, kept, draw.choice([1, 2, 3, 4, 5]), draw.choice([16, 32])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("seed", range(24))
def test_a_decode_over_shards_is_that_over_the_whole(layout, seed):
    lengths, new, kept, ranks, page = drawn(seed)
    batch = problems.Batch(lengths, new=new, seed=seed, **kept)
    wanted = batch.whole()
    out, lse, ids = decode(batch, layout, ranks, page)
    assert torch.equal(ids, wanted.block_ids)
    problems.close(out, wanted.out)
    problems.close(lse, wanted.lse)


@pytest.mark.parametrize("most", [False, True])
@pytest.mark.parametrize("seed", range(24))
def test_a_decode_over_blocks_that_are_dealt(most, seed):
    """No positions: tables that the deal alone makes, with and without knowing how many blocks others have."""
    lengths, new, kept, ranks, page = drawn(seed)
    batch = problems.Batch(lengths, new=new, seed=seed, **kept)
    wanted = batch.whole()
    out, lse, ids = decode(batch, "interleaved", ranks, page, most=most)
    assert torch.equal(ids, wanted.block_ids)
    problems.close(out, wanted.out)
    problems.close(lse, wanted.lse)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("seed", range(8))
def test_a_prefill_over_ranks_is_that_of_one_process(layout, dtype, seed):
    lengths, _, kept, ranks, _ = drawn(100 + seed, least=0)
    batch = problems.Batch(lengths, dtype=dtype, seed=seed, **kept)
    wanted = batch.whole()
    out, lse, ids = prefilled(batch, layout, ranks)
    assert torch.equal(ids, wanted.block_ids)
    problems.close(out, wanted.out)
    problems.close(lse, wanted.lse)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_prefill_over_ranks_reads_the_same_keys_in_the_same_order(layout):
    """The oracle computes each row by itself: there the bits are those of one process."""
    batch = problems.Batch([130, 17, 0, 96], seed=9)
    wanted = batch.whole("reference")
    for out, whole in zip(prefilled(batch, layout, 3, "reference"), wanted):
        assert torch.equal(out, whole)


@pytest.mark.parametrize("kind", ["e4m3/token", "nvfp4", "q8kv4"])
def test_a_decode_over_pages_of_codes(kind):
    batch = problems.Batch([333, 40], new=[2, 1], dtype=torch.bfloat16, seed=6)
    codes = msa.quantize_kv(batch.k, batch.v, kv_format=kind)
    starts = torch.tensor([0, 2, 3], dtype=torch.int32)
    wanted = msa.msa_attention(batch.q, codes.k_cache, codes.v_cache, batch.index_q, batch.index_k, cu_seqlens_q=starts,
                               seqlens_k=torch.tensor(batch.lengths, dtype=torch.int32), block_size=BLOCK, topk=4,
                               k_scale=codes.k_scale_cache, v_scale=codes.v_scale_cache, threads=1, return_lse=True,
                               return_block_ids=True, kv_format=kind if kind != "e4m3/token" else None)
    scale_type = codes.k_scale_cache.dtype
    stored = [codes.k_cache.view(torch.uint8), codes.v_cache.view(torch.uint8), batch.index_k,
              codes.k_scale_cache.view(torch.uint8), codes.v_scale_cache.view(torch.uint8)]
    if kind == "e4m3/token":  # a scale is a number of four bytes, [N, Hkv]
        stored[3:] = codes.k_scale_cache, codes.v_scale_cache

    def pages_of(pools, table):
        for n in (0, 1):
            pools[n] = pools[n].view(codes.k_cache.dtype)
        return Pages(k_scale=pools[3].view(scale_type), v_scale=pools[4].view(scale_type),
                     kv_format=kind if kind != "e4m3/token" else None)

    out, lse, ids = decode(batch, "interleaved", 3, stored=stored, pages_of=pages_of)
    assert torch.equal(ids, wanted.block_ids)
    problems.close(out, wanted.out)
    problems.close(lse, wanted.lse)


@pytest.mark.parametrize("kind", ["i8/page", "i8/page/rotated"])
def test_a_decode_with_a_filter_selects_the_same(kind):
    batch = problems.Batch([333, 200], new=[1, 3], seed=8)

    def pages_of(pools, table):
        lengths = torch.tensor([distributed.local_length("interleaved", n, pages_of.rank, 3, BLOCK)
                                for n in batch.lengths], dtype=torch.int32)
        pages_of.rank += 1
        copy = msa.quantize_index(pools[2], seqlens_k=lengths, page_table=table, index_filter=kind)
        return Pages(index_k8=copy.index_k8, index_k8_bounds=copy.index_k8_bounds, index_filter=kind)

    pages_of.rank = 0
    out, _, ids = decode(batch, "interleaved", 3, pages_of=pages_of)
    plain, _, plain_ids = decode(batch, "interleaved", 3)
    assert pages_of.rank == 3 and torch.equal(ids, plain_ids) and torch.equal(out, plain)


def test_one_shard_with_every_block_has_the_bits_of_the_whole():
    batch = problems.Batch([333], new=[1], seed=3)
    out, lse, ids = decode(batch, "contiguous", 1)
    wanted = batch.whole()
    assert torch.equal(ids, wanted.block_ids)
    problems.close(out, wanted.out)
    assert torch.equal(out, wanted.out) and torch.equal(lse, wanted.lse)


def test_more_queries_than_keys():
    batch = problems.Batch([3, 40], new=[140, 2], seed=4, init=1)
    wanted = batch.whole()
    out, lse, ids = decode(batch, "interleaved", 2)
    assert torch.equal(ids, wanted.block_ids) and torch.equal(lse == float("-inf"), wanted.lse == float("-inf"))
    problems.close(out, wanted.out)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("new", [[1, 1], [3, 1]])
def test_a_shard_that_is_kept_sees_other_lengths_pages_and_positions(layout, new):
    kept = {"new": new, "init": 1, "local": 2}
    first, second = (problems.Batch(lengths, seed=seed, **kept) for seed, lengths in enumerate(([333, 97], [300, 122])))
    lengths = torch.tensor(first.lengths, dtype=torch.int32)
    caches = [first.cache(layout, rank, 2) for rank in range(2)]
    shards = [Shard(table, BLOCK, positions, lengths, settings_of(first), new) for _, table, positions in caches]
    lengths.copy_(torch.tensor(second.lengths))
    others = [second.cache(layout, rank, 2) for rank in range(2)]
    for shard, (_, table, positions), (_, other_table, other_positions) in zip(shards, caches, others):
        table.fill_(-7)[:, :other_table.shape[1]] = other_table
        positions.fill_(torch.iinfo(torch.int32).max)[:, :other_positions.shape[1]] = other_positions
        shard.refresh()
    found = [s.candidates(second.index_q, pools[2]) for s, (pools, _, _) in zip(shards, others)]
    ids = shards[0].merge(found)
    states = [s.attend(second.q, pools[0], pools[1], ids) for s, (pools, _, _) in zip(shards, others)]
    out, lse = join(states, settings_of(second))
    wanted = second.whole()
    assert torch.equal(ids, wanted.block_ids)
    problems.close(out, wanted.out)
    problems.close(lse, wanted.lse)


def test_rows_that_see_nothing():
    batch = problems.Batch([1, 40], new=[1, 1], seed=5)
    lengths = torch.tensor([0, 40], dtype=torch.int32)
    pools, table, positions = batch.cache("interleaved", 0, 2)
    shard = Shard(table, BLOCK, positions, lengths, settings_of(batch), [1, 1])
    ids, scores = shard.candidates(batch.index_q, pools[2])
    assert (ids[0] == -1).all() and (scores.view(torch.float32)[0] == float("-inf")).all()
    assert ids[1, 0].tolist() == [0, -1, -1, -1], "block 1 is forced and lies on the other rank"
    state = shard.attend(batch.q, pools[0], pools[1], torch.tensor([[[-1] * 4] * 2, [[0, 1, -1, -1]] * 2],
                                                                   dtype=torch.int32))
    assert (state[0, :, :48] == 0).all() and (state[0, :, 48] == float("-inf")).all()
