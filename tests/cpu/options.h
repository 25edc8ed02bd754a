// SPDX-License-Identifier: MIT
// What the tests of the cpu backend run on.
#pragma once

#include <string>

#include "msa/msa.h"

namespace msa::test {

inline const Options kReference{.backend = "reference"};

inline Options on(const std::string& isa, int threads = 2) {
  return {.backend = "cpu", .isa = isa, .threads = threads};
}

}  // namespace msa::test
