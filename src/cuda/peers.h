// SPDX-License-Identifier: MIT
// What GPUs of one host do with each other, from checked calls to launches.
#pragma once

#include <cuda_runtime_api.h>

#include "core/peers.h"

namespace msa::cuda {

void choose(const core::ChooseCall& call, cudaStream_t stream);
void join(const core::JoinCall& call, cudaStream_t stream);
void deal(const core::DealCall& call, cudaStream_t stream);

}  // namespace msa::cuda
