# SPDX-License-Identifier: MIT
"""Ranks that meet in kernels, all in one process, with stand-ins for the two kernels: what they are given, and what is
made of what they give. tests/emulator/peers_main.cpp runs the kernels, gpus_test.py both.
"""
from __future__ import annotations

import types

import pytest

torch = pytest.importorskip("torch", reason="ranks exchange tensors of torch")

import msa  # noqa: E402
import problems  # noqa: E402
from msa.distributed import meeting  # noqa: E402
from msa.distributed.meeting import Meeting, words_of  # noqa: E402
from msa.distributed.shard import STATE_PAD, Deal, Shard, join  # noqa: E402
from shard_test import drawn, settings_of  # noqa: E402


class Kernels:
    """The two calls of the library, in plain torch, over boxes that are known by their addresses."""

    def __init__(self, settings):
        self.settings, self.boxes, self.turns = settings, {}, []

    def box(self, tensors):
        """Boxes as each rank sees them."""
        self.boxes |= {tensor.data_ptr(): tensor for tensor in tensors}
        addresses = [tensor.data_ptr() for tensor in tensors]
        return [types.SimpleNamespace(own=own, addresses=addresses, timeout_ms=9000) for own in tensors]

    def box_of_parts(self, tensors):
        """The same of boxes that have a part for each rank."""
        boxes = self.box(tensors)
        self.boxes |= {part.data_ptr(): part for whole in tensors for part in whole}
        there = [whole[rank].data_ptr() for rank, whole in enumerate(tensors)]
        for rank, (box, whole) in enumerate(zip(boxes, tensors)):
            box.own, box.parts_there = whole[rank], there
            box.parts_here = [part.data_ptr() for part in whole]
        return boxes

    def peers_choose(self, rank, boxes, pads, timeout_ms, dealt, first, forced, ids, own):
        ranks = self.expect_meeting(boxes, pads, timeout_ms)
        parts = [self.boxes[address] for address in boxes]
        lists, scores = [part[0].clone() for part in parts], [part[1].view(torch.float32) for part in parts]
        if dealt:
            for n, part in enumerate(lists):
                skipped = len(range(n, first, ranks))
                part[part >= 0] = (part[part >= 0] + skipped) * ranks + n
        if forced is not None:
            lists.append(forced.unsqueeze(1).expand(-1, ids.shape[1], -1))
            scores.append(torch.where(lists[-1] >= 0, float("inf"), float("-inf")))
        ids.copy_(msa.merge_selections(lists, scores, topk=self.settings.topk, threads=1))
        if dealt:
            own.fill_(-1)
            for row, to in zip(ids.flatten(0, 1), own.flatten(0, 1)):
                here = row[(row >= 0) & (row % ranks == rank)] // ranks
                to[:len(here)] = here
        else:
            assert own is None and first == 0
        self.turns.append(("choose", rank))

    def peers_join(self, rank, boxes, pads, timeout_ms, out, lse):
        self.expect_meeting(boxes, pads, timeout_ms)
        whole, sums = join([self.boxes[address] for address in boxes], self.settings)
        out.copy_(whole.to(out.dtype))
        if lse is not None:
            lse.copy_(sums)
        self.turns.append(("join", rank))

    def expect_meeting(self, boxes, pads, timeout_ms):
        assert timeout_ms == 9000 and all(self.boxes[pad].shape == (words_of(len(boxes)),) for pad in pads)
        return len(boxes)


def decode(monkeypatch, batch, layout, ranks, page, dealt):
    settings = settings_of(batch)
    kernels = Kernels(settings)
    monkeypatch.setattr(meeting, "_core", kernels)
    lengths = torch.tensor(batch.lengths, dtype=torch.int32)
    caches = [batch.cache(layout, rank, ranks, page) for rank in range(ranks)]
    most = max(positions.shape[1] for _, _, positions in caches)
    shards = [Shard(table, page, Deal(rank, ranks, most) if dealt else positions, lengths, settings, batch.new)
              for rank, (_, table, positions) in enumerate(caches)]
    rows, heads, value_dim = *batch.q.shape[:2], batch.v.shape[2]
    lists = rows, batch.index_q.shape[1], batch.topk
    candidates, pads = (kernels.box([torch.zeros(shape, dtype=torch.int32) for _ in range(ranks)])
                        for shape in ((2, *lists), (words_of(ranks),)))
    told = kernels.box_of_parts([torch.zeros((ranks, *lists, 4), dtype=torch.int32) for _ in range(ranks)])
    states = kernels.box_of_parts([torch.zeros((ranks, rows, heads, value_dim + STATE_PAD)) for _ in range(ranks)])
    ways = [Meeting(rank, shard, *boxes)
            for rank, (shard, *boxes) in enumerate(zip(shards, candidates, told, states, pads))]
    for shard, (pools, _, _), box in zip(shards, caches, candidates):
        shard.candidates(batch.index_q, pools[2], into=box.own)
    lists = [way.choose() for way in ways]
    for shard, (pools, _, _), box, (_, own) in zip(shards, caches, states, lists):
        shard.attend(batch.q, pools[0], pools[1], own, into=box.own)
    found = [way.join(batch.q.dtype, True) for way in ways]
    assert kernels.turns == [(kind, rank) for kind in ("choose", "join") for rank in range(ranks)]
    return [(out, lse, shard.listed(ids)) for (out, lse), (ids, _), shard in zip(found, lists, shards)]


@pytest.mark.parametrize("dealt", [True, False])
@pytest.mark.parametrize("seed", range(24))
def test_ranks_that_meet_decode_as_one(monkeypatch, seed, dealt):
    lengths, new, kept, ranks, page = drawn(200 + seed)
    batch = problems.Batch(lengths, new=new, seed=seed, **kept)
    wanted = batch.whole()
    for out, lse, ids in decode(monkeypatch, batch, "interleaved", ranks, page, dealt):
        assert torch.equal(ids, wanted.block_ids)
        problems.close(out, wanted.out)
        problems.close(lse, wanted.lse)


def test_outputs_are_rounded_once_from_f32(monkeypatch):
    batch = problems.Batch([333, 40], new=[2, 1], dtype=torch.bfloat16, seed=6)
    (out, _, _), *others = decode(monkeypatch, batch, "interleaved", 3, 32, True)
    assert out.dtype == torch.bfloat16 and all(torch.equal(out, other) for other, _, _ in others)


def test_the_extension_refuses_what_is_no_meeting():
    ids, pad = torch.zeros((1, 2, 4), dtype=torch.int32), 4096
    with pytest.raises(msa.InvalidArgument, match="block_ids: expected dense i32 .* on a GPU") as caught:
        msa._core.peers_choose(0, [pad], [pad], 0, True, 0, None, ids, None)
    assert caught.value.argument == "block_ids"
    with pytest.raises(msa.InvalidArgument, match="out: expected dense f32, f16 or bf16"):
        msa._core.peers_join(0, [pad], [pad], 0, torch.zeros((1, 2, 4)), None)
    for rank, boxes, pads, name in ((1, [pad], [pad], "rank"), (0, [0], [pad], "boxes"), (0, [pad], [pad + 1], "pads"),
                                    (0, [], [], "ranks"), (0, [pad] * 64, [pad] * 64, "ranks")):
        with pytest.raises(msa.InvalidArgument, match=f"^{name}: expected") as caught:
            msa._core.peers_join(rank, boxes, pads, 0, torch.zeros((1, 2, 4)), None)
        assert caught.value.argument == name
    with pytest.raises(msa.InvalidArgument, match="timeout_ms: expected 0 or more, got -1"):
        msa._core.peers_join(0, [pad], [pad], -1, torch.zeros((1, 2, 4)), None)


def test_the_extension_refuses_ranks_that_cannot_attend_together():
    batch = problems.Batch([96, 40], new=[1, 1], topk=4)
    pools, table, _ = batch.cache("interleaved", 0, 1)
    states = torch.zeros((1, 2, batch.q.shape[1], batch.v.shape[2] + STATE_PAD))
    here, pads = [states.data_ptr()], [4096]
    given = {"page_table": table, "seqlens_k": batch.integers(batch.lengths), "cu_seqlens_q": batch.integers([0, 1, 2]),
             "block_size": 32, "topk": 4, "local_blocks": 0, "max_seqlen_q": 1, "max_seqlen_k": 96, "out_dtype": "f32",
             "block_ids": torch.zeros((2, batch.index_q.shape[1], 4), dtype=torch.int32)}

    def fault_of(ranks=(0, [4096], pads, 0, here, None, batch.integers([0, 0])), own=states[0], **other):
        with pytest.raises(msa.Error) as caught:
            msa._core.msa_attention(batch.q, pools[0], pools[1], batch.index_q, pools[2], among=ranks,
                                    **{**given, "out": own[..., :-STATE_PAD], "lse": own[..., -STATE_PAD], **other})
        return caught.value.argument

    assert fault_of((1, [4096], pads, 0, here, None, batch.integers([0, 0]))) == "rank"
    assert fault_of((0, [4100], pads, 0, here, None, batch.integers([0, 0]))) == "boxes"
    assert fault_of((0, [4096], pads, 0, [0], None, batch.integers([0, 0]))) == "states"
    assert fault_of(own=torch.zeros_like(states[0])) == "out"
    assert fault_of(lse=torch.zeros(states.shape[1:3])) == "lse"
    assert fault_of(local_blocks=1) == "local_blocks"
    assert fault_of() == "last_keys", "nothing of a CPU is read by other ranks"
    with pytest.raises(ValueError, match="states: expected as many as boxes"):
        fault_of((0, [4096], pads, 0, here * 2, None, batch.integers([0, 0])))
