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

void check_peers(const Peers& peers, std::uintptr_t alignment) {
  expect(peers.ranks >= 1 && peers.ranks <= kMaxRanks, "ranks", "1 to 63",
         std::to_string(peers.ranks));
  expect(peers.rank >= 0 && peers.rank < peers.ranks, "rank", "0 to ranks - 1",
         std::to_string(peers.rank));
  expect(peers.timeout_ms >= 0, "timeout_ms", "0 or more", std::to_string(peers.timeout_ms));
  const auto lies_well = [](std::uintptr_t multiple) {
    return [multiple](void* address) {
      return address != nullptr && reinterpret_cast<std::uintptr_t>(address) % multiple == 0;
    };
  };
  const auto ranks = static_cast<std::size_t>(peers.ranks);
  expect(peers.boxes.size() == ranks && std::ranges::all_of(peers.boxes, lies_well(alignment)),
         "boxes", "an address of each rank, aligned as its items", "others");
  expect(peers.pads.size() == ranks && std::ranges::all_of(peers.pads, lies_well(4)), "pads",
         "an address of each rank, aligned to 4 bytes", "others");
}

void expect_rows(const Tensor& tensor, const char* argument) {
  const std::int64_t most = std::numeric_limits<std::int32_t>::max();
  expect(tensor.shape[0] <= most / tensor.shape[1], argument, "fewer than 2^31 rows and heads",
         to_string(tensor));
}

}  // namespace

void validate(const ChooseCall& call) {
  check_peers(call.peers, alignof(std::int32_t));
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
  check_peers(call.peers, alignof(float));
  const Tensor& out = call.out;
  const bool dtype = out.dtype == DType::F32 || out.dtype == DType::F16 || out.dtype == DType::BF16;
  expect_dense(out, "out", "dense f32, f16 or bf16 [T, H, Dv] on a GPU", 3, dtype);
  expect_rows(out, "out");
  if (!call.lse) return;
  expect_dense(call.lse, "lse", "dense f32 [T, H] on a GPU", 2, call.lse.dtype == DType::F32);
  expect_same_rows(call.lse, out, 2, "lse", "the rows and device of out");
}

}  // namespace msa::core
