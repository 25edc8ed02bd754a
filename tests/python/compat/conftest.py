# SPDX-License-Identifier: MIT
"""A naive oracle in fp64 and batches for the tests of the drop-in: everything on the CPU, by loops over
requests, heads and lists."""
from __future__ import annotations

import math
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch

import msa.compat.fmha_sm100 as dropin

BLOCK = 128


@pytest.fixture(scope="session")
def fmha() -> object:
    return dropin


def attend(q, k, v, lens_q, lens_k, *, offsets=None, ids=None, scale=None):
    """(out, lse) in fp64: q [T, Hq, D], k and v ragged; ids [T, heads, n] of any head count that divides Hq."""
    tokens, heads, dim = q.shape
    group = heads // k.shape[1]
    scale = dim**-0.5 if scale is None else scale
    out = torch.zeros(tokens, heads, v.shape[-1], dtype=torch.float64)
    lse = torch.full((tokens, heads), -math.inf, dtype=torch.float64)
    for row, b, first, position, length in rows_of(lens_q, lens_k, offsets):
        for h in range(heads):
            keys = torch.arange(length)
            visible = keys <= position
            if ids is not None:
                listed = ids[row, h * ids.shape[1] // heads].tolist()
                listed = listed[: listed.index(-1)] if -1 in listed else listed
                visible &= torch.isin(keys // BLOCK, torch.tensor(listed, dtype=torch.int64))
            keys = keys[visible]
            if keys.numel() == 0:
                continue
            logits = scale * (k[first + keys, h // group].double() @ q[row, h].double())
            lse[row, h] = torch.logsumexp(logits, 0)
            out[row, h] = torch.softmax(logits, 0) @ v[first + keys, h // group].double()
    return out, lse


def maxima(q, k, lens_q, lens_k, *, offsets=None, tiles):
    """fp64 [T, Hq, tiles]: unscaled maxima over visible keys."""
    tokens, heads, _ = q.shape
    group = heads // k.shape[1]
    found = torch.full((tokens, heads, tiles), -math.inf, dtype=torch.float64)
    for row, b, first, position, length in rows_of(lens_q, lens_k, offsets):
        last = min(position, length - 1)
        for tile in range(last // BLOCK + 1 if last >= 0 else 0):
            keys = slice(first + tile * BLOCK, first + min((tile + 1) * BLOCK, last + 1))
            for h in range(heads):
                found[row, h, tile] = (k[keys, h // group].double() @ q[row, h].double()).max()
    return found


def rows_of(lens_q, lens_k, offsets=None):
    """(row, request, its first key, position, keys) of each query row."""
    row = first = 0
    for b, (n, m) in enumerate(zip(lens_q, lens_k)):
        offset = m - n if offsets is None else int(offsets[b])
        for i in range(n):
            yield row, b, first, i + offset, m
            row += 1
        first += m


@dataclass
class Batch:
    lens_q: list[int]
    lens_k: list[int]
    q: torch.Tensor
    k: torch.Tensor  # ragged
    v: torch.Tensor

    def plan_lens(self):
        return torch.tensor(self.lens_q, dtype=torch.int32), torch.tensor(self.lens_k, dtype=torch.int32)

    def cu(self, lens):
        return torch.tensor([0, *lens], dtype=torch.int32).cumsum(0, dtype=torch.int32)

    def ids(self, topk, heads, seed=3, shuffled=False):
        """int32 [T, heads, topk]: visible blocks of each row, some of them, ascending or shuffled."""
        draw = torch.Generator().manual_seed(seed)
        ids = torch.full((self.q.shape[0], heads, topk), -1, dtype=torch.int32)
        for row, _, _, position, length in rows_of(self.lens_q, self.lens_k):
            last = min(position, length - 1)
            visible = last // BLOCK + 1 if last >= 0 else 0
            for h in range(heads):
                chosen = torch.randperm(visible, generator=draw)[:topk].to(torch.int32)
                ids[row, h, : len(chosen)] = chosen if shuffled else chosen.sort().values
        return ids

    def pages(self, size=BLOCK, spare=2, order="hnd", slack=0):
        """(K pages, V pages, kv_indices): NaN where no key stands; the list in shuffled order, with
        slack entries behind it."""
        counts = [-(-n // size) for n in self.lens_k]
        total = sum(counts) + spare
        where = torch.randperm(total, generator=torch.Generator().manual_seed(5))[: sum(counts)].to(torch.int32)
        stored = []
        for keys in (self.k, self.v):
            shape = (total, size, keys.shape[1], keys.shape[2])
            pages = torch.full(shape, math.nan, dtype=keys.dtype)
            first = page = 0
            for length, count in zip(self.lens_k, counts):
                for n in range(count):
                    part = keys[first + n * size : first + min((n + 1) * size, length)]
                    pages[int(where[page + n]), : len(part)] = part
                first, page = first + length, page + count
            heads_outside = pages.permute(0, 2, 1, 3)
            stored.append(heads_outside.contiguous() if order == "hnd" else heads_outside)
        tail = torch.zeros(slack, dtype=torch.int32)
        return stored[0], stored[1], torch.cat([where, tail])

    def page_table(self, kv_indices, size=BLOCK):
        counts = [-(-n // size) for n in self.lens_k]
        table = torch.zeros(len(counts), max([*counts, 1]), dtype=torch.int32)
        first = 0
        for b, count in enumerate(counts):
            table[b, :count] = kv_indices[first : first + count]
            first += count
        return table


def make_batch(lens_q, lens_k, heads=4, heads_kv=2, dim=32, dtype=torch.float32, seed=1):
    draw = torch.Generator().manual_seed(seed)
    shapes = ((sum(lens_q), heads, dim), (sum(lens_k), heads_kv, dim), (sum(lens_k), heads_kv, dim))
    return Batch(list(lens_q), list(lens_k), *(torch.randn(s, generator=draw).to(dtype) for s in shapes))


def close(given, wanted, tolerance=2e-5):
    given, wanted = given.double(), wanted.double()
    assert torch.equal(torch.isinf(given), torch.isinf(wanted))
    finite = ~torch.isinf(wanted)
    error = (given - wanted)[finite].abs().max().item() if finite.any() else 0.0
    assert error <= tolerance, f"error {error}"


@pytest.fixture(scope="session")
def naive() -> SimpleNamespace:
    return SimpleNamespace(attend=attend, maxima=maxima, rows_of=rows_of, batch=make_batch, close=close)
