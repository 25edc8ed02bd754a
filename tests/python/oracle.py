# SPDX-License-Identifier: MIT
"""The operations once more, in numpy and double precision, straight from docs/contract.md: what the tests compare with.

One request at a time; keys are dense [N, heads, dim]. Slow, and short enough to be read against the contract.
"""
from __future__ import annotations

import dataclasses

import numpy as np


@dataclasses.dataclass
class Request:
    """Rows of one request and where they stand."""

    rows: slice
    keys: np.ndarray  # indices into the rows of keys
    offset: int

    def last(self, row: int, causal: bool) -> int:
        """The last visible key of a query row, -1 where there is none."""
        count = len(self.keys)
        return min(row + self.offset, count - 1) if causal else count - 1


def requests_of(lens, starts=None):
    """Requests of (queries, keys) pairs whose rows lie one after the other; starts: first key row of each."""
    found, row, key = [], 0, 0
    for i, (queries, keys) in enumerate(lens):
        first = key if starts is None else starts[i]
        found.append(Request(slice(row, row + queries), np.arange(first, first + keys), keys - queries))
        row, key = row + queries, key + keys
    return found


def block_scores(index_q, index_k, requests, block, causal, blocks):
    """[T, Hi, blocks]: the largest dot product of each block."""
    index_q, index_k = index_q.astype(np.float64), index_k.astype(np.float64)
    rows, heads, _ = index_q.shape
    group = heads // index_k.shape[1]
    scores = np.full((rows, heads, blocks), -np.inf)
    for request in requests:
        for i, row in enumerate(range(request.rows.start, request.rows.stop)):
            last = request.last(i, causal)
            for head in range(heads):
                keys = index_k[request.keys[:last + 1], head // group]
                dots = keys @ index_q[row, head]
                for b in range(last // block + 1 if last >= 0 else 0):
                    scores[row, head, b] = dots[b * block:(b + 1) * block].max()
    return scores


def select(scores, requests, block, topk, local, init, causal):
    """[T, Hi, topk]: forced blocks, then higher scores, then lower ids; ascending, -1 behind."""
    rows, heads, _ = scores.shape
    ids = np.full((rows, heads, topk), -1, np.int32)
    chosen = np.full((rows, heads, topk), -np.inf)
    for request in requests:
        for i, row in enumerate(range(request.rows.start, request.rows.stop)):
            visible = request.last(i, causal) // block + 1 if request.last(i, causal) >= 0 else 0
            for head in range(heads):
                forced = {b for b in range(visible) if b < init or b >= visible - local}
                order = sorted(range(visible), key=lambda b: (b not in forced, -scores[row, head, b], b))[:topk]
                for slot, b in enumerate(sorted(order)):
                    ids[row, head, slot] = b
                    chosen[row, head, slot] = np.inf if b in forced else scores[row, head, b]
    return ids, chosen


def attention(q, k, v, requests, block, causal, scale=None, ids=None):
    """out [T, Hq, Dv] and lse [T, Hq]; ids None: every block."""
    q, k, v = (x.astype(np.float64) for x in (q, k, v))
    rows, heads, dim = q.shape
    group = heads // k.shape[1]
    scale = 1 / np.sqrt(dim) if scale is None else scale
    out, lse = np.zeros((rows, heads, v.shape[2])), np.full((rows, heads), -np.inf)
    for request in requests:
        for i, row in enumerate(range(request.rows.start, request.rows.stop)):
            last = request.last(i, causal)
            for head in range(heads):
                at = np.arange(last + 1)
                if ids is not None:
                    listed = ids[row, head // group]
                    stop = list(listed).index(-1) if -1 in listed else len(listed)
                    at = at[np.isin(at // block, listed[:stop])]
                if len(at) == 0:
                    continue
                keys = request.keys[at]
                logits = k[keys, head // group] @ q[row, head] * scale
                top = logits.max()
                weights = np.exp(logits - top)
                out[row, head] = weights @ v[keys, head // group] / weights.sum()
                lse[row, head] = top + np.log(weights.sum())
    return out, lse


def block_maxima(q, k, requests, block, causal, blocks):
    """[T, Hq, blocks]: block_scores with the attention's own queries and keys."""
    return block_scores(q, k, requests, block, causal, blocks)


def merge_states(outs, lses):
    """Of parts [T, H, D] and [T, H]."""
    outs, lses = np.asarray(outs, np.float64), np.asarray(lses, np.float64)
    top = lses.max(0)
    weights = np.exp(lses - np.where(np.isfinite(top), top, 0))
    total = weights.sum(0)
    safe = np.where(total > 0, total, 1)
    return (weights[..., None] * outs).sum(0) / safe[..., None], np.where(total > 0, np.log(safe) + top, -np.inf)


def invert(ids, requests, block):
    """(row_ptr, q_indices, q_slots) of ids [T, Hkv, k], as lists by head."""
    _, heads, topk = ids.shape
    found = []
    for head in range(heads):
        ptr, indices, slots = [0], [], []
        for request in requests:
            for b in range(-(-len(request.keys) // block)):
                for row in range(request.rows.start, request.rows.stop):
                    for slot in range(topk):
                        if ids[row, head, slot] < 0:
                            break
                        if ids[row, head, slot] == b:
                            indices.append(row)
                            slots.append(slot)
                ptr.append(len(indices))
        found.append((ptr, indices, slots))
    return found
