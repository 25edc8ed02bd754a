// SPDX-License-Identifier: MIT
// Products of a warpgroup's 64 rows over whole tiles in shared memory, swizzled as the copy engine
// leaves them: a batch of wgmma and its commit. The caller fences the registers in front and waits
// behind.
#pragma once

#include "cuda/sm90/ptx/wgmma.cuh"
#include "cuda/sm90/tile/descriptor.cuh"

namespace msa::cuda::sm90 {

/// d = rows `a` and on times rows `b` and on, transposed, over kDim columns. Panels of 64 columns
/// of either tile lie so many bytes apart.
template <class Item, int kDim, int kPanelBytesA, int kPanelBytesB, class Descriptor = ByLowerHalf,
          int kAccumulators>
__device__ __forceinline__ void multiply_rows(float (&d)[kAccumulators], const std::uint8_t* a,
                                              const std::uint8_t* b) {
  const std::uint64_t from_a = descriptor_k_major(a);
  const std::uint64_t from_b = descriptor_k_major(b);
#pragma unroll
  for (int k = 0; k < kDim / 16; ++k) {
    const std::uint32_t inside = (k & 3) * kDescriptorStepK;
    const int panel = k >> 2;
    ptx::wgmma_ss<Item, ptx::Major::K, ptx::Major::K>(
        d, Descriptor::advance(from_a, panel * (kPanelBytesA >> 4) + inside),
        Descriptor::advance(from_b, panel * (kPanelBytesB >> 4) + inside), k != 0);
  }
  ptx::wgmma_commit_group();
}

/// The same with the first factor as fragments of 64 rows and kDim columns.
template <class Item, int kDim, int kPanelBytesB, class Descriptor = ByLowerHalf, int kAccumulators>
__device__ __forceinline__ void multiply_rows(float (&d)[kAccumulators],
                                              const std::uint32_t (&a)[kDim / 4],
                                              const std::uint8_t* b) {
  const std::uint64_t from_b = descriptor_k_major(b);
#pragma unroll
  for (int k = 0; k < kDim / 16; ++k)
    ptx::wgmma_rs<Item, ptx::Major::K>(
        d, a + 4 * k,
        Descriptor::advance(from_b, (k >> 2) * (kPanelBytesB >> 4) + (k & 3) * kDescriptorStepK),
        k != 0);
  ptx::wgmma_commit_group();
}

/// d = or, where it accumulates, d += fragments `a` of 64 rows and kRows columns times the kRows
/// rows of a tile, as wide as d.
template <class Item, int kRows, class Descriptor = ByLowerHalf, int kAccumulators>
__device__ __forceinline__ void multiply_columns(float (&d)[kAccumulators],
                                                 const std::uint32_t (&a)[kRows / 4],
                                                 const std::uint8_t* tile, bool accumulate) {
  const std::uint64_t b = descriptor_mn_major(tile, kRows * kPanelRowBytes);
#pragma unroll
  for (int k = 0; k < kRows / 16; ++k)
    ptx::wgmma_rs<Item, ptx::Major::MN>(d, a + 4 * k, Descriptor::advance(b, k * kDescriptorStepMN),
                                        accumulate || k != 0);
  ptx::wgmma_commit_group();
}

/// d = 64 columns of the kRows rows of panel `a`, transposed, times the rows of `b`, of 16 columns
/// (descriptor_mn_major_16).
template <class Item, int kRows>
__device__ __forceinline__ void multiply_transposed(float (&d)[8], const std::uint8_t* a,
                                                    const std::uint8_t* b) {
  const std::uint64_t from_a = descriptor_mn_major(a, kRows * kPanelRowBytes);
  const std::uint64_t from_b = descriptor_mn_major_16(b);
#pragma unroll
  for (int k = 0; k < kRows / 16; ++k)
    ptx::wgmma_ss<Item, ptx::Major::MN, ptx::Major::MN>(
        d, ByLowerHalf::advance(from_a, k * kDescriptorStepMN),
        ByLowerHalf::advance(from_b, k * kDescriptorStepMN16), k != 0);
  ptx::wgmma_commit_group();
}

}  // namespace msa::cuda::sm90
