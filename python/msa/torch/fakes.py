# SPDX-License-Identifier: MIT
"""Shapes out of shapes: what an op returns, read off the library's own table of fields.

A shape like "[T, Hq, D]" binds its letters to the extents of the inputs, from the right, so that pages bind as ragged
keys do; two inputs that bind a letter differently are an error.
"""
from __future__ import annotations

from typing import Any

import torch

from .. import _core

__all__ = ["OUTPUTS", "allocate", "make_fake"]

_INPUT_ROLES = (0, 1)
_OPTIONAL_OUTPUT = 3
_BESIDE = ("kv_scale", "kv_global_scale", "filter_bounds", "index_k_scale", "index_k_global_scale")
# One op's k of parts may differ from part to part; keys count rows or pages.
_FREE = ("N", "part k", "B", "B + 1", "pages", "blocks")
# Ops whose outputs have the rows of keys.
_OF_KEYS = ("sparse_attention_backward", "dense_attention_backward", "index_loss")

Row = tuple[str, int, int, str, str]
OUTPUTS: dict[str, list[Row]] = {op: [row for row in rows if row[1] not in _INPUT_ROLES]
                                 for op, rows in _core.fields().items()}


def _letters(shape: str) -> list[str]:
    return shape[1:-1].split(", ")


def _bind(rows: list[Row], given: dict[str, Any]) -> dict[str, Any]:
    bound: dict[str, Any] = {}
    for name, _, parts, element, shape in rows:
        value = given.get(name)
        # The rank of a scale says who shares it; bounds count pages, or groups of rows.
        if value is None or element in _BESIDE:
            continue
        pairs = in_four_bits(given.get(f"{element}_format")) and element in ("kv", "index_k")
        for tensor in value if parts else [value]:
            letters = _letters(shape)
            torch._check(tensor.dim() >= len(letters), lambda: f"{name}: expected {shape}, got rank {tensor.dim()}")
            shape_of = [*tensor.shape[:-1], 2 * tensor.shape[-1]] if pairs else tensor.shape
            for letter, extent in zip(reversed(letters), reversed(shape_of)):
                known = bound.setdefault(letter, extent)
                if letter not in _FREE:
                    torch._check(known == extent, lambda: f"{name}: expected {letter} of {known}, got {extent}")
    return bound


def _longest(op: str, given: dict[str, Any]) -> Any:
    longest = given.get("max_seqlen_k")
    if longest is not None:
        return longest
    keys = given.get("k") if given.get("k") is not None else given.get("index_k")
    if given.get("seqlens_k") is None and keys is not None and keys.dim() == 3:
        return keys.shape[0]
    raise ValueError(f"msa::{op}: max_seqlen_k must be given where a shape hangs on lengths that nobody may read")


def _extent(op: str, letter: str, bound: dict[str, Any], given: dict[str, Any]) -> Any:
    block = given.get("block_size", 128)
    if letter == "k":
        return bound.get("k", given.get("topk", 16))
    if letter == "blocks":
        return (_longest(op, given) + block - 1) // block
    if letter == "rows + 1":
        starts, lengths = given.get("cu_seqlens_q"), given.get("seqlens_k")
        requests = starts.shape[0] - 1 if starts is not None else lengths.shape[0] if lengths is not None else 1
        return requests * ((_longest(op, given) + block - 1) // block) + 1
    if letter == "T * k":
        return bound["T"] * bound["k"]
    if letter == "N" and op not in _OF_KEYS:  # of what is stored: row for row
        return bound["T"]
    return bound[letter]


def in_four_bits(kv_format: str | None) -> bool:
    """Whether two elements lie in a byte."""
    return kv_format in ("nvfp4", "nvfp4/tensor", "q8kv4")


def scales_of(kv_format: str | None) -> bool:
    """Whether storing keys and values works their scales out."""
    return in_four_bits(kv_format) or kv_format == "e4m3/token"


def _stored(like: Any, kv_format: str | None, extents: list[Any]) -> Any:
    if in_four_bits(kv_format):
        return like.new_empty([*extents[:-1], extents[-1] // 2], dtype=torch.uint8)
    return like.new_empty(extents, dtype=like.dtype if kv_format is None else torch.float8_e4m3fn)


def _stored_scales(like: Any, kv_format: str | None, extents: list[Any], dim: Any) -> Any:
    if in_four_bits(kv_format):
        return like.new_empty([*extents, dim // 16], dtype=torch.float8_e4m3fn)
    return like.new_empty(extents, dtype=torch.float32)


def _copy_of_index(like: Any, given: dict[str, Any], names: set[str]) -> dict[str, Any]:
    torch._check(like.dim() in (3, 4), lambda: f"index_k: expected rank 3 or 4, got {like.dim()}")
    torch._check(given.get("q_offsets") is None,
                 lambda: "index_k8: expected a copy of the caller's, as q_offsets leaves pages as they are, got none")
    pages = like.shape[0] if like.dim() == 4 else (like.shape[0] + 15) // 16
    made = {"index_k8": (like.shape, torch.int8), "index_k8_bounds": ([pages, like.shape[-2], 3], torch.float32)}
    return {name: like.new_empty(shape, dtype=dtype) for name, (shape, dtype) in made.items() if name in names}


def allocate(op: str, given: dict[str, Any], names: set[str]) -> dict[str, Any]:
    """New tensors for outputs of a call, by name."""
    bound = _bind([row for row in _core.fields()[op] if row[1] in _INPUT_ROLES], given)
    first = given[_core.fields()[op][0][0]]
    like = first[0] if isinstance(first, (list, tuple)) else first
    if op == "quantize_index":
        return _copy_of_index(like, given, names)
    wide = torch.bfloat16 if like.dtype == torch.float8_e4m3fn else like.dtype
    dtypes = {"i32": torch.int32, "f32": torch.float32, "out": given.get("out_dtype") or wide,
              "gradient": given.get("grad_dtype") or wide}
    if op == "index_loss":
        dtypes["index_gradient"] = given.get("grad_dtype") or given["index_q"].dtype
    kv_format = given.get("kv_format")
    made = {}
    for name, _, _, element, shape in OUTPUTS[op]:
        if name in names:
            extents = [_extent(op, letter, bound, given) for letter in _letters(shape)]
            if element == "kv":
                made[name] = _stored(like, kv_format, extents)
            elif element == "kv_scale":
                made[name] = _stored_scales(like, kv_format, extents, bound["D" if name.startswith("k") else "Dv"])
            else:
                made[name] = like.new_empty(extents, dtype=dtypes[element])
    return made


def make_fake(op: str, parameters: list[str]) -> Any:
    """The fake of an op whose positional parameters are `parameters`."""

    def wanted(row: Row, given: dict[str, Any]) -> bool:
        if op == "dense_attention" and row[0] == "out":
            return given.get("v") is not None
        if row[3] == "kv_scale":
            return scales_of(given.get("kv_format"))
        return row[1] != _OPTIONAL_OUTPUT or bool(given.get(row[0], False))

    def fake(*args: Any, **given: Any) -> list[Any]:
        given.update(zip(parameters, args))
        return list(allocate(op, given, {row[0] for row in OUTPUTS[op] if wanted(row, given)}).values())

    return fake
