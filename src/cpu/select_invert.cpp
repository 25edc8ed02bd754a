// SPDX-License-Identifier: MIT
// Runs invert_selection: a counting sort per KV head. Walking the queries in order makes each row's
// list ascending.
#include <cstring>
#include <string>

#include "core/parallel.h"
#include "cpu/scratch.h"
#include "cpu/select.h"
#include "cpu/select_rows.h"

namespace msa::cpu {
namespace {

/// Element (head, i) of a result.
std::int32_t& at(const Tensor& tensor, std::int64_t head, std::int64_t i) {
  return static_cast<std::int32_t*>(tensor.data)[head * tensor.stride[0] + i * tensor.stride[1]];
}

/// Calls visit(result row, query row, slot) for every listed block of this batch, queries
/// ascending.
template <class Visit>
void for_each_listed(const Tensor& ids, std::span<const core::Request> requests, std::int64_t head,
                     const Visit& visit) {
  std::int64_t first_row = 0;
  for (const core::Request& request : requests) {
    const core::Range blocks = request.blocks();
    for (std::int64_t row = request.q_begin; row < request.q_begin + request.seqlen_q; ++row) {
      const auto* list =
          static_cast<const std::int32_t*>(ids.data) + row * ids.stride[0] + head * ids.stride[1];
      for (std::int64_t slot = 0; slot < ids.shape[2]; ++slot) {
        const std::int64_t id = list[slot * ids.stride[2]];
        if (id == -1) break;
        if (blocks.contains(id)) visit(first_row + id - blocks.begin, row, slot);
      }
    }
    first_row += blocks.size();
  }
}

void invert_head(const core::Call& call, std::span<const core::Request> requests,
                 std::int64_t head) {
  const std::int64_t rows = call.row_ptr.shape[1] - 1;
  for (std::int64_t row = 0; row <= rows; ++row) at(call.row_ptr, head, row) = 0;
  for_each_listed(
      call.block_ids_in, requests, head,
      [&](std::int64_t row, std::int64_t, std::int64_t) { ++at(call.row_ptr, head, row + 1); });
  for (std::int64_t row = 0; row < rows; ++row)
    at(call.row_ptr, head, row + 1) += at(call.row_ptr, head, row);
  // Placing moves each start to its end, which is where the next row starts.
  for_each_listed(call.block_ids_in, requests, head,
                  [&](std::int64_t row, std::int64_t query, std::int64_t slot) {
                    const std::int32_t place = at(call.row_ptr, head, row)++;
                    at(call.q_indices, head, place) = static_cast<std::int32_t>(query);
                    at(call.q_slots, head, place) = static_cast<std::int32_t>(slot);
                  });
  for (std::int64_t row = rows; row > 0; --row)
    at(call.row_ptr, head, row) = at(call.row_ptr, head, row - 1);
  at(call.row_ptr, head, 0) = 0;
  const std::int64_t total = at(call.row_ptr, head, rows);
  for (std::int64_t i = total; i < call.q_indices.shape[1]; ++i) at(call.q_indices, head, i) = -1;
  for (std::int64_t i = total; i < call.q_slots.shape[1]; ++i) at(call.q_slots, head, i) = -1;
}

class InvertStage final : public Stage {
 public:
  InvertStage(const Problem& problem, const Machine& machine)
      : problem_(problem), threads_(machine.threads) {}

  std::size_t workspace_bytes() const override {
    Scratch counter(nullptr);
    counter.take<core::Request>(problem_.bounds.batch);
    return counter.used();
  }

  void run(const core::Call& call, Rows, std::byte* workspace) const override {
    Scratch scratch(workspace);
    const auto requests =
        read_requests(problem_, call, scratch.take<core::Request>(problem_.bounds.batch));
    core::for_each_task(threads_, call.row_ptr.shape[0],
                        [&](std::int64_t head, int) { invert_head(call, requests, head); });
  }

  std::string decisions() const override {
    return "invert_tasks " + std::to_string(problem_.attention.heads_kv) + "\n";
  }

 private:
  Problem problem_;
  int threads_;
};

}  // namespace

StagePtr plan_invert_selection(const Problem& problem, const Machine& machine) {
  return std::make_unique<InvertStage>(problem, machine);
}

}  // namespace msa::cpu
