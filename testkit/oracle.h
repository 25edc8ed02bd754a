// SPDX-License-Identifier: MIT
// Runs the reference backend on a whole call or on one row of it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "testkit/operands.h"
#include "testkit/requests.h"

namespace msa::testkit {

/// `tensor` without what lies outside [begin, begin + count) of one dimension.
Tensor narrow(Tensor tensor, int dim, std::int64_t begin, std::int64_t count);

/// Which rows and KV heads an oracle's answer holds.
struct Part {
  std::int64_t row_begin = 0;      // its row 0 is this row of the call
  std::int64_t kv_head_begin = 0;  // its KV head 0 (index head, for selections alone)
  std::int64_t kv_heads = 0;
};

/// The oracle's outputs, in memory of their own: `out` in f32, selections with their scores.
class Answer {
 public:
  /// The whole call.
  Answer(const Problem& problem, const Operands& operands);
  /// Row i of a request and some KV heads; attention takes the ids in `operands.block_ids_in`.
  Answer(const Problem& problem, const Operands& operands, const Request& request, std::int64_t i,
         const Part& part);

  const Operands& operands() const { return operands_; }
  const Part& part() const { return part_; }

 private:
  Tensor own(DType dtype, const Tensor& like);
  void drop_filter();
  void take_row(const Request& request, std::int64_t i);
  void take_heads();
  void make_outputs();
  void run();

  Part part_{};
  Problem problem_;
  bool has_groups() const { return scale_ == Scale::Group || scale_ == Scale::GroupTensor; }
  bool index_has_groups() const {
    return index_scale_ == Scale::Group || index_scale_ == Scale::GroupTensor;
  }

  Scale scale_ = Scale::None;        // of keys and values
  Scale index_scale_ = Scale::None;  // of index keys
  Operands operands_;
  std::vector<std::unique_ptr<std::byte[]>> memory_{};
  std::vector<std::int32_t> numbers_{};
};

}  // namespace msa::testkit
