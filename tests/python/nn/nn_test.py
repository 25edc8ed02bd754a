# SPDX-License-Identifier: MIT
"""The layer that trains: what gradients reach, and what changes none of them."""
from __future__ import annotations

import collections
import dataclasses
import math

import pytest

torch = pytest.importorskip("torch")

import msa.nn  # noqa: E402
import msa.torch  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from torch.utils.checkpoint import checkpoint  # noqa: E402

CONFIG = msa.nn.SparseAttentionConfig(width=24, heads=4, heads_kv=2, head_dim=16, index_dim=16, block_size=16, topk=2,
                                      rotary_dims=8)
INDEX = {f"index_{part}.weight" for part in ("q_proj", "k_proj", "q_norm", "k_norm")}


def layer_of(warm_up=False, config=CONFIG, kind=msa.nn.SparseAttention, **made):
    torch.manual_seed(5)
    layer = kind(config, **made)
    layer.warm_up = warm_up
    return layer


def inputs(*shape, dtype=torch.float32):
    return torch.randn(*shape, CONFIG.width, generator=torch.Generator().manual_seed(6)).to(dtype).requires_grad_()


def gradients(layer, x=None):
    found = {name: parameter.grad for name, parameter in layer.named_parameters()}
    return found if x is None else {**found, "x": x.grad}


def equal(got, want):
    assert got.keys() == want.keys()
    for name, gradient in want.items():
        assert (gradient is None) == (got[name] is None), name
        if gradient is not None:
            assert torch.equal(got[name], gradient), name


def close(got, want, within=1e-5):
    for name, gradient in want.items():
        assert (got[name] - gradient).abs().max() <= within * max(gradient.abs().max(), 1e-6), name


@pytest.mark.parametrize("warm_up", [False, True])
def test_the_loss_teaches_the_index_branch_alone(warm_up):
    layer, x = layer_of(warm_up), inputs(2, 70)
    attended = layer(x)
    assert attended.out.shape == x.shape and attended.index_loss > 0
    attended.index_loss.backward()
    for name, gradient in gradients(layer, x).items():
        assert (gradient is not None and gradient.abs().max() > 0) == (name in INDEX), name


@pytest.mark.parametrize("warm_up", [False, True])
def test_the_model_teaches_all_but_the_index_branch(warm_up):
    layer, x = layer_of(warm_up), inputs(2, 70)
    (layer(x).out ** 2).sum().backward()
    for name, gradient in gradients(layer, x).items():
        assert (gradient is not None) == (name not in INDEX), name


def plain(layer, x):
    """The warm-up of one sequence by torch alone, in fp64: out and the loss."""
    c = layer.config

    def heads(projection, norm, of):
        y = norm(projection(of).unflatten(-1, (-1, norm.weight.shape[0])))
        steps = torch.arange(0, c.rotated(), 2).double() / c.rotated()
        angles = torch.arange(len(x))[:, None, None] * c.rotary_base ** -steps
        first, second, rest = y.split([4, 4, y.shape[-1] - 8], -1)
        return torch.cat((first * angles.cos() - second * angles.sin(), second * angles.cos() + first * angles.sin(), rest),
                         -1)

    q, k = heads(layer.q_proj, layer.q_norm, x), heads(layer.k_proj, layer.k_norm, x)
    v = layer.v_proj(x).unflatten(-1, (c.heads_kv, -1))
    hidden = torch.ones(len(x), len(x), dtype=torch.bool).triu(1)
    group = c.heads // c.heads_kv

    def scores(of, keys, dim):
        return (torch.einsum("thd,nhd->htn", of, keys) / math.sqrt(dim)).masked_fill(hidden, -math.inf)

    weights = scores(q, k.repeat_interleave(group, 1), c.head_dim).softmax(-1)
    out = torch.einsum("htn,nhd->thd", weights, v.repeat_interleave(group, 1)).flatten(1)
    index_q = heads(layer.index_q_proj, layer.index_q_norm, x.detach())
    index_k = heads(layer.index_k_proj, layer.index_k_norm, x.detach()).expand(-1, c.heads_kv, -1)
    student = scores(index_q, index_k, c.index_dim).log_softmax(-1)
    teacher = weights.detach().unflatten(0, (c.heads_kv, group)).mean(1)
    terms = torch.where(hidden, 0.0, teacher * (teacher.clamp(min=1e-300).log() - student.masked_fill(hidden, 0.0)))
    return layer.out_proj(out), terms.sum(-1).mean()


def test_a_warm_up_is_that_of_plain_torch():
    layer, x = layer_of(True), inputs(40)
    attended = layer(x)
    ((attended.out ** 2).sum() + attended.index_loss).backward()
    wide = layer_of(True).double()
    wide.load_state_dict(layer.state_dict())
    other = x.detach().double().requires_grad_()
    out, loss = plain(wide, other)
    ((out ** 2).sum() + loss).backward()
    assert abs(attended.index_loss.item() - loss.item()) < 1e-5
    close({name: x.double() for name, x in gradients(layer, x).items()}, gradients(wide, other), 1e-4)


def test_sequences_one_behind_the_other_are_sequences_side_by_side():
    x, layer = inputs(3, 50), layer_of()
    layer(x).index_loss.backward()
    side = gradients(layer)
    layer = layer_of()
    behind = layer(x.detach().reshape(150, -1), cu_seqlens=torch.tensor([0, 50, 100, 150], dtype=torch.int32), max_seqlen=50)
    assert torch.equal(behind.out.reshape(x.shape), layer(x).out)
    behind.index_loss.backward()
    equal(gradients(layer), side)
    with pytest.raises(ValueError, match="cu_seqlens"):
        layer(x, cu_seqlens=torch.tensor([0, 150], dtype=torch.int32))


def test_micro_batches_add_up():
    x = inputs(4, 40).detach()
    weight = torch.full((160,), 1 / (160 * CONFIG.heads_kv))
    whole = layer_of()
    attended = whole(x)
    ((attended.out ** 2).sum() + attended.index_loss).backward()
    parts = layer_of()
    for rows in (slice(0, 1), slice(1, 4)):
        attended = parts(x[rows], row_weight=weight[:len(x[rows]) * 40])
        ((attended.out ** 2).sum() + attended.index_loss).backward()
    close(gradients(parts), gradients(whole))


class Counted(TorchDispatchMode):
    """Counts the ops of msa that run."""

    def __init__(self):
        super().__init__()
        self.calls = collections.Counter()

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        if op.namespace == "msa":
            self.calls[op._opname] += 1
        return op(*args, **(kwargs or {}))


def test_checkpointing_keeps_selections_and_gradients():
    x, layer = inputs(2, 70), layer_of()

    def loss_of(attended):
        return (attended.out ** 2).sum() + attended.index_loss

    loss_of(layer(x)).backward()
    want = gradients(layer, x)
    counted = Counted()
    with counted:
        layer, x = layer_of(), inputs(2, 70)
        loss_of(checkpoint(layer, x, use_reentrant=False, context_fn=msa.nn.keep_selections)).backward()
    equal(gradients(layer, x), want)
    assert counted.calls["select_blocks"] == counted.calls["index_loss"] == 1 and counted.calls["sparse_attention"] == 2


@pytest.mark.seconds(60)
@pytest.mark.parametrize("warm_up", [False, True])
def test_compiled_whole(warm_up):
    torch._dynamo.reset()
    x, layer = inputs(2, 70), layer_of(warm_up)

    def loss_of(x):
        attended = layer(x)
        return (attended.out ** 2).sum() + attended.index_loss

    loss_of(x).backward()
    want = gradients(layer, x)
    layer.zero_grad()
    x = inputs(2, 70)
    torch.compile(loss_of, fullgraph=True, backend="aot_eager")(x).backward()
    close(gradients(layer, x), want)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits(dtype):
    layer, x = layer_of(dtype=dtype), inputs(2, 70, dtype=dtype)
    attended = layer(x)
    assert attended.out.dtype == dtype and attended.index_loss.dtype == torch.float32
    attended.index_loss.backward()
    wide = layer_of()  # what torch draws in 16 bits may be other numbers
    wide.load_state_dict({name: weight.float() for name, weight in layer.state_dict().items()})
    other = wide(x.detach().float())
    other.index_loss.backward()
    for name in INDEX:
        got, want = dict(layer.named_parameters())[name].grad, dict(wide.named_parameters())[name].grad
        assert got.dtype == dtype
        assert torch.nn.functional.cosine_similarity(got.float().flatten(), want.flatten(), dim=0) > 0.9, name


def test_a_layer_chooses_as_it_likes():
    class First(msa.nn.SparseAttention):
        def choose(self, q, k, index_q, index_k, **batch):
            assert not any(x.requires_grad for x in (q, k, index_q, index_k))
            return torch.zeros(q.shape[0], self.config.heads_kv, 1, dtype=torch.int32)

    layer, x = layer_of(kind=First), inputs(60)
    assert torch.equal(layer(x).out[16:17], layer(torch.cat((x[:17], -x[17:]))).out[16:17])
    assert not torch.equal(layer(x).out, layer_of()(x).out)


def test_no_rotary_part_knows_no_position():
    layer = layer_of(config=dataclasses.replace(CONFIG, rotary_dims=0))
    x = inputs(20)
    moved = layer(torch.cat((x[:5].flip(0), x[5:])))
    assert torch.allclose(moved.out[5:], layer(x).out[5:], atol=1e-5)
    turned = layer_of()
    assert not torch.allclose(turned(torch.cat((x[:5].flip(0), x[5:]))).out[5:], turned(x).out[5:], atol=1e-3)
    assert "rotary_dims=0" in repr(layer) and "warm_up=False" in repr(layer)


def test_weights_of_rows_are_those_of_the_caller():
    layer, x = layer_of(), inputs(60)
    weight = torch.zeros(60)
    weight[40] = 0.5
    one = layer(x, row_weight=weight).index_loss
    rows = layer(x, row_weight=torch.ones(60)).index_loss
    mean = layer(x).index_loss
    assert torch.allclose(rows / (60 * CONFIG.heads_kv), mean, rtol=1e-6) and 0 < one < rows
    with torch.no_grad():
        assert not layer(x).index_loss.requires_grad
