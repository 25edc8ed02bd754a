# SPDX-License-Identifier: MIT
"""fmha_sm100 without block ids: dense attention and block maxima."""
import math

import pytest
import torch

import msa

# Short and long requests in an order that upstream forbids, an empty one, more queries than keys.
MIXED = ((3, 140, 1, 0, 5), (300, 140, 1, 7, 2))


def planned(fmha, batch, **options):
    return fmha.fmha_sm100_plan(
        *batch.plan_lens(), batch.q.shape[1], num_kv_heads=batch.k.shape[1], device="cpu", **options
    )


@pytest.mark.parametrize("causal", [True, False])
def test_ragged(fmha, naive, causal):
    b = naive.batch(*MIXED)
    out, scores = fmha.fmha_sm100(b.q, b.k, b.v, planned(fmha, b, causal=causal))
    offsets = None if causal else [max(b.lens_k)] * len(b.lens_k)
    naive.close(out, naive.attend(b.q, b.k, b.v, b.lens_q, b.lens_k, offsets=offsets)[0])
    assert scores is None


@pytest.mark.parametrize("order", ["hnd", "nhd"])
@pytest.mark.parametrize("size", [128, 64])
def test_pages_in_any_layout(fmha, naive, order, size):
    b = naive.batch(*MIXED)
    k, v, kv_indices = b.pages(size=size, order=order)
    out, _ = fmha.fmha_sm100(b.q, k, v, planned(fmha, b, page_size=size), kv_indices=kv_indices)
    naive.close(out, naive.attend(b.q, b.k, b.v, b.lens_q, b.lens_k)[0])


def test_rows_that_see_nothing_are_zero(fmha, naive):
    b = naive.batch((5, 2), (2, 0))
    lse = torch.empty(7, 4)
    out, _ = fmha.fmha_sm100(b.q, b.k, b.v, planned(fmha, b), lse=lse)
    assert (out[:3] == 0).all() and (out[5:] == 0).all() and (lse[5:] == -math.inf).all()
    naive.close(out, naive.attend(b.q, b.k, b.v, b.lens_q, b.lens_k)[0])


def test_lse_is_the_natural_logarithm_of_scaled_logits(fmha, naive):
    b = naive.batch(*MIXED)
    lse = torch.empty(b.q.shape[:2])
    fmha.fmha_sm100(b.q, b.k, b.v, planned(fmha, b), lse=lse, sm_scale=0.3)
    naive.close(lse, naive.attend(b.q, b.k, b.v, b.lens_q, b.lens_k, scale=0.3)[1], 2e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_are_what_they_say(fmha, naive, dtype):
    # Upstream runs f16 bits as 8-bit numbers.
    b = naive.batch((4,), (260,), dim=128, dtype=dtype)
    out, _ = fmha.fmha_sm100(b.q, b.k, b.v, planned(fmha, b))
    assert out.dtype == dtype
    naive.close(out, naive.attend(b.q, b.k, b.v, b.lens_q, b.lens_k)[0], 2e-2)


def test_scales_and_the_output_buffer(fmha, naive):
    b = naive.batch((4, 1), (150, 30))
    out = torch.full_like(b.q, math.nan)
    given, _ = fmha.fmha_sm100(
        b.q, b.k, b.v, planned(fmha, b), out=out, sm_scale=0.1, q_scale=2.0, k_scale=1.5, v_scale=3.0, o_scale=0.5
    )
    assert given is out
    wanted = 1.5 * naive.attend(b.q, b.k, b.v, b.lens_q, b.lens_k, scale=0.3)[0]
    naive.close(out, wanted)


def test_a_factor_is_rounded_once(fmha, naive):
    b = naive.batch((8,), (64,), dtype=torch.bfloat16)
    plan = planned(fmha, b)
    out, _ = fmha.fmha_sm100(b.q, b.k, b.v, plan, o_scale=1.0 / 3.0)
    exact = torch.empty(b.q.shape, dtype=torch.float32)
    msa.torch.dense_attention(b.q, b.k, b.v, out=exact)
    assert torch.equal(out, (exact * (1.0 / 3.0)).bfloat16())


def test_offset_override(fmha, naive):
    b = naive.batch((3, 4), (200, 90))
    plan = planned(fmha, b)
    for given in (50, torch.tensor([50, 20], dtype=torch.int32)):
        offsets = [50, 50] if isinstance(given, int) else given
        out, _ = fmha.fmha_sm100(b.q, b.k, b.v, plan, q_offset_override=given)
        naive.close(out, naive.attend(b.q, b.k, b.v, b.lens_q, b.lens_k, offsets=offsets)[0])


def test_live_lengths_of_a_ragged_plan(fmha, naive):
    b = naive.batch((2, 2), (150, 90))
    plan = planned(fmha, b)
    plan[3]["kv_segment_lens"].copy_(torch.tensor([130, 7]))
    plan[3]["qo_offset"].copy_(torch.tensor([128, 5]))
    out, _ = fmha.fmha_sm100(b.q, b.k, b.v, plan)
    keys = torch.cat([b.k[:130], b.k[150:157]]), torch.cat([b.v[:130], b.v[150:157]])
    naive.close(out, naive.attend(b.q, *keys, b.lens_q, [130, 7])[0])


def test_live_pages(fmha, naive):
    b = naive.batch((1, 1), (150, 300))
    plan = planned(fmha, b, page_size=128)
    other = naive.batch((1, 1), (290, 20), seed=9)
    k, v, kv_indices = other.pages(slack=4)
    plan[3]["kv_segment_lens"].copy_(torch.tensor([290, 20]))
    plan[3]["kv_page_indptr"].copy_(torch.tensor([0, 3, 4]))
    plan[3]["qo_offset"].copy_(torch.tensor([289, 19]))
    out, _ = fmha.fmha_sm100(b.q, k, v, plan, kv_indices=kv_indices)
    naive.close(out, naive.attend(b.q, other.k, other.v, b.lens_q, other.lens_k)[0])


# ---- block maxima ----


@pytest.mark.parametrize("layout", ["HKT", "THK"])
def test_maxima_beside_the_output(fmha, naive, layout):
    b = naive.batch(*MIXED)
    plan = planned(fmha, b, output_maxscore=True)
    tokens, heads, tiles = b.q.shape[0], 4, plan[3]["max_k_tiles"]
    shape = (heads, tiles, tokens) if layout == "HKT" else (tokens, heads, tiles)
    buffer = torch.full(shape, 7.0)  # upstream needs -inf in it
    out, scores = fmha.fmha_sm100(b.q, b.k, b.v, plan, max_score=buffer, sm_scale=0.01, q_scale=5.0)
    assert scores is buffer
    found = scores.permute(2, 0, 1) if layout == "HKT" else scores
    naive.close(found, naive.maxima(b.q, b.k, b.lens_q, b.lens_k, tiles=tiles), 2e-5)
    naive.close(out, naive.attend(b.q, b.k, b.v, b.lens_q, b.lens_k, scale=0.05)[0])


@pytest.mark.parametrize("v", ["given", "left out"])
def test_maxima_alone_need_no_values(fmha, naive, v):
    b = naive.batch((2, 130), (300, 130), heads=2, heads_kv=1)
    k, values, kv_indices = b.pages()
    plan = planned(fmha, b, output_maxscore=True, page_size=128)
    out, scores = fmha.fmha_sm100(
        b.q, k, values if v == "given" else None, plan, kv_indices=kv_indices, output_o=False
    )
    assert out is None and tuple(scores.shape) == (2, 128, 132)
    naive.close(scores.permute(2, 0, 1), naive.maxima(b.q, b.k, b.lens_q, b.lens_k, tiles=128), 2e-5)


def test_an_output_where_no_scores_were_planned(fmha, naive):
    b = naive.batch((2,), (9,))
    out, scores = fmha.fmha_sm100(b.q, b.k, b.v, planned(fmha, b), output_o=False)
    assert scores is None and out is not None


def test_a_buffer_whose_shape_fits_both_layouts(fmha, naive):
    b = naive.batch((128,), (128,), heads=128, heads_kv=1, dim=16)
    plan = planned(fmha, b, output_maxscore=True)
    buffer = torch.empty(128, 128, 128)
    with pytest.raises(ValueError, match="max_score_layout"):
        fmha.fmha_sm100(b.q, b.k, None, plan, max_score=buffer, output_o=False)
    wanted = naive.maxima(b.q[:4], b.k, [4], [128], offsets=[0], tiles=128)
    for layout, first in (("HKT", lambda s: s.permute(2, 0, 1)), ("THK", lambda s: s)):
        fmha.fmha_sm100(b.q, b.k, None, plan, max_score=buffer, output_o=False, max_score_layout=layout)
        naive.close(first(buffer)[:4], wanted, 2e-5)


# ---- refusals ----

CASES = {
    "q: e5m2": (lambda b, c: c(q=b.q.to(torch.float8_e5m2)), NotImplementedError, "q"),
    "k: e5m2": (lambda b, c: c(k=b.k.to(torch.float8_e5m2)), NotImplementedError, "k"),
    "k: e4m3 beside other values": (lambda b, c: c(k=b.k.to(torch.float8_e4m3fn)), TypeError, "v"),
    "q: e4m3 beside other keys": (lambda b, c: c(q=b.q.to(torch.float8_e4m3fn)), TypeError, "k"),
    "k: bytes": (lambda b, c: c(k=b.k.to(torch.uint8)), NotImplementedError, "k"),
    "k: another dtype": (lambda b, c: c(k=b.k.bfloat16()), TypeError, "k"),
    "q: no tensor": (lambda b, c: c(q=b.q.numpy()), TypeError, "q"),
    "q: heads": (lambda b, c: c(q=b.q[:, :2]), ValueError, "q"),
    "k: heads": (lambda b, c: c(k=b.k[:, :1], v=b.v[:, :1]), ValueError, "k"),
    "k: pages without a list": (lambda b, c: c(k=b.k[None]), ValueError, "k"),
    "kv_indices: of a ragged plan": (lambda b, c: c(kv_indices=torch.zeros(1, dtype=torch.int32)), ValueError,
                                     "kv_indices"),
    "kv_block_indexes: of a dense plan": (lambda b, c: c(kv_block_indexes=b.ids(4, 2)), ValueError,
                                          "kv_block_indexes"),
    "v: none": (lambda b, c: c(v=None), ValueError, "v"),
    "out: shape": (lambda b, c: c(out=torch.empty(1, 4, 32)), ValueError, "out"),
    "out: dtype": (lambda b, c: c(out=torch.empty(b.q.shape, dtype=torch.float16)), ValueError, "out"),
    "max_score: not planned": (lambda b, c: c(max_score=torch.empty(4, 128, 3)), ValueError, "max_score"),
    "output_o: nothing wanted": (lambda b, c: c(output_o=False, output_maxscore=False), ValueError, "output_o"),
    "plan_info: something else": (lambda b, c: c(plan_info={}), TypeError, "plan_info"),
}


@pytest.mark.parametrize("name", CASES)
def test_refused_by_name(fmha, naive, name):
    b = naive.batch((3,), (20,))
    case, kind, argument = CASES[name]
    plan = planned(fmha, b)

    def call(**changes):
        return fmha.fmha_sm100(**({"q": b.q, "k": b.k, "v": b.v, "plan_info": plan} | changes))

    with pytest.raises(kind, match=argument):
        case(b, call)


def test_a_page_size_that_is_not_the_plans(fmha, naive):
    b = naive.batch((3,), (200,))
    k, v, kv_indices = b.pages(size=64)
    with pytest.raises(ValueError, match="128 slots"):
        fmha.fmha_sm100(b.q, k, v, planned(fmha, b, page_size=128), kv_indices=kv_indices)


def test_scores_of_the_wrong_shape_or_type(fmha, naive):
    b = naive.batch((3,), (200,))
    plan = planned(fmha, b, output_maxscore=True)
    with pytest.raises(ValueError, match="max_score"):
        fmha.fmha_sm100(b.q, b.k, b.v, plan, max_score=torch.empty(4, 2, 3))
    with pytest.raises(TypeError, match="max_score"):
        fmha.fmha_sm100(b.q, b.k, b.v, plan, max_score=torch.empty(4, 128, 3, dtype=torch.float64))


def test_bad_pages_are_errors(fmha, naive):
    b = naive.batch((3,), (200,))
    k, v, kv_indices = b.pages()
    plan = planned(fmha, b, page_size=128)
    for page in (-1, k.shape[0]):
        bad = kv_indices.clone()
        bad[1] = page
        with pytest.raises(ValueError):
            fmha.fmha_sm100(b.q, k, v, plan, kv_indices=bad)
        with pytest.raises(ValueError, match="kv_indices"):
            fmha.fmha_sm100(b.q, k, v, plan, kv_indices=bad, check_input_valid=True)
