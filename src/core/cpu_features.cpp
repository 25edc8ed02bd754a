// SPDX-License-Identifier: MIT
// Processor features: cpuid and xgetbv on x86-64, the system's word on 64-bit ARM.
#include "core/cpu_features.h"

#include <cstdint>

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

namespace msa::core {

#if defined(__x86_64__)
namespace {

struct Registers {
  std::uint32_t eax = 0, ebx = 0, ecx = 0, edx = 0;
};

// All zero where the processor lacks the leaf.
Registers cpuid(std::uint32_t leaf, std::uint32_t subleaf) {
  Registers r;
  if (__get_cpuid_count(leaf, subleaf, &r.eax, &r.ebx, &r.ecx, &r.edx) == 0) return {};
  return r;
}

constexpr bool bit(std::uint64_t value, int index) { return ((value >> index) & 1) != 0; }

// XCR0: which register files the operating system saves. Only legal with OSXSAVE.
std::uint64_t saved_states() {
  std::uint32_t low = 0;
  std::uint32_t high = 0;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (static_cast<std::uint64_t>(high) << 32) | low;
}

constexpr bool all_bits(std::uint64_t value, std::uint64_t mask) { return (value & mask) == mask; }
constexpr std::uint64_t kYmmState = 0x6;       // XMM and upper YMM halves
constexpr std::uint64_t kZmmState = 0xe6;      // these, masks, upper ZMM halves, ZMM16-31
constexpr std::uint64_t kTileState = 0x60000;  // tile configuration and tile data

// Of the kernel's list; the C library's headers may be older. A filter of system calls may refuse.
bool ask_for_tiles() {
#if defined(__linux__)
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

}  // namespace

CpuFeatures detect_cpu_features() {
  const Registers basic = cpuid(1, 0);
  if (!bit(basic.ecx, 27)) return {};  // OSXSAVE: without it no wide registers
  const std::uint64_t states = saved_states();
  const bool ymm = all_bits(states, kYmmState) && bit(basic.ecx, 28);
  const bool zmm = ymm && all_bits(states, kZmmState);
  const bool tile = all_bits(states, kTileState);
  const Registers extended = cpuid(7, 0);
  const Registers more = extended.eax >= 1 ? cpuid(7, 1) : Registers{};
  const bool amx = tile && bit(extended.edx, 24);
  return {
      .avx2 = ymm && bit(extended.ebx, 5),
      .fma = ymm && bit(basic.ecx, 12),
      .f16c = ymm && bit(basic.ecx, 29),
      .avx512f = zmm && bit(extended.ebx, 16),
      .avx512bw = zmm && bit(extended.ebx, 30),
      .avx512dq = zmm && bit(extended.ebx, 17),
      .avx512vl = zmm && bit(extended.ebx, 31),
      .avx512_vbmi = zmm && bit(extended.ecx, 1),
      .avx512_vnni = zmm && bit(extended.ecx, 11),
      .avx512_bf16 = zmm && bit(more.eax, 5),
      .amx_tile = amx,
      .amx_bf16 = amx && bit(extended.edx, 22),
      .amx_int8 = amx && bit(extended.edx, 25),
      .amx_permitted = amx && ask_for_tiles(),
  };
}
#elif defined(__aarch64__) && defined(__linux__)
CpuFeatures detect_cpu_features() {
  // Of the kernel's list; the C library's headers may be older than the processor.
  constexpr unsigned long kAdvancedSimd = 1ul << 1;  // AT_HWCAP
  constexpr unsigned long kBf16 = 1ul << 14;         // AT_HWCAP2
  const bool neon = (getauxval(AT_HWCAP) & kAdvancedSimd) != 0;
  return {.neon = neon, .neon_bf16 = neon && (getauxval(AT_HWCAP2) & kBf16) != 0};
}
#elif defined(__aarch64__)
CpuFeatures detect_cpu_features() { return {.neon = true}; }  // part of every such processor
#else
CpuFeatures detect_cpu_features() { return {}; }
#endif

const CpuFeatures& cpu_features() {
  static const CpuFeatures kFeatures = detect_cpu_features();
  return kFeatures;
}

std::vector<std::string> feature_names(const CpuFeatures& f) {
  std::vector<std::string> names;
  const auto add = [&](bool there, const char* name) {
    if (there) names.emplace_back(name);
  };
  add(f.avx2, "avx2");
  add(f.fma, "fma");
  add(f.f16c, "f16c");
  add(f.avx512f, "avx512f");
  add(f.avx512bw, "avx512bw");
  add(f.avx512dq, "avx512dq");
  add(f.avx512vl, "avx512vl");
  add(f.avx512_vbmi, "avx512_vbmi");
  add(f.avx512_vnni, "avx512_vnni");
  add(f.avx512_bf16, "avx512_bf16");
  add(f.amx_tile, "amx_tile");
  add(f.amx_bf16, "amx_bf16");
  add(f.amx_int8, "amx_int8");
  add(f.neon, "neon");
  add(f.neon_bf16, "neon_bf16");
  return names;
}

}  // namespace msa::core
