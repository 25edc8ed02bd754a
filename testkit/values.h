// SPDX-License-Identifier: MIT
// What the vectors of a case hold: one function from (tensor, request, position, head) to a row of
// numbers, for every regime. Rows depend on nothing else, so layouts, pages and threads change
// nothing.
#pragma once

#include <cstdint>
#include <vector>

#include "testkit/case.h"

namespace msa::testkit {

enum class Role : std::uint8_t { Query, Key, Value, IndexQuery, IndexKey, Gradient };

class Values {
 public:
  /// `longest` is one past the largest position that will be asked for.
  Values(const Case& spec, Role role, std::int64_t dim, std::int64_t heads, std::int64_t longest);

  /// Row of head `head` at `position` (of a key in its whole sequence, or of a query; from 0) of
  /// request `request`.
  void row(std::int64_t request, std::int64_t position, std::int64_t head, float* out) const;

 private:
  void normal(std::uint64_t counter, float* out) const;
  void drift(std::int64_t request, std::int64_t position, std::int64_t head, float* out) const;
  void integers(std::uint64_t counter, float* out) const;
  void ties(std::int64_t position, float* out) const;
  void near(std::uint64_t counter, float* out) const;
  void low(std::uint64_t counter, float* out) const;
  void rising(std::int64_t position, float* out) const;
  void offset(std::uint64_t counter, float* out) const;
  void wide(std::uint64_t counter, float* out) const;

  const Case& spec_;
  Role role_;
  std::int64_t dim_;
  std::int64_t heads_;
  std::int64_t knots_ = 0;            // of one head's slow path
  std::vector<float> path_{};         // [requests, heads, knots, dim]: drift
  std::vector<float> common_path_{};  // [requests, knots, dim]: shared by queries and keys
  std::vector<float> sink_{};         // [dim]: the direction that every query has a part of
};

}  // namespace msa::testkit
