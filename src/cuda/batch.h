// SPDX-License-Identifier: MIT
// From the tensors of a call to the plain structs that kernels take.
#pragma once

#include <string>

#include "core/call.h"
#include "cuda/params.h"
#include "msa/error.h"

namespace msa::cuda {

/// `keys`: k or index_k, or a tensor that was not given where the operation takes no keys.
BatchParams make_batch(const Problem& problem, const core::Call& call, const Tensor& keys,
                       StatusWord* status);

/// What kernels call a dtype of attention and index tensors.
inline Storage storage_of(DType dtype) {
  switch (dtype) {
    case DType::F32:
      return Storage::F32;
    case DType::BF16:
      return Storage::Bf16;
    case DType::F16:
      return Storage::F16;
    case DType::E4M3:
      return Storage::E4m3;
    case DType::I8:
      return Storage::I8;
    case DType::E2M1:
      return Storage::E2m1;
    default:
      throw Error(ErrorCode::Internal, "", std::string("no kernel stores ") + to_string(dtype));
  }
}

IntVector make_int_vector(const Tensor& tensor, int dim);

/// A tensor [T, H, n] whose last stride is 1, or [T, H]; or none.
template <class Item>
Rows<Item> make_rows(const Tensor& tensor) {
  if (!tensor) return {};
  return {static_cast<Item*>(tensor.data), tensor.stride[0], tensor.stride[1]};
}

/// A tensor [T, H, n] of any strides, or none.
template <class Item>
Slots<Item> make_slots(const Tensor& tensor) {
  if (!tensor) return {};
  return {static_cast<Item*>(tensor.data), tensor.stride[0], tensor.stride[1], tensor.stride[2]};
}

/// Scales of keys or values of that format, or none.
Scales make_scales(const Problem& problem, const Format& format, const Tensor& tensor);

/// Those of groups, and the one of all, or none.
GroupScales make_group_scales(const Format& format, const Tensor& tensor, const Tensor& all);

/// Why kernels cannot take scales of groups, or an empty string: those of a row are read 8 bytes at
/// a time.
const char* group_scales_refuse(const Tensor& scales);

/// Index keys, paged or ragged.
template <class Item>
KeyRows<Item> make_key_rows(const Tensor& keys) {
  auto* data = static_cast<Item*>(keys.data);
  if (keys.rank == 4) return {data, keys.stride[0], keys.stride[1], keys.stride[2]};
  return {data, 0, keys.stride[0], keys.stride[1]};
}

/// Keys, values or codes of any storage; strides count bytes.
KeyRows<const std::uint8_t> make_byte_rows(const Tensor& keys);

template <class Item>
FilterBounds<Item> make_filter_bounds(const Problem& problem, const Tensor& bounds) {
  return {.data = static_cast<Item*>(bounds.data),
          .stride_group = bounds.stride[0],
          .stride_head = bounds.stride[1],
          .stride_item = bounds.stride[2],
          .rotated = problem.index.filter->rotated ? 1 : 0};
}

inline Lists make_lists(const Tensor& ids) {
  return {.ids = make_slots<const int>(ids), .k = static_cast<int>(ids.shape[2])};
}

/// `lse` may be none.
RowsOut make_rows_out(const Tensor& out, const Tensor& lse);

/// Blocks of the longest request that the problem allows.
inline std::int64_t blocks_of(const Problem& problem) {
  return (problem.bounds.max_seqlen_k + problem.selection.block_size - 1) /
         problem.selection.block_size;
}

}  // namespace msa::cuda
