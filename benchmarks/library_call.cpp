// SPDX-License-Identifier: MIT
// Seconds of one msa_run of the problem that benchmarks/python.py calls from Python: what is the
// library's own and no binding's. Prints one number a line, one for each batch of calls.
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "msa/c.h"

namespace {

msa_tensor view(void* data, msa_dtype dtype, std::int64_t rows, std::int64_t dim) {
  return {data, {rows, 1, dim, 0}, {dim, dim, 1, 0}, dtype, 3, MSA_CPU, 0};
}

}  // namespace

int main(int argc, char** argv) {
  const int batches = argc > 1 ? std::atoi(argv[1]) : 200;
  const int calls = argc > 2 ? std::atoi(argv[2]) : 100;
  std::vector<float> q(16), keys(16 * 16), out(16);
  std::int32_t ids = 0;
  msa_args args = MSA_ARGS_INIT;
  args.q = view(q.data(), MSA_F32, 1, 16);
  args.k = args.v = view(keys.data(), MSA_F32, 16, 16);
  args.block_ids = view(&ids, MSA_I32, 1, 1);
  args.out = view(out.data(), MSA_F32, 1, 16);
  msa_settings settings = MSA_SETTINGS_INIT;
  settings.options.threads = 1;
  msa_problem problem = MSA_PROBLEM_INIT;
  msa_plan* plan = nullptr;
  msa_error error;
  if (msa_problem_of(MSA_OP_SPARSE_ATTENTION, &args, &settings, &problem, &error) != MSA_OK ||
      msa_plan_make(&problem, &plan, &error) != MSA_OK) {
    std::fprintf(stderr, "%s\n", error.message);
    return 1;
  }
  const std::size_t bytes = (msa_plan_workspace_bytes(plan) + 511) / 256 * 256;
  void* workspace = std::aligned_alloc(256, bytes);
  for (int batch = -5; batch < batches; ++batch) {
    const auto begin = std::chrono::steady_clock::now();
    for (int i = 0; i < calls; ++i) {
      if (msa_run(plan, &args, workspace, bytes, nullptr, &error) != MSA_OK) return 1;
    }
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begin;
    if (batch >= 0) std::printf("%.9g\n", took.count() / calls);
  }
  msa_plan_free(plan);
  std::free(workspace);
  return 0;
}
