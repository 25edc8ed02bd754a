# SPDX-License-Identifier: MIT
"""quantize_kv against numpy: every bf16 number under every scale that matters, and the values that come back."""
from __future__ import annotations

import numpy as np
import pytest

import msa

MAGNITUDES = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
E4M3 = np.array([(c & 7) * 2.0**-9 if c < 8 else (8 + (c & 7)) * 2.0 ** ((c >> 3) - 10) for c in range(127)], np.float64)
WORDS = np.arange(1 << 16, dtype=np.uint16)


def bf16(words: np.ndarray) -> np.ndarray:
    return (words.astype(np.uint32) << 16).view(np.float32)


def to_bf16(x: np.ndarray) -> np.ndarray:
    words = (np.asarray(x, np.float32).view(np.uint32) >> 16).astype(np.uint16)
    assert np.array_equal(bf16(words), np.asarray(x, np.float32))
    return words


def nearest(x: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Index of the nearest entry of an ascending table, half to the even index; too large: the last."""
    size = np.abs(x.astype(np.float64))
    middles = (table[:-1].astype(np.float64) + table[1:]) / 2
    low, high = np.searchsorted(middles, size, "left"), np.searchsorted(middles, size, "right")
    return np.where(low % 2 == 0, low, high)


def encode_e4m3(x: np.ndarray) -> np.ndarray:
    codes = nearest(x, E4M3) + np.where(np.signbit(x), 128, 0)
    return np.where(np.isnan(x), 127, codes).astype(np.uint8)


def decode_e4m3(codes: np.ndarray) -> np.ndarray:
    table = np.concatenate([E4M3, [np.nan], -E4M3, [np.nan]]).astype(np.float32)
    return table[codes]


def pairs(codes: np.ndarray) -> np.ndarray:
    return (codes[..., 0::2] | codes[..., 1::2] << 4).astype(np.uint8)


def groups(x: np.ndarray, rounded: bool, shared: np.float32 | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Codes, one a byte, and scale codes of x [..., D]."""
    with np.errstate(all="ignore"):
        x = x.reshape(*x.shape[:-1], -1, 16)
        if shared is not None:
            x = x / shared
        wanted = np.abs(x).max(-1) / np.float32(6)
        if rounded:
            wanted = np.clip(wanted, np.float32(2.0**-9), np.float32(448))
        scale_codes = encode_e4m3(wanted)
        scale = decode_e4m3(scale_codes)[..., None]
        code = nearest(x / scale, MAGNITUDES)
        sign = np.signbit(x) & ~((code == 0) & rounded)
        code = np.where(np.isnan(scale) | (scale == 0), 0, code + 8 * sign)
    return code.reshape(*code.shape[:-2], -1).astype(np.uint8), scale_codes


def rows_of(words: np.ndarray, dim: int) -> np.ndarray:
    return np.resize(words, (-(-words.size // dim), 1, dim))


def test_every_bf16_as_it_is() -> None:
    rows = rows_of(WORDS, 256)
    stored = msa.quantize_kv(rows, rows, dtype="bf16")
    np.testing.assert_array_equal(stored.k_cache, rows)


@pytest.mark.parametrize("scale", [None, 1.0, 0.3, 3e-38, 7e37, -0.7, 0.0, np.inf, np.nan])
def test_every_bf16_in_e4m3(scale: float | None) -> None:
    rows = rows_of(WORDS, 256)
    given = {} if scale is None else {"k_scale": np.array([scale], np.float32), "v_scale": np.ones(1, np.float32)}
    stored = msa.quantize_kv(rows, rows, dtype="bf16", kv_format="e4m3" if scale is None else "e4m3/tensor", **given)
    with np.errstate(all="ignore"):
        x = bf16(rows) if scale is None else bf16(rows) / np.float32(scale)
    np.testing.assert_array_equal(stored.k_cache, encode_e4m3(x))
    np.testing.assert_array_equal(stored.v_cache, encode_e4m3(bf16(rows)))


def test_a_scale_for_each_token() -> None:
    rows = rows_of(WORDS, 64)
    stored = msa.quantize_kv(rows, rows, dtype="bf16", kv_format="e4m3/token")
    x = bf16(rows)
    with np.errstate(all="ignore"):
        scale = np.nan_to_num(np.abs(x), nan=0, posinf=np.inf).max(-1) / np.float32(448)
        scale = np.where(scale > 0, scale, np.float32(1)).astype(np.float32)
        np.testing.assert_array_equal(stored.k_scale_cache, scale)
        np.testing.assert_array_equal(stored.k_cache, encode_e4m3(x / scale[..., None]))


@pytest.mark.parametrize("kv_format", ["nvfp4", "q8kv4", "nvfp4/tensor"])
def test_every_bf16_under_every_scale(kv_format: str) -> None:
    shared = np.float32(0.0371) if kv_format == "nvfp4/tensor" else None
    given = {} if shared is None else {"k_global_scale": np.array([shared]), "v_global_scale": np.array([shared])}
    finite = WORDS[np.isfinite(bf16(WORDS))]
    for code in range(1, 127):
        top = np.float32(6 * E4M3[code])
        words = finite[np.abs(bf16(finite)) <= top]
        rows = np.resize(words, (-(-words.size // 60), 4, 15))
        rows = np.concatenate([np.full((*rows.shape[:-1], 1), to_bf16(top)), rows], -1).reshape(-1, 1, 64)
        stored = msa.quantize_kv(rows, rows, dtype="bf16", kv_format=kv_format, **given)
        codes, scales = groups(bf16(rows), kv_format == "q8kv4", shared)
        if shared is None:
            assert (scales == code).all()
        np.testing.assert_array_equal(stored.k_scale_cache, scales)
        np.testing.assert_array_equal(stored.k_cache, pairs(codes))


@pytest.mark.parametrize("kv_format", ["nvfp4", "q8kv4"])
def test_what_is_no_number_and_what_is_too_large(kv_format: str) -> None:
    rows = np.random.default_rng(1).permutation(WORDS).reshape(-1, 1, 256)
    stored = msa.quantize_kv(rows, rows, dtype="bf16", kv_format=kv_format)
    codes, scales = groups(bf16(rows), kv_format == "q8kv4")
    np.testing.assert_array_equal(stored.v_scale_cache, scales)
    np.testing.assert_array_equal(stored.v_cache, pairs(codes))


def test_append_to_pages_and_attend() -> None:
    """What was appended is what attention reads: codes times scales, rounded to e4m3."""
    rng = np.random.default_rng(2)
    k, v = (rng.standard_normal((20, 2, 32)).astype(np.float32) for _ in range(2))
    table = np.array([[3, 1], [0, 2]], np.int32)
    cache = [np.full((4, 16, 2, 16), 0xAB, np.uint8) for _ in range(2)]
    scales = [np.full((4, 16, 2, 2), 0xCD, np.uint8) for _ in range(2)]
    lengths = np.array([18, 2], np.int32)
    starts = np.array([0, 18, 20], np.int32)
    msa.quantize_kv(k, v, kv_format="q8kv4", cu_seqlens_q=starts, seqlens_k=lengths, page_table=table, k_cache=cache[0],
                    v_cache=cache[1], k_scale_cache=scales[0], v_scale_cache=scales[1])
    assert (cache[0][1, 2:] == 0xAB).all() and (scales[0][2] == 0xCD).all() and (cache[1][0, 2:] == 0xAB).all()
    rows = msa.quantize_kv(k, v, kv_format="q8kv4")
    np.testing.assert_array_equal(cache[0][3], rows.k_cache[:16])
    np.testing.assert_array_equal(cache[0][1, :2], rows.k_cache[16:18])
    np.testing.assert_array_equal(scales[1][0, :2], rows.v_scale_cache[18:])

    def values(codes: np.ndarray, scale_codes: np.ndarray) -> np.ndarray:
        both = np.stack([codes & 15, codes >> 4], -1).reshape(*codes.shape[:-1], -1)
        numbers = np.concatenate([MAGNITUDES, -MAGNITUDES])[both] * np.repeat(decode_e4m3(scale_codes), 16, -1)
        return decode_e4m3(encode_e4m3(numbers))

    q = rng.standard_normal((2, 4, 32)).astype(np.float32)
    batch = {"cu_seqlens_q": np.array([0, 1, 2], np.int32), "seqlens_k": lengths}
    out = msa.dense_attention(q, *cache, k_scale=scales[0], v_scale=scales[1], kv_format="q8kv4", page_table=table,
                              **batch)
    plain = msa.dense_attention(q, values(rows.k_cache, rows.k_scale_cache), values(rows.v_cache, rows.v_scale_cache),
                                **batch)
    np.testing.assert_array_equal(out, plain)


def test_queries_in_e4m3() -> None:
    rng = np.random.default_rng(3)
    k, v = (rng.standard_normal((40, 1, 32)).astype(np.float32) for _ in range(2))
    stored = msa.quantize_kv(k, v, kv_format="nvfp4/tensor", k_global_scale=np.array([0.01], np.float32),
                             v_global_scale=np.array([0.02], np.float32))
    codes = encode_e4m3(rng.standard_normal((3, 2, 32)).astype(np.float32))
    given = {"k_scale": stored.k_scale_cache, "v_scale": stored.v_scale_cache, "kv_format": "nvfp4/tensor",
             "k_global_scale": np.array([0.01], np.float32), "v_global_scale": np.array([0.02], np.float32)}
    out = msa.dense_attention(codes, stored.k_cache, stored.v_cache, dtype="e4m3", out_dtype="f32", **given)
    wide = msa.dense_attention(decode_e4m3(codes), stored.k_cache, stored.v_cache, **given)
    np.testing.assert_allclose(out, wide, atol=2e-6)
    words = msa.dense_attention(codes, stored.k_cache, stored.v_cache, dtype="e4m3", **given)
    assert words.dtype == np.uint16
    np.testing.assert_allclose(bf16(words), wide, atol=0.02)


def test_bytes_need_a_format() -> None:
    codes = np.zeros((4, 1, 16), np.uint8)
    with pytest.raises(msa.InvalidArgument, match="kv_format"):
        msa.dense_attention(np.zeros((1, 1, 32), np.float32), codes, codes)
    with pytest.raises(msa.InvalidArgument, match="nvfp4"):
        msa.dense_attention(np.zeros((1, 1, 32), np.float32), codes, codes, kv_format="fp4")
