# SPDX-License-Identifier: MIT
"""Batches drawn at random through every entry, against the oracle. The number of a failing test repeats it."""
import random

import pytest
import torch

ROUNDS = 40


@pytest.mark.parametrize("seed", range(ROUNDS))
def test_every_entry_on_a_random_batch(fmha, naive, seed):
    draw = random.Random(seed)
    requests, heads_kv, group = draw.randint(1, 5), draw.choice([1, 2, 3]), draw.choice([1, 2, 4])
    lens_q = [draw.choice([0, 1, 1, 2, draw.randint(1, 60)]) for _ in range(requests)]
    lens_k = [draw.choice([0, 1, 128, 129, draw.randint(1, 700)]) for _ in range(requests)]
    b = naive.batch(lens_q, lens_k, heads=heads_kv * group, heads_kv=heads_kv, dim=draw.choice([16, 32]), seed=seed)
    topk, size = draw.choice([1, 2, 4, 5]), draw.choice([64, 128, 128, 256])
    pages = b.pages(size=size, order=draw.choice(["hnd", "nhd"]), slack=draw.randint(0, 5))
    check_sparse(fmha, naive, b, pages, size, topk, seed, of_heads=draw.random() < 0.3)
    check_dense(fmha, naive, b, pages, size)
    check_rows(fmha, naive, b, topk, seed, scheduled=draw.random() < 0.5)


def planned(fmha, b, **options):
    return fmha.fmha_sm100_plan(*b.plan_lens(), b.q.shape[1], b.k.shape[1], device="cpu", **options)


def check_sparse(fmha, naive, b, pages, size, topk, seed, of_heads):
    k, v, kv_indices = pages
    ids = b.ids(topk, b.q.shape[1] if of_heads else b.k.shape[1], seed=seed, shuffled=seed % 2 == 1)
    plan, lse = planned(fmha, b, page_size=size, kv_block_num=topk), torch.empty(b.q.shape[:2])
    out, _ = fmha.fmha_sm100(b.q, k, v, plan, kv_indices, ids, lse=lse, check_input_valid=seed % 2 == 0)
    wanted = naive.attend(b.q, b.k, b.v, b.lens_q, b.lens_k, ids=ids)
    naive.close(out, wanted[0])
    naive.close(lse, wanted[1], 3e-5)


def check_dense(fmha, naive, b, pages, size):
    k, v, kv_indices = pages
    out, scores = fmha.fmha_sm100(b.q, k, v, planned(fmha, b, page_size=size, output_maxscore=True), kv_indices)
    naive.close(out, naive.attend(b.q, b.k, b.v, b.lens_q, b.lens_k)[0])
    naive.close(scores.permute(2, 0, 1), naive.maxima(b.q, b.k, b.lens_q, b.lens_k, tiles=128), 3e-5)


def check_rows(fmha, naive, b, topk, seed, scheduled):
    ids, cu_q, cu_k = b.ids(topk, b.k.shape[1], seed=seed, shuffled=True), b.cu(b.lens_q), b.cu(b.lens_k)
    longest = {"max_seqlen_q": max(b.lens_q), "max_seqlen_k": max(b.lens_k)}
    made = fmha.build_k2q_csr(
        ids.permute(1, 0, 2), cu_q, cu_k, total_k=sum(b.lens_k), return_schedule=True, **longest
    )
    out = fmha.sparse_atten_func(
        b.q, b.k, b.v, *made[:2], topk, cu_seqlens_q=cu_q, cu_seqlens_k=cu_k, causal=True,
        schedule=made[2] if scheduled else None, **longest,
    )
    naive.close(out, naive.attend(b.q, b.k, b.v, b.lens_q, b.lens_k, ids=ids)[0])
