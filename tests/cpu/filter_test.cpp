// SPDX-License-Identifier: MIT
// The 8-bit filter of the CPU backend: whatever queries, keys and true bounds hold, ids and scores
// have the bits that they have without it; and what it reports of itself.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "cpu/filter.h"
#include "testkit/generate.h"
#include "testkit/number.h"
#include "testkit/requests.h"
#include "tests/cpu/select_case.h"

namespace msa::test {
namespace {

using testkit::Data;
using testkit::Operands;
using Row = std::vector<float>;
constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

void put(const Row& row, const Tensor& t, std::byte* place) {
  testkit::store(row.data(), static_cast<std::int64_t>(row.size()), t.dtype, place);
}

/// Products with the Hadamard matrix. Says whether the row is finite; else it is zeros.
bool rotate(std::vector<double>& row) {
  const auto finite = [](double x) { return std::isfinite(x); };
  if (!std::all_of(row.begin(), row.end(), finite)) {
    std::fill(row.begin(), row.end(), 0.0);
    return false;
  }
  testkit::rotate(row);
  return true;
}

/// Codes and bounds of everything that the keys hold now, as good as they can be.
void code_again(const Problem& p, const Operands& o) {
  const bool paged = p.bounds.page_size != 0;
  const std::int64_t step = paged ? p.bounds.page_size : kFilterRows;
  for (const testkit::Request& r : testkit::requests_of(p, o.batch)) {
    ASSERT_TRUE(paged || r.k_begin % kFilterRows == 0);
    for (std::int64_t begin = 0; begin < r.seqlen_k; begin += step) {
      Row stored(static_cast<std::size_t>(p.index.dim));
      std::vector<double> row(stored.size());  // what is coded
      bool broken = false;
      const auto for_keys = [&](const std::function<void(std::int64_t)>& visit) {
        for (std::int64_t key = begin; key < std::min(begin + step, r.seqlen_k); ++key) {
          testkit::load(testkit::key_row(o.index_k, o.batch, r, key, 0), o.index_k.dtype,
                        p.index.dim, stored.data());
          std::copy(stored.begin(), stored.end(), row.begin());
          if (p.index.filter->rotated) broken = !rotate(row) || broken;
          visit(key);
        }
      };
      float largest = 0;
      for_keys([&](std::int64_t) {
        for (const double x : row)
          largest =
              std::isfinite(x) ? std::max(largest, static_cast<float>(std::fabs(x))) : largest;
      });
      const float scale = std::isfinite(largest) ? largest / 127 : 0;  // rotated keys may overflow
      double error = 0, norm = 0;
      for_keys([&](std::int64_t key) {
        std::vector<std::int8_t> codes(row.size());
        double off = 0, length = 0;
        for (std::size_t d = 0; d < row.size(); ++d) {
          const float ratio =
              scale > 0 && std::isfinite(row[d]) ? static_cast<float>(row[d]) / scale : 0;
          codes[d] = static_cast<std::int8_t>(std::nearbyint(std::clamp(ratio, -127.0f, 127.0f)));
          const double value = static_cast<double>(codes[d]) * scale;
          off += (row[d] - value) * (row[d] - value);
          length += value * value;
        }
        error = std::isnan(off) || broken ? kInf : std::max(error, std::sqrt(off));
        norm = std::max(norm, std::sqrt(length));
        std::memcpy(testkit::key_row(o.index_k8, o.batch, r, key, 0), codes.data(), codes.size());
      });
      const auto up = [](double x) {
        return std::nextafter(static_cast<float>(x * (1 + 1e-12)), kInf);
      };
      if (p.index.filter->rotated) error += 1e-14 * norm;
      const std::array<float, 3> bounds{scale, up(error), up(norm)};
      const std::int64_t group = paged ? testkit::int_at(o.batch.page_table, r.index, begin / step)
                                       : (r.k_begin + begin) / step;
      for (std::int64_t i = 0; i < 3; ++i) {
        std::memcpy(testkit::address(o.index_k8_bounds, group, 0, i),
                    &bounds[static_cast<std::size_t>(i)], sizeof(float));
      }
    }
  }
}

/// The same by quantize_index.
void code_by_operation(const Data& data) {
  const Operands& o = data.operands();
  const QuantizeIndexArgs args{.index_k = o.index_k,
                               .batch = {.seqlens_k = o.batch.seqlens_k,
                                         .cu_seqlens_k = o.batch.cu_seqlens_k,
                                         .page_table = o.batch.page_table},
                               .index_k8 = o.index_k8,
                               .index_k8_bounds = o.index_k8_bounds};
  quantize_index(args, {.filter_rotated = data.problem().index.filter->rotated,
                        .options = {.backend = "cpu"}});
}

void write(const Data& data, const std::function<Row(std::int64_t, std::int64_t)>& query,
           const std::function<Row(std::int64_t)>& key) {
  const Operands& o = data.operands();
  for (std::int64_t row = 0; row < o.index_q.shape[0]; ++row) {
    for (std::int64_t h = 0; h < o.index_q.shape[1]; ++h)
      put(query(row, h), o.index_q, testkit::address(o.index_q, row, h));
  }
  for (const testkit::Request& r : testkit::requests_of(data.problem(), o.batch)) {
    for (std::int64_t j = 0; j < r.seqlen_k; ++j)
      put(key(r.k_begin + j), o.index_k, testkit::key_row(o.index_k, o.batch, r, j, 0));
  }
}

std::vector<std::byte> bytes_of(const Tensor& t) {
  std::vector<std::byte> bytes(static_cast<std::size_t>(t.shape[0] * t.shape[1] * t.shape[2] * 4));
  std::memcpy(bytes.data(), t.data, bytes.size());
  return bytes;
}

void run(const Data& data, Operands o, const Options& options) {
  Problem p = data.problem();
  p.options = options;
  if (!o.index_k8) p.index.filter.reset();
  const Plan plan = make_plan(p);
  testkit::GuardedWorkspace workspace(plan.workspace_bytes(), testkit::host_memory());
  workspace.poison();
  testkit::run(plan, o, workspace.view());
}

struct Bits {
  std::string where;
  std::vector<std::byte> ids, scores;
};

/// What a call gives on every level, with the filter or without.
std::vector<Bits> bits_on_every_level(Data& data, bool filtered) {
  std::vector<Bits> all;
  for (const std::string& isa : available_isas()) {
    for (const int threads : {1, 3}) {
      Operands o = data.prepare();
      if (!filtered) o.index_k8 = o.index_k8_bounds = o.candidates = {};
      run(data, o, {.backend = "cpu", .isa = isa, .threads = threads});
      all.push_back({.where = isa + ", threads " + std::to_string(threads),
                     .ids = bytes_of(o.block_ids),
                     .scores = bytes_of(o.chosen_scores)});
    }
  }
  return all;
}

/// The filter changes no bit of what the call gives without it.
void expect_same_bits(Data& data, const std::vector<Bits>& without) {
  const std::vector<Bits> with = bits_on_every_level(data, true);
  ASSERT_EQ(with.size(), without.size());
  for (std::size_t i = 0; i < with.size(); ++i) {
    SCOPED_TRACE(with[i].where);
    EXPECT_EQ(with[i].ids, without[i].ids);
    EXPECT_EQ(with[i].scores, without[i].scores);
  }
}

void expect_same_bits(Data& data) { expect_same_bits(data, bits_on_every_level(data, false)); }

struct Numbers {
  const char* name;
  std::function<float(std::mt19937&, std::int64_t row, std::size_t d)> query, key;
};

/// A number that depends on nothing but `row` and `which`; its bits differ for neighbours.
std::uint32_t scattered(std::int64_t row, std::uint32_t which = 0) {
  std::uint32_t x = static_cast<std::uint32_t>(row) * 2 + which + 1;
  for (const std::uint32_t factor : {0x7feb352du, 0x846ca68bu}) {
    x ^= x >> 16;
    x *= factor;
  }
  return x ^ x >> 16;
}

/// One of 8191 numbers: to draw it anew takes several random ones and a logarithm, which where
/// sanitizers watch is a quarter of the time of the tests below.
float normal(std::mt19937& random) {
  static const std::vector<float> numbers = [] {
    std::mt19937 source(1);
    std::normal_distribution<float> of;
    std::vector<float> drawn(8191);
    for (float& x : drawn) x = of(source);
    return drawn;
  }();
  return numbers[random() % numbers.size()];
}

const std::vector<Numbers>& regimes() {
  const auto any = [](std::mt19937& random, std::int64_t, std::size_t) { return normal(random); };
  const auto sized = [](float size) {
    return
        [size](std::mt19937& random, std::int64_t, std::size_t) { return size * normal(random); };
  };
  static const std::vector<Numbers> list{
      {"outlier channel", any,
       [](std::mt19937& random, std::int64_t, std::size_t d) {
         return normal(random) * (d == 3 ? 1000.0f : 1.0f);
       }},
      {"outlier keys", any,
       [](std::mt19937& random, std::int64_t row, std::size_t) {
         return normal(random) * (row % 37 == 0 ? 3e4f : 1.0f);
       }},
      {"one hot",
       [](std::mt19937&, std::int64_t row, std::size_t d) {
         return d == static_cast<std::size_t>(row) % 64 ? 1.0f : 0.0f;
       },
       [](std::mt19937& random, std::int64_t, std::size_t d) {
         return d == random() % 64 ? 1.0f : 0.0f;
       }},
      {"constant rows", [](std::mt19937&, std::int64_t, std::size_t) { return 0.3f; },
       [](std::mt19937&, std::int64_t row, std::size_t) {
         return 0.1f + 1e-3f * static_cast<float>(row % 5);
       }},
      {"ties", [](std::mt19937&, std::int64_t, std::size_t) { return 1.0f; },
       [](std::mt19937&, std::int64_t, std::size_t) { return -2.0f; }},
      {"zeros", any, [](std::mt19937&, std::int64_t, std::size_t) { return 0.0f; }},
      {"zero queries", [](std::mt19937&, std::int64_t, std::size_t) { return 0.0f; }, any},
      {"subnormal keys", sized(1e10f), sized(1e-39f)},
      {"subnormal queries", sized(3e-41f), sized(1e20f)},
      {"both tiny", sized(1e-30f), sized(1e-20f)},
      {"scores that overflow", sized(1e20f), sized(1e19f)},
      {"sums that overflow",
       [](std::mt19937& random, std::int64_t, std::size_t) {
         return random() % 2 == 0 ? 1.5e19f : -1.5e19f;
       },
       sized(2e18f)},
      {"non-finite queries",
       [](std::mt19937& random, std::int64_t row, std::size_t d) {
         if (row % 5 == 0 && d == 7) return row % 2 == 0 ? kNan : -kInf;
         return normal(random);
       },
       any},
      {"non-finite keys", any,
       [](std::mt19937& random, std::int64_t row, std::size_t d) {
         if (row % 61 == 0 && d == 9) return row % 2 == 0 ? kNan : kInf;
         return normal(random);
       }},
      // Errors in the direction of the other side, as large as bounds allow: a large channel that
      // adds nothing makes the steps coarse.
      {"errors of keys that align",
       [](std::mt19937&, std::int64_t, std::size_t d) { return d == 0 ? 0.0f : 1.0f; },
       [](std::mt19937& random, std::int64_t row, std::size_t d) {
         if (d == 0) return 50.0f + static_cast<float>(random() % 150);
         return static_cast<float>(scattered(row) % 1000) * 1e-3f;
       }},
      {"errors of queries that align",
       [](std::mt19937&, std::int64_t, std::size_t d) {
         if (d == 0) return 127.0f;
         return d < 32 ? 0.49f : 0.51f;
       },
       [](std::mt19937&, std::int64_t row, std::size_t d) {
         const bool low = scattered(row, 0) % 2 == 0;
         const float size = 1 + static_cast<float>(scattered(row, 1) % 300) * 1e-3f;
         return d != 0 && (d < 32) == low ? size : 0.0f;
       }},
      {"near ties",
       [](std::mt19937&, std::int64_t, std::size_t d) { return d < 2 ? 1.0f : 0x1p-12f; },
       [](std::mt19937& random, std::int64_t, std::size_t d) {
         return d < 2 ? 1.0f : static_cast<float>(random() % 3) * 0x1p-9f;
       }},
  };
  return list;
}

TEST(FilteredSelection, HasTheBitsOfTheUnfilteredOne) {
  for (const char* line :
       {"dtype=f32 lens=1:1000,3:640 page=32 topk=4", "dtype=bf16 lens=40:800 page=64 topk=4",
        "dtype=f32 lens=40:800 page=64 topk=4", "dtype=f16 lens=33:512,2:400 page=0 topk=4",
        "dtype=bf16 lens=1:9000 page=128 topk=16",
        "rotated=1 dtype=f32 lens=1:1000,3:640 page=32 topk=4",
        "rotated=1 dtype=bf16 lens=40:800 page=64 topk=4",
        "rotated=1 dtype=f16 lens=33:512,2:400 page=0 topk=4"}) {
    Data data(testkit::parse_case("op=select filter=1 heads=2/2 dim=64 block=32 chosen=1 " +
                                  std::string(line)));
    for (const Numbers& numbers : regimes()) {
      SCOPED_TRACE(line + std::string(": ") + numbers.name);
      std::mt19937 random(7);
      const auto row_of = [&](const auto& make, std::int64_t row) {
        Row values(64);
        for (std::size_t d = 0; d < values.size(); ++d) values[d] = make(random, row, d);
        return values;
      };
      write(
          data,
          [&](std::int64_t row, std::int64_t h) { return row_of(numbers.query, 2 * row + h); },
          [&](std::int64_t key) { return row_of(numbers.key, key); });
      const std::vector<Bits> without = bits_on_every_level(data, false);
      code_again(data.problem(), data.operands());
      expect_same_bits(data, without);
      code_by_operation(data);
      expect_same_bits(data, without);
    }
  }
}

TEST(FilteredSelection, BoundsThatSayNothingAreNoBounds) {
  for (const float nothing : {kNan, kInf, -kInf, -1.0f}) {
    for (std::int64_t item = 0; item < 3; ++item) {
      SCOPED_TRACE(std::to_string(nothing) + " in item " + std::to_string(item));
      Data data(
          testkit::parse_case("op=select filter=1 heads=2/2 dim=64 block=32 topk=4 chosen=1 "
                              "lens=3:900,40:640 page=32"));
      const Tensor& bounds = data.operands().index_k8_bounds;
      for (std::int64_t page = 0; page < bounds.shape[0]; page += 3)
        std::memcpy(testkit::address(bounds, page, 0, item), &nothing, sizeof nothing);
      expect_same_bits(data);
    }
  }
}

// True bounds, whatever the scale: 0 times a product of scales that overflows is no number.
TEST(FilteredSelection, CodesOfZeroMayHaveAnyScale) {
  for (const char* lens : {"lens=1:900", "lens=3:900,40:640"}) {
    Data data(
        testkit::parse_case("op=select filter=1 heads=2/2 dim=64 block=32 topk=4 chosen=1 "
                            "dtype=f32 page=32 " +
                            std::string(lens)));
    std::mt19937 random(7);
    const auto normals = [&](float size) {
      Row values(64);
      for (float& x : values) x = size * normal(random);
      return values;
    };
    write(
        data, [&](std::int64_t, std::int64_t) { return normals(1000.0f); },
        [&](std::int64_t) { return normals(1.0f); });
    code_again(data.problem(), data.operands());
    const Operands& o = data.operands();
    constexpr std::array<float, 3> kBounds{3e38f, 100.0f, 0.0f};
    for (std::int64_t page = 0; page < o.index_k8.shape[0]; page += 3) {
      for (std::int64_t slot = 0; slot < 32; ++slot)
        std::memset(testkit::address(o.index_k8, page, slot), 0, 64);
      for (std::int64_t i = 0; i < 3; ++i) {
        std::memcpy(testkit::address(o.index_k8_bounds, page, 0, i),
                    &kBounds[static_cast<std::size_t>(i)], sizeof(float));
      }
    }
    expect_same_bits(data);
  }
}

std::vector<std::int32_t> counts_of(const Tensor& t) {
  std::vector<std::int32_t> counts;
  for (std::int64_t row = 0; row < t.shape[0]; ++row) {
    for (std::int64_t h = 0; h < t.shape[1]; ++h) counts.push_back(testkit::int_at(t, row, h));
  }
  return counts;
}

TEST(FilteredSelection, SparesMostBlocksAndSaysHowMany) {
  for (const char* lens : {"lens=1:40000", "lens=40:20000"}) {
    Data data(testkit::parse_case("op=select filter=1 heads=2/2 dim=128 block=32 topk=16 " +
                                  std::string(lens) + " page=32 regime=drift"));
    for (const std::string& isa : available_isas()) {
      SCOPED_TRACE(lens + (" on " + isa));
      Operands o = data.prepare();
      run(data, o, {.backend = "cpu", .isa = isa, .threads = 1});
      const std::vector<std::int32_t> counts = counts_of(o.candidates);
      for (const std::int32_t count : counts) {
        EXPECT_GE(count, 15);  // one of the sixteen is forced
        EXPECT_LE(count, 200);
      }
      run(data, o, {.backend = "cpu", .isa = isa, .threads = 4});
      EXPECT_EQ(counts_of(o.candidates), counts) << "the number of threads changed the counts";
    }
  }
}

TEST(FilteredSelection, CountsSayWhereNothingWasSpared) {
  // Request 0 takes all that it sees without looking; request 1 has a query that is not finite.
  Data data(
      testkit::parse_case("op=select filter=1 heads=2/2 dim=32 block=16 topk=4 lens=1:60,2:400 "
                          "page=16 pad_rows=2"));
  std::memset(testkit::address(data.operands().index_q, 2, 1), 0xff, 2);
  Operands o = data.prepare();
  run(data, o, {.backend = "cpu"});
  const std::vector<std::int32_t> counts = counts_of(o.candidates);
  EXPECT_EQ(counts[0], 0);
  EXPECT_EQ(counts[1], 0);
  EXPECT_GT(counts[4], 0);
  EXPECT_EQ(counts[5], -1);
  EXPECT_EQ(std::vector(counts.begin() + 6, counts.end()), std::vector(4, 0));
  run(data, o, {.backend = "reference"});
  EXPECT_EQ(counts_of(o.candidates)[4], -1);
}

// ---- the bounds themselves ----

void expect_query_bound(const std::vector<float>& row, bool rotated) {
  std::vector<std::int8_t> codes(row.size());
  const cpu::QueryBound bound =
      cpu::quantize_query(reinterpret_cast<const std::byte*>(row.data()), DType::F32,
                          std::ssize(row), rotated, codes.data());
  std::vector<double> exact(row.begin(), row.end());
  if (rotated) {
    ASSERT_TRUE(rotate(exact));
    for (double& x : exact) x /= static_cast<double>(row.size());
  }
  long double squares = 0, errors = 0;
  for (std::size_t d = 0; d < row.size(); ++d) {
    const long double off =
        static_cast<long double>(exact[d]) - static_cast<long double>(codes[d]) * bound.scale;
    squares += static_cast<long double>(exact[d]) * exact[d];
    errors += off * off;
  }
  // Rotating is off by some of this, which the bounds of pages grant.
  const long double off = rotated ? sqrtl(squares) * cpu::kRotationError / 2 : 0;
  EXPECT_GE(bound.norm, sqrtl(squares) - off);
  EXPECT_LE(bound.norm, sqrtl(squares) * 1.00001L + off + 1e-41L);
  EXPECT_GE(bound.error, sqrtl(errors) - off);
  EXPECT_LE(bound.error, sqrtl(errors) * 1.00001L + off + 1e-35L);
}

TEST(FilterBounds, HoldForQueriesOfEverySize) {
  std::mt19937 random(11);
  for (const float size : {1e-45f, 1e-40f, 1e-30f, 1e-3f, 1.0f, 77.0f, 1e15f, 1e30f}) {
    SCOPED_TRACE(size);
    for (const std::size_t dim : {std::size_t{96}, std::size_t{128}, std::size_t{256}}) {
      std::vector<float> row(dim);
      for (float& x : row) x = size * normal(random);
      expect_query_bound(row, false);
      if (dim != 96) expect_query_bound(row, true);
    }
  }
}

// Rotated rows lie as far apart as they did: what a rotation in fp32 is off, of rows of all sizes
// and of such as cancel.
TEST(FilterBounds, RotatingIsOffByLessThanTheyGrant) {
  std::mt19937 random(12);
  for (const std::size_t dim :
       {std::size_t{1}, std::size_t{16}, std::size_t{128}, std::size_t{256}}) {
    for (int n = 0; n < 500; ++n) {
      std::vector<float> row(dim);
      for (std::size_t d = 0; d < dim; ++d) {
        row[d] = n % 3 == 0   ? normal(random)
                 : n % 3 == 1 ? std::ldexp(normal(random), static_cast<int>(random() % 40) - 20)
                              : 1 + 0x1p-20f * normal(random);
      }
      std::vector<double> exact(row.begin(), row.end());
      ASSERT_TRUE(rotate(exact));
      cpu::rotate(row.data(), std::ssize(row));
      double length = 0, off = 0;
      for (std::size_t d = 0; d < dim; ++d) {
        length += static_cast<double>(row[d]) * row[d];
        off += (row[d] - exact[d]) * (row[d] - exact[d]);
      }
      ASSERT_LE(std::sqrt(off), cpu::kRotationError / 2 * std::sqrt(length)) << dim << ' ' << n;
    }
  }
}

TEST(FilterBounds, SayNothingWhereTheyCannot) {
  for (const float nothing : {kNan, kInf, -kInf, -0x1p-149f}) {
    for (std::size_t item = 0; item < 3; ++item) {
      std::array<float, 3> bounds{0.5f, 0.25f, 3.0f};
      EXPECT_FALSE(std::isnan(cpu::page_bound(bounds.data(), 1, 128, false).error));
      bounds[item] = nothing;
      EXPECT_TRUE(std::isnan(cpu::page_bound(bounds.data(), 1, 128, false).error));
    }
  }
  const std::array<float, 6> strided{0.5f, -1, 0.25f, -1, 3.0f, -1};
  const cpu::PageBound page = cpu::page_bound(strided.data(), 2, 128, false);
  EXPECT_EQ(page.scale, 0.5f);
  EXPECT_EQ(page.norm, 3.0f);
  EXPECT_GT(page.error, 0.25f + 3.25f * 128 * 0x1p-24f);
  EXPECT_GT(cpu::page_bound(strided.data(), 2, 128, true).error, page.error);
}

}  // namespace
}  // namespace msa::test
