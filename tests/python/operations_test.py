# SPDX-License-Identifier: MIT
"""Every operation on every kind of array against double precision, and what the results are."""
from __future__ import annotations

import doctest

import numpy as np
import oracle
import pytest

import msa
from msa import _core

LENS = [(3, 70), (0, 5), (4, 4), (2, 0), (5, 200)]
T = sum(q for q, _ in LENS)
N = sum(k for _, k in LENS)
BLOCK, TOPK, DIM, HQ, HKV = 32, 3, 32, 4, 2


class Case:
    """Tensors of a ragged batch as numpy sees them and as the kind under test holds them."""

    def __init__(self, xp, rng):
        self.xp = xp
        self.lens = {"cu_seqlens_q": xp.integers(np.cumsum([0, *(q for q, _ in LENS)])),
                     "seqlens_k": xp.integers([k for _, k in LENS])}
        self.requests = oracle.requests_of(LENS)
        self.held, self.seen = {}, {}
        for name, shape in (("q", (T, HQ, DIM)), ("k", (N, HKV, DIM)), ("v", (N, HKV, DIM)),
                            ("iq", (T, HKV, DIM)), ("ik", (N, 1, DIM))):
            # Small integers for the index: its scores are exact in every format.
            data = rng.integers(-3, 4, shape) if name in ("iq", "ik") else rng.standard_normal(shape)
            self.held[name] = xp.floats(data)
            self.seen[name] = xp.read(self.held[name]).astype(np.float64)
        self.keywords = {**self.lens, "block_size": BLOCK}
        if xp.name == "words":
            self.words = {"dtype": "bf16"}
        else:
            self.words = {}

    def ids(self):
        scores = oracle.block_scores(self.seen["iq"], self.seen["ik"], self.requests, BLOCK, True, 7)
        return oracle.select(scores, self.requests, BLOCK, TOPK, 1, 0, True)


@pytest.fixture
def case(xp, rng):
    return Case(xp, rng)


def near(case, got, want):
    got = case.xp.read(got).astype(np.float64)
    assert got.shape == want.shape
    assert np.array_equal(np.isneginf(got), np.isneginf(want))
    finite = np.isfinite(want)
    np.testing.assert_allclose(got[finite], want[finite], rtol=case.xp.tolerance, atol=case.xp.tolerance)


def near_lse(case, got, want):
    got = case.xp.read(got).astype(np.float64)
    assert np.array_equal(np.isneginf(got), np.isneginf(want))
    finite = np.isfinite(want)
    np.testing.assert_allclose(got[finite], want[finite], rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_dense_attention(case, backend):
    h, s = case.held, case.seen
    out, lse, maxima = msa.dense_attention(h["q"], h["k"], h["v"], return_lse=True, return_block_max=True,
                                           backend=backend, **case.keywords, **case.words)
    want, want_lse = oracle.attention(s["q"], s["k"], s["v"], case.requests, BLOCK, True)
    near(case, out, want)
    near_lse(case, lse, want_lse)
    near_lse(case, maxima, oracle.block_maxima(s["q"], s["k"], case.requests, BLOCK, True, 7))


def test_dense_without_values(case):
    maxima = msa.dense_attention(case.held["q"], case.held["k"], return_block_max=True, causal=False, **case.keywords,
                                 **case.words)
    near_lse(case, maxima, oracle.block_maxima(case.seen["q"], case.seen["k"], case.requests, BLOCK, False, 7))


def test_block_scores_and_select_topk(case):
    scores = msa.block_scores(case.held["iq"], case.held["ik"], **case.keywords, **case.words)
    want = oracle.block_scores(case.seen["iq"], case.seen["ik"], case.requests, BLOCK, True, 7)
    assert np.array_equal(case.xp.read(scores), want)
    ids, chosen = msa.select_topk(scores, topk=TOPK, return_scores=True, **case.keywords)
    want_ids, want_chosen = case.ids()
    assert np.array_equal(case.xp.read(ids), want_ids)
    assert np.array_equal(case.xp.read(chosen), want_chosen)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_select_blocks(case, backend):
    found = msa.select_blocks(case.held["iq"], case.held["ik"], topk=TOPK, return_scores=True, backend=backend,
                              **case.keywords, **case.words)
    assert type(found) is msa.Selection
    want_ids, want_chosen = case.ids()
    assert np.array_equal(case.xp.read(found.block_ids), want_ids)
    assert np.array_equal(case.xp.read(found.chosen_scores), want_chosen)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_sparse_attention(case, backend):
    h, s = case.held, case.seen
    ids, _ = case.ids()
    out, lse = msa.sparse_attention(h["q"], h["k"], h["v"], case.xp.integers(ids), return_lse=True, backend=backend,
                                    **case.keywords, **case.words)
    want, want_lse = oracle.attention(s["q"], s["k"], s["v"], case.requests, BLOCK, True, ids=ids)
    near(case, out, want)
    near_lse(case, lse, want_lse)
    scaled = msa.sparse_attention(h["q"], h["k"], h["v"], case.xp.integers(ids), softmax_scale=0.5, out_dtype="f32",
                                  **case.keywords, **case.words)
    near(case, scaled, oracle.attention(s["q"], s["k"], s["v"], case.requests, BLOCK, True, 0.5, ids)[0])


def test_msa_attention(case):
    h, s = case.held, case.seen
    found = msa.msa_attention(h["q"], h["k"], h["v"], h["iq"], h["ik"], topk=TOPK, return_lse=True,
                              return_block_ids=True, **case.keywords, **case.words)
    want_ids, _ = case.ids()
    assert type(found) is msa.AttentionBlocks
    assert np.array_equal(case.xp.read(found.block_ids), want_ids)
    want, want_lse = oracle.attention(s["q"], s["k"], s["v"], case.requests, BLOCK, True, ids=want_ids)
    near(case, found.out, want)
    near_lse(case, found.lse, want_lse)


@pytest.mark.parametrize("stacked", [False, True])
def test_merge_states(case, rng, stacked):
    if stacked and case.xp.name == "ml_dtypes":
        pytest.skip("numpy stacks no ml_dtypes without converting")
    outs, lses = rng.standard_normal((3, 5, 4, 16)), rng.standard_normal((3, 5, 4))
    lses[0, 1] = -np.inf
    lses[:, 2] = -np.inf
    xp = case.xp
    held = xp.floats(outs) if stacked else [xp.floats(part) for part in outs]
    seen = np.stack([xp.read(xp.floats(part)).astype(np.float64) for part in outs])
    single = type(xp)().floats if xp.dtype == "f32" else None
    f32 = single or (lambda a: np.ascontiguousarray(a, np.float32))
    if "torch" in xp.name:
        f32 = lambda a: xp.torch.tensor(np.asarray(a, np.float32))  # noqa: E731
    held_lses = f32(lses) if stacked else [f32(part) for part in lses]
    out, lse = msa.merge_states(held, held_lses, return_lse=True, **case.words)
    want, want_lse = oracle.merge_states(seen, lses.astype(np.float32))
    near(case, out, want)
    near_lse(case, lse, want_lse)


def test_merge_selections_of_shards_is_the_whole_selection(xp, rng):
    scores = rng.integers(0, 9, (4, 2, 8)).astype(np.float32)
    parts, kept = [], []
    for first in (0, 4):
        ids = np.argsort(-scores[..., first:first + 4], axis=2, kind="stable")[..., :3]
        ids.sort(axis=2)
        kept.append(xp.integers(ids + first))
        shard = np.take_along_axis(scores[..., first:first + 4], ids, 2)
        parts.append(shard if "torch" not in xp.name else xp.torch.tensor(shard))
    found = msa.merge_selections(kept, parts, topk=3)
    order = np.argsort(-scores, axis=2, kind="stable")[..., :3]
    order.sort(axis=2)
    assert np.array_equal(xp.read(found), order)


def test_invert_selection(case):
    ids, _ = case.ids()
    row_ptr, indices, slots = msa.invert_selection(case.xp.integers(ids), **case.keywords)
    row_ptr, indices, slots = (case.xp.read(x) for x in (row_ptr, indices, slots))
    for head, (ptr, want, want_slots) in enumerate(oracle.invert(ids, case.requests, BLOCK)):
        assert row_ptr[head, :len(ptr)].tolist() == ptr
        assert set(row_ptr[head, len(ptr):].tolist()) <= {ptr[-1]}
        assert indices[head, :len(want)].tolist() == want
        assert slots[head, :len(want)].tolist() == want_slots
        assert set(indices[head, len(want):].tolist()) <= {-1}


def test_pages_and_strides_are_the_same_keys(case):
    """Keys in scattered pages, and heads before tokens, without a copy."""
    xp, h = case.xp, case.held
    want = xp.read(msa.dense_attention(h["q"], h["k"], h["v"], **case.keywords, **case.words))
    size, table, at = 32, [], 0
    count = sum(-(-k // size) for _, k in LENS)
    order = np.random.default_rng(3).permutation(count)
    pages = {name: np.full((count, size, HKV, DIM), np.nan) for name in "kv"}
    start = 0
    for _, keys in LENS:
        row = []
        for first in range(0, keys, size):
            page, stop = int(order[at]), min(first + size, keys)
            for name in "kv":
                pages[name][page, :stop - first] = case.seen[name][start + first:start + stop]
            row.append(page)
            at += 1
        table.append(row + [-5] * (7 - len(row)))
        start += keys
    got = msa.dense_attention(h["q"], xp.floats(pages["k"]), xp.floats(pages["v"]), page_table=xp.integers(table),
                              **case.keywords, **case.words)
    assert np.array_equal(xp.read(got), want, equal_nan=True)
    if xp.name == "ml_dtypes":
        return
    major = xp.floats(case.seen["k"].transpose(1, 0, 2).copy())
    turned = major.permute(1, 0, 2) if "torch" in xp.name else major.transpose(1, 0, 2)
    got = msa.dense_attention(h["q"], turned, h["v"], **case.keywords, **case.words)
    assert np.array_equal(xp.read(got), want)


def test_given_outputs_are_written_and_returned(case):
    h, xp = case.held, case.xp
    out = xp.floats(np.zeros((T, HQ, DIM)))
    found = msa.dense_attention(h["q"], h["k"], h["v"], out=out, return_lse=True, **case.keywords, **case.words)
    assert found.out is out
    again = msa.dense_attention(h["q"], h["k"], h["v"], **case.keywords, **case.words)
    assert np.array_equal(xp.read(again), xp.read(out))


def test_plan_runs_and_says_what_it_is(case):
    h, xp = case.held, case.xp
    plan = msa.make_plan("dense_attention", q=h["q"], k=h["k"], v=h["v"], lse=True, **case.keywords, **case.words)
    assert (plan.op, plan.backend) == ("dense_attention", "cpu") and plan.isa
    assert plan.problem["heads_q"] == HQ and plan.problem["lse"] is True and plan.problem["dtype"] == xp.dtype
    assert "dense_attention" in repr(plan) and "workspace" in str(plan)
    workspace = np.empty(plan.workspace_bytes + 256, np.uint8)
    out, lse = plan.run(h["q"], h["k"], h["v"], workspace=workspace, **case.lens)
    want = msa.dense_attention(h["q"], h["k"], h["v"], return_lse=True, **case.keywords, **case.words)
    near(case, out, xp.read(want.out).astype(np.float64))
    near_lse(case, lse, xp.read(want.lse).astype(np.float64))
    assert msa.check(plan, workspace) is None


def test_plan_from_numbers_serves_calls_within_its_bounds():
    plan = msa.make_plan("sparse_attention", dtype="f32", batch=4, total_q=64, max_seqlen_q=64, max_seqlen_k=512,
                         heads_q=4, heads_kv=2, head_dim=32, value_dim=32, topk=2, block_size=32)
    q, kv = np.ones((3, 4, 32), np.float32), np.ones((100, 2, 32), np.float32)
    ids = np.zeros((3, 2, 2), np.int32)
    ids[..., 1] = 1
    np.testing.assert_allclose(plan.run(q, kv, kv, ids), 1, rtol=1e-6)


def test_supports_tells_reasons():
    asked = msa.supports("dense_attention", dtype="f32", total_q=1, max_seqlen_k=8, heads_q=1, heads_kv=1, head_dim=8,
                         value_dim=8)
    assert not asked and "multiples of 16" in asked.reasons["cpu"]
    assert "error" in msa.supports("dense_attention", heads_q=0).reasons


def test_unknown_libraries_may_be_read_and_written():
    import arrays
    q, kv = np.ones((2, 4, 32), np.float32), np.ones((40, 2, 32), np.float32)
    out = np.empty((2, 4, 32), np.float32)
    given = arrays.Capsule(out)
    assert msa.dense_attention(arrays.Capsule(q), arrays.Capsule(kv), arrays.Capsule(kv), out=given) is given
    np.testing.assert_allclose(out, 1, rtol=1e-6)


def test_plans_of_growing_sequences_are_few():
    msa.plans.clear()
    q, kv = np.ones((1, 1, 16), np.float32), np.ones((2000, 1, 16), np.float32)
    for n in range(1000, 2000):
        msa.dense_attention(q, kv[:n], kv[:n])
    info = msa.plans.info()
    assert info.misses <= 10 and info.hits >= 990 and info.size == info.misses
    msa.plans.resize(2)
    assert msa.plans.info().size == 2
    msa.plans.resize(info.capacity)
    msa.plans.clear()


def test_environment_is_part_of_the_plan(monkeypatch):
    q = np.ones((1, 1, 16), np.float32)
    msa.dense_attention(q, q, q)
    monkeypatch.setenv("MSA_BACKEND", "nobody")
    with pytest.raises(msa.Error):
        msa.dense_attention(q, q, q)


@pytest.mark.parametrize("module", ["operations", "plans", "cache", "show", "stats"])
def test_examples_of_docstrings_run(module):
    import importlib
    found = doctest.testmod(importlib.import_module(f"msa.{module}"), extraglobs={"msa": msa})
    assert found.attempted > 0 and found.failed == 0


def test_signatures_name_every_field():
    """The front passes every tensor and every setting that the library's table lists."""
    import inspect
    for op, rows in _core.fields().items():
        names = set(inspect.signature(getattr(msa, op)).parameters)
        assert {row[0] for row in rows} <= names
        assert set(_core.settings()[op]) <= names
        assert inspect.signature(getattr(_core, op)).parameters.keys() >= names - {
            "return_lse", "return_block_ids", "return_block_max", "return_scores", "return_candidates", "return_dq",
            "return_dk", "return_dv", "return_loss", "return_d_index_q", "return_d_index_k"}
