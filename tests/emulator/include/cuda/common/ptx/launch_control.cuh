// SPDX-License-Identifier: MIT
// In place of the library's file of this name: launches follow each other.
#pragma once

namespace msa::cuda::common::ptx {

inline void griddepcontrol_wait() {}
inline void griddepcontrol_launch_dependents() {}

}  // namespace msa::cuda::common::ptx
