// SPDX-License-Identifier: MIT
// MSA_BACKEND and MSA_ISA.
#include "core/environment.h"

#include <cstdlib>

namespace msa::core {
namespace {

void fill(std::string& option, const char* name) {
  if (!option.empty()) return;
  if (const char* value = std::getenv(name)) option = value;
}

}  // namespace

Options with_environment(Options options) {
  fill(options.backend, "MSA_BACKEND");
  fill(options.isa, "MSA_ISA");
  return options;
}

}  // namespace msa::core
