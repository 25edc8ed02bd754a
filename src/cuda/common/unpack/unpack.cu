// SPDX-License-Identifier: MIT
// Keys and values in four or eight bits become items; see launch.h. Pages are numbered by request,
// so that a page which several requests share is there for each. A page whose number is out of
// range keeps a number out of range. Behind a request's last key its last page holds zeros.
#include <algorithm>

#include "cuda/common/four_bits.cuh"
#include "cuda/common/ptx/launch_control.cuh"
#include "cuda/common/ptx/math.cuh"
#include "cuda/common/scales.cuh"
#include "cuda/common/storage.cuh"
#include "cuda/common/unpack/launch.h"
#include "cuda/geometry.cuh"
#include "cuda/launch.h"

namespace msa::cuda::common::unpack {
namespace {

constexpr int kThreads = 256;
constexpr int kWordItems = 8;  // a thread's
constexpr int kWords = kRowItems / kWordItems;
constexpr unsigned kMostCtas = 4096;  // along the units of a request
constexpr int kBadPage = -1;

/// Keys of a CTA at a time, of one page: pages hold 16, 32 or a multiple of 64. With more of them a
/// request of 32K has too few warps to wait for memory.
__host__ __device__ constexpr int unit_of(int page) { return page % 32 == 0 ? 32 : page; }

/// The words of `tokens` keys from `first` on, which are pages of codes `from` and of items `to`.
template <Storage kFrom, class Item>
__device__ __forceinline__ void unpack_keys(const Params& p, int of, const Magnitudes* table,
                                            std::int64_t from_page, std::int64_t from_token,
                                            std::int64_t to_page, int to_token, int tokens,
                                            int visible) {
  const KeyRows<const std::uint8_t>& codes = p.codes[of];
  const GroupScales& groups = p.groups[of];
  auto* items = static_cast<Item*>(p.items[of]);
  const int words = tokens * p.heads_kv * kWords;
#pragma unroll 4
  for (int i = static_cast<int>(threadIdx.x); i < words; i += kThreads) {
    const int word = i % kWords;
    const int pair = i / kWords;  // of keys x heads
    const int token = pair / p.heads_kv;
    const int head = pair - token * p.heads_kv;
    std::uint32_t pairs[4] = {0, 0, 0, 0};
    if (token < visible) {
      const std::int64_t at = from_token + token;
      const std::uint8_t* row = codes.data + from_page * codes.stride_page +
                                at * codes.stride_token + head * codes.stride_head;
      if constexpr (kFrom == Storage::E2m1) {
        const std::uint8_t scale =
            groups.data[from_page * groups.stride_page + at * groups.stride_token +
                        head * groups.stride_head + word / 2];
        const Magnitudes magnitudes = table[scale];
        widen_e2m1x8(pairs, __ldg(reinterpret_cast<const std::uint32_t*>(row) + word), magnitudes,
                     magnitudes);
      } else {
        const uint2 eight = __ldg(reinterpret_cast<const uint2*>(row) + word);
        ptx::widen_e4m3x4<Item>(eight.x, pairs[0], pairs[1]);
        ptx::widen_e4m3x4<Item>(eight.y, pairs[2], pairs[3]);
      }
    }
    const std::int64_t row = (to_page * p.heads_kv + head) * p.page + to_token + token;
    if (kFrom == Storage::E4m3 && word == 0 && p.key_scales[of] != nullptr) {
      p.key_scales[of][row] =
          token < visible ? scale_of(p.scales[of], from_page, from_token + token, head) : 0.0f;
    }
    Item* to = items + row * kRowItems + word * kWordItems;
    *reinterpret_cast<uint4*>(to) = uint4{pairs[0], pairs[1], pairs[2], pairs[3]};
  }
}

template <Storage kFrom, class Item>
__global__ void __launch_bounds__(kThreads) unpack_kernel(const __grid_constant__ Params p) {
  ptx::griddepcontrol_launch_dependents();
  __shared__ Magnitudes table[kFrom == Storage::E2m1 ? kMagnitudeTable : 1];
  if constexpr (kFrom == Storage::E2m1) {
    fill_magnitudes<Item>(table, p.groups[0].rounded != 0, 1.0f, static_cast<int>(threadIdx.x),
                          kThreads);
    __syncthreads();
  }
  if (!p.beside) ptx::griddepcontrol_wait();
  const BatchParams& batch = p.batch;
  const int unit = unit_of(p.page);
  for (int b = static_cast<int>(blockIdx.y); b < batch.batch; b += static_cast<int>(gridDim.y)) {
    // From L2, where the prologue has left them: beside another launch nothing was waited for here.
    const std::int64_t seqlen_k = __ldcg(&p.requests[b].seqlen_k);
    const std::int64_t k_begin = __ldcg(&p.requests[b].k_begin);
    const std::int64_t end = ceil_div(seqlen_k, p.page) * p.page;
    for (std::int64_t first = std::int64_t{blockIdx.x} * unit; first < end;
         first += std::int64_t{gridDim.x} * unit) {
      const std::int64_t column = first / p.page;
      const std::int64_t page = std::int64_t{b} * p.columns + column;
      const std::int64_t inside = first - column * p.page;
      std::int64_t from_page = 0;
      std::int64_t from_token = k_begin + first;
      if (batch.page_size != 0) {
        from_page = load_page(batch, b, column);
        from_token = inside;
      }
      const bool bad = batch.page_size != 0 && (from_page < 0 || from_page >= batch.num_pages);
      if (inside == 0 && threadIdx.x == 0)
        p.page_table[page] = bad ? kBadPage : static_cast<int>(page);
      if (bad) continue;
      const int visible = static_cast<int>(min(seqlen_k - first, std::int64_t{unit}));
      for (int of = 0; of < p.sides; ++of) {
        unpack_keys<kFrom, Item>(p, of, table, from_page, from_token, page,
                                 static_cast<int>(inside), unit, visible);
      }
    }
  }
  if (p.beside) ptx::griddepcontrol_wait();  // whoever waits for this launch waits for both
}

template <Storage kFrom>
void launch_from(Storage to, const Params& params, cudaStream_t stream) {
  const std::int64_t units = std::int64_t{params.columns} * (params.page / unit_of(params.page));
  const LaunchConfig config{
      .grid = dim3(static_cast<unsigned>(std::min<std::int64_t>(units, kMostCtas)),
                   static_cast<unsigned>(std::min<std::int64_t>(params.batch.batch, kMaxGridYZ))),
      .block = dim3(kThreads),
      .programmatic = true,
      .stream = stream};
  if (to == Storage::F16) {
    launch_kernel(unpack_kernel<kFrom, ItemOf<Storage::F16>>, config, params);
  } else {
    launch_kernel(unpack_kernel<kFrom, ItemOf<Storage::Bf16>>, config, params);
  }
}

}  // namespace

void launch(Storage from, Storage to, const Params& params, cudaStream_t stream) {
  if (from == Storage::E2m1) {
    launch_from<Storage::E2m1>(to, params, stream);
  } else {
    launch_from<Storage::E4m3>(to, params, stream);
  }
}

}  // namespace msa::cuda::common::unpack
