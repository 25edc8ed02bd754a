# SPDX-License-Identifier: MIT
"""Calls that a type checker must refuse: one error on each line that says so."""
import numpy as np

import msa

q = np.ones((1, 1, 16), np.float32)
msa.dense_attention("q", q, q)  # error
msa.dense_attention(q, q, q, 3)  # error
msa.dense_attention(q, q, q, causal="yes")  # error
msa.dense_attention(q, q, q, colour=1)  # error
msa.dense_attention(q, q, q, block_size=12.5)  # error
msa.sparse_attention(q, q, q)  # error
msa.merge_states(3, [q])  # error
msa.check(None, None)  # error
msa.nothing  # error
msa.PagedCache.empty(q, pages="many", heads_kv=1, head_dim=16)  # error
