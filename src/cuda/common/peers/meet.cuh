// SPDX-License-Identifier: MIT
// A barrier of the GPUs of one host inside the kernel that reads what they wrote: no launch of its
// own. Every rank has a pad that all of them write to, in memory that lies behind links.
#pragma once

#include "cuda/common/peers/launch.h"
#include "cuda/common/ptx/launch_control.cuh"
#include "cuda/common/ptx/system.cuh"

namespace msa::cuda::common::peers {

/// Every thread calls it first: what launches before this one wrote, on this rank and on all
/// others, may be read afterwards. The first CTA says that this rank is here; all of them wait.
///
/// Words of the pad count meetings, so that a rank which is ahead is not taken for one that is
/// late, and a graph may be replayed. A launch takes its number from the meeting before it, which
/// is of the other kind: no CTA can see a number of its own launch.
__device__ __forceinline__ void meet(const Meeting& m) {
  ptx::griddepcontrol_wait();
  const int kind = static_cast<int>(m.kind);
  const int thread = static_cast<int>(threadIdx.x);
  std::uint32_t* here = m.pads[m.rank];
  std::uint32_t* counts = here + 2 * m.ranks;
  const std::uint32_t now = counts[kind] + 1;
  if (thread < m.ranks) {
    if (blockIdx.x == 0) ptx::st_release_sys(m.pads[thread] + kind * m.ranks + m.rank, now);
    const std::uint32_t* word = here + kind * m.ranks + thread;
    const std::uint64_t start = ptx::globaltimer();
    while (static_cast<std::int32_t>(ptx::ld_acquire_sys(word) - now) < 0) {
      if (m.timeout_ns > 0 && ptx::globaltimer() - start > m.timeout_ns) ptx::trap();
    }
  }
  if (blockIdx.x == 0 && thread == 0) counts[1 - kind] = m.kind == Kind::Choose ? now - 1 : now;
  __syncthreads();
}

}  // namespace msa::cuda::common::peers
