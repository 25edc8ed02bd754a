# SPDX-License-Identifier: MIT
"""Names of upstream that work on formats of 8 and 4 bits, which msa does not serve: each raises
NotServed, an msa.Unsupported and a NotImplementedError, with its name."""
from __future__ import annotations

from typing import Any, NoReturn

from ._checks import not_served

_FORMATS = "msa has no formats of 8 and 4 bits; keys and values are bf16 or f16"


class _Refused:
    """A class of upstream: making one is refused."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        not_served(type(self).__name__, _FORMATS)


class Nvfp4QuantizedTensor(_Refused):
    """data, scale_128x4, global_scale, logical_scale_shape, original_shape."""


class BatchDecodeIndexerQ8KV4Wrapper(_Refused):
    """Ranks pages of an NVFP4 index cache."""


class BatchDecodeIndexerQ8KV8Wrapper(_Refused):
    """Ranks pages of an e4m3 index cache."""


class BatchPrefillIndexerQ8KV8Wrapper(_Refused):
    """Ranks pages of an e4m3 index cache for many queries."""


def sparse_atten_nvfp4_kv_func(*args: Any, **kwargs: Any) -> NoReturn:
    not_served("sparse_atten_nvfp4_kv_func", _FORMATS)


def sparse_atten_nvfp4_kv_cache_func(*args: Any, **kwargs: Any) -> NoReturn:
    not_served("sparse_atten_nvfp4_kv_cache_func", _FORMATS)


def fp4_indexer_block_scores(*args: Any, **kwargs: Any) -> NoReturn:
    not_served("fp4_indexer_block_scores", "fmha_sm100 with output_maxscore scores bf16 and f16 keys")


def plan_decode(*args: Any, **kwargs: Any) -> NoReturn:
    not_served("plan_decode", _FORMATS)


def run_decode(*args: Any, **kwargs: Any) -> NoReturn:
    not_served("run_decode", _FORMATS)


def quantize_bf16_to_nvfp4_128x4(*args: Any, **kwargs: Any) -> NoReturn:
    not_served("quantize_bf16_to_nvfp4_128x4", _FORMATS)


def quantize_kv_bf16_to_nvfp4_128x4(*args: Any, **kwargs: Any) -> NoReturn:
    not_served("quantize_kv_bf16_to_nvfp4_128x4", _FORMATS)


def dequantize_nvfp4_128x4_to_bf16(*args: Any, **kwargs: Any) -> NoReturn:
    not_served("dequantize_nvfp4_128x4_to_bf16", _FORMATS)


def swizzle_nvfp4_scale_to_128x4(*args: Any, **kwargs: Any) -> NoReturn:
    not_served("swizzle_nvfp4_scale_to_128x4", _FORMATS)


def nvfp4_scale_128x4_offset(*args: Any, **kwargs: Any) -> NoReturn:
    not_served("nvfp4_scale_128x4_offset", _FORMATS)


def nvfp4_global_scale_from_amax(*args: Any, **kwargs: Any) -> NoReturn:
    not_served("nvfp4_global_scale_from_amax", _FORMATS)
