# SPDX-License-Identifier: MIT
"""What only GPUs do, with stand-ins for them: waiting for collectives, boxes in shared memory, ids by a sum."""
from __future__ import annotations

import types

import pytest

torch = pytest.importorskip("torch", reason="ranks exchange tensors of torch")

import msa  # noqa: E402
import torch.distributed._symmetric_memory as symmetric  # noqa: E402
from msa.distributed import RankError, exchange  # noqa: E402
from msa.distributed.boxes import Box, SharedBoxes  # noqa: E402
from msa.distributed.exchange import Exchange, Pending  # noqa: E402
from msa.distributed.ids import Dealt  # noqa: E402

ON_GPU = types.SimpleNamespace(is_cuda=True)


class Work:
    """A collective that ends after some looks, or never."""

    def __init__(self, looks):
        self.looks, self.waited = looks, False

    def is_completed(self):
        self.looks -= 1
        return self.looks < 0

    def wait(self):
        self.waited = True


class Group:
    """As much of an Exchange as one of its collectives asks for."""

    limit, failed = 0.05, False

    def __init__(self, watched):
        self.watched = watched

    watches = Exchange.watches

    def has_failed(self):
        return self.failed

    def fail(self, argument, error):
        raise RankError(f"{argument}: {error}", argument, (1,))


def test_an_unwatched_collective_on_a_gpu_is_awaited_by_the_stream_alone():
    work = Work(looks=10 ** 9)
    assert Pending(Group(watched=False), "k", ON_GPU, None, work).wait() is ON_GPU
    assert work.waited and work.looks == 10 ** 9, "the host has not looked"


def test_a_watched_one_is_awaited_by_the_host_first():
    work = Work(looks=3)
    assert Pending(Group(watched=True), "k", ON_GPU, None, work).wait() is ON_GPU
    assert work.waited and work.looks < 0


def test_a_watched_one_that_never_ends_leaves_the_stream_free():
    work = Work(looks=10 ** 9)
    with pytest.raises(RankError, match="k: no answer within 0.05 s") as caught:
        Pending(Group(watched=True), "k", ON_GPU, None, work).wait()
    assert caught.value.argument == "k" and not work.waited


def test_a_watched_one_ends_where_another_rank_has_given_up(monkeypatch):
    monkeypatch.setattr(exchange, "_LOOK", 0.01)
    group = Group(watched=True)
    group.limit, group.failed = 60.0, True
    with pytest.raises(RankError, match="another rank has given up"):
        Pending(group, "k", ON_GPU, None, Work(looks=10 ** 9)).wait()


@pytest.mark.parametrize("granted, patience, limit", [(600.0, 5.0, 593.0), (8.0, 1.5, 4.5), (4.0, 5.0, 2.0)])
def test_the_host_gives_up_before_the_watchdog_does(granted, patience, limit):
    watching = Exchange.__new__(Exchange)
    watching.patience, watching.__dict__["granted"] = patience, granted
    assert watching.limit == limit


class Memory:
    """Boxes of three ranks in one process: those of the others hold what they would have written."""

    def __init__(self, monkeypatch, mine, theirs):
        self.barriers, self.mine, self.theirs = 0, mine, theirs
        monkeypatch.setattr(symmetric, "rendezvous", lambda tensor, group: self)
        monkeypatch.setattr(symmetric, "_SymmetricMemory", types.SimpleNamespace(
            empty_strided_p2p=lambda shape, strides, dtype, device: torch.full(shape, 7, dtype=dtype)))

    def get_buffer(self, rank, shape, dtype):
        assert rank != self.mine, "its own box lies here"
        return torch.full(shape, self.theirs[rank], dtype=dtype)

    def barrier(self, timeout_ms):
        assert timeout_ms == 30_000
        self.barriers += 1


def boxes_of(rank, in_parts=False):
    group = types.SimpleNamespace(group="a group", rank=rank, ranks=3, granted=30.0, expect_whole=lambda: None)
    return SharedBoxes(group, "states", Box((2, 5), torch.float32, in_parts), torch.device("cpu"))


def test_boxes_in_shared_memory_are_those_of_the_ranks_in_order(monkeypatch):
    memory = Memory(monkeypatch, 1, [1.0, 0.0, 3.0])
    boxes = boxes_of(1)
    assert memory.barriers == 3 and torch.equal(boxes.own, torch.zeros(2, 5)), "checked, then cleared by all"
    boxes.own.fill_(2.0)
    assert [box[0, 0].item() for box in boxes.swap()] == [1.0, 2.0, 3.0] and memory.barriers == 4


def test_a_box_of_parts_has_one_for_each_rank(monkeypatch):
    Memory(monkeypatch, 1, [1.0, 0.0, 3.0])
    boxes = boxes_of(1, in_parts=True)
    whole, size = boxes.swap(), 2 * 5 * 4
    assert all(box.shape == (3, 2, 5) for box in whole) and boxes.own.shape == (2, 5)
    assert boxes.own.data_ptr() == boxes.addresses[1] + size == boxes.parts_here[1] == boxes.parts_there[1]
    assert boxes.parts_here == [boxes.addresses[1] + n * size for n in range(3)]
    assert boxes.parts_there == [boxes.addresses[n] + n * size for n in range(3)]


def test_one_rank_alone_shares_what_it_has():
    group = types.SimpleNamespace(group=None, rank=0, ranks=1, granted=30.0, expect_whole=lambda: None)
    boxes = SharedBoxes(group, "states", Box((2, 5), torch.float32, True), torch.device("cpu"))
    boxes.own.fill_(3.0)
    assert torch.equal(boxes.swap()[0], torch.full((1, 2, 5), 3.0)) and boxes.parts_here == boxes.parts_there


def test_a_box_that_lies_elsewhere_is_noticed(monkeypatch):
    Memory(monkeypatch, 1, [1.0, 0.0, 1.0])
    with pytest.raises(msa.Unsupported, match=r"expected the boxes of ranks 0 to 2, got \[1, 2, 1\]"):
        boxes_of(1)


class OnGpu(torch.Tensor):
    """A tensor that says that it lies on a GPU."""

    is_cuda = property(lambda self: True)


@pytest.mark.parametrize("rank", range(3))
def test_global_ids_of_a_gpu_are_those_of_the_table_or_below_zero(rank):
    dealt = Dealt(rank, 3, 5, 0, 1, 4, None, torch.device("cpu"))
    ids = torch.tensor([[[0, 2, 4, -1]]], dtype=torch.int32)
    table, sums = torch.empty_like(ids), torch.empty_like(ids)
    dealt.to_global(ids, table)
    dealt.to_global(ids.as_subclass(OnGpu), sums)
    assert table.tolist() == [[[rank, rank + 6, rank + 12, -1]]]
    assert torch.equal(sums[..., :3], table[..., :3]) and (sums[..., 3:] < 0).all()


def test_global_ids_behind_first_blocks_take_the_table_on_a_gpu_too():
    dealt = Dealt(0, 2, 3, 1, 2, 4, None, torch.device("cpu"))
    ids, found = torch.tensor([[[0, 1, -1, -1]]], dtype=torch.int32), torch.empty((1, 1, 4), dtype=torch.int32)
    dealt.to_global(ids.as_subclass(OnGpu), found)
    assert found.tolist() == [[[2, 4, -1, -1]]]
