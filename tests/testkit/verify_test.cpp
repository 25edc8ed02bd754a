// SPDX-License-Identifier: MIT
// The committed smoke cases on the reference and every instruction set of this machine, and the
// verdicts of verify.
#include "testkit/verify.h"

#include <gtest/gtest.h>

#include <cstdio>

#include "testkit/generate.h"
#include "testkit/requests.h"
#include "testkit/support.h"

namespace msa::testkit {
namespace {

TEST(Verify, SmokeCasesOnEveryBackend) {
  const std::vector<Case> cases = read_cases(std::string(MSA_TESTS_DIR) + "/cases/smoke.txt");
  std::vector<Options> all{{.backend = "reference"}};
  for (const IsaInfo& isa : isas_of("cpu")) {
    if (isa.available) {
      all.push_back({.backend = "cpu", .isa = isa.name});
    } else {
      std::printf("not run: %s: %s\n", isa.name.c_str(), isa.reason.c_str());
    }
  }
  for (const Options& options : all) {
    const SupportTable table =
        SupportTable::read(std::string(MSA_TESTS_DIR) + "/support/" + options.backend + ".txt");
    Totals totals;
    for (const Case& spec : cases) {
      Outcome outcome = verify(spec, {.under_test = options});
      count(outcome, spec, &table, totals);
      EXPECT_NE(outcome.result, Result::Failed) << outcome.repro << "\n  " << outcome.reason;
    }
    std::printf("%s %s: %s\n", options.backend.c_str(), options.isa.c_str(), totals.text().c_str());
  }
}

TEST(Verify, CasesOverRanks) {
  for (const Case& spec : read_cases(std::string(MSA_TESTS_DIR) + "/cases/ranks.txt")) {
    ASSERT_GT(spec.ranks, 0) << to_line(spec);
    const Outcome outcome = verify(spec, {.under_test = {.backend = "cpu"}});
    EXPECT_EQ(outcome.result, Result::Passed) << outcome.repro << "\n  " << outcome.reason;
  }
}

TEST(Verify, CasesThatNoShardsCanRunAreNamed) {
  const std::string whole = "heads=2/1 dim=16 block=16 topk=2 lens=3:50 ranks=2 ";
  struct Wrong {
    const char* line;
    const char* reason;
  };
  for (const auto& [line, reason] :
       {Wrong{"op=msa", "ranks: expected pages that fill a block"},
        Wrong{"op=msa page=32", "ranks: expected pages that fill a block"},
        Wrong{"op=scores page=16", "ranks: expected op=select, sparse, msa or dense"},
        Wrong{"op=dense page=16 block_max=1", "ranks: expected no block maxima, and no filter"},
        Wrong{"op=msa page=16 corrupt=page_end", "ranks: expected no fault"}}) {
    const Outcome outcome =
        verify(parse_case(whole + line), {.under_test = {.backend = "reference"}});
    EXPECT_EQ(outcome.result, Result::Unmade) << line;
    EXPECT_NE(outcome.reason.find(reason), std::string::npos) << outcome.reason;
  }
  const Case many = parse_case("op=dense heads=2/1 dim=16 page=16 block=16 lens=3:50 ranks=64");
  EXPECT_NE(verify(many, {}).reason.find("ranks: expected 1 to 63"), std::string::npos);
}

TEST(Verify, UnknownInstructionSetIsNotServed) {
  const Outcome outcome = verify(parse_case("op=dense heads=2/1 dim=32 lens=3:9"),
                                 {.under_test = {.backend = "cpu", .isa = "sse9"}});
  EXPECT_NE(outcome.result, Result::Passed);
  EXPECT_NE(outcome.repro.find("--isa sse9"), std::string::npos);
}

TEST(Verify, AFaultThatCannotBePlantedIsAFailure) {
  const Case spec = parse_case("op=dense heads=2/1 dim=32 lens=3:9 corrupt=page_end");
  Outcome outcome = verify(spec, {.under_test = {.backend = "reference"}});
  EXPECT_EQ(outcome.result, Result::Unmade);
  Totals totals;
  count(outcome, spec, nullptr, totals);
  EXPECT_EQ(outcome.result, Result::Failed);
  EXPECT_EQ(totals.failed, 1);
  EXPECT_NE(outcome.reason.find("needs paged keys"), std::string::npos) << outcome.reason;
}

TEST(Corrupt, SaysWhereTheFaultLies) {
  struct Planted {
    const char* line;
    const char* argument;
    std::int64_t request, row;
    bool may_pass;
  };
  const std::string sparse = "op=sparse heads=2/1 dim=32 block=16 topk=4 ";
  for (const auto& [line, argument, request, row, may_pass] :
       {Planted{"lens=0:40,20:200 corrupt=block_end", "block_ids", 1, 0, false},
        Planted{"lens=0:40,20:40:-3 corrupt=block_min", "block_ids", 1, 3, false},
        Planted{"lens=0:40,20:200 corrupt=block_twice", "block_ids", 1, 0, true},
        // Rows of the first request see nothing: an id that is too large for it is legal here.
        Planted{"lens=2:40:-9,20:200 corrupt=block_end", "block_ids", 1, 0, false},
        Planted{"lens=20:48 page=16 corrupt=page_end", "batch.page_table", 0, -1, false},
        Planted{"lens=5:48:0 page=16 corrupt=page_end", "batch.page_table", 0, -1, true},
        Planted{"lens=3:40,20:200 corrupt=length_negative", "batch.seqlens_k", 0, -1, false},
        Planted{"lens=3:40,20:200 corrupt=length_above", "batch.seqlens_k", 1, -1, false},
        Planted{"lens=3:40,20:200 corrupt=queries_above", "batch.cu_seqlens_q", 1, -1, false},
        Planted{"lens=3:40,20:200 corrupt=start_decreasing", "batch.cu_seqlens_q", 0, -1, false},
        Planted{"lens=3:40,20:200 corrupt=start_past_end", "batch.cu_seqlens_q", 1, -1, false},
        Planted{"lens=3:40,20:200 corrupt=keys_past_end", "batch.seqlens_k", 1, -1, false},
        Planted{"lens=3:40,20:200 kv=e4m3/token corrupt=keys_past_end", "batch.seqlens_k", 1, -1,
                false}}) {
    const Data data(parse_case(sparse + line));
    EXPECT_STREQ(data.planted().argument, argument) << line;
    EXPECT_EQ(data.planted().request, request) << line;
    EXPECT_EQ(data.planted().row, row) << line;
    EXPECT_EQ(data.planted().may_pass, may_pass) << line;
  }
}

// Lists of one id have no room for a second: the next row's first slot is not theirs.
TEST(Corrupt, StaysInsideTheList) {
  EXPECT_THROW(Data(parse_case("op=sparse heads=3/1 dim=16 block=32 topk=1 lens=6:42 "
                               "corrupt=block_twice")),
               CaseError);
  const Data whole(parse_case("op=sparse heads=3/1 dim=16 block=32 topk=2 lens=6:42"));
  const Data spoilt(
      parse_case("op=sparse heads=3/1 dim=16 block=32 topk=2 lens=6:42 corrupt=block_twice"));
  int changed = 0;
  for (std::int64_t i = 0; i < 6; ++i) {
    for (std::int64_t slot = 0; slot < 2; ++slot) {
      const std::int32_t id = int_at(spoilt.operands().block_ids_in, i, 0, slot);
      if (id == int_at(whole.operands().block_ids_in, i, 0, slot)) continue;
      ++changed;
      EXPECT_EQ(i, spoilt.planted().row);
      EXPECT_EQ(slot, 1);
    }
  }
  EXPECT_EQ(changed, 1);
}

TEST(Corrupt, EveryFaultIsNamed) {
  for (const Case& spec : read_cases(std::string(MSA_TESTS_DIR) + "/cases/all.txt")) {
    if (spec.corrupt == Corrupt::None) continue;
    const Data data(spec);
    EXPECT_STRNE(data.planted().argument, "") << to_line(spec);
  }
}

TEST(Verify, IllegalProblemsFailByName) {
  const Outcome outcome = verify(parse_case("op=dense heads=3/2 dim=32 lens=3:9"),
                                 {.under_test = {.backend = "reference"}});
  EXPECT_EQ(outcome.result, Result::Failed);
  EXPECT_NE(outcome.reason.find("heads_kv"), std::string::npos) << outcome.reason;
}

}  // namespace
}  // namespace msa::testkit
