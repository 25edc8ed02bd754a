// SPDX-License-Identifier: MIT
// What this processor and its operating system offer. Flags of other processors are false.
#pragma once

#include <string>
#include <vector>

namespace msa::core {

struct CpuFeatures {
  bool avx2 = false;
  bool fma = false;
  bool f16c = false;
  bool avx512f = false;
  bool avx512bw = false;
  bool avx512dq = false;
  bool avx512vl = false;
  bool avx512_vbmi = false;
  bool avx512_vnni = false;
  bool avx512_bf16 = false;
  bool amx_tile = false;
  bool amx_bf16 = false;
  bool amx_int8 = false;
  bool amx_permitted = false;  // the system lets this process use the tiles' data
  bool neon = false;
  bool neon_bf16 = false;
  friend bool operator==(const CpuFeatures&, const CpuFeatures&) = default;
};

/// Asks the processor (cpuid) and whether the system saves the registers (xgetbv); on 64-bit ARM
/// the system. Where the processor has tiles, it asks the system to let this process use them, as
/// Linux wants before their first use: for good, for all threads.
CpuFeatures detect_cpu_features();

/// The same, asked once: each cpuid leaves a virtual machine, 3 us.
const CpuFeatures& cpu_features();

/// Names of the features that are there: "avx2", "avx512_bf16", ...
std::vector<std::string> feature_names(const CpuFeatures& features);

}  // namespace msa::core
