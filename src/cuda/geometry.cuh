// SPDX-License-Identifier: MIT
// Device twin of core/geometry.h: who sees what, from a request's record; and how a record is read
// from the batch. Positions and block ids are global, keys and rows local to the request.
#pragma once

#include "cuda/params.h"

namespace msa::cuda {

__host__ __device__ constexpr std::int64_t ceil_div(std::int64_t a, std::int64_t b) {
  return (a + b - 1) / b;
}

__device__ __forceinline__ std::int64_t clamp64(std::int64_t x, std::int64_t lo, std::int64_t hi) {
  return x < lo ? lo : (x > hi ? hi : x);
}

__device__ __forceinline__ int load(const IntVector& v, std::int64_t i) {
  return __ldg(v.data + i * v.stride);
}

__device__ __forceinline__ const int* page_address(const BatchParams& batch, int request,
                                                   std::int64_t page) {
  return batch.page_table.data + request * batch.page_table_stride_b +
         page * batch.page_table.stride;
}

__device__ __forceinline__ int load_page(const BatchParams& batch, int request, std::int64_t page) {
  return __ldg(page_address(batch, request, page));
}

__device__ __forceinline__ void report(StatusWord* status, int request, std::int64_t row,
                                       FaultKind kind) {
  atomicMin(status, (static_cast<StatusWord>(request) << 40) |
                        (static_cast<StatusWord>(row + 1) << 8) | static_cast<StatusWord>(kind));
}

__device__ __forceinline__ void note(const Suspects& suspects, std::int64_t pair) {
  atomicOr(suspects.pairs + (pair >> 5), 1u << (pair & 31));
  *suspects.any = 1;
}

/// The request that owns a row of q, or -1: rows of padding.
__device__ __forceinline__ int owner_of(const BatchParams& batch, const RequestRecord* requests,
                                        std::int64_t row) {
  int low = 0;
  int high = batch.batch;
  while (low < high) {  // first request that begins behind the row
    const int middle = (low + high) / 2;
    if (requests[middle].q_begin <= row) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  for (int b = low - 1; b >= 0; --b) {
    if (row < requests[b].q_begin + requests[b].seqlen_q) return b;
    if (requests[b].seqlen_q != 0) return -1;
  }
  return -1;
}

/// Global position of the last key anywhere that query row i of the request may see; negative:
/// none.
__device__ __forceinline__ std::int64_t last_position(const RequestRecord& r, std::int64_t i,
                                                      bool causal) {
  const std::int64_t end = r.total_k == kNoLimit ? kNoLimit : r.total_k - 1;
  return causal ? min(r.offset + i, end) : end;
}

/// Local keys that query row i sees: 0 .. visible_keys - 1.
__device__ __forceinline__ int visible_keys(const RequestRecord& r, std::int64_t i, bool causal) {
  const std::int64_t last = last_position(r, i, causal);
  if (last == kNoLimit) return r.seqlen_k;
  return static_cast<int>(clamp64(last - r.key_offset + 1, 0, r.seqlen_k));
}

/// Global id of the request's first block.
__device__ __forceinline__ std::int64_t first_block(const RequestRecord& r, int block_size) {
  return r.key_offset / block_size;
}

/// Whether global block `id` is forced for query row i (says nothing about whether it lies in this
/// shard).
__device__ __forceinline__ bool is_forced(const RequestRecord& r, std::int64_t i, std::int64_t id,
                                          int block_size, bool causal, int local_blocks,
                                          int init_blocks) {
  const std::int64_t last = last_position(r, i, causal);
  if (last < 0) return false;
  const std::int64_t last_block = last / block_size;
  return id <= last_block && (id > last_block - local_blocks || id < init_blocks);
}

/// Ids that a block list may hold: 0 .. legal_blocks - 1.
__device__ __forceinline__ std::int64_t legal_blocks(const RequestRecord& r, int block_size) {
  return r.total_k == kNoLimit ? kNoLimit : ceil_div(r.total_k, block_size);
}

/// Reads request b and clamps what lies outside the bounds or the tensors, so that nothing behind
/// this can read or write outside them; `fault` tells. `k_begin` is the sum of the lengths before b
/// where ragged keys have no cu_seqlens_k.
__device__ __forceinline__ RequestRecord load_request(const BatchParams& batch, int b,
                                                      std::int64_t k_begin, bool* length_fault,
                                                      bool* offset_fault) {
  RequestRecord r;
  const bool has_starts_q = batch.cu_seqlens_q.data != nullptr;  // none: one request with every row
  const std::int64_t begin = has_starts_q ? load(batch.cu_seqlens_q, b) : 0;
  const std::int64_t end = has_starts_q ? load(batch.cu_seqlens_q, b + 1) : batch.total_q;
  const std::int64_t seqlen_k =
      batch.seqlens_k.data != nullptr ? load(batch.seqlens_k, b) : batch.num_rows_k;
  r.q_begin = clamp64(begin, 0, batch.total_q);
  r.seqlen_q =
      static_cast<int>(clamp64(end - begin, 0, min(batch.max_seqlen_q, batch.total_q - r.q_begin)));
  std::int64_t capacity = batch.max_seqlen_k;
  r.k_begin = 0;
  if (batch.page_size != 0) {
    capacity = min(capacity, batch.page_columns * batch.page_size);
  } else {
    const std::int64_t start =
        batch.cu_seqlens_k.data != nullptr ? load(batch.cu_seqlens_k, b) : k_begin;
    r.k_begin = clamp64(start, 0, batch.num_rows_k);
    *length_fault = r.k_begin != start;
    if (batch.cu_seqlens_k.data != nullptr) {
      const std::int64_t end_k = load(batch.cu_seqlens_k, b + 1);
      capacity = min(capacity, end_k - start);
      *length_fault |= end_k > batch.num_rows_k;
    }
    capacity = clamp64(capacity, 0, batch.num_rows_k - r.k_begin);
  }
  r.seqlen_k = static_cast<int>(clamp64(seqlen_k, 0, capacity));
  *length_fault = (batch.page_size == 0 && *length_fault) || r.q_begin != begin ||
                  r.seqlen_q != end - begin || r.seqlen_k != seqlen_k;
  r.key_offset = 0;
  *offset_fault = false;
  if (batch.key_offsets.data != nullptr) {
    r.key_offset = load(batch.key_offsets, b);
    *offset_fault = r.key_offset < 0 || r.key_offset % batch.block_size != 0;
  }
  if (*offset_fault) {
    r.key_offset = 0;
    r.seqlen_k = 0;
  }
  r.offset = batch.q_offsets.data != nullptr ? load(batch.q_offsets, b)
                                             : r.key_offset + r.seqlen_k - r.seqlen_q;
  const bool shard = batch.key_offsets.data != nullptr;
  r.total_k = shard && batch.causal ? kNoLimit : r.key_offset + r.seqlen_k;
  if (batch.total_seqlens_k.data != nullptr) {
    const std::int64_t total = load(batch.total_seqlens_k, b);
    *length_fault |= total < r.key_offset + r.seqlen_k;
    r.total_k = total;
  }
  return r;
}

/// load_request for the first kernel of a run, in which one thread a request `reports` what is
/// wrong with it.
__device__ __forceinline__ RequestRecord check_request(const BatchParams& batch, int b,
                                                       std::int64_t k_begin, bool reports) {
  bool length_fault = false;
  bool offset_fault = false;
  const RequestRecord r = load_request(batch, b, k_begin, &length_fault, &offset_fault);
  if (b == 0 && r.q_begin != 0) length_fault = true;
  if (reports && length_fault) report(batch.status, b, -1, FaultKind::Length);
  if (reports && offset_fault) report(batch.status, b, -1, FaultKind::Offset);
  return r;
}

/// The first row of q behind all requests: padding of CUDA graphs. Where starts decrease, that is
/// behind the longest end, not the last one: a row belongs to a request or to the padding. Whole
/// warps call it.
__device__ __forceinline__ std::int64_t padding_begin(const BatchParams& batch) {
  const IntVector& starts = batch.cu_seqlens_q;
  if (starts.data == nullptr) return batch.total_q;
  int end = batch.batch == 0 ? load(starts, 0) : 0;
#pragma unroll 1
  for (int b = 1 + static_cast<int>(threadIdx.x % 32); b <= batch.batch; b += 32)
    end = max(end, load(starts, b));
  return clamp64(__reduce_max_sync(0xffffffffu, end), 0, batch.total_q);
}

/// The same for a batch without requests: its rows must begin at 0, too. One thread.
__device__ __forceinline__ void check_empty_batch(const BatchParams& batch) {
  if (batch.batch == 0 && batch.cu_seqlens_q.data != nullptr && load(batch.cu_seqlens_q, 0) != 0)
    report(batch.status, 0, -1, FaultKind::Length);
}

/// Keys of request b where their rows follow each other without cu_seqlens_k; nonsense counts as
/// none.
__device__ __forceinline__ std::int64_t rows_of(const BatchParams& batch, int b) {
  if (batch.page_size != 0 || batch.cu_seqlens_k.data != nullptr || batch.seqlens_k.data == nullptr)
    return 0;
  return clamp64(load(batch.seqlens_k, b), 0, batch.max_seqlen_k);
}

}  // namespace msa::cuda
