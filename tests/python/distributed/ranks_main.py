# SPDX-License-Identifier: MIT
"""Groups of real processes over gloo: `python ranks_main.py FILE RANKS...` writes what each check said on each rank.

torch is imported once and the ranks are forked from here, before anybody entered a parallel region; they run with one
thread. Groups of every size run side by side. What breaks a group comes last, on groups of its own.
"""
from __future__ import annotations

import datetime
import json
import os
import pathlib
import sys
import tempfile
import time
import traceback

os.environ.update(OMP_NUM_THREADS="1", GLOO_SOCKET_IFNAME="lo")

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
from torch.distributed.device_mesh import DeviceMesh  # noqa: E402

import msa.nn  # noqa: E402

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from problems import BLOCK, Batch, close  # noqa: E402

from msa.distributed import LAYOUTS, ContextParallel, RankError  # noqa: E402

RAGGED = [333, 17, 0, 256, 70]  # one shorter than a block, one empty, one that four ranks share evenly
DEADLINE = 100.0  # seconds of all checks of a group
TIMEOUT = 2.0    # of the groups that break
PATIENCE = 1.5
LATER = 25.0     # within which every living rank must have its error

checks = {}


def check(*sizes):
    def put(function):
        checks[function.__name__] = (function, sizes)
        return function
    return put


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
        for pieces, dtype in ((1, torch.float32), (2, torch.bfloat16)):
            batch = Batch(RAGGED, dtype=dtype)
            wanted = batch.whole()
            parallel = ContextParallel(dist.group.WORLD, layout, **batch.settings())
            rows = parallel.rows(RAGGED)
            out, lse, ids = parallel.prefill(
                batch.q[rows], batch.k[rows], batch.v[rows], batch.index_q[rows], batch.index_k[rows], RAGGED,
                pieces=pieces, return_lse=True, return_block_ids=True)
            assert torch.equal(ids, wanted.block_ids[rows])
            close(out, wanted.out[rows])
            close(lse, wanted.lse[rows])


@check(2, 3, 4)
def prefill_shorter_than_the_group(rank, ranks):
    batch = Batch([20])
    parallel = ContextParallel(dist.group.WORLD, "interleaved", ranks=ranks, **batch.settings())
    rows = parallel.rows([20])
    assert len(rows) == (20 if rank == 0 else 0) == parallel.local_length(20)
    out = parallel.prefill(*(t[rows] for t in (batch.q, batch.k, batch.v, batch.index_q, batch.index_k)), [20])
    close(out, batch.whole().out[rows])


@check(2, 3, 4)
def decode(rank, ranks):
    for layout, new, page, kept in (("interleaved", [1, 1, 1, 1], 32, {}),
                                    ("interleaved", [4, 1, 0, 2], 16, {"init": 1}),
                                    ("zigzag", [1, 3, 1, 1], 16, {"local": 2}), ("contiguous", [2, 1, 1, 1], 32, {})):
        for dtype in (torch.float32, torch.bfloat16):
            batch = Batch([333, 17, 256, 70], new=new, dtype=dtype, **kept)
            (k, v, index_k), table, positions = batch.cache(layout, rank, ranks, page)
            given = None if layout == "interleaved" else positions
            parallel = ContextParallel(dist.group.WORLD, layout, **batch.settings())
            out, lse, ids = parallel.decode(
                batch.q, k, v, batch.index_q, index_k, table, torch.tensor(batch.lengths, dtype=torch.int32),
                positions=given, queries=None if new == [1] * 4 else new, return_lse=True, return_block_ids=True)
            wanted = batch.whole()
            assert torch.equal(ids, wanted.block_ids)
            close(out, wanted.out)
            close(lse, wanted.lse)
            every = [torch.empty_like(lse) for _ in range(ranks)]
            dist.all_gather(every, lse)
            assert all(torch.equal(other, lse) for other in every), "every rank has the same bits"


@check(2, 3, 4)
def decode_with_ranks_that_hold_nothing(rank, ranks):
    batch = Batch([20], new=[1])
    (k, v, index_k), table, _ = batch.cache("interleaved", rank, ranks)
    parallel = ContextParallel(dist.group.WORLD, "interleaved", **batch.settings())
    out = parallel.decode(batch.q, k, v, batch.index_q, index_k, table, torch.tensor([20], dtype=torch.int32))
    close(out, batch.whole().out)


@check(2, 3)
def a_cache_that_grows(rank, ranks):
    """A prefill deals the blocks, decode goes on from them: each rank appends the tokens that it owns."""
    batch = Batch([150])
    parallel = ContextParallel(dist.group.WORLD, "interleaved", **batch.settings())
    cache = msa.PagedCache.empty(batch.k, pages=8, page_size=BLOCK, heads_kv=2, head_dim=32, value_dim=48, index_dim=16)
    own = cache.add()
    rows = parallel.rows([120])
    cache.append(own, batch.k[rows], batch.v[rows], batch.index_k[rows])
    for length in range(121, 151):
        token = slice(length - 1, length)
        if (length - 1) // BLOCK % ranks == rank:
            cache.append(own, batch.k[token], batch.v[token], batch.index_k[token])
        if length % 10 != 0:
            continue
        assert cache.length(own) == parallel.local_length(length)
        table = cache.batch([own], pages=4)["page_table"]
        out = parallel.decode(batch.q[token], cache.k, cache.v, batch.index_q[token], cache.index_k, table,
                              torch.tensor([length], dtype=torch.int32))
        close(out, batch.whole().out[token])


@check(2)
def a_layer_that_trains_on_both(rank, ranks):
    """Gradients under DistributedDataParallel are those of one process with the whole batch."""
    config = msa.nn.SparseAttentionConfig(width=24, heads=4, heads_kv=2, head_dim=16, index_dim=16, block_size=16, topk=2)
    x = torch.randn(4, 40, 24, generator=torch.Generator().manual_seed(1))

    def train(model, own):
        attended = model(own)
        ((attended.out ** 2).mean() + attended.index_loss).backward()
        return {name.removeprefix("module."): one.grad for name, one in model.named_parameters()}

    torch.manual_seed(0)
    alone, shared = (msa.nn.SparseAttention(config) for _ in range(2))
    shared.load_state_dict(alone.state_dict())
    found = train(torch.nn.parallel.DistributedDataParallel(shared), x[2 * rank:2 * rank + 2])
    for name, gradient in train(alone, x).items():
        close(found[name], gradient)


@check(4)
def heads_and_context_together(rank, ranks):
    mesh = DeviceMesh("cpu", torch.arange(4).view(2, 2), mesh_dim_names=("heads", "context"))
    head = mesh.get_local_rank("heads")
    batch = Batch(RAGGED)
    parallel = ContextParallel(mesh, "zigzag", axis="context", ranks=2, **batch.settings())
    rows, own = parallel.rows(RAGGED), slice(head, head + 1)
    out = parallel.prefill(batch.q[rows, 2 * head:2 * head + 2], batch.k[rows, own], batch.v[rows, own],
                           batch.index_q[rows, own], batch.index_k[rows], RAGGED)
    close(out, batch.whole().out[rows, 2 * head:2 * head + 2])


@check(2, 3, 4)
def the_number_of_collectives(rank, ranks):
    """Agreement aside: index keys, keys and values of each piece; candidates and states."""
    batch = Batch([200])
    for pieces, wanted in ((1, 3), (2, 5)):
        parallel = ContextParallel(dist.group.WORLD, "zigzag", agree=False, **batch.settings())
        sent = counted(parallel)
        rows = parallel.rows([200])
        parallel.prefill(*(t[rows] for t in (batch.q, batch.k, batch.v, batch.index_q, batch.index_k)), [200],
                         pieces=pieces)
        assert sent == ["index_k"] + ["k", "v"] * pieces and len(sent) == wanted
    step = Batch([200], new=[1])
    (k, v, index_k), table, _ = step.cache("interleaved", rank, ranks)
    parallel = ContextParallel(dist.group.WORLD, "interleaved", agree=False, **step.settings())
    sent = counted(parallel)
    parallel.decode(step.q, k, v, step.index_q, index_k, table, torch.tensor([200], dtype=torch.int32))
    assert sent == ["candidates", "states"]


def counted(parallel):
    sent, gather = [], parallel.exchange.gather

    def count(tensor, argument):
        sent.append(argument)
        return gather(tensor, argument)

    parallel.exchange.gather = count
    return sent


# ---- what must be refused, by everybody; the group lives on ----


def prefill_with(parallel, lengths=(200,), dtype=torch.float32, more=0, **keywords):
    batch = Batch(list(lengths), dtype=dtype)
    rows = parallel.rows(batch.lengths)
    q, *rest = (t[rows] for t in (batch.q, batch.k, batch.v, batch.index_q, batch.index_k))
    q = torch.cat((q, q[:more]))
    return parallel.prefill(q, *rest, batch.lengths, **keywords)


@check(2, 3, 4)
def ranks_that_disagree(rank, ranks):
    last = ranks - 1
    settings = Batch([200]).settings()
    world = dist.group.WORLD
    parallel = ContextParallel(world, "zigzag", **settings)
    odd = rank == last
    raises(lambda: prefill_with(parallel, dtype=torch.bfloat16 if odd else torch.float32), "q", ranks=(last,))
    raises(lambda: prefill_with(parallel, lengths=[201] if odd else [200]), "lengths", ranks=(last,))
    raises(lambda: prefill_with(parallel, pieces=2 if odd else 1), "pieces", ranks=(last,))
    other = ContextParallel(world, "contiguous" if odd else "zigzag", **settings)
    raises(lambda: prefill_with(other), "layout", ranks=(last,))
    other = ContextParallel(world, "zigzag", **{**settings, "topk": 5 if odd else 4})
    message = raises(lambda: prefill_with(other), "settings", ranks=(last,))
    assert f"rank {rank} has Settings(block_size=32, topk={5 if odd else 4}" in message
    # One rank decodes while the others prefill.
    step = Batch([200], new=[1])
    (k, v, index_k), table, positions = step.cache("zigzag", rank, ranks)
    one = torch.tensor([200], dtype=torch.int32)
    raises(lambda: parallel.decode(step.q, k, v, step.index_q, index_k, table, one, positions=positions) if odd
           else prefill_with(parallel), "call", ranks=(last,))
    raises(lambda: parallel.decode(step.q, k, v, step.index_q, index_k, table, one - 1 if odd else one,
                                   positions=positions), "seqlens_k", ranks=(last,))
    prefill_with(parallel)


@check(2, 3, 4)
def a_rank_that_refuses_its_part(rank, ranks):
    parallel = ContextParallel(dist.group.WORLD, "zigzag", **Batch([200]).settings())
    wrong = rank == 1
    message = raises(lambda: prefill_with(parallel, more=3 if wrong else 0), "q", ranks=None if wrong else (1,),
                     kind=msa.InvalidArgument if wrong else RankError)
    assert ("rows that this rank has" if wrong else "refused by rank 1") in message
    step = Batch([200], new=[1])
    (k, v, index_k), table, positions = step.cache("zigzag", rank, ranks)
    table = table[:, :0].new_zeros((3, 1)) if wrong else table
    raises(lambda: parallel.decode(step.q, k, v, step.index_q, index_k, table, torch.tensor([200], dtype=torch.int32),
                                   positions=positions), "page_table", ranks=None if wrong else (1,),
           kind=msa.InvalidArgument if wrong else RankError)
    prefill_with(parallel)


@check(2, 3, 4)
def a_group_of_another_size(rank, ranks):
    message = raises(lambda: ContextParallel(dist.group.WORLD, "zigzag", ranks=8), "ranks", kind=msa.InvalidArgument)
    assert f"expected {ranks}, the size of the group, got 8" in message
    raises(lambda: ContextParallel(dist.group.WORLD, "zigzag", **Batch([200]).settings()).decode(
        *[torch.zeros(1, 2, 32)] + [torch.zeros(1, 32, 2, 32)] * 2 + [torch.zeros(1, 2, 16), torch.zeros(1, 32, 1, 16),
          torch.zeros((1, 1), dtype=torch.int32), torch.ones(1, dtype=torch.int32)]), "positions",
        kind=msa.InvalidArgument)


# ---- what breaks a group ----


@check(2, 3, 4)
def a_call_that_fails_on_one_rank(rank, ranks):
    """Behind the agreement: its page table holds nonsense, which is seen when the pages are read."""
    batch = Batch([333], new=[1])
    parallel = ContextParallel(group_of(rank, ranks, 90.0), "interleaved", patience=PATIENCE, **batch.settings())
    (k, v, index_k), table, _ = batch.cache("interleaved", rank, ranks)
    wrong = rank == 1
    if wrong:
        table = table + 1000
    start = time.monotonic()
    for again in (False, True):
        kind = msa.InvalidContent if wrong and not again else RankError
        raises(lambda: parallel.decode(batch.q, k, v, batch.index_q, index_k, table,
                                       torch.tensor([333], dtype=torch.int32)), "page_table", kind=kind,
               ranks=None if kind is msa.InvalidContent else (1,))
    assert time.monotonic() - start < LATER, "long before the group's timeout"


@check(2, 3, 4)
def a_rank_that_hangs(rank, ranks):
    """The others have their error once the group's timeout is over; the one that comes late has it, too."""
    last = ranks - 1
    parallel = ContextParallel(group_of(rank, ranks, TIMEOUT), "zigzag", patience=PATIENCE, **Batch([200]).settings())
    prefill_with(parallel)
    start = time.monotonic()
    if rank == last:
        time.sleep(TIMEOUT + PATIENCE + 2)
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
    batch = Batch([333, 40], new=[1, 1])
    parallel = ContextParallel(group_of(rank, ranks, 90.0), "interleaved", patience=PATIENCE, **batch.settings())
    pools, table, _ = batch.cache("interleaved", rank, ranks)
    before = [pool.clone() for pool in pools]
    lengths = torch.tensor(batch.lengths, dtype=torch.int32)

    def step():
        return parallel.decode(batch.q, pools[0], pools[1], batch.index_q, pools[2], table, lengths)

    step()
    if rank == last:
        gather = parallel.exchange.gather
        parallel.exchange.gather = lambda tensor, argument: (os._exit(7) if argument == "states"
                                                             else gather(tensor, argument))
    start = time.monotonic()
    raises(step, "states", ranks=(last,))
    assert time.monotonic() - start < LATER, "long before the group's timeout"
    assert all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(pools, before))


# ---- running them ----


def run_rank(folder, rank, ranks):
    torch.set_num_threads(1)
    said = {}
    report = folder / f"{ranks}.{rank}.json"
    dist.init_process_group("gloo", init_method=f"file://{folder}/store.{ranks}", rank=rank, world_size=ranks,
                            timeout=datetime.timedelta(seconds=30))
    for name, (function, sizes) in checks.items():
        if ranks not in sizes:
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


def main():
    sizes = [int(size) for size in sys.argv[2:]]
    with tempfile.TemporaryDirectory() as name:
        folder, children = pathlib.Path(name), {}
        for ranks in sizes:
            for rank in range(ranks):
                child = os.fork()
                if child == 0:
                    try:
                        run_rank(folder, rank, ranks)
                    finally:
                        os._exit(0)  # groups that broke are not to be torn down
                children[child] = (rank, ranks)
        end = time.monotonic() + DEADLINE
        while children and time.monotonic() < end:
            child, _ = os.waitpid(-1, os.WNOHANG)
            children.pop(child, None) if child else time.sleep(0.02)
        for child in children:
            os.kill(child, 9)
            os.waitpid(child, 0)
        reports = {file.stem: json.loads(file.read_text()) for file in folder.glob("*.json")}
    pathlib.Path(sys.argv[1]).write_text(json.dumps(reports))


if __name__ == "__main__":
    main()
