# SPDX-License-Identifier: MIT
"""Names of the fork that msa does not serve: each raises NotServed, an msa.Unsupported and a NotImplementedError, with
its name."""
from __future__ import annotations

from typing import Any, NoReturn

from ._checks import not_served

_CACHE = "its cache is packed in the fork's own way; sparse_atten_nvfp4_kv_func and msa's own calls read NVFP4"
_INDEX = "see index_k_format, index_k_scale and index_k8 of msa.select_blocks"


class _Refused:
    """A class of upstream: making one is refused."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        not_served(type(self).__name__, _INDEX)


class BatchDecodeIndexerQ8KV4Wrapper(_Refused):
    """Ranks pages of an NVFP4 index cache."""


class BatchDecodeIndexerQ8KV8Wrapper(_Refused):
    """Ranks pages of an e4m3 index cache."""


class BatchPrefillIndexerQ8KV8Wrapper(_Refused):
    """Ranks pages of an e4m3 index cache for many queries."""


def sparse_atten_nvfp4_kv_cache_func(*args: Any, **kwargs: Any) -> NoReturn:
    not_served("sparse_atten_nvfp4_kv_cache_func", _CACHE)


def plan_decode(*args: Any, **kwargs: Any) -> NoReturn:
    not_served("plan_decode", _CACHE)


def run_decode(*args: Any, **kwargs: Any) -> NoReturn:
    not_served("run_decode", _CACHE)
