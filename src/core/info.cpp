// SPDX-License-Identifier: MIT
// build_info(): what this library is and what this machine offers.
#include "msa/info.h"

#include <omp.h>

#include <fstream>

#include "core/backend.h"
#include "core/cpu_features.h"
#include "core/guard.h"
#include "msa/version.h"

// The build defines both; a build that does not still compiles.
#ifndef MSA_COMMIT
#define MSA_COMMIT "unknown"
#endif
#ifndef MSA_BUILD_TYPE
#define MSA_BUILD_TYPE "unknown"
#endif

namespace msa {
namespace {

std::string compiler() {
#if defined(__clang__)
  return "clang " + std::to_string(__clang_major__) + "." + std::to_string(__clang_minor__) + "." +
         std::to_string(__clang_patchlevel__);
#elif defined(__GNUC__)
  return "gcc " + std::to_string(__GNUC__) + "." + std::to_string(__GNUC_MINOR__) + "." +
         std::to_string(__GNUC_PATCHLEVEL__);
#else
  return "unknown";
#endif
}

std::string cpu_model() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    if (!line.starts_with("model name")) continue;
    const std::size_t colon = line.find(": ");
    if (colon != std::string::npos) return line.substr(colon + 2);
  }
  return "unknown";
}

BuildInfo collect() {
  BuildInfo info{.version = version(),
                 .compiler = compiler(),
                 .build_type = MSA_BUILD_TYPE,
                 .commit = MSA_COMMIT,
                 .cpu = cpu_model(),
                 .cpu_features = core::feature_names(core::cpu_features()),
                 .threads = omp_get_max_threads()};
  for (const core::Backend* backend : core::backends()) info.backends.push_back(backend->info());
  return info;
}

}  // namespace

BuildInfo build_info() { return core::guarded(collect); }

}  // namespace msa
