// SPDX-License-Identifier: MIT
// The kernels of the neon_bf16 level: bf16 products for bf16 storage, fp32 for the rest;
// gradients are those of neon.
#include "cpu/isa/common.h"

#if defined(__aarch64__)

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("bf16"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("arch=armv8.2-a+bf16")
#endif

namespace msa::cpu::neon_bf16 {
#include "cpu/isa/vec_neon.h"
#include "cpu/isa/vec_neon_bf16.h"

using ProductsOfBf16 = Bf16Products;

#include "cpu/generic/storage.inl"

using ProductsOfCodes = PairProducts;

#include "cpu/generic/attend.inl"
#include "cpu/generic/score.inl"
#include "cpu/generic/score_filter.inl"
#include "cpu/generic/topk.inl"
#include "cpu/generic/vector_checks.inl"

constinit const Kernels kKernels = {.isa = "neon_bf16",
                                    .attend = attend_kernels(),
                                    .select = selection::kernels(),
                                    .vectors = checks::table(),
                                    .gradients = &neon::kGradients};
}  // namespace msa::cpu::neon_bf16

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif
