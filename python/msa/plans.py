# SPDX-License-Identifier: MIT
"""Plans: made by hand where calls repeat within known bounds, and kept by value for the one-call forms.

The one-call forms round their bounds up (eight steps between powers of two) and keep the last `capacity` plans of this
process; workspaces are never kept.
"""
from __future__ import annotations

from typing import Any, NamedTuple

from . import _core
from ._core import Plan
from .arrays import Array
from .results import Fault

__all__ = ["CacheInfo", "Plan", "Support", "check", "clear", "info", "machine", "make_plan", "resize", "supports"]


class CacheInfo(NamedTuple):
    """How the plans of the one-call forms fare."""

    hits: int
    misses: int
    size: int
    capacity: int


class Support(NamedTuple):
    """Who would serve a problem: the answer, and each backend's "yes" or reason ("error" where it is illegal)."""

    supported: bool
    reasons: dict[str, str]

    def __bool__(self) -> bool:
        return self.supported


def make_plan(op: str, **given: Any) -> Plan:
    """Plans an operation, from tensors of a call or from numbers.

    From tensors: the inputs under their names, lse=True (or an array) for each optional output, settings, and bounds
    where later calls will be larger: total_q, batch, max_seqlen_q, max_seqlen_k.
    From numbers: batch, total_q, max_seqlen_q, max_seqlen_k, page_size, parts, dtype, kv, heads_q, heads_kv, head_dim,
    value_dim, index_dtype, index_heads, index_heads_k, index_dim, index_k_format ("e4m3/page"), index_filter
    ("i8/page", "i8/page/rotated"), out_dtype, output, lse, block_max, chosen_scores, device ("cuda:0"), and the
    settings.

    >>> plan = msa.make_plan("sparse_attention", dtype="bf16", total_q=16, max_seqlen_k=4096, heads_q=8, heads_kv=2,
    ...                      head_dim=64, value_dim=64, topk=4)
    >>> plan.op, plan.backend
    ('sparse_attention', 'cpu')
    """
    return _core.make_plan(op, **given)


def supports(op: str, **given: Any) -> Support:
    """Who would serve what make_plan(op, **given) would plan; true where somebody does.

    >>> bool(msa.supports("merge_states", dtype="f32", parts=2, total_q=1, heads_q=1, value_dim=8))
    True
    """
    supported, text = _core.supports(op, **given)
    reasons: dict[str, str] = {}
    for line in text.splitlines():
        backend, found, reason = line.partition(": ")
        known = found and backend in ("cpu", "cuda", "reference")
        reasons[backend if known else "error"] = reason if known else line
    return Support(supported, reasons)


def check(plan: Plan, workspace: Array | None, stream: Any = None) -> Fault | None:
    """Waits for the stream and tells the first fault that the last run on a GPU met in its index tensors."""
    if not isinstance(plan, Plan):
        raise TypeError(f"plan: expected a Plan, got {type(plan).__name__}")
    fault = plan._check(workspace, stream)
    return None if fault is None else Fault(*fault)


def machine() -> dict[str, Any]:
    """What this build holds and what this machine offers.

    >>> "reference" in [backend["name"] for backend in msa.info()["backends"]]
    True
    """
    import json  # here alone, and no part of what every import pays

    described: dict[str, Any] = json.loads(_core.info())
    return described


def info() -> CacheInfo:
    """Of the plans that the one-call forms keep."""
    return CacheInfo(*_core.plans_info())


def clear() -> None:
    """Forgets every kept plan, and the counts."""
    _core.plans_clear()


def resize(capacity: int) -> None:
    """How many plans are kept; 0 keeps none."""
    _core.plans_resize(capacity)
