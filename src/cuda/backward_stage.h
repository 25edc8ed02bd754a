// SPDX-License-Identifier: MIT
// Gradients of attention as a stage. Planning is pure; a run is the products of dout and out, for
// lists their inverse, then launches of the backward kernel: over chunks of the rows, as the shares
// of dq of a chunk lie in the workspace until they are added up.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <string>

#include "core/call.h"
#include "cuda/common/backward/launch.h"
#include "cuda/device.h"
#include "cuda/layout.h"
#include "cuda/mma/backward/config.h"
#include "cuda/tuning.h"

namespace msa::cuda {

class BackwardStage {
 public:
  /// Why the kernels do not serve the problem; empty: they do.
  static std::string rejects(const Problem& problem, const GpuInfo& gpu);

  BackwardStage(const Problem& problem, const GpuInfo& gpu, Layout& layout);

  /// Clears the status word first.
  void run(const Problem& problem, const core::Call& call, void* workspace,
           cudaStream_t stream) const;
  std::string decisions() const;

 private:
  /// How dq comes about where there is more than one chunk.
  enum class Order {
    Once,    // all rows at once: each tile's gradients are finished where it is multiplied
    Summed,  // chunk by chunk, dk and dv beside dq: sums over all chunks lie in the workspace
    Twice,   // dk and dv of all rows at once, then dq chunk by chunk: scores are made twice
  };
  /// Sizes that follow from a problem and a card.
  struct Shape {
    Shape(const Problem& problem, const GpuInfo& gpu);

    bool listed;
    mma::backward::Config config;
    std::int64_t block;       // of lists, or keys of a tile
    std::int64_t tiles;       // of the longest request
    std::int64_t all_tiles;   // of all requests
    std::int64_t places;      // of a token and KV head
    std::int64_t slot_bytes;  // of a share of dq
    std::int64_t chunk_rows;
    Order order;
    std::int64_t max_parts;
    int ctas;
  };

  /// Rows of q of one launch of the kernel, and what is wanted of them.
  struct Rows {
    std::int64_t begin = 0;
    std::int64_t end = 0;
    bool queries = false;
    bool keys = false;
    bool summed = false;  // dk and dv are added to those of other launches
  };

  static std::int64_t item_tokens(const Problem& problem, const Shape& shape, std::int64_t rows);
  static std::int64_t max_items(const Problem& problem, const Shape& shape, std::int64_t rows);
  static std::int64_t num_lists(const Problem& problem);

  void plan_sums(const Problem& problem, Layout& layout);
  common::backward::Pairs pairs_of(const Problem& problem, const core::Call& call,
                                   const common::prologue::Params& front, void* workspace) const;
  common::backward::Shares shares_of(void* workspace) const;
  common::backward::KeySums sums_of(void* workspace) const;
  common::backward::KeyParams key_params(const Problem& problem, const core::Call& call,
                                         const common::backward::Pairs& pairs,
                                         void* workspace) const;
  /// What all launches need.
  void prepare(const Problem& problem, const core::Call& call, const common::backward::Pairs& pairs,
               const common::prologue::Params& front, void* workspace, cudaStream_t stream) const;
  void run_rows(const Problem& problem, const core::Call& call, const common::backward::Pairs& all,
                const Rows& rows, void* workspace, cudaStream_t stream) const;

  Shape shape_;
  int invert_tokens_ = 1;
  Piece<RequestRecord> requests_{};
  Piece<std::int64_t> first_blocks_{};
  Piece<common::prologue::TileRecord> tiles_{};  // those of the inverse
  Piece<int> num_tiles_{};
  Piece<int> first_tiles_{};
  Piece<int> counts_{};
  Piece<int> row_ptr_{};    // [Hkv, blocks + 1]
  Piece<int> q_indices_{};  // [Hkv, T * k]
  Piece<int> q_slots_{};
  Piece<float> delta_{};  // [T, Hq]
  Piece<common::backward::Counters> counters_{};
  Piece<common::backward::WorkItem> items_{};
  Piece<common::backward::SplitTile> splits_{};
  Piece<float> parts_{};
  Piece<float> sums_{};
  Piece<std::uint16_t> steps_{};
  Piece<float> step_sizes_{};
};

}  // namespace msa::cuda
