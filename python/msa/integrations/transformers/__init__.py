# SPDX-License-Identifier: MIT
"""MiniMax-M3 in transformers by one string:

    from msa.integrations import transformers as msa_transformers
    msa_transformers.enable()
    model = AutoModelForCausalLM.from_pretrained(..., attn_implementation="msa")

enable() registers an attention function and a mask function and replaces two forwards, those of the indexer and of
the text model, which act only where "msa" is chosen. disable() takes all of it back.
"""
from __future__ import annotations

import contextlib
import importlib.metadata
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .._patch import Change, IntegrationError, Patch, Rebind, Register, check_version
from .refusals import REFUSALS, Refused

if TYPE_CHECKING:
    from .cache import GrowingCache
    from .training import index_losses, warm_up

__all__ = (
    "NAME", "REFUSALS", "SUPPORTED", "GrowingCache", "IntegrationError", "Refused", "Status", "disable", "enable",
    "enabled", "index_losses", "status", "warm_up")

SUPPORTED = "transformers >= 5.13, < 6"
NAME = "msa"  # attn_implementation

_MODELING = "transformers.models.minimax_m3_vl.modeling_minimax_m3_vl"
_CACHE = ("cache", "past_key_values")  # renamed in 5.24

_lock = threading.RLock()
_patch: Patch | None = None


@dataclass(frozen=True)
class Status:
    enabled: bool
    version: str | None  # of transformers, None where it is missing
    supported: str
    patched: tuple[str, ...]  # what is in place, by qualified name


def enable() -> None:
    """Makes attn_implementation="msa" known. Raises IntegrationError, with nothing changed, where transformers is not
    in SUPPORTED or not what this was written for. A second call does nothing."""
    global _patch
    with _lock:
        if _patch is not None:
            return
        check_version(SUPPORTED)
        patch = Patch(_changes())
        patch.apply()
        _patch = patch


def disable() -> None:
    """Takes everything back. What somebody else replaced since is left, and IntegrationError names it."""
    global _patch
    with _lock:
        patch, _patch = _patch, None
        if patch is not None:
            patch.undo()


def status() -> Status:
    """What is in place. Imports nothing."""
    with _lock:
        names = () if _patch is None else tuple(_patch.names)
    try:
        version: str | None = importlib.metadata.version("transformers")
    except importlib.metadata.PackageNotFoundError:
        version = None
    return Status(bool(names), version, SUPPORTED, names)


@contextlib.contextmanager
def enabled() -> Iterator[None]:
    """enable() for the length of a block; leaves it as it was found."""
    before = status().enabled
    enable()
    try:
        yield
    finally:
        if not before:
            disable()


def _changes() -> list[Change]:
    """Own tables of transformers first, attributes where it has none."""
    from transformers import AttentionInterface, AttentionMaskInterface

    from .attention import attention
    from .indexer import selecting
    from .inputs import checked
    from .masks import mask_function

    return [
        Register("transformers.AttentionInterface", AttentionInterface._global_mapping, NAME, attention),
        Register("transformers.AttentionMaskInterface", AttentionMaskInterface._global_mapping, NAME, mask_function),
        Rebind(_MODELING, "MiniMaxM3VLIndexer.forward",
               ("self", "hidden_states", "position_embeddings", _CACHE, "position_ids"), selecting),
        Rebind(_MODELING, "MiniMaxM3VLTextModel.forward",
               ("self", "input_ids", "attention_mask", "position_ids", _CACHE, "inputs_embeds"), checked),
    ]


def __getattr__(name: str) -> Any:
    if name == "GrowingCache":  # its base class is transformers' own
        from .cache import GrowingCache

        return GrowingCache
    if name in ("index_losses", "warm_up"):  # they look for transformers' layers
        from . import training

        return getattr(training, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
