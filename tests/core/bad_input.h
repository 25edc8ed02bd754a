// SPDX-License-Identifier: MIT
// Calls of one operation that every backend of the host must refuse, and run.
#pragma once

#include <gtest/gtest.h>

#include <array>
#include <functional>
#include <string>

#include "testkit/generate.h"

namespace msa::test {

inline constexpr std::array kBackends{"reference", "cpu"};

inline void run_on(const testkit::Data& data, const testkit::Operands& operands,
                   const char* backend) {
  Problem problem = data.problem();
  problem.options.backend = backend;
  testkit::run(make_plan(problem), operands);
}

/// Cases that begin alike.
struct BadInput {
  const char* front;

  testkit::Data data_of(const std::string& rest) const {
    return testkit::Data(testkit::parse_case(front + rest));
  }

  /// Spoilt operands are refused with the argument's name and what was expected, and no output is
  /// touched.
  void refused(const std::string& rest, const char* argument, const std::string& expected,
               const std::function<void(testkit::Operands&)>& spoil) const {
    for (const char* backend : kBackends) {
      SCOPED_TRACE(rest + ": " + argument);
      testkit::Data data = data_of(rest);
      testkit::Operands operands = data.prepare();
      spoil(operands);
      try {
        run_on(data, operands, backend);
        ADD_FAILURE() << "no error";
      } catch (const Error& error) {
        EXPECT_EQ(error.argument(), argument) << error.what();
        EXPECT_NE(std::string(error.what()).find(expected), std::string::npos) << error.what();
      }
      EXPECT_EQ(data.touched(), "");
    }
  }
};

}  // namespace msa::test
