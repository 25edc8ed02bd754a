// SPDX-License-Identifier: MIT
#include "cuda/sm90_attention.h"

#include <algorithm>

#include "core/fields.h"
#include "cuda/attend_stage.h"
#include "cuda/batch.h"
#include "cuda/box.h"
#include "cuda/page_rule.h"
#include "cuda/sm90/attend/launch.h"
#include "cuda/sm90/decode/attend/launch.h"
#include "cuda/tensor_map.h"
#include "cuda/unpack_stage.h"

namespace msa::cuda {
namespace {

using common::attend::Params;
using common::attend::Walk;

constexpr int kDenseBlock = 128;  // keys of one step; dense attention has no blocks of its own

int block_of(const Problem& problem, bool lists) {
  return lists ? static_cast<int>(problem.selection.block_size) : kDenseBlock;
}

}  // namespace

std::string Sm90Attention::rejects(const Problem& problem, bool lists) {
  return page_rejects(problem.bounds.page_size, block_of(problem, lists));
}

bool Sm90Attention::unpacks(const Problem& p, bool lists, int tokens_per_tile,
                            const Tuning& tuning) {
  const Format kv = core::kv_format(p);
  if (kv.storage != DType::E4M3 || has_column_scales(kv)) return false;
  if (UnpackStage::bytes(p) > tuning.unpack_bytes) return false;
  const std::int64_t tiles = p.bounds.total_q / tokens_per_tile;
  if (!lists) return tiles >= tuning.unpack_visits * p.bounds.batch;
  const std::int64_t listed = std::min(blocks_of(p), p.selection.topk);
  return tiles * listed >= tuning.unpack_visits * p.bounds.batch * blocks_of(p);
}

Sm90Attention::Sm90Attention(const Problem& problem, const GpuInfo& gpu, bool lists, bool unpacks)
    : config_{.storage = storage_of(problem.attention.q.storage),
              .head_dim = static_cast<int>(problem.attention.head_dim),
              .block = block_of(problem, lists),
              .walk = lists ? Walk::Union : Walk::Dense,
              .kv = storage_of(core::kv_format(problem).storage)},
      ctas_(gpu.multiprocessors) {
  if (!unpacks) return;
  config_.kv = config_.storage;
  config_.folds = core::kv_format(problem).scale != Scale::None;
}

void Sm90Attention::attend(const Params& params, const core::Call& call,
                           cudaStream_t stream) const {
  sm90::attend::launch(config_, params, make_maps(params, call), ctas_, stream);
}

sm90::attend::Maps Sm90Attention::make_maps(const Params& params, const core::Call& call) const {
  const int box = box_tokens(config_.block, params.batch.page_size);
  return {.q = make_query_map(call.q, params.heads_kv, params.group, params.tokens_per_tile, "q"),
          .k = make_key_map(call.k, box, "k"),
          .v = make_key_map(call.v, box, "v")};
}

void Sm90Attention::mend(const Problem& problem, const core::Call& call, const Tensor& block_ids,
                         const Params& params, cudaStream_t stream) const {
  namespace decode = sm90::decode;
  const sm90::attend::Maps maps = make_maps(params, call);
  const decode::AttendParams rows{mended_rows(params, call, walks_lists(), block_ids), maps.k,
                                  maps.v};
  decode::launch_mend({.storage = config_.storage,
                       .block = config_.block,
                       .dim = config_.head_dim,
                       .kv = storage_of(core::kv_format(problem).storage)},
                      {.attend = rows, .suspects = params.suspects}, ctas_, stream);
}

}  // namespace msa::cuda
