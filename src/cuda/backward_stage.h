// SPDX-License-Identifier: MIT
// Gradients of attention as a stage. Planning is pure; a run is the products of dout and out, for
// lists their inverse, then launches of the backward kernel: over chunks of the rows, as the shares
// of dq of a chunk lie in the workspace until they are added up. Where there is a kernel over tiles
// of rows, dq comes from that alone.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <optional>
#include <string>

#include "core/call.h"
#include "cuda/device.h"
#include "cuda/key_tiles.h"
#include "cuda/layout.h"
#include "cuda/mma/backward/config.h"
#include "cuda/query_gradients.h"

namespace msa::cuda {

class BackwardStage {
 public:
  /// Starts the kernel over the items of a launch.
  using Launch = void (*)(const mma::backward::Config&, const mma::backward::Params&,
                          const core::Call&, int ctas, cudaStream_t);

  /// Why the kernels do not serve the problem; empty: they do.
  static std::string rejects(const Problem& problem, const GpuInfo& gpu);

  BackwardStage(const Problem& problem, const GpuInfo& gpu, Layout& layout);

  /// With kernels of another instruction set, over the same items, shares and sums. `by_rows`: dq
  /// by its own kernel, where that serves the problem.
  BackwardStage(const Problem& problem, const GpuInfo& gpu, Layout& layout, Launch launch,
                bool by_rows);

  /// Clears the status word first.
  void run(const Problem& problem, const core::Call& call, void* workspace,
           cudaStream_t stream) const;
  std::string decisions() const;

 private:
  /// How dq, dk and dv come about together.
  enum class Order {
    Rows,    // dk and dv of all rows at once, then dq by its own kernel
    Once,    // all rows at once: each tile's gradients are finished where it is multiplied
    Summed,  // chunk by chunk: sums of dk and dv over all chunks lie in the workspace
    Twice,   // dk and dv of all rows at once, then dq chunk by chunk: scores are made twice
  };
  /// Sizes that follow from a problem and a card.
  struct Shape {
    Shape(const Problem& problem, const GpuInfo& gpu, bool by_rows);

    /// Of any launch.
    KeyTiles::Limits most(const Problem& problem) const;

    mma::backward::Config config;
    KeyTiles::Shape keys;
    KeyTiles::Cut cut;
    std::int64_t chunk_rows;
    Order order;
    std::int64_t share_rows = 0;  // of Order::Rows, of a chunk; 0: no shares are made
  };
  /// Rows of q of one launch of the kernel, and what is wanted of them.
  struct Rows {
    std::int64_t begin = 0;
    std::int64_t end = 0;
    bool queries = false;
    bool keys = false;
    bool summed = false;           // dk and dv are added to those of other launches
    const int* wanted = nullptr;   // 0: there is nothing to do; or none
    const float* means = nullptr;  // of keys, for shares where Order::Rows makes them
  };

  BackwardStage(const Problem& problem, const GpuInfo& gpu, const Shape& shape, Layout& layout,
                Launch launch);
  void plan_sums(const Problem& problem, Layout& layout);
  common::backward::Shares shares_of(void* workspace) const;
  common::backward::KeySums sums_of(void* workspace) const;
  common::backward::KeyParams key_params(const Problem& problem, const core::Call& call,
                                         const common::backward::Pairs& pairs,
                                         void* workspace) const;
  void run_queries(const Problem& problem, const core::Call& call,
                   const common::prologue::Params& front, const common::backward::Pairs& pairs,
                   void* workspace, cudaStream_t stream) const;
  void run_rows(const Problem& problem, const core::Call& call, const common::backward::Pairs& all,
                const Rows& rows, void* workspace, cudaStream_t stream) const;
  void prepare(const Problem& problem, const core::Call& call,
               const common::backward::KeyParams& keys, void* workspace, cudaStream_t stream) const;

  Shape shape_;
  Launch launch_;
  KeyTiles tiles_;
  Piece<float> delta_{};  // [T, Hq]
  std::optional<QueryGradients> queries_{};
  Piece<float> parts_{};
  Piece<float> sums_{};
  Piece<int> share_little_{};  // whether lists do
  Piece<std::uint16_t> steps_{};
  Piece<float> step_sizes_{};
};

/// With Hopper's kernels where it has them for the tile. Whether a row is multiplied by wgmma
/// depends on its neighbours in a step, so that with batch_invariant, where a chunk's end moves
/// them, the portable kernel stays.
class Sm90BackwardStage : public BackwardStage {
 public:
  Sm90BackwardStage(const Problem& problem, const GpuInfo& gpu, Layout& layout);
};

}  // namespace msa::cuda
