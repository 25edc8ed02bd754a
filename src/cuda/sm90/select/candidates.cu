// SPDX-License-Identifier: MIT
// A CTA a tile of rows of one index head. With a bound below and above for every block and row, a
// row's k-th largest lower bound is what a block's upper bound must reach; parts of it that do, and
// that reach the block's own lower bound, may hold its maximum. What any row wants is listed. A
// warp takes four rows at a time, so that they share what it reads of blocks and what is left of
// them fills its lanes, and reads products once: a second look is for segments whose largest upper
// bound reaches.
#include "cuda/sm90/select/candidates.h"

#include "cuda/common/prologue/tile_rows.cuh"
#include "cuda/common/ptx/launch_control.cuh"
#include "cuda/common/ptx/math.cuh"
#include "cuda/common/rotate.cuh"
#include "cuda/common/rows.cuh"
#include "cuda/common/scan.cuh"
#include "cuda/common/select/plan.h"
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

constexpr int kWarps = 16;
constexpr int kThreads = kWarps * 32;
constexpr int kRows = 4;               // of a warp at a time
constexpr int kRowLanes = 32 / kRows;  // that bound a row's query
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

/// Products are asked for one look ahead: else registers do not suffice.
template <int kBlock>
constexpr bool kAhead = kBlock == kTileKeys;

/// A row that a warp works on.
struct alignas(16) Chooser {
  QueryBound query;
  float least;  // that a block's upper bound must reach
  int begin;    // blocks [begin, end) are scored
  int end;
  int k;           // of them are chosen
  int candidates;  // of them may be
};

/// What a warp has found and not looked at.
struct Queue {
  std::uint32_t words[64];   // of key tiles
  std::uint32_t blocks[64];  // row of the warp, block
};
constexpr int kBlockBits = 16;

/// Of a warp.
struct Found {
  Chooser rows[kRows];
  Queue queue;
};

/// Dynamic shared memory.
struct Shared {
  float4* keys;             // bounds of blocks: [n of a chunk][chunk]
  std::uint32_t* segments;  // largest upper bounds: [warp][row][segment][lane]
  std::uint32_t* wanted;    // bits of parts
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
constexpr std::size_t kMostBytes = 226 * 1024 - kWarps * sizeof(Found);
using common::select::kMostFilterBlocks;
static_assert(kMostFilterBlocks * sizeof(float4) + Sizes::kSegmentBytes +
                      sizeof(std::uint32_t) * kMostFilterBlocks / kWordTiles <
                  kMostBytes,
              "a CTA's shared memory");
static_assert(kMostFilterBlocks <= 1 << kBlockBits, "a queued block");

/// A query's bound by kRowLanes lanes; whether all of its items are finite.
template <class Item>
__device__ __forceinline__ QueryBound bound_query(const CandidateParams& p, std::int64_t token,
                                                  int head, int lane, bool& finite) {
  constexpr int kFours = 128 / 4 / kRowLanes;
  const auto* items = common::row_of<std::uint16_t>(p.queries, token, head) + lane % kRowLanes * 4;
  uint2 words[kFours];
#pragma unroll
  for (int n = 0; n < kFours; ++n)
    words[n] = __ldg(reinterpret_cast<const uint2*>(items + n * kRowLanes * 4));
  float x[4 * kFours];
  float largest = 0.0f;
#pragma unroll
  for (int n = 0; n < 2 * kFours; ++n) {
    const float2 pair = ptx::cvt_unpack<Item>(n % 2 == 0 ? words[n / 2].x : words[n / 2].y);
    x[2 * n] = pair.x;
    x[2 * n + 1] = pair.y;
  }
  if (p.bounds.rotated != 0) {  // as codes.cuh
    common::rotate_held<1>(x);
    common::rotate_held<2>(x);
#pragma unroll 1
    for (int half = 1; half < kRowLanes; half *= 2) common::rotate_lanes(x, half);
    common::rotate_held<4>(x);
    common::rotate_held<8>(x);
  }
#pragma unroll
  for (int i = 0; i < 4 * kFours; ++i) largest = ptx::max_nan(largest, fabsf(x[i]));
#pragma unroll
  for (int step = kRowLanes / 2; step > 0; step /= 2)
    largest = ptx::max_nan(largest, __shfl_xor_sync(kAllLanes, largest, step));
  finite = largest < INFINITY;
  const QueryUnit unit = common::query_unit(largest);
  float squares = 0.0f;
  float errors = 0.0f;
#pragma unroll
  for (int i = 0; i < 4 * kFours; ++i) {
    const float divided = x[i] * unit.divide;
    common::add_squares(unit, divided, unit.known ? common::code_of(unit, divided) : 0.0f, squares,
                        errors);
  }
#pragma unroll
  for (int step = kRowLanes / 2; step > 0; step /= 2) {
    squares += __shfl_xor_sync(kAllLanes, squares, step);
    errors += __shfl_xor_sync(kAllLanes, errors, step);
  }
  return common::query_bound(unit, squares, errors, p.bounds.rotated != 0 ? 1.0f / 128 : 1.0f);
}

__device__ __forceinline__ bool is_plain(const QueryBound& query) {
  return query.scale < kPlain && query.norm < kPlain && query.error < kPlain;
}

/// Words of a chunk's key tiles.
struct Products {
  uint4 words;

  __device__ __forceinline__ void load(const uint4* row, int chunk) { words = row[chunk]; }
  __device__ __forceinline__ std::uint32_t word(int tile) const {
    return tile == 0 ? words.x : tile == 1 ? words.y : tile == 2 ? words.z : words.w;
  }
};

__device__ __forceinline__ KeyBound key_of(const float4* keys, int chunks, int chunk, int n) {
  const float4 four = keys[n * chunks + chunk];
  return {.scale = four.x, .error = four.y, .norm = four.z, .floor = four.w};
}

/// For each row a number that at least k of the warp's four times 32 reach, close to the k-th
/// largest; -inf where there are fewer.
__device__ __forceinline__ void bound_rows(float (&least)[kRows], const float (&best)[kRows][4],
                                           const int (&k)[kRows]) {
  std::uint32_t u[kRows][4];
  std::uint32_t low[kRows];
  std::uint32_t high[kRows];
  bool few = true;
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    std::uint32_t most = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      u[r][i] = common::ordered(best[r][i]);
      most = max(most, u[r][i]);
    }
    // Each lane has one that reaches the least of the lanes' largest.
    low[r] = __reduce_min_sync(kAllLanes, most);
    high[r] = __reduce_max_sync(kAllLanes, most);
    if (k[r] > 32) {
      low[r] = 0;
      few = false;
    }
  }
  // Some 4,000th of what lies between; from 0 on every bit. One sum holds all rows' counts.
  static_assert(kRows * 8 == 32 && 4 * 32 < 1 << 8, "eight bits a row");
  int rounds = few ? 12 : 32;
  bool more = true;
#pragma unroll 1
  for (; more && rounds > 0; --rounds) {
    std::uint32_t middle[kRows];
    std::uint32_t counts = 0;
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      middle[r] = low[r] + (high[r] - low[r]) / 2 + 1;
#pragma unroll
      for (int i = 0; i < 4; ++i) counts += u[r][i] >= middle[r] ? 1u << 8 * r : 0;
    }
    counts = __reduce_add_sync(kAllLanes, counts);
    more = false;
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const int reach = counts >> 8 * r & 0xff;
      const bool open = low[r] < high[r];
      if (open && reach <= k[r]) high[r] = reach == k[r] ? middle[r] : middle[r] - 1;
      if (open && reach >= k[r]) low[r] = middle[r];
      more |= low[r] < high[r];
    }
  }
#pragma unroll
  for (int r = 0; r < kRows; ++r) least[r] = common::unordered(low[r]);
}

/// Bounds of all blocks that the tile sees; whether those that say something are plain. What says
/// nothing has an infinite error.
template <int kBlock>
__device__ __forceinline__ bool load_key_bounds(const CandidateParams& p, const Shared& shared,
                                                const RequestRecord& rows, int request, int head_k,
                                                int blocks, int chunks) {
  constexpr int kPerChunk = kChunkBlocks<kBlock>;
  bool plain = true;
  for (int block = threadIdx.x; block < blocks; block += kThreads) {
    const int page = load_page(p.batch, request, block * kBlock / p.batch.page_size);
    KeyBound bound = common::key_bound(NAN, NAN, NAN, 128, false);
    if (page >= 0 && page < p.batch.num_pages) {
      const float* at =
          p.bounds.data + page * p.bounds.stride_group + head_k * p.bounds.stride_head;
      bound = common::key_bound(__ldg(at), __ldg(at + p.bounds.stride_item),
                                __ldg(at + 2 * p.bounds.stride_item), 128, p.bounds.rotated != 0);
    }
    if (!(bound.error < INFINITY)) {
      bound = {.scale = 0.0f, .error = INFINITY, .norm = 0.0f, .floor = 0.0f};
    } else {
      plain &= bound.scale < kPlain && bound.error < kPlain && bound.norm < kPlain;
    }
    shared.keys[block % kPerChunk * chunks + block / kPerChunk] =
        make_float4(bound.scale, bound.error, bound.norm, bound.floor);
  }
  return plain;
}

/// First look at four rows: what a block's upper bound must reach, and the largest upper bound of
/// every segment. `plain`: of the keys' bounds.
template <int kBlock>
__device__ __forceinline__ void look_at_rows(float (&least)[kRows], const Chooser* rows,
                                             const uint4* products, int stride,
                                             const Shared& shared, std::uint32_t* segments,
                                             bool plain, int chunks, int used, int segment,
                                             int lane) {
  constexpr int kPerChunk = kChunkBlocks<kBlock>;
  constexpr int kTileBlocks = kTileKeys / kBlock;
  QueryBound queries[kRows];
  float best[kRows][4];
  int begin = 0;  // blocks that every row scores
  int end = 1 << 30;
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    queries[r] = rows[r].query;
    plain &= is_plain(queries[r]);
    begin = max(begin, rows[r].begin);
    end = min(end, rows[r].end);
#pragma unroll
    for (int i = 0; i < 4; ++i) best[r][i] = kMinusInf;
  }
  const int turns = (used + 31) / 32;
  Products next[kRows];  // on its way
  if constexpr (kAhead<kBlock>) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) next[r].load(products + r * stride, min(lane, used - 1));
  }
#pragma unroll 1
  for (int s = 0; s * segment < turns; ++s) {
    float upper[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) upper[r] = kMinusInf;
#pragma unroll 1
    for (int turn = s * segment; turn < (s + 1) * segment && turn < turns; ++turn) {
      const int chunk = turn * 32 + lane;
      const int there = min(chunk, used - 1);
      Products of[kRows];
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        if constexpr (kAhead<kBlock>) {
          of[r] = next[r];
          next[r].load(products + r * stride, min(chunk + 32, used - 1));
        } else {
          of[r].load(products + r * stride, there);
        }
      }
      const auto look = [&](const auto& bound, const auto& counts) {
#pragma unroll 4
        for (int n = 0; n < kPerChunk; ++n) {
          const KeyBound key = key_of(shared.keys, chunks, there, n);
#pragma unroll
          for (int r = 0; r < kRows; ++r) {
            const Interval x = bound(of[r].word(n / kTileBlocks), n % kTileBlocks, queries[r], key);
            const bool in = counts(r, chunk * kPerChunk + n);
            best[r][n % 4] = fmaxf(best[r][n % 4], in ? x.lower : kMinusInf);
            upper[r] = fmaxf(upper[r], in ? x.upper : kMinusInf);
          }
        }
      };
      const bool all = chunk * kPerChunk >= begin && (chunk + 1) * kPerChunk <= end;
      if (__all_sync(kAllLanes, plain && all)) {
        look(bound_block<kBlock, true>, [](int, int) { return true; });
      } else {
        look(bound_block<kBlock>,
             [&](int r, int block) { return block >= rows[r].begin && block < rows[r].end; });
      }
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r)
      segments[(r * kSegments + s) * 32 + lane] = __float_as_uint(upper[r]);
  }
  int k[kRows];
#pragma unroll
  for (int r = 0; r < kRows; ++r)
    k[r] = __shfl_sync(kAllLanes, rows[r].k, 0);  // known to be uniform
  bound_rows(least, best, k);
}

/// The parts of a block that may hold its maximum join the wanted ones.
template <int kBlock>
__device__ __forceinline__ void want_block(const Found& found, const Shared& shared, int chunks,
                                           int at) {
  constexpr int kPerChunk = kChunkBlocks<kBlock>;
  constexpr int kTileBlocks = kTileKeys / kBlock;
  constexpr int kBlockParts = kBlock / kPartKeys;
  const std::uint32_t word = found.queue.words[at];
  const std::uint32_t entry = found.queue.blocks[at];
  const Chooser& row = found.rows[entry >> kBlockBits];
  const int block = entry & ((1 << kBlockBits) - 1);
  const int tile = block / kTileBlocks;
  const int n = block % kTileBlocks;
  const KeyBound key = key_of(shared.keys, chunks, block / kPerChunk, block % kPerChunk);
  // What lies below the block's own lower bound is not its maximum.
  const float must = fmaxf(row.least, bound_block<kBlock>(word, n, row.query, key).lower);
  std::uint32_t bits = 0;
#pragma unroll
  for (int part = 0; part < kBlockParts; ++part) {
    const int of_tile = n * kBlockParts + part;
    const int high = largest_of(word) - steps_of(word, of_tile) * kUnitsPerStep;
    if (bound_units(high, high, row.query, key).upper >= must) bits |= 1u << of_tile;
  }
  atomicOr(shared.wanted + tile / kWordTiles, bits << tile % kWordTiles * kTileParts);
}

/// A chunk of a flagged segment, and its products on their way.
struct LookedUp {
  int entry = -1;  // row of the warp, chunk; -1: none
  Products of;
};

/// This lane's of the 32 segments from `first` on: their chunk number `turn`.
__device__ __forceinline__ LookedUp look_up(const uint4* products, int stride,
                                            const std::uint32_t* segments, int flagged, int used,
                                            int segment, int turn, int first, int lane) {
  const int entry = static_cast<int>(segments[min(first + lane, flagged - 1)]);
  const int row = entry / (kSegments * 32);
  const int chunk = (entry / 32 % kSegments * segment + turn) * 32 + entry % 32;
  LookedUp up;
  up.of.load(products + row * stride, min(chunk, used - 1));
  if (first + lane < flagged && chunk < used) up.entry = row << kBlockBits | chunk;
  return up;
}

/// Second look at four rows: their parts join the wanted ones. What is left at each step is few and
/// lies scattered: it is queued, segments in their own place, so that lanes have work alike.
template <int kBlock>
__device__ __forceinline__ void want_parts(const float (&least)[kRows], Found& found,
                                           const uint4* products, int stride, const Shared& shared,
                                           std::uint32_t* segments, bool counted, int chunks,
                                           int used, int segment, int lane) {
  constexpr int kPerChunk = kChunkBlocks<kBlock>;
  constexpr int kTileBlocks = kTileKeys / kBlock;
  const int turns = (used + 31) / 32;
  int flagged = 0;
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
#pragma unroll 1
    for (int s = 0; s * segment < turns; ++s) {
      const int mine = (r * kSegments + s) * 32 + lane;
      const bool reaches = __uint_as_float(segments[mine]) >= least[r];
      const unsigned lanes = __ballot_sync(kAllLanes, reaches);
      if (reaches) segments[flagged + __popc(lanes & common::lanes_below(lane))] = mine;
      flagged += __popc(lanes);
    }
  }
  __syncwarp();
  if (flagged == 0) return;
  Queue& queue = found.queue;
  int waiting = 0;
  int turn = 0;
  int first = 0;
  const auto look = [&] {
    return look_up(products, stride, segments, flagged, used, segment, turn, first, lane);
  };
  LookedUp next{};
  if constexpr (kAhead<kBlock>) next = look();
#pragma unroll 1
  while (turn < segment) {
    // What the next look reads is on its way meanwhile.
    LookedUp now = next;
    if constexpr (!kAhead<kBlock>) now = look();
    first += 32;
    if (first >= flagged) {
      first = 0;
      ++turn;
    }
    if constexpr (kAhead<kBlock>) {
      if (turn < segment) next = look();
    }
    const bool there = now.entry >= 0;
    const int r = there ? now.entry >> kBlockBits : 0;
    const int chunk = there ? now.entry & ((1 << kBlockBits) - 1) : 0;
    Chooser& row = found.rows[r];
#pragma unroll
    for (int n = 0; n < kPerChunk; ++n) {
      const int block = chunk * kPerChunk + n;
      const std::uint32_t word = now.of.word(n / kTileBlocks);
      const KeyBound key = key_of(shared.keys, chunks, chunk, n);
      const float upper = bound_block<kBlock>(word, n % kTileBlocks, row.query, key).upper;
      const bool reaches = there && block >= row.begin && block < row.end && upper >= row.least;
      const unsigned lanes = __ballot_sync(kAllLanes, reaches);
      if (reaches) {
        const int to = waiting + __popc(lanes & common::lanes_below(lane));
        queue.words[to] = word;
        queue.blocks[to] = r << kBlockBits | block;
        if (counted) atomicAdd(&row.candidates, 1);
      }
      waiting += __popc(lanes);
      if (waiting >= 32) {
        __syncwarp();
        waiting -= 32;
        want_block<kBlock>(found, shared, chunks, waiting + lane);
        __syncwarp();
      }
    }
  }
  __syncwarp();
  if (lane < waiting) want_block<kBlock>(found, shared, chunks, lane);
  __syncwarp();
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
  __shared__ Found found_by[kWarps];
  const Sizes sizes(p.columns, kBlock);
  const Shared shared{
      .keys = raw,
      .segments = reinterpret_cast<std::uint32_t*>(reinterpret_cast<std::uint8_t*>(raw) +
                                                   sizes.key_bytes(kBlock)),
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
  bool plain = load_key_bounds<kBlock>(p, shared, rows, tile.request, head / p.shares,
                                       static_cast<int>(ceil_div(keys, kBlock)), sizes.chunks);
  plain = __syncthreads_and(plain) != 0;
  std::uint32_t* segments = shared.segments + warp * kRows * kSegments * 32;
  Found& found = found_by[warp];
  const int stride = static_cast<int>(p.stride_products / 4);
  // Located lane by lane: the divisions are paid once.
  const Row located = common::topk::locate_row(
      p.rows, rows, head,
      max(0, min(lane / kRows * kTurnRows + warp * kRows + lane % kRows, last)));
#pragma unroll 1
  for (int turn = 0; turn < kTurns; ++turn) {
    const int first = turn * kTurnRows + warp * kRows;
    if (first > last) break;
    const int mine = lane / kRowLanes;
    const bool valid = first + mine <= last;
    bool finite = false;
    bool scored = false;
    {
      const Row row = common::topk::row_of_lane(located, turn * kRows + mine);
      const QueryBound query = bound_query<Item>(p, rows.q_begin + row.token, head, lane, finite);
      const int k = common::topk::free_slots(p.rows, row);
      const bool all = common::topk::free_blocks(row) <= k && p.rows.chosen.data == nullptr;
      scored = valid && k > 0 && !all && row.init < row.local;
      if (lane % kRowLanes == 0)
        found.rows[mine] = {.query = query,
                            .least = INFINITY,
                            .begin = scored ? row.init : 0,
                            .end = scored ? row.local : 0,
                            .k = max(k, 1),
                            .candidates = 0};
    }
    __syncwarp();
    const unsigned lanes = __ballot_sync(kAllLanes, scored);
    if (lanes != 0) {
      const uint4* products =
          reinterpret_cast<const uint4*>(p.products) + (at * kTileRows + first) * stride;
      float least[kRows];
      look_at_rows<kBlock>(least, found.rows, products, stride, shared, segments, plain,
                           sizes.chunks, used, segment, lane);
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        if ((lanes >> r * kRowLanes & 1) == 0) least[r] = INFINITY;
        if (lane == r) found.rows[r].least = least[r];
      }
      __syncwarp();
      want_parts<kBlock>(least, found, products, stride, shared, segments,
                         p.candidates.data != nullptr, sizes.chunks, used, segment, lane);
    }
    if (p.candidates.data != nullptr && valid && lane % kRowLanes == 0) {
      common::item_of(p.candidates, rows.q_begin + first + mine, head) =
          finite || !scored ? found.rows[mine].candidates : -1;
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
