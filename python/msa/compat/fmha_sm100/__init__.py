# SPDX-License-Identifier: MIT
"""MiniMax's package `fmha_sm100` over msa: the same names, shapes and meanings on CPUs and Hopper GPUs.

Reading order: plan.py, dense.py, topk.py, csr.py, sparse.py, decode.py, nvfp4.py, fp4_indexer.py.
What is served, mended and refused stands in docs/dropin.md. `msa.compat.provide()` makes it importable as `fmha_sm100`.
"""
from __future__ import annotations

from ._checks import NotServed
from .csr import SparseAttentionSchedule, SparseK2qCsrBuilderSm100, build_k2q_csr
from .decode import SparseDecodePagedAttentionWrapper, sparse_decode_atten_func
from .dense import fmha_sm100
from .ffi import register_tvm_ffi
from .fp4_indexer import fp4_indexer_block_scores
from .kvouter import can_run_sparse_kvouter, kvouter_attention
from .plan import fmha_sm100_plan
from .refused import (
    BatchDecodeIndexerQ8KV4Wrapper,
    BatchDecodeIndexerQ8KV8Wrapper,
    BatchPrefillIndexerQ8KV8Wrapper,
    plan_decode,
    run_decode,
    sparse_atten_nvfp4_kv_cache_func,
)
from .sparse import sparse_atten_func, sparse_atten_nvfp4_kv_func
from .topk import sparse_topk_select
from .warm import plan_warmup, warmup

__all__ = [
    "BatchDecodeIndexerQ8KV4Wrapper",
    "BatchDecodeIndexerQ8KV8Wrapper",
    "BatchPrefillIndexerQ8KV8Wrapper",
    "NotServed",
    "SparseAttentionSchedule",
    "SparseDecodePagedAttentionWrapper",
    "SparseK2qCsrBuilderSm100",
    "build_k2q_csr",
    "can_run_sparse_kvouter",
    "fmha_sm100",
    "fmha_sm100_plan",
    "fp4_indexer_block_scores",
    "kvouter_attention",
    "plan_decode",
    "plan_warmup",
    "register_tvm_ffi",
    "run_decode",
    "sparse_atten_func",
    "sparse_atten_nvfp4_kv_cache_func",
    "sparse_atten_nvfp4_kv_func",
    "sparse_decode_atten_func",
    "sparse_topk_select",
    "warmup",
]
