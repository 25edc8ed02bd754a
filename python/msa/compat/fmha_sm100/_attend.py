# SPDX-License-Identifier: MIT
"""The library's attention. What no backend serves on the tensors' device is refused with the argument that it is about,
where dtypes tell, and with every backend's reason."""
from __future__ import annotations

from typing import Any, NoReturn

import torch

from msa import torch as ops
from msa.errors import Unsupported

from ._checks import E4M3, NotServed

_CODES = (E4M3, torch.uint8)  # uint8: two codes of e2m1


def dense_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor | None, *, block_max: torch.Tensor | None = None, **settings: Any
) -> None:
    try:
        ops.dense_attention(q, k, v, block_max=block_max, **settings)
    except Unsupported as error:
        _refuse(error, q, k, "k", max_score=block_max)


def sparse_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, ids: torch.Tensor, *, k_name: str = "k", **settings: Any
) -> None:
    try:
        ops.sparse_attention(q, k, v, ids, **settings)
    except Unsupported as error:
        _refuse(error, q, k, k_name, k_global_scale=settings.get("k_global_scale"))


def _refuse(error: Unsupported, q: torch.Tensor, k: torch.Tensor, k_name: str, **beside: torch.Tensor | None) -> NoReturn:
    """beside: what may be too much for keys in codes."""
    argument, tensor = k_name, k
    if q.dtype == E4M3:
        argument, tensor = "q", q
    elif k.dtype not in _CODES:
        raise error
    extra = "".join(f" beside {name}" for name, given in beside.items() if given is not None)
    what = f"{argument} of {tensor.dtype} {list(tensor.shape)} on {tensor.device}{extra}"
    raise NotServed(f"{what}: {error}", argument=argument) from error
