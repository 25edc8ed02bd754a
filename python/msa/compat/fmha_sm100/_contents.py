# SPDX-License-Identifier: MIT
"""check_input_valid: what index tensors hold, read on the host. Waits for the device."""
from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch

from ._checks import BLOCK, bad_content
from .plan import token_by_token


def check_contents(
    plan: dict[str, Any],
    q: torch.Tensor,
    k: torch.Tensor,
    kv_indices: torch.Tensor | None,
    block_ids: torch.Tensor | None,
    offsets: int | torch.Tensor | None,
) -> None:
    starts = plan["qo_segment_offsets"].tolist()
    lengths = plan["kv_segment_lens"].tolist()
    _check_starts("qo_segment_offsets", starts, q.shape[0])
    if min(lengths, default=0) < 0:
        bad_content("kv_segment_lens", "lengths of 0 and above", min(lengths))
    if not token_by_token(plan) and max(lengths, default=0) > plan["max_kv_len"]:
        bad_content("kv_segment_lens", f"at most the planned {plan['max_kv_len']}", max(lengths))
    if isinstance(offsets, torch.Tensor) and tuple(offsets.shape) != (len(lengths),):
        bad_content("q_offset_override", f"{len(lengths)} offsets", tuple(offsets.shape))
    if kv_indices is None:
        _check_rows(plan["kv_segment_offsets"].tolist(), lengths, k.shape[0])
    else:
        _check_pages(plan, lengths, kv_indices, k.shape[0])
    if block_ids is not None:
        _check_lists(block_ids, starts, [-(-n // BLOCK) for n in lengths])


def _check_starts(name: str, starts: list[int], limit: int) -> None:
    if starts[0] != 0 or any(b < a for a, b in pairwise(starts)) or starts[-1] > limit:
        bad_content(name, f"starts from 0, never decreasing, up to {limit}", starts)


def _check_rows(starts: list[int], lengths: list[int], rows: int) -> None:
    _check_starts("kv_segment_offsets", starts, rows)
    for b, (begin, end) in enumerate(pairwise(starts)):
        if lengths[b] > end - begin:
            bad_content("kv_segment_lens", f"at most the {end - begin} rows of request {b}", lengths[b])


def _check_pages(plan: dict[str, Any], lengths: list[int], kv_indices: torch.Tensor, pages: int) -> None:
    starts = plan["kv_page_indptr"].tolist()
    _check_starts("kv_page_indptr", starts, kv_indices.shape[0])
    listed = kv_indices.tolist()
    for b, length in enumerate(lengths):
        used = -(-length // plan["page_size"])
        if used > starts[b + 1] - starts[b]:
            bad_content("kv_page_indptr", f"{used} pages for the {length} keys of request {b}", starts[b + 1] - starts[b])
        for page in listed[starts[b] : starts[b] + used]:
            if not 0 <= page < pages:
                bad_content("kv_indices", f"pages 0 to {pages - 1} in request {b}", page)


def _check_lists(block_ids: torch.Tensor, starts: list[int], blocks: list[int]) -> None:
    for b, (begin, end) in enumerate(pairwise(starts)):
        ids = block_ids[begin:end].cpu()
        if ids.numel() == 0:
            continue
        listed = ids >= 0
        if bool((ids < -1).any()) or int(ids.max()) >= blocks[b]:
            bad_content("kv_block_indexes", f"0 to {blocks[b] - 1} or -1 in request {b}", [int(ids.min()), int(ids.max())])
        if bool((listed[..., 1:] & ~listed[..., :-1]).any()):
            bad_content("kv_block_indexes", f"-1 at the tail alone in request {b}", "an id behind a -1")
        if bool((listed[..., 1:] & (ids[..., 1:] <= ids[..., :-1])).any()):
            bad_content("kv_block_indexes", f"strictly ascending ids in request {b}", "a smaller or equal one")
