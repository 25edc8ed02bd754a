// SPDX-License-Identifier: MIT
// A consumer warpgroup: rows of (token, index head) on the tensor cores against tiles of 128 keys.
#pragma once

#include <type_traits>

#include "cuda/sm90/select/codes.cuh"
#include "cuda/sm90/select/fast.cuh"
#include "cuda/sm90/select/listed.cuh"
#include "cuda/sm90/select/scores.cuh"

namespace msa::cuda::sm90::select {

template <class Traits>
using RowsOf =
    std::conditional_t<Traits::kFast, FastRows<Traits>,
                       std::conditional_t<Traits::kCodes, CodedRows<Traits>,
                                          std::conditional_t<Traits::kListed, ListedRows<Traits>,
                                                             ScoredRows<Traits>>>>;

/// A consumer warpgroup: 64 rows of each item against every key tile of its span. Without rows of
/// its own it only keeps the ring turning.
template <class Traits>
class Consumer {
 public:
  __device__ __forceinline__ Consumer(const Params& params, typename Traits::Shared& shared,
                                      int warpgroup)
      : params_(params), shared_(shared), warpgroup_(warpgroup) {}

  __device__ __forceinline__ void run() {
    const Params& p = params_;
    const int shift = box_shift(Traits::kKeys, p.batch.page_size);
    const bool releases = threadIdx.x % 32 == 0;
    WorkQueue<Traits> queue(shared_);
    RingPosition<Traits::kStages> at;
    int valid_rows;
    while ((valid_rows = queue.wait_next()) >= 0) {
      const int first = queue.first();
      const int end = queue.end();
      if (warpgroup_ * 64 >= valid_rows) {
        queue.done();
        for (int tile = first; tile < end; ++tile, at.advance()) {
          shared_.ring.wait_full(at);
          if (releases) shared_.ring.release(at);
        }
        continue;
      }
      RowsOf<Traits> rows(p, queue.work());
      queue.done();
      for (int tile = first; tile < end; ++tile, at.advance()) {
        shared_.ring.wait_full(at);
        rows.take(shared_, at, tile, shift, releases);
      }
      rows.finish(end);
    }
  }

 private:
  const Params& params_;
  typename Traits::Shared& shared_;
  const int warpgroup_;
};

}  // namespace msa::cuda::sm90::select
