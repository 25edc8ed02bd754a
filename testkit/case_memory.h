// SPDX-License-Identifier: MIT
// What the runs of one case share: its tensors, what the oracle says of them, and which outputs it
// has judged. None of it depends on who is under test, so a case that runs on several instruction
// sets makes its inputs once, and compares the same bits once.
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "testkit/compare.h"
#include "testkit/generate.h"
#include "testkit/oracle_memory.h"

namespace msa::testkit {

/// What a run writes, byte for byte, a tensor each.
using Bits = std::vector<std::vector<std::byte>>;

/// The tensors of a case, and the outputs that passed last.
struct MadeCase {
  explicit MadeCase(const Case& spec) : data(spec) {}

  Data data;
  std::optional<Bits> good{};
  Report report{};  // of the outputs that passed
};

class CaseMemory {
 public:
  /// The case itself, or a twin of it. Cases whose inputs may change unseen are made every time.
  std::shared_ptr<MadeCase> of(const Case& spec);
  /// After a run that failed: it may have written where it must not.
  void forget() { made_.clear(); }

  OracleMemory& oracle() { return oracle_; }

 private:
  std::vector<std::shared_ptr<MadeCase>> made_{};
  OracleMemory oracle_{};
};

}  // namespace msa::testkit
