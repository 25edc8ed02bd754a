// SPDX-License-Identifier: MIT
// What the hostile tests run on: the reference and every instruction set of the cpu backend. One
// that the machine lacks prints "not run" and never counts as passed.
#pragma once

#include <gtest/gtest.h>

#include <cstdio>
#include <string>
#include <vector>

#include "testkit/support.h"
#include "testkit/verify.h"

#ifndef MSA_TESTS_DIR
#define MSA_TESTS_DIR "tests"  // the build says where they are
#endif

namespace msa::testkit {

struct Target {
  std::string name;  // of the test: "cpu_avx2"
  Options options{};
  std::string missing;  // why the machine cannot run it
};

inline std::vector<Target> targets() {
  std::vector<Target> all{{"reference", {.backend = "reference"}, ""}};
  for (const IsaInfo& isa : isas_of("cpu")) {
    all.push_back(
        {"cpu_" + isa.name, {.backend = "cpu", .isa = isa.name}, isa.available ? "" : isa.reason});
  }
  return all;
}

inline void PrintTo(const Target& target, std::ostream* out) { *out << target.name; }

/// A test for each target; the body is not run where the machine lacks it.
class OnTarget : public testing::TestWithParam<Target> {
 protected:
  void SetUp() override {
    if (GetParam().missing.empty()) return;
    std::printf("not run: %s: %s\n", GetParam().name.c_str(), GetParam().missing.c_str());
    GTEST_SKIP() << "not run: " << GetParam().name << ": " << GetParam().missing;
  }

  const Options& options() const { return GetParam().options; }
};

/// A test for each backend, on all instruction sets that the machine has: the oracle answers once.
class OnBackend : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    for (const Target& target : targets()) {
      if (target.options.backend != GetParam()) continue;
      if (target.missing.empty()) {
        targets_.push_back(target);
      } else {
        std::printf("not run: %s: %s\n", target.name.c_str(), target.missing.c_str());
      }
    }
  }

  /// Every case of every line must pass; rejections are allowed outside the committed support
  /// table.
  void expect_all(const std::vector<std::string>& lines) const {
    const SupportTable table =
        SupportTable::read(std::string(MSA_TESTS_DIR) + "/support/" + GetParam() + ".txt");
    std::vector<Totals> totals(targets_.size());
    for (const std::string& line : lines) {
      for (const Case& spec : expand_cases(line)) expect_one(spec, table, totals);
    }
    for (std::size_t n = 0; n < totals.size(); ++n) {
      std::printf("%s: %s\n", targets_[n].name.c_str(), totals[n].text().c_str());
      EXPECT_GT(totals[n].passed, 0) << "nothing ran on " << targets_[n].name;
    }
    EXPECT_FALSE(totals.empty());
  }

 private:
  void expect_one(const Case& spec, const SupportTable& table, std::vector<Totals>& totals) const {
    CaseMemory memory;
    VerifyOptions options;
    options.memory = &memory;
    for (std::size_t n = 0; n < targets_.size(); ++n) {
      options.under_test = targets_[n].options;
      Outcome outcome = verify(spec, options);
      count(outcome, spec, &table, totals[n]);
      EXPECT_NE(outcome.result, Result::Failed) << outcome.repro << "\n  " << outcome.reason;
    }
  }

  std::vector<Target> targets_;
};

inline std::string backend_name(const testing::TestParamInfo<std::string>& info) {
  return info.param;
}

inline std::string target_name(const testing::TestParamInfo<Target>& info) {
  return info.param.name;
}

#define MSA_FOR_ALL_TARGETS(Suite)                                                   \
  INSTANTIATE_TEST_SUITE_P(Isa, Suite, testing::ValuesIn(::msa::testkit::targets()), \
                           ::msa::testkit::target_name)

}  // namespace msa::testkit
