// SPDX-License-Identifier: MIT
// Whether errors lean to one side: the mark for what half an ulp still lets through, such as
// truncation. Errors of honest kernels are as often one way as the other.
#pragma once

#include <cmath>
#include <cstdint>
#include <string>

namespace msa::testkit {

/// Mean errors of independent samples (one for each row and head), in shares of their tolerances.
///
/// Where each sample is as likely e as -e, Hoeffding's inequality bounds the chance that
/// |sum| exceeds x * sqrt(sum of squares) by 2 exp(-x^2 / 2), whatever the samples' sizes. At
/// x = 3 one honest case in a hundred could fail, at x = 6 one in thirty million. So fewer than 36
/// samples never fail.
class Lean {
 public:
  static constexpr double kStandardErrors = 6;
  /// Of the tolerance: what is systematic in an exponential or in sums of fp32, far below what the
  /// 16-bit roundings of P or of the output may cost.
  static constexpr double kAllowed = 1.0 / 128;

  void add(double sample) {
    sum_ += sample;
    squares_ += sample * sample;
    ++count_;
  }
  void add(const Lean& other) {
    sum_ += other.sum_;
    squares_ += other.squares_;
    count_ += other.count_;
  }
  /// The mean in its own standard errors (about 0).
  double standard_errors() const { return squares_ > 0 ? sum_ / std::sqrt(squares_) : 0; }
  double mean() const { return count_ > 0 ? sum_ / static_cast<double>(count_) : 0; }
  bool leans() const {
    return std::fabs(standard_errors()) > kStandardErrors && std::fabs(mean()) > kAllowed;
  }
  std::int64_t samples() const { return count_; }

 private:
  double sum_ = 0;
  double squares_ = 0;
  std::int64_t count_ = 0;
};

}  // namespace msa::testkit
