#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Writes docs/api.md, the reference of the operations, from the table of fields that the library holds.

usage: make_api.py LIBMSA_SO [--check]     --check: change nothing, exit 1 when docs/api.md is out of date

Tensors, roles, dtypes and shapes come out of the C interface, what a backend serves out of tests/support/*.txt;
the words below are written by hand. An operation or a tensor without words is an error.
"""
import ctypes
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs/api.md"
BACKENDS = ["cpu", "cuda", "reference"]  # support tables
INPUT, OPTIONAL_INPUT, OUTPUT, OPTIONAL_OUTPUT = range(4)

INTRO = """\
# The operations

Written by `docs/make_api.py` from the library's own table of fields; do not edit. Letters and rules are those of [contract.md](contract.md).
The same names hold in C++ (`{Op}Args` in [attention.h](../include/msa/attention.h), `Operands` in [operands.h](../include/msa/operands.h), with the tensors of the batch inside `batch`),
in C (`msa_args` in [c.h](../include/msa/c.h)) and as keywords in Python.

- **role**: *in* and *out* must be given; *out, if `x`* must be given where the problem's flag `x` is set, and must not elsewhere. `problem_of` and the one-call forms set a flag where its tensor is given.
- **dtype**: a type, or the format of the problem that rules it: `q` is `attention.q`; `kv` is `attention.kv`, that of q, e4m3 or e2m1; `index_q` is `index.q`; `index_k` is `index.k`, that of index_q, e4m3 or e2m1; `out` is `outputs.dtype`, the type of q or f32, beside queries in e4m3 bf16, f16 or f32; `kv_scale` and `index_k_scale` are f32, of e2m1 e4m3.
- **strides**: *innermost 1* needs a dense last dimension; *any* takes every non-negative stride, zero (broadcast) included in inputs. Elements of an output never overlap each other, another output or an input.
- **shape**: batches are flattened, `[T, H, D]` with `cu_seqlens_q`, never `[B, T, H, D]`. Where a paged shape stands beside it, keys may lie in pages of `bounds.page_size` tokens, found by `page_table`.
- **scales**: `k_scale` and `v_scale` are given where k and v are e4m3 and scaled, and must not be elsewhere: one for all `[1]`, for each head `[Hkv]`, for each page and head `[P, Hkv]`, or for each token and head, `[N, Hkv]` of ragged keys and `[P, S, Hkv]` of pages. Both are shared the same way; `v_scale` is needed where `v` is. `problem_of` reads the format off `k` and the rank of `k_scale` (in rank 1 an extent of 1 is one for all). Of e2m1 they are e4m3, one for every 16 elements: `[N, Hkv, D / 16]`, `[P, S, Hkv, D / 16]`, of v `Dv / 16`; `k_global_scale` and `v_global_scale` make the format `nvfp4/tensor`, and `Settings::kv_rounded` makes it `q8kv4`.
- **scales of index keys**: `index_k_scale` is given where index_k is e4m3 and scaled or e2m1, and must not be elsewhere; shaped as `k_scale` is, with `Hik` for `Hkv` and `Di` for `D`. `index_k_global_scale` makes the format `nvfp4/tensor`, and `Settings::index_k_rounded` makes it `q8kv4`.
- **four bits**: extents and strides count elements, two of which lie in a byte, the even one in its low half; innermost extents are multiples of 16, all other strides are even.
- **filters**: `index_k8` and `index_k8_bounds`, both or none. `F` counts pages, of ragged keys groups of 16 rows of the pool (`ceil(N / 16)`); the three numbers are scale, error and norm ([contract.md](contract.md)). `Settings::filter_rotated` makes the format `i8/page/rotated`, and `Settings::precision` `Fast` lets codes decide alone.
- **serves**: what a backend promises, a line a pattern, in the words of the [case language](case-language.md) (`group` is query heads over KV heads); from `tests/support/`, which the tests hold it to. The reference backend serves all legal problems, where `options.backend` names it. Attention and scoring on CUDA take starts and strides that are multiples of 16 bytes.
"""

BATCH = """\
## The batch

All int32, on the device of the other tensors, any strides. Operations without keys take no `cu_seqlens_k` and no `page_table`; merges take none of these.

| tensor | shape | left out |
|---|---|---|
"""

# What happens without it.
LEFT_OUT = {
    "cu_seqlens_q": "one request owns all rows",
    "seqlens_k": "ragged keys of one request: all rows of the keys",
    "q_offsets": "`key_offset + seqlen_k - seqlen_q`: the last query stands on the last key",
    "key_offsets": "0: the keys are the whole sequence. Else a shard's first key, a multiple of the block size",
    "total_seqlens_k": "shards: long enough for every query when causal, `key_offset + seqlen_k` otherwise",
    "cu_seqlens_k": "ragged keys lie one request after the other: the prefix sums of `seqlens_k`",
    "page_table": "never with paged keys; never given with ragged ones",
}

WORDS = {
    "dense_attention": """\
Softmax attention over all visible keys. `block_max` writes the unscaled maximum score of each query head and block, beside the output or instead of it: with `outputs.out` off, `v` may be left out and `lse` is not written.
Settings that count: `causal`, `softmax_scale`; `block_size` for `block_max` alone.""",
    "block_scores": """\
The best index score among the visible keys of each block, unscaled, `-inf` where nothing is visible or the score is NaN. The whole matrix is written: for long contexts use `select_blocks`, which never holds it.
Settings that count: `causal`, `block_size`.""",
    "select_topk": """\
The k best visible blocks by given scores, ties to the lower id, forced blocks first. Visibility comes from the lengths, never from a score.
Settings that count: `causal`, `block_size`, `topk`, `local_blocks`, `init_blocks`.""",
    "select_blocks": """\
`block_scores`, then `select_topk`, in one pass that never holds the scores; the same ids, bit for bit. `chosen_scores` are what `merge_selections` needs: `+inf` for forced blocks, `-inf` behind the last id.
With `index_k8` and its bounds, a filter, the result is the same and most of `index_k` is not read; `candidates` tells how many blocks were, and is written where it is given.
Settings that count: `causal`, `block_size`, `topk`, `local_blocks`, `init_blocks`.""",
    "sparse_attention": """\
Softmax attention over the visible keys of the listed blocks; one list for all query heads of a KV head. Lists may have any order and end at the first `-1`; a block that is not visible, or that another shard holds, adds nothing.
Settings that count: `causal`, `softmax_scale`, `block_size`.""",
    "msa_attention": """\
`select_blocks`, then `sparse_attention` over what it chose. Index heads are KV heads. No flag plans `block_ids`: it is written where it is given.
Settings that count: all of them.""",
    "merge_states": """\
Joins outputs and lse of disjoint key sets, in the order given. A part whose lse is `-inf` adds nothing, whatever its output holds. Parts are a list of tensors, or one tensor with the parts as its first dimension; `out` and `lse` may be the first part itself.
The number of parts is planned exactly (`bounds.parts`, 1 to 64).""",
    "merge_selections": """\
Joins the candidates of shards into the selection of the whole: by score, ties to the lower global id. Parts are a list of tensors of any width up to 256, or one tensor with the parts as its first dimension.
Settings that count: `topk`, unless `block_ids` tells it.""",
    "invert_selection": """\
For each KV head, which query rows hold each block, ascending, and in which slot of their list: the CSR form that walks keys outermost. Rows of the result are the blocks of request 0, then those of request 1, and so on; entries of `row_ptr` behind the last block repeat the total, and `q_indices` and `q_slots` hold `-1` behind it.
Settings that count: `block_size`.""",
    "quantize_kv": """\
Stores keys and values of new tokens in the format of a cache. Without a batch row `i` goes to row `i`, and N is T. With a page table request `b`'s rows go to its positions `seqlens_k[b] - seqlen_q` to `seqlens_k[b] - 1`, in ascending order, so that of two rows in one place the last one stays; nothing else of the caches is touched, and rows of padding go nowhere.
The rows are f32, f16 or bf16. [numerics.md](numerics.md) says how each format rounds. Settings that count: `kv_rounded`.""",
    "quantize_index": """\
Makes the filter that `select_blocks` and `msa_attention` take beside index keys: codes of 8 bits and bounds that are true. Pages, of ragged keys groups of 16 rows of the pool, that hold a position from `q_offsets` on (0 where they are left out) are made anew, of all keys of the batch that lie in them; nothing else is touched. A batch that leaves out requests of a ragged pool leaves out their keys where a group holds keys of both.
The keys are f32, f16 or bf16. [numerics.md](numerics.md) says what is written, bit for bit.""",
    "sparse_attention_backward": """\
Gradients of `sparse_attention`. `out` and `lse` are what the forward pass wrote, over all keys that a row attends to: with sharded keys, merged. `dout` and `dlse` are the gradients that arrive there; `dlse` left out is 0. Each of `dq`, `dk` and `dv` is written where it is given, zeros where nothing arrives, in the storage of q or in f32 (`gradients.dtype`, `"gradient"` below).
Keys are ragged and stored as queries are. Settings that count: `block_size`, `causal`, `softmax_scale`, `accumulate`.""",
    "dense_attention_backward": """\
Gradients of `dense_attention`, as those of `sparse_attention` with every block listed. Settings that count: `block_size`, by which sums are cut, `causal`, `softmax_scale`, `accumulate`.""",
    "index_loss": """\
How far the index branch is from attention, and the gradients that bring it nearer: `KL(teacher || student)` of each row and index head over the visible keys of the listed blocks, or of all visible keys where `block_ids` is left out (`topk` is 0 then). The teacher is the mean of attention's weights over the query heads of KV head `r`, from `lse`, and is held constant; the student is the softmax of `index_scale` times the index scores of index head `r`.
`loss` is of each row, without weights; `d_index_q` and `d_index_k` are the gradients of the sum of `row_weight` (1 where it is left out) times `loss`, in the storage of index_q or in f32. Each output is written where it is given. There are no shards. Settings that count: `block_size`, `causal`, `softmax_scale`, `index_scale`, `accumulate`.""",
}


class MsaField(ctypes.Structure):
    _fields_ = [("name", ctypes.c_char_p), ("offset", ctypes.c_size_t), ("role", ctypes.c_int32),
                ("parts", ctypes.c_int32), ("element", ctypes.c_char_p), ("shape", ctypes.c_char_p),
                ("flag", ctypes.c_size_t)]


def read_tables(path):
    """[(name of the operation, its fields)]"""
    lib = ctypes.CDLL(str(pathlib.Path(path).resolve()))
    lib.msa_op_name.restype = ctypes.c_char_p
    lib.msa_fields.restype = ctypes.c_size_t
    lib.msa_fields.argtypes = [ctypes.c_int32, ctypes.POINTER(ctypes.POINTER(MsaField))]
    tables = []
    while (name := lib.msa_op_name(len(tables))) is not None:
        fields = ctypes.POINTER(MsaField)()
        count = lib.msa_fields(len(tables), ctypes.byref(fields))
        tables.append((name.decode(), fields[:count]))
    return tables


FILTER = (b"filter", b"filter_bounds")


def is_batch(field):
    return (field.role == OPTIONAL_INPUT and not field.flag and field.element == b"i32" and
            field.name != b"block_ids")


def role(field, fields):
    if field.role == INPUT:
        return "in"
    if field.role == OUTPUT:
        return "out"
    if field.element == b"kv_scale" and field.role == OPTIONAL_OUTPUT:
        return "out, where the scales are worked out"
    if field.element == b"kv_scale" and any(f.name == b"k_scale_cache" for f in fields):
        return "in, where the format has a scale of all, heads or pages"
    if field.element in (b"kv_scale", b"index_k_scale"):
        return "in, where the format has a scale"
    if field.element in (b"kv_global_scale", b"index_k_global_scale"):
        return "in, of `nvfp4/tensor`"
    if field.element in FILTER:
        return "in, where there is a filter"
    if field.name in (b"dlse", b"row_weight"):
        return "in, optional"
    if field.name == b"block_ids" and field.role == OPTIONAL_INPUT:
        return "in, optional"
    if not field.flag:
        return "out, optional"
    planned = next(f.name.decode() for f in fields if f.flag == field.flag and f.role == OPTIONAL_OUTPUT)
    return f"in, needed where `{planned}` is" if field.role == OPTIONAL_INPUT else f"out, if `outputs.{planned}`"


def shapes(field):
    groups = "Dv / 16" if field.name.startswith(b"v") else "D / 16"
    if field.element == b"kv_scale" and field.role == OPTIONAL_OUTPUT:
        return f"`[T, Hkv]` or `[P, S, Hkv]`, of four bits `[T, Hkv, {groups}]` or `[P, S, Hkv, {groups}]`"
    if field.element == b"kv_scale":
        return f"`[1]`, `[Hkv]`, `[P, Hkv]`, `[N, Hkv]` or `[P, S, Hkv]`, of four bits `[N, Hkv, {groups}]` or `[P, S, Hkv, {groups}]`"
    if field.element == b"index_k_scale":
        return "`[1]`, `[Hik]`, `[P, Hik]`, `[N, Hik]` or `[P, S, Hik]`, of four bits `[N, Hik, Di / 16]` or `[P, S, Hik, Di / 16]`"
    ragged = field.shape.decode()
    parts = "parts of " if field.parts else ""
    paged = ragged.replace("[N, ", "[P, S, ")
    return f"{parts}`{ragged}`" + (f" or `{paged}`" if paged != ragged else "")


def field_line(field, fields):
    element = field.element.decode()
    anyhow = ("f32", "i32", "kv_scale", "kv_global_scale", "index_k_scale", "index_k_global_scale", "filter_bounds")
    strides = "any" if element in anyhow else "innermost 1"
    dtype = {"f32": "f32", "i32": "i32", "kv_global_scale": "f32", "index_k_global_scale": "f32", "filter": "i8",
             "filter_bounds": "f32"}.get(element, f"`{element}`")
    return f"| `{field.name.decode()}` | {role(field, fields)} | {dtype} | {shapes(field)} | {strides} |"


def case_name(op):
    """An operation's name in the case language."""
    return {"dense_attention": "dense", "block_scores": "scores", "select_topk": "topk", "select_blocks": "select",
            "sparse_attention": "sparse", "msa_attention": "msa", "invert_selection": "invert",
            "quantize_kv": "quantize", "sparse_attention_backward": "sparse_backward",
            "dense_attention_backward": "dense_backward"}.get(op, op)


def promises(backend, op):
    """The patterns of a support table that speak of an operation, without the operation."""
    found = []
    for line in (ROOT / f"tests/support/{backend}.txt").read_text().splitlines():
        words = line.split("#")[0].split()
        if words and case_name(op) in words[0].removeprefix("op=").split("|"):
            found.append(" ".join(words[1:]))
    return found


def serves(op):
    lines = []
    for backend in BACKENDS:
        patterns = promises(backend, op)
        if patterns == [""]:
            lines.append(f"- {backend}: everything legal")
        else:
            lines += [f"- {backend}: `{p}`" for p in patterns] or [f"- {backend}: nothing"]
    return "\n".join(lines)


def section(op, fields):
    own = [f for f in fields if not is_batch(f)]
    batch = [f"`{f.name.decode()}`" for f in fields if is_batch(f)]
    text = f"## {op}\n\n{WORDS[op]}\n\n| tensor | role | dtype | shape | strides |\n|---|---|---|---|---|\n"
    text += "\n".join(field_line(f, own) for f in own) + "\n\n"
    text += f"Batch: {', '.join(batch) if batch else 'none'}.\n\nServes:\n\n{serves(op)}\n"
    return text


def batch_section(tables):
    fields = {f.name.decode(): f for _, fields in tables for f in fields if is_batch(f)}
    lines = [f"| `{name}` | `{f.shape.decode()}` | {LEFT_OUT[name]} |" for name, f in fields.items()]
    return BATCH + "\n".join(lines) + "\n"


def page(tables):
    contents = "Operations: " + ", ".join(f"[{op}](#{op})" for op, _ in tables) + ".\n"
    names = {op for op, _ in tables}
    if names != set(WORDS):
        sys.exit(f"make_api.py: words and operations differ: {sorted(names ^ set(WORDS))}")
    return "\n".join([INTRO, contents, batch_section(tables), *[section(op, fields) for op, fields in tables]])


def main():
    words = [w for w in sys.argv[1:] if w != "--check"]
    if len(words) != 1 or re.match("-", words[0]):
        sys.exit(__doc__)
    text = page(read_tables(words[0]))
    if "--check" not in sys.argv[1:]:
        PAGE.write_text(text)
    elif not PAGE.is_file() or PAGE.read_text() != text:
        sys.exit("docs/api.md is out of date: run docs/make_api.py LIBMSA_SO")


if __name__ == "__main__":
    main()
