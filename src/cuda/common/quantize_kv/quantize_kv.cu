// SPDX-License-Identifier: MIT
// A warp stores one row of a head, four elements a lane; see launch.h and docs/numerics.md. In
// pages a CTA has 16 rows of a page, and leaves out those that a later row of the call stores to
// the same place: the last one stays, whatever runs first.
#include <algorithm>

#include "cuda/common/codes.cuh"
#include "cuda/common/new_keys.cuh"
#include "cuda/common/ptx/launch_control.cuh"
#include "cuda/common/quantize_kv/launch.h"
#include "cuda/common/rows.cuh"
#include "cuda/common/storage.cuh"
#include "cuda/common/warp.cuh"
#include "cuda/launch.h"

namespace msa::cuda::common::quantize_kv {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kCtasOfSm = 3;    // by itself ptxas takes 48 registers, and spills
constexpr int kRowsOfCta = 16;  // pages hold a multiple
constexpr int kItems = 4;       // of a lane
constexpr int kStep = 32 * kItems;
constexpr int kGroupLanes = kGroupItems / kItems;
constexpr std::int64_t kMostCtas = std::int64_t{1} << 20;

/// Where a row of a head goes.
struct Target {
  std::int64_t page;
  std::int64_t token;
  std::int64_t head;
  __device__ std::int64_t in(const Places& places) const {
    return page * places.stride_page + token * places.stride_token + head * places.stride_head;
  }
};

template <class Vector>
__device__ __forceinline__ bool is_aligned(const void* address) {
  return reinterpret_cast<std::uintptr_t>(address) % sizeof(Vector) == 0;
}

template <class Item>
using FourItems = std::conditional_t<sizeof(Item) == 4, uint4, uint2>;

/// Elements [d, d + 4) of a row; zeros behind its end.
template <class Item>
__device__ __forceinline__ void load_items(const Item* row, int d, int dim, Item (&items)[kItems]) {
  if (d + kItems <= dim && is_aligned<FourItems<Item>>(row + d)) {
    *reinterpret_cast<FourItems<Item>*>(items) = *reinterpret_cast<const FourItems<Item>*>(row + d);
    return;
  }
#pragma unroll
  for (int i = 0; i < kItems; ++i) items[i] = d + i < dim ? row[d + i] : Item(0.0f);
}

template <class Item>
__device__ __forceinline__ void load_numbers(const Item* row, int d, int dim, float (&x)[kItems]) {
  alignas(16) Item items[kItems];
  load_items(row, d, dim, items);
#pragma unroll
  for (int i = 0; i < kItems; ++i) x[i] = to_float(items[i]);
}

/// Bytes [0, count) of `bytes`.
template <class Word>
__device__ __forceinline__ void store_bytes(std::uint8_t* to, Word bytes, int count) {
  if (count == static_cast<int>(sizeof(Word)) && is_aligned<Word>(to)) {
    *reinterpret_cast<Word*>(to) = bytes;
    return;
  }
  for (int i = 0; i < count; ++i) to[i] = static_cast<std::uint8_t>(bytes >> (8 * i));
}

/// The very bits.
template <class Item>
__device__ __forceinline__ void copy_row(const Item* row, int dim, Item* to, int lane) {
  for (int d = lane * kItems; d < dim; d += kStep) {
    alignas(16) Item items[kItems];
    load_items(row, d, dim, items);
    if (d + kItems <= dim && is_aligned<FourItems<Item>>(to + d)) {
      *reinterpret_cast<FourItems<Item>*>(to + d) = *reinterpret_cast<FourItems<Item>*>(items);
      continue;
    }
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      if (d + i < dim) to[d + i] = items[i];
    }
  }
}

/// What makes the largest element of a row 448; 1 where none is above zero.
template <class Item>
__device__ __forceinline__ float scale_of_row(const Item* row, int dim, int lane) {
  float largest = 0.0f;
  for (int d = lane * kItems; d < dim; d += kStep) {
    float x[kItems];
    load_numbers(row, d, dim, x);
#pragma unroll
    for (float number : x) largest = fmaxf(largest, fabsf(number));  // NaN loses
  }
  const float scale = __fdiv_rn(warp::max(largest), 448.0f);
  return scale > 0.0f ? scale : 1.0f;
}

template <class Item>
__device__ __forceinline__ void store_e4m3(const Params& p, const Side& side, const Item* row,
                                           const Target& target, int lane) {
  auto* to = static_cast<std::uint8_t*>(side.cache.data) + target.in(side.cache);
  float scale = 1.0f;  // divides exactly
  if (p.scale == ScaleKind::Given) {
    scale = __ldg(side.given.data + target.page * side.given.stride_page +
                  target.head * side.given.stride_head);
  } else if (p.scale == ScaleKind::Token) {
    scale = scale_of_row(row, side.dim, lane);
    if (lane == 0) static_cast<float*>(side.written.data)[target.in(side.written)] = scale;
  }
  for (int d = lane * kItems; d < side.dim; d += kStep) {
    float x[kItems];
    load_numbers(row, d, side.dim, x);
#pragma unroll
    for (float& number : x) number = __fdiv_rn(number, scale);
    store_bytes(to + d, e4m3_codes(x), min(side.dim - d, kItems));
  }
}

/// The scale of a group, from the elements of its four lanes.
__device__ __forceinline__ std::uint8_t scale_of_group(const float (&x)[kItems], bool rounded) {
  float largest = 0.0f;
  int broken = 0;
#pragma unroll
  for (float number : x) {
    largest = fmaxf(largest, fabsf(number));
    broken |= isnan(number) ? 1 : 0;
  }
#pragma unroll
  for (int step = 1; step < kGroupLanes; step *= 2) {
    largest = fmaxf(largest, __shfl_xor_sync(kAllLanes, largest, step));
    broken |= __shfl_xor_sync(kAllLanes, broken, step);
  }
  if (broken != 0) return 0x7f;
  float wanted = __fdiv_rn(largest, 6.0f);
  if (rounded) wanted = fminf(fmaxf(wanted, 0x1p-9f), 448.0f);
  return e4m3_code(wanted);
}

template <class Item>
__device__ __forceinline__ void store_e2m1(const Params& p, const Side& side, const Item* row,
                                           const Target& target, int lane) {
  auto* to = static_cast<std::uint8_t*>(side.cache.data) + target.in(side.cache) / 2;
  auto* scales = static_cast<std::uint8_t*>(side.written.data) + target.in(side.written);
  const float all = side.all == nullptr ? 1.0f : __ldg(side.all);
  for (int first = 0; first < side.dim; first += kStep) {  // whole warps: groups join their lanes
    const int d = first + lane * kItems;
    float x[kItems];
    load_numbers(row, d, side.dim, x);
#pragma unroll
    for (float& number : x) number = __fdiv_rn(number, all);
    const std::uint8_t code = scale_of_group(x, p.rounded != 0);
    if (d >= side.dim) continue;
    if (lane % kGroupLanes == 0) scales[d / kGroupItems * side.written.stride_item] = code;
    const float scale = ptx::e4m3_to_float(code);
    std::uint32_t pairs = 0;
    if (scale > 0.0f) {  // zero and NaN leave nothing to say to the codes
#pragma unroll
      for (int i = 0; i < kItems; ++i) {
        std::uint32_t item = e2m1_code(__fdiv_rn(x[i], scale));
        if (p.rounded != 0 && item == 8) item = 0;
        pairs |= item << (4 * i);
      }
    }
    store_bytes(to + d / 2, static_cast<std::uint16_t>(pairs), kItems / 2);
  }
}

template <class Item>
__device__ __forceinline__ void store_row(const Params& p, const Side& side, std::int64_t token,
                                          const Target& target, int lane) {
  const Item* row = row_of<Item>(side.rows, token, target.head);
  if (p.storage == Storage::E2m1) {
    store_e2m1(p, side, row, target, lane);
  } else if (p.storage == Storage::E4m3) {
    store_e4m3(p, side, row, target, lane);
  } else {
    copy_row(row, side.dim, static_cast<Item*>(side.cache.data) + target.in(side.cache), lane);
  }
}

/// Row i to row i.
template <class Item>
__global__ void __launch_bounds__(kThreads, kCtasOfSm)
    rows_kernel(const __grid_constant__ Params p) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  const std::int64_t count = p.batch.total_q * p.heads * 2;
  for (std::int64_t i = std::int64_t{blockIdx.x} * kWarps + threadIdx.x / 32; i < count;
       i += std::int64_t{gridDim.x} * kWarps) {
    const std::int64_t row = i / 2 / p.heads;
    store_row<Item>(p, p.sides[i % 2], row, {0, row, i / 2 - row * p.heads}, lane);
  }
}

/// Rows [first, first + 16) of a page that a later row of the call stores to, as bits. Every thread
/// of the CTA calls it.
__device__ __forceinline__ unsigned stored_later(const Params& p, int request, int column, int page,
                                                 int first) {
  __shared__ unsigned covered;
  const int size = p.batch.page_size;
  __syncthreads();
  if (threadIdx.x == 0) covered = 0;
  __syncthreads();
  cta::for_each_later<kThreads>(
      p.batch, p.requests, request, column, page, [&](const RequestRecord& later, int at) {
        const std::int64_t page_begin = std::int64_t{at} * size + first;
        const auto begin = static_cast<int>(clamp64(later.offset - page_begin, 0, kRowsOfCta));
        const auto end = static_cast<int>(clamp64(later.seqlen_k - page_begin, 0, kRowsOfCta));
        if (begin < end) atomicOr(&covered, (1u << end) - (1u << begin));
      });
  __syncthreads();
  return covered;
}

/// The rows of request `b` that go to a page's rows [first, first + 16).
template <class Item>
__device__ __forceinline__ void append_rows(const Params& p, int b, int column, int page,
                                            int first) {
  const RequestRecord& r = p.requests[b];
  const std::int64_t position = std::int64_t{column} * p.batch.page_size + first;
  const auto begin = static_cast<int>(clamp64(r.offset - position, 0, kRowsOfCta));
  const auto end = static_cast<int>(clamp64(r.seqlen_k - position, 0, kRowsOfCta));
  if (begin >= end) return;
  const unsigned covered = stored_later(p, b, column, page, first);
  const int lane = static_cast<int>(threadIdx.x % 32);
  const std::int64_t pairs = std::int64_t{2} * p.heads;  // of a head and a side
  const std::int64_t count = (end - begin) * pairs;
  for (std::int64_t i = threadIdx.x / 32; i < count; i += kWarps) {
    const auto row = begin + static_cast<int>(i / pairs);
    if ((covered >> row & 1u) != 0) continue;
    const std::int64_t head = i % pairs / 2;
    store_row<Item>(p, p.sides[i % 2], r.q_begin + (position + row - r.offset),
                    {page, first + row, head}, lane);
  }
}

template <class Item>
__global__ void __launch_bounds__(kThreads, kCtasOfSm)
    append_kernel(const __grid_constant__ Params p) {
  ptx::griddepcontrol_wait();
  const BatchParams& batch = p.batch;
  for (int b = static_cast<int>(blockIdx.y); b < batch.batch; b += static_cast<int>(gridDim.y)) {
    const Columns columns = new_columns(p.requests[b], batch.page_size);
    for (std::int64_t c = columns.begin + std::int64_t{blockIdx.x}; c < columns.end;
         c += gridDim.x) {
      const auto column = static_cast<int>(c);
      const int page = load_page(batch, b, column);
      if (page < 0 || page >= batch.num_pages) {
        if (blockIdx.z == 0 && threadIdx.x == 0) report(batch.status, b, -1, FaultKind::PageId);
        continue;
      }
      for (std::int64_t first = std::int64_t{blockIdx.z} * kRowsOfCta; first < batch.page_size;
           first += std::int64_t{gridDim.z} * kRowsOfCta)
        append_rows<Item>(p, b, column, page, static_cast<int>(first));
    }
  }
}

template <class Item>
void launch_items(const Params& p, cudaStream_t stream) {
  const BatchParams& batch = p.batch;
  if (batch.page_size == 0) {
    const std::int64_t ctas = ceil_div(batch.total_q * p.heads * 2, kWarps);
    launch_kernel(rows_kernel<Item>,
                  {.grid = dim3(static_cast<unsigned>(std::min(ctas, kMostCtas))),
                   .block = dim3(kThreads),
                   .stream = stream},
                  p);
    return;
  }
  constexpr std::int64_t kMostColumns = 4096;
  const std::int64_t rows = std::min(batch.max_seqlen_q, batch.total_q);
  const std::int64_t columns = ceil_div(rows, batch.page_size) + 1;
  launch_kernel(
      append_kernel<Item>,
      {.grid = dim3(
           static_cast<unsigned>(std::min(columns, kMostColumns)),
           static_cast<unsigned>(std::min<std::int64_t>(batch.batch, kMaxGridYZ)),
           static_cast<unsigned>(std::min<std::int64_t>(batch.page_size / kRowsOfCta, kMaxGridYZ))),
       .block = dim3(kThreads),
       .programmatic = true,
       .stream = stream},
      p);
}

}  // namespace

void launch(Storage storage, const Params& params, cudaStream_t stream) {
  with_item(storage, [&]<class Item>() { launch_items<Item>(params, stream); });
}

}  // namespace msa::cuda::common::quantize_kv
