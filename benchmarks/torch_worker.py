# SPDX-License-Identifier: MIT
"""PyTorch's side of the CPU benchmark: checks and chooses the fastest way that PyTorch offers, says "ready", then runs it
once for each line on standard input and prints the seconds. usage: torch_worker.py dense.LENGTH|decode.LENGTH THREADS"""
import sys
import time

import numpy as np
import torch
import torch.nn.functional as F

HEADS, HEADS_KV, DIM = 64, 4, 128
GROUP = HEADS // HEADS_KV


def tensors(rows, keys):
    torch.manual_seed(1)
    q = torch.randn(1, HEADS, rows, DIM, dtype=torch.float32).to(torch.bfloat16)
    k = torch.randn(1, HEADS_KV, keys, DIM, dtype=torch.float32).to(torch.bfloat16)
    v = torch.randn(1, HEADS_KV, keys, DIM, dtype=torch.float32).to(torch.bfloat16)
    return q, k, v


def token_major(t):
    """The same tensor with [tokens, heads, dim] in memory."""
    return t.transpose(1, 2).contiguous().transpose(1, 2)


def dense_ways(length):
    """name -> a function without arguments that gives [1, heads, rows, dim]."""
    q, k, v = tensors(length, length)
    wide = [t.repeat_interleave(GROUP, dim=1) for t in (k, v)]
    return (q, k, v), {
        "bf16, enable_gqa": lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True),
        "bf16, expanded heads": lambda: F.scaled_dot_product_attention(q, *wide, is_causal=True),
    }


def decode_ways(length):
    """One token sees every key, so the heads of a group may also stand as rows of one head."""
    q, k, v = tensors(1, length)
    ways = {}
    for dtype, name in ((torch.bfloat16, "bf16"), (torch.float32, "fp32")):
        qd, kd, vd = (t.to(dtype) for t in (q, k, v))
        for layout, lay in (("head-major", lambda t: t), ("token-major", token_major)):
            kl, vl = lay(kd), lay(vd)
            grouped = qd.view(1, HEADS_KV, GROUP, DIM)
            ways[f"{name}, {layout}, enable_gqa"] = (
                lambda a=qd, b=kl, c=vl: F.scaled_dot_product_attention(a, b, c, enable_gqa=True))
            ways[f"{name}, {layout}, heads as rows"] = (
                lambda a=grouped, b=kl, c=vl: F.scaled_dot_product_attention(a, b, c).view(1, HEADS, 1, DIM))
        if dtype == torch.bfloat16:
            wide = [t.repeat_interleave(GROUP, dim=1) for t in (kd, vd)]
            ways[f"{name}, expanded heads"] = lambda a=qd, b=wide: F.scaled_dot_product_attention(a, *b)
    return (q, k, v), ways


def check(name, out, given):
    """Sampled rows and heads in double precision."""
    q = given[0][0]
    k, v = (t[0].to(torch.float64).numpy() for t in given[1:])
    rows, keys = q.shape[1], k.shape[1]
    for n, row in enumerate(sorted({0, rows // 3, rows // 2, rows - 1})):
        head = (17 * n + 5) % HEADS
        seen = keys - rows + row + 1
        scores = k[head // GROUP, :seen] @ q[head, row].to(torch.float64).numpy() / np.sqrt(DIM)
        weights = np.exp(scores - scores.max())
        expected = weights @ v[head // GROUP, :seen] / weights.sum()
        got = out[0, head, row].to(torch.float64).numpy()
        error = np.abs(got - expected).max()
        allowed = 0.02 * np.abs(expected).max()
        if not error <= allowed:
            sys.exit(f"{name}: row {row}, head {head}: error {error:.3g}, allowed {allowed:.3g}")


def seconds(call):
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def main():
    kind, length = sys.argv[1].split(".")
    threads = int(sys.argv[2])
    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    build = dense_ways if kind == "dense" else decode_ways
    times = {}
    # The choice is made at a length that takes seconds; the way chosen is checked again at the length that is timed.
    _, trial = build(min(int(length), 8192) if kind == "dense" else int(length))
    for name, call in trial.items():
        call()
        times[name] = min(seconds(call) for _ in range(3))
        print(f"{name}: {times[name]:.4f} s", file=sys.stderr, flush=True)
    best = min(times, key=times.get)
    del trial
    given, ways = build(int(length))
    check(best, ways[best](), given)
    call = ways[best]
    del ways
    print(f"ready\t{best}", flush=True)
    for _ in sys.stdin:
        print(f"{seconds(call):.9f}", flush=True)


if __name__ == "__main__":
    main()
