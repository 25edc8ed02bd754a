// SPDX-License-Identifier: MIT
// In place of the library's file of this name: addresses count from dynamic shared memory.
#pragma once

#include <cstdint>

namespace msa::cuda::common::ptx {

inline std::uint32_t cvta_to_shared(const void* p) {
  return static_cast<std::uint32_t>(static_cast<const std::uint8_t*>(p) -
                                    emulator::dynamic_shared());
}

/// The way back, of the emulator alone.
inline std::uint8_t* at_shared(std::uint32_t address) {
  return emulator::dynamic_shared() + address;
}

template <class T>
T* hold_shared(T* p) {
  return p;
}

}  // namespace msa::cuda::common::ptx
