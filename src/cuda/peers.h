// SPDX-License-Identifier: MIT
// Merges over the GPUs of one host, from checked calls to launches.
#pragma once

#include <cuda_runtime_api.h>

#include "core/peers.h"

namespace msa::cuda {

void choose(const core::ChooseCall& call, cudaStream_t stream);
void join(const core::JoinCall& call, cudaStream_t stream);

}  // namespace msa::cuda
