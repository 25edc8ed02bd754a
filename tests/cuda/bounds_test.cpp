// SPDX-License-Identifier: MIT
// The arithmetic of the 8-bit filter as decode's kernels do it, on the host: whatever queries, keys
// and true bounds hold, the score that tensor cores sum lies between the two numbers.
#include "cuda/common/tile/filter_bounds.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <random>
#include <string>

#include "cuda/sm90/select/products.h"

namespace msa::cuda::common {
namespace {

constexpr int kDim = 128;
constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
using Vector = std::array<float, kDim>;
using Codes = std::array<std::int32_t, kDim>;

float to_bf16(float x) {
  const auto bits = std::bit_cast<std::uint32_t>(x);
  return std::bit_cast<float>((bits + 0x7fffu + ((bits >> 16) & 1)) & 0xffff0000u);
}

float largest_of(const Vector& x) {
  float largest = 0;
  for (const float value : x) largest = std::max(largest, std::fabs(value));
  return largest;
}

/// Products with the Hadamard matrix, pass after pass.
template <class Items>
Items rotate(Items x) {
  for (std::size_t half = 1; half < kDim; half *= 2) {
    for (std::size_t d = 0; d < kDim; ++d) {
      if ((d & half) != 0) continue;
      const auto low = x[d], high = x[d + half];
      x[d] = low + high;
      x[d + half] = low - high;
    }
  }
  return x;
}

/// As code_column: four lanes, then their sums in pairs.
QueryBound code_query(const Vector& given, Codes& codes, bool rotated = false) {
  const Vector q = rotated ? rotate(given) : given;
  const QueryUnit unit = query_unit(largest_of(q));
  std::array<float, 4> squares{}, errors{};
  for (std::size_t chunk = 0; chunk < 2; ++chunk) {
    for (std::size_t lane = 0; lane < 4; ++lane) {
      for (std::size_t i = 0; i < 16; ++i) {
        const std::size_t d = (chunk * 4 + lane) * 16 + i;
        const float divided = q[d] * unit.divide;
        const float code = unit.known ? code_of(unit, divided) : 0.0f;
        add_squares(unit, divided, code, squares[lane], errors[lane]);
        codes[d] = static_cast<std::int32_t>(code);
      }
    }
  }
  return query_bound(unit, (squares[0] + squares[1]) + (squares[2] + squares[3]),
                     (errors[0] + errors[1]) + (errors[2] + errors[3]), rotated ? 1.0f / kDim : 1);
}

struct CodedKey {
  Codes codes{};
  float scale = 0, error = 0, norm = 0;
};

float upwards(double x) {
  const auto rounded = static_cast<float>(x * (1 + 1e-12));
  return static_cast<double>(rounded) < x ? std::nextafter(rounded, kInf) : rounded;
}

/// The scale is `coarse` times what the key needs, or `page`, where that is given.
CodedKey code_key(const Vector& given, bool rotated, float coarse, float page = 0) {
  CodedKey key;
  std::array<double, kDim> k;
  std::copy(given.begin(), given.end(), k.begin());
  if (rotated) k = rotate(k);
  double largest = 0;
  for (const double x : k) largest = std::max(largest, std::fabs(x));
  key.scale = page > 0 ? page : static_cast<float>(largest) * coarse / 127;
  double error = 0, norm = 0;
  for (std::size_t d = 0; d < kDim; ++d) {
    const float ratio = key.scale > 0 ? static_cast<float>(k[d]) / key.scale : 0.0f;
    key.codes[d] = static_cast<std::int32_t>(std::nearbyint(std::clamp(ratio, -127.0f, 127.0f)));
    const double value = static_cast<double>(key.codes[d]) * key.scale;
    error += (k[d] - value) * (k[d] - value);
    norm += value * value;
  }
  key.error = upwards(std::sqrt(error));
  key.norm = upwards(std::sqrt(norm));
  return key;
}

Interval bounds_of(const QueryBound& q, const Codes& codes, const CodedKey& key,
                   bool rotated = false) {
  std::int32_t product = 0;
  for (std::size_t d = 0; d < kDim; ++d) product += codes[d] * key.codes[d];
  return interval(product, q, key_bound(key.scale, key.error, key.norm, kDim, rotated));
}

/// A k16 step of the tensor cores at its worst: all 17 summands cut off towards zero, or away from
/// it, 2^-23 below the largest.
double cut(double x, double unit, bool away) {
  const double steps = std::fabs(x) / unit;
  return std::copysign((away ? std::ceil(steps) : std::floor(steps)) * unit, x);
}

double sum_by_steps(const Vector& q, const Vector& k, bool away) {
  double sum = 0;
  for (std::size_t first = 0; first < kDim; first += 16) {
    double largest = std::fabs(sum);
    for (std::size_t d = first; d < first + 16; ++d)
      largest = std::max(largest, std::fabs(static_cast<double>(q[d]) * k[d]));
    if (largest == 0) continue;
    const double unit = std::ldexp(1.0, std::ilogb(largest) - 23);
    double next = cut(sum, unit, away);
    for (std::size_t d = first; d < first + 16; ++d)
      next += cut(static_cast<double>(q[d]) * k[d], unit, away);
    sum = next;
  }
  return sum;
}

float normal(std::mt19937& random) {
  std::normal_distribution<float> numbers;
  return numbers(random);
}

struct Numbers {
  const char* name;
  std::function<float(std::mt19937&)> query, key;
};

const Numbers kNumbers[] = {
    {"normal", normal, normal},
    {"queries of one item",
     [](std::mt19937& random) { return random() % 128 == 0 ? normal(random) : 0.0f; }, normal},
    {"exact codes",
     [](std::mt19937& random) {
       return static_cast<float>(static_cast<int>(random() % 255)) - 127;
     },
     [](std::mt19937& random) {
       return static_cast<float>(static_cast<int>(random() % 255)) - 127;
     }},
    {"items of all sizes",
     [](std::mt19937& random) {
       return std::ldexp(normal(random), static_cast<int>(random() % 40) - 20);
     },
     [](std::mt19937& random) {
       return std::ldexp(normal(random), static_cast<int>(random() % 40) - 20);
     }},
    {"small queries", [](std::mt19937& random) { return std::ldexp(normal(random), -95); }, normal},
    {"subnormal keys", normal,
     [](std::mt19937& random) { return std::ldexp(normal(random), -130); }},
    {"large queries, small keys",
     [](std::mt19937& random) { return std::ldexp(normal(random), 95); },
     [](std::mt19937& random) { return std::ldexp(normal(random), -110); }},
    {"small queries, large keys",
     [](std::mt19937& random) { return std::ldexp(normal(random), -97); },
     [](std::mt19937& random) { return std::ldexp(normal(random), 120); }},
    {"large ones", [](std::mt19937& random) { return std::ldexp(normal(random), 60); },
     [](std::mt19937& random) { return std::ldexp(normal(random), 60); }},
};

TEST(FilterOnHopper, ScoresLieBetweenTheirBounds) {
  std::mt19937 random(7);
  for (const auto& [name, query, key] : kNumbers) {
    for (int n = 0; n < 4000; ++n) {
      const bool rotated = n % 2 != 0;
      Vector q, k;
      for (float& x : q) x = to_bf16(query(random));
      for (float& x : k) x = to_bf16(key(random));
      Codes codes;
      const QueryBound bound = code_query(q, codes, rotated);
      for (const std::int32_t code : codes) ASSERT_LE(std::abs(code), 127) << name;
      // Codes as good as they can be, and coarse ones, as where a page holds one large key.
      for (const float factor : {1.0f, 16.0f, 0.25f}) {
        const Interval between = bounds_of(bound, codes, code_key(k, rotated, factor), rotated);
        double exact = 0;
        for (std::size_t d = 0; d < kDim; ++d) exact += static_cast<double>(q[d]) * k[d];
        for (const double score : {exact, sum_by_steps(q, k, false), sum_by_steps(q, k, true)}) {
          ASSERT_LE(static_cast<double>(between.lower), score) << name << ' ' << n;
          ASSERT_GE(static_cast<double>(between.upper), score) << name << ' ' << n;
        }
      }
    }
  }
}

/// As part_products, of the largest products of a key tile's parts.
std::uint32_t word_of(const std::array<std::int32_t, sm90::select::kTileParts>& parts) {
  const auto units = [](std::int32_t product) { return product >> 6; };
  const int most = units(*std::max_element(parts.begin(), parts.end()));
  auto word = static_cast<std::uint32_t>(most & 0xffff) << 16;
  for (int p = 0; p < sm90::select::kTileParts; ++p) {
    const int steps =
        (most - units(parts[static_cast<std::size_t>(p)])) / sm90::select::kUnitsPerStep;
    word |= static_cast<std::uint32_t>(std::min(steps, sm90::select::kMostSteps))
            << sm90::select::steps_shift(p);
  }
  return word;
}

// Four keys, one a part, that share the bounds of a page: what is known of a word holds for each.
TEST(FilterOnHopper, WordsOfProductsBoundWhatTheyStandFor) {
  std::mt19937 random(9);
  int far = 0;
  for (const auto& [name, query, key] : kNumbers) {
    for (int n = 0; n < 2000; ++n) {
      const bool rotated = n % 2 != 0;
      Vector q;
      for (float& x : q) x = to_bf16(query(random));
      Codes codes;
      const QueryBound bound = code_query(q, codes, rotated);
      std::array<Vector, sm90::select::kTileParts> keys;
      float scale = 0;
      for (Vector& k : keys) {
        for (float& x : k) x = to_bf16(key(random));
        scale = std::max(scale, code_key(k, rotated, 1).scale);
      }
      std::array<std::int32_t, sm90::select::kTileParts> products{};
      std::array<double, sm90::select::kTileParts> scores{};
      float error = 0, norm = 0;
      CodedKey coded;
      for (std::size_t p = 0; p < keys.size(); ++p) {
        coded = code_key(keys[p], rotated, 1, scale);
        error = std::max(error, coded.error);
        norm = std::max(norm, coded.norm);
        for (std::size_t d = 0; d < kDim; ++d) products[p] += codes[d] * coded.codes[d];
        scores[p] = sum_by_steps(q, keys[p], n % 4 < 2);
      }
      const KeyBound page = key_bound(coded.scale, error, norm, kDim, rotated);
      const std::uint32_t word = word_of(products);
      const auto expect_inside = [&](const Interval& x, double score) {
        ASSERT_LE(static_cast<double>(x.lower), score) << name << ' ' << n;
        ASSERT_GE(static_cast<double>(x.upper), score) << name << ' ' << n;
      };
      expect_inside(sm90::select::bound_block<128>(word, 0, bound, page),
                    *std::max_element(scores.begin(), scores.end()));
      expect_inside(sm90::select::bound_block<64>(word, 0, bound, page),
                    std::max(scores[0], scores[1]));
      expect_inside(sm90::select::bound_block<64>(word, 1, bound, page),
                    std::max(scores[2], scores[3]));
      for (int p = 0; p < sm90::select::kTileParts; ++p) {
        const int steps = sm90::select::steps_of(word, p);
        far += steps == sm90::select::kMostSteps ? 1 : 0;
        const int high = sm90::select::largest_of(word) - steps * sm90::select::kUnitsPerStep;
        ASSERT_GE(static_cast<double>(sm90::select::bound_units(high, high, bound, page).upper),
                  scores[static_cast<std::size_t>(p)])
            << name << ' ' << n;
      }
    }
  }
  EXPECT_GT(far, 2000);
}

/// Mean half-width, in standard deviations of scores, of keys whose channels are `weights`.
double mean_width(const Vector& weights, bool rotated) {
  std::mt19937 random(8);
  double width = 0;
  constexpr int kPairs = 1000;
  for (int n = 0; n < kPairs; ++n) {
    Vector q, k;
    for (float& x : q) x = to_bf16(normal(random));
    for (std::size_t d = 0; d < kDim; ++d) k[d] = to_bf16(weights[d] * normal(random));
    Codes codes;
    const QueryBound bound = code_query(q, codes, rotated);
    const Interval between = bounds_of(bound, codes, code_key(k, rotated, 1), rotated);
    width += (between.upper - between.lower) / 2 / std::sqrt(kDim);
  }
  return width / kPairs;
}

TEST(FilterOnHopper, BoundsAreOfUse) {
  Vector even, uneven;
  even.fill(1);
  // 0.14 by the errors of 8 bits alone.
  for (const bool rotated : {false, true}) {
    EXPECT_LT(mean_width(even, rotated), 0.2);
    EXPECT_GT(mean_width(even, rotated), 0.1);
  }
  // One channel has as much weight as all others: 11 times as large, it sets the scale of all.
  uneven.fill(std::sqrt(0.5f));
  uneven[5] = 8;
  EXPECT_LT(mean_width(uneven, true), 0.75 * mean_width(uneven, false));
}

TEST(FilterOnHopper, WhatIsUnknownBoundsNothing) {
  const auto expect_nothing = [](const Interval& between, const char* what) {
    EXPECT_EQ(between.lower, -kInf) << what;
    EXPECT_EQ(between.upper, kInf) << what;
  };
  Vector q{};
  q[3] = 1.5f;
  Codes codes;
  const QueryBound sound = code_query(q, codes);
  for (const float wrong : {kNan, kInf, -kInf, -0.5f}) {
    expect_nothing(interval(5, sound, key_bound(wrong, 1, 1, kDim, false)), "scale");
    expect_nothing(interval(5, sound, key_bound(1, wrong, 1, kDim, false)), "error");
    expect_nothing(interval(5, sound, key_bound(1, 1, wrong, kDim, false)), "norm");
  }
  // Codes of zero under a scale that overflows with the query's.
  QueryBound large = sound;
  large.scale = 1e30f;
  expect_nothing(interval(0, large, key_bound(3e38f, 1, 0, kDim, false)), "0 x infinity");
  const KeyBound key = key_bound(1, 1, 1, kDim, false);
  for (const float item : {kNan, kInf, 3e38f, 1e-35f}) {
    q[7] = item;
    q[3] = item == 1e-35f ? 0.0f : 1.5f;
    if (std::isnan(item)) {  // as the largest magnitude of the kernel, which keeps it
      expect_nothing(interval(5, query_bound(query_unit(item), 1, 1, 1), key), "query");
    } else {
      expect_nothing(interval(5, code_query(q, codes), key), "query");
    }
  }
  // A query of zeros is a query like others.
  const Interval zero = interval(0, code_query(Vector{}, codes), key);
  EXPECT_LE(zero.lower, 0);
  EXPECT_GE(zero.upper, 0);
  EXPECT_LT(zero.upper, 1e-15f);
}

}  // namespace
}  // namespace msa::cuda::common
