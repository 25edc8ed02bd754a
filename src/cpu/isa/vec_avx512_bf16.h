// SPDX-License-Identifier: MIT
// What AVX-512 BF16 and VNNI add to vec_avx512.h: products of bfloat pairs, summed in fp32, and of
// four codes of 8 bits, summed exactly.

struct ByteBounds;  // vec_avx512_bytes.h, where the level has it

/// The operands of the register tile in bf16: two values a word, multiplied and summed by one
/// instruction.
struct Bf16Products {
  using Word = std::uint32_t;
  static constexpr int kPack = 2;
  /// What multiplies floats is its code, which this level would compile to the same again.
  static const Kernels& level_of_floats() { return avx512::kKernels; }
  MSA_INLINE static IVec load_lanes(const std::uint32_t* p) { return iload(p); }
  /// The first 8 words at p, then zeros.
  MSA_INLINE static IVec load_half(const void* p) {
    return {_mm512_zextsi256_si512(_mm256_loadu_si256(static_cast<const __m256i*>(p)))};
  }
  MSA_INLINE static IVec broadcast(const std::uint32_t* p) {
    return iset1(static_cast<std::int32_t>(*p));
  }
  MSA_INLINE static Vec step(Vec acc, IVec a, IVec b) {
    return {_mm512_dpbf16_ps(acc.v, (__m512bh)a.v, (__m512bh)b.v)};
  }

  /// Two rows of lanes to one of words, rounded to nearest even; `even` in the low half.
  MSA_INLINE static IVec pair(Vec even, Vec odd) {
    // 16 of even, then 16 of odd.
    const __m512i halves = (__m512i)_mm512_cvtne2ps_pbh(odd.v, even.v);
    const __m512i order =
        _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6,
                         21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    return {_mm512_permutexvar_epi16(order, halves)};
  }

  /// The same, each of two words: the upper bits of a number, and what is left of it, rounded;
  /// nothing of what is not finite.
  MSA_INLINE static void split(Vec even, Vec odd, IVec (&words)[2]) {
    const __m512i upper = _mm512_set1_epi32(static_cast<std::int32_t>(0xffff0000u));
    const __m512i high[2] = {_mm512_and_si512(_mm512_castps_si512(even.v), upper),
                             _mm512_and_si512(_mm512_castps_si512(odd.v), upper)};
    const __m512 left[2] = {_mm512_sub_ps(even.v, _mm512_castsi512_ps(high[0])),
                            _mm512_sub_ps(odd.v, _mm512_castsi512_ps(high[1]))};
    const auto finite = [](__m512 x) {
      return Vec{_mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, x, _CMP_ORD_Q), x)};
    };
    words[0].v = _mm512_or_si512(_mm512_srli_epi32(high[0], 16), high[1]);
    words[1] = pair(finite(left[0]), finite(left[1]));
  }

  /// The first `dim` (at most 32) bfloats of two rows as words (even[i], odd[i]), in two vectors.
  MSA_INLINE static void pair_rows(const std::uint16_t* even, const std::uint16_t* odd,
                                   std::int64_t dim, IVec (&words)[2]) {
    const __m512i first =
        _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8, 39, 7, 38, 6,
                         37, 5, 36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
    const __m512i second = _mm512_add_epi16(first, _mm512_set1_epi16(16));
    const __mmask32 present = dim >= 32 ? ~__mmask32{0} : (__mmask32{1} << dim) - 1;
    const __m512i a = _mm512_maskz_loadu_epi16(present, even);
    const __m512i b = _mm512_maskz_loadu_epi16(present, odd);
    words[0].v = _mm512_permutex2var_epi16(a, first, b);
    words[1].v = _mm512_permutex2var_epi16(a, second, b);
  }

  /// 16 codes of e4m3 as bfloats: numbers below 2^-6, which have no exponent, out of a table.
  MSA_INLINE static void widen_e4m3(const std::uint8_t* codes, std::uint16_t* to) {
    const __m256i x =
        _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(codes)));
    const __m256i magnitude = _mm256_and_si256(x, _mm256_set1_epi16(0x7f));
    const __m256i sign = _mm256_slli_epi16(_mm256_srli_epi16(x, 7), 15);
    const __m256i normal =
        _mm256_add_epi16(_mm256_slli_epi16(magnitude, 4), _mm256_set1_epi16(120 << 7));
    // m x 2^-9
    const __m256i small = _mm256_permutexvar_epi16(
        magnitude, _mm256_set_epi16(0, 0, 0, 0, 0, 0, 0, 0, 0x3c60, 0x3c40, 0x3c20, 0x3c00, 0x3bc0,
                                    0x3b80, 0x3b00, 0));
    const __mmask16 is_small = _mm256_cmplt_epi16_mask(magnitude, _mm256_set1_epi16(8));
    const __mmask16 is_nan = _mm256_cmpeq_epi16_mask(magnitude, _mm256_set1_epi16(0x7f));
    const __m256i value = _mm256_mask_mov_epi16(_mm256_mask_mov_epi16(normal, is_small, small),
                                                is_nan, _mm256_set1_epi16(0x7fc0));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm256_or_si256(value, sign));
  }

  /// 16 codes of e2m1 as bfloats: `values` are those of codes 0 to 15.
  MSA_INLINE static void widen_e2m1(const std::uint8_t* pairs, const std::uint16_t* values,
                                    std::uint16_t* to) {
    const __m256i bytes =
        _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(pairs)));
    // permutexvar reads the four lowest bits of a lane
    const __m256i codes = _mm256_or_si256(bytes, _mm256_slli_epi32(bytes, 12));
    const __m256i table = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(values));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm256_permutexvar_epi16(codes, table));
  }

  /// Two rows of `dim` bfloats to words (even[i], odd[i]), 16 to a strip.
  MSA_INLINE static void interleave(const std::uint16_t* even, const std::uint16_t* odd,
                                    std::int64_t dim, std::uint32_t* to, std::int64_t strip) {
    for (std::int64_t d = 0; d < dim; d += 32) {
      IVec words[2];
      pair_rows(even + d, odd + d, dim - d, words);
      istore(to + d / 16 * strip, words[0]);
      if (d + 16 < dim) istore(to + (d / 16 + 1) * strip, words[1]);
    }
  }

  /// The same of 16 values that share a scale, a group of e2m1 codes and as much of a query: one
  /// lookup in half a vector, without a crossing of its halves.
  struct Groups {
    struct Sum {
      __m256 v;
    };
    struct Operand {
      __m256i v;
    };
    static constexpr std::int64_t kStep = 16;
    using Bounds = ByteBounds;
    MSA_INLINE static Sum zero() { return {_mm256_setzero_ps()}; }
    MSA_INLINE static Operand load(const std::uint32_t* p) {
      return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))};
    }
    /// In the order 0, 4, 8, 12, 1, 5, ...: four copies, of which each is shifted by a code more.
    MSA_INLINE static Operand values(const std::uint8_t* pairs, const std::uint16_t* values) {
      const __m256i copies =
          _mm256_broadcastq_epi64(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(pairs)));
      // permutexvar reads the four lowest bits of a lane
      const __m256i codes = _mm256_srlv_epi64(copies, _mm256_set_epi64x(12, 8, 4, 0));
      const __m256i table = _mm256_load_si256(reinterpret_cast<const __m256i*>(values));
      return {_mm256_permutexvar_epi16(codes, table)};
    }
    /// The same to memory, 32 bytes at `to`.
    MSA_INLINE static void widen(const std::uint8_t* pairs, const std::uint16_t* halves,
                                 std::byte* to) {
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), values(pairs, halves).v);
    }
    /// 16 bfloats of a query, in that order.
    MSA_INLINE static void turn(std::byte* halves) {
      std::uint16_t from[16], to[16];
      std::memcpy(from, halves, sizeof from);
      for (int i = 0; i < 16; ++i) to[i] = from[i % 4 * 4 + i / 4];
      std::memcpy(halves, to, sizeof to);
    }
    MSA_INLINE static Sum step(Sum acc, Operand a, Operand b) {
      return {_mm256_dpbf16_ps(acc.v, (__m256bh)a.v, (__m256bh)b.v)};
    }
    /// Lane i of what finish makes of `to`: the sum of the lanes of v[i], in an order that does not
    /// depend on i. The first step: two sums to a half vector.
    static constexpr int kKept = 8;
    MSA_INLINE static void fold(const Sum* v, Sum* to) {
      for (int i = 0; i < kKept; ++i) {
        const __m256 a = v[2 * i].v, b = v[2 * i + 1].v;
        to[i].v = _mm256_add_ps(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
      }
    }
    MSA_INLINE static Vec finish(const Sum* v) {
      return {_mm512_insertf32x8(_mm512_castps256_ps512(finish_four(v)), finish_four(v + 4), 1)};
    }

   private:
    MSA_INLINE static __m256 finish_four(const Sum* pairs) {
      __m256 quads[2];
      for (int i = 0; i < 2; ++i) {
        const __m256d a = _mm256_castps_pd(pairs[2 * i].v);
        const __m256d b = _mm256_castps_pd(pairs[2 * i + 1].v);
        quads[i] = _mm256_add_ps(_mm256_castpd_ps(_mm256_unpacklo_pd(a, b)),
                                 _mm256_castpd_ps(_mm256_unpackhi_pd(a, b)));
      }
      return _mm256_add_ps(_mm256_permute2f128_ps(quads[0], quads[1], 0x20),
                           _mm256_permute2f128_ps(quads[0], quads[1], 0x31));
    }
  };
};

/// Products of 8-bit codes, four to a word. The instruction takes bytes without a sign on one side:
/// there a code is 128 more than it is, and the sum 128 times the other side's too large.
struct ByteProducts {
  static constexpr int kPack = 4;
  static constexpr std::int32_t kShift = 128;
  MSA_INLINE static IVec step(IVec acc, IVec shifted, IVec codes) {
    return {_mm512_dpbusd_epi32(acc.v, shifted.v, codes.v)};
  }
  MSA_INLINE static IVec broadcast(const std::byte* word) {
    std::int32_t x = 0;
    std::memcpy(&x, word, sizeof x);
    return iset1(x);
  }
  /// The first 64 codes at p; where `n` is less, zeros behind them.
  MSA_INLINE static IVec codes(const std::int8_t* p, std::int64_t n) {
    if (n >= 64) return iload(p);
    return {_mm512_maskz_loadu_epi8((__mmask64{1} << n) - 1, p)};
  }
  MSA_INLINE static IVec shifted(IVec codes) {
    return {_mm512_xor_si512(codes.v, _mm512_set1_epi8(static_cast<char>(0x80)))};
  }
  MSA_INLINE static std::int32_t sum(const std::int8_t* p, std::int64_t n) {
    __m512i sums = _mm512_setzero_si512();
    for (std::int64_t d = 0; d < n; d += 64)
      sums = _mm512_dpbusd_epi32(sums, _mm512_set1_epi8(1), codes(p + d, n - d).v);
    return _mm512_reduce_add_epi32(sums);
  }
};
