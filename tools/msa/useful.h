// SPDX-License-Identifier: MIT
// The work that a call cannot avoid: multiply-adds on keys that are visible (and listed), and bytes
// read or written once. What a floor is made of; nothing that an implementation adds (padding,
// whole blocks, packing) counts.
#pragma once

#include "msa/problem.h"
#include "testkit/operands.h"

namespace msa::cli {

struct UsefulWork {
  double attend_ops = 0;  // scores and values: 2 (D + Dv) for each query head and key
  double index_ops = 0;   // block scores: 2 Di for each index head and key
  double bytes = 0;
};

/// Reads the lengths and the block lists, given or written, out of host memory.
UsefulWork useful_work(const Problem& problem, const testkit::Operands& operands);

}  // namespace msa::cli
