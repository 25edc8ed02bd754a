// SPDX-License-Identifier: MIT
// What this build holds and what this machine offers.
#pragma once

#include <string>
#include <vector>

#include "msa/export.h"

namespace msa {

struct IsaInfo {
  std::string name;  // "avx512_bf16", "sm90"
  bool available = false;
  std::string reason{};  // what is missing; empty when available
};

struct BackendInfo {
  std::string name;  // "cpu", "cuda", "reference"
  bool available = false;
  std::string reason{};                // why not: "built without CUDA", "no driver"
  std::vector<IsaInfo> isas{};         // cpu and cuda backends, best first
  std::vector<std::string> devices{};  // cuda backend: names of the GPUs it serves
};

struct BuildInfo {
  std::string version;
  std::string compiler;                     // "gcc 12.2.0"
  std::string build_type;                   // "Release"
  std::string commit;                       // of the tree it was built from, or "unknown"
  std::string cpu;                          // model name, "unknown" where the system does not tell
  std::vector<std::string> cpu_features{};  // "avx2", "avx512_bf16", "amx_bf16", ...
  int threads = 1;                          // what OpenMP would use
  std::vector<BackendInfo> backends{};      // in order of preference
};

MSA_API BuildInfo build_info();

}  // namespace msa
