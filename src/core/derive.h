// SPDX-License-Identifier: MIT
// The problem that a set of tensors poses: what problem_of and the one-call forms use.
#pragma once

#include "core/call.h"

namespace msa::core {

/// Reads bounds off shapes and, where the settings leave them open, off the lengths in host memory
/// (-1 bounds with lengths on a device are an Error). A tensor that tells a
/// size is an Error when it is missing or of the wrong rank or dtype; validation judges the rest.
Problem derive_problem(Op op, const Call& call, const Settings& settings);

}  // namespace msa::core
