#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Measures what each format costs in accuracy and writes benchmarks/results/accuracy.json, whole.

Vectors are those of the case language's `drift`, and the same with uneven channels: keys, values and index keys times
a weight for each channel, log-normal, of root mean square 1. They are stored by the library's own quantizers. What is
printed depends on no clock: a run on any machine of one instruction set gives the same file but for the date.

    attend.*      sparse attention of 64 queries over 32K tokens: error of `out` against the same call over bf16 and
                  with bf16's lists, root mean square over root mean square
    select.*      the share of bf16's lists of 16 blocks that an index stored in the format chooses, too
    select.i8/*   the same of the codes of an 8-bit filter alone (precision "fast"), by the reference backend
    candidates.*  the exact 8-bit filter, whose lists are bf16's: blocks of a row that had to be scored from their keys

usage: benchmarks/accuracy.py --msa PATH [--allow-dirty] [--out FILE]

Run it with the interpreter that has msa, numpy and ml_dtypes; --msa is the command-line tool of the same build.
"""
import argparse
import datetime
import json
import pathlib
import subprocess
import sys
import tempfile

import ml_dtypes
import msa
import numpy as np

import cpu

ROOT = pathlib.Path(__file__).resolve().parents[1]
QUERIES, TOPK, HEADS, DIM, PAGE = 64, 16, 16, 128, 128
LENGTHS = {"32k": 32768, "128k": 131072, "1m": 1048576}
KV_FORMATS = ["e4m3", "e4m3/tensor", "e4m3/head", "e4m3/page", "e4m3/token", "nvfp4", "nvfp4/tensor", "q8kv4"]
INDEX_FORMATS = [kind for kind in KV_FORMATS if kind != "nvfp4/tensor"]  # halves of a key would have two scales
FOUR_BITS = ["nvfp4", "nvfp4/tensor", "q8kv4"]
E4M3_LARGEST = 448.0
FILE_TYPES = {"BF16": ml_dtypes.bfloat16, "F32": np.float32, "I32": np.int32}


def made(tool, case):
    """Inputs of a case, by name."""
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder) / "case.safetensors"
        subprocess.run([tool, "make", case, file], check=True, stdout=subprocess.DEVNULL)
        held = file.read_bytes()
    end = 8 + int.from_bytes(held[:8], "little")
    return {name: np.frombuffer(held[end + t["data_offsets"][0]:end + t["data_offsets"][1]], FILE_TYPES[t["dtype"]])
            .reshape(t["shape"])
            for name, t in json.loads(held[8:end]).items() if name != "__metadata__"}


def uneven(x, seed):
    weight = np.exp(np.random.default_rng(seed).standard_normal(x.shape[-1])).astype(np.float32)
    weight /= np.sqrt(np.mean(weight ** 2))
    return (x.astype(np.float32) * weight).astype(x.dtype)


def given_scales(kind, tensors):
    """Of e4m3 with scales that the caller chooses: the largest magnitude becomes the largest code."""
    axes = {"e4m3/tensor": (0, 1, 2, 3), "e4m3/head": (0, 1, 3), "e4m3/page": (1, 3), "nvfp4/tensor": (0, 1, 2, 3)}
    if kind not in axes:
        return {}
    largest = [np.max(np.abs(t.astype(np.float32)), axis=axes[kind]) for t in tensors]
    if kind == "nvfp4/tensor":  # e2m1's largest number is 6
        return {f"{name}_global_scale": np.reshape(x / (6 * E4M3_LARGEST), 1).astype(np.float32)
                for name, x in zip("kv", largest)}
    return {f"{name}_scale": np.atleast_1d(x / E4M3_LARGEST).astype(np.float32) for name, x in zip("kv", largest)}


def stored(kind, k, v):
    """Codes and scales of k and v, [P, S, H, D], as keywords of attention."""
    scales = given_scales(kind, (k, v))
    pages, size, heads, dim = k.shape
    four = kind in FOUR_BITS
    caches = {f"{n}_cache": np.zeros((pages, size, heads, dim // 2 if four else dim), np.uint8) for n in "kv"}
    if four:
        caches |= {f"{n}_scale_cache": np.zeros((pages, size, heads, dim // 16), ml_dtypes.float8_e4m3fn) for n in "kv"}
    elif kind == "e4m3/token":
        caches |= {f"{n}_scale_cache": np.zeros((pages, size, heads), np.float32) for n in "kv"}
    rows = pages * size
    msa.quantize_kv(k.reshape(rows, heads, dim), v.reshape(rows, heads, dim), kv_format=kind, **caches, **scales,
                    cu_seqlens_q=np.array([0, rows], np.int32), seqlens_k=np.array([rows], np.int32),
                    page_table=np.arange(pages, dtype=np.int32)[None])
    for n in "kv":
        if f"{n}_scale_cache" in caches:
            scales[f"{n}_scale"] = caches[f"{n}_scale_cache"]
    how = {"kv_format": kind} if four else {"kv_dtype": "e4m3"}
    return caches["k_cache"], caches["v_cache"], scales | how


def paged(x):
    return x.reshape(-1, PAGE, *x.shape[1:])


def of_one_request(rows, keys):
    return {"cu_seqlens_q": np.array([0, rows], np.int32), "seqlens_k": np.array([keys], np.int32),
            "page_table": np.arange(keys // PAGE, dtype=np.int32)[None]}


def select_rows(name, keys, data, index_q, index_k):
    batch = of_one_request(QUERIES, keys)
    select = lambda k, **how: msa.select_blocks(index_q, k, topk=TOPK, **batch, **how)  # noqa: E731
    exact = select(index_k)

    def kept(found):
        return float(np.mean([len(set(a) & set(b) - {-1}) / max(1, len(set(b) - {-1}))
                              for a, b in zip(found.reshape(-1, TOPK).tolist(), exact.reshape(-1, TOPK).tolist())]))

    for kind, suffix in (("i8/page", ""), ("i8/page/rotated", ".rotated")):
        copy = msa.quantize_index(index_k, seqlens_k=batch["seqlens_k"], page_table=batch["page_table"],
                                  index_filter=kind)
        given = {"index_filter": kind, "index_k8": copy.index_k8, "index_k8_bounds": copy.index_k8_bounds}
        filtered = select(index_k, **given, return_candidates=True)
        if not np.array_equal(filtered.block_ids, exact):
            raise SystemExit(f"{data}, {name}: the filter changed a selection")
        counts = np.sort(filtered.candidates.reshape(-1))
        yield {"id": f"candidates.{name}.{data}{suffix}",
               "what": f"blocks of {keys // PAGE} that a row scored from their keys", "mean": float(counts.mean()),
               **{f"at_{p}": int(counts[min(len(counts) - 1, len(counts) * p // 100)]) for p in (10, 50, 90, 99)},
               "largest": int(counts[-1])}
        yield {"id": f"select.{kind}.{name}.{data}", "what": f"{QUERIES} queries over {keys} keys, by codes alone",
               "recall": kept(select(index_k, **given, precision="fast", backend="reference"))}
    half = index_k.shape[-1] // 2
    for kind in INDEX_FORMATS:
        if kind in FOUR_BITS:
            codes = stored(kind, index_k[..., :half], index_k[..., half:])
            scales = {"index_k_scale": np.concatenate([codes[2]["k_scale"], codes[2]["v_scale"]], -1)}
            found = select(np.concatenate(codes[:2], -1), index_k_format=kind, **scales)
        else:
            codes, _, how = stored(kind, index_k, index_k)
            scales = {"index_k_scale": how["k_scale"]} if "k_scale" in how else {}
            found = select(codes, index_k_dtype="e4m3", **scales)
        yield {"id": f"select.{kind}.{name}.{data}", "what": f"{QUERIES} queries over {keys} keys",
               "recall": kept(found)}


def attend_rows(data, q, k, v, ids):
    keys = k.shape[0] * PAGE
    batch = of_one_request(QUERIES, keys)
    attend = lambda k, v, **how: msa.sparse_attention(q, k, v, ids, out_dtype="f32", **batch, **how)  # noqa: E731
    exact = attend(k, v).astype(np.float64)
    size = np.sqrt(np.mean(exact ** 2))
    for kind in KV_FORMATS:
        k_codes, v_codes, how = stored(kind, k, v)
        error = attend(k_codes, v_codes, **how) - exact
        rows = np.sqrt(np.mean(error ** 2, -1)) / np.sqrt(np.mean(exact ** 2, -1))
        yield {"id": f"attend.{kind}.{data}", "what": f"{QUERIES} queries, {HEADS} heads over one, lists of {TOPK}",
               "relative_error": float(np.sqrt(np.mean(error ** 2)) / size), "worst_row": float(rows.max())}


def rows_of(tool):
    for name, keys in LENGTHS.items():
        index = made(tool, f"op=select regime=drift heads=4/4 index_heads_k=1 dtype=bf16 lens={QUERIES}:{keys}")
        for data in ("drift", "channels"):
            index_k = paged(index["index_k"] if data == "drift" else uneven(index["index_k"], 1))
            yield from select_rows(name, keys, data, index["index_q"], index_k)
    case = made(tool, f"op=msa regime=drift heads={HEADS}/1 dtype=bf16 lens={QUERIES}:{LENGTHS['32k']}")
    for data in ("drift", "channels"):
        change = (lambda x, seed: x) if data == "drift" else uneven
        index_k, k, v = (paged(change(case[name], seed)) for seed, name in enumerate(("index_k", "k", "v")))
        ids = msa.select_blocks(case["index_q"], index_k, topk=TOPK, **of_one_request(QUERIES, LENGTHS["32k"]))
        yield from attend_rows(data, case["q"], k, v, ids)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--msa", type=pathlib.Path, required=True, help="the command-line tool")
    parser.add_argument("--allow-dirty", action="store_true", help="measure a tree with changes, for a trial")
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "benchmarks" / "results" / "accuracy.json")
    args = parser.parse_args()
    built, isa = cpu.built_package(args.allow_dirty)
    rows = []
    for row in rows_of(args.msa):
        rows.append(row)
        print(json.dumps(row), file=sys.stderr, flush=True)
    cpu.write_whole(args.out, {
        "machine": {"cpu": built["cpu"], "isa": isa}, "commit": built["commit"], "version": built["version"],
        "command": "benchmarks/accuracy.py --msa msa",
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(), "rows": rows})


if __name__ == "__main__":
    main()
