# SPDX-License-Identifier: MIT
"""Groups of real processes: `python ranks_main.py FILE [--nccl] RANKS...` writes what each check said on each rank.

Over gloo on the CPU, or over NCCL with a GPU for each rank. torch is imported once and the ranks are forked from here,
before anybody entered a parallel region or met a GPU; they run with one thread. Groups of every size run side by side.
What breaks a group comes last, on groups of its own.
"""
from __future__ import annotations

import datetime
import json
import os
import pathlib
import socket
import sys
import tempfile
import time
import traceback

os.environ.update(OMP_NUM_THREADS="1", GLOO_SOCKET_IFNAME="lo")
os.environ["TORCH_NCCL_ASYNC_ERROR_HANDLING"] = "0"  # its watchdog would end processes that are to tell of their error

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
from torch.distributed.device_mesh import DeviceMesh  # noqa: E402

import msa.nn  # noqa: E402

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from problems import CPU, GPU, Batch, close  # noqa: E402

from msa.distributed import LAYOUTS, ContextParallel, RankError  # noqa: E402

RAGGED = [333, 17, 0, 256, 70]  # one shorter than a block, one empty, one that four ranks share evenly
SHORT = [150, 17, 0, 70]
PATIENCE = 1.5
LATER = 25.0     # seconds within which every living rank must have its error

form = CPU         # of all batches; of GPUs once main() says so
deadline = 100.0   # seconds of all checks of a group
timeout = 2.0      # of the groups in which a rank hangs
dead_after = 90.0  # of those in which one dies, which engines of CPUs see at once
checks = {}


def check(*sizes):
    def put(function):
        checks[function.__name__] = (function, sizes, "any")
        return function
    return put


def check_on_cpus(*sizes):
    def put(function):
        checks[function.__name__] = (function, sizes, "cpu")
        return function
    return put


def check_on_gpus(*sizes):
    def put(function):
        checks[function.__name__] = (function, sizes, "cuda")
        return function
    return put


def use_gpus():
    global form, deadline, timeout, dead_after
    form, deadline = GPU, 100.0
    timeout = dead_after = 8.0  # nothing but the time that passes tells of either there


def drawn(lengths, **given):
    return Batch(lengths, form=form, **given)


def group_of(rank, ranks, seconds):
    dist.barrier()
    return dist.new_group(list(range(ranks)), timeout=datetime.timedelta(seconds=seconds))


def raises(function, argument, *, ranks=None, kind=RankError):
    """The error that a call ends in, which names the argument, and the ranks where it must."""
    try:
        function()
    except kind as error:
        assert type(error) is kind and error.argument == argument, repr(error)
        assert ranks is None or error.ranks == ranks, (error.ranks, str(error))
        return str(error)
    raise AssertionError("nothing was raised")


# ---- what must be right ----


@check(2, 3, 4)
def prefill(rank, ranks):
    for layout in LAYOUTS:
        for pieces, dtype in ((1, form.dtypes[0]), (2, torch.bfloat16)):
            batch = drawn(RAGGED, dtype=dtype)
            wanted = batch.whole()
            parallel = ContextParallel(dist.group.WORLD, layout, **batch.settings())
            rows = parallel.rows(batch.lengths)
            out, lse, ids = parallel.prefill(*batch.tensors(rows), batch.lengths, pieces=pieces, return_lse=True,
                                             return_block_ids=True)
            assert torch.equal(ids, wanted.block_ids[rows])
            close(out, wanted.out[rows])
            close(lse, wanted.lse[rows])


@check(2, 3, 4)
def prefill_shorter_than_the_group(rank, ranks):
    batch = drawn([20])
    parallel = ContextParallel(dist.group.WORLD, "interleaved", ranks=ranks, **batch.settings())
    rows = parallel.rows(batch.lengths)
    assert len(rows) == (batch.lengths[0] if rank == 0 else 0) == parallel.local_length(batch.lengths[0])
    out = parallel.prefill(*batch.tensors(rows), batch.lengths)
    close(out, batch.whole().out[rows])


def gradients_of_one(batch, arrived, warm_up):
    """What one process makes of a whole batch: out, loss, and f32 gradients of its five tensors."""
    q, k, v, index_q, index_k = batch.tensors()
    starts = batch.integers([sum(batch.lengths[:b]) for b in range(len(batch.lengths) + 1)])
    rest = {"cu_seqlens_q": starts, "seqlens_k": starts[1:] - starts[:-1], "block_size": form.block, "threads": 1,
            "max_seqlen_q": max(batch.lengths), "max_seqlen_k": max(batch.lengths)}
    ids = () if warm_up else (batch.whole().block_ids,)
    forward, backward = ((msa.dense_attention, msa.dense_attention_backward) if warm_up else
                         (msa.sparse_attention, msa.sparse_attention_backward))
    out, lse = forward(q, k, v, *ids, return_lse=True, **rest)
    of_attention = backward(q, k, v, *ids, out, lse, arrived, grad_dtype="f32", **rest)
    rows, heads = index_q.shape[:2]
    weight = torch.full((rows,), 1 / (rows * heads), device=q.device)
    loss = msa.index_loss(q, k, lse, index_q, index_k, *(ids or (None,)), weight, grad_dtype="f32", **rest)
    return out, loss.loss.mean(), (*of_attention, loss.d_index_q, loss.d_index_k)


@check(2, 4)
def train(rank, ranks):
    """A rank's gradients are its rows of one process's, rounded once, and have the same bits every time."""
    for layout, dtype, warm_up in (("zigzag", form.dtypes[0], False), ("contiguous", form.dtypes[0], True),
                                   ("interleaved", torch.bfloat16, False)):
        batch = drawn(SHORT, dtype=dtype)
        arrived = torch.randn(batch.q.shape[0], form.heads_q, form.value_dim,
                              generator=torch.Generator().manual_seed(3)).to(form.device, dtype)
        parallel = ContextParallel(dist.group.WORLD, layout, **batch.settings())
        rows = parallel.rows(batch.lengths)
        bits = []
        for _ in range(2):
            tensors = [tensor.clone().requires_grad_() for tensor in batch.tensors(rows)]
            found = parallel.train(*tensors, batch.lengths, warm_up=warm_up)
            ((found.out * arrived[rows]).sum() + 2 * found.index_loss).backward()
            bits.append([tensor.grad for tensor in tensors])
        assert all(torch.equal(one, other) for one, other in zip(*bits))
        out, loss, gradients = gradients_of_one(batch, arrived, warm_up)
        close(found.out, out[rows])
        assert (found.block_ids is None) == warm_up
        if not warm_up:
            assert torch.equal(found.block_ids, batch.whole().block_ids[rows])
        of_all = found.index_loss.detach()
        dist.all_reduce(of_all)
        torch.testing.assert_close(of_all, loss, rtol=1e-4, atol=1e-5)
        for n, (name, own, whole) in enumerate(zip(("q", "k", "v", "index_q", "index_k"), bits[0], gradients)):
            wanted = whole[rows] * (2 if n > 2 else 1)
            assert own.dtype == dtype and own.shape == wanted.shape
            exact = 2e-5 if dtype == torch.float32 else 2 ** -8
            torch.testing.assert_close(own.float(), wanted, rtol=exact, atol=exact / 4 * float(whole.abs().max()),
                                       msg=lambda text, name=name: f"{layout} {dtype} {name}: {text}")


@check(2)
def train_says_what_it_does_not_take(rank, ranks):
    batch = drawn([70, 5])
    parallel = ContextParallel(dist.group.WORLD, "zigzag", **batch.settings())
    tensors = batch.tensors(parallel.rows(batch.lengths))
    raises(lambda: parallel.train(*tensors, batch.lengths, row_weight=torch.ones(1 if rank == 0 else len(tensors[0]))),
           "row_weight", kind=msa.InvalidArgument if rank == 0 else RankError)
    raises(lambda: parallel.train(*tensors, batch.lengths, warm_up=rank == 0), "warm_up", ranks=(1,))
    found = parallel.train(*(tensor.requires_grad_() for tensor in tensors), batch.lengths)
    found.index_loss.backward()  # and nothing arrives at out
    assert torch.count_nonzero(tensors[1].grad) == 0 and torch.count_nonzero(tensors[4].grad) > 0


@check(2, 3, 4)
def decode(rank, ranks):
    for layout, new, cut, kept in (("interleaved", [1, 1, 1, 1], 1, {}),
                                   ("interleaved", [4, 1, 0, 2], 2, {"init": 1}),
                                   ("zigzag", [1, 3, 1, 1], 2, {"local": 2}), ("contiguous", [2, 1, 1, 1], 1, {})):
        for dtype in form.dtypes:
            batch = drawn([333, 17, 256, 70], new=new, dtype=dtype, **kept)
            (k, v, index_k), table, positions = batch.cache(layout, rank, ranks, form.block // cut)
            given = None if layout == "interleaved" else positions
            parallel = ContextParallel(dist.group.WORLD, layout, **batch.settings())
            out, lse, ids = parallel.decode(
                batch.q, k, v, batch.index_q, index_k, table, batch.integers(batch.lengths), positions=given,
                queries=None if new == [1] * 4 else new, return_lse=True, return_block_ids=True)
            wanted = batch.whole()
            assert torch.equal(ids, wanted.block_ids)
            close(out, wanted.out)
            close(lse, wanted.lse)
            every = [torch.empty_like(lse) for _ in range(ranks)]
            dist.all_gather(every, lse)
            assert all(torch.equal(other, lse) for other in every), "every rank has the same bits"


@check(2, 3, 4)
def decode_with_ranks_that_hold_nothing(rank, ranks):
    batch = drawn([20], new=[1])
    (k, v, index_k), table, _ = batch.cache("interleaved", rank, ranks)
    parallel = ContextParallel(dist.group.WORLD, "interleaved", **batch.settings())
    out = parallel.decode(batch.q, k, v, batch.index_q, index_k, table, batch.integers(batch.lengths))
    close(out, batch.whole().out)


@check(2, 3)
def a_cache_that_grows(rank, ranks):
    """A prefill deals the blocks, decode goes on from them: each rank appends the tokens that it owns."""
    batch = drawn([150])
    total, = batch.lengths
    begin = total - form.block + 2
    parallel = ContextParallel(dist.group.WORLD, "interleaved", **batch.settings())
    cache = msa.PagedCache.empty(batch.k, pages=8, page_size=form.block, heads_kv=form.heads_kv,
                                 head_dim=form.head_dim, value_dim=form.value_dim, index_dim=form.index_dim)
    own = cache.add()
    rows = parallel.rows([begin])
    cache.append(own, batch.k[rows], batch.v[rows], batch.index_k[rows])
    whole = batch.whole().out
    for length in range(begin + 1, total + 1):
        token = slice(length - 1, length)
        if (length - 1) // form.block % ranks == rank:
            cache.append(own, batch.k[token], batch.v[token], batch.index_k[token])
        if length % 10 != 0:
            continue
        assert cache.length(own) == parallel.local_length(length)
        table = cache.batch([own], pages=4)["page_table"]
        out = parallel.decode(batch.q[token], cache.k, cache.v, batch.index_q[token], cache.index_k, table,
                              batch.integers([length]))
        close(out, whole[token])


@check(2)
def a_layer_that_trains_on_both(rank, ranks):
    """Gradients under DistributedDataParallel are those of one process with the whole batch."""
    on_cpus = form.device == "cpu"
    sizes = ({"width": 24, "head_dim": 16, "index_dim": 16, "block_size": 16, "topk": 2} if on_cpus else
             {"width": 96, "head_dim": 64, "index_dim": 64, "block_size": 64, "topk": 4})  # every block: no list may turn
    config = msa.nn.SparseAttentionConfig(heads=4, heads_kv=2, **sizes)
    tokens = 40 if on_cpus else 200
    x = torch.randn(4, tokens, config.width, generator=torch.Generator().manual_seed(1)).to(form.device, form.dtypes[0])

    def train(model, own):
        attended = model(own)
        ((attended.out ** 2).mean() + attended.index_loss).backward()
        return {name.removeprefix("module."): one.grad for name, one in model.named_parameters()}

    torch.manual_seed(0)
    alone, shared = (msa.nn.SparseAttention(config).to(form.device, form.dtypes[0]) for _ in range(2))
    shared.load_state_dict(alone.state_dict())
    found = train(torch.nn.parallel.DistributedDataParallel(shared), x[2 * rank:2 * rank + 2])
    for name, gradient in train(alone, x).items():
        size = gradient.float().norm().clamp(min=1e-20)
        if gradient.dtype == torch.float32:  # of 16 bits each rank rounds its own half, before they are joined
            close(found[name] / size, gradient / size)
        assert (found[name].float() - gradient.float()).norm() < 3e-2 * size, name


@check(4)
def heads_and_context_together(rank, ranks):
    for heads_ranks, context_ranks in ((2, 2), (1, 4)):
        mesh = DeviceMesh(form.device, torch.arange(4).view(heads_ranks, context_ranks),
                          mesh_dim_names=("heads", "context"))
        head, each = mesh.get_local_rank("heads"), form.heads_kv // heads_ranks
        batch = drawn(RAGGED)
        parallel = ContextParallel(mesh, "zigzag", axis="context", ranks=context_ranks, **batch.settings())
        rows, own = parallel.rows(batch.lengths), slice(each * head, each * (head + 1))
        group = form.heads_q // form.heads_kv
        queries = slice(own.start * group, own.stop * group)
        out = parallel.prefill(batch.q[rows, queries], batch.k[rows, own], batch.v[rows, own],
                               batch.index_q[rows, own], batch.index_k[rows], batch.lengths)
        close(out, batch.whole().out[rows, queries])
        step = drawn(RAGGED[:2], new=[1, 1])
        (k, v, index_k), table, _ = step.cache("interleaved", mesh.get_local_rank("context"), context_ranks)
        parallel = ContextParallel(mesh, "interleaved", axis="context", **step.settings())
        out = parallel.decode(step.q[:, queries], k[:, :, own], v[:, :, own], step.index_q[:, own], index_k, table,
                              step.integers(step.lengths))
        close(out, step.whole().out[:, queries])


@check(2, 3, 4)
def the_number_of_collectives(rank, ranks):
    """Agreement aside: index keys, keys and values of each piece; candidates and states."""
    batch = drawn([200])
    for pieces, wanted in ((1, 3), (2, 5)):
        parallel = ContextParallel(dist.group.WORLD, "zigzag", agree=False, **batch.settings())
        sent = counted(parallel)
        parallel.prefill(*batch.tensors(parallel.rows(batch.lengths)), batch.lengths, pieces=pieces)
        assert sent == ["index_k"] + ["k", "v"] * pieces and len(sent) == wanted
    step = drawn([200], new=[1])
    (k, v, index_k), table, _ = step.cache("interleaved", rank, ranks)
    parallel = ContextParallel(dist.group.WORLD, "interleaved", agree=False, **step.settings())
    sent = counted(parallel)
    parallel.decode(step.q, k, v, step.index_q, index_k, table, step.integers(step.lengths))
    assert sent == ["candidates", "states"]


def counted(parallel):
    sent, gather = [], parallel.exchange.gather

    def count(tensor, argument, into=None):
        sent.append(argument)
        return gather(tensor, argument, into)

    parallel.exchange.gather = count
    return sent


class Growing:
    """Caches of requests that grow, dealt round robin; lengths and queries lie where a decoder reads them."""

    LENGTHS = [333, 40, 200]

    def __init__(self, rank, ranks, **given):
        self.whole = drawn(self.LENGTHS, new=[1] * len(self.LENGTHS), **given)
        self.pools, self.table, _ = self.whole.cache("interleaved", rank, ranks)
        self.lengths = self.whole.integers(self.whole.lengths)

    def decoder(self, parallel, **given):
        given = {"page_size": form.block, "heads_q": form.heads_q, "index_heads": form.heads_kv,
                 "value_dim": form.value_dim, **given}
        return parallel.decoder(self.table, self.lengths, **given)

    def run(self, decoder):
        k, v, index_k = self.pools
        return decoder.run(self.whole.q, k, v, self.whole.index_q, index_k, return_lse=True, return_block_ids=True)

    def shorter(self, step):
        """Lengths of another step, that all ranks draw alike; now and then none."""
        lengths = [(length * (step * 37 + 11 * place) // 101) % (length + 1)
                   for place, length in enumerate(self.whole.lengths)]
        self.lengths.copy_(self.whole.integers(lengths))
        return lengths

    def wanted(self, lengths):
        """What one process makes of the first tokens of each."""
        whole, starts = self.whole, [sum(self.whole.lengths[:b]) for b in range(len(lengths))]
        keys = torch.cat([torch.arange(start, start + n) for start, n in zip(starts, lengths)]).to(form.device)
        return msa.msa_attention(whole.q, whole.k[keys], whole.v[keys], whole.index_q, whole.index_k[keys],
                                 cu_seqlens_q=whole.integers(list(range(len(lengths) + 1))), seqlens_k=self.lengths,
                                 cu_seqlens_k=whole.integers([sum(lengths[:b]) for b in range(len(lengths) + 1)]),
                                 max_seqlen_q=1, max_seqlen_k=max(whole.lengths), block_size=form.block,
                                 topk=whole.topk, local_blocks=whole.local, init_blocks=whole.init, threads=1,
                                 return_lse=True, return_block_ids=True)


def alike(found, wanted):
    assert torch.equal(found.block_ids, wanted.block_ids)
    close(found.out, wanted.out)
    close(found.lse, wanted.lse)


@check(2, 3, 4)
def a_decoder_that_is_kept(rank, ranks):
    for kept in ({}, {"init": 1, "local": 2}):
        growing = Growing(rank, ranks, **kept)
        parallel = ContextParallel(dist.group.WORLD, "interleaved", agree=False, **growing.whole.settings())
        decoder = growing.decoder(parallel)
        alike(growing.run(decoder), growing.whole.whole())
        for step in range(1, 8):
            lengths = growing.shorter(step)
            decoder.refresh()
            alike(growing.run(decoder), growing.wanted(lengths))


# ---- what only GPUs can show ----


@check_on_gpus(2, 4)
def graphs_replayed_with_other_lengths(rank, ranks):
    """A step and its layer in one graph, over symmetric memory and over NCCL."""
    for symmetric in (True, False):
        growing = Growing(rank, ranks)
        parallel = ContextParallel(dist.group.WORLD, "interleaved", agree=False, **growing.whole.settings())
        decoder = growing.decoder(parallel, symmetric=symmetric)
        assert decoder.symmetric == symmetric
        graph, found = captured(lambda: (decoder.refresh(), growing.run(decoder))[1])
        for step in range(100):
            lengths = growing.shorter(step)
            graph.replay()
            alike(found, growing.wanted(lengths))


def captured(step):
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    dist.barrier()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        found = step()
    torch.cuda.synchronize()
    dist.barrier()
    return graph, found


@check_on_gpus(2, 4)
def the_same_bits_200_times(rank, ranks):
    batch = drawn([1333, 200])
    parallel = ContextParallel(dist.group.WORLD, "zigzag", agree=False, **batch.settings())
    rows = batch.tensors(parallel.rows(batch.lengths))
    growing = Growing(rank, ranks)
    steps = ContextParallel(dist.group.WORLD, "interleaved", agree=False, **growing.whole.settings())
    decoders = [growing.decoder(steps, symmetric=symmetric) for symmetric in (True, False)]
    keywords = {"return_lse": True, "return_block_ids": True}
    first = [parallel.prefill(*rows, batch.lengths, pieces=2, **keywords), *map(growing.run, decoders)]
    assert all(torch.equal(a, b) for a, b in zip(first[1], first[2])), "both ways to exchange give the same bits"
    for _ in range(200):
        again = [parallel.prefill(*rows, batch.lengths, pieces=2, **keywords), *map(growing.run, decoders)]
        assert all(torch.equal(a, b) for one, other in zip(first, again) for a, b in zip(one, other))


@check_on_gpus(2, 4)
def the_host_waits_for_nothing(rank, ranks):
    """A stream that stands still holds neither a prefill nor a step up."""
    batch = drawn([1333])
    parallel = ContextParallel(dist.group.WORLD, "zigzag", agree=False, **batch.settings())
    rows = batch.tensors(parallel.rows(batch.lengths))
    growing = Growing(rank, ranks)
    steps = ContextParallel(dist.group.WORLD, "interleaved", agree=False, **growing.whole.settings())
    decoder = growing.decoder(steps)

    def call():
        decoder.refresh()
        return growing.run(decoder), parallel.prefill(*rows, batch.lengths, pieces=2)

    wanted = call()
    call()  # memory of everything under way is there from now on
    torch.cuda.synchronize()
    dist.barrier()
    torch.cuda._sleep(2_000_000_000)  # a second of its clock
    start = time.monotonic()
    found = call()
    took = time.monotonic() - start
    torch.cuda.synchronize()
    assert took < 0.5 < time.monotonic() - start, took
    assert torch.equal(found[0].out, wanted[0].out) and torch.equal(found[1], wanted[1])


@check_on_gpus(2, 4)
def symmetric_memory_where_nobody_watches(rank, ranks):
    growing = Growing(rank, ranks)
    for agree in (False, True):
        parallel = ContextParallel(dist.group.WORLD, "interleaved", agree=agree, **growing.whole.settings())
        assert growing.decoder(parallel).symmetric != agree, "GPUs of one host read each other's memory, unless watched"
        assert growing.decoder(parallel, symmetric=True).symmetric
        assert not growing.decoder(parallel, symmetric=False).symmetric


# ---- what must be refused, by everybody; the group lives on ----


def prefill_with(parallel, lengths=(200,), dtype=None, more=0, **keywords):
    batch = drawn(list(lengths), dtype=dtype)
    q, *rest = batch.tensors(parallel.rows(batch.lengths))
    q = torch.cat((q, q[:more]))
    return parallel.prefill(q, *rest, batch.lengths, **keywords)


@check(2, 3, 4)
def ranks_that_disagree(rank, ranks):
    last = ranks - 1
    settings = drawn([200]).settings()
    world = dist.group.WORLD
    parallel = ContextParallel(world, "zigzag", **settings)
    odd = rank == last
    other_dtype = torch.float16
    raises(lambda: prefill_with(parallel, dtype=other_dtype if odd else form.dtypes[0]), "q", ranks=(last,))
    raises(lambda: prefill_with(parallel, lengths=[201] if odd else [200]), "lengths", ranks=(last,))
    raises(lambda: prefill_with(parallel, pieces=2 if odd else 1), "pieces", ranks=(last,))
    other = ContextParallel(world, "contiguous" if odd else "zigzag", **settings)
    raises(lambda: prefill_with(other), "layout", ranks=(last,))
    other = ContextParallel(world, "zigzag", **{**settings, "topk": 5 if odd else 4})
    message = raises(lambda: prefill_with(other), "settings", ranks=(last,))
    assert f"rank {rank} has Settings(block_size={form.block}, topk={5 if odd else 4}" in message
    # One rank decodes while the others prefill.
    step = drawn([200], new=[1])
    (k, v, index_k), table, positions = step.cache("zigzag", rank, ranks)
    one = torch.tensor(step.lengths, dtype=torch.int32)
    raises(lambda: parallel.decode(step.q, k, v, step.index_q, index_k, table, one.to(form.device),
                                   positions=positions) if odd else prefill_with(parallel), "call", ranks=(last,))
    if form is CPU:  # nobody reads lengths that lie on a GPU
        raises(lambda: parallel.decode(step.q, k, v, step.index_q, index_k, table, one - 1 if odd else one,
                                       positions=positions), "seqlens_k", ranks=(last,))
    prefill_with(parallel)


@check(2, 3, 4)
def a_rank_that_refuses_its_part(rank, ranks):
    parallel = ContextParallel(dist.group.WORLD, "zigzag", **drawn([200]).settings())
    wrong = rank == 1
    message = raises(lambda: prefill_with(parallel, more=3 if wrong else 0), "q", ranks=None if wrong else (1,),
                     kind=msa.InvalidArgument if wrong else RankError)
    assert ("rows that this rank has" if wrong else "refused by rank 1") in message
    step = drawn([200], new=[1])
    (k, v, index_k), table, positions = step.cache("zigzag", rank, ranks)
    table = table[:, :0].new_zeros((3, 1)) if wrong else table
    raises(lambda: parallel.decode(step.q, k, v, step.index_q, index_k, table, step.integers(step.lengths),
                                   positions=positions), "page_table", ranks=None if wrong else (1,),
           kind=msa.InvalidArgument if wrong else RankError)
    growing = Growing(rank, ranks)
    steps = ContextParallel(dist.group.WORLD, "interleaved", **growing.whole.settings())
    raises(lambda: growing.decoder(steps, page_size=form.block - 1 if wrong else form.block), "page_size",
           ranks=None if wrong else (1,), kind=msa.InvalidArgument if wrong else RankError)
    raises(lambda: growing.decoder(steps, heads_q=1 if wrong else form.heads_q), "heads", ranks=(1,))
    alike(growing.run(growing.decoder(steps)), growing.whole.whole())
    prefill_with(parallel)


@check(2, 3, 4)
def a_group_of_another_size(rank, ranks):
    message = raises(lambda: ContextParallel(dist.group.WORLD, "zigzag", ranks=8), "ranks", kind=msa.InvalidArgument)
    assert f"expected {ranks}, the size of the group, got 8" in message
    step = drawn([20], new=[1])
    (k, v, index_k), table, _ = step.cache("interleaved", 0, 1)
    parallel = ContextParallel(dist.group.WORLD, "zigzag", **step.settings())
    lengths = step.integers(step.lengths)
    raises(lambda: parallel.decode(step.q, k, v, step.index_q, index_k, table, lengths), "positions",
           kind=msa.InvalidArgument)
    raises(lambda: parallel.decoder(table, lengths, page_size=form.block, heads_q=form.heads_q,
                                    index_heads=form.heads_kv, value_dim=form.value_dim), "positions",
           kind=msa.InvalidArgument)


@check_on_cpus(2)
def symmetric_memory_of_cpus(rank, ranks):
    growing = Growing(rank, ranks)
    parallel = ContextParallel(dist.group.WORLD, "interleaved", **growing.whole.settings())
    message = raises(lambda: growing.decoder(parallel, symmetric=True), "symmetric", kind=msa.Unsupported)
    assert "expected a GPU of one host on every rank" in message


# ---- what breaks a group ----


@check_on_cpus(2, 3, 4)
def a_call_that_fails_on_one_rank(rank, ranks):
    """Behind the agreement: its page table holds nonsense, which is seen when the pages are read. GPUs mark it."""
    batch = drawn([333], new=[1])
    parallel = ContextParallel(group_of(rank, ranks, 90.0), "interleaved", patience=PATIENCE, **batch.settings())
    (k, v, index_k), table, _ = batch.cache("interleaved", rank, ranks)
    wrong = rank == 1
    if wrong:
        table = table + 1000
    start = time.monotonic()
    for again in (False, True):
        kind = msa.InvalidContent if wrong and not again else RankError
        raises(lambda: parallel.decode(batch.q, k, v, batch.index_q, index_k, table, batch.integers(batch.lengths)),
               "page_table", kind=kind, ranks=None if kind is msa.InvalidContent else (1,))
    assert time.monotonic() - start < LATER, "long before the group's timeout"


@check(2, 3, 4)
def a_rank_that_hangs(rank, ranks):
    """The others have their error once the group's timeout is over; the one that comes late has it, too."""
    last = ranks - 1
    parallel = ContextParallel(group_of(rank, ranks, timeout), "zigzag", patience=PATIENCE, **drawn([200]).settings())
    prefill_with(parallel)
    start = time.monotonic()
    if rank == last:
        time.sleep(timeout + PATIENCE + 2)
        raises(lambda: prefill_with(parallel), "agreement")
        return
    message = raises(lambda: prefill_with(parallel), "agreement", ranks=(last,))
    assert f"rank {last} did not answer within {PATIENCE:g} s" in message
    assert time.monotonic() - start < LATER
    raises(lambda: prefill_with(parallel), "agreement", ranks=(last,))  # and at once from now on


@check(2, 3, 4)
def a_rank_that_dies(rank, ranks):
    """In the middle of a decode; the caches of the living hold what they held."""
    last = ranks - 1
    batch = drawn([333, 40], new=[1, 1])
    parallel = ContextParallel(group_of(rank, ranks, dead_after), "interleaved", patience=PATIENCE,
                               **batch.settings())
    pools, table, _ = batch.cache("interleaved", rank, ranks)
    before = [pool.clone() for pool in pools]
    lengths = batch.integers(batch.lengths)

    def step():
        return parallel.decode(batch.q, pools[0], pools[1], batch.index_q, pools[2], table, lengths)

    step()
    if rank == last:
        gather = parallel.exchange.gather
        parallel.exchange.gather = lambda tensor, argument, into=None: (
            os._exit(7) if argument == "states" else gather(tensor, argument, into))
    start = time.monotonic()
    raises(step, "states", ranks=(last,))
    assert time.monotonic() - start < LATER
    assert all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(pools, before))


# ---- running them ----


def run_rank(folder, meeting, rank, ranks):
    torch.set_num_threads(1)
    said = {}
    report = folder / f"{ranks}.{rank}.json"
    if form.device == "cuda":
        torch.cuda.set_device(rank)
    dist.init_process_group("gloo" if form is CPU else "nccl", init_method=meeting, rank=rank, world_size=ranks,
                            timeout=datetime.timedelta(seconds=30))
    for name, (function, sizes, device) in checks.items():
        if ranks not in sizes or device not in ("any", form.device):
            continue
        start = time.process_time()
        try:
            if name == "a_rank_that_dies" and rank == ranks - 1:
                said[name] = ["died", 0.0]
                report.write_text(json.dumps(said))
            function(rank, ranks)
            said[name] = ["ok", time.process_time() - start]
        except BaseException:  # noqa: B902: whatever it is belongs into the report
            said[name] = [traceback.format_exc(), 0.0]
        report.write_text(json.dumps(said))


# A file for CPUs; symmetric memory asks its store for more than files can.
def meeting_of(folder, ranks):
    if form is CPU:
        return f"file://{folder}/store.{ranks}"
    with socket.socket() as free:  # a port that nobody has
        free.bind(("127.0.0.1", 0))
        return f"tcp://127.0.0.1:{free.getsockname()[1]}"


def main():
    file, *words = sys.argv[1:]
    if "--nccl" in words:
        words.remove("--nccl")
        use_gpus()
    with tempfile.TemporaryDirectory() as name:
        folder, children = pathlib.Path(name), {}
        for ranks in map(int, words):
            meeting = meeting_of(folder, ranks)
            for rank in range(ranks):
                child = os.fork()
                if child == 0:
                    try:
                        run_rank(folder, meeting, rank, ranks)
                    finally:
                        os._exit(0)  # groups that broke are not to be torn down
                children[child] = (rank, ranks)
        end = time.monotonic() + deadline
        while children and time.monotonic() < end:
            child, _ = os.waitpid(-1, os.WNOHANG)
            children.pop(child, None) if child else time.sleep(0.02)
        for child in children:
            os.kill(child, 9)
            os.waitpid(child, 0)
        reports = {file.stem: json.loads(file.read_text()) for file in folder.glob("*.json")}
    pathlib.Path(file).write_text(json.dumps(reports))


if __name__ == "__main__":
    main()
