#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Measures a training step of one MSA layer on one Hopper GPU: bf16, 64/4 heads of 128, blocks of 128, 16 chosen, batch 1.

usage: benchmarks/hopper_train.py [--only PATTERN]... [--merge FILE] [--out FILE] [--commit HASH] [--dry]

hopper.train.LENGTH.LISTS    selection, attention, its backward pass and the index loss with its gradients, one behind the
                             other; peer: cuDNN's dense forward and backward pass of the same heads, in turns with it
hopper.backward.128k.drift   the backward pass of attention alone, a share of the bf16 matrix product's rate: five products
                             of each listed pair of a row and a visible key
hopper.backward.dense.32k    the backward pass of dense attention; peer: cuDNN's backward pass
hopper.indexloss.128k        the index loss and its gradients, the share likewise: one product a query head, three an index
                             head
hopper.train.workspace       most that torch allocates in a backward pass or an index loss of 128K tokens beside gradients

Before a row is timed, gradients of sampled rows and of sampled keys are compared with sums in fp32 over the lists. Wants
msa importable, built with CUDA. Writes the JSON of docs/formats.md to benchmarks/results/train-CARD-DRIVER.json unless
told otherwise. --dry runs all of it small, on the CPU, and writes nothing.
"""
import argparse
import datetime
import fnmatch
import pathlib
import shlex
import statistics
import sys
import time
from dataclasses import dataclass
from typing import Callable

import torch

import cpu
import msa
from hopper import card_and_driver, load_merged, measure_peaks
from sequences import Drift, normal_rows, rows_of

ROOT = pathlib.Path(__file__).resolve().parents[1]
START = time.monotonic()
MIN_TIME = 0.4  # seconds of all runs of a step
DIM, BLOCK, TOPK = 128, 128, 16
LENGTHS = {"8k": 8192, "32k": 32768, "128k": 131072}


@dataclass
class Size:
    """Of a layer, and by how much sequences are shorter than their names say."""
    heads: int = 64
    heads_kv: int = 4
    device: str = "cuda"
    shrink: int = 1


DRY = Size(heads=4, heads_kv=2, device="cpu", shrink=32)


def say(text):
    print(f"[{time.monotonic() - START:6.1f} s] {text}", file=sys.stderr, flush=True)


def require(holds, text):
    if not holds:
        raise RuntimeError(text)


# ---- timing ------------------------------------------------------------------------------------------------------------


def seconds_of(call, device):
    if device == "cpu":
        begin = time.perf_counter()
        call()
        return time.perf_counter() - begin
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    call()
    end.record()
    torch.cuda.synchronize()
    return 1e-3 * begin.elapsed_time(end)


def measure(calls, device):
    """Seconds of the runs of each, in turns, so that all see the same clocks; until the first has enough of them."""
    found = [[] for _ in calls]
    for call in calls:
        call()
    while not found[0] or device != "cpu" and (len(found[0]) < 5 or sum(found[0]) < MIN_TIME):
        for call, times in zip(calls, found):
            times.append(seconds_of(call, device))
    return found


def row_of(name, what, seconds, **more):
    return {"id": name, "what": what, "seconds": statistics.median(seconds), "spread": [min(seconds), max(seconds)],
            "verified": True, **more}


def against(row, peer, seconds):
    middle = statistics.median(seconds)
    return row | {"peer": peer, "peer_seconds": middle, "ratio": middle / row["seconds"]}


# ---- one layer -----------------------------------------------------------------------------------------------------------


class Layer:
    """Inputs of one sequence, and what a forward pass makes of them."""

    def __init__(self, size, tokens, lists):
        device = torch.device(size.device)
        self.size, self.tokens, self.lists = size, tokens, lists
        drawn = lambda heads, stream: rows_of(
            lambda begin, end: normal_rows(begin, end, heads, DIM, stream, device), [(0, tokens)])
        self.q, self.dout = drawn(size.heads, 1), drawn(size.heads, 4)
        self.k, self.v = drawn(size.heads_kv, 2), drawn(size.heads_kv, 3)
        if lists == "drift":
            drift = Drift(tokens, size.heads_kv, DIM, device)
            self.index_q, self.index_k = rows_of(drift.queries, [(0, tokens)]), rows_of(drift.keys, [(0, tokens)])
        else:
            self.index_q, self.index_k = drawn(size.heads_kv, 5), drawn(1, 6)
        self.ids = None if lists == "dense" else self.select()
        self.out, self.lse = self.attend()

    def select(self):
        return msa.select_blocks(self.index_q, self.index_k, topk=TOPK, block_size=BLOCK)

    def attend(self):
        if self.lists == "dense":
            return msa.dense_attention(self.q, self.k, self.v, return_lse=True)
        return msa.sparse_attention(self.q, self.k, self.v, self.ids, block_size=BLOCK, return_lse=True)

    def backward(self):
        if self.lists == "dense":
            return msa.dense_attention_backward(self.q, self.k, self.v, self.out, self.lse, self.dout)
        return msa.sparse_attention_backward(self.q, self.k, self.v, self.ids, self.out, self.lse, self.dout,
                                             block_size=BLOCK)

    def index_loss(self):
        return msa.index_loss(self.q, self.k, self.lse, self.index_q, self.index_k, self.ids, block_size=BLOCK)

    def step(self):
        self.ids = self.select()
        self.out, self.lse = self.attend()
        self.backward()
        self.index_loss()

    def pairs(self):
        """Listed, visible pairs of a token and a key, over the KV heads."""
        place = torch.arange(self.tokens, device=self.q.device).view(-1, 1, 1)
        return int(((place - self.ids.long() * BLOCK + 1).clamp(0, BLOCK) * (self.ids >= 0)).sum())

    def what(self):
        return f"{self.tokens} tokens, " + {"dense": "dense", "drift": "lists that drift", "random": "random lists"}[self.lists]


# ---- checks --------------------------------------------------------------------------------------------------------------


def seen(layer, row, head):
    """The keys that a row sees, ascending."""
    if layer.lists == "dense":
        return torch.arange(row + 1, device=layer.q.device)
    ids = layer.ids[row, head]
    keys = (ids[ids >= 0].long().unsqueeze(1) * BLOCK + torch.arange(BLOCK, device=ids.device)).flatten()
    return keys[keys <= row]


def close(found, wanted, what):
    error = ((found.float() - wanted).norm() / wanted.norm().clamp(min=1e-6)).item()
    require(error < 2e-2, f"{what}: relative error {error:.3g}")


def check_rows(layer, gradients, loss):
    """dq, the loss and the gradient of index_q of sampled rows."""
    group, scale = layer.size.heads // layer.size.heads_kv, DIM ** -0.5
    for row in (1, layer.tokens // 3, layer.tokens - 1):
        for head in range(layer.size.heads_kv):
            keys, own = seen(layer, row, head), slice(head * group, (head + 1) * group)
            q, out, dout = (x[row, own].float() for x in (layer.q, layer.out, layer.dout))
            k, v = (x[keys, head].float() for x in (layer.k, layer.v))
            weights = torch.softmax(q @ k.T * scale, -1)
            close(gradients.dq[row, own], scale * (weights * (dout @ v.T - (dout * out).sum(-1, keepdim=True))) @ k,
                  f"dq of row {row}, head {head}")
            teacher = weights.mean(0)
            index_k = layer.index_k[keys, 0].float()
            student = torch.log_softmax(layer.index_q[row, head].float() @ index_k.T * scale, -1)
            value = torch.xlogy(teacher, teacher).sum() - (teacher * student).sum()
            require(abs(loss.loss[row, head] - value) < 1e-4 + 1e-4 * abs(value), f"loss of row {row}, head {head}")
            close(loss.d_index_q[row, head], scale * (student.exp() - teacher) @ index_k,
                  f"gradient of index_q, row {row}, head {head}")


def check_keys(layer, gradients):
    """dk and dv of sampled keys, from all rows that list them."""
    group, scale = layer.size.heads // layer.size.heads_kv, DIM ** -0.5
    place = torch.arange(layer.tokens, device=layer.q.device)
    for key in (0, layer.tokens // 2, layer.tokens - 1):
        head = key % layer.size.heads_kv
        rows = place >= key
        if layer.lists != "dense":
            rows &= (layer.ids[:, head] == key // BLOCK).any(-1)
        own = slice(head * group, (head + 1) * group)
        q, out, dout = (x[rows, own].float() for x in (layer.q, layer.out, layer.dout))
        k, v = (x[key, head].float() for x in (layer.k, layer.v))
        weights = torch.exp(q @ k * scale - layer.lse[rows, own])
        close(gradients.dv[key, head], torch.einsum("tg,tgd->d", weights, dout), f"dv of key {key}")
        of_scores = weights * (dout @ v - (dout * out).sum(-1))
        close(gradients.dk[key, head], scale * torch.einsum("tg,tgd->d", of_scores, q), f"dk of key {key}")


def checked(layer):
    gradients = layer.backward()
    check_rows(layer, gradients, layer.index_loss())
    check_keys(layer, gradients)
    return layer


# ---- the peer ------------------------------------------------------------------------------------------------------------


class Dense:
    """cuDNN's attention of the same heads, with autograd; on the CPU whatever torch has."""

    def __init__(self, size, tokens):
        draw = lambda heads: torch.randn(1, heads, tokens, DIM, device=size.device, dtype=torch.bfloat16)
        self.inputs = [draw(heads).requires_grad_() for heads in (size.heads, size.heads_kv, size.heads_kv)]
        self.dout, self.device = draw(size.heads), size.device
        self.name = f"cuDNN dense, torch {torch.__version__}"
        if self.device == "cuda":
            self.name += f", cuDNN {torch.backends.cudnn.version()}"
        self.out = self.forward()

    def forward(self):
        from torch.nn.attention import SDPBackend, sdpa_kernel

        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION if self.device == "cuda" else SDPBackend.MATH):
            return torch.nn.functional.scaled_dot_product_attention(*self.inputs, is_causal=True, enable_gqa=True)

    def backward(self):
        torch.autograd.grad(self.out, self.inputs, self.dout, retain_graph=True)

    def step(self):
        torch.autograd.grad(self.forward(), self.inputs, self.dout)


# ---- rows ----------------------------------------------------------------------------------------------------------------


def share(flops, row, peaks):
    return row | ({"share": flops / row["seconds"] / peaks["bf16_flops"]} if peaks else {})


def train(size, length, lists, peaks):
    """The row of a step and, of 128K tokens that drift, those of its parts."""
    layer = checked(Layer(size, LENGTHS[length] // size.shrink, lists))
    peer = Dense(size, layer.tokens)
    step, other, select, attend, backward, loss = measure(
        [layer.step, peer.step, layer.select, layer.attend, layer.backward, layer.index_loss], size.device)
    stages = {f"{name}_seconds": statistics.median(times) for name, times in
              (("select", select), ("attend", attend), ("backward", backward), ("index_loss", loss))}
    what = f"selection, attention, backward pass and index loss of {layer.what()}"
    yield against(row_of(f"hopper.train.{length}.{lists}", what, step, **stages), peer.name, other)
    if (length, lists) != ("128k", "drift"):
        return
    del peer
    pairs, group = layer.pairs(), size.heads // size.heads_kv
    yield share(pairs * 10 * group * DIM, row_of(f"hopper.backward.{length}.{lists}",
                f"backward pass of attention, {layer.what()}", backward), peaks)
    yield share(pairs * 2 * DIM * (group + 3), row_of(f"hopper.indexloss.{length}",
                f"index loss and its gradients, {layer.what()}", loss), peaks)
    if size.device == "cuda":
        yield {"id": "hopper.train.workspace", "what": f"most that torch allocates in a backward pass or an index loss "
               f"of {layer.tokens} tokens beside gradients", "bytes": max(beside(layer.backward), beside(layer.index_loss))}


def beside(call):
    """Bytes that a call allocates at its peak, less what it returns."""
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    found = call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before - sum(x.nbytes for x in found)


def dense_backward(size, length, lists, peaks):
    layer = checked(Layer(size, LENGTHS[length] // size.shrink, lists))
    peer = Dense(size, layer.tokens)
    ours, other = measure([layer.backward, peer.backward], size.device)
    yield against(row_of(f"hopper.backward.dense.{length}", f"backward pass of attention, {layer.what()}", ours),
                  peer.name, other)


GROUPS: dict[tuple[str, ...], tuple[Callable, str, str]] = {
    ("hopper.train.8k.drift",): (train, "8k", "drift"),
    ("hopper.train.8k.random",): (train, "8k", "random"),
    ("hopper.train.32k.drift",): (train, "32k", "drift"),
    ("hopper.train.32k.random",): (train, "32k", "random"),
    ("hopper.backward.dense.32k",): (dense_backward, "32k", "dense"),
    ("hopper.train.128k.drift", "hopper.backward.128k.drift", "hopper.indexloss.128k", "hopper.train.workspace"):
        (train, "128k", "drift"),
    ("hopper.train.128k.random",): (train, "128k", "random"),
}


# ---- the file ------------------------------------------------------------------------------------------------------------


def describe(arguments, peaks):
    info, (card, driver) = msa.info(), card_and_driver()
    command = shlex.join(["benchmarks/hopper_train.py", *(w for row in arguments.only for w in ("--only", row))])
    machine = {"cpu": info["cpu"], "isa": "sm90", "gpu": torch.cuda.get_device_name(), "driver": driver}
    path = arguments.out or ROOT / "benchmarks" / "results" / f"train-{card}-{driver}.json"
    return path, {"machine": machine, "peaks": peaks, "commit": arguments.commit or info["commit"],
                  "version": info["version"], "command": command, "date": datetime.date.today().isoformat(), "rows": []}


def write(path, document, rows):
    document["rows"] = list(rows.values())
    cpu.write_whole(path, document)


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", action="append", default=[], help="rows whose ids match; may be repeated")
    parser.add_argument("--merge", type=pathlib.Path, help="an earlier file whose other rows stay")
    parser.add_argument("--out", type=pathlib.Path)
    parser.add_argument("--commit", default="", help="of a tree without its repository")
    parser.add_argument("--dry", action="store_true", help="small, on the CPU, nothing written")
    return parser.parse_args()


def main():
    arguments = parse_arguments()
    size = DRY if arguments.dry else Size()
    peaks = {} if arguments.dry else measure_peaks()
    path, document = (None, None) if arguments.dry else describe(arguments, peaks)
    rows, failed, any_wanted = load_merged(arguments, document) if document else {}, [], False
    for ids, (make, length, lists) in GROUPS.items():
        if arguments.only and not any(fnmatch.fnmatch(row, p) for row in ids for p in arguments.only):
            continue
        any_wanted = True
        try:
            for row in make(size, length, lists, peaks):
                rows[row["id"]] = row
                say("  ".join(f"{k} {v:.5g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()
                              if k == "id" or k.endswith("seconds") or k in ("ratio", "share", "bytes")))
        except (RuntimeError, torch.cuda.OutOfMemoryError) as error:
            say(f"not measured: {', '.join(ids)}: {error}")
            failed += ids
        if document:
            write(path, document, rows)
            torch.cuda.empty_cache()
    if failed or not any_wanted:
        sys.exit(f"hopper_train.py: not measured: {', '.join(failed) or 'no row has such a name'}")
    print("dry run: every row can be measured" if arguments.dry else path)


if __name__ == "__main__":
    main()
