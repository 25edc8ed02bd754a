# SPDX-License-Identifier: MIT
"""Layers that train: sparse attention with its index branch, and the loss that teaches it where to look.

    layer = msa.nn.SparseAttention(msa.nn.SparseAttentionConfig(width=1024, heads=16, heads_kv=2))
    layer.warm_up = True                      # attend to everything until the index branch has learnt
    attended = layer(x)                       # x: [B, S, width]
    loss = loss_of_the_model + attended.index_loss

The index branch reads x without handing gradients back to it, and learns from index_loss alone; everything else learns
from the model's loss alone. Warm up first: in the sparse phase a block that nobody lists teaches nobody.
"""
from __future__ import annotations

from .attention import Attended, SparseAttention, SparseAttentionConfig
from .checkpoint import keep_selections
from .loss import index_loss
from .work import Work, training_work

__all__ = [
    "Attended", "SparseAttention", "SparseAttentionConfig", "Work", "index_loss", "keep_selections", "training_work",
]
