// SPDX-License-Identifier: MIT
// The demo's input: a long context of noise whose index vectors drift as those of text do, with
// facts ("needles") planted far from the rows that ask for them.
#pragma once

#include <cstdint>
#include <vector>

#include "testkit/generate.h"

namespace msa::cli {

/// A key that exactly one later row asks for.
struct Needle {
  std::int64_t key = 0;
  std::int64_t asked_by = 0;  // row, farther away than any window of as many keys reaches
};

struct DemoData {
  /// `computed_here`: the outputs' memory is touched, as a call on the CPU is about to fill it. On
  /// a GPU's host it is not: only a few rows of them will ever be there.
  DemoData(std::int64_t tokens, std::int64_t heads_q, std::int64_t heads_kv, std::uint64_t seed,
           bool computed_here);

  testkit::Data data;  // of op=msa
  testkit::Operands operands;
  std::vector<Needle> needles;
};

/// Whether a row's output is the value planted at the key: the smallest cosine over its heads.
double value_read_back(const testkit::Operands& operands, const Tensor& out, const Needle& needle);

}  // namespace msa::cli
