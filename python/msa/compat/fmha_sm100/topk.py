# SPDX-License-Identifier: MIT
"""sparse_topk_select: the best tiles of each row of scores, exactly, ties to the lower tile."""
from __future__ import annotations

from typing import Any

import torch

from msa import torch as ops

from ._checks import BLOCK, invalid, not_served, want_int32, want_tensor

_NO_TILE = torch.iinfo(torch.int32).max


def sparse_topk_select(
    max_score: torch.Tensor,
    topk: int,
    num_valid_pages: int | torch.Tensor | None = None,
    output: torch.Tensor | None = None,
    force_begin_blocks: int = 0,
    force_end_blocks: int = 0,
    max_score_layout: str = "HKT",
    block_table: torch.Tensor | None = None,
    seq_lens: torch.Tensor | None = None,
    block_size: int = 0,
    decode_query_len: int = 0,
) -> torch.Tensor:
    """int32 [T, H, topk]: ids of tiles, ascending, -1 at the tail.

    max_score: f32 [H, K, T] ("HKT") or [T, H, K] ("THK"), any strides. num_valid_pages: tiles that
    count, for all rows (host int) or for each token (int32 or int64 [T] on the device); left out: up
    to each token's last tile that is not -inf. force_begin_blocks, force_end_blocks: the first and
    the last tiles that count are always chosen. Tiles that score -inf are never chosen otherwise.
    output: int32 [T, H, topk], any strides. block_table: int32 [T, H, K]: the result holds its
    entries in place of the ids.
    """
    scores = _tokens_first(max_score, max_score_layout)
    tokens, heads, tiles = scores.shape
    if seq_lens is not None or block_size or decode_query_len or (block_table is not None and block_table.dim() == 2):
        not_served("a block_table [requests, blocks] with seq_lens", "give block_table [T, H, K]", "block_table")
    _check_forced(topk, force_begin_blocks, force_end_blocks)
    if output is not None and tuple(want_int32("output", output, 3, scores.device).shape) != (tokens, heads, topk):
        invalid("output", f"{(tokens, heads, topk)}", tuple(output.shape))
    ids = torch.empty((tokens, heads, topk), dtype=torch.int32, device=scores.device)
    chosen = torch.empty((tokens, heads, topk), dtype=torch.float32, device=scores.device)
    ops.select_topk(
        scores,
        topk=topk,
        local_blocks=force_end_blocks,
        init_blocks=force_begin_blocks,
        block_size=BLOCK,
        block_ids=ids,
        chosen_scores=chosen,
        **_lengths(scores, num_valid_pages),
    )
    ids = _without_hidden(ids, chosen)
    if block_table is not None:
        ids = _looked_up(ids, block_table, (tokens, heads, tiles))
    if output is None:
        return ids
    return output.copy_(ids)


def _tokens_first(max_score: torch.Tensor, layout: str) -> torch.Tensor:
    if want_tensor("max_score", max_score).dtype != torch.float32:
        raise TypeError(f"max_score: expected float32, got {max_score.dtype}")
    if max_score.dim() != 3:
        invalid("max_score", "[H, K, T] or [T, H, K]", tuple(max_score.shape))
    if layout.upper() not in ("HKT", "THK"):
        invalid("max_score_layout", "'HKT' or 'THK'", repr(layout))
    return max_score if layout.upper() == "THK" else max_score.permute(2, 0, 1)


def _check_forced(topk: int, begin: int, end: int) -> None:
    if topk < 1:
        invalid("topk", "1 or more", topk)
    if begin < 0 or end < 0 or begin + end > topk:
        invalid("force_begin_blocks", f"forced blocks of at most topk {topk} together", f"{begin} + {end}")


def _lengths(scores: torch.Tensor, pages: int | torch.Tensor | None) -> dict[str, Any]:
    """How many tiles count, as lengths of keys: one request for all rows, or one for each token."""
    tokens, _, tiles = scores.shape
    device = scores.device
    if isinstance(pages, int):
        if not 0 < pages <= tiles:
            invalid("num_valid_pages", f"1 to {tiles}", pages)
        return {
            "cu_seqlens_q": torch.arange(2, dtype=torch.int32, device=device) * tokens,
            "seqlens_k": torch.full((1,), pages * BLOCK, dtype=torch.int32, device=device),
            "max_seqlen_q": tokens,
            "max_seqlen_k": tiles * BLOCK,
            "causal": False,
        }
    if pages is None:
        pages = _last_scored(scores)
    elif pages.dtype not in (torch.int32, torch.int64) or tuple(pages.shape) != (tokens,) or pages.device != device:
        invalid("num_valid_pages", f"int32 or int64 [{tokens}] on {device}", f"{pages.dtype} {tuple(pages.shape)}")
    return {
        "cu_seqlens_q": torch.arange(tokens + 1, dtype=torch.int32, device=device),
        "seqlens_k": pages.clamp(0, tiles).to(torch.int32) * BLOCK,
        "max_seqlen_q": 1,
        "max_seqlen_k": tiles * BLOCK,
        "causal": False,
    }


def _last_scored(scores: torch.Tensor) -> torch.Tensor:
    """int32 [T]: tiles up to the token's last one that is not -inf in some head."""
    count = torch.arange(1, scores.shape[2] + 1, dtype=torch.int32, device=scores.device)
    if scores.shape[1] == 0 or scores.shape[2] == 0:
        return torch.zeros(scores.shape[0], dtype=torch.int32, device=scores.device)
    return torch.where(scores > float("-inf"), count, 0).amax(dim=(1, 2))


def _without_hidden(ids: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """Drops ids that were taken for want of better ones: their tiles score -inf, so nothing of them
    is visible. Forced ones carry +inf and stay."""
    kept = torch.where(chosen == float("-inf"), _NO_TILE, ids)
    ordered = kept.sort(dim=-1).values
    return torch.where(ordered == _NO_TILE, -1, ordered)


def _looked_up(ids: torch.Tensor, table: torch.Tensor, shape: tuple[int, int, int]) -> torch.Tensor:
    if tuple(want_int32("block_table", table, 3, ids.device).shape) != shape:
        invalid("block_table", f"{shape}", tuple(table.shape))
    return torch.where(ids < 0, -1, table.gather(2, ids.clamp(min=0).to(torch.int64)))
