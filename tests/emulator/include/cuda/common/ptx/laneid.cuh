// SPDX-License-Identifier: MIT
// In place of the library's file of this name.
#pragma once

namespace msa::cuda::common::ptx {

inline int laneid() { return emulator::lane(); }

}  // namespace msa::cuda::common::ptx
