# SPDX-License-Identifier: MIT
"""On a GPU: the CPU's answers, torch's streams, graphs replayed with other lengths, faults told by check."""
from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
if not torch.cuda.is_available():
    pytest.skip("no GPU that torch sees", allow_module_level=True)

import msa  # noqa: E402
import msa.torch  # noqa: E402

pytestmark = pytest.mark.gpu
N, HQ, HKV, DIM, K = 2048, 64, 4, 128, 4


@pytest.fixture
def given():
    generator = torch.Generator().manual_seed(2)

    def floats(*shape):
        return torch.randn(*shape, generator=generator).to(torch.bfloat16)

    def small(*shape):
        return torch.randint(-2, 3, shape, generator=generator).to(torch.bfloat16)

    return [floats(256, HQ, DIM), floats(N, HKV, DIM), floats(N, HKV, DIM), small(256, HKV, DIM), small(N, 1, DIM)]


def cuda(tensors):
    return [t.cuda() for t in tensors]


def close(got, want):
    torch.testing.assert_close(got.cpu().float(), want.float(), rtol=2e-2, atol=2e-2)


def test_same_as_the_cpu(given):
    want = msa.msa_attention(*given, topk=K, return_lse=True, return_block_ids=True)
    for run in (msa.msa_attention, msa.torch.msa_attention):
        found = run(*cuda(given), topk=K, return_lse=True, return_block_ids=True)
        assert found.out.is_cuda and torch.equal(found.block_ids.cpu(), want.block_ids)
        close(found.out, want.out)
        torch.testing.assert_close(found.lse.cpu(), want.lse, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["none", "tensor", "head", "token"])
@pytest.mark.parametrize("rows", [4, 256])  # decode and prefill
def test_keys_and_values_in_e4m3(given, kind, rows):
    generator = torch.Generator().manual_seed(3)
    q, k, v, index_q, index_k = given
    q, index_q = q[-rows:], index_q[-rows:]
    shape = {"none": None, "tensor": (1,), "head": (HKV,), "token": (N, HKV)}[kind]
    scales = {}
    if shape is not None:
        scales = {name: 0.3 + torch.rand(*shape, generator=generator) for name in ("k_scale", "v_scale")}
    codes = [t.to(torch.float8_e4m3fn) for t in (k, v)]
    want = msa.msa_attention(q, *codes, index_q, index_k, topk=K, return_lse=True, return_block_ids=True, **scales)
    held, there = cuda([q, *codes, index_q, index_k]), {name: scale.cuda() for name, scale in scales.items()}
    for run in (msa.msa_attention, msa.torch.msa_attention):
        found = run(*held, topk=K, return_lse=True, return_block_ids=True, **there)
        assert found.out.is_cuda and torch.equal(found.block_ids.cpu(), want.block_ids)
        close(found.out, want.out)
        torch.testing.assert_close(found.lse.cpu(), want.lse, rtol=1e-4, atol=1e-4)
    bytes_ = [t.view(torch.uint8) for t in held[1:3]]
    again = msa.msa_attention(held[0], *bytes_, *held[3:], topk=K, kv_dtype="e4m3", **there)
    assert torch.equal(again, msa.msa_attention(*held, topk=K, **there))
    for name, scale in scales.items():
        with pytest.raises(msa.InvalidArgument) as caught:
            msa.msa_attention(*held, topk=K, **{**there, name: scale})
        assert caught.value.argument == name


@pytest.mark.parametrize("kind", ["e4m3", "e4m3/token", "nvfp4", "q8kv4"])
def test_new_rows_are_stored_with_the_same_bits(given, kind):
    k, v = given[1][:300], given[2][:300]
    lens = {"cu_seqlens_q": torch.tensor([0, 200, 300], dtype=torch.int32),
            "seqlens_k": torch.tensor([250, 100], dtype=torch.int32),
            "page_table": torch.tensor([[3, 0, 5, 1], [4, 2, 3, 3]], dtype=torch.int32)}
    scale = {"e4m3": None, "e4m3/token": (torch.float32,), "nvfp4": (torch.float8_e4m3fn, DIM // 16),
             "q8kv4": (torch.float8_e4m3fn, DIM // 16)}[kind]
    found = []
    for device in ("cpu", "cuda"):
        width = DIM // 2 if kind in ("nvfp4", "q8kv4") else DIM
        caches = {name: torch.full((6, 64, HKV, width), 7, dtype=torch.uint8, device=device)
                  for name in ("k_cache", "v_cache")}
        if scale:
            caches |= {name: torch.ones(6, 64, HKV, *scale[1:], device=device).to(scale[0])
                       for name in ("k_scale_cache", "v_scale_cache")}
        bounds = {} if device == "cpu" else {"max_seqlen_q": 200, "max_seqlen_k": 250}
        msa.torch.quantize_kv(k.to(device), v.to(device), kv_format=kind, **caches, **bounds,
                              **{name: t.to(device) for name, t in lens.items()})
        found.append([t.cpu().view(torch.uint8) for t in caches.values()])
    for want, got in zip(*found):
        assert torch.equal(got, want)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_filter_has_the_same_bits(dtype):
    index_k = torch.randn(1000, 2, 48, generator=torch.Generator().manual_seed(4)).to(dtype)
    index_k[77, 1, 5] = float("nan")
    want, got = msa.torch.quantize_index(index_k), msa.torch.quantize_index(index_k.cuda())
    assert torch.equal(got.index_k8.cpu(), want.index_k8)
    assert torch.equal(got.index_k8_bounds.cpu(), want.index_k8_bounds)


@pytest.mark.parametrize("listed", [True, False])
def test_gradients_are_those_of_the_cpu(given, listed):
    """Through autograd: of attention with lse in the loss, and of the index loss; the same bits again."""
    lists = {"block_ids": msa.select_blocks(given[3], given[4], topk=K)} if listed else {}
    attend = msa.torch.sparse_attention if listed else msa.torch.dense_attention

    def gradients(device):
        inputs = [t.to(device).clone().requires_grad_() for t in given]
        q, k, v, index_q, index_k = inputs
        ids = {name: t.to(device) for name, t in lists.items()}
        found = attend(q, k, v, **ids, return_lse=True)
        loss = msa.torch.index_loss(q.detach(), k.detach(), found.lse.detach(), index_q, index_k, **ids).loss
        ((found.out.float() ** 2).sum() + found.lse.sum() + loss.sum()).backward()
        return [t.grad for t in inputs]

    want, got, again = gradients("cpu"), gradients("cuda"), gradients("cuda")
    for wanted, one, other in zip(want, got, again):
        assert torch.equal(one, other)
        assert (one.cpu().float() - wanted.float()).norm() < 1e-2 * wanted.float().norm()


def test_gradients_in_a_graph(given):
    """Captured once, replayed with other inputs in the same places."""
    held = cuda(given)
    ids = msa.select_blocks(held[3], held[4], topk=K)
    out, lse = msa.torch.sparse_attention(*held[:3], ids, return_lse=True)
    dout = torch.randn_like(out)

    def backward():
        return msa.torch.sparse_attention_backward(*held[:3], ids, out, lse, dout)

    backward()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = backward()
    for _ in range(2):
        dout.copy_(torch.randn_like(out))
        graph.replay()
        torch.cuda.synchronize()
        for one, wanted in zip(captured, backward()):
            assert torch.equal(one, wanted)


def test_lengths_on_the_device_need_bounds(given):
    held = cuda(given)
    lens = {"cu_seqlens_q": torch.tensor([0, 256], dtype=torch.int32, device="cuda"),
            "seqlens_k": torch.tensor([N], dtype=torch.int32, device="cuda")}
    with pytest.raises(msa.InvalidArgument) as caught:
        msa.msa_attention(*held, topk=K, **lens)
    assert caught.value.argument in ("max_seqlen_q", "max_seqlen_k")
    close(msa.msa_attention(*held, topk=K, max_seqlen_q=256, max_seqlen_k=N, **lens), msa.msa_attention(*given, topk=K))


def test_mixed_devices_are_refused_by_name(given):
    held = cuda(given)
    held[1] = given[1]
    with pytest.raises(msa.InvalidArgument) as caught:
        msa.msa_attention(*held, topk=K)
    assert caught.value.argument == "k"


def test_work_follows_torchs_streams(given):
    """A long kernel before the inputs are written, on a side stream: an unordered call would read zeros."""
    held, side = cuda(given), torch.cuda.Stream()
    want = msa.msa_attention(*held, topk=K)
    late = [torch.zeros_like(t) for t in held]
    torch.cuda.synchronize()
    with torch.cuda.stream(side):
        torch.cuda._sleep(100_000_000)
        for target, source in zip(late, held):
            target.copy_(source)
        found = msa.msa_attention(*late, topk=K)
    side.synchronize()
    assert torch.equal(found, want)
    late[0].zero_()
    torch.cuda.synchronize()
    with torch.cuda.stream(side):
        torch.cuda._sleep(100_000_000)
        late[0].copy_(held[0])
    found = msa.msa_attention(*late, topk=K, stream=side)
    side.synchronize()
    assert torch.equal(found, want)


def test_graph_replays_with_other_lengths(given):
    held = cuda(given)
    query, index = held[0][:1].contiguous(), held[3][:1].contiguous()
    lens = torch.tensor([N], dtype=torch.int32, device="cuda")
    pages = [t.reshape(N // 128, 128, *t.shape[1:]) for t in (held[1], held[2], held[4])]
    table = torch.arange(N // 128, dtype=torch.int32, device="cuda")[None]

    def step():
        return msa.torch.msa_attention(query, pages[0], pages[1], index, pages[2], page_table=table, seqlens_k=lens,
                                       topk=K, max_seqlen_q=1, max_seqlen_k=N)

    step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for length in (N, 777, 1):
        lens.fill_(length)
        graph.replay()
        torch.cuda.synchronize()
        close(captured, msa.msa_attention(given[0][:1], given[1][:length], given[2][:length], given[3][:1],
                                          given[4][:length], topk=K))


def test_other_libraries_through_dlpack(given):
    """Producers without the exchange interface are told the stream, and need their outputs given."""
    import arrays
    held = cuda(given)
    want = msa.msa_attention(*held, topk=K)
    out = torch.empty_like(want)
    plan = msa.make_plan("msa_attention", q=held[0], k=held[1], v=held[2], index_q=held[3], index_k=held[4], topk=K)
    workspace = torch.empty(plan.workspace_bytes + 256, dtype=torch.uint8, device="cuda")
    torch.cuda.synchronize()
    plan.run(*(arrays.Capsule(t) for t in held), out=arrays.Capsule(out), workspace=arrays.Capsule(workspace))
    torch.cuda.synchronize()
    assert torch.equal(out, want)
    side = torch.cuda.Stream()
    with torch.cuda.stream(side), pytest.raises(msa.InvalidArgument, match="^stream: expected one"):
        plan.run(arrays.Capsule(held[0]), *held[1:], out=out, workspace=workspace)
    out.zero_()
    torch.cuda.synchronize()
    with torch.cuda.stream(side):
        plan.run(arrays.Capsule(held[0]), *held[1:], out=out, workspace=workspace, stream=side)
    torch.cuda.synchronize()
    assert torch.equal(out, want)


def test_check_tells_faults(given):
    held = cuda(given)
    table = torch.arange(N // 128, dtype=torch.int32, device="cuda")[None].clone()
    pages = [t.reshape(N // 128, 128, *t.shape[1:]) for t in held[1:3]]
    lens = torch.tensor([N], dtype=torch.int32, device="cuda")
    plan = msa.make_plan("dense_attention", q=held[0], k=pages[0], v=pages[1], page_table=table, seqlens_k=lens,
                         max_seqlen_q=256, max_seqlen_k=N)
    workspace = torch.empty(plan.workspace_bytes + 256, dtype=torch.uint8, device="cuda")
    plan.run(held[0], *pages, page_table=table, seqlens_k=lens, workspace=workspace)
    assert msa.check(plan, workspace) is None
    table[0, 3] = 10 ** 6
    plan.run(held[0], *pages, page_table=table, seqlens_k=lens, workspace=workspace)
    fault = msa.check(plan, workspace)
    assert fault is not None and fault.request == 0 and "page" in fault.what


def test_unsupported_types_say_so(given):
    held = [t.float() for t in cuda(given)]
    with pytest.raises(msa.Unsupported, match="cuda"):
        msa.msa_attention(*held, topk=K)


@pytest.mark.seconds(120)
def test_compiled(given):
    held = cuda(given)
    run = torch.compile(lambda *t: msa.torch.msa_attention(*t, topk=K, max_seqlen_q=256, max_seqlen_k=N) * 2,
                        fullgraph=True, backend="aot_eager")
    assert torch.equal(run(*held), msa.msa_attention(*held, topk=K) * 2)
