# SPDX-License-Identifier: MIT
"""The 8-bit filter of index keys: codes and bounds made with numpy, the selection that of the keys, bit for bit."""
from __future__ import annotations

import numpy as np
import pytest

import msa

HI, DI, BLOCK, PAGE = 2, 64, 32, 32
LENS = [(5, 900), (1, 333), (40, 480)]


def upwards(x):
    """The next f32 at or above numbers of f64, and a little more."""
    return np.nextafter(np.asarray(x * (1 + 1e-12), np.float32), np.float32(np.inf))


def quantize(pages):
    """Codes and bounds of keys [pages, tokens, Hik, Di]."""
    amax = np.abs(pages).max(axis=(1, 3))
    scale = (amax / np.float32(127)).astype(np.float32)
    safe = np.where(scale > 0, scale, 1)[:, None, :, None]
    codes = np.where(scale[:, None, :, None] > 0, np.clip(np.rint(pages / safe), -127, 127), 0)
    values = codes.astype(np.float64) * scale.astype(np.float64)[:, None, :, None]
    error = np.sqrt(((pages.astype(np.float64) - values)**2).sum(3)).max(1)
    norm = np.sqrt((values**2).sum(3)).max(1)
    return codes.astype(np.int8), np.stack([scale, upwards(error), upwards(norm)], 2)


def make(paged):
    rng = np.random.default_rng(3)
    keys = sum(n for _, n in LENS)
    given = {"index_q": rng.standard_normal((sum(n for n, _ in LENS), HI, DI), np.float32),
             "seqlens_k": np.array([n for _, n in LENS], np.int32),
             "cu_seqlens_q": np.cumsum([0] + [n for n, _ in LENS], dtype=np.int32),
             "block_size": BLOCK, "topk": 6}
    rows = rng.standard_normal((keys, 1, DI), np.float32)
    if not paged:
        groups = -(-keys // 16)
        padded = np.zeros((groups * 16, 1, DI), np.float32)
        padded[:keys] = rows
        codes, bounds = quantize(padded.reshape(groups, 16, 1, DI))
        return {**given, "index_k": rows, "index_k8": codes.reshape(-1, 1, DI)[:keys].copy(),
                "index_k8_bounds": bounds}
    pages = [-(-n // PAGE) for _, n in LENS]
    order = rng.permutation(sum(pages) + 2).astype(np.int32)
    table = np.full((len(LENS), max(pages)), -7, np.int32)
    pool = np.zeros((len(order), PAGE, 1, DI), np.float32)
    row = used = 0
    for i, (_, n) in enumerate(LENS):
        table[i, :pages[i]] = order[used:used + pages[i]]
        for j in range(n):
            pool[table[i, j // PAGE], j % PAGE] = rows[row]
            row += 1
        used += pages[i]
    codes, bounds = quantize(pool)
    return {**given, "index_k": pool, "page_table": table, "index_k8": codes, "index_k8_bounds": bounds}


def without(given):
    return {name: value for name, value in given.items() if not name.startswith("index_k8")}


@pytest.mark.parametrize("paged", [False, True])
def test_the_selection_is_that_of_the_keys(paged):
    given = make(paged)
    ids, scores = msa.select_blocks(**without(given), return_scores=True)
    found = msa.select_blocks(**given, return_scores=True, return_candidates=True)
    assert isinstance(found, msa.ScoredCandidates)
    assert np.array_equal(found.block_ids, ids) and found.chosen_scores.tobytes() == scores.tobytes()
    assert found.candidates.shape == (sum(n for n, _ in LENS), HI)
    assert (found.candidates >= 0).all() and found.candidates.max() <= 30
    assert np.array_equal(msa.select_blocks(**given), ids)
    assert isinstance(msa.select_blocks(**given, return_candidates=True), msa.SelectionCandidates)


@pytest.mark.parametrize("paged", [False, True])
def test_whole_attention_takes_it_too(paged):
    given = make(paged)
    rng = np.random.default_rng(5)
    rows, shape = given["index_q"].shape[0], given["index_k"].shape[:-2]
    q = rng.standard_normal((rows, 4, 32), np.float32)
    k, v = (rng.standard_normal((*shape, HI, 32), np.float32) for _ in "kv")
    with_filter = msa.msa_attention(q, k, v, **given, return_block_ids=True)
    plain = msa.msa_attention(q, k, v, **without(given), return_block_ids=True)
    assert with_filter.out.tobytes() == plain.out.tobytes()
    assert np.array_equal(with_filter.block_ids, plain.block_ids)


def test_plans_say_so():
    given = make(True)
    plan = msa.make_plan("select_blocks", **given)
    assert plan.problem["index_filter"] == "i8/page"
    run = {name: value for name, value in given.items() if name not in ("block_size", "topk")}
    assert np.array_equal(plan.run(**run), msa.select_blocks(**without(given)))
    numbers = {"batch": 3, "total_q": 46, "max_seqlen_q": 40, "max_seqlen_k": 900, "page_size": PAGE,
               "index_dtype": "f32", "index_heads": HI, "index_dim": DI, "block_size": BLOCK, "topk": 6}
    assert msa.make_plan("select_blocks", **numbers).problem["index_filter"] is None
    planned = msa.make_plan("select_blocks", **numbers, index_filter="i8/page")
    assert np.array_equal(planned.run(**run), msa.select_blocks(**without(given)))
    rotated = msa.make_plan("select_blocks", **numbers, index_filter="i8/page/rotated")
    assert rotated.problem["index_filter"] == "i8/page/rotated"
    with pytest.raises(msa.Error, match="i8/page"):
        msa.make_plan("select_blocks", **numbers, index_filter="i8/token")
    for name in ("index_filter", "precision"):
        with pytest.raises(msa.Error, match=name):
            msa.make_plan("select_blocks", **numbers, **{name: "odd"})
    with pytest.raises(TypeError, match="precision"):
        msa.select_blocks(**given, precision=1)


def test_precision_is_a_setting():
    given = make(True)
    assert msa.make_plan("select_blocks", **given).problem["precision"] == "exact"
    plan = msa.make_plan("select_blocks", **given, precision="fast", backend="reference")
    assert plan.problem["precision"] == "fast"
    with pytest.raises(msa.Unsupported, match="precision is exact here"):
        msa.select_blocks(**given, precision="fast")
    with pytest.raises(msa.InvalidArgument, match="there is no filter"):
        msa.select_blocks(**without(given), precision="fast", backend="reference")


def fast_scores(given):
    """Scores of blocks by codes alone, as docs/numerics.md says."""
    f32, codes, bounds, table = np.float32, given["index_k8"], given["index_k8_bounds"], given["page_table"]
    row = 0
    for b, (new, keys) in enumerate(LENS):
        for i in range(new):
            for h in range(HI):
                query = given["index_q"][row, h]
                own = np.abs(query).max() / f32(127)
                q8 = np.clip(np.rint(query / own), -127, 127).astype(np.int64)
                best = []
                for block in range((keys - new + i) // BLOCK + 1):  # PAGE is BLOCK
                    page = table[b, block]
                    seen = min(BLOCK, keys - new + i + 1 - block * BLOCK)
                    products = (codes[page, :seen, 0].astype(np.int64) * q8).sum(1)
                    both = f32(own * bounds[page, 0, 0])
                    best.append((both * products.astype(f32)).max())
                yield row, h, np.array(best, f32)
            row += 1


def test_fast_selections_go_by_codes():
    given = make(True)
    found = msa.select_blocks(**given, precision="fast", backend="reference", return_scores=True)
    exact = msa.select_blocks(**without(given))
    same = 0
    for row, h, scores in fast_scores(given):
        last = len(scores) - 1  # forced
        order = sorted(range(last), key=lambda block: (-scores[block], block))[:given["topk"] - 1]
        ids = sorted(order + [last])
        assert found.block_ids[row, h].tolist() == ids + [-1] * (given["topk"] - len(ids))
        for slot, block in enumerate(ids):
            want = np.inf if block == last else scores[block]
            assert found.chosen_scores[row, h, slot] == want
        same += len(set(ids) & set(exact[row, h].tolist())) / len(ids)
    assert 0.9 < same / (46 * HI) <= 1


def test_half_a_filter_is_refused():
    given = make(True)
    for name in ("index_k8", "index_k8_bounds"):
        rest = {key: value for key, value in given.items() if key != name}
        with pytest.raises(msa.Error):
            msa.select_blocks(**rest)
    with pytest.raises(msa.Error, match="candidates"):
        msa.select_blocks(**without(given), candidates=np.zeros((46, HI), np.int32))


def test_torch_ops_take_it():
    torch = pytest.importorskip("torch")
    import msa.torch
    given = make(True)
    tensors = {name: torch.from_numpy(value) if isinstance(value, np.ndarray) else value
               for name, value in given.items()}
    ids = msa.select_blocks(**without(given))
    found = msa.torch.select_blocks(**tensors, return_candidates=True)
    assert np.array_equal(found.block_ids.numpy(), ids) and found.candidates.dtype == torch.int32
    own = torch.zeros_like(found.candidates)
    msa.torch.select_blocks(**tensors, candidates=own)
    assert torch.equal(own, found.candidates)
