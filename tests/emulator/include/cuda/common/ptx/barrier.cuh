// SPDX-License-Identifier: MIT
// In place of the library's file of this name: an mbarrier as a counter and a phase.
#pragma once

#include <cstdint>

#include "cuda/common/ptx/bar_sync.cuh"
#include "cuda/common/ptx/launch_control.cuh"
#include "cuda/common/ptx/shared.cuh"

// The copy engine, which common/ names and only sm90 calls.
namespace cuda::ptx {

enum Word { sem_release, scope_cta, space_shared };
inline void mbarrier_arrive_expect_tx(Word, Word, Word, void*, std::uint32_t) {
  emulator::fail("there is no copy engine");
}

}  // namespace cuda::ptx

namespace msa::cuda::common::ptx {

using Mbarrier = std::uint64_t;

struct MbarrierState {
  std::uint32_t arrivals;  // that complete a phase
  std::uint16_t missing;
  std::uint16_t parity;  // of the phase that has not completed
};

inline void mbarrier_init(Mbarrier* bar, std::uint32_t arrivals) {
  *bar = emulator::word_of(MbarrierState{arrivals, static_cast<std::uint16_t>(arrivals), 0});
}

inline void mbarrier_arrive(Mbarrier* bar) {
  auto state = emulator::read_as<MbarrierState>(*bar);
  if (--state.missing == 0) {
    state.missing = static_cast<std::uint16_t>(state.arrivals);
    state.parity ^= 1;
  }
  *bar = emulator::word_of(state);
}

/// Lets the others run once when the phase has not completed: who waits calls this in a loop.
inline bool mbarrier_try_wait_parity(Mbarrier* bar, std::uint32_t parity) {
  const auto completed = [&] { return emulator::read_as<MbarrierState>(*bar).parity != parity; };
  if (!completed()) emulator::yield();
  return completed();
}

inline void fence_mbarrier_init() {}
inline void fence_proxy_async_shared() {}

inline int atom_add_shared(int* counter, int x) {
  const int before = *counter;
  *counter += x;
  return before;
}

}  // namespace msa::cuda::common::ptx
