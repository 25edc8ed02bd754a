# SPDX-License-Identifier: MIT
"""NVFP4 as upstream's quantizer makes it: codes of e2m1, a scale in e4m3 for 16 of them in tiles of 128 x 4, and one
f32 scale for the tensor. The codes are those of msa's quantize_kv; upstream needs Transformer Engine."""
from __future__ import annotations

from typing import NamedTuple

import torch

from msa import torch as ops

from ._checks import E4M3, invalid, want_tensor
from ._four_bits import (
    COLS,
    GROUP,
    LANES,
    ROWS,
    bytes_of,
    check_tiles,
    e4m3_numbers,
    from_tiles,
    scales_of,
    to_tiles,
    values_of,
)

_WIDEST = 256  # elements of a row that quantize_kv takes
_LARGEST = 448.0 * 6.0  # code times scale


class Nvfp4QuantizedTensor(NamedTuple):
    data: torch.Tensor  # uint8, original_shape with its last extent halved
    scale_128x4: torch.Tensor  # uint8 [rows rounded up to 128, cols rounded up to 4], in tiles
    global_scale: torch.Tensor  # f32 [1]
    logical_scale_shape: tuple[int, int]  # rows, groups of 16
    original_shape: tuple[int, ...]


def nvfp4_global_scale_from_amax(amax: torch.Tensor) -> torch.Tensor:
    """f32 of amax's shape: amax / (448 * 6), never less than the least normal number; 1 where amax is 0."""
    numbers = want_tensor("amax", amax).to(torch.float32)
    # A divisor in a tensor: by a number a GPU would multiply with its inverse, which is off by a bit.
    scales = numbers / torch.full_like(numbers, _LARGEST)
    return torch.where(numbers > 0, scales.clamp(min=2.0**-126), 1.0)


def nvfp4_scale_128x4_offset(row: int, col: int, scale_cols: int) -> int:
    """Where the byte of a row and a column stands among tiles of that many columns."""
    tiles = -(-scale_cols // COLS)
    in_tile = (row % LANES) * (ROWS // LANES * COLS) + (row % ROWS) // LANES * COLS + col % COLS
    return ((row // ROWS) * tiles + col // COLS) * (ROWS * COLS) + in_tile


def swizzle_nvfp4_scale_to_128x4(scale: torch.Tensor, *, rows: int, cols: int) -> torch.Tensor:
    """uint8 [rows rounded up to 128, cols rounded up to 4] in tiles, zero behind the given ones.

    scale: rows * cols scales, uint8 or e4m3, row after row."""
    linear = scales_of("scale", scale, E4M3)
    if linear.numel() != rows * cols:
        invalid("scale", f"{rows} x {cols} scales", tuple(scale.shape))
    return to_tiles(linear.reshape(rows, cols))


def unswizzle_nvfp4_scale_from_128x4(scale_128x4: torch.Tensor, *, rows: int, cols: int) -> torch.Tensor:
    """uint8 [rows, cols], row after row. Not among upstream's names: scale_layout="linear" takes what it returns."""
    tiles = scales_of("scale_128x4", scale_128x4, E4M3)
    check_tiles("scale_128x4", tiles, rows, cols)
    return from_tiles(tiles)[:rows, :cols]


def quantize_bf16_to_nvfp4_128x4(x: torch.Tensor) -> Nvfp4QuantizedTensor:
    """x: bf16 or f16 [..., D], D and the number of rows multiples of 16. Rows of scales are those of x, in order."""
    rows, scale = _prepared("x", x)
    return _quantized((x, x), (rows, rows), (scale, scale))[0]


def quantize_kv_bf16_to_nvfp4_128x4(
    k: torch.Tensor, v: torch.Tensor
) -> tuple[Nvfp4QuantizedTensor, Nvfp4QuantizedTensor]:
    """Both, each with a scale of its own for all."""
    if tuple(want_tensor("v", v).shape) != tuple(want_tensor("k", k).shape) or v.dtype != k.dtype:
        return quantize_bf16_to_nvfp4_128x4(k), quantize_bf16_to_nvfp4_128x4(v)
    (k_rows, k_scale), (v_rows, v_scale) = _prepared("k", k), _prepared("v", v)
    return _quantized((k, v), (k_rows, v_rows), (k_scale, v_scale))


def dequantize_nvfp4_128x4_to_bf16(qx: Nvfp4QuantizedTensor, *, include_global_scale: bool = True) -> torch.Tensor:
    """bf16 of the original shape, each value rounded once."""
    rows, cols = qx.logical_scale_shape
    codes = bytes_of("qx.data", qx.data).reshape(rows, cols * GROUP // 2)
    scale = e4m3_numbers(unswizzle_nvfp4_scale_from_128x4(qx.scale_128x4, rows=rows, cols=cols).contiguous())
    dtype = torch.float32 if include_global_scale else torch.bfloat16
    values = values_of(codes, scale, dtype)
    if include_global_scale:
        values *= qx.global_scale.reshape(())
    return values.to(torch.bfloat16).reshape(qx.original_shape)


def _prepared(name: str, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows [n, 1, width] that quantize_kv takes, a width of whole groups, and the scale of all."""
    if want_tensor(name, x).dtype not in (torch.bfloat16, torch.float16):
        raise TypeError(f"{name}: expected bfloat16 or float16, got {x.dtype}")
    if x.dim() < 2 or x.shape[-1] % GROUP or x.shape[-1] == 0 or x[..., 0].numel() % GROUP:
        invalid(name, f"[..., D], D and the number of rows multiples of {GROUP}", tuple(x.shape))
    width = next(n for n in range(_WIDEST, 0, -GROUP) if x.shape[-1] % n == 0)
    sizes = torch.nan_to_num(x.to(torch.float32).abs(), nan=0.0, posinf=0.0)
    amax = sizes.amax() if x.numel() else sizes.new_zeros(())
    return x.reshape(-1, 1, width), nvfp4_global_scale_from_amax(amax).reshape(1)


def _quantized(
    given: tuple[torch.Tensor, torch.Tensor],
    rows: tuple[torch.Tensor, torch.Tensor],
    scales: tuple[torch.Tensor, torch.Tensor],
) -> tuple[Nvfp4QuantizedTensor, Nvfp4QuantizedTensor]:
    stored = ops.quantize_kv(
        *rows, kv_format="nvfp4/tensor", k_global_scale=scales[0], v_global_scale=scales[1]
    )
    parts = ((stored.k_cache, stored.k_scale_cache), (stored.v_cache, stored.v_scale_cache))
    made = []
    for x, (codes, groups), scale in zip(given, parts, scales):
        cols = x.shape[-1] // GROUP
        shape = (x[..., 0].numel(), cols)
        tiles = swizzle_nvfp4_scale_to_128x4(groups, rows=shape[0], cols=cols)
        data = codes.reshape(*x.shape[:-1], x.shape[-1] // 2)
        made.append(Nvfp4QuantizedTensor(data, tiles, scale, shape, tuple(x.shape)))
    return made[0], made[1]


# ---- scales as the library takes them ----


def group_scales(name: str, codes: torch.Tensor, argument: str, scale: torch.Tensor, layout: str) -> torch.Tensor:
    """e4m3, the shape of codes with its last extent over 8. Tiles become that by a copy."""
    linear = scales_of(argument, scale, E4M3)
    if linear.device != codes.device:
        invalid(argument, f"a tensor on {codes.device}", linear.device)
    shape = (*codes.shape[:-1], 2 * codes.shape[-1] // GROUP)
    if layout == "linear":
        if tuple(linear.shape) != shape:
            invalid(argument, f"{shape}", tuple(linear.shape))
        return linear.view(E4M3)
    if layout != "128x4":
        invalid("scale_layout", "'128x4' or 'linear'", repr(layout))
    if not codes.is_contiguous():
        invalid(name, "a contiguous tensor, whose order its scales follow", f"strides {codes.stride()}")
    rows = codes[..., 0].numel()
    check_tiles(argument, linear, rows, shape[-1])
    return from_tiles(linear)[:rows, : shape[-1]].reshape(shape).view(E4M3)


def global_scale(name: str, given: torch.Tensor | None, device: torch.device) -> torch.Tensor:
    """f32 [1]."""
    if given is None:
        return torch.ones(1, dtype=torch.float32, device=device)
    if want_tensor(name, given).dtype != torch.float32 or given.numel() != 1 or given.device != device:
        invalid(name, f"one float32 element on {device}", f"{given.dtype} {tuple(given.shape)} on {given.device}")
    return given.reshape(1)
