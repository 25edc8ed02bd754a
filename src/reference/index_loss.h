// SPDX-License-Identifier: MIT
// How far the index branch is from attention, row by row, and its gradients (docs/contract.md).
// Calls are validated.
#pragma once

#include <cstddef>
#include <span>

#include "core/call.h"

namespace msa::reference {

/// Numbers of a row's keys, and sums of a gradient, that need room.
std::size_t num_loss_sums(const Problem& problem);

void index_loss(const Problem& problem, const core::Call& call, std::span<double> sums);

}  // namespace msa::reference
