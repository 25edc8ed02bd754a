// SPDX-License-Identifier: MIT
// The tensors of a case in a GPU's memory, made piece by piece on all processors, so that a million
// tokens take seconds and little host memory; and single rows of a call back in host memory, for
// the oracle. Index vectors, keys and values are those of the testkit; q repeats a pool of rows.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <vector>

#include "testkit/case.h"
#include "testkit/memory.h"
#include "testkit/operands.h"
#include "testkit/requests.h"

namespace msa::cli {

/// One row of a call with its request's keys, in host memory: a problem of its own.
struct HostRow {
  Problem problem;
  testkit::Operands operands;
  std::vector<std::shared_ptr<std::byte[]>> memory;
};

class BenchData {
 public:
  /// Throws Failure(kUsage) for a case with offsets, strides or faults of its own.
  BenchData(const testkit::Case& spec, testkit::MemorySpace& space);
  BenchData(const BenchData&) = delete;
  BenchData& operator=(const BenchData&) = delete;
  ~BenchData();

  const testkit::Case& spec() const { return spec_; }
  const Problem& problem() const { return problem_; }
  const testkit::Operands& operands() const { return operands_; }

  /// The same contents in memory of their own.
  testkit::Operands copy(const testkit::Operands& operands);

  /// A NaN in the first value of every KV head.
  void poison();

  /// First row, last row, and others at random, none of padding.
  std::vector<HostRow> sample(const Problem& problem, const testkit::Operands& operands, int rows);

  /// Shapes, lengths and block ids as useful_work and blocks_per_8 read them.
  testkit::Operands host_view(const testkit::Operands& operands);

 private:
  using RowMaker = std::function<void(std::int64_t row, std::byte* out)>;

  void make_batch();
  void make_page_table();
  void make_inputs();
  void make_outputs();
  void* allocate(std::size_t bytes);
  Tensor make(DType dtype, const std::vector<std::int64_t>& shape);
  Tensor make_ints(const std::vector<std::int32_t>& values, const std::vector<std::int64_t>& shape);
  Tensor make_queries(int role, DType dtype, std::int64_t heads, std::int64_t dim);
  Tensor make_keys(int role, std::int64_t heads, std::int64_t dim);
  Tensor make_scales(int role, const Tensor& keys, Tensor* all);
  Tensor make_group_scales(int role, const Tensor& keys, std::int64_t group);
  Tensor make_shared_scales(int role, std::int64_t count);
  void make_filter();
  Tensor make_scores();
  Tensor make_lists();
  /// Writes the rows (outermost extent) of a tensor; row n holds what `maker` makes of n % period.
  void fill(const Tensor& tensor, std::int64_t rows, std::int64_t period, const RowMaker& maker);
  const testkit::Request& owner(std::int64_t row) const;
  std::shared_ptr<std::byte[]> fetch(const Tensor& tensor, std::int64_t begin, std::int64_t count);
  Tensor fetch_keys(const Tensor& keys, const testkit::Request& request,
                    std::vector<std::shared_ptr<std::byte[]>>& memory);
  Tensor fetch_bounds(const Tensor& bounds, const testkit::Request& request,
                      std::vector<std::shared_ptr<std::byte[]>>& memory);
  HostRow host_row(const Problem& problem, const testkit::Operands& operands,
                   const testkit::Request& request, std::int64_t i);

  testkit::Case spec_;
  testkit::MemorySpace& space_;
  Problem problem_;
  testkit::Operands operands_{};
  Batch host_batch_{};
  std::vector<std::vector<std::int32_t>> host_ints_{};
  std::map<int, std::vector<float>> host_scales_{};  // by role
  std::vector<testkit::Request> requests_{};
  std::int64_t pages_ = 0;
  std::vector<std::pair<std::int32_t, std::int32_t>> page_owners_{};  // request, page of it
  std::vector<std::byte> staging_{};
  std::vector<void*> allocations_{};
  std::vector<std::int32_t> ids_{};  // of host_view
};

}  // namespace msa::cli
