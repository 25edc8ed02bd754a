// SPDX-License-Identifier: MIT
#include "cuda/mma_attention.h"

#include "core/fields.h"
#include "cuda/attend_stage.h"
#include "cuda/batch.h"
#include "cuda/mma/attend/launch.h"
#include "cuda/mma/decode/attend/launch.h"
#include "cuda/page_rule.h"
#include "cuda/unpack_stage.h"

namespace msa::cuda {

using common::attend::Params;
using common::attend::Walk;

namespace {

mma::attend::Config config_of(const Problem& problem, const GpuInfo& gpu, bool lists) {
  const int head_dim = static_cast<int>(problem.attention.head_dim);
  const bool key_scales = has_column_scales(core::kv_format(problem));
  const auto [warps, stages] =
      mma::attend::shape_for(gpu.major * 10 + gpu.minor, gpu.shared_memory, head_dim, key_scales);
  return {.storage = storage_of(problem.attention.q.storage),
          .head_dim = head_dim,
          .walk = lists ? Walk::Union : Walk::Dense,
          .warps = warps,
          .stages = stages,
          .key_scales = key_scales};
}

}  // namespace

std::string MmaAttention::rejects(const Problem& problem, bool) {
  const Format kv = core::kv_format(problem);
  if (kv.storage == DType::E4M3) {
    if (std::string why = UnpackStage::rejects(problem); !why.empty()) return why;
  }
  return page_rejects(problem.bounds.page_size, mma::attend::kStepKeys);
}

bool MmaAttention::unpacks(const Problem& problem, bool, int, const Tuning&) {
  return core::kv_format(problem).storage == DType::E4M3;
}

MmaAttention::MmaAttention(const Problem& problem, const GpuInfo& gpu, bool lists, bool)
    : config_(config_of(problem, gpu, lists)),
      block_(lists ? static_cast<int>(problem.selection.block_size) : mma::attend::kStepKeys),
      multiprocessors_(gpu.multiprocessors) {}

int MmaAttention::ctas() const { return multiprocessors_ * mma::attend::ctas_per_sm(config_); }

void MmaAttention::attend(const Params& params, const core::Call& call, cudaStream_t stream) const {
  mma::attend::launch(config_,
                      {.tiles = params,
                       .q = make_rows<const void>(call.q),
                       .k = make_key_rows<const std::uint16_t>(call.k),
                       .v = make_key_rows<const std::uint16_t>(call.v)},
                      stream);
}

void MmaAttention::mend(const Problem& problem, const core::Call& call, const Tensor& block_ids,
                        const Params& params, cudaStream_t stream) const {
  namespace decode = mma::decode;
  const decode::AttendParams rows{mended_rows(params, call, walks_lists(), block_ids),
                                  make_byte_rows(call.k), make_byte_rows(call.v)};
  decode::launch_mend({.storage = config_.storage,
                       .block = mma::attend::kStepKeys,
                       .dim = config_.head_dim,
                       .kv = storage_of(core::kv_format(problem).storage)},
                      {.attend = rows, .suspects = params.suspects}, multiprocessors_, stream);
}

}  // namespace msa::cuda
