// SPDX-License-Identifier: MIT
// A CTA makes a page of a head, or a group of 16 ragged rows: its largest element, then codes and
// sums, half a warp a key. See launch.h; docs/numerics.md says which sum each element is added to.
#include <algorithm>

#include "cuda/common/new_keys.cuh"
#include "cuda/common/ptx/launch_control.cuh"
#include "cuda/common/quantize_index/launch.h"
#include "cuda/common/rotate.cuh"
#include "cuda/common/storage.cuh"
#include "cuda/launch.h"

namespace msa::cuda::common::quantize_index {
namespace {

constexpr int kThreads = 256;
// By itself ptxas takes 64 registers, and spills; rotated keys are held whole.
template <bool kRotated>
constexpr int kCtasOfSm = kRotated ? 2 : 3;
constexpr int kLanes = 16;  // of a key: as many sums
constexpr int kKeysAtOnce = kThreads / kLanes;
constexpr int kRotatedItems = 256 / kLanes;  // of a lane
constexpr std::int64_t kMostCtas = 1024;     // of all requests and heads, where they are few
constexpr unsigned kInfBits = 0x7f800000u;

/// What is made at once.
struct Page {
  std::int64_t id;         // page of the cache, or group of the pool
  std::int64_t first_row;  // of the pool; of pages, in the page
  int rows;
  unsigned members;  // ragged: the rows that are keys
  bool paged;

  __device__ bool holds(int i) const { return paged || (members >> i & 1u) != 0; }
  template <class Strides>
  __device__ std::int64_t row(const Strides& t, int i, int head) const {
    return (paged ? id * t.stride_page : 0) + (first_row + i) * t.stride_token +
           head * t.stride_head;
  }
};

/// What the threads of a CTA find out together. Numbers that are not negative are ordered as their
/// bits are.
struct Found {
  unsigned largest;           // f32
  int odd;                    // some element is not finite
  unsigned long long error;   // f64: the largest of a key, squared
  unsigned long long length;  // of codes, squared
  int rows;                   // of the page
  int covered;                // of them, those that a later column makes
  unsigned members;
};

__device__ __forceinline__ void clear(Found& found) {
  __syncthreads();
  if (threadIdx.x == 0) found = {};
  __syncthreads();
}

template <class Item>
__device__ __forceinline__ const Item* key_of(const Params& p, const Page& page, int i, int head) {
  return static_cast<const Item*>(p.keys.data) + page.row(p.keys, i, head);
}

/// The element, or 0 where it is not finite.
__device__ __forceinline__ float finite(float x, bool& odd) {
  if (fabsf(x) < __uint_as_float(kInfBits)) return x;
  odd = true;
  return 0.0f;
}

/// Of a rotated key, what is coded: item i of a lane is element kLanes i + lane. What is not finite
/// counts as 0, before and behind the rotation. Half a warp calls it.
template <class Item>
__device__ __forceinline__ void read_rotated(float (&x)[kRotatedItems], const Item* key, int dim,
                                             int lane, bool& odd) {
#pragma unroll
  for (int i = 0; i < kRotatedItems; ++i)
    x[i] = i * kLanes + lane < dim ? finite(to_float(key[i * kLanes + lane]), odd) : 0.0f;
  const unsigned lanes = 0xffffu << (threadIdx.x & kLanes);
#pragma unroll 1
  for (int half = 1; half < kLanes && half < dim; half *= 2) rotate_lanes(x, half, lanes);
  if (dim > kLanes) rotate_held<1>(x);
  if (dim > 2 * kLanes) rotate_held<2>(x);
  if (dim > 4 * kLanes) rotate_held<4>(x);
  if (dim > 8 * kLanes) rotate_held<8>(x);
#pragma unroll
  for (int i = 0; i < kRotatedItems; ++i) x[i] = finite(x[i], odd);
}

template <class Item, bool kRotated>
__device__ __forceinline__ void find_largest(const Params& p, const Page& page, int head,
                                             Found& found) {
  unsigned largest = 0;
  bool odd = false;
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  for (int i = static_cast<int>(threadIdx.x) / kLanes; i < page.rows; i += kKeysAtOnce) {
    if (!page.holds(i)) continue;
    const Item* key = key_of<Item>(p, page, i, head);
    if constexpr (kRotated) {
      float x[kRotatedItems];
      read_rotated(x, key, p.dim, lane, odd);
#pragma unroll
      for (int n = 0; n < kRotatedItems; ++n) largest = max(largest, __float_as_uint(fabsf(x[n])));
    } else {
#pragma unroll 8
      for (int d = lane; d < p.dim; d += kLanes)
        largest = max(largest, __float_as_uint(fabsf(finite(to_float(key[d]), odd))));
    }
  }
  largest = __reduce_max_sync(kAllLanes, largest);
  odd = warp::any(odd);
  if (threadIdx.x % 32 != 0) return;
  atomicMax(&found.largest, largest);
  if (odd) atomicOr(&found.odd, 1);
}

/// What the codes of a key are off, squared, of one lane; and their length. Differences and their
/// squares are exact in fp64.
struct Sums {
  double off = 0.0;
  long long length = 0;
};

template <bool kRotated, class Item>
__device__ __forceinline__ Sums code_key(const Item* key, std::int8_t* to, int dim, float scale,
                                         int lane) {
  Sums sums;
  bool odd = false;
  const float divisor = scale > 0.0f ? scale : __uint_as_float(kInfBits);
  const auto code = [&](int d, float x) {
    // Where the scale is subnormal, numbers may pass 127, by less than a half.
    const int number = min(max(__float2int_rn(__fdiv_rn(x, divisor)), -127), 127);
    if (to != nullptr) to[d] = static_cast<std::int8_t>(number);
    const double off =
        __dsub_rn(static_cast<double>(x), __dmul_rn(number, static_cast<double>(scale)));
    sums.off = __dadd_rn(sums.off, __dmul_rn(off, off));
    sums.length += number * number;
  };
  if constexpr (kRotated) {
    float x[kRotatedItems];
    read_rotated(x, key, dim, lane, odd);
#pragma unroll
    for (int i = 0; i < kRotatedItems; ++i) {
      if (i * kLanes + lane < dim) code(i * kLanes + lane, x[i]);
    }
  } else {
#pragma unroll 8
    for (int d = lane; d < dim; d += kLanes) code(d, finite(to_float(key[d]), odd));
  }
  return sums;
}

/// Codes of the rows from `covered` on, and the sums of all.
template <class Item, bool kRotated>
__device__ __forceinline__ void write_codes(const Params& p, const Page& page, int head,
                                            int covered, Found& found) {
  const float scale = __fdiv_rn(__uint_as_float(found.largest), 127.0f);
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  double error = 0.0;
  long long length = 0;
  // Whole warps: the halves join their lanes.
  for (int first = 0; first < page.rows; first += kKeysAtOnce) {
    const int i = first + static_cast<int>(threadIdx.x) / kLanes;
    Sums sums;
    if (i < page.rows && page.holds(i)) {
      std::int8_t* to = p.codes.data + page.row(p.codes, i, head);
      sums = code_key<kRotated>(key_of<Item>(p, page, i, head), i < covered ? nullptr : to, p.dim,
                                scale, lane);
    }
    double sum = 0.0;
#pragma unroll
    for (int j = 0; j < kLanes; ++j)
      sum = __dadd_rn(sum, __shfl_sync(kAllLanes, sums.off, j, kLanes));
#pragma unroll
    for (int step = kLanes / 2; step > 0; step /= 2)
      sums.length += __shfl_xor_sync(kAllLanes, sums.length, step);
    error = max(error, sum);
    length = max(length, sums.length);
  }
  if (lane != 0) return;
  atomicMax(&found.error, static_cast<unsigned long long>(__double_as_longlong(error)));
  atomicMax(&found.length, static_cast<unsigned long long>(length));
}

/// At least x, which is not negative.
__device__ __forceinline__ float upwards(double x) {
  const float nearest = __double2float_rn(x);
  return static_cast<double>(nearest) < x ? __uint_as_float(__float_as_uint(nearest) + 1) : nearest;
}

__device__ __forceinline__ void write_bounds(const Params& p, const Page& page, int head,
                                             const Found& found) {
  const float scale = __fdiv_rn(__uint_as_float(found.largest), 127.0f);
  const double error = __longlong_as_double(static_cast<long long>(found.error));
  // More than what rounding may have taken from the sums and their roots.
  const double pad = __dadd_rn(1.0, __dmul_rn(static_cast<double>(p.dim + 64), 0x1p-52));
  const double root = __dsqrt_rn(__ull2double_rn(found.length));
  const double norm = __dmul_rn(__dmul_rn(static_cast<double>(scale), root), pad);
  double off = __dmul_rn(__dsqrt_rn(error), pad);
  if (p.bounds.rotated != 0)  // more than what rotating was off
    off = __dadd_rn(off, __dmul_rn(0x1p-20, __dadd_rn(off, norm)));
  float* bounds = p.bounds.data + page.id * p.bounds.stride_group + head * p.bounds.stride_head;
  bounds[0] = scale;
  bounds[p.bounds.stride_item] = found.odd != 0 ? __uint_as_float(kInfBits) : upwards(off);
  bounds[2 * p.bounds.stride_item] = upwards(norm);
}

template <class Item, bool kRotated>
__device__ __forceinline__ void make_page(const Params& p, const Page& page, int head, int covered,
                                          Found& found) {
  find_largest<Item, kRotated>(p, page, head, found);
  __syncthreads();
  write_codes<Item, kRotated>(p, page, head, covered, found);
  __syncthreads();
  if (covered == 0 && threadIdx.x == 0) write_bounds(p, page, head, found);
}

/// Keys that a request has in the page of a column.
__device__ __forceinline__ int keys_in(const RequestRecord& r, int column, int page_size) {
  return static_cast<int>(clamp64(r.seqlen_k - std::int64_t{column} * page_size, 0, page_size));
}

/// As many as request b has there, where its page is this one.
__device__ __forceinline__ int keys_of(const Params& p, int b, int column, int page) {
  const int keys = keys_in(p.requests[b], column, p.batch.page_size);
  return keys > 0 && column < p.batch.page_columns && load_page(p.batch, b, column) == page ? keys
                                                                                            : 0;
}

/// Rows of the page: of the longest request that has it at this column; and those that a later
/// column makes, at another column with the keys of its longest.
__device__ __forceinline__ void count_rows(const Params& p, int request, int column, int page,
                                           Found& found) {
  const auto start = static_cast<int>(threadIdx.x);
  for (int b = start; b < p.batch.batch; b += kThreads) {
    const int keys = keys_of(p, b, column, page);
    if (keys > 0) atomicMax(&found.rows, keys);
  }
  cta::for_each_later<kThreads>(
      p.batch, p.requests, request, column, page, [&](const RequestRecord&, int at) {
        int keys = p.batch.page_size;  // all of them, where the column is the same
        if (at != column) {
          keys = 0;
          for (int b = 0; b < p.batch.batch; ++b) keys = max(keys, keys_of(p, b, at, page));
        }
        atomicMax(&found.covered, keys);
      });
  __syncthreads();
}

/// The rows of a group that are keys of any request.
__device__ __forceinline__ void find_members(const Params& p, std::int64_t first_row,
                                             Found& found) {
  for (int b = static_cast<int>(threadIdx.x); b < p.batch.batch; b += kThreads) {
    const RequestRecord& r = p.requests[b];
    const auto begin = static_cast<int>(clamp64(r.k_begin - first_row, 0, kGroupRows));
    const auto end = static_cast<int>(clamp64(r.k_begin + r.seqlen_k - first_row, 0, kGroupRows));
    if (begin < end) atomicOr(&found.members, (1u << end) - (1u << begin));
  }
  __syncthreads();
}

template <class Item, bool kRotated>
__device__ __forceinline__ void make_paged(const Params& p, int b, int column, Found& found) {
  const int id = load_page(p.batch, b, column);
  if (id < 0 || id >= p.batch.num_pages) {
    if (blockIdx.z == 0 && threadIdx.x == 0) report(p.batch.status, b, -1, FaultKind::PageId);
    return;
  }
  for (int head = static_cast<int>(blockIdx.z); head < p.heads;
       head += static_cast<int>(gridDim.z)) {
    clear(found);
    count_rows(p, b, column, id, found);
    const Page page{.id = id, .first_row = 0, .rows = found.rows, .members = 0, .paged = true};
    if (found.covered < page.rows) make_page<Item, kRotated>(p, page, head, found.covered, found);
  }
}

template <class Item, bool kRotated>
__device__ __forceinline__ void make_group(const Params& p, std::int64_t group, Found& found) {
  for (int head = static_cast<int>(blockIdx.z); head < p.heads;
       head += static_cast<int>(gridDim.z)) {
    clear(found);
    find_members(p, group * kGroupRows, found);
    const Page page{.id = group,
                    .first_row = group * kGroupRows,
                    .rows = kGroupRows,
                    .members = found.members,
                    .paged = false};
    make_page<Item, kRotated>(p, page, head, 0, found);
  }
}

template <class Item, bool kRotated>
__global__ void __launch_bounds__(kThreads, kCtasOfSm<kRotated>)
    kernel(const __grid_constant__ Params p) {
  __shared__ Found found;
  ptx::griddepcontrol_wait();
  for (int b = static_cast<int>(blockIdx.y); b < p.batch.batch; b += static_cast<int>(gridDim.y)) {
    const RequestRecord& r = p.requests[b];
    if (r.offset >= r.seqlen_k) continue;
    const int size = p.batch.page_size == 0 ? kGroupRows : p.batch.page_size;
    const std::int64_t end = ceil_div(r.k_begin + r.seqlen_k, size);
    for (std::int64_t at = (r.k_begin + r.offset) / size + blockIdx.x; at < end; at += gridDim.x) {
      if (p.batch.page_size == 0) {
        make_group<Item, kRotated>(p, at, found);
      } else {
        make_paged<Item, kRotated>(p, b, static_cast<int>(at), found);
      }
    }
  }
}

template <class Item>
void launch_items(const Params& p, cudaStream_t stream) {
  const BatchParams& batch = p.batch;
  const std::int64_t size = batch.page_size == 0 ? kGroupRows : batch.page_size;
  const std::int64_t y = std::min<std::int64_t>(batch.batch, kMaxGridYZ);
  const std::int64_t z = std::min<std::int64_t>(p.heads, kMaxGridYZ);
  const std::int64_t most = std::max<std::int64_t>(1, kMostCtas / std::max<std::int64_t>(1, y * z));
  const std::int64_t columns = ceil_div(batch.max_seqlen_k, size) + 1;
  launch_kernel(p.bounds.rotated != 0 ? kernel<Item, true> : kernel<Item, false>,
                {.grid = dim3(static_cast<unsigned>(std::min(most, columns)),
                              static_cast<unsigned>(y), static_cast<unsigned>(z)),
                 .block = dim3(kThreads),
                 .programmatic = true,
                 .stream = stream},
                p);
}

}  // namespace

void launch(Storage storage, const Params& params, cudaStream_t stream) {
  with_item(storage, [&]<class Item>() { launch_items<Item>(params, stream); });
}

}  // namespace msa::cuda::common::quantize_index
