// SPDX-License-Identifier: MIT
// A CTA a tile of rows of one index head. With a bound below and above for every block and row, a
// row's k-th largest lower bound is what a block's upper bound must reach; parts of it that do, and
// that reach the block's own lower bound, may hold its maximum. What any row wants is listed. A
// warp takes four rows at a time, so that they share what it reads of blocks, and reads products
// once: a second look is for segments whose largest upper bound reaches.
#include "cuda/sm90/select/candidates.h"

#include "cuda/common/prologue/tile_rows.cuh"
#include "cuda/common/ptx/launch_control.cuh"
#include "cuda/common/ptx/math.cuh"
#include "cuda/common/rows.cuh"
#include "cuda/common/scan.cuh"
#include "cuda/common/storage.cuh"
#include "cuda/common/topk/row.cuh"
#include "cuda/launch.h"
#include "cuda/sm90/select/products.h"

namespace msa::cuda::sm90::select {
namespace {

namespace ptx = common::ptx;
using common::kAllLanes;
using common::kMinusInf;
using common::topk::Row;

constexpr int kWarps = 12;
constexpr int kThreads = kWarps * 32;
constexpr int kRows = 4;  // of a warp at a time
constexpr int kTurnRows = kWarps * kRows;
constexpr int kTurns = kTileRows / kTurnRows;
constexpr int kSegments = 8;    // of a row, told apart for the second look
constexpr int kChunkTiles = 4;  // key tiles of a lane: 16 bytes of products
constexpr int kWordTiles = 8;   // key tiles whose parts are the bits of a word
static_assert(kTileRows % kTurnRows == 0, "whole turns");
static_assert(kChunkTiles * kTileParts == 16 && kWordTiles * kTileParts == 32, "bits of a word");

/// Blocks of a chunk.
template <int kBlock>
constexpr int kChunkBlocks = kChunkTiles* kTileKeys / kBlock;

/// What a warp has found and not looked at.
struct Queue {
  std::uint16_t segments[kSegments * 32];
  std::uint16_t blocks[32 * kChunkBlocks<kTileKeys / 2> + 32];
};

/// Dynamic shared memory.
struct Shared {
  float4* keys;           // bounds of blocks: [n of a chunk][chunk]
  float* segments;        // largest upper bounds: [warp][row][segment][lane]
  std::uint32_t* wanted;  // bits of parts
};

struct Sizes {
  int chunks;  // of the longest request
  int words;

  __host__ __device__ explicit Sizes(std::int64_t columns, int block)
      : chunks(static_cast<int>(ceil_div(columns * block, kChunkTiles * kTileKeys))),
        words(static_cast<int>(ceil_div(columns * block, kWordTiles * kTileKeys))) {}
  __host__ __device__ std::size_t key_bytes(int block) const {
    return sizeof(float4) * chunks * (kChunkTiles * kTileKeys / block);
  }
  static constexpr std::size_t kSegmentBytes = sizeof(float) * kWarps * kRows * kSegments * 32;
  __host__ __device__ std::size_t bytes(int block) const {
    return key_bytes(block) + kSegmentBytes + sizeof(std::uint32_t) * words;
  }
};

// Of 227 KB; what is static also holds the sums of lists.
constexpr std::size_t kMostBytes = 226 * 1024 - kWarps * sizeof(Queue);
static_assert(kMostFilterBlocks * sizeof(float4) + Sizes::kSegmentBytes + kMostFilterBlocks <
                  kMostBytes,
              "a CTA's shared memory");

/// A query's bound by a whole warp; whether all of its items are finite.
template <class Item>
__device__ __forceinline__ QueryBound bound_query(const CandidateParams& p, std::int64_t token,
                                                  int head, int lane, bool& finite) {
  const auto* items = common::row_of<std::uint16_t>(p.queries, token, head) + lane * 4;
  const uint2 words = __ldg(reinterpret_cast<const uint2*>(items));
  const float2 front = ptx::cvt_unpack<Item>(words.x);
  const float2 back = ptx::cvt_unpack<Item>(words.y);
  const float x[4] = {front.x, front.y, back.x, back.y};
  float largest = 0.0f;
#pragma unroll
  for (int i = 0; i < 4; ++i) largest = ptx::max_nan(largest, fabsf(x[i]));
#pragma unroll
  for (int step = 16; step > 0; step /= 2)
    largest = ptx::max_nan(largest, __shfl_xor_sync(kAllLanes, largest, step));
  finite = largest < INFINITY;
  const QueryUnit unit = query_unit(largest);
  float squares = 0.0f;
  float errors = 0.0f;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float divided = x[i] * unit.divide;
    add_squares(unit, divided, unit.known ? code_of(unit, divided) : 0.0f, squares, errors);
  }
  return query_bound(unit, common::warp::sum(squares), common::warp::sum(errors));
}

/// A row that a warp works on.
struct Chooser {
  QueryBound query;
  const uint4* products;
  int begin;  // blocks [begin, end) are scored
  int end;
  int k;  // of them are chosen
  bool valid;
  bool finite;
};

/// Words of a chunk's key tiles.
struct Products {
  uint4 words;

  __device__ __forceinline__ void load(const Chooser& row, int chunk) {
    words = row.products[chunk];
  }
  __device__ __forceinline__ std::uint32_t word(int tile) const {
    return tile == 0 ? words.x : tile == 1 ? words.y : tile == 2 ? words.z : words.w;
  }
};

__device__ __forceinline__ KeyBound key_of(const float4* keys, int chunks, int chunk, int n) {
  const float4 four = keys[n * chunks + chunk];
  return {.scale = four.x, .error = four.y, .norm = four.z, .floor = four.w};
}

/// A number that at least k of the warp's four times 32 reach, close to the k-th largest; -inf
/// where there are fewer.
__device__ __forceinline__ float bound_of(const float (&best)[4], int k) {
  std::uint32_t u[4];
  std::uint32_t most = 0;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    u[i] = common::ordered(best[i]);
    most = max(most, u[i]);
  }
  // Each lane has one that reaches the least of the lanes' largest.
  std::uint32_t low = k <= 32 ? __reduce_min_sync(kAllLanes, most) : 0;
  std::uint32_t high = __reduce_max_sync(kAllLanes, most);
  // Some 4,000th of what lies between; from 0 on every bit.
  int rounds = k <= 32 ? 12 : 32;
#pragma unroll 1
  for (; low < high && rounds > 0; --rounds) {
    const std::uint32_t middle = low + (high - low) / 2 + 1;
    int reach = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) reach += u[i] >= middle ? 1 : 0;
    reach = __reduce_add_sync(kAllLanes, reach);
    if (reach >= k) {
      low = middle;
      if (reach == k) break;
    } else {
      high = middle - 1;
    }
  }
  return common::unordered(low);
}

/// Bounds of all blocks that the tile sees.
template <int kBlock>
__device__ __forceinline__ void load_key_bounds(const CandidateParams& p, const Shared& shared,
                                                const RequestRecord& rows, int request, int head_k,
                                                int blocks, int chunks) {
  constexpr int kPerChunk = kChunkBlocks<kBlock>;
  for (int block = threadIdx.x; block < blocks; block += kThreads) {
    const int page = load_page(p.batch, request, block * kBlock / p.batch.page_size);
    KeyBound bound = key_bound(NAN, NAN, NAN, 128);
    if (page >= 0 && page < p.batch.num_pages) {
      const float* at =
          p.bounds.data + page * p.bounds.stride_group + head_k * p.bounds.stride_head;
      bound = key_bound(__ldg(at), __ldg(at + p.bounds.stride_item),
                        __ldg(at + 2 * p.bounds.stride_item), 128);
    }
    shared.keys[block % kPerChunk * chunks + block / kPerChunk] =
        make_float4(bound.scale, bound.error, bound.norm, bound.floor);
  }
}

/// First look at four rows: what a block's upper bound must reach, and the largest upper bound of
/// every segment.
template <int kBlock>
__device__ __forceinline__ void bound_rows(float (&least)[kRows], const Chooser (&rows)[kRows],
                                           const Shared& shared, float* segments, int chunks,
                                           int used, int segment, int lane) {
  constexpr int kPerChunk = kChunkBlocks<kBlock>;
  constexpr int kTileBlocks = kTileKeys / kBlock;
  float best[kRows][4];
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
#pragma unroll
    for (int i = 0; i < 4; ++i) best[r][i] = kMinusInf;
  }
  int begin = 0;  // blocks that every row scores
  int end = 1 << 30;
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    begin = max(begin, rows[r].begin);
    end = min(end, rows[r].end);
  }
  const int turns = (used + 31) / 32;
  constexpr bool kAhead = kTileBlocks == 1;  // else registers do not suffice
  Products next[kRows];                      // on its way
  if constexpr (kAhead) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) next[r].load(rows[r], min(lane, used - 1));
  }
#pragma unroll 1
  for (int s = 0; s < kSegments; ++s) {
    float upper[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) upper[r] = kMinusInf;
#pragma unroll 1
    for (int turn = s * segment; turn < (s + 1) * segment && turn < turns; ++turn) {
      const int chunk = turn * 32 + lane;
      const int there = min(chunk, used - 1);
      Products products[kRows];
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        if constexpr (kAhead) {
          products[r] = next[r];
          next[r].load(rows[r], min(chunk + 32, used - 1));
        } else {
          products[r].load(rows[r], there);
        }
      }
      const auto look = [&](const auto& counts) {
#pragma unroll
        for (int n = 0; n < kPerChunk; ++n) {
          const KeyBound key = key_of(shared.keys, chunks, there, n);
#pragma unroll
          for (int r = 0; r < kRows; ++r) {
            const Interval x = bound_block<kBlock>(products[r].word(n / kTileBlocks),
                                                   n % kTileBlocks, rows[r].query, key);
            const bool in = counts(rows[r], chunk * kPerChunk + n);
            best[r][n % 4] = fmaxf(best[r][n % 4], in ? x.lower : kMinusInf);
            upper[r] = fmaxf(upper[r], in ? x.upper : kMinusInf);
          }
        }
      };
      if (chunk * kPerChunk >= begin && (chunk + 1) * kPerChunk <= end) {
        look([](const Chooser&, int) { return true; });
      } else {
        look([](const Chooser& row, int block) { return block >= row.begin && block < row.end; });
      }
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) segments[(r * kSegments + s) * 32 + lane] = upper[r];
  }
#pragma unroll
  for (int r = 0; r < kRows; ++r) least[r] = bound_of(best[r], rows[r].k);
}

/// The parts of a block that may hold its maximum join the wanted ones.
template <int kBlock>
__device__ __forceinline__ void want_block(const Chooser& row, float least, const Shared& shared,
                                           int chunks, int block) {
  constexpr int kPerChunk = kChunkBlocks<kBlock>;
  constexpr int kTileBlocks = kTileKeys / kBlock;
  constexpr int kBlockParts = kBlock / kPartKeys;
  const int tile = block / kTileBlocks;
  const int n = block % kTileBlocks;
  const std::uint32_t word = reinterpret_cast<const std::uint32_t*>(row.products)[tile];
  const KeyBound key = key_of(shared.keys, chunks, block / kPerChunk, block % kPerChunk);
  // What lies below the block's own lower bound is not its maximum.
  const float must = fmaxf(least, bound_block<kBlock>(word, n, row.query, key).lower);
  std::uint32_t bits = 0;
#pragma unroll
  for (int part = 0; part < kBlockParts; ++part) {
    const int at = n * kBlockParts + part;
    const int high = largest_of(word) - steps_of(word, at) * kUnitsPerStep;
    if (bound_units(high, high, row.query, key).upper >= must) bits |= 1u << at;
  }
  atomicOr(shared.wanted + tile / kWordTiles, bits << tile % kWordTiles * kTileParts);
}

/// Second look at a row: its parts join the wanted ones; how many blocks may be chosen. What is
/// left at each step is few and lies scattered: it is queued, so that lanes have work alike.
template <int kBlock>
__device__ __forceinline__ int want_parts(const Chooser& row, float least, const Shared& shared,
                                          const float* segments, Queue& queue, int chunks, int used,
                                          int segment, int lane) {
  constexpr int kPerChunk = kChunkBlocks<kBlock>;
  constexpr int kTileBlocks = kTileKeys / kBlock;
  int flagged = 0;
#pragma unroll 1
  for (int s = 0; s < kSegments; ++s) {
    const bool reaches = segments[s * 32 + lane] >= least;
    const unsigned lanes = __ballot_sync(kAllLanes, reaches);
    if (reaches)
      queue.segments[flagged + __popc(lanes & common::lanes_below(lane))] =
          static_cast<std::uint16_t>(s * 32 + lane);
    flagged += __popc(lanes);
  }
  __syncwarp();
  int candidates = 0;
  int waiting = 0;
#pragma unroll 1
  for (int turn = 0; turn < segment; ++turn) {
#pragma unroll 1
    for (int first = 0; first < flagged; first += 32) {
      const int entry = queue.segments[min(first + lane, flagged - 1)];
      const int chunk = (entry / 32 * segment + turn) * 32 + entry % 32;
      const bool there = first + lane < flagged && chunk < used;
      const int at = min(chunk, used - 1);
      Products products;
      products.load(row, at);
#pragma unroll
      for (int n = 0; n < kPerChunk; ++n) {
        const int block = chunk * kPerChunk + n;
        const KeyBound key = key_of(shared.keys, chunks, at, n);
        const float upper =
            bound_block<kBlock>(products.word(n / kTileBlocks), n % kTileBlocks, row.query, key)
                .upper;
        const bool reaches = there && block >= row.begin && block < row.end && upper >= least;
        const unsigned lanes = __ballot_sync(kAllLanes, reaches);
        if (reaches)
          queue.blocks[waiting + __popc(lanes & common::lanes_below(lane))] =
              static_cast<std::uint16_t>(block);
        waiting += __popc(lanes);
        candidates += __popc(lanes);
      }
      __syncwarp();
      while (waiting >= 32) {
        waiting -= 32;
        want_block<kBlock>(row, least, shared, chunks, queue.blocks[waiting + lane]);
      }
      __syncwarp();
    }
  }
  if (lane < waiting) want_block<kBlock>(row, least, shared, chunks, queue.blocks[lane]);
  __syncwarp();
  return candidates;
}

/// Bits of the blocks that have a part among `parts`, at their first part.
template <int kBlock>
__device__ __forceinline__ std::uint32_t blocks_with(std::uint32_t parts) {
  const std::uint32_t two = parts | parts >> 1;
  return kBlock == kTileKeys ? (two | two >> 2) & 0x11111111u : two & 0x55555555u;
}

/// The wanted parts and their blocks as ascending lists.
template <int kBlock>
__device__ __forceinline__ void write_lists(const PartLists& lists, std::int64_t at,
                                            const std::uint32_t* wanted, int words) {
  constexpr int kParts = kBlock / kPartKeys;
  int* parts = lists.parts + at * lists.stride_parts;
  int* blocks = lists.blocks + at * lists.stride_blocks;
  std::int64_t num_parts = 0;
  std::int64_t num_blocks = 0;
#pragma unroll 1
  for (int first = 0; first < words; first += kThreads) {
    const int word = first + static_cast<int>(threadIdx.x);
    std::uint32_t bits = word < words ? wanted[word] : 0;
    std::uint32_t heads = blocks_with<kBlock>(bits);
    std::int64_t total = 0;
    std::int64_t to = num_parts + common::cta::exclusive_sum<kThreads>(__popc(bits), total);
    num_parts += total;
    for (; bits != 0; bits &= bits - 1) parts[to++] = word * 32 + __ffs(bits) - 1;
    to = num_blocks + common::cta::exclusive_sum<kThreads>(__popc(heads), total);
    num_blocks += total;
    for (; heads != 0; heads &= heads - 1) blocks[to++] = (word * 32 + __ffs(heads) - 1) / kParts;
  }
  const std::int64_t tiles = ceil_div(num_parts, kTileParts);
  if (threadIdx.x < tiles * kTileParts - num_parts) parts[num_parts + threadIdx.x] = kNoPart;
  if (threadIdx.x == 0)
    lists.sizes[at] = make_int2(static_cast<int>(tiles), static_cast<int>(num_blocks));
}

template <Storage kStorage, int kBlock>
__global__ void __launch_bounds__(kThreads, 1)
    candidates_kernel(const __grid_constant__ CandidateParams p) {
  using Item = common::ItemOf<kStorage>;
  extern __shared__ float4 raw[];
  __shared__ Queue queues[kWarps];
  const Sizes sizes(p.columns, kBlock);
  const Shared shared{
      .keys = raw,
      .segments =
          reinterpret_cast<float*>(reinterpret_cast<std::uint8_t*>(raw) + sizes.key_bytes(kBlock)),
      .wanted = reinterpret_cast<std::uint32_t*>(reinterpret_cast<std::uint8_t*>(raw) +
                                                 sizes.key_bytes(kBlock) + Sizes::kSegmentBytes)};
  ptx::griddepcontrol_launch_dependents();
  ptx::griddepcontrol_wait();
  const int lane = threadIdx.x % 32;
  const int warp = __shfl_sync(kAllLanes, static_cast<int>(threadIdx.x / 32), 0);
  const int head = blockIdx.y;
  const common::prologue::TileRecord tile = p.rows.tiles.records[blockIdx.x];
  const RequestRecord rows = common::prologue::rows_of(p.rows.tiles, tile);
  const std::int64_t at = static_cast<std::int64_t>(blockIdx.x) * p.rows.groups + head;
  const int last = rows.seqlen_q - 1;
  const int keys = last >= 0 ? visible_keys(rows, last, p.batch.causal != 0) : 0;
  const int used = static_cast<int>(ceil_div(keys, kChunkTiles * kTileKeys));  // chunks
  const int segment = static_cast<int>(ceil_div(used, 32 * kSegments));
  const int words = static_cast<int>(ceil_div(keys, kWordTiles * kTileKeys));
  for (int word = threadIdx.x; word < words; word += kThreads) shared.wanted[word] = 0;
  load_key_bounds<kBlock>(p, shared, rows, tile.request, head / p.shares,
                          static_cast<int>(ceil_div(keys, kBlock)), sizes.chunks);
  __syncthreads();
  float* segments = shared.segments + warp * kRows * kSegments * 32;
  // Located lane by lane: the divisions are paid once.
  const Row located = common::topk::locate_row(
      p.rows, rows, head,
      max(0, min(lane / kRows * kTurnRows + warp * kRows + lane % kRows, last)));
#pragma unroll 1
  for (int turn = 0; turn < kTurns; ++turn) {
    const int first = turn * kTurnRows + warp * kRows;
    if (first > last) break;
    Chooser choosers[kRows];
    bool scored = false;
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      Chooser& row = choosers[r];
      const Row mine = common::topk::row_of_lane(located, turn * kRows + r);
      row.valid = first + r <= last;
      row.query = bound_query<Item>(p, rows.q_begin + mine.token, head, lane, row.finite);
      row.products = reinterpret_cast<const uint4*>(p.products + (at * kTileRows + mine.slot) *
                                                                     p.stride_products);
      row.k = common::topk::free_slots(p.rows, mine);
      const bool all = common::topk::free_blocks(mine) <= row.k && p.rows.chosen.data == nullptr;
      const bool none = !row.valid || row.k <= 0 || all;
      row.begin = none ? 0 : mine.init;
      row.end = none ? 0 : mine.local;
      row.k = max(row.k, 1);
      scored |= row.begin < row.end;
    }
    float least[kRows];
    if (scored) {
      bound_rows<kBlock>(least, choosers, shared, segments, sizes.chunks, used, segment, lane);
      __syncwarp();
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const Chooser& row = choosers[r];
      if (!row.valid) continue;
      int candidates = 0;
      if (row.begin < row.end) {
        candidates = want_parts<kBlock>(row, least[r], shared, segments + r * kSegments * 32,
                                        queues[warp], sizes.chunks, used, segment, lane);
      }
      if (p.candidates.data == nullptr) continue;
      const bool reads = row.finite || row.begin == row.end;
      if (lane == 0)
        common::item_of(p.candidates, rows.q_begin + first + r, head) = reads ? candidates : -1;
    }
    __syncwarp();
  }
  __syncthreads();
  write_lists<kBlock>(p.lists, at, shared.wanted, words);
}

template <Storage kStorage, int kBlock>
void launch(const CandidateParams& p, cudaStream_t stream) {
  const Sizes sizes(p.columns, kBlock);
  launch_kernel(
      candidates_kernel<kStorage, kBlock>,
      {.grid = dim3(static_cast<unsigned>(p.rows.num_tiles), static_cast<unsigned>(p.rows.groups)),
       .block = dim3(kThreads),
       .shared_bytes = sizes.bytes(kBlock),
       .most_shared_bytes = kMostBytes,
       .programmatic = true,
       .stream = stream},
      p);
}

template <Storage kStorage>
void launch(const CandidateParams& p, cudaStream_t stream) {
  if (p.batch.block_size == kTileKeys) {
    launch<kStorage, kTileKeys>(p, stream);
  } else {
    launch<kStorage, kTileKeys / 2>(p, stream);
  }
}

}  // namespace

void launch_candidates(const CandidateParams& params, cudaStream_t stream) {
  if (params.storage == Storage::Bf16) {
    launch<Storage::Bf16>(params, stream);
  } else {
    launch<Storage::F16>(params, stream);
  }
}

}  // namespace msa::cuda::sm90::select
