# SPDX-License-Identifier: MIT
"""Upstream's names in the registry of tvm-ffi. Upstream enters them on import; here they are asked for,
so that importing the drop-in imports no further package."""
from __future__ import annotations

import importlib
from typing import Any, Callable

from torch.utils.dlpack import from_dlpack

from .dense import fmha_sm100
from .plan import fmha_sm100_plan
from .topk import sparse_topk_select

_GLOBALS: dict[str, Callable[..., Any]] = {
    "minfer.ops.fmha_sm100_plan": fmha_sm100_plan,
    "minfer.ops.fmha_sm100": fmha_sm100,
    "minfer.ops.sparse_topk_select": sparse_topk_select,
}


def register_tvm_ffi(override: bool = False) -> None:
    """Enters minfer.ops.fmha_sm100_plan, .fmha_sm100 and .sparse_topk_select, which take their arguments by
    position. Names that somebody else holds are an error, unless override is True."""
    tvm_ffi = importlib.import_module("tvm_ffi")
    for name, function in _GLOBALS.items():
        tvm_ffi.register_global_func(name, _taking_ffi_values(function, tvm_ffi), override=override)


def _taking_ffi_values(function: Callable[..., Any], tvm_ffi: Any) -> Callable[..., Any]:
    def to_torch(value: Any) -> Any:
        if isinstance(value, tvm_ffi.Tensor):
            return from_dlpack(value)
        if isinstance(value, tvm_ffi.Map):
            return {str(name): to_torch(item) for name, item in value.items()}
        if isinstance(value, tvm_ffi.Array):
            return tuple(to_torch(item) for item in value)
        return value

    return lambda *values: function(*map(to_torch, values))
