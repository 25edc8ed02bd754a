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

/// Plans what the case says and runs other tensors.
inline void run_with(const testkit::Data& data, const testkit::Operands& operands,
                     const std::string& backend) {
  Problem problem = data.problem();
  problem.options.backend = backend;
  const Plan plan = make_plan(problem);
  testkit::GuardedWorkspace workspace(plan.workspace_bytes(), testkit::host_memory());
  testkit::run(plan, operands, workspace.view());
}

/// What a call says that must name the argument.
inline std::string error_of(const std::function<void()>& call, const char* argument) {
  try {
    call();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::InvalidArgument) << error.what();
    EXPECT_EQ(error.argument(), argument) << error.what();
    return error.what();
  }
  ADD_FAILURE() << "no error";
  return "";
}

/// Cases that begin alike.
struct BadInput {
  const char* front;

  testkit::Data data_of(const std::string& rest) const {
    return testkit::Data(testkit::parse_case(front + rest));
  }

  /// A problem that is legal is not so once it is spoilt, and the error begins with the field's
  /// name.
  void illegal(const char* field, const std::function<void(Problem&)>& spoil) const {
    Problem p = data_of("lens=5:20").problem();
    EXPECT_EQ(supports(p).error, "");
    spoil(p);
    const std::string error = supports(p).error;
    EXPECT_EQ(error.rfind(std::string(field) + ":", 0), 0U) << field << ": " << error;
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
        run_with(data, operands, backend);
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
