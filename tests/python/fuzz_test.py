# SPDX-License-Identifier: MIT
"""Calls drawn at random, legal and not: each is refused by name with untouched outputs, or right by the oracle."""
from __future__ import annotations

import os

import arrays
import numpy as np
import oracle
import pytest

import msa

CASES = int(os.environ.get("MSA_FUZZ_CASES", "400"))


def draw(rng):
    """A batch and settings; about a third of the cases break a rule."""
    lens = [(int(rng.integers(0, 5)), int(rng.integers(0, 150))) for _ in range(rng.integers(0, 4))]
    heads_kv = int(rng.integers(1, 3))
    case = {"lens": lens, "heads_kv": heads_kv, "heads_q": heads_kv * int(rng.integers(1, 4)),
            "dim": int(rng.choice([16, 32, 48, 17])), "block": int(rng.choice([16, 32, 128, 24])),
            "topk": int(rng.integers(1, 6)), "local": int(rng.integers(0, 3)), "init": int(rng.integers(0, 3)),
            "causal": bool(rng.integers(0, 2)), "kind": str(rng.choice(["numpy", "torch", "words", "torch-bf16"])),
            "paged": bool(rng.integers(0, 2)), "strided": bool(rng.integers(0, 2))}
    return case


FAULTS = ["none"] * 12 + ["seqlens", "starts", "page", "rank", "dtype", "ids", "heads", "rows"]


def keys_of(rng, xp, seen, case):
    """Keys as the case lays them out, and the keywords that say so."""
    if not case["paged"]:
        return {name: xp.floats(data) for name, data in seen.items()}, {}
    size, lens = 16, case["lens"]
    counts = [-(-k // size) for _, k in lens]
    order = rng.permutation(sum(counts) + 2)
    table = np.full((len(lens), max([*counts, 1])), 10 ** 6, np.int32)
    pages = {name: np.full((len(order), size, *data.shape[1:]), np.nan, np.float32) for name, data in seen.items()}
    at = first = 0
    for request, (_, count) in enumerate(lens):
        for i in range(counts[request]):
            page, begin, end = int(order[at]), i * size, min((i + 1) * size, count)
            table[request, i] = page
            for name, data in seen.items():
                pages[name][page, :end - begin] = data[first + begin:first + end]
            at += 1
        first += count
    return {name: xp.floats(data) for name, data in pages.items()}, {"page_table": xp.integers(table)}


def spoil(rng, fault, inputs, keywords, xp):
    """Breaks one rule; returns the arguments one of which the error must name."""
    def change(name, index, value):
        data = np.array(xp.read(keywords[name]))
        data.reshape(-1)[index] = value
        keywords[name] = xp.integers(data)
        return {name}

    if fault == "seqlens" and len(xp.read(keywords["seqlens_k"])):
        return change("seqlens_k", 0, int(rng.choice([-1, 10 ** 9])))
    if fault == "starts":
        return change("cu_seqlens_q", -1, 10 ** 6)
    if fault == "page" and "page_table" in keywords and len(xp.read(keywords["seqlens_k"])) \
            and xp.read(keywords["seqlens_k"])[0] > 0:
        return change("page_table", 0, int(rng.choice([-1, 10 ** 6])))
    if fault == "rank":
        inputs["q"] = inputs["q"][..., 0]
        return {"q"}
    if fault == "dtype":
        inputs["k"] = xp.integers(np.zeros(tuple(inputs["k"].shape)))
        return {"k"}
    if fault == "heads":
        inputs["v"] = inputs["v"][..., :0, :]
        return {"v", "heads_kv", "value_dim"}
    if fault == "rows" and inputs["index_q"].shape[0]:
        inputs["index_q"] = inputs["index_q"][1:]
        return {"index_q"}
    return set()


@pytest.mark.seconds(60)
def test_reject_or_correct():
    rng = np.random.default_rng(20261126)
    made = {kind: arrays.make(kind) for kind in ("numpy", "torch", "words", "torch-bf16")}
    right = refused = 0
    for number in range(CASES):
        case, fault = draw(rng), str(rng.choice(FAULTS))
        try:
            outcome = one(rng, made[case["kind"]], case, fault)
        except AssertionError as error:
            raise AssertionError(f"case {number}: {case}, fault {fault}: {error}") from error
        right += outcome
        refused += not outcome
    assert right > CASES // 4 and refused > CASES // 10


def one(rng, xp, case, fault):
    lens, block, topk = case["lens"], case["block"], case["topk"]
    rows, count = sum(q for q, _ in lens), sum(k for _, k in lens)
    seen = {"k": rng.standard_normal((count, case["heads_kv"], case["dim"])),
            "v": rng.standard_normal((count, case["heads_kv"], case["dim"])),
            "index_k": rng.integers(-2, 3, (count, 1, 16)).astype(np.float32)}
    queries = {"q": rng.standard_normal((rows, case["heads_q"], case["dim"])),
               "index_q": rng.integers(-2, 3, (rows, case["heads_kv"], 16)).astype(np.float32)}
    seen = {name: xp.read(xp.floats(data)) for name, data in seen.items()}
    queries = {name: xp.read(xp.floats(data)) for name, data in queries.items()}
    inputs, keywords = keys_of(rng, xp, seen, case)
    for name, data in queries.items():
        if case["strided"]:  # heads before tokens, without a copy
            turned = xp.floats(np.ascontiguousarray(data.transpose(1, 0, 2)))
            inputs[name] = turned.permute(1, 0, 2) if "torch" in xp.name else turned.transpose(1, 0, 2)
        else:
            inputs[name] = xp.floats(data)
    keywords |= {"cu_seqlens_q": xp.integers(np.cumsum([0, *(q for q, _ in lens)])),
                 "seqlens_k": xp.integers(np.array([k for _, k in lens], np.int32)), "block_size": block, "topk": topk,
                 "local_blocks": case["local"], "init_blocks": case["init"], "causal": case["causal"]}
    if xp.name == "words":
        keywords["dtype"] = "bf16"
    named = spoil(rng, fault, inputs, keywords, xp)
    illegal = case["dim"] == 17 or block == 24 or case["local"] + case["init"] > topk
    out = xp.floats(np.full((rows, case["heads_q"], case["dim"]), 7.0))
    ids = xp.integers(np.full((rows, case["heads_kv"], topk), 7))
    try:
        found = msa.msa_attention(inputs["q"], inputs["k"], inputs["v"], inputs["index_q"], inputs["index_k"], out=out,
                                  block_ids=ids, return_lse=True, **keywords)
    except msa.Error as error:
        assert named or illegal, f"refused without a reason: {error}"
        assert np.all(xp.read(out) == 7) and np.all(xp.read(ids) == 7), "a refused call wrote"
        if not illegal:
            assert error.argument in named, f"{error.argument} is at fault, {sorted(named)} were spoilt: {error}"
        return False
    assert not named and not illegal, f"accepted, though {sorted(named)} were spoilt"
    requests = oracle.requests_of(lens)
    blocks = max([-(-k // block) for _, k in lens] + [1])
    scores = oracle.block_scores(queries["index_q"], seen["index_k"], requests, block, case["causal"], blocks)
    want_ids, _ = oracle.select(scores, requests, block, topk, case["local"], case["init"], case["causal"])
    assert np.array_equal(xp.read(found.block_ids), want_ids), "other blocks"
    want, lse = oracle.attention(queries["q"], seen["k"], seen["v"], requests, block, case["causal"], ids=want_ids)
    got = xp.read(found.out).astype(np.float64)
    assert np.allclose(got, want, rtol=xp.tolerance, atol=xp.tolerance), f"off by {np.abs(got - want).max()}"
    assert np.allclose(xp.read(found.lse), lse, rtol=2e-5, atol=2e-5), "another lse"
    return True
