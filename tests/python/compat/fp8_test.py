# SPDX-License-Identifier: MIT
"""Keys and values in e4m3, beside queries of every type, through each entry, against fp64 over what the codes say."""
import dataclasses
import itertools

import pytest
import torch

import msa
from msa.compat.fmha_sm100 import dense as dense_module
from msa.compat.fmha_sm100.sparse_fmha_adapter import sparse_fmha, sparse_fmha_plan

E4M3 = torch.float8_e4m3fn
QUERIES = [torch.float32, torch.bfloat16, E4M3]
LENS = ((2, 6, 1, 0), (300, 140, 513, 7))
SCALES = {"sm_scale": 0.1, "q_scale": 2.0, "k_scale": 1.5, "v_scale": 3.0, "o_scale": 0.5}


def in_codes(b, q_dtype):
    """The batch as it is stored, and the same in fp64."""
    stored = dataclasses.replace(b, q=b.q.to(q_dtype), k=b.k.to(E4M3), v=b.v.to(E4M3))
    return stored, dataclasses.replace(b, q=stored.q.double(), k=stored.k.double(), v=stored.v.double())


def out_of(q):
    return torch.bfloat16 if q.dtype == E4M3 else q.dtype


def close(naive, out, wanted, q):
    """Outputs of 16 bits carry their own rounding and that of weights."""
    assert out.dtype == out_of(q)
    naive.close(out, wanted, 2e-5 if out.dtype == torch.float32 else 2e-2)


def planned(fmha, b, **options):
    return fmha.fmha_sm100_plan(*b.plan_lens(), b.q.shape[1], num_kv_heads=b.k.shape[1], device="cpu", **options)


@pytest.mark.parametrize("q_dtype", QUERIES)
@pytest.mark.parametrize("pages", [None, "hnd", "nhd"])
def test_dense_and_scores(fmha, naive, q_dtype, pages):
    b, real = in_codes(naive.batch(*LENS), q_dtype)
    options = {} if pages is None else {"page_size": 128}
    k, v, kv_indices = (b.k, b.v, None) if pages is None else b.pages(order=pages)
    plan, lse = planned(fmha, b, output_maxscore=True, **options), torch.empty(b.q.shape[:2])
    out, scores = fmha.fmha_sm100(b.q, k, v, plan, kv_indices, lse=lse, **SCALES)
    wanted = naive.attend(real.q, real.k, real.v, b.lens_q, b.lens_k, scale=0.3)
    close(naive, out, 1.5 * wanted[0], b.q)
    naive.close(lse, wanted[1])
    # Scores are those of codes: no scale is in them.
    maxima = naive.maxima(real.q, real.k, b.lens_q, b.lens_k, tiles=128)
    naive.close(scores.permute(2, 0, 1), maxima, 3e-5)
    alone = fmha.fmha_sm100(b.q, k, None, plan, kv_indices, output_o=False)[1]
    naive.close(alone.permute(2, 0, 1), maxima, 3e-5)


@pytest.mark.parametrize("q_dtype", QUERIES)
@pytest.mark.parametrize("heads", [2, 4])
def test_sparse(fmha, naive, q_dtype, heads):
    b, real = in_codes(naive.batch(*LENS), q_dtype)
    k, v, kv_indices = b.pages()
    ids = b.ids(3, heads)
    plan, lse = planned(fmha, b, page_size=128, kv_block_num=3, use_fp8_kvcache=True), torch.empty(b.q.shape[:2])
    out = torch.empty(b.q.shape, dtype=out_of(b.q))
    given, _ = fmha.fmha_sm100(b.q, k, v, plan, kv_indices, ids, out=out, lse=lse, check_input_valid=True, **SCALES)
    wanted = naive.attend(real.q, real.k, real.v, b.lens_q, b.lens_k, ids=ids, scale=0.3)
    assert given is out
    close(naive, out, 1.5 * wanted[0], b.q)
    naive.close(lse, wanted[1])


def test_bridge(fmha, naive, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    b, real = in_codes(naive.batch((40, 3), (300, 130)), E4M3)
    k, v, kv_indices = b.pages()
    ids = b.ids(3, 2)
    plan = sparse_fmha_plan(*b.plan_lens(), 4, 2, page_size=128, kv_block_num=3, use_fp8_kvcache=True)
    out, _ = sparse_fmha(b.q, k, v, plan, kv_indices=kv_indices, kv_block_indexes=ids, k_scale=0.5)
    wanted = naive.attend(real.q, real.k, real.v, b.lens_q, b.lens_k, ids=ids, scale=0.5 * 32**-0.5)
    close(naive, out, wanted[0], b.q)


@pytest.mark.parametrize("given", [("k_scale",), ("v_scale",), ("k_scale", "v_scale")])
@pytest.mark.parametrize("heads", [None, 2, 4])
def test_scales_that_are_tensors_of_a_device(fmha, naive, monkeypatch, given, heads):
    """Such a tensor goes to the library unread; here it stands for one of a GPU."""
    monkeypatch.setattr(dense_module, "_lies_on_a_device", lambda scale: isinstance(scale, torch.Tensor))
    b, real = in_codes(naive.batch(*LENS), torch.float32)
    ids = None if heads is None else b.ids(3, heads)
    scales = {name: torch.full((1,), SCALES[name]) if name in given else SCALES[name] for name in SCALES}
    plan = planned(fmha, b, **({} if heads is None else {"kv_block_num": 3}))
    out, _ = fmha.fmha_sm100(b.q, b.k, b.v, plan, kv_block_indexes=ids, **scales)
    wanted = naive.attend(real.q, real.k, real.v, b.lens_q, b.lens_k, ids=ids, scale=0.3)
    naive.close(out, 1.5 * wanted[0])


@pytest.mark.parametrize("q_dtype", QUERIES)
@pytest.mark.parametrize(("paged", "scheduled"), itertools.product([False, True], [False, True]))
def test_rows(fmha, naive, q_dtype, paged, scheduled):
    b, real = in_codes(naive.batch(*LENS), q_dtype)
    ids, cu_q, cu_k = b.ids(4, 2), b.cu(b.lens_q), b.cu(b.lens_k)
    longest = {"max_seqlen_q": 6, "max_seqlen_k": 513}
    made = fmha.build_k2q_csr(
        ids.permute(1, 0, 2), cu_q, cu_k, total_k=sum(b.lens_k), return_schedule=True, **longest
    )
    k, v, table = b.k, b.v, None
    if paged:
        k, v, kv_indices = b.pages()
        table = b.page_table(kv_indices)
    out, lse, cooled = fmha.sparse_atten_func(
        b.q, k, v, *made[:2], 4, cu_seqlens_q=cu_q, cu_seqlens_k=cu_k, causal=True, page_table=table,
        schedule=made[2] if scheduled else None, softmax_scale=0.2, return_softmax_lse=True,
        return_temperature_lse=True, lse_temperature_scale=2.0, qk_dtype=q_dtype,
        pv_dtype=torch.bfloat16 if q_dtype == E4M3 else q_dtype, partial_dtype=E4M3, **longest,
    )
    common = (real.q, real.k, real.v, b.lens_q, b.lens_k)
    wanted = naive.attend(*common, ids=ids, scale=0.2)
    close(naive, out, wanted[0], b.q)
    naive.close(lse, wanted[1])
    naive.close(cooled, naive.attend(*common, ids=ids, scale=0.1)[1])


@pytest.mark.parametrize("q_dtype", QUERIES)
@pytest.mark.parametrize("sparse", [False, True])
def test_decode(fmha, naive, q_dtype, sparse):
    b, real = in_codes(naive.batch((2, 2, 2), (300, 1, 513)), q_dtype)
    k, v, kv_indices = b.pages(order="nhd")
    ids = b.ids(3, 2) if sparse else None
    out, lse = fmha.sparse_decode_atten_func(
        b.q, k, v, None if ids is None else ids.permute(1, 0, 2), page_table=b.page_table(kv_indices),
        seqused_k=b.plan_lens()[1], seqlen_q=2, max_seqlen_k=513, return_softmax_lse=True,
    )
    wanted = naive.attend(real.q, real.k, real.v, b.lens_q, b.lens_k, ids=ids)
    close(naive, out, wanted[0], b.q)
    naive.close(lse, wanted[1])


@pytest.mark.parametrize("out_dtype", [torch.bfloat16, torch.float32])
def test_kvouter(fmha, naive, out_dtype):
    b, real = in_codes(naive.batch((20, 3), (513, 130)), E4M3)
    k, v, kv_indices = b.pages(size=64)
    ids = b.ids(4, 2)
    out, _ = fmha.kvouter_attention(
        b.q, k, v, ids, b.page_table(kv_indices, 64), cu_seqlens_q=b.cu(b.lens_q), causal=True, page_size=64,
        used_kv_lens=b.plan_lens()[1], out_dtype=out_dtype,
    )
    wanted = naive.attend(real.q, real.k, real.v, b.lens_q, b.lens_k, ids=ids)[0]
    assert out.dtype == out_dtype
    naive.close(out, wanted, 2e-2)


# ---- refusals ----


def rows_call(fmha, b, **changes):
    ids, cu_q, cu_k = b.ids(4, 2), b.cu(b.lens_q), b.cu(b.lens_k)
    made = fmha.build_k2q_csr(ids.permute(1, 0, 2), cu_q, cu_k, total_k=sum(b.lens_k))
    call = {"q": b.q, "k": b.k, "v": b.v, "cu_seqlens_q": cu_q, "cu_seqlens_k": cu_k, "max_seqlen_q": 6,
            "max_seqlen_k": 513}
    return fmha.sparse_atten_func(k2q_row_ptr=made[0], k2q_q_indices=made[1], topK=4, **(call | changes))


@pytest.mark.parametrize(
    ("q_dtype", "changes", "argument"),
    [
        (E4M3, {"qk_dtype": torch.bfloat16}, "qk_dtype"),
        (torch.bfloat16, {"qk_dtype": E4M3}, "qk_dtype"),
        (torch.bfloat16, {"pv_dtype": E4M3}, "pv_dtype"),
        (E4M3, {"pv_dtype": torch.float16}, "pv_dtype"),
        (E4M3, {"output_scale": 2.0}, "output_scale"),
    ],
)
def test_rows_refuse_by_name(fmha, naive, q_dtype, changes, argument):
    b, _ = in_codes(naive.batch(*LENS), q_dtype)
    with pytest.raises(NotImplementedError, match=argument) as caught:
        rows_call(fmha, b, **changes)
    assert caught.value.argument == argument


def test_products_may_be_named(fmha, naive):
    b, _ = in_codes(naive.batch(*LENS), E4M3)
    plain = rows_call(fmha, b)
    for pv_dtype in (E4M3, torch.bfloat16):
        assert torch.equal(rows_call(fmha, b, qk_dtype=E4M3, pv_dtype=pv_dtype), plain)


@pytest.mark.parametrize(
    ("scales", "kind", "argument"),
    [
        ({"k_scale": torch.ones(2)}, ValueError, "k_scale"),
        ({"v_scale": torch.ones(1, dtype=torch.float64)}, ValueError, "v_scale"),
        ({"v_scale": torch.empty(1, device="meta")}, ValueError, "v_scale"),
        ({"q_scale": torch.empty(1, device="meta")}, NotImplementedError, "q_scale"),
        ({"o_scale": torch.empty(1, device="meta")}, NotImplementedError, "o_scale"),
    ],
)
def test_wrong_scales(fmha, naive, monkeypatch, scales, kind, argument):
    monkeypatch.setattr(dense_module, "_lies_on_a_device", lambda scale: isinstance(scale, torch.Tensor))
    b, _ = in_codes(naive.batch(*LENS), torch.float32)
    with pytest.raises(kind, match=argument) as caught:
        fmha.fmha_sm100(b.q, b.k, b.v, planned(fmha, b), **scales)
    assert caught.value.argument == argument


def test_what_a_scale_of_the_device_does_not_go_with(fmha, naive):
    scale = torch.empty(1, device="meta")
    plain = naive.batch(*LENS)
    with pytest.raises(NotImplementedError, match="k_scale.*host number"):
        fmha.fmha_sm100(plain.q, plain.k, plain.v, planned(fmha, plain), k_scale=scale)
    b, _ = in_codes(plain, torch.float32)
    with pytest.raises(NotImplementedError, match="k_scale.*max_score"):
        fmha.fmha_sm100(b.q, b.k, b.v, planned(fmha, b, output_maxscore=True), k_scale=scale)


@pytest.mark.parametrize("options", [{"use_fp8_kvcache": True}, {"kv_dtype": "fp8"}])
def test_a_plan_for_e4m3_takes_nothing_else(fmha, naive, options):
    plain = naive.batch(*LENS)
    plan = planned(fmha, plain, **options)
    with pytest.raises(ValueError, match="k: expected torch.float8_e4m3fn as planned"):
        fmha.fmha_sm100(plain.q, plain.k, plain.v, plan)
    b, real = in_codes(plain, E4M3)
    naive.close(fmha.fmha_sm100(b.q, b.k, b.v, plan)[0],
                naive.attend(real.q, real.k, real.v, b.lens_q, b.lens_k)[0], 2e-2)
    with pytest.raises(ValueError, match="out"):
        fmha.fmha_sm100(b.q, b.k, b.v, plan, out=torch.empty(b.q.shape, dtype=torch.float16))


# ---- what no backend serves ----


@pytest.mark.parametrize(
    ("q_dtype", "kv_dtype", "argument"),
    [(E4M3, E4M3, "q"), (torch.bfloat16, E4M3, "k"), (torch.bfloat16, torch.bfloat16, "")],
)
@pytest.mark.parametrize("lists", [False, True])
def test_a_refusal_of_the_library_names_the_argument(fmha, naive, monkeypatch, q_dtype, kv_dtype, argument, lists):
    """As on a device whose kernels do not take the types; the library's own reason stays."""

    def refuse(*_args, **_keywords):
        raise msa.Unsupported("no backend serves it: cuda: reason")

    monkeypatch.setattr(msa.torch, "dense_attention", refuse)
    monkeypatch.setattr(msa.torch, "sparse_attention", refuse)
    b = naive.batch(*LENS)
    k, v, kv_indices = b.pages()
    plan = planned(fmha, b, page_size=128, output_maxscore=not lists, **({"kv_block_num": 4} if lists else {}))
    ids = b.ids(4, 2) if lists else None
    with pytest.raises(msa.Unsupported, match="cuda: reason") as caught:
        fmha.fmha_sm100(b.q.to(q_dtype), k.to(kv_dtype), v.to(kv_dtype), plan, kv_indices, ids)
    assert caught.value.argument == argument
    assert isinstance(caught.value, fmha.NotServed) == bool(argument)
    if argument:
        text = str(caught.value)
        assert text.startswith(f"{argument} of torch.float8_e4m3fn [") and ("beside max_score" in text) != lists
