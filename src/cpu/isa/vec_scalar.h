// SPDX-License-Identifier: MIT
// The vector layer in plain C++: kPlainLanes lanes as an array, for any processor and for tools
// that know no vector registers. Every level has this vocabulary; masks are what comparisons give
// and `select` takes (first value where set). max keeps the second operand when either is a NaN, as
// the x86 instruction does.

inline constexpr int kLanes = kPlainLanes;
inline constexpr int kTile = 4;  // rows of the register tile

#if defined(MSA_SANITIZED)
// Where sanitizers watch, each lane of an array is memory to watch, and a vector of the compiler's
// none: with it these kernels compile in two thirds of the time and tests of them run in half.
using Floats = float __attribute__((vector_size(kLanes * sizeof(float))));
using Integers = std::int32_t __attribute__((vector_size(kLanes * sizeof(std::int32_t))));
using Flags = Integers;  // -1 where set
#else
using Floats = float[kLanes];
using Integers = std::int32_t[kLanes];
using Flags = bool[kLanes];
#endif

struct Vec {
  Floats v;
};
struct IVec {
  Integers v;
};
struct Mask {
  Flags v;
};

/// An operand: a value. Sanitizers have clang copy each such value and watch the copy, a third of
/// these kernels' time there: a reference. The products that most of the rest is are no call then.
template <class T>
#if defined(MSA_SANITIZED) || defined(__OPTIMIZE_SIZE__)
using In = const T&;
#define MSA_OF_LANE __attribute__((always_inline))
#else
using In = T;
#define MSA_OF_LANE
#endif

/// R, of whose lane i f(i) is.
template <class R, class F>
MSA_INLINE R each(const F& f) {
  R r;
  for (int i = 0; i < kLanes; ++i) r.v[i] = f(i);
  return r;
}

/// The same without a loop, which would leave lanes of the compiler's vectors in memory.
template <class R, class F>
MSA_INLINE R each_at_once(const F& f) {
  return [&]<int... kLane>(std::integer_sequence<int, kLane...>) MSA_OF_LANE {
    return R{{f(kLane)...}};
  }
  (std::make_integer_sequence<int, kLanes>());
}

/// R, of whose lanes each is f of the same lane of all operands.
template <class R, class F, class... A>
MSA_INLINE R lanewise(const F& f, const A&... a) {
#if defined(MSA_SANITIZED)
  return {f(a.v...)};
#else
  return each<R>([&](int i) MSA_OF_LANE { return f(a.v[i]...); });
#endif
}

/// The words of all lanes, four at a time: of a longer copy ASan would watch no more than the ends.
template <int kFirst = 0>
MSA_INLINE void copy_lanes(void* to, const void* from) {
  constexpr std::size_t kSize = 16;
  std::memcpy(static_cast<std::byte*>(to) + 4 * kFirst,
              static_cast<const std::byte*>(from) + 4 * kFirst, kSize);
  if constexpr (kFirst + 4 < kLanes) copy_lanes<kFirst + 4>(to, from);
}

MSA_INLINE Vec set1(float x) {
  return lanewise<Vec>([=](auto zero) MSA_OF_LANE { return x - zero; }, Vec{});
}
MSA_INLINE Vec zero() { return set1(0.0f); }
MSA_INLINE Vec load(const float* p) {
  Vec r;
  copy_lanes(&r.v, p);
  return r;
}
MSA_INLINE void store(float* p, In<Vec> a) { copy_lanes(p, &a.v); }
MSA_INLINE Vec add(In<Vec> a, In<Vec> b) {
  return lanewise<Vec>([](auto x, auto y) MSA_OF_LANE { return x + y; }, a, b);
}
MSA_INLINE Vec sub(In<Vec> a, In<Vec> b) {
  return lanewise<Vec>([](auto x, auto y) MSA_OF_LANE { return x - y; }, a, b);
}
MSA_INLINE Vec mul(In<Vec> a, In<Vec> b) {
  return lanewise<Vec>([](auto x, auto y) MSA_OF_LANE { return x * y; }, a, b);
}
MSA_INLINE Vec div(In<Vec> a, In<Vec> b) {
  return lanewise<Vec>([](auto x, auto y) MSA_OF_LANE { return x / y; }, a, b);
}
/// a * b + c, fused or not.
MSA_INLINE Vec fma(In<Vec> a, In<Vec> b, In<Vec> c) {
  return lanewise<Vec>([](auto x, auto y, auto z) MSA_OF_LANE { return x * y + z; }, a, b, c);
}
MSA_INLINE Vec max(In<Vec> a, In<Vec> b) {
  return lanewise<Vec>([](auto x, auto y) MSA_OF_LANE { return x > y ? x : y; }, a, b);
}
MSA_INLINE Vec min(In<Vec> a, In<Vec> b) {
  return lanewise<Vec>([](auto x, auto y) MSA_OF_LANE { return x < y ? x : y; }, a, b);
}
/// Of all lanes; none is NaN.
MSA_INLINE float largest(In<Vec> a) {
  float x = a.v[0];
  for (int i = 1; i < kLanes; ++i) x = a.v[i] > x ? a.v[i] : x;
  return x;
}
/// a, rounded: keeps the compiler from fusing the product that made it into a sum.
MSA_INLINE Vec rounded(In<Vec> a) { return a; }
MSA_INLINE Mask greater(In<Vec> a, In<Vec> b) {
  return lanewise<Mask>([](auto x, auto y) MSA_OF_LANE { return x > y; }, a, b);
}
MSA_INLINE Mask equal(In<Vec> a, In<Vec> b) {
  return lanewise<Mask>([](auto x, auto y) MSA_OF_LANE { return x == y; }, a, b);
}
MSA_INLINE Mask is_nan(In<Vec> a) {
  return lanewise<Mask>([](auto x) MSA_OF_LANE { return x != x; }, a);
}
MSA_INLINE Vec select(In<Mask> m, In<Vec> a, In<Vec> b) {
  return lanewise<Vec>([](auto set, auto x, auto y) MSA_OF_LANE { return set ? x : y; }, m, a, b);
}

MSA_INLINE IVec iset1(std::int32_t x) {
  return lanewise<IVec>([=](auto zero) MSA_OF_LANE { return x | zero; }, IVec{});
}
MSA_INLINE IVec iload(const void* p) {
  IVec r;
  copy_lanes(&r.v, p);
  return r;
}
MSA_INLINE void istore(void* p, In<IVec> a) { copy_lanes(p, &a.v); }
MSA_INLINE IVec ior(In<IVec> a, In<IVec> b) {
  return lanewise<IVec>([](auto x, auto y) MSA_OF_LANE { return x | y; }, a, b);
}
MSA_INLINE IVec isub(In<IVec> a, In<IVec> b) {
  return each<IVec>([&](int i) { return a.v[i] - b.v[i]; });
}
MSA_INLINE IVec imax(In<IVec> a, In<IVec> b) {
  return lanewise<IVec>([](auto x, auto y) MSA_OF_LANE { return x > y ? x : y; }, a, b);
}
MSA_INLINE IVec imin(In<IVec> a, In<IVec> b) {
  return lanewise<IVec>([](auto x, auto y) MSA_OF_LANE { return x < y ? x : y; }, a, b);
}
MSA_INLINE Mask igreater(In<IVec> a, In<IVec> b) {
  return lanewise<Mask>([](auto x, auto y) MSA_OF_LANE { return x > y; }, a, b);
}

MSA_INLINE IVec iselect(In<Mask> m, In<IVec> a, In<IVec> b) {
  return lanewise<IVec>([](auto set, auto x, auto y) MSA_OF_LANE { return set ? x : y; }, m, a, b);
}
/// Exact below 2^24.
MSA_INLINE Vec to_float(In<IVec> a) {
  return each<Vec>([&](int i) MSA_OF_LANE { return static_cast<float>(a.v[i]); });
}

/// Lane i is bit i.
MSA_INLINE unsigned bits(In<Mask> m) {
  unsigned r = 0;
  for (int i = 0; i < kLanes; ++i) r |= static_cast<unsigned>(m.v[i] != 0) << i;
  return r;
}
MSA_INLINE Mask either(In<Mask> a, In<Mask> b) {
  return lanewise<Mask>([](auto x, auto y) MSA_OF_LANE { return x | y; }, a, b);
}

/// The first halves or bfloats at p as floats.
MSA_INLINE Vec load_f16(const std::uint16_t* p) {
  return each<Vec>([&](int i) { return f16_to_float(p[i]); });
}
MSA_INLINE Vec load_bf16(const std::uint16_t* p) {
  return each<Vec>([&](int i) { return bf16_to_float(p[i]); });
}
/// The first codes at p as floats.
MSA_INLINE Vec load_e4m3(const std::uint8_t* p) {
  return each<Vec>([&](int i) { return e4m3_to_float(p[i]); });
}

/// The first codes at `pairs` as floats: looked up, then signed.
MSA_INLINE Vec load_e2m1(const std::uint8_t* pairs, const float* magnitudes) {
  return each<Vec>([&](int i) {
    const int code = pairs[i / 2] >> (i % 2 * 4) & 15;
    return (code & 8) != 0 ? -magnitudes[code & 7] : magnitudes[code & 7];
  });
}

MSA_INLINE void store_f16(std::uint16_t* p, In<Vec> a) {
  for (int i = 0; i < kLanes; ++i) p[i] = float_to_f16(a.v[i]);
}
MSA_INLINE void store_bf16(std::uint16_t* p, In<Vec> a) {
  for (int i = 0; i < kLanes; ++i) p[i] = float_to_bf16(a.v[i]);
}

/// 2^x: 0 from -127 down, NaN stays NaN. Polynomial of degree 6, 1.22 ulp, as nothing is fused
/// (docs/kernels/cpu-attend.md).
MSA_INLINE Vec exp2(In<Vec> x) {
  return each<Vec>([&](int i) {
    const float y = x.v[i] < -127.0f ? -127.0f : x.v[i];
    if (!(y < 128.0f)) return y + std::numeric_limits<float>::infinity();  // NaN, or too large
    const float n = std::nearbyint(y), f = y - n;
    float p = 0.000153458124f;
    p = p * f + 0.00133999309f;
    p = p * f + 0.00961848907f;
    p = p * f + 0.0555032864f;
    p = p * f + 0.240226462f;
    p = p * f + 0.693147182f;
    p = p * f + 1.0f;
    // 2^n is built in the exponent field: n = -127 makes the field, and so the product, zero.
    return p * std::bit_cast<float>(static_cast<std::uint32_t>(static_cast<std::int32_t>(n) + 127)
                                    << 23);
  });
}

/// Transposes kLanes x kLanes words: row i of `from` (stride in words) becomes column i of `to`.
MSA_INLINE void transpose_words(const Bits* from, std::int64_t from_stride, Bits* to,
                                std::int64_t to_stride) {
  std::uint32_t words[kLanes][kLanes];  // `to` may be `from`
  for (int i = 0; i < kLanes; ++i) std::memcpy(words[i], from + i * from_stride, sizeof words[i]);
  for (int j = 0; j < kLanes; ++j) {
    for (int i = 0; i < kLanes; ++i) to[j * to_stride + i] = words[i][j];
  }
}

/// Lane i: the sum of the lanes of v[i], in an order that does not depend on i.
MSA_INLINE Vec sum_each(const Vec* v) {
  return each<Vec>([&](int i) {
    float sum = 0;
    for (int j = 0; j < kLanes; ++j) sum += v[i].v[j];
    return sum;
  });
}

/// The same of integers.
MSA_INLINE IVec isum_each(const IVec* v) {
  return each<IVec>([&](int i) {
    std::int32_t sum = 0;
    for (int j = 0; j < kLanes; ++j) sum += v[i].v[j];
    return sum;
  });
}

/// The first 16 codes at p as pairs of 16 bits, the first in the low half. (8 lanes hold no more; a
/// level of more of them multiplies codes in tiles.)
MSA_INLINE IVec load_codes(const std::int8_t* p, std::int64_t) {
  return each_at_once<IVec>([&](int i) MSA_OF_LANE {
    const auto low = static_cast<std::uint16_t>(p[2 * i]);
    const auto high = static_cast<std::uint16_t>(p[2 * i + 1]);
    return static_cast<std::int32_t>(low | static_cast<std::uint32_t>(high) << 16);
  });
}
/// acc + the products of both pairs of each lane.
MSA_INLINE IVec pair_step(In<IVec> acc, In<IVec> a, In<IVec> b) {
  return each_at_once<IVec>([&](int i) MSA_OF_LANE {
    const std::int32_t x = a.v[i], y = b.v[i];
    return acc.v[i] +
           static_cast<std::int16_t>(x & 0xffff) * static_cast<std::int16_t>(y & 0xffff) +
           (x >> 16) * (y >> 16);
  });
}

/// The operands of the register tile in fp32: one value a word.
struct F32Products {
  using Word = float;
  static constexpr int kPack = 1;  // values that one word holds
  MSA_INLINE static Vec load_lanes(const float* p) { return load(p); }
  MSA_INLINE static Vec broadcast(const float* p) { return set1(*p); }
  MSA_INLINE static Vec step(In<Vec> acc, In<Vec> a, In<Vec> b) { return fma(a, b, acc); }
};
#undef MSA_OF_LANE
