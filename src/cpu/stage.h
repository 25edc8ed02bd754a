// SPDX-License-Identifier: MIT
// A stage: one operation (or one half of msa_attention) planned for this machine. cpu_backend.cpp
// makes plans of them.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>

#include "core/call.h"
#include "core/geometry.h"
#include "core/parallel.h"
#include "cpu/isa.h"

namespace msa::cpu {

/// Query rows of the batch that a stage computes. Cuts lie at request boundaries or a multiple of
/// kRowCut rows behind the request's first row, so that tiles do not depend on them. Padding rows
/// belong to the window that holds them.
struct Rows {
  std::int64_t begin = 0;
  std::int64_t end = 0;
};

inline constexpr std::int64_t kRowCut = 64;

/// Calls body(row, thread) for each of the rows, `of_task` neighbours a task.
template <class Body>
void for_each_row(int threads, Rows rows, std::int64_t of_task, const Body& body) {
  const std::int64_t tasks = core::ceil_div(rows.end - rows.begin, of_task);
  core::for_each_task(threads, tasks, [&](std::int64_t task, int thread) {
    const std::int64_t begin = rows.begin + task * of_task;
    const std::int64_t end = std::min(begin + of_task, rows.end);
    for (std::int64_t row = begin; row < end; ++row) body(row, thread);
  });
}

class Stage {
 public:
  Stage() = default;
  Stage(const Stage&) = delete;
  Stage& operator=(const Stage&) = delete;
  virtual ~Stage() = default;

  /// Bytes that run() needs at `workspace`, which is aligned to kWorkspaceAlignment.
  virtual std::size_t workspace_bytes() const = 0;
  /// Computes the rows of a call whose metadata and contents are valid. The tensors `block_ids`,
  /// `block_ids_in` and `chosen_scores` of the call begin at row `rows.begin`, all others at row 0.
  virtual void run(const core::Call& call, Rows rows, std::byte* workspace) const = 0;
  /// "key value" lines for Plan::to_string.
  virtual std::string decisions() const = 0;
};

using StagePtr = std::unique_ptr<const Stage>;

// Planners: problem and machine in, stage out.
StagePtr plan_attention(const Problem& problem,
                        const Machine& machine);  // dense, sparse, the half of msa
/// Tokens, counted under each KV head, that the last run of an attention plan computed again
/// because a sum of values was not finite: 0 for finite data. The workspace begins with it.
inline std::int64_t mended_tokens(const void* workspace) {
  std::int64_t count = 0;
  std::memcpy(&count, workspace, sizeof count);
  return count;
}

StagePtr plan_backward(const Problem& problem, const Machine& machine);
StagePtr plan_index_loss(const Problem& problem, const Machine& machine);
StagePtr plan_msa(const Problem& problem, const Machine& machine);
StagePtr plan_quantize_kv(const Problem& problem, const Machine& machine);
StagePtr plan_quantize_index(const Problem& problem, const Machine& machine);
StagePtr plan_merge_states(const Problem& problem, const Machine& machine);

}  // namespace msa::cpu
