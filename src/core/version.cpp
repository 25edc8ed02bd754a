// SPDX-License-Identifier: MIT
// The version of the library in use.
#include "msa/version.h"

namespace msa {

const char* version() noexcept { return MSA_VERSION_STRING; }

}  // namespace msa
