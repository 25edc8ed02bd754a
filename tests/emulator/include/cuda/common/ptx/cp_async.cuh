// SPDX-License-Identifier: MIT
// In place of the library's file of this name: copies happen as late as they may, so that who does
// not wait for them reads what was there before.
#pragma once

#include <cstdint>
#include <cstring>

#include "cuda/common/ptx/barrier.cuh"
#include "cuda/common/ptx/shared.cuh"

namespace msa::cuda::common::ptx {

inline void start_copy(void* to, const void* from, int bytes, int size) {
  const auto aligned = [&](const void* p) {
    return reinterpret_cast<std::uintptr_t>(p) % static_cast<unsigned>(size) == 0;
  };
  if (!aligned(to) || (bytes > 0 && !aligned(from))) emulator::fail("misaligned cp.async");
  if (bytes < 0 || bytes > size) emulator::fail("cp.async of more bytes than it has");
  emulator::self->copies.back().push_back({to, from, bytes, size});
}

/// Completes all groups but the youngest `pending` committed ones.
inline void finish_copies(std::size_t pending) {
  auto& groups = emulator::self->copies;
  while (groups.size() > pending + 1) {
    for (const emulator::Copy& copy : groups.front()) {
      std::memset(copy.to, 0, static_cast<std::size_t>(copy.size));
      if (copy.bytes > 0) std::memcpy(copy.to, copy.from, static_cast<std::size_t>(copy.bytes));
    }
    groups.erase(groups.begin());
  }
}

inline void cp_async_16(void* smem, const void* gmem, int bytes) {
  start_copy(smem, gmem, bytes, 16);
}
inline void cp_async_16(std::uint32_t smem, const void* gmem, int bytes) {
  start_copy(at_shared(smem), gmem, bytes, 16);
}

template <int kBytes>
void cp_async(void* smem, const void* gmem, int bytes) {
  static_assert(kBytes == 4 || kBytes == 8, "16 bytes pass L1");
  start_copy(smem, gmem, bytes, kBytes);
}

inline void cp_async_commit_group() { emulator::self->copies.emplace_back(); }

template <int kPending>
void cp_async_wait_group() {
  finish_copies(kPending);
}

inline void cp_async_mbarrier_arrive_noinc(Mbarrier* bar) {
  cp_async_commit_group();
  finish_copies(0);
  mbarrier_arrive(bar);
}

inline void touch(const void*) {}

}  // namespace msa::cuda::common::ptx
