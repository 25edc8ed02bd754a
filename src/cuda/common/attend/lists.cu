// SPDX-License-Identifier: MIT
// One warp a (tile, KV head): gather the valid ids as keys (latest block first, token), sort them
// in shared memory, write each run of equal blocks as one entry.
#include "cuda/common/attend/lists.h"
#include "cuda/common/lists.cuh"
#include "cuda/common/number.cuh"
#include "cuda/common/ptx/launch_control.cuh"
#include "cuda/geometry.cuh"
#include "cuda/launch.h"

namespace msa::cuda::common::attend {
namespace {

constexpr int kWarpsOfLists = 8;
constexpr int kTokenBits = 5;
static_assert(1 << kTokenBits == kMaxUnionTokens, "a key holds any token of a tile");
constexpr unsigned kLatest = (1u << (32 - kTokenBits)) - 1;
// Sorts behind every key; block 0 of token 31 is below it, see pack_key.
constexpr unsigned kNone = 0xffffffffu;

/// Ascending keys are descending blocks, then ascending tokens. Blocks stay below kLatest.
__device__ __forceinline__ unsigned pack_key(int block, int token) {
  return ((kLatest - 1 - static_cast<unsigned>(block)) << kTokenBits) |
         static_cast<unsigned>(token);
}
__device__ __forceinline__ int block_of(unsigned key) {
  return static_cast<int>(kLatest - 1 - (key >> kTokenBits));
}

/// What a warp works on.
struct Source {
  prologue::TileRecord tile;
  RequestRecord request;
  int head;
  int tokens;
};

/// Ids that are legal, held here and visible become keys, all others kNone.
__device__ __forceinline__ void make_keys(const ListParams& params, const Source& source,
                                          unsigned* keys) {
  const int lane = static_cast<int>(threadIdx.x & 31);
  const int shift = __ffs(params.batch.block_size) - 1;  // divisions take long
  ListReader reader(source.request, params.batch.block_size, 0);
  const auto reader_of = [&](int token) {
    const int visible = visible_keys(source.request, source.tile.first + std::int64_t{token},
                                     params.batch.causal != 0);
    reader.blocks = (visible + params.batch.block_size - 1) >> shift;
    return reader;
  };
  const warp::ListWalk walk(params.lists, source.request.q_begin + source.tile.first, source.tokens,
                            source.head, lane);
  walk.run(reader_of, [&](int token, int slot, const ListedBlock& listed) {
    if (listed.fault) {
      report(params.batch.status, source.tile.request, source.tile.first + std::int64_t{token},
             FaultKind::BlockId);
    }
    if (token >= source.tokens || slot >= params.lists.k) return;
    keys[token * params.lists.k + slot] = listed.block >= 0 ? pack_key(listed.block, token) : kNone;
  });
}

/// Bitonic sort of 32 * kPerLane keys by one warp in registers: lane l holds kPerLane neighbours.
template <int kPerLane>
__device__ __forceinline__ void sort_in_registers(unsigned* keys) {
  const int lane = static_cast<int>(threadIdx.x & 31);
  unsigned key[kPerLane];
#pragma unroll
  for (int j = 0; j < kPerLane; ++j) key[j] = keys[lane * kPerLane + j];
#pragma unroll
  for (int run = 2; run <= 32 * kPerLane; run *= 2) {
#pragma unroll
    for (int step = run / 2; step > 0; step /= 2) {
#pragma unroll
      for (int j = 0; j < kPerLane; ++j) {
        const bool ascending = ((lane * kPerLane + j) & run) == 0;
        if (step >= kPerLane) {
          const unsigned other = __shfl_xor_sync(kAllLanes, key[j], step / kPerLane);
          const bool is_low = (lane & (step / kPerLane)) == 0;
          key[j] = is_low == ascending ? min(key[j], other) : max(key[j], other);
        } else if ((j & step) == 0) {
          const unsigned low = min(key[j], key[j | step]);
          const unsigned high = max(key[j], key[j | step]);
          key[j] = ascending ? low : high;
          key[j | step] = ascending ? high : low;
        }
      }
    }
  }
#pragma unroll
  for (int j = 0; j < kPerLane; ++j) keys[lane * kPerLane + j] = key[j];
  __syncwarp();
}

/// The same for any power of two, in shared memory.
__device__ __forceinline__ void sort_in_shared(unsigned* keys, int size) {
  const int lane = threadIdx.x & 31;
  for (int run = 2; run <= size; run *= 2) {
    for (int step = run / 2; step > 0; step /= 2) {
      for (int pair = lane; pair < size / 2; pair += 32) {
        const int low = pair / step * step * 2 + pair % step;
        const bool ascending = (low & run) == 0;
        const unsigned a = keys[low];
        const unsigned b = keys[low + step];
        if ((a > b) == ascending) {
          keys[low] = b;
          keys[low + step] = a;
        }
      }
      __syncwarp();
    }
  }
}

__device__ __forceinline__ void sort(unsigned* keys, int size) {
  if (size == 128) return sort_in_registers<4>(keys);  // 8 tokens, k = 16
  if (size == 64) return sort_in_registers<2>(keys);
  if (size == 32) return sort_in_registers<1>(keys);
  sort_in_shared(keys, size);
}

/// Writes one entry a block; returns the header.
__device__ __forceinline__ ListHeader write_entries(const unsigned* keys, int size,
                                                    int least_visible, int block_size,
                                                    ListEntry* entries) {
  const int lane = threadIdx.x & 31;
  ListHeader header{0, 0};
  for (int begin = 0; begin < size; begin += 32) {
    const int at = begin + lane;
    const unsigned key = at < size ? keys[at] : kNone;
    const bool is_head =
        key != kNone && (at == 0 || keys[at - 1] >> kTokenBits != key >> kTokenBits);
    const unsigned heads = __ballot_sync(kAllLanes, is_head);
    bool masked = false;
    if (is_head) {
      unsigned tokens = 0;
      for (int i = at; i < size && keys[i] >> kTokenBits == key >> kTokenBits; ++i) {
        tokens |= 1u << (keys[i] & (kMaxUnionTokens - 1));
      }
      const int block = block_of(key);
      masked = (static_cast<std::int64_t>(block) + 1) * block_size > least_visible;
      entries[header.blocks + __popc(heads & common::lanes_below(lane))] = {block, tokens};
    }
    header.masked += __popc(__ballot_sync(kAllLanes, masked));
    header.blocks += __popc(heads);
    if (__any_sync(kAllLanes, key == kNone)) break;
  }
  return header;
}

/// The list of one tile, by one warp.
__device__ __forceinline__ ListHeader build(const ListParams& params, int slot, int head,
                                            unsigned* keys, int padded) {
  Source source{};
  source.tile = params.tiles[params.tile_begin + slot];
  if (source.tile.request < 0) return {0, 0};
  source.head = head;
  source.request = params.requests[source.tile.request];
  source.tokens = min(source.request.seqlen_q - source.tile.first, params.tokens_per_tile);
  for (int i = source.tokens * params.lists.k + static_cast<int>(threadIdx.x & 31); i < padded;
       i += 32)
    keys[i] = kNone;
  make_keys(params, source, keys);
  __syncwarp();
  sort(keys, padded);
  const int least = visible_keys(source.request, source.tile.first, params.batch.causal != 0);
  const std::int64_t list = list_index(params.tile_limit, head, slot);
  return write_entries(keys, padded, least, params.batch.block_size,
                       params.entries + list * params.tokens_per_tile * params.lists.k);
}

__global__ void __launch_bounds__(kWarpsOfLists * 32)
    lists_kernel(const __grid_constant__ ListParams params, int padded) {
  extern __shared__ unsigned keys_of_cta[];  // [kWarpsOfLists, padded]
  ptx::griddepcontrol_wait();
  ptx::griddepcontrol_launch_dependents();  // behind the prologue: unpacking counts on that
  const int tiles = min(max(*params.num_tiles - params.tile_begin, 0), params.tile_limit);
  const int warp = static_cast<int>(threadIdx.x / 32);
  const int slot = static_cast<int>(blockIdx.x) * kWarpsOfLists + warp;
  const int head = static_cast<int>(blockIdx.y);
  if (slot >= tiles) return;
  const ListHeader header = build(params, slot, head, keys_of_cta + warp * padded, padded);
  if ((threadIdx.x & 31) == 0) params.headers[list_index(params.tile_limit, head, slot)] = header;
}

}  // namespace

void launch_lists(const ListParams& params, cudaStream_t stream) {
  constexpr std::size_t kMostPadded = kMaxUnionTokens * kMaxTopk;
  int padded = 32;
  while (padded < params.tokens_per_tile * params.lists.k) padded *= 2;
  launch_kernel(
      lists_kernel,
      {.grid = dim3(static_cast<unsigned>(ceil_div(params.tile_limit, kWarpsOfLists)),
                    static_cast<unsigned>(params.heads_kv)),
       .block = dim3(kWarpsOfLists * 32),
       .shared_bytes = kWarpsOfLists * sizeof(unsigned) * static_cast<std::size_t>(padded),
       .most_shared_bytes = kWarpsOfLists * sizeof(unsigned) * kMostPadded,
       .programmatic = true,
       .stream = stream},
      params, padded);
}

}  // namespace msa::cuda::common::attend
