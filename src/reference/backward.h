// SPDX-License-Identifier: MIT
// Gradients of attention, row by row and key by key (docs/contract.md, Gradients). Calls are
// validated.
#pragma once

#include <cstddef>
#include <span>

#include "core/call.h"

namespace msa::reference {

/// Sums that a row or a key needs room for.
std::size_t num_sums(const Problem& problem);

void attention_backward(const Problem& problem, const core::Call& call, std::span<double> sums);

}  // namespace msa::reference
