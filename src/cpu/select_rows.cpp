// SPDX-License-Identifier: MIT
// Requests, row choices and the writing of block lists.
#include "cpu/select_rows.h"

#include <algorithm>
#include <limits>

#include "core/contents.h"

namespace msa::cpu {
namespace {

constexpr float kForced = std::numeric_limits<float>::infinity();
constexpr float kNothing = -std::numeric_limits<float>::infinity();

/// One list being written, slot after slot.
class ListCursor {
 public:
  ListCursor(const Tensor& ids, const Tensor& scores, std::int64_t row, std::int64_t head)
      : ids_(static_cast<std::int32_t*>(ids.data) + row * ids.stride[0] + head * ids.stride[1]),
        ids_stride_(ids.stride[2]),
        width_(ids.shape[2]) {
    if (!scores) return;
    scores_ = static_cast<float*>(scores.data) + row * scores.stride[0] + head * scores.stride[1];
    scores_stride_ = scores.stride[2];
  }
  void put(std::int64_t id, float score) {
    ids_[slot_ * ids_stride_] = static_cast<std::int32_t>(id);
    if (scores_ != nullptr) scores_[slot_ * scores_stride_] = score;
    ++slot_;
  }
  void put_range(core::Range range, float score) {
    for (std::int64_t id = range.begin; id < range.end; ++id) put(id, score);
  }
  void finish() {
    while (slot_ < width_) put(-1, kNothing);
  }

 private:
  std::int32_t* ids_;
  std::int64_t ids_stride_;
  std::int64_t width_;
  float* scores_ = nullptr;
  std::int64_t scores_stride_ = 0;
  std::int64_t slot_ = 0;
};

}  // namespace

RowChoice choose_row(const core::Request& request, std::int64_t token, const Problem& problem) {
  const core::Range seen = request.visible_blocks(token);
  if (seen.empty()) return {};
  const std::int64_t last_block = request.last_position(token) / request.block_size;
  const std::int64_t initial_end = std::clamp(problem.selection.init_blocks, seen.begin, seen.end);
  const std::int64_t local_begin =
      std::clamp(last_block - problem.selection.local_blocks + 1, initial_end, seen.end);
  RowChoice choice{
      {seen.begin, initial_end}, {initial_end, local_begin}, {local_begin, seen.end}, 0};
  const std::int64_t forced = choice.initial.size() + choice.local.size();
  choice.room = std::min(problem.selection.topk - forced, choice.candidates.size());
  return choice;
}

std::span<core::Request> read_requests(const Problem& problem, const core::Call& call,
                                       core::Request* requests) {
  const std::int64_t count = core::num_requests(call);
  std::int64_t k_begin = 0;
  for (std::int64_t b = 0; b < count; ++b) {
    requests[b] = core::read_request(problem, call, b, k_begin);
    k_begin += requests[b].seqlen_k;
  }
  return {requests, static_cast<std::size_t>(count)};
}

const core::Request* request_of_row(std::span<const core::Request> requests, std::int64_t row) {
  const auto behind = std::upper_bound(
      requests.begin(), requests.end(), row,
      [](std::int64_t r, const core::Request& request) { return r < request.q_begin; });
  if (behind == requests.begin()) return nullptr;
  const core::Request& owner = *(behind - 1);
  return row < owner.q_begin + owner.seqlen_q ? &owner : nullptr;
}

void SelectionWriter::write(std::int64_t row, std::int64_t head, const RowChoice& choice,
                            std::span<const Candidate> chosen) const {
  ListCursor list(ids_, scores_, row - rows_.begin, head);
  list.put_range(choice.initial, kForced);
  if (choice.takes_all() && !wants_scores()) {
    list.put_range(choice.candidates, kNothing);
  } else {
    for (const Candidate c : chosen) list.put(id_of(c), score_of(c));
  }
  list.put_range(choice.local, kForced);
  list.finish();
}

void SelectionWriter::write_empty(std::int64_t row) const {
  for (std::int64_t head = 0; head < ids_.shape[1]; ++head) {
    ListCursor(ids_, scores_, row - rows_.begin, head).finish();
  }
}

}  // namespace msa::cpu
