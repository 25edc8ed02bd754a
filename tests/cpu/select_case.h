// SPDX-License-Identifier: MIT
// Inputs of selections for tests: batches of any shape with poison wherever nothing may read, and
// their runs on a chosen backend and instruction set.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "msa/msa.h"

namespace msa::test {

struct SelectShape {
  DType dtype = DType::F32;
  std::int64_t heads = 4;    // Hi
  std::int64_t heads_k = 1;  // Hik
  std::int64_t dim = 32;
  std::int64_t block_size = 16;
  std::int64_t topk = 4;
  std::int64_t local_blocks = 1;
  std::int64_t init_blocks = 0;
  bool causal = true;
  std::vector<std::int32_t> q_lens{};
  std::vector<std::int32_t> k_lens{};
  std::int64_t page_size = 0;  // 0: ragged
  std::int64_t padding = 0;    // query rows behind the last request
  std::int64_t stretch = 0;    // elements between what belongs together
  std::vector<std::int32_t> q_offsets{};
  std::vector<std::int32_t> key_offsets{};
  std::vector<std::int32_t> totals{};
};

enum class Values { Integers, Normal };

/// How often 1 in 16 keys and queries are NaN or infinite.
enum class Poison { None, VisibleNaN };

struct Selected {
  std::vector<std::int32_t> ids{};  // [T, Hi, k]
  std::vector<float> scores{};      // [T, Hi, k]
  friend bool operator==(const Selected&, const Selected&) = default;
};

class SelectCase {
 public:
  SelectCase(const SelectShape& shape, Values values, Poison poison, std::uint32_t seed);

  std::int64_t rows() const { return rows_; }      // T
  std::int64_t blocks() const { return blocks_; }  // of the longest request
  const SelectShape& shape() const { return shape_; }

  Selected select(const Options& options, bool with_scores = true) const;
  /// The rows in pieces, as whole MSA runs them: cuts[i] .. cuts[i + 1].
  Selected select_rows(const std::string& isa, const std::vector<std::int64_t>& cuts) const;
  std::vector<float> block_scores(const Options& options) const;  // [T, Hi, blocks]
  Selected topk(const std::vector<float>& scores, const Options& options) const;
  Batch batch(bool with_keys) const;
  Settings settings(const Options& options) const;

 private:
  void make_keys(Values values, Poison poison, std::uint32_t seed);
  void make_queries(Values values, std::uint32_t seed);

  SelectShape shape_;
  std::int64_t rows_ = 0, blocks_ = 0;
  std::vector<std::byte> q_, k_;
  Tensor index_q_{}, index_k_{};
  std::vector<std::int32_t> cu_q_, cu_k_, pages_;
  std::int64_t table_width_ = 0;
};

/// The levels of this machine; prints the names of those it lacks.
std::vector<std::string> available_isas();

}  // namespace msa::test
