#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Measures the rows hopper2.* (hopper4.* on four GPUs): msa.distributed over the GPUs of one host, each row against the
same work on one of them, in one run.

usage: benchmarks/hopper_ranks.py [--gpus N] [--only PATTERN]... [--tokens N] [--out FILE] [--commit HASH]

Starts a process for each GPU and runs them over NCCL; msa must be importable, built with CUDA. What one GPU gives is held
against sampled rows in plain fp32, and what several give against that one: every list of blocks, and outputs of sampled
rows. Writes the JSON of docs/formats.md to benchmarks/results/CARDxN-DRIVER.json (h100x2-580.159.04.json) unless told
otherwise, row by row. --tokens shortens every sequence, for a look at whether all of it runs; nothing is written then
without --out.
"""
import argparse
import datetime
import fnmatch
import os
import pathlib
import shlex
import statistics
import subprocess
import sys
import time

import torch
import torch.distributed as dist

import cpu
import msa
from hopper import card_and_driver
from msa.distributed import ContextParallel, Links, Measured, Model, estimate
from msa.distributed.boxes import Box, make_boxes
from ranks import Ranks, alone_seconds, captured, start
from sequences import Drift, normal_rows, rows_of

ROOT = pathlib.Path(__file__).resolve().parents[1]
START = time.monotonic()
MODEL = Model()  # 64/4 heads of dim 128, blocks of 128, 16 chosen
PREFILL = {"128k": (1 << 17, 1), "1m": (1 << 20, 4)}  # tokens, pieces that keys and values come in
DECODE = {"1m.b1": (1 << 20, 1, 16), "128k.b32": (1 << 17, 32, 4)}  # tokens, requests, layers in a graph
PEER = "the same on one of these GPUs"


def say(text):
    print(f"[{time.monotonic() - START:6.1f} s] {text}", file=sys.stderr, flush=True)


def row_of(name, what, seconds, peer_seconds, verified):
    middle, peer = statistics.median(seconds), statistics.median(peer_seconds)
    return {"id": name, "what": what, "seconds": middle, "spread": [min(seconds), max(seconds)], "peer": PEER,
            "peer_seconds": peer, "ratio": peer / middle, "verified": verified}


# ---- checks --------------------------------------------------------------------------------------------------------------


def require(holds, text):
    if not holds:
        raise RuntimeError(text)


def check_plainly(row, place, tensors, found):
    """One row of one GPU against plain fp32: row's q and index_q, keys up to its place; found: out, lse, block_ids."""
    q, k, v, index_q, index_k = tensors
    keys, size = place + 1, MODEL.block_size
    blocks = -(-keys // size)
    scores = torch.full((MODEL.index_heads, blocks * size), float("-inf"), device=k.device)
    scores[:, :keys] = index_q[row].float() @ index_k[:keys, 0].float().T
    maxima = scores.view(MODEL.index_heads, blocks, size).amax(-1)
    maxima[:, -1] = float("inf")
    kept = min(MODEL.topk, blocks)
    for head in range(MODEL.heads_kv):
        ids = found.block_ids[row, head]
        ids = ids[ids >= 0].long()
        require(len(ids) == kept, f"row {row}, head {head}: {len(ids)} blocks, not {kept}")
        least = maxima[head].topk(kept).values[-1]
        require(maxima[head][ids].min() >= least - 1e-3, f"row {row}, head {head}: a block that is none of the best")
        token = (ids.unsqueeze(1) * size + torch.arange(size, device=k.device)).flatten()
        token = token[token < keys]
        group = MODEL.heads_q // MODEL.heads_kv
        own = slice(head * group, (head + 1) * group)
        weights = q[row, own].float() @ k[token, head].float().T / MODEL.head_dim ** 0.5
        close_rows(found.out[row, own], torch.softmax(weights, -1) @ v[token, head].float(), f"row {row}, head {head}")
        require((found.lse[row, own] - weights.logsumexp(-1)).abs().max() < 1e-3, f"row {row}, head {head}: lse")


def close_rows(out, wanted, what):
    error = (out.float() - wanted.float()).norm(dim=-1) / wanted.float().norm(dim=-1).clamp(min=1e-20)
    require(error.max() < 1e-2, f"{what}: relative error {error.max():.3g}")


# ---- prefill -------------------------------------------------------------------------------------------------------------


def drawn(tokens, runs, device):
    """q, k, v, index_q and index_k of some runs of one sequence whose lists drift."""
    drift = Drift(tokens, MODEL.index_heads, MODEL.index_dim, device)

    def normal(heads, dim, stream):
        return rows_of(lambda begin, end: normal_rows(begin, end, heads, dim, stream, device), runs)

    return (normal(MODEL.heads_q, MODEL.head_dim, 1), normal(MODEL.heads_kv, MODEL.head_dim, 2),
            normal(MODEL.heads_kv, MODEL.value_dim, 3), rows_of(drift.queries, runs), rows_of(drift.keys, runs))


def prefill_of_one(tokens, sample, device):
    """Seconds of all and of its stages, and its lists, outputs and lse of sampled rows."""
    tensors = drawn(tokens, [(0, tokens)], device)
    q, k, v, index_q, index_k = tensors
    found = msa.msa_attention(*tensors, return_lse=True, return_block_ids=True)
    for row in (0, tokens // 3, tokens - 1):
        check_plainly(row, row, tensors, found)
    runs = 3 if tokens > 1 << 18 else 10
    own = dict(zip(("out", "lse", "block_ids"), found))
    whole = alone_seconds(lambda: msa.msa_attention(*tensors, **own), runs)
    select = alone_seconds(lambda: msa.select_blocks(index_q, index_k, block_ids=found.block_ids), runs)
    attend = alone_seconds(lambda: msa.sparse_attention(q, k, v, found.block_ids, out=found.out, lse=found.lse), runs)
    kept = found.block_ids.clone(), found.out[sample].clone(), found.lse[sample].clone()
    return [whole, select, attend], kept


def prefill(ranks, name, tokens, pieces):
    """Rows of a prefill, and of its memory."""
    sample = torch.linspace(0, tokens - 1, 2048, device=ranks.device).long()
    kept = []

    def first():
        times, kept[:] = prefill_of_one(tokens, sample, ranks.device)
        torch.cuda.empty_cache()
        return times

    whole, select, attend = ranks.on_first(first)
    heads = MODEL.heads_q
    ids = ranks.share(kept[0] if kept else None, (tokens, MODEL.index_heads, MODEL.topk), torch.int32)
    out = ranks.share(kept[1] if kept else None, (len(sample), heads, MODEL.value_dim), torch.bfloat16)
    lse = ranks.share(kept[2] if kept else None, (len(sample), heads), torch.float32)
    parallel = ContextParallel(dist.group.WORLD, "zigzag", ranks=ranks.count, agree=False)
    own = parallel.rows([tokens]).to(ranks.device)
    tensors = drawn(tokens, [(begin, end) for _, begin, end in parallel.spans([tokens])], ranks.device)
    found = parallel.prefill(*tensors, [tokens], pieces=pieces, return_lse=True, return_block_ids=True)
    require(torch.equal(found.block_ids, ids[own]), "lists of several ranks are not those of one")
    place = torch.searchsorted(own, sample).clamp(max=len(own) - 1)
    mine = own[place] == sample
    close_rows(found.out[place[mine]], out[mine], "several ranks")
    require((found.lse[place[mine]] - lse[mine]).abs().max() < 1e-4, "lse of several ranks")
    del found, ids, out, lse, kept
    peak = peak_of(lambda: parallel.prefill(*tensors, [tokens], pieces=pieces), ranks)
    seconds = ranks.seconds(lambda: parallel.prefill(*tensors, [tokens], pieces=pieces), 5 if tokens > 1 << 18 else 15)
    of = f"{ranks.count} GPUs, zigzag, keys and values in {pieces} {'piece' if pieces == 1 else 'pieces'}"
    row = row_of(f"prefill.{name}", f"whole MSA, {tokens} tokens that drift, {of}", seconds, whole, True)
    stages = Measured(statistics.median(select), statistics.median(attend))
    row |= {"select_seconds": stages.select, "attend_seconds": stages.attend}
    memory = {"id": f"memory.{name}", "what": f"most that torch allocates in a prefill of {tokens} tokens beside inputs"
                                              f" and output, {of}", "bytes": peak}
    return row, memory, lambda links: estimate("prefill", MODEL, tokens, ranks.count, links, stages, pieces=pieces)


def peak_of(call, ranks):
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    out = call()
    torch.cuda.synchronize()
    return max(ranks.all_of(torch.cuda.max_memory_allocated() - before - out.nbytes))


# ---- decode --------------------------------------------------------------------------------------------------------------


class Caches:
    """Whole caches of a batch in pages of a block, the same on every rank, and queries of some layers.

    Layers take the sets of caches in turn, so that a shard of them, too, passes the L2 cache several times.
    """

    def __init__(self, tokens, batch, layers, sets, device):
        self.blocks, self.batch, self.device, self.tokens = tokens // MODEL.block_size, batch, device, tokens
        self.sets = [[self._cache(heads, 10 * one + stream) for stream, heads in ((4, MODEL.heads_kv),
                                                                                 (5, MODEL.heads_kv), (6, 1))]
                     for one in range(sets)]
        self.queries = [tuple(normal_rows(0, batch, heads, MODEL.head_dim, 1000 + 2 * layer + index, device)
                              for index, heads in enumerate((MODEL.heads_q, MODEL.index_heads)))
                        for layer in range(layers)]

    def _cache(self, heads, stream):
        rows = rows_of(lambda begin, end: normal_rows(begin, end, heads, MODEL.head_dim, stream, self.device),
                       [(0, self.tokens * self.batch)])
        return rows.view(self.batch, self.blocks, MODEL.block_size, heads, MODEL.head_dim)

    def pages(self, first=0, step=1):
        """Of every `step`th block: pools k, v, index_k of each set, page_table, and how many keys each request has."""
        pools = [[cache[:, first::step].flatten(0, 1).contiguous() for cache in one] for one in self.sets]
        blocks = len(range(first, self.blocks, step))
        table = torch.arange(self.batch * blocks, dtype=torch.int32, device=self.device).view(self.batch, blocks)
        return pools, table, torch.full((self.batch,), blocks * MODEL.block_size, dtype=torch.int32, device=self.device)

    def layers(self, pools):
        """q, k, v, index_q and index_k of each layer."""
        for layer, (q, index_q) in enumerate(self.queries):
            k, v, index_k = pools[layer % len(pools)]
            yield q, k, v, index_q, index_k


def layers_of(parallel, caches, pools, table, lengths, symmetric=None):
    """A step of all layers over a sharded cache, in a graph: its seconds a layer come from replays."""
    decoder = parallel.decoder(table, lengths, page_size=MODEL.block_size, heads_q=MODEL.heads_q,
                               index_heads=MODEL.index_heads, value_dim=MODEL.value_dim, symmetric=symmetric)

    def step():
        decoder.refresh()
        return [decoder.run(*layer, return_lse=True, return_block_ids=True) for layer in caches.layers(pools)]

    return decoder, *captured(step)


def decode_of_one(caches, pools, table, lengths, rows):
    """A graph of all layers over the whole cache on this GPU, and what they return. A replay reads these tensors."""
    given = {"page_table": table, "seqlens_k": lengths, "cu_seqlens_q": rows, "max_seqlen_k": caches.tokens,
             "max_seqlen_q": 1, "return_lse": True, "return_block_ids": True}
    return captured(lambda: [msa.msa_attention(*layer, **given) for layer in caches.layers(pools)])


def graph_seconds(graph, layers):
    """Of a layer, on this GPU alone."""
    once = alone_seconds(graph.replay, 3)[-1]
    return [x / layers for x in alone_seconds(graph.replay, max(20, min(300, int(0.2 / once))))]


def decode(ranks, name, tokens, batch, layers, shares):
    """Rows of a decode: over symmetric memory where there is some, and over NCCL."""
    caches = Caches(tokens, batch, layers, ranks.count if batch == 1 else 1, ranks.device)
    whole = *caches.pages(), torch.arange(batch + 1, dtype=torch.int32, device=ranks.device)
    graph, wanted = decode_of_one(caches, *whole)
    graph.replay()
    wanted = [type(layer)(*(tensor.clone() for tensor in layer)) for layer in wanted]
    if ranks.rank == 0:
        k, v, index_k = (cache[0].flatten(0, 1) for cache in caches.sets[0])
        tensors = [caches.queries[0][0], k, v, caches.queries[0][1], index_k]
        check_plainly(0, tokens - 1, tensors, wanted[0])
    alone = ranks.on_first(lambda: graph_seconds(graph, layers))
    del graph, whole
    whole, measured = parts_of_one(ranks, caches, layers, None if shares else False)
    pools, table, _ = caches.pages(ranks.rank, ranks.count)
    caches.sets.clear()
    torch.cuda.empty_cache()
    lengths = torch.full((batch,), tokens, dtype=torch.int32, device=ranks.device)
    parallel = ContextParallel(dist.group.WORLD, "interleaved", ranks=ranks.count, agree=False)
    rows, used = [], None
    for symmetric, suffix in ((None, ""), (False, ".nccl")):
        if used is False:
            break  # the first one gathered already
        decoder, graph, found = layers_of(parallel, caches, pools, table, lengths, symmetric)
        graph.replay()
        for one, other in zip(found, wanted):
            require(torch.equal(one.block_ids, other.block_ids), "lists of several ranks are not those of one")
            close_rows(one.out, other.out, "several ranks")
            require((one.lse - other.lse).abs().max() < 1e-4, "lse of several ranks")
        seconds = [x / layers for x in ranks.seconds(graph.replay, 20, calls=10)]
        used = decoder.symmetric if used is None else used
        way = "symmetric memory" if decoder.symmetric else "NCCL"
        rows.append(row_of(f"decode.{name}{suffix}", f"{batch} x 1 token over {tokens}, cache sharded over {ranks.count}"
                           f" GPUs, {layers} layers a step in a CUDA graph, a layer, over {way}", seconds, alone, True))
        del decoder, graph, found
    rows[0] |= {"group_of_one_seconds": whole, "select_seconds": measured.select, "attend_seconds": measured.attend,
                "fixed_seconds": measured.fixed}
    return rows, used, lambda links: estimate("decode", MODEL, tokens, ranks.count, links, measured, batch=batch)


def parts_of_one(ranks, caches, layers, symmetric):
    """On one GPU, as a "group" that meets itself: seconds of a layer, and what of them shrinks with the blocks that are
    scored, with those that are attended to, and with nothing. From a part of the cache, and from a part of the lists."""
    def first():
        found = []
        for step, topk in ((1, MODEL.topk), (ranks.count, MODEL.topk), (ranks.count, -(-MODEL.topk // ranks.count))):
            parallel = ContextParallel(ranks.alone, "interleaved", topk=topk, agree=False)
            pools, table, lengths = caches.pages(0, step)
            decoder, graph, _ = layers_of(parallel, caches, pools, table, lengths, symmetric)
            found.append(statistics.median(graph_seconds(graph, layers)))
            del decoder, graph, pools
        return found

    whole, part, share = ranks.on_first(first)
    select, attend = (max(0.0, x) * ranks.count / (ranks.count - 1) for x in (whole - part, part - share))
    return whole, Measured(select, attend, max(0.0, whole - select - attend))


# ---- links ---------------------------------------------------------------------------------------------------------------


def measure_links(ranks):
    """What an all-gather brings a rank a second, and seconds of a small collective and of a meeting in kernels."""
    sent = torch.ones(1 << 28, dtype=torch.uint8, device=ranks.device)
    gathered = torch.empty(ranks.count << 28, dtype=torch.uint8, device=ranks.device)
    takes = statistics.median(ranks.seconds(lambda: dist.all_gather_into_tensor(gathered, sent), 10))
    found = {"all_gather_bytes_per_s": (ranks.count - 1) * sent.numel() / takes}
    parallel = ContextParallel(dist.group.WORLD, "interleaved", agree=False)
    box, = make_boxes(parallel.exchange, {"links": Box((256,), torch.float32)}, ranks.device, False)
    graph, _ = captured(lambda: [box.swap() for _ in range(32)])
    found["collective_seconds"] = statistics.median(ranks.seconds(graph.replay, 20, calls=10)) / 32
    meeting = meeting_seconds(ranks, parallel)
    if meeting is not None:
        found["meeting_seconds"] = meeting
    return found


def meeting_seconds(ranks, parallel):
    """Half of what a layer over next to nothing, which meets twice, takes among ranks and not in a "group" of one; None
    where ranks do not share memory."""
    layers = 16
    caches = Caches(16 * MODEL.block_size * ranks.count, 1, layers, 1, ranks.device)
    pools, table, own = caches.pages(ranks.rank, ranks.count)
    lengths = torch.full_like(own, caches.tokens)
    decoder, graph, _ = layers_of(parallel, caches, pools, table, lengths)
    if not decoder.symmetric:
        return None
    among = statistics.median(ranks.seconds(graph.replay, 20, calls=10)) / layers
    del decoder, graph
    alone = ContextParallel(ranks.alone, "interleaved", agree=False)
    kept = layers_of(alone, caches, pools, table, own)
    by_itself = ranks.on_first(lambda: statistics.median(graph_seconds(kept[1], layers)))
    return max(0.0, among - by_itself) / 2


def links_of(peaks, symmetric):
    if symmetric:
        return Links(peaks["all_gather_bytes_per_s"], peaks["meeting_seconds"], hides=True)
    return Links(peaks["all_gather_bytes_per_s"], peaks["collective_seconds"])


# ---- all together --------------------------------------------------------------------------------------------------------


class Results:
    """The document of a run, written by rank 0 whenever a row has come."""

    def __init__(self, ranks, arguments, peaks):
        card, driver = card_and_driver()
        self.prefix, self.rank, self.only = f"hopper{ranks.count}.", ranks.rank, arguments.only
        self.path = arguments.out
        if self.path is None and arguments.tokens is None:
            self.path = ROOT / "benchmarks" / "results" / f"{card}x{ranks.count}-{driver}.json"
        self.predictions = []
        self.document = {
            "machine": {"isa": "sm90", "gpu": torch.cuda.get_device_name(), "gpus": ranks.count, "driver": driver},
            "peaks": peaks, "commit": arguments.commit or commit_of_the_tree(), "version": msa.__version__,
            "command": command_of(arguments), "date": datetime.date.today().isoformat(), "rows": []}

    def wants(self, *names):
        return not self.only or any(fnmatch.fnmatch(self.prefix + name, pattern) for name in names
                                    for pattern in self.only)

    def add(self, row):
        if self.rank != 0:
            return
        row["id"] = self.prefix + row["id"]
        self.document["rows"].append(row)
        say("  ".join(f"{k} {row[k]:.6g}" if isinstance(row[k], float) else str(row[k])
                      for k in ("id", "seconds", "predicted_seconds", "ratio", "bytes") if k in row))
        if self.path is None:
            return
        cpu.write_whole(self.path, self.document)

    def predict(self, row, prediction):
        row["predicted_seconds"] = prediction.seconds
        self.predictions.append((prediction.seconds / row["seconds"], self.prefix + row["id"]))


def measure(ranks, arguments, results, peaks):
    def short(tokens):
        return min(tokens, arguments.tokens or tokens)

    for name, (tokens, batch, layers) in DECODE.items():
        if not results.wants(f"decode.{name}", "predict"):
            continue
        rows, symmetric, predicted = decode(ranks, name, short(tokens), batch, layers,
                                            "meeting_seconds" in peaks)
        results.predict(rows[0], predicted(links_of(peaks, symmetric)))
        for row in rows:
            results.add(row)
        torch.cuda.empty_cache()
    for name, (tokens, pieces) in PREFILL.items():
        if not results.wants(f"prefill.{name}", f"memory.{name}", "predict"):
            continue
        row, memory, predicted = prefill(ranks, name, short(tokens), pieces)
        results.predict(row, predicted(links_of(peaks, False)))
        results.add(row)
        results.add(memory)
        torch.cuda.empty_cache()
    if results.predictions and results.wants("predict"):
        worst, row = min(results.predictions, key=lambda found: min(found[0], 1 / found[0]))
        results.add({"id": "predict", "what": f"predicted by predicted_seconds of {row} and measured there, {worst:.3f}:"
                     " the worst of all rows, the smaller by the larger", "ratio": min(worst, 1 / worst)})


def run_rank(arguments):
    sys.stdout.flush()
    ranks = Ranks()
    peaks = measure_links(ranks)
    if ranks.rank == 0:
        say("links: " + ", ".join(f"{k} {v:.4g}" for k, v in peaks.items()))
    results = Results(ranks, arguments, peaks)
    measure(ranks, arguments, results, peaks)
    dist.barrier(group=ranks.host)
    if ranks.rank == 0:
        print(results.path or "nothing written")
    dist.destroy_process_group()


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--gpus", type=int, help="left out: all of this machine")
    parser.add_argument("--only", action="append", default=[], help="rows whose ids match; may be repeated")
    parser.add_argument("--tokens", type=int, help="no sequence is longer: to see whether it runs")
    parser.add_argument("--out", type=pathlib.Path)
    parser.add_argument("--commit", default="", help="of a tree without its repository")
    return parser.parse_args()


def command_of(arguments):
    """What repeats the measurement, without where files lie on this machine."""
    words = ["benchmarks/hopper_ranks.py", *(["--gpus", str(arguments.gpus)] if arguments.gpus else []),
             *(word for row in arguments.only for word in ("--only", row)),
             *(["--tokens", str(arguments.tokens)] if arguments.tokens else [])]
    return shlex.join(words)


def commit_of_the_tree():
    answer = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True)
    return answer.stdout.strip()


def main():
    arguments = parse_arguments()
    if "RANK" in os.environ:  # started here, or by torchrun
        return run_rank(arguments)
    gpus = arguments.gpus or torch.cuda.device_count()
    if gpus < 2:
        sys.exit(f"hopper_ranks.py: wants two GPUs or more, this machine has {torch.cuda.device_count()}")
    return start(gpus)


if __name__ == "__main__":
    sys.exit(main())
