# SPDX-License-Identifier: MIT
"""What is refused before the library sees a call, and how: by name, with what was expected and given."""
from __future__ import annotations

from typing import Any, NoReturn

import torch

from msa.errors import InvalidArgument, InvalidContent, Unsupported

BLOCK = 128  # tokens of a block: the only size that upstream knows

E4M3 = torch.float8_e4m3fn

_NOT_SERVED = ("float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu", "float4_e2m1fn_x2", "uint8",
               "int8")
_SERVED = "keys, values and queries are e4m3, bf16 and f16 (f32 on the CPU); sparse_atten_nvfp4_kv_func takes four bits"


class NotServed(Unsupported, NotImplementedError):
    """A name of upstream that msa does not serve yet. Upstream's own refusals are
    NotImplementedError, so this is one too."""


def invalid(argument: str, expected: str, given: object) -> NoReturn:
    raise InvalidArgument(f"{argument}: expected {expected}, got {given}", argument=argument)


def bad_content(argument: str, expected: str, given: object) -> NoReturn:
    raise InvalidContent(f"{argument}: expected {expected}, got {given}", argument=argument)


def not_served(what: str, instead: str = "", argument: str = "") -> NoReturn:
    text = f"{what} is not served by msa" + (f": {instead}" if instead else "")
    raise NotServed(text, argument=argument)


def want_tensor(name: str, value: Any) -> torch.Tensor:
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor, got {type(value).__name__}")
    return value


def want_int32(name: str, value: Any, rank: int, device: torch.device | None = None) -> torch.Tensor:
    tensor = want_tensor(name, value)
    if tensor.dtype != torch.int32:
        raise TypeError(f"{name}: expected int32, got {tensor.dtype}")
    if tensor.dim() != rank:
        invalid(name, f"{rank} dimensions", tuple(tensor.shape))
    if device is not None and tensor.device != device:
        invalid(name, f"a tensor on {device}", tensor.device)
    return tensor


def check_attention_tensors(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor | None) -> None:
    """Rank and dtype; the library checks shapes, strides, devices and alignment. Keys and values are of one dtype,
    that of q or e4m3."""
    check_queries(q)
    for name, tensor in (("k", k), ("v", v)):
        if tensor is None:
            continue
        _check_served(name, tensor)
        if tensor.dtype not in (q.dtype, E4M3):
            expected = f"q's dtype {q.dtype}" + (f" or {E4M3}" if q.dtype != E4M3 else "")
            raise TypeError(f"{name}: expected {expected}, got {tensor.dtype}")
        if tensor.dtype != k.dtype:
            raise TypeError(f"{name}: expected k's dtype {k.dtype}, got {tensor.dtype}")


def check_queries(q: torch.Tensor) -> None:
    if want_tensor("q", q).dim() != 3:
        invalid("q", "[tokens, heads, head dim]", tuple(q.shape))
    _check_served("q", q)


def _check_served(name: str, tensor: torch.Tensor) -> None:
    dtype = str(want_tensor(name, tensor).dtype).removeprefix("torch.")
    if dtype in _NOT_SERVED:
        not_served(f"{name} of {dtype}", _SERVED, name)


def output_dtype(q: torch.Tensor) -> torch.dtype:
    """That of q; beside queries in e4m3 bf16."""
    return torch.bfloat16 if q.dtype == E4M3 else q.dtype


def check_keys(k: torch.Tensor, v: torch.Tensor | None, page_size: int) -> None:
    """Ragged [tokens, heads, dim] or pages [pages, heads, slots, dim]."""
    rank, form = (4, "pages [pages, heads, slots, dim]") if page_size > 0 else (3, "[tokens, heads, dim]")
    for name, tensor in (("k", k), ("v", v)):
        if tensor is None:
            continue
        if tensor.dim() != rank:
            invalid(name, form, tuple(tensor.shape))
        if page_size > 0 and tensor.shape[2] != page_size:
            invalid(name, f"pages of {page_size} slots", tuple(tensor.shape))


def check_block_size(name: str, value: int) -> None:
    if value != BLOCK:
        invalid(name, f"{BLOCK}", value)


def host_scale(name: str, value: Any, default: float = 1.0) -> float:
    """A host number. A tensor on a GPU is refused: reading it would stop the device."""
    if value is None:
        return default
    if isinstance(value, torch.Tensor):
        if value.device.type != "cpu" or value.numel() != 1:
            not_served(f"{name} as a tensor of the device", "it goes with keys in e4m3; give a host number", name)
        return float(value)
    return float(value)


def slots_inside(pages: torch.Tensor) -> torch.Tensor:
    """[pages, heads, slots, dim] as [pages, slots, heads, dim]: a view, nothing is copied."""
    return pages.permute(0, 2, 1, 3)
