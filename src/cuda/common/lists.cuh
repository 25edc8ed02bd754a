// SPDX-License-Identifier: MIT
// The one reader of given block lists. What the contract says of their ids: the valid prefix ends
// at the first -1, ids that no request can have are faults, legal ones that lie elsewhere or are
// not visible add nothing.
#pragma once

#include <cstdint>

#include "cuda/common/rows.cuh"
#include "cuda/common/warp.cuh"
#include "cuda/geometry.cuh"

namespace msa::cuda::common {

/// What an id of a list says.
struct ListedBlock {
  int block;   // local to the request; -1: adds nothing
  bool fault;  // an id that no request can have
};

/// What ids of one request mean: `blocks` of it count (those that exist, or that a row sees).
struct ListReader {
  std::int64_t first;  // global id of local block 0
  std::int64_t legal;  // ids end here
  std::int64_t blocks;

  __device__ __forceinline__ ListReader(const RequestRecord& request, int block_size,
                                        std::int64_t counted)
      : first(first_block(request, block_size)),
        legal(legal_blocks(request, block_size)),
        blocks(counted) {}

  /// Ids of no request in particular: all from 0 on are legal, and their own blocks.
  __device__ __forceinline__ ListReader() : first(0), legal(kNoLimit), blocks(kNoLimit) {}

  /// `listed`: the id stands in the valid prefix.
  __device__ __forceinline__ ListedBlock read(int id, bool listed) const {
    const bool fault = listed && (id < 0 || id >= legal);
    const std::int64_t block = id - first;
    const bool counts = listed && !fault && block >= 0 && block < blocks;
    return {counts ? static_cast<int>(block) : -1, fault};
  }
};

namespace warp {

/// What 32 lanes, or those of `list_lanes`, read of one list, neighbouring slots in neighbouring
/// lanes: this lane's block, and whether the list ends here.
struct ListStep {
  ListedBlock listed;
  bool ends;
};

/// All lanes of the warp call it; a lane without a slot, or behind the end of its list, has id -1.
__device__ __forceinline__ ListStep read_slots(const ListReader& reader, int id, int lane,
                                               unsigned list_lanes = kAllLanes) {
  const unsigned stops = __ballot_sync(kAllLanes, id == -1) & list_lanes;
  const bool listed = id != -1 && (stops & lanes_below(lane)) == 0;
  return {reader.read(id, listed), stops != 0};
}

/// Walks one list, 32 slots at a time: all lanes call visit(slot, ListedBlock), until it ends.
/// Plain loads: a launch of this run may have written the list while this one was resident.
template <class Visit>
__device__ __forceinline__ void for_each_listed(const Lists& lists, const ListReader& reader,
                                                std::int64_t token, std::int64_t head, int lane,
                                                const Visit& visit) {
  const int* ids = slots_of(lists.ids, token, head);
  bool ended = false;
  for (int first = 0; first < lists.k && !ended; first += 32) {
    const int slot = first + lane;
    const int id = slot < lists.k ? ids[slot * lists.ids.stride_slot] : -1;
    const ListStep step = read_slots(reader, id, lane);
    visit(slot, step.listed);
    ended = step.ends;
  }
}

/// The lists of several tokens of one request, by a warp: as many at once as its lanes hold whole
/// lists, 32 slots of one where they are longer.
class ListWalk {
 public:
  /// Of `tokens` tokens from row `row` of the batch on.
  __device__ __forceinline__ ListWalk(const Lists& lists, std::int64_t row, int tokens,
                                      std::int64_t head, int lane)
      : lists_(lists),
        ids_(slots_of(lists.ids, row, head)),
        tokens_(tokens),
        lane_(lane),
        width_(lanes_of(lists.k)) {}

  /// All lanes call visit(token, slot, ListedBlock) for every slot of their tokens and some behind
  /// them, where the block is -1. In a step lanes ascend with the token, then the slot, and steps
  /// ascend with the token. reader_of(token) says what a token's ids mean.
  template <class ReaderOf, class Visit>
  __device__ __forceinline__ void run(const ReaderOf& reader_of, const Visit& visit) const {
    // Behind a store or an atomic every load waits for the one before: several steps' loads first.
    constexpr int kAhead = 4;
    const unsigned list_lanes = (width_ == 32 ? kAllLanes : (1u << width_) - 1)
                                << (lane_ / width_ * width_);
    Place next{0, 0};
    bool open = true;
    while (next.step < tokens_) {
      const Place first = next;
      int ids[kAhead];
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        ids[i] = load(next);
        next = behind(next);
      }
      next = first;
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        if (next.step >= tokens_) break;
        open = open || next.begin == 0;
        const int token = token_of(next);
        const auto [listed, ends] =
            read_slots(reader_of(token), open ? ids[i] : -1, lane_, list_lanes);
        visit(token, next.begin + lane_ % width_, listed);
        open = open && !ends;
        next = behind(next);
      }
    }
  }

 private:
  /// First token and first slot of a step.
  struct Place {
    int step;
    int begin;
  };

  __device__ __forceinline__ Place behind(const Place& place) const {
    const bool same = place.begin + width_ < lists_.k;
    return {same ? place.step : place.step + 32 / width_, same ? place.begin + width_ : 0};
  }
  __device__ __forceinline__ static int lanes_of(int k) {
    return k >= 32 ? 32 : 1 << (32 - __clz(k - 1));
  }
  __device__ __forceinline__ int token_of(const Place& place) const {
    return place.step + lane_ / width_;
  }
  /// Plain, as above.
  __device__ __forceinline__ int load(const Place& place) const {
    const int token = token_of(place);
    const int slot = place.begin + lane_ % width_;
    if (token >= tokens_ || slot >= lists_.k) return -1;
    return ids_[token * lists_.ids.stride_t + slot * lists_.ids.stride_slot];
  }

  const Lists& lists_;
  const int* ids_;
  const int tokens_;
  const int lane_;
  const int width_;  // lanes of a list: a power of two
};

}  // namespace warp
}  // namespace msa::cuda::common
