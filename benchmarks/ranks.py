# SPDX-License-Identifier: MIT
"""Processes for benchmarks of several GPUs: one for each, how they time what all do together, and what one does alone."""
import datetime
import os
import socket
import subprocess
import sys
import time

import torch
import torch.distributed as dist

from hopper import elapsed


class Ranks:
    """This process's place among them. host: a group of CPUs, on which others wait while one GPU works alone."""

    def __init__(self):
        self.rank, self.count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        self.device = torch.device("cuda", self.rank)
        torch.cuda.set_device(self.device)
        dist.init_process_group("nccl", timeout=datetime.timedelta(seconds=120))
        self.host = dist.new_group(backend="gloo", timeout=datetime.timedelta(seconds=300))
        self.alone = [dist.new_group([rank]) for rank in range(self.count)][self.rank]
        self.signal = torch.zeros(1, device=self.device)

    def meet(self):
        """Every stream goes on from here at about the same time."""
        dist.all_reduce(self.signal)

    def on_first(self, function):
        """What function() gives on rank 0, for all; the other GPUs are idle meanwhile."""
        torch.cuda.synchronize()
        dist.barrier(group=self.host)
        told = [function() if self.rank == 0 else None]
        dist.broadcast_object_list(told, src=0, group=self.host)
        return told[0]

    def all_of(self, number):
        told = [None] * self.count
        dist.all_gather_object(told, number, group=self.host)
        return told

    def seconds(self, call, runs, calls=1):
        """Of a call, the slowest rank's, run by run; a run is some calls, handed over together."""
        call()
        times = []
        for _ in range(runs):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            self.meet()
            begin.record()
            for _ in range(calls):
                call()
            end.record()
            torch.cuda.synchronize()
            times.append(1e-3 * begin.elapsed_time(end) / calls)
        return [max(of_run) for of_run in zip(*self.all_of(times))]

    def share(self, tensor, shape, dtype):
        """Rank 0's tensor, on every rank."""
        here = tensor if self.rank == 0 else torch.empty(shape, dtype=dtype, device=self.device)
        dist.broadcast(here, 0)
        return here


def alone_seconds(call, runs):
    call()
    return elapsed(call, runs)


def captured(step):
    """A graph of step(), and what that returned."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        found = step()
    torch.cuda.synchronize()
    return graph, found


def start(gpus):
    """A process for each GPU; all end where one fails."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(gpus),
              "GLOO_SOCKET_IFNAME": "lo"}
    running = [subprocess.Popen([sys.executable, *sys.argv], env={**common, "RANK": str(rank)}) for rank in range(gpus)]
    try:
        while any(one.poll() is None for one in running) and not any(one.poll() for one in running):
            time.sleep(0.05)
    finally:
        for one in running:
            if one.poll() is None:
                one.kill()
    return max(one.wait() != 0 for one in running)
