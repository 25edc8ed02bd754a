# SPDX-License-Identifier: MIT
"""The kernels of a meeting on one GPU: two ranks on two streams, of which one comes late. `./test.sh --gpu` runs it."""
from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="ranks exchange tensors of torch")

import msa  # noqa: E402
from msa.distributed.meeting import words_of  # noqa: E402

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
