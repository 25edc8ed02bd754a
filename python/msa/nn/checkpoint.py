# SPDX-License-Identifier: MIT
"""What activation checkpointing must not work out twice."""
from __future__ import annotations

from typing import Any

from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

from ..torch.ops import overload

__all__ = ["keep_selections"]


def keep_selections() -> Any:
    """The context_fn of torch.utils.checkpoint for layers of msa.nn:

        checkpoint(layer, x, use_reentrant=False, context_fn=msa.nn.keep_selections)

    Selections and the loss of the index branch are kept, 4 topk Hkv bytes and 2 Di (Hi + Hik) bytes a token: choosing
    blocks is all that grows with the square of a sequence. Attention is worked out again.
    """
    kept = (overload("select_blocks"), overload("index_loss"))

    def policy(_context: Any, op: Any, *_args: Any, **_given: Any) -> CheckpointPolicy:
        return CheckpointPolicy.MUST_SAVE if op in kept else CheckpointPolicy.PREFER_RECOMPUTE

    return create_selective_checkpoint_contexts(policy)
