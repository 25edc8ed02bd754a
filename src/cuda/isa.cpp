// SPDX-License-Identifier: MIT
#include "cuda/isa.h"

#include <algorithm>

#include "cuda/device.h"

namespace msa::cuda {
namespace {

constexpr Compiled kCompiled[] = {MSA_CUDA_COMPILED};  // cmake/Cuda.cmake

std::string number_of(int capability) {
  return std::to_string(capability / 10) + "." + std::to_string(capability % 10);
}

}  // namespace

std::span<const Compiled> compiled_for() { return kCompiled; }

bool runs_compiled(const Isa& isa, std::span<const Compiled> compiled, int capability) {
  const bool alone = isa.least == isa.most;  // code of one architecture runs nowhere else
  return std::any_of(compiled.begin(), compiled.end(), [&](const Compiled& code) {
    if (alone) return !code.ptx && code.capability == isa.least && capability == isa.least;
    if (code.ptx) return code.capability <= capability;
    return code.capability / 10 == capability / 10 && code.capability <= capability;
  });
}

std::string isa_rejects(const Isa& isa, const GpuInfo& gpu) {
  const int capability = gpu.major * 10 + gpu.minor;
  if (capability < isa.least || capability > isa.most)
    return std::string("isa ") + isa.name + " needs " + isa.needed + ", " + gpu.name + " has " +
           number_of(capability);
  if (!runs_compiled(isa, gpu.compiled, capability))
    return std::string("isa ") + isa.name + " was not built for compute capability " +
           number_of(capability) + ", which " + gpu.name + " has";
  return "";
}

std::string isa_name_rejects(const std::string& name) {
  std::string names;
  for (const Isa* isa : kIsas) {
    if (name.empty() || name == isa->name) return "";
    names += (names.empty() ? "" : " or ") + std::string(isa->name);
  }
  return "isa: expected " + names + ", got \"" + name + "\"";
}

}  // namespace msa::cuda
