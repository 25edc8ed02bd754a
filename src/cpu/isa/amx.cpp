// SPDX-License-Identifier: MIT
// The kernels of the amx level: products of tiles for many rows of bf16 storage and for codes; the
// rest is avx512_bf16's, gradients are those of avx512 over its own tiles.
#include "cpu/isa/common.h"

#if defined(__x86_64__)

#if defined(__clang__)
#pragma clang attribute push(                                                                  \
    __attribute__((target("amx-tile,amx-bf16,amx-int8,avx512bf16,avx512vnni,avx512f,avx512bw," \
                          "avx512dq,avx512vl,avx2,fma,f16c"))),                                \
    apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512bf16,avx512vnni,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
#endif

namespace msa::cpu::amx {
#include "cpu/isa/vec_avx512.h"
#include "cpu/isa/vec_avx512_bf16.h"
#include "cpu/isa/vec_avx512_tiles.h"

using ProductsOfBf16 = Bf16Products;

#include "cpu/generic/storage.inl"
#include "cpu/generic/tiles.inl"

using ProductsOfCodes = ByteProducts;

#include "cpu/generic/attend.inl"
#include "cpu/generic/attend_tiles.inl"
#include "cpu/generic/backward_tiles.inl"
#include "cpu/generic/score.inl"
#include "cpu/generic/score_filter.inl"
#include "cpu/generic/score_tiles.inl"
#include "cpu/generic/vector_checks.inl"
#include "cpu/generic/vector_tile_checks.inl"

constinit const Kernels kKernels = {.isa = "amx",
                                    .attend = tile_attend_kernels(),
                                    .select = selection::tile_kernels(),
                                    .vectors = checks::tile_table(),
                                    .gradients = &avx512::kGradients,
                                    .gradient_tiles = &backward_tiles::kProducts};
}  // namespace msa::cpu::amx

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif
