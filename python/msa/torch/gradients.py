# SPDX-License-Identifier: MIT
"""What an op does where gradients are wanted: attention over ragged keys has a backward pass, msa::NAME_backward, and the
loss of the index branch is its own; every other op says so instead of handing back a gradient of nothing.
"""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

__all__ = ["autograd_kernel"]

_KEYS, _KEY = torch._C.DispatchKeySet, torch._C.DispatchKey
_BELOW = torch._C._after_autograd_keyset
# Plain tensors on one device and no mode in force: the kernel may be called without another way through the dispatcher.
_PLAIN = frozenset(keys.raw_repr() for backend in (_KEY.CPU, _KEY.CUDA)
                   for keys in (_KEYS(backend), _KEYS(backend) | _KEYS(_KEY.ADInplaceOrView)))
# The op of a backward pass, and which of its tensors the forward pass took, or chose.
_BACKWARD = {"dense_attention": ("dense_attention_backward", ("q", "k", "v")),
             "sparse_attention": ("sparse_attention_backward", ("q", "k", "v", "block_ids")),
             "msa_attention": ("sparse_attention_backward", ("q", "k", "v"))}
_LENGTHS = ("cu_seqlens_q", "seqlens_k", "cu_seqlens_k", "q_offsets", "key_offsets", "total_seqlens_k")
_NUMBERS = ("block_size", "causal", "softmax_scale", "max_seqlen_q", "max_seqlen_k", "backend", "isa", "threads",
            "batch_invariant")
# Inputs and settings that no backward pass takes.
_REFUSED = ("page_table", "kv_format", "k_scale", "v_scale", "k_global_scale", "v_global_scale")


def _tensors(values: Any) -> list[torch.Tensor]:
    flat: list[torch.Tensor] = []
    for value in values:
        flat += value if isinstance(value, (list, tuple)) else [value]
    return [value for value in flat if isinstance(value, torch.Tensor)]


def _any_requires_grad(values: Any) -> bool:
    for value in values:
        if value is None:
            continue
        if _any_requires_grad(value) if type(value) is list else value.requires_grad:
            return True
    return False


def _without_backward(name: str, why: str = "") -> Any:
    class Formula(torch.autograd.Function):
        """Joins the outputs to the inputs, so that a backward pass comes here and is refused."""

        @staticmethod
        def forward(ctx: Any, run: Callable[[], list[torch.Tensor]],
                    *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
            found = tuple(run())
            ctx.mark_non_differentiable(*(t for t in found if not t.is_floating_point()))
            return found

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            raise NotImplementedError(
                f"msa::{name} has no backward pass{why}; call it under torch.no_grad() or detach its inputs")

    return Formula


class _Attention(torch.autograd.Function):
    """Attention with the backward pass of its op. `call` holds what is no tensor that gradients flow to."""

    @staticmethod
    def forward(ctx: Any, call: _Call, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, ...]:
        found = call.run()
        ids = found.get("block_ids", call.given.get("block_ids"))
        lengths = [call.given.get(name) for name in _LENGTHS]
        ctx.call = call
        ctx.save_for_backward(q, k, v, found["out"], found["lse"], ids, *lengths)
        outputs = tuple(found[name] for name in call.wanted)
        ctx.mark_non_differentiable(*(t for t in outputs if not t.is_floating_point()))
        ctx.set_materialize_grads(False)
        return outputs

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Any) -> Any:
        call = ctx.call
        given = dict(zip(call.wanted, grads))
        if given.get("block_max") is not None:
            raise NotImplementedError(f"msa::{call.name}: block_max has no gradient; detach it")
        q, k, v, out, lse, ids, *lengths = ctx.saved_tensors
        dout, dlse = given.get("out"), given.get("lse")
        if dout is None and dlse is None:
            return None, None, None, None
        wants = ctx.needs_input_grad[1:]
        inputs = {"q": q, "k": k, "v": v, "out": out, "lse": lse,
                  "dout": torch.zeros_like(out) if dout is None else _dense(dout), "dlse": dlse}
        if call.backward == "sparse_attention_backward":
            inputs["block_ids"] = ids
        numbers = {name: call.given[name] for name in _NUMBERS if name in call.given}
        found = iter(call.overload(call.backward)(**inputs, **dict(zip(_LENGTHS, lengths)), **numbers,
                                                  dq=wants[0], dk=wants[1], dv=wants[2]))
        return None, *(next(found) if wanted else None for wanted in wants)


class _IndexLoss(torch.autograd.Function):
    """The loss of each row, and what reaches index_q and index_k from it; all else is held constant. Weights of rows may
    differ from head to head here, which no call of the library takes: each head is a problem of its own.
    """

    @staticmethod
    def forward(ctx: Any, given: dict[str, Any], wanted: tuple[str, ...], overload: Callable[..., Any],
                below: Callable[..., list[torch.Tensor]], index_q: torch.Tensor,
                index_k: torch.Tensor) -> tuple[torch.Tensor, ...]:
        found = tuple(below(**given))
        ctx.numbers = {name: given[name] for name in (*_NUMBERS, "index_scale") if name in given}
        ctx.wanted, ctx.overload = wanted, overload
        lengths = [given.get(name) for name in _LENGTHS]
        ctx.save_for_backward(index_q, index_k, given["q"], given["k"], given["lse"], given.get("block_ids"), *lengths)
        ctx.mark_non_differentiable(*(x for x, name in zip(found, wanted) if name != "loss"))
        ctx.set_materialize_grads(False)
        return found

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Any) -> Any:
        gradient = dict(zip(ctx.wanted, grads)).get("loss")
        if gradient is None:
            return (None,) * 6
        index_q, index_k, q, k, lse, ids, *lengths = ctx.saved_tensors
        batch = {name: x for name, x in zip(_LENGTHS, lengths) if x is not None}
        heads, group, shared = k.shape[1], q.shape[1] // k.shape[1], index_q.shape[1] // index_k.shape[1]
        wants_q, wants_k = ctx.needs_input_grad[4:]
        of_queries: list[torch.Tensor] = []
        of_keys: list[Any] = [0] * index_k.shape[1]
        for head in range(heads):
            own = slice(head * group, (head + 1) * group)
            one = slice(head, head + 1)
            of_key = head // shared
            found = iter(ctx.overload("index_loss")(
                q[:, own], k[:, one], lse[:, own], index_q[:, one], index_k[:, of_key:of_key + 1],
                block_ids=None if ids is None else ids[:, one], row_weight=gradient[:, head], **batch, **ctx.numbers,
                grad_dtype=torch.float32, loss=False, d_index_q=wants_q, d_index_k=wants_k))
            if wants_q:
                of_queries.append(next(found))
            if wants_k:
                of_keys[of_key] = of_keys[of_key] + next(found)
        return (None, None, None, None, torch.cat(of_queries, 1).to(index_q.dtype) if wants_q else None,
                torch.cat(of_keys, 1).to(index_k.dtype) if wants_k else None)


def _dense(gradient: torch.Tensor) -> torch.Tensor:
    """The gradient of a sum is one number with strides of 0, which no kernel reads along the innermost dim."""
    return gradient if gradient.stride(-1) == 1 else gradient.contiguous()


class _Call:
    """One call of attention whose gradients are wanted."""

    def __init__(self, name: str, overload: Callable[..., Any], given: dict[str, Any],
                 below: Callable[..., list[torch.Tensor]]) -> None:
        self.name, self.overload, self.given = name, overload, given
        self.backward = _BACKWARD[name][0]
        self._below = below
        outputs = {"out": given.get("out") is not False, "lse": bool(given.get("lse", False))}
        for extra in ("block_max", "block_ids"):
            if extra in given and isinstance(given[extra], bool):
                outputs[extra] = given[extra]
        self.wanted = tuple(name for name, is_wanted in outputs.items() if is_wanted)

    def run(self) -> dict[str, torch.Tensor]:
        """What the forward pass writes, by name: beside what was asked for whatever the backward pass takes."""
        names = ["out", "lse"]
        given = {**self.given, "lse": True}
        if "block_max" in self.wanted:
            names.append("block_max")
        if self.name == "msa_attention":
            given["block_ids"] = True
            names.append("block_ids")
        return dict(zip(names, self._below(**given)))


def autograd_kernel(name: str, run: Callable[..., list[torch.Tensor]], overload: Callable[..., Any],
                    parameters: list[str], inputs: list[str]) -> Any:
    """The kernel of an op for the autograd keys; `run` is the one of the backends, `overload` gives an op by name.
    `parameters` are all that the op takes, of which the `inputs` come first and are tensors.
    """
    refused = _without_backward(name)
    count = len(inputs)
    op = overload(name)
    is_grad_enabled = torch.is_grad_enabled

    def below(keyset: Any, *args: Any, **given: Any) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            return op.redispatch(keyset & _BELOW, *args, **given)

    def with_gradients(keyset: Any, args: tuple[Any, ...], given: dict[str, Any]) -> Any:
        named = {**dict(zip(parameters, args)), **given}
        if name == "index_loss" and named.get("loss") and named.get("page_table") is None:
            wanted = tuple(x for x in ("loss", "d_index_q", "d_index_k") if named.get(x))
            return list(_IndexLoss.apply(named, wanted, overload, lambda **every: below(keyset, **every),
                                         named["index_q"], named["index_k"]))
        out_alone = named.get("v") is not None
        if name not in _BACKWARD or not out_alone:
            return list(refused.apply(lambda: below(keyset, *args, **given), *_tensors((*args, *given.values()))))
        for one in _REFUSED:
            if named.get(one) is not None:
                formula = _without_backward(name, f" beside {one}")
                return list(formula.apply(lambda: below(keyset, *args, **given), *_tensors((*args, *given.values()))))
        call = _Call(name, overload, named, lambda **every: below(keyset, **every))
        return list(_Attention.apply(call, named["q"], named["k"], named["v"]))

    def kernel(keyset: Any, *args: Any, **given: Any) -> Any:
        if is_grad_enabled() and _any_requires_grad(args[:count]):
            return with_gradients(keyset, args, given)
        if (keyset & _BELOW).raw_repr() in _PLAIN:
            return run(*args, **given)
        return below(keyset, *args, **given)

    return kernel
