// SPDX-License-Identifier: MIT
// What the tests of the cpu backend share.
#pragma once

#include <limits>
#include <string>

#include "msa/msa.h"

namespace msa::test {

inline constexpr float kInf = std::numeric_limits<float>::infinity();
inline constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

inline const Options kReference{.backend = "reference"};

inline Options on(const std::string& isa, int threads = 2) {
  return {.backend = "cpu", .isa = isa, .threads = threads};
}

}  // namespace msa::test
