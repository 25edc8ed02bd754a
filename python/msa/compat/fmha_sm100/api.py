# SPDX-License-Identifier: MIT
"""Upstream's module `fmha_sm100.api`."""
from __future__ import annotations

from .dense import fmha_sm100
from .plan import fmha_sm100_plan
from .sparse_fmha_adapter import sparse_fmha, sparse_fmha_plan
from .topk import sparse_topk_select

__all__ = ["fmha_sm100", "fmha_sm100_plan", "sparse_fmha", "sparse_fmha_plan", "sparse_topk_select"]
