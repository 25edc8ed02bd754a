# SPDX-License-Identifier: MIT
"""The registered ops: the same numbers as the functions, clean by torch's own checks, whole under torch.compile."""
from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

import msa  # noqa: E402
import msa.torch  # noqa: E402
from msa import _core  # noqa: E402
from msa.torch import ops  # noqa: E402

T, N, HQ, HKV, DIM, K, BLOCK = 6, 96, 4, 2, 16, 2, 16


def sample(op, dtype=torch.float32):
    """Positional inputs and keywords of a small call."""
    generator = torch.Generator().manual_seed(5)

    def floats(*shape, kind=dtype):
        return torch.randn(*shape, generator=generator).to(kind)

    ids = torch.tensor([0, 3], dtype=torch.int32).expand(T, HKV, K).contiguous()
    inputs = {"q": floats(T, HQ, DIM), "k": floats(N, HKV, DIM), "v": floats(N, HKV, DIM),
              "index_q": floats(T, HKV, DIM), "index_k": floats(N, 1, DIM),
              "scores": floats(T, HKV, N // BLOCK, kind=torch.float32), "block_ids": ids,
              "outs": [floats(T, HQ, DIM), floats(T, HQ, DIM)],
              "lses": [floats(T, HQ, kind=torch.float32), floats(T, HQ, kind=torch.float32)],
              "out": floats(T, HQ, DIM), "lse": floats(T, HQ, kind=torch.float32), "dout": floats(T, HQ, DIM),
              "dlse": floats(T, HQ, kind=torch.float32), "row_weight": torch.rand(T, generator=generator),
              "block_ids_parts": [ids, ids + 1], "k_rows": floats(T, HKV, DIM), "v_rows": floats(T, HKV, DIM),
              "chosen_scores_parts": [floats(T, HKV, K, kind=torch.float32) for _ in range(2)]}
    given = [inputs[row[0]] for row in _core.fields()[op] if row[0] in inputs and row[1] < 2]
    keywords = {"block_size": BLOCK} if "block_size" in _core.settings()[op] else {}
    if keywords:
        keywords |= {"seqlens_k": torch.tensor([N], dtype=torch.int32), "max_seqlen_q": T, "max_seqlen_k": N}
    if "topk" in _core.settings()[op]:
        keywords["topk"] = K
    if op == "quantize_kv":
        keywords["kv_format"] = "q8kv4"
    if "index_k8" in [row[0] for row in _core.fields()[op] if row[1] < 2]:
        # Zeros say little of keys, and truly.
        bounds = torch.tensor([0.0, 100.0, 0.0]).expand((N + 15) // 16, 1, 3).contiguous()
        keywords |= {"index_k8": torch.zeros(N, 1, DIM, dtype=torch.int8), "index_k8_bounds": bounds}
    return given, keywords


def flags(op):
    """Outputs that must be asked for; the format says which scales are written."""
    return {name: True for name, role, _, element, _ in _core.fields()[op]
            if role == 3 and name != "out" and element != "kv_scale"}


def equal(got, want):
    got, want = (list(x) if isinstance(x, (tuple, list)) else [x] for x in (got, want))
    assert len(got) == len(want)
    for one, other in zip(got, want):
        assert one.dtype == other.dtype
        codes = one.dtype == torch.float8_e4m3fn
        assert torch.equal(one.view(torch.uint8), other.view(torch.uint8)) if codes else torch.equal(one, other)


WANTED = {"lse": "return_lse", "block_ids": "return_block_ids", "block_max": "return_block_max",
          "chosen_scores": "return_scores", "candidates": "return_candidates", "loss": "return_loss",
          **{name: f"return_{name}" for name in ("dq", "dk", "dv", "d_index_q", "d_index_k")}}


@pytest.mark.parametrize("op", ops.OPS)
def test_op_function_and_front_agree(op):
    given, keywords = sample(op)
    want = getattr(msa, op)(*given, **keywords, **{WANTED[name]: True for name in flags(op)})
    equal(getattr(torch.ops.msa, op)(*given, **keywords, **flags(op)), want)
    found = getattr(msa.torch, op)(*given, **keywords, **{WANTED[name]: True for name in flags(op)})
    assert type(found) is type(want)
    equal(found, want)


@pytest.mark.seconds(30)
@pytest.mark.parametrize("op", ops.OPS)
def test_opcheck(op):
    given, keywords = sample(op)
    keywords.pop("kv_format", None)  # torch's check multiplies what it compares, and float8 has no products
    torch.library.opcheck(getattr(torch.ops.msa, op).default, tuple(given), {**keywords, **flags(op)})
    found = getattr(torch.ops.msa, op)(*given, **keywords, **flags(op))
    names = [row[0] for row in _core.fields()[op] if row[1] >= 2]
    outputs = dict(zip(names, [torch.empty_like(x) for x in found]))
    torch.library.opcheck(getattr(torch.ops.msa, op).out, tuple(given), {**keywords, **outputs})


@pytest.mark.parametrize("op", ops.OPS)
def test_out_variant_writes(op):
    given, keywords = sample(op)
    want = getattr(torch.ops.msa, op)(*given, **keywords, **flags(op))
    names = [row[0] for row in _core.fields()[op] if row[1] >= 2]
    outputs = {name: torch.empty_like(x).fill_(7) for name, x in zip(names, want)}
    versions = {name: x._version for name, x in outputs.items()}
    found = getattr(msa.torch, op)(*given, **keywords, **outputs)
    equal(found, want)
    for name, tensor in outputs.items():
        assert tensor._version > versions[name]
    # One output given, the rest allocated.
    first = next(iter(outputs))
    others = {WANTED[name]: True for name in flags(op)}
    again = getattr(msa.torch, op)(*given, **keywords, **others, **{first: outputs[first].fill_(7)})
    equal(again, want)


@pytest.mark.seconds(60)
@pytest.mark.parametrize("op", ops.OPS)
def test_fullgraph(op):
    """Three sizes, one of them with dynamic shapes; no graph breaks."""
    torch._dynamo.reset()
    given, keywords = sample(op)
    run = getattr(msa.torch, op)
    wanted = {WANTED[name]: True for name in flags(op)}
    compiled = torch.compile(lambda *inputs: run(*inputs, **keywords, **wanted), fullgraph=True, backend="aot_eager")
    equal(compiled(*given), run(*given, **keywords, **wanted))
    for rows in (4, 3):
        fewer = [[part[:rows] for part in x] if isinstance(x, list) else x[:rows] if x.shape[0] == T else x
                 for x in given]
        equal(compiled(*fewer), run(*fewer, **keywords, **wanted))


@pytest.mark.seconds(60)
def test_inductor():
    given, keywords = sample("msa_attention")
    torch._dynamo.reset()

    def layer(q, k, v, index_q, index_k):
        found = msa.torch.msa_attention(q * 2, k, v, index_q, index_k, return_lse=True, **keywords)
        return found.out + 1, found.lse

    equal(torch.compile(layer, fullgraph=True)(*given), layer(*given))


@pytest.mark.parametrize("op", ops.OPS)
def test_shapes_that_cannot_be_are_refused_while_tracing(op):
    from torch._subclasses.fake_tensor import FakeTensorMode
    given, keywords = sample(op)
    with FakeTensorMode() as mode:
        fakes = [[mode.from_tensor(part) for part in x] if isinstance(x, list) else mode.from_tensor(x) for x in given]
        held = {name: mode.from_tensor(x) if isinstance(x, torch.Tensor) else x for name, x in keywords.items()}
        found = getattr(torch.ops.msa, op)(*fakes, **held, **flags(op))
        want = getattr(torch.ops.msa, op)
        assert all(isinstance(x, torch.Tensor) for x in found)
        wrong = list(fakes)
        wrong[0] = wrong[0][0] if not isinstance(wrong[0], list) else [part[0] for part in wrong[0]]
        with pytest.raises((RuntimeError, ValueError, IndexError)):
            want(*wrong, **held)
    real = getattr(torch.ops.msa, op)(*given, **keywords, **flags(op))
    assert [tuple(x.shape) for x in found] == [tuple(x.shape) for x in real]
    assert [x.dtype for x in found] == [x.dtype for x in real]


@pytest.mark.parametrize("op", ["merge_states", "sparse_attention_backward"])
def test_backward_is_refused_by_name(op):
    given, keywords = sample(op)
    first = given[0][0] if isinstance(given[0], list) else given[0]
    first.requires_grad_()
    first_of = {"sparse_attention_backward": lambda found: found.dq}.get(op, lambda found: found)
    found = first_of(getattr(msa.torch, op)(*given, **keywords))
    assert found.requires_grad
    with pytest.raises(NotImplementedError, match=f"msa::{op} has no backward pass"):
        found.sum().backward()
    with torch.no_grad():
        assert not first_of(getattr(msa.torch, op)(*given, **keywords)).requires_grad
    with torch.inference_mode():
        getattr(msa.torch, op)(*given, **keywords)


def test_selection_is_not_differentiable():
    given, keywords = sample("select_blocks")
    given[0].requires_grad_()
    assert not msa.torch.select_blocks(*given, **keywords).requires_grad


def test_errors_come_through():
    given, keywords = sample("dense_attention")
    with pytest.raises(msa.Unsupported, match="multiples of 16"):
        msa.torch.dense_attention(given[0][..., :8], given[1][..., :8], given[2], **keywords)
    with pytest.raises(msa.InvalidArgument) as caught:
        msa.torch.dense_attention(given[0], given[1], given[2][..., :0], **keywords)
    assert caught.value.argument in ("v", "value_dim")


def test_modes_see_the_op():
    """Calls pass through dispatch modes, though plain ones take a short way."""
    from torch.utils._python_dispatch import TorchDispatchMode
    seen = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            seen.append(str(function))
            return function(*args, **(kwargs or {}))

    given, keywords = sample("dense_attention")
    with Watch():
        msa.torch.dense_attention(*given, **keywords)
    assert "msa.dense_attention.default" in seen


def test_a_second_definition_is_refused():
    with pytest.raises(RuntimeError, match="Only a single TORCH_LIBRARY"):
        torch.library.Library("msa", "DEF")
