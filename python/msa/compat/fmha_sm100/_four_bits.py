# SPDX-License-Identifier: MIT
"""Numbers of four bits and their scales as upstream stores them: two codes of e2m1 a byte, the even one in its low
half, and scales row after row (linear) or in tiles of 128 x 4.

A tile holds the scales of 128 rows and 4 columns at (row % 32) * 16 + (row % 128 // 32) * 4 + col % 4: no strides
say so, as rows jump by 16 up to the 32nd and by 4 then. So a tiled tensor becomes a linear one by a copy.
"""
from __future__ import annotations

from typing import NoReturn

import torch

from ._checks import E4M3, invalid, want_tensor

GROUP = 16  # elements that share a scale in NVFP4
LANES, ROWS, COLS = 32, 128, 4  # of a tile

_BYTES = (torch.uint8, torch.int8, torch.float4_e2m1fn_x2)


def bytes_of(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """Packed codes as uint8, a view."""
    if want_tensor(name, tensor).dtype not in _BYTES:
        _wrong_type(name, "bytes of two e2m1 codes (uint8, int8 or float4_e2m1fn_x2)", tensor)
    return tensor.view(torch.uint8)


def scales_of(name: str, tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Scales as uint8, a view. dtype: what they are where they are not bytes."""
    if want_tensor(name, tensor).dtype not in (torch.uint8, dtype):
        _wrong_type(name, f"{dtype} or its bytes in uint8", tensor)
    return tensor.view(torch.uint8)


def _wrong_type(name: str, expected: str, tensor: torch.Tensor) -> NoReturn:
    raise TypeError(f"{name}: expected {expected}, got {tensor.dtype}")


# ---- tiles ----


def padded(rows: int, cols: int) -> tuple[int, int]:
    return -(-rows // ROWS) * ROWS, -(-cols // COLS) * COLS


def to_tiles(scale: torch.Tensor) -> torch.Tensor:
    """[rows, cols] as tiles, of the same type: [rows and cols rounded up], zero where nothing was given."""
    rows, cols = padded(*scale.shape)
    linear = scale.new_zeros((rows, cols))
    linear[: scale.shape[0], : scale.shape[1]] = scale
    parts = linear.view(rows // ROWS, ROWS // LANES, LANES, cols // COLS, COLS)
    return parts.permute(0, 3, 2, 1, 4).reshape(rows, cols)


def from_tiles(tiles: torch.Tensor) -> torch.Tensor:
    """The way back: whole tiles [rows, cols] in row-major order."""
    rows, cols = tiles.shape
    parts = tiles.view(rows // ROWS, cols // COLS, LANES, ROWS // LANES, COLS)
    return parts.permute(0, 3, 2, 1, 4).reshape(rows, cols)


def check_tiles(name: str, tiles: torch.Tensor, rows: int, cols: int) -> None:
    """Whole tiles, enough of them, one behind the other."""
    least = padded(rows, cols)
    if tiles.dim() != 2 or tiles.shape[0] % ROWS or tiles.shape[1] % COLS:
        invalid(name, f"whole tiles, [rows, cols] of multiples of {ROWS} and {COLS}", tuple(tiles.shape))
    if tiles.shape[0] < least[0] or tiles.shape[1] < cols:
        invalid(name, f"at least {list(least)} for {rows} rows of {cols} groups", tuple(tiles.shape))
    if not tiles.is_contiguous():
        invalid(name, "a contiguous tensor", f"strides {tiles.stride()}")


# ---- values ----


def values_of(codes: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """[..., 2 * bytes] of dtype, bf16 or f32: codes [..., bytes] times scales, f32 [..., groups], exactly: a code has
    two significant bits, a scale four."""
    # Bits of e2m1 at their place in e4m3 are the number over 64, zero and subnormals included.
    even = (codes & 0x08) << 4 | (codes & 0x07) << 2
    odd = codes & 0x80 | (codes >> 2) & 0x1C
    numbers = torch.stack((even, odd), -1).view(E4M3).to(dtype).mul_(64)
    size = 2 * codes.shape[-1]
    grouped = numbers.view(*scale.shape, size // max(scale.shape[-1], 1))
    return grouped.mul_(scale.to(dtype)[..., None]).view(*codes.shape[:-1], size)


def e4m3_numbers(scale: torch.Tensor) -> torch.Tensor:
    return scale.view(E4M3).to(torch.float32)


def e8m0_numbers(scale: torch.Tensor) -> torch.Tensor:
    """2^(code - 127), NaN for the last code."""
    code = scale.to(torch.int32)
    bits = torch.where(code == 0, 1 << 22, code << 23)  # 2^-127 is subnormal
    return torch.where(code == 255, 0x7FC00000, bits).view(torch.float32)
