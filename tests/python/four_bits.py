# SPDX-License-Identifier: MIT
"""Formats of four bits for tests, by tables and by upstream's formula of places, byte after byte."""
import math

import torch

E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6], dtype=torch.float64)
E2M1 = torch.cat([E2M1, -E2M1])
E4M3 = torch.tensor(
    [(c & 7) / 8 * 2.0**-6 if c < 8 else (1 + (c & 7) / 8) * 2.0 ** ((c >> 3) - 7) for c in range(127)] + [math.nan],
    dtype=torch.float64,
)
E4M3 = torch.cat([E4M3, -E4M3])
E8M0 = torch.tensor([2.0 ** (c - 127) for c in range(255)] + [math.nan], dtype=torch.float64)


def values(codes, scale, table=E4M3):
    """fp64 [..., D] of bytes [..., D / 2] and bytes of scales [..., groups]."""
    numbers = E2M1[torch.stack((codes & 15, codes >> 4), -1).long()].flatten(-2)
    return numbers * table[scale.long()].repeat_interleave(numbers.shape[-1] // scale.shape[-1], -1)


def place(row, col, cols):
    return (row // 128 * -(-cols // 4) + col // 4) * 512 + row % 32 * 16 + row % 128 // 32 * 4 + col % 4


def tiles(scale, fill=0x7F):
    """[rows, cols] in tiles of 128 x 4, NaN where nothing was given."""
    rows, cols = scale.shape
    found = torch.full((-(-rows // 128) * 128, -(-cols // 4) * 4), fill, dtype=torch.uint8)
    flat = found.view(-1)
    for row in range(rows):
        for col in range(cols):
            flat[place(row, col, cols)] = scale[row, col]
    return found


def random_codes(shape, draw):
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=draw)


def random_scales(shape, draw):
    """Positive and negative e4m3 around 1."""
    return torch.randint(44, 60, shape, dtype=torch.uint8, generator=draw) | random_codes(shape, draw) & 128
