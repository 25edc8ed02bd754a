#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Times msa's fmha_sm100 drop-in with the command line of MiniMax's benchmark of the same name.

usage: benchmarks/bench_sparse_attention_ops.py [--sections prefill,sparse_decode] [--dtype bf16] [-o FILE] ...

Six sections, upstream's flags and upstream's columns, then three more that say which call a row is, which pages its
queries list and which device ran it. Where upstream is silent this tool is not: a row that fails is named on stderr
and makes the exit status 1, and a share of a peak is given only for a card whose peak is known or stated.
"""
from __future__ import annotations

import argparse
import functools
import statistics
import sys
import time
from dataclasses import dataclass
from typing import Any, Callable, Iterator

import torch

from msa.compat import fmha_sm100 as fmha
from msa.compat.fmha_sm100 import sparse

PAGE = 128
SECTIONS = ("prefill", "paged_prefill", "sparse_prefill", "decode", "paged_decode", "sparse_decode")
HEADS = {1: (64, 4), 2: (32, 2), 4: (16, 1)}  # of a rank of so many
DTYPES = {"bf16": torch.bfloat16, "f16": torch.float16, "fp8": torch.float8_e4m3fn}
# Bytes of an element of queries, and of keys and values, scales included.
SIZES = {"bf16": 2.0, "f16": 2.0, "fp8": 1.0, "nvfp4": 0.5 + 1 / 16}
COLUMNS = (
    "q_len kv_len dtype batch_size q_head kv_head head_dim latency_ms std_ms tflops gbs mfu_mbu_pct "
    "predicted_split_speedup_pct section_call pattern device"
).split()
# TFLOP/s of dense bf16, in which products of bf16 and f16 queries are computed, and GB/s of memory, as published for
# the SXM cards.
PEAKS = {"H100": (989.0, 3350.0), "H200": (989.0, 4800.0)}


@dataclass(frozen=True)
class Case:
    section: str
    q_len: int
    kv_len: int
    batch: int
    heads: tuple[int, int]

    @property
    def is_decode(self) -> bool:
        return "decode" in self.section

    def __str__(self) -> str:
        return f"{self.section} q={self.q_len} k={self.kv_len} b={self.batch} heads={self.heads[0]}/{self.heads[1]}"


@dataclass
class Timing:
    milliseconds: list[float]
    predicted_speedup: float = 1.0

    @property
    def median(self) -> float:
        return statistics.median(self.milliseconds)

    @property
    def deviation(self) -> float:
        return statistics.pstdev(self.milliseconds)


# ---- timing --------------------------------------------------------------------------------------------------------------


class Clock:
    """Medians of single calls, each after the L2 cache was overwritten."""

    def __init__(self, device: torch.device, dry_run_ms: float, repeat_ms: float) -> None:
        self.device, self.dry_run_ms, self.repeat_ms = device, dry_run_ms, repeat_ms
        size = 2 * torch.cuda.get_device_properties(device).L2_cache_size if device.type == "cuda" else 0
        self.flush = torch.empty(size, dtype=torch.uint8, device=device)

    def one(self, call: Callable[[], Any]) -> float:
        if self.device.type != "cuda":
            start = time.perf_counter()
            call()
            return 1e3 * (time.perf_counter() - start)
        self.flush.zero_()
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        call()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end))

    def measure(self, call: Callable[[], Any]) -> Timing:
        first = self.one(call)  # also the first allocation
        for _ in range(min(1000, int(self.dry_run_ms / max(first, 1e-3)))):
            self.one(call)
        count = max(3, min(10000, int(self.repeat_ms / max(self.one(call), 1e-3))))
        return Timing([self.one(call) for _ in range(count)])


# ---- what a section runs ---------------------------------------------------------------------------------------------------


class Inputs:
    """Tensors of a case: ragged, or pages in upstream's order of heads before slots."""

    def __init__(self, case: Case, options: argparse.Namespace, paged: bool) -> None:
        self.case, self.options, self.paged = case, options, paged
        device = options.device
        heads, heads_kv = case.heads
        self.lens_q = torch.full((case.batch,), case.q_len, dtype=torch.int32)
        self.lens_k = torch.full((case.batch,), case.kv_len, dtype=torch.int32)
        self.q = self._random(DTYPES[options.q_dtype], case.batch * case.q_len, heads)
        self.pages_each = -(-case.kv_len // PAGE)
        pages = case.batch * self.pages_each
        shape = (pages, heads_kv, PAGE) if paged else (case.batch * case.kv_len, heads_kv)
        self.scales: list[torch.Tensor] = []
        if options.dtype == "nvfp4":
            # Of all codes and scales none is no number.
            self.k, self.v = (self._bytes(0, 256, *shape, options.head_dim // 2) for _ in range(2))
            self.scales = [self._bytes(40, 56, *shape, options.head_dim // 16) for _ in range(2)]
        else:
            self.k, self.v = (self._random(DTYPES[options.dtype], *shape) for _ in range(2))
        self.kv_indices = torch.randperm(pages).to(device, torch.int32) if paged else None

    def _random(self, dtype: torch.dtype, *shape: int) -> torch.Tensor:
        size, device = (*shape, self.options.head_dim), self.options.device
        drawn_as = torch.bfloat16 if dtype == torch.float8_e4m3fn else dtype
        return torch.randn(size, device=device, dtype=drawn_as).to(dtype)

    def _bytes(self, low: int, high: int, *shape: int) -> torch.Tensor:
        return torch.randint(low, high, shape, device=self.options.device, dtype=torch.uint8)

    def plan(self, topk: int = -1) -> Any:
        scores = topk < 1 and self.options.output_mode in ("full", "maxscore")
        return fmha.fmha_sm100_plan(
            self.lens_q, self.lens_k, self.case.heads[0], num_kv_heads=self.case.heads[1],
            page_size=PAGE if self.paged else -1, output_maxscore=scores, kv_block_num=topk, device=self.options.device,
        )

    def run(self, plan: Any, ids: torch.Tensor | None = None) -> None:
        mode = "o" if ids is not None else self.options.output_mode
        fmha.fmha_sm100(
            self.q, self.k, self.v, plan, kv_indices=self.kv_indices, kv_block_indexes=ids,
            output_maxscore=mode != "o", output_o=mode != "maxscore",
        )

    def lists(self) -> torch.Tensor:
        """int32 [T, Hkv, topk]: the first pages, as upstream lists them, or random ones that the token sees."""
        case, topk = self.case, self.options.topk
        tokens = torch.arange(case.q_len, device=self.options.device).repeat(case.batch)
        visible = (tokens + (case.kv_len - case.q_len)) // PAGE + 1
        slot = torch.arange(topk, device=self.options.device)
        shape = (len(tokens), case.heads[1], topk)
        if self.options.pattern == "first":
            ids = torch.where(slot < visible[:, None], slot, -1)[:, None].expand(shape)
        else:
            # Distinct and ascending: one page out of each of topk parts of what is visible.
            edges = torch.arange(topk + 1, device=self.options.device) * visible[:, None] // topk
            width = edges.diff(dim=1)[:, None]
            drawn = edges[:, None, :-1] + (torch.rand(shape, device=self.options.device) * width).to(torch.int64)
            few = torch.where(slot < visible[:, None], slot, -1)[:, None]
            ids = torch.where(visible[:, None, None] > topk, drawn, few)
        return ids.to(torch.int32).contiguous()


def dense_call(inputs: Inputs) -> tuple[Callable[[], None], float]:
    plan = inputs.plan()
    if inputs.options.include_plan:
        return lambda: inputs.run(inputs.plan()), plan[3]["predicted_speedup"]
    return lambda: inputs.run(plan), plan[3]["predicted_speedup"]


def sparse_decode_call(inputs: Inputs) -> tuple[Callable[[], None], float]:
    topk, ids = inputs.options.topk, inputs.lists()
    plan = inputs.plan(topk)
    if inputs.options.include_plan:
        return lambda: inputs.run(inputs.plan(topk), ids), plan[3]["predicted_speedup"]
    return lambda: inputs.run(plan, ids), plan[3]["predicted_speedup"]


def sparse_prefill_call(inputs: Inputs) -> tuple[Callable[[], None], float]:
    """Rows are built inside the timed call, for every type alike."""
    case, topk = inputs.case, inputs.options.topk
    q2k = inputs.lists().permute(1, 0, 2)
    cu_q, cu_k = (
        torch.arange(case.batch + 1, dtype=torch.int32, device=inputs.options.device) * n
        for n in (case.q_len, case.kv_len)
    )
    assert inputs.kv_indices is not None
    table = inputs.kv_indices.view(case.batch, inputs.pages_each)
    longest = {"max_seqlen_q": case.q_len, "max_seqlen_k": case.kv_len}
    attend = functools.partial(fmha.sparse_atten_func, inputs.q, inputs.k, inputs.v)
    if inputs.scales:
        scales = inputs.scales
        layout = inputs.options.scale_layout
        if layout == "128x4":
            scales = [
                sparse.swizzle_nvfp4_scale_to_128x4(x, rows=x[..., 0].numel(), cols=x.shape[-1]) for x in scales
            ]
        attend = functools.partial(
            fmha.sparse_atten_nvfp4_kv_func, inputs.q, inputs.k, inputs.v, *scales, None, None, scale_layout=layout
        )

    def call() -> None:
        row_ptr, q_indices, schedule = fmha.build_k2q_csr(
            q2k, cu_q, cu_k, PAGE, total_k=case.batch * case.kv_len, return_schedule=True,
            qhead_per_kv=case.heads[0] // case.heads[1], **longest,
        )
        attend(
            row_ptr, q_indices, topk, cu_seqlens_q=cu_q, cu_seqlens_k=cu_k, causal=True,
            page_table=table, schedule=schedule, **longest,
        )

    return call, 1.0


def calls_of(case: Case, options: argparse.Namespace) -> Iterator[tuple[str, Callable[[], None], float]]:
    inputs = Inputs(case, options, paged=case.section not in ("prefill", "decode"))
    if case.section == "sparse_prefill":
        yield ("sparse", *sparse_prefill_call(inputs))
        return
    yield ("dense", *dense_call(inputs))
    if case.section == "sparse_decode":
        yield ("sparse", *sparse_decode_call(inputs))


def cases_of(section: str, options: argparse.Namespace) -> Iterator[Case]:
    if "decode" in section:
        for kv_len in options.decode_k:
            for batch in options.decode_b:
                yield Case(section, 8 if section == "sparse_decode" else 4, kv_len, batch, HEADS[1])
        return
    for tp in options.tp if section == "prefill" else (1,):
        for length in options.seqs:
            yield Case(section, length, length, 1, HEADS[tp])


# ---- rows --------------------------------------------------------------------------------------------------------------------


def operations(case: Case, sparse: bool, options: argparse.Namespace) -> float:
    """Upstream's count: visible pairs of queries and keys for dense attention, all listed keys for sparse."""
    q, k = case.q_len, case.kv_len
    pairs = q * min(options.topk * PAGE, k) if sparse else q * k - q * (q - 1) / 2
    return case.batch * 2 * case.heads[0] * 2 * options.head_dim * pairs


def bytes_moved(case: Case, sparse: bool, options: argparse.Namespace) -> float:
    keys = min(options.topk * PAGE, case.kv_len) if sparse else case.kv_len
    queries = case.batch * case.q_len * case.heads[0] * options.head_dim
    cache = 2 * case.batch * keys * case.heads[1] * options.head_dim * SIZES[options.dtype]
    return queries * SIZES[options.q_dtype] + cache + 2 * queries


def peaks_of(options: argparse.Namespace, name: str) -> tuple[float, float]:
    unknown = float("nan")
    known = next((peaks for card, peaks in PEAKS.items() if card in name), (unknown, unknown))
    tflops = unknown if options.q_dtype == "fp8" else known[0]
    return options.peak_tflops or tflops, options.peak_gbs or known[1]


def row_of(case: Case, kind: str, timing: Timing, options: argparse.Namespace, device: str) -> dict[str, str]:
    sparse, seconds = kind == "sparse", timing.median / 1e3
    tflops = operations(case, sparse, options) / seconds / 1e12
    gbs = bytes_moved(case, sparse, options) / seconds / 1e9
    peak_tflops, peak_gbs = peaks_of(options, device)
    dtype = options.dtype if options.q_dtype in (options.dtype, "fp8") else f"{options.dtype} q={options.q_dtype}"
    share = 100 * (gbs / peak_gbs if case.is_decode else tflops / peak_tflops)
    numbers = (
        case.q_len, case.kv_len, dtype, case.batch, *case.heads, options.head_dim, f"{timing.median:.5f}",
        f"{timing.deviation:.5f}", f"{tflops:.2f}", f"{gbs:.2f}", f"{share:.2f}" if share == share else "",
        f"{100 * (timing.predicted_speedup - 1):.2f}", f"{case.section}:{kind}",
        options.pattern if sparse else "", device,
    )
    return dict(zip(COLUMNS, map(str, numbers)))


def measure_all(options: argparse.Namespace) -> tuple[list[dict[str, str]], list[str]]:
    clock = Clock(options.device, options.dry_run_ms, options.repeat_ms)
    device = torch.cuda.get_device_name(options.device) if options.device.type == "cuda" else "cpu"
    rows: list[dict[str, str]] = []
    failures: list[str] = []
    for section in options.sections:
        for case in cases_of(section, options):
            try:
                for kind, call, speedup in calls_of(case, options):
                    timing = clock.measure(call)
                    timing.predicted_speedup = speedup
                    rows.append(row_of(case, kind, timing, options, device))
                    print("  ".join(f"{name}={value}" for name, value in rows[-1].items() if value), flush=True)
            except (RuntimeError, ValueError, MemoryError) as error:
                failures.append(f"{case}: {type(error).__name__}: {error}")
                print(failures[-1], file=sys.stderr, flush=True)
    return rows, failures


# ---- the command line ----------------------------------------------------------------------------------------------------------


def numbers(text: str) -> list[int]:
    return [int(word) for word in text.split(",")]


def sections(text: str) -> list[str]:
    chosen = list(SECTIONS) if text == "all" else text.split(",")
    unknown = [name for name in chosen if name not in SECTIONS]
    if unknown:
        raise argparse.ArgumentTypeError(f"no section {unknown[0]}; there are {', '.join(SECTIONS)} and all")
    return chosen


def tensor_parallel(text: str) -> list[int]:
    chosen = numbers(text)
    if any(tp not in HEADS for tp in chosen):
        raise argparse.ArgumentTypeError(f"of {', '.join(map(str, HEADS))}")
    return chosen


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    add = parser.add_argument
    add("--gpu", default="0", help="number of the GPU, or cpu")
    add("--output_mode", choices=["full", "maxscore", "o"], default="o", help="of the dense rows")
    add("--dtype", choices=["fp8", "bf16", "nvfp4", "f16"], default="bf16",
        help="of keys and values; nvfp4 has sparse_prefill alone (upstream's default is fp8)")
    add("--q-dtype", choices=["fp8", "bf16", "f16"],
        help="of queries; left out: fp8 beside fp8 and nvfp4 as upstream has it, else that of keys")
    add("--scale-layout", choices=["128x4", "linear"], default="128x4",
        help="of nvfp4's scales: in tiles, as upstream has them and which each call turns, or row after row")
    add("--output", "-o", help="a TSV file")
    add("--sections", type=sections, default=list(SECTIONS), help=f"{','.join(SECTIONS)} or all")
    add("--seqs", type=numbers, default=[8192, 16384, 32768, 65536, 131072])
    add("--tp", type=tensor_parallel, default=[1, 2, 4], help="64/4, 32/2 and 16/1 heads; section prefill alone")
    add("--decode-k", type=numbers, default=[8192, 16384, 32768, 65536])
    add("--decode-b", type=numbers, default=[32, 64, 128])
    add("--topk", type=int, choices=[4, 8, 16, 32], default=16)
    add("--head-dim", type=int, choices=[128], default=128)
    add("--blk-kv", type=int, choices=[PAGE], default=PAGE)
    add("--dry-run-ms", type=float, default=200)
    add("--repeat-ms", type=float, default=2000)
    add("--include-plan", action="store_true", help="plan inside the timed call")
    add("--pattern", choices=["first", "random"], default="first",
        help="pages that queries list: the first ones as upstream does, which is the best case, or random ones")
    add("--peak-tflops", type=float, default=0, help="of the card, where it is not an H100 or H200")
    add("--peak-gbs", type=float, default=0)
    options = parser.parse_args(arguments)
    options.q_dtype = options.q_dtype or ("fp8" if options.dtype in ("fp8", "nvfp4") else options.dtype)
    if options.q_dtype != options.dtype and options.dtype in ("bf16", "f16"):
        parser.error(f"--q-dtype {options.q_dtype}: queries beside keys in {options.dtype} are {options.dtype}")
    if options.dtype == "nvfp4" and options.sections != ["sparse_prefill"]:
        parser.error("--dtype nvfp4: of --sections sparse_prefill alone")
    if options.gpu != "cpu" and not torch.cuda.is_available():
        parser.error("there is no GPU here; --gpu cpu runs on the CPU")
    options.device = torch.device("cpu") if options.gpu == "cpu" else torch.device("cuda", int(options.gpu))
    return options


def main(arguments: list[str] | None = None) -> int:
    options = parse_arguments(arguments)
    torch.manual_seed(0)
    with torch.inference_mode():
        rows, failures = measure_all(options)
    if options.output:
        with open(options.output, "w", encoding="utf-8") as file:
            file.write("\n".join("\t".join(line) for line in [COLUMNS, *([row[c] for c in COLUMNS] for row in rows)]))
            file.write("\n")
    if failures:
        print(f"{len(failures)} of {len(failures) + len(rows)} rows failed", file=sys.stderr)
    return 1 if failures or not rows else 0


if __name__ == "__main__":
    sys.exit(main())
