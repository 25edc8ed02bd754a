// SPDX-License-Identifier: MIT
// Requests of a few query tokens as a stage, on the kernels of either instruction set: block
// scores, selection, attention over all blocks, a given list or the selection, whichever the
// operation asks for. Planning is pure; a run is the prologue and one to three launches, with a
// filter that pays one more.
#pragma once

#include <cuda_runtime_api.h>

#include <string>

#include "core/call.h"
#include "core/peers.h"
#include "cuda/common/decode/attend/launch.h"
#include "cuda/common/decode/rescore/launch.h"
#include "cuda/common/decode/score/launch.h"
#include "cuda/common/prologue/launch.h"
#include "cuda/device.h"
#include "cuda/layout.h"

namespace msa::cuda {

/// The kernels of sm90/, of mma/: what of a stage differs between instruction sets.
struct Sm90Decode;
struct MmaDecode;

template <class Kernels>
class DecodeStageOf {
 public:
  /// Why these kernels do not serve the problem (the prefill kernels may); empty: they do.
  static std::string rejects(const Problem& problem);

  DecodeStageOf(const Problem& problem, const GpuInfo& gpu, Layout& layout);

  /// What the run wants of the prologue.
  void ask(common::prologue::Params& front, void* workspace) const;
  /// The prologue `front` and the launches behind it.
  void run(const Problem& problem, const core::Call& call, const common::prologue::Params& front,
           void* workspace, cudaStream_t stream, const core::AttendCall* among = nullptr) const;
  /// Whether `run` takes ranks.
  bool attends_among_ranks(const Problem& problem) const;
  std::string decisions() const;

 private:
  /// How blocks are selected, where they are.
  void plan_selection(const Problem& problem);
  /// Splits of attention; how many CTAs that makes.
  std::int64_t plan_splits(const Problem& problem, const GpuInfo& gpu);
  common::decode::ScoreParams score_params(const Problem& problem, const core::Call& call,
                                           const common::prologue::Params& front,
                                           void* workspace) const;
  common::decode::AttendParams attend_params(const Problem& problem, const core::Call& call,
                                             const common::prologue::Params& front,
                                             void* workspace) const;
  common::decode::RescoreParams rescore_params(const Problem& problem, const core::Call& call,
                                               const common::decode::ScoreParams& score,
                                               void* workspace) const;
  Rows<std::uint32_t> order_rows(const Problem& problem, const Piece<std::uint32_t>& piece,
                                 std::int64_t parts, void* workspace) const;
  common::decode::SelectParams select_params(const Problem& problem, const core::Call& call,
                                             const common::prologue::Params& front,
                                             void* workspace) const;
  Slots<float> score_rows(const Problem& problem, const core::Call& call, void* workspace) const;
  /// Where a selection goes: to the caller, or to a piece of ours where he does not want it and
  /// attention reads it.
  Tensor ids_of(const Problem& problem, const core::Call& call, void* workspace) const;

  int token_slots_ = 1;
  int max_blocks_ = 0;
  common::decode::ScoreConfig scoring_{};
  int score_ctas_ = 0;
  int rescore_ctas_ = 0;  // 0: no filter is read
  int splits_ = 1;
  bool selects_inside_ = false;  // attention of msa_attention selects for itself
  int lanes_ = 1;                // of a selection
  int rehearsals_ = 0;
  std::int64_t score_stride_ = 0;  // floats of one scratch row
  int num_claims_ = 0;
  int num_arrivals_ = 0;
  Piece<float> scores_{};         // [T, Hi, score_stride]
  Piece<std::uint32_t> lower_{};  // likewise, where a filter is read
  Piece<std::uint32_t> upper_{};
  Piece<int> ids_{};       // of msa_attention with a selection of its own launch
  Piece<int> counters_{};  // claims of scoring, arrivals of attention; zero at first
  Piece<float> partial_out_{};
  Piece<float2> partial_state_{};
};

extern template class DecodeStageOf<Sm90Decode>;
extern template class DecodeStageOf<MmaDecode>;

using DecodeStage = DecodeStageOf<Sm90Decode>;
using MmaDecodeStage = DecodeStageOf<MmaDecode>;

}  // namespace msa::cuda
