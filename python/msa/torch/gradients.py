# SPDX-License-Identifier: MIT
"""Formulas of the ops. None exists yet, and each says so instead of handing back a gradient of nothing."""
from __future__ import annotations

from typing import Any, NoReturn

__all__ = ["register"]


def _formula(name: str) -> Any:
    def backward(ctx: Any, *grads: Any) -> NoReturn:
        raise NotImplementedError(f"msa::{name} has no backward pass; call it under torch.no_grad() or detach its inputs")

    return backward


def register(library: Any, name: str) -> None:
    """Registers the formula of an op."""
    import torch

    torch.library.register_autograd(f"msa::{name}", _formula(name), lib=library)
