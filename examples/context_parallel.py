#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Introduces several ranks: a prefill, a cache dealt in blocks, decode over it, and checks against one process.

usage: torchrun --nproc-per-node N examples/context_parallel.py [--tokens 2048] [--steps 4] [--picture FILE.svg]

Wants torch and msa. With as many GPUs as ranks it runs on them over NCCL, with the heads of a large model and decode in a
CUDA graph; else on the CPU over gloo, with few and small ones. Tokens are drawn from seeds, so that every rank can make
what it needs of a sequence, and sampled rows are compared with a call of one process. The picture shows what each rank
does when: kernels as torch's profiler saw them on a GPU, on the CPU work and waiting by the host's clock.
"""
import argparse
import contextlib
import datetime
import json
import os
import pathlib
import tempfile
import time
from typing import NamedTuple

import torch
import torch.distributed as dist

import msa
from msa.distributed import ContextParallel


class Shape(NamedTuple):
    block: int
    topk: int
    heads: int
    heads_kv: int
    dim: int


SMALL, LARGE = Shape(32, 4, 8, 2, 64), Shape(128, 16, 64, 4, 128)
CHUNK = 4096  # tokens that share a seed


class Sequence:
    """One sequence; any rows of it can be drawn anywhere."""

    def __init__(self, shape, tokens, device):
        self.tokens, self.device = tokens, device
        self.heads = (shape.heads, shape.heads_kv, shape.heads_kv, shape.heads_kv, 1)  # q, k, v, index_q, index_k
        self.dim = shape.dim

    def draw(self, which, rows=None):
        """bf16 [rows, heads, dim]; rows: ascending, all where left out."""
        parts = []
        for chunk in range(-(-self.tokens // CHUNK)):
            begin, end = chunk * CHUNK, min((chunk + 1) * CHUNK, self.tokens)
            mine = slice(None) if rows is None else rows[(rows >= begin) & (rows < end)].to(self.device) - begin
            if rows is None or len(mine):
                seed = torch.Generator(self.device).manual_seed(10 * chunk + which)
                drawn = torch.randn((end - begin, self.heads[which], self.dim), generator=seed, device=self.device)
                if which == 3:  # neighbours ask for much the same, as they do in models
                    drawn = 0.1 * drawn + drawn[::1024].repeat_interleave(1024, 0)[:end - begin]
                parts.append(drawn.bfloat16()[mine])
        return torch.cat(parts) if parts else torch.empty((0, self.heads[which], self.dim), dtype=torch.bfloat16,
                                                          device=self.device)


# ---- 1. the program ------------------------------------------------------------------------------------------------------


def compare(given, shape, rank, ranks, device):
    """Prefill, then decode, and what one process makes of the same."""
    total = given.tokens + given.steps
    sequence, settings = Sequence(shape, total, device), {"block_size": shape.block, "topk": shape.topk}
    say = Progress(rank)

    # Blocks are dealt round robin, so that they lie where decode wants them. rows() says which tokens are ours. The first
    # call compares what all ranks say; once they agree, agree=False spares the host that.
    parallel = ContextParallel(dist.group.WORLD, "interleaved", **settings)
    timeline = Timeline(device, parallel.exchange)
    rows = parallel.rows([given.tokens])
    tensors = [sequence.draw(which, rows) for which in range(5)]
    say(f"{len(rows)} of {given.tokens} tokens")
    if device.type == "cuda":
        parallel.prefill(*tensors, [given.tokens])  # kernels are loaded and ranks connect
        parallel = ContextParallel(dist.group.WORLD, "interleaved", agree=False, **settings)
    with timeline.panel("prefill"):
        out = parallel.prefill(*tensors, [given.tokens])
    say(f"prefill of {len(rows)} of {given.tokens} tokens: {timeline.seconds('prefill') * 1e3:.1f} ms")

    # Sampled rows against one process: the keys in front of a row, and nothing else.
    k, v, index_k = (sequence.draw(which) for which in (1, 2, 4))
    for place in range(0, len(rows), max(1, len(rows) // 8)):
        end = int(rows[place]) + 1
        alone = msa.msa_attention(tensors[0][place:place + 1], k[:end], v[:end], tensors[3][place:place + 1],
                                  index_k[:end], **settings)
        torch.testing.assert_close(out[place:place + 1], alone, rtol=2e-2, atol=2e-2)
    say("sampled rows are those of one process")

    # Each rank keeps the rows that it owns, in pages; a new token goes to the rank that owns its block. What a decoder
    # was made with it reads where it lies: lengths and pages are written there before each step.
    pages = -(-total // shape.block) // ranks + 1
    cache = msa.PagedCache.empty(k, pages=pages, page_size=shape.block, heads_kv=shape.heads_kv, head_dim=shape.dim,
                                 index_dim=shape.dim)
    own = cache.add()
    cache.append(own, tensors[1], tensors[2], tensors[4])
    del tensors, out
    new = torch.arange(given.tokens, total)
    queries, index_queries = sequence.draw(0, new), sequence.draw(3, new)
    table = cache.batch([own], pages=pages)["page_table"]
    lengths = torch.tensor([given.tokens], dtype=torch.int32, device=device)
    q, index_q = queries[:1].clone(), index_queries[:1].clone()
    decoder = parallel.decoder(table, lengths, page_size=shape.block, heads_q=shape.heads, index_heads=shape.heads_kv,
                               value_dim=shape.dim)
    layer = Step(decoder, lambda: decoder.run(q, cache.k, cache.v, index_q, cache.index_k), device)
    for step in range(given.steps):
        length = given.tokens + step + 1
        token = slice(length - 1, length)
        if (length - 1) // shape.block % ranks == rank:
            cache.append(own, k[token], v[token], index_k[token])
        table.copy_(cache.batch([own], pages=pages)["page_table"])
        lengths.fill_(length)
        q.copy_(queries[step:step + 1])
        index_q.copy_(index_queries[step:step + 1])
        with timeline.panel(f"decode of token {length}"):
            out = layer.run()
        alone = msa.msa_attention(q, k[:length], v[:length], index_q, index_k[:length], **settings)
        torch.testing.assert_close(out, alone, rtol=2e-2, atol=2e-2)
    say(f"{given.steps} tokens more, and every checked row is that of one process")
    return timeline


class Step:
    """A decode step: on a GPU in a graph, once everything has run before."""

    def __init__(self, decoder, layer, device):
        self.decoder, self.layer, self.graph, self.out = decoder, layer, None, None
        if device.type == "cuda":
            self.eager()
            torch.cuda.synchronize()
            dist.barrier()
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):
                self.out = self.eager()

    def eager(self):
        self.decoder.refresh()
        return self.layer()

    def run(self):
        if self.graph is None:
            return self.eager()
        self.graph.replay()
        return self.out


class Progress:
    """Lines with the seconds since the start."""

    def __init__(self, rank):
        self.rank, self.start = rank, time.perf_counter()

    def __call__(self, text):
        print(f"[{time.perf_counter() - self.start:6.1f} s] rank {self.rank}: {text}", flush=True)


# ---- 2. who does what when -----------------------------------------------------------------------------------------------


COLORS = {"exchange": "#d08030", "selection": "#4070b0", "attention": "#409060", "work": "#4070b0", "other": "#909090"}


class Timeline:
    """Panels of spans (kind, what, begin, end), in seconds of a clock that the ranks of one host share."""

    def __init__(self, device, exchange):
        self.device, self.exchange, self.panels = device, exchange, {}

    def seconds(self, title):
        spans = self.panels[title]
        return max(span[3] for span in spans) - min(span[2] for span in spans)

    def panel(self, title):
        """What happens inside is a panel of the picture."""
        return self.kernels(title) if self.device.type == "cuda" else self.waits(title)

    @contextlib.contextmanager
    def waits(self, title):
        spans = self.panels[title] = []
        gather, begin = self.exchange.gather, time.perf_counter()
        self.exchange.gather = lambda tensor, argument, into=None: Watched(gather(tensor, argument, into), argument,
                                                                           spans)
        try:
            yield
        finally:
            del self.exchange.gather
        spans.append(("work", title, begin, time.perf_counter()))

    @contextlib.contextmanager
    def kernels(self, title):
        torch.cuda.synchronize()
        dist.barrier()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as seen:
            yield
            torch.cuda.synchronize()
        with tempfile.TemporaryDirectory() as folder:
            file = pathlib.Path(folder) / "trace.json"
            seen.export_chrome_trace(str(file))
            trace = json.loads(file.read_text())
        start = trace.get("baseTimeNanoseconds", 0) * 1e-9
        self.panels[title] = [(kind_of(event["name"]), event["name"].split("(")[0][:120], start + event["ts"] * 1e-6,
                               start + (event["ts"] + event["dur"]) * 1e-6) for event in trace["traceEvents"]
                              if event.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset")]


class Watched:
    """A collective under way, whose wait is a span."""

    def __init__(self, pending, argument, spans):
        self.pending, self.argument, self.spans = pending, argument, spans

    def wait(self):
        begin = time.perf_counter()
        found = self.pending.wait()
        self.spans.append(("exchange", "wait for " + self.argument, begin, time.perf_counter()))
        return found


def kind_of(kernel):
    """By the name of a kernel: ours carry their folder in it."""
    for kind, words in (("exchange", ("nccl", "barrier")), ("selection", ("select", "score", "topk")),
                        ("attention", ("attend", "kvouter", "merge_states"))):
        if any(word in kernel.lower() for word in words):
            return kind
    return "other"


def picture(file, panels):
    """A panel below the other, in each a row a rank: kernels below, the exchange above. panels: title, spans by rank."""
    wide, high, top = 900, 44, 8
    lines = []
    for title, timelines in panels:
        begin = min(span[2] for spans in timelines for span in spans)
        length = max(span[3] for spans in timelines for span in spans) - begin
        for rank, spans in enumerate(timelines):
            lines.append(f'<text x="4" y="{top + 26}">rank {rank}</text>')
            for kind, what, start, end in spans:
                above = kind == "exchange"
                lines.append(f'<rect x="{60 + (start - begin) / length * wide:.1f}" y="{top + (4 if above else 20)}"'
                             f' width="{max((end - start) / length * wide, 0.5):.1f}" height="{12 if above else 18}"'
                             f' fill="{COLORS[kind]}"><title>{escaped(what)}</title></rect>')
            top += high
        kinds = sorted({span[0] for spans in timelines for span in spans}, key=list(COLORS).index)
        lines.append(f'<text x="60" y="{top + 12}">{title}, {length * 1e3:.3g} ms: ' + ", ".join(
            f'<tspan fill="{COLORS[kind]}">{kind}</tspan>' for kind in kinds) + "</text>")
        top += 30
    head = (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide + 90} {top}" font-family="sans-serif"'
            ' font-size="12">')
    pathlib.Path(file).write_text("\n".join([head, *lines, "</svg>"]) + "\n")


def escaped(text):
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def main():
    options = argparse.ArgumentParser(description="A sequence over several ranks.")
    options.add_argument("--tokens", type=int, default=2048)
    options.add_argument("--steps", type=int, default=4)
    options.add_argument("--picture", help="of the prefill and the last step")
    given = options.parse_args()
    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    gpu = torch.cuda.is_available() and torch.cuda.device_count() >= ranks
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if gpu else torch.device("cpu")
    if gpu:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if gpu else "gloo", timeout=datetime.timedelta(seconds=60))
    timeline = compare(given, LARGE if gpu else SMALL, rank, ranks, device)

    everybodys = [None] * ranks
    dist.all_gather_object(everybodys, timeline.panels)
    if given.picture and rank == 0:
        titles = list(timeline.panels)
        picture(given.picture, [(title, [panels[title] for panels in everybodys]) for title in (titles[0], titles[-1])])
    dist.barrier()  # nobody leaves while another still draws
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
