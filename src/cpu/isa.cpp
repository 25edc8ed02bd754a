// SPDX-License-Identifier: MIT
// The table of instruction-set levels: a row is a level's name, what it needs and its kernels.
#include "cpu/isa.h"

#include <span>

#include "cpu/kernels.h"

namespace msa::cpu {
namespace {

struct Feature {
  const char* name;
  bool core::CpuFeatures::*has;
};

// Each level of a family needs a prefix of what its next one needs.
constexpr std::array kX86 = {
    Feature{"avx2", &core::CpuFeatures::avx2},
    Feature{"fma", &core::CpuFeatures::fma},
    Feature{"f16c", &core::CpuFeatures::f16c},
    Feature{"avx512f", &core::CpuFeatures::avx512f},
    Feature{"avx512bw", &core::CpuFeatures::avx512bw},
    Feature{"avx512dq", &core::CpuFeatures::avx512dq},
    Feature{"avx512vl", &core::CpuFeatures::avx512vl},
    Feature{"avx512_vbmi", &core::CpuFeatures::avx512_vbmi},
    Feature{"avx512_vnni", &core::CpuFeatures::avx512_vnni},
    Feature{"avx512_bf16", &core::CpuFeatures::avx512_bf16},
    Feature{"amx_tile", &core::CpuFeatures::amx_tile},
    Feature{"amx_bf16", &core::CpuFeatures::amx_bf16},
    Feature{"amx_int8", &core::CpuFeatures::amx_int8},
};
constexpr std::array kArm = {
    Feature{"neon", &core::CpuFeatures::neon},
    Feature{"neon_bf16", &core::CpuFeatures::neon_bf16},
};

struct Level {
  Isa isa;
  const char* name;
  std::span<const Feature> needs;
  const Kernels* kernels;  // null: not in this build
};

#if defined(__x86_64__)
constexpr const Kernels* kAmx = &amx::kKernels;
constexpr const Kernels* kAvx512Bf16 = &avx512_bf16::kKernels;
constexpr const Kernels* kAvx512 = &avx512::kKernels;
constexpr const Kernels* kAvx2 = &avx2::kKernels;
#else
constexpr const Kernels* kAmx = nullptr;
constexpr const Kernels* kAvx512Bf16 = nullptr;
constexpr const Kernels* kAvx512 = nullptr;
constexpr const Kernels* kAvx2 = nullptr;
#endif
#if defined(__aarch64__)
constexpr const Kernels* kNeonBf16 = &neon_bf16::kKernels;
constexpr const Kernels* kNeon = &neon::kKernels;
#else
constexpr const Kernels* kNeonBf16 = nullptr;
constexpr const Kernels* kNeon = nullptr;
#endif

#if defined(MSA_EMULATED_TILES)
constexpr const Kernels* kAmxEmulated = &amx_emulated::kKernels;
#else
constexpr const Kernels* kAmxEmulated = nullptr;
#endif

constexpr std::span<const Feature> kX86Features{kX86}, kArmFeatures{kArm};

constexpr std::array kLevels = {
    Level{Isa::Amx, "amx", kX86Features, kAmx},
    Level{Isa::Avx512Bf16, "avx512_bf16", kX86Features.first(10), kAvx512Bf16},
    Level{Isa::Avx512, "avx512", kX86Features.first(7), kAvx512},
    Level{Isa::Avx2, "avx2", kX86Features.first(3), kAvx2},
    Level{Isa::NeonBf16, "neon_bf16", kArmFeatures, kNeonBf16},
    Level{Isa::Neon, "neon", kArmFeatures.first(1), kNeon},
    Level{Isa::Scalar, "scalar", {}, &scalar::kKernels},
    Level{Isa::AmxEmulated, "amx_emulated", {}, kAmxEmulated},
};

constexpr const Level& level(Isa isa) { return kLevels[static_cast<std::size_t>(isa)]; }

constexpr bool rows_match() {
  if (kLevels.size() != kIsas.size()) return false;
  for (std::size_t i = 0; i < kIsas.size(); ++i) {
    if (kLevels[i].isa != kIsas[i] || level(kIsas[i]).isa != kIsas[i]) return false;
  }
  return true;
}
static_assert(rows_match(), "a row for each level, in the order of the enumeration");

}  // namespace

const char* to_string(Isa isa) noexcept { return level(isa).name; }

const Kernels* find_kernels(Isa isa) noexcept { return level(isa).kernels; }

std::string why_not(Isa isa, const core::CpuFeatures& cpu) {
  if (isa == Isa::AmxEmulated)
    return find_kernels(isa) == nullptr ? "is for tests and not in this build" : "";
  if (find_kernels(isa) == nullptr) return "is not built for this processor family";
  std::string list;
  for (const Feature& feature : level(isa).needs) {
    if (!(cpu.*feature.has)) list += (list.empty() ? "needs " : ", ") + std::string(feature.name);
  }
  if (isa == Isa::Amx && list.empty() && !cpu.amx_permitted)
    return "needs the system's permission to use tiles, which it refuses (arch_prctl)";
  return list;
}

}  // namespace msa::cpu
