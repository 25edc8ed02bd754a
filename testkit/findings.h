// SPDX-License-Identifier: MIT
// What comparisons find: the first failure and the worst place, and how one number is judged.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <string>

#include "testkit/lean.h"
#include "testkit/requests.h"

namespace msa::testkit {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

/// What one thread has found; merged in row order, so that reports do not depend on threads.
struct Findings {
  std::string failure{};
  double worst_error = 0;
  double worst_share = 0;
  std::string worst_place{};
  /// Errors of `out` towards plus infinity, and away from zero.
  Lean upward{}, outward{};

  void fail(const std::string& text) {
    if (failure.empty()) failure = text;
  }
  /// `where` makes the text: only the worst place and the first failure need one.
  template <class Where>
  void note(double error, double tolerance, const Where& where) {
    const double share = tolerance > 0 ? error / tolerance : (error > 0 ? kInfinity : 0.0);
    if (share <= worst_share) return;
    worst_share = share;
    worst_place = where();
  }
  void add(const Findings& other);
};

/// A row of the call as every comparison sees it.
struct CallRow {
  const Request* request = nullptr;  // none: padding
  std::int64_t i = 0;
  std::int64_t row = 0;
};

/// Where an element stands; the text is made only when called.
struct Place {
  const char* what;
  const CallRow& row;
  std::int64_t head;
  std::int64_t x = -1;

  std::string operator()() const;
};

/// ": expected ..., got ..., error ..., tolerance ...".
std::string both(double expected, double given, double tolerance);

enum class Kind { Finite, MinusInf, PlusInf, Nan };
Kind kind_of(double x);

/// Equal, of one kind where not finite, or within the tolerance.
template <class Where>
void check_number(Findings& found, double expected, double given, double tolerance,
                  const Where& where) {
  if (kind_of(expected) != kind_of(given)) {
    found.fail(where() + both(expected, given, tolerance));
    return;
  }
  if (!std::isfinite(expected)) return;
  const double error = std::fabs(given - expected);
  found.note(error, tolerance, where);
  if (error > tolerance) found.fail(where() + both(expected, given, tolerance));
}

}  // namespace msa::testkit
