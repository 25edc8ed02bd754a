// SPDX-License-Identifier: MIT
// The one way to raise an Error: the argument, where in it, what was expected and what was given.
#pragma once

#include <string>

#include "msa/error.h"

namespace msa::core {

/// Throws "argument: where: expected ..., got ..."; `where` may be empty.
[[noreturn]] void fail(ErrorCode code, const std::string& argument, const std::string& where,
                       const std::string& expected, const std::string& given);

}  // namespace msa::core
