// SPDX-License-Identifier: MIT
// Everything that the files of isa/ include before they open their target region: standard headers,
// project headers and the intrinsics. What is included inside the region is compiled once per
// level, in a namespace of its own.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#include "core/geometry.h"
#include "cpu/convert.h"
#include "cpu/filter.h"
#include "cpu/kernels.h"

#if defined(__x86_64__)
// g++ 12 takes the undefined vectors of its own AVX-512 header for uninitialised variables.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
#include <immintrin.h>
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif
#endif

#if defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace msa::cpu {
using Bits [[gnu::may_alias]] = std::uint32_t;  // 32 bits of whatever lies there
}

/// Of which a level is made. Where size is what counts, in the scalar level of a wheel, compilers
/// weigh for themselves what a copy is worth.
#if defined(__OPTIMIZE_SIZE__)
#define MSA_INLINE inline
#else
#define MSA_INLINE [[gnu::always_inline]] inline
#endif

/// A piece so large that a call of it costs nothing, and a copy for each caller does.
#define MSA_PIECE [[gnu::noinline]] inline

/// A large piece of a kernel, inlined as well; a function where sanitizers watch, as checks make it
/// several times as large and each copy costs seconds of compilation.
#if defined(MSA_SANITIZED)
#define MSA_INLINE_PIECE [[gnu::noinline]] inline
#else
#define MSA_INLINE_PIECE MSA_INLINE
#endif
