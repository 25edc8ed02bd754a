// SPDX-License-Identifier: MIT
// Parts of a large call for gradients that the oracle can work out: a few query rows with all their
// keys, and single blocks of keys with all rows that see them. Each is a call of its own, with the
// outputs of the whole where they lie.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <vector>

#include "testkit/operands.h"
#include "testkit/requests.h"

namespace msa::testkit {

struct GradientPart {
  Problem problem;
  Operands operands;
  std::shared_ptr<const std::array<std::int32_t, 6>> lengths;  // what its batch points to
  std::int64_t first_key = 0;  // gradients of keys before it lack rows that are not in the part
};

/// Of one request, in host memory: its first, middle and last rows, and its first, middle and last
/// blocks. The loss of the index branch needs all keys of a row: there the last two blocks, which
/// the last rows alone see.
std::vector<GradientPart> sample_gradients(const Problem& problem, const Operands& operands,
                                           const Request& request);

}  // namespace msa::testkit
