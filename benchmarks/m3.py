#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Measures attn_implementation="msa" on an attention layer of MiniMax-M3's size: bf16, batch 1, on one Hopper GPU.

usage: benchmarks/m3.py [--only PATTERN]... [--merge FILE] [--out FILE] [--commit HASH] [--dry]

hopper.m3.8k           indexer and attention; peer: the same of stock transformers under sdpa (indexer, block mask, sdpa)
hopper.m3.32k, .128k   the whole attention layer; peer: its parts alone, which are transformers' own projections, norms and
                       rotary embedding and our two kernels on tensors laid out for them. 1 - ratio is what the
                       integration adds.
hopper.m3.*.products   the same layer; peer: the matrix products and our kernels, without norms and rotary embedding
hopper.m3.memory.*     what a forward of the layer allocates at its peak, which must grow linearly

Wants msa and transformers importable. Every timed case is first compared with an oracle on sampled rows. Writes the JSON
of docs/formats.md to benchmarks/results/m3-CARD-DRIVER.json unless told otherwise. --dry runs all of it small, on the
CPU, and writes nothing.
"""
import argparse
import dataclasses
import datetime
import fnmatch
import json
import pathlib
import shlex
import statistics
import subprocess
import sys
import time

import torch

import cpu

ROOT = pathlib.Path(__file__).resolve().parents[1]
MIN_TIME = 0.5  # seconds of all runs of a row
SAMPLES = 48  # rows that the oracle looks at
LENGTHS = {"8k": 8192, "16k": 16384, "32k": 32768, "64k": 65536, "128k": 131072}


@dataclasses.dataclass
class Size:
    """What M3's configuration says, or something small."""

    hidden: int = 6144
    heads: int = 64
    kv: int = 4
    dim: int = 128
    block: int = 128
    topk: int = 16
    device: str = "cuda"
    shrink: int = 1  # lengths are divided by it


DRY = Size(hidden=256, heads=8, kv=2, dim=64, block=32, topk=4, device="cpu", shrink=128)


def say(text):
    print(f"[{time.monotonic() - START:6.1f} s] {text}", file=sys.stderr, flush=True)


START = time.monotonic()


# ---- timing ------------------------------------------------------------------------------------------------------------


def elapsed(call, count, device):
    """Seconds of each of `count` runs handed over together."""
    if device == "cpu":
        times = [time.perf_counter()]
        for _ in range(count):
            call()
            times.append(time.perf_counter())
        return [b - a for a, b in zip(times, times[1:])]
    events = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]
    events[0].record()
    for event in events[1:]:
        call()
        event.record()
    torch.cuda.synchronize()
    return [1e-3 * a.elapsed_time(b) for a, b in zip(events, events[1:])]


def measure(calls, device):
    """Seconds of each call, in turns, so that both see the same clocks."""
    found = [[] for _ in calls]
    for call in calls:
        elapsed(call, 2, device)
    while any(len(times) < 7 or sum(times) < MIN_TIME for times in found):
        for call, times in zip(calls, found):
            times += elapsed(call, 1 if device == "cpu" else max(1, min(16, int(0.05 / max(times or [0.01])))), device)
        if device == "cpu" and len(found[0]) >= 3:
            break
    return found


# ---- one attention layer -------------------------------------------------------------------------------------------------


class Layer:
    """M3's attention module with random weights and one sequence of `length` tokens."""

    def __init__(self, size, length):
        from transformers.models.minimax_m3_vl import modeling_minimax_m3_vl as modeling
        from transformers.models.minimax_m3_vl.configuration_minimax_m3_vl import MiniMaxM3VLTextConfig

        self.size, self.length, self.modeling = size, length, modeling
        self.config = MiniMaxM3VLTextConfig(
            hidden_size=size.hidden, num_attention_heads=size.heads, num_key_value_heads=size.kv, head_dim=size.dim,
            num_hidden_layers=2, layer_types=["full_attention", "minimax_m3_sparse"], index_n_heads=size.kv,
            index_head_dim=size.dim, index_block_size=size.block, index_topk_blocks=size.topk, index_local_blocks=1,
            rope_parameters={"rope_type": "default", "rope_theta": 5e6, "partial_rotary_factor": 0.5})
        torch.manual_seed(0)
        kind = dict(device=size.device, dtype=torch.bfloat16)
        self.module = modeling.MiniMaxM3VLAttention(self.config, 1).to(**kind).eval().requires_grad_(False)
        self.hidden = torch.randn(1, length, size.hidden, **kind)
        self.positions = torch.arange(length, device=size.device)[None]
        self.rotary = modeling.MiniMaxM3VLRotaryEmbedding(self.config).to(size.device)(self.hidden, self.positions)

    def use(self, name):
        self.config._attn_implementation = name

    def whole(self):
        return self.module(self.hidden, self.rotary, None, position_ids=self.positions)[0]

    def products(self):
        """The matrix products before attention."""
        m = self.module
        return [p(self.hidden) for p in (m.q_proj, m.k_proj, m.v_proj, m.indexer.q_proj, m.indexer.k_proj)]

    def states(self):
        """q [1, Hq, N, D], k, v: transformers' own code of the layer before attention."""
        m, shape = self.module, (1, self.length, -1, self.size.dim)
        q = m.q_norm(m.q_proj(self.hidden).view(shape)).transpose(1, 2)
        k = m.k_norm(m.k_proj(self.hidden).view(shape)).transpose(1, 2)
        v = m.v_proj(self.hidden).view(shape).transpose(1, 2)
        return *self.modeling.apply_rotary_pos_emb(q, k, *self.rotary), v

    def index_states(self):
        from msa.integrations.transformers.indexer import index_states

        q, k = index_states(self.module.indexer, self.hidden, self.rotary)
        return q[0], k[0]  # [N, Hi, Di], [N, 1, Di]

    def blocks(self):
        return self.module.indexer(self.hidden, self.rotary, None, self.positions)

    def attend(self, q, k, v, blocks):
        """Under the implementation that is chosen: [1, N, Hq, D]."""
        m, mask, name = self.module, None, self.config._attn_implementation
        if name != "msa":
            mask = m.indexer.build_block_mask(blocks, None, self.length, q.dtype, q.device, self.positions)
        function = self.modeling.ALL_ATTENTION_FUNCTIONS[name]
        return function(m, q, k, v, mask, dropout=0.0, scaling=m.scaling, block_indices=blocks,
                        position_ids=self.positions)[0]


# ---- the oracle, on sampled rows -----------------------------------------------------------------------------------------


def check(layer, q, k, v, blocks, out, peer=False):
    """Blocks up to near-ties against exact scores, outputs against fp64 over the listed blocks. Ours keep the contract's
    tolerance; a peer must be roughly right. Raises RuntimeError."""
    size, n = layer.size, layer.length
    index_q, index_k = layer.index_states()
    rows = sorted({0, 1, n - 1, *torch.linspace(0, n - 1, SAMPLES).long().tolist()})
    slots = torch.arange(n, device=q.device)
    for row in rows:
        for head in range(size.kv):
            ids = blocks[0, head, row].long()
            ids = ids[ids >= 0]
            _check_blocks(size, row, index_q[row, head].double(), index_k[: row + 1, 0].double(), ids)
            keys = slots[: row + 1][torch.isin(slots[: row + 1] // size.block, ids)]
            group = slice(head * size.heads // size.kv, (head + 1) * size.heads // size.kv)
            _check_rows(q[0, group, row], k[0, head, keys], v[0, head, keys], out[0, row, group],
                        layer.module.scaling, size.block, f"row {row}, head {head}", peer)


def _check_blocks(size, row, q, keys, ids):
    scores = keys @ q
    count = row // size.block + 1
    best = torch.full((count * size.block,), -torch.inf, dtype=scores.dtype, device=q.device)
    best[: row + 1] = scores
    best = best.view(count, size.block).amax(-1)
    best[-1] = torch.inf  # the local block
    wanted = min(size.topk, count)
    if len(ids) != wanted or len(ids.unique()) != wanted or int(ids.max()) != count - 1:
        raise RuntimeError(f"row {row}: blocks {ids.tolist()} of {count}")
    near = 1e-5 * float(q.norm() * keys.norm(dim=-1).max())
    if float(best[ids].min()) < float(best.topk(wanted).values[-1]) - near:
        raise RuntimeError(f"row {row}: blocks {ids.tolist()} are not the best")


def _check_rows(q, k, v, out, scale, block, where, peer):
    scores = q.double() @ k.double().T * scale  # [G, keys]
    weights = torch.exp(scores - scores.amax(-1, keepdim=True))
    total = weights.sum(-1, keepdim=True)
    want = weights @ v.double() / total
    error = (out.double() - want).abs().amax(-1)
    if peer:
        if not bool((error <= 2e-2 * want.abs().amax()).all()):
            raise RuntimeError(f"{where}: the peer is wrong by {float(error.max())}")
        return
    # The contract lets a call round weights, and partial results block by block, to the storage type.
    whole = weights.to(v.dtype).double() @ v.double() / total
    joined = torch.zeros_like(want)
    for part, values in zip(scores.split(block, -1), v.split(block)):
        raised = torch.exp(part - part.amax(-1, keepdim=True))
        mean = (raised.to(v.dtype).double() @ values.double() / raised.sum(-1, keepdim=True)).to(v.dtype)
        share = torch.exp(torch.logsumexp(part, -1) - torch.logsumexp(scores, -1))
        joined += share[:, None] * mean.double()
    plain = torch.maximum((whole - want).abs().amax(-1), (joined - want).abs().amax(-1))
    ulp = torch.exp2(torch.floor(torch.log2(want.abs().amax(-1))) - 7)  # bf16
    if not bool((error <= 2 * plain + 0.5 * ulp + 1e-6).all()):
        worst = (error / (2 * plain + 0.5 * ulp)).argmax()
        raise RuntimeError(f"{where}: off by {float(error[worst])}, allowed {float((2 * plain + 0.5 * ulp)[worst])}")


# ---- rows ----------------------------------------------------------------------------------------------------------------


def peer_name(what):
    import transformers

    return f"{what}, transformers {transformers.__version__}, torch {torch.__version__}"


def row_of(name, what, ours, peer, peer_seconds):
    seconds = statistics.median(ours)
    peer_median = statistics.median(peer_seconds)
    return {"id": name, "what": what, "seconds": seconds, "spread": [min(ours), max(ours)], "verified": True,
            "peer": peer, "peer_seconds": peer_median, "ratio": peer_median / seconds}


def against_sdpa(layer, name):
    """Indexer and attention of both, after the same projections."""
    q, k, v = layer.states()
    for implementation in ("sdpa", "msa"):
        layer.use(implementation)
        blocks = layer.blocks()
        check(layer, q, k, v, blocks, layer.attend(q, k, v, blocks), peer=implementation == "sdpa")
    del blocks

    def run(implementation):
        layer.use(implementation)
        return layer.attend(q, k, v, layer.blocks())

    ours, stock = measure([lambda: run("msa"), lambda: run("sdpa")], layer.size.device)
    what = f"indexer and attention of one layer, {layer.length} tokens, batch 1"
    return [row_of(name, what, ours, peer_name("the same under sdpa (indexer, block mask, sdpa)"), stock)]


def against_parts(layer, name):
    """The layer against what it is made of."""
    import msa.torch as ops

    layer.use("msa")
    q, k, v = layer.states()
    blocks = layer.blocks()
    out = layer.attend(q, k, v, blocks)
    check(layer, q, k, v, blocks, out)
    if not torch.equal(layer.whole(), layer.module.o_proj(out.flatten(2))):
        raise RuntimeError("the layer is not made of its parts")
    del blocks, out
    q, k, v = (x[0].transpose(0, 1).contiguous() for x in (q, k, v))
    index_q, index_k = (x.contiguous() for x in layer.index_states())
    size = layer.size
    shape = dict(block_size=size.block, max_seqlen_q=layer.length, max_seqlen_k=layer.length)

    def kernels():
        ids = ops.select_blocks(index_q, index_k, topk=size.topk, local_blocks=1, **shape)
        out = ops.sparse_attention(q, k, v, ids, softmax_scale=layer.module.scaling, **shape)
        return layer.module.o_proj(out.flatten(1))

    def parts():
        layer.states()
        layer.index_states()
        kernels()

    def products():
        layer.products()
        kernels()

    whole, alone, bare = measure([layer.whole, parts, products], size.device)
    what = f"one attention layer with its projections, {layer.length} tokens, batch 1"
    return [row_of(name, what, whole, peer_name("projections, norms, rotary embedding and msa's kernels alone"), alone),
            row_of(f"{name}.products", what, whole, peer_name("matrix products and msa's kernels alone"), bare)]


def memory(layer, name):
    """Bytes that one forward allocates at its peak, beyond its input."""
    layer.use("msa")
    if layer.size.device == "cpu":
        layer.whole()
        return [{"id": name, "what": "a dry run", "bytes": float(layer.length)}]
    layer.whole()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    layer.whole()
    torch.cuda.synchronize()
    what = f"peak of what a forward of the layer allocates, {layer.length} tokens"
    return [{"id": name, "what": what, "bytes": float(torch.cuda.max_memory_allocated() - before)}]


ROWS = {"hopper.m3.8k": ("8k", against_sdpa), "hopper.m3.32k": ("32k", against_parts),
        "hopper.m3.128k": ("128k", against_parts), "hopper.m3.memory.16k": ("16k", memory),
        "hopper.m3.memory.32k": ("32k", memory), "hopper.m3.memory.64k": ("64k", memory),
        "hopper.m3.memory.128k": ("128k", memory)}


def check_linear(rows):
    """Bytes a token may not grow with the length by more than a twentieth."""
    tokens = {name: LENGTHS[length] for name, (length, make) in ROWS.items() if make is memory}
    rates = [rows[name]["bytes"] / tokens[name] for name in tokens if name in rows]
    if any(later > 1.05 * rate for rate, later in zip(rates, rates[1:])):
        raise RuntimeError(f"memory is not linear: {', '.join(f'{rate:.0f}' for rate in rates)} bytes a token")


# ---- all together --------------------------------------------------------------------------------------------------------


def driver_version():
    answer = subprocess.run(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"],
                            check=True, capture_output=True, text=True)
    return answer.stdout.strip()


def describe(arguments):
    import msa

    info, gpu, driver = msa.info(), torch.cuda.get_device_name(), driver_version()
    command = shlex.join(["benchmarks/m3.py", *(word for row in arguments.only for word in ("--only", row))])
    return {"machine": {"cpu": info["cpu"], "isa": "sm90", "gpu": gpu, "driver": driver},
            "commit": arguments.commit or info["commit"], "version": info["version"], "command": command,
            "date": datetime.date.today().isoformat(), "rows": []}


def load_merged(arguments, document):
    if not arguments.merge or not arguments.merge.exists():
        return {}
    before = json.loads(arguments.merge.read_text())
    for field in ("commit", "version"):
        if before[field] != document[field]:
            sys.exit(f"m3.py: {arguments.merge}: {field} is {before[field]}, here it is {document[field]}")
    for field in ("gpu", "driver"):
        if before["machine"].get(field) != document["machine"][field]:
            sys.exit(f"m3.py: {arguments.merge}: another machine ({field} {before['machine'].get(field)})")
    document |= {field: before[field] for field in ("machine", "peaks") if field in before}
    if before["command"] != document["command"]:
        document["command"] = f"{before['command']}; {document['command']}"
    return {row["id"]: row for row in before["rows"]}


def write(path, document, rows):
    document["rows"] = list(rows.values())
    cpu.write_whole(path, document)


def default_path(machine):
    card = next((name for name in ("h100", "h200", "gh200") if name in machine["gpu"].lower()), "gpu")
    return ROOT / "benchmarks" / "results" / f"m3-{card}-{machine['driver']}.json"


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", action="append", default=[], help="rows whose ids match; may be repeated")
    parser.add_argument("--merge", type=pathlib.Path, help="an earlier file whose other rows stay")
    parser.add_argument("--out", type=pathlib.Path)
    parser.add_argument("--commit", default="", help="of a tree without its repository")
    parser.add_argument("--dry", action="store_true", help="small, on the CPU, nothing written")
    return parser.parse_args()


def run_row(size, name):
    length, make = ROWS[name]
    found = make(Layer(size, LENGTHS[length] // size.shrink), name)
    if size.device == "cuda":
        torch.cuda.empty_cache()
    for row in found:
        say("  ".join(f"{k} {row[k]:.6g}" if isinstance(row[k], float) else str(row[k])
                      for k in ("id", "seconds", "peer_seconds", "ratio", "bytes") if k in row))
    return {row["id"]: row for row in found}


def main():
    arguments = parse_arguments()
    names = [name for name in ROWS if not arguments.only or any(fnmatch.fnmatch(name, p) for p in arguments.only)]
    if not names:
        sys.exit("m3.py: not measured: no row has such a name")

    from msa.integrations import transformers as integration

    size = DRY if arguments.dry else Size()
    document = None if arguments.dry else describe(arguments)
    rows, failed = load_merged(arguments, document) if document else {}, []
    path = arguments.out or (default_path(document["machine"]) if document else None)
    with torch.inference_mode(), integration.enabled():
        for name in names:
            try:
                rows |= run_row(size, name)
            except (RuntimeError, torch.cuda.OutOfMemoryError) as error:
                say(f"not measured: {name}: {error}")
                failed.append(name)
                continue
            if document:
                write(path, document, rows)
    check_linear({} if arguments.dry else rows)
    if failed:
        sys.exit(f"m3.py: not measured: {', '.join(failed)}")
    print("dry run: every row can be measured" if arguments.dry else path)


if __name__ == "__main__":
    main()
