// SPDX-License-Identifier: MIT
// Texts and sums of findings.
#include "testkit/findings.h"

#include <algorithm>
#include <sstream>

namespace msa::testkit {

void Findings::add(const Findings& other) {
  fail(other.failure);
  worst_error = std::max(worst_error, other.worst_error);
  if (other.worst_share > worst_share) {
    worst_share = other.worst_share;
    worst_place = other.worst_place;
  }
  upward.add(other.upward);
  outward.add(other.outward);
}

std::string Place::operator()() const {
  std::ostringstream text;
  text << what << "[" << row.row << ", " << head;
  if (x >= 0) text << ", " << x;
  text << "]";
  if (row.request != nullptr) {
    text << " (request " << row.request->index << ", query " << row.i << ", "
         << row.request->visible_keys(row.i) << " visible keys)";
  }
  return text.str();
}

std::string both(double expected, double given, double tolerance) {
  std::ostringstream text;
  text.precision(9);
  text << ": expected " << expected << ", got " << given << ", error "
       << std::fabs(given - expected) << ", tolerance " << tolerance;
  return text.str();
}

Kind kind_of(double x) {
  if (std::isnan(x)) return Kind::Nan;
  if (std::isfinite(x)) return Kind::Finite;
  return x < 0 ? Kind::MinusInf : Kind::PlusInf;
}

}  // namespace msa::testkit
