# SPDX-License-Identifier: MIT
"""Nothing is kept: references of arguments, allocated blocks and plans after many calls that succeed and that fail."""
from __future__ import annotations

import gc
import sys
import weakref

import numpy as np
import pytest

import msa
from msa import _core

CALLS = 10_000


def arrays():
    q, kv = np.ones((1, 2, 16), np.float32), np.ones((32, 1, 16), np.float32)
    return {"q": q, "k": kv, "v": kv.copy(), "block_ids": np.zeros((1, 1, 1), np.int32)}


def tensors():
    torch = pytest.importorskip("torch")
    return {name: torch.from_numpy(array) for name, array in arrays().items()}


class Broken:
    """Fails while it is exported."""

    def __dlpack__(self, **keywords):
        raise BufferError("no")

    def __dlpack_device__(self):
        return (1, 0)


def cases(given):
    plan = msa.make_plan("sparse_attention", **given)
    held = list(given.values())
    out = given["q"] * 0
    parts = [given["q"], given["q"]]
    lses = [given["q"][:, :, 0], given["q"][:, :, 0]]
    read_only = np.zeros((1, 2, 16), np.float32)
    read_only.flags.writeable = False
    return {
        "one call": lambda: msa.sparse_attention(*held, return_lse=True),
        "plan": lambda: plan.run(*held),
        "given output": lambda: plan.run(*held, out=out),
        "new plan": lambda: msa.make_plan("sparse_attention", **given),
        "supports": lambda: msa.supports("merge_states", parts=2, heads_q=1, value_dim=16, dtype="f32"),
        "parts": lambda: msa.merge_states(parts, lses, return_lse=True),
        "problem": lambda: plan.problem,
        "text": lambda: (str(plan), repr(plan)),
        "wrong keyword": lambda: _core.sparse_attention(*held, colour=1),
        "twice": lambda: _core.sparse_attention(*held, q=held[0]),
        "missing": lambda: _core.sparse_attention(held[0]),
        "no array": lambda: msa.sparse_attention(held[0], held[1], "v", held[3]),
        "broken": lambda: msa.sparse_attention(held[0], held[1], Broken(), held[3]),
        "wrong rank": lambda: msa.sparse_attention(held[0][0], *held[1:]),
        "wrong number": lambda: msa.sparse_attention(*held, block_size=17),
        "wrong type": lambda: msa.sparse_attention(*held, block_size="17"),
        "read-only": lambda: msa.sparse_attention(*held, out=read_only),
        "no backend": lambda: msa.sparse_attention(*held, backend="nobody"),
        "bad part": lambda: msa.merge_states([parts[0], 3], lses),
        "bad workspace": lambda: plan.run(*held, workspace=3),
    }


FAILS = {"wrong keyword", "twice", "missing", "no array", "broken", "wrong rank", "wrong number", "wrong type",
         "read-only", "no backend", "bad part", "bad workspace"}
NAMES = list(cases(arrays()))


@pytest.mark.seconds(20)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("make", [arrays, tensors])
def test_nothing_is_kept(name, make):
    given = make()
    run = cases(given)[name]

    def once():
        if name not in FAILS:
            run()
            return
        try:
            run()
        except (msa.Error, TypeError):
            return
        raise AssertionError("the call was to fail")

    for _ in range(100):
        once()
    gc.collect()
    gc.disable()
    try:
        references = {key: sys.getrefcount(array) for key, array in given.items()}
        blocks = sys.getallocatedblocks()
        calls = CALLS // 10 if name == "no backend" else CALLS
        for _ in range(calls):
            once()
        assert {key: sys.getrefcount(array) for key, array in given.items()} == references
        assert abs(sys.getallocatedblocks() - blocks) < calls // 10
    finally:
        gc.enable()


def test_plans_end():
    """A plan and what it was made from go when their owners do."""
    given = arrays()
    watched = weakref.ref(given["q"])
    plan = msa.make_plan("sparse_attention", **given)
    del given
    gc.collect()
    assert watched() is None
    assert sys.getrefcount(plan) == 2
    before = sys.getrefcount(msa.Plan)
    plans = [msa.make_plan("sparse_attention", **arrays()) for _ in range(100)]
    grown = sys.getrefcount(msa.Plan) - before
    plans.clear()
    left = sys.getrefcount(msa.Plan) - before
    assert (grown, left) == (100, 0)
