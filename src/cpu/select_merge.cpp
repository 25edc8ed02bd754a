// SPDX-License-Identifier: MIT
// Runs merge_selections: the best of the candidates that several shards chose, by score, then by
// global id.
#include <algorithm>
#include <cmath>
#include <limits>
#include <string>

#include "cpu/scratch.h"
#include "cpu/select.h"
#include "cpu/select_rows.h"

namespace msa::cpu {
namespace {

constexpr std::int64_t kRowsPerTask = 64;

class MergeSelectionsStage final : public Stage {
 public:
  MergeSelectionsStage(const Problem& problem, const Machine& machine)
      : problem_(problem), threads_(machine.threads) {}

  std::size_t workspace_bytes() const override {
    Scratch counter(nullptr);
    cut(counter);
    return counter.used();
  }

  void run(const core::Call& call, Rows rows, std::byte* workspace) const override {
    Scratch scratch(workspace);
    Candidate* lists = cut(scratch);
    const SelectionWriter writer(call, rows);
    for_each_row(threads_, rows, kRowsPerTask, [&](std::int64_t row, int thread) {
      Candidate* list = lists + thread * list_stride();
      for (std::int64_t head = 0; head < problem_.attention.heads_kv; ++head) {
        const std::int64_t count =
            keep_best(list, gather(call, row, head, list), problem_.selection.topk);
        sort_by_id(list, count);
        // Forced blocks carry +inf and need no other treatment here.
        writer.write(row, head, RowChoice{.room = count}, {list, static_cast<std::size_t>(count)});
      }
    });
  }

  std::string decisions() const override {
    return "merge_rows_per_task " + std::to_string(kRowsPerTask) + "\n";
  }

 private:
  std::int64_t list_stride() const { return problem_.bounds.parts * kMaxTopk; }
  Candidate* cut(Scratch& scratch) const {
    return scratch.take<Candidate>(list_stride() * threads_);
  }

  /// All candidates of one row, NaN scores as -inf.
  static std::int64_t gather(const core::Call& call, std::int64_t row, std::int64_t head,
                             Candidate* list) {
    std::int64_t count = 0;
    for (std::size_t part = 0; part < call.part_ids.size(); ++part) {
      const Tensor& ids = call.part_ids[part];
      const Tensor& scores = call.part_scores[part];
      const auto* id =
          static_cast<const std::int32_t*>(ids.data) + row * ids.stride[0] + head * ids.stride[1];
      const auto* score =
          static_cast<const float*>(scores.data) + row * scores.stride[0] + head * scores.stride[1];
      for (std::int64_t slot = 0; slot < ids.shape[2] && id[slot * ids.stride[2]] != -1; ++slot) {
        const float given = score[slot * scores.stride[2]];
        list[count++] =
            make_candidate(std::isnan(given) ? -std::numeric_limits<float>::infinity() : given,
                           id[slot * ids.stride[2]]);
      }
    }
    return count;
  }

  Problem problem_;
  int threads_;
};

}  // namespace

StagePtr plan_merge_selections(const Problem& problem, const Machine& machine) {
  return std::make_unique<MergeSelectionsStage>(problem, machine);
}

}  // namespace msa::cpu
