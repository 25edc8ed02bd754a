# SPDX-License-Identifier: MIT
"""Upstream compiles kernels at first use and offers to do it earlier. msa's are in the library, so
these do nothing but say so."""
from __future__ import annotations

from typing import Any, Sequence

_NOTHING = "msa compiles nothing at run time: every kernel is in the library, so there is nothing to warm up"


def warmup(
    kv_cache_dtype: str = "bf16",
    index_cache_dtype: str = "bf16",
    num_q_heads: int | None = None,
    num_kv_heads: int | None = None,
    topk: int | None = None,
    decode_query_lens: Sequence[int] = (),
    **more: Any,
) -> str:
    """Returns the sentence that says why nothing was done."""
    return _NOTHING


def plan_warmup(*args: Any, **kwargs: Any) -> str:
    """Returns the sentence that says why nothing was done."""
    return _NOTHING
