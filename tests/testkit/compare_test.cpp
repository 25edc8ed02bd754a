// SPDX-License-Identifier: MIT
// The comparison must see what is wrong: each test spoils one thing that a correct call wrote.
#include "testkit/compare.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <initializer_list>
#include <limits>

#include "testkit/generate.h"
#include "testkit/lean.h"
#include "testkit/number.h"
#include "testkit/random.h"
#include "testkit/requests.h"
#include "testkit/verify.h"
#include "tests/testkit/rounded_weights.h"

namespace msa::testkit {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();

/// A case that the oracle has run, and its outputs to spoil.
class Ran {
 public:
  explicit Ran(const std::string& line) : data(parse_case(line)) {
    Problem problem = data.problem();
    problem.options.backend = "reference";
    const Plan plan = make_plan(problem);
    GuardedWorkspace workspace(plan.workspace_bytes(), host_memory());
    run(plan, data.prepare(), workspace.view());
  }

  Report report(double max_work = 4e8) const {
    CompareOptions options;
    options.exact_scores = has_exact_scores(data.spec());
    options.independent_errors = has_independent_errors(data.spec());
    options.keys_alike = has_keys_alike(data.spec());
    options.max_work = max_work;
    return compare(data.problem(), data.operands(), options);
  }

  Data data;
};

void set_float(const Tensor& t, float value, std::int64_t i, std::int64_t h, std::int64_t d = 0) {
  store(&value, 1, t.dtype, address(t, i, h, d));
}
void set_row(const Tensor& t, float value, std::int64_t i) {
  for (std::int64_t h = 0; h < t.shape[1]; ++h) set_float(t, value, i, h);
}
void set_int(const Tensor& t, std::int32_t value, std::int64_t i, std::int64_t h, std::int64_t s) {
  std::memcpy(address(t, i, h, s), &value, sizeof(value));
}

TEST(Compare, TwoUlpsAreTooMany) {
  Ran ran("op=dense heads=4/2 dim=32 lens=20:90 lse=1");
  EXPECT_TRUE(ran.report().ok) << ran.report().what;
  EXPECT_EQ(ran.report().rows_compared, 20);
  const Tensor& out = ran.data.operands().out;
  double largest = 0;
  for (std::int64_t d = 0; d < 32; ++d) {
    largest = std::max<double>(largest, std::fabs(float_at(out, 7, 3, d)));
  }
  const float old = float_at(out, 7, 3, 5);
  set_float(out, old + static_cast<float>(3 * ulp(largest, out.dtype)), 7, 3, 5);
  const Report report = ran.report();
  EXPECT_FALSE(report.ok);
  EXPECT_NE(report.what.find("out[7, 3, 5] (request 0, query 7, 78 visible keys)"),
            std::string::npos)
      << report.what;
}

TEST(Compare, ReadsNoOtherRowsThanItSays) {
  for (const char* line : {"op=dense heads=4/2 dim=32 lens=70:90 lse=1 pad_rows=3",
                           "op=msa heads=2/1 dim=32 block=16 topk=2 lens=70:90 lse=1"}) {
    Ran ran(line);
    const Operands& o = ran.data.operands();
    const CompareOptions sampled{.max_work = 0};
    EXPECT_EQ(rows_to_compare(ran.data.problem(), o).size(),
              static_cast<std::size_t>(o.q.shape[0]));
    const std::vector<std::int64_t> rows = rows_to_compare(ran.data.problem(), o, sampled);
    EXPECT_LT(rows.size(), 16U);
    for (std::int64_t row = 0; row < o.q.shape[0]; ++row) {
      if (!std::binary_search(rows.begin(), rows.end(), row)) set_row(o.out, kNan, row);
    }
    EXPECT_TRUE(ran.report(0).ok) << ran.report(0).what;
    for (const std::int64_t row : rows) {
      Ran spoilt(line);
      set_row(spoilt.data.operands().out, kNan, row);  // of its heads one is compared
      EXPECT_FALSE(spoilt.report(0).ok) << "row " << row;
    }
  }
}

TEST(Compare, NonFiniteWhereItIsNotDue) {
  for (const float bad : {kNan, kInf}) {
    Ran ran("op=dense heads=4/2 dim=32 lens=20:90 lse=1");
    set_float(ran.data.operands().out, bad, 0, 0, 31);
    EXPECT_FALSE(ran.report().ok);
  }
  Ran ran("op=dense heads=4/2 dim=32 lens=20:90 lse=1 hostile=nan_q");
  const Tensor& out = ran.data.operands().out;
  for (std::int64_t i = 0; i < 20; ++i) {
    if (std::isfinite(float_at(out, i, 1, 0))) continue;
    set_float(out, 0, i, 1, 0);
    EXPECT_FALSE(ran.report().ok) << "a number where NaN is due";
    return;
  }
  FAIL() << "no row without a value";
}

TEST(Compare, LogSumExp) {
  Ran ran("op=dense heads=4/2 dim=32 lens=20:90,2:0 lse=1");
  const Tensor& lse = ran.data.operands().lse;
  const float old = float_at(lse, 3, 2);
  set_float(lse, old + 5e-6f, 3, 2);
  EXPECT_TRUE(ran.report().ok);
  set_float(lse, old + 5e-5f * std::max(1.0f, std::fabs(old)), 3, 2);
  EXPECT_FALSE(ran.report().ok);
  set_float(lse, old, 3, 2);
  set_float(lse, kNan, 21, 0);  // a row that sees nothing has -inf
  EXPECT_FALSE(ran.report().ok);
}

void expect_lse_mark_between(float inside, float outside, const Ran& ran, std::int64_t row,
                             std::int64_t head) {
  EXPECT_TRUE(ran.report().ok) << ran.report().what;
  const Tensor& lse = ran.data.operands().lse;
  const float old = float_at(lse, row, head);
  set_float(lse, old + inside, row, head);
  EXPECT_TRUE(ran.report().ok) << ran.report().what;
  set_float(lse, old + outside, row, head);
  EXPECT_FALSE(ran.report().ok);
}

// One key whose score is a small sum of large terms: plain fp32 arithmetic is 1.7e-5 off there, and
// nobody may be more than twice that.
TEST(Compare, LogSumExpOfScoresThatCancel) {
  const Ran ran(
      "op=sparse dtype=f32 kv=e4m3 heads=32/1 dim=256 value_dim=256 block=32 topk=1 local=0 "
      "init=1 scale=2 lens=8:65@64/129,14:32,4:34 page=32 slack=12 order=descending partial=1 "
      "lse=1 regime=drift hostile=nan_v seed=860");
  expect_lse_mark_between(3e-5f, 4e-5f, ran, 7, 22);
}

// Another one of which all plain programs are right by luck: an honest sum, one term after the
// other, is 3.6e-5 off. Roundings of the score may come to 4.5 of their deviations.
TEST(Compare, LogSumExpWherePlainIsLucky) {
  const Ran ran(
      "op=sparse kv=e4m3/page index_dtype=bf16 out=f32 heads=36/4 index_dim=128 block=64 topk=6 "
      "local=2 scale=8 lens=10:7,11:8,27:1,4:19 page=256 layout=slot_major order=shuffled "
      "partial=1 lse=1 ids=0 regime=drift hostile=nan seed=422");
  expect_lse_mark_between(3.6e-5f, 1e-4f, ran, 47, 26);
}

TEST(Compare, LogSumExpOfARowWithoutValueIsNan) {
  Ran ran("op=dense heads=4/2 dim=32 lens=20:90 lse=1 hostile=nan_q");
  EXPECT_TRUE(ran.report().ok) << ran.report().what;
  const Tensor& lse = ran.data.operands().lse;
  int spoilt = 0;
  for (std::int64_t i = 0; i < 20; ++i) {
    if (!std::isnan(float_at(lse, i, 1))) continue;
    ++spoilt;
    set_float(lse, kInf, i, 1);
  }
  ASSERT_GT(spoilt, 0);
  EXPECT_FALSE(ran.report().ok) << "+inf where NaN is due";
}

// Within the tolerance of every element, but all to one side.
TEST(Compare, ErrorsThatLean) {
  Ran ran("op=dense out=f32 heads=4/2 dim=32 lens=40:300");
  const Report honest = ran.report();
  EXPECT_TRUE(honest.ok) << honest.what;
  const Tensor& out = ran.data.operands().out;
  const auto each = [&](const auto& change) {
    for (std::int64_t i = 0; i < out.shape[0]; ++i) {
      for (std::int64_t h = 0; h < out.shape[1]; ++h) {
        for (std::int64_t d = 0; d < out.shape[2]; ++d) {
          set_float(out, change(float_at(out, i, h, d)), i, h, d);
        }
      }
    }
  };
  each([](float x) { return x * (1 - 0x1p-11f); });
  Report report = ran.report();
  EXPECT_LE(report.worst_share, 1);
  EXPECT_FALSE(report.ok);
  EXPECT_NE(report.what.find("errors lean away from zero"), std::string::npos) << report.what;
  EXPECT_LT(report.outward, -6);
  each([](float x) { return x / (1 - 0x1p-11f) + 4e-5f; });
  report = ran.report();
  EXPECT_LE(report.worst_share, 1);
  EXPECT_NE(report.what.find("errors lean towards plus infinity"), std::string::npos)
      << report.what;
}

// The bound of lean.h, on samples of all sizes: honest ones never come near it.
TEST(Lean, HonestSamplesStayBelowAndLeaningOnesDoNot) {
  double largest = 0;
  for (std::uint64_t trial = 0; trial < 20000; ++trial) {
    const Stream64 random(trial, 1);
    Lean lean, heavy, leaning;
    for (std::uint64_t n = 0; n < 100; ++n) {
      const double x = random.normal(n);
      lean.add(x);
      heavy.add(x * x * x * x * x);
      leaning.add(0.05 * x + 0.1);
    }
    largest =
        std::max({largest, std::fabs(lean.standard_errors()), std::fabs(heavy.standard_errors())});
    EXPECT_FALSE(lean.leans() || heavy.leans()) << trial;
    EXPECT_TRUE(leaning.leans()) << trial;
  }
  EXPECT_GT(largest, 3) << "three standard errors are met by honest samples";
  EXPECT_LT(largest, 5.5);
}

TEST(Lean, WhatIsSmallAgainstTheToleranceMayLean) {
  Lean lean;
  for (int n = 0; n < 1000; ++n) lean.add(0.004 + (n % 2 == 0 ? 1e-4 : -1e-4));
  EXPECT_GT(lean.standard_errors(), Lean::kStandardErrors);
  EXPECT_FALSE(lean.leans());
}

// Honest programs round each weight once, against a maximum of their own: none of thousands may be
// called wrong, though some are further off than twice plain.
TEST(Compare, WeightsMayBeRoundedAgainstAnyMaximum) {
  for (const char* dtype : {"bf16", "f16"}) {
    Ran ran(std::string("op=dense out=f32 heads=32/1 dim=64 lens=200:220 dtype=") + dtype);
    attend_with_rounded_weights(ran.data);
    const Report report = ran.report();
    EXPECT_TRUE(report.ok) << dtype << ": " << report.what;
    EXPECT_GT(report.worst_share, 0.6) << "the mark is far from what such programs need";
  }
}

// Where a softmax scale of 0.001 makes weights alike, those of a page, which one scale multiplies,
// round to the same side: each output sums a block's pages, and not as many roundings as keys.
TEST(Compare, WeightsOfAPageRoundAlike) {
  const std::string line =
      "op=dense out=f32 heads=32/1 dim=128 scale=0.001 lens=8:160 page=16 regime=onehot kv=";
  for (const char* dtype : {" dtype=bf16", " dtype=f16"}) {
    Ran ran(line + "e4m3/page" + dtype);
    attend_with_rounded_weights(ran.data);
    const Report report = ran.report();
    EXPECT_TRUE(report.ok) << dtype << ": " << report.what;
    EXPECT_GT(report.worst_share, 0.3) << "the mark is far from what such programs need";
  }
  // No more than all weights' roundings at their largest; tokens' scales leave them independent.
  const auto off_by_roundings = [&](const std::string& format, double roundings) {
    Ran ran(line + format);
    const Tensor& out = ran.data.operands().out;
    const float old = float_at(out, 3, 5, 0);
    set_float(out, old * static_cast<float>(1 + roundings * half_ulp(DType::BF16)), 3, 5, 0);
    return ran.report();
  };
  EXPECT_TRUE(off_by_roundings("e4m3/page", 0.6).ok);
  EXPECT_FALSE(off_by_roundings("e4m3/page", 1.02).ok);
  EXPECT_FALSE(off_by_roundings("e4m3/token", 0.6).ok);
}

// Elements that lucky sums of twelve plain programs were no measure of, and a mark that is still a
// few roundings wide.
TEST(Compare, RoundingsInF32AreAllThatF32MayBeOff) {
  for (const char* line :
       {"op=dense dtype=f32 heads=14/2 dim=64 lens=7:31,26:220,11:70,4:220 lse=1 seed=29",
        "op=msa dtype=f32 index_dtype=e4m3 index_k=e4m3 heads=28/4 dim=16 topk=64 init=11 "
        "lens=8:127,31:127 page=64 layout=head_major strides=transposed order=shuffled ids=0 "
        "regime=integers hostile=nan_q seed=639"}) {
    for (const IsaInfo& isa : isas_of("cpu")) {
      if (!isa.available) continue;
      const Outcome outcome =
          verify(parse_case(line), {.under_test = {.backend = "cpu", .isa = isa.name}});
      EXPECT_EQ(outcome.result, Result::Passed) << isa.name << ": " << outcome.reason;
    }
  }
  const std::string line = "op=dense dtype=f32 heads=4/2 dim=64 lens=20:90";
  for (std::int64_t row = 0; row < 20; ++row) {
    Ran ran(line);
    const Tensor& out = ran.data.operands().out;
    float largest = 0;
    for (std::int64_t d = 0; d < 64; ++d)
      largest = std::max(largest, std::fabs(float_at(out, row, 1, d)));
    set_float(out, float_at(out, row, 1, 9) + 3e-6f * largest, row, 1, 9);
    EXPECT_FALSE(ran.report().ok) << "row " << row;
  }
}

TEST(Compare, TwinsRoundToTheSameBits) {
  const std::string rest = " heads=4/2 dim=32 lens=20:90 hostile=nan_q";
  for (const char* dtype : {"bf16", "f16"}) {
    Ran narrow(std::string("op=dense dtype=") + dtype + rest);
    Ran wide(std::string("op=dense out=f32 dtype=") + dtype + rest);
    const Tensor& out = narrow.data.operands().out;
    EXPECT_EQ(other_rounding(out, wide.data.operands().out), "");
    std::uint16_t bits = 0;
    std::memcpy(&bits, address(out, 7, 0, 5), sizeof(bits));
    ASSERT_FALSE(std::isnan(float_at(out, 7, 0, 5)));
    ++bits;
    std::memcpy(address(out, 7, 0, 5), &bits, sizeof(bits));
    EXPECT_NE(other_rounding(out, wide.data.operands().out).find("out[7, 0, 5]"),
              std::string::npos);
  }
}

TEST(Compare, PaddingRowsAreZero) {
  Ran ran("op=msa heads=4/2 dim=32 block=16 topk=4 lens=5:90 pad_rows=2 lse=1");
  EXPECT_TRUE(ran.report().ok) << ran.report().what;
  set_float(ran.data.operands().out, 1e-3f, 6, 0, 0);
  EXPECT_FALSE(ran.report().ok);
}

TEST(Compare, SwappedBlocks) {
  Ran ran("op=select heads=2/2 dim=32 block=16 topk=4 lens=20:300 chosen=1");
  EXPECT_TRUE(ran.report().ok) << ran.report().what;
  const Tensor& ids = ran.data.operands().block_ids;
  const std::int32_t first = int_at(ids, 9, 1, 0);
  set_int(ids, first == 0 ? 1 : first - 1, 9, 1, 0);
  EXPECT_FALSE(ran.report().ok);
  set_int(ids, first, 9, 1, 0);
  set_int(ids, -1, 9, 1, 3);
  EXPECT_FALSE(ran.report().ok) << "a block is missing";
  EXPECT_NE(ran.report().what.find("[9, 1, 3]"), std::string::npos) << ran.report().what;
}

TEST(Compare, AnIdFromNowhereWhereScoresAreGiven) {
  for (const char* line : {"op=merge_selections heads=2/2 topk=4 lens=9:0 parts=3 chosen=1",
                           "op=topk heads=2/2 block=16 topk=4 lens=20:400 chosen=1"}) {
    Ran ran(line);
    EXPECT_TRUE(ran.report().ok) << ran.report().what;
    const Tensor& ids = ran.data.operands().block_ids;
    set_int(ids, 1 << 30, 5, 1, 3);
    EXPECT_FALSE(ran.report().ok);
    EXPECT_NE(ran.report().what.find("block_ids[5, 1]"), std::string::npos) << ran.report().what;
  }
}

TEST(Compare, UnsortedBlocks) {
  Ran ran("op=select heads=2/2 dim=32 block=16 topk=4 lens=20:300");
  const Tensor& ids = ran.data.operands().block_ids;
  const std::int32_t a = int_at(ids, 9, 1, 0), b = int_at(ids, 9, 1, 1);
  set_int(ids, b, 9, 1, 0);
  set_int(ids, a, 9, 1, 1);
  EXPECT_FALSE(ran.report().ok);
}

TEST(Compare, TiesAreDecidedExactly) {
  Ran ran("op=select heads=2/2 dim=32 block=16 topk=4 lens=20:300 regime=ties");
  const Tensor& ids = ran.data.operands().block_ids;
  ASSERT_EQ(int_at(ids, 19, 0, 2), 2);
  set_int(ids, 3, 19, 0, 2);  // an equal score, but not the lower id
  EXPECT_FALSE(ran.report().ok);
}

TEST(Compare, ScoresAndMaxima) {
  for (const char* line : {"op=scores heads=2/2 dim=32 block=16 lens=20:90",
                           "op=dense heads=2/2 dim=32 block=16 lens=20:90 block_max=1"}) {
    Ran ran(line);
    EXPECT_TRUE(ran.report().ok) << ran.report().what;
    const Operands& o = ran.data.operands();
    const Tensor& scores = o.scores ? o.scores : o.block_max;
    const float old = float_at(scores, 4, 1, 2);
    set_float(scores, old * 1.001f, 4, 1, 2);
    EXPECT_FALSE(ran.report().ok) << line;
    set_float(scores, old, 4, 1, 2);
    set_float(scores, 0, 0, 0, 5);  // row 0 does not see block 5
    EXPECT_FALSE(ran.report().ok) << line;
  }
}

TEST(Compare, IntegersOfAnInversion) {
  Ran ran("op=invert heads=2/2 block=16 topk=4 lens=20:90");
  EXPECT_TRUE(ran.report().ok) << ran.report().what;
  const Tensor& indices = ran.data.operands().q_indices;
  set_int(indices, int_at(indices, 1, 7) + 1, 1, 7, 0);
  EXPECT_FALSE(ran.report().ok);
}

TEST(Compare, SampledRowsSeeAFaultThatIsEverywhere) {
  Ran ran("op=msa heads=4/2 dim=32 block=16 topk=4 lens=60:300,9:40 page=16 lse=1");
  const Report good = ran.report(1);
  EXPECT_TRUE(good.ok) << good.what;
  EXPECT_LT(good.rows_compared, good.rows);
  for (std::int64_t i = 0; i < good.rows; ++i) {
    for (std::int64_t h = 0; h < 4; ++h) set_float(ran.data.operands().out, 9, i, h, 3);
  }
  EXPECT_FALSE(ran.report(1).ok);
}

TEST(Data, SeesWritesOutsideTheOutputs) {
  Ran ran("op=dense heads=4/2 dim=32 lens=20:90 strides=padded lse=1");
  EXPECT_EQ(ran.data.damage(), "");
  const Tensor& out = ran.data.operands().out;
  const float one = 1;
  store(&one, 1, out.dtype, address(out, 3, 1, 32));  // behind the row's last element
  EXPECT_NE(ran.data.damage().find("out: byte"), std::string::npos) << ran.data.damage();
}

TEST(Data, SeesChangedInputs) {
  Ran ran("op=dense heads=4/2 dim=32 lens=20:90");
  const Tensor& q = ran.data.operands().q;
  set_float(q, float_at(q, 0, 0) + 1, 0, 0);
  EXPECT_EQ(ran.data.damage(), "q: an input was written");
}

TEST(Data, TouchedTellsOfAnyOutput) {
  Data data(parse_case("op=dense heads=4/2 dim=32 lens=20:90 lse=1"));
  data.prepare();
  EXPECT_EQ(data.touched(), "");
  set_float(data.operands().lse, 0, 19, 3);
  EXPECT_NE(data.touched().find("lse: byte"), std::string::npos);
}

TEST(Data, TouchedTellsOfAnOutputThatIsAddedTo) {
  Data data(
      parse_case("op=sparse_backward heads=4/2 dim=32 lens=20:90 strides=padded accumulate=1"));
  for (int run = 0; run < 2; ++run) {  // every run begins with the same numbers
    data.prepare();
    EXPECT_EQ(data.touched(), "");
  }
  const Tensor& dk = data.operands().dk;
  const float before = float_at(dk, 89, 1, 7);
  set_float(dk, before + 1, 89, 1, 7);
  EXPECT_NE(data.touched().find("dk: byte"), std::string::npos);
  EXPECT_EQ(data.damage(), "");
  set_float(dk, before, 89, 1, 7);
  EXPECT_EQ(data.touched(), "");
  set_float(data.operands().dq, 0, 3, 1, 2);  // which nothing is added to
  EXPECT_NE(data.touched().find("dq: byte"), std::string::npos);
}

/// Of every input's elements, whatever their layout.
std::uint64_t checksum_of_inputs(const Data& data) {
  std::uint64_t sum = 0xcbf29ce484222325u;
  Operands o = data.operands();
  const std::size_t inputs = first_output(o);
  std::size_t index = 0;
  for_each_tensor(o, [&](const Tensor& t) {
    if (index++ >= inputs) return;
    std::array<std::int64_t, kMaxRank> shape{1, 1, 1, 1};
    std::copy_n(t.shape.begin(), t.rank, shape.begin());
    for (std::int64_t a = 0; a < shape[0]; ++a) {
      for (std::int64_t b = 0; b < shape[1]; ++b) {
        for (std::int64_t c = 0; c < shape[2]; ++c) {
          for (std::int64_t d = 0; d < shape[3]; ++d) {
            const std::byte* element = address(t, a, b, c, d);
            for (int byte = 0; byte < size_in_bytes(t.dtype, 1); ++byte) {
              sum = (sum ^ std::to_integer<std::uint64_t>(element[byte])) * 0x100000001b3u;
            }
          }
        }
      }
    }
  });
  return sum;
}

// Golden numbers: a case of today is the case of tomorrow and of another machine. Whoever changes
// a generator changes what every failure's line means.
TEST(Data, VectorsArePinned) {
  struct Pinned {
    const char* regime;
    std::array<float, 4> index_k, v;
  };
  for (const auto& [regime, index_k, v] : {
           Pinned{"random",
                  {-0x1.fa3c12p-2f, -0x1.4f6f8ap-2f, 0x1.0308e4p+1f, 0x1.1925ap-5f},
                  {0x1.a1013ep-2f, 0x1.4517d8p-3f, -0x1.46d4b6p-2f, 0x1.4d951p-1f}},
           Pinned{"drift",
                  {-0x1.18eed4p-1f, -0x1.0dc44cp-2f, 0x1.c9f3f6p+0f, 0x1.75c33cp-5f},
                  {0x1.a1013ep-2f, 0x1.4517d8p-3f, -0x1.46d4b6p-2f, 0x1.4d951p-1f}},
           Pinned{"integers", {0, 0, 1, 0}, {-8, 8, -7, -8}},
           Pinned{"ties", {1, 1, 1, 1}, {-8, 8, -7, -8}},
           Pinned{"near",
                  {1, 0x1.ap-7f, 0, 0},
                  {0x1.a1013ep-2f, 0x1.4517d8p-3f, -0x1.46d4b6p-2f, 0x1.4d951p-1f}},
           Pinned{"onehot", {1, 1, 1, 1}, {1, 0, 0, 0}},
           Pinned{"low",
                  {-71, -73, -73, -73},
                  {0x1.a1013ep-2f, 0x1.4517d8p-3f, -0x1.46d4b6p-2f, 0x1.4d951p-1f}},
           Pinned{"rising",
                  {0, 7, 0, 0},
                  {0x1.a1013ep-2f, 0x1.4517d8p-3f, -0x1.46d4b6p-2f, 0x1.4d951p-1f}},
       }) {
    const Data data(parse_case(std::string("op=msa dtype=f32 heads=2/1 dim=32 block=16 topk=4 "
                                           "lens=9:90,3:33 regime=") +
                               regime));
    for (int d = 0; d < 4; ++d) {
      EXPECT_EQ(float_at(data.operands().index_k, 7, 0, d), index_k[d]) << regime << " " << d;
      EXPECT_EQ(float_at(data.operands().v, 7, 0, d), v[d]) << regime << " " << d;
    }
  }
}

TEST(Data, InputsArePinned) {
  struct Pinned {
    const char* line;
    std::uint64_t sum;
  };
  for (const auto& [line, sum] : {
           Pinned{"op=msa dtype=bf16 heads=2/1 dim=32 block=16 topk=4 lens=9:90,3:33 regime=random",
                  0xe68ca67d490cd80cu},
           Pinned{"op=msa dtype=bf16 heads=2/1 dim=32 block=16 topk=4 lens=9:90,3:33 regime=drift",
                  0xf16872375fece886u},
           Pinned{
               "op=msa dtype=f16 heads=2/1 dim=32 block=16 topk=4 lens=9:90,3:33 regime=integers",
               0xb64511330cfd7bdbu},
           Pinned{"op=msa dtype=bf16 heads=2/1 dim=32 block=16 topk=4 lens=9:90,3:33 regime=ties",
                  0xaed5fd37a0b96e36u},
           Pinned{"op=msa dtype=f32 heads=2/1 dim=32 block=16 topk=4 lens=9:90,3:33 regime=near",
                  0x5811e8d8acb628b5u},
           Pinned{"op=msa dtype=f16 heads=2/1 dim=32 block=16 topk=4 lens=9:90,3:33 regime=onehot",
                  0x3eeac392d870098fu},
           Pinned{"op=msa dtype=f16 heads=2/1 dim=32 block=16 topk=4 lens=9:90,3:33 regime=low",
                  0xc9b8ef4f6204edcfu},
           Pinned{"op=msa heads=2/1 dim=32 block=16 topk=2 lens=9:90,3:33 page=16 regime=integers "
                  "hostile=nan_k",
                  0x46efb51fa5002453u},
           Pinned{"op=sparse heads=4/2 dim=32 block=16 topk=4 lens=40:300,9:96:380@288/384 "
                  "partial=1 order=shuffled",
                  0xde4997e59637ba06u},
           Pinned{"op=invert heads=4/2 block=16 topk=4 lens=40:300 regime=drift",
                  0xc5a670165b3d96c4u},
           Pinned{"op=topk heads=2/2 block=16 topk=4 lens=20:400 hostile=nan_index",
                  0xd7ff35225d8c6c49u},
           Pinned{"op=merge_states dtype=f16 heads=2/2 dim=32 lens=9:0 parts=3 hostile=nan_v",
                  0x42c0c8c6eaffe59au},
           Pinned{"op=merge_selections heads=2/2 topk=4 lens=9:0 parts=3 init=1",
                  0x438b66cb13113027u},
       }) {
    EXPECT_EQ(checksum_of_inputs(Data(parse_case(line))), sum)
        << line << " 0x" << std::hex << checksum_of_inputs(Data(parse_case(line)));
  }
}

TEST(Data, RandomVectorsAreNormal) {
  double sum = 0, squares = 0;
  const Data large(parse_case("op=dense dtype=f32 heads=1/1 dim=128 lens=1000:1000"));
  for (std::int64_t i = 0; i < 1000; ++i) {
    for (std::int64_t d = 0; d < 128; ++d) {
      const double x = float_at(large.operands().k, i, 0, d);
      sum += x;
      squares += x * x;
    }
  }
  EXPECT_NEAR(sum / 128000, 0, 0.01);
  EXPECT_NEAR(squares / 128000, 1, 0.01);
}

TEST(Data, LayoutsHoldTheSameVectors) {
  const std::string rest = "op=sparse heads=4/2 dim=32 block=16 topk=4 lens=20:90,3:33";
  const Data plain(parse_case(rest));
  for (const char* how : {" page=16", " page=32 layout=head_major", " layout=packed",
                          " strides=padded", " strides=transposed", " page=16 layout=slot_major"}) {
    const Data other(parse_case(rest + how));
    const auto a = requests_of(plain.problem(), plain.operands().batch);
    const auto b = requests_of(other.problem(), other.operands().batch);
    for (std::size_t r = 0; r < a.size(); ++r) {
      for (std::int64_t key = 0; key < a[r].seqlen_k; ++key) {
        const auto* x = key_row(plain.operands().v, plain.operands().batch, a[r], key, 1);
        const auto* y = key_row(other.operands().v, other.operands().batch, b[r], key, 1);
        ASSERT_EQ(std::memcmp(x, y, 64), 0) << how << " request " << r << " key " << key;
      }
    }
  }
}

struct RowOf {
  Tensor tensor;
  std::int64_t row;
};

/// Not all rows are compared, but these are: a wrong number in any of them is seen.
void expect_compared_by_parts(const Ran& ran, std::initializer_list<RowOf> compared) {
  const Report report = ran.report(1);
  EXPECT_TRUE(report.ok) << report.what;
  EXPECT_LT(report.rows_compared, report.rows);
  for (const auto& [tensor, row] : compared) {
    const float before = float_at(tensor, row, 0, 2);
    set_float(tensor, before + 8, row, 0, 2);
    EXPECT_FALSE(ran.report(1).ok) << row;
    set_float(tensor, before, row, 0, 2);
  }
  EXPECT_TRUE(ran.report(1).ok);
}

// The bench holds gradients of 8K tokens to the oracle by parts: rows of dq, blocks of dk and dv.
TEST(Compare, GradientsOfLargeCallsAreComparedByParts) {
  for (const char* line : {"op=sparse_backward heads=4/2 dim=16 block=16 topk=3 lens=40:200 dlse=1",
                           "op=dense_backward heads=4/2 dim=16 block=16 lens=30:90:70,19:70"}) {
    const Ran ran(line);
    const Operands& o = ran.data.operands();
    const std::int64_t rows = requests_of(ran.data.problem(), o.batch)[0].seqlen_q;
    expect_compared_by_parts(
        ran,
        {{o.dq, o.dq.shape[0] - 1}, {o.dq, (rows - 4) / 2}, {o.dk, 3}, {o.dv, o.dv.shape[0] - 1}});
  }
}

// The weights of two rows lie next to ties of bf16: rounded one up and one down, as plain does,
// they add up to what they are.
TEST(Compare, AWeightNextToATieMayRoundEitherWay) {
  const Ran ran(
      "op=dense_backward heads=1/1 dim=16 block=16 lens=2:1 causal=0 grads=v grad_dtype=f32");
  const Operands& o = ran.data.operands();
  const std::array<double, 2> weights{1 + 0x1p-8 + 0x1p-23, 1 + 0x3p-8 - 0x1p-23};
  for (std::int64_t i = 0; i < 2; ++i) {
    for (std::int64_t d = 0; d < 16; ++d) {
      set_float(o.q, 0, i, 0, d);
      set_float(o.dout, 1, i, 0, d);
    }
    set_float(o.lse_in, static_cast<float>(-std::log(weights[static_cast<std::size_t>(i)])), i, 0);
  }
  const auto right_with = [&](double steps) {
    const auto sum = static_cast<float>(weights[0] + weights[1] + steps * 0x1p-7);
    for (std::int64_t d = 0; d < 16; ++d) set_float(o.dv, sum, 0, 0, d);
    return ran.report().ok;
  };
  EXPECT_TRUE(right_with(0));
  EXPECT_TRUE(right_with(1));   // both up
  EXPECT_TRUE(right_with(-1));  // both down
  EXPECT_FALSE(right_with(3));
  EXPECT_FALSE(right_with(-3));
}

// Two tiles of 64 keys whose gradients of scores round alike and cancel: plain is right by luck, a
// program that gives one tile alone what rounding took from it, times what its keys have in common,
// is off by that.
TEST(Compare, WhatRoundingTookMayComeBackInSomeTiles) {
  const Ran ran(
      "op=dense_backward heads=1/1 dim=16 block=16 lens=1:128 causal=0 grads=q grad_dtype=f32");
  const Operands& o = ran.data.operands();
  const double taken = 0.375 * 0x1p-7;  // from a weight of 1 + taken
  set_float(o.lse_in, static_cast<float>(-std::log(1 + taken)), 0, 0);
  for (std::int64_t d = 0; d < 16; ++d) {
    set_float(o.q, 0, 0, 0, d);
    set_float(o.out_in, 0, 0, 0, d);
    set_float(o.dout, d == 0 ? 1.0f : 0.0f, 0, 0, d);
    for (std::int64_t key = 0; key < 128; ++key) set_float(o.v, key < 64 ? 1 : -1, key, 0, d);
  }
  const auto right_with = [&](double tiles, bool alike) {
    for (std::int64_t d = 0; d < 16; ++d) {
      for (std::int64_t key = 0; key < 128; ++key)
        set_float(o.k, alike || key % 2 == 0 ? 1 : -1, key, 0, d);
      set_float(o.dq, static_cast<float>(tiles * 64 * taken / 4), 0, 0, d);
    }
    return ran.report().ok;
  };
  EXPECT_TRUE(right_with(0, true));
  EXPECT_TRUE(right_with(1, true));
  EXPECT_TRUE(right_with(-1, true));
  EXPECT_FALSE(right_with(2.1, true));
  EXPECT_FALSE(right_with(-2.1, true));
  EXPECT_TRUE(right_with(0, false));
  EXPECT_FALSE(right_with(0.05, false)) << "keys that have nothing in common";
}

// Errors of which each is well inside its row's mark.
TEST(Compare, WhatRoundingTookMustComeBackWhereKeysAreAlike) {
  const Ran ran(
      "op=dense_backward heads=4/2 dim=32 block=16 lens=30:100 grads=q grad_dtype=f32 "
      "regime=offset");
  EXPECT_TRUE(ran.report().ok) << ran.report().what;
  const Tensor& dq = ran.data.operands().dq;
  for (std::int64_t row = 0; row < dq.shape[0]; ++row) {
    for (std::int64_t h = 0; h < dq.shape[1]; ++h) {
      float largest = 0;
      for (std::int64_t d = 0; d < dq.shape[2]; ++d)
        largest = std::max(largest, std::fabs(float_at(dq, row, h, d)));
      for (std::int64_t d = 0; d < dq.shape[2]; ++d)
        set_float(dq, float_at(dq, row, h, d) + (d % 2 == 0 ? 1 : -1) * largest / 512, row, h, d);
    }
  }
  EXPECT_TRUE(compare(ran.data.problem(), ran.data.operands()).ok);
  EXPECT_NE(ran.report().what.find("did not come back"), std::string::npos) << ran.report().what;
}

TEST(Compare, LossesOfLargeCallsAreComparedByParts) {
  for (const char* line :
       {"op=index_loss heads=4/2 index_heads_k=1 dim=16 index_dim=16 block=16 topk=3 lens=90:200",
        "op=index_loss heads=4/2 dim=16 index_dim=16 block=16 lists=0 lens=60:90,5:3"}) {
    const Ran ran(line);
    const Operands& o = ran.data.operands();
    const Request request = requests_of(ran.data.problem(), o.batch)[0];
    const std::int64_t last = request.seqlen_k - 1, end = request.seqlen_q;
    expect_compared_by_parts(ran, {{o.loss, 0},
                                   {o.loss, (end - 4) / 2},
                                   {o.d_index_q, end - 1},
                                   {o.d_index_k, last},
                                   {o.d_index_k, last / 16 * 16 - 1}});
  }
}

}  // namespace
}  // namespace msa::testkit
