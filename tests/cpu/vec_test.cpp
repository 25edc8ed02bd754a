// SPDX-License-Identifier: MIT
// The vector layer of every instruction set that this machine has, wrapper by wrapper, against
// arithmetic in double precision.
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <iostream>
#include <limits>
#include <string>
#include <vector>

#include "core/cpu_features.h"
#include "cpu/isa.h"
#include "cpu/kernels.h"
#include "testkit/number.h"
#include "tests/cpu/common.h"

namespace msa::test {
namespace {

using cpu::VectorChecks;

constexpr int kMaxLanes = 16;

/// A 16-bit format, from its definition.
struct Half {
  const char* name;
  int exponent_bits, mantissa_bits;

  std::uint16_t infinity() const {
    return static_cast<std::uint16_t>(((1 << exponent_bits) - 1) << mantissa_bits);
  }
  double value(std::uint16_t bits) const {
    const int bias = (1 << (exponent_bits - 1)) - 1, exponent = (bits & 0x7fff) >> mantissa_bits;
    const int mantissa = bits & ((1 << mantissa_bits) - 1);
    const double size = exponent == 0 ? std::ldexp(mantissa, 1 - bias - mantissa_bits)
                                      : std::ldexp(mantissa + (1 << mantissa_bits),
                                                   exponent - bias - mantissa_bits);
    return (bits & 0x8000) != 0 ? -size : size;  // of infinity: where the next number would stand
  }
};
constexpr Half kF16{"f16", 5, 10}, kBF16{"bf16", 8, 7};

class Vector : public testing::TestWithParam<cpu::Isa> {
 protected:
  void SetUp() override {
    const std::string lacks = cpu::why_not(GetParam(), core::cpu_features());
    if (!lacks.empty()) GTEST_SKIP() << "not run: " << lacks;
    v = cpu::find_kernels(GetParam())->vectors;
  }

  /// Whether the vectors are plain loops.
  static bool is_plain() {
    return GetParam() == cpu::Isa::Scalar || GetParam() == cpu::Isa::AmxEmulated;
  }

  /// f over a whole number of vectors.
  template <class In, class Out>
  std::vector<Out> map(void (*f)(const In*, Out*), std::vector<In> x) const {
    const std::size_t count = x.size(), lanes = static_cast<std::size_t>(v.lanes);
    x.resize((count + lanes - 1) / lanes * lanes);
    std::vector<Out> y(x.size());
    for (std::size_t i = 0; i < x.size(); i += lanes) f(x.data() + i, y.data() + i);
    y.resize(count);
    return y;
  }

  VectorChecks v;
};

// ---- e4m3 ----

TEST_P(Vector, CodesOfE4M3AreExact) {
  std::vector<std::uint8_t> codes(256);
  for (std::size_t i = 0; i < codes.size(); ++i) codes[i] = static_cast<std::uint8_t>(i);
  const std::vector<float> y = map(v.load_e4m3, codes);
  for (int code = 0; code < 256; ++code) {
    const int exponent = code >> 3 & 15, mantissa = code & 7;
    const double size =
        std::ldexp(mantissa / 8.0 + (exponent > 0 ? 1 : 0), std::max(exponent, 1) - 7);
    const float given = y[static_cast<std::size_t>(code)];
    if ((code & 127) == 127) {
      EXPECT_TRUE(std::isnan(given)) << code;
    } else {
      EXPECT_EQ(given, code < 128 ? size : -size) << code;
      EXPECT_EQ(std::signbit(given), code >= 128) << code;
    }
  }
}

// ---- e2m1 ----

TEST_P(Vector, CodesOfE2M1AreLookedUpAndSigned) {
  for (const cpu::GroupTable* table : {&cpu::kProducts, &cpu::kRoundedProducts}) {
    for (int scale = 0; scale < 256; ++scale) {
      const cpu::GroupValues& values = (*table)[static_cast<std::size_t>(scale)];
      const float factor = testkit::e4m3_to_float(static_cast<std::uint8_t>(scale));
      for (int first = 0; first < 16; first += v.lanes) {
        std::vector<std::uint8_t> pairs;
        for (int code = first; code < first + v.lanes; code += 2)
          pairs.push_back(static_cast<std::uint8_t>(code + 16 * (code + 1)));
        std::vector<float> y(static_cast<std::size_t>(v.lanes));
        v.load_e2m1(pairs.data(), values.magnitudes.data(), y.data());
        for (int lane = 0; lane < v.lanes; ++lane) {
          const int code = first + lane;
          float expected = testkit::e2m1_to_float(code) * factor;
          if (table == &cpu::kRoundedProducts) expected = testkit::round_to(expected, DType::E4M3);
          const float given = y[static_cast<std::size_t>(lane)];
          if (std::isnan(expected)) {
            EXPECT_TRUE(std::isnan(given)) << scale;
          } else {
            EXPECT_EQ(std::bit_cast<std::uint32_t>(given), std::bit_cast<std::uint32_t>(expected))
                << scale << " " << code;
          }
        }
      }
      if (v.widen_e2m1 == nullptr) continue;
      std::vector<std::uint8_t> pairs;
      for (int code = 0; code < 16; code += 2)
        pairs.push_back(static_cast<std::uint8_t>(code + 16 * (code + 1)));
      std::vector<std::uint16_t> halves(16);
      v.widen_e2m1(pairs.data(), values.halves.data(), halves.data());
      for (int code = 0; code < 16; ++code) {
        const float given = testkit::bf16_to_float(halves[static_cast<std::size_t>(code)]);
        const float magnitude = values.magnitudes[static_cast<std::size_t>(code % 8)];
        const float expected = code < 8 ? magnitude : -magnitude;
        EXPECT_TRUE(given == expected || (std::isnan(given) && std::isnan(expected))) << scale;
      }
    }
  }
}

/// Of the levels with products of bf16 pairs.
class VectorOfPairs : public Vector {};

TEST_P(VectorOfPairs, CodesOfE4M3AreBfloats) {
  ASSERT_NE(v.widen_e4m3, nullptr);
  std::vector<std::uint8_t> codes(256);
  for (std::size_t i = 0; i < codes.size(); ++i) codes[i] = static_cast<std::uint8_t>(i);
  std::vector<std::uint16_t> halves(256);
  for (std::size_t i = 0; i < codes.size(); i += 16) v.widen_e4m3(&codes[i], &halves[i]);
  for (std::size_t i = 0; i < codes.size(); ++i) {
    const float expected = testkit::e4m3_to_float(codes[i]);
    const float given = testkit::bf16_to_float(halves[i]);
    EXPECT_EQ(std::isnan(given), std::isnan(expected)) << i;
    if (std::isnan(expected)) continue;
    EXPECT_EQ(std::bit_cast<std::uint32_t>(given), std::bit_cast<std::uint32_t>(expected)) << i;
  }
}

// ---- exp2 ----

TEST_P(Vector, Exp2IsWithinAnUlp) {
  std::vector<float> x;
  for (float at = -126.0f; at < 127.0f; at += 0x1.8fp-9f) x.push_back(at);
  for (int n = -126; n < 127; ++n) {
    for (const float f : {0.0f, 0.5f, -0.5f, 0x1p-20f, 0x1.fffffep-2f})
      x.push_back(std::clamp(static_cast<float>(n) + f, -126.0f, 127.0f));
  }
  const std::vector<float> y = map(v.exp2, x);
  double worst = 0;
  for (std::size_t i = 0; i < x.size(); ++i) {
    const double exact = std::exp2(static_cast<double>(x[i]));
    const double ulp = std::ldexp(1.0, std::ilogb(exact) - 23);
    worst = std::max(worst, std::fabs(y[i] - exact) / ulp);
  }
  // Where products are not fused, one rounding more.
  EXPECT_LE(worst, is_plain() ? 1.5 : 1.0);
}

TEST_P(Vector, Exp2AtItsEnds) {
  const std::vector<float> y =
      map(v.exp2, {-kInf, -1e30f, -1000.0f, -150.0f, -126.9f, -0.0f, 0.0f, 1.0f, kNaN, -kNaN});
  for (int i = 0; i < 5; ++i) {
    EXPECT_GE(y[i], 0.0f) << i;
    EXPECT_LE(y[i], 0x1p-126f) << i;
  }
  EXPECT_EQ(y[0], 0.0f);
  EXPECT_EQ(y[1], 0.0f);
  EXPECT_EQ(y[2], 0.0f);
  EXPECT_EQ(y[5], 1.0f);
  EXPECT_EQ(y[6], 1.0f);
  EXPECT_EQ(y[7], 2.0f);
  EXPECT_TRUE(std::isnan(y[8]));
  EXPECT_TRUE(std::isnan(y[9]));
}

// ---- conversions ----

void expect_loads(const Half& half, const std::vector<std::uint16_t>& bits,
                  const std::vector<float>& y) {
  for (std::size_t i = 0; i < bits.size(); ++i) {
    const int magnitude = bits[i] & 0x7fff;
    if (magnitude > half.infinity()) {
      ASSERT_TRUE(std::isnan(y[i])) << half.name << " " << bits[i];
    } else if (magnitude == half.infinity()) {
      ASSERT_EQ(y[i], (bits[i] & 0x8000) != 0 ? -kInf : kInf) << half.name;
    } else {
      ASSERT_EQ(y[i], half.value(bits[i])) << half.name << " " << bits[i];
      ASSERT_EQ(std::signbit(y[i]), (bits[i] & 0x8000) != 0) << half.name << " " << bits[i];
    }
  }
}

TEST_P(Vector, LoadsEveryHalf) {
  std::vector<std::uint16_t> bits;
  for (int i = 0; i <= 0xffff; ++i) bits.push_back(static_cast<std::uint16_t>(i));
  expect_loads(kF16, bits, map(v.load_f16, bits));
  expect_loads(kBF16, bits, map(v.load_bf16, bits));
}

/// Numbers and their right roundings: every half, every middle between two, and a step to each side
/// of it.
struct Roundings {
  std::vector<float> x;
  std::vector<std::uint16_t> expected;

  Roundings(const Half& half, int first) {
    for (int i = first; i < half.infinity(); ++i) {
      const auto low = static_cast<std::uint16_t>(i), high = static_cast<std::uint16_t>(i + 1);
      const double exact = (half.value(low) + half.value(high)) / 2;
      const auto middle = static_cast<float>(exact);
      if (static_cast<double>(middle) != exact) continue;  // below the smallest f32
      add(static_cast<float>(half.value(low)), low);
      add(std::nextafter(middle, 0.0f), low);
      add(middle, i % 2 == 0 ? low : high);
      add(std::nextafter(middle, kInf), high);
    }
  }
  void add(float value, std::uint16_t bits) {
    x.insert(x.end(), {value, -value});
    expected.insert(expected.end(), {bits, static_cast<std::uint16_t>(bits | 0x8000)});
  }
};

TEST_P(Vector, StoresToNearestEven) {
  for (const auto& [half, store] : {std::pair{kF16, v.store_f16}, {kBF16, v.store_bf16}}) {
    const Roundings all(half, 0);
    ASSERT_GT(all.x.size(), 8u * (half.infinity() - 2)) << half.name;
    EXPECT_EQ(map(store, all.x), all.expected) << half.name;
    const std::vector<std::uint16_t> rest = map(store, {kInf, -kInf, 3.4e38f, kNaN, -kNaN, -0.0f});
    EXPECT_EQ(rest[0], half.infinity());
    EXPECT_EQ(rest[1], half.infinity() | 0x8000);
    EXPECT_EQ(rest[2], half.infinity());
    EXPECT_GT(rest[3] & 0x7fff, half.infinity());
    EXPECT_GT(rest[4] & 0x7fff, half.infinity());
    EXPECT_EQ(rest[5], 0x8000);
  }
}

// ---- lanes ----

/// Numbers of both signs with some NaN, infinities, zeros and equal pairs.
float some(int i) {
  constexpr float kList[] = {1.0f,  -2.5f, kNaN,   0.0f, -0.0f, kInf,
                             -kInf, 3.0f,  1e-40f, 7.0f, -1.0f};
  return kList[i % 11];
}

TEST_P(Vector, ComparesAndSelects) {
  for (int shift = 0; shift < 11; ++shift) {
    float a[kMaxLanes], b[kMaxLanes], larger[kMaxLanes], picked[kMaxLanes];
    for (int i = 0; i < v.lanes; ++i) {
      a[i] = some(i);
      b[i] = some(i * 3 + shift);
    }
    v.max(a, b, larger);
    const unsigned greater = v.pick_greater(a, b, picked), nan_or_equal = v.nan_or_equal(a, b);
    for (int i = 0; i < v.lanes; ++i) {
      const float expected = a[i] > b[i] ? a[i] : b[i];  // the second operand where either is NaN
      EXPECT_EQ(std::bit_cast<std::uint32_t>(larger[i]), std::bit_cast<std::uint32_t>(expected));
      EXPECT_EQ(std::bit_cast<std::uint32_t>(picked[i]), std::bit_cast<std::uint32_t>(expected));
      EXPECT_EQ(greater >> i & 1u, a[i] > b[i] ? 1u : 0u);
      EXPECT_EQ(nan_or_equal >> i & 1u, std::isnan(a[i]) || a[i] == b[i] ? 1u : 0u);
    }
    EXPECT_EQ(greater >> v.lanes, 0u);
    EXPECT_EQ(nan_or_equal >> v.lanes, 0u);
  }
}

TEST_P(Vector, ClampsIntegers) {
  constexpr std::int32_t kBound = 5;
  std::int32_t a[kMaxLanes], y[kMaxLanes];
  for (int i = 0; i < v.lanes; ++i) a[i] = i * 3 - 4 + (i == 7 ? 1000000 : 0);
  const unsigned positive = v.clamp_difference(a, kBound, y);
  for (int i = 0; i < v.lanes; ++i) {
    const std::int32_t expected = std::clamp(a[i] - kBound, 0, kBound);
    EXPECT_EQ(y[i], expected) << i;
    EXPECT_EQ(positive >> i & 1u, expected > 0 ? 1u : 0u) << i;
  }
}

TEST_P(Vector, MultipliesAndAdds) {
  float a[kMaxLanes], b[kMaxLanes], c[kMaxLanes], y[kMaxLanes];
  for (int i = 0; i < v.lanes; ++i) {
    a[i] = static_cast<float>(i - 3);
    b[i] = static_cast<float>(2 * i + 1);
    c[i] = static_cast<float>(100 - i);
  }
  v.fma(a, b, c, y);
  for (int i = 0; i < v.lanes; ++i) EXPECT_EQ(y[i], a[i] * b[i] + c[i]) << i;
  std::copy_n(c, v.lanes, y);
  v.step_f32(a, b, y);
  for (int i = 0; i < v.lanes; ++i) EXPECT_EQ(y[i], a[i] * b[i] + c[i]) << i;
  if (is_plain()) return;  // may round twice
  std::fill_n(a, v.lanes, 1.0f + 0x1p-12f);
  std::fill_n(c, v.lanes, -(1.0f + 0x1p-11f));
  v.fma(a, a, c, y);
  for (int i = 0; i < v.lanes; ++i) EXPECT_EQ(y[i], 0x1p-24f) << i;
}

TEST_P(Vector, Transposes) {
  std::vector<std::uint32_t> from(static_cast<std::size_t>(v.lanes * v.lanes)), to(from.size());
  for (std::size_t i = 0; i < from.size(); ++i)
    from[i] = static_cast<std::uint32_t>(i * 2654435761u);
  v.transpose(from.data(), to.data());
  for (int i = 0; i < v.lanes; ++i) {
    for (int j = 0; j < v.lanes; ++j) EXPECT_EQ(to[j * v.lanes + i], from[i * v.lanes + j]);
  }
}

TEST_P(Vector, SumsEachRowInOneOrder) {
  std::vector<float> x(static_cast<std::size_t>(v.lanes * v.lanes)), y(kMaxLanes);
  for (std::size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i * 37 % 101);
  v.sum_each(x.data(), y.data());
  for (int i = 0; i < v.lanes; ++i) {
    float sum = 0;
    for (int j = 0; j < v.lanes; ++j) sum += x[i * v.lanes + j];
    EXPECT_EQ(y[i], sum) << i;
  }
  for (std::size_t i = 0; i < x.size(); ++i)  // equal rows whose sum hangs on the order
    x[i] =
        std::ldexp(1.0f + static_cast<float>(i % v.lanes), static_cast<int>(i % v.lanes * 7 % 31));
  v.sum_each(x.data(), y.data());
  for (int i = 1; i < v.lanes; ++i) EXPECT_EQ(y[i], y[0]) << i;
}

// ---- pairs of bf16 ----

std::uint32_t word(std::uint16_t even, std::uint16_t odd) {
  return static_cast<std::uint32_t>(odd) << 16 | even;
}

TEST_P(Vector, PairsRoundToNearestEven) {
  EXPECT_EQ(v.pair != nullptr, cpu::find_kernels(GetParam())->attend.words_of_bf16 == 2);
  if (v.pair == nullptr) return;
  const Roundings all(kBF16, 0x0080);  // the instruction takes subnormal numbers for zero
  const std::size_t lanes = static_cast<std::size_t>(v.lanes);
  ASSERT_EQ(all.x.size() % (2 * lanes), 0u);
  std::vector<std::uint32_t> words(lanes);
  for (std::size_t i = 0; i < all.x.size(); i += 2 * lanes) {
    v.pair(all.x.data() + i, all.x.data() + i + lanes, words.data());
    for (std::size_t lane = 0; lane < lanes; ++lane) {
      ASSERT_EQ(words[lane], word(all.expected[i + lane], all.expected[i + lanes + lane]))
          << all.x[i + lane] << ", " << all.x[i + lanes + lane];
    }
  }
  const std::vector<float> nan(lanes, kNaN), zero(lanes, 0.0f);
  v.pair(nan.data(), zero.data(), words.data());
  for (const std::uint32_t w : words) EXPECT_GT(w, 0x7f80u);
}

TEST_P(Vector, StepsOfPairsAddBothProducts) {
  if (v.step_bf16 == nullptr) return;
  std::uint32_t a[kMaxLanes], b[kMaxLanes];
  float acc[kMaxLanes], expected[kMaxLanes];
  const auto bf16 = [](int x) {
    return static_cast<std::uint16_t>(std::bit_cast<std::uint32_t>(static_cast<float>(x)) >> 16);
  };
  for (int i = 0; i < v.lanes; ++i) {
    a[i] = word(bf16(i), bf16(3 - i));
    b[i] = word(bf16(i - 7), bf16(5));
    acc[i] = static_cast<float>(1000 + i);
    expected[i] = static_cast<float>(1000 + i + i * (i - 7) + (3 - i) * 5);
  }
  v.step_bf16(a, b, acc);
  for (int i = 0; i < v.lanes; ++i) EXPECT_EQ(acc[i], expected[i]) << i;
}

TEST_P(Vector, InterleavesRows) {
  if (v.interleave == nullptr) return;
  constexpr std::int64_t kStrip = 40;
  for (const std::int64_t dim : {16, 32, 48, 80, 256}) {
    std::vector<std::uint16_t> even(static_cast<std::size_t>(dim)), odd(even.size());
    for (std::size_t d = 0; d < even.size(); ++d) {
      even[d] = static_cast<std::uint16_t>(d);
      odd[d] = static_cast<std::uint16_t>(0x8000 + d);
    }
    std::vector<std::uint32_t> to(static_cast<std::size_t>(dim / v.lanes * kStrip), 0xffffffffu);
    v.interleave(even.data(), odd.data(), dim, to.data(), kStrip);
    for (std::int64_t at = 0; at < static_cast<std::int64_t>(to.size()); ++at) {
      const std::int64_t d = at / kStrip * v.lanes + at % kStrip;
      const bool written = at % kStrip < v.lanes;
      EXPECT_EQ(to[at], written ? word(even[d], odd[d]) : 0xffffffffu) << dim << ", " << at;
    }
  }
}

// ---- tiles ----

class VectorOfTiles : public Vector {};

/// Numbers whose products and sums of any order are exact: small integers, some of them negative.
template <class T>
std::vector<T> small_integers(std::size_t count, int seed, T (*from)(int)) {
  std::vector<T> x(count);
  for (std::size_t i = 0; i < count; ++i)
    x[i] =
        from(static_cast<int>(i * 2654435761u % 1009 + static_cast<std::size_t>(seed)) % 23 - 11);
  return x;
}
std::uint16_t small_bf16(int x) {
  return static_cast<std::uint16_t>(std::bit_cast<std::uint32_t>(static_cast<float>(x)) >> 16);
}

TEST_P(VectorOfTiles, ProductsOfPairsAreSummedAlongTheRows) {
  const auto rows = small_integers<std::uint16_t>(16 * 32, 1, small_bf16);
  const auto columns = small_integers<std::uint16_t>(16 * 32, 5, small_bf16);
  std::vector<float> acc(256), expected(256);
  for (std::size_t i = 0; i < 256; ++i) {
    acc[i] = static_cast<float>(i);
    expected[i] = acc[i];
    for (std::size_t n = 0; n < 32; ++n) {
      expected[i] += testkit::bf16_to_float(rows[i / 16 * 32 + n]) *
                     testkit::bf16_to_float(columns[n / 2 * 32 + i % 16 * 2 + n % 2]);
    }
  }
  v.multiply_pairs(rows.data(), columns.data(), acc.data());
  EXPECT_EQ(acc, expected);
}

TEST_P(VectorOfTiles, ProductsOfCodesAreExact) {
  auto rows = small_integers<std::int8_t>(16 * 64, 1,
                                          [](int x) { return static_cast<std::int8_t>(x * 11); });
  auto columns = small_integers<std::int8_t>(
      16 * 64, 5, [](int x) { return static_cast<std::int8_t>(x * 11); });
  std::fill_n(rows.begin(), 64, std::int8_t{-127});  // the largest sums there are
  for (std::size_t n = 0; n < 64; ++n) columns[n / 4 * 64 + n % 4] = 127;
  std::vector<std::int32_t> acc(256), expected(256);
  for (std::size_t i = 0; i < 256; ++i) {
    acc[i] = expected[i] = static_cast<std::int32_t>(i) - 100;
    for (std::size_t n = 0; n < 64; ++n)
      expected[i] += rows[i / 16 * 64 + n] * columns[n / 4 * 64 + i % 16 * 4 + n % 4];
  }
  v.multiply_codes(rows.data(), columns.data(), acc.data());
  EXPECT_EQ(acc, expected);
  EXPECT_EQ(acc[0], -100 - 64 * 127 * 127);
}

/// What one sum of 32 products becomes by the instruction: even and odd ones apart, one after the
/// other, then joined and added to what was there.
float sum_of_tile(const std::uint16_t* row, const std::uint16_t* columns, std::size_t column,
                  float acc) {
  float even = 0, odd = 0;
  for (std::size_t k = 0; k < 16; ++k) {
    even = std::fma(testkit::bf16_to_float(row[2 * k]),
                    testkit::bf16_to_float(columns[k * 32 + column * 2]), even);
    odd = std::fma(testkit::bf16_to_float(row[2 * k + 1]),
                   testkit::bf16_to_float(columns[k * 32 + column * 2 + 1]), odd);
  }
  return acc + (even + odd);
}

// So that what is tested over plain loops has the bits of the unit.
TEST_P(VectorOfTiles, SumsOfPairsHaveTheInstructionsOrder) {
  std::uint32_t state = 12345;
  const auto any = [&] {  // bf16 of both signs, 2^-8 to 2^8
    state = state * 1664525u + 1013904223u;
    return static_cast<std::uint16_t>((state >> 16 & 0x807f) | (119 + (state >> 8) % 16) << 7);
  };
  for (int round = 0; round < 50; ++round) {
    std::vector<std::uint16_t> rows(16 * 32), columns(16 * 32);
    for (std::uint16_t& x : rows) x = any();
    for (std::uint16_t& x : columns) x = any();
    std::vector<float> acc(256), expected(256);
    for (std::size_t i = 0; i < 256; ++i) {
      acc[i] = testkit::bf16_to_float(any());
      expected[i] = sum_of_tile(&rows[i / 16 * 32], columns.data(), i % 16, acc[i]);
    }
    v.multiply_pairs(rows.data(), columns.data(), acc.data());
    ASSERT_EQ(acc, expected) << round;
  }
}

TEST_P(VectorOfTiles, SumsOfPairsTakeSubnormalNumbersForZero) {
  std::vector<std::uint16_t> rows(16 * 32, 0x0040), columns(16 * 32, 0x3f80);  // 2^-127, 1
  std::vector<float> acc(256, 0x1p-130f);
  v.multiply_pairs(rows.data(), columns.data(), acc.data());
  EXPECT_EQ(acc, std::vector<float>(256, 0.0f));
}

TEST_P(VectorOfTiles, NanAndInfinityShowInTheirRowAndColumnAlone) {
  std::vector<std::uint16_t> rows(16 * 32, 0x3f80), columns(16 * 32, 0x3f80);
  rows[3 * 32 + 7] = 0x7fc0;         // NaN in row 3
  columns[4 * 32 + 5 * 2] = 0x7f80;  // infinity in column 5
  std::vector<float> acc(256, 1.0f);
  v.multiply_pairs(rows.data(), columns.data(), acc.data());
  for (std::size_t i = 0; i < 256; ++i) {
    if (i / 16 == 3) {
      EXPECT_TRUE(std::isnan(acc[i])) << i;
    } else {
      EXPECT_EQ(acc[i], i % 16 == 5 ? kInf : 33.0f) << i;
    }
  }
}

std::vector<cpu::Isa> levels_of_this_build() {
  std::vector<cpu::Isa> levels;
  for (const cpu::Isa isa : cpu::kIsas) {
    if (cpu::find_kernels(isa) != nullptr) levels.push_back(isa);
  }
  return levels;
}
std::vector<cpu::Isa> levels_with_pairs() {
  std::vector<cpu::Isa> levels = levels_of_this_build();
  std::erase_if(levels,
                [](cpu::Isa isa) { return cpu::find_kernels(isa)->attend.words_of_bf16 == 1; });
  return levels;
}
std::vector<cpu::Isa> levels_with_tiles() {
  std::vector<cpu::Isa> levels = levels_of_this_build();
  std::erase_if(levels, [](cpu::Isa isa) {
    return cpu::find_kernels(isa)->vectors.multiply_pairs == nullptr;
  });
  return levels;
}
std::string level_name(const testing::TestParamInfo<cpu::Isa>& level) {
  return cpu::to_string(level.param);
}
INSTANTIATE_TEST_SUITE_P(Isa, Vector, testing::ValuesIn(levels_of_this_build()), level_name);
INSTANTIATE_TEST_SUITE_P(Isa, VectorOfPairs, testing::ValuesIn(levels_with_pairs()), level_name);
INSTANTIATE_TEST_SUITE_P(Isa, VectorOfTiles, testing::ValuesIn(levels_with_tiles()), level_name);

}  // namespace
}  // namespace msa::test
