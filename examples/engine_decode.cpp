// SPDX-License-Identifier: MIT
// An engine's decode loop: a plan for each shape, kept in a cache by Problem; one workspace for all
// layers; keys in pages that lie in any order; lengths that grow, and a request that ends, inside
// the planned bounds. With --device cuda the layers are captured once in a CUDA graph, which then
// serves every step. Every step is checked against the oracle.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
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

using enum msa::DType;
constexpr std::int64_t kHeadsQ = 16, kHeadsKv = 2, kDim = 64, kBlock = 64, kTopk = 4;
constexpr std::int64_t kBatch = 4, kPage = 64, kMaxLength = 1024, kPages = kMaxLength / kPage;
constexpr std::int64_t kPool = kBatch * kPages, kLayers = 3, kSteps = 6;
constexpr std::int64_t kOut = kBatch * kHeadsQ * kDim;

// Zeroed host memory of all tensors; a GPU holds a copy with everything at the same place.
struct Arena {
  std::vector<char> host = std::vector<char>(16 << 20);
  std::size_t used = 0;

  msa::Tensor take(msa::DType dtype, std::initializer_list<std::int64_t> shape) {
    const msa::Tensor t = msa::make_tensor(host.data() + used, dtype, shape);
    const std::int64_t bytes = msa::size_in_bytes(dtype, t.shape[0] * t.stride[0]);
    used += static_cast<std::size_t>((bytes + 255) / 256 * 256);
    if (used > host.size()) std::exit(1);
    return t;
  }
};

// Eighths of small integers: bf16 holds them exactly, so index scores are exact and the choice of
// blocks must be the oracle's.
msa::Tensor vectors(Arena& arena, std::initializer_list<std::int64_t> shape) {
  static std::mt19937 random(1);
  const msa::Tensor t = arena.take(BF16, shape);
  auto* const out = static_cast<std::uint16_t*>(t.data);
  for (std::int64_t i = 0; i < t.shape[0] * t.stride[0]; ++i) {
    const float value = static_cast<float>(static_cast<int>(random() % 17) - 8) / 8;
    std::uint32_t bits = 0;
    std::memcpy(&bits, &value, sizeof bits);
    out[i] = static_cast<std::uint16_t>(bits >> 16);
  }
  return t;
}

struct Layer {
  msa::Op op;
  msa::Operands host{}, here{};  // in host memory, for the oracle; where the layer runs
};

// The first layer attends to everything, the others are sparse.
Layer make_layer(Arena& arena, const msa::Batch& batch, bool dense) {
  Layer layer{.op = dense ? msa::Op::DenseAttention : msa::Op::MsaAttention};
  layer.host.q = vectors(arena, {kBatch, kHeadsQ, kDim});
  layer.host.k = vectors(arena, {kPool, kPage, kHeadsKv, kDim});
  layer.host.v = vectors(arena, {kPool, kPage, kHeadsKv, kDim});
  if (!dense) layer.host.index_q = vectors(arena, {kBatch, kHeadsKv, kDim});
  if (!dense) layer.host.index_k = vectors(arena, {kPool, kPage, 1, kDim});
  layer.host.batch = batch;
  layer.host.out = arena.take(F32, {kBatch, kHeadsQ, kDim});
  layer.here = layer.host;
  return layer;
}

// One new token for each request that still runs. A request that has ended owns no row, and a row
// that nobody owns (a graph's padding) comes out as zeros.
void next_step(const msa::Batch& batch, std::int32_t step) {
  auto* const starts = static_cast<std::int32_t*>(batch.cu_seqlens_q.data);
  auto* const keys = static_cast<std::int32_t*>(batch.seqlens_k.data);
  for (std::int32_t b = 0; b < kBatch; ++b) {
    const bool ended = b == 1 && step >= 3;
    starts[b + 1] = starts[b] + (ended ? 0 : 1);
    keys[b] = ended ? 0 : 250 * b + 60 + step;
  }
}

// Bounds are those of the whole run, not of the step: real engines keep a few sizes of them.
class Plans {
 public:
  explicit Plans(const char* backend) { settings_.options.backend = backend; }
  const msa::Plan& of(const Layer& layer, const msa::Operands& operands) {
    const msa::Problem problem = msa::problem_of(layer.op, operands, settings_);
    msa::Plan& plan = plans_[problem];
    if (!plan) plan = msa::make_plan(problem);
    workspace_bytes_ = std::max(workspace_bytes_, plan.workspace_bytes());
    return plan;
  }
  std::size_t size() const { return plans_.size(); }
  std::size_t workspace_bytes() const { return workspace_bytes_; }

 private:
  msa::Settings settings_{
      .block_size = kBlock, .topk = kTopk, .max_seqlen_q = 1, .max_seqlen_k = kMaxLength};
  std::unordered_map<msa::Problem, msa::Plan> plans_;
  std::size_t workspace_bytes_ = 0;
};

// Aligned as workspaces must be.
using Room = std::unique_ptr<void, decltype(&std::free)>;
Room room_of(std::size_t bytes) {
  constexpr std::size_t kUnit = msa::kWorkspaceAlignment;
  return {std::aligned_alloc(kUnit, (bytes / kUnit + 1) * kUnit), &std::free};
}

double distance_from_oracle(const Layer& layer, Plans& oracles) {
  const auto* const out = static_cast<const float*>(layer.host.out.data);
  const std::vector<float> got(out, out + kOut);
  const msa::Plan& plan = oracles.of(layer, layer.host);
  const Room room = room_of(plan.workspace_bytes());
  msa::run(plan, layer.host, {room.get(), plan.workspace_bytes()});
  double worst = 0;
  for (std::int64_t i = 0; i < kOut; ++i) {
    const double off = std::abs(static_cast<double>(got[i]) - out[i]);
    worst = std::isnan(off) ? HUGE_VAL : std::max(worst, off);
  }
  return worst;
}

#if defined(EXAMPLE_WITH_CUDA)
void check(cudaError_t error) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "engine_decode: %s\n", cudaGetErrorString(error));
  std::exit(1);
}

void* gpu_memory(std::size_t bytes) {  // lives as long as the process
  void* memory = nullptr;
  check(cudaMalloc(&memory, std::max<std::size_t>(bytes, 1)));
  return memory;
}

// The same tensors in the copy on the GPU.
void move_to_gpu(Layer& layer, const Arena& arena, void* gpu) {
  for (const msa::Field& field : msa::fields_of(layer.op)) {
    msa::Tensor& t = field.in(layer.here);
    if (!t) continue;
    t.data = static_cast<char*>(gpu) + (static_cast<char*>(t.data) - arena.host.data());
    t.device = {msa::DeviceType::Cuda, 0};
  }
}

// What is captured runs at each launch, on what its tensors hold then.
template <class Body>
cudaGraphExec_t capture(cudaStream_t stream, const Body& body) {
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t exec = nullptr;
  check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
  body(msa::Stream{stream});
  check(cudaStreamEndCapture(stream, &graph));
  check(cudaGraphInstantiate(&exec, graph, 0));
  check(cudaGraphDestroy(graph));
  return exec;
}
#endif

}  // namespace

int main(int argc, char** argv) {
  const bool on_gpu =
      argc == 3 && std::string_view(argv[1]) == "--device" && std::string_view(argv[2]) == "cuda";
  if (argc > 1 && !on_gpu) return std::fputs("usage: engine_decode [--device cuda]\n", stderr), 2;
  Arena arena;
  const msa::Batch batch{.cu_seqlens_q = arena.take(I32, {kBatch + 1}),
                         .seqlens_k = arena.take(I32, {kBatch}),
                         .page_table = arena.take(I32, {kBatch, kPages})};
  [[maybe_unused]] const std::size_t lengths = arena.used;  // what changes from step to step
  auto* const pages = static_cast<std::int32_t*>(batch.page_table.data);
  std::iota(pages, pages + kPool, 0);
  std::shuffle(pages, pages + kPool, std::mt19937(2));
  std::vector<Layer> layers;
  for (int n = 0; n < kLayers; ++n) layers.push_back(make_layer(arena, batch, n == 0));

  Plans plans(""), oracles("reference");
  const auto run_layers = [&](msa::Workspace workspace, msa::Stream stream) {
    for (const Layer& layer : layers) {
      msa::run(plans.of(layer, layer.here), layer.here, workspace, stream);
    }
  };
#if defined(EXAMPLE_WITH_CUDA)
  void* const gpu = on_gpu ? gpu_memory(arena.used) : nullptr;
  for (Layer& layer : layers) {
    if (on_gpu) move_to_gpu(layer, arena, gpu);
  }
#else
  if (on_gpu) return std::fputs("engine_decode: built without CUDA\n", stderr), 2;
#endif
  for (const Layer& layer : layers) plans.of(layer, layer.here);
  const std::size_t bytes = plans.workspace_bytes(), planned = plans.size();
  const Room room = room_of(bytes);
#if defined(EXAMPLE_WITH_CUDA)
  cudaStream_t stream = nullptr;
  cudaGraphExec_t graph = nullptr;
  if (on_gpu) {
    check(cudaStreamCreate(&stream));
    check(cudaMemcpy(gpu, arena.host.data(), arena.used, cudaMemcpyDefault));
    const msa::Workspace workspace{gpu_memory(bytes), bytes};
    graph = capture(stream, [&](msa::Stream s) { run_layers(workspace, s); });
  }
#endif

  double worst = 0;
  for (std::int32_t step = 0; step < kSteps; ++step) {
    next_step(batch, step);
    if (!on_gpu) run_layers({room.get(), bytes}, {});
#if defined(EXAMPLE_WITH_CUDA)
    if (on_gpu) {
      check(cudaMemcpy(gpu, arena.host.data(), lengths, cudaMemcpyDefault));
      check(cudaGraphLaunch(graph, stream));
      check(cudaStreamSynchronize(stream));
      for (const Layer& layer : layers) {
        check(cudaMemcpy(layer.host.out.data, layer.here.out.data, kOut * sizeof(float),
                         cudaMemcpyDefault));
      }
    }
#endif
    for (const Layer& layer : layers) worst = std::max(worst, distance_from_oracle(layer, oracles));
  }
  std::printf("%d steps of %d layers, %d plans, backend %s: at most %.1e from the oracle\n",
              static_cast<int>(kSteps), static_cast<int>(kLayers), static_cast<int>(planned),
              plans.of(layers[0], layers[0].here).backend().c_str(), worst);
  // Values are at most 1; the mark is what rounding the weights to bf16 may cost.
  const bool good = worst <= 4e-3 && plans.size() == planned;
  std::puts(good ? "ok" : "FAILED");
  return good ? 0 : 1;
}
