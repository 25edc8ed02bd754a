# SPDX-License-Identifier: MIT
"""Index keys stored as e4m3 and in four bits, against numpy over the values that their codes and scales stand for: exactly, as codes are
small integers and scales powers of two."""
from __future__ import annotations

import numpy as np
import pytest

import msa

HI, HIK, DI, BLOCK, PAGE, TOPK = 4, 2, 32, 16, 16, 4
LENS = [(5, 270), (1, 133), (3, 3)]
FOUR_BITS = ["nvfp4", "nvfp4/tensor", "q8kv4"]
SCALES = ["e4m3", "e4m3/tensor", "e4m3/head", "e4m3/page", "e4m3/token", *FOUR_BITS]
CASES = [(kind, paged) for kind in SCALES for paged in (False, True) if paged or kind != "e4m3/page"]
INTEGERS = np.array([0x00, 0x38, 0x40, 0x44, 0x48, 0xb8, 0xc0], np.uint8)  # 0, 1, 2, 3, 4, -1, -2
NIBBLES = np.array([0, 2, 4, 5, 6, 10, 12], np.uint8)  # the same in e2m1
VALUES = np.array([0, 1, 2, 3, 4, -1, -2], np.float32)


class Index:
    """Ragged or paged codes with scales, and the fp32 values that they stand for, [N, Hik, Di] of all requests."""

    def __init__(self, kind, paged):
        rng = np.random.default_rng(11)
        keys = sum(length for _, length in LENS)
        pages = [-(-length // PAGE) for _, length in LENS]
        chosen = rng.integers(0, len(INTEGERS), (keys, HIK, DI))
        order = rng.permutation(sum(pages) + 2).astype(np.int32)
        table = np.full((len(LENS), max(pages) + 1), -7, np.int32)
        page_of, slot_of = np.zeros(keys, int), np.zeros(keys, int)
        row = used = 0
        for i, (_, length) in enumerate(LENS):
            table[i, :pages[i]] = order[used:used + pages[i]]
            for j in range(length):
                page_of[row], slot_of[row] = order[used + j // PAGE], j % PAGE
                row += 1
            used += pages[i]

        def powers(*shape):
            return np.exp2(rng.integers(-3, 4, shape)).astype(np.float32)

        four = kind in FOUR_BITS
        self.how = {"index_k_format": kind} if four else {"index_k_dtype": "e4m3"}
        codes = INTEGERS[chosen]
        if four:
            codes = NIBBLES[chosen[..., 0::2]] | NIBBLES[chosen[..., 1::2]] << 4
        scale, own = np.ones((keys, HIK), np.float32), None
        if kind == "e4m3/tensor":
            own = powers(1)
            scale[:] = own
        elif kind == "e4m3/head":
            own = powers(HIK)
            scale[:] = own
        elif kind == "e4m3/page":
            own = powers(len(order), HIK)
            scale = own[page_of]
        elif kind == "e4m3/token":
            own = scale = powers(keys, HIK)
            if paged:
                own = np.full((len(order), PAGE, HIK), np.nan, np.float32)
                own[page_of, slot_of] = scale
        elif four:
            powers_of_e4m3 = rng.integers(-3, 4, (keys, HIK, DI // 16))
            own = ((powers_of_e4m3 + 7) << 3).astype(np.uint8)
            scale = np.exp2(powers_of_e4m3).astype(np.float32).repeat(16, -1)
            if paged:
                rows, own = own, np.full((len(order), PAGE, HIK, DI // 16), 127, np.uint8)
                own[page_of, slot_of] = rows
        # What nobody reads is NaN.
        stored = np.full((len(order), PAGE, *codes.shape[1:]), 255, np.uint8)
        stored[page_of, slot_of] = codes
        self.values = VALUES[chosen] * scale.reshape(keys, HIK, -1)
        self.q = rng.integers(-2, 3, (sum(n for n, _ in LENS), HI, DI)).astype(np.float32)
        self.given = {"index_q": self.q, "index_k": stored if paged else codes,
                      "seqlens_k": np.array([n for _, n in LENS], np.int32),
                      "cu_seqlens_q": np.cumsum([0] + [n for n, _ in LENS], dtype=np.int32), "block_size": BLOCK}
        if paged:
            self.given["page_table"] = table
        if own is not None:
            self.given["index_k_scale"] = own
        if kind == "nvfp4/tensor":
            self.given["index_k_global_scale"] = powers(1)
            self.values = self.values * self.given["index_k_global_scale"]

    def scores(self):
        """[T, Hi, blocks], -inf where nothing is visible."""
        blocks = -(-max(n for _, n in LENS) // BLOCK)
        scores = np.full((len(self.q), HI, blocks), -np.inf, np.float32)
        row = first = 0
        for new, length in LENS:
            for i in range(new):
                seen = length - new + i + 1
                for h in range(HI):
                    dots = self.values[first:first + seen, h * HIK // HI] @ self.q[row, h]
                    for b in range(-(-seen // BLOCK)):
                        scores[row, h, b] = dots[b * BLOCK:min(seen, (b + 1) * BLOCK)].max()
                row += 1
            first += length
        return scores


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("kind,paged", CASES)
def test_scores_and_selections(kind, paged, backend):
    index = Index(kind, paged)
    given = {**index.given, **index.how, "backend": backend}
    scores = index.scores()
    np.testing.assert_array_equal(msa.block_scores(**given), scores)
    lengths = {name: given[name] for name in ("seqlens_k", "cu_seqlens_q", "block_size")}
    expected = msa.select_topk(scores, **lengths, topk=TOPK)
    np.testing.assert_array_equal(msa.select_blocks(**given, topk=TOPK), expected)
    # Queries in codes, too: small integers are codes.
    codes = {value: code for code, value in zip(INTEGERS, VALUES)}
    bytes_q = np.vectorize(codes.__getitem__, otypes=[np.uint8])(index.q)
    np.testing.assert_array_equal(msa.block_scores(**{**given, "index_q": bytes_q}), scores)


@pytest.mark.parametrize("kind,paged", CASES)
def test_whole_attention(kind, paged):
    index = Index(kind, paged)
    rng = np.random.default_rng(5)
    given = {**index.given, **index.how, "topk": TOPK}
    shape = given["index_k"].shape[:-2]
    q = rng.standard_normal((len(index.q), 2 * HI, 32), np.float32)
    k, v = (rng.standard_normal((*shape, HI, 32), np.float32) for _ in "kv")
    found = msa.msa_attention(q, k, v, **given, return_block_ids=True)
    np.testing.assert_array_equal(found.block_ids, msa.select_blocks(**given))


@pytest.mark.parametrize("kind,paged", CASES)
def test_plans_say_so(kind, paged):
    index = Index(kind, paged)
    expected = msa.select_blocks(**index.given, **index.how, topk=TOPK)
    numbers = {"batch": 3, "total_q": len(index.q), "max_seqlen_q": 5, "max_seqlen_k": 270,
               "page_size": PAGE if paged else 0, "index_dtype": "f32", "index_heads": HI, "index_heads_k": HIK,
               "index_dim": DI, "block_size": BLOCK, "topk": TOPK}
    assert msa.make_plan("select_blocks", **numbers).problem["index_k_format"] is None
    plan = msa.make_plan("select_blocks", **numbers, index_k_format=kind)
    assert plan.problem["index_k_format"] == kind
    tensors = {name: value for name, value in index.given.items() if name != "block_size"}
    np.testing.assert_array_equal(plan.run(**tensors), expected)
    with pytest.raises(msa.Error, match="index_dim: expected a multiple of 16"):
        msa.make_plan("select_blocks", **{**numbers, "index_dim": 40}, index_k_format="nvfp4")
    with pytest.raises(msa.Error, match="index_k_format"):
        msa.make_plan("select_blocks", **numbers, index_k_format="nvfp5")


def test_what_bytes_hold_must_be_said():
    index = Index("e4m3/head", False)
    with pytest.raises(msa.Error, match="index_k"):
        msa.select_blocks(**index.given)
    with pytest.raises(msa.Error, match="index_k_dtype: expected e4m3, got bf16"):
        msa.select_blocks(**index.given, index_k_dtype="bf16")
    # A format in four bits and another that the tensors have.
    with pytest.raises(msa.Error, match="index_k"):
        msa.select_blocks(**index.given, index_k_format="q8kv4")
    index = Index("nvfp4", True)
    with pytest.raises(msa.Error, match="index_k_global_scale: expected a tensor of f32"):
        msa.select_blocks(**index.given, index_k_format="nvfp4/tensor")
    scale = index.given.pop("index_k_scale")
    with pytest.raises(msa.Error, match="index_k_scale: expected a tensor of e4m3"):
        msa.select_blocks(**index.given, index_k_format="nvfp4")
    with pytest.raises(msa.Error, match="index_k_scale"):
        msa.select_blocks(**index.given, index_k_scale=scale[..., :1], index_k_format="nvfp4")


@pytest.mark.parametrize("kind", FOUR_BITS)
@pytest.mark.parametrize("paged", [False, True])
def test_quantize_kv_stores_index_keys(kind, paged):
    """A key is a row of two halves, which share no group: quantize_kv takes one for k, the other for v."""
    rng = np.random.default_rng(3)
    rows = rng.standard_normal((40, HIK, DI)).astype(np.float32)
    shape = (4, PAGE, HIK) if paged else (40, HIK)
    codes, scales = np.zeros((*shape, DI // 2), np.uint8), np.zeros((*shape, DI // 16), np.uint8)
    shared = {}
    if kind == "nvfp4/tensor":
        shared = {"k_global_scale": np.array([0.03], np.float32), "v_global_scale": np.array([0.03], np.float32)}
    lengths = {"seqlens_k": np.array([40], np.int32)}
    if paged:
        lengths["page_table"] = np.array([[3, 0, 2]], np.int32)
    half = DI // 2
    msa.quantize_kv(rows[..., :half], rows[..., half:], k_cache=codes[..., :half // 2], v_cache=codes[..., half // 2:],
                    k_scale_cache=scales[..., :half // 16], v_scale_cache=scales[..., half // 16:], kv_format=kind,
                    **shared, **({**lengths, "cu_seqlens_q": np.array([0, 40], np.int32)} if paged else {}))
    own = {"index_k_global_scale": shared["k_global_scale"]} if shared else {}
    given = {"index_k": codes, "index_k_scale": scales, "index_k_format": kind, **own, **lengths,
             "cu_seqlens_q": np.array([0, HIK * DI], np.int32), "block_size": 16, "causal": False}
    # One-hot queries read the values back: of each dim of each head the largest in a block.
    q = np.zeros((HIK * DI, HIK, DI), np.float32)
    for h in range(HIK):
        q[h * DI + np.arange(DI), h, np.arange(DI)] = 1
    found = msa.block_scores(q, **given)
    for h in range(HIK):
        for b in range(3):
            largest = rows[b * 16:min(40, (b + 1) * 16), h].max(0)
            np.testing.assert_allclose(found[h * DI:(h + 1) * DI, h, b], largest, rtol=0.3, atol=0.3)
    # The same rows as keys, whose values are those.
    wide = msa.quantize_kv(rows, rows, kv_format=kind, **shared)
    if not paged:
        np.testing.assert_array_equal(codes, np.asarray(wide.k_cache))
        np.testing.assert_array_equal(scales, np.asarray(wide.k_scale_cache).view(np.uint8))


@pytest.mark.parametrize("kind,paged", [case for case in CASES if case[0] not in FOUR_BITS])
def test_arrays_that_know_the_type(kind, paged):
    float8 = pytest.importorskip("ml_dtypes").float8_e4m3fn
    index = Index(kind, paged)
    given = {**index.given, "index_k": index.given["index_k"].view(float8)}
    np.testing.assert_array_equal(msa.block_scores(**given), index.scores())


@pytest.mark.parametrize("kind,paged", CASES)
def test_torch_ops_take_it(kind, paged):
    torch = pytest.importorskip("torch")
    import msa.torch
    index = Index(kind, paged)
    tensors = {name: torch.from_numpy(value) if isinstance(value, np.ndarray) else value
               for name, value in index.given.items()}
    if kind in FOUR_BITS:
        tensors["index_k_format"] = kind
        tensors["index_k_scale"] = tensors["index_k_scale"].view(torch.float8_e4m3fn)
    else:
        tensors["index_k"] = tensors["index_k"].view(torch.float8_e4m3fn)
    expected = msa.select_blocks(**index.given, **index.how, topk=TOPK)
    assert np.array_equal(msa.torch.select_blocks(**tensors, topk=TOPK).numpy(), expected)
    assert np.array_equal(msa.select_blocks(**tensors, topk=TOPK).numpy(), expected)
    scores = msa.torch.block_scores(**tensors)
    assert np.array_equal(scores.numpy(), index.scores())
    own = torch.zeros_like(scores)
    msa.torch.block_scores(**tensors, scores=own)
    assert torch.equal(own, scores)
    rows, shape = len(index.q), tensors["index_k"].shape[:-2]
    q, k, v = torch.ones(rows, HI, 32), torch.ones(*shape, HI, 32), torch.ones(*shape, HI, 32)
    found = msa.torch.msa_attention(q, k, v, **tensors, topk=TOPK, return_block_ids=True)
    assert np.array_equal(found.block_ids.numpy(), expected)
