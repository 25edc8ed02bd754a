// SPDX-License-Identifier: MIT
// Rows of the bench on a GPU: verified first, then timed by events over several sets of inputs
// where one would stay in the L2 cache, decode inside a CUDA graph.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "bench_rows.h"
#include "results.h"
#include "timing.h"

namespace msa::cli {

struct CudaBenchOptions {
  Options under_test;
  TimingRule rule;
  int device = 0;
  bool peers = true;  // time the other side of rows that are ratios of our own
  std::function<void(const std::string&)> say;  // progress
};

/// Whether this tool was built to; the functions below are there either way.
bool measures_on_gpu();

/// What stands in the results file of the GPU.
std::string gpu_name(int device);

/// Measures a row and its stages and appends them. False: an output was wrong, and nothing was
/// timed.
bool measure_on_gpu(const BenchRow& named, const CudaBenchOptions& options, std::vector<Row>& rows);

}  // namespace msa::cli
