# SPDX-License-Identifier: MIT
"""build_k2q_csr, its schedule, sparse_atten_func and the way back from rows to lists."""
import pytest
import torch

from msa.compat.fmha_sm100 import sparse
from msa.compat.fmha_sm100.csr import lists_of_csr

BATCHES = {
    "one": ((150,), (300,)),
    "levels": ((3, 60, 1, 0, 4), (513, 130, 0, 9, 128)),
    "multiples that are not": ((4, 4), (130, 126)),  # total_k is a multiple of 128, the requests are not
}


def csr_of(fmha, batch, ids, **options):
    cu_q, cu_k = batch.cu(batch.lens_q), batch.cu(batch.lens_k)
    options = {"total_k": sum(batch.lens_k), **options}
    return fmha.build_k2q_csr(ids.permute(1, 0, 2), cu_q, cu_k, 128, **options)


@pytest.mark.parametrize("kind", BATCHES)
@pytest.mark.parametrize("shuffled", [False, True])
def test_rows_equal_upstreams_reference(fmha, naive, kind, shuffled):
    b = naive.batch(*BATCHES[kind])
    ids = b.ids(4, 2, shuffled=shuffled)
    row_ptr, q_indices = csr_of(fmha, b, ids)
    cu = b.cu(b.lens_q), b.cu(b.lens_k)
    want_ptr, want_q = sparse.build_k2q_csr_torch_reference(ids.permute(1, 0, 2), *cu)
    rows = want_ptr.shape[1]
    assert rows <= row_ptr.shape[1] and torch.equal(row_ptr[:, :rows], want_ptr)
    assert (row_ptr[:, rows:] == want_ptr[:, -1:]).all()
    assert q_indices.dtype == torch.int32 and torch.equal(q_indices, want_q)


def test_strided_ids_and_total_rows(fmha, naive):
    # As vLLM calls it: a strided view, total_k=0, the rows counted by the caller.
    b = naive.batch(*BATCHES["levels"])
    ids = b.ids(4, 2)
    room = torch.full((b.q.shape[0], 2, 9), 77, dtype=torch.int32)
    room[..., ::2][..., :4] = ids
    rows = sum(-(-n // 128) for n in b.lens_k)
    given = csr_of(fmha, b, room[..., ::2][..., :4], total_k=0, total_rows=rows)
    assert given[0].shape == (2, rows + 1)
    for one, other in zip(given, csr_of(fmha, b, ids)):
        assert torch.equal(one, other[:, : one.shape[1]])


def test_the_builder_is_the_function(fmha, naive):
    b = naive.batch(*BATCHES["levels"])
    ids = b.ids(4, 2)
    cu = b.cu(b.lens_q), b.cu(b.lens_k)
    built = fmha.SparseK2qCsrBuilderSm100()(ids.permute(1, 0, 2), *cu, total_k=sum(b.lens_k))
    for one, other in zip(built, csr_of(fmha, b, ids)):
        assert torch.equal(one, other)


def test_an_empty_problem(fmha):
    empty = torch.zeros(2, 0, 16, dtype=torch.int32)
    zero = torch.zeros(2, dtype=torch.int32)
    row_ptr, q_indices, schedule = fmha.build_k2q_csr(
        empty, zero, zero, 128, total_k=0, max_seqlen_q=0, max_seqlen_k=0, return_schedule=True
    )
    assert (row_ptr == 0).all() and (q_indices == -1).all() and int(schedule.work_count) == 0


@pytest.mark.parametrize("kind", BATCHES)
def test_schedule_covers_every_entry_once(fmha, naive, kind):
    b = naive.batch(*BATCHES[kind])
    ids = b.ids(4, 2, shuffled=True)
    row_ptr, q_indices, schedule = csr_of(
        fmha, b, ids, max_seqlen_q=max(b.lens_q), max_seqlen_k=max(b.lens_k), qhead_per_kv=2, return_schedule=True
    )
    assert schedule.enabled and schedule.target_q_per_cta % 64 == 0
    assert schedule.work_capacity >= int(schedule.work_count)
    assert torch.equal(schedule.split_counts, (ids >= 0).sum(-1, dtype=torch.int32))
    levels = [(r, i) for i in range(20) for r, n in enumerate(b.lens_k) if i < -(-n // 128)]
    seen = torch.zeros_like(q_indices)
    for head, row, first, count, request, block in schedule.scheduler_metadata[: int(schedule.work_count)].tolist():
        assert levels[row] == (request, block) and 0 < count <= schedule.target_q_per_cta
        begin = int(row_ptr[head, row]) + first
        assert begin + count <= int(row_ptr[head, row + 1])
        seen[head, begin : begin + count] += 1
    assert torch.equal(seen, (q_indices >= 0).int())
    payload = schedule.qsplit_indices[q_indices >= 0]
    assert torch.equal(payload & 0xFFFFFF, q_indices[q_indices >= 0])


@pytest.mark.parametrize("kind", BATCHES)
@pytest.mark.parametrize("scheduled", [False, True])
def test_lists_come_back(fmha, naive, kind, scheduled):
    b = naive.batch(*BATCHES[kind])
    ids = b.ids(4, 2, shuffled=True)
    row_ptr, q_indices, schedule = csr_of(
        fmha, b, ids, max_seqlen_q=max(b.lens_q), max_seqlen_k=max(b.lens_k), return_schedule=True
    )
    cu = b.cu(b.lens_q), b.cu(b.lens_k)
    ascending = torch.where(ids < 0, 1 << 30, ids).sort(-1).values.where(ids >= 0, ids)
    tokens = b.q.shape[0]
    # The rows themselves, equal ones that somebody else made, and rows that were written since.
    for one, other in ((row_ptr, q_indices), (row_ptr.clone(), q_indices.clone()), (row_ptr, q_indices.add_(0))):
        back = lists_of_csr(one, other, 4, *cu, tokens, schedule=schedule if scheduled else None)
        assert torch.equal(back, ids if scheduled else ascending)


def test_a_schedule_is_of_its_own_rows(fmha, naive):
    b = naive.batch(*BATCHES["levels"])
    ids, other_ids = b.ids(4, 2), b.ids(4, 2).flip(-1).clone()
    other_ids[..., :3] = -1  # no list
    longest = {"max_seqlen_q": max(b.lens_q), "max_seqlen_k": max(b.lens_k)}
    row_ptr, q_indices, schedule = csr_of(fmha, b, ids, return_schedule=True, **longest)
    cu, tokens = (b.cu(b.lens_q), b.cu(b.lens_k)), b.q.shape[0]
    source = schedule.source
    assert source.made(row_ptr, q_indices, 4)
    assert not source.made(row_ptr, q_indices, 8)
    assert not source.made(row_ptr.clone(), q_indices, 4)
    assert not source.made(row_ptr, q_indices.clone(), 4)
    q_indices.copy_(csr_of(fmha, b, other_ids)[1])
    assert not source.made(row_ptr, q_indices, 4)
    # A copy of the lists went in: what the caller does to his own later changes nothing.
    row_ptr, q_indices, schedule = csr_of(fmha, b, ids, return_schedule=True, **longest)
    kept = ids.clone()
    ids.fill_(-1)
    assert torch.equal(lists_of_csr(row_ptr, q_indices, 4, *cu, tokens, schedule=schedule), kept)
    with torch.inference_mode():
        made = csr_of(fmha, b, kept, return_schedule=True, **longest)
        assert torch.equal(lists_of_csr(*made[:2], 4, *cu, tokens, schedule=made[2]), kept)


# ---- attention from rows ----


@pytest.mark.parametrize("kind", BATCHES)
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("scheduled", [False, True])
def test_ragged_attention(fmha, naive, kind, causal, scheduled):
    b = naive.batch(*BATCHES[kind])
    ids = b.ids(4, 2)
    longest = {"max_seqlen_q": max(b.lens_q), "max_seqlen_k": max(b.lens_k)}
    row_ptr, q_indices, schedule = csr_of(fmha, b, ids, return_schedule=True, **longest)
    out, lse = fmha.sparse_atten_func(
        b.q, b.k, b.v, row_ptr, q_indices, 4, cu_seqlens_q=b.cu(b.lens_q), cu_seqlens_k=b.cu(b.lens_k),
        causal=causal, softmax_scale=0.2, return_softmax_lse=True, schedule=schedule if scheduled else None, **longest,
    )
    offsets = None if causal else b.lens_k
    wanted = naive.attend(b.q, b.k, b.v, b.lens_q, b.lens_k, ids=ids, scale=0.2, offsets=offsets)
    naive.close(out, wanted[0])
    naive.close(lse, wanted[1], 2e-5)


@pytest.mark.parametrize("scheduled", [False, True])
def test_pages_and_used_lengths(fmha, naive, scheduled):
    b = naive.batch((20, 3), (513, 130))
    ids = b.ids(4, 2)
    longest = {"max_seqlen_q": 20, "max_seqlen_k": 513}
    row_ptr, q_indices, schedule = csr_of(fmha, b, ids, return_schedule=True, **longest)
    k, v, kv_indices = b.pages(order="nhd")
    used = torch.tensor([300, 60], dtype=torch.int32)  # whole blocks fall away
    for seqused in (None, used):
        out = fmha.sparse_atten_func(
            b.q, k, v, row_ptr, q_indices, 4, cu_seqlens_q=b.cu(b.lens_q), cu_seqlens_k=b.cu(b.lens_k), causal=True,
            page_table=b.page_table(kv_indices), seqused_k=seqused, schedule=schedule if scheduled else None, **longest,
        )
        keys = (b.k, b.v) if seqused is None else [torch.cat([x[:300], x[513:573]]) for x in (b.k, b.v)]
        lens = b.lens_k if seqused is None else used.tolist()
        naive.close(out, naive.attend(b.q, *keys, b.lens_q, lens, ids=ids)[0])


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_second_lse(fmha, naive, temperature):
    b = naive.batch(*BATCHES["levels"])
    ids = b.ids(4, 2)
    row_ptr, q_indices = csr_of(fmha, b, ids)
    out, lse, cooled = fmha.sparse_atten_func(
        b.q, b.k, b.v, row_ptr, q_indices, 4, cu_seqlens_q=b.cu(b.lens_q), cu_seqlens_k=b.cu(b.lens_k),
        max_seqlen_q=60, max_seqlen_k=513, causal=True, return_softmax_lse=True, return_temperature_lse=True,
        lse_temperature_scale=temperature, softmax_scale=0.3, partial_dtype=torch.float32,
    )
    common = (b.q, b.k, b.v, b.lens_q, b.lens_k)
    naive.close(lse, naive.attend(*common, ids=ids, scale=0.3)[1], 2e-5)
    naive.close(cooled, naive.attend(*common, ids=ids, scale=0.3 / temperature)[1], 2e-5)


def test_kvouter(fmha, naive):
    b = naive.batch((20, 3), (513, 130))
    k, v, kv_indices = b.pages(size=64)
    ids = b.ids(4, 2)
    out, lse = fmha.kvouter_attention(
        b.q, k, v, ids, b.page_table(kv_indices, 64), cu_seqlens_q=b.cu(b.lens_q), causal=True, page_size=64,
        used_kv_lens=b.plan_lens()[1], return_lse=True, out_dtype=torch.float32,
    )
    wanted = naive.attend(b.q, b.k, b.v, b.lens_q, b.lens_k, ids=ids)
    naive.close(out, wanted[0])
    naive.close(lse, wanted[1], 2e-5)
    assert fmha.can_run_sparse_kvouter() in (True, False)


# ---- refusals ----


@pytest.mark.parametrize(
    ("options", "argument"),
    [
        ({"total_k": None}, "total_k"),
        ({"total_rows": 2}, "total_rows"),
        ({"total_k": 130}, "total_rows"),
        ({"return_schedule": True}, "max_seqlen_q"),
        ({"return_schedule": True, "max_seqlen_q": 1 << 24, "max_seqlen_k": 513}, "max_seqlen_q"),
    ],
)
def test_builder_refuses(fmha, naive, options, argument):
    b = naive.batch(*BATCHES["levels"])
    with pytest.raises(ValueError, match=argument):
        csr_of(fmha, b, b.ids(4, 2), **options)


def test_builder_refuses_ids_out_of_range(fmha, naive):
    b = naive.batch(*BATCHES["levels"])
    ids = b.ids(4, 2)
    ids[0, 0, 0] = 5
    with pytest.raises(ValueError):
        csr_of(fmha, b, ids)
    with pytest.raises(TypeError, match="q2k_indices"):
        csr_of(fmha, b, ids.long())
    with pytest.raises(ValueError, match="kv_block_size"):
        fmha.build_k2q_csr(ids.permute(1, 0, 2), b.cu(b.lens_q), b.cu(b.lens_k), 64, total_k=780)


ATTENTION_CASES = {
    "qk_dtype": ({"qk_dtype": torch.float8_e4m3fn}, NotImplementedError),
    "pv_dtype": ({"pv_dtype": torch.float8_e4m3fn}, NotImplementedError),
    "partial_dtype": ({"partial_dtype": torch.float64}, NotImplementedError),
    "output_scale": ({"output_scale": 2.0}, NotImplementedError),
    "enable_2x_fp8": ({"enable_2x_fp8": True}, NotImplementedError),
    "blk_kv": ({"blk_kv": 64}, ValueError),
    "seqused_k": ({"seqused_k": torch.zeros(5, dtype=torch.int32)}, ValueError),
    "return_temperature_lse": ({"return_temperature_lse": True}, ValueError),
    "schedule": ({"schedule": sparse.SparseAttentionSchedule(True, None, None)}, ValueError),
    "k2q_row_ptr": ({"k2q_row_ptr": torch.zeros(3, 4, dtype=torch.int32)}, ValueError),
    "k": ({"page_table": torch.zeros(5, 5, dtype=torch.int32)}, ValueError),
}


@pytest.mark.parametrize("argument", ATTENTION_CASES)
def test_attention_refuses_by_name(fmha, naive, argument):
    b = naive.batch(*BATCHES["levels"])
    row_ptr, q_indices = csr_of(fmha, b, b.ids(4, 2))
    options, kind = ATTENTION_CASES[argument]
    call = {
        "q": b.q, "k": b.k, "v": b.v, "k2q_row_ptr": row_ptr, "k2q_q_indices": q_indices, "topK": 4,
        "cu_seqlens_q": b.cu(b.lens_q), "cu_seqlens_k": b.cu(b.lens_k), "max_seqlen_q": 60, "max_seqlen_k": 513,
    }
    with pytest.raises(kind, match=argument):
        fmha.sparse_atten_func(**(call | options))


def test_rows_that_list_a_query_too_often(fmha, naive):
    b = naive.batch(*BATCHES["levels"])
    row_ptr, q_indices = csr_of(fmha, b, b.ids(4, 2))
    with pytest.raises(ValueError, match="k2q_q_indices"):
        lists_of_csr(row_ptr, q_indices, 2, b.cu(b.lens_q), b.cu(b.lens_k), b.q.shape[0])


@pytest.mark.parametrize("query", [-1, 60, 1 << 30])
def test_rows_that_name_no_query(fmha, naive, query):
    b = naive.batch(*BATCHES["levels"])
    row_ptr, q_indices = csr_of(fmha, b, b.ids(4, 2))
    q_indices[1, 0] = query
    with pytest.raises(ValueError, match="k2q_q_indices"):
        lists_of_csr(row_ptr, q_indices, 4, b.cu(b.lens_q), b.cu(b.lens_k), b.q.shape[0])


def test_reference_utilities(fmha):
    q2k = torch.tensor([[[[0, 2], [1, -1], [0, 1], [-1, -1]]]], dtype=torch.int32)
    indices, counts = sparse.q2k_to_k2q(q2k, 3)
    assert indices.tolist() == [[[[0, 2, -1, -1], [1, 2, -1, -1], [0, -1, -1, -1]]]]
    assert counts.tolist() == [[[2, 2, 1]]]
    assert torch.equal(sparse.k2q_to_q2k(indices, counts, 4, 2), q2k)
