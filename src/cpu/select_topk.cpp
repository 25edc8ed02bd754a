// SPDX-License-Identifier: MIT
// Runs select_topk: the best blocks of rows whose scores are given.
#include <algorithm>
#include <string>

#include "cpu/kernels.h"
#include "cpu/scratch.h"
#include "cpu/select.h"
#include "cpu/select_rows.h"

namespace msa::cpu {
namespace {

constexpr std::int64_t kRowsPerTask = 16;  // query rows, all heads: tens of us from 32K keys on

class TopkStage final : public Stage {
 public:
  TopkStage(const Problem& problem, const Machine& machine)
      : problem_(problem), kernels_(machine.kernels->select), threads_(machine.threads) {}

  std::size_t workspace_bytes() const override {
    Scratch counter(nullptr);
    cut(counter);
    return counter.used();
  }

  void run(const core::Call& call, Rows rows, std::byte* workspace) const override {
    Scratch scratch(workspace);
    const Memory memory = cut(scratch);
    const auto requests = read_requests(problem_, call, memory.requests);
    const SelectionWriter writer(call, rows);
    for_each_row(threads_, rows, kRowsPerTask, [&](std::int64_t row, int thread) {
      const core::Request* request = request_of_row(requests, row);
      if (request == nullptr) return writer.write_empty(row);
      select_row(call.scores_in, *request, row, writer, memory.lists + thread * list_stride());
    });
  }

  std::string decisions() const override {
    return "topk_rows_per_task " + std::to_string(kRowsPerTask) + "\n";
  }

 private:
  struct Memory {
    core::Request* requests = nullptr;  // [batch]
    Candidate* lists = nullptr;         // [threads, list_stride]
  };

  std::int64_t list_stride() const { return candidate_capacity(problem_.selection.topk); }
  Memory cut(Scratch& scratch) const {
    Memory memory;
    memory.requests = scratch.take<core::Request>(problem_.bounds.batch);
    memory.lists = scratch.take<Candidate>(list_stride() * threads_);
    return memory;
  }

  void select_row(const Tensor& scores, const core::Request& request, std::int64_t row,
                  const SelectionWriter& writer, Candidate* list) const {
    const RowChoice choice = choose_row(request, row - request.q_begin, problem_);
    const std::int64_t first = request.blocks().begin;
    for (std::int64_t head = 0; head < problem_.index.heads; ++head) {
      std::int64_t count = 0;
      if (choice.room > 0 && (writer.wants_scores() || !choice.takes_all())) {
        const ScoreRow given{static_cast<const float*>(scores.data) + row * scores.stride[0] +
                                 head * scores.stride[1],
                             scores.stride[2],
                             {choice.candidates.begin - first, choice.candidates.end - first},
                             first};
        count = keep_best(list, kernels_.scan_scores(given, choice.room, list), choice.room);
        sort_by_id(list, count);
      }
      writer.write(row, head, choice, {list, static_cast<std::size_t>(count)});
    }
  }

  Problem problem_;
  const SelectKernels& kernels_;
  int threads_;
};

}  // namespace

StagePtr plan_select_topk(const Problem& problem, const Machine& machine) {
  return std::make_unique<TopkStage>(problem, machine);
}

}  // namespace msa::cpu
