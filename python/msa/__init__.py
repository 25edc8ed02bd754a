# SPDX-License-Identifier: MIT
"""MiniMax Sparse Attention for CPUs and NVIDIA Hopper GPUs, on the arrays of any library that speaks DLPack.

    out = msa.msa_attention(q, k, v, index_q, index_k)

Importing msa imports neither numpy nor torch. msa.torch holds the same operations as registered torch ops.
"""
from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from . import plans
from ._core import __version__
from .cache import PagedCache
from .errors import (DeviceError, Error, InternalError, InvalidArgument, InvalidContent, OutOfMemory, Unsupported,
                     WorkspaceError)
from .operations import (block_scores, dense_attention, dense_attention_backward, index_loss, invert_selection,
                         merge_selections, merge_states, msa_attention, quantize_index, quantize_kv, select_blocks,
                         select_topk, sparse_attention, sparse_attention_backward)
from .plans import Plan, check, make_plan, supports
from .plans import machine as info
from .results import (Attention, AttentionBlocks, AttentionMaxima, Fault, Gradients, IndexCopy, IndexLoss, Inverse,
                      OutBlocks, OutMaxima, ScoredCandidates, Selection, SelectionCandidates, Stored, StoredScales)

__all__ = [
    "Attention", "AttentionBlocks", "AttentionMaxima", "DeviceError", "Error", "Fault", "Gradients", "IndexCopy",
    "IndexLoss", "InternalError", "InvalidArgument", "InvalidContent", "Inverse", "OutBlocks", "OutMaxima",
    "OutOfMemory", "PagedCache", "Plan", "Selection", "Stored", "StoredScales", "Unsupported", "WorkspaceError",
    "__version__", "block_scores", "check", "dense_attention", "dense_attention_backward", "index_loss", "info",
    "invert_selection", "make_plan", "merge_selections", "merge_states", "msa_attention", "plans", "quantize_index",
    "quantize_kv", "select_blocks", "select_topk", "show", "sparse_attention", "sparse_attention_backward", "stats",
    "supports",
]

# Loaded when they are first asked for: each stands on a library that not every process has, or is seldom needed.
_LATER = ("compat", "distributed", "integrations", "nn", "show", "stats", "torch")


if TYPE_CHECKING:
    from . import show, stats
else:
    def __getattr__(name: str) -> Any:
        if name in _LATER:
            try:
                return importlib.import_module(f"{__name__}.{name}")
            except ModuleNotFoundError as error:
                if error.name != f"{__name__}.{name}":
                    raise
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATER})
