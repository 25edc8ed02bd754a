// SPDX-License-Identifier: MIT
// What the tests of the cpu backend share.
#pragma once

#include <iostream>
#include <limits>
#include <string>
#include <vector>

#include "msa/msa.h"
#include "testkit/verify.h"

namespace msa::test {

inline constexpr float kInf = std::numeric_limits<float>::infinity();
inline constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

inline const Options kReference{.backend = "reference"};

inline Options on(const std::string& isa, int threads = 2) {
  return {.backend = "cpu", .isa = isa, .threads = threads};
}

/// Levels that this machine has; the others are named once as not run.
inline const std::vector<std::string>& levels() {
  static const std::vector<std::string> list = [] {
    std::vector<std::string> names;
    for (const IsaInfo& isa : testkit::isas_of("cpu")) {
      if (isa.available) {
        names.push_back(isa.name);
      } else {
        std::cout << "[ not run ] isa " << isa.name << ": " << isa.reason << "\n";
      }
    }
    return names;
  }();
  return list;
}

}  // namespace msa::test
