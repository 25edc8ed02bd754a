# SPDX-License-Identifier: MIT
"""Keys and values stored as e4m3, against numpy over the values that their codes and scales stand for."""
from __future__ import annotations

import numpy as np
import oracle
import pytest

import msa

HQ, HKV, D, BLOCK, PAGE = 4, 2, 32, 16, 16
LENS = [(5, 70), (1, 33), (3, 3)]
SCALES = ["e4m3", "e4m3/tensor", "e4m3/head", "e4m3/page", "e4m3/token"]


def table():
    """The 256 values of the format: 4 bits of exponent counted from 7, 3 of mantissa, no infinity, one NaN."""
    values = []
    for code in range(256):
        exponent, mantissa = code >> 3 & 15, code & 7
        size = mantissa / 8 * 2.0**-6 if exponent == 0 else (1 + mantissa / 8) * 2.0**(exponent - 7)
        values.append((-1 if code & 128 else 1) * (np.nan if code & 127 == 127 else size))
    return np.array(values, np.float32)


VALUES = table()


class Cache:
    """Ragged or paged codes with scales, and the fp32 values that they stand for, [N, Hkv, D] of all requests."""

    def __init__(self, rng, kind, paged):
        self.lens, self.kind, self.paged = LENS, kind, paged
        keys = sum(length for _, length in LENS)
        pages = [-(-length // PAGE) for _, length in LENS]
        shape = (keys, HKV, D)
        self.codes = {name: rng.integers(0, 120, shape, np.uint8) | rng.integers(0, 2, shape, np.uint8) << 7
                      for name in "kv"}
        order = rng.permutation(sum(pages) + 2).astype(np.int32)
        self.page_table = np.full((len(LENS), max(pages) + 1), -7, np.int32)
        page_of, slot_of = np.zeros(keys, int), np.zeros(keys, int)
        row = used = 0
        for i, (_, length) in enumerate(LENS):
            self.page_table[i, :pages[i]] = order[used:used + pages[i]]
            for j in range(length):
                page_of[row], slot_of[row] = order[used + j // PAGE], j % PAGE
                row += 1
            used += pages[i]
        self.given, self.scales, self.values = {}, {}, {}
        for name in "kv":
            # What nobody reads is NaN.
            stored = np.full((len(order), PAGE, HKV, D), 255, np.uint8)
            stored[page_of, slot_of] = self.codes[name]
            self.given[name] = stored if paged else self.codes[name]
            scale = np.ones((keys, HKV), np.float32)
            if kind == "e4m3/tensor":
                self.scales[name] = rng.uniform(0.3, 0.9, 1).astype(np.float32)
                scale[:] = self.scales[name]
            elif kind == "e4m3/head":
                self.scales[name] = rng.uniform(0.3, 0.9, HKV).astype(np.float32)
                scale[:] = self.scales[name]
            elif kind == "e4m3/page":
                self.scales[name] = rng.uniform(0.3, 0.9, (len(order), HKV)).astype(np.float32)
                scale = self.scales[name][page_of]
            elif kind == "e4m3/token":
                scale = rng.uniform(0.3, 0.9, (keys, HKV)).astype(np.float32)
                self.scales[name] = scale
                if paged:
                    self.scales[name] = np.full((len(order), PAGE, HKV), np.nan, np.float32)
                    self.scales[name][page_of, slot_of] = scale
            self.values[name] = VALUES[self.codes[name]] * scale[..., None]

    def call(self, kind="bytes"):
        """Keywords of a call: k, v, their scales and where they lie."""
        given = {"seqlens_k": np.array([n for _, n in LENS], np.int32),
                 "cu_seqlens_q": np.cumsum([0] + [n for n, _ in LENS], dtype=np.int32)}
        if self.paged:
            given["page_table"] = self.page_table
        for name in "kv":
            given[name] = self.given[name]
            if name in self.scales:
                given[f"{name}_scale"] = self.scales[name]
        if kind == "ml_dtypes":
            float8 = pytest.importorskip("ml_dtypes").float8_e4m3fn
            given.update({name: given[name].view(float8) for name in "kv"})
        elif kind == "torch":
            torch = pytest.importorskip("torch")
            given = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in given.items()}
            given.update({name: given[name].view(torch.float8_e4m3fn) for name in "kv"})
        else:
            given["kv_dtype"] = "e4m3"
        return given


def queries(rng):
    return rng.standard_normal((sum(n for n, _ in LENS), HQ, D)).astype(np.float32) / 8


CASES = [(kind, paged) for kind in SCALES for paged in (False, True) if paged or kind != "e4m3/page"]


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("kind,paged", CASES)
def test_dense(rng, kind, paged, backend):
    cache, q = Cache(rng, kind, paged), queries(rng)
    found = msa.dense_attention(q, **cache.call(), block_size=BLOCK, return_lse=True, return_block_max=True,
                                backend=backend)
    requests = oracle.requests_of(LENS)
    out, lse = oracle.attention(q, cache.values["k"], cache.values["v"], requests, BLOCK, True)
    np.testing.assert_allclose(found.out, out, rtol=2e-5, atol=2e-3)
    np.testing.assert_allclose(found.lse, lse, rtol=1e-5, atol=1e-4)
    maxima = oracle.block_maxima(q, cache.values["k"], requests, BLOCK, True, found.block_max.shape[2])
    np.testing.assert_allclose(found.block_max, maxima, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("kind,paged", CASES)
def test_sparse(rng, kind, paged, backend):
    cache, q = Cache(rng, kind, paged), queries(rng)
    ids = np.full((len(q), HKV, 2), -1, np.int32)
    ids[:, :, 0] = 0
    ids[:3, 0, 1] = 3
    out, lse = oracle.attention(q, cache.values["k"], cache.values["v"], oracle.requests_of(LENS), BLOCK, True, ids=ids)
    found = msa.sparse_attention(q, block_ids=ids, **cache.call(), block_size=BLOCK, return_lse=True, backend=backend)
    np.testing.assert_allclose(found.out, out, rtol=2e-5, atol=2e-3)
    np.testing.assert_allclose(found.lse, lse, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("arrays", ["ml_dtypes", "torch"])
def test_arrays_that_have_the_type(rng, arrays):
    cache, q = Cache(rng, "e4m3/token", True), queries(rng)
    expected = msa.dense_attention(q, **cache.call())
    if arrays == "torch":
        q = pytest.importorskip("torch").from_numpy(q)
    assert np.array_equal(np.asarray(msa.dense_attention(q, **cache.call(arrays))), expected)


@pytest.mark.parametrize("kind,paged", CASES)
def test_torch_ops(rng, kind, paged):
    torch = pytest.importorskip("torch")
    import msa.torch as mt
    torch.compiler.reset()
    q, given = torch.from_numpy(queries(rng)).to(torch.bfloat16), Cache(rng, kind, paged).call("torch")
    expected = msa.dense_attention(q, **given)
    assert torch.equal(mt.dense_attention(q, **given), expected)
    assert torch.equal(mt.dense_attention(q, **given, out=torch.empty_like(expected)), expected)
    compiled = torch.compile(mt.dense_attention, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(q, max_seqlen_q=5, max_seqlen_k=70, **given), expected)


def test_every_code_comes_through(rng):
    # One visible key: the output is its value.
    codes = np.arange(256, dtype=np.uint8)
    v = codes.reshape(1, 1, 256)
    q, k = np.zeros((1, 1, 16), np.float32), np.zeros((1, 1, 16), np.uint8)
    for scale in (1.0, 0.37, -3.0, 0.0, 1e-40, 3e38, np.inf, np.nan):
        scales = {"k_scale": np.ones(1, np.float32), "v_scale": np.array([scale], np.float32)}
        out = msa.dense_attention(q, k, v, kv_dtype="e4m3", **scales)[0, 0]
        with np.errstate(all="ignore"):
            values = VALUES * np.float32(scale)
        finite = np.isfinite(values)
        assert np.array_equal(np.isfinite(out), finite), scale
        assert np.array_equal(out[finite], values[finite]), scale


def test_a_sum_that_overflows_is_computed_again():
    q, k = np.zeros((1, 1, 16), np.float32), np.zeros((40, 1, 16), np.uint8)
    v = np.full((40, 1, 16), 0x7e, np.uint8)
    scales = {"k_scale": np.ones(1, np.float32), "v_scale": np.full(1, 7e35, np.float32)}
    for isa in ("scalar", None):
        out = msa.dense_attention(q, k, v, kv_dtype="e4m3", isa=isa, **scales)
        np.testing.assert_allclose(out, np.float32(448) * np.float32(7e35), rtol=1e-5)


def test_plans_name_the_format(rng):
    cache, q = Cache(rng, "e4m3/head", False), queries(rng)
    numbers = {"dtype": "f32", "batch": 3, "total_q": 9, "max_seqlen_q": 5, "max_seqlen_k": 70, "heads_q": HQ,
               "heads_kv": HKV, "head_dim": D, "value_dim": D}
    plan = msa.make_plan("dense_attention", kv="e4m3/head", **numbers)
    assert plan.problem["kv"] == "e4m3/head" and "kv e4m3/head" in str(plan)
    given = cache.call()
    del given["kv_dtype"]
    assert np.array_equal(plan.run(q, **given), msa.dense_attention(q, **cache.call()))
    assert msa.make_plan("dense_attention", **numbers).problem["kv"] is None
    for wrong in ("e4m3/page", "e4m3/none", "bf16/head", "fp8"):
        with pytest.raises(msa.InvalidArgument):
            msa.make_plan("dense_attention", kv=wrong, **numbers)
    assert not msa.supports("dense_attention", kv="e4m3", device="cuda", **numbers)


def test_refusals(rng):
    q = queries(rng)
    given = Cache(rng, "e4m3/token", False).call()

    def refused(argument, **changes):
        with pytest.raises(msa.InvalidArgument) as caught:
            msa.dense_attention(q, **{**given, **changes})
        assert caught.value.argument == argument, caught.value

    refused("v_scale", v_scale=None)
    refused("k", kv_dtype=None)
    refused("kv_dtype", kv_dtype="bf16")
    refused("v_scale", v_scale=given["v_scale"][:1])
    refused("v_scale", k_scale=None)
    refused("k_scale", k_scale=given["k_scale"].astype(np.float64))
    wide = {"k": np.zeros((106, HKV, D), np.float32), "v": np.zeros((106, HKV, D), np.float32)}
    refused("k_scale", **wide)
