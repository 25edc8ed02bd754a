// SPDX-License-Identifier: MIT
// What the index tensors of a batch say, in the contract's words: who owns which rows and sees
// which keys. Written apart from the library's own geometry, so that the two check each other.
// Reads host memory and trusts what it holds.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "msa/operands.h"

namespace msa::testkit {

constexpr std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

/// Element of a tensor in host memory.
std::byte* address(const Tensor& tensor, std::int64_t i0, std::int64_t i1 = 0, std::int64_t i2 = 0,
                   std::int64_t i3 = 0);

/// f(address, bytes) for every run of elements that lie side by side.
template <class F>
void for_each_run(const Tensor& t, const F& f) {
  if (t.rank == 0) return;
  std::array<std::int64_t, kMaxRank> shape{1, 1, 1, 1};
  std::copy_n(t.shape.begin(), t.rank, shape.begin());
  const auto last = static_cast<std::size_t>(t.rank - 1);
  const bool dense = t.stride[last] == 1;
  const auto bytes =
      static_cast<std::size_t>(size_in_bytes(t.dtype, dense ? shape[last] : std::int64_t{1}));
  if (dense) shape[last] = std::min<std::int64_t>(shape[last], 1);
  for (std::int64_t a = 0; a < shape[0]; ++a) {
    for (std::int64_t b = 0; b < shape[1]; ++b) {
      for (std::int64_t c = 0; c < shape[2]; ++c) {
        for (std::int64_t d = 0; d < shape[3]; ++d) f(address(t, a, b, c, d), bytes);
      }
    }
  }
}

std::int32_t int_at(const Tensor& tensor, std::int64_t i0, std::int64_t i1 = 0,
                    std::int64_t i2 = 0);
float float_at(const Tensor& tensor, std::int64_t i0, std::int64_t i1 = 0, std::int64_t i2 = 0);

struct Request {
  std::int64_t index = 0;
  std::int64_t q_begin = 0;
  std::int64_t seqlen_q = 0;
  std::int64_t k_begin = 0;  // ragged keys
  std::int64_t seqlen_k = 0;
  std::int64_t offset = 0;      // position of query row 0
  std::int64_t key_offset = 0;  // position of key 0
  std::optional<std::int64_t> total_k{};
  std::int64_t block_size = 128;
  bool causal = true;

  /// How many of this request's keys query row i sees: always a prefix.
  std::int64_t visible_keys(std::int64_t i) const;
  std::int64_t visible_blocks(std::int64_t i) const {
    return ceil_div(visible_keys(i), block_size);
  }
  std::int64_t first_block() const { return key_offset / block_size; }
  /// Keys of block `id` that row i sees, as [begin, end) of this request's keys.
  std::pair<std::int64_t, std::int64_t> block_keys(std::int64_t i, std::int64_t id) const;
};

std::vector<Request> requests_of(const Problem& problem, const Batch& batch);

/// Row of key `key` and head `head`: in ragged rows or through the page table.
std::byte* key_row(const Tensor& keys, const Batch& batch, const Request& request, std::int64_t key,
                   std::int64_t head);

/// Keys or values with what their format says of scales.
struct KeyRows {
  const Tensor& keys;
  const Batch& batch;
  Tensor scales{};
  Scale scale = Scale::None;
  // of groups
  Tensor global{};
  std::int64_t group = 0;
  bool rounded = false;

  bool has_groups() const { return scale == Scale::Group || scale == Scale::GroupTensor; }
};

KeyRows key_rows(const Problem& problem, const msa::Operands& operands);
KeyRows value_rows(const Problem& problem, const msa::Operands& operands);
KeyRows index_rows(const Problem& problem, const msa::Operands& operands);

/// Where the scale of a key, or of one of its groups, lies; null where it has none.
std::byte* scale_address(const KeyRows& rows, const Request& request, std::int64_t key,
                         std::int64_t head, std::int64_t group = 0);

/// `count` values of a key in fp32: codes times their scale, rounded as the format says.
void load_key(const KeyRows& rows, const Request& request, std::int64_t key, std::int64_t head,
              std::int64_t count, float* target);

}  // namespace msa::testkit
