// SPDX-License-Identifier: MIT
// The oracle's storage formats: every bit pattern, and rounding to nearest even from doubles.
#include "reference/number.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <cstring>

namespace msa::reference {
namespace {

TEST(Number, EveryPatternSurvives) {
  for (const Format16 format : {kF16, kBF16}) {
    for (std::uint32_t bits = 0; bits < 0x10000; ++bits) {
      const std::uint16_t pattern = static_cast<std::uint16_t>(bits);
      const double value = decode(pattern, format);
      if ((bits & 0x7fff) > format.infinity()) {
        ASSERT_TRUE(std::isnan(value)) << bits;
        ASSERT_TRUE(std::isnan(decode(encode(value, format), format))) << bits;
      } else {
        ASSERT_EQ(encode(value, format), pattern) << value;
      }
    }
  }
}

TEST(Number, BF16IsTheUpperHalfOfAFloat) {
  for (std::uint32_t bits = 0; bits < 0x10000; ++bits) {
    const std::uint32_t word = bits << 16;
    float expected = 0;
    std::memcpy(&expected, &word, sizeof expected);
    const double value = decode(static_cast<std::uint16_t>(bits), kBF16);
    if (std::isnan(expected)) {
      ASSERT_TRUE(std::isnan(value));
    } else {
      ASSERT_EQ(value, static_cast<double>(expected));
      ASSERT_EQ(std::signbit(value), std::signbit(expected));
    }
  }
}

TEST(Number, ReadersAgreeWithTheFormats) {
  for (std::uint32_t word = 0; word < 0x10000; ++word) {
    const std::uint16_t bits = static_cast<std::uint16_t>(word);
    const double f16 = decode(bits, kF16);
    const double bf16 = decode(bits, kBF16);
    if (std::isnan(f16)) {
      ASSERT_TRUE(std::isnan(ReadF16::read(bits)));
    } else {
      ASSERT_EQ(ReadF16::read(bits), f16) << word;
      ASSERT_EQ(std::signbit(ReadF16::read(bits)), std::signbit(f16)) << word;
    }
    ASSERT_EQ(std::isnan(ReadBF16::read(bits)), std::isnan(bf16)) << word;
    if (!std::isnan(bf16)) {
      ASSERT_EQ(ReadBF16::read(bits), bf16) << word;
    }
  }
}

TEST(Number, KnownF16Values) {
  EXPECT_EQ(decode(0x3c00, kF16), 1.0);
  EXPECT_EQ(decode(0xc000, kF16), -2.0);
  EXPECT_EQ(decode(0x7bff, kF16), 65504.0);
  EXPECT_EQ(decode(0x0001, kF16), std::ldexp(1.0, -24));
  EXPECT_EQ(decode(0x0400, kF16), std::ldexp(1.0, -14));
  EXPECT_EQ(decode(0x7c00, kF16), HUGE_VAL);
}

TEST(Number, RoundsToNearestEven) {
  EXPECT_EQ(encode(1.0 + std::ldexp(1.0, -11), kF16), 0x3c00);      // halfway, down to even
  EXPECT_EQ(encode(1.0 + 3 * std::ldexp(1.0, -11), kF16), 0x3c02);  // halfway, up to even
  EXPECT_EQ(encode(1.0 + std::ldexp(1.0001, -11), kF16), 0x3c01);   // above halfway
  EXPECT_EQ(encode(65519.99, kF16), 0x7bff);                        // below the last halfway
  EXPECT_EQ(encode(65520.0, kF16), 0x7c00);                         // to infinity
  EXPECT_EQ(encode(std::ldexp(1.0, -25), kF16), 0x0000);            // half of the least
  EXPECT_EQ(encode(std::ldexp(1.5, -25), kF16), 0x0001);
  EXPECT_EQ(encode(-std::ldexp(1.0, -30), kF16), 0x8000);  // keeps its sign
  EXPECT_EQ(encode(std::ldexp(2047.0, -11) + std::ldexp(1.0, -13), kF16), 0x3bff);
  EXPECT_EQ(encode(1.0 + std::ldexp(1.0, -8), kBF16), 0x3f80);
  EXPECT_EQ(encode(1.0 + 3 * std::ldexp(1.0, -8), kBF16), 0x3f82);
  EXPECT_EQ(encode(1e300, kBF16), 0x7f80);
  EXPECT_EQ(encode(-1e300, kF16), 0xfc00);
}

TEST(Number, NoDoubleRounding) {
  // Just above halfway between two bf16 values; by way of a float it would fall to even.
  const double value = 1.0 + std::ldexp(1.0, -8) + std::ldexp(1.0, -40);
  EXPECT_EQ(encode(value, kBF16), 0x3f81);
}

}  // namespace
}  // namespace msa::reference
