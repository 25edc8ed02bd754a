# SPDX-License-Identifier: MIT
"""What attn_implementation="msa" does not serve, one row each: it is refused by name, never computed wrongly and
never handed to dense attention in silence."""
from __future__ import annotations

from dataclasses import dataclass
from typing import NoReturn

import torch

from ...errors import Unsupported


class Refused(Unsupported):
    """The inputs of a model cannot be served. `name` is the row of REFUSALS."""

    def __init__(self, name: str, found: str) -> None:
        super().__init__(f"msa: {REFUSALS[name].text(found)}", REFUSALS[name].argument)
        self.name = name
        self.found = found

    def __reduce__(self) -> tuple[type[Refused], tuple[str, str]]:
        return type(self), (self.name, self.found)


@dataclass(frozen=True)
class Refusal:
    argument: str
    asked: str  # what is served instead
    do: str  # what the caller can do

    def text(self, found: str) -> str:
        return f"{self.asked}; found {found}; {self.do}"


_SDPA = "or choose attn_implementation='sdpa'"

REFUSALS = {
    "mask_4d": Refusal(
        "attention_mask",
        "the attention mask is none or the 2-D mask of padding",
        f"pass attention_mask of shape [batch, length], {_SDPA}"),
    "mask_kind": Refusal(
        "attention_mask",
        "the attention mask is none, the 2-D mask of padding or what msa's mask function returns",
        f"pass attention_mask of shape [batch, length], {_SDPA}"),
    "mask_length": Refusal(
        "attention_mask",
        "the 2-D mask covers the cached tokens and the new ones",
        "extend the mask by one column for every token"),
    "mask_holes": Refusal(
        "attention_mask",
        "the ones of each row of the 2-D mask are one run",
        "pad on the left: padding between tokens, which is what goes on after padding on the right, has no place in a "
        "row's blocks"),
    "mask_function": Refusal(
        "attention_mask",
        "the mask is causal and nothing else",
        f"drop the overlay (packed sequences, bidirectional blocks, or_mask_function, and_mask_function), {_SDPA}"),
    "positions_shape": Refusal(
        "position_ids",
        "position_ids are none or of shape [batch, new tokens]",
        "pass one position for every token"),
    "positions_packed": Refusal(
        "position_ids",
        "one sequence in each row",
        "give every sequence its own row (padded on the left): packed position_ids would let sequences see each other"),
    "positions_gaps": Refusal(
        "position_ids",
        "positions count each row's tokens from its first, without gaps",
        "leave position_ids out, or pass attention_mask.cumsum(-1) - 1; padding on the right cannot be continued"),
    "cache_without_index": Refusal(
        "cache",
        "a cache that keeps index keys",
        "build it with the model's config: DynamicCache(config=model.config), StaticCache(config=..., max_cache_len=...) "
        "or msa.integrations.transformers.GrowingCache(config=...)"),
    "cache_lengths": Refusal(
        "cache",
        "a cache holds as many index keys as keys in every layer",
        "start a new cache: this one was cropped by a version of transformers that forgets the index keys"),
    "not_causal": Refusal(
        "config.is_causal",
        "attention is causal",
        f"leave config.is_causal alone, {_SDPA}"),
    "dropout": Refusal(
        "dropout",
        "attention without dropout",
        "call model.eval() or set attention_dropout to 0"),
    "grad": Refusal(
        "past_key_values",
        "gradients without a cache: what it keeps has none",
        "leave the cache out, or run under torch.no_grad()"),
    "output_attentions": Refusal(
        "output_attentions",
        "outputs without attention weights, which are never formed",
        "leave output_attentions out, or choose attn_implementation='eager'"),
    "other_model": Refusal(
        "attn_implementation",
        "MiniMax-M3",
        f"choose another implementation for this model: {_SDPA[3:]}"),
    "sparse_without_blocks": Refusal(
        "block_indices",
        "sparse layers get their blocks from msa's indexer",
        "call msa.integrations.transformers.enable() again: the indexer was put back, and dense attention is not "
        "what this layer computes"),
    "unsupported": Refusal(
        "model",
        "a dtype, device and shape that a backend of msa serves",
        f"convert the model (GPUs serve bfloat16 and float16), {_SDPA}"),
}


def refuse(name: str, found: str) -> NoReturn:
    raise Refused(name, found)


def tracing() -> bool:
    """Values cannot be looked at: a compiler traces, or a CUDA graph is being captured."""
    if torch.compiler.is_compiling():
        return True
    started: bool = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return started and torch.cuda.is_current_stream_capturing()


def require(ok: torch.Tensor, name: str, found: str) -> None:
    """Refuses where the one-element `ok` is false; where values cannot be looked at, the device does it when it runs."""
    if tracing():
        torch._assert_async(ok, f"msa: {REFUSALS[name].text(found)}")
    elif not bool(ok):
        refuse(name, found)
