// SPDX-License-Identifier: MIT
// The kernels of the avx512_bf16 level: bf16 products for bf16 storage, products of bytes for
// codes, fp32 for the rest; gradients are those of avx512.
#include "cpu/isa/common.h"

#if defined(__x86_64__)

#if defined(__clang__)
#pragma clang attribute push(                                                                   \
    __attribute__((target(                                                                      \
        "avx512bf16,avx512vnni,avx512vbmi,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c"))), \
    apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target( \
    "avx512bf16,avx512vnni,avx512vbmi,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
#endif

namespace msa::cpu::avx512_bf16 {
#include "cpu/isa/vec_avx512.h"
#include "cpu/isa/vec_avx512_bf16.h"
#include "cpu/isa/vec_avx512_bytes.h"

using ProductsOfBf16 = Bf16Products;

#include "cpu/generic/storage.inl"

using ProductsOfCodes = ByteProducts;

#include "cpu/generic/attend.inl"
#include "cpu/generic/score.inl"
#include "cpu/generic/score_filter.inl"
#include "cpu/generic/topk.inl"
#include "cpu/generic/vector_checks.inl"

constinit const Kernels kKernels = {.isa = "avx512_bf16",
                                    .attend = attend_kernels(),
                                    .select = selection::kernels(),
                                    .vectors = checks::table(),
                                    .gradients = &avx512::kGradients};
}  // namespace msa::cpu::avx512_bf16

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif
