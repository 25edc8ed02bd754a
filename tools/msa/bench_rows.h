// SPDX-License-Identifier: MIT
// The benchmark rows that have names: what the tables of targets and the README speak of.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace msa::cli {

struct BenchRow {
  std::string id;
  std::string what;
  std::string line;             // case language
  std::string isa{};            // forced; empty: the best there is
  std::string peer_line{};      // our own other way to the same end, timed in the same run
  std::string peer{};           // what the other way is; empty: own dense attention
  std::string peer_isa{};       // forced for the peer; empty: as the row
  double peer_runs = 1;         // GPU: runs of the peer that do the row's work
  bool poison = false;          // a NaN in the first value of every KV head; the peer has none
  bool measure_memory = false;  // the figure is bytes beyond inputs and outputs
  bool stages = false;          // GPU: selection and attention on their own too, as further rows
  bool graph = false;           // GPU: inside a CUDA graph
  enum class Kind : std::uint8_t { Case, FirstCall, Workspace };
  Kind kind = Kind::Case;  // GPU: what the figure is
};

/// `host` names them cpu.host.*: machines with more than two processors, which the targets do not
/// speak of.
std::vector<BenchRow> named_rows(bool host);

/// hopper.*: 64/4 heads of 128, bf16, blocks of 128, 16 kept, unless the row says otherwise.
std::vector<BenchRow> named_gpu_rows();

}  // namespace msa::cli
