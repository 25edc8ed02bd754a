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
  std::vector<SupportTable> tables;
  for (const Options& options : all) {
    tables.push_back(
        SupportTable::read(std::string(MSA_TESTS_DIR) + "/support/" + options.backend + ".txt"));
  }
  std::vector<Totals> totals(all.size());
  for (const Case& spec : cases) {
    CaseMemory memory;
    for (std::size_t n = 0; n < all.size(); ++n) {
      Outcome outcome = verify(spec, {.under_test = all[n], .memory = &memory});
      count(outcome, spec, &tables[n], totals[n]);
      EXPECT_NE(outcome.result, Result::Failed) << outcome.repro << "\n  " << outcome.reason;
    }
  }
  for (std::size_t n = 0; n < all.size(); ++n) {
    EXPECT_GT(totals[n].passed, 0);
    std::printf("%s %s: %s\n", all[n].backend.c_str(), all[n].isa.c_str(),
                totals[n].text().c_str());
  }
}

const char* const kRemembered =
    "op=select heads=2/2 dim=32 block=16 topk=2 lens=9:60,1:90 chosen=1";

TEST(CaseMemory, MakesACaseOnce) {
  CaseMemory memory;
  const Case spec = parse_case(kRemembered);
  const std::shared_ptr<MadeCase> made = memory.of(spec);
  EXPECT_EQ(memory.of(spec), made);
  const Case twin = parse_case(std::string(kRemembered) + " seed=2");
  EXPECT_NE(memory.of(twin), made);
  EXPECT_EQ(memory.of(twin)->data.spec(), twin);
  memory.forget();
  EXPECT_NE(memory.of(spec), made);
}

TEST(CaseMemory, MakesAnewWhatMayChangeUnseen) {
  for (const char* how : {" corrupt=length_negative", " strides=huge"}) {
    CaseMemory memory;
    const Case spec = parse_case(kRemembered + std::string(how));
    EXPECT_NE(memory.of(spec), memory.of(spec)) << how;
  }
}

TEST(CaseMemory, AnInputThatWasWrittenFailsAndIsForgotten) {
  CaseMemory memory;
  const Case spec = parse_case(kRemembered);
  const VerifyOptions options{.under_test = {.backend = "cpu"}, .memory = &memory};
  EXPECT_EQ(verify(spec, options).result, Result::Passed);
  *address(memory.of(spec)->data.operands().index_k, 0, 0) ^= std::byte{1};
  const Outcome outcome = verify(spec, options);
  EXPECT_EQ(outcome.result, Result::Failed);
  EXPECT_NE(outcome.reason.find("an input was written"), std::string::npos) << outcome.reason;
  EXPECT_EQ(verify(spec, options).result, Result::Passed);
}

// Bits that passed are not compared again; any others are.
TEST(CaseMemory, OtherBitsAreComparedAgain) {
  CaseMemory memory;
  const Case spec = parse_case("op=scores heads=2/2 dim=32 block=16 lens=9:60,1:90");
  const VerifyOptions options{.under_test = {.backend = "cpu", .isa = "scalar"}, .memory = &memory};
  const double worst = verify(spec, options).report.worst_share;
  MadeCase& made = *memory.of(spec);
  ASSERT_TRUE(made.good);
  made.report.worst_share = -1;
  EXPECT_EQ(verify(spec, options).report.worst_share, -1);
  (*made.good)[0][0] ^= std::byte{1};
  EXPECT_EQ(verify(spec, options).report.worst_share, worst);
  made.good.reset();
  EXPECT_EQ(verify(spec, options).report.worst_share, worst);
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
