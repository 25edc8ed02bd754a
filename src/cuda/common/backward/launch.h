// SPDX-License-Identifier: MIT
// What stands around the products of a backward pass: the products of dout and out in front, the
// work items, and behind them the sums of what several items, or several launches, have each a
// share of. All sums in a fixed order: the same bits every time. See docs/kernels/backward.md.
#pragma once

#include <cuda_runtime_api.h>

#include "cuda/common/backward/params.h"

namespace msa::cuda::common::backward {

/// delta = sum(dout * out) - dlse of every row and head; in bf16, head_dim is 64 or 128.
struct DeltaParams {
  std::int64_t rows = 0;  // of q
  int heads = 1;          // of q
  int head_dim = 128;
  Rows<const void> out{};
  Rows<const void> dout{};
  Rows<const float> dlse{};  // or none
  float* delta = nullptr;    // [rows, heads]
};
void launch_delta(const DeltaParams& params, cudaStream_t stream);

/// Cuts the pairs of a launch into items. Their order is open, as is where their shares lie.
void launch_items(const Pairs& pairs, const Work& work, std::int64_t max_tiles,
                  cudaStream_t stream);

/// Adds up the shares of dq, in bf16, of the launch's rows, in the order of their places.
struct QueryParams {
  Pairs pairs{};
  Shares shares{};
  int head_dim = 128;
  Rows<const float> lse{};  // [T, Hq]
  float scale = 1;
  const float* weights = nullptr;  // more of it, of each row; or none
  std::int64_t stride_weights = 0;
  Rows<void> dq{};
  int f32 = 0;                  // items of dq are floats
  const int* wanted = nullptr;  // 0: nothing is done; or none
  // Rows that end non-finite, but not by their own lse or delta, are noted; or none.
  Suspects suspects{};
  const float* delta = nullptr;  // [T, Hq]
};
void launch_queries(const QueryParams& params, cudaStream_t stream);

/// Whether lists of neighbouring tokens share little: whether half of the entries of tiles of
/// `tokens` name a block that the tile has not named before.
struct OverlapParams {
  Pairs pairs{};
  int tokens = 1;
  int* little = nullptr;  // 1 or 0
};
void launch_overlap(const OverlapParams& params, cudaStream_t stream);

/// What the keys of each tile, in bf16, have in common (average.cuh).
struct MeanParams {
  Pairs pairs{};
  Rows<const void> k{};    // [N, Hkv, 128]
  float* means = nullptr;  // [Hkv, tiles, 128]
  std::int64_t tiles = 0;  // planned, of all requests
};
void launch_means(const MeanParams& params, cudaStream_t stream);

/// Rows of dq, noted as suspects where keys that are not theirs may have reached them, each by
/// itself; in bf16, head_dim is 128.
struct MendParams {
  Pairs pairs{};
  Rows<const void> q{};
  Rows<const void> dout{};
  Rows<const void> k{};
  Rows<const void> v{};
  Rows<const float> lse{};
  const float* delta = nullptr;  // [T, Hq]
  float scale = 1;
  float scale_log2 = 1;
  Suspects suspects{};
  Rows<void> dq{};
  int f32 = 0;  // items of dq are floats
};
void launch_mend(const MendParams& params, int ctas, cudaStream_t stream);

/// Where sums of dk and dv go.
struct KeyParams {
  Pairs pairs{};
  Work work{};
  const float* parts = nullptr;  // [max_parts, tensors, keys, head_dim]
  KeySums sums{};
  int head_dim = 128;
  std::int64_t rows = 0;  // N
  KeyRowsOut dk{};
  KeyRowsOut dv{};
};
/// Zeros, where nothing is accumulated.
void launch_clear(Storage storage, const KeyParams& params, cudaStream_t stream);
/// Adds up the parts of split tiles, in their order. `ctas`: of the kernel that made them.
void launch_join(Storage storage, const KeyParams& params, int ctas, cudaStream_t stream);
/// Writes the sums of all launches.
void launch_finish(Storage storage, const KeyParams& params, std::int64_t max_tiles,
                   cudaStream_t stream);

/// Rows of the index loss: what shares give, in the order of their places.
struct LossParams {
  Pairs pairs{};
  StudentShare* student_shares = nullptr;  // [slots]
  float* student_lse = nullptr;            // [T, Hi]: base 2, of all places
  const float* loss_shares = nullptr;      // [slots]
  Rows<float> loss{};                      // [T, Hi]
};
/// The student's logarithms.
void launch_students(const LossParams& params, cudaStream_t stream);
/// The losses, from logarithms and shares.
void launch_losses(const LossParams& params, cudaStream_t stream);

}  // namespace msa::cuda::common::backward
