// SPDX-License-Identifier: MIT
// What index tensors in host memory hold: reading a request's numbers, and the checks that come
// before anything is written. One pass over each tensor; no memory but a small array on the stack.
#include "core/contents.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <limits>
#include <span>
#include <string>

#include "core/fail.h"
#include "core/host_tensor.h"
#include "core/op_traits.h"
#include "core/parallel.h"

namespace msa::core {
namespace {

std::string at(const char* what, std::int64_t index) {
  return std::string(what) + " " + std::to_string(index);
}

// Throws unless low <= value <= high.
void expect_range(std::int64_t value, std::int64_t low, std::int64_t high, const char* argument,
                  const char* what, std::int64_t index) {
  if (value >= low && value <= high) return;
  fail(ErrorCode::InvalidContent, argument, at(what, index),
       std::to_string(low) + " to " + std::to_string(high), std::to_string(value));
}

// Rows of ragged keys that the call holds; no limit where the operation takes no keys.
std::int64_t num_key_rows(const Call& call) {
  const Tensor& keys = call.k ? call.k : call.index_k ? call.index_k : call.k_cache;
  return keys ? keys.shape[0] : kNoLimit;
}

void check_queries(const Problem& problem, const Call& call) {
  const Tensor& starts = call.batch.cu_seqlens_q;
  if (!starts) return;
  const std::int64_t rows = num_query_rows(call);
  constexpr const char* kName = "batch.cu_seqlens_q";
  expect_range(read_i32(starts, 0), 0, 0, kName, "entry", 0);
  for (std::int64_t b = 0; b + 1 < starts.shape[0]; ++b) {
    const std::int64_t begin = read_i32(starts, b);
    const std::int64_t longest = std::min(begin + problem.bounds.max_seqlen_q, rows);
    expect_range(read_i32(starts, b + 1), begin, longest, kName, "entry", b + 1);
  }
}

void check_positions(const Problem& problem, const Call& call, const Request& r, std::int64_t b) {
  if (call.batch.key_offsets) {
    expect_range(r.key_offset, 0, std::numeric_limits<std::int32_t>::max(), "batch.key_offsets",
                 "request", b);
    if (r.key_offset % problem.selection.block_size != 0) {
      fail(ErrorCode::InvalidContent, "batch.key_offsets", at("request", b),
           "a multiple of " + std::to_string(problem.selection.block_size),
           std::to_string(r.key_offset));
    }
  }
  if (call.batch.total_seqlens_k) {
    expect_range(r.total_k, r.key_offset + r.seqlen_k, std::numeric_limits<std::int32_t>::max(),
                 "batch.total_seqlens_k", "request", b);
  }
}

// Ragged keys: the request's rows lie inside the tensor and before the next request's.
void check_key_rows(const Call& call, const Request& r, std::int64_t b) {
  const std::int64_t rows = num_key_rows(call);
  const Tensor& starts = call.batch.cu_seqlens_k;
  if (!starts) {
    return expect_range(r.seqlen_k, 0, rows - r.k_begin, "batch.seqlens_k", "request", b);
  }
  if (b == 0) expect_range(r.k_begin, 0, rows, "batch.cu_seqlens_k", "entry", 0);
  expect_range(read_i32(starts, b + 1), r.k_begin + r.seqlen_k, rows, "batch.cu_seqlens_k", "entry",
               b + 1);
}

// Paged keys: enough columns.
void check_columns(const Problem& problem, const Call& call, const Request& r, std::int64_t b) {
  const Tensor& table = call.batch.page_table;
  const std::int64_t used = ceil_div(r.seqlen_k, problem.bounds.page_size);
  if (used > table.shape[1]) {
    fail(
        ErrorCode::InvalidContent, "batch.page_table", at("request", b),
        "at least " + std::to_string(used) + " columns for " + std::to_string(r.seqlen_k) + " keys",
        std::to_string(table.shape[1]));
  }
}

// A page that exists in every column of [begin, end).
void check_pages(const Call& call, std::int64_t b, std::int64_t begin, std::int64_t end) {
  const Tensor& table = call.batch.page_table;
  const std::int64_t pages = num_key_rows(call);
  for (std::int64_t column = begin; column < end; ++column) {
    const std::int64_t page = read_i32(table, b, column);
    if (page >= 0 && page < pages) continue;
    fail(ErrorCode::InvalidContent, "batch.page_table",
         at("request", b) + ", " + at("column", column), "0 to " + std::to_string(pages - 1),
         std::to_string(page));
  }
}

struct Place {
  const char* argument;
  int part;  // -1: the argument is no list of parts
  std::int64_t row, head;

  std::string name() const {
    return part < 0 ? argument : std::string(argument) + "[" + std::to_string(part) + "]";
  }
  std::string where(std::int64_t slot) const {
    return at("row", row) + ", " + at("head", head) + ", " + at("slot", slot);
  }
};

[[noreturn]] void fail_range(const Place& place, std::int64_t slot, std::int64_t limit,
                             std::int64_t id) {
  const std::string top = std::to_string(std::min<std::int64_t>(limit - 1, INT32_MAX));
  fail(ErrorCode::InvalidContent, place.name(), place.where(slot),
       limit > 0 ? "0 to " + top + " or -1" : "-1, as the request has no blocks",
       std::to_string(id));
}

[[noreturn]] void fail_duplicate(const Place& place, std::int64_t slot, std::int64_t id) {
  fail(ErrorCode::InvalidContent, place.name(), place.where(slot), "an id not listed before",
       std::to_string(id) + " again");
}

// Where the second of two equal ids stands.
[[noreturn]] void fail_twin(std::span<const std::int32_t> ids, std::int32_t twin,
                            const Place& place) {
  const auto first = std::find(ids.begin(), ids.end(), twin);
  const auto second = std::find(first + 1, ids.end(), twin);
  fail_duplicate(place, second - ids.begin(), twin);
}

// False: surely all different. One bit for each id modulo 4096, so that 512K tokens in blocks of
// 128 never fool it.
bool may_repeat(std::span<const std::int32_t> ids) {
  std::array<std::uint64_t, 64> seen{};
  std::uint64_t repeated = 0;
  for (const std::int32_t id : ids) {
    std::uint64_t& word = seen[static_cast<std::size_t>(id / 64 % 64)];
    const std::uint64_t bit = std::uint64_t{1} << (id % 64);
    repeated |= word & bit;
    word |= bit;
  }
  return repeated != 0;
}

// Lists out of order; ascending ones, which selections write, never come here.
void check_unique(const std::int32_t* list, std::int64_t step, std::int64_t n, const Place& place) {
  std::array<std::int32_t, kMaxTopk> copy;
  const std::span<std::int32_t> ids = std::span(copy).first(static_cast<std::size_t>(n));
  for (std::size_t slot = 0; slot < ids.size(); ++slot)
    ids[slot] = list[static_cast<std::int64_t>(slot) * step];
  if (!may_repeat(ids)) return;
  std::array<std::int32_t, kMaxTopk> sorted = copy;
  const auto end = sorted.begin() + n;
  std::sort(sorted.begin(), end);
  const auto twin = std::adjacent_find(sorted.begin(), end);
  if (twin != end) fail_twin(ids, *twin, place);
}

// Full lists in ascending order are what selections write. Each pair is compared without a branch,
// so that compilers use vectors: a million lists take milliseconds.
bool is_full_and_ascending(const std::int32_t* ids, std::int64_t width, std::int64_t limit) {
  std::int32_t broken = ids[0] < 0 || ids[width - 1] >= limit ? 1 : 0;
  for (std::int64_t slot = 1; slot < width; ++slot) broken |= ids[slot - 1] >= ids[slot] ? 1 : 0;
  return broken == 0;
}

// One list: ids 0 .. limit - 1, each once, up to the first -1. Returns the length of the valid
// prefix.
std::int64_t check_list(const std::int32_t* ids, std::int64_t step, std::int64_t width,
                        std::int64_t limit, const Place& place) {
  if (step == 1 && is_full_and_ascending(ids, width, limit)) return width;
  bool ascending = true;
  std::int64_t before = -1;
  std::int64_t slot = 0;
  for (; slot < width; ++slot) {
    const std::int64_t id = ids[slot * step];
    if (id < 0 || id >= limit) {
      if (id == -1) break;
      fail_range(place, slot, limit, id);
    }
    ascending &= id > before;
    before = id;
  }
  if (!ascending) check_unique(ids, step, slot, place);
  return slot;
}

const std::int32_t* list_at(const Tensor& ids, std::int64_t row, std::int64_t head) {
  return static_cast<const std::int32_t*>(ids.data) + row * ids.stride[0] + head * ids.stride[1];
}

// Rows [begin, end) of one request.
void check_block_ids(const Call& call, const Request& r, std::int64_t begin, std::int64_t end) {
  const Tensor& ids = call.block_ids_in;
  const std::int64_t limit = r.legal_blocks();
  for (std::int64_t row = begin; row < end; ++row) {
    for (std::int64_t head = 0; head < ids.shape[1]; ++head) {
      check_list(list_at(ids, row, head), ids.stride[2], ids.shape[2], limit,
                 {"block_ids", -1, row, head});
    }
  }
}

// The shards are disjoint: an id stands in one part only.
void check_parts_disjoint(const Call& call, std::int64_t row, std::int64_t head) {
  std::array<std::int32_t, std::size_t{kMaxParts} * kMaxTopk> all;
  std::size_t count = 0;
  for (std::size_t part = 0; part < call.part_ids.size(); ++part) {
    const Tensor& ids = call.part_ids[part];
    const std::int32_t* list = list_at(ids, row, head);
    const Place place{"block_ids_parts", static_cast<int>(part), row, head};
    const std::int64_t n = check_list(list, ids.stride[2], ids.shape[2], kNoLimit, place);
    for (std::int64_t slot = 0; slot < n; ++slot) all[count++] = list[slot * ids.stride[2]];
  }
  const auto end = all.begin() + static_cast<std::ptrdiff_t>(count);
  std::sort(all.begin(), end);
  const auto twin = std::adjacent_find(all.begin(), end);
  if (twin == end) return;
  fail(ErrorCode::InvalidContent, "block_ids_parts", at("row", row) + ", " + at("head", head),
       "each id in one part only", std::to_string(*twin) + " in two");
}

// Contents are read by all threads: on one, 1 M page ids or 64 K lists of 16 take 0.4 ms. A piece
// takes 7 us.
constexpr std::int64_t kEntriesOfTask = 16384;

// Calls check(begin, end) for pieces of [0, count) whose items have `entries` numbers each. A call
// with one piece starts no threads. The error of the first bad piece is the one that is thrown.
template <class Check>
void for_each_piece(const Problem& problem, std::int64_t count, std::int64_t entries,
                    const Check& check) {
  const std::int64_t piece =
      std::max<std::int64_t>(1, kEntriesOfTask / std::max<std::int64_t>(1, entries));
  const int wanted = problem.options.threads > 0 ? problem.options.threads : omp_get_max_threads();
  for_each_task(
      std::min(wanted, omp_get_thread_limit()), ceil_div(count, piece),
      [&](std::int64_t task, int) { check(task * piece, std::min((task + 1) * piece, count)); });
}

void check_parts(const Problem& problem, const Call& call) {
  if (call.part_ids.empty()) return;
  const Tensor& ids = call.part_ids[0];
  const auto parts = static_cast<std::int64_t>(call.part_ids.size());
  for_each_piece(problem, ids.shape[0], ids.shape[1] * ids.shape[2] * parts,
                 [&](std::int64_t begin, std::int64_t end) {
                   for (std::int64_t row = begin; row < end; ++row) {
                     for (std::int64_t head = 0; head < ids.shape[1]; ++head)
                       check_parts_disjoint(call, row, head);
                   }
                 });
}

// The request that owns a query row; lengths have been checked.
std::int64_t request_of(const Call& call, std::int64_t row) {
  const Tensor& starts = call.batch.cu_seqlens_q;
  if (!starts) return 0;
  std::int64_t low = 0, high = num_requests(call);  // the last start at or before the row
  while (low < high) {
    const std::int64_t middle = (low + high + 1) / 2;
    if (read_i32(starts, middle) <= row) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  return low;
}

// All lists, those of padding rows aside.
void check_lists(const Problem& problem, const Call& call) {
  const Tensor& ids = call.block_ids_in;
  const std::int64_t requests = num_requests(call);
  const std::int64_t owned =
      call.batch.cu_seqlens_q ? read_i32(call.batch.cu_seqlens_q, requests) : ids.shape[0];
  for_each_piece(problem, owned, ids.shape[1] * ids.shape[2],
                 [&](std::int64_t begin, std::int64_t end) {
                   for (std::int64_t row = begin; row < end;) {
                     const Request r = read_request(problem, call, request_of(call, row), 0);
                     const std::int64_t stop = std::min(end, r.q_begin + r.seqlen_q);
                     check_block_ids(call, r, row, stop);
                     row = stop;
                   }
                 });
}

// The page table: requests one after the other, each as many pieces as the longest may need.
void check_tables(const Problem& problem, const Call& call) {
  const std::int64_t columns =
      std::min(call.batch.page_table.shape[1],
               ceil_div(problem.bounds.max_seqlen_k, problem.bounds.page_size));
  if (columns == 0) return;
  for_each_piece(problem, num_requests(call) * columns, 1,
                 [&](std::int64_t begin, std::int64_t end) {
                   for (std::int64_t at = begin; at < end;) {
                     const std::int64_t b = at / columns, column = at % columns;
                     const std::int64_t stop = std::min(end - b * columns, columns);
                     const Request r = read_request(problem, call, b, 0);
                     const std::int64_t used = ceil_div(r.seqlen_k, problem.bounds.page_size);
                     check_pages(call, b, column, std::min(stop, used));
                     at = b * columns + stop;
                   }
                 });
}

// invert_selection: the result has a row for each block of each request.
void check_row_ptr(const Call& call, std::int64_t blocks) {
  if (call.row_ptr.shape[1] > blocks) return;
  fail(ErrorCode::InvalidContent, "row_ptr", "dimension 1",
       "at least " + std::to_string(blocks + 1) + ", one more than the blocks of the batch",
       std::to_string(call.row_ptr.shape[1]));
}

// quantize_kv: every new row has a position, and a page that exists.
void check_append(const Problem& problem, const Call& call) {
  if (problem.bounds.page_size == 0) return;
  check_queries(problem, call);
  for (std::int64_t b = 0; b < num_requests(call); ++b) {
    const Request r = read_request(problem, call, b, 0);
    expect_range(r.seqlen_k, r.seqlen_q, problem.bounds.max_seqlen_k, "batch.seqlens_k", "request",
                 b);
    if (r.seqlen_q == 0) continue;
    check_columns(problem, call, r, b);
    check_pages(call, b, (r.seqlen_k - r.seqlen_q) / problem.bounds.page_size,
                ceil_div(r.seqlen_k, problem.bounds.page_size));
  }
}

// quantize_index: positions within each request, and its rows or the pages from there on.
void check_copy(const Problem& problem, const Call& call) {
  const bool paged = problem.bounds.page_size != 0;
  std::int64_t k_begin = 0;
  for (std::int64_t b = 0; b < num_requests(call); ++b) {
    const Request r = read_request(problem, call, b, k_begin);
    expect_range(r.seqlen_k, 0, problem.bounds.max_seqlen_k, "batch.seqlens_k", "request", b);
    const std::int64_t first = first_new_key(call, b);
    expect_range(first, 0, r.seqlen_k, "batch.q_offsets", "request", b);
    k_begin += r.seqlen_k;
    if (!paged) {
      check_key_rows(call, r, b);
    } else if (first < r.seqlen_k) {
      check_columns(problem, call, r, b);
      check_pages(call, b, first / problem.bounds.page_size,
                  ceil_div(r.seqlen_k, problem.bounds.page_size));
    }
  }
}

}  // namespace

std::int64_t first_new_key(const Call& call, std::int64_t b) {
  return call.batch.q_offsets ? read_i32(call.batch.q_offsets, b) : 0;
}

std::int64_t num_requests(const Call& call) {
  if (call.batch.cu_seqlens_q) return call.batch.cu_seqlens_q.shape[0] - 1;
  if (call.batch.seqlens_k) return call.batch.seqlens_k.shape[0];
  return 1;
}

std::int64_t num_query_rows(const Call& call) {
  for (const Tensor* tensor :
       {&call.q, &call.index_q, &call.scores_in, &call.block_ids_in, &call.k_rows}) {
    if (*tensor) return tensor->shape[0];
  }
  if (!call.part_outs.empty()) return call.part_outs[0].shape[0];
  return call.part_ids.empty() ? 0 : call.part_ids[0].shape[0];
}

Request read_request(const Problem& problem, const Call& call, std::int64_t b,
                     std::int64_t k_begin) {
  const Batch& batch = call.batch;
  Request r{
      .k_begin = k_begin, .block_size = problem.selection.block_size, .causal = problem.causal};
  r.q_begin = batch.cu_seqlens_q ? read_i32(batch.cu_seqlens_q, b) : 0;
  r.seqlen_q =
      (batch.cu_seqlens_q ? read_i32(batch.cu_seqlens_q, b + 1) : num_query_rows(call)) - r.q_begin;
  r.seqlen_k = batch.seqlens_k ? read_i32(batch.seqlens_k, b) : num_key_rows(call);
  if (batch.cu_seqlens_k) r.k_begin = read_i32(batch.cu_seqlens_k, b);
  if (problem.bounds.page_size != 0) r.k_begin = 0;
  if (batch.key_offsets) r.key_offset = read_i32(batch.key_offsets, b);
  r.offset =
      batch.q_offsets ? read_i32(batch.q_offsets, b) : r.key_offset + r.seqlen_k - r.seqlen_q;
  if (batch.total_seqlens_k) {
    r.total_k = read_i32(batch.total_seqlens_k, b);
  } else {
    const bool shard = static_cast<bool>(batch.key_offsets);
    r.total_k = shard && problem.causal ? kNoLimit : r.key_offset + r.seqlen_k;
  }
  return r;
}

void validate_contents(const Problem& problem, const Call& call) {
  if (op_traits(problem.op).merges) return check_parts(problem, call);
  if (op_traits(problem.op).stores) return check_append(problem, call);
  if (op_traits(problem.op).copies) return check_copy(problem, call);
  check_queries(problem, call);
  const bool has_keys = call.k || call.index_k;
  std::int64_t k_begin = 0;
  std::int64_t blocks = 0;
  for (std::int64_t b = 0; b < num_requests(call); ++b) {
    const Request r = read_request(problem, call, b, k_begin);
    expect_range(r.seqlen_k, 0, problem.bounds.max_seqlen_k, "batch.seqlens_k", "request", b);
    check_positions(problem, call, r, b);
    if (has_keys && problem.bounds.page_size == 0) check_key_rows(call, r, b);
    if (has_keys && problem.bounds.page_size != 0) check_columns(problem, call, r, b);
    k_begin += r.seqlen_k;
    blocks += r.blocks().size();
  }
  if (has_keys && problem.bounds.page_size != 0) check_tables(problem, call);
  if (call.block_ids_in) check_lists(problem, call);
  if (call.row_ptr) check_row_ptr(call, blocks);
}

}  // namespace msa::core
