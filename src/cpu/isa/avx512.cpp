// SPDX-License-Identifier: MIT
// The kernels of the avx512 level: fp32 products.
#include "cpu/isa/common.h"

#if defined(__x86_64__)

#if defined(__clang__)
#pragma clang attribute push(                                                    \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c"))), \
    apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
#endif

namespace msa::cpu::avx512 {
#include "cpu/isa/vec_avx512.h"

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
constinit const Kernels kKernels = {.isa = "avx512",
                                    .attend = attend_kernels(),
                                    .select = selection::kernels(),
                                    .vectors = checks::table(),
                                    .gradients = &kGradients};
}  // namespace msa::cpu::avx512

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif
