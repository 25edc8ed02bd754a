// SPDX-License-Identifier: MIT
// How a tile's queries and the keys and values of its steps come into shared memory: every thread
// of the CTA copies 16 bytes at a time and waits for none of them. Entries of lists and numbers of
// pages come the same way, a step or two before the keys that they name.
#pragma once

#include "cuda/common/tile/swizzle.cuh"
#include "cuda/geometry.cuh"
#include "cuda/mma/attend/traits.cuh"

namespace msa::cuda::mma::attend {

template <class Traits>
class Loader {
 public:
  __device__ __forceinline__ Loader(const Params& params, typename Traits::Shared& shared)
      : params_(params),
        job_(shared.job),
        shared_(shared),
        to_((chunk() >> 3) * kStepKeys * 128 + common::swizzled_chunk(first_row(), chunk() & 7)),
        steps_a_block_(Traits::kUnion ? params.tiles.batch.block_size / kStepKeys : 1) {}

  __device__ __forceinline__ int steps() const { return job_.blocks * steps_a_block_; }

  /// Local to the request, of a step whose entry is there.
  __device__ __forceinline__ int first_key(int step) const {
    if constexpr (Traits::kUnion) {
      return shared_.entries[step % kAhead].block * params_.tiles.batch.block_size +
             (steps_a_block_ == 1 ? 0 : step % 2 * kStepKeys);
    } else {
      return (job_.first - step) * kStepKeys;
    }
  }

  /// Rows of q behind the tile's tokens are zeros.
  __device__ __forceinline__ void load_queries() const {
    constexpr int kRows = Traits::kThreads / kChunks;
    const int valid = job_.tokens * params_.tiles.group;
    const auto* q = static_cast<const std::uint16_t*>(params_.q.data) + chunk() * 8;
#pragma unroll
    for (int row = first_row(); row < kTileRows; row += kRows) {
      const int token = row / params_.tiles.group;
      const int head = job_.head * params_.tiles.group + row - token * params_.tiles.group;
      const std::int64_t at = row < valid ? (job_.row + std::int64_t{token}) * params_.q.stride_t +
                                                head * params_.q.stride_h
                                          : 0;
      ptx::cp_async_16(
          shared_.q + (chunk() >> 3) * kTileRows * 128 + common::swizzled_chunk(row, chunk() & 7),
          q + at, row < valid ? 16 : 0);
    }
  }

  /// What the first steps need to know, at once. All threads.
  __device__ __forceinline__ void begin() const {
    for (int step = 0; step < kAhead - 1; ++step) find_entry(step);
    arrive();
    find_places(0);
    find_places(1);
    arrive();
    check_places(0);
  }

  /// Beside the keys of `step`: what later steps need to know.
  __device__ __forceinline__ void look_ahead(int step) const {
    if (threadIdx.x >= 32) return;
    find_entry(step + 3);
    find_places(step + 2);
    check_places(step + 1);
  }

  /// Keys, or values, of a step whose places are there.
  __device__ __forceinline__ void load(const KeyRows<const std::uint16_t>& rows, int step,
                                       std::uint8_t* stage) const {
    const auto* places = shared_.places[step % kAhead];
    const int left = job_.limit - first_key(step);  // keys from the step's first one on
    const auto* from = rows.data + job_.head * rows.stride_head + chunk() * 8;
    std::uint8_t* to = stage + to_;
    const int page_size = params_.tiles.batch.page_size;
    if (page_size == 0 || page_size >= kStepKeys) {
      const auto place = places[0];
      from += place.page * rows.stride_page +
              (place.token + std::int64_t{first_row()}) * rows.stride_token;
      const int end = is_page(place.page) ? left : 0;
#pragma unroll
      for (int i = 0; i < kPasses; ++i) {
        ptx::cp_async_16(to + i * kRows * 128, from, first_row() + i * kRows < end ? 16 : 0);
        from += kRows * rows.stride_token;
      }
    } else {
#pragma unroll 1
      for (int i = 0; i < kPasses; ++i) {
        const int row = first_row() + i * kRows;
        const auto place = places[row / 16];
        const bool there = row < left && is_page(place.page);
        const std::int64_t at = place.page * rows.stride_page +
                                (place.token + std::int64_t{row % 16}) * rows.stride_token;
        ptx::cp_async_16(to + i * kRows * 128, from + (there ? at : 0), there ? 16 : 0);
      }
    }
  }

  /// The scales of a step's keys, or values.
  __device__ __forceinline__ void load_scales(const Scales& scales, int step,
                                              float (&to)[kStepKeys]) const {
    const int key = static_cast<int>(threadIdx.x);
    if (key >= kStepKeys) return;
    const auto place = place_of(step, key / 16);
    const bool there = key < job_.limit - first_key(step) && is_page(place.page);
    const float* from =
        there ? common::scale_at(scales, place.page, place.token + key % 16, job_.head)
              : scales.data;
    ptx::cp_async<4>(&to[key], from, there ? 4 : 0);
  }

  /// What a scale beyond f32 makes of values is not what it makes of their sums.
  __device__ __forceinline__ void check_scales(const float (&scales)[kStepKeys]) const {
    const int key = static_cast<int>(threadIdx.x);
    if (key < kStepKeys && common::is_odd_scale(scales[key])) shared_.suspect = 1;
  }

 private:
  static constexpr int kChunks = Traits::kHeadDim / 8;  // of 16 bytes in a row
  static constexpr int kRows = Traits::kThreads / kChunks;
  static constexpr int kPasses = kStepKeys / kRows;
  static_assert(kRows % 8 == 0, "the swizzle of all of a thread's rows is one");

  /// Of 16 keys.
  __device__ __forceinline__ auto place_of(int step, int group) const {
    return shared_.places[step % kAhead][group];
  }

  __device__ __forceinline__ static void arrive() {
    ptx::cp_async_commit_group();
    ptx::cp_async_wait_group<0>();
    __syncthreads();
  }

  /// The first of this thread's rows, and which chunk of a row is this thread's.
  __device__ __forceinline__ static int first_row() {
    return static_cast<int>(threadIdx.x) / kChunks;
  }
  __device__ __forceinline__ static int chunk() { return static_cast<int>(threadIdx.x) % kChunks; }

  __device__ __forceinline__ bool is_page(int page) const {
    return params_.tiles.batch.page_size == 0 ||
           (page >= 0 && page < params_.tiles.batch.num_pages);
  }

  __device__ __forceinline__ void find_entry(int step) const {
    if (!Traits::kUnion || threadIdx.x != 0 || step >= steps()) return;
    const int entry = steps_a_block_ == 1 ? step : step / 2;
    ptx::cp_async<8>(&shared_.entries[step % kAhead],
                     common::attend::list_of(params_.tiles, job_) + entry, 8);
  }

  __device__ __forceinline__ void find_places(int step) const {
    const int group = static_cast<int>(threadIdx.x);
    if (group >= kStepKeys / 16 || step >= steps()) return;
    const BatchParams& batch = params_.tiles.batch;
    const int token = first_key(step) + group * 16;
    auto& place = shared_.places[step % kAhead][group];
    if (batch.page_size == 0) {
      place = {0, static_cast<int>(params_.tiles.requests[job_.request].k_begin) + token};
    } else if (token >= job_.limit) {
      place = {0, 0};
    } else {
      const int page = token / batch.page_size;
      place.token = token - page * batch.page_size;
      ptx::cp_async<4>(&place.page, page_address(batch, job_.request, page), 4);
    }
  }

  __device__ __forceinline__ void check_places(int step) const {
    if (threadIdx.x >= kStepKeys / 16 || step >= steps()) return;
    if (is_page(shared_.places[step % kAhead][threadIdx.x].page)) return;
    shared_.suspect = 1;
    report(params_.tiles.batch.status, job_.request, -1, FaultKind::PageId);
  }

  const Params& params_;
  const Job& job_;
  typename Traits::Shared& shared_;
  const int to_;  // where it lies in a stage
  const int steps_a_block_;
};

}  // namespace msa::cuda::mma::attend
