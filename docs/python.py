#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Writes docs/python.md out of the docstrings of the package, or tells that it is stale.

usage: docs/python.py [--check]
"""
import importlib
import inspect
import pathlib
import re
import sys

PAGE = pathlib.Path(__file__).with_suffix(".md")
OPERATIONS = ("dense_attention", "block_scores", "select_topk", "select_blocks", "sparse_attention", "msa_attention",
              "merge_states", "merge_selections", "invert_selection", "quantize_kv", "quantize_index",
              "sparse_attention_backward", "dense_attention_backward", "index_loss")
HEAD = """# Python

Written by `docs/python.py` out of the docstrings; change those. Words are those of [contract.md](contract.md).

    pip install .                # a compiler is all it needs; nvcc 13 adds the GPU

The distribution is called `msa-attention`, the package `msa`. It needs no other package; arrays come from numpy,
torch or anything else that speaks DLPack. Free-threaded CPython cannot load the stable ABI of 3.10
and needs a build of its own. OpenMP's threads do not survive `fork()`: a forked child calls with `threads=1`, or is
started with `spawn`.
"""


def signature(function):
    text = str(inspect.signature(function)).replace("'", "")
    return re.sub(r" -> Any$", "", text)


def section(title, function, doc=None):
    doc = inspect.cleandoc(doc or function.__doc__)
    words, _, example = doc.partition(">>>")
    text = f"\n## {title}\n\n"
    lines = [line for line in words.strip().split("\n")]
    shapes = [line for line in lines if re.match(r"[a-z0-9_, .]+: ", line)]
    text += "\n".join(f"- {line}" if line in shapes else line for line in lines).replace("\n\n- ", "\n\n- ")
    if example:
        text += "\n\n```python\n>>>" + example.rstrip() + "\n```"
    return text + "\n"


def page():
    msa = importlib.import_module("msa")
    operations, plans = importlib.import_module("msa.operations"), msa.plans
    text = HEAD
    text += section("What all operations share", None, operations.__doc__)
    for name in OPERATIONS:
        function = getattr(msa, name)
        places = [p.name for p in inspect.signature(function).parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
        text += section(f"`{name}({', '.join(places)}, ...)`", function)
        own = [str(p).replace("'", "").replace(": Array | None = None", "=None")
               for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY]
        text += "\nKeywords: " + ", ".join(f"`{re.sub(r': [^=]*= ', '=', one)}`" for one in own) + ".\n"
    text += section("Plans", None, plans.__doc__)
    for title, function in (("make_plan(op, ...)", msa.make_plan), ("supports(op, ...)", msa.supports),
                            ("check(plan, workspace, stream)", msa.check), ("info()", msa.info),
                            ("plans.info()", plans.info), ("plans.clear()", plans.clear),
                            ("plans.resize(capacity)", plans.resize)):
        text += section(f"`{title}`", function).replace("## ", "### ", 1)
    text += section("`PagedCache(k, v, index_k=None)`", msa.PagedCache)
    for name, member in vars(msa.PagedCache).items():
        function = member.__func__ if isinstance(member, classmethod) else member
        if name.startswith("_") or not getattr(function, "__doc__", None):
            continue
        form = "" if isinstance(member, property) else re.sub(r"\((self|cls)(, )?", "(", signature(function))
        text += f"\n- `{name}{form}`: {inspect.cleandoc(function.__doc__)}"
    text += "\n" + section("Pictures and statistics", msa.show.blocks)
    numbers = inspect.cleandoc(msa.stats.of.__doc__).split("\n")[0]
    text += f"\n{numbers} {inspect.cleandoc(msa.stats.Stats.__doc__)}"
    text += "\n" + section("Errors", msa.errors.Error)
    for name in sorted(msa.errors.__all__):
        kind = getattr(msa.errors, name)
        if kind is not msa.Error:
            text += f"\n- `{name}` (also a `{kind.__mro__[2].__name__}`): {kind.__doc__}"
    text += "\n" + TORCH
    return text


TORCH = """
## torch

`msa.torch` has the same functions over registered ops, `torch.ops.msa.NAME` and `torch.ops.msa.NAME.out`: they stay
whole under `torch.compile(fullgraph=True)` and can be captured in CUDA graphs. Under tracing the bounds `max_seqlen_q`
and `max_seqlen_k` must be given wherever a shape hangs on lengths.

`dense_attention`, `sparse_attention` and `msa_attention` over ragged keys have gradients of `q`, `k` and `v`, through
`out` and `lse`, once: the backward pass has none of its own. Block ids carry none, so that `msa_attention` gives
`index_q` and `index_k` none; those come from `index_loss`, through `loss`, a head after the other. An output of another
op whose inputs require gradients raises where `backward()` reaches it, and so do pages, stored codes and block maxima;
the functions of `msa` itself refuse such inputs, and so do calls that write into given tensors.

## Training

`msa.nn.SparseAttention(msa.nn.SparseAttentionConfig(width, ...))` is a layer that trains: projections, norms of heads,
rotary positions, the index branch, which reads its input without handing gradients back, and `index_loss`, which is added
to the loss of the model. `layer.warm_up = True` attends to all visible keys, and teaches the index branch over all of
them. It takes sequences side by side, `[B, S, width]`, or one behind the other with `cu_seqlens`, and works under
`torch.compile(fullgraph=True)`, autocast, DistributedDataParallel (add `index_loss` on every step, be its weight 0, so that
every parameter has a gradient) and gradient accumulation: pass `row_weight`, 1 / (index heads times the tokens of all
ranks and micro-batches), and the losses add up to one mean. `key_input` and `choose` are there to be overridden.

`msa.nn.index_loss(q, k, lse, index_q, index_k, block_ids=None, row_weight=None, **settings)` is that loss for layers of your
own: one number, value and gradients from one call in the forward pass. Give index queries and keys the rotary positions,
the norms and whatever stands in front of the keys that the main ones have, and detach their input, not the loss alone.

`msa.nn.keep_selections` is a `context_fn` of `torch.utils.checkpoint.checkpoint(..., use_reentrant=False)`: selections
and losses are kept, attention is worked out again. `examples/route/train.py` trains a small model that has to route. Its
large form (`--form large --device cuda --seed 1 --seed 2 --seed 3 --at-once 3`) took 200 s on H100s, a seed each: from
scratch and from the dense model all three answer every question by lists of their own, whose planted recall is 1.000, where
random lists reach 0.10 and an index branch that nobody taught 0.10.

`msa.nn.training_work(config, tokens)` counts the operations and the bytes of each call for a token of one sequence: for
MiniMax-M3's sizes, in millions of operations, and what dense attention takes beside it. The paper's 28.4 times less at a
million tokens are 28.44 where every token is charged 16 whole blocks, as the paper does (`whole_blocks=True`), and 28.55
where the pairs are counted that it sees.

| tokens | select | attention | backward | index loss | dense forward / sparse | with gradients |
|---|---|---|---|---|---|---|
| 8K | 4.2 | 57.2 | 142.9 | 33.9 | 2.19 | 1.97 |
| 32K | 16.8 | 63.1 | 157.7 | 37.4 | 6.72 | 6.83 |
| 128K | 67.1 | 64.5 | 161.3 | 38.3 | 16.31 | 22.69 |
| 1M | 536.9 | 65.0 | 162.4 | 38.6 | 28.55 | 74.90 |

## Several ranks

`msa.distributed.ContextParallel(group, layout)` spreads sequences over the ranks of a torch.distributed group: prefill,
`train`, a prefill with gradients and the loss of the index branch, whose sums over ranks have the same bits every time,
and decode over a cache that is dealt in blocks, of which `decoder` keeps what a step needs, for CUDA graphs. Its words,
its errors and what it would take on several GPUs stand in [scale.md](scale.md). `msa.distributed.RankError` (also a
`RuntimeError`) names the ranks and the argument at fault, on every rank that lives.
"""


def main():
    text = page()
    if sys.argv[1:] == ["--check"]:
        if PAGE.is_file() and PAGE.read_text() == text:
            return 0
        print(f"{PAGE.name} is stale: run docs/python.py")
        return 1
    PAGE.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
