# SPDX-License-Identifier: MIT
"""What training costs: counted pair by pair, as the paper counts it, and as the page says."""
import pathlib

import pytest
import torch

import msa.nn
import msa.torch

M3 = msa.nn.SparseAttentionConfig(width=6144)
PAGE = pathlib.Path(__file__).parents[3] / "docs/python.md"


@pytest.mark.parametrize("tokens", [1, 16, 37, 64, 100])
def test_pairs_are_those_of_lists(tokens):
    c = msa.nn.SparseAttentionConfig(width=64, heads=4, heads_kv=2, head_dim=16, index_dim=16, block_size=16, topk=3)
    torch.manual_seed(1)
    ids = msa.torch.select_blocks(torch.randn(tokens, 2, 16), torch.randn(tokens, 1, 16), topk=3, block_size=16)
    pairs = 0
    for place, of_heads in enumerate(ids.tolist()):
        for listed in of_heads:
            pairs += sum(min(16, place + 1 - 16 * block) for block in listed if block >= 0)
    work = msa.nn.training_work(c, tokens)
    assert work["attention"].flops * tokens == pytest.approx(pairs * 4 * 2 * 16)  # 2 heads of each list
    assert work["backward"].flops * 2 == pytest.approx(work["attention"].flops * 5)
    assert work["index_loss"].flops * tokens == pytest.approx(pairs / 2 * (2 * 64 + 6 * 32))
    seen = tokens * (tokens + 1) // 2
    assert work["select"].flops * tokens == pytest.approx(seen * 2 * 2 * 16)
    dense = msa.nn.training_work(c, tokens, dense=True)
    assert dense["attention"].flops * tokens == pytest.approx(seen * 4 * 4 * 16) and dense["select"] == (0, 0)


def test_bytes_are_those_of_tensors():
    c = msa.nn.SparseAttentionConfig(width=64, heads=4, heads_kv=2, head_dim=16, index_dim=32, block_size=16, topk=3)
    made = {"dtype": torch.bfloat16}
    q, out, dout, dq = torch.empty(4, 10, 4, 16, **made)
    k, v, dk, dv = torch.empty(4, 10, 2, 16, **made)
    index_q, d_index_q = torch.empty(2, 10, 2, 32, **made)
    index_k, d_index_k = torch.empty(2, 10, 1, 32, **made)
    lse, loss, ids = torch.empty(10, 4), torch.empty(10, 2), torch.empty(10, 2, 3, dtype=torch.int32)
    tensors = {"select": [index_q, index_k, ids], "attention": [q, k, v, ids, out, lse],
               "backward": [q, k, v, out, dout, lse, ids, dq, dk, dv],
               "index_loss": [q, k, lse, index_q, index_k, ids, loss, d_index_q, d_index_k]}
    for name, work in msa.nn.training_work(c, 10).items():
        assert work.bytes * 10 == sum(x.numel() * x.element_size() for x in tensors[name]), name


def forward(**how):
    work = msa.nn.training_work(M3, 1 << 20, **how)
    return work["select"].flops + work["attention"].flops


def test_the_papers_ratio():
    assert forward(dense=True, whole_blocks=True) / forward(whole_blocks=True) == pytest.approx(28.44, abs=0.005)


def rows_of_the_page():
    for name, tokens in (("8K", 1 << 13), ("32K", 1 << 15), ("128K", 1 << 17), ("1M", 1 << 20)):
        sparse, dense = (msa.nn.training_work(M3, tokens, dense=way) for way in (False, True))
        mega = [sparse[call].flops / 1e6 for call in ("select", "attention", "backward", "index_loss")]
        ways = [{call: work.flops for call, work in found.items()} for found in (sparse, dense)]
        once = [way["select"] + way["attention"] for way in ways]
        # Dense attention has no index branch to train.
        whole = [once[0] + ways[0]["backward"] + ways[0]["index_loss"], once[1] + ways[1]["backward"]]
        yield (f"| {name} | " + " | ".join(f"{x:.1f}" for x in mega) +
               f" | {once[1] / once[0]:.2f} | {whole[1] / whole[0]:.2f} |")


def test_the_page_is_not_stale():
    page = PAGE.read_text()
    for row in rows_of_the_page():
        assert row in page, row
