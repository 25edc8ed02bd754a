// SPDX-License-Identifier: MIT
#include "cuda/mma/decode/attend/kernel.cuh"

namespace msa::cuda::mma::decode {

template void launch_attend_instance<AttendConfig{
    .storage = Storage::F16, .block = 64, .dim = 128}>(const AttendParams&, cudaStream_t);
template void launch_mend_instance<AttendConfig{.storage = Storage::F16, .block = 64, .dim = 128}>(
    const MendParams&, int, cudaStream_t);

}  // namespace msa::cuda::mma::decode
