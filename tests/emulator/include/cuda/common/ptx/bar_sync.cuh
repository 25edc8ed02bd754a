// SPDX-License-Identifier: MIT
// In place of the library's file of this name.
#pragma once

namespace msa::cuda::common::ptx {

inline void bar_sync(int id, int threads) { emulator::barrier(id, threads); }

}  // namespace msa::cuda::common::ptx
