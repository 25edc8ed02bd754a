// SPDX-License-Identifier: MIT
// The only place that reads the environment: MSA_BACKEND and MSA_ISA fill the options that a
// problem leaves empty.
#pragma once

#include "msa/problem.h"

namespace msa::core {

Options with_environment(Options options);

}  // namespace msa::core
