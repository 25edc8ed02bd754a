// SPDX-License-Identifier: MIT
#include "cuda/sm90/decode/attend/kernel.cuh"

namespace msa::cuda::sm90::decode {

template void launch_attend_instance<AttendConfig{
    .storage = Storage::Bf16, .block = 128, .dim = 128}>(const AttendParams&, cudaStream_t);
template void launch_mend_instance<AttendConfig{
    .storage = Storage::Bf16, .block = 128, .dim = 128}>(const MendParams&, int, cudaStream_t);
template void launch_attend_ranks_instance<AttendConfig{
    .storage = Storage::Bf16, .block = 128, .dim = 128}>(const RanksAttendParams&, cudaStream_t);

}  // namespace msa::cuda::sm90::decode
