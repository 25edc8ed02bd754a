// SPDX-License-Identifier: MIT
// Overlap of strided views: made by hand, and against a walk over all bytes of small random views.
#include "core/overlap.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <random>
#include <vector>

#include "core/checker.h"

namespace msa::core {
namespace {

char memory[4096];

Tensor view(std::int64_t byte, DType dtype, std::initializer_list<std::int64_t> shape,
            std::initializer_list<std::int64_t> stride) {
  return make_tensor(memory + byte, dtype, shape, stride);
}

TEST(Overlap, RangesSideBySideAreApart) {
  const Tensor a = view(0, DType::F32, {4, 4}, {4, 1});
  EXPECT_FALSE(overlap(a, view(64, DType::F32, {4, 4}, {4, 1})));
  EXPECT_TRUE(overlap(a, view(60, DType::F32, {4, 4}, {4, 1})));
  EXPECT_TRUE(overlap(a, a));
}

TEST(Overlap, EmptyViewsShareNothing) {
  const Tensor a = view(0, DType::F32, {4, 4}, {4, 1});
  EXPECT_FALSE(overlap(a, view(0, DType::F32, {0, 4}, {4, 1})));
  EXPECT_FALSE(overlaps_itself(view(0, DType::F32, {0, 4}, {0, 0})));
}

TEST(Overlap, PackedKeysAndValuesAreApart) {
  // [pages, page_size, heads, 2 * dim]: K in the first half of each row, V in the second.
  const Tensor k = view(0, DType::BF16, {3, 4, 2, 8}, {128, 32, 16, 1});
  EXPECT_FALSE(overlap(k, view(16, DType::BF16, {3, 4, 2, 8}, {128, 32, 16, 1})));
  EXPECT_TRUE(overlap(k, view(14, DType::BF16, {3, 4, 2, 8}, {128, 32, 16, 1})));
}

TEST(Overlap, SlicesOfOtherWidthsAreApart) {
  // Rows of 48 elements: 32 for one tensor, 16 for the other.
  const Tensor q = view(0, DType::F32, {4, 2, 16}, {48, 16, 1});
  EXPECT_FALSE(overlap(q, view(128, DType::F32, {4, 1, 16}, {48, 16, 1})));
  EXPECT_TRUE(overlap(q, view(124, DType::F32, {4, 1, 16}, {48, 16, 1})));
}

TEST(Overlap, EvenAndOddRowsAreApart) {
  EXPECT_FALSE(
      overlap(view(0, DType::F32, {4, 8}, {16, 1}), view(32, DType::F32, {4, 8}, {16, 1})));
}

TEST(Overlap, ItselfByStrides) {
  EXPECT_FALSE(overlaps_itself(view(0, DType::F32, {4, 4}, {1, 4})));
  EXPECT_TRUE(overlaps_itself(view(0, DType::F32, {4, 4}, {3, 1})));
  EXPECT_TRUE(overlaps_itself(view(0, DType::F32, {4, 4}, {0, 1})));
  EXPECT_FALSE(overlaps_itself(view(0, DType::F32, {1, 4}, {0, 1})));
}

// Half bytes that each element takes, ascending: two 4-bit elements share a byte.
std::vector<std::int64_t> halves_of(const Tensor& t) {
  std::vector<std::int64_t> halves;
  const std::int64_t item = item_bits(t.dtype) / 4;
  const std::int64_t base = 2 * (static_cast<char*>(t.data) - memory);
  for (std::int64_t i = 0; i < t.shape[0]; ++i) {
    for (std::int64_t j = 0; j < t.shape[1]; ++j) {
      for (std::int64_t l = 0; l < t.shape[2]; ++l) {
        const std::int64_t at = base + (i * t.stride[0] + j * t.stride[1] + l * t.stride[2]) * item;
        for (std::int64_t half = 0; half < item; ++half) halves.push_back(at + half);
      }
    }
  }
  std::sort(halves.begin(), halves.end());
  return halves;
}

bool truly_overlap(const Tensor& a, const Tensor& b) {
  const auto bytes_of = [](const Tensor& t) {
    std::vector<std::int64_t> bytes = halves_of(t);
    for (std::int64_t& half : bytes) half /= 2;
    return bytes;
  };
  const auto x = bytes_of(a);
  const auto y = bytes_of(b);
  std::vector<std::int64_t> both;
  std::set_intersection(x.begin(), x.end(), y.begin(), y.end(), std::back_inserter(both));
  return !both.empty();
}

Tensor random_view(std::mt19937& random) {
  const auto pick = [&](int low, int high) {
    return static_cast<std::int64_t>(std::uniform_int_distribution<int>(low, high)(random));
  };
  constexpr DType kSizes[] = {DType::F32, DType::BF16, DType::I8, DType::E2M1};
  const DType dtype = kSizes[pick(0, 3)];
  return view(4 * pick(0, 40), dtype, {pick(0, 3), pick(1, 4), pick(1, 4)},
              {pick(0, 24), pick(0, 12), pick(0, 2)});
}

TEST(Overlap, NeverMissesASharedByte) {
  std::mt19937 random(7);
  int apart = 0;
  int shared = 0;
  for (int n = 0; n < 20000; ++n) {
    const Tensor a = random_view(random);
    const Tensor b = random_view(random);
    if (truly_overlap(a, b)) {
      ASSERT_TRUE(overlap(a, b)) << to_string(a) << " at " << a.data << ", " << to_string(b)
                                 << " at " << b.data;
      ++shared;
    } else if (!overlap(a, b)) {
      ++apart;
    }
    const auto halves = halves_of(a);
    if (std::adjacent_find(halves.begin(), halves.end()) != halves.end()) {
      ASSERT_TRUE(overlaps_itself(a)) << to_string(a);
    }
  }
  EXPECT_GT(shared, 1000);
  EXPECT_GT(apart, 1000);
}

TEST(Overlap, HalfBytesFillWholeOnes) {
  const Tensor a = view(0, DType::E2M1, {2, 8}, {16, 1});
  EXPECT_FALSE(overlaps_itself(a));
  EXPECT_TRUE(overlaps_itself(view(0, DType::E2M1, {2, 8}, {7, 1})));
  EXPECT_FALSE(overlap(a, view(4, DType::E2M1, {2, 8}, {16, 1})));
  EXPECT_TRUE(overlap(a, view(3, DType::E2M1, {2, 8}, {16, 1})));
  // Their elements alternate, and a write of one writes its neighbour's byte.
  const Tensor even = view(0, DType::E2M1, {1, 5}, {16, 3});
  EXPECT_TRUE(overlap(even, view(1, DType::E2M1, {1, 5}, {16, 3})));
}

TEST(Extent, OfHalfBytesCountsThoseBegun) {
  std::int64_t bytes = 0;
  EXPECT_TRUE(byte_extent(view(0, DType::E2M1, {3}, {1}), bytes));
  EXPECT_EQ(bytes, 2);
  EXPECT_TRUE(byte_extent(view(0, DType::E2M1, {2, 4}, {32, 1}), bytes));
  EXPECT_EQ(bytes, 18);
  EXPECT_EQ(size_in_bytes(DType::E2M1, 0), 0);
  EXPECT_EQ(size_in_bytes(DType::E2M1, 1), 1);
  EXPECT_EQ(size_in_bytes(DType::E2M1, 15), 8);
  EXPECT_EQ(size_in_bytes(DType::BF16, 15), 30);
  EXPECT_EQ(size_in_bytes(DType::I64, (std::int64_t{1} << 60) - 1), INT64_MAX - 7);
}

TEST(Extent, AlignmentOfHalfBytesIsAByte) {
  const Tensor t = view(1, DType::E2M1, {2, 8}, {8, 1});
  Checker checker(Device{});
  EXPECT_NO_THROW(
      checker.input({"t", -1, &t}, {.dtype = DType::E2M1, .shape = shape(exactly(2), exactly(8))}));
}

TEST(Extent, OverflowIsSeen) {
  std::int64_t bytes = 0;
  const std::int64_t huge = std::int64_t{1} << 62;
  EXPECT_FALSE(byte_extent(view(0, DType::F32, {3, 1}, {huge, 1}), bytes));
  EXPECT_FALSE(byte_extent(view(0, DType::F32, {2, 2}, {huge - 1, huge}), bytes));
  EXPECT_FALSE(byte_extent(view(0, DType::F32, {2, 2}, {huge >> 4, 1}), bytes));
  EXPECT_FALSE(element_count(make_tensor(memory, DType::F32, {huge, 4}, {0, 0}), bytes));
  EXPECT_TRUE(byte_extent(view(0, DType::F32, {1, 0}, {huge, huge}), bytes));
  EXPECT_EQ(bytes, 0);
  EXPECT_TRUE(byte_extent(view(0, DType::BF16, {2, 3}, {10, 2}), bytes));
  EXPECT_EQ(bytes, 30);
}

}  // namespace
}  // namespace msa::core
