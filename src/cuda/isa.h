// SPDX-License-Identifier: MIT
// The instruction sets that kernels are written for, each a folder of this backend beside common/,
// and which of them a GPU runs and this build holds code of.
#pragma once

#include <array>
#include <span>
#include <string>

namespace msa::cuda {

struct GpuInfo;  // device.h

struct Isa {
  const char* name;
  int least;           // compute capability, times 10
  int most;            // above `least` where code for it runs on what comes later, too
  const char* needed;  // the same in words
};

inline constexpr Isa kSm90{"sm90", 90, 90, "compute capability 9.0"};
inline constexpr Isa kMma{"mma", 80, 9990, "compute capability 8.0 or newer"};

/// Best first.
inline constexpr std::array kIsas = {&kSm90, &kMma};

/// What a build compiled kernels for: machine code for a compute capability times 10, or PTX.
struct Compiled {
  int capability;
  bool ptx;
};

/// Whether kernels compiled for these run on a card of that compute capability: its own code, that
/// of an older card of its generation, or PTX that the driver compiles.
bool runs_compiled(const Isa& isa, std::span<const Compiled> compiled, int capability);

/// What this build compiled.
std::span<const Compiled> compiled_for();

/// Why the instruction set does not run on the GPU; empty: it does.
std::string isa_rejects(const Isa& isa, const GpuInfo& gpu);

/// Why no instruction set has the name; empty: one has, or none is asked for.
std::string isa_name_rejects(const std::string& name);

}  // namespace msa::cuda
