// SPDX-License-Identifier: MIT
// The producer warp, which takes items and copies their keys.
#pragma once

#include "cuda/common/ptx/cp_async.cuh"
#include "cuda/common/tile/swizzle.cuh"
#include "cuda/mma/select/traits.cuh"

namespace msa::cuda::mma::select {

namespace ptx = common::ptx;

/// Takes items in turn: the next one when it has asked for the last keys of this one, early enough
/// to hide the way there, late enough not to hold work that an idle CTA could do. Items without
/// keys are left out.
template <class Traits>
class Producer {
 public:
  __device__ __forceinline__ Producer(const Params& params, typename Traits::Shared& shared)
      : params_(params), shared_(shared), lane_(threadIdx.x % 32) {}

  __device__ __forceinline__ void run() {
    const Params& p = params_;
    const unsigned items = static_cast<unsigned>(p.num_tiles) * p.spans * p.groups;
    RingPosition<Traits::kWorkSlots> slot;
    unsigned item = blockIdx.x;
    while (true) {
      Work work;
      work.valid_rows = -1;
      work.first = work.end = 0;
      if (item < items) work = common::select::locate_work(p, item);
      if (item >= items || work.first < work.end) {
        shared_.work_ring.wait_empty(slot);
        if (lane_ == 0) {
          shared_.work[slot.stage] = work;
          shared_.work_ring.arrive(slot);
        }
        slot.advance();
        load_keys(work);
      }
      if (item >= items) return;
      if (lane_ == 0) item = gridDim.x + atomicAdd(p.next_item, 1u);
      item = __shfl_sync(kAllLanes, item, 0);
    }
  }

 private:
  static constexpr int kAhead = 32 / Traits::kBoxes;  // stages whose boxes are looked up at once

  /// Keys side by side: where they lie, and how many of them exist.
  struct Box {
    const std::uint16_t* keys;
    int count;
    bool bad;  // the page table held an id out of range
  };

  /// Those from `key` of the request on.
  __device__ __forceinline__ Box locate_box(const Work& work, int key, int end) const {
    const Params& p = params_;
    Box box{p.keys.data, 0, false};
    if (key >= end) return box;
    std::int64_t row = work.rows.k_begin + key;
    std::int64_t page = 0;
    if (p.batch.page_size != 0) {
      const int number = key / p.batch.page_size;
      row = key - number * p.batch.page_size;
      page = load_page(p.batch, work.request, number);
      box.bad = page < 0 || page >= p.batch.num_pages;
      if (box.bad) return box;
    }
    box.keys +=
        page * p.keys.stride_page + row * p.keys.stride_token + work.key_head * p.keys.stride_head;
    box.count = min(end - key, kBoxKeys);
    return box;
  }

  /// Key tiles [work.first, work.end) into the ring.
  __device__ __forceinline__ void load_keys(const Work& work) {
    const int end_stage = work.end * Traits::kStagesPerTile;
    const int end = min(work.rows.seqlen_k, end_stage * Traits::kKeys);
    int first = work.first * Traits::kStagesPerTile;
#pragma unroll 1
    for (; first < end_stage; first += kAhead) {
      const Box mine = locate_box(work, first * Traits::kKeys + lane_ * kBoxKeys, end);
      const unsigned bad = __ballot_sync(kAllLanes, mine.bad);
      if (bad != 0 && lane_ == 0) report(params_.batch.status, work.request, -1, FaultKind::PageId);
      const int stages = min(kAhead, end_stage - first);
#pragma unroll 1
      for (int i = 0; i < stages; ++i, at_.advance()) {
        shared_.ring.wait_empty(at_);
        if (lane_ == 0) {
          shared_.bad_boxes[at_.stage] = bad >> (i * Traits::kBoxes) & ((1u << Traits::kBoxes) - 1);
          shared_.ring.arrive(at_);
        }
        copy_stage(mine, i * Traits::kBoxes);
        ptx::cp_async_mbarrier_arrive_noinc(&shared_.ring.full[at_.stage]);
      }
    }
  }

  /// The boxes of one stage, that lanes from `from` on located; zeros where no key is.
  __device__ __forceinline__ void copy_stage(const Box& mine, int from) {
    std::uint8_t* const stage = shared_.keys[at_.stage];
    const int chunk = lane_ % Traits::kChunks;
    const int first_row = lane_ / Traits::kChunks;
    const std::int64_t item = first_row * params_.keys.stride_token + chunk * 8;
    const std::int64_t step = Traits::kCopyRows * params_.keys.stride_token;
    std::uint8_t* const panel = stage + chunk / 8 * Traits::kPanelBytes;
#pragma unroll 1
    for (int b = 0; b < Traits::kBoxes; ++b) {
      const auto address = reinterpret_cast<std::uintptr_t>(mine.keys);
      const auto* keys = reinterpret_cast<const std::uint16_t*>(
          __shfl_sync(kAllLanes, static_cast<unsigned long long>(address), from + b));
      const int count = __shfl_sync(kAllLanes, mine.count, from + b);
      keys += item;
#pragma unroll
      for (int row = 0; row < kBoxKeys; row += Traits::kCopyRows, keys += step) {
        const bool there = row + first_row < count;
        ptx::cp_async_16(panel + common::swizzled_chunk(b * kBoxKeys + row + first_row, chunk % 8),
                         there ? keys : params_.keys.data, there ? 16 : 0);
      }
    }
  }

  const Params& params_;
  typename Traits::Shared& shared_;
  const int lane_;
  RingPosition<Traits::kStages> at_{};
};

}  // namespace msa::cuda::mma::select
