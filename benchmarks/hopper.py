#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Measures the rows hopper.* and PyTorch's kernels beside them, in one run on one machine with an H100 or H200.

usage: benchmarks/hopper.py [--build DIR] [--only PATTERN]... [--merge FILE] [--out FILE] [--commit HASH]

Builds the tool (or takes the build in DIR), measures the machine's peaks, then group by group a peer
and our rows: cuDNN's dense attention through PyTorch, in a CUDA graph for decode, and torch.topk. A
peer's output is checked on sampled rows before it is timed. --only 'hopper.decode.*' measures some rows;
--merge keeps the other rows of an earlier file of the same commit and machine. Writes the JSON of
docs/formats.md to benchmarks/results/CARD-DRIVER.json (h100-580.159.04.json) unless told otherwise.
"""
import argparse
import datetime
import fnmatch
import json
import pathlib
import re
import shlex
import statistics
import subprocess
import sys
import tempfile
import time

import cpu

ROOT = pathlib.Path(__file__).resolve().parents[1]
MIN_TIME = 0.3  # seconds of all runs of a row
L2_BYTES = 64 << 20


def say(text):
    print(f"[{time.monotonic() - START:6.1f} s] {text}", file=sys.stderr, flush=True)


START = time.monotonic()


# ---- timing and checking PyTorch ---------------------------------------------------------------------------------------


class Peer:
    """One callable per set of inputs; sets are taken in turn, so that none stays in the L2 cache."""

    def __init__(self, name, calls, graph_runs=0):
        self.name = name
        self.calls = calls
        self.graph_runs = graph_runs

    def seconds(self):
        import torch

        if self.graph_runs:
            launch, runs = self.capture()
        else:
            turn = iter(range(1 << 60))
            launch, runs = lambda: self.calls[next(turn) % len(self.calls)](), 1
        once = elapsed(launch, 1)[0]
        window = max(1, min(64, int(0.02 / max(once, 1e-6))))
        if once < 0.2:
            elapsed(launch, window)
        elif once > 5:
            return [once / runs]
        found = []
        while len(found) < 5 or sum(found) < MIN_TIME:
            found += elapsed(launch, window)
        torch.cuda.synchronize()
        return [x / runs for x in found]

    def capture(self):
        import torch

        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for call in self.calls:
                call()
        torch.cuda.current_stream().wait_stream(stream)
        runs = -(-self.graph_runs // len(self.calls)) * len(self.calls)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.kept = [self.calls[n % len(self.calls)]() for n in range(runs)]
        return graph.replay, runs


def elapsed(launch, count):
    """Seconds of runs handed over together, each from the end of the one before it to its own."""
    import torch

    events = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]
    events[0].record()
    for event in events[1:]:
        launch()
        event.record()
    torch.cuda.synchronize()
    return [1e-3 * a.elapsed_time(b) for a, b in zip(events, events[1:])]


def check_attention(q, k, v, out, causal):
    """Sampled rows against softmax in fp32; raises where one is far outside rounding."""
    import torch

    batch, heads, rows, dim = q.shape
    group = heads // k.shape[1]
    for n, row in enumerate((0, rows - 1, rows // 2, rows // 3)):
        b, h = (n * 7) % batch, (n * 5) % heads
        keys = row + 1 if causal else k.shape[2]
        scores = k[b, h // group, :keys].float() @ q[b, h, row].float() / dim ** 0.5
        want = torch.softmax(scores, 0) @ v[b, h // group, :keys].float()
        error = ((out[b, h, row].float() - want).norm() / want.norm()).item()
        if not error < 2e-2:
            raise RuntimeError(f"the peer's output is wrong: row {row}, head {h}, relative error {error}")


def attention(tokens, keys, batch, heads, heads_kv, kernels="CUDNN_ATTENTION", name="cuDNN dense"):
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    causal = tokens > 1

    def tensors():
        return [torch.randn(batch, h, n, 128, device="cuda", dtype=torch.bfloat16)
                for h, n in ((heads, tokens), (heads_kv, keys), (heads_kv, keys))]

    def call(q, k, v):
        with sdpa_kernel(getattr(SDPBackend, kernels)):
            return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=True)

    kv_bytes = 2 * batch * heads_kv * keys * 256
    sets = [tensors() for _ in range(max(1, min(16, -(-4 * L2_BYTES // kv_bytes))) if not causal else 1)]
    for q, k, v in sets[:1]:
        if tokens * keys < 1 << 38:  # longer ones are checked on the run that is timed
            check_attention(q, k, v, call(q, k, v), causal)
    calls = [lambda s=s: call(*s) for s in sets]
    if tokens * keys >= 1 << 38:
        kept = []

        def checked():
            kept[:] = [call(*sets[0])]

        peer = Peer(name, [checked])
        peer.after = lambda: check_attention(*sets[0], kept[0], causal)
        return peer
    return Peer(name, calls, graph_runs=0 if causal else (16 if kv_bytes < 1 << 32 else 4))


def topk():
    import torch

    x = torch.randn(131072, 1024, device="cuda")
    values = torch.topk(x, 16, dim=-1).values
    rows = [0, 1, 70000, 131071]
    want = torch.sort(x[rows], dim=-1, descending=True).values[:, :16]
    if not torch.equal(torch.sort(values[rows], dim=-1, descending=True).values, want):
        raise RuntimeError("torch.topk's output is wrong")
    return Peer("torch.topk of random scores", [lambda: torch.topk(x, 16, dim=-1)])


# ---- groups: a peer and the rows that are held against it ---------------------------------------------------------------

PREFILL = {"8k": 8192, "32k": 32768, "128k": 131072, "1m": 1048576}
DECODE = {"1m.b1": (1048576, 1, 64, 4), "128k.b1": (131072, 1, 64, 4), "128k.b32": (131072, 32, 64, 4),
          "32k.b128": (32768, 128, 64, 4), "8h.128k.b32": (131072, 32, 8, 1),
          "16h.128k.b32": (131072, 32, 16, 1), "32h.128k.b32": (131072, 32, 32, 2)}
HEADS = {"32h": (32, 2), "16h": (16, 1), "8h": (8, 1)}  # shares of 64/4 heads on 2, 4 and 8 cards
# Rows whose other side is our own, timed by the tool itself.
OWN = ["decode.8q.128k.b32", "decode.8q.32h.128k.b32", "decode.8q.16h.128k.b32", "decode.8q.8h.128k.b32",
       "decode.ragged.128k.b1", "decode.padding", "sparse.64x512.random", "sparse.160x512.random", "nan.32k",
       "attend.fp8.32k.drift", "attend.fp8.128k.drift", "attend.fp8.128k.random", "attend.q8kv4.128k.drift"]
# Beside cuDNN over keys and values in bf16. Fast: index keys in e4m3, too. q8kv4: all three in four bits.
LOW_BITS_DECODE = ["fp8.1m.b1", "fp8.128k.b32", "fp8.32k.b128",
                   "fp8fast.1m.b1", "fp8fast.128k.b1", "fp8fast.128k.b32", "fp8fast.32k.b128",
                   "q8kv4.1m.b1", "q8kv4.128k.b32"]
# Beside the same: keys, values and index keys in bf16, and an 8-bit filter. Ids are those of the index keys, bit for bit.
FILTER_DECODE = ["1m.b1", "128k.b32", "32k.b128"]
FILTER_PREFILL = ["128k", "1m"]
MMA_DENSE = ["8k", "32k"]
MMA_BESIDE_SM90 = ("decode.1m.b1", "decode.128k.b32", "topk.random")  # forced, in one run with our own kernels


def groups():
    yield ["hopper.first_call"], None
    yield ["hopper.workspace.max"], None
    for name, (keys, batch, heads, heads_kv) in DECODE.items():
        yield [f"hopper.decode.{name}"], lambda a=(1, keys, batch, heads, heads_kv): attention(*a)
    for name in LOW_BITS_DECODE:
        yield [f"hopper.decode.{name}"], lambda a=(1, *DECODE[name.split(".", 1)[1]]): attention(*a)
    for name in FILTER_DECODE:
        yield [f"hopper.decode8.{name}"], lambda a=(1, *DECODE[name]): attention(*a)
    for name in OWN:
        yield [f"hopper.{name}"], None
    yield ["hopper.topk.random", "hopper.topk.ties", "hopper.topk.near"], topk
    yield ["hopper.select.128k", "hopper.select.chunk128.1m", "hopper.select8.128k", "hopper.select8.1m",
           "hopper.select8.fast.128k", "hopper.select8.fast.1m"], None
    for name, (heads, heads_kv) in HEADS.items():
        yield [f"hopper.msa.{name}.32k.drift"], lambda a=(32768, 32768, 1, heads, heads_kv): attention(*a)
    for name in MMA_DENSE:  # forced, beside what PyTorch runs on every card from 8.0 on
        yield [f"mma.dense.{name}"], lambda n=PREFILL[name]: attention(n, n, 1, 64, 4, "FLASH_ATTENTION",
                                                                       "FlashAttention-2 dense")
    yield [f"mma.{name}" for name in MMA_BESIDE_SM90], None
    for name, n in PREFILL.items():  # the longest last: its peer takes half a minute a run
        rows = [f"hopper.msa.{name}.drift", f"hopper.msa.{name}.random"]
        if name in FILTER_PREFILL:
            rows.append(f"hopper.msa8.{name}.drift")
        if n < 1 << 20:
            rows += [f"hopper.dense.{name}", f"mma.msa.{name}.drift"]
        yield rows, lambda n=n: attention(n, n, 1, 64, 4)


def measure_peer(make):
    import torch

    peer = make()
    seconds = peer.seconds()
    if hasattr(peer, "after"):
        peer.after()
    name = f"{peer.name}, torch {torch.__version__}"
    if "cuDNN" in peer.name:
        name += f", cuDNN {torch.backends.cudnn.version()}"
    del peer
    torch.cuda.empty_cache()
    return name, statistics.median(seconds)


def measure_rows(tool, rows, peaks):
    """Our rows, by the tool; raises where an output is wrong."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "rows.json"
        command = [tool, "bench", "--backend", "cuda", "--min-time", str(MIN_TIME), "--json", path,
                   "--gemm-flops", str(peaks["bf16_flops"]), "--read-rate", str(peaks["read_bytes_per_s"])]
        for row in rows:
            command += ["--filter", row]
        subprocess.run([str(x) for x in command], check=True, stdout=subprocess.DEVNULL)
        return json.loads(path.read_text())


# ---- the machine --------------------------------------------------------------------------------------------------------


def measure_peaks():
    """bf16: an 8192^3 product of random numbers through cuBLAS. Read rate: a sum over 8 GB."""
    import torch

    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    out = torch.empty_like(a)
    gemm = lambda: torch.matmul(a, b, out=out)
    elapsed(gemm, 5)  # short, as clocks fall under a long load: a higher bar for what is held against it
    seconds = statistics.median(elapsed(gemm, 30))
    x = torch.ones(1 << 31, device="cuda")
    total = torch.empty((), device="cuda")
    reading = lambda: torch.sum(x, dim=0, out=total)
    elapsed(reading, 2)
    read = statistics.median(elapsed(reading, 20))
    target = torch.empty_like(x[: 1 << 30])
    copying = lambda: target.copy_(x[: 1 << 30])
    elapsed(copying, 2)
    copied = statistics.median(elapsed(copying, 20))
    del a, b, out, x, target
    torch.cuda.empty_cache()
    return {"bf16_flops": 2 * 8192 ** 3 / seconds, "read_bytes_per_s": max(2 ** 33 / read, 2 ** 33 / copied)}


def card_and_driver():
    """("h100", "580.159.04") of the first GPU."""
    answer = subprocess.run(["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader", "--id=0"],
                            check=True, capture_output=True, text=True)
    name, driver = (word.strip() for word in answer.stdout.strip().split(","))
    model = re.search(r"\b[A-Z]+\d+\w*", name)
    return (model.group(0) if model else name.replace(" ", "-")).lower(), driver


def build(directory, commit):
    say(f"building in {directory}")
    commands = [["cmake", "-S", ROOT, "-B", directory, "-G", "Ninja", "-DMSA_CUDA=ON",
                 "-DMSA_CUDA_ARCHITECTURES=90", "-DMSA_BUILD_TESTS=OFF",
                 *([f"-DMSA_COMMIT={commit}"] if commit else [])], ["cmake", "--build", directory]]
    for command in commands:
        subprocess.run([str(x) for x in command], check=True, stdout=subprocess.DEVNULL)


def library_row(directory):
    library = (directory / "src" / "libmsa.so").resolve()
    return {"id": "hopper.library", "what": "libmsa.so, all backends", "bytes": library.stat().st_size}


# ---- all together -------------------------------------------------------------------------------------------------------


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--build", type=pathlib.Path, help="a build made elsewhere; left out: builds in build/cuda")
    parser.add_argument("--only", action="append", default=[], help="rows whose ids match; may be repeated")
    parser.add_argument("--merge", type=pathlib.Path, help="an earlier file whose other rows stay")
    parser.add_argument("--out", type=pathlib.Path)
    parser.add_argument("--commit", default="", help="of a tree without its repository")
    return parser.parse_args()


def command_of(arguments):
    """What repeats the measurement, without where files lie on this machine."""
    return shlex.join(["benchmarks/hopper.py", *(word for row in arguments.only for word in ("--only", row))])


def wanted(arguments, row):
    return not arguments.only or any(fnmatch.fnmatch(row, pattern) for pattern in arguments.only)


def same(field, before, here):
    """A commit may be told by its first digits."""
    if field == "commit" and min(len(before), len(here)) >= 7:
        return before.startswith(here) or here.startswith(before)
    return before == here


def load_merged(arguments, document):
    if not arguments.merge or not arguments.merge.exists():
        return {}
    before = json.loads(arguments.merge.read_text())
    for field in ("machine", "commit", "version"):
        if not same(field, before[field], document[field]):
            sys.exit(f"{arguments.merge}: {field} is {before[field]}, here it is {document[field]}")
    return {row["id"]: row for row in before["rows"]}


def write(path, document, rows):
    order = {row: n for n, row in enumerate([*(r for ids, _ in groups() for r in ids), "hopper.library"])}
    rank = lambda row: order.get(row["id"], order.get(row["id"].rpartition(".")[0], -1) + 0.5)
    document["rows"] = sorted(rows.values(), key=rank)
    cpu.write_whole(path, document)


def run_group(tool, ids, make, peaks):
    ours, rows = measure_rows(tool, ids, peaks), []
    name, seconds = measure_peer(make) if make else ("", 0)
    for row in ours["rows"]:
        if make and row["id"] in ids:
            row |= {"peer": name, "peer_seconds": seconds, "ratio": seconds / row["seconds"]}
        rows.append(row)
        say("  ".join(f"{k} {row[k]:.6g}" if isinstance(row[k], float) else str(row[k])
                      for k in ("id", "seconds", "share", "ratio", "bytes") if k in row))
    return ours, rows


def main():
    arguments = parse_arguments()
    directory = arguments.build or ROOT / "build" / "cuda"
    if not arguments.build:
        build(directory, arguments.commit)
    tool = directory / "tools" / "msa" / "msa"
    peaks = measure_peaks()
    say("peaks: " + ", ".join(f"{k} {v:.4g}" for k, v in peaks.items()))
    card, driver = card_and_driver()
    out = arguments.out or ROOT / "benchmarks" / "results" / f"{card}-{driver}.json"
    document, rows, failed = None, {}, []
    for ids, make in groups():
        ids = [row for row in ids if wanted(arguments, row)]
        if not ids:
            continue
        try:
            ours, found = run_group(tool, ids, make, peaks)
        except (subprocess.CalledProcessError, RuntimeError) as error:
            say(f"not measured: {', '.join(ids)}: {error}")
            failed += ids
            continue
        if document is None:
            document = {"machine": ours["machine"] | {"driver": driver}, "peaks": peaks, "commit": ours["commit"],
                        "version": ours["version"], "command": command_of(arguments),
                        "date": datetime.date.today().isoformat(), "rows": []}
            rows = load_merged(arguments, document)
            if wanted(arguments, "hopper.library"):
                rows["hopper.library"] = library_row(directory)
        rows |= {row["id"]: row for row in found}
        write(out, document, rows)
    if document is None or failed:
        sys.exit(f"hopper.py: not measured: {', '.join(failed) or 'no row has such a name'}")
    print(out)


if __name__ == "__main__":
    main()
