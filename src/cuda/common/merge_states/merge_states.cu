// SPDX-License-Identifier: MIT
// One warp a (query row, head): the lanes weigh the parts, a lane a part, then share the columns.
// See docs/kernels/merge.md.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <type_traits>

#include "cuda/common/join_by_lse.cuh"
#include "cuda/common/merge_states/launch.h"
#include "cuda/common/ptx/math.cuh"
#include "cuda/common/rows.cuh"
#include "cuda/common/warp.cuh"
#include "cuda/launch.h"
#include "msa/error.h"

namespace msa::cuda::common::merge_states {
namespace {

constexpr int kWarps = 8;
constexpr int kTurns = kMaxParts / 32;  // parts that one lane weighs
constexpr int kVector = 4;  // columns of a lane: a warp's step is 128, the usual head dim

static_assert(kMaxParts % 32 == 0, "every lane weighs as many parts");
static_assert(sizeof(Params) <= 4096, "parameters of a kernel on every driver");

/// What one lane loads of a part at once.
template <class T, int kCount>
struct alignas(sizeof(T) * kCount) Columns {
  T x[kCount];
};

__device__ __forceinline__ void store(float* to, const double (&x)[1]) {
  *to = static_cast<float>(x[0]);
}
__device__ __forceinline__ void store(__half* to, const float (&x)[1]) {
  *to = __float2half_rn(x[0]);
}
__device__ __forceinline__ void store(__nv_bfloat16* to, const float (&x)[1]) {
  *to = __float2bfloat16_rn(x[0]);
}
// Vectors by intrinsic: the compiler takes plain ones apart here.
__device__ __forceinline__ void store(float* to, const double (&x)[kVector]) {
  __stwb(reinterpret_cast<float4*>(to),
         make_float4(static_cast<float>(x[0]), static_cast<float>(x[1]), static_cast<float>(x[2]),
                     static_cast<float>(x[3])));
}
template <class T>
__device__ __forceinline__ void store(T* to, const float (&x)[kVector]) {
  __stwb(reinterpret_cast<uint2*>(to),
         make_uint2(ptx::cvt_pack<T>(x[0], x[1]), ptx::cvt_pack<T>(x[2], x[3])));
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

/// Weighted sum of this lane's columns over the parts, in their order. All lanes call it; those
/// without columns read nothing.
template <class In, class Sum, int kCount>
__device__ __forceinline__ void add_parts(const Params& p, const Weights<Sum>& w,
                                          std::int64_t token, std::int64_t head,
                                          std::int64_t column, bool inside, Sum (&sums)[kCount]) {
#pragma unroll
  for (int turn = 0; turn < kTurns; ++turn) {
    const int count = min(p.num_parts - turn * 32, 32);
#pragma unroll 4
    for (int n = 0; n < count; ++n) {
      const Sum weight = __shfl_sync(kAllLanes, w.of[turn], n);
      const Part& part = p.parts[turn * 32 + n];
      Columns<In, kCount> values{};
      if (inside && (w.live[turn] >> n & 1) != 0) {
        values = *reinterpret_cast<const Columns<In, kCount>*>(row_of<In>(part.out, token, head) +
                                                               column);
      }
#pragma unroll
      for (int c = 0; c < kCount; ++c) sums[c] += weight * static_cast<Sum>(to_float(values.x[c]));
    }
  }
}

/// Sums are fp64 where the result is f32: 64 parts in fp32 drift by several ulp of it, and memory
/// is the bound anyway. Columns are read whole before they are written: the output may be a part.
template <class In, class Out, int kCount>
__global__ void __launch_bounds__(kWarps * 32) kernel(const __grid_constant__ Params p) {
  using Sum = std::conditional_t<std::is_same_v<Out, float>, double, float>;
  const int lane = static_cast<int>(threadIdx.x % 32);
  const std::int64_t row = std::int64_t{blockIdx.x} * kWarps + threadIdx.x / 32;
  if (row >= p.rows) return;
  const std::int64_t token = static_cast<int>(row) / p.heads;
  const std::int64_t head = row - token * p.heads;
  const Weights<Sum> w = weigh<Sum>(p, token, head, lane);
  Out* const out = row_of<Out>(p.out, token, head);
  for (std::int64_t first = 0; first < p.dim; first += 32 * kCount) {
    const std::int64_t column = first + lane * kCount;
    const bool inside = column < p.dim;
    Sum sums[kCount] = {};
    add_parts<In>(p, w, token, head, column, inside, sums);
    if (inside) store(out + column, sums);
  }
  if (p.lse.data != nullptr && lane == 0) item_of(p.lse, token, head) = w.lse;
}

/// Whether every vector of a tensor starts on a multiple of its own size.
template <class T, class Data>
bool takes_vectors(const Rows<Data>& rows) {
  return reinterpret_cast<std::uintptr_t>(rows.data) % (kVector * sizeof(T)) == 0 &&
         rows.stride_t % kVector == 0 && rows.stride_h % kVector == 0;
}

template <class In, class Out>
void launch_items(const Params& p, cudaStream_t stream) {
  bool vectors = p.dim % kVector == 0 && takes_vectors<Out>(p.out);
  for (int n = 0; n < p.num_parts; ++n) {
    vectors = vectors && takes_vectors<In>(p.parts[n].out);
  }
  const LaunchConfig config{.grid = dim3(static_cast<unsigned>((p.rows + kWarps - 1) / kWarps)),
                            .block = dim3(kWarps * 32),
                            .stream = stream};
  if (vectors) {
    launch_kernel(kernel<In, Out, kVector>, config, p);
  } else {
    launch_kernel(kernel<In, Out, 1>, config, p);
  }
}

}  // namespace

void launch(const Params& p, cudaStream_t stream) {
  const bool wide = p.out_storage == Storage::F32;
  switch (p.storage) {
    case Storage::F32:
      return launch_items<float, float>(p, stream);
    case Storage::F16:
      return wide ? launch_items<__half, float>(p, stream)
                  : launch_items<__half, __half>(p, stream);
    case Storage::Bf16:
      return wide ? launch_items<__nv_bfloat16, float>(p, stream)
                  : launch_items<__nv_bfloat16, __nv_bfloat16>(p, stream);
    case Storage::E4m3:
      throw Error(ErrorCode::Internal, "", "cuda merge: planned for parts of e4m3");
  }
}

}  // namespace msa::cuda::common::merge_states
