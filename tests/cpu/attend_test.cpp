// SPDX-License-Identifier: MIT
// Attention on every instruction set of this machine: against the oracle, with bits that depend on
// neither threads nor the batch around a request, and with the level that was asked for in force.
#include <gtest/gtest.h>
#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <iostream>
#include <limits>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "core/cpu_features.h"
#include "cpu/convert.h"
#include "cpu/isa.h"
#include "cpu/kernels.h"
#include "cpu/stage.h"
#include "testkit/compare.h"
#include "testkit/generate.h"
#include "testkit/number.h"
#include "testkit/operands.h"
#include "testkit/requests.h"
#include "testkit/verify.h"
#include "tests/cpu/common.h"

namespace msa::test {
namespace {

using testkit::Case;
using testkit::Data;
using testkit::Operands;

/// What a call wrote, byte for byte.
std::vector<std::byte> bits_of(Data& data, const Options& options,
                               [[maybe_unused]] unsigned mode = 0) {
  Problem problem = data.problem();
  problem.options = options;
  problem.options.batch_invariant = true;
  const Plan plan = make_plan(problem);
  testkit::GuardedWorkspace workspace(plan.workspace_bytes(), testkit::host_memory());
  workspace.poison();
  const Operands operands = data.prepare();
#if defined(__x86_64__)
  const unsigned own = _mm_getcsr();
  if (mode != 0) _mm_setcsr(mode);
  testkit::run(plan, operands, workspace.view());
  const unsigned after = _mm_getcsr();
  _mm_setcsr(own);
  if (mode != 0) {
    EXPECT_EQ(after, mode) << "the caller's mode was not given back";
  }
#else
  testkit::run(plan, operands, workspace.view());
#endif
  EXPECT_TRUE(workspace.guards_intact());
  EXPECT_EQ(data.damage(), "");
  std::vector<std::byte> bits;
  for (const testkit::Buffer& b : data.buffers()) {
    for (const Tensor* t :
         {&data.operands().out, &data.operands().lse, &data.operands().block_max}) {
      if (*t && t->data >= b.data() && t->data < b.data() + b.bytes()) {
        bits.insert(bits.end(), b.data(), b.data() + b.bytes());
      }
    }
  }
  return bits;
}

// ---- levels ----

TEST(Isa, TheLevelAskedForIsInForce) {
  for (const std::string& name : levels()) {
    Problem problem =
        testkit::problem_of(testkit::parse_case("op=dense heads=4/2 dim=32 lens=3:40"));
    problem.options = on(name);
    EXPECT_EQ(make_plan(problem).isa(), name);
  }
  for (const cpu::Isa isa : cpu::kIsas) {
    const cpu::Kernels* kernels = cpu::find_kernels(isa);
    if (kernels == nullptr) continue;
    EXPECT_STREQ(kernels->isa, cpu::to_string(isa));
    const bool tiles = isa == cpu::Isa::Amx || isa == cpu::Isa::AmxEmulated;
    const bool wide = tiles || isa == cpu::Isa::Avx512 || isa == cpu::Isa::Avx512Bf16;
    EXPECT_EQ(kernels->attend.lanes, wide ? 16 : 8);
    const bool pairs = tiles || isa == cpu::Isa::Avx512Bf16 || isa == cpu::Isa::NeonBf16;
    EXPECT_EQ(kernels->attend.words_of_bf16, pairs ? 2 : 1);
    ASSERT_NE(kernels->gradients, nullptr) << kernels->isa;
    for (const cpu::Isa other : cpu::kIsas) {
      if (other == isa || cpu::find_kernels(other) == nullptr) continue;
      EXPECT_NE(kernels->attend.attend, cpu::find_kernels(other)->attend.attend);
    }
  }
}

TEST(Isa, ArithmeticTellsTheLevels) {
  // bf16 products are summed in pairs, or evenly and oddly in tiles of 32, and P is rounded; fused
  // products round once, plain ones twice.
  Data data(testkit::parse_case("op=dense dtype=bf16 out=f32 heads=4/1 dim=64 lens=9:200"));
#if defined(__aarch64__)
  const std::string scalar = "fused";  // the compiler has such products at hand everywhere
#else
  const std::string scalar = "rounded twice";
#endif
  const std::map<std::string, std::string> products{
      {"amx", "tiles"},  {"amx_emulated", "tiles"}, {"avx512_bf16", "pairs"}, {"avx512", "fused"},
      {"avx2", "fused"}, {"neon_bf16", "pairs"},    {"neon", "fused"},        {"scalar", scalar}};
  for (const std::string& isa : levels()) {
    for (const std::string& other : levels()) {
      if (products.at(isa) == products.at(other)) continue;
      EXPECT_NE(bits_of(data, on(isa)), bits_of(data, on(other))) << isa << " and " << other;
    }
  }
}

TEST(Isa, UnknownNamesAndMissingFeaturesAreRejected) {
  Problem problem = testkit::problem_of(testkit::parse_case("op=dense heads=4/2 dim=32 lens=3:40"));
  problem.options = on("avx1024");
  const Support support = supports(problem);
  EXPECT_FALSE(support.supported);
  bool named = false;
  for (const BackendAnswer& answer : support.backends) {
    named = named || answer.reason.find("avx1024") != std::string::npos;
  }
  EXPECT_TRUE(named);
  core::CpuFeatures nothing;
  EXPECT_EQ(cpu::why_not(cpu::Isa::Scalar, nothing), "");
#if defined(__x86_64__)
  EXPECT_EQ(cpu::why_not(cpu::Isa::Neon, nothing), "is not built for this processor family");
  EXPECT_EQ(cpu::why_not(cpu::Isa::Avx2, nothing), "needs avx2, fma, f16c");
  core::CpuFeatures ice_lake{.avx2 = true,
                             .fma = true,
                             .f16c = true,
                             .avx512f = true,
                             .avx512bw = true,
                             .avx512dq = true,
                             .avx512vl = true,
                             .avx512_vbmi = true,
                             .avx512_vnni = true};
  EXPECT_EQ(cpu::why_not(cpu::Isa::Avx512, ice_lake), "");
  EXPECT_EQ(cpu::why_not(cpu::Isa::Avx512Bf16, ice_lake), "needs avx512_bf16");
  core::CpuFeatures tiles = ice_lake;
  tiles.avx512_bf16 = true;
  EXPECT_EQ(cpu::why_not(cpu::Isa::Amx, tiles), "needs amx_tile, amx_bf16, amx_int8");
  tiles.amx_tile = tiles.amx_bf16 = tiles.amx_int8 = true;
  EXPECT_EQ(cpu::why_not(cpu::Isa::Amx, tiles),
            "needs the system's permission to use tiles, which it refuses (arch_prctl)");
  tiles.amx_permitted = true;
  EXPECT_EQ(cpu::why_not(cpu::Isa::Amx, tiles), "");
#elif defined(__aarch64__)
  EXPECT_EQ(cpu::why_not(cpu::Isa::Avx2, nothing), "is not built for this processor family");
  EXPECT_EQ(cpu::why_not(cpu::Isa::NeonBf16, {.neon = true}), "needs neon_bf16");
  EXPECT_EQ(cpu::why_not(cpu::Isa::Neon, {.neon = true}), "");
#endif
}

// ---- against the oracle ----

const std::vector<std::string>& lines() {
  static const std::vector<std::string> list = {
      // lanes: groups that fill, cross and share vectors; dims of every residue
      "op=dense dtype=bf16 heads=16/1 dim=128 lens=130:300 lse=1",
      "op=dense dtype=f16 heads=24/1 dim=48 lens=21:77 lse=1",
      "op=dense dtype=f32 heads=3/1 dim=16 value_dim=112 lens=40:70 lse=1",
      "op=dense dtype=bf16 heads=10/2 dim=80 value_dim=16 lens=17:140,1:33,0:9 lse=1",
      "op=dense dtype=bf16 heads=2/2 dim=256 lens=33:129 out=f32 lse=1",
      // visibility: more queries than keys, offsets, no causality, tails of one key
      "op=dense dtype=f32 heads=8/2 dim=32 lens=50:20,3:1,2:0 lse=1",
      "op=dense dtype=bf16 heads=8/2 dim=32 lens=5:200:-3,6:100:500 lse=1 pad_rows=70",
      "op=dense dtype=f16 heads=8/2 dim=64 lens=40:257,1:129 causal=0 lse=1",
      // pieces of keys: decode of one and of several tokens, heads together and apart
      "op=dense dtype=bf16 heads=64/4 dim=128 lens=1:1500 lse=1",
      "op=dense dtype=bf16 heads=32/4 dim=64 lens=3:1000 page=16 lse=1",
      "op=dense dtype=f32 heads=8/4 dim=32 lens=1:5000 page=48 layout=head_major lse=1",
      "op=dense dtype=bf16 heads=20/10 dim=32 lens=1:900,1:5,1:0,1:300 page=32 lse=1",
      "op=sparse dtype=bf16 heads=64/4 dim=128 block=128 topk=16 lens=1:4000 page=128 lse=1",
      "op=sparse dtype=f16 heads=8/2 dim=64 block=32 topk=12 lens=2:900,1:40 lse=1",
      // lists: blocks shared by some tokens of a tile, partial lists, every block size
      "op=sparse dtype=bf16 heads=16/1 dim=128 block=128 topk=4 lens=70:700 lse=1",
      "op=sparse dtype=bf16 heads=8/1 dim=64 block=16 topk=9 lens=90:500 partial=1 order=shuffled "
      "lse=1",
      "op=sparse dtype=f32 heads=6/2 dim=32 block=48 topk=3 lens=70:300,9:100 page=16 lse=1",
      "op=sparse dtype=f16 heads=12/1 dim=96 block=256 topk=2 lens=33:900 strides=padded lse=1",
      "op=sparse dtype=bf16 heads=1/1 dim=16 block=16 topk=5 lens=150:333 lse=1",
      // block maxima beside the output, alone, under a negative scale
      "op=dense dtype=bf16 heads=16/2 dim=64 block=64 lens=70:300 block_max=1 lse=1",
      "op=dense dtype=f32 heads=6/2 dim=32 block=16 lens=40:100,3:7 block_max=1 output=0",
      "op=dense dtype=bf16 heads=8/2 dim=64 block=32 lens=1:2000 block_max=1 scale=-0.2 lse=1",
      "op=dense dtype=f32 heads=8/2 dim=64 lens=20:90 scale=0 lse=1",
      // what must not leak and what must show
      "op=dense dtype=bf16 heads=16/2 dim=64 lens=60:260,2:33 page=16 hostile=nan lse=1",
      "op=dense dtype=f32 heads=16/2 dim=64 lens=60:260 hostile=nan_v lse=1",
      "op=dense dtype=bf16 heads=16/2 dim=64 lens=60:260 hostile=nan_k block_max=1 lse=1",
      "op=sparse dtype=bf16 heads=8/2 dim=64 block=16 topk=4 lens=60:260 hostile=nan_q lse=1",
      "op=sparse dtype=f16 heads=8/2 dim=64 block=16 topk=4 lens=60:260 page=16 hostile=nan lse=1",
      "op=sparse dtype=bf16 heads=16/1 dim=128 block=32 topk=4 lens=30:300 hostile=nan_k lse=1",
      "op=sparse dtype=bf16 heads=8/2 dim=64 block=16 topk=4 lens=1:260 hostile=nan_v lse=1",
      // select, then attend, in chunks of rows
      "op=msa dtype=bf16 heads=16/2 dim=64 block=32 topk=4 lens=100:300,1:200,2:64 lse=1",
      "op=msa dtype=f32 heads=16/16 dim=16 block=16 topk=256 lens=300:300,70:90,1:30 ids=0",
      "op=merge_states dtype=bf16 heads=8/8 dim=64 lens=20:0 parts=3 lse=1",
      "op=merge_states dtype=f32 heads=4/4 dim=304 lens=19:0 parts=5 in_place=1 lse=1",
  };
  return list;
}

class Attend : public testing::TestWithParam<std::string> {};

TEST_P(Attend, MatchesTheOracle) {
  const Case spec = testkit::parse_case(GetParam());
  testkit::CaseMemory memory;
  testkit::VerifyOptions options;
  options.memory = &memory;
  for (const std::string& isa : levels()) {
    options.under_test = on(isa);
    const testkit::Outcome outcome = testkit::verify(spec, options);
    EXPECT_EQ(outcome.result, testkit::Result::Passed) << outcome.reason << "\n" << outcome.repro;
    EXPECT_EQ(outcome.isa, isa);
  }
}

TEST_P(Attend, BitsDoNotDependOnThreads) {
  Data data(testkit::parse_case(GetParam()));
  for (const std::string& isa : levels()) {
    const std::vector<std::byte> one = bits_of(data, on(isa, 1));
    for (const int threads : {2, 7})
      EXPECT_EQ(bits_of(data, on(isa, threads)), one) << isa << " " << threads;
  }
}

/// Runs a case on one level; the workspace tells how many tokens were computed again.
std::int64_t mended(Data& data, const std::string& isa, double* seconds = nullptr) {
  Problem problem = data.problem();
  problem.options = seconds == nullptr ? on(isa) : on(isa, 1);  // else waiting counts
  const Plan plan = make_plan(problem);
  testkit::GuardedWorkspace workspace(plan.workspace_bytes(), testkit::host_memory());
  const Operands operands = data.prepare();
  const auto start = std::chrono::steady_clock::now();
  testkit::run(plan, operands, workspace.view());
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
  if (seconds != nullptr) *seconds = std::min(*seconds, took.count());
  return cpu::mended_tokens(workspace.view().data);
}

TEST_P(Attend, FiniteDataAreNeverComputedAgain) {
  const Case spec = testkit::parse_case(GetParam());
  const bool counts = spec.op != Op::MergeStates;
  if (!counts || spec.hostile != testkit::Hostile::None) return;  // the others are counted below
  Data data(spec);
  for (const std::string& isa : levels()) {
    EXPECT_EQ(mended(data, isa), 0) << isa;
  }
}

#if defined(__x86_64__)
TEST_P(Attend, BitsDoNotDependOnTheCallersFloatingPointMode) {
  constexpr unsigned kFlushAndRoundUp = 0x8000u | 0x0040u | 0x4000u;
  Data data(testkit::parse_case(GetParam()));
  for (const std::string& isa : levels()) {
    const std::vector<std::byte> plain = bits_of(data, on(isa, 2));
    const unsigned mode = _mm_getcsr() | kFlushAndRoundUp;
    for (const int threads : {1, 2}) {
      EXPECT_EQ(bits_of(data, on(isa, threads), mode), plain) << isa << ", threads " << threads;
    }
  }
}
#endif

std::string name_of(const testing::TestParamInfo<std::string>& info) {
  std::string name = std::to_string(info.index) + "_" + info.param.substr(3);
  for (char& c : name) c = std::isalnum(static_cast<unsigned char>(c)) != 0 ? c : '_';
  return name;
}
INSTANTIATE_TEST_SUITE_P(Cases, Attend, testing::ValuesIn(lines()), name_of);

// ---- values that are not finite, or nearly so ----

TEST(Mend, CountsTokensThatMeetANeighboursNan) {
  for (const std::string& isa : levels()) {
    // Row 39 sees a NaN; rows 32 to 38 share its vectors, so that the hidden key meets them too.
    Data data(testkit::parse_case("op=dense dtype=f32 heads=4/2 dim=32 lens=40:40 lse=1"));
    const Tensor v = data.prepare().v;
    std::memset(testkit::address(v, 39, 0), 0xff, sizeof(float));
    Problem problem = data.problem();
    problem.options = on(isa);
    const Plan plan = make_plan(problem);
    testkit::GuardedWorkspace workspace(plan.workspace_bytes(), testkit::host_memory());
    testkit::run(plan, data.operands(), workspace.view());
    EXPECT_EQ(cpu::mended_tokens(workspace.view().data), 8) << isa;
    const testkit::Report report = testkit::compare(data.problem(), data.operands());
    EXPECT_TRUE(report.ok) << isa << ": " << report.what;
  }
}

TEST(Mend, SumsOfTheLargestValuesDoNotOverflow) {
  for (const char* line : {"op=dense dtype=f32 heads=4/2 dim=32 lens=40:90,1:700 lse=1",
                           "op=dense dtype=bf16 heads=4/2 dim=32 lens=40:90,1:700 lse=1",
                           "op=dense dtype=bf16 heads=64/1 dim=32 lens=9:90 lse=1",
                           "op=sparse dtype=bf16 heads=4/2 dim=32 block=16 topk=3 lens=40:90 lse=1",
                           "op=dense dtype=bf16 heads=4/2 dim=32 lens=1:5000 lse=1"}) {
    for (const std::string& isa : levels()) {
      Data data(testkit::parse_case(line));
      const Tensor v = data.prepare().v;
      for (std::int64_t key = 0; key < v.shape[0]; ++key) {
        for (std::int64_t head = 0; head < v.shape[1]; ++head) {
          for (std::int64_t d = 0; d < v.shape[2]; ++d) {
            const float value = d % 2 == 0 ? 0x1.fcp127f : -0x1.fcp127f;
            testkit::store(&value, 1, v.dtype, testkit::address(v, key, head, d));
          }
        }
      }
      Problem problem = data.problem();
      problem.options = on(isa);
      const Plan plan = make_plan(problem);
      testkit::GuardedWorkspace workspace(plan.workspace_bytes(), testkit::host_memory());
      testkit::run(plan, data.operands(), workspace.view());
      // fp32 programs overflow here and are no yardstick: every value is the same, and so is the
      // mean.
      const Tensor out = data.operands().out;
      for (std::int64_t row = 0; row < out.shape[0]; ++row) {
        for (std::int64_t head = 0; head < out.shape[1]; ++head) {
          for (std::int64_t d = 0; d < out.shape[2]; ++d) {
            const double expected = d % 2 == 0 ? 0x1.fcp127 : -0x1.fcp127;
            ASSERT_NEAR(testkit::float_at(out, row, head, d) / expected, 1, 1e-5)
                << isa << ": " << line << ": " << row << ", " << head << ", " << d;
          }
        }
      }
    }
  }
}

// ---- scores that overflow fp32, and numbers below its normal ones ----

struct Answer {
  float out = 0, lse = 0;
};

/// One token of four heads of 16 dims: all elements of q are `q`, those of key j keys[j], those of
/// its value `value`, or j where there is none.
Answer attend_flat(const std::string& dtype, const std::string& isa, float q,
                   const std::vector<float>& keys, float scale,
                   std::optional<float> value = std::nullopt) {
  // One for each type and length: all its numbers are written below, and drawing them takes longer
  // than the call.
  static std::map<std::string, Data> known;
  const std::string line = "op=dense out=f32 heads=4/2 dim=16 lse=1 dtype=" + dtype +
                           " lens=1:" + std::to_string(keys.size());
  Data& data = known.try_emplace(line, testkit::parse_case(line)).first->second;
  const Operands o = data.prepare();
  const auto fill = [](const Tensor& t, std::int64_t row, float x) {
    const std::vector<float> values(16, x);
    for (std::int64_t head = 0; head < t.shape[1]; ++head)
      testkit::store(values.data(), 16, t.dtype, testkit::address(t, row, head));
  };
  fill(o.q, 0, q);
  for (std::size_t j = 0; j < keys.size(); ++j) {
    fill(o.k, static_cast<std::int64_t>(j), keys[j]);
    fill(o.v, static_cast<std::int64_t>(j), value.value_or(static_cast<float>(j)));
  }
  Problem problem = data.problem();
  problem.options = on(isa);
  problem.attention.softmax_scale = scale;
  const Plan plan = make_plan(problem);
  testkit::GuardedWorkspace workspace(plan.workspace_bytes(), testkit::host_memory());
  testkit::run(plan, o, workspace.view());
  for (std::int64_t head = 1; head < 4; ++head) {
    EXPECT_EQ(std::memcmp(testkit::address(o.out, 0, head), testkit::address(o.out, 0, 0), 64), 0);
  }
  return {testkit::float_at(o.out, 0, 0, 3), testkit::float_at(o.lse, 0, 0)};
}

class Overflow : public testing::TestWithParam<const char*> {
 protected:
  /// Keys [0, at) with one value, [at, count) with another.
  static std::vector<float> keys(std::size_t at, float first, std::size_t count, float rest) {
    std::vector<float> all(count, rest);
    std::fill_n(all.begin(), at, first);
    return all;
  }
};

// docs/numerics.md: nothing overflows while the sum of |q k| and that sum times |softmax_scale|
// log2(e) stay within 2^127.
TEST_P(Overflow, NothingOverflowsUpToTheBound) {
  for (const std::string& isa : levels()) {
    for (const float sign : {1.0f, -1.0f}) {
      const Answer a = attend_flat(GetParam(), isa, 0x1p60f, keys(41, sign * 0x1p63f, 41, 0), 0.5f);
      EXPECT_NEAR(a.out, 20, 0.1) << isa;
      EXPECT_NEAR(a.lse / (sign * 0x1p126f), 1, 1e-5) << isa;
    }
  }
}

// Where scaled scores pass 2^24, a row is its largest key, and its lse that key's score: whatever
// rounding took from the products, and wherever the maximum stood before.
TEST_P(Overflow, OfLargeScoresTheLargestWins) {
  for (const std::string& isa : levels()) {
    for (const std::size_t count : {41u, 300u, 5000u}) {  // one block, several, several pieces
      for (const std::size_t at : {std::size_t{0}, count / 2, count - 1}) {
        for (int exponent = 0; exponent <= 57; exponent += count > 1000 ? 19 : 6) {
          for (const float sign : {1.0f, -1.0f}) {
            const float size = std::ldexp(1.0f, exponent);
            std::vector<float> all(count);
            for (std::size_t j = 0; j < count; ++j)
              all[j] = size * (1.125f + 0.25f * static_cast<float>(j) / static_cast<float>(count));
            for (float& key : all) key *= sign;
            all[at] = sign > 0 ? size * 1.7265625f : size * -0.9140625f;
            const Answer a = attend_flat(GetParam(), isa, size * 1.2734375f, all, 9.3f);
            const double best = 16.0 * 9.3f * (size * 1.2734375f) * double(all[at]);
            ASSERT_NEAR(a.out, static_cast<float>(at), 1e-3 + static_cast<double>(at) / 256)
                << isa << ", 2^" << 2 * exponent << ", " << sign;
            ASSERT_NEAR(a.lse / best, 1, 1e-5) << isa << ", 2^" << 2 * exponent << ", " << sign;
          }
        }
      }
    }
  }
}

TEST_P(Overflow, AScoreBeyondIsInfinite) {
  for (const std::string& isa : levels()) {
    for (const std::size_t count : {41u, 5000u}) {  // one piece, and several
      const Answer all =
          attend_flat(GetParam(), isa, 0x1p60f, keys(count, 0x1p64f, count, 0), 1e-9f);
      EXPECT_TRUE(std::isnan(all.out) && std::isnan(all.lse)) << isa;
      const Answer one = attend_flat(GetParam(), isa, 0x1p60f, keys(1, 0x1p64f, count, 0), 1e-9f);
      EXPECT_TRUE(std::isnan(one.out) && std::isnan(one.lse)) << isa;
      const Answer none =
          attend_flat(GetParam(), isa, -0x1p60f, keys(count, 0x1p64f, count, 0), 1e-9f);
      EXPECT_EQ(none.out, 0) << isa;
      EXPECT_EQ(none.lse, -kInf) << isa;
      const Answer others =
          attend_flat(GetParam(), isa, -0x1p60f, keys(count - 3, 0x1p64f, count, 0), 1e-9f);
      EXPECT_NEAR(others.out / static_cast<float>(count - 2), 1, 0.01) << isa;
      EXPECT_NEAR(others.lse, std::log(3.0f), 1e-5) << isa;
    }
  }
}

TEST_P(Overflow, AScaledScoreBeyondIsInfinite) {
  for (const std::string& isa : levels()) {
    for (const std::size_t count : {41u, 300u, 5000u}) {
      const Answer all = attend_flat(GetParam(), isa, 0x1p60f, keys(count, 0x1p62f, count, 0), 8);
      EXPECT_TRUE(std::isnan(all.out) && std::isnan(all.lse)) << isa << " " << all.out;
      const Answer one = attend_flat(GetParam(), isa, 0x1p60f, keys(1, 0x1p62f, count, 0), 8);
      EXPECT_TRUE(std::isnan(one.out) && std::isnan(one.lse)) << isa << " " << one.out;
      const Answer none = attend_flat(GetParam(), isa, -0x1p60f, keys(count, 0x1p62f, count, 0), 8);
      EXPECT_EQ(none.out, 0) << isa;
      EXPECT_EQ(none.lse, -kInf) << isa;
      // What overflowed comes first and weighs nothing; the others' scores are far below zero.
      const Answer others =
          attend_flat(GetParam(), isa, -0x1p60f, keys(count - 3, 0x1p62f, count, 0x1p30f), 8);
      EXPECT_NEAR(others.out / static_cast<float>(count - 2), 1, 0.01) << isa;
      EXPECT_NEAR(others.lse / -0x1p97f, 1, 1e-5) << isa;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(DTypes, Overflow, testing::Values("f32", "bf16"));

// The products of bf16 pairs, of registers and of tiles, take numbers below the normal ones for
// zero.
TEST(Subnormal, ValuesAreKeptButByProductsOfPairs) {
  for (const char* dtype : {"f32", "bf16"}) {
    for (const std::string& isa : levels()) {
      const Answer a = attend_flat(dtype, isa, 1, std::vector<float>(8, 0.0f), 1, 0x1p-130f);
      const bool flushes = isa == "avx512_bf16" || isa.starts_with("amx");
      const bool pairs = flushes && std::string(dtype) == "bf16";
      EXPECT_EQ(a.out, pairs ? 0 : 0x1p-130f) << isa << " " << dtype;
    }
  }
}

/// Whether a sanitizer watches, which slows vectors down but not tiles.
constexpr bool kSanitized =
#if defined(__has_feature)
    __has_feature(address_sanitizer);
#else
    false;
#endif

/// The best level of vectors, and the one of tiles where a CPU has it.
std::vector<std::string> levels_to_time() {
  std::vector<std::string> chosen;
  for (const std::string& isa : levels()) {
    if (isa.starts_with("amx") && (kSanitized || isa != "amx")) continue;
    chosen.push_back(isa);
    if (isa != "amx") break;
  }
  return chosen;
}

// One NaN in a block that all rows list makes every row not finite: they are computed again, and
// that must not stall a server (it once took 120 times as long).
TEST(Mend, OneNanCostsAtMostFiveTimes) {
  for (const std::string& isa : levels_to_time()) {
    for (const char* line : {"op=sparse heads=16/1 dim=128 lens=512:2048 regime=drift",
                             "op=msa heads=16/1 dim=128 lens=512:2048 regime=drift init=1",
                             "op=dense heads=16/1 dim=128 lens=256:1024"}) {
      const Case spec = testkit::parse_case(line);
      double clean = 1e9, broken = 1e9;
      Data good(spec), bad(spec);
      std::memset(testkit::address(bad.operands().v, 0, 0), 0xff, 2);
      // The best of each, of more runs where other jobs disturbed the first ones.
      for (int n = 0; n < 3 || (n < 30 && broken > 5 * clean); ++n) {
        EXPECT_EQ(mended(good, isa, &clean), 0) << isa << ": " << line;
        EXPECT_EQ(mended(bad, isa, &broken), spec.rows()) << isa << ": " << line;
      }
      EXPECT_LE(broken, 5 * clean) << isa << ": " << line;
    }
  }
}

// A whole MSA prefill counts those of all its chunks of rows.
TEST(Mend, CountsTheTokensOfEveryChunk) {
  Data data(testkit::parse_case(
      "op=msa dtype=f32 heads=16/16 dim=16 block=16 topk=256 lens=300:300,70:90,1:30 "
      "init=1"));
  Problem problem = data.problem();
  problem.options = on(levels().front());
  ASSERT_NE(make_plan(problem).to_string().find("chunk_rows 256\n"), std::string::npos);
  const Tensor v = data.operands().v;
  for (const std::int64_t key : {0, 300, 390}) {  // the first of each request
    for (std::int64_t head = 0; head < v.shape[1]; ++head) {
      std::memset(testkit::address(v, key, head), 0xff, sizeof(float));
    }
  }
  EXPECT_EQ(mended(data, levels().front()), 371 * 16);
}

// ---- conversions ----

TEST(Convert, HalvesRoundTrip) {
  for (std::uint32_t i = 0; i <= 0xffffu; ++i) {
    const auto half = static_cast<std::uint16_t>(i);
    const float f16 = cpu::f16_to_float(half), bf16 = cpu::bf16_to_float(half);
    if (!std::isnan(f16)) {
      ASSERT_EQ(cpu::float_to_f16(f16), half);
    }
    if (!std::isnan(bf16)) {
      ASSERT_EQ(cpu::float_to_bf16(bf16), half);
    }
    ASSERT_EQ(std::isnan(f16), std::isnan(cpu::f16_to_float(cpu::float_to_f16(f16))));
    ASSERT_EQ(std::isnan(bf16), std::isnan(cpu::bf16_to_float(cpu::float_to_bf16(bf16))));
  }
}

TEST(Convert, RoundsToNearestEven) {
  EXPECT_EQ(cpu::float_to_bf16(1.00390625f), 0x3f80);  // half a step up from 1: even stays
  EXPECT_EQ(cpu::float_to_bf16(1.01171875f), 0x3f82);  // half a step up from odd: goes up
  EXPECT_EQ(cpu::float_to_bf16(3.4e38f), 0x7f80);      // rounds past the largest
  EXPECT_EQ(cpu::float_to_f16(65519.0f), 0x7bff);
  EXPECT_EQ(cpu::float_to_f16(65520.0f), 0x7c00);
  EXPECT_EQ(cpu::float_to_f16(0x1.8p-25f), 0x0001);  // nearest subnormal
  EXPECT_EQ(cpu::float_to_f16(0x1p-25f), 0x0000);    // a tie: to even
  EXPECT_EQ(cpu::float_to_f16(-0x1.ff8p-15f), 0x83ff);
  EXPECT_EQ(cpu::float_to_f16(-std::numeric_limits<float>::infinity()), 0xfc00);
}

}  // namespace
}  // namespace msa::test
