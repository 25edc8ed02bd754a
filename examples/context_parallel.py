#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Introduces several ranks: a prefill, a cache dealt in blocks, decode over it, and checks against one process.

usage: torchrun --nproc-per-node N examples/context_parallel.py [--tokens 2048] [--steps 4] [--picture FILE.svg]

Wants torch and msa. With as many GPUs as ranks it runs on them over NCCL, else on the CPU over gloo. Every rank makes
the whole batch from one seed, so that sampled rows can be compared with a call of one process. Times are those of the
host's clock, and those of a small CPU form say nothing of a GPU.
"""
import argparse
import contextlib
import datetime
import os
import time

import torch
import torch.distributed as dist

import msa
from msa.distributed import ContextParallel

BLOCK, TOPK, HEADS, HEADS_KV, DIM = 32, 4, 8, 2, 64


class Timeline:
    """What a rank did when, as (what, begin, end) in seconds since the start."""

    def __init__(self, device):
        self.device, self.spans, self.start = device, [], time.perf_counter()

    def mark(self, what, begin):
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.spans.append((what, begin, time.perf_counter() - self.start))
        return self.spans[-1][2]

    @contextlib.contextmanager
    def watch(self, exchange):
        """Waiting for others is told apart from working: each wait of a collective is a span."""
        gather = exchange.gather

        def watched(tensor, argument):
            return Watched(gather(tensor, argument), argument, self)

        exchange.gather = watched
        try:
            yield
        finally:
            del exchange.gather  # nothing holds the group when it is destroyed


class Watched:
    """A collective under way, whose wait is a span."""

    def __init__(self, pending, argument, timeline):
        self.pending, self.argument, self.timeline = pending, argument, timeline

    def wait(self):
        begin = time.perf_counter() - self.timeline.start
        found = self.pending.wait()
        self.timeline.mark("wait for " + self.argument, begin)
        return found


def picture(file, timelines):
    """One row a rank: work below, waiting for the exchange above."""
    end = max(span[2] for spans in timelines for span in spans)
    wide, high = 900, 44
    lines = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide + 90} {high * len(timelines) + 30}"'
             ' font-family="sans-serif" font-size="12">']
    for rank, spans in enumerate(timelines):
        lines.append(f'<text x="4" y="{rank * high + 26}">rank {rank}</text>')
        for what, begin, finish in spans:
            waits = what.startswith("wait")
            lines.append(f'<rect x="{60 + begin / end * wide:.1f}" y="{rank * high + (4 if waits else 20)}"'
                         f' width="{max((finish - begin) / end * wide, 0.5):.1f}" height="{12 if waits else 18}"'
                         f' fill="{"#d08030" if waits else "#4070b0"}"><title>{what}</title></rect>')
    lines.append(f'<text x="60" y="{high * len(timelines) + 20}">{end * 1e3:.1f} ms; work below, waiting above</text>')
    lines.append("</svg>")
    with open(file, "w") as svg:
        svg.write("\n".join(lines) + "\n")


def compare(given, rank, ranks, device, timeline):
    """Prefill, then decode, and what one process makes of the same."""
    # 1. The whole batch, the same on every rank; a model would make each rank's rows from its own tokens.
    total = given.tokens + given.steps
    draw = torch.Generator().manual_seed(0)
    q, k, v, index_q, index_k = (torch.randn((total, heads, DIM), generator=draw).bfloat16().to(device)
                                 for heads in (HEADS, HEADS_KV, HEADS_KV, HEADS_KV, 1))
    shape = {"block_size": BLOCK, "topk": TOPK}

    # 2. Prefill: blocks are dealt round robin, so that they lie where decode wants them. rows() says which are ours.
    parallel = ContextParallel(dist.group.WORLD, "interleaved", **shape)
    with timeline.watch(parallel.exchange):
        rows = parallel.rows([given.tokens]).to(device)
        begin = time.perf_counter() - timeline.start
        out = parallel.prefill(q[rows], k[rows], v[rows], index_q[rows], index_k[rows], [given.tokens])
        timeline.mark("prefill", begin)
        print(f"rank {rank}: prefill of {len(rows)} of {given.tokens} tokens", flush=True)

        # 3. Sampled rows against one process: the keys in front of a row, and nothing else.
        for place in range(0, len(rows), max(1, len(rows) // 8)):
            end = int(rows[place]) + 1
            alone = msa.msa_attention(q[end - 1:end], k[:end], v[:end], index_q[end - 1:end], index_k[:end], **shape)
            torch.testing.assert_close(out[place:place + 1], alone, rtol=2e-2, atol=2e-2)

        # 4. Each rank keeps the rows that it owns, in pages; a new token goes to the rank that owns its block.
        pages = -(-total // BLOCK) // ranks + 1
        cache = msa.PagedCache.empty(k, pages=pages, page_size=BLOCK, heads_kv=HEADS_KV, head_dim=DIM, index_dim=DIM)
        sequence = cache.add()
        cache.append(sequence, k[rows], v[rows], index_k[rows])
        for step in range(given.steps):
            length = given.tokens + step + 1
            token = slice(length - 1, length)
            if (length - 1) // BLOCK % ranks == rank:
                cache.append(sequence, k[token], v[token], index_k[token])
            table = cache.batch([sequence], pages=pages)["page_table"]
            begin = time.perf_counter() - timeline.start
            out = parallel.decode(q[token], cache.k, cache.v, index_q[token], cache.index_k, table,
                                  torch.tensor([length], dtype=torch.int32, device=device))
            timeline.mark(f"decode {step}", begin)
            alone = msa.msa_attention(q[token], k[:length], v[:length], index_q[token], index_k[:length], **shape)
            torch.testing.assert_close(out, alone, rtol=2e-2, atol=2e-2)
        print(f"rank {rank}: {given.steps} tokens more, and every checked row is that of one process", flush=True)


def main():
    options = argparse.ArgumentParser(description="A sequence over several ranks.")
    options.add_argument("--tokens", type=int, default=2048)
    options.add_argument("--steps", type=int, default=4)
    options.add_argument("--picture")
    given = options.parse_args()
    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    gpu = torch.cuda.is_available() and torch.cuda.device_count() >= ranks
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if gpu else torch.device("cpu")
    dist.init_process_group("nccl" if gpu else "gloo", timeout=datetime.timedelta(seconds=60))
    timeline = Timeline(device)
    compare(given, rank, ranks, device, timeline)

    # 5. Who waited for whom.
    timelines = [None] * ranks
    dist.all_gather_object(timelines, timeline.spans)
    if given.picture and rank == 0:
        picture(given.picture, timelines)
    dist.barrier()  # nobody leaves while another still draws
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
