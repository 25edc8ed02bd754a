# SPDX-License-Identifier: MIT
"""Backward passes and the loss of the index branch on numpy arrays: outputs left out, given and added to."""
from __future__ import annotations

import msa
import numpy as np
import pytest

T, N, HQ, HKV, DIM = 5, 40, 4, 2, 16


def floats(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def call():
    q, k, v = floats(1, T, HQ, DIM), floats(2, N, HKV, DIM), floats(3, N, HKV, DIM)
    ids = np.tile(np.array([0, 2], np.int32), (T, HKV, 1))
    out, lse = msa.sparse_attention(q, k, v, ids, block_size=16, return_lse=True)
    return q, k, v, ids, out, lse, floats(4, T, HQ, DIM)


def test_what_is_wanted_comes_back():
    inputs = call()
    whole = msa.sparse_attention_backward(*inputs, block_size=16)
    assert type(whole) is msa.Gradients
    assert whole.dq.shape == (T, HQ, DIM) and whole.dk.shape == whole.dv.shape == (N, HKV, DIM)
    dq = msa.sparse_attention_backward(*inputs, block_size=16, return_dk=False, return_dv=False)
    np.testing.assert_array_equal(dq, whole.dq)
    pair = msa.sparse_attention_backward(*inputs, block_size=16, return_dq=False)
    assert pair._fields == ("dk", "dv")
    np.testing.assert_array_equal(pair.dk, whole.dk)
    assert not whole.dk[16:32].any(), "a block that nobody lists"


def test_gradients_are_added_where_they_are_asked_to_be():
    inputs = call()
    whole = msa.sparse_attention_backward(*inputs, block_size=16)
    dk = np.ones((N, HKV, DIM), np.float32)
    dv = dk.copy()
    msa.sparse_attention_backward(*inputs, block_size=16, accumulate=True, dk=dk, dv=dv)
    np.testing.assert_array_equal(dk, 1 + whole.dk)
    with pytest.raises(msa.InvalidArgument, match="as the call adds to it"):
        msa.sparse_attention_backward(*inputs, block_size=16, accumulate=True)


def test_16_bit_inputs_have_gradients_of_either_kind():
    q, k, v, ids, out, lse, dout = call()
    half = [x.astype(np.float16) for x in (q, k, v)]
    inputs = (*half, ids, out.astype(np.float16), lse, dout.astype(np.float16))
    own = msa.sparse_attention_backward(*inputs, block_size=16)
    wide = msa.sparse_attention_backward(*inputs, block_size=16, grad_dtype="f32")
    assert own.dq.dtype == np.float16 and wide.dq.dtype == np.float32
    for name in ("dq", "dk", "dv"):
        np.testing.assert_array_equal(getattr(own, name), getattr(wide, name).astype(np.float16))
    plan = msa.make_plan("dense_attention_backward", dtype="bf16", heads_q=4, heads_kv=2, head_dim=16, value_dim=16,
                         total_q=5, max_seqlen_k=40, accumulate=True, grad_dtype="f32")
    assert plan.problem["accumulate"] is True and plan.problem["grad_dtype"] == "f32"


def test_pages_and_codes_are_refused_by_name():
    q, k, v, _, out, lse, dout = call()
    pages = np.zeros((3, 16, HKV, DIM), np.float32)
    with pytest.raises(msa.InvalidArgument, match="page_size") as caught:
        msa.dense_attention_backward(q, pages, pages, out, lse, dout, seqlens_k=np.array([N], np.int32))
    assert caught.value.argument == "page_size"


def test_the_loss_of_the_index_branch():
    q, k, v, ids, _, lse, _ = call()
    index_q, index_k = floats(5, T, HKV, DIM), floats(6, N, 1, DIM)
    found = msa.index_loss(q, k, lse, index_q, index_k, ids, block_size=16)
    assert type(found) is msa.IndexLoss
    assert found.loss.shape == (T, HKV) and (found.loss > 0).all()
    assert not found.d_index_k[16:32].any()
    half = msa.index_loss(q, k, lse, index_q, index_k, ids, np.full(T, 0.5, np.float32), block_size=16)
    np.testing.assert_array_equal(half.loss, found.loss)
    np.testing.assert_array_equal(2 * half.d_index_q, found.d_index_q)
    out, lse = msa.dense_attention(q, k, v, return_lse=True)
    dense = msa.index_loss(q, k, lse, index_q, index_k, return_d_index_q=False, index_scale=0.1)
    assert dense._fields == ("loss", "d_index_k")
    with pytest.raises(msa.InvalidArgument, match="index_scale"):
        msa.index_loss(q, k, lse, index_q, index_k, index_scale=float("nan"))


# ---- what must hold between calls, whatever the kernel


ISAS = [isa["name"] for backend in msa.info()["backends"] if backend["name"] == "cpu"
        for isa in backend["isas"] if isa["available"]]


@pytest.mark.parametrize("isa", ISAS)
def test_rows_that_read_the_same_keys_add_up_in_f32(isa):
    """Requests do not share rows of keys: runs of queries over the same ones are calls, one behind the other."""
    q, k, v, out = floats(1, 30, HQ, DIM), floats(2, N, HKV, DIM), floats(3, N, HKV, DIM), floats(4, 30, HQ, DIM)
    rest = {"block_size": 16, "backend": "cpu", "isa": isa, "grad_dtype": "f32"}
    attended, lse = msa.dense_attention(q, k, v, return_lse=True, backend="cpu", isa=isa)
    whole = msa.dense_attention_backward(q, k, v, attended, lse, out, **rest)
    dk, dv, dq = np.zeros_like(k), np.zeros_like(v), []
    for begin, end in ((0, 9), (9, 30)):  # rows begin .. end - 1 stand at 10 + begin and see 10 + end keys
        rows = slice(begin, end)
        found = msa.dense_attention_backward(
            q[rows], k, v, attended[rows], lse[rows], out[rows], cu_seqlens_q=np.array([0, end - begin], np.int32),
            seqlens_k=np.array([10 + end], np.int32), cu_seqlens_k=np.array([0, N], np.int32), accumulate=True, dk=dk,
            dv=dv, **rest)
        dq.append(found.dq)
    np.testing.assert_allclose(np.concatenate(dq), whole.dq, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(dk, whole.dk, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(dv, whole.dv, rtol=1e-5, atol=1e-5)
    with pytest.raises(msa.InvalidContent) as caught:  # both in one call
        msa.dense_attention_backward(q, k, v, attended, lse, out, cu_seqlens_q=np.array([0, 9, 30], np.int32),
                                     seqlens_k=np.array([19, 40], np.int32),
                                     cu_seqlens_k=np.array([0, 0, N], np.int32), **rest)
    assert caught.value.argument == "cu_seqlens_k"


@pytest.mark.parametrize("isa", ISAS)
def test_what_a_row_did_not_list_has_nothing_of_it(isa):
    q, k, v, ids, out, lse, dout = call()
    dout[1:] = 0
    ids[0, 1, 1] = 1
    out, lse = msa.sparse_attention(q, k, v, ids, block_size=16, return_lse=True, backend="cpu", isa=isa)
    found = msa.sparse_attention_backward(q, k, v, ids, out, lse, dout, block_size=16, backend="cpu", isa=isa)
    assert not found.dq[1:].any() and found.dq[0].any()
    for gradient in (found.dk, found.dv):  # row 0 stands at 35: it lists blocks 0 and 2, and 0 and 1 under head 1
        assert gradient[:16].any() and gradient[32:36, 0].any() and gradient[16:32, 1].any()
        assert not gradient[16:32, 0].any() and not gradient[32:, 1].any() and not gradient[36:].any()


@pytest.mark.parametrize("isa", ISAS)
def test_the_loss_between_calls(isa):
    rest = {"block_size": 16, "backend": "cpu", "isa": isa}
    q, k, v, ids, _, _, _ = call()
    index_q, index_k = floats(5, T, HKV, DIM), floats(6, N, 1, DIM)

    def loss_of(q, index_k=index_k):
        _, lse = msa.sparse_attention(q, k, v, ids, return_lse=True, **rest)
        return msa.index_loss(q, k, lse, index_q, index_k, ids, **rest)

    # What is added to the gradients of scores adds up to nothing: keys that are all alike are asked for by nobody.
    alike = loss_of(q, np.broadcast_to(index_k[:1], index_k.shape).copy())
    assert np.abs(alike.d_index_q).max() < 1e-5 * np.abs(loss_of(q).d_index_q).max() + 1e-6
    # Heads that are all alike teach what one of them does.
    one = np.repeat(q[:, ::HQ // HKV], HQ // HKV, axis=1)
    single = q[:, ::HQ // HKV].copy()
    for a, b in zip(loss_of(one), loss_of(single)):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    # One visible key leaves nothing to learn.
    _, lse = msa.dense_attention(q[:1], k[:1], v[:1], return_lse=True, **rest)
    first = msa.index_loss(q[:1], k[:1], lse, index_q[:1], index_k[:1], **rest)
    assert np.abs(first.loss).max() < 1e-6 and np.abs(first.d_index_k).max() < 1e-6
    # Nobody asks: empty requests and no rows.
    none = msa.index_loss(q[:0], k, np.zeros((0, HQ), np.float32), index_q[:0], index_k, **rest)
    assert none.loss.shape == (0, HKV) and not none.d_index_k.any()
