// SPDX-License-Identifier: MIT
// The bench of a tool built without CUDA: it has none on a GPU.
#include "bench_cuda.h"

namespace msa::cli {

bool measures_on_gpu() { return false; }

std::string gpu_name(int) { return {}; }

bool measure_on_gpu(const BenchRow&, const CudaBenchOptions&, std::vector<Row>&) { return false; }

}  // namespace msa::cli
