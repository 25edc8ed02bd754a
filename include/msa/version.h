// SPDX-License-Identifier: MIT
// The version of the headers; msa::version() tells that of the library in use.
#pragma once

#include "msa/export.h"

#define MSA_VERSION_MAJOR 0
#define MSA_VERSION_MINOR 2
#define MSA_VERSION_PATCH 0
#define MSA_VERSION_STRING "0.2.0"

namespace msa {

/// Version of the library in use, as "major.minor.patch".
MSA_API const char* version() noexcept;

}  // namespace msa
