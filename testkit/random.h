// SPDX-License-Identifier: MIT
// Random numbers by counter: value i of a stream is a function of (seed, stream, i) alone, so that
// data are the same on every machine, in every layout and with any number of threads. Integer
// arithmetic and exactly rounded operations only.
#pragma once

#include <cstdint>

namespace msa::testkit {

constexpr std::uint64_t mix(std::uint64_t x) {
  x ^= x >> 30;
  x *= 0xbf58476d1ce4e5b9u;
  x ^= x >> 27;
  x *= 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

class Stream64 {
 public:
  constexpr Stream64(std::uint64_t seed, std::uint64_t stream)
      : key_(mix(seed * 0x9e3779b97f4a7c15u + mix(stream + 0x632be59bd9b4e019u))) {}

  constexpr std::uint64_t bits(std::uint64_t counter) const {
    return mix(key_ + counter * 0x9e3779b97f4a7c15u);
  }

  /// Uniform in 0 .. bound - 1 (bound > 0; the bias, below bound / 2^64, does not matter here).
  constexpr std::int64_t below(std::uint64_t counter, std::int64_t bound) const {
    return static_cast<std::int64_t>(bits(counter) % static_cast<std::uint64_t>(bound));
  }

  /// Uniform in [0, 1).
  constexpr double uniform(std::uint64_t counter) const {
    return static_cast<double>(bits(counter) >> 11) * 0x1p-53;
  }

  /// Normal to within the reach of a sum of eight uniform bytes (4.9 standard deviations), spread
  /// between its steps by the remaining bits; mean 0, variance 1.
  constexpr float normal(std::uint64_t counter) const {
    const std::uint64_t word = bits(counter);
    constexpr std::uint64_t kEven = 0x00ff00ff00ff00ffu;
    const std::uint64_t pairs = (word & kEven) + ((word >> 8) & kEven);
    const auto sum = static_cast<std::int32_t>((pairs * 0x0001000100010001u) >> 48);
    const auto step = static_cast<std::int32_t>((word * 0xd1342543de82ef95u) >> 48);  // [0, 2^16)
    const float centred = static_cast<float>((sum - 1020) * 65536 + step - 32768) * 0x1p-16f;
    return centred * (1.0f / 209.0228f);  // sqrt(8 * (256^2 - 1) / 12) and the spread's 1 / 12
  }

 private:
  std::uint64_t key_;
};

}  // namespace msa::testkit
