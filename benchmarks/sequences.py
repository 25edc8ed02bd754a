# SPDX-License-Identifier: MIT
"""Data of long sequences on a GPU, any run of tokens by itself: what testkit/values.cpp draws for `random` and `drift`.

The numbers are not those of the test kit, which draws on the host; the law is, and with it what lists look like.
"""
from __future__ import annotations

import torch

CHUNK = 1 << 13   # tokens that are drawn together
KNOT = 1024       # tokens between two points of a slow path
BLOCK = 128


class Drift:
    """Index vectors that move slowly: neighbouring queries share most blocks."""

    def __init__(self, tokens: int, heads: int, dim: int, device: torch.device, seed: int = 0) -> None:
        self.heads, self.dim, self.device, self.seed = heads, dim, device, seed
        knots = (tokens // CHUNK + 1) * CHUNK // KNOT + 2
        self.common = self._normal(knots, dim, stream=100)
        self.paths = self._normal(heads, knots, dim, stream=111)
        self.sink = torch.where(self._normal(dim, stream=101) < 0, -1.0, 1.0)
        self.striped = self._normal((tokens // CHUNK + 1) * CHUNK // BLOCK, stream=102) > 2.1539  # one block in 64

    def queries(self, begin: int, end: int) -> torch.Tensor:
        """bf16 [end - begin, heads, dim]"""
        place = torch.arange(begin, end, device=self.device)
        noise = 0.088 - 0.004 * torch.log2((place >> 16).float().clamp(min=0.5)).add(1).floor()
        own = self._normal(end - begin, self.heads, self.dim, stream=1, chunk=begin // CHUNK)
        path = self._arc(self.paths, place).transpose(0, 1)
        return (noise.view(-1, 1, 1) * own + 0.5 * self.sink + 0.4 * self._common(place)
                + (1 - 0.4 ** 2) ** 0.5 * path).bfloat16()

    def keys(self, begin: int, end: int) -> torch.Tensor:
        """bf16 [end - begin, 1, dim]"""
        place = torch.arange(begin, end, device=self.device)
        own = self._normal(end - begin, 1, self.dim, stream=2, chunk=begin // CHUNK)
        first = (place % BLOCK == 0) & self.striped[place // BLOCK]
        weight = torch.where(place == 0, 1.5, torch.where(first, 0.35, 0.0)).view(-1, 1, 1)
        return ((1 - 0.15 ** 2) ** 0.5 * own + weight * self.sink + 0.15 * self._common(place)).bfloat16()

    # Between two knots on an arc: unit variance everywhere. Queries and keys share a part of one path.
    def _common(self, place: torch.Tensor) -> torch.Tensor:
        return self._arc(self.common, place).unsqueeze(1)

    def _arc(self, points: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
        knot, t = place // KNOT, (place % KNOT).float().view(-1, 1) / KNOT
        return ((1 - t) * points[..., knot, :] + t * points[..., knot + 1, :]) / ((1 - t) ** 2 + t ** 2).sqrt()

    def _normal(self, *shape: int, stream: int, chunk: int = 0) -> torch.Tensor:
        draw = torch.Generator(self.device).manual_seed((self.seed * 1000 + stream) * 100_000 + chunk)
        return torch.randn(shape, generator=draw, device=self.device)


def normal_rows(begin: int, end: int, heads: int, dim: int, stream: int, device: torch.device) -> torch.Tensor:
    """bf16 [end - begin, heads, dim]"""
    draw = torch.Generator(device).manual_seed(7_000_000_000 + stream * 100_000 + begin // CHUNK)
    return torch.randn((end - begin, heads, dim), generator=draw, device=device, dtype=torch.bfloat16)


def rows_of(make, runs: list[tuple[int, int]]) -> torch.Tensor:
    """The given runs of make(begin, end), one after the other; ranks that draw whole chunks draw what all would."""
    out, at = None, 0
    for begin, end in runs:
        for first in range(begin // CHUNK * CHUNK, end, CHUNK):
            made = make(first, first + CHUNK)[max(begin - first, 0):min(end - first, CHUNK)]
            if out is None:
                out = made.new_empty((sum(e - b for b, e in runs), *made.shape[1:]))
            out[at:at + len(made)] = made
            at += len(made)
    return out
