// SPDX-License-Identifier: MIT
// The instruction-set levels of the CPU backend and the machine that a plan was made for. Kernels
// of a level are reached through its table alone (kernels.h); nothing outside isa/ is compiled for
// more than the baseline.
#pragma once

#include <array>
#include <cstdint>
#include <string>

#include "core/cpu_features.h"

namespace msa::cpu {

/// AmxEmulated has the kernels of Amx over plain loops, for tests: any processor, in builds with
/// tests alone, and only where it is asked for.
enum class Isa : std::uint8_t {
  Amx,
  Avx512Bf16,
  Avx512,
  Avx2,
  NeonBf16,
  Neon,
  Scalar,
  AmxEmulated
};

/// Best first.
inline constexpr std::array<Isa, 8> kIsas = {Isa::Amx,    Isa::Avx512Bf16, Isa::Avx512,
                                             Isa::Avx2,   Isa::NeonBf16,   Isa::Neon,
                                             Isa::Scalar, Isa::AmxEmulated};

/// "amx", "avx512_bf16", "avx512", "avx2", "neon_bf16", "neon", "scalar", "amx_emulated".
const char* to_string(Isa isa) noexcept;

/// Why the level cannot run: "needs avx2, fma", what `cpu` lacks, what the system refuses, or that
/// it is not in this build. Empty: it can.
std::string why_not(Isa isa, const core::CpuFeatures& cpu);

struct Kernels;

/// The table of a level; null where this build has none: vector levels of other processors.
const Kernels* find_kernels(Isa isa) noexcept;

/// What every planner of this backend gets beside the problem.
struct Machine {
  Isa isa = Isa::Scalar;
  const Kernels* kernels = nullptr;
  int threads = 1;
};

}  // namespace msa::cpu
