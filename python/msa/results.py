# SPDX-License-Identifier: MIT
"""Named tuples of the operations that write more than one output, by the outputs in them."""
from __future__ import annotations

from typing import Any, NamedTuple

__all__ = ["Attention", "AttentionBlocks", "AttentionMaxima", "Fault", "Gradients", "IndexGradients", "IndexLoss",
           "Inverse", "KeyValueGradients", "LossKeyGradients", "LossQueryGradients", "OutBlocks", "OutMaxima",
           "QueryKeyGradients", "QueryValueGradients", "ScoredCandidates", "Selection", "SelectionCandidates",
           "Stored", "StoredScales", "result_class"]


class Attention(NamedTuple):
    """An output and the logarithm of its softmax's sum."""

    out: Any
    lse: Any


class OutMaxima(NamedTuple):
    """An output and the unscaled maximum of each block."""

    out: Any
    block_max: Any


class AttentionMaxima(NamedTuple):
    """Everything that dense attention writes."""

    out: Any
    lse: Any
    block_max: Any


class OutBlocks(NamedTuple):
    """An output and the blocks that it was computed from."""

    out: Any
    block_ids: Any


class AttentionBlocks(NamedTuple):
    """Everything that whole sparse attention writes."""

    out: Any
    lse: Any
    block_ids: Any


class Selection(NamedTuple):
    """Chosen blocks and their scores."""

    block_ids: Any
    chosen_scores: Any


class SelectionCandidates(NamedTuple):
    """Chosen blocks, and how many were scored from their keys."""

    block_ids: Any
    candidates: Any


class ScoredCandidates(NamedTuple):
    """Everything that a selection with a filter writes."""

    block_ids: Any
    chosen_scores: Any
    candidates: Any


class Inverse(NamedTuple):
    """For each block its queries, as compressed rows."""

    row_ptr: Any
    q_indices: Any
    q_slots: Any


class Stored(NamedTuple):
    """Keys and values as a cache holds them."""

    k_cache: Any
    v_cache: Any


class StoredScales(NamedTuple):
    """Keys and values as a cache holds them, and the scales that were worked out."""

    k_cache: Any
    v_cache: Any
    k_scale_cache: Any
    v_scale_cache: Any


class IndexCopy(NamedTuple):
    """The filter of index keys that selections take."""

    index_k8: Any
    index_k8_bounds: Any


class Gradients(NamedTuple):
    """Gradients of queries, keys and values."""

    dq: Any
    dk: Any
    dv: Any


class QueryKeyGradients(NamedTuple):
    """Gradients of queries and keys."""

    dq: Any
    dk: Any


class QueryValueGradients(NamedTuple):
    """Gradients of queries and values."""

    dq: Any
    dv: Any


class KeyValueGradients(NamedTuple):
    """Gradients of keys and values."""

    dk: Any
    dv: Any


class IndexLoss(NamedTuple):
    """The loss of the index branch by row and head, and its gradients."""

    loss: Any
    d_index_q: Any
    d_index_k: Any


class IndexGradients(NamedTuple):
    """Gradients of index queries and index keys."""

    d_index_q: Any
    d_index_k: Any


class LossQueryGradients(NamedTuple):
    """The loss of the index branch and the gradients of index queries."""

    loss: Any
    d_index_q: Any


class LossKeyGradients(NamedTuple):
    """The loss of the index branch and the gradients of index keys."""

    loss: Any
    d_index_k: Any


class Fault(NamedTuple):
    """The first fault that a run on a GPU met in its index tensors."""

    request: int
    row: int
    what: str


_CLASSES: dict[tuple[str, ...], Any] = {
    c._fields: c for c in (Attention, OutMaxima, AttentionMaxima, OutBlocks, AttentionBlocks, Selection,
                           SelectionCandidates, ScoredCandidates, Inverse, Stored, StoredScales, IndexCopy, Gradients,
                           QueryKeyGradients, QueryValueGradients, KeyValueGradients, IndexLoss, IndexGradients,
                           LossQueryGradients, LossKeyGradients)}


def result_class(fields: tuple[str, ...]) -> Any:
    """The class of a result with these fields."""
    return _CLASSES[fields]
