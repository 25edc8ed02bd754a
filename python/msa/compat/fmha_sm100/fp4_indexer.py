# SPDX-License-Identifier: MIT
"""fp4_indexer_block_scores: block scores of index queries and keys in four bits.

msa's index takes NVFP4 keys on the CPU alone and queries in four bits nowhere. Queries and the listed pages of keys are
written out in bf16, which holds every code times its scale, and then scored: upstream's numbers, not its speed."""
from __future__ import annotations

from typing import Callable, NamedTuple

import torch

from msa import torch as ops

from ._checks import BLOCK, E4M3, invalid, want_int32
from ._four_bits import COLS, LANES, ROWS, bytes_of, e4m3_numbers, e8m0_numbers, from_tiles, scales_of, values_of
from ._pages import page_table

_LAYOUTS = ("preordered_mma", "public")


class _Format(NamedTuple):
    group: int  # elements that share a scale
    scale: torch.dtype
    numbers: Callable[[torch.Tensor], torch.Tensor]  # of scales as bytes


_FORMATS = {
    "mxfp4": _Format(32, torch.float8_e8m0fnu, e8m0_numbers),
    "nvfp4": _Format(16, E4M3, e4m3_numbers),
}


def fp4_indexer_block_scores(
    q_fp4: torch.Tensor,
    k_fp4: torch.Tensor,
    q_scale: torch.Tensor,
    k_scale: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    cu_page_offsets: torch.Tensor,
    *,
    max_seqlen_q: int,
    max_seqlen_k: int,
    kv_indices: torch.Tensor,
    fp4_format: str,
    causal: bool = False,
    qo_offset: int | torch.Tensor | None = None,
    scale_layout: str = "preordered_mma",
) -> torch.Tensor:
    """f32 [Hq, ceil(max_seqlen_k / 128), T]: the largest dot product of each page of 128 keys, -inf where nothing is
    visible.

    q_fp4: bytes [T, Hq, D / 2]. k_fp4: bytes [P, Hkv, 128, D / 2]. fp4_format: "mxfp4", e8m0 scales of 32 elements, or
    "nvfp4", e4m3 scales of 16. scale_layout: "public", q_scale [T, Hq, groups] and k_scale [P, Hkv, 128, groups], any
    strides, or "preordered_mma", contiguous tiles [L, tiles of rows, tiles of groups, 32, 4, 4], L and rows Hq and T
    of queries, P * Hkv and 128 of keys. kv_indices: int32, the pages of one request after the other, those of request
    b from cu_page_offsets[b] on. cu_seqlens_q, cu_seqlens_k, cu_page_offsets: int32 [B + 1]. qo_offset: int or int32
    [B], position of each request's first query, with causal alone; left out: its last query stands on its last key.
    """
    kind = _checked_format(fp4_format, scale_layout)
    if qo_offset is not None and not causal:
        invalid("qo_offset", "None without causal", qo_offset)
    q, k = _checked_codes(q_fp4, k_fp4, kind)
    device = q.device
    want_int32("cu_seqlens_q", cu_seqlens_q, 1, device)
    requests = want_int32("cu_seqlens_k", cu_seqlens_k, 1, device).shape[0] - 1
    if want_int32("cu_page_offsets", cu_page_offsets, 1, device).shape[0] != requests + 1:
        invalid("cu_page_offsets", f"[{requests + 1}] as cu_seqlens_k", tuple(cu_page_offsets.shape))
    listed = want_int32("kv_indices", kv_indices, 1, device)
    exists = (listed >= 0) & (listed < k.shape[0])
    tiled = scale_layout != "public"
    index_q = _queries(q, scales_of("q_scale", q_scale, kind.scale), kind, tiled)
    index_k = _pages(k, scales_of("k_scale", k_scale, kind.scale), kind, tiled, torch.where(exists, listed, 0))
    # Pages lie in the order of the list now; one that does not exist is left for the library to find.
    order = torch.where(exists, torch.arange(listed.shape[0], dtype=torch.int32, device=device), -1)
    columns = -(-int(max_seqlen_k) // BLOCK)
    scores = torch.empty((q.shape[1], columns, q.shape[0]), dtype=torch.float32, device=device)
    ops.block_scores(
        index_q,
        index_k.permute(0, 2, 1, 3),
        cu_seqlens_q=cu_seqlens_q,
        seqlens_k=cu_seqlens_k.diff(),
        q_offsets=_offsets(qo_offset, requests, device),
        page_table=page_table(order, cu_page_offsets, columns),
        block_size=BLOCK,
        causal=bool(causal),
        max_seqlen_q=int(max_seqlen_q),
        max_seqlen_k=int(max_seqlen_k),
        scores=scores.permute(2, 0, 1),
    )
    return scores


# ---- checks ----


def _checked_format(fp4_format: str, scale_layout: str) -> _Format:
    if fp4_format not in _FORMATS:
        invalid("fp4_format", f"one of {tuple(_FORMATS)}", repr(fp4_format))
    if scale_layout not in _LAYOUTS:
        invalid("scale_layout", f"one of {_LAYOUTS}", repr(scale_layout))
    return _FORMATS[fp4_format]


def _checked_codes(q_fp4: torch.Tensor, k_fp4: torch.Tensor, kind: _Format) -> tuple[torch.Tensor, torch.Tensor]:
    q, k = bytes_of("q_fp4", q_fp4), bytes_of("k_fp4", k_fp4)
    if q.dim() != 3 or 2 * q.shape[2] % kind.group:
        invalid("q_fp4", f"[tokens, heads, D / 2], D a multiple of {kind.group}", tuple(q.shape))
    if k.dim() != 4 or k.shape[2] != BLOCK or k.shape[3] != q.shape[2]:
        invalid("k_fp4", f"[pages, heads, {BLOCK}, {q.shape[2]}]", tuple(k.shape))
    if k.device != q.device:
        invalid("k_fp4", f"a tensor on {q.device}", k.device)
    return q, k


def _check_scales(name: str, scale: torch.Tensor, shape: tuple[int, ...], device: torch.device, tiled: bool) -> None:
    if tuple(scale.shape) != shape or (tiled and not scale.is_contiguous()):
        form = f"contiguous {shape}" if tiled else f"{shape}"
        invalid(name, form, f"{tuple(scale.shape)} with strides {scale.stride()}")
    if scale.device != device:
        invalid(name, f"a tensor on {device}", scale.device)


def _offsets(given: int | torch.Tensor | None, requests: int, device: torch.device) -> torch.Tensor | None:
    if given is None:
        return None
    if isinstance(given, int):
        return torch.full((requests,), given, dtype=torch.int32, device=device)
    if tuple(want_int32("qo_offset", given, 1, device).shape) != (requests,):
        invalid("qo_offset", f"[{requests}], or an int", tuple(given.shape))
    return given


# ---- numbers ----


def _queries(q: torch.Tensor, scale: torch.Tensor, kind: _Format, tiled: bool) -> torch.Tensor:
    """bf16 [T, Hq, D]."""
    groups = 2 * q.shape[2] // kind.group
    shape = _tiles(q.shape[1], q.shape[0], groups) if tiled else (*q.shape[:2], groups)
    _check_scales("q_scale", scale, shape, q.device, tiled)
    if tiled:
        scale = _from_mma(scale, q.shape[0], groups).permute(1, 0, 2)
    return values_of(q, kind.numbers(scale), torch.bfloat16)


def _pages(k: torch.Tensor, scale: torch.Tensor, kind: _Format, tiled: bool, listed: torch.Tensor) -> torch.Tensor:
    """bf16 [listed, Hkv, 128, D]: the listed pages alone, one after the other."""
    groups = 2 * k.shape[3] // kind.group
    pages, heads = k.shape[:2]
    shape = _tiles(pages * heads, BLOCK, groups) if tiled else (*k.shape[:3], groups)
    _check_scales("k_scale", scale, shape, k.device, tiled)
    if pages == 0:
        return torch.empty((0, heads, BLOCK, 2 * k.shape[3]), dtype=torch.bfloat16, device=k.device)
    scale = scale.view(pages, heads, *shape[1:]) if tiled else scale
    scale = scale.index_select(0, listed)
    if tiled:
        scale = _from_mma(scale.flatten(0, 1), BLOCK, groups).reshape(-1, heads, BLOCK, groups)
    return values_of(k.index_select(0, listed), kind.numbers(scale), torch.bfloat16)


def _tiles(matrices: int, rows: int, groups: int) -> tuple[int, ...]:
    return matrices, -(-rows // ROWS), -(-groups // COLS), LANES, ROWS // LANES, COLS


def _from_mma(scale: torch.Tensor, rows: int, groups: int) -> torch.Tensor:
    """[matrices, rows, groups] of tiles, a copy."""
    matrices, tall, wide = scale.shape[:3]
    linear = from_tiles(scale.reshape(matrices * tall * ROWS, wide * COLS))
    return linear.view(matrices, tall * ROWS, wide * COLS)[:, :rows, :groups]
