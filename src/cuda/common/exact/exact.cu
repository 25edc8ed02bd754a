// SPDX-License-Identifier: MIT
// One warp a query head. Scores: a lane takes a key. Weighted sum: a lane takes columns. No key
// that the row does not list and see is read, so nothing can leak from one. Bad ids are reported
// here too: no other kernel reads them.
#include "cuda/common/exact/launch.h"
#include "cuda/common/lists.cuh"
#include "cuda/common/ptx/launch_control.cuh"
#include "cuda/common/rows.cuh"
#include "cuda/common/storage.cuh"
#include "cuda/common/warp.cuh"
#include "cuda/geometry.cuh"
#include "cuda/launch.h"

namespace msa::cuda::common::exact {
namespace {

constexpr int kWarps = 8;

__device__ __forceinline__ void from_float(__nv_bfloat16& to, float x) {
  to = __float2bfloat16_rn(x);
}
__device__ __forceinline__ void from_float(__half& to, float x) { to = __float2half_rn(x); }

/// Where a local key lies; token -1: its page does not exist.
struct KeyPlace {
  std::int64_t page = 0;
  std::int64_t token = -1;
};

__device__ __forceinline__ KeyPlace place_of(const BatchParams& batch, const RequestRecord& request,
                                             int request_idx, int key) {
  if (batch.page_size == 0) return {0, request.k_begin + key};
  const int page = load_page(batch, request_idx, key / batch.page_size);
  if (page < 0 || page >= batch.num_pages) return {0, -1};
  return {page, key % batch.page_size};
}

__device__ __forceinline__ std::int64_t offset_of(const KeyView& view, const KeyPlace& place,
                                                  int head) {
  return place.page * view.stride_page + place.token * view.stride_token + head * view.stride_head;
}

/// One query head's row of the output, under way; a lane holds columns lane, lane + 32, ...
template <class Item, int kColumns>
class Row {
 public:
  __device__ Row(const Params& params, int request_idx, int head, const Item* q)
      : params_(params),
        request_(params.requests[request_idx]),
        request_idx_(request_idx),
        head_(head),
        q_(q) {}

  /// Everything that row `row` of q lists and sees.
  __device__ void attend(std::int64_t row) {
    const std::int64_t token = row - request_.q_begin;
    const int visible = visible_keys(request_, token, params_.batch.causal != 0);
    if (params_.lists.k == 0) return add_keys(0, visible);
    const int block_size = params_.batch.block_size;
    const ListReader reader(request_, block_size, ceil_div(visible, block_size));
    const int lane = static_cast<int>(threadIdx.x & 31);
    warp::for_each_listed(
        params_.lists, reader, row, head_, lane, [&](int, const ListedBlock& listed) {
          if (listed.fault) report(params_.batch.status, request_idx_, token, FaultKind::BlockId);
          unsigned left = __ballot_sync(kAllLanes, listed.block >= 0);
#pragma unroll 1
          for (; left != 0; left &= left - 1) {
            const int block =
                __shfl_sync(kAllLanes, listed.block, __ffs(static_cast<int>(left)) - 1);
            add_keys(block * block_size, min((block + 1) * block_size, visible));
          }
        });
  }

  __device__ float output(int column) const { return sum_ == 0.0f ? 0.0f : o_[column] / sum_; }
  __device__ float lse() const { return sum_ == 0.0f ? -INFINITY : max_ + logf(sum_); }

 private:
  __device__ void add_keys(int begin, int end) {
    for (int first = begin; first < end; first += 32) {
      const int key = first + static_cast<int>(threadIdx.x & 31);
      KeyPlace place;
      if (key < end) place = place_of(params_.batch, request_, request_idx_, key);
      const bool visible = place.token >= 0;
      if (key < end && !visible) {
        report(params_.batch.status, request_idx_, -1, FaultKind::PageId);
      }
      float score = -INFINITY;
      if (visible) {
        score = dot(static_cast<const Item*>(params_.k.data) + offset_of(params_.k, place, head_)) *
                params_.scale;
      }
      add_scores(score, place, visible);
    }
  }

  __device__ float dot(const Item* k) const {
    float s = 0.0f;
    for (int d = 0; d < kColumns * 32; ++d) s = fmaf(to_float(q_[d]), to_float(k[d]), s);
    return s;
  }

  /// A NaN score makes its weight, and with it the sum and every column, NaN.
  __device__ void add_scores(float score, const KeyPlace& place, bool visible) {
    const float raised = fmaxf(max_, warp::max(score));
    const float base = raised == -INFINITY ? 0.0f : raised;
    const float decay = exp2f((max_ - base) * kLog2e);
    const float weight = visible ? exp2f((score - base) * kLog2e) : 0.0f;
    max_ = raised;
    sum_ = sum_ * decay + warp::sum(weight);
    for (int c = 0; c < kColumns; ++c) o_[c] *= decay;
    for (unsigned left = __ballot_sync(kAllLanes, visible); left != 0; left &= left - 1) {
      const int from = __ffs(static_cast<int>(left)) - 1;
      const float w = __shfl_sync(kAllLanes, weight, from);
      const KeyPlace at{__shfl_sync(kAllLanes, place.page, from),
                        __shfl_sync(kAllLanes, place.token, from)};
      const Item* v = static_cast<const Item*>(params_.v.data) + offset_of(params_.v, at, head_);
      for (int c = 0; c < kColumns; ++c)
        o_[c] = fmaf(w, to_float(v[(threadIdx.x & 31) + 32 * c]), o_[c]);
    }
  }

  const Params& params_;
  const RequestRecord& request_;
  const int request_idx_;
  const int head_;  // KV head
  const Item* q_;   // [D]
  float max_ = -INFINITY;
  float sum_ = 0.0f;
  float o_[kColumns] = {};
};

template <class Item, int kColumns>
__device__ void store_row(const Params& params, std::int64_t row, int query_head,
                          const float (&o)[kColumns], float lse) {
  const int lane = threadIdx.x & 31;
  const Rows<void>& out = params.to.out;
  const std::int64_t at = row * out.stride_t + query_head * out.stride_h + lane;
  for (int c = 0; c < kColumns; ++c) {
    if (params.to.f32) {
      static_cast<float*>(out.data)[at + 32 * c] = o[c];
    } else {
      from_float(static_cast<Item*>(out.data)[at + 32 * c], o[c]);
    }
  }
  if (params.to.lse.data != nullptr && lane == 0) item_of(params.to.lse, row, query_head) = lse;
}

template <class Item, int kColumns>
__device__ void attend_row(const Params& params, std::int64_t row, int head, int query_head) {
  float o[kColumns] = {};
  const int request_idx = owner_of(params.batch, params.requests, row);
  if (request_idx < 0) return store_row<Item>(params, row, query_head, o, -INFINITY);  // padding
  const Item* q = row_of<Item>(params.q, row, query_head);
  Row<Item, kColumns> state(params, request_idx, head, q);
  state.attend(row);
  for (int c = 0; c < kColumns; ++c) o[c] = state.output(c);
  store_row<Item>(params, row, query_head, o, state.lse());
}

template <class Item, int kColumns>
__global__ void __launch_bounds__(kWarps * 32) kernel(const __grid_constant__ Params params) {
  ptx::griddepcontrol_wait();
  const std::int64_t pairs = params.batch.total_q * params.heads_kv;
  for (std::int64_t pair = blockIdx.x; pair < pairs; pair += gridDim.x) {
    const int head = static_cast<int>(pair % params.heads_kv);
    for (int g = static_cast<int>(threadIdx.x / 32); g < params.group; g += kWarps) {
      attend_row<Item, kColumns>(params, pair / params.heads_kv, head, head * params.group + g);
    }
  }
}

template <class Item>
void launch_items(const Params& params, const LaunchConfig& config) {
  if (params.head_dim == 128) {
    launch_kernel(kernel<Item, 4>, config, params);
  } else {
    launch_kernel(kernel<Item, 2>, config, params);
  }
}

}  // namespace

void launch(const Params& params, int ctas, cudaStream_t stream) {
  const LaunchConfig config{.grid = dim3(static_cast<unsigned>(ctas)),
                            .block = dim3(kWarps * 32),
                            .programmatic = true,
                            .stream = stream};
  if (params.storage == Storage::Bf16) {
    launch_items<ItemOf<Storage::Bf16>>(params, config);
  } else {
    launch_items<ItemOf<Storage::F16>>(params, config);
  }
}

}  // namespace msa::cuda::common::exact
