// SPDX-License-Identifier: MIT
// Memory and strides of a case's tensors: each in a buffer of its own between red zones, laid out
// as the case wants it.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "testkit/case.h"
#include "testkit/memory.h"

namespace msa::testkit {

using Shape = std::vector<std::int64_t>;
/// Dimensions of a tensor, outermost in memory first.
using DimOrder = std::vector<int>;

class TensorMaker {
 public:
  explicit TensorMaker(const Case& spec);

  Tensor input(const std::string& name, DType dtype, const Shape& shape, const DimOrder& order,
               bool unit_inner = true);
  Tensor output(const std::string& name, DType dtype, const Shape& shape, const DimOrder& order,
                bool unit_inner = true);
  /// Key rows, [N, H, D] or [P, S, H, D], in the case's layout.
  Tensor keys(const std::string& name, DType dtype, const Shape& shape);
  /// The same as an output.
  Tensor stored_keys(const std::string& name, DType dtype, const Shape& shape);
  /// Scales of keys: [1], or with dimension `heads`, in the case's layout.
  Tensor scales(const std::string& name, DType dtype, const Shape& shape, std::size_t heads);
  /// Index tensors of the batch are small and dense.
  Tensor ints(const std::string& name, const Shape& shape, const std::vector<std::int32_t>& values);

  /// Orders of [T, H, x], of ids and of [T, H], as the case's strides say.
  DimOrder row_order() const;
  DimOrder ids_order() const;
  DimOrder lse_order() const;

  std::vector<Buffer> take_buffers() { return std::move(buffers_); }
  /// Of each output buffer; rank 0 for inputs.
  std::vector<Tensor> take_views() { return std::move(views_); }

 private:
  DimOrder key_order(bool paged) const;
  int background(DType dtype) const;
  Shape strides_for(DType dtype, const Shape& shape, const DimOrder& order, bool unit_inner) const;
  Tensor make(const std::string& name, bool output, DType dtype, const Shape& shape,
              const Shape& strides);

  const Case& spec_;
  std::vector<Buffer> buffers_{};
  std::vector<Tensor> views_{};
};

}  // namespace msa::testkit
