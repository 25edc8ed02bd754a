// SPDX-License-Identifier: MIT
// A CTA a pair, in f32 without tensor cores: few pairs are mended, and any scale, any number goes.
// 32 keys a step; a warp has every eighth query head of the group, a lane a key, then some columns.
#include "cuda/mma/attend/mend.h"

#include "cuda/common/attend/suspects.cuh"
#include "cuda/common/codes.cuh"
#include "cuda/common/join_by_lse.cuh"
#include "cuda/common/lists.cuh"
#include "cuda/common/rows.cuh"
#include "cuda/common/scales.cuh"
#include "cuda/common/storage.cuh"
#include "cuda/launch.h"
#include "cuda/mma/ptx.cuh"
#include "msa/error.h"

namespace msa::cuda::mma::attend {
namespace {

constexpr int kWarps = 8;
constexpr int kThreads = 32 * kWarps;
constexpr int kKeys = 32;  // of a step
constexpr int kMaxDim = 128;
constexpr int kMaxGroup = 64;
constexpr int kHeads = kMaxGroup / kWarps;  // of a warp
constexpr int kColumns = kMaxDim / 32;      // of a lane

struct Shared {
  float q[kMaxGroup][kMaxDim];
  float k[kKeys][kMaxDim + 1];  // lanes read a column
  float v[kKeys][kMaxDim];
  float weights[kMaxGroup][kKeys];
};

/// One (row, KV head).
struct Pair {
  std::int64_t row;
  int head;
  int request;
  int visible;  // keys
};

template <class Item>
__device__ __forceinline__ float value_of(Item item) {
  if constexpr (sizeof(Item) == 1) {
    return ptx::e4m3_to_float(item);
  } else {
    return common::to_float(item);
  }
}

template <class Item, class KvItem>
class Mender {
 public:
  __device__ __forceinline__ Mender(const MendParams& params, Shared& shared)
      : params_(params),
        shared_(shared),
        warp_(static_cast<int>(threadIdx.x) / 32),
        lane_(static_cast<int>(threadIdx.x) % 32) {}

  __device__ __forceinline__ void run(const Pair& pair) {
    load_queries(pair);
#pragma unroll
    for (int h = 0; h < kHeads; ++h) {
      state_[h] = {};
#pragma unroll
      for (int c = 0; c < kColumns; ++c) out_[h][c] = 0.0f;
    }
    if (params_.listed) {
      walk_lists(pair);
    } else {
      attend(pair, 0, pair.visible);
    }
    store(pair);
    __syncthreads();  // shared memory is free for the next pair
  }

 private:
  __device__ __forceinline__ void load_queries(const Pair& pair) {
    const int group = params_.tiles.group;
    for (int i = static_cast<int>(threadIdx.x); i < group * params_.head_dim; i += kThreads) {
      const int head = i / params_.head_dim;
      const int column = i - head * params_.head_dim;
      shared_.q[head][column] = common::to_float(
          common::row_of<Item>(params_.q, pair.row, pair.head * group + head)[column]);
    }
    __syncthreads();
  }

  __device__ __forceinline__ void walk_lists(const Pair& pair) {
    const BatchParams& batch = params_.tiles.batch;
    const common::ListReader reader(params_.tiles.requests[pair.request], batch.block_size,
                                    ceil_div(pair.visible, batch.block_size));
    // Every warp walks the list for itself; the CTA meets at each of its blocks.
    common::warp::for_each_listed(
        params_.lists, reader, pair.row, pair.head, lane_,
        [&](int, const common::ListedBlock& listed) {
          unsigned blocks = __ballot_sync(common::kAllLanes, listed.block >= 0);
          for (; blocks != 0; blocks &= blocks - 1) {
            const int lane = __ffs(static_cast<int>(blocks)) - 1;
            const int first = __shfl_sync(common::kAllLanes, listed.block, lane) * batch.block_size;
            attend(pair, first, min(first + batch.block_size, pair.visible));
          }
        });
  }

  /// Keys first .. end - 1.
  __device__ __forceinline__ void attend(const Pair& pair, int first, int end) {
    for (int key = first; key < end; key += kKeys) {
      const int keys = load(pair, key, min(kKeys, end - key));
      weigh(keys);
      __syncthreads();
      add_values(keys);
      __syncthreads();
    }
  }

  /// Brings up to `keys` keys and values; how many, as those of a page that there is not do not
  /// count. Pages hold a multiple of 16 keys: what is left out is a half, or all.
  __device__ __forceinline__ int load(const Pair& pair, int first, int keys) {
    const BatchParams& batch = params_.tiles.batch;
    int there = 0;
    for (int half = 0; half < keys; half += 16) {
      const int count = min(16, keys - half);
      int page = 0;
      std::int64_t token = params_.tiles.requests[pair.request].k_begin + first + half;
      if (batch.page_size != 0) {
        const int column = (first + half) / batch.page_size;
        page = load_page(batch, pair.request, column);
        token = first + half - column * batch.page_size;
        if (page < 0 || page >= batch.num_pages) continue;
      }
      const int dim = params_.head_dim;
      for (int i = static_cast<int>(threadIdx.x); i < count * dim; i += kThreads) {
        const int key = i / dim;
        const int column = i - key * dim;
        const std::int64_t slot = token + key;
        shared_.k[there + key][column] =
            item(params_.k, params_.tiles.k_scales, page, slot, pair.head, column);
        shared_.v[there + key][column] =
            item(params_.v, params_.tiles.v_scales, page, slot, pair.head, column);
      }
      there += count;
    }
    __syncthreads();
    return there;
  }

  __device__ __forceinline__ static float item(const KeyRows<const void>& rows,
                                               const Scales& scales, std::int64_t page,
                                               std::int64_t token, int head, int column) {
    const auto* items = static_cast<const KvItem*>(rows.data) + page * rows.stride_page +
                        token * rows.stride_token + head * rows.stride_head;
    const float value = value_of(items[column]);
    return sizeof(KvItem) == 1 ? value * common::scale_of(scales, page, token, head) : value;
  }

  /// Scores of this warp's heads become weights against the maximum so far; outputs shrink.
  __device__ __forceinline__ void weigh(int keys) {
#pragma unroll
    for (int h = 0; h < kHeads; ++h) {
      const int head = warp_ + h * kWarps;
      if (head >= params_.tiles.group) break;
      float score = 0.0f;
      for (int d = 0; d < params_.head_dim; ++d)
        score = fmaf(shared_.q[head][d], shared_.k[lane_][d], score);
      const bool counts = lane_ < keys;
      common::RowState& state = state_[h];
      const float top = fmaxf(state.top, common::warp::max(counts ? score : common::kMinusInf));
      const float base = top == common::kMinusInf ? 0.0f : top;
      const float scale = params_.tiles.scale_log2;
      const float decay = ptx::ex2((state.top - base) * scale);
      const float weight = counts ? ptx::ex2((score - base) * scale) : 0.0f;
      state = {top, fmaf(state.sum, decay, weight)};  // of this lane's keys
      shared_.weights[head][lane_] = weight;
#pragma unroll
      for (int c = 0; c < kColumns; ++c) out_[h][c] *= decay;
    }
  }

  __device__ __forceinline__ void add_values(int keys) {
#pragma unroll
    for (int h = 0; h < kHeads; ++h) {
      const int head = warp_ + h * kWarps;
      if (head >= params_.tiles.group) break;
      for (int key = 0; key < keys; ++key) {
        const float weight = shared_.weights[head][key];
#pragma unroll
        for (int c = 0; c < kColumns; ++c) {
          if (lane_ + 32 * c < params_.head_dim)
            out_[h][c] = fmaf(weight, shared_.v[key][lane_ + 32 * c], out_[h][c]);
        }
      }
    }
  }

  __device__ __forceinline__ void store(const Pair& pair) {
    const RowsOut& to = params_.tiles.to;
#pragma unroll
    for (int h = 0; h < kHeads; ++h) {
      const int in_group = warp_ + h * kWarps;
      if (in_group >= params_.tiles.group) break;
      const std::int64_t head = std::int64_t{pair.head} * params_.tiles.group + in_group;
      const float sum = common::warp::sum(state_[h].sum);
      const float inverse = common::inverse_of(sum);
      for (int c = 0; c < kColumns; ++c) {
        const int column = lane_ + 32 * c;
        if (column >= params_.head_dim) break;
        const float value = out_[h][c] * inverse;
        if (to.f32 != 0) {
          common::row_of<float>(to.out, pair.row, head)[column] = value;
        } else {
          common::row_of<Item>(to.out, pair.row, head)[column] = Item(value);
        }
      }
      if (to.lse.data != nullptr && lane_ == 0)
        common::item_of(to.lse, pair.row, head) =
            common::lse_of(state_[h].top * params_.tiles.scale_log2 * common::kLn2, sum);
    }
  }

  const MendParams& params_;
  Shared& shared_;
  const int warp_;
  const int lane_;
  common::RowState state_[kHeads];
  float out_[kHeads][kColumns];
};

template <class Item, class KvItem>
__global__ void __launch_bounds__(kThreads) kernel(const __grid_constant__ MendParams params) {
  extern __shared__ __align__(16) std::uint8_t raw[];
  ptx::griddepcontrol_wait();
  const common::attend::Params& tiles = params.tiles;
  if (*tiles.suspects.any == 0) return;
  Mender<Item, KvItem> mender(params, *reinterpret_cast<Shared*>(raw));
  common::attend::SuspectFinder finder;
  while (true) {
    const std::int64_t number = finder.next(tiles.suspects, tiles.batch.total_q * tiles.heads_kv,
                                            static_cast<int>(threadIdx.x) % 32);
    if (number < 0) return;
    Pair pair{};
    pair.row = number / tiles.heads_kv;
    pair.head = static_cast<int>(number - pair.row * tiles.heads_kv);
    pair.request = owner_of(tiles.batch, tiles.requests, pair.row);
    if (pair.request < 0) continue;
    const RequestRecord& request = tiles.requests[pair.request];
    pair.visible = visible_keys(request, pair.row - request.q_begin, tiles.batch.causal != 0);
    mender.run(pair);
  }
}

template <class Item>
void launch_for(Storage kv, const MendParams& params, const LaunchConfig& config) {
  if (kv == Storage::E4m3) return launch_kernel(kernel<Item, std::uint8_t>, config, params);
  launch_kernel(kernel<Item, Item>, config, params);
}

}  // namespace

void launch_mend(Storage storage, Storage kv, const MendParams& params, int ctas,
                 cudaStream_t stream) {
  const LaunchConfig config{.grid = dim3(static_cast<unsigned>(ctas)),
                            .block = dim3(kThreads),
                            .shared_bytes = sizeof(Shared),
                            .programmatic = true,
                            .stream = stream};
  if (storage == Storage::F16) return launch_for<common::ItemOf<Storage::F16>>(kv, params, config);
  launch_for<common::ItemOf<Storage::Bf16>>(kv, params, config);
}

}  // namespace msa::cuda::mma::attend
