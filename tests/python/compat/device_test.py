# SPDX-License-Identifier: MIT
"""No run reads a tensor of the device on the host: on torch's meta device, whose tensors hold nothing, every
.item(), .tolist(), boolean index or other data-dependent shape raises. So a run can be captured in a CUDA
graph. tests/python/gpu/dropin_test.py captures and replays on a GPU."""
from types import SimpleNamespace

import pytest
import torch

LENS = ((3, 140, 1), (600, 300, 40))


def on_device(tensor):
    return torch.empty_strided(tuple(tensor.shape), tensor.stride(), dtype=tensor.dtype, device="meta")


@pytest.fixture
def parts(fmha, naive):
    """A batch, its pages and lists, and plans, made of real numbers and then moved to that device."""
    b = naive.batch(*LENS, dtype=torch.bfloat16, dim=128)
    pages = b.pages(order="nhd", slack=5)
    made = {
        "q": b.q, "k": b.k, "v": b.v, "pages_k": pages[0], "pages_v": pages[1], "kv_indices": pages[2],
        "table": b.page_table(pages[2]), "ids": b.ids(4, 2), "ids_of_heads": b.ids(4, 4), "cu_q": b.cu(b.lens_q),
        "cu_k": b.cu(b.lens_k), "lens_k": b.plan_lens()[1],
    }
    plans = {
        "dense": {"output_maxscore": True, "page_size": 128},
        "ragged": {},
        "sparse": {"kv_block_num": 4, "page_size": 128},
    }
    plans = {
        name: fmha.fmha_sm100_plan(*b.plan_lens(), 4, num_kv_heads=2, device="cpu", **options)
        for name, options in plans.items()
    }
    short = torch.ones(3, dtype=torch.int32)
    plans["decode"] = fmha.fmha_sm100_plan(
        short, b.plan_lens()[1], 4, num_kv_heads=2, device="cpu", kv_block_num=4, page_size=128
    )
    return made, plans


def moved(parts):
    tensors = {name: on_device(tensor) for name, tensor in parts[0].items()}
    plans = {}
    for name, plan in parts[1].items():
        live = {
            key: on_device(value) if isinstance(value, torch.Tensor) else value for key, value in plan[3].items()
        }
        plans[name] = (*plan[:3], live, None)
    return SimpleNamespace(**tensors), plans


def test_the_meta_device_catches_reads(parts):
    t, _ = moved(parts)
    for read in (lambda: t.lens_k.max().item(), lambda: t.lens_k.tolist(), lambda: t.ids[t.ids >= 0]):
        with pytest.raises((NotImplementedError, RuntimeError)):
            read()


def test_planned_runs(fmha, parts):
    t, plans = moved(parts)
    out, scores = fmha.fmha_sm100(t.q, t.pages_k, t.pages_v, plans["dense"], kv_indices=t.kv_indices)
    assert out.shape == t.q.shape and scores.shape == (4, 128, t.q.shape[0]) and scores.device.type == "meta"
    fmha.fmha_sm100(t.q, t.pages_k, None, plans["dense"], kv_indices=t.kv_indices, output_o=False)
    fmha.fmha_sm100(t.q, t.k, t.v, plans["ragged"], q_offset_override=5, o_scale=2.0)
    for ids in (t.ids, t.ids_of_heads):
        fmha.fmha_sm100(t.q, t.pages_k, t.pages_v, plans["sparse"], t.kv_indices, ids, v_scale=0.5)
    fmha.fmha_sm100(t.q[:3], t.pages_k, t.pages_v, plans["decode"], t.kv_indices, t.ids[:3])


@pytest.mark.parametrize("pages", [9, "tensor", None])
def test_selection(fmha, parts, pages):
    scores = torch.empty(4, 128, 12, device="meta")
    table = torch.empty(12, 4, 128, dtype=torch.int32, device="meta")
    count = torch.empty(12, dtype=torch.int64, device="meta") if pages == "tensor" else pages
    ids = fmha.sparse_topk_select(scores, 16, count, force_end_blocks=1, block_table=table)
    assert ids.shape == (12, 4, 16)


@pytest.mark.parametrize("scheduled", [False, True])
@pytest.mark.parametrize("total", [{"total_k": 940}, {"total_k": 0, "total_rows": 9}])
def test_rows_and_attention_from_them(fmha, parts, scheduled, total):
    t, _ = moved(parts)
    longest = {"max_seqlen_q": 140, "max_seqlen_k": 600}
    rows = fmha.build_k2q_csr(t.ids.permute(1, 0, 2), t.cu_q, t.cu_k, return_schedule=scheduled, **total, **longest)
    common = {
        "cu_seqlens_q": t.cu_q, "cu_seqlens_k": t.cu_k, "schedule": rows[2] if scheduled else None, "causal": True,
        "return_softmax_lse": True, **longest,
    }
    fmha.sparse_atten_func(t.q, t.k, t.v, *rows[:2], 4, **common)
    for used in (None, t.lens_k):
        out, lse, _ = fmha.sparse_atten_func(
            t.q, t.pages_k, t.pages_v, *rows[:2], 4, page_table=t.table, seqused_k=used, return_temperature_lse=True,
            lse_temperature_scale=2.0, **common,
        )
        assert out.shape == t.q.shape and lse.shape == t.q.shape[:2]


def test_decode_and_kvouter(fmha, parts):
    t, _ = moved(parts)
    wrapper = fmha.SparseDecodePagedAttentionWrapper()
    for ids in (None, t.ids[:6].permute(1, 0, 2)):
        wrapper.plan(page_table=t.table, seqused_k=t.lens_k, seqlen_q=2, max_seqlen_k=600, q2k_indices=ids)
        assert wrapper.run(t.q[:6], t.pages_k, t.pages_v).shape == (6, 4, 128)
    fmha.kvouter_attention(t.q, t.pages_k, t.pages_v, t.ids, t.table, cu_seqlens_q=t.cu_q, page_size=128)


E4M3 = torch.float8_e4m3fn


def test_keys_in_e4m3(fmha, parts):
    t, plans = moved(parts)
    k, v = t.pages_k.to(E4M3), t.pages_v.to(E4M3)
    scale = torch.empty(1, device="meta")
    for q in (t.q, t.q.to(E4M3)):
        for name, ids in (("dense", None), ("sparse", t.ids), ("sparse", t.ids_of_heads)):
            out, _ = fmha.fmha_sm100(
                q, k, v, plans[name], t.kv_indices, ids, k_scale=scale, v_scale=3.0, output_maxscore=False
            )
            assert out.dtype == torch.bfloat16 and out.device.type == "meta"
        wrapper = fmha.SparseDecodePagedAttentionWrapper()
        wrapper.plan(page_table=t.table, seqused_k=t.lens_k, seqlen_q=2, max_seqlen_k=600)
        assert wrapper.run(q[:6], k, v).dtype == torch.bfloat16


@pytest.mark.parametrize("paged", [False, True])
@pytest.mark.parametrize("layout", ["128x4", "linear"])
def test_nvfp4(fmha, parts, paged, layout):
    t, _ = moved(parts)
    longest = {"max_seqlen_q": 140, "max_seqlen_k": 600}
    rows = fmha.build_k2q_csr(t.ids.permute(1, 0, 2), t.cu_q, t.cu_k, total_k=940, **longest)
    k = (t.pages_k.contiguous() if paged else t.k).to(torch.uint8)[..., :64].contiguous()
    scale = torch.empty(k.shape[:-1] + (8,), dtype=torch.uint8, device="meta")
    if layout == "128x4":
        scale = fmha.sparse.swizzle_nvfp4_scale_to_128x4(scale, rows=scale[..., 0].numel(), cols=8)
    out = fmha.sparse_atten_nvfp4_kv_func(
        t.q, k, k, scale, scale, torch.empty(1, device="meta"), None, *rows, 4, cu_seqlens_q=t.cu_q,
        cu_seqlens_k=t.cu_k, page_table=t.table if paged else None, scale_layout=layout, **longest,
    )
    assert out.shape == t.q.shape and out.device.type == "meta"


@pytest.mark.parametrize(("kind", "groups"), [("mxfp4", 4), ("nvfp4", 8)])
@pytest.mark.parametrize("layout", ["public", "preordered_mma"])
def test_index_in_four_bits(fmha, parts, kind, groups, layout):
    t, _ = moved(parts)
    bytes_of = lambda *shape: torch.empty(shape, dtype=torch.uint8, device="meta")  # noqa: E731
    pages = t.pages_k.shape[0]
    scales = bytes_of(144, 4, groups), bytes_of(pages, 2, 128, groups)
    if layout != "public":
        scales = bytes_of(4, 2, groups // 4, 32, 4, 4), bytes_of(pages * 2, 1, groups // 4, 32, 4, 4)
    for offset in (None, 5):
        scores = fmha.fp4_indexer_block_scores(
            bytes_of(144, 4, 64), bytes_of(pages, 2, 128, 64), *scales, t.cu_q, t.cu_k, t.cu_k, max_seqlen_q=140,
            max_seqlen_k=600, kv_indices=t.kv_indices, fp4_format=kind, causal=True, qo_offset=offset,
            scale_layout=layout,
        )
        assert scores.shape == (4, 5, 144) and scores.device.type == "meta"


def test_quantizer(fmha):
    x = torch.empty(32, 2, 64, dtype=torch.bfloat16, device="meta")
    for quantized in fmha.sparse.quantize_kv_bf16_to_nvfp4_128x4(x, x):
        assert fmha.sparse.dequantize_nvfp4_128x4_to_bf16(quantized).shape == x.shape
