# SPDX-License-Identifier: MIT
"""Gradients through the registered ops: those of plain torch in fp64, and torch's own checks."""
from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch")

import msa  # noqa: E402
import msa.torch  # noqa: E402

T, N, HQ, HKV, DIM, BLOCK, K = 9, 70, 4, 2, 16, 16, 3
NUMBERS = {"block_size": BLOCK}


def vectors(dtype=torch.float32, **shapes):
    generator = torch.Generator().manual_seed(3)
    return {name: torch.randn(*shape, generator=generator).to(dtype) for name, shape in shapes.items()}


def sample(dtype=torch.float32):
    return vectors(dtype, q=(T, HQ, DIM), k=(N, HKV, DIM), v=(N, HKV, DIM), index_q=(T, HKV, DIM), index_k=(N, 1, DIM))


def support(ids):
    """[T, HKV, N]: whether a row attends to a key; all visible ones where ids is None."""
    seen = torch.arange(N) <= torch.arange(T)[:, None] + N - T
    if ids is None:
        return seen[:, None].expand(T, HKV, N)
    listed = torch.zeros(T, HKV, (N + BLOCK - 1) // BLOCK + 1, dtype=torch.bool)
    listed.scatter_(2, torch.where(ids < 0, listed.shape[2] - 1, ids).long(), True)
    return listed[..., :-1].repeat_interleave(BLOCK, 2)[..., :N] & seen[:, None]


def plain(q, k, v, ids):
    """out, lse and the weights of attention, by torch alone."""
    group = HQ // HKV
    scores = torch.einsum("thd,nhd->thn", q, k.repeat_interleave(group, 1)) / math.sqrt(DIM)
    scores = scores.masked_fill(~support(ids).repeat_interleave(group, 1), -math.inf)
    weights = scores.softmax(-1)
    return torch.einsum("thn,nhd->thd", weights, v.repeat_interleave(group, 1)), scores.logsumexp(-1), weights


def wide(tensors):
    return {name: x.detach().double().requires_grad_() for name, x in tensors.items()}


def close(got, want, dtype):
    limit = {torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}[dtype]
    assert got.dtype == dtype
    assert (got.double() - want).abs().max() <= limit * want.abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("op", ["dense_attention", "sparse_attention", "msa_attention"])
def test_gradients_are_those_of_plain_torch(op, dtype):
    given = sample(dtype)
    ids = msa.torch.select_blocks(given["index_q"], given["index_k"], topk=K, **NUMBERS)
    inputs = {name: given[name].requires_grad_() for name in "qkv"}
    if op == "dense_attention":
        found = msa.torch.dense_attention(**inputs, return_lse=True, **NUMBERS)
    elif op == "sparse_attention":
        found = msa.torch.sparse_attention(**inputs, block_ids=ids, return_lse=True, **NUMBERS)
    else:
        found = msa.torch.msa_attention(**inputs, index_q=given["index_q"], index_k=given["index_k"], topk=K,
                                        return_lse=True, **NUMBERS)
    weights = vectors(out=found.out.shape, lse=found.lse.shape)
    ((found.out.float() * weights["out"]).sum() + (found.lse * weights["lse"]).sum()).backward()
    other = wide(inputs)
    out, lse, _ = plain(**other, ids=None if op == "dense_attention" else ids)
    ((out * weights["out"]).sum() + (lse * weights["lse"]).sum()).backward()
    for name in "qkv":
        close(inputs[name].grad, other[name].grad, dtype)


def test_only_what_is_wanted_is_worked_out():
    given = sample()
    q = given["q"].requires_grad_()
    out = msa.torch.dense_attention(q, given["k"], given["v"], **NUMBERS)
    out.sum().backward()
    assert q.grad is not None and given["k"].grad is None


def test_index_gets_no_gradient_of_a_selection():
    given = sample()
    given["index_q"].requires_grad_()
    assert not msa.torch.msa_attention(*given.values(), topk=K, **NUMBERS).requires_grad
    given["q"].requires_grad_()
    msa.torch.msa_attention(*given.values(), topk=K, **NUMBERS).sum().backward()
    assert given["index_q"].grad is None and given["q"].grad is not None


@pytest.mark.parametrize("op", ["dense_attention", "sparse_attention"])
@pytest.mark.filterwarnings("ignore:Input #")
def test_gradcheck(op):
    """In f32, which is what the library serves, with a step to match."""
    given = sample()
    ids = msa.torch.select_blocks(given["index_q"], given["index_k"], topk=K, **NUMBERS)
    extra = {} if op == "dense_attention" else {"block_ids": ids}

    def call(q, k, v):
        return tuple(getattr(msa.torch, op)(q, k, v, return_lse=True, **extra, **NUMBERS))

    inputs = tuple(given[name].requires_grad_() for name in "qkv")
    assert torch.autograd.gradcheck(call, inputs, eps=1e-2, atol=5e-3, rtol=1e-2, nondet_tol=0.0, fast_mode=True)


@pytest.mark.seconds(60)
@pytest.mark.parametrize("op", ["dense_attention", "sparse_attention", "msa_attention"])
def test_opcheck_where_gradients_are_wanted(op):
    given = sample()
    ids = msa.torch.select_blocks(given["index_q"], given["index_k"], topk=K, **NUMBERS)
    inputs = [given[name].requires_grad_() for name in "qkv"]
    inputs += {"dense_attention": [], "sparse_attention": [ids],
               "msa_attention": [given["index_q"], given["index_k"]]}[op]
    numbers = {**NUMBERS, "max_seqlen_q": T, "max_seqlen_k": N, "seqlens_k": torch.tensor([N], dtype=torch.int32)}
    torch.library.opcheck(getattr(torch.ops.msa, op).default, tuple(inputs), {**numbers, "lse": True})


@pytest.mark.seconds(60)
def test_compiled_gradients_are_the_same():
    torch._dynamo.reset()
    given = sample()
    numbers = {**NUMBERS, "max_seqlen_q": T, "max_seqlen_k": N, "topk": K}

    def step(q, k, v, index_q, index_k):
        return (msa.torch.msa_attention(q * 2, k, v, index_q, index_k, **numbers) ** 2).sum()

    inputs = [x.requires_grad_() if name in "qkv" else x for name, x in given.items()]
    step(*inputs).backward()
    want = [x.grad.clone() for x in inputs[:3]]
    for x in inputs[:3]:
        x.grad = None
    torch.compile(step, fullgraph=True, backend="aot_eager")(*inputs).backward()
    for x, gradient in zip(inputs, want):
        assert torch.equal(x.grad, gradient)


def test_checkpointing_gives_the_same_gradients():
    from torch.utils.checkpoint import checkpoint
    given = sample()
    inputs = [x.requires_grad_() if name in "qkv" else x for name, x in given.items()]

    def layer(*tensors):
        return msa.torch.msa_attention(*tensors, topk=K, **NUMBERS)

    layer(*inputs).sum().backward()
    want = [x.grad.clone() for x in inputs[:3]]
    for x in inputs[:3]:
        x.grad = None
    checkpoint(layer, *inputs, use_reentrant=False).sum().backward()
    for x, gradient in zip(inputs, want):
        assert torch.equal(x.grad, gradient)


def test_what_has_no_gradient_says_so():
    given = sample()
    q = given["q"].requires_grad_()
    found = msa.torch.dense_attention(q, given["k"], given["v"], return_block_max=True, **NUMBERS)
    with pytest.raises(NotImplementedError, match="block_max has no gradient"):
        found.block_max[:, :, 0].sum().backward()
    pages = {name: torch.zeros(5, 16, HKV, DIM) for name in "kv"}
    table = torch.arange(5, dtype=torch.int32)[None]
    out = msa.torch.dense_attention(q, **pages, page_table=table, seqlens_k=torch.tensor([N], dtype=torch.int32),
                                    **NUMBERS)
    with pytest.raises(NotImplementedError, match="no backward pass beside page_table"):
        out.sum().backward()
    out = msa.torch.dense_attention(q, given["k"], given["v"], **NUMBERS)
    gradient, = torch.autograd.grad((out ** 2).sum(), [q], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@pytest.mark.parametrize("listed", [True, False])
def test_index_loss_is_that_of_plain_torch(listed):
    given = sample()
    ids = msa.torch.select_blocks(given["index_q"], given["index_k"], topk=K, **NUMBERS) if listed else None
    attend = msa.torch.sparse_attention if listed else msa.torch.dense_attention
    extra = {"block_ids": ids} if listed else {}
    lse = attend(given["q"], given["k"], given["v"], **extra, return_lse=True, **NUMBERS).lse
    weight = torch.linspace(0, 1, T)
    found = msa.torch.index_loss(given["q"], given["k"], lse, given["index_q"], given["index_k"], ids, weight,
                                 **NUMBERS)
    other = wide(given)
    teacher = plain(other["q"], other["k"], other["v"], ids)[2].unflatten(1, (HKV, HQ // HKV)).mean(2).detach()
    scores = torch.einsum("thd,nd->thn", other["index_q"], other["index_k"][:, 0]) / math.sqrt(DIM)
    student = scores.masked_fill(~support(ids), -math.inf).log_softmax(-1)
    terms = torch.where(teacher > 0, teacher * (teacher.clamp(min=1e-300).log() - student), 0.0)
    loss = terms.sum(-1)
    (loss * weight[:, None]).sum().backward()
    close(found.loss, loss.detach(), torch.float32)
    close(found.d_index_q, other["index_q"].grad, torch.float32)
    close(found.d_index_k, other["index_k"].grad, torch.float32)


@pytest.mark.parametrize("listed", [True, False])
def test_gradients_of_the_index_loss_are_those_of_plain_torch(listed):
    """Weights differ from row to row and from head to head."""
    given = sample()
    ids = msa.torch.select_blocks(given["index_q"], given["index_k"], topk=K, **NUMBERS) if listed else None
    lse = plain(given["q"], given["k"], given["v"], ids)[1]
    weight = vectors(weight=(T, HKV))["weight"]
    inputs = {name: given[name].requires_grad_() for name in ("q", "k", "index_q", "index_k")}
    found = msa.torch.index_loss(*list(inputs.values())[:2], lse, *list(inputs.values())[2:], ids, **NUMBERS)
    assert not found.d_index_q.requires_grad
    (found.loss * weight).sum().backward()
    assert given["q"].grad is None and given["k"].grad is None, "the teacher is held constant"
    other = wide(given)
    teacher = plain(other["q"], other["k"], other["v"], ids)[2].unflatten(1, (HKV, HQ // HKV)).mean(2).detach()
    scores = torch.einsum("thd,nd->thn", other["index_q"], other["index_k"][:, 0]) / math.sqrt(DIM)
    student = scores.masked_fill(~support(ids), -math.inf).log_softmax(-1)
    terms = torch.where(teacher > 0, teacher * (teacher.clamp(min=1e-300).log() - student), 0.0)
    (terms.sum(-1) * weight).sum().backward()
    close(given["index_q"].grad, other["index_q"].grad, torch.float32)
    close(given["index_k"].grad, other["index_k"].grad, torch.float32)


@pytest.mark.filterwarnings("ignore:Input #")
def test_gradcheck_of_the_index_loss():
    given = sample()
    lse = plain(given["q"], given["k"], given["v"], None)[1]

    def call(index_q, index_k):
        return msa.torch.index_loss(given["q"], given["k"], lse, index_q, index_k, return_d_index_q=False,
                                    return_d_index_k=False, **NUMBERS)

    inputs = tuple(given[name].requires_grad_() for name in ("index_q", "index_k"))
    assert torch.autograd.gradcheck(call, inputs, eps=1e-2, atol=5e-3, rtol=1e-2, nondet_tol=0.0, fast_mode=True)
