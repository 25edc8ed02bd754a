// SPDX-License-Identifier: MIT
// Laying out tensors; see tensor_maker.h.
#include "testkit/tensor_maker.h"

#include <algorithm>
#include <cstring>

namespace msa::testkit {

namespace {

/// Elements from the first to the last, gaps included.
std::int64_t extent(const Shape& shape, const Shape& strides) {
  std::int64_t elements = 1;
  for (std::size_t d = 0; d < shape.size(); ++d) {
    if (shape[d] == 0) return 0;
    elements += (shape[d] - 1) * strides[d];
  }
  return elements;
}

}  // namespace

TensorMaker::TensorMaker(const Case& spec) : spec_(spec) {
  // Buffers do not move: tensors point into them.
  buffers_.reserve(32 + 2 * static_cast<std::size_t>(std::max<std::int64_t>(spec.parts, 0)));
}

/// What inputs hold where nobody wrote: NaN, or numbers so large that a leak shows.
int TensorMaker::background(DType dtype) const {
  if (spec_.hostile != Hostile::None) return 0xff;
  if (dtype == DType::E2M1) return 0x77;
  return dtype == DType::E4M3 ? 0x7e : 0x47;
}

Shape TensorMaker::strides_for(DType dtype, const Shape& shape, const DimOrder& order,
                               bool unit_inner) const {
  Shape strides(shape.size());
  // Strides are whole bytes.
  const std::int64_t unit = dtype == DType::E2M1 ? 2 : 1;
  std::int64_t step = spec_.strides == Strides::Padded && !unit_inner ? 2 : 1;
  std::int64_t gap = 3;
  for (std::size_t n = order.size(); n-- > 0;) {
    const int dim = order[n];
    if (spec_.strides == Strides::Huge && n == 0 && shape[dim] > 1) {
      step = std::max(step, ((std::int64_t{1} << 31) + 4096) / (shape[dim] - 1) + 1);
      step = (step + unit - 1) / unit * unit;
    }
    strides[dim] = step;
    step *= std::max<std::int64_t>(shape[dim], 1);
    if (spec_.strides == Strides::Padded) {
      step += gap;
      gap = 1;
    }
    step = (step + unit - 1) / unit * unit;
  }
  return strides;
}

Tensor TensorMaker::make(const std::string& name, bool output, DType dtype, const Shape& shape,
                         const Shape& strides) {
  const std::size_t item = static_cast<std::size_t>(size_in_bytes(dtype, 1));
  const auto bytes = static_cast<std::size_t>(size_in_bytes(dtype, extent(shape, strides)));
  const bool sparse = spec_.strides == Strides::Huge || (spec_.pool > 0 && bytes > (1u << 30));
  const std::size_t misalign = spec_.strides == Strides::Padded ? item : 0;
  Buffer& buffer = buffers_.emplace_back(name, bytes, misalign, sparse);
  Tensor tensor{.data = buffer.data(), .dtype = dtype, .rank = static_cast<int>(shape.size())};
  std::copy(shape.begin(), shape.end(), tensor.shape.begin());
  std::copy(strides.begin(), strides.end(), tensor.stride.begin());
  views_.push_back(output ? tensor : Tensor{});
  return tensor;
}

Tensor TensorMaker::input(const std::string& name, DType dtype, const Shape& shape,
                          const DimOrder& order, bool unit_inner) {
  Tensor tensor = make(name, false, dtype, shape, strides_for(dtype, shape, order, unit_inner));
  buffers_.back().fill(background(dtype));
  return tensor;
}

Tensor TensorMaker::output(const std::string& name, DType dtype, const Shape& shape,
                           const DimOrder& order, bool unit_inner) {
  return make(name, true, dtype, shape, strides_for(dtype, shape, order, unit_inner));
}

DimOrder TensorMaker::key_order(bool paged) const {
  if (spec_.layout == Layout::HeadMajor) return paged ? DimOrder{0, 2, 1, 3} : DimOrder{1, 0, 2};
  if (spec_.layout == Layout::SlotMajor && paged) return {1, 0, 2, 3};
  return paged ? DimOrder{0, 1, 2, 3} : DimOrder{0, 1, 2};
}

Tensor TensorMaker::stored_keys(const std::string& name, DType dtype, const Shape& shape) {
  return output(name, dtype, shape, key_order(shape.size() == 4));
}

Tensor TensorMaker::keys(const std::string& name, DType dtype, const Shape& shape) {
  const DimOrder order = key_order(shape.size() == 4);
  if (spec_.strides != Strides::Broadcast) return input(name, dtype, shape, order);
  Shape one = shape;
  one[one.size() - 2] = 1;
  Shape strides = strides_for(dtype, one, order, true);
  strides[strides.size() - 2] = 0;
  Tensor tensor = make(name, false, dtype, shape, strides);
  buffers_.back().fill(background(dtype));
  return tensor;
}

Tensor TensorMaker::scales(const std::string& name, DType dtype, const Shape& shape,
                           std::size_t heads) {
  DimOrder order;
  for (std::size_t d = 0; d < shape.size(); ++d) order.push_back(static_cast<int>(d));
  if (spec_.layout == Layout::HeadMajor || spec_.strides == Strides::Transposed) {
    std::rotate(order.begin(), order.end() - 1, order.end());
  }
  if (spec_.strides != Strides::Broadcast) return input(name, dtype, shape, order, false);
  Shape one = shape;
  one[heads] = 1;
  Shape strides = strides_for(dtype, one, order, false);
  strides[heads] = 0;
  Tensor tensor = make(name, false, dtype, shape, strides);
  buffers_.back().fill(background(dtype));
  return tensor;
}

Tensor TensorMaker::ints(const std::string& name, const Shape& shape,
                         const std::vector<std::int32_t>& values) {
  Shape strides(shape.size(), 1);
  for (std::size_t d = shape.size() - 1; d-- > 0;) strides[d] = strides[d + 1] * shape[d + 1];
  Tensor tensor = make(name, false, DType::I32, shape, strides);
  if (!values.empty()) {
    std::memcpy(tensor.data, values.data(), values.size() * sizeof(std::int32_t));
  }
  return tensor;
}

DimOrder TensorMaker::row_order() const {
  return spec_.strides == Strides::Transposed ? DimOrder{1, 0, 2} : DimOrder{0, 1, 2};
}

DimOrder TensorMaker::ids_order() const {
  return spec_.ids_head_major ? DimOrder{1, 0, 2} : DimOrder{0, 1, 2};
}

DimOrder TensorMaker::lse_order() const {
  return spec_.strides == Strides::Transposed ? DimOrder{1, 0} : DimOrder{0, 1};
}

}  // namespace msa::testkit
