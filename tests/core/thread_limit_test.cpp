// SPDX-License-Identifier: MIT
// OpenMP's thread limit, which only the environment sets: ctest runs this once as it is and once
// with OMP_THREAD_LIMIT=2.
#include <gtest/gtest.h>
#include <omp.h>

#include <algorithm>
#include <string>

#include "tests/core/scene.h"

namespace msa::test {
namespace {

TEST(ThreadLimit, NoPlanTakesMore) {
  constexpr int kAsked = 64;
  const int granted = std::min(kAsked, omp_get_thread_limit());
  for (const auto& [op, keys] : all_scenes()) {
    Scene one(op, keys);
    one.problem.options.threads = 1;
    one.run("cpu");
    Scene many(op, keys);
    many.problem.options.threads = kAsked;
    many.run("cpu");
    EXPECT_TRUE(many.snapshot() == one.snapshot()) << to_string(op);
    const std::string text = many.plan("cpu").to_string();
    const std::string said = "threads " + std::to_string(granted) + "\n";
    EXPECT_NE(text.find(said), std::string::npos) << text;
  }
}

}  // namespace
}  // namespace msa::test
