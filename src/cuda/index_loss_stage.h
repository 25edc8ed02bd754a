// SPDX-License-Identifier: MIT
// The index loss as a stage. Planning is pure; a run is, chunk by chunk of the rows, the student's
// logarithms, then losses and gradients: shares of a chunk lie in the workspace until they are
// added up, and so do the gradients of index keys, of each index head, until the last chunk is
// done.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <string>

#include "core/call.h"
#include "cuda/device.h"
#include "cuda/key_tiles.h"
#include "cuda/layout.h"
#include "cuda/mma/index_loss/config.h"

namespace msa::cuda {

class IndexLossStage {
 public:
  /// Starts a kernel over the items of a launch.
  using Launch = void (*)(const mma::index_loss::Config&, const mma::index_loss::Params&,
                          const core::Call&, int ctas, cudaStream_t);

  /// Why the kernels do not serve the problem; empty: they do.
  static std::string rejects(const Problem& problem, const GpuInfo& gpu);

  IndexLossStage(const Problem& problem, const GpuInfo& gpu, Layout& layout);

  /// Clears the status word first.
  void run(const Problem& problem, const core::Call& call, void* workspace,
           cudaStream_t stream) const;
  std::string decisions() const;

 protected:
  /// With tiles of so many keys, and kernels of another instruction set over the same items, shares
  /// and sums.
  IndexLossStage(const Problem& problem, const GpuInfo& gpu, Layout& layout, int keys,
                 Launch launch);

 private:
  /// Sizes that follow from a problem and a card.
  struct Shape {
    Shape(const Problem& problem, const GpuInfo& gpu, int keys);

    mma::index_loss::Config config;
    KeyTiles::Shape keys;
    KeyTiles::Cut cut;
    KeyTiles::Cut student_cut;  // of the launch for the student's logarithms, which adds nothing up
    std::int64_t most_sums;     // bytes
    std::int64_t chunk_rows;
    int shared_heads;   // index heads that share a head of keys
    int heads_at_once;  // of these; the others take turns
  };

  IndexLossStage(const Problem& problem, const Shape& shape, Layout& layout, Launch launch);

  common::backward::KeyParams key_params(const Problem& problem, const core::Call& call,
                                         const common::backward::Pairs& pairs,
                                         void* workspace) const;
  mma::index_loss::Params params_of(const Problem& problem, const core::Call& call,
                                    void* workspace) const;
  void run_student(const core::Call& call, const mma::index_loss::Params& gradients,
                   const common::backward::LossParams& rows, int ctas, void* workspace,
                   cudaStream_t stream) const;
  void run_rows(const Problem& problem, const core::Call& call,
                const common::backward::Pairs& pairs, void* workspace, cudaStream_t stream) const;

  Shape shape_;
  Launch launch_;
  KeyTiles tiles_;
  Piece<common::backward::StudentShare> student_shares_{};
  Piece<float> student_lse_{};  // [T, Hi]
  Piece<float> loss_shares_{};
  Piece<std::uint16_t> steps_{};
  Piece<float> step_sizes_{};
  Piece<float> parts_{};
  Piece<float> sums_{};
};

/// With Hopper's kernels where it has them.
class Sm90IndexLossStage : public IndexLossStage {
 public:
  Sm90IndexLossStage(const Problem& problem, const GpuInfo& gpu, Layout& layout);
};

}  // namespace msa::cuda
