// SPDX-License-Identifier: MIT
// What the tests of gradients share: calls with a workspace of nonsense, and outputs as plain
// numbers.
#pragma once

#include <gtest/gtest.h>

#include <cstring>
#include <vector>

#include "testkit/generate.h"
#include "testkit/number.h"
#include "tests/cpu/common.h"

namespace msa::test {

inline void run_poisoned(const Problem& given, const testkit::Operands& operands,
                         const Options& options) {
  Problem problem = given;
  problem.options = options;
  const Plan plan = make_plan(problem);
  testkit::GuardedWorkspace workspace(plan.workspace_bytes(), testkit::host_memory());
  workspace.poison();
  testkit::run(plan, operands, workspace.view());
  EXPECT_TRUE(workspace.guards_intact());
}

/// Elements of a tensor of two or three dimensions; none where it is not given.
inline std::vector<float> numbers_of(const Tensor& t) {
  std::vector<float> all;
  if (!t) return all;
  for (std::int64_t i = 0; i < t.shape[0]; ++i) {
    for (std::int64_t h = 0; h < t.shape[1]; ++h) {
      for (std::int64_t d = 0; d < (t.rank > 2 ? t.shape[2] : 1); ++d)
        all.push_back(testkit::float_at(t, i, h, d));
    }
  }
  return all;
}

inline bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

}  // namespace msa::test
