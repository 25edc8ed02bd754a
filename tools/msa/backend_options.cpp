// SPDX-License-Identifier: MIT
// The options that choose a backend, and the check that this machine has what was asked for.
#include <algorithm>
#include <vector>

#include "cli.h"
#include "msa/info.h"

namespace msa::cli {
namespace {

template <class Infos>
std::string names(const Infos& infos) {
  std::string text;
  for (const auto& info : infos) text += (text.empty() ? "" : ", ") + info.name;
  return text;
}

template <class Infos>
void require(const Infos& infos, const std::string& flag, const std::string& wanted) {
  const auto found = std::find_if(infos.begin(), infos.end(),
                                  [&](const auto& info) { return info.name == wanted; });
  if (found == infos.end()) {
    throw Failure(kUsage, flag + ": expected one of " + names(infos) + ", got " + wanted);
  }
  if (!found->available) {
    throw Failure(kNoBackend, flag + " " + wanted + " is not available: " + found->reason);
  }
}

}  // namespace

void add_backend_options(CLI::App& command, Options& options) {
  command
      .add_option("--backend", options.backend,
                  "cpu, cuda or reference; default: the first that accepts")
      ->check(CLI::IsMember({"cpu", "cuda", "reference"}));
  command.add_option("--isa", options.isa,
                     "Instruction set of the cpu or cuda backend; default: the best there is");
  command
      .add_option("--threads", options.threads,
                  "Threads of the cpu backend; default: what OpenMP would use")
      ->check(CLI::Range(1, 4096));
}

void require_backend(const Options& options) {
  const BuildInfo info = build_info();
  if (!options.backend.empty()) {
    const auto& all = info.backends;
    const bool built = std::any_of(all.begin(), all.end(),
                                   [&](const auto& b) { return b.name == options.backend; });
    if (!built) throw Failure(kNoBackend, "--backend " + options.backend + " is not in this build");
    require(all, "--backend", options.backend);
  }
  if (options.isa.empty()) return;
  // Where no backend is named, any one's will do: others refuse the problem, and say why.
  std::vector<IsaInfo> isas;
  for (const BackendInfo& backend : info.backends) {
    if (options.backend.empty() || options.backend == backend.name)
      isas.insert(isas.end(), backend.isas.begin(), backend.isas.end());
  }
  require(isas, "--isa", options.isa);
}

}  // namespace msa::cli
