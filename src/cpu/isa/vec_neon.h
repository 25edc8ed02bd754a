// SPDX-License-Identifier: MIT
// The vector layer of Advanced SIMD (NEON): 8 lanes in two registers. Included by isa/neon*.cpp
// inside an instruction-set namespace; holds intrinsics and nothing else. The scalar file lists the
// vocabulary.

inline constexpr int kLanes = 8;
/// Rows of the register tile: 4 x 2 accumulators of two registers leave room for operands in 32.
inline constexpr int kTile = 4;

struct Vec {
  float32x4_t v[2];
};
struct IVec {
  int32x4_t v[2];
};
struct Mask {
  uint32x4_t m[2];  // all bits of a lane
};

MSA_INLINE Vec set1(float x) { return {{vdupq_n_f32(x), vdupq_n_f32(x)}}; }
MSA_INLINE Vec zero() { return set1(0.0f); }
MSA_INLINE Vec load(const float* p) { return {{vld1q_f32(p), vld1q_f32(p + 4)}}; }
MSA_INLINE void store(float* p, Vec a) {
  vst1q_f32(p, a.v[0]);
  vst1q_f32(p + 4, a.v[1]);
}
MSA_INLINE Vec add(Vec a, Vec b) {
  return {{vaddq_f32(a.v[0], b.v[0]), vaddq_f32(a.v[1], b.v[1])}};
}
MSA_INLINE Vec sub(Vec a, Vec b) {
  return {{vsubq_f32(a.v[0], b.v[0]), vsubq_f32(a.v[1], b.v[1])}};
}
MSA_INLINE Vec mul(Vec a, Vec b) {
  return {{vmulq_f32(a.v[0], b.v[0]), vmulq_f32(a.v[1], b.v[1])}};
}
MSA_INLINE Vec div(Vec a, Vec b) {
  return {{vdivq_f32(a.v[0], b.v[0]), vdivq_f32(a.v[1], b.v[1])}};
}
MSA_INLINE Vec fma(Vec a, Vec b, Vec c) {
  return {{vfmaq_f32(c.v[0], a.v[0], b.v[0]), vfmaq_f32(c.v[1], a.v[1], b.v[1])}};
}
/// a, rounded: keeps the compiler from fusing the product that made it into a sum.
MSA_INLINE Vec rounded(Vec a) {
  asm("" : "+w"(a.v[0]), "+w"(a.v[1]));
  return a;
}
MSA_INLINE Mask greater(Vec a, Vec b) {
  return {{vcgtq_f32(a.v[0], b.v[0]), vcgtq_f32(a.v[1], b.v[1])}};
}
MSA_INLINE Mask equal(Vec a, Vec b) {
  return {{vceqq_f32(a.v[0], b.v[0]), vceqq_f32(a.v[1], b.v[1])}};
}
MSA_INLINE Mask is_nan(Vec a) {
  return {{vmvnq_u32(vceqq_f32(a.v[0], a.v[0])), vmvnq_u32(vceqq_f32(a.v[1], a.v[1]))}};
}
MSA_INLINE Vec select(Mask m, Vec a, Vec b) {
  return {{vbslq_f32(m.m[0], a.v[0], b.v[0]), vbslq_f32(m.m[1], a.v[1], b.v[1])}};
}
/// The processor's own maximum gives NaN where either is one; this keeps the second operand then.
MSA_INLINE Vec max(Vec a, Vec b) { return select(greater(a, b), a, b); }

MSA_INLINE Vec min(Vec a, Vec b) { return select(greater(b, a), a, b); }
/// Of all lanes; none is NaN.
MSA_INLINE float largest(Vec a) { return vmaxvq_f32(vmaxq_f32(a.v[0], a.v[1])); }

MSA_INLINE IVec iset1(std::int32_t x) { return {{vdupq_n_s32(x), vdupq_n_s32(x)}}; }
MSA_INLINE IVec iload(const void* p) {
  const auto* words = static_cast<const std::int32_t*>(p);
  return {{vld1q_s32(words), vld1q_s32(words + 4)}};
}
MSA_INLINE void istore(void* p, IVec a) {
  auto* words = static_cast<std::int32_t*>(p);
  vst1q_s32(words, a.v[0]);
  vst1q_s32(words + 4, a.v[1]);
}
MSA_INLINE IVec ior(IVec a, IVec b) {
  return {{vorrq_s32(a.v[0], b.v[0]), vorrq_s32(a.v[1], b.v[1])}};
}
MSA_INLINE IVec isub(IVec a, IVec b) {
  return {{vsubq_s32(a.v[0], b.v[0]), vsubq_s32(a.v[1], b.v[1])}};
}
MSA_INLINE IVec imax(IVec a, IVec b) {
  return {{vmaxq_s32(a.v[0], b.v[0]), vmaxq_s32(a.v[1], b.v[1])}};
}
MSA_INLINE IVec imin(IVec a, IVec b) {
  return {{vminq_s32(a.v[0], b.v[0]), vminq_s32(a.v[1], b.v[1])}};
}
MSA_INLINE Mask igreater(IVec a, IVec b) {
  return {{vcgtq_s32(a.v[0], b.v[0]), vcgtq_s32(a.v[1], b.v[1])}};
}

MSA_INLINE IVec iselect(Mask m, IVec a, IVec b) {
  return {{vbslq_s32(m.m[0], a.v[0], b.v[0]), vbslq_s32(m.m[1], a.v[1], b.v[1])}};
}
MSA_INLINE Vec to_float(IVec a) { return {{vcvtq_f32_s32(a.v[0]), vcvtq_f32_s32(a.v[1])}}; }

/// Lane i is bit i.
MSA_INLINE unsigned bits(Mask m) {
  const uint32x4_t low = {1, 2, 4, 8}, high = {16, 32, 64, 128};
  return vaddvq_u32(vorrq_u32(vandq_u32(m.m[0], low), vandq_u32(m.m[1], high)));
}
MSA_INLINE Mask either(Mask a, Mask b) {
  return {{vorrq_u32(a.m[0], b.m[0]), vorrq_u32(a.m[1], b.m[1])}};
}

/// The first 8 halves or bfloats at p as floats.
MSA_INLINE Vec load_f16(const std::uint16_t* p) {
  const float16x8_t halves = vreinterpretq_f16_u16(vld1q_u16(p));
  return {{vcvt_f32_f16(vget_low_f16(halves)), vcvt_high_f32_f16(halves)}};
}
MSA_INLINE Vec load_bf16(const std::uint16_t* p) {
  const uint16x8_t halves = vld1q_u16(p);
  return {{vreinterpretq_f32_u32(vshll_n_u16(vget_low_u16(halves), 16)),
           vreinterpretq_f32_u32(vshll_high_n_u16(halves, 16))}};
}
/// The first 8 codes at p as floats: halves with the exponent 8 too low, all ones where NaN.
MSA_INLINE Vec load_e4m3(const std::uint8_t* p) {
  const uint16x8_t codes = vmovl_u8(vld1_u8(p));
  const uint16x8_t magnitude = vandq_u16(codes, vdupq_n_u16(0x7f));
  const uint16x8_t sign = vshlq_n_u16(vshrq_n_u16(codes, 7), 15);
  const uint16x8_t nan = vandq_u16(vceqq_u16(magnitude, vdupq_n_u16(0x7f)), vdupq_n_u16(0x7fff));
  const float16x8_t halves =
      vreinterpretq_f16_u16(vorrq_u16(vorrq_u16(sign, nan), vshlq_n_u16(magnitude, 7)));
  return {{vmulq_n_f32(vcvt_f32_f16(vget_low_f16(halves)), 256.0f),
           vmulq_n_f32(vcvt_high_f32_f16(halves), 256.0f)}};
}

/// The first 8 codes at `pairs` as floats: looked up, then signed.
MSA_INLINE Vec load_e2m1(const std::uint8_t* pairs, const float* magnitudes) {
  float values[8];
  for (int i = 0; i < 8; ++i) {
    const int code = pairs[i / 2] >> (i % 2 * 4) & 15;
    values[i] = (code & 8) != 0 ? -magnitudes[code & 7] : magnitudes[code & 7];
  }
  return load(values);
}

MSA_INLINE void store_f16(std::uint16_t* p, Vec a) {
  const float16x8_t halves = vcvt_high_f16_f32(vcvt_f16_f32(a.v[0]), a.v[1]);
  vst1q_u16(p, vreinterpretq_u16_f16(halves));
}
/// Four floats to bfloats in the low halves of words, to nearest even.
MSA_INLINE uint32x4_t bf16_words(float32x4_t a) {
  const uint32x4_t u = vreinterpretq_u32_f32(a);
  const uint32x4_t odd = vandq_u32(vshrq_n_u32(u, 16), vdupq_n_u32(1));
  const uint32x4_t near = vaddq_u32(vaddq_u32(u, vdupq_n_u32(0x7fff)), odd);
  const uint32x4_t quiet = vorrq_u32(u, vdupq_n_u32(0x400000));
  return vshrq_n_u32(vbslq_u32(vceqq_f32(a, a), near, quiet), 16);
}
MSA_INLINE void store_bf16(std::uint16_t* p, Vec a) {
  vst1q_u16(p, vcombine_u16(vmovn_u32(bf16_words(a.v[0])), vmovn_u32(bf16_words(a.v[1]))));
}

/// 2^x: 0 from -127 down, NaN stays NaN. Polynomial of degree 6, 0.95 ulp
/// (docs/kernels/cpu-attend.md).
MSA_INLINE Vec exp2(Vec x) {
  Vec result;
  for (int i = 0; i < 2; ++i) {
    // Where the comparison is false, x stays: so does a NaN.
    const float32x4_t least = vdupq_n_f32(-127.0f);
    const float32x4_t y = vbslq_f32(vcltq_f32(x.v[i], least), least, x.v[i]);
    const float32x4_t n = vrndnq_f32(y);
    const float32x4_t f = vsubq_f32(y, n);
    float32x4_t p = vdupq_n_f32(0.000153458124f);
    p = vfmaq_f32(vdupq_n_f32(0.00133999309f), p, f);
    p = vfmaq_f32(vdupq_n_f32(0.00961848907f), p, f);
    p = vfmaq_f32(vdupq_n_f32(0.0555032864f), p, f);
    p = vfmaq_f32(vdupq_n_f32(0.240226462f), p, f);
    p = vfmaq_f32(vdupq_n_f32(0.693147182f), p, f);
    p = vfmaq_f32(vdupq_n_f32(1.0f), p, f);
    // 2^n is built in the exponent field: n = -127 makes the field, and so the product, zero.
    const int32x4_t field = vshlq_n_s32(vaddq_s32(vcvtq_s32_f32(n), vdupq_n_s32(127)), 23);
    result.v[i] = vmulq_f32(p, vreinterpretq_f32_s32(field));
  }
  return result;
}

/// Transposes 4 x 4 words.
MSA_INLINE void transpose_quad(const Bits* from, std::int64_t from_stride, Bits* to,
                               std::int64_t to_stride) {
  uint32x4_t r[4];
  for (int i = 0; i < 4; ++i)
    r[i] = vld1q_u32(reinterpret_cast<const std::uint32_t*>(from + i * from_stride));
  const uint32x4x2_t upper = vtrnq_u32(r[0], r[1]), lower = vtrnq_u32(r[2], r[3]);
  for (int i = 0; i < 2; ++i) {
    const uint32x4_t first = vcombine_u32(vget_low_u32(upper.val[i]), vget_low_u32(lower.val[i]));
    const uint32x4_t second =
        vcombine_u32(vget_high_u32(upper.val[i]), vget_high_u32(lower.val[i]));
    vst1q_u32(reinterpret_cast<std::uint32_t*>(to + i * to_stride), first);
    vst1q_u32(reinterpret_cast<std::uint32_t*>(to + (i + 2) * to_stride), second);
  }
}
/// Transposes 8 x 8 words: row i of `from` (stride in words) becomes column i of `to`.
MSA_INLINE void transpose_words(const Bits* from, std::int64_t from_stride, Bits* to,
                                std::int64_t to_stride) {
  for (int i = 0; i < 8; i += 4) {
    for (int j = 0; j < 8; j += 4)
      transpose_quad(from + i * from_stride + j, from_stride, to + j * to_stride + i, to_stride);
  }
}

/// Lane i: the sum of the lanes of v[i], in an order that does not depend on i.
MSA_INLINE Vec sum_each(const Vec* v) {
  float32x4_t pairs[4];
  for (int i = 0; i < 4; ++i) {
    const float32x4_t a = vaddq_f32(v[2 * i].v[0], v[2 * i].v[1]);
    const float32x4_t b = vaddq_f32(v[2 * i + 1].v[0], v[2 * i + 1].v[1]);
    pairs[i] = vpaddq_f32(a, b);
  }
  return {{vpaddq_f32(pairs[0], pairs[1]), vpaddq_f32(pairs[2], pairs[3])}};
}

/// The same of integers.
MSA_INLINE IVec isum_each(const IVec* v) {
  int32x4_t pairs[4];
  for (int i = 0; i < 4; ++i) {
    pairs[i] = vpaddq_s32(vaddq_s32(v[2 * i].v[0], v[2 * i].v[1]),
                          vaddq_s32(v[2 * i + 1].v[0], v[2 * i + 1].v[1]));
  }
  return {{vpaddq_s32(pairs[0], pairs[1]), vpaddq_s32(pairs[2], pairs[3])}};
}

/// The first 16 codes at p as pairs of 16 bits.
MSA_INLINE IVec load_codes(const std::int8_t* p, std::int64_t) {
  const int8x16_t codes = vld1q_s8(p);
  return {{vreinterpretq_s32_s16(vmovl_s8(vget_low_s8(codes))),
           vreinterpretq_s32_s16(vmovl_high_s8(codes))}};
}
MSA_INLINE int32x4_t pair_sums(int32x4_t a, int32x4_t b) {
  const int16x8_t x = vreinterpretq_s16_s32(a), y = vreinterpretq_s16_s32(b);
  return vpaddq_s32(vmull_s16(vget_low_s16(x), vget_low_s16(y)), vmull_high_s16(x, y));
}
MSA_INLINE IVec pair_step(IVec acc, IVec a, IVec b) {
  return {{vaddq_s32(acc.v[0], pair_sums(a.v[0], b.v[0])),
           vaddq_s32(acc.v[1], pair_sums(a.v[1], b.v[1]))}};
}

/// The operands of the register tile in fp32: one value a word.
struct F32Products {
  using Word = float;
  static constexpr int kPack = 1;  // values that one word holds
  MSA_INLINE static Vec load_lanes(const float* p) { return load(p); }
  MSA_INLINE static Vec broadcast(const float* p) { return {{vld1q_dup_f32(p), vld1q_dup_f32(p)}}; }
  MSA_INLINE static Vec step(Vec acc, Vec a, Vec b) { return fma(a, b, acc); }
};
