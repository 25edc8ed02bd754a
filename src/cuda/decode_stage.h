// SPDX-License-Identifier: MIT
// Requests of a few query tokens as a stage: block scores, selection, attention over all blocks, a
// given list or the selection, whichever the operation asks for. Planning is pure; a run is the
// prologue and one to three launches, with a filter that pays one more.
#pragma once

#include <cuda_runtime_api.h>

#include <string>

#include "core/call.h"
#include "cuda/common/prologue/launch.h"
#include "cuda/device.h"
#include "cuda/layout.h"
#include "cuda/sm90/decode/attend/launch.h"
#include "cuda/sm90/decode/rescore/launch.h"
#include "cuda/sm90/decode/score/launch.h"

namespace msa::cuda {

class DecodeStage {
 public:
  /// Why these kernels do not serve the problem (the prefill kernels may); empty: they do.
  static std::string rejects(const Problem& problem);

  DecodeStage(const Problem& problem, const GpuInfo& gpu, Layout& layout);

  /// What the run wants of the prologue.
  void ask(common::prologue::Params& front, void* workspace) const;
  /// The prologue `front` and the launches behind it.
  void run(const Problem& problem, const core::Call& call, const common::prologue::Params& front,
           void* workspace, cudaStream_t stream) const;
  std::string decisions() const;

 private:
  /// These two throw where 16-byte loads or the copy engine cannot take a tensor.
  sm90::decode::ScoreParams score_params(const Problem& problem, const core::Call& call,
                                         const common::prologue::Params& front,
                                         void* workspace) const;
  sm90::decode::RescoreParams rescore_params(const Problem& problem, const core::Call& call,
                                             const sm90::decode::ScoreParams& score,
                                             void* workspace) const;
  Rows<std::uint32_t> order_rows(const Problem& problem, const Piece<std::uint32_t>& piece,
                                 std::int64_t parts, void* workspace) const;
  sm90::decode::AttendParams attend_params(const Problem& problem, const core::Call& call,
                                           const common::prologue::Params& front,
                                           void* workspace) const;
  sm90::decode::SelectParams select_params(const Problem& problem, const core::Call& call,
                                           const common::prologue::Params& front,
                                           void* workspace) const;
  Slots<float> score_rows(const Problem& problem, const core::Call& call, void* workspace) const;

  int token_slots_ = 1;
  int max_blocks_ = 0;
  int score_ctas_ = 0;
  int rescore_ctas_ = 0;  // 0: no filter is read
  int splits_ = 1;
  int rehearsals_ = 0;
  std::int64_t score_stride_ = 0;  // floats of one scratch row
  int num_claims_ = 0;
  int num_arrivals_ = 0;
  Piece<float> scores_{};         // [T, Hi, score_stride]
  Piece<std::uint32_t> lower_{};  // likewise, where a filter is read
  Piece<std::uint32_t> upper_{};
  Piece<int> counters_{};  // claims of scoring, arrivals of attention; zero at first
  Piece<float> partial_out_{};
  Piece<float2> partial_state_{};
};

}  // namespace msa::cuda
