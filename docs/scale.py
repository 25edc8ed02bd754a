#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Writes the tables of predictions in docs/scale.md, or tells that they are stale.

usage: docs/scale.py [--check]
"""
import json
import pathlib
import sys

from msa.distributed import Links, Measured, Model, estimate

PAGE = pathlib.Path(__file__).with_suffix(".md")
ROWS = PAGE.parents[1] / "benchmarks/results/h100-580.159.04.json"
BEGIN, END = "<!-- predictions: begin -->\n", "<!-- predictions: end -->\n"
GPUS = (2, 4, 8, 16, 32, 63)
# Measured once on two H100s of one host: an all-gather 255 GB/s a rank, a small collective in a graph 10.6 us.
# Between hosts nothing was measured: a 400 Gbit/s card a GPU at its nominal speed, and an assumed 20 us.
HOST, HOSTS = Links(255e9, 10.6e-6), Links(50e9, 20e-6)


def links(gpus):
    return HOST if gpus <= 8 else HOSTS


def seconds(text):
    return f"{text * 1e3:.3g} ms" if text >= 1e-3 else f"{text * 1e6:.3g} us"


def prefills(measured):
    text = "\n| tokens | GPUs | predicted | times one GPU | contiguous | received a rank | beside the shard, 1 piece, 4 |"
    text += "\n|---|---|---|---|---|---|---|\n"
    for name, tokens in (("128k", 1 << 17), ("1m", 1 << 20)):
        one = Measured(measured[f"hopper.msa.{name}.drift.select"], measured[f"hopper.msa.{name}.drift.attend"])
        text += f"| {name} | 1 | {seconds(sum(one))}, measured | 1 | | | |\n"
        for gpus in GPUS:
            found, run, pieces = (estimate("prefill", Model(), tokens, gpus, links(gpus), one, **how)
                                  for how in ({}, {"layout": "contiguous"}, {"pieces": 4}))
            text += (f"| {name} | {gpus} | {seconds(found.seconds)} | {found.speedup:.2f} | {run.speedup:.2f} |"
                     f" {found.received / 2 ** 30:.2f} GiB |"
                     f" {found.beside / 2 ** 30:.2f}, {pieces.beside / 2 ** 30:.2f} GiB |\n")
    return text


def decodes(measured):
    text = "\n| row | GPUs | predicted | times one GPU | of which exchange | cache a rank |"
    text += "\n|---|---|---|---|---|---|\n"
    for name, tokens, batch in (("128k.b32", 1 << 17, 32), ("1m.b1", 1 << 20, 1)):
        one = Measured(measured[f"hopper.decode.{name}"])
        text += f"| {name} | 1 | {seconds(one.select)}, measured | 1 | | |\n"
        for gpus in GPUS:
            found = estimate("decode", Model(), tokens, gpus, links(gpus), one, batch=batch)
            text += (f"| {name} | {gpus} | {seconds(found.seconds)} | {found.speedup:.2f} | {seconds(found.exposed)} |"
                     f" {found.shard / 2 ** 30:.2f} GiB |\n")
    return text


def main():
    measured = {row["id"]: row.get("seconds") for row in json.loads(ROWS.read_text())["rows"]}
    old = PAGE.read_text()
    head, _, rest = old.partition(BEGIN)
    text = head + BEGIN + prefills(measured) + decodes(measured) + END + rest.partition(END)[2]
    if sys.argv[1:] == ["--check"]:
        if old != text:
            print(f"{PAGE.name} is stale: run docs/scale.py")
        return int(old != text)
    PAGE.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
