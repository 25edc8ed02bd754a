# SPDX-License-Identifier: MIT
"""The text model's forward: the one place where a forward's inputs are looked at, before anything is computed.

What the layers need is put into one form: the mask becomes each row's first slot, and positions count every row
from its own first token, so that the blocks of a padded row are those of the row alone. Slots are places in the
cache; a token's position is its slot less its row's first slot."""
from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NoReturn

import torch

import msa

from . import NAME
from .layout import shared_lengths
from .masks import first_slots
from .refusals import refuse, require, tracing
from .training import forget_losses

_SERVED = "_msa_served"  # on a model: the dtype and device that it was last found served in
SPARSE = "minimax_m3_sparse"
_DTYPES = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}


def checked(original: Callable[..., Any]) -> Callable[..., Any]:
    """The forward of MiniMaxM3VLTextModel, with its inputs checked where "msa" is chosen."""

    @functools.wraps(original)
    def forward(
        self: Any,
        input_ids: torch.Tensor | None = None,
        attention_mask: Any = None,
        position_ids: torch.Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        if self.config._attn_implementation != NAME:
            return original(self, input_ids, attention_mask, position_ids, *args, **kwargs)
        cache = args[0] if args else kwargs.get("cache", kwargs.get("past_key_values"))
        embeds = args[1] if len(args) > 1 else kwargs.get("inputs_embeds")
        tokens = input_ids if embeds is None else embeds
        if tokens is None:  # the original has a text for that
            return original(self, input_ids, attention_mask, position_ids, *args, **kwargs)
        _check_call(self, embeds, cache, kwargs)
        if not tracing():
            _check_support(self, tokens.device)
        if torch.is_grad_enabled():
            forget_losses(self)
        past = _check_cache(self.config, cache)
        first, real = _rows(attention_mask, past, tokens.shape[1])
        positions = _positions(position_ids, past, tokens, first, real)
        masks = {"full_attention": first}  # the form that the original takes as it is
        if torch.compiler.is_compiling():
            return original(self, input_ids, masks, positions, *args, **kwargs)
        with shared_lengths(positions, first, tokens.shape[0]):
            return original(self, input_ids, masks, positions, *args, **kwargs)

    return forward


def _check_call(model: Any, embeds: torch.Tensor | None, cache: Any, kwargs: dict[str, Any]) -> None:
    config = model.config
    if kwargs.get("output_attentions", getattr(config, "output_attentions", False)):
        refuse("output_attentions", "output_attentions=True")
    if not getattr(config, "is_causal", True):
        refuse("not_causal", "config.is_causal = False")
    if model.training and config.attention_dropout:
        refuse("dropout", f"training with attention_dropout = {config.attention_dropout}")
    if torch.is_grad_enabled() and cache is not None:
        if embeds is not None and embeds.requires_grad:
            refuse("grad", "a cache, and inputs_embeds that require grad")
        if any(parameter.requires_grad for parameter in model.parameters()):
            refuse("grad", "a cache, and parameters that require grad, in grad mode")


def _check_support(model: Any, device: torch.device) -> None:
    config = model.config
    dtype = model.embed_tokens.weight.dtype
    if model.__dict__.get(_SERVED) == (dtype, device):
        return
    if dtype not in _DTYPES:
        refuse("unsupported", f"a model of {dtype}")
    attention = (config.num_attention_heads, config.num_key_value_heads, config.head_dim)
    selection = (config.index_n_heads, config.index_head_dim, config.index_block_size, config.index_topk_blocks,
                 config.index_local_blocks)
    reason = _reason(_DTYPES[dtype], str(device), set(config.layer_types), attention, selection)
    if reason:
        refuse("unsupported", reason)
    model.__dict__[_SERVED] = (dtype, device)


def _reason(
    dtype: str, device: str, kinds: set[str], attention: tuple[int, ...], selection: tuple[int, ...]
) -> str:
    """Why no backend serves a model of this shape; empty where one does."""
    batch = dict(batch=1, total_q=1, max_seqlen_q=1, max_seqlen_k=1, device=device)
    heads_q, heads_kv, dim = attention
    main = dict(batch, dtype=dtype, heads_q=heads_q, heads_kv=heads_kv, head_dim=dim, value_dim=dim)
    index_heads, index_dim, block_size, topk, local_blocks = selection
    asked: dict[str, dict[str, Any]] = {}
    if SPARSE in kinds:
        index = dict(batch, index_dtype=dtype, index_heads=index_heads, index_heads_k=1, index_dim=index_dim)
        asked["select_blocks"] = dict(index, block_size=block_size, topk=topk, local_blocks=local_blocks)
        asked["sparse_attention"] = dict(main, block_size=block_size, topk=topk)
    if kinds != {SPARSE}:
        asked["dense_attention"] = main
    for op, numbers in asked.items():
        support = msa.supports(op, **numbers)
        if not support:
            reasons = "; ".join(f"{backend}: {why}" for backend, why in support.reasons.items())
            return f"{op} of {dtype} on {device}, which nobody serves ({reasons})"
    return ""


def _check_cache(config: Any, cache: Any) -> int | torch.Tensor:
    """Tokens in the cache: a number, or a tensor where the cache is static."""
    if cache is None:
        return 0
    if SPARSE in config.layer_types:
        at = config.layer_types.index(SPARSE)
        layer = cache.layers[at] if at < len(cache.layers) else None
        if not hasattr(layer, "update_index"):
            refuse("cache_without_index", f"{type(cache).__name__} with {type(layer).__name__} at layer {at}")
        _check_lengths(layer)
    past: int | torch.Tensor = cache.get_seq_length()
    return past


def _check_lengths(layer: Any) -> None:
    keys = layer.get_seq_length()
    if isinstance(keys, torch.Tensor):
        if layer.idx_keys is not None:
            require((layer.idx_cumulative_length == keys).all(), "cache_lengths", "another number of index keys")
        return
    index_keys = 0 if layer.idx_keys is None else layer.idx_keys.shape[2]
    if index_keys != keys:
        refuse("cache_lengths", f"{keys} keys and {index_keys} index keys")


def _rows(mask: Any, past: int | torch.Tensor, new: int) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Each row's first slot (None: 0), and which of the new tokens are real where a 2-D mask says so."""
    if isinstance(mask, dict):
        mask = next(iter(mask.values()))
    if mask is None:
        return None, None
    if not isinstance(mask, torch.Tensor):
        refuse("mask_kind", f"a {type(mask).__name__}")
    if mask.ndim == 1 and mask.dtype == torch.int32:
        return mask, None
    if mask.ndim == 4:
        refuse("mask_4d", f"a mask of shape {tuple(mask.shape)}")
    if mask.ndim != 2:
        refuse("mask_kind", f"a mask of shape {tuple(mask.shape)}")
    if isinstance(past, torch.Tensor):
        require((past + new <= mask.shape[1]).all(), "mask_length", f"{mask.shape[1]} columns, fewer than tokens")
        return first_slots(mask), None
    if mask.shape[1] < past + new:
        refuse("mask_length", f"{mask.shape[1]} columns for {past} cached and {new} new tokens")
    mask = mask[:, : past + new]
    return first_slots(mask), mask[:, past:] != 0


def _positions(
    given: torch.Tensor | None,
    past: int | torch.Tensor,
    tokens: torch.Tensor,
    first: torch.Tensor | None,
    real: torch.Tensor | None,
) -> torch.Tensor:
    """int64 [B or 1, new tokens]: slot less first slot, so negative for padding on the left."""
    slots = (torch.arange(tokens.shape[1], device=tokens.device) + past)[None]  # [1, Sq]
    positions = slots if first is None else slots - first.to(tokens.device)[:, None]
    if given is None:
        return positions
    if given.ndim == 1:
        given = given[None]
    if given.ndim != 2 or given.shape[1] != tokens.shape[1] or given.shape[0] not in (1, tokens.shape[0]):
        refuse("positions_shape", f"position_ids of shape {tuple(given.shape)} for tokens {tuple(tokens.shape[:2])}")
    counted = positions >= 0
    if real is not None:
        counted = counted & real
    # Rows may also count slots, as a forward without position_ids does: the same distances between tokens.
    same = ((given == positions) | ~counted).all(-1) | ((given == slots) | ~counted).all(-1)  # [B]
    if tracing():
        require(same.all(), "positions_gaps", "other position_ids")
    elif not bool(same.all()):
        _refuse_positions(given, counted)
    return positions


def _refuse_positions(given: torch.Tensor, counted: torch.Tensor) -> NoReturn:
    steps = given[:, 1:] - given[:, :-1]
    both = counted[:, 1:] & counted[:, :-1]
    if bool((both & (steps < 1)).any()):
        refuse("positions_packed", "position_ids that start again or repeat inside a row")
    refuse("positions_gaps", "position_ids that skip or start elsewhere")
