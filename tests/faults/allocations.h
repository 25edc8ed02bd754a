// SPDX-License-Identifier: MIT
// Allocation under watch: a binary with allocations.cpp counts every operator new and can make the
// n-th one fail.
#pragma once

#include <atomic>

namespace msa::faults {

/// Since the program began.
extern std::atomic<long> allocations;
/// Not yet given back.
extern std::atomic<long> live;
/// The value of `allocations` at which one fails; below 0: none.
extern std::atomic<long> fail_at;

}  // namespace msa::faults
