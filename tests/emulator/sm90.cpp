// SPDX-License-Identifier: MIT
// The launches of src/cuda/sm90, which plans name and this build has no kernels for: the emulated
// build says that it holds none (MSA_CUDA_COMPILED), so that no plan starts one.
#include "cuda/mma/backward/launch.h"
#include "cuda/sm90/attend/launch.h"
#include "cuda/sm90/backward/launch.h"
#include "cuda/sm90/backward_queries/launch.h"
#include "cuda/sm90/backward_shares/launch.h"
#include "cuda/sm90/decode/attend/launch.h"
#include "cuda/sm90/decode/score/launch.h"
#include "cuda/sm90/index_loss/launch.h"
#include "cuda/sm90/kvouter/launch.h"
#include "cuda/sm90/select/launch.h"
#include "thread.h"

namespace msa::cuda::sm90 {
namespace {

[[noreturn]] void refuse() { emulator::fail("a plan starts a kernel of sm90"); }

}  // namespace

void attend::launch(const Config&, const Params&, const Maps&, int, cudaStream_t) { refuse(); }

/// As every tile that Hopper's kernel has no instance for.
void backward::launch(const Params& params, const Maps&, int ctas, cudaStream_t stream) {
  mma::backward::launch(kTile, params, ctas, stream);
}

/// Shares are those of mma/, whose kernel finds what keys have in common itself.
void backward_shares::launch(const Params& params, const Maps&, int ctas, cudaStream_t stream) {
  mma::backward::launch(kTile, params, ctas, stream);
}

/// Every tile ends non-finite, so that each row is mended.
void backward_queries::launch(Walk, const Params& params, const Maps&, int, cudaStream_t) {
  if (params.unwanted != nullptr && *params.unwanted != 0) return;
  const std::int64_t pairs = params.batch.total_q * params.heads_kv;
  for (std::int64_t pair = 0; pair < pairs; ++pair)
    params.suspects.pairs[pair / 32] |= 1U << (pair % 32);
  *params.suspects.any = 1;
}

void index_loss::launch(const Params&, const Maps&, int, cudaStream_t) { refuse(); }

void kvouter::launch(const Config&, const Params&, const Maps&, int, cudaStream_t) { refuse(); }

void decode::launch_attend(const AttendConfig&, const AttendParams&, cudaStream_t) { refuse(); }
void decode::launch_attend_ranks(const AttendConfig&, const RanksAttendParams&, cudaStream_t) {
  refuse();
}
void decode::launch_mend(const AttendConfig&, const MendParams&, int, cudaStream_t) { refuse(); }
void decode::launch_score(const ScoreConfig&, const ScoreParams&, cudaStream_t) { refuse(); }

void select::launch_block_scores(const SelectPlan&, const Front&, const Queries&,
                                 const CUtensorMap&, const ScoresOut&, cudaStream_t) {
  refuse();
}
void select::launch_select_blocks(const SelectPlan&, const Front&, const Queries&,
                                  const CUtensorMap&, const common::topk::TopkParams&, float*,
                                  cudaStream_t) {
  refuse();
}
void select::launch_fast_blocks(const SelectPlan&, const Front&, const Queries&, const CUtensorMap&,
                                const FilterBounds<const float>&, const common::topk::TopkParams&,
                                float*, cudaStream_t) {
  refuse();
}
void select::launch_filtered_blocks(const SelectPlan&, const Front&, const Queries&,
                                    const CUtensorMap&, const Filter&,
                                    const common::topk::TopkParams&, float*, cudaStream_t) {
  refuse();
}

}  // namespace msa::cuda::sm90
