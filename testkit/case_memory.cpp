// SPDX-License-Identifier: MIT
// See case_memory.h.
#include "testkit/case_memory.h"

namespace msa::testkit {

std::shared_ptr<MadeCase> CaseMemory::of(const Case& spec) {
  for (const std::shared_ptr<MadeCase>& known : made_) {
    if (known->data.spec() == spec) return known;
  }
  auto made = std::make_shared<MadeCase>(spec);
  // What a GPU makes of a fault is compared after the fault has been taken out.
  if (spec.corrupt == Corrupt::None && made->data.watches_inputs()) made_.push_back(made);
  return made;
}

}  // namespace msa::testkit
