# SPDX-License-Identifier: MIT
"""fmha_sm100_plan: host numbers that bound a call, and the tensors that a call reads on the device.

A plan is upstream's tuple `(False, 0, batch, dict, None)`. msa takes short and long requests in one
call, in any order, so no batch is ever cut in two. The dict's tensors may be overwritten in place,
or replaced in a copy of the dict, between runs and between replays of a CUDA graph: nothing of them
is remembered elsewhere.
"""
from __future__ import annotations

from typing import Any, Sequence

import torch

from ._checks import BLOCK, invalid, not_served

PlanInfo = tuple[bool, int, int, dict[str, Any], None]

_SHORT = 32  # tokens of the longest request up to which upstream reads lists token by token
_HONOURED = {
    "decode_backend": (None, "auto"),
    "prefill_backend": (None, "auto"),
    "kv_dtype": (None, "auto", "fp8"),
}
_NAMED = {
    "decode_backend": ("q8kv4", "kv_mode3"),
    "prefill_backend": ("q8kv4", "cute_dsl"),
    "kv_dtype": ("nvfp4",),
}


def fmha_sm100_plan(
    qo_segment_lens: torch.Tensor,
    kv_segment_lens: torch.Tensor,
    num_qo_heads: int,
    num_kv_heads: int = -1,
    qo_offset: int | torch.Tensor | None = None,
    num_kv_splits: int = -1,
    page_size: int = -1,
    output_maxscore: bool = False,
    kv_block_num: int = -1,
    usable_SM_count: int = -1,
    causal: bool = True,
    sparse_kernel_mode: str = "auto",
    use_fp8_kvcache: bool = False,
    device: torch.device | str | int | None = None,
    stream: Any = None,
    *,
    split_prefill_decode: bool = True,
    decode_backend: str = "auto",
    prefill_backend: str = "auto",
    kv_dtype: str | None = None,
    block_scale_shift: int = 3,
) -> PlanInfo:
    """Plans `fmha_sm100` for a batch.

    qo_segment_lens, kv_segment_lens: int32 or int64 [B], tokens and keys of each request, in host
    memory (tensors of a device are read back once, which waits for it). qo_offset: [B] or an int,
    position of each request's first query; left out: its last query stands on its last key.
    page_size: tokens of a page, -1 for ragged keys. kv_block_num: ids per query, for sparse runs.
    causal=False puts every query behind the longest request, as upstream does.

    num_kv_splits, usable_SM_count, sparse_kernel_mode, split_prefill_decode and stream say how
    upstream schedules; they are accepted and change nothing. Formats are those of a run's tensors:
    use_fp8_kvcache and kv_dtype="fp8" only make runs refuse keys that are not e4m3. The fork's named
    backends and its packed cache (kv_dtype="nvfp4") are refused.
    """
    _refuse_named({"decode_backend": decode_backend, "prefill_backend": prefill_backend, "kv_dtype": kv_dtype})
    plan = make_plan(
        qo_segment_lens,
        kv_segment_lens,
        qo_offset,
        heads=(int(num_qo_heads), int(num_kv_heads)),
        page_size=int(page_size),
        output_maxscore=bool(output_maxscore),
        kv_block_num=int(kv_block_num),
        causal=bool(causal),
        fp8_cache=bool(use_fp8_kvcache) or kv_dtype == "fp8",
        device=device,
    )
    return (False, 0, plan["batch"], plan, None)


def _refuse_named(named: dict[str, Any]) -> None:
    for name, value in named.items():
        if value in _NAMED[name]:
            not_served(f"{name}={value!r}", "it reads a cache that is packed in the fork's own way", name)
        if value not in _HONOURED[name]:
            invalid(name, f"one of {_HONOURED[name]}, or of {_NAMED[name]}, which msa does not serve", repr(value))


def make_plan(
    qo_lens: torch.Tensor | Sequence[int],
    kv_lens: torch.Tensor | Sequence[int],
    qo_offset: int | torch.Tensor | None,
    *,
    heads: tuple[int, int],
    page_size: int,
    output_maxscore: bool,
    kv_block_num: int,
    causal: bool,
    fp8_cache: bool,
    device: torch.device | str | int | None,
) -> dict[str, Any]:
    """The dict of a plan: tensors that runs read, and host numbers under upstream's keys."""
    target = _device_of(device, qo_lens, kv_lens)
    q, k = _lengths("qo_segment_lens", qo_lens), _lengths("kv_segment_lens", kv_lens)
    if len(q) != len(k):
        invalid("kv_segment_lens", f"{len(q)} requests as in qo_segment_lens", len(k))
    _check_numbers(heads, page_size, output_maxscore, kv_block_num)
    longest_q, longest_k = max(q, default=0), max(k, default=0)
    offsets = _offsets(qo_offset, q, k) if causal else [longest_k] * len(k)
    tiles = -(-longest_k // BLOCK)
    pages = [-(-n // page_size) for n in k] if page_size > 0 else None
    return {
        # read on the device by every run
        "qo_segment_lens": _tensor(q, target),
        "qo_segment_offsets": _tensor(_sums(q), target),
        "kv_segment_lens": _tensor(k, target),
        "kv_segment_offsets": _tensor(_sums(k), target),
        "kv_page_indptr": None if pages is None else _tensor(_sums(pages), target),
        "qo_offset": _tensor(offsets, target),
        # host numbers
        "batch": len(q),
        "total_qo_len": sum(q),
        "max_qo_len": longest_q,
        "max_kv_len": longest_k,
        "qo_len_uniform": bool(q) and min(q) == longest_q,
        "orig_num_qo_heads": heads[0],
        "num_kv_heads": heads[1],
        "page_size": page_size,
        "kv_block_num": kv_block_num,
        "causal": causal,
        "use_fp8_kvcache": fp8_cache,
        "output_maxscore": output_maxscore,
        "max_k_tiles": max(-(-tiles // 128) * 128, 128) if output_maxscore else -1,
        # upstream's scheduling, of which msa has none to tell
        "pack_factor": 1,
        "num_kv_splits": 1,
        "predicted_speedup": 1.0,
        "MM-SA-Nv": False,
    }


def token_by_token(plan: dict[str, Any]) -> bool:
    """Upstream's per-token route, whose plans do not depend on the lengths of keys."""
    return bool(plan["kv_block_num"] > 0 and plan["max_qo_len"] <= _SHORT)


def _check_numbers(heads: tuple[int, int], page_size: int, output_maxscore: bool, kv_block_num: int) -> None:
    if heads[0] < 1:
        invalid("num_qo_heads", "1 or more", heads[0])
    if heads[1] != -1 and (heads[1] < 1 or heads[0] % heads[1]):
        invalid("num_kv_heads", f"a divisor of {heads[0]} query heads, or -1", heads[1])
    if page_size != -1 and page_size < 1:
        invalid("page_size", "tokens of a page, or -1", page_size)
    if kv_block_num != -1 and kv_block_num < 1:
        invalid("kv_block_num", "ids per query, or -1", kv_block_num)
    if kv_block_num > 0 and output_maxscore:
        invalid("output_maxscore", "False where kv_block_num asks for sparse attention", True)


def _device_of(device: torch.device | str | int | None, *lengths: Any) -> torch.device:
    if isinstance(device, int):
        return torch.device("cuda", device)
    if device is not None:
        given = torch.device(device)
        if given.type == "cuda" and given.index is None:
            return torch.device("cuda", torch.cuda.current_device())
        return given
    for tensor in lengths:
        if isinstance(tensor, torch.Tensor) and tensor.device.type == "cuda":
            return tensor.device
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def _lengths(name: str, given: torch.Tensor | Sequence[int]) -> list[int]:
    if isinstance(given, torch.Tensor):
        if given.dim() != 1 or given.dtype not in (torch.int32, torch.int64):
            invalid(name, "int32 or int64 [requests]", f"{given.dtype} {tuple(given.shape)}")
        given = given.tolist()
    numbers = [int(n) for n in given]
    if min(numbers, default=0) < 0:
        invalid(name, "lengths of 0 and above", min(numbers))
    return numbers


def _offsets(given: int | torch.Tensor | None, q: list[int], k: list[int]) -> list[int]:
    if given is None:
        return [n - m for m, n in zip(q, k)]
    if isinstance(given, int):
        return [given] * len(q)
    numbers = [int(n) for n in given.tolist()]
    if len(numbers) != len(q):
        invalid("qo_offset", f"{len(q)} offsets, or an int", len(numbers))
    return numbers


def _sums(lengths: list[int]) -> list[int]:
    sums = [0]
    for n in lengths:
        sums.append(sums[-1] + n)
    return sums


def _tensor(numbers: list[int], device: torch.device) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.int32).to(device)
