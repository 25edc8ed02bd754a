# SPDX-License-Identifier: MIT
"""The fmha_sm100 drop-in on a GPU: the same answers as on the CPU, no call that waits for the device, and replays of
CUDA graphs that follow tensors overwritten in place."""
from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace

import pytest
import torch

import msa
import msa.compat.fmha_sm100 as fmha

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

E4M3 = torch.float8_e4m3fn
HEADS, HEADS_KV, DIM, PAGE = 16, 2, 128, 128
BATCHES = {
    "decode": ((1, 1, 1), (900, 40, 1300)),
    "short": ((4, 4), (700, 4)),
    "mixed": ((1, 300, 2, 0), (513, 400, 300, 9)),
    "one": ((600,), (900,)),
}


@dataclass
class Batch:
    lens_q: torch.Tensor
    lens_k: torch.Tensor
    q: torch.Tensor
    k: torch.Tensor  # pages, heads before slots
    v: torch.Tensor
    kv_indices: torch.Tensor
    table: torch.Tensor
    ids: torch.Tensor  # [T, Hkv, 4]
    cu_q: torch.Tensor
    cu_k: torch.Tensor

    def on(self, device):
        return Batch(*(x if n < 2 else x.to(device) for n, x in enumerate(vars(self).values())))

    def plan(self, device, **options):
        options = {"page_size": PAGE, "num_kv_heads": HEADS_KV, **options}
        return fmha.fmha_sm100_plan(self.lens_q, self.lens_k, HEADS, device=device, **options)

    @property
    def longest(self):
        return {"max_seqlen_q": int(self.lens_q.max()), "max_seqlen_k": int(self.lens_k.max())}


def make(kind, dtype=torch.bfloat16, seed=1, kv=None):
    """kv: the dtype of keys and values, where it is not that of queries."""
    draw = torch.Generator().manual_seed(seed)
    lens_q, lens_k = (torch.tensor(n, dtype=torch.int32) for n in BATCHES[kind])
    counts = (lens_k + (PAGE - 1)) // PAGE
    pages = int(counts.sum())
    q = torch.randn(int(lens_q.sum()), HEADS, DIM, generator=draw).to(dtype)
    k, v = (torch.randn(pages + 2, HEADS_KV, PAGE, DIM, generator=draw).to(kv or dtype) for _ in range(2))
    kv_indices = torch.randperm(pages + 2, generator=draw)[:pages].to(torch.int32)
    table = torch.zeros(len(counts), int(counts.max()), dtype=torch.int32)
    ids = torch.full((len(q), HEADS_KV, 4), -1, dtype=torch.int32)
    row = first = 0
    for b, (n, m) in enumerate(zip(lens_q.tolist(), lens_k.tolist())):
        table[b, : counts[b]] = kv_indices[first : first + counts[b]]
        first += int(counts[b])
        for i in range(n):
            visible = (m - n + i) // PAGE + 1
            for h in range(HEADS_KV):
                chosen = torch.randperm(visible, generator=draw)[:4].sort().values
                ids[row, h, : len(chosen)] = chosen.to(torch.int32)
            row += 1
    sums = [torch.tensor([0, *n.tolist()]).cumsum(0).to(torch.int32) for n in (lens_q, lens_k)]
    return Batch(lens_q, lens_k, q, k, v, kv_indices, table, ids, *sums)


# What every entry computes, as functions of a batch that lies on some device; each returns a tensor.


def dense(b, device):
    plan = b.plan(device)
    return lambda: fmha.fmha_sm100(b.q, b.k, b.v, plan, kv_indices=b.kv_indices)[0]


def sparse(b, device):
    plan = b.plan(device, kv_block_num=4)
    return lambda: fmha.fmha_sm100(b.q, b.k, b.v, plan, b.kv_indices, b.ids)[0]


def sparse_of_heads(b, device):
    plan, ids = b.plan(device, kv_block_num=4), b.ids.repeat_interleave(HEADS // HEADS_KV, 1)
    return lambda: fmha.fmha_sm100(b.q, b.k, b.v, plan, b.kv_indices, ids, v_scale=0.5)[0]


def scores(b, device):
    plan = b.plan(device, output_maxscore=True)
    return lambda: fmha.fmha_sm100(b.q, b.k, None, plan, kv_indices=b.kv_indices, output_o=False)[1]


def rows(b, device, scheduled=False):
    def call():
        made = fmha.build_k2q_csr(
            b.ids.permute(1, 0, 2), b.cu_q, b.cu_k, total_k=int(b.lens_k.sum()), return_schedule=True, **b.longest
        )
        return fmha.sparse_atten_func(
            b.q, b.k, b.v, *made[:2], 4, cu_seqlens_q=b.cu_q, cu_seqlens_k=b.cu_k, causal=True, page_table=b.table,
            schedule=made[2] if scheduled else None, **b.longest,
        )

    return call


def scheduled_rows(b, device):
    return rows(b, device, scheduled=True)


def decode(b, device):
    """Of requests with one query each."""
    used = b.lens_k.to(device)
    ids = b.ids.permute(1, 0, 2)
    return lambda: fmha.sparse_decode_atten_func(
        b.q, b.k, b.v, ids, page_table=b.table, seqused_k=used, seqlen_q=1, max_seqlen_k=int(b.lens_k.max())
    )


CALLS = {f.__name__: (f, None) for f in (dense, sparse, sparse_of_heads, scores, rows, scheduled_rows)}
# Beside keys and values in e4m3, of which CUDA writes no scores.
CALLS |= {f"{name} of e4m3": (f, E4M3) for name, (f, _) in CALLS.items() if f is not scores}


def close(given, wanted, tolerance=2e-2):
    given, wanted = given.float().cpu(), wanted.float().cpu()
    assert torch.equal(torch.isinf(given), torch.isinf(wanted))
    finite = torch.isfinite(wanted)
    error = ((given - wanted)[finite].abs() / (1 + wanted[finite].abs())).max()
    assert error < tolerance, f"error {error}"


@pytest.fixture(params=CALLS)
def entry(request):
    call, kv = CALLS[request.param]
    return SimpleNamespace(call=call, make=partial(make, kv=kv))


@pytest.mark.parametrize("kind", BATCHES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_as_on_the_cpu(entry, kind, dtype):
    b = entry.make(kind, dtype)
    close(entry.call(b.on("cuda"), "cuda")(), entry.call(b, "cpu")())


@pytest.mark.parametrize("kind", ["decode", "mixed", "one"])
def test_nothing_waits_for_the_device(entry, kind):
    b = entry.make(kind).on("cuda")
    call = entry.call(b, "cuda")
    call()
    torch.cuda.set_sync_debug_mode("error")
    try:
        call()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("kind", ["decode", "mixed", "one"])
def test_replays_equal_eager_runs(entry, kind):
    b = entry.make(kind).on("cuda")
    call = entry.call(b, "cuda")
    replay, out = capture(call)
    for seed in (2, 3):
        fresh = entry.make(kind, seed=seed).on("cuda")
        for name in ("q", "k", "v", "kv_indices", "table", "ids"):
            getattr(b, name).copy_(getattr(fresh, name))
        replay()
        assert torch.equal(torch.nan_to_num(out), torch.nan_to_num(call()))


def capture(call):
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = call()
    return graph.replay, out


def test_a_captured_decode_follows_lengths_that_outgrow_its_plan():
    b = make("decode")
    short = torch.full((3,), 4 * PAGE, dtype=torch.int32)
    plan = fmha.fmha_sm100_plan(
        b.lens_q, short, HEADS, num_kv_heads=HEADS_KV, page_size=PAGE, kv_block_num=4, causal=False, device="cuda"
    )
    g = b.on("cuda")
    buffer = torch.zeros(40, dtype=torch.int32, device="cuda")
    buffer[:12] = torch.arange(12, dtype=torch.int32) % len(b.k)
    ids = torch.arange(4, dtype=torch.int32, device="cuda").expand(3, HEADS_KV, 4).contiguous()
    replay, out = capture(lambda: fmha.fmha_sm100(g.q, g.k, g.v, plan, buffer, ids)[0])
    live, lens = plan[3], g.lens_k.cuda()
    buffer[: len(b.kv_indices)] = g.kv_indices
    ids.copy_(g.ids)
    live["kv_segment_lens"].copy_(lens)
    live["kv_segment_offsets"][1:].copy_(lens.cumsum(0))
    live["kv_page_indptr"][1:].copy_(((lens + 127) // 128).cumsum(0))
    live["qo_offset"].copy_(lens.max().expand(3))
    replay()
    close(out, sparse(b, "cpu")())


@pytest.mark.parametrize("layout", ["HKT", "THK"])
@pytest.mark.parametrize("count", ["int", "tensor", "none"])
def test_selection_is_exact(layout, count):
    draw = torch.Generator().manual_seed(1)
    scores = torch.randint(-9, 9, (37, 4, 256), generator=draw).float()
    counts = torch.randint(1, 257, (37,), generator=draw)
    if count == "none":
        for t in range(37):
            scores[t, :, counts[t] :] = float("-inf")
    given = scores.permute(1, 2, 0).contiguous() if layout == "HKT" else scores
    found = []
    for device in ("cpu", "cuda"):
        pages = {"int": 200, "tensor": counts.to(device), "none": None}[count]
        storage = torch.empty(4, 37, 16, dtype=torch.int32, device=device)
        fmha.sparse_topk_select(
            given.to(device), 16, pages, output=storage.permute(1, 0, 2), force_end_blocks=1, force_begin_blocks=1,
            max_score_layout=layout,
        )
        found.append(storage.cpu())
    assert torch.equal(*found)


def test_decode_wrapper_in_a_graph():
    b = make("short")
    g = b.on("cuda")
    wrapper = fmha.SparseDecodePagedAttentionWrapper()
    used = g.lens_k.cuda()
    wrapper.plan(page_table=g.table, seqused_k=used, seqlen_q=4, max_seqlen_k=700, enable_cuda_graph=True)
    replay, out = capture(lambda: wrapper.run(g.q, g.k, g.v))
    for lens in ([700, 4], [300, 2]):
        used.copy_(torch.tensor(lens))
        replay()
        wanted = fmha.sparse_decode_atten_func(
            b.q, b.k, b.v, page_table=b.table, seqused_k=torch.tensor(lens, dtype=torch.int32), seqlen_q=4,
            max_seqlen_k=700,
        )
        close(out, wanted)


def test_bad_pages_and_ids_are_safe():
    # On a GPU they count as not visible; upstream faults.
    b = make("decode").on("cuda")
    call = sparse(b, "cuda")
    b.kv_indices[0] = -1
    b.ids[1, 0, 0] = 1 << 20
    assert torch.isfinite(call()).all()


def test_devices_must_agree():
    b = make("decode")
    plan = b.plan("cuda")
    with pytest.raises(ValueError, match="q: expected a tensor on"):
        fmha.fmha_sm100(b.q, b.k, b.v, plan, kv_indices=b.kv_indices)


# ---- formats of 8 and 4 bits ----


@pytest.mark.parametrize("kv", [None, E4M3])
def test_decode_from_lists(kv):
    b = make("decode", kv=kv)
    close(decode(b.on("cuda"), "cuda")(), decode(b, "cpu")())


@pytest.mark.parametrize("kind", ["decode", "mixed"])
def test_scales_of_the_device_are_read_there(kind):
    b = make(kind, kv=E4M3)
    g = b.on("cuda")
    k_scale, v_scale = (torch.ones(1, device="cuda") for _ in range(2))
    plan, host = b.plan("cuda", kv_block_num=4), b.plan("cpu", kv_block_num=4)
    replay, out = capture(
        lambda: fmha.fmha_sm100(g.q, g.k, g.v, plan, g.kv_indices, g.ids, k_scale=k_scale, v_scale=v_scale)[0]
    )
    for k_number, v_number in ((0.5, 2.0), (1.25, 0.125)):
        k_scale.fill_(k_number)
        v_scale.fill_(v_number)
        replay()
        numbers = {"k_scale": k_number, "v_scale": v_number}
        close(out, fmha.fmha_sm100(b.q, b.k, b.v, host, b.kv_indices, b.ids, **numbers)[0])


@pytest.mark.parametrize(("kind", "groups"), [("mxfp4", 4), ("nvfp4", 8)])
@pytest.mark.parametrize("layout", ["public", "preordered_mma"])
def test_index_in_four_bits(kind, groups, layout):
    draw = torch.Generator().manual_seed(1)
    b = make("mixed")
    tokens, pages = b.q.shape[0], b.k.shape[0]
    low = {"mxfp4": 126, "nvfp4": 0x34}[kind]
    some = lambda low, high, *shape: torch.randint(low, high, shape, dtype=torch.uint8, generator=draw)  # noqa: E731
    shapes = (tokens, 4, groups), (pages, HEADS_KV, PAGE, groups)
    if layout != "public":
        shapes = (4, -(-tokens // 128), groups // 4, 32, 4, 4), (pages * HEADS_KV, 1, groups // 4, 32, 4, 4)
    tensors = [some(0, 256, tokens, 4, 64), some(0, 256, pages, HEADS_KV, PAGE, 64)]
    tensors += [some(low, low + 3, *shape) for shape in shapes]
    starts = torch.tensor([0, *((b.lens_k + 127) // 128).tolist()]).cumsum(0).to(torch.int32)
    tensors += [b.cu_q, b.cu_k, starts]
    found = [
        fmha.fp4_indexer_block_scores(
            *(x.to(device) for x in tensors), kv_indices=b.kv_indices.to(device), fp4_format=kind, causal=True,
            scale_layout=layout, **b.longest,
        ).cpu()
        for device in ("cpu", "cuda")
    ]
    close(found[1], found[0], 1e-5)


def four_bits(b, k, v, k_scale, v_scale, all_scales=None):
    made = fmha.build_k2q_csr(b.ids.permute(1, 0, 2), b.cu_q, b.cu_k, total_k=int(b.lens_k.sum()), **b.longest)
    return fmha.sparse_atten_nvfp4_kv_func(
        b.q, k, v, k_scale, v_scale, all_scales, all_scales, *made, 4, cu_seqlens_q=b.cu_q, cu_seqlens_k=b.cu_k,
        page_table=b.table, causal=True, scale_layout="linear", **b.longest,
    )


@pytest.mark.parametrize("kind", ["decode", "mixed"])
def test_keys_and_values_in_four_bits(kind):
    draw = torch.Generator().manual_seed(1)
    b = make(kind)
    rows = b.k.shape[:3]
    some = lambda low, high, n: torch.randint(low, high, (*rows, n), dtype=torch.uint8, generator=draw)  # noqa: E731
    tensors = [some(0, 256, DIM // 2), some(0, 256, DIM // 2), some(0x28, 0x38, DIM // 16), some(0x28, 0x38, DIM // 16)]
    found = [four_bits(b.on(device), *(x.to(device) for x in tensors)) for device in ("cpu", "cuda")]
    close(found[1], found[0])


def four_bits_call(b, device):
    """With a scale of all, beside more than 8 queries a request."""
    k = torch.zeros(*b.k.shape[:3], DIM // 2, dtype=torch.uint8, device=device)
    scale = torch.zeros(*b.k.shape[:3], DIM // 16, dtype=torch.uint8, device=device)
    return lambda: four_bits(b, k, k, scale, scale, torch.ones(1, device=device))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_quantizer(dtype):
    x = torch.randn(64, 3, 384, generator=torch.Generator().manual_seed(1)).to(dtype)
    x[3, 1, 5], x[7, 0, 300], x[9] = float("nan"), float("inf"), 0.0
    want, found = (fmha.sparse.quantize_bf16_to_nvfp4_128x4(t) for t in (x, x.cuda()))
    assert found.data.is_cuda and found[3:] == want[3:]
    for name in ("global_scale", "scale_128x4", "data"):
        assert torch.equal(getattr(found, name).cpu(), getattr(want, name)), name
    back = [fmha.sparse.dequantize_nvfp4_128x4_to_bf16(q).cpu() for q in (want, found)]
    torch.testing.assert_close(back[1], back[0], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("call", [four_bits_call, dense, sparse, rows, scores])
def test_what_cuda_does_not_serve_yet_is_refused_by_the_library(call):
    """Four bits with a scale of all in prefill; queries in e4m3; scores of keys in e4m3; a row of these goes when a
    kernel comes."""
    b = make("mixed", kv=E4M3).on("cuda")
    if call in (dense, sparse, rows):
        b.q = b.q.to(E4M3)
    with pytest.raises(msa.Unsupported, match="cuda"):
        call(b, "cuda")()
