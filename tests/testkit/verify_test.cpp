// SPDX-License-Identifier: MIT
// The committed smoke cases on the reference and every instruction set of this machine, and the
// verdicts of verify.
#include "testkit/verify.h"

#include <gtest/gtest.h>

#include <cstdio>

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

TEST(Verify, UnknownInstructionSetIsNotServed) {
  const Outcome outcome = verify(parse_case("op=dense heads=2/1 dim=32 lens=3:9"),
                                 {.under_test = {.backend = "cpu", .isa = "sse9"}});
  EXPECT_NE(outcome.result, Result::Passed);
  EXPECT_NE(outcome.repro.find("--isa sse9"), std::string::npos);
}

TEST(Verify, AFaultThatCannotBePlantedIsAFailure) {
  const Outcome outcome = verify(parse_case("op=dense heads=2/1 dim=32 lens=3:9 corrupt=page_end"),
                                 {.under_test = {.backend = "reference"}});
  EXPECT_EQ(outcome.result, Result::Failed);
  EXPECT_NE(outcome.reason.find("needs paged keys"), std::string::npos) << outcome.reason;
}

TEST(Verify, IllegalProblemsFailByName) {
  const Outcome outcome = verify(parse_case("op=dense heads=3/2 dim=32 lens=3:9"),
                                 {.under_test = {.backend = "reference"}});
  EXPECT_EQ(outcome.result, Result::Failed);
  EXPECT_NE(outcome.reason.find("heads_kv"), std::string::npos) << outcome.reason;
}

}  // namespace
}  // namespace msa::testkit
