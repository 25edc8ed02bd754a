// SPDX-License-Identifier: MIT
// What the bf16 instructions of ARM add to vec_neon.h: products of bfloat pairs, summed in fp32.

/// The operands of the register tile in bf16: two values a word, multiplied and summed by one
/// instruction.
struct Bf16Products {
  using Word = std::uint32_t;
  static constexpr int kPack = 2;
  /// What multiplies floats is its code, which this level would compile to the same again.
  static const Kernels& level_of_floats() { return neon::kKernels; }
  MSA_INLINE static IVec load_lanes(const std::uint32_t* p) { return iload(p); }
  MSA_INLINE static IVec broadcast(const std::uint32_t* p) {
    const int32x4_t word = vreinterpretq_s32_u32(vld1q_dup_u32(p));
    return {{word, word}};
  }
  MSA_INLINE static Vec step(Vec acc, IVec a, IVec b) {
    for (int i = 0; i < 2; ++i)
      acc.v[i] =
          vbfdotq_f32(acc.v[i], vreinterpretq_bf16_s32(a.v[i]), vreinterpretq_bf16_s32(b.v[i]));
    return acc;
  }

  /// Two rows of lanes to one of words, rounded to nearest even; `even` in the low half.
  MSA_INLINE static IVec pair(Vec even, Vec odd) {
    IVec words;
    for (int i = 0; i < 2; ++i) {
      const uint32x4_t high = vshlq_n_u32(bf16_words(odd.v[i]), 16);
      words.v[i] = vreinterpretq_s32_u32(vorrq_u32(bf16_words(even.v[i]), high));
    }
    return words;
  }

  /// 16 codes of e4m3 as bfloats.
  MSA_INLINE static void widen_e4m3(const std::uint8_t* codes, std::uint16_t* to) {
    for (int i = 0; i < 16; ++i) to[i] = float_to_bf16(e4m3_to_float(codes[i]));
  }

  /// 16 codes of e2m1 as bfloats: `values` are those of codes 0 to 15.
  MSA_INLINE static void widen_e2m1(const std::uint8_t* pairs, const std::uint16_t* values,
                                    std::uint16_t* to) {
    for (int i = 0; i < 16; ++i) to[i] = values[pairs[i / 2] >> (i % 2 * 4) & 15];
  }

  /// The first `dim` (at most 16) bfloats of two rows as words (even[i], odd[i]), in two vectors.
  MSA_INLINE static void pair_rows(const std::uint16_t* even, const std::uint16_t* odd,
                                   std::int64_t dim, IVec (&words)[2]) {
    std::uint16_t a[16] = {}, b[16] = {};
    const auto count = static_cast<std::size_t>(dim < 16 ? dim : 16);
    std::memcpy(a, even, count * sizeof *a);
    std::memcpy(b, odd, count * sizeof *b);
    for (int i = 0; i < 2; ++i) {
      const uint16x8_t x = vld1q_u16(a + 8 * i), y = vld1q_u16(b + 8 * i);
      words[i].v[0] = vreinterpretq_s32_u16(vzip1q_u16(x, y));
      words[i].v[1] = vreinterpretq_s32_u16(vzip2q_u16(x, y));
    }
  }

  /// Two rows of `dim` bfloats to words (even[i], odd[i]), 8 to a strip.
  MSA_INLINE static void interleave(const std::uint16_t* even, const std::uint16_t* odd,
                                    std::int64_t dim, std::uint32_t* to, std::int64_t strip) {
    for (std::int64_t d = 0; d < dim; d += 16) {
      IVec words[2];
      pair_rows(even + d, odd + d, dim - d, words);
      istore(to + d / 8 * strip, words[0]);
      if (d + 8 < dim) istore(to + (d / 8 + 1) * strip, words[1]);
    }
  }

  /// The same of 16 values that share a scale, a group of e2m1 codes and as much of a query.
  struct Groups {
    using Sum = Vec;
    using Operand = IVec;
    static constexpr std::int64_t kStep = 16;
    MSA_INLINE static Sum zero() { return neon_bf16::zero(); }
    MSA_INLINE static Operand load(const std::uint32_t* p) { return iload(p); }
    MSA_INLINE static Operand values(const std::uint8_t* pairs, const std::uint16_t* values) {
      std::uint16_t halves[16];
      widen_e2m1(pairs, values, halves);
      return iload(halves);
    }
    MSA_INLINE static void turn(std::byte*) {}
    MSA_INLINE static Sum step(Sum acc, Operand a, Operand b) {
      return Bf16Products::step(acc, a, b);
    }
    static constexpr int kKept = kLanes;
    MSA_INLINE static void fold(const Sum* v, Sum* to) {
      for (int i = 0; i < kKept; ++i) to[i] = v[i];
    }
    MSA_INLINE static Vec finish(const Sum* v) { return sum_each(v); }
  };
};
