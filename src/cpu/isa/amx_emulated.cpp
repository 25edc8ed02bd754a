// SPDX-License-Identifier: MIT
// The kernels of the amx level over plain loops, in builds with tests: any processor.
#include "cpu/isa/common.h"

#if defined(MSA_EMULATED_TILES)

namespace msa::cpu::amx_emulated {
inline constexpr int kPlainLanes = 16;
#include "cpu/isa/vec_scalar.h"
#include "cpu/isa/vec_scalar_tiles.h"

using ProductsOfBf16 = F32Products;  // of what is not tiles

#include "cpu/generic/storage.inl"
#include "cpu/generic/tiles.inl"

using ProductsOfCodes = PairProducts;

#include "cpu/generic/attend.inl"
#include "cpu/generic/attend_tiles.inl"
#include "cpu/generic/backward.inl"
#include "cpu/generic/backward_tiles.inl"
#include "cpu/generic/index_loss.inl"
#include "cpu/generic/score.inl"
#include "cpu/generic/score_filter.inl"
#include "cpu/generic/score_tiles.inl"
#include "cpu/generic/vector_checks.inl"
#include "cpu/generic/vector_tile_checks.inl"

// Those of the scalar level may have other lanes.
constinit const GradientKernels kGradients = {.backward = backward::kernels(),
                                              .index_loss = index_loss::kernels()};
constinit const Kernels kKernels = {.isa = "amx_emulated",
                                    .attend = tile_attend_kernels(),
                                    .select = selection::tile_kernels(),
                                    .vectors = checks::tile_table(),
                                    .gradients = &kGradients,
                                    .gradient_tiles = &backward_tiles::kProducts};
}  // namespace msa::cpu::amx_emulated

#endif
