// SPDX-License-Identifier: MIT
// Drawn cases: legal, inside the table that they were drawn from, of all sizes, and the same for
// the same seed.
#include "testkit/draw.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <set>
#include <string>

#include "msa/attention.h"
#include "testkit/generate.h"

namespace msa::testkit {
namespace {

SupportTable table(const std::string& backend) {
  return SupportTable::read(std::string(MSA_TESTS_DIR) + "/support/" + backend + ".txt");
}

TEST(Draw, CasesAreLegal) {
  for (std::uint64_t n = 0; n < 2000; ++n) {
    Choices choices(7, n);
    const Case spec = draw_case(choices);
    Problem problem = problem_of(spec);
    problem.options.backend = "reference";
    EXPECT_NO_THROW(make_plan(problem)) << to_line(spec);
    EXPECT_EQ(parse_case(to_line(spec)), spec);
  }
}

TEST(Draw, StaysInsideTheTable) {
  for (const char* backend : {"cpu", "cuda", "reference"}) {
    const SupportTable inside = table(backend);
    std::set<Op> ops;
    for (std::uint64_t n = 0; n < 1000; ++n) {
      Choices choices(3, n);
      const Case spec = draw_case_inside(choices, inside);
      EXPECT_TRUE(inside.contains(spec)) << backend << ": " << to_line(spec);
      ops.insert(spec.op);
      Problem problem = problem_of(spec);
      problem.options.backend = "reference";
      EXPECT_NO_THROW(make_plan(problem)) << backend << ": " << to_line(spec);
    }
    EXPECT_EQ(ops.size(), 14u) << backend;
  }
  Choices choices(1, 1);
  EXPECT_THROW(draw_case_inside(choices, SupportTable("")), CaseError);
}

TEST(Draw, SizesPassTilesSlicesAndSplits) {
  std::int64_t many_queries = 0, many_keys = 0, faults = 0;
  for (std::uint64_t n = 0; n < 1000; ++n) {
    Choices choices(5, n);
    const Case spec = draw_case(choices);
    for (const Lengths& r : spec.lengths) {
      many_queries += r.seqlen_q > 128;
      many_keys += r.seqlen_k > 4096;
      const auto dims = static_cast<double>(spec.heads_q * (spec.head_dim + spec.dim_v()) +
                                            spec.heads_index() * spec.dim_index());
      EXPECT_LE(static_cast<double>(r.seqlen_q * r.seqlen_k) * dims, DrawOptions{}.max_work);
    }
    faults += spec.corrupt != Corrupt::None;
    Choices again(5, n);
    EXPECT_EQ(draw_case(again), spec);
    Choices whole(5, n);
    EXPECT_EQ(draw_case(whole, {.faults = false}).corrupt, Corrupt::None);
  }
  EXPECT_GT(many_queries, 5);
  EXPECT_GT(many_keys, 20);
  EXPECT_GT(faults, 100);
}

TEST(Draw, SeedsDiffer) {
  std::set<std::string> lines;
  for (std::uint64_t seed = 0; seed < 10; ++seed) {
    for (std::uint64_t n = 0; n < 10; ++n) {
      Choices choices(seed, n);
      lines.insert(to_line(draw_case(choices)));
    }
  }
  EXPECT_EQ(lines.size(), 100u);
}

TEST(Draw, ValuesAreSetByName) {
  Case spec;
  set_case_value(spec, "topk", "5");
  set_case_value(spec, "index_dtype", "f16");
  EXPECT_EQ(to_line(spec), "op=msa index_dtype=f16 topk=5");
  EXPECT_THROW(set_case_value(spec, "tokp", "5"), CaseError);
  EXPECT_THROW(set_case_value(spec, "topk", "many"), CaseError);
}

}  // namespace
}  // namespace msa::testkit
