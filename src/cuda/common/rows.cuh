// SPDX-License-Identifier: MIT
// Where the items of a (token, head) begin.
#pragma once

#include <cstdint>
#include <type_traits>

#include "cuda/params.h"

namespace msa::cuda::common {

/// To, const where From is.
template <class To, class From>
using SameConst = std::conditional_t<std::is_const_v<From>, const To, To>;

template <class Item, class Data>
__device__ __forceinline__ SameConst<Item, Data>* row_of(const Rows<Data>& rows, std::int64_t token,
                                                         std::int64_t head) {
  return static_cast<SameConst<Item, Data>*>(rows.data) + token * rows.stride_t +
         head * rows.stride_h;
}

/// The one item of a (token, head).
template <class Item>
__device__ __forceinline__ Item& item_of(const Rows<Item>& rows, std::int64_t token,
                                         std::int64_t head) {
  return rows.data[token * rows.stride_t + head * rows.stride_h];
}

/// Slot 0 of a (token, head); the others are stride_slot apart.
template <class Item>
__device__ __forceinline__ Item* slots_of(const Slots<Item>& slots, std::int64_t token,
                                          std::int64_t head) {
  return slots.data + token * slots.stride_t + head * slots.stride_h;
}

}  // namespace msa::cuda::common
