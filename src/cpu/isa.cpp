// SPDX-License-Identifier: MIT
// Names, requirements and tables of the instruction-set levels.
#include "cpu/isa.h"

#include <string_view>

#include "cpu/kernels.h"

namespace msa::cpu {

const char* to_string(Isa isa) noexcept {
  switch (isa) {
    case Isa::Avx512Bf16:
      return "avx512_bf16";
    case Isa::Avx512:
      return "avx512";
    case Isa::Avx2:
      return "avx2";
    case Isa::Scalar:
      return "scalar";
  }
  return "unknown";
}

const Kernels* find_kernels([[maybe_unused]] Isa isa) noexcept {
#if defined(__x86_64__)
  switch (isa) {
    case Isa::Avx512Bf16:
      return &avx512_bf16::kKernels;
    case Isa::Avx512:
      return &avx512::kKernels;
    case Isa::Avx2:
      return &avx2::kKernels;
    case Isa::Scalar:
      return &scalar::kKernels;
  }
  return nullptr;
#else
  return isa == Isa::Scalar ? &scalar::kKernels : nullptr;
#endif
}

std::string missing(Isa isa, const core::CpuFeatures& cpu) {
  if (isa == Isa::Scalar) return {};
  if (find_kernels(isa) == nullptr) return "not built for this processor family";
  std::string list;
  const auto need = [&](bool has, std::string_view name) {
    if (!has) list += (list.empty() ? "" : ", ") + std::string(name);
  };
  need(cpu.avx2, "avx2");
  need(cpu.fma, "fma");
  need(cpu.f16c, "f16c");
  if (isa == Isa::Avx2) return list;
  need(cpu.avx512f, "avx512f");
  need(cpu.avx512bw, "avx512bw");
  need(cpu.avx512dq, "avx512dq");
  need(cpu.avx512vl, "avx512vl");
  if (isa == Isa::Avx512Bf16) need(cpu.avx512_bf16, "avx512_bf16");
  return list;
}

}  // namespace msa::cpu
