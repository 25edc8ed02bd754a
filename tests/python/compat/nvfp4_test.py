# SPDX-License-Identifier: MIT
"""Keys and values in NVFP4: attention from rows with scales in both orders, and the quantizer, against tables."""
import dataclasses

import four_bits
import pytest
import torch

import msa
from msa.compat.fmha_sm100 import sparse

E4M3 = torch.float8_e4m3fn
LENS = ((2, 6, 1), (300, 140, 513))
DIM = 32


class Cache:
    """A batch whose keys and values are bytes, ragged, and the same in fp64."""

    def __init__(self, naive, q_dtype=torch.float32, seed=1):
        draw = torch.Generator().manual_seed(seed)
        b = naive.batch(*LENS, dim=DIM)
        shape = (sum(LENS[1]), 2, DIM)
        self.codes = {name: four_bits.random_codes((*shape[:2], DIM // 2), draw) for name in "kv"}
        self.scales = {name: four_bits.random_scales((*shape[:2], DIM // 16), draw) for name in "kv"}
        self.b = dataclasses.replace(b, q=(b.q / 4).to(q_dtype))
        self.ids = b.ids(4, 2)

    def pages(self):
        """What nobody reads has scales that are NaN."""
        stored, scales, table = {}, {}, None
        for name in "kv":
            codes, scale = self.codes[name].float(), self.scales[name].float()
            codes, scale, kv_indices = dataclasses.replace(self.b, k=codes, v=scale).pages()
            stored[name] = codes.nan_to_num(nan=0x55).to(torch.uint8)
            scales[name] = scale.nan_to_num(nan=0x7F).to(torch.uint8)
            table = self.b.page_table(kv_indices)
        return stored, scales, table

    def real(self, shared):
        return {name: four_bits.values(self.codes[name], self.scales[name]) * shared[name] for name in "kv"}

    def rows(self, fmha, **changes):
        b, cu_q, cu_k = self.b, self.b.cu(self.b.lens_q), self.b.cu(self.b.lens_k)
        longest = {"max_seqlen_q": max(b.lens_q), "max_seqlen_k": max(b.lens_k)}
        made = fmha.build_k2q_csr(
            self.ids.permute(1, 0, 2), cu_q, cu_k, total_k=sum(b.lens_k), return_schedule=True, **longest
        )
        call = {
            "q": b.q, "k": self.codes["k"], "v": self.codes["v"], "k_global_scale": None, "v_global_scale": None,
            "k2q_row_ptr": made[0], "k2q_q_indices": made[1], "topK": 4, "cu_seqlens_q": cu_q, "cu_seqlens_k": cu_k,
            "schedule": made[2], "causal": True, "softmax_scale": 0.05, **longest,
        }
        for name in "kv":
            call[f"{name}_scale_128x4"] = four_bits.tiles(self.scales[name].flatten(0, 1))
        return fmha.sparse_atten_nvfp4_kv_func(**(call | changes))


def wanted(naive, cache, shared, scale=0.05):
    real, b = cache.real(shared), cache.b
    return naive.attend(b.q.double(), real["k"], real["v"], b.lens_q, b.lens_k, ids=cache.ids, scale=scale)


@pytest.mark.parametrize("q_dtype", [torch.float32, torch.bfloat16, E4M3])
@pytest.mark.parametrize("layout", ["128x4", "linear"])
@pytest.mark.parametrize("paged", [False, True])
def test_attention(fmha, naive, q_dtype, layout, paged):
    cache = Cache(naive, q_dtype)
    shared = {"k": 0.75, "v": 0.3}
    changes = {f"{name}_global_scale": torch.tensor([shared[name]]) for name in "kv"}
    scales = cache.scales
    if paged:
        stored, scales, changes["page_table"] = cache.pages()
        changes |= stored
    for name in "kv":
        given = scales[name] if layout == "linear" else four_bits.tiles(scales[name].flatten(0, -2))
        changes[f"{name}_scale_128x4"] = given.view(E4M3) if paged else given
    out, lse, cooled = cache.rows(
        fmha, scale_layout=layout, return_softmax_lse=True, return_temperature_lse=True, lse_temperature_scale=2.0,
        **changes,
    )
    expected = wanted(naive, cache, shared)
    assert out.dtype == (torch.bfloat16 if q_dtype == E4M3 else q_dtype)
    naive.close(out, expected[0], 1e-5 if q_dtype == torch.float32 else 2e-2)
    naive.close(lse, expected[1])
    naive.close(cooled, wanted(naive, cache, shared, 0.025)[1])


@pytest.mark.parametrize("given", ["", "k", "v"])
def test_a_global_scale_that_is_left_out_is_one(fmha, naive, given):
    cache = Cache(naive)
    changes = {f"{name}_global_scale": torch.tensor(0.5) for name in given}
    naive.close(cache.rows(fmha, **changes), wanted(naive, cache, {n: 0.5 if n in given else 1.0 for n in "kv"})[0])


def test_other_spellings(fmha, naive):
    """Other types of the same bytes, more columns of tiles than are read, an output of the caller's, used lengths."""
    cache = Cache(naive)
    plain = cache.rows(fmha)
    out = torch.empty_like(plain)
    padded = {n: torch.nn.functional.pad(cache.scales[n].flatten(0, 1), (0, 5), value=0x7F) for n in "kv"}
    wide = {f"{n}_scale_128x4": four_bits.tiles(padded[n]) for n in "kv"}
    codes = {"k": cache.codes["k"].view(torch.int8), "v": cache.codes["v"].view(torch.float4_e2m1fn_x2)}
    assert cache.rows(fmha, out=out, **wide, **codes) is out
    assert torch.equal(out, plain)
    stored, scales, table = cache.pages()
    linear = {f"{n}_scale_128x4": scales[n] for n in "kv"} | {"scale_layout": "linear", "page_table": table} | stored
    used = cache.b.plan_lens()[1]
    assert torch.equal(cache.rows(fmha, seqused_k=used, **linear), cache.rows(fmha, **linear))
    # Pages with slots outside are a view; their scales in tiles would have no order.
    outside = {n: stored[n].transpose(1, 2).contiguous().transpose(1, 2) for n in "kv"}
    assert torch.equal(cache.rows(fmha, **(linear | outside)), cache.rows(fmha, **linear))
    tiled = {f"{n}_scale_128x4": four_bits.tiles(scales[n].flatten(0, -2)) for n in "kv"}
    with pytest.raises(ValueError, match="k: expected a contiguous tensor"):
        cache.rows(fmha, page_table=table, **tiled, **outside)


BAD = {
    "k: dtype": (lambda c: {"k": c.codes["k"].float()}, TypeError, "k"),
    "v: rank": (lambda c: {"v": c.codes["v"][None]}, ValueError, "v"),
    "q: e5m2": (lambda c: {"q": c.b.q.to(torch.float8_e5m2)}, NotImplementedError, "q"),
    "scale: dtype": (lambda c: {"k_scale_128x4": torch.ones(1920, 4)}, TypeError, "k_scale_128x4"),
    "scale: too few rows": (lambda c: {"k_scale_128x4": torch.zeros(1792, 4, dtype=torch.uint8)}, ValueError,
                            "k_scale_128x4"),
    "scale: no tiles": (lambda c: {"v_scale_128x4": torch.zeros(1920, 3, dtype=torch.uint8)}, ValueError,
                        "v_scale_128x4"),
    "scale: strides": (lambda c: {"v_scale_128x4": torch.zeros(1920, 8, dtype=torch.uint8)[:, :4]}, ValueError,
                       "v_scale_128x4"),
    "scale: tiles as linear": (lambda c: {"scale_layout": "linear"}, ValueError, "k_scale_128x4"),
    "scale: linear as tiles": (lambda c: {"k_scale_128x4": c.scales["k"]}, ValueError, "k_scale_128x4"),
    "layout": (lambda c: {"scale_layout": "other"}, ValueError, "scale_layout"),
    "global: several": (lambda c: {"k_global_scale": torch.ones(2)}, ValueError, "k_global_scale"),
    "global: dtype": (lambda c: {"v_global_scale": torch.ones(1).double()}, ValueError, "v_global_scale"),
    "global: a number": (lambda c: {"v_global_scale": 1.0}, TypeError, "v_global_scale"),
    "seqused_k": (lambda c: {"seqused_k": c.b.plan_lens()[1]}, ValueError, "seqused_k"),
    "partial_dtype": (lambda c: {"partial_dtype": torch.float64}, NotImplementedError, "partial_dtype"),
    "blk_kv": (lambda c: {"blk_kv": 64}, ValueError, "blk_kv"),
    "temperature": (lambda c: {"return_temperature_lse": True}, ValueError, "return_temperature_lse"),
}


@pytest.mark.parametrize("name", BAD)
def test_refused_by_name(fmha, naive, name):
    cache = Cache(naive)
    changes, kind, argument = BAD[name]
    with pytest.raises(kind, match=argument):
        cache.rows(fmha, **changes(cache))


# ---- the quantizer ----


@pytest.mark.parametrize(("rows", "cols"), [(128, 4), (1, 1), (130, 8), (300, 9)])
def test_places_of_scales(rows, cols):
    draw = torch.Generator().manual_seed(2)
    scale = four_bits.random_codes((rows, cols), draw)
    found = sparse.swizzle_nvfp4_scale_to_128x4(scale, rows=rows, cols=cols)
    assert torch.equal(found, four_bits.tiles(scale, fill=0))
    assert all(sparse.nvfp4_scale_128x4_offset(row, col, cols) == four_bits.place(row, col, cols)
               for row in range(rows) for col in range(cols))
    assert torch.equal(sparse.unswizzle_nvfp4_scale_from_128x4(found, rows=rows, cols=cols), scale)


@pytest.mark.parametrize("shape", [(16, 16), (4, 4, 128), (32, 640), (0, 32)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_codes_are_the_nearest(shape, dtype):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(3)).mul(5).to(dtype)
    given = sparse.quantize_bf16_to_nvfp4_128x4(x)
    rows, cols = x[..., 0].numel(), shape[-1] // 16
    assert given.logical_scale_shape == (rows, cols) and given.original_shape == shape
    assert given.data.shape == (*shape[:-1], shape[-1] // 2) and given.global_scale.shape == (1,)
    scale = sparse.unswizzle_nvfp4_scale_from_128x4(given.scale_128x4, rows=rows, cols=cols)
    groups = x.double().view(rows, cols, 16)
    shared = given.global_scale.double()
    if rows:
        assert torch.allclose(shared, x.double().abs().max() / 2688, rtol=1e-6)
        # A scale is within half a step of what brings the largest of its group to 6.
        ideal = groups.abs().amax(-1) / 6 / shared
        assert ((four_bits.E4M3[scale.long()] - ideal).abs() <= ideal / 16 + 2.0**-10).all()
    made = four_bits.values(given.data.view(rows, shape[-1] // 2), scale) * shared
    steps = four_bits.E2M1 * (four_bits.E4M3[scale.long()] * shared)[..., None, None]
    nearest = (groups[..., None] - steps).abs().amin(-1)
    assert torch.allclose((groups - made.view(groups.shape)).abs(), nearest, rtol=1e-5, atol=1e-12)
    back = sparse.dequantize_nvfp4_128x4_to_bf16(given)
    assert back.shape == shape and torch.equal(back, made.float().to(torch.bfloat16).view(shape))
    codes = sparse.dequantize_nvfp4_128x4_to_bf16(given, include_global_scale=False)
    assert torch.equal(codes.double(), four_bits.values(given.data.view(rows, shape[-1] // 2), scale).view(shape))


def test_keys_and_values_have_scales_of_their_own(fmha, naive):
    """Quantized, then attended: what fp64 gives over the dequantized values, near what it gives over the real ones."""
    b = naive.batch((4,), (304,), dim=64, dtype=torch.bfloat16)
    v = b.v * 7
    qk, qv = sparse.quantize_kv_bf16_to_nvfp4_128x4(b.k, v)
    assert qk.global_scale != qv.global_scale
    for one, x in ((qk, b.k), (qv, v)):
        alone = sparse.quantize_bf16_to_nvfp4_128x4(x)
        assert all(torch.equal(a, c) if isinstance(a, torch.Tensor) else a == c for a, c in zip(one, alone))
    ids, cu_q, cu_k = b.ids(4, 2), b.cu(b.lens_q), b.cu(b.lens_k)
    made = fmha.build_k2q_csr(ids.permute(1, 0, 2), cu_q, cu_k, total_k=304)
    out = fmha.sparse_atten_nvfp4_kv_func(
        b.q.float(), qk.data, qv.data, qk.scale_128x4, qv.scale_128x4, qk.global_scale, qv.global_scale, *made, 4,
        cu_seqlens_q=cu_q, cu_seqlens_k=cu_k, max_seqlen_q=4, max_seqlen_k=304, causal=True,
    )
    real = []
    for x in (qk, qv):
        scale = sparse.unswizzle_nvfp4_scale_from_128x4(x.scale_128x4, rows=608, cols=4).view(304, 2, 4)
        real.append(four_bits.values(x.data, scale) * x.global_scale.double())
    naive.close(out, naive.attend(b.q.double(), *real, b.lens_q, b.lens_k, ids=ids)[0], 1e-4)
    assert (out - naive.attend(b.q, b.k, v, b.lens_q, b.lens_k, ids=ids)[0]).abs().mean() < 0.2
    other = sparse.quantize_kv_bf16_to_nvfp4_128x4(b.k, v[:16])
    assert other[1].original_shape == (16, 2, 64)


def test_numbers_that_are_none():
    x = torch.ones(16, 32, dtype=torch.bfloat16)
    x[1, 0], x[2, 0], x[3] = float("nan"), float("inf"), 0
    given = sparse.quantize_bf16_to_nvfp4_128x4(x)
    back = sparse.dequantize_nvfp4_128x4_to_bf16(given)
    assert back[1, :16].isnan().all() and back[2, 0] == 1 and (back[3] == 0).all()
    back[1, :16], back[2, :16] = 1, 1
    assert (back[:3] == 1).all() and (back[4:] == 1).all()
    amax = torch.tensor([2688.0, 0.0, 1e-40])
    assert sparse.nvfp4_global_scale_from_amax(amax).tolist() == [1.0, 1.0, 2.0**-126]
    zeros = sparse.quantize_bf16_to_nvfp4_128x4(torch.zeros(16, 16, dtype=torch.float16))
    assert (sparse.dequantize_nvfp4_128x4_to_bf16(zeros) == 0).all()


@pytest.mark.parametrize(
    ("call", "kind", "argument"),
    [
        (lambda: sparse.quantize_bf16_to_nvfp4_128x4(torch.ones(16, 16)), TypeError, "x"),
        (lambda: sparse.quantize_bf16_to_nvfp4_128x4(torch.ones(16, dtype=torch.bfloat16)), ValueError, "x"),
        (lambda: sparse.quantize_bf16_to_nvfp4_128x4(torch.ones(16, 8, dtype=torch.bfloat16)), ValueError, "x"),
        (lambda: sparse.quantize_bf16_to_nvfp4_128x4(torch.ones(8, 16, dtype=torch.bfloat16)), ValueError, "x"),
        (lambda: sparse.quantize_kv_bf16_to_nvfp4_128x4(*[torch.ones(8, 16, dtype=torch.bfloat16)] * 2), ValueError,
         "k"),
        (lambda: sparse.swizzle_nvfp4_scale_to_128x4(torch.ones(16, 2), rows=16, cols=2), TypeError, "scale"),
        (lambda: sparse.swizzle_nvfp4_scale_to_128x4(torch.ones(16, 2).to(E4M3), rows=16, cols=1), ValueError, "scale"),
        (lambda: sparse.unswizzle_nvfp4_scale_from_128x4(torch.ones(128, 4).to(E4M3), rows=129, cols=4), ValueError,
         "scale_128x4"),
    ],
)
def test_quantizer_refuses(call, kind, argument):
    with pytest.raises(kind, match=f"^{argument}: "):
        call()


def test_errors_are_msas():
    with pytest.raises(msa.InvalidArgument) as caught:
        sparse.quantize_bf16_to_nvfp4_128x4(torch.ones(16, 8, dtype=torch.bfloat16))
    assert caught.value.argument == "x"
