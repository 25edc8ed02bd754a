#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Measures what Python costs and writes benchmarks/results/python-<machine>.json, whole.

Calls are timed on a problem that takes the library about two microseconds (one query, 16 keys); the library's own
time, of the same calls through the C interface, is taken off and stands in the row's text. Wheels are
those given, by size.

usage: benchmarks/python.py [--wheel-cpu FILE] [--wheel-cuda FILE] [--allow-dirty] [--out FILE]

Run it with the interpreter that has msa, numpy and torch; msa must have been built from the tree's commit.
"""
import argparse
import datetime
import json
import os
import pathlib
import platform
import shlex
import statistics
import subprocess
import sys
import time

import cpu

ROOT = pathlib.Path(__file__).resolve().parents[1]
BATCHES, CALLS = 300, 100


def batches_of(call):
    """Seconds of one call, batch by batch."""
    for _ in range(5 * CALLS):
        call()
    found = []
    for _ in range(BATCHES):
        begin = time.perf_counter()
        for _ in range(CALLS):
            call()
        found.append((time.perf_counter() - begin) / CALLS)
    return found


def library_seconds():
    """The same calls without Python, from a static library built for the purpose."""
    build = ROOT / "build" / "bench-python"
    subprocess.run(["cmake", "-S", ROOT, "-B", build, "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release",
                    "-DBUILD_SHARED_LIBS=OFF", "-DMSA_BUILD_TESTS=OFF", "-DMSA_BUILD_TOOLS=OFF", "-DMSA_CUDA=OFF",
                    "--log-level=WARNING"],
                   check=True, stdout=sys.stderr)
    subprocess.run(["cmake", "--build", build, "--target", "msa"], check=True, stdout=sys.stderr)
    subprocess.run(["c++", "-std=c++20", "-O2", f"-I{ROOT / 'include'}", ROOT / "benchmarks" / "library_call.cpp",
                    build / "src" / "libmsa.a", "-fopenmp", "-o", build / "library_call"], check=True)
    done = subprocess.run([build / "library_call", str(BATCHES), str(CALLS)], check=True, capture_output=True,
                          text=True)
    return statistics.median(float(line) for line in done.stdout.split())


def import_seconds(module, before):
    """Of a fresh interpreter that has imported `before` already."""
    code = f"import time, {before}\nt = time.perf_counter()\nimport {module}\nprint(time.perf_counter() - t)"
    found = [float(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)
             for _ in range(15)]
    return found


def row(identity, what, seconds, off=0.0):
    return {"id": identity, "what": what, "seconds": statistics.median(seconds) - off,
            "spread": [min(seconds) - off, max(seconds) - off]}


def call_rows(off):
    import numpy
    import torch

    import msa
    import msa.torch

    rows = []
    less = f"beyond the library's own {off * 1e6:.2f} us"
    q, kv = numpy.zeros((1, 1, 16), numpy.float32), numpy.zeros((16, 1, 16), numpy.float32)
    ids, out = numpy.zeros((1, 1, 1), numpy.int32), numpy.zeros((1, 1, 16), numpy.float32)
    plan = msa.make_plan("sparse_attention", q=q, k=kv, v=kv, block_ids=ids, threads=1)
    workspace = numpy.empty(plan.workspace_bytes + 256, numpy.uint8)
    rows.append(row("py.call.numpy", f"plan.run, outputs and workspace given, numpy arrays; {less}",
                    batches_of(lambda: plan.run(q, kv, kv, ids, out=out, workspace=workspace)), off))
    q, kv, ids, out, workspace = (torch.from_numpy(x) for x in (q, kv, ids, out, workspace))
    rows.append(row("py.call.torch", f"plan.run, outputs and workspace given, torch tensors; {less}",
                    batches_of(lambda: plan.run(q, kv, kv, ids, out=out, workspace=workspace)), off))
    rows.append(row("py.call.once", f"msa.sparse_attention, torch tensors, output allocated, cached plan; {less}",
                    batches_of(lambda: msa.sparse_attention(q, kv, kv, ids, threads=1)), off))
    rows.append(row("py.op", f"msa.torch.sparse_attention, eager, gradients enabled; {less}",
                    batches_of(lambda: msa.torch.sparse_attention(q, kv, kv, ids, threads=1)), off))
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wheel-cpu", type=pathlib.Path, help="a wheel without the tool and without CUDA")
    parser.add_argument("--wheel-cuda", type=pathlib.Path, help="a wheel without the tool and with CUDA")
    parser.add_argument("--allow-dirty", action="store_true", help="measure a tree with changes, for a trial")
    parser.add_argument("--out", type=pathlib.Path, help="default: benchmarks/results/python-<machine>.json")
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")

    built, isa = cpu.built_package(args.allow_dirty)
    rows = [row("py.import", "import msa in a fresh interpreter", import_seconds("msa", "sys")),
            row("py.import.torch", "import msa.torch after torch", import_seconds("msa.torch", "torch")),
            *call_rows(library_seconds())]
    for kind, wheel in (("cpu", args.wheel_cpu), ("cuda", args.wheel_cuda)):
        if wheel:
            rows.append({"id": f"py.wheel.{kind}", "what": f"{wheel.name}, without the command-line tool",
                         "bytes": wheel.stat().st_size})
    import torch
    document = {"machine": {"cpu": built["cpu"], "isa": isa, "threads": 1, "python": platform.python_version(),
                            "torch": torch.__version__},
                "commit": built["commit"], "version": built["version"],
                # Folders of one machine tell nobody anything.
                "command": shlex.join(["benchmarks/python.py", *(pathlib.PurePath(a).name for a in sys.argv[1:])]),
                "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(), "rows": rows}
    out = args.out or ROOT / "benchmarks" / "results" / f"python-{cpu.machine_name(built['cpu'])}-{isa}.json"
    cpu.write_whole(out, document)
    print(json.dumps(rows, indent=1), file=sys.stderr)


if __name__ == "__main__":
    main()
