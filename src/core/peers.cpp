// SPDX-License-Identifier: MIT
#include "core/peers.h"

#include <algorithm>
#include <cstdint>
#include <limits>
#include <string>

#include "core/fail.h"
#include "msa/problem.h"

namespace msa::core {
namespace {

constexpr std::uintptr_t kVectorBytes = 16;
constexpr std::int64_t kMaxBlockSize = 256;

void expect(bool holds, const char* argument, const char* expected, const std::string& given) {
  if (!holds) fail(ErrorCode::InvalidArgument, argument, "", expected, given);
}

/// Of a GPU, one row behind the other.
void expect_dense(const Tensor& tensor, const char* argument, const char* shape, int rank,
                  bool dtype) {
  std::int64_t stride = 1;
  bool dense = tensor.rank == rank && dtype && tensor.data != nullptr &&
               tensor.device.type == DeviceType::Cuda;
  for (int d = tensor.rank - 1; d >= 0; --d) {
    const auto at = static_cast<std::size_t>(d);
    dense = dense && tensor.shape[at] > 0 && (tensor.stride[at] == stride || tensor.shape[at] == 1);
    stride *= tensor.shape[at];
  }
  expect(dense, argument, shape, to_string(tensor));
}

void expect_same_rows(const Tensor& tensor, const Tensor& as, int dims, const char* argument,
                      const char* expected) {
  const bool same = std::equal(tensor.shape.begin(), tensor.shape.begin() + dims, as.shape.begin());
  expect(same && tensor.device == as.device, argument, expected, to_string(tensor));
}

template <std::uintptr_t kMultiple>
bool lies_at(const void* address) {
  return address != nullptr && reinterpret_cast<std::uintptr_t>(address) % kMultiple == 0;
}

template <std::uintptr_t kAlignment>
void check_peers(const Peers& peers) {
  expect(peers.ranks >= 1 && peers.ranks <= kMaxRanks, "ranks", "1 to 63",
         std::to_string(peers.ranks));
  expect(peers.rank >= 0 && peers.rank < peers.ranks, "rank", "0 to ranks - 1",
         std::to_string(peers.rank));
  expect(peers.timeout_ms >= 0, "timeout_ms", "0 or more", std::to_string(peers.timeout_ms));
  const auto ranks = static_cast<std::size_t>(peers.ranks);
  expect(peers.boxes.size() == ranks && std::ranges::all_of(peers.boxes, lies_at<kAlignment>),
         "boxes", "an address of each rank, aligned as its items", "others");
  expect(peers.pads.size() == ranks && std::ranges::all_of(peers.pads, lies_at<4>), "pads",
         "an address of each rank, aligned to 4 bytes", "others");
}

void check_states(const AttendCall& call, const Operands& operands) {
  const Tensor& out = operands.out;
  const Tensor& lse = operands.lse;
  const std::int64_t width = out.shape[2] + kStatePad;
  const std::int64_t row = out.shape[1] * width;
  const auto ranks = static_cast<std::size_t>(call.peers.ranks);
  expect(call.states.size() == ranks && std::ranges::all_of(call.states, lies_at<kVectorBytes>),
         "states", "an address of each rank, aligned to 16 bytes", "others");
  const auto* const box =
      static_cast<const float*>(call.states[static_cast<std::size_t>(call.peers.rank)]) +
      call.peers.rank * out.shape[0] * row;
  const bool place = out.dtype == DType::F32 && out.data == box && out.stride[2] == 1 &&
                     (out.shape[1] == 1 || out.stride[1] == width) &&
                     (out.shape[0] == 1 || out.stride[0] == row);
  expect(place, "out", "this rank's part of its box of states, f32 [T, Hq, Dv] of [T, Hq, Dv + 4]",
         to_string(out));
  const bool behind = lse && lse.data == box + out.shape[2] &&
                      (out.shape[1] == 1 || lse.stride[1] == width) &&
                      (out.shape[0] == 1 || lse.stride[0] == row);
  expect(behind, "lse", "what lies behind the output", to_string(lse));
}

void expect_rows(const Tensor& tensor, const char* argument) {
  const std::int64_t most = std::numeric_limits<std::int32_t>::max();
  expect(tensor.shape[0] <= most / tensor.shape[1], argument, "fewer than 2^31 rows and heads",
         to_string(tensor));
}

}  // namespace

void validate(const ChooseCall& call) {
  check_peers<alignof(std::int32_t)>(call.peers);
  const Tensor& ids = call.block_ids;
  expect_dense(ids, "block_ids", "dense i32 [T, H, k] on a GPU", 3, ids.dtype == DType::I32);
  expect_rows(ids, "block_ids");
  expect(ids.shape[2] <= kMaxTopk, "block_ids", "at most 256 ids in a list", to_string(ids));
  expect(call.first_blocks >= 0 && call.first_blocks <= (call.dealt ? kMaxTopk : 0), "first_blocks",
         "0 to 256, and 0 where ids are not dealt", std::to_string(call.first_blocks));
  if (call.own_ids) {
    expect(call.dealt, "own_ids", "none where ids are not dealt", to_string(call.own_ids));
    expect_dense(call.own_ids, "own_ids", "dense i32 [T, H, k] on a GPU", 3,
                 call.own_ids.dtype == DType::I32);
    expect_same_rows(call.own_ids, ids, 3, "own_ids", "the shape and device of block_ids");
  }
  if (!call.forced) return;
  expect_dense(call.forced, "forced", "dense i32 [T, F] on a GPU", 2,
               call.forced.dtype == DType::I32);
  expect_same_rows(call.forced, ids, 1, "forced", "the rows and device of block_ids");
  expect(call.forced.shape[1] <= kMaxTopk, "forced", "at most 256 ids in a row",
         to_string(call.forced));
}

void validate(const JoinCall& call) {
  check_peers<alignof(float)>(call.peers);
  const Tensor& out = call.out;
  const bool dtype = out.dtype == DType::F32 || out.dtype == DType::F16 || out.dtype == DType::BF16;
  expect_dense(out, "out", "dense f32, f16 or bf16 [T, H, Dv] on a GPU", 3, dtype);
  expect_rows(out, "out");
  if (!call.lse) return;
  expect_dense(call.lse, "lse", "dense f32 [T, H] on a GPU", 2, call.lse.dtype == DType::F32);
  expect_same_rows(call.lse, out, 2, "lse", "the rows and device of out");
}

void validate(const AttendCall& call, const Problem& problem, const Operands& operands) {
  check_peers<kVectorBytes>(call.peers);
  const std::int64_t rows = operands.q.shape[0];
  const Tensor& starts = operands.batch.cu_seqlens_q;
  expect(problem.bounds.max_seqlen_q <= 1 && problem.causal && problem.bounds.page_size != 0 &&
             starts && starts.shape[0] == rows + 1,
         "cu_seqlens_q", "a row of each request, over pages", to_string(starts));
  const Selection& chosen = problem.selection;
  expect(chosen.local_blocks == 0 && chosen.init_blocks == 0, "local_blocks",
         "none, nor init_blocks: what is forced is given by its ids",
         std::to_string(chosen.local_blocks));
  expect(
      !operands.batch.q_offsets && !operands.batch.key_offsets && !operands.batch.total_seqlens_k,
      "q_offsets", "none, nor other positions", to_string(operands.batch.q_offsets));
  check_states(call, operands);
  expect_dense(call.last_keys, "last_keys", "dense i32 [T] on a GPU", 1,
               call.last_keys.dtype == DType::I32);
  expect_same_rows(call.last_keys, operands.q, 1, "last_keys", "the rows and device of q");
  if (!call.forced) return;
  expect_dense(call.forced, "forced", "dense i32 [T, F] on a GPU", 2,
               call.forced.dtype == DType::I32);
  expect_same_rows(call.forced, operands.q, 1, "forced", "the rows and device of q");
  expect(call.forced.shape[1] <= kMaxTopk, "forced", "at most 256 ids in a row",
         to_string(call.forced));
}

void validate(const DealCall& call) {
  expect(call.ranks >= 1 && call.ranks <= kMaxRanks, "ranks", "1 to 63",
         std::to_string(call.ranks));
  expect(call.rank >= 0 && call.rank < call.ranks, "rank", "0 to ranks - 1",
         std::to_string(call.rank));
  expect(call.block_size >= 1 && call.block_size <= kMaxBlockSize, "block_size", "1 to 256",
         std::to_string(call.block_size));
  expect(call.init_blocks >= 0 && call.init_blocks <= kMaxTopk, "init_blocks", "0 to 256",
         std::to_string(call.init_blocks));
  expect(call.local_blocks >= 0 && call.local_blocks <= kMaxTopk, "local_blocks", "0 to 256",
         std::to_string(call.local_blocks));
  expect(call.columns_per_block >= 1, "columns_per_block", "1 or more",
         std::to_string(call.columns_per_block));
  const Tensor& pages = call.pages;
  expect_dense(pages, "pages", "dense i32 [T, C] on a GPU", 2, pages.dtype == DType::I32);
  expect_rows(pages, "pages");
  expect_dense(call.page_table, "page_table", "dense i32 [T, C] on a GPU", 2,
               call.page_table.dtype == DType::I32);
  expect_same_rows(call.page_table, pages, 2, "page_table", "the shape and device of pages");
  const struct {
    const Tensor& tensor;
    const char* argument;
  } numbers[] = {{call.seqlens_k, "seqlens_k"},
                 {call.candidates, "candidates"},
                 {call.last_keys, "last_keys"}};
  for (const auto& [tensor, argument] : numbers) {
    expect_dense(tensor, argument, "dense i32 [T] on a GPU", 1, tensor.dtype == DType::I32);
    expect_same_rows(tensor, pages, 1, argument, "the rows and device of pages");
  }
  const std::int64_t forced = call.init_blocks + call.local_blocks;
  if (forced == 0) return;
  expect_dense(call.forced, "forced", "dense i32 [T, F] on a GPU", 2,
               call.forced.dtype == DType::I32);
  expect_same_rows(call.forced, pages, 1, "forced", "the rows and device of pages");
  expect(call.forced.shape[1] == forced, "forced", "init_blocks + local_blocks ids in a row",
         to_string(call.forced));
}

}  // namespace msa::core
