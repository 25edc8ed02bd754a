// SPDX-License-Identifier: MIT
// What this machine can do at most: products per second out of registers and bytes per second out
// of memory, measured with all threads. The bench runs rounds between its own timings, so that both
// meet the same clocks and neighbours. Of arithmetic a Roofline keeps the best round; of reading,
// where a shared machine gives twice its usual rate for a second and then not, the median.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "tensors.h"

namespace msa::cli {

/// Operations (a multiply and an add are two) and bytes per second; 0: the machine lacks the
/// instructions.
struct Peaks {
  double bf16_flops = 0;       // VDPBF16PS, 512 bits
  double tile_bf16_flops = 0;  // TDPBF16PS
  double fp32_flops = 0;       // fused multiply-add, the widest there is
  double int8_ops = 0;         // VPDPBUSD, 512 bits
  double tile_int8_ops = 0;    // TDPBSSD
  double avx2_fp32_flops = 0;  // fused multiply-add, 256 bits
  double read_bytes_per_s = 0;
};

class Roofline {
 public:
  explicit Roofline(int threads);
  /// Measures everything once, about a third of a second.
  void round();
  const Peaks& peaks() const noexcept { return peaks_; }
  std::size_t rounds() const noexcept { return reads_.size(); }
  /// Median read rate of the rounds from `first` on.
  double read_rate(std::size_t first) const;

 private:
  void read_round();

  int threads_;
  Peaks peaks_;
  std::vector<double> reads_;  // bytes per second of each round
  Buffer stream_;              // more than four times the last cache
};

/// Size of the last level cache as the system tells it; 0: it does not.
std::int64_t last_cache_bytes();

}  // namespace msa::cli
