# SPDX-License-Identifier: MIT
"""The mask function behind attn_implementation="msa": each row's first slot, int32 [B], or None where no row is padded.
Of the same shape at every step and never queries x keys."""
from __future__ import annotations

from typing import Any

import torch
from transformers.masking_utils import causal_mask_function

from .refusals import refuse, require, tracing

MODEL_TYPES = ("minimax_m3_vl", "minimax_m3_vl_text")


def first_slots(mask: torch.Tensor) -> torch.Tensor | None:
    """Where each row of a 2-D mask begins; its width for a row of padding alone."""
    real = mask != 0  # [B, N]
    width = mask.shape[1]
    slots = torch.arange(width, device=mask.device)
    first = torch.where(real, slots, width).amin(-1)  # [B]
    last = torch.where(real, slots, -1).amax(-1)
    count = real.sum(-1)
    require(((count == 0) | (last - first + 1 == count)).all(), "mask_holes", "zeros between ones")
    if not tracing() and not bool(first.any()):
        return None
    return first.to(torch.int32)


def mask_function(
    batch_size: int | None = None,
    q_length: int | None = None,
    kv_length: int | None = None,
    q_offset: int | torch.Tensor = 0,
    kv_offset: int = 0,
    mask_function: Any = causal_mask_function,
    attention_mask: torch.Tensor | None = None,
    config: Any = None,
    **unused: Any,
) -> torch.Tensor | None:
    """What transformers calls while preparing inputs; the keywords are its own."""
    if config is not None and config.model_type not in MODEL_TYPES:
        refuse("other_model", f"a model of type {config.model_type}")
    # Without cache and mask, tracing always wraps the causal rule in one for packed sequences; positions
    # are then checked by the model's forward.
    if mask_function is not causal_mask_function and not tracing():
        refuse("mask_function", "a mask function that is not the causal one")
    if attention_mask is None:
        return None
    if attention_mask.ndim == 4:
        refuse("mask_4d", f"a mask of shape {tuple(attention_mask.shape)}")
    if attention_mask.ndim != 2:
        refuse("mask_kind", f"a mask of shape {tuple(attention_mask.shape)}")
    return first_slots(attention_mask)
