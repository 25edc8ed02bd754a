// SPDX-License-Identifier: MIT
// From bytes (of libFuzzer, or of a random stream) to small cases of every kind, legal or spoiled.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>

#include "testkit/case.h"
#include "testkit/random.h"

namespace msa::fuzz {

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
  testkit::Stream64 random_{0, 0};
  bool endless_ = false;
};

/// A legal problem of a few thousand numbers; contents may be spoiled (Case::corrupt).
testkit::Case make_case(Choices& choices);

}  // namespace msa::fuzz
