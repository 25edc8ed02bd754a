# SPDX-License-Identifier: MIT
"""The bridge that upstream puts before its sparse prefill: a dict of a plan, and a run of it."""
from __future__ import annotations

from typing import Any

import torch

from ._checks import invalid
from .dense import fmha_sm100
from .plan import make_plan


def sparse_fmha_plan(
    qo_segment_lens: torch.Tensor,
    kv_segment_lens: torch.Tensor,
    num_qo_heads: int,
    num_kv_heads: int = -1,
    qo_offset: int | torch.Tensor | None = None,
    num_kv_splits: int = -1,
    page_size: int = -1,
    output_maxscore: bool = False,
    kv_block_num: int = -1,
    causal: bool = True,
    usable_SM_count: int = -1,
    use_fp8_kvcache: bool = False,
) -> dict[str, Any]:
    """The dict of fmha_sm100_plan for sparse attention. num_kv_splits and usable_SM_count are
    accepted and change nothing; with use_fp8_kvcache runs refuse keys that are not e4m3."""
    del num_kv_splits, usable_SM_count
    if kv_block_num < 1:
        invalid("kv_block_num", "ids per query", kv_block_num)
    if output_maxscore:
        invalid("output_maxscore", "False, as sparse attention has no scores", True)
    plan = make_plan(
        qo_segment_lens,
        kv_segment_lens,
        qo_offset,
        heads=(int(num_qo_heads), int(num_kv_heads)),
        page_size=int(page_size),
        output_maxscore=False,
        kv_block_num=int(kv_block_num),
        causal=bool(causal),
        fp8_cache=bool(use_fp8_kvcache),
        device=None,
    )
    plan["MM-SA-Nv"] = True
    return plan


def sparse_fmha(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    plan_info: dict[str, Any],
    out: torch.Tensor | None = None,
    max_score: torch.Tensor | None = None,
    sm_scale: float | None = None,
    q_scale: float | None = None,
    k_scale: float | torch.Tensor | None = None,
    v_scale: float | torch.Tensor | None = None,
    o_scale: float | None = None,
    kv_indices: torch.Tensor | None = None,
    output_maxscore: bool = True,
    output_o: bool = True,
    kv_block_indexes: torch.Tensor | None = None,
    q_offset_override: int | torch.Tensor | None = None,
    check_input_valid: bool = False,
) -> tuple[torch.Tensor | None, None]:
    """(out, None). Shapes as in fmha_sm100; scales, which upstream ignores here, are applied.
    max_score, output_maxscore and output_o are accepted: there are no scores, and always an output."""
    del max_score, output_maxscore, output_o
    if kv_block_indexes is None:
        invalid("kv_block_indexes", "block ids", None)
    result, _ = fmha_sm100(
        q,
        k,
        v,
        plan_info,
        kv_indices=kv_indices,
        kv_block_indexes=kv_block_indexes,
        q_offset_override=q_offset_override,
        out=out,
        sm_scale=sm_scale,
        q_scale=q_scale,
        k_scale=k_scale,
        v_scale=v_scale,
        o_scale=o_scale,
        output_maxscore=False,
        check_input_valid=check_input_valid,
    )
    return result, None
