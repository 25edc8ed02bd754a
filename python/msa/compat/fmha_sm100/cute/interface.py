# SPDX-License-Identifier: MIT
"""Upstream's module `fmha_sm100.cute.interface`: the sparse entries under their other name."""
from __future__ import annotations

from ..sparse import (
    SparseAttentionSchedule,
    SparseDecodePagedAttentionWrapper,
    SparseK2qCsrBuilderSm100,
    build_k2q_csr,
    fp4_indexer_block_scores,
    sparse_atten_func,
    sparse_atten_nvfp4_kv_func,
    sparse_decode_atten_func,
)

__all__ = [
    "SparseAttentionSchedule",
    "SparseDecodePagedAttentionWrapper",
    "SparseK2qCsrBuilderSm100",
    "build_k2q_csr",
    "fp4_indexer_block_scores",
    "sparse_atten_func",
    "sparse_atten_nvfp4_kv_func",
    "sparse_decode_atten_func",
]
