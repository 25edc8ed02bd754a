// SPDX-License-Identifier: MIT
// What the rows of a step see of a tile of keys, and how the others are kept from them.
#pragma once

namespace msa::cuda::sm90 {

enum class Sight : int {
  whole,   // all keys
  masked,  // not all: zeros in place of weights keep hidden keys apart
  apart,   // not all, and the rows may hold what is not finite, whose product with 0 is NaN
};

/// Of rows which are `masked` if some of them do not see all keys.
__device__ __forceinline__ constexpr Sight sight_of(bool masked, bool finite) {
  return !masked ? Sight::whole : finite ? Sight::masked : Sight::apart;
}

}  // namespace msa::cuda::sm90
