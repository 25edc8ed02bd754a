// SPDX-License-Identifier: MIT
// The vector layer of AVX2 with FMA and F16C: 8 lanes. Included by isa/avx2.cpp inside a target
// region and an instruction-set namespace; holds intrinsics and nothing else. The scalar file lists
// the vocabulary.

inline constexpr int kLanes = 8;
/// Rows of the register tile: 4 x 2 accumulators leave room for operands in 16 registers.
inline constexpr int kTile = 4;

struct Vec {
  __m256 v;
};
struct IVec {
  __m256i v;
};
struct Mask {
  __m256 m;  // all bits of a lane
};

MSA_INLINE Vec zero() { return {_mm256_setzero_ps()}; }
MSA_INLINE Vec set1(float x) { return {_mm256_set1_ps(x)}; }
MSA_INLINE Vec load(const float* p) { return {_mm256_loadu_ps(p)}; }
MSA_INLINE void store(float* p, Vec a) { _mm256_storeu_ps(p, a.v); }
MSA_INLINE Vec add(Vec a, Vec b) { return {_mm256_add_ps(a.v, b.v)}; }
MSA_INLINE Vec sub(Vec a, Vec b) { return {_mm256_sub_ps(a.v, b.v)}; }
MSA_INLINE Vec mul(Vec a, Vec b) { return {_mm256_mul_ps(a.v, b.v)}; }
MSA_INLINE Vec div(Vec a, Vec b) { return {_mm256_div_ps(a.v, b.v)}; }
MSA_INLINE Vec fma(Vec a, Vec b, Vec c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
MSA_INLINE Vec max(Vec a, Vec b) { return {_mm256_max_ps(a.v, b.v)}; }
MSA_INLINE Vec min(Vec a, Vec b) { return {_mm256_min_ps(a.v, b.v)}; }
/// Of all lanes; none is NaN.
MSA_INLINE float largest(Vec a) {
  __m128 m = _mm_max_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  m = _mm_max_ps(m, _mm_movehl_ps(m, m));
  return _mm_cvtss_f32(_mm_max_ss(m, _mm_movehdup_ps(m)));
}
/// a, rounded: keeps the compiler from fusing the product that made it into a sum.
MSA_INLINE Vec rounded(Vec a) {
  asm("" : "+x"(a.v));
  return a;
}
MSA_INLINE Mask greater(Vec a, Vec b) { return {_mm256_cmp_ps(a.v, b.v, _CMP_GT_OQ)}; }
MSA_INLINE Mask equal(Vec a, Vec b) { return {_mm256_cmp_ps(a.v, b.v, _CMP_EQ_OQ)}; }
MSA_INLINE Mask is_nan(Vec a) { return {_mm256_cmp_ps(a.v, a.v, _CMP_UNORD_Q)}; }
MSA_INLINE Vec select(Mask m, Vec a, Vec b) { return {_mm256_blendv_ps(b.v, a.v, m.m)}; }

MSA_INLINE IVec iset1(std::int32_t x) { return {_mm256_set1_epi32(x)}; }
MSA_INLINE IVec iload(const void* p) {
  return {_mm256_loadu_si256(static_cast<const __m256i*>(p))};
}
MSA_INLINE void istore(void* p, IVec a) { _mm256_storeu_si256(static_cast<__m256i*>(p), a.v); }
MSA_INLINE IVec ior(IVec a, IVec b) { return {_mm256_or_si256(a.v, b.v)}; }
MSA_INLINE IVec isub(IVec a, IVec b) { return {_mm256_sub_epi32(a.v, b.v)}; }
MSA_INLINE IVec imax(IVec a, IVec b) { return {_mm256_max_epi32(a.v, b.v)}; }
MSA_INLINE IVec imin(IVec a, IVec b) { return {_mm256_min_epi32(a.v, b.v)}; }
MSA_INLINE Mask igreater(IVec a, IVec b) {
  return {_mm256_castsi256_ps(_mm256_cmpgt_epi32(a.v, b.v))};
}

MSA_INLINE IVec iselect(Mask m, IVec a, IVec b) {
  return {_mm256_blendv_epi8(b.v, a.v, _mm256_castps_si256(m.m))};
}
MSA_INLINE Vec to_float(IVec a) { return {_mm256_cvtepi32_ps(a.v)}; }

MSA_INLINE unsigned bits(Mask m) {
  return static_cast<unsigned>(_mm256_movemask_ps(m.m));
}  // lane i is bit i
MSA_INLINE Mask either(Mask a, Mask b) { return {_mm256_or_ps(a.m, b.m)}; }

/// The first 8 halves or bfloats at p as floats.
MSA_INLINE Vec load_f16(const std::uint16_t* p) {
  return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
}
MSA_INLINE Vec load_bf16(const std::uint16_t* p) {
  const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16))};
}
/// The first 8 codes at p as floats: halves with the exponent 8 too low, all ones where NaN.
MSA_INLINE Vec load_e4m3(const std::uint8_t* p) {
  const __m128i codes = _mm_cvtepu8_epi16(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
  const __m128i magnitude = _mm_and_si128(codes, _mm_set1_epi16(0x7f));
  const __m128i sign = _mm_slli_epi16(_mm_srli_epi16(codes, 7), 15);
  const __m128i nan =
      _mm_and_si128(_mm_cmpeq_epi16(magnitude, _mm_set1_epi16(0x7f)), _mm_set1_epi16(0x7fff));
  const __m128i halves = _mm_or_si128(_mm_or_si128(sign, nan), _mm_slli_epi16(magnitude, 7));
  return {_mm256_mul_ps(_mm256_cvtph_ps(halves), _mm256_set1_ps(256.0f))};
}

/// The first 8 codes at `pairs` as floats: looked up, then signed.
MSA_INLINE Vec load_e2m1(const std::uint8_t* pairs, const float* magnitudes) {
  std::int32_t four = 0;
  std::memcpy(&four, pairs, sizeof four);
  // The permutation reads the three lowest bits of a lane.
  const __m256i codes =
      _mm256_srlv_epi32(_mm256_set1_epi32(four), _mm256_set_epi32(28, 24, 20, 16, 12, 8, 4, 0));
  const __m256 sign =
      _mm256_and_ps(_mm256_castsi256_ps(_mm256_slli_epi32(codes, 28)), _mm256_set1_ps(-0.0f));
  return {_mm256_xor_ps(_mm256_permutevar8x32_ps(_mm256_loadu_ps(magnitudes), codes), sign)};
}

MSA_INLINE void store_f16(std::uint16_t* p, Vec a) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT));
}
MSA_INLINE void store_bf16(std::uint16_t* p, Vec a) {
  const __m256i u = _mm256_castps_si256(a.v);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
  const __m256i near = _mm256_add_epi32(_mm256_add_epi32(u, _mm256_set1_epi32(0x7fff)), odd);
  const __m256i quiet = _mm256_or_si256(u, _mm256_set1_epi32(0x400000));
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(a.v, a.v, _CMP_UNORD_Q));
  const __m256i high = _mm256_srli_epi32(_mm256_blendv_epi8(near, quiet, nan), 16);
  _mm_storeu_si128(
      reinterpret_cast<__m128i*>(p),
      _mm_packus_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256(high, 1)));
}

/// 2^x: 0 from -127 down, NaN stays NaN. Polynomial of degree 6, 0.95 ulp
/// (docs/kernels/cpu-attend.md).
MSA_INLINE Vec exp2(Vec x) {
  const __m256 y = _mm256_max_ps(_mm256_set1_ps(-127.0f), x.v);  // a NaN in the second operand wins
  const __m256 n = _mm256_round_ps(y, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const __m256 f = _mm256_sub_ps(y, n);
  __m256 p = _mm256_set1_ps(0.000153458124f);
  p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(0.00133999309f));
  p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(0.00961848907f));
  p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(0.0555032864f));
  p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(0.240226462f));
  p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(0.693147182f));
  p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(1.0f));
  // 2^n is built in the exponent field: n = -127 makes the field, and so the product, zero.
  const __m256i field =
      _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
  return {_mm256_mul_ps(p, _mm256_castsi256_ps(field))};
}

/// Transposes 8 x 8 words: row i of `from` (stride in words) becomes column i of `to`.
MSA_INLINE void transpose_words(const Bits* from, std::int64_t from_stride, Bits* to,
                                std::int64_t to_stride) {
  __m256i r[8], s[8];
  for (int i = 0; i < 8; ++i)
    r[i] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + i * from_stride));
  for (int i = 0; i < 8; i += 2) {
    s[i] = _mm256_unpacklo_epi32(r[i], r[i + 1]);
    s[i + 1] = _mm256_unpackhi_epi32(r[i], r[i + 1]);
  }
  for (int i = 0; i < 8; i += 4) {
    r[i] = _mm256_unpacklo_epi64(s[i], s[i + 2]);
    r[i + 1] = _mm256_unpackhi_epi64(s[i], s[i + 2]);
    r[i + 2] = _mm256_unpacklo_epi64(s[i + 1], s[i + 3]);
    r[i + 3] = _mm256_unpackhi_epi64(s[i + 1], s[i + 3]);
  }
  for (int i = 0; i < 4; ++i) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + i * to_stride),
                        _mm256_permute2x128_si256(r[i], r[i + 4], 0x20));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + (i + 4) * to_stride),
                        _mm256_permute2x128_si256(r[i], r[i + 4], 0x31));
  }
}

/// Lane i: the sum of the lanes of v[i], in an order that does not depend on i.
MSA_INLINE Vec sum_each(const Vec* v) {
  __m256 pairs[4], quads[2];
  for (int i = 0; i < 4; ++i) pairs[i] = _mm256_hadd_ps(v[2 * i].v, v[2 * i + 1].v);
  for (int i = 0; i < 2; ++i) quads[i] = _mm256_hadd_ps(pairs[2 * i], pairs[2 * i + 1]);
  return {_mm256_add_ps(_mm256_permute2f128_ps(quads[0], quads[1], 0x20),
                        _mm256_permute2f128_ps(quads[0], quads[1], 0x31))};
}

/// The same of integers.
MSA_INLINE IVec isum_each(const IVec* v) {
  __m256i pairs[4], quads[2];
  for (int i = 0; i < 4; ++i) pairs[i] = _mm256_hadd_epi32(v[2 * i].v, v[2 * i + 1].v);
  for (int i = 0; i < 2; ++i) quads[i] = _mm256_hadd_epi32(pairs[2 * i], pairs[2 * i + 1]);
  return {_mm256_add_epi32(_mm256_permute2x128_si256(quads[0], quads[1], 0x20),
                           _mm256_permute2x128_si256(quads[0], quads[1], 0x31))};
}

/// The first 16 codes at p as pairs of 16 bits.
MSA_INLINE IVec load_codes(const std::int8_t* p, std::int64_t) {
  return {_mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
}
MSA_INLINE IVec pair_step(IVec acc, IVec a, IVec b) {
  return {_mm256_add_epi32(acc.v, _mm256_madd_epi16(a.v, b.v))};
}

/// The operands of the register tile in fp32: one value a word.
struct F32Products {
  using Word = float;
  static constexpr int kPack = 1;  // values that one word holds
  MSA_INLINE static Vec load_lanes(const float* p) { return load(p); }
  MSA_INLINE static Vec broadcast(const float* p) { return {_mm256_broadcast_ss(p)}; }
  MSA_INLINE static Vec step(Vec acc, Vec a, Vec b) { return fma(a, b, acc); }
};
