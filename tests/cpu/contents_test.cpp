// SPDX-License-Identifier: MIT
// Index tensors are checked by all threads; which fault is named may not depend on who was first.
#include <gtest/gtest.h>

#include <cstdint>
#include <string>
#include <vector>

#include "core/parallel.h"
#include "msa/msa.h"

namespace msa::test {
namespace {

constexpr std::int64_t kRows = 40000, kTopk = 4, kBlocks = 4;

TEST(Contents, TheFirstFaultIsNamedWhateverTheThreads) {
  std::vector<std::int32_t> ids, starts{0, 15000, 15000, kRows}, keys{64, 64, 64};
  for (std::int64_t row = 0; row < kRows; ++row) ids.insert(ids.end(), {0, 1, 3, -1});
  ids[12345 * kTopk + 2] = kBlocks;
  ids[12346 * kTopk + 1] = -7;
  ids[39000 * kTopk] = kBlocks;
  std::vector<std::int32_t> row_ptr(3 * kBlocks + 1), indices(ids.size()), slots(ids.size());
  const InvertSelectionArgs args{
      .block_ids = make_tensor(ids.data(), DType::I32, {kRows, 1, kTopk}),
      .batch = {.cu_seqlens_q = make_tensor(starts.data(), DType::I32, {4}),
                .seqlens_k = make_tensor(keys.data(), DType::I32, {3})},
      .row_ptr = make_tensor(row_ptr.data(), DType::I32, {1, 3 * kBlocks + 1}),
      .q_indices = make_tensor(indices.data(), DType::I32, {1, kRows * kTopk}),
      .q_slots = make_tensor(slots.data(), DType::I32, {1, kRows * kTopk})};
  for (const int threads : {1, 2, 7, 7, 7, 7}) {
    Settings settings;
    settings.block_size = 16;
    settings.causal = false;
    settings.options = {.backend = "cpu", .threads = threads};
    try {
      invert_selection(args, settings);
      ADD_FAILURE() << "accepted";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::InvalidContent);
      EXPECT_NE(std::string(error.what()).find("row 12345, head 0, slot 2"), std::string::npos)
          << threads << " threads: " << error.what();
    }
  }
}

TEST(ParallelLoop, ThrowsTheFirstTasksException) {
  for (int round = 0; round < 50; ++round) {
    std::string caught;
    try {
      core::for_each_task(7, 1000, [](std::int64_t task, int) {
        if (task % 100 >= 30 && task % 100 < 37) throw std::to_string(task);
      });
    } catch (const std::string& task) {
      caught = task;
    }
    ASSERT_EQ(caught, "30");
  }
}

}  // namespace
}  // namespace msa::test
