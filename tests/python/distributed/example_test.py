# SPDX-License-Identifier: MIT
"""examples/context_parallel.py runs on two ranks as torchrun would start them, and draws both."""
import os
import pathlib
import socket
import subprocess
import sys
import xml.etree.ElementTree

import pytest

import msa

pytest.importorskip("torch", reason="ranks exchange tensors of torch")

SCRIPT = pathlib.Path(__file__).resolve().parents[3] / "examples" / "context_parallel.py"


@pytest.mark.seconds(30)
def test_two_ranks(tmp_path):
    file = tmp_path / "ranks.svg"
    with socket.socket() as free:  # a port that nobody has; torchrun itself takes seconds more
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2",
              "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "CUDA_VISIBLE_DEVICES": "",
              "PYTHONPATH": str(pathlib.Path(msa.__file__).parents[1])}
    command = [sys.executable, "-W", "ignore", SCRIPT, "--tokens", "500", "--steps", "14", "--picture", file]
    running = [subprocess.Popen(command, env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)}, text=True,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE) for rank in range(2)]
    try:
        said = [one.communicate(timeout=80) for one in running]
    finally:
        for one in running:
            one.kill()
    assert [one.returncode for one in running] == [0, 0], said
    assert all(f"rank {rank}: 14 tokens more, and every checked row" in out for rank, (out, _) in enumerate(said))
    drawn = file.read_text()
    assert drawn.count("<rect") == 2 * (1 + 4 + 1 + 2), "the prefill with its four waits, the last step with its two"
    xml.etree.ElementTree.fromstring(drawn)
