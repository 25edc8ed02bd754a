# SPDX-License-Identifier: MIT
"""The paged decode entry and its wrapper."""
import pytest
import torch


def paged(b, **options):
    k, v, kv_indices = b.pages(**options)
    return k, v, b.page_table(kv_indices), b.plan_lens()[1]


@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("causal", [True, False])
def test_dense(fmha, naive, rows, causal):
    b = naive.batch((rows,) * 3, (300, 5, 513))
    k, v, table, used = paged(b, order="nhd")
    out, lse = fmha.sparse_decode_atten_func(
        b.q, k, v, page_table=table, seqused_k=used, seqlen_q=rows, max_seqlen_k=513, causal=causal,
        softmax_scale=0.2, return_softmax_lse=True,
    )
    offsets = None if causal else b.lens_k
    wanted = naive.attend(b.q, b.k, b.v, b.lens_q, b.lens_k, scale=0.2, offsets=offsets)
    naive.close(out, wanted[0])
    naive.close(lse, wanted[1], 2e-5)


def test_lists_which_upstream_refuses(fmha, naive):
    b = naive.batch((2, 2), (300, 513))
    k, v, table, used = paged(b)
    ids = b.ids(4, 2)
    out = fmha.sparse_decode_atten_func(
        b.q, k, v, ids.permute(1, 0, 2), page_table=table, seqused_k=used, seqlen_q=2, max_seqlen_k=513
    )
    naive.close(out, naive.attend(b.q, b.k, b.v, b.lens_q, b.lens_k, ids=ids)[0])


def test_more_queries_than_keys(fmha, naive):
    # Upstream's kernel hangs where a tail page holds fewer tokens than there are queries.
    b = naive.batch((4, 4), (2, 130))
    k, v, table, used = paged(b)
    out = fmha.sparse_decode_atten_func(b.q, k, v, page_table=table, seqused_k=used, seqlen_q=4, max_seqlen_k=130)
    naive.close(out, naive.attend(b.q, b.k, b.v, b.lens_q, b.lens_k)[0])


def test_a_plan_reads_lengths_and_pages_when_it_runs(fmha, naive):
    b = naive.batch((1, 1), (300, 40))
    k, v, table, used = paged(b)
    wrapper = fmha.SparseDecodePagedAttentionWrapper()
    table, used = torch.nn.functional.pad(table, (0, 2)), used.clone()
    planned = wrapper.plan(
        page_table=table, seqused_k=used, seqlen_q=1, max_seqlen_k=600, num_qo_heads=4, num_kv_heads=2, head_dim=32,
        enable_cuda_graph=True, max_grid_size=8, fixed_split_size=2, disable_split_kv=True,
    )
    assert planned is wrapper
    naive.close(wrapper.run(b.q, k, v), naive.attend(b.q, b.k, b.v, b.lens_q, b.lens_k)[0])
    other = naive.batch((1, 1), (20, 513), seed=8)
    k, v, kv_indices = other.pages()
    table.zero_()[:, : other.page_table(kv_indices).shape[1]] = other.page_table(kv_indices)
    used.copy_(torch.tensor([20, 513]))
    out, lse = torch.empty_like(b.q), torch.empty(2, 4)
    assert wrapper.run(b.q, k, v, out=out, lse=lse) is out
    wanted = naive.attend(b.q, other.k, other.v, b.lens_q, other.lens_k)
    naive.close(out, wanted[0])
    naive.close(lse, wanted[1], 2e-5)


def test_run_before_plan(fmha, naive):
    b = naive.batch((1,), (9,))
    k, v, *_ = paged(b)
    with pytest.raises(RuntimeError, match="plan"):
        fmha.SparseDecodePagedAttentionWrapper().run(b.q, k, v)


def test_run_against_its_plan(fmha, naive):
    b = naive.batch((1, 1), (300, 40))
    k, v, table, used = paged(b)
    plan = {"page_table": table, "seqused_k": used, "seqlen_q": 1, "max_seqlen_k": 300, "head_dim": 32}
    wrapper = fmha.SparseDecodePagedAttentionWrapper()
    for options, argument in (({"num_qo_heads": 8}, "num_qo_heads"), ({"num_kv_heads": 1}, "num_kv_heads"),
                              ({"head_dim": 128}, "head_dim")):
        with pytest.raises(ValueError, match=argument):
            wrapper.plan(**(plan | options)).run(b.q, k, v)
    with pytest.raises(ValueError, match="rows"):
        wrapper.plan(**plan).run(b.q[:1], k, v)
    with pytest.raises(NotImplementedError, match="float8_e5m2"):
        wrapper.plan(**plan).run(b.q.to(torch.float8_e5m2), k, v)
    with pytest.raises(TypeError, match="float8_e4m3fn"):
        wrapper.plan(**plan).run(b.q.to(torch.float8_e4m3fn), k, v)
    with pytest.raises(ValueError, match="seqlen_q"):
        wrapper.plan(**(plan | {"seqlen_q": 0}))
    with pytest.raises(ValueError, match="seqused_k"):
        wrapper.plan(**(plan | {"seqused_k": used[:1]}))
    with pytest.raises(ValueError, match="q2k_indices"):
        wrapper.plan(**plan, q2k_indices=torch.zeros(2, 5, 4, dtype=torch.int32))
