# SPDX-License-Identifier: MIT
"""The kernels of a meeting on one GPU: two ranks on two streams, of which one comes late. `./test.sh --gpu` runs it."""
from __future__ import annotations

import types

import pytest

torch = pytest.importorskip("torch", reason="ranks exchange tensors of torch")

import msa  # noqa: E402
import problems  # noqa: E402
from msa.distributed.meeting import Meeting, words_of  # noqa: E402
from msa.distributed.shard import STATE_PAD, Deal, Pages, Settings, Shard  # noqa: E402

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
_NOWHERE = torch.iinfo(torch.int32).max
RANKS, ROWS, HEADS, TOPK, HEADS_Q, DIM = 2, 33, 4, 16, 64, 128


class Rank:
    """A rank with its stream, what it writes for all, and what its kernels give."""

    def __init__(self, rank):
        self.rank, self.stream = rank, torch.cuda.Stream()
        given = {"dtype": torch.int32, "device": "cuda"}
        self.candidates, self.pad = torch.zeros((2, ROWS, HEADS, TOPK), **given), torch.zeros(words_of(RANKS), **given)
        self.states = torch.zeros((ROWS, HEADS_Q, DIM + 4), device="cuda")
        self.ids, self.own = torch.zeros((2, ROWS, HEADS, TOPK), **given)
        self.out = torch.zeros((ROWS, HEADS_Q, DIM), dtype=torch.bfloat16, device="cuda")
        self.lse = torch.zeros((ROWS, HEADS_Q), device="cuda")
        self.forced = torch.full((ROWS, 1), 500, **given)  # behind all others
        self.new_candidates, self.new_states = torch.zeros_like(self.candidates), torch.zeros_like(self.states)

    def step(self, all_ranks, cycles):
        """What a layer does: writes, late by some cycles, then meets the others, twice."""
        pads = [other.pad.data_ptr() for other in all_ranks]
        torch.cuda._sleep(cycles)
        self.candidates.copy_(self.new_candidates)
        msa._core.peers_choose(self.rank, [other.candidates.data_ptr() for other in all_ranks], pads, 20000, True, 0,
                               self.forced, self.ids, self.own)
        torch.cuda._sleep(cycles // 2)
        self.states.copy_(self.new_states)
        msa._core.peers_join(self.rank, [other.states.data_ptr() for other in all_ranks], pads, 20000, self.out,
                             self.lse)


def draw(ranks, seed):
    """New candidates and states of all ranks; what all must give."""
    torch.manual_seed(seed)
    for one in ranks:
        count = torch.randint(0, TOPK + 1, (ROWS, HEADS, 1), device="cuda")
        ids = torch.randint(1, 4, (ROWS, HEADS, TOPK), device="cuda").cumsum(-1) - 1
        ids = torch.where(torch.arange(TOPK, device="cuda") < count, ids, -1)
        one.new_candidates[0] = ids
        one.new_candidates[1] = torch.randint(-3, 3, ids.shape, device="cuda").float().view(torch.int32)
        one.new_states.normal_()
        one.new_states[torch.rand((ROWS, HEADS_Q), device="cuda") < 0.3, DIM] = float("-inf")
    lists = [torch.where(one.new_candidates[0] >= 0, one.new_candidates[0] * RANKS + one.rank, -1) for one in ranks]
    scores = [one.new_candidates[1].view(torch.float32) for one in ranks]
    everywhere = ranks[0].forced.unsqueeze(1).expand(-1, HEADS, -1)
    ids = msa.merge_selections([*lists, everywhere], [*scores, torch.full(everywhere.shape, float("inf"), device="cuda")],
                               topk=TOPK)
    out, lse = msa.merge_states([one.new_states[..., :DIM] for one in ranks], [one.new_states[..., DIM] for one in ranks],
                                return_lse=True)
    return ids, out.to(torch.bfloat16), lse


def expect(ranks, wanted):
    ids, out, lse = wanted
    for one in ranks:
        assert torch.equal(one.ids, ids) and torch.equal(one.out, out) and torch.equal(one.lse, lse)
        mine = (ids >= 0) & (ids % RANKS == one.rank)
        own = torch.where(mine, ids // RANKS, _NOWHERE).sort(-1).values
        assert torch.equal(one.own, torch.where(own == _NOWHERE, -1, own).int())


def load_kernels():
    """The first launch of a kernel may wait for the whole GPU, and so for a rank that waits: a rank alone is first."""
    alone = Rank(0)
    pad = torch.zeros(words_of(1), dtype=torch.int32, device="cuda")
    torch.cuda._sleep(1)
    msa._core.peers_choose(0, [alone.candidates.data_ptr()], [pad.data_ptr()], 20000, True, 0, alone.forced, alone.ids,
                           alone.own)
    msa._core.peers_join(0, [alone.states.data_ptr()], [pad.data_ptr()], 20000, alone.out, alone.lse)
    alone.candidates.copy_(alone.new_candidates)
    alone.states.copy_(alone.new_states)
    torch.cuda.synchronize()
    assert pad.tolist() == [1, 1, 1, 0], "one meeting of each kind, and the number of the next"


@pytest.mark.seconds(60)
@pytest.mark.parametrize("captured", [False, True])
def test_two_ranks_meet_however_late_one_is(captured):
    ranks = [Rank(rank) for rank in range(RANKS)]
    delays = [(0, 0), (200_000, 0), (0, 200_000), (3_000, 0), (0, 3_000)]
    load_kernels()
    graphs = {}
    for repeat in range(100):
        wanted = draw(ranks, repeat)
        late = delays[repeat % len(delays)]
        torch.cuda.synchronize()
        for one in ranks:
            key = one.rank, late
            with torch.cuda.stream(one.stream):
                if not captured:
                    one.step(ranks, late[one.rank])
                    continue
                if key not in graphs:
                    graphs[key] = torch.cuda.CUDAGraph()
                    with torch.cuda.graph(graphs[key], stream=one.stream):
                        one.step(ranks, late[one.rank])
        if captured:
            for one in ranks:
                with torch.cuda.stream(one.stream):
                    graphs[one.rank, late].replay()
        torch.cuda.synchronize()
        expect(ranks, wanted)


def shared(tensors, in_parts=False):
    """Boxes of ranks that all lie on this GPU, as each rank sees them."""
    addresses = [tensor.data_ptr() for tensor in tensors]
    there = [whole[rank].data_ptr() for rank, whole in enumerate(tensors)] if in_parts else []
    return [types.SimpleNamespace(own=whole[rank] if in_parts else whole, addresses=addresses, timeout_ms=20000,
                                  parts_there=there, parts_here=[part.data_ptr() for part in whole])
            for rank, whole in enumerate(tensors)]


class Layers:
    """A layer of each rank over a batch, captured; the ranks' shards read the same lengths."""

    def __init__(self, batch, ranks, together):
        settings = Settings(batch.form.block, batch.topk, batch.local, batch.init, None, None, 1)
        lengths = batch.integers(batch.lengths)
        caches = [batch.cache("interleaved", rank, ranks) for rank in range(ranks)]
        blocks = [positions.shape[1] for _, _, positions in caches]
        rows, heads, lists = len(batch.lengths), batch.q.shape[1], (len(batch.lengths), batch.index_q.shape[1], batch.topk)
        given = {"dtype": torch.int32, "device": "cuda"}
        candidates, pads = (shared([torch.zeros(shape, **given) for _ in range(ranks)])
                            for shape in ((2, *lists), (words_of(ranks),)))
        told = shared([torch.zeros((ranks, *lists, 4), **given) for _ in range(ranks)], True)
        states = shared([torch.zeros((ranks, rows, heads, DIM + STATE_PAD), device="cuda") for _ in range(ranks)], True)
        self.lengths, self.ways, self.graphs, self.found = lengths, [], [], []
        self.caches = caches  # graphs read them where they lie
        self.streams = [torch.cuda.Stream() for _ in range(ranks)]
        for rank, (pools, table, _) in enumerate(caches):
            shard = Shard(table, batch.form.block, Deal(rank, ranks, max(blocks), min(blocks)), lengths, settings)
            way = Meeting(rank, shard, *(boxes[rank] for boxes in (candidates, told, states, pads)))
            if not together:
                shard.may_attend_among = lambda pages: False

            def layer(way=way, shard=shard, pools=pools):
                shard.refresh()
                ids = way.attend(batch.q, pools[0], pools[1], batch.index_q, pools[2], Pages())
                return ids, *way.join(batch.q.dtype, True)

            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=self.streams[rank]):
                found = layer()
            self.ways.append(way)
            self.graphs.append(graph)
            self.found.append(found)

    def run(self, late):
        torch.cuda.synchronize()
        for graph, stream, cycles in zip(self.graphs, self.streams, late):
            with torch.cuda.stream(stream):
                torch.cuda._sleep(1 + cycles)
                graph.replay()
        torch.cuda.synchronize()
        return self.found


@pytest.mark.seconds(120)
@pytest.mark.parametrize("ranks, lengths, topk, local", [(1, [333], 4, 1), (2, [333, 40, 200, 32], 4, 1),
                                                         (3, [999, 640], 16, 2), (2, [2000, 1], 16, 0)])
def test_ranks_that_attend_together_choose_as_one(ranks, lengths, topk, local):
    batch = problems.Batch(lengths, new=[1] * len(lengths), topk=topk, local=local, seed=ranks, form=problems.GPU)
    alone = Layers(batch, 1, True)  # a rank alone is first: kernels are loaded then
    alone.run([0])
    together, apart = Layers(batch, ranks, True), Layers(batch, ranks, False)
    for repeat in range(40):
        now = [(n * (repeat * 37 + 11 * place) // 101) % (n + 1) if repeat else n for place, n in enumerate(batch.lengths)]
        for layers in (alone, together, apart):
            layers.lengths.copy_(batch.integers(now))
        late = [200_000 * (repeat % 3 == 1 + rank % 2) for rank in range(ranks)]
        (ids, out, lse), *others = together.run(late) + apart.run(late)
        assert not any(way._apart for way in together.ways), "no kernel for ranks together"
        wanted = alone.run([0])[0]
        assert torch.equal(ids, wanted[0])
        problems.close(out, wanted[1])
        problems.close(lse, wanted[2])
        for other in others:
            assert all(torch.equal(a, b) for a, b in zip((ids, out, lse), other))
    whole = batch.whole()
    for layers in (alone, together):
        layers.lengths.copy_(batch.integers(batch.lengths))
        for ids, out, lse in layers.run([0] * ranks):
            assert torch.equal(ids, whole.block_ids)
            problems.close(out, whole.out)
            problems.close(lse, whole.lse)
