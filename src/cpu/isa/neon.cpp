// SPDX-License-Identifier: MIT
// The kernels of the neon level: no target region, as every such processor has it.
#include "cpu/isa/common.h"

#if defined(__aarch64__)

namespace msa::cpu::neon {
#include "cpu/isa/vec_neon.h"

using ProductsOfBf16 = F32Products;

#include "cpu/generic/storage.inl"

using ProductsOfCodes = PairProducts;

#include "cpu/generic/attend.inl"
#include "cpu/generic/backward.inl"
#include "cpu/generic/index_loss.inl"
#include "cpu/generic/score.inl"
#include "cpu/generic/score_filter.inl"
#include "cpu/generic/topk.inl"
#include "cpu/generic/vector_checks.inl"

constinit const GradientKernels kGradients = {.backward = backward::kernels(),
                                              .index_loss = index_loss::kernels()};
constinit const Kernels kKernels = {.isa = "neon",
                                    .attend = attend_kernels(),
                                    .select = selection::kernels(),
                                    .vectors = checks::table(),
                                    .gradients = &kGradients};
}  // namespace msa::cpu::neon

#endif
