// SPDX-License-Identifier: MIT
#include "cuda/sm90/select/score_instances.cuh"

namespace msa::cuda::sm90::select {
template void launch_scores<true, 64>(const ScoreParams&, const CUtensorMap&, bool, int,
                                      cudaStream_t);
}
