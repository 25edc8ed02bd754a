// SPDX-License-Identifier: MIT
// The demo's page: what a run found, as one HTML file without anything external.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "page_parts.h"

namespace msa::cli {

/// Times of one context length.
struct LengthTimes {
  std::int64_t tokens = 0;
  double dense_seconds = 0;
  double msa_seconds = 0;
};

/// A needle as the page shows it.
struct NeedleResult {
  std::int64_t key = 0;
  std::int64_t asked_by = 0;
  bool found = false;       // every head's list holds the needle's block
  bool in_window = false;   // a window of as many keys would have held it
  double dense_cosine = 0;  // of the value read back and the planted one
  double msa_cosine = 0;
};

struct DemoResults {
  std::int64_t tokens = 0, heads_q = 0, heads_kv = 0, head_dim = 0;
  std::int64_t block_size = 0, topk = 0;
  std::string backend, cpu, isa, version, commit;
  std::string gpu;                 // that computed; empty: the CPU did
  int threads = 1;                 // of the CPU
  std::vector<LengthTimes> times;  // shortest first; the last is the whole context
  std::vector<NeedleResult> needles;
  double dense_ops = 0, msa_ops = 0;
  double blocks_per_8 = 0;
  bool verified = false;
  std::int64_t rows_compared = 0;
  SelectionMap map;
  std::vector<double> dense_errors, msa_errors;  // |error| of every element of the sampled rows

  std::string machine() const;  // that computed, and how
  const LengthTimes& whole() const { return times.back(); }
  double speedup() const { return whole().dense_seconds / whole().msa_seconds; }
  double saved() const { return 1 - msa_ops / dense_ops; }
  std::int64_t needles_found() const;
  std::int64_t needles_in_window() const;
};

std::string demo_page(const DemoResults& results);

}  // namespace msa::cli
