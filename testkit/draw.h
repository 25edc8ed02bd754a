// SPDX-License-Identifier: MIT
// Drawing cases of every kind, from bytes (of libFuzzer) or from a random stream: legal ones, or
// with a fault planted, anywhere or inside a support table.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>

#include "testkit/random.h"
#include "testkit/support.h"

namespace msa::testkit {

/// Choices, one after the other: from given bytes while they last, zero behind them; or from a
/// random stream.
class Choices {
 public:
  Choices(const std::uint8_t* data, std::size_t size) : data_(data), size_(size) {}
  Choices(std::uint64_t seed, std::uint64_t number) : random_(seed, number), endless_(true) {}

  /// 0 .. bound - 1.
  std::int64_t below(std::int64_t bound) {
    std::uint64_t word = 0;
    if (endless_) {
      word = random_.bits(next_++);
    } else {
      for (int i = 0; i < 2 && next_ < size_; ++i) word = word * 256 + data_[next_++];
    }
    return static_cast<std::int64_t>(word % static_cast<std::uint64_t>(bound));
  }

  bool one_in(std::int64_t n) { return below(n) == n - 1; }

  template <class Value>
  Value pick(std::initializer_list<Value> values) {
    return values.begin()[below(static_cast<std::int64_t>(values.size()))];
  }

 private:
  const std::uint8_t* data_ = nullptr;
  std::size_t size_ = 0;
  std::size_t next_ = 0;
  Stream64 random_{0, 0};
  bool endless_ = false;
};

struct DrawOptions {
  /// Multiply-adds of a case, about: lengths are halved until they fit.
  double max_work = 3e7;
  /// Whether contents may be spoilt (Case::corrupt).
  bool faults = true;
};

/// A legal problem: most of a few thousand numbers, some of several tiles of queries, some of so
/// many keys that a call cuts them into slices and pieces.
Case draw_case(Choices& choices, const DrawOptions& options = {});

/// The same inside a support table. Strides past 2^31 elements are left out: on a GPU they would
/// need the memory.
Case draw_case_inside(Choices& choices, const SupportTable& table, const DrawOptions& options = {});

}  // namespace msa::testkit
