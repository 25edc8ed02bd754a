// SPDX-License-Identifier: MIT
// The case language: round trips, products, errors that help.
#include "testkit/case.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "testkit/number.h"
#include "testkit/support.h"

namespace msa::testkit {
namespace {

std::string tests_dir() { return MSA_TESTS_DIR; }

std::string error_of(const std::string& line) {
  try {
    expand_cases(line);
  } catch (const CaseError& error) {
    return error.what();
  }
  return "";
}

TEST(CaseLanguage, EveryCommittedCaseRoundTrips) {
  for (const char* name : {"smoke", "all", "long"}) {
    const std::vector<Case> cases = read_cases(tests_dir() + "/cases/" + name + ".txt");
    EXPECT_FALSE(cases.empty());
    for (const Case& spec : cases) {
      const std::string line = to_line(spec);
      EXPECT_EQ(parse_case(line), spec) << line;
    }
  }
}

TEST(CaseLanguage, SmokeHasCasesOfEveryOperation) {
  const std::vector<Case> cases = read_cases(tests_dir() + "/cases/smoke.txt");
  EXPECT_EQ(cases.size(), 50u);
  for (int op = 0; op <= static_cast<int>(kLastOp); ++op) {
    EXPECT_TRUE(std::any_of(cases.begin(), cases.end(), [op](const Case& spec) {
      return static_cast<int>(spec.op) == op;
    })) << short_name(static_cast<Op>(op));
  }
}

TEST(CaseLanguage, LengthsReadAllTheirParts) {
  const Case spec = parse_case("lens=5:133,2x1:4096:7@256/9000,0:17 # a comment");
  ASSERT_EQ(spec.lengths.size(), 4u);
  EXPECT_EQ(spec.lengths[0], (Lengths{.seqlen_q = 5, .seqlen_k = 133}));
  EXPECT_EQ(spec.lengths[1], spec.lengths[2]);
  EXPECT_EQ(
      spec.lengths[1],
      (Lengths{
          .seqlen_q = 1, .seqlen_k = 4096, .q_offset = 7, .key_offset = 256, .total_k = 9000}));
  EXPECT_EQ(to_line(spec), "op=msa lens=5:133,2x1:4096:7@256/9000,0:17");
}

TEST(CaseLanguage, AlternativesAndRangesMultiply) {
  const auto cases = expand_cases("op=dense|sparse dim=16..64+16|256 seed=1..3");
  EXPECT_EQ(cases.size(), 2u * 5 * 3);
  EXPECT_EQ(to_line(cases.back()), "op=sparse dim=256 seed=3");
  EXPECT_TRUE(expand_cases("   # nothing").empty());
}

TEST(CaseLanguage, ErrorsNameTheKeyAndWhatIsKnown) {
  EXPECT_NE(error_of("hed=3").find("unknown key 'hed'; known keys: op dtype"), std::string::npos);
  EXPECT_NE(error_of("dtype=fp8").find("dtype: expected one of f32|f16|bf16|e4m3, got 'fp8'"),
            std::string::npos);
  EXPECT_NE(error_of("dim=16 dim=32").find("key 'dim' stands twice"), std::string::npos);
  EXPECT_NE(error_of("lens=5").find("new:keys"), std::string::npos);
  EXPECT_NE(error_of("dense").find("key=value"), std::string::npos);
  for (const char* bad : {"lens=1:-2", "dim=1x", "causal=2", "scale=one", "seed=-1", "heads=4",
                          "lens=0x1:1", "dim=16..32+0", "dim="}) {
    EXPECT_NE(error_of(bad), "") << bad;
  }
  EXPECT_THROW(parse_cases("op=dense\nop=none\n", "file.txt"), CaseError);
  EXPECT_THROW(parse_case("dim=16|32"), CaseError);
}

TEST(SupportTables, ContainWhatTheySay) {
  const SupportTable table("op=dense dim=16..64+16 group=1..4\nop=topk  # any\n");
  EXPECT_TRUE(table.contains(parse_case("op=dense dim=48 heads=8/2")));
  EXPECT_FALSE(table.contains(parse_case("op=dense dim=48 heads=8/1")));
  EXPECT_FALSE(table.contains(parse_case("op=dense dim=40 heads=8/2")));
  EXPECT_TRUE(table.contains(parse_case("op=topk dim=40")));
  const SupportTable few("queries=0..8");
  EXPECT_TRUE(few.contains(parse_case("lens=3:40,6:9 slack=2")));
  EXPECT_FALSE(few.contains(parse_case("lens=3:40,6:9 slack=3")));
  EXPECT_THROW(SupportTable("op=dense dims=3"), CaseError);
}

TEST(SupportTables, RejectionInsideIsAFailure) {
  const SupportTable table("op=dense");
  Totals totals;
  Outcome inside{.result = Result::Rejected}, outside{.result = Result::Rejected};
  count(inside, parse_case("op=dense"), &table, totals);
  count(outside, parse_case("op=topk"), &table, totals);
  EXPECT_EQ(inside.result, Result::Failed);
  EXPECT_EQ(outside.result, Result::Rejected);
  EXPECT_EQ(totals.text(), "0 passed, 1 failed, 1 rejected (outside the support table)");
}

TEST(Numbers, EveryHalfRoundTrips) {
  for (std::uint32_t bits = 0; bits < 0x10000; ++bits) {
    const auto half = static_cast<std::uint16_t>(bits);
    const float f16 = f16_to_float(half), bf16 = bf16_to_float(half);
    if (!std::isnan(f16)) {
      EXPECT_EQ(float_to_f16(f16), half);
    }
    if (!std::isnan(bf16)) {
      EXPECT_EQ(float_to_bf16(bf16), half);
    }
    EXPECT_EQ(std::isnan(f16), std::isnan(f16_to_float(float_to_f16(f16))));
  }
}

TEST(Numbers, RoundsToNearestEven) {
  EXPECT_EQ(round_to(1.0f + 0x1p-8f, DType::BF16), 1.0f);
  EXPECT_EQ(round_to(1.0f + 0x1.8p-7f, DType::BF16), 1.0f + 0x1p-6f);
  EXPECT_EQ(round_to(1.0f + 0x1p-11f, DType::F16), 1.0f);
  EXPECT_EQ(round_to(65519.0f, DType::F16), 65504.0f);
  EXPECT_TRUE(std::isinf(round_to(65520.0f, DType::F16)));
  EXPECT_EQ(round_to(0x1p-25f, DType::F16), 0.0f);
  EXPECT_EQ(round_to(0x1.8p-25f, DType::F16), 0x1p-24f);
  EXPECT_EQ(ulp(1.5, DType::BF16), 0x1p-7);
  EXPECT_EQ(ulp(0, DType::F16), 0x1p-24);
}

}  // namespace
}  // namespace msa::testkit
