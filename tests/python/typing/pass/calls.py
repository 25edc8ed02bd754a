# SPDX-License-Identifier: MIT
"""Calls that a type checker must accept."""
import numpy as np

import msa
from msa import Fault, Plan

q = np.ones((1, 1, 16), np.float32)
lens: "np.ndarray[tuple[int], np.dtype[np.int32]]" = np.array([1], np.int32)
out = msa.dense_attention(q, q, q, seqlens_k=lens, causal=False, softmax_scale=0.5, return_lse=True)
msa.merge_states([q, q], (q, q))
msa.dense_attention(q, q, return_block_max=True, max_seqlen_k=1, backend="cpu", stream=None, dtype="bf16")
plan: Plan = msa.make_plan("dense_attention", q=q, k=q, v=q)
size: int = plan.workspace_bytes
backend: str = plan.backend
fault: Fault | None = msa.check(plan, None)
cache = msa.PagedCache.empty(q, pages=1, heads_kv=1, head_dim=16)
number: int = cache.add()
longest: int = cache.batch([number])["max_seqlen_k"]
hits: int = msa.plans.info().hits
try:
    pass
except msa.Error as error:
    where: str = error.argument
