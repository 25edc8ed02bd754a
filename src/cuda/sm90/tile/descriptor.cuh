// SPDX-License-Identifier: MIT
// Shared-memory matrix descriptors of wgmma (PTX ISA 9.7.15.5.1) for tiles that the copy engine
// wrote with 128-byte swizzle: columns come in panels of 64 items (128 bytes a row), a panel holds
// all rows, panels follow each other. Panels must start at multiples of 1024 bytes.
#pragma once

#include <cstdint>

#include "cuda/common/tile/swizzle.cuh"
#include "cuda/sm90/ptx/barrier.cuh"

namespace msa::cuda::sm90 {

using common::kPanelItems;
using common::kPanelRowBytes;
using common::panel_items;

inline constexpr int kSwizzleAtomBytes = 1024;  // 8 rows: the unit of the swizzle pattern

namespace detail {
inline constexpr std::uint64_t kSwizzle128 = std::uint64_t{1} << 62;
inline constexpr std::uint64_t kSwizzle32 = std::uint64_t{3} << 62;
__device__ __forceinline__ std::uint64_t encode(std::uint32_t bytes) {
  return (bytes & 0x3FFFF) >> 4;
}
}  // namespace detail

/// How the descriptor of an operand becomes that of the same operand some steps further on.
struct ByLowerHalf {  // what changes lies there: a sum of 64 bits takes more of a product's time
  static __device__ __forceinline__ std::uint64_t advance(std::uint64_t descriptor,
                                                          std::uint32_t by) {
    const auto lower = static_cast<std::uint32_t>(descriptor) + by;
    return descriptor >> 32 << 32 | lower;
  }
};
struct ByWhole {  // attention over lists that drift is a hundredth faster so
  static __device__ __forceinline__ std::uint64_t advance(std::uint64_t descriptor,
                                                          std::uint32_t by) {
    return descriptor + by;
  }
};

/// Rows of the operand along the rows of a panel, contraction along its 64 columns. Advance by 16
/// along the contraction inside the panel: + kDescriptorStepK.
__device__ __forceinline__ std::uint64_t descriptor_k_major(const void* smem) {
  return detail::encode(ptx::cvta_to_shared(smem)) | (std::uint64_t{1} << 16) |
         (std::uint64_t{kSwizzleAtomBytes >> 4} << 32) | detail::kSwizzle128;
}
inline constexpr std::uint32_t kDescriptorStepK = 32 >> 4;  // 16 items

/// Contraction along the rows of the panels, the operand's own index along the columns (V as B of P
/// * V). `panel_bytes` lies between panels of 64 columns. Advance by 16 along the contraction: +
/// kDescriptorStepMN.
__device__ __forceinline__ std::uint64_t descriptor_mn_major(const void* smem,
                                                             std::uint32_t panel_bytes) {
  return detail::encode(ptx::cvta_to_shared(smem)) | (detail::encode(panel_bytes) << 16) |
         (std::uint64_t{kSwizzleAtomBytes >> 4} << 32) | detail::kSwizzle128;
}
inline constexpr std::uint32_t kDescriptorStepMN = (16 * kPanelRowBytes) >> 4;  // 16 rows

/// The same where a row is 16 columns, 32 bytes, with 32-byte swizzle: of eight rows the last four
/// have their halves exchanged. The tile must start at a multiple of 256 bytes.
__device__ __forceinline__ std::uint64_t descriptor_mn_major_16(const void* smem) {
  constexpr int kAtomBytes = 256;  // 8 rows
  return detail::encode(ptx::cvta_to_shared(smem)) | (std::uint64_t{1} << 16) |
         (std::uint64_t{kAtomBytes >> 4} << 32) | detail::kSwizzle32;
}
inline constexpr std::uint32_t kDescriptorStepMN16 = (16 * 32) >> 4;  // 16 rows

/// Where an item of such a tile lies.
__device__ __forceinline__ constexpr int swizzled_row_16(int row, int column) {
  return (row * 32 + column * 2) ^ ((row >> 2 & 1) << 4);
}

}  // namespace msa::cuda::sm90
