// SPDX-License-Identifier: MIT
// The function table of an instruction-set level: one instance per file of isa/, filled by the
// bodies of generic/.
#pragma once

#include "cpu/attend_kernels.h"
#include "cpu/backward_kernels.h"
#include "cpu/select_kernels.h"
#include "cpu/vector_checks.h"

namespace msa::cpu {

/// Every product of these is in fp32 but for those of GradientTiles, so that levels which add
/// products of other types have the table of the level below them.
struct GradientKernels {
  BackwardKernels backward{};
  IndexLossKernels index_loss{};
};

struct Kernels {
  // The namespace that the table comes from: proves which level is in force.
  const char* isa = nullptr;
  AttendKernels attend{};
  SelectKernels select{};
  VectorChecks vectors{};
  const GradientKernels* gradients = nullptr;
  const GradientTiles* gradient_tiles = nullptr;  // of levels that have tiles
};

// Defined with constant initialisation: no code of a level runs before the level is chosen.
#if defined(__x86_64__)
namespace amx {
extern const Kernels kKernels;
}
namespace avx512_bf16 {
extern const Kernels kKernels;
}
namespace avx512 {
extern const GradientKernels kGradients;
extern const Kernels kKernels;
}  // namespace avx512
namespace avx2 {
extern const GradientKernels kGradients;
extern const Kernels kKernels;
}  // namespace avx2
#endif
#if defined(__aarch64__)
namespace neon_bf16 {
extern const Kernels kKernels;
}
namespace neon {
extern const GradientKernels kGradients;
extern const Kernels kKernels;
}  // namespace neon
#endif
namespace scalar {
extern const GradientKernels kGradients;
extern const Kernels kKernels;
}  // namespace scalar
namespace amx_emulated {  // in builds with tests
extern const Kernels kKernels;
}

}  // namespace msa::cpu
