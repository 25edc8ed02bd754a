# SPDX-License-Identifier: MIT
"""fmha_sm100 with block ids, and the bridge: short and long requests, live tensors, lists in every form."""
import math

import pytest
import torch

from msa.compat.fmha_sm100.sparse_fmha_adapter import sparse_fmha, sparse_fmha_plan

BATCHES = {
    "decode": ((1, 1, 1), (300, 40, 513)),
    "short": ((5, 2, 0, 3), (600, 2, 9, 130)),
    "prefill": ((140, 70), (300, 70)),
    "mixed": ((1, 140, 2), (513, 140, 300)),
    "one": ((4,), (700,)),
    "one long": ((150,), (700,)),
}


def planned(fmha, batch, topk=4, **options):
    options = {"page_size": 128, "num_kv_heads": batch.k.shape[1], **options}
    return fmha.fmha_sm100_plan(*batch.plan_lens(), batch.q.shape[1], kv_block_num=topk, device="cpu", **options)


@pytest.mark.parametrize("kind", BATCHES)
@pytest.mark.parametrize("shuffled", [False, True])
def test_lists_of_kv_heads(fmha, naive, kind, shuffled):
    # Upstream's early exit wants ascending lists; ours may have any order.
    b = naive.batch(*BATCHES[kind])
    k, v, kv_indices = b.pages(slack=3)
    ids = b.ids(4, 2, shuffled=shuffled)
    lse = torch.empty(b.q.shape[:2])
    out, scores = fmha.fmha_sm100(
        b.q, k, v, planned(fmha, b), kv_indices=kv_indices, kv_block_indexes=ids, lse=lse
    )
    wanted = naive.attend(b.q, b.k, b.v, b.lens_q, b.lens_k, ids=ids)
    naive.close(out, wanted[0])
    naive.close(lse, wanted[1], 2e-5)
    assert scores is None


def test_ragged_keys(fmha, naive):
    b = naive.batch(*BATCHES["mixed"])
    ids = b.ids(4, 2)
    out, _ = fmha.fmha_sm100(b.q, b.k, b.v, planned(fmha, b, page_size=-1), kv_block_indexes=ids)
    naive.close(out, naive.attend(b.q, b.k, b.v, b.lens_q, b.lens_k, ids=ids)[0])


@pytest.mark.parametrize("kind", ["short", "mixed"])
def test_a_list_for_each_query_head(fmha, naive, kind):
    # Upstream takes the first head's list for the whole group.
    b = naive.batch(*BATCHES[kind])
    k, v, kv_indices = b.pages()
    ids = b.ids(4, 4)
    lse = torch.empty(b.q.shape[:2])
    out, _ = fmha.fmha_sm100(b.q, k, v, planned(fmha, b), kv_indices=kv_indices, kv_block_indexes=ids, lse=lse)
    wanted = naive.attend(b.q, b.k, b.v, b.lens_q, b.lens_k, ids=ids)
    naive.close(out, wanted[0])
    naive.close(lse, wanted[1], 2e-5)
    assert not torch.allclose(out.double(), naive.attend(b.q, b.k, b.v, b.lens_q, b.lens_k, ids=ids[:, ::2])[0])


@pytest.mark.parametrize("kind", ["short", "prefill"])
def test_every_scale_is_applied(fmha, naive, kind):
    # Upstream ignores all but sm_scale for long requests.
    b = naive.batch(*BATCHES[kind])
    k, v, kv_indices = b.pages()
    ids = b.ids(4, 2)
    scales = {"sm_scale": 0.1, "q_scale": 2.0, "k_scale": 1.5, "v_scale": 3.0, "o_scale": 0.5}
    out, _ = fmha.fmha_sm100(b.q, k, v, planned(fmha, b), kv_indices, ids, **scales)
    naive.close(out, 1.5 * naive.attend(b.q, b.k, b.v, b.lens_q, b.lens_k, ids=ids, scale=0.3)[0])


def test_a_decode_plan_follows_lengths_that_outgrow_it(fmha, naive):
    """What SGLang does: a plan of the shortest length that fills the lists, then tensors overwritten in
    place, a page list with room behind it, causal=False with every query behind the longest request."""
    topk, b = 4, naive.batch((1, 1, 1), (900, 40, 1300))
    ones, short = torch.ones(3, dtype=torch.int32), torch.full((3,), topk * 128, dtype=torch.int32)
    plan = fmha.fmha_sm100_plan(
        ones, short, 4, num_kv_heads=2, page_size=128, kv_block_num=topk, causal=False, qo_offset=short - 1,
        device="cpu",
    )
    k, v, kv_indices = b.pages(slack=40)
    live, lens = plan[3], b.plan_lens()[1]
    live["kv_segment_lens"].copy_(lens)
    live["kv_segment_offsets"][1:].copy_(lens.cumsum(0))
    live["kv_page_indptr"][1:].copy_(((lens + 127) // 128).cumsum(0))
    live["qo_offset"].copy_(lens.max().expand(3))
    ids = b.ids(topk, 2)
    out, _ = fmha.fmha_sm100(b.q, k, v, plan, kv_indices=kv_indices, kv_block_indexes=ids)
    naive.close(out, naive.attend(b.q, b.k, b.v, b.lens_q, b.lens_k, ids=ids)[0])


def test_a_copy_of_the_dict_with_other_tensors(fmha, naive):
    """What TensorRT-LLM does: tensors at stable addresses in a copied dict."""
    b = naive.batch(*BATCHES["decode"])
    plan = planned(fmha, b)
    copied = {
        name: torch.cat([value, value.new_full((2,), 77)])[: len(value)] if isinstance(value, torch.Tensor) else value
        for name, value in plan[3].items()
    }
    for value in plan[3].values():
        if isinstance(value, torch.Tensor):
            value.fill_(-5)
    k, v, kv_indices = b.pages()
    ids = b.ids(4, 2)
    out, _ = fmha.fmha_sm100(b.q, k, v, (*plan[:3], copied, None), kv_indices=kv_indices, kv_block_indexes=ids)
    naive.close(out, naive.attend(b.q, b.k, b.v, b.lens_q, b.lens_k, ids=ids)[0])


@pytest.mark.parametrize("kind", ["short", "prefill"])
def test_offset_override(fmha, naive, kind):
    b = naive.batch(*BATCHES[kind])
    k, v, kv_indices = b.pages()
    ids = b.ids(4, 2)
    offsets = torch.tensor([max(n - m - 1, -2) for m, n in zip(b.lens_q, b.lens_k)], dtype=torch.int32)
    out, _ = fmha.fmha_sm100(b.q, k, v, planned(fmha, b), kv_indices, ids, q_offset_override=offsets)
    naive.close(out, naive.attend(b.q, b.k, b.v, b.lens_q, b.lens_k, ids=ids, offsets=offsets)[0])


def test_what_stands_behind_the_first_minus_one_is_not_read(fmha, naive):
    b = naive.batch(*BATCHES["decode"])
    k, v, kv_indices = b.pages()
    ids = b.ids(4, 2)
    ids[:, :, 2:] = torch.tensor([-1, 99], dtype=torch.int32)
    out, _ = fmha.fmha_sm100(b.q, k, v, planned(fmha, b), kv_indices=kv_indices, kv_block_indexes=ids)
    naive.close(out, naive.attend(b.q, b.k, b.v, b.lens_q, b.lens_k, ids=ids)[0])


def test_rows_behind_the_last_request(fmha, naive):
    b = naive.batch(*BATCHES["decode"])
    k, v, kv_indices = b.pages()
    q = torch.cat([b.q, torch.full((2, 4, 32), math.nan)])
    ids = torch.cat([b.ids(4, 2), torch.full((2, 2, 4), -1, dtype=torch.int32)])
    out, _ = fmha.fmha_sm100(q, k, v, planned(fmha, b), kv_indices=kv_indices, kv_block_indexes=ids)
    naive.close(out[:3], naive.attend(b.q, b.k, b.v, b.lens_q, b.lens_k, ids=ids[:3])[0])
    assert (out[3:] == 0).all()


@pytest.mark.parametrize("lens", [((), ()), ((0, 0), (0, 0)), ((0,), (5,)), ((2,), (0,))])
@pytest.mark.parametrize("options", [{}, {"output_maxscore": True}, {"page_size": 128},
                                     {"page_size": 128, "kv_block_num": 4}])
def test_nothing_to_attend(fmha, naive, lens, options):
    b = naive.batch(*lens)
    plan = fmha.fmha_sm100_plan(*b.plan_lens(), 4, num_kv_heads=2, device="cpu", **options)
    k, v, kv_indices = b.pages() if "page_size" in options else (b.k, b.v, None)
    ids = b.ids(4, 2) if "kv_block_num" in options else None
    out, scores = fmha.fmha_sm100(b.q, k, v, plan, kv_indices=kv_indices, kv_block_indexes=ids)
    assert out.shape == b.q.shape and (out == 0).all()
    assert scores is None or (scores.shape == (4, 128, len(b.q)) and (scores == -math.inf).all())


# ---- refusals ----


@pytest.mark.parametrize("kind", ["decode", "prefill"])
@pytest.mark.parametrize("fault", ["too large", "below -1", "twice"])
def test_bad_lists_are_errors(fmha, naive, kind, fault):
    b = naive.batch(*BATCHES[kind])
    k, v, kv_indices = b.pages()
    ids = b.ids(4, 2)
    ids[0, 1] = torch.tensor({"too large": [0, 3, -1, -1], "below -1": [0, -2, 1, -1], "twice": [1, 1, -1, -1]}[fault])
    for check in (False, True):
        with pytest.raises(ValueError):
            fmha.fmha_sm100(b.q, k, v, planned(fmha, b), kv_indices, ids, check_input_valid=check)


@pytest.mark.parametrize("ids", [[1, 0, -1, -1], [0, -1, 1, -1]])
def test_check_input_valid_wants_upstreams_order(fmha, naive, ids):
    b = naive.batch(*BATCHES["one"])
    k, v, kv_indices = b.pages()
    lists = torch.tensor(ids, dtype=torch.int32).expand(4, 2, 4).contiguous()
    fmha.fmha_sm100(b.q, k, v, planned(fmha, b), kv_indices, lists)
    with pytest.raises(ValueError, match="kv_block_indexes"):
        fmha.fmha_sm100(b.q, k, v, planned(fmha, b), kv_indices, lists, check_input_valid=True)


def test_shapes_of_lists(fmha, naive):
    b = naive.batch(*BATCHES["one"])
    k, v, kv_indices = b.pages()
    for ids in (b.ids(3, 2), b.ids(4, 1), b.ids(4, 2)[:2], None):
        with pytest.raises(ValueError, match="kv_block_indexes"):
            fmha.fmha_sm100(b.q, k, v, planned(fmha, b), kv_indices, ids)
    with pytest.raises(TypeError, match="kv_block_indexes"):
        fmha.fmha_sm100(b.q, k, v, planned(fmha, b), kv_indices, b.ids(4, 2).long())


# ---- the bridge ----


def test_bridge(fmha, naive, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)  # it takes no device
    b = naive.batch(*BATCHES["prefill"])
    k, v, kv_indices = b.pages()
    ids = b.ids(4, 2)
    plan = sparse_fmha_plan(*b.plan_lens(), 4, 2, page_size=128, kv_block_num=4)
    out = torch.empty_like(b.q)
    given, scores = sparse_fmha(b.q, k, v, plan, out=out, kv_indices=kv_indices, kv_block_indexes=ids, v_scale=2.0)
    assert given is out and scores is None
    naive.close(out, 2 * naive.attend(b.q, b.k, b.v, b.lens_q, b.lens_k, ids=ids)[0])
    with pytest.raises(ValueError, match="kv_block_indexes"):
        sparse_fmha(b.q, k, v, plan, kv_indices=kv_indices)
    with pytest.raises(ValueError, match="output_maxscore"):
        sparse_fmha_plan(*b.plan_lens(), 4, 2, page_size=128, kv_block_num=4, output_maxscore=True)
    plan = sparse_fmha_plan(*b.plan_lens(), 4, 2, page_size=128, kv_block_num=4, use_fp8_kvcache=True)
    with pytest.raises(ValueError, match="k: expected torch.float8_e4m3fn as planned"):
        sparse_fmha(b.q, k, v, plan, kv_indices=kv_indices, kv_block_indexes=ids)
