// SPDX-License-Identifier: MIT
// MSA_API marks what the shared library exports; everything else is hidden.
#pragma once

#if defined(_WIN32)
#define MSA_API
#elif defined(__GNUC__)
#define MSA_API __attribute__((visibility("default")))
#else
#define MSA_API
#endif
