// SPDX-License-Identifier: MIT
// Plain structs that host code fills and every kernel reads by value: the batch, strided views, the
// status word. Compiles with and without nvcc; no msa type and no CUDA type above this layer enters
// a kernel.
#pragma once

#include <cstdint>

namespace msa::cuda {

/// Element types as kernels are compiled for.
enum class Storage : std::uint32_t { F32, Bf16, F16, E4m3, I8, E2m1 };

/// Bits of one element.
constexpr int bits_of(Storage storage) {
  if (storage == Storage::E2m1) return 4;
  if (storage == Storage::E4m3 || storage == Storage::I8) return 8;
  return storage == Storage::F32 ? 32 : 16;
}

/// What a kernel found wrong in the contents of an index tensor. Order and values are part of the
/// status word.
enum class FaultKind : std::uint32_t {
  Length,   // cu_seqlens or seqlens outside the planned bounds or the tensors; new keys that a
            // request does not have
  PageId,   // page id out of range
  BlockId,  // block id out of range
  Offset,   // key_offset negative or not a multiple of the block size
};

/// Lowest (request, row, kind) at fault, kept by atomicMin: request << 40 | (row + 1) << 8 | kind;
/// row -1: the request's.
using StatusWord = unsigned long long;
inline constexpr StatusWord kNoFault = ~StatusWord{0};

/// int32 vector with any stride; data nullptr: not given.
struct IntVector {
  const int* data = nullptr;
  std::int64_t stride = 1;
};

/// The items of every (token, head), those of one pair side by side: [T, H, n], or [T, H] where n
/// is 1. Strides count items. Device memory; data nullptr: not given.
template <class Item>
struct Rows {
  Item* data = nullptr;
  std::int64_t stride_t = 0;
  std::int64_t stride_h = 0;
};

/// The same with a stride between the items of a pair: a slot each.
template <class Item>
struct Slots {
  Item* data = nullptr;
  std::int64_t stride_t = 0;
  std::int64_t stride_h = 0;
  std::int64_t stride_slot = 1;
};

/// What codes of keys or values are multiplied by. Whoever shares a scale has a stride of 0; data
/// nullptr: a value is its code.
struct Scales {
  const float* data = nullptr;
  std::int64_t stride_page = 0;
  std::int64_t stride_token = 0;  // of slots in a page, or of ragged rows
  std::int64_t stride_head = 0;
};

/// Elements of e2m1 that share a scale.
inline constexpr int kGroupItems = 16;

/// What codes of four bits are multiplied by: codes of e4m3, one for each 16 elements of a row,
/// those of a row side by side.
struct GroupScales {
  const std::uint8_t* data = nullptr;
  std::int64_t stride_page = 0;
  std::int64_t stride_token = 0;
  std::int64_t stride_head = 0;
  const float* all = nullptr;  // one more for all of them, or none
  int rounded = 0;             // code times scale is rounded to e4m3
};

/// Rows of keys, values or codes as they lie in memory: pages, or one of ragged rows. Strides count
/// items.
template <class Item>
struct KeyRows {
  Item* data = nullptr;
  std::int64_t stride_page = 0;
  std::int64_t stride_token = 0;
  std::int64_t stride_head = 0;
};

/// Bounds of a filter, {scale, error, norm}: of a page and head, or of 16 ragged rows and head.
template <class Item>
struct FilterBounds {
  Item* data = nullptr;
  std::int64_t stride_group = 0;
  std::int64_t stride_head = 0;
  std::int64_t stride_item = 0;
  int rotated = 0;  // codes of rotated keys
};

/// Up to here no finite code times the scale overflows: 448 * 2^119 does not.
inline constexpr float kLargestScale = 0x1p119f;

/// Block lists as the caller gave them, contents unchecked; common/lists.cuh reads them.
struct Lists {
  Slots<const int> ids{};  // [T, Hkv, k]
  int k = 0;
};

/// What attention writes.
struct RowsOut {
  Rows<void> out{};   // [T, Hq, D]
  int f32 = 0;        // items are floats; else 16 bits wide
  int vectors = 0;    // rows of out are 16-byte aligned
  Rows<float> lse{};  // [T, Hq] or none
};

/// Lengths, positions and pages of a batch, as the caller gave them: device memory, contents
/// unchecked.
struct BatchParams {
  IntVector cu_seqlens_q{};     // [B + 1]
  IntVector seqlens_k{};        // [B]
  IntVector cu_seqlens_k{};     // [B + 1] or none
  IntVector q_offsets{};        // [B] or none
  IntVector key_offsets{};      // [B] or none
  IntVector total_seqlens_k{};  // [B] or none
  IntVector page_table{};       // [B, pages]: stride is that of the pages
  std::int64_t page_table_stride_b = 0;
  std::int64_t page_columns = 0;  // width of the page table
  std::int64_t num_pages = 0;     // P of the caches: the smallest where they differ
  std::int64_t num_rows_k = 0;    // N of ragged keys
  std::int64_t total_q = 0;       // T, padding rows included
  std::int64_t max_seqlen_q = 0;
  std::int64_t max_seqlen_k = 0;
  int batch = 0;
  int page_size = 0;  // 0: ragged keys
  int block_size = 128;
  int local_blocks = 1;
  int init_blocks = 0;
  int causal = 1;
  StatusWord* status = nullptr;
};

/// One request, checked and clamped: what visibility needs. The prologue writes one a request.
struct RequestRecord {
  std::int64_t k_begin;     // first row of ragged keys; 0 when paged
  std::int64_t q_begin;     // first row of q
  std::int64_t offset;      // global position of query row 0
  std::int64_t key_offset;  // global position of key 0, a multiple of the block size
  std::int64_t total_k;     // length of the whole sequence; kNoLimit where nobody said
  int seqlen_q;
  int seqlen_k;
};

inline constexpr std::int64_t kNoLimit = INT64_MAX;

/// Pairs of a query row and a KV head whose tile ended non-finite: computed again, each with
/// nothing but its own keys. Bit row * heads_kv + head.
struct Suspects {
  int* any = nullptr;  // not 0: some bit is set
  unsigned* pairs = nullptr;
};

/// Words of bits for so many pairs.
constexpr std::int64_t suspect_words(std::int64_t pairs) { return (pairs + 31) / 32; }

}  // namespace msa::cuda
