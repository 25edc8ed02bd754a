// SPDX-License-Identifier: MIT
// A warp a (row, index head), a lane a share of it. Who attends to nothing, or has scores of minus
// infinity alone, has a logarithm of minus infinity and a loss of 0.
#include "cuda/common/backward/launch.h"
#include "cuda/common/backward/places.cuh"
#include "cuda/common/join_by_lse.cuh"
#include "cuda/common/rows.cuh"
#include "cuda/launch.h"

namespace msa::cuda::common::backward {
namespace {

constexpr int kLossWarps = 8;

/// What the warp of a (row, head) is for.
struct LossRow {
  std::int64_t row;
  std::int64_t first_slot;
  int head;
  int request;  // -1: none
  int lane;
};

__device__ __forceinline__ bool find_row(const Pairs& p, LossRow& own) {
  const auto heads = static_cast<unsigned>(p.heads_kv);
  const unsigned pair = blockIdx.x * kLossWarps + threadIdx.x / 32;  // below 2^31
  if (pair / heads >= p.row_end - p.row_begin) return false;
  own.row = p.row_begin + pair / heads;
  own.head = static_cast<int>(pair % heads);
  own.first_slot = std::int64_t{pair} * p.places;
  own.request = owner_of(p.batch, p.requests, own.row);
  own.lane = static_cast<int>(threadIdx.x % 32);
  return true;
}

/// Each slot of the row is one lane's.
template <class Visit>
__device__ __forceinline__ void for_each_slot(const Pairs& p, const LossRow& own,
                                              const Visit& visit) {
  if (own.request < 0) return;
  for_each_own_place(p, p.requests[own.request], own.row, own.head, own.lane,
                     [&](int place) { visit(own.first_slot + place); });
}

__global__ void __launch_bounds__(kLossWarps * 32)
    students_kernel(const __grid_constant__ LossParams params) {
  const Pairs& p = params.pairs;
  LossRow own;
  if (!find_row(p, own)) return;
  RowState whole;
  for_each_slot(p, own, [&](std::int64_t slot) {
    whole.top = fmaxf(whole.top, params.student_shares[slot].top);
  });
  whole.top = warp::max(whole.top);
  for_each_slot(p, own, [&](std::int64_t slot) {
    const StudentShare share = params.student_shares[slot];
    whole.sum += share_weight(share.top, whole.top, 1.0f) * share.sum;
  });
  whole.sum = warp::sum(whole.sum);
  if (own.lane != 0) return;
  params.student_lse[own.row * p.heads_kv + own.head] =
      whole.sum == 0.0f ? kMinusInf : whole.top + log2f(whole.sum);
}

__global__ void __launch_bounds__(kLossWarps * 32)
    losses_kernel(const __grid_constant__ LossParams params) {
  const Pairs& p = params.pairs;
  LossRow own;
  if (!find_row(p, own)) return;
  float sum = 0.0f;
  if (params.student_lse[own.row * p.heads_kv + own.head] != kMinusInf)
    for_each_slot(p, own, [&](std::int64_t slot) { sum += params.loss_shares[slot]; });
  sum = warp::sum(sum);
  if (own.lane == 0) item_of(params.loss, own.row, own.head) = sum;
}

LaunchConfig config_of(const Pairs& p, cudaStream_t stream) {
  const std::int64_t rows = (p.row_end - p.row_begin) * p.heads_kv;
  return {.grid = dim3(static_cast<unsigned>(ceil_div(rows, kLossWarps))),
          .block = dim3(kLossWarps * 32),
          .stream = stream};
}

}  // namespace

void launch_students(const LossParams& params, cudaStream_t stream) {
  launch_kernel(students_kernel, config_of(params.pairs, stream), params);
}

void launch_losses(const LossParams& params, cudaStream_t stream) {
  launch_kernel(losses_kernel, config_of(params.pairs, stream), params);
}

}  // namespace msa::cuda::common::backward
