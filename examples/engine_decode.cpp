// SPDX-License-Identifier: MIT
// An engine's decode loop: a plan for each shape, kept in a cache by Problem; one workspace for all
// layers; keys in pages that lie in any order; lengths that grow, and a request that ends, inside
// the planned bounds. With --device cuda the layers are captured once in a CUDA graph, which then
// serves every step. Every step is checked against the oracle.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <numeric>
#include <random>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "msa/msa.h"
#include "msa/operands.h"
#if defined(EXAMPLE_WITH_CUDA)
#include <cuda_runtime_api.h>
#endif

namespace {

constexpr std::int64_t kHeadsQ = 16, kHeadsKv = 2, kDim = 64, kBlock = 64, kTopk = 4;
constexpr std::int64_t kBatch = 4, kPage = 64, kMaxLength = 1024, kPages = kMaxLength / kPage;
constexpr std::int64_t kPool = kBatch * kPages, kLayers = 3, kSteps = 6;

#if defined(EXAMPLE_WITH_CUDA)
void check_cuda(cudaError_t error) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "engine_decode: %s\n", cudaGetErrorString(error));
  std::exit(1);
}
#endif

// Memory of the host and, for a GPU, as much of its own, with everything at the same offsets.
class Memory {
 public:
  Memory(std::size_t bytes, bool on_gpu) : bytes_((bytes / 256 + 1) * 256) {
    host_ = static_cast<char*>(std::aligned_alloc(msa::kWorkspaceAlignment, bytes_));
    if (host_ == nullptr) std::exit(1);
#if defined(EXAMPLE_WITH_CUDA)
    if (on_gpu) check_cuda(cudaMalloc(reinterpret_cast<void**>(&gpu_), bytes_));
#else
    static_cast<void>(on_gpu);
#endif
  }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  ~Memory() {
    std::free(host_);
#if defined(EXAMPLE_WITH_CUDA)
    cudaFree(gpu_);
#endif
  }
  std::size_t take(std::size_t bytes) {
    const std::size_t offset = used_;
    used_ += (bytes + 255) / 256 * 256;
    if (used_ > bytes_) std::exit(1);
    return offset;
  }
  // The tensor where the run is, or in host memory for the oracle.
  msa::Tensor at(std::size_t offset, msa::DType dtype, std::initializer_list<std::int64_t> shape,
                 bool oracle) const {
    if (oracle || gpu_ == nullptr) return msa::make_tensor(host_ + offset, dtype, shape);
    return msa::make_tensor(gpu_ + offset, dtype, shape, {msa::DeviceType::Cuda, 0});
  }
  template <class T>
  T* on_host(std::size_t offset) const {
    return reinterpret_cast<T*>(host_ + offset);
  }
  msa::Workspace workspace() const { return {gpu_ == nullptr ? host_ : gpu_, bytes_}; }
#if defined(EXAMPLE_WITH_CUDA)
  void to_gpu() { check_cuda(cudaMemcpy(gpu_, host_, used_, cudaMemcpyHostToDevice)); }
  void to_host() { check_cuda(cudaMemcpy(host_, gpu_, used_, cudaMemcpyDeviceToHost)); }
#endif

 private:
  std::size_t bytes_, used_ = 0;
  char* host_ = nullptr;
  char* gpu_ = nullptr;
};

struct Lengths {
  std::size_t cu_seqlens_q, seqlens_k, page_table;
};

// The first layer attends to everything, the others are sparse.
struct Layer {
  msa::Op op;
  std::size_t q, k, v, index_q, index_k, out;
};

msa::Operands operands_of(const Memory& m, const Layer& layer, const Lengths& lengths,
                          bool oracle) {
  using enum msa::DType;
  msa::Operands o;
  o.q = m.at(layer.q, BF16, {kBatch, kHeadsQ, kDim}, oracle);
  o.k = m.at(layer.k, BF16, {kPool, kPage, kHeadsKv, kDim}, oracle);
  o.v = m.at(layer.v, BF16, {kPool, kPage, kHeadsKv, kDim}, oracle);
  o.batch.cu_seqlens_q = m.at(lengths.cu_seqlens_q, I32, {kBatch + 1}, oracle);
  o.batch.seqlens_k = m.at(lengths.seqlens_k, I32, {kBatch}, oracle);
  o.batch.page_table = m.at(lengths.page_table, I32, {kBatch, kPages}, oracle);
  o.out = m.at(layer.out, F32, {kBatch, kHeadsQ, kDim}, oracle);
  if (layer.op == msa::Op::DenseAttention) return o;
  o.index_q = m.at(layer.index_q, BF16, {kBatch, kHeadsKv, kDim}, oracle);
  o.index_k = m.at(layer.index_k, BF16, {kPool, kPage, 1, kDim}, oracle);
  return o;
}

// The bounds are those of the whole run, not of the step: real engines keep a few sizes of them.
class Plans {
 public:
  const msa::Plan& of(const Layer& layer, const msa::Operands& operands, bool oracle) {
    msa::Settings settings{
        .block_size = kBlock, .topk = kTopk, .max_seqlen_q = 1, .max_seqlen_k = kMaxLength};
    if (oracle) settings.options.backend = "reference";
    const msa::Problem problem = msa::problem_of(layer.op, operands, settings);
    msa::Plan& plan = plans_[problem];
    if (!plan) plan = msa::make_plan(problem);
    return plan;
  }
  std::size_t size() const { return plans_.size(); }
  std::size_t workspace_bytes() const {
    std::size_t most = 0;
    for (const auto& [problem, plan] : plans_) most = std::max(most, plan.workspace_bytes());
    return most;
  }

 private:
  std::unordered_map<msa::Problem, msa::Plan> plans_;
};

// Eighths of small integers: bf16 holds them exactly, so index scores are exact and the choice of
// blocks must be the oracle's.
std::size_t vectors(Memory& m, std::int64_t count, std::mt19937& random) {
  const std::size_t offset = m.take(count * sizeof(std::uint16_t));
  for (std::int64_t i = 0; i < count; ++i) {
    const float value = static_cast<float>(static_cast<int>(random() % 17) - 8) / 8;
    std::uint32_t bits = 0;
    std::memcpy(&bits, &value, sizeof bits);
    m.on_host<std::uint16_t>(offset)[i] = static_cast<std::uint16_t>(bits >> 16);
  }
  return offset;
}

// One new token for each request that still runs. A request that has ended owns no row, and a row
// that nobody owns (a graph's padding) comes out as zeros.
void next_step(const Memory& m, const Lengths& lengths, std::int32_t step) {
  auto* starts = m.on_host<std::int32_t>(lengths.cu_seqlens_q);
  auto* keys = m.on_host<std::int32_t>(lengths.seqlens_k);
  for (std::int32_t b = 0; b < kBatch; ++b) {
    const bool ended = b == 1 && step >= 3;
    starts[b + 1] = starts[b] + (ended ? 0 : 1);
    keys[b] = ended ? 0 : 250 * b + 60 + step;
  }
}

double distance_from_oracle(const Memory& m, const Layer& layer, const Lengths& lengths,
                            Plans& oracles) {
  constexpr std::int64_t kCount = kBatch * kHeadsQ * kDim;
  const float* out = m.on_host<float>(layer.out);
  const std::vector<float> got(out, out + kCount);
  const msa::Operands operands = operands_of(m, layer, lengths, true);
  const msa::Plan& plan = oracles.of(layer, operands, true);
  const Memory workspace(plan.workspace_bytes(), false);
  msa::run(plan, operands, workspace.workspace());
  double worst = 0;
  for (std::int64_t i = 0; i < kCount; ++i) {
    const double off = std::abs(static_cast<double>(got[i]) - out[i]);
    worst = std::isnan(off) ? HUGE_VAL : std::max(worst, off);
  }
  return worst;
}

#if defined(EXAMPLE_WITH_CUDA)
// What is captured runs at each launch, on what its tensors hold then.
class Graph {
 public:
  template <class Body>
  void launch(const Body& body) {
    if (exec_ == nullptr) {
      cudaGraph_t graph = nullptr;
      check_cuda(cudaStreamCreate(&stream_));
      check_cuda(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeGlobal));
      body(msa::Stream{stream_});
      check_cuda(cudaStreamEndCapture(stream_, &graph));
      check_cuda(cudaGraphInstantiate(&exec_, graph, 0));
      check_cuda(cudaGraphDestroy(graph));
    }
    check_cuda(cudaGraphLaunch(exec_, stream_));
    check_cuda(cudaStreamSynchronize(stream_));
  }

 private:
  cudaStream_t stream_ = nullptr;  // both live as long as the process
  cudaGraphExec_t exec_ = nullptr;
};
#endif

}  // namespace

int main(int argc, char** argv) {
  const bool on_gpu =
      argc == 3 && std::string_view(argv[1]) == "--device" && std::string_view(argv[2]) == "cuda";
#if !defined(EXAMPLE_WITH_CUDA)
  if (on_gpu) {
    std::fputs("engine_decode: built without CUDA\n", stderr);
    return 2;
  }
#endif
  if (argc != 1 && !on_gpu) {
    std::fputs("usage: engine_decode [--device cuda]\n", stderr);
    return 2;
  }
  Memory memory(16 << 20, on_gpu);
  std::mt19937 random(1);
  std::vector<Layer> layers;
  for (std::int64_t n = 0; n < kLayers; ++n) {
    layers.push_back({.op = n == 0 ? msa::Op::DenseAttention : msa::Op::MsaAttention,
                      .q = vectors(memory, kBatch * kHeadsQ * kDim, random),
                      .k = vectors(memory, kPool * kPage * kHeadsKv * kDim, random),
                      .v = vectors(memory, kPool * kPage * kHeadsKv * kDim, random),
                      .index_q = vectors(memory, kBatch * kHeadsKv * kDim, random),
                      .index_k = vectors(memory, kPool * kPage * kDim, random),
                      .out = memory.take(kBatch * kHeadsQ * kDim * sizeof(float))});
  }
  const Lengths lengths{.cu_seqlens_q = memory.take((kBatch + 1) * sizeof(std::int32_t)),
                        .seqlens_k = memory.take(kBatch * sizeof(std::int32_t)),
                        .page_table = memory.take(kPool * sizeof(std::int32_t))};
  auto* const pages = memory.on_host<std::int32_t>(lengths.page_table);
  std::iota(pages, pages + kPool, 0);
  std::shuffle(pages, pages + kPool, random);
  next_step(memory, lengths, 0);

  Plans plans;
  for (const Layer& layer : layers) {
    plans.of(layer, operands_of(memory, layer, lengths, false), false);
  }
  const Memory workspace(plans.workspace_bytes(), on_gpu);
  const auto run_layers = [&](msa::Stream stream) {
    for (const Layer& layer : layers) {
      const msa::Operands operands = operands_of(memory, layer, lengths, false);
      msa::run(plans.of(layer, operands, false), operands, workspace.workspace(), stream);
    }
  };
#if defined(EXAMPLE_WITH_CUDA)
  Graph graph;
#endif
  const std::size_t planned = plans.size();
  Plans oracles;
  double worst = 0;
  for (std::int32_t step = 0; step < kSteps; ++step) {
    next_step(memory, lengths, step);
#if defined(EXAMPLE_WITH_CUDA)
    if (on_gpu) {
      memory.to_gpu();
      graph.launch(run_layers);
      memory.to_host();
    } else {
      run_layers({});
    }
#else
    run_layers({});
#endif
    for (const Layer& layer : layers) {
      worst = std::max(worst, distance_from_oracle(memory, layer, lengths, oracles));
    }
  }
  std::printf("%d steps of %d layers, %d plans, on %s: at most %.1e from the oracle\n",
              static_cast<int>(kSteps), static_cast<int>(kLayers), static_cast<int>(plans.size()),
              on_gpu ? "a GPU" : "the CPU", worst);
  // Values are at most 1; what rounding the weights to bf16 may cost.
  const bool good = worst <= 4e-3 && plans.size() == planned;
  std::puts(good ? "ok" : "FAILED");
  return good ? 0 : 1;
}
