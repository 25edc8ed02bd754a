// SPDX-License-Identifier: MIT
// A consumer warp: a quarter of the keys of every block of an item (mma.sync, query heads on M),
// with a softmax state of its own.
#pragma once

#include "cuda/common/decode/attend/codes.cuh"
#include "cuda/common/decode/attend/packed.cuh"
#include "cuda/common/decode/attend/state.cuh"
#include "cuda/common/ptx/math.cuh"
#include "cuda/common/ptx/matrix.cuh"
#include "cuda/common/tile/fragment.cuh"
#include "cuda/common/tile/key_box.cuh"
#include "cuda/common/tile/swizzle.cuh"

namespace msa::cuda::common::decode {

/// S[heads][keys] of this warp's keys.
template <class Traits>
__device__ __forceinline__ void multiply_keys(float (&scores)[Traits::kKeyTiles][4],
                                              const WarpState<Traits>& s, const std::uint8_t* keys,
                                              int warp, int lane) {
#pragma unroll
  for (int tile = 0; tile < Traits::kKeyTiles; ++tile) {
#pragma unroll
    for (int j = 0; j < 4; ++j) scores[tile][j] = 0.f;
    const int row = warp * Traits::kKeys + tile * 8 + (lane & 7);
#pragma unroll
    for (int pair = 0; pair < Traits::kDim / 32; ++pair) {  // two k16 steps a load
      const int chunk = pair * 4 + (lane >> 3);
      std::uint32_t b[4];
      ptx::ldmatrix_x4(b, keys + (chunk >> 3) * Traits::kBlock * kPanelRowBytes +
                              swizzled_chunk(row, chunk & 7));
      ptx::mma_m16n8k16<typename Traits::Item>(scores[tile], s.q[2 * pair], b[0], b[1]);
      ptx::mma_m16n8k16<typename Traits::Item>(scores[tile], s.q[2 * pair + 1], b[2], b[3]);
    }
  }
}

/// Sets the scores of keys that do not count to -inf.
template <class Traits>
__device__ __forceinline__ void mask_scores(float (&scores)[Traits::kKeyTiles][4], int visible,
                                            unsigned bad_boxes, int page_size, int warp, int lane) {
  const int shift = box_shift(Traits::kBlock, page_size);
#pragma unroll
  for (int tile = 0; tile < Traits::kKeyTiles; ++tile) {
    mask_fragment(scores[tile], lane, [&](int, int column) {
      const int key = warp * Traits::kKeys + tile * 8 + column;
      return key >= visible || ((bad_boxes >> (key >> shift)) & 1) != 0;
    });
  }
}

/// Zeroes this warp's values that are not visible: 0 * NaN must not reach the output.
template <class Traits>
__device__ __forceinline__ void clear_values(std::uint8_t* values, int visible, int warp,
                                             int lane) {
  const int first = warp * Traits::kKeys;
  for (int key = max(first, visible); key < first + Traits::kKeys; ++key) {
    for (int chunk = lane; chunk < Traits::kRowChunks; chunk += 32) {
      std::uint8_t* at =
          values + (chunk >> 3) * Traits::kBlock * kPanelRowBytes + swizzled_chunk(key, chunk & 7);
      *reinterpret_cast<uint4*>(at) = uint4{0, 0, 0, 0};
    }
  }
  ptx::fence_proxy_async_shared();  // the copy engine writes here next
  __syncwarp();
}

/// Online softmax over this warp's keys: scores become P (A fragments), the state moves on.
template <class Traits>
__device__ __forceinline__ void softmax_step(std::uint32_t (&probabilities)[Traits::kSteps][4],
                                             WarpState<Traits>& s,
                                             const float (&scores)[Traits::kKeyTiles][4],
                                             float scale_log2) {
  float shift[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float best = s.best[half];
#pragma unroll
    for (int tile = 0; tile < Traits::kKeyTiles; ++tile) {
      best = fmaxf(best, fmaxf(scores[tile][2 * half], scores[tile][2 * half + 1]));
    }
    best = quad::max(best);
    shift[half] = best == -INFINITY ? 0.f : best;  // nothing but -inf so far: keep exp2(-inf) = 0
    const float scale =
        s.best[half] == -INFINITY ? 0.f : ptx::ex2((s.best[half] - shift[half]) * scale_log2);
    s.best[half] = best;
    s.sum[half] *= scale;
#pragma unroll
    for (int i = 0; i < Traits::kDimTiles; ++i) {
      s.out[i][2 * half] *= scale;
      s.out[i][2 * half + 1] *= scale;
    }
  }
#pragma unroll
  for (int tile = 0; tile < Traits::kKeyTiles; ++tile) {
    float x[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      x[j] = ptx::ex2((scores[tile][j] - shift[j / 2]) * scale_log2);
      s.sum[j / 2] += x[j];
    }
    probabilities[tile / 2][(tile & 1) * 2] = ptx::cvt_pack<typename Traits::Item>(x[0], x[1]);
    probabilities[tile / 2][(tile & 1) * 2 + 1] = ptx::cvt_pack<typename Traits::Item>(x[2], x[3]);
  }
}

template <class Traits>
__device__ __forceinline__ void multiply_values(
    WarpState<Traits>& s, const std::uint32_t (&probabilities)[Traits::kSteps][4],
    const std::uint8_t* values, int warp, int lane) {
#pragma unroll
  for (int step = 0; step < Traits::kSteps; ++step) {
    const int row = warp * Traits::kKeys + step * 16 + (lane & 15);
#pragma unroll
    for (int pair = 0; pair < Traits::kDimTiles / 2; ++pair) {
      const int chunk = pair * 2 + (lane >> 4);
      std::uint32_t b[4];
      ptx::ldmatrix_x4_trans(b, values + (chunk >> 3) * Traits::kBlock * kPanelRowBytes +
                                    swizzled_chunk(row, chunk & 7));
      ptx::mma_m16n8k16<typename Traits::Item>(s.out[2 * pair], probabilities[step], b[0], b[1]);
      ptx::mma_m16n8k16<typename Traits::Item>(s.out[2 * pair + 1], probabilities[step], b[2],
                                               b[3]);
    }
  }
}

template <class Traits>
class Consumer {
 public:
  __device__ __forceinline__ Consumer(const AttendParams& params, AttendShared<Traits>& shared,
                                      std::uint8_t* stages, RingPosition<Traits::kStages>& at,
                                      int warp, int lane)
      : params_(params), shared_(shared), stages_(stages), at_(at), warp_(warp), lane_(lane) {
    reset_output<Traits>(state_);
  }

  /// All blocks of the item. A rehearsal multiplies whatever codes lie where the last tile will be,
  /// which the other warps leave alone, as one of block 0; with items, whose code is half as long,
  /// it gave nothing.
  __device__ __forceinline__ void run(const Item& item, bool rehearsal) {
    if constexpr (Traits::kCodes) {
      if (rehearsal) at_ = {.stage = Traits::kStages - 1};
      load_query<Traits>(state_, params_, item, lane_);
      if constexpr (Traits::kPacked) {
        run_packed(item, rehearsal);
      } else {
        run_codes(item, rehearsal);
      }
      if (rehearsal) at_ = {};
    } else if (!rehearsal) {
      load_query<Traits>(state_, params_, item, lane_);
      run_items(item);
    }
  }

  __device__ __forceinline__ WarpState<Traits>& state() { return state_; }

 private:
  __device__ __forceinline__ void run_items(const Item& item) {
    for (int i = item.begin; i < item.end; ++i) {
      forget_lane();
      const int visible =
          item.visible - entry_block<Traits>(params_, shared_.select, i) * Traits::kBlock;
      float scores[Traits::kKeyTiles][4];
      std::uint32_t probabilities[Traits::kSteps][4];
      shared_.ring.wait_full(at_);
      multiply_keys<Traits>(scores, state_, stage(), warp_, lane_);
      const unsigned bad = shared_.bad_boxes[at_.stage];
      release();
      if (visible < Traits::kBlock || bad != 0) {
        mask_scores<Traits>(scores, visible, bad, params_.select.batch.page_size, warp_, lane_);
      }
      softmax_step<Traits>(probabilities, state_, scores, params_.scale_log2);
      shared_.ring.wait_full(at_);
      std::uint8_t* values = stage();
      if (visible < Traits::kBlock) clear_values<Traits>(values, visible, warp_, lane_);
      multiply_values<Traits>(state_, probabilities, values, warp_, lane_);
      release();
    }
  }

  __device__ __forceinline__ void run_codes(const Item& item, bool rehearsal) {
    for (int i = item.begin; i < item.end; ++i) {
      forget_lane();
      const int block = rehearsal ? 0 : entry_block<Traits>(params_, shared_.select, i);
      const int visible = item.visible - block * Traits::kBlock;
      float scores[Traits::kKeyTiles][4];
      float decay[2];
      std::uint32_t probabilities[Traits::kSteps][4];
      if (!rehearsal) shared_.ring.wait_full(at_);
      const std::uint8_t* keys = stage();
      const float* scales = shared_.scales[at_.stage] + warp_ * Traits::kKeys;
      multiply_key_codes<Traits>(scores, state_, keys, warp_, lane_);
      bool odd = !rehearsal && shared_.odd_scales[at_.stage] != 0;
      if constexpr (Traits::kNarrows) {
        scale_rows<Traits>(scores, state_.units);
        odd |= !rehearsal && is_wide();
      }
      scale_columns<Traits>(scores, scales, lane_);
      if (odd) score_odd_keys<Traits>(scores, params_, item, keys, scales, warp_, lane_, is_wide());
      const unsigned bad = shared_.bad_boxes[at_.stage];
      if (!rehearsal) release();
      if (!rehearsal && (visible < Traits::kBlock || bad != 0)) {
        mask_scores<Traits>(scores, visible, bad, params_.select.batch.page_size, warp_, lane_);
      }
      weigh<Traits>(state_, scores, params_.scale_log2, decay);
      if (!rehearsal) shared_.ring.wait_full(at_);
      std::uint8_t* values = stage();
      scales = shared_.scales[at_.stage] + warp_ * Traits::kKeys;
      if (!rehearsal && visible < Traits::kBlock)
        clear_values<Traits>(values, visible, warp_, lane_);
      if (!rehearsal && shared_.odd_scales[at_.stage] != 0)
        spoil_odd_values<Traits>(values, scales, warp_, lane_);
      scale_columns<Traits>(scores, scales, lane_);
      pack_weights<Traits>(probabilities, state_, scores, decay);
      multiply_value_codes<Traits>(state_, probabilities, values, warp_, lane_);
      if (!rehearsal) release();
    }
  }

  /// What a row does not see has scales of 0, and with them values of 0. The scale of all keys
  /// multiplies their scores, that of all values the output.
  __device__ __forceinline__ void run_packed(const Item& item, bool rehearsal) {
    const float of_keys = common::scale_of_all(params_.k_groups);
    const float of_values = common::scale_of_all(params_.v_groups);
    const common::Magnitudes* values =
        values_differ(of_keys, of_values) ? value_table<Traits>(stages_) : shared_.magnitudes;
    for (int i = item.begin; i < item.end; ++i) {
      forget_lane();
      const int block = rehearsal ? 0 : entry_block<Traits>(params_, shared_.select, i);
      const int visible = item.visible - block * Traits::kBlock;
      float scores[Traits::kKeyTiles][4];
      float decay[2];
      std::uint32_t probabilities[Traits::kSteps][4];
      if (!rehearsal) shared_.ring.wait_full(at_);
      multiply_packed_keys<Traits>(scores, state_, stage(), shared_.magnitudes, warp_, lane_);
      if constexpr (Traits::kNarrows) scale_rows<Traits>(scores, state_.units);
      if (!rehearsal && is_wide())
        score_packed_singly<Traits>(scores, params_, item, stage(), shared_.magnitudes, warp_,
                                    lane_);
      const unsigned bad = shared_.bad_boxes[at_.stage];
      if (!rehearsal) release();
      scale_scores<Traits>(scores, of_keys);
      if (!rehearsal && (visible < Traits::kBlock || bad != 0)) {
        mask_scores<Traits>(scores, visible, bad, params_.select.batch.page_size, warp_, lane_);
      }
      weigh<Traits>(state_, scores, params_.scale_log2, decay);
      pack_weights<Traits>(probabilities, state_, scores, decay);
      if (!rehearsal) shared_.ring.wait_full(at_);
      multiply_packed_values<Traits>(state_, probabilities, stage(), values, warp_, lane_);
      if (!rehearsal) release();
    }
    if (params_.v_groups.all != nullptr) scale_output<Traits>(state_, of_values);
  }

  /// Whether queries are not f16.
  __device__ __forceinline__ bool is_wide() const {
    if constexpr (Traits::kNarrows) return state_.units == 0;
    return false;
  }

  /// Where the lane's items lie is worked out anew for each block rather than kept in registers,
  /// which are scarce beside queries in bf16 and on other cards than 9.0.
  __device__ __forceinline__ void forget_lane() {
#if __CUDA_ARCH__ == 900
    if constexpr (Traits::kPacked && !Traits::kNarrows) return;
#endif
    asm volatile("" : "+r"(lane_));
  }

  /// Every lane gives back what it has read.
  __device__ __forceinline__ void release() {
    shared_.ring.release(at_);
    at_.advance();
  }

  __device__ __forceinline__ std::uint8_t* stage() const {
    return stages_ + at_.stage * Traits::kStageBytes;
  }

  const AttendParams& params_;
  AttendShared<Traits>& shared_;
  std::uint8_t* stages_;
  RingPosition<Traits::kStages>& at_;
  const int warp_;
  int lane_;
  WarpState<Traits> state_;
};

}  // namespace msa::cuda::common::decode
