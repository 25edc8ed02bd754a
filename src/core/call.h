// SPDX-License-Identifier: MIT
// Call: what validation and backends call the operands of a run, so that they have one way in.
#pragma once

#include "msa/operands.h"

namespace msa::core {

using Call = Operands;

}  // namespace msa::core
