// SPDX-License-Identifier: MIT
// The producer warp: streams the blocks of an item, K and V of each in turn.
#pragma once

#include <type_traits>

#include "cuda/common/decode/attend/item.cuh"
#include "cuda/common/tile/key_box.cuh"
#include "cuda/common/tile/key_scales.cuh"

namespace msa::cuda::common::decode {

template <class Traits>
class Producer {
 public:
  __device__ __forceinline__ Producer(const ParamsOf<Traits>& params, AttendShared<Traits>& shared,
                                      std::uint8_t* stages, RingPosition<Traits::kStages>& at,
                                      int lane)
      : params_(params),
        shared_(shared),
        stages_(stages),
        at_(at),
        lane_(lane),
        lanes_(key_box_lanes<Traits::kBlock, Traits::kPanels>(params.select.batch.page_size)) {}

  /// A rehearsal looks block 0 up and loads nothing: zeros in its query order no block, and then
  /// its selection holds anything.
  __device__ __forceinline__ void run(const RequestRecord& r, const Item& item, bool rehearsal) {
    if constexpr (Traits::kCodes) {
      run_codes(r, item, rehearsal);
    } else {
      run_items(r, item, rehearsal);
    }
  }

 private:
  __device__ __forceinline__ void run_items(const RequestRecord& r, const Item& item,
                                            bool rehearsal) {
    const BatchParams& batch = params_.select.batch;
    for (int i = item.begin; i < item.end; ++i) {
      const int block = rehearsal ? 0 : entry_block<Traits>(params_, shared_.select, i);
      KeyBox box;
      if (lane_ < lanes_) {
        box =
            locate_key_box<Traits::kBlock>(batch, r, item.request, block, lane_ / Traits::kPanels);
      }
      const unsigned bad = warp::bad_boxes<Traits::kPanels>(box, lane_);
      if (rehearsal) return;
      if (bad != 0 && lane_ == 0) report(batch.status, item.request, -1, FaultKind::PageId);
      load(params_.k, item.head, box, bad);
      at_.advance();
      load(params_.v, item.head, box, bad);
      at_.advance();
    }
  }

  using Engine = typename Traits::Engine;
  using Keys = typename Engine::Keys;
  using Scale = std::conditional_t<Traits::kPacked, uint2, float>;  // of a key: of all its groups

  /// A block of codes on its way: where it lies, and its scales.
  struct Codes {
    KeyBox box{};
    unsigned bad = 0;
    Scale k_scales[Traits::kBlock / 32];
    Scale v_scales[Traits::kBlock / 32];
  };

  /// Scales are read a block ahead: they take as long as a tile.
  __device__ __forceinline__ void run_codes(const RequestRecord& r, const Item& item,
                                            bool rehearsal) {
    Codes codes;
#pragma unroll 1
    for (int i = item.begin; i <= item.end; ++i) {
      Codes next{};
      if (i < item.end) {
        next = look_up(r, item, rehearsal ? 0 : entry_block<Traits>(params_, shared_.select, i));
      }
      if (rehearsal) return;
      if (i > item.begin) {
        if (codes.bad != 0 && lane_ == 0)
          report(params_.select.batch.status, item.request, -1, FaultKind::PageId);
        load_codes(params_.k, item.head, codes, codes.k_scales);
        load_codes(params_.v, item.head, codes, codes.v_scales);
      }
      codes = next;
    }
  }

  __device__ __forceinline__ Codes look_up(const RequestRecord& r, const Item& item,
                                           int block) const {
    const BatchParams& batch = params_.select.batch;
    const int visible = item.visible - block * Traits::kBlock;
    Codes codes;
    if (lane_ < lanes_) {
      codes.box =
          locate_key_box<Traits::kBlock>(batch, r, item.request, block, lane_ / Traits::kPanels);
    }
    codes.bad = warp::bad_boxes<Traits::kPanels>(codes.box, lane_);
    const auto& k_scales = scales_of(params_.k_scales, params_.k_groups);
    const auto& v_scales = scales_of(params_.v_scales, params_.v_groups);
    read_scales(codes.k_scales, k_scales, codes.box, item.head, visible);
    read_scales(codes.v_scales, v_scales, codes.box, item.head, visible);
    return codes;
  }

  /// The scales of a block's keys. Where a head has one, no page says where it lies: the addresses
  /// of the others are most of what this warp computes for a block.
  template <class From>
  __device__ __forceinline__ void read_scales(Scale (&to)[Traits::kBlock / 32], const From& scales,
                                              const KeyBox& box, int head, int visible) const {
    const int page_size = params_.select.batch.page_size;
    if constexpr (!Traits::kPacked) {
      if (common::shares_scale(scales)) {
        const float shared = common::scale_of(scales, 0, 0, head);
        const int shift = box_shift(Traits::kBlock, page_size);
#pragma unroll
        for (int i = 0; i < Traits::kBlock / 32; ++i) {
          const int key = i * 32 + lane_;
          const int from = (key >> shift) * Traits::kPanels;  // the lane of the key's box
          const bool there = __shfl_sync(common::kAllLanes, box.page, from) != kNoPage;
          to[i] = key < visible && there ? shared : 0.0f;
        }
        return;
      }
    }
    warp::load_scales<Traits::kBlock, Traits::kPanels>(to, scales, box, head, visible, page_size,
                                                       lane_);
  }

  static __device__ __forceinline__ const auto& scales_of(const Scales& scales,
                                                          const GroupScales& groups) {
    if constexpr (Traits::kPacked) {
      return groups;
    } else {
      return scales;
    }
  }

  /// The scales follow the copies into the stage, and the arrival of every lane fills it.
  __device__ __forceinline__ void load_codes(const Keys& keys, int head, const Codes& codes,
                                             const Scale (&scales)[Traits::kBlock / 32]) {
    load(keys, head, codes.box, codes.bad);
    Scale* to;
    if constexpr (Traits::kPacked) {
      to = groups_of<Traits>(stage());
    } else {
      to = shared_.scales[at_.stage];
      const bool odd = warp::any_odd_scale(scales);
      if (lane_ == 0) shared_.odd_scales[at_.stage] = odd ? 1 : 0;
    }
#pragma unroll
    for (int i = 0; i < Traits::kBlock / 32; ++i) to[i * 32 + lane_] = scales[i];
    shared_.ring.arrive(at_);
    at_.advance();
  }

  __device__ __forceinline__ void load(const Keys& keys, int head, const KeyBox& box,
                                       unsigned bad) {
    shared_.ring.wait_empty(at_);
    if (lane_ == 0) {
      shared_.bad_boxes[at_.stage] = bad;  // the arrival below publishes it
      Engine::announce(shared_.ring, at_, Traits::kTileBytes);
    }
    __syncwarp();
    Engine::template load_tile<Traits>(stage(), keys, &shared_.ring.full[at_.stage], head, box,
                                       params_.select.batch, lane_, lanes_);
  }

  __device__ __forceinline__ std::uint8_t* stage() const {
    return stages_ + at_.stage * Traits::kStageBytes;
  }

  const ParamsOf<Traits>& params_;
  AttendShared<Traits>& shared_;
  std::uint8_t* stages_;
  RingPosition<Traits::kStages>& at_;
  const int lane_;
  const int lanes_;  // that issue copies
};

}  // namespace msa::cuda::common::decode
