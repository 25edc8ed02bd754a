# SPDX-License-Identifier: MIT
"""quantize_index against numpy, bit for bit, and the round trip: the selection with its filter is that of the keys."""
from __future__ import annotations

import numpy as np
import pytest

import msa

DIM, PAGE = 48, 32
TINY = np.float32(1e-45)


def keys_of(kind: str, rows: int, heads: int = 1, dim: int = DIM) -> np.ndarray:
    rng = np.random.default_rng(11)
    x = rng.standard_normal((rows, heads, dim), np.float32)
    if kind == "outliers":
        x[::37] *= np.float32(3e4)
        x[:, :, 3] *= np.float32(1000)
    elif kind == "one_hot":
        x[:] = 0
        x[np.arange(rows), :, rng.integers(0, dim, rows)] = 1
    elif kind == "subnormal":
        x = x * np.float32(1e-42)
    elif kind == "tiniest":
        x = rng.integers(-190, 191, x.shape).astype(np.float32) * TINY
    elif kind == "ties":
        x = rng.integers(-254, 255, x.shape).astype(np.float32) / np.float32(2)
        x[:, :, 0] = 127
    elif kind == "huge":
        x = np.clip(x, -1, 1) * np.float32(3.4e38)
    elif kind == "zeros":
        x[:] = 0
    elif kind == "odd":
        x[5::40, 0, 7] = np.nan
        x[9::71, 0, 3] = np.inf
        x[13::91, 0, 5] = -np.inf
    return x


KINDS = ["normal", "outliers", "one_hot", "subnormal", "tiniest", "ties", "huge", "zeros", "odd"]


def upwards(x: np.float64) -> np.float32:
    with np.errstate(over="ignore"):
        nearest = np.float32(x)
    return np.nextafter(nearest, np.float32(np.inf)) if np.float64(nearest) < x else nearest


def rotate(x: np.ndarray) -> np.ndarray:
    """Rows times the Hadamard matrix, in f32: sums and differences of pairs, neighbours first."""
    half = 1
    while half < x.shape[-1]:
        pairs = x.reshape(*x.shape[:-1], -1, 2, half)
        low, high = pairs[..., 0, :], pairs[..., 1, :]
        with np.errstate(over="ignore", invalid="ignore"):
            x = np.stack([low + high, low - high], -2).reshape(x.shape)
        half *= 2
    return x


def copy_page(keys: np.ndarray, rotated: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Codes and {scale, error, norm} of the keys [tokens, dim] of a page, as docs/numerics.md says."""
    finite = np.isfinite(keys)
    x = np.where(finite, keys, np.float32(0))
    if rotated:
        x = rotate(x)
        finite = finite & np.isfinite(x)
        x = np.where(np.isfinite(x), x, np.float32(0))
    scale = np.abs(x).max(initial=np.float32(0)) / np.float32(127)
    assert scale.dtype == np.float32
    ratio = x / scale if scale > 0 else np.zeros_like(x)
    codes = np.clip(np.rint(ratio), -127, 127).astype(np.int8)
    off = x.astype(np.float64) - codes.astype(np.float64) * np.float64(scale)
    squares = np.concatenate([off * off, np.zeros((len(keys), -keys.shape[1] % 16))], 1)
    lanes = np.zeros((len(keys), 16))
    for begin in range(0, squares.shape[1], 16):
        lanes = lanes + squares[:, begin:begin + 16]
    sums = np.zeros(len(keys))
    for lane in range(16):
        sums = sums + lanes[:, lane]
    pad = 1 + (keys.shape[1] + 64) * 2.0**-52
    length = (codes.astype(np.int64)**2).sum(1).max(initial=0)
    norm = np.float64(scale) * np.sqrt(np.float64(length)) * pad
    error = np.sqrt(sums.max(initial=0)) * pad
    if rotated:
        error = error + 2.0**-20 * (error + norm)
    return codes, np.array([scale, upwards(error) if finite.all() else np.inf, upwards(norm)], np.float32)


def as_bf16(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Words, and the values that they are."""
    words = (x.view(np.uint32) >> 16).astype(np.uint16)
    return words, (words.astype(np.uint32) << 16).view(np.float32)


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("kind", KINDS)
def test_ragged_bits(kind: str, dtype: str) -> None:
    values = given = keys_of(kind, 150, 2)
    if dtype == "f16":
        with np.errstate(over="ignore"):
            given = values.astype(np.float16)
        values = given.astype(np.float32)
    elif dtype == "bf16":
        given, values = as_bf16(values)
    copy = msa.quantize_index(given, seqlens_k=np.array([37, 0, 113], np.int32),
                              **({"dtype": "bf16"} if dtype == "bf16" else {}))
    assert isinstance(copy, msa.IndexCopy) and copy.index_k8.dtype == np.int8
    assert copy.index_k8_bounds.shape == (10, 2, 3)
    for group in range(10):
        for head in range(2):
            rows = slice(16 * group, 16 * group + 16)
            codes, bounds = copy_page(values[rows, head])
            np.testing.assert_array_equal(copy.index_k8[rows, head], codes)
            assert copy.index_k8_bounds[group, head].tobytes() == bounds.tobytes()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dim", [16, 33, 256, 600])
def test_dims(kind: str, dim: int) -> None:
    keys = keys_of(kind, 16, 1, dim)
    copy = msa.quantize_index(keys)
    codes, bounds = copy_page(keys[:, 0])
    np.testing.assert_array_equal(copy.index_k8[:, 0], codes)
    assert copy.index_k8_bounds[0, 0].tobytes() == bounds.tobytes()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dim", [8, 16, 128, 256])
def test_rotated_bits(kind: str, dim: int) -> None:
    values = keys_of(kind, 45, 2, dim)
    for dtype in ("f32", "bf16"):
        given, x = (values, values) if dtype == "f32" else as_bf16(values)
        copy = msa.quantize_index(given, index_filter="i8/page/rotated", **({"dtype": dtype} if dtype == "bf16" else {}))
        for group in range(3):
            for head in range(2):
                rows = slice(16 * group, 16 * group + 16)
                codes, bounds = copy_page(x[rows, head], rotated=True)
                np.testing.assert_array_equal(copy.index_k8[rows, head], codes)
                assert copy.index_k8_bounds[group, head].tobytes() == bounds.tobytes()


@pytest.mark.parametrize("kind", KINDS)
def test_rotated_bounds_are_true(kind: str) -> None:
    """In exact arithmetic, with the matrix itself."""
    from fractions import Fraction
    keys = keys_of(kind, 16, 1, 32)
    copy = msa.quantize_index(keys, index_filter="i8/page/rotated")
    scale, error, norm = (Fraction(float(x)) if np.isfinite(x) else None for x in copy.index_k8_bounds[0, 0])
    for row in range(16):
        codes = [int(c) for c in copy.index_k8[row, 0]]
        assert norm is None or sum((c * scale)**2 for c in codes) <= norm**2
        if error is None or not np.isfinite(keys[row]).all():
            assert error is None
            continue
        key = [Fraction(float(x)) for x in keys[row, 0]]
        turned = [sum(-x if bin(i & d).count("1") % 2 else x for d, x in enumerate(key)) for i in range(32)]
        assert sum((x - c * scale)**2 for x, c in zip(turned, codes)) <= error**2


@pytest.mark.parametrize("kind", KINDS)
def test_bounds_are_true(kind: str) -> None:
    """In exact arithmetic: squares are compared as integers times a power of two."""
    from fractions import Fraction
    keys = keys_of(kind, 32)
    copy = msa.quantize_index(keys)
    for row in range(32):
        scale, error, norm = (Fraction(float(x)) if np.isfinite(x) else None
                              for x in copy.index_k8_bounds[row // 16, 0])
        codes = [int(c) for c in copy.index_k8[row, 0]]
        assert norm is None or sum((c * scale)**2 for c in codes) <= norm**2
        if not np.isfinite(keys[row]).all():
            assert error is None
        if error is not None:
            assert sum((Fraction(float(x)) - c * scale)**2 for x, c in zip(keys[row, 0], codes)) <= error**2


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_join_pages(kind: str) -> None:
    """Token after token is what all at once is; pages before them and entries behind them stay as they are."""
    pool = np.full((6, PAGE, 2, DIM), np.nan, np.float32)
    table = np.array([[4, 1, 3], [0, 5, -7]], np.int32)
    lengths = [70, 33]
    for b, n in enumerate(lengths):
        for j, row in enumerate(keys_of(kind, n, 2)):
            pool[table[b, j // PAGE], j % PAGE] = row
    codes = np.full(pool.shape, 99, np.int8)
    bounds = np.full((6, 2, 3), -3, np.float32)
    given = {"page_table": table, "index_k8": codes, "index_k8_bounds": bounds}
    msa.quantize_index(pool, seqlens_k=np.array([40, 30], np.int32), **given)
    first = bounds[4].copy()
    bounds[4] = 5  # a page before the first position
    for new in range(41, 71):
        before = np.array([new - 1, min(new - 11, 33)], np.int32)
        after = np.array([new, min(new - 10, 33)], np.int32)
        msa.quantize_index(pool, seqlens_k=after, q_offsets=before, **given)
    assert (bounds[4] == 5).all() and (bounds[2] == -3).all() and (codes[2] == 99).all()
    bounds[4] = first
    for b, n in enumerate(lengths):
        for column in range(-(-n // PAGE)):
            page, count = table[b, column], min(PAGE, n - column * PAGE)
            assert (codes[page, count:] == 99).all()
            for head in range(2):
                want, numbers = copy_page(pool[page, :count, head])
                np.testing.assert_array_equal(codes[page, :count, head], want)
                assert bounds[page, head].tobytes() == numbers.tobytes()


@pytest.mark.parametrize("index_filter", ["i8/page", "i8/page/rotated"])
@pytest.mark.parametrize("paged", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_round_trip(kind: str, paged: bool, index_filter: str) -> None:
    keys = keys_of(kind, 960, 1, 64)
    given = {"index_q": np.random.default_rng(5).standard_normal((9, 2, 64), np.float32), "block_size": 32, "topk": 5,
             "cu_seqlens_q": np.array([0, 1, 9], np.int32), "seqlens_k": np.array([320, 640], np.int32)}
    batch = {"seqlens_k": given["seqlens_k"]}
    if paged:
        order = np.random.default_rng(6).permutation(30).astype(np.int32)
        pool = np.empty((30, PAGE, 1, 64), np.float32)
        pool[order] = keys.reshape(30, PAGE, 1, 64)
        keys = pool
        batch["page_table"] = np.concatenate([np.pad(order[:10], (0, 10), constant_values=-1), order[10:]]).reshape(2, 20)
    copy = msa.quantize_index(keys, index_filter=index_filter, **batch)
    plain = msa.select_blocks(**given, index_k=keys, page_table=batch.get("page_table"), return_scores=True)
    found = msa.select_blocks(**given, index_k=keys, page_table=batch.get("page_table"), **copy._asdict(),
                              index_filter=index_filter, return_scores=True)
    for one, other in zip(found, plain):
        assert one.tobytes() == other.tobytes()


def test_plans_and_refusals() -> None:
    keys = keys_of("normal", 64)
    lengths = np.array([64], np.int32)
    plan = msa.make_plan("quantize_index", index_k=keys, seqlens_k=lengths)
    assert plan.problem["index_filter"] == "i8/page"
    even = keys_of("normal", 64, 1, 32)
    rotated = msa.make_plan("quantize_index", index_k=even, seqlens_k=lengths, index_filter="i8/page/rotated")
    assert rotated.problem["index_filter"] == "i8/page/rotated"
    assert rotated.run(index_k=even, seqlens_k=lengths).index_k8.tobytes() == msa.quantize_index(
        even, index_filter="i8/page/rotated").index_k8.tobytes()
    with pytest.raises(msa.InvalidArgument, match="power of two"):
        msa.quantize_index(keys, index_filter="i8/page/rotated")
    copy = plan.run(index_k=keys, seqlens_k=lengths)
    assert copy.index_k8.tobytes() == msa.quantize_index(keys).index_k8.tobytes()
    with pytest.raises(msa.InvalidArgument, match="q_offsets leaves pages"):
        msa.quantize_index(keys, seqlens_k=lengths, q_offsets=np.array([60], np.int32))
    with pytest.raises(msa.InvalidContent) as caught:
        msa.quantize_index(keys, seqlens_k=lengths, q_offsets=np.array([65], np.int32), **copy._asdict())
    assert caught.value.argument == "q_offsets"
    with pytest.raises(msa.InvalidArgument) as caught:
        msa.quantize_index(keys.astype(np.int8))
    assert caught.value.argument == "index_k"


def test_torch() -> None:
    torch = pytest.importorskip("torch")
    import msa.torch
    keys = torch.from_numpy(keys_of("normal", 80, 2)).to(torch.bfloat16)
    copy = msa.torch.quantize_index(keys)
    assert copy.index_k8.dtype == torch.int8 and copy.index_k8_bounds.shape == (5, 2, 3)
    pages = keys.reshape(5, 16, 2, DIM)
    table, lengths = torch.arange(5, dtype=torch.int32)[None], torch.tensor([80], dtype=torch.int32)
    paged = msa.torch.quantize_index(pages, seqlens_k=lengths, page_table=table)
    assert torch.equal(paged.index_k8.reshape(80, 2, DIM), copy.index_k8)
    assert torch.equal(paged.index_k8_bounds, copy.index_k8_bounds)
    even = torch.from_numpy(keys_of("normal", 80, 1, 32)).to(torch.bfloat16)
    rotated = msa.torch.quantize_index(even, index_filter="i8/page/rotated")
    given = {"index_q": torch.randn(3, 2, 32).to(torch.bfloat16), "index_k": even, "topk": 2, "block_size": 16}
    found = msa.torch.select_blocks(**given, **rotated._asdict(), index_filter="i8/page/rotated", return_candidates=True)
    assert torch.equal(found.block_ids, msa.torch.select_blocks(**given)) and (found.candidates >= 0).all()
    codes, bounds = torch.zeros_like(copy.index_k8), torch.zeros_like(copy.index_k8_bounds)
    msa.torch.quantize_index(keys, seqlens_k=lengths, q_offsets=torch.tensor([40], dtype=torch.int32), index_k8=codes,
                             index_k8_bounds=bounds)
    assert not codes[:32].any() and torch.equal(codes[32:], copy.index_k8[32:])
    assert not bounds[:2].any() and torch.equal(bounds[2:], copy.index_k8_bounds[2:])
