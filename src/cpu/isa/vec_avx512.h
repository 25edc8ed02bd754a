// SPDX-License-Identifier: MIT
// The vector layer of AVX-512 (F, BW, DQ, VL): 16 lanes. Included by isa/avx512*.cpp inside a
// target region and an instruction-set namespace; holds intrinsics and nothing else. The scalar
// file lists the vocabulary.

inline constexpr int kLanes = 16;
/// Rows of the register tile: 8 x 2 accumulators leave room for operands in 32 registers.
inline constexpr int kTile = 8;

struct Vec {
  __m512 v;
};
struct IVec {
  __m512i v;
};
struct Mask {
  __mmask16 m;
};

MSA_INLINE Vec zero() { return {_mm512_setzero_ps()}; }
MSA_INLINE Vec set1(float x) { return {_mm512_set1_ps(x)}; }
MSA_INLINE Vec load(const float* p) { return {_mm512_loadu_ps(p)}; }
MSA_INLINE void store(float* p, Vec a) { _mm512_storeu_ps(p, a.v); }
MSA_INLINE Vec add(Vec a, Vec b) { return {_mm512_add_ps(a.v, b.v)}; }
MSA_INLINE Vec sub(Vec a, Vec b) { return {_mm512_sub_ps(a.v, b.v)}; }
MSA_INLINE Vec mul(Vec a, Vec b) { return {_mm512_mul_ps(a.v, b.v)}; }
MSA_INLINE Vec div(Vec a, Vec b) { return {_mm512_div_ps(a.v, b.v)}; }
MSA_INLINE Vec fma(Vec a, Vec b, Vec c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
MSA_INLINE Vec max(Vec a, Vec b) { return {_mm512_max_ps(a.v, b.v)}; }
MSA_INLINE Vec min(Vec a, Vec b) { return {_mm512_min_ps(a.v, b.v)}; }
/// Of all lanes; none is NaN.
MSA_INLINE float largest(Vec a) { return _mm512_reduce_max_ps(a.v); }
/// a, rounded: keeps the compiler from fusing the product that made it into a sum.
MSA_INLINE Vec rounded(Vec a) {
  asm("" : "+v"(a.v));
  return a;
}
MSA_INLINE Mask greater(Vec a, Vec b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_GT_OQ)}; }
MSA_INLINE Mask equal(Vec a, Vec b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_EQ_OQ)}; }
MSA_INLINE Mask is_nan(Vec a) { return {_mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q)}; }
MSA_INLINE Vec select(Mask m, Vec a, Vec b) { return {_mm512_mask_blend_ps(m.m, b.v, a.v)}; }

MSA_INLINE IVec iset1(std::int32_t x) { return {_mm512_set1_epi32(x)}; }
MSA_INLINE IVec iload(const void* p) { return {_mm512_loadu_si512(p)}; }
MSA_INLINE void istore(void* p, IVec a) { _mm512_storeu_si512(p, a.v); }
MSA_INLINE IVec ior(IVec a, IVec b) { return {_mm512_or_si512(a.v, b.v)}; }
MSA_INLINE IVec isub(IVec a, IVec b) { return {_mm512_sub_epi32(a.v, b.v)}; }
MSA_INLINE IVec imax(IVec a, IVec b) { return {_mm512_max_epi32(a.v, b.v)}; }
MSA_INLINE IVec imin(IVec a, IVec b) { return {_mm512_min_epi32(a.v, b.v)}; }
MSA_INLINE Mask igreater(IVec a, IVec b) { return {_mm512_cmpgt_epi32_mask(a.v, b.v)}; }

MSA_INLINE IVec iselect(Mask m, IVec a, IVec b) { return {_mm512_mask_blend_epi32(m.m, b.v, a.v)}; }
MSA_INLINE Vec to_float(IVec a) { return {_mm512_cvtepi32_ps(a.v)}; }

MSA_INLINE unsigned bits(Mask m) { return m.m; }  // lane i is bit i
MSA_INLINE Mask either(Mask a, Mask b) { return {static_cast<__mmask16>(a.m | b.m)}; }

/// The first 16 halves or bfloats at p as floats.
MSA_INLINE Vec load_f16(const std::uint16_t* p) {
  return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
MSA_INLINE Vec load_bf16(const std::uint16_t* p) {
  const __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16))};
}
/// The first 16 codes at p as floats: halves with the exponent 8 too low, all ones where NaN.
MSA_INLINE Vec load_e4m3(const std::uint8_t* p) {
  const __m256i codes = _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  const __m256i magnitude = _mm256_and_si256(codes, _mm256_set1_epi16(0x7f));
  const __m256i sign = _mm256_slli_epi16(_mm256_srli_epi16(codes, 7), 15);
  const __m256i nan = _mm256_and_si256(_mm256_cmpeq_epi16(magnitude, _mm256_set1_epi16(0x7f)),
                                       _mm256_set1_epi16(0x7fff));
  const __m256i halves =
      _mm256_or_si256(_mm256_or_si256(sign, nan), _mm256_slli_epi16(magnitude, 7));
  return {_mm512_mul_ps(_mm512_cvtph_ps(halves), _mm512_set1_ps(256.0f))};
}

/// The first 16 codes at `pairs` as floats: looked up, then signed.
MSA_INLINE Vec load_e2m1(const std::uint8_t* pairs, const float* magnitudes) {
  const __m512i bytes =
      _mm512_castsi128_si512(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(pairs)));
  const __m512i halves = _mm512_permutexvar_epi32(
      _mm512_set_epi32(1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0), bytes);
  const __m512i codes = _mm512_srlv_epi32(
      halves, _mm512_set_epi32(28, 24, 20, 16, 12, 8, 4, 0, 28, 24, 20, 16, 12, 8, 4, 0));
  // The permutation reads the four lowest bits of a lane, of which the highest is the sign.
  const __m512 table = _mm512_broadcast_f32x8(_mm256_loadu_ps(magnitudes));
  const __m512i magnitude = _mm512_castps_si512(_mm512_permutexvar_ps(codes, table));
  // Of the code that bit alone: magnitude ^ (code & sign).
  return {_mm512_castsi512_ps(_mm512_ternarylogic_epi32(magnitude, _mm512_slli_epi32(codes, 28),
                                                        _mm512_set1_epi32(INT32_MIN), 0x78))};
}

MSA_INLINE void store_f16(std::uint16_t* p, Vec a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                      _mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT));
}
MSA_INLINE void store_bf16(std::uint16_t* p, Vec a) {
  const __m512i u = _mm512_castps_si512(a.v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
  const __m512i near = _mm512_add_epi32(_mm512_add_epi32(u, _mm512_set1_epi32(0x7fff)), odd);
  const __m512i quiet = _mm512_or_si512(u, _mm512_set1_epi32(0x400000));
  const __m512i high = _mm512_srli_epi32(_mm512_mask_blend_epi32(is_nan(a).m, near, quiet), 16);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(high));
}

/// 2^x: 0 below -1000, NaN stays NaN. Polynomial of degree 6, 0.95 ulp
/// (docs/kernels/cpu-attend.md).
MSA_INLINE Vec exp2(Vec x) {
  // A NaN in the second operand wins.
  const __m512 y = _mm512_max_ps(_mm512_set1_ps(-1000.0f), x.v);
  const __m512 n = _mm512_roundscale_ps(y, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const __m512 f = _mm512_sub_ps(y, n);
  __m512 p = _mm512_set1_ps(0.000153458124f);
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.00133999309f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.00961848907f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.0555032864f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.240226462f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.693147182f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.0f));
  return {_mm512_scalef_ps(p, n)};
}

/// Transposes 16 x 16 words: row i of `from` (stride in words) becomes column i of `to`.
MSA_INLINE void transpose_words(const Bits* from, std::int64_t from_stride, Bits* to,
                                std::int64_t to_stride) {
  __m512i r[16], s[16];
  for (int i = 0; i < 16; ++i) r[i] = _mm512_loadu_si512(from + i * from_stride);
  for (int i = 0; i < 16; i += 2) {
    s[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
    s[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    r[i] = _mm512_unpacklo_epi64(s[i], s[i + 2]);
    r[i + 1] = _mm512_unpackhi_epi64(s[i], s[i + 2]);
    r[i + 2] = _mm512_unpacklo_epi64(s[i + 1], s[i + 3]);
    r[i + 3] = _mm512_unpackhi_epi64(s[i + 1], s[i + 3]);
  }
  for (int i = 0; i < 4; ++i) {
    s[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
    s[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
    s[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
    s[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
  }
  for (int i = 0; i < 4; ++i) {
    _mm512_storeu_si512(to + (i)*to_stride, _mm512_shuffle_i32x4(s[i], s[i + 8], 0x88));
    _mm512_storeu_si512(to + (i + 8) * to_stride, _mm512_shuffle_i32x4(s[i], s[i + 8], 0xdd));
    _mm512_storeu_si512(to + (i + 4) * to_stride, _mm512_shuffle_i32x4(s[i + 4], s[i + 12], 0x88));
    _mm512_storeu_si512(to + (i + 12) * to_stride, _mm512_shuffle_i32x4(s[i + 4], s[i + 12], 0xdd));
  }
}

/// Lane i: the sum of the lanes of v[i], in an order that does not depend on i.
MSA_INLINE Vec sum_each(const Vec* v) {
  __m512 pairs[8], quads[4], halves[2];
  for (int i = 0; i < 8; ++i) {
    const __m512 a = v[2 * i].v, b = v[2 * i + 1].v;
    pairs[i] = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
  }
  for (int i = 0; i < 4; ++i) {
    const __m512d a = _mm512_castps_pd(pairs[2 * i]), b = _mm512_castps_pd(pairs[2 * i + 1]);
    quads[i] = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(a, b)),
                             _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)));
  }
  for (int i = 0; i < 2; ++i) {
    const __m512 a = quads[2 * i], b = quads[2 * i + 1];
    halves[i] = _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
  }
  return {_mm512_add_ps(_mm512_shuffle_f32x4(halves[0], halves[1], 0x88),
                        _mm512_shuffle_f32x4(halves[0], halves[1], 0xdd))};
}

/// The same of integers.
MSA_INLINE IVec isum_each(const IVec* v) {
  __m512i pairs[8], quads[4], halves[2];
  for (int i = 0; i < 8; ++i) {
    const __m512i a = v[2 * i].v, b = v[2 * i + 1].v;
    pairs[i] = _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
  }
  for (int i = 0; i < 4; ++i) {
    const __m512i a = pairs[2 * i], b = pairs[2 * i + 1];
    quads[i] = _mm512_add_epi32(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
  }
  for (int i = 0; i < 2; ++i) {
    const __m512i a = quads[2 * i], b = quads[2 * i + 1];
    halves[i] =
        _mm512_add_epi32(_mm512_shuffle_i32x4(a, b, 0x88), _mm512_shuffle_i32x4(a, b, 0xdd));
  }
  return {_mm512_add_epi32(_mm512_shuffle_i32x4(halves[0], halves[1], 0x88),
                           _mm512_shuffle_i32x4(halves[0], halves[1], 0xdd))};
}

/// The first 32 codes at p as pairs of 16 bits; where `n` is 16, half of them and zeros.
MSA_INLINE IVec load_codes(const std::int8_t* p, std::int64_t n) {
  if (n < 32) {
    const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return {_mm512_cvtepi8_epi16(_mm256_zextsi128_si256(half))};
  }
  return {_mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
MSA_INLINE IVec pair_step(IVec acc, IVec a, IVec b) {
  return {_mm512_add_epi32(acc.v, _mm512_madd_epi16(a.v, b.v))};
}

/// The operands of the register tile in fp32: one value a word.
struct F32Products {
  using Word = float;
  static constexpr int kPack = 1;  // values that one word holds
  MSA_INLINE static Vec load_lanes(const float* p) { return load(p); }
  MSA_INLINE static Vec broadcast(const float* p) { return {_mm512_set1_ps(*p)}; }
  MSA_INLINE static Vec step(Vec acc, Vec a, Vec b) { return fma(a, b, acc); }
};
