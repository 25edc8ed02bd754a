#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Measures what the fmha_sm100 drop-in costs over the plain msa call for the same work, on a Hopper GPU.

usage: benchmarks/dropin.py [--out FILE] [--commit HASH] [--only PATTERN]...

Both are captured in CUDA graphs and replayed in turn, so that clocks drift for both alike. Before a pair is timed its
outputs are compared bit for bit and sampled rows with softmax in fp32. Row hopper.dropin is the worst of the pairs that
it names; two more rows show where upstream's form costs more: lists made from rows without their schedule, and sparse
decode of microseconds. Merges the rows into FILE, where FILE is of the same commit and card
(benchmarks/results/dropin-GPU.json unless told otherwise), in the format of docs/formats.md.
"""
from __future__ import annotations

import argparse
import datetime
import fnmatch
import json
import pathlib
import shlex
import statistics
import subprocess
import sys
from dataclasses import dataclass
from typing import Any, Callable

import torch

import cpu
import msa
from msa import torch as ops
from msa.compat import fmha_sm100 as fmha

ROOT = pathlib.Path(__file__).resolve().parents[1]
HEADS, HEADS_KV, DIM, PAGE, TOPK = 64, 4, 128, 128, 16
ROUNDS = 15
COUNTED = ("fmha.sparse.32k", "fmha.dense.decode.128k.b32", "rows.32k")


@dataclass
class Pair:
    what: str
    ours: Callable[[], torch.Tensor]
    plain: Callable[[], torch.Tensor]
    check: Callable[[torch.Tensor], None]
    runs: int  # in one graph


# ---- inputs --------------------------------------------------------------------------------------------------------------


def pages_of(requests: int, keys: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """K and V pages with heads before slots, and a list of pages in random order."""
    pages = requests * keys // PAGE
    k, v = (torch.randn(pages, HEADS_KV, PAGE, DIM, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    return k, v, torch.randperm(pages, device="cuda").to(torch.int32)


def lists_of(tokens: int, keys: int) -> torch.Tensor:
    """int32 [T, Hkv, TOPK]: ascending blocks that drift along the sequence: a first block, the last ones, others
    that neighbours share."""
    position = torch.arange(tokens, device="cuda") + (keys - tokens)
    visible = position // PAGE + 1
    edges = torch.arange(TOPK + 1, device="cuda") * visible[:, None] // TOPK
    few = torch.arange(TOPK, device="cuda")
    ids = torch.where(visible[:, None] > TOPK, edges[:, 1:] - 1, torch.where(few < visible[:, None], few, -1))
    return ids.to(torch.int32)[:, None].expand(-1, HEADS_KV, -1).contiguous()


def sampled_check(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, table: torch.Tensor, keys: int, ids: torch.Tensor | None
) -> Callable[[torch.Tensor], None]:
    """Compares some rows with softmax in fp32; raises where one is far outside rounding."""
    requests = table.shape[0]
    each = q.shape[0] // requests

    def check(out: torch.Tensor) -> None:
        for n, row in enumerate((0, q.shape[0] - 1, q.shape[0] // 2, q.shape[0] // 3)):
            head, request = (7 * n) % HEADS, row // each
            position = keys - each + row % each
            blocks = torch.arange(position // PAGE + 1, device="cuda")
            if ids is not None:
                listed = ids[row, head * HEADS_KV // HEADS]
                blocks = listed[listed >= 0].to(torch.int64)
            rows = table[request].to(torch.int64)[blocks]
            visible = (blocks[:, None] * PAGE + torch.arange(PAGE, device="cuda") <= position).flatten()
            kk, vv = (x[rows, head * HEADS_KV // HEADS].flatten(0, 1)[visible].float() for x in (k, v))
            wanted = torch.softmax(kk @ q[row, head].float() / DIM**0.5, 0) @ vv
            error = ((out[row, head].float() - wanted).norm() / wanted.norm()).item()
            if not error < 2e-2:
                raise RuntimeError(f"row {row}, head {head}: relative error {error}")

    return check


# ---- pairs ---------------------------------------------------------------------------------------------------------------


def planned(requests: int, tokens: int, keys: int, sparse: bool, what: str, runs: int) -> Pair:
    """fmha_sm100 with a list of pages against the plain call with a table of them."""
    k, v, kv_indices = pages_of(requests, keys)
    q = torch.randn(requests * tokens, HEADS, DIM, device="cuda", dtype=torch.bfloat16)
    lens = torch.full((requests,), tokens, dtype=torch.int32), torch.full((requests,), keys, dtype=torch.int32)
    plan = fmha.fmha_sm100_plan(
        *lens, HEADS, num_kv_heads=HEADS_KV, page_size=PAGE, kv_block_num=TOPK if sparse else -1, device="cuda"
    )
    ids = lists_of(tokens, keys).repeat(requests, 1, 1) if sparse else None
    outs = torch.empty_like(q), torch.empty_like(q)
    table = kv_indices.view(requests, -1)
    pages = k.permute(0, 2, 1, 3), v.permute(0, 2, 1, 3)
    batch = {
        "cu_seqlens_q": torch.arange(requests + 1, dtype=torch.int32, device="cuda") * tokens,
        "seqlens_k": lens[1].cuda(), "page_table": table, "max_seqlen_q": tokens, "max_seqlen_k": keys, "out": outs[1],
    }

    def ours() -> torch.Tensor:
        fmha.fmha_sm100(q, k, v, plan, kv_indices=kv_indices, kv_block_indexes=ids, out=outs[0])
        return outs[0]

    def plain() -> torch.Tensor:
        if ids is None:
            ops.dense_attention(q, *pages, **batch)
        else:
            ops.sparse_attention(q, *pages, ids, **batch)
        return outs[1]

    return Pair(what, ours, plain, sampled_check(q, k, v, table, keys, ids), runs)


def from_rows(tokens: int, scheduled: bool, what: str) -> Pair:
    """sparse_atten_func against the plain call with the lists that the rows were made of."""
    k, v, kv_indices = pages_of(1, tokens)
    q = torch.randn(tokens, HEADS, DIM, device="cuda", dtype=torch.bfloat16)
    ids, table = lists_of(tokens, tokens), kv_indices.view(1, -1)
    cu = torch.tensor([0, tokens], dtype=torch.int32, device="cuda")
    longest = {"max_seqlen_q": tokens, "max_seqlen_k": tokens}
    row_ptr, q_indices, schedule = fmha.build_k2q_csr(
        ids.permute(1, 0, 2), cu, cu, PAGE, total_k=tokens, qhead_per_kv=HEADS // HEADS_KV, return_schedule=True,
        **longest,
    )
    outs = torch.empty_like(q), torch.empty_like(q)
    pages = k.permute(0, 2, 1, 3), v.permute(0, 2, 1, 3)

    def ours() -> torch.Tensor:
        fmha.sparse_atten_func(
            q, k, v, row_ptr, q_indices, TOPK, cu_seqlens_q=cu, cu_seqlens_k=cu, causal=True, page_table=table,
            schedule=schedule if scheduled else None, out=outs[0], **longest,
        )
        return outs[0]

    def plain() -> torch.Tensor:
        ops.sparse_attention(
            q, *pages, ids, cu_seqlens_q=cu, seqlens_k=cu[1:], page_table=table, out=outs[1], **longest
        )
        return outs[1]

    return Pair(what, ours, plain, sampled_check(q, k, v, table, tokens, ids), 1)


PAIRS: dict[str, Callable[[], Pair]] = {
    "fmha.sparse.32k": lambda: planned(1, 32768, 32768, True, "fmha_sm100, sparse prefill of 32K tokens", 1),
    "fmha.dense.decode.128k.b32": lambda: planned(
        32, 1, 131072, False, "fmha_sm100, dense decode, 32 requests over 128K each", 4
    ),
    "rows.32k": lambda: from_rows(32768, True, "sparse_atten_func with its schedule, prefill of 32K tokens"),
    "rows.32k.unscheduled": lambda: from_rows(32768, False, "sparse_atten_func without a schedule, 32K tokens"),
    "fmha.sparse.decode.128k.b32": lambda: planned(
        32, 1, 131072, True, "fmha_sm100, sparse decode, 32 requests over 128K each", 16
    ),
}


# ---- timing --------------------------------------------------------------------------------------------------------------


def captured(call: Callable[[], torch.Tensor], runs: int) -> Callable[[], None]:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(runs):
            call()
    return graph.replay


def elapsed(launch: Callable[[], None], count: int) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(count):
        launch()
    end.record()
    end.synchronize()
    return 1e-3 * float(begin.elapsed_time(end)) / count


def measure(name: str, make: Callable[[], Pair]) -> dict[str, Any]:
    pair = make()
    graphs = captured(pair.ours, pair.runs), captured(pair.plain, pair.runs)
    for graph in graphs:
        graph()
    torch.cuda.synchronize()
    ours, plain = pair.ours().clone(), pair.plain()
    if not torch.equal(ours, plain):
        worst = (ours.float() - plain.float()).abs().max().item()
        print(f"{name}: not the bits of the plain call, at most {worst} apart", file=sys.stderr)
    pair.check(ours)
    count = max(1, int(0.05 / max(elapsed(graphs[0], 1), 1e-6)))
    times: tuple[list[float], list[float]] = ([], [])
    for n in range(ROUNDS):
        for i in (0, 1) if n % 2 else (1, 0):
            times[i].append(elapsed(graphs[i], count) / pair.runs)
    seconds, peer = (statistics.median(found) for found in times)
    return {
        "id": f"hopper.dropin.{name}", "what": pair.what, "seconds": seconds, "spread": [min(times[0]), max(times[0])],
        "verified": True, "peer": "the plain msa call", "peer_seconds": peer, "ratio": peer / seconds,
    }


# ---- the file ------------------------------------------------------------------------------------------------------------


def machine() -> dict[str, Any]:
    driver = subprocess.run(
        ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"], check=True,
        capture_output=True, text=True,
    ).stdout.strip()
    return {"cpu": msa.info()["cpu"], "isa": "sm90", "gpu": torch.cuda.get_device_name(), "driver": driver}


def merged(path: pathlib.Path, document: dict[str, Any], rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The file with these rows in place of older ones of their names."""
    if path.exists():
        before = json.loads(path.read_text())
        for field, old, new in (
            ("commit", before["commit"], document["commit"]),
            ("gpu", before["machine"].get("gpu"), document["machine"]["gpu"]),
            ("driver", before["machine"].get("driver"), document["machine"]["driver"]),
        ):
            if old != new:
                sys.exit(f"dropin.py: {path}: {field} is {old}, here it is {new}")
        document = before
    fresh = {row["id"]: row for row in rows}
    kept = [row for row in document["rows"] if row["id"] not in fresh]
    return document | {"rows": [*kept, *rows]}


def worst_of(rows: list[dict[str, Any]]) -> dict[str, Any] | None:
    found = [row for row in rows if row["id"].removeprefix("hopper.dropin.") in COUNTED]
    if len(found) < len(COUNTED):
        return None
    worst = min(found, key=lambda row: float(row["ratio"]))
    names = ", ".join(COUNTED)
    return worst | {"id": "hopper.dropin", "what": f"the drop-in in a CUDA graph, worst of {names}: {worst['what']}"}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=pathlib.Path)
    parser.add_argument("--commit", default="", help="of a tree without its repository")
    parser.add_argument("--only", action="append", default=[], help="pairs whose names match; may be repeated")
    arguments = parser.parse_args()
    here = machine()
    command = ["benchmarks/dropin.py", *(word for name in arguments.only for word in ("--only", name))]
    document = {
        "machine": here, "peaks": {}, "commit": arguments.commit or msa.info()["commit"], "version": msa.__version__,
        "command": shlex.join(command), "date": datetime.date.today().isoformat(), "rows": [],
    }
    card = here["gpu"].lower().replace(" ", "-")
    out = arguments.out or ROOT / "benchmarks" / "results" / f"dropin-{card}.json"
    rows: list[dict[str, Any]] = []
    torch.manual_seed(0)
    with torch.inference_mode():
        for name, make in PAIRS.items():
            if arguments.only and not any(fnmatch.fnmatch(name, pattern) for pattern in arguments.only):
                continue
            rows.append(measure(name, make))
            print("  ".join(f"{key} {rows[-1][key]}" for key in ("id", "seconds", "peer_seconds", "ratio")), flush=True)
            torch.cuda.empty_cache()
    worst = worst_of(rows)
    if worst:
        rows.insert(0, worst)
    cpu.write_whole(out, merged(out, document, rows))
    print(out)


if __name__ == "__main__":
    main()
