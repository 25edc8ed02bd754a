// SPDX-License-Identifier: MIT
// One row of a merge, by a warp: the lanes weigh the parts, a lane a part, then share the columns.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "cuda/common/join_by_lse.cuh"
#include "cuda/common/merge_states/launch.h"
#include "cuda/common/ptx/math.cuh"
#include "cuda/common/rows.cuh"
#include "cuda/common/warp.cuh"

namespace msa::cuda::common::merge_states {

inline constexpr int kWarps = 8;
inline constexpr int kTurns = kMaxParts / 32;  // parts that one lane weighs
inline constexpr int kVector = 4;  // columns of a lane: a warp's step is 128, the usual head dim

static_assert(kMaxParts % 32 == 0, "every lane weighs as many parts");
static_assert(sizeof(Params) <= 4096, "parameters of a kernel on every driver");

/// What one lane loads of a part at once.
template <class T, int kCount>
struct alignas(sizeof(T) * kCount) Columns {
  T x[kCount];
};

__device__ __forceinline__ void store(float* to, const float (&x)[1]) { *to = x[0]; }
__device__ __forceinline__ void store(__half* to, const float (&x)[1]) {
  *to = __float2half_rn(x[0]);
}
__device__ __forceinline__ void store(__nv_bfloat16* to, const float (&x)[1]) {
  *to = __float2bfloat16_rn(x[0]);
}
// Vectors by intrinsic: the compiler takes plain ones apart here.
__device__ __forceinline__ void store(float* to, const float (&x)[kVector]) {
  __stwb(reinterpret_cast<float4*>(to), make_float4(x[0], x[1], x[2], x[3]));
}
template <class T>
__device__ __forceinline__ void store(T* to, const float (&x)[kVector]) {
  __stwb(reinterpret_cast<uint2*>(to),
         make_uint2(ptx::cvt_pack<T>(x[0], x[1]), ptx::cvt_pack<T>(x[2], x[3])));
}
/// Sums in fp64 are rounded to f32 first, whatever the result is.
template <class T, int kCount>
__device__ __forceinline__ void store(T* to, const double (&x)[kCount]) {
  float rounded[kCount];
#pragma unroll
  for (int c = 0; c < kCount; ++c) rounded[c] = static_cast<float>(x[c]);
  store(to, rounded);
}

/// How much each part counts; lane l knows parts l, 32 + l, ... Weights are NaN in a broken row, in
/// which no part is live.
template <class Sum>
struct Weights {
  Sum of[kTurns];
  unsigned live[kTurns];  // bit n: part 32 * turn + n is read; the same in all lanes
  float lse;
};

template <class Sum>
__device__ __forceinline__ Weights<Sum> weigh(const Params& p, std::int64_t token,
                                              std::int64_t head, int lane) {
  Weights<Sum> w;
  float lses[kTurns];
  float top = -INFINITY;
  bool broken = false;
#pragma unroll
  for (int turn = 0; turn < kTurns; ++turn) {
    const int n = turn * 32 + lane;
    lses[turn] = -INFINITY;
    if (n < p.num_parts) {
      lses[turn] = item_of(p.parts[n].lse, token, head);
    }
    broken = broken || !(lses[turn] < INFINITY);
    top = fmaxf(top, lses[turn]);
  }
  broken = warp::any(broken);
  top = warp::max(top);
  Sum sum = 0;
#pragma unroll
  for (int turn = 0; turn < kTurns; ++turn) {
    const bool live = !broken && lses[turn] > -INFINITY;
    w.live[turn] = __ballot_sync(kAllLanes, live);
    w.of[turn] = live ? static_cast<Sum>(share_weight(lses[turn], top, kLog2e)) : Sum{0};
    sum += w.of[turn];
  }
  sum = warp::sum(sum);
  // The part on top has weight 1, so a sum of 0 has no live part.
  const Sum scale = broken ? static_cast<Sum>(NAN) : (sum == Sum{0} ? Sum{0} : Sum{1} / sum);
#pragma unroll
  for (int turn = 0; turn < kTurns; ++turn) w.of[turn] *= scale;
  w.lse = broken ? NAN : lse_of(top, static_cast<float>(sum));
  return w;
}

template <class In, int kCount>
__device__ __forceinline__ Columns<In, kCount> load_columns(const Params& p, int part,
                                                            std::int64_t token, std::int64_t head,
                                                            std::int64_t column) {
  return *reinterpret_cast<const Columns<In, kCount>*>(row_of<In>(p.parts[part].out, token, head) +
                                                       column);
}

/// Weighted sum of this lane's columns over the parts from `from` on, in their order. All lanes
/// call it; those without columns read nothing.
template <class In, class Sum, int kCount>
__device__ __forceinline__ void add_parts(const Params& p, const Weights<Sum>& w,
                                          std::int64_t token, std::int64_t head,
                                          std::int64_t column, bool inside, Sum (&sums)[kCount],
                                          int from = 0) {
#pragma unroll
  for (int turn = 0; turn < kTurns; ++turn) {
    const int count = min(p.num_parts - turn * 32, 32);
#pragma unroll 4
    for (int n = turn == 0 ? from : 0; n < count; ++n) {
      const Sum weight = __shfl_sync(kAllLanes, w.of[turn], n);
      Columns<In, kCount> values{};
      if (inside && (w.live[turn] >> n & 1) != 0)
        values = load_columns<In, kCount>(p, turn * 32 + n, token, head, column);
#pragma unroll
      for (int c = 0; c < kCount; ++c) sums[c] += weight * static_cast<Sum>(to_float(values.x[c]));
    }
  }
}

/// Whether every vector of a tensor starts on a multiple of its own size.
template <class T, class Data>
bool takes_vectors(const Rows<Data>& rows) {
  return reinterpret_cast<std::uintptr_t>(rows.data) % (kVector * sizeof(T)) == 0 &&
         rows.stride_t % kVector == 0 && rows.stride_h % kVector == 0;
}

}  // namespace msa::cuda::common::merge_states
