// SPDX-License-Identifier: MIT
// The kernels of the scalar level: no target region, any processor.
#include "cpu/isa/common.h"

namespace msa::cpu::scalar {
inline constexpr int kPlainLanes = 8;
#include "cpu/isa/vec_scalar.h"

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
constinit const Kernels kKernels = {.isa = "scalar",
                                    .attend = attend_kernels(),
                                    .select = selection::kernels(),
                                    .vectors = checks::table(),
                                    .gradients = &kGradients};
}  // namespace msa::cpu::scalar
