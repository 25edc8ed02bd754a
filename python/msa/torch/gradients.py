# SPDX-License-Identifier: MIT
"""What an op does where gradients are wanted. No formula exists yet, and each op says so in its backward pass
instead of handing back a gradient of nothing.
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


def _formula(name: str) -> Any:
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
                f"msa::{name} has no backward pass; call it under torch.no_grad() or detach its inputs")

    return Formula


def autograd_kernel(name: str, run: Callable[..., list[torch.Tensor]], overload: Any, inputs: int) -> Any:
    """The kernel of an op for the autograd keys; `run` is the one of the backends, `overload` the op itself, whose first
    `inputs` parameters are tensors.
    """
    formula = _formula(name)
    is_grad_enabled = torch.is_grad_enabled

    def below(keyset: Any, args: tuple[Any, ...], given: dict[str, Any]) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            return overload.redispatch(keyset & _BELOW, *args, **given)

    def kernel(keyset: Any, *args: Any, **given: Any) -> Any:
        if is_grad_enabled() and _any_requires_grad(args[:inputs]):
            tensors = _tensors((*args, *given.values()))
            return list(formula.apply(lambda: below(keyset, args, given), *tensors))
        if (keyset & _BELOW).raw_repr() in _PLAIN:
            return run(*args, **given)
        return below(keyset, args, given)

    return kernel
