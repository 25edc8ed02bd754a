// SPDX-License-Identifier: MIT
// What the C interface says in JSON.
#pragma once

#include <string>

#include "msa/info.h"

namespace msa::core {

std::string to_json(const BuildInfo& info);

}  // namespace msa::core
