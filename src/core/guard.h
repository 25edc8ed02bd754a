// SPDX-License-Identifier: MIT
// Error is the one exception type: a failed allocation leaves an entry point as one, too.
#pragma once

#include <new>

#include "msa/error.h"

namespace msa::core {

/// Made before it is needed: throwing a copy allocates no text.
const Error& out_of_memory();

/// What every entry point that allocates runs in.
template <class Body>
auto guarded(const Body& body) {
  try {
    return body();
  } catch (const std::bad_alloc&) {
    throw Error(out_of_memory());
  }
}

}  // namespace msa::core
