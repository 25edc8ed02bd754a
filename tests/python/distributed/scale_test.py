# SPDX-License-Identifier: MIT
"""Predictions: what they must obey whatever the numbers, and the page that holds them."""
from __future__ import annotations

import pathlib
import subprocess
import sys

import pytest

import msa

pytest.importorskip("torch", reason="msa.distributed stands on torch")

from msa.distributed import Links, Measured, Model, estimate  # noqa: E402

FAST = Links(1e30, 0.0)
ONE = Measured(0.7, 0.2)
PAGE = pathlib.Path(__file__).parents[3] / "docs" / "scale.py"


def test_one_gpu_takes_what_was_measured():
    for call in ("prefill", "decode"):
        assert estimate(call, Model(), 1 << 17, 1, Links(1.0, 1.0), ONE).seconds == pytest.approx(0.9)


@pytest.mark.parametrize("gpus", [2, 4, 8])
def test_free_links_leave_the_shares_of_the_work(gpus):
    assert estimate("prefill", Model(), 1 << 17, gpus, FAST, ONE).speedup == pytest.approx(gpus, rel=1e-3)
    contiguous = estimate("prefill", Model(), 1 << 17, gpus, FAST, Measured(1.0), layout="contiguous")
    assert contiguous.seconds == pytest.approx((2 * gpus - 1) / gpus ** 2, rel=1e-2), "the last run of a triangle"
    assert estimate("decode", Model(), 1 << 17, gpus, FAST, ONE).speedup == pytest.approx(gpus)


def test_what_no_rank_is_spared_stays():
    found = estimate("decode", Model(), 1 << 17, 4, FAST, Measured(0.8, 0.0, 0.1))
    assert found.seconds == pytest.approx(0.3) and found.speedup == pytest.approx(3)
    assert estimate("prefill", Model(), 1 << 17, 4, FAST, Measured(0.8, 0.0, 0.1)).seconds == pytest.approx(0.3, rel=1e-3)


def test_bytes_are_those_of_the_tensors():
    model = Model(heads_q=2, heads_kv=1, head_dim=16, value_dim=16, index_heads=1, index_dim=16, topk=4)
    found = estimate("prefill", model, 1000, 4, FAST, ONE, pieces=1)
    assert found.received == pytest.approx(750 * 96) and found.beside == 1000 * 96 and found.shard == 250 * 96
    found = estimate("decode", model, 1000, 4, FAST, ONE, batch=3)
    assert found.received == 3 * (3 * 4 * 8 + 3 * 2 * 20 * 4)


def test_states_of_a_decode_hide_behind_attention_where_links_say_so():
    model, candidates, states = Model(), 8 * 32 * 4 * 16 / 1e9, 4 * 32 * 64 * 132 / 1e9
    for hides, attend, sent in ((False, 0.0, states), (False, 1.0, states), (True, 0.0, states), (True, 1.0, 0.0),
                                (True, 1e-3, states - 5e-4)):
        found = estimate("decode", model, 1 << 17, 2, Links(1e9, 1e-6, hides), Measured(0.8, attend), batch=32)
        assert found.exposed == pytest.approx(2e-6 + candidates + sent)
        assert found.seconds == pytest.approx(0.4 + attend / 2 + found.exposed)
    assert estimate("decode", model, 1 << 17, 1, Links(1e9, 1e-6, True), ONE).seconds == pytest.approx(0.9)



def test_what_does_not_hide_is_exposed():
    model, slow = Model(), Links(1e9, 0.0)
    index = 0.5 * (1 << 20) * 256 / 1e9
    kv = 0.5 * (1 << 20) * 2048 / 1e9
    assert estimate("prefill", model, 1 << 20, 2, slow, ONE).exposed == pytest.approx(index + kv - 0.35, rel=1e-3)
    assert estimate("prefill", model, 1 << 20, 2, slow, Measured(100.0)).exposed == pytest.approx(index)


@pytest.mark.parametrize("call, gpus, argument", [("train", 2, "call"), ("decode", 0, "gpus")])
def test_nonsense_is_named(call, gpus, argument):
    with pytest.raises(msa.InvalidArgument) as caught:
        estimate(call, Model(), 1024, gpus, FAST, ONE)
    assert caught.value.argument == argument


def test_the_page_is_not_stale():
    done = subprocess.run([sys.executable, str(PAGE), "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
