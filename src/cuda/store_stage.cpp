// SPDX-License-Identifier: MIT
#include "cuda/store_stage.h"

#include "core/fields.h"
#include "cuda/batch.h"
#include "cuda/check.h"
#include "cuda/common/prologue/launch.h"
#include "cuda/common/quantize_index/launch.h"
#include "cuda/common/quantize_kv/launch.h"

namespace msa::cuda {
namespace {

using common::prologue::NewKeys;
using common::quantize_kv::Places;
using common::quantize_kv::ScaleKind;

static_assert(common::quantize_index::kGroupRows == kFilterRows);

ScaleKind scale_kind(Scale scale) {
  switch (scale) {
    case Scale::None:
      break;
    case Scale::Tensor:
    case Scale::Head:
    case Scale::Page:
      return ScaleKind::Given;
    case Scale::Token:
      return ScaleKind::Token;
    case Scale::Group:
    case Scale::GroupTensor:
      return ScaleKind::Group;
  }
  return ScaleKind::None;
}

/// Rows of a cache or of its scales, or none; `groups`: the scales of a row have a stride.
Places make_places(const Tensor& t, bool paged, bool groups) {
  if (!t) return {};
  const auto stride = [&](int dim) { return t.stride[static_cast<std::size_t>(dim)]; };
  return {.data = t.data,
          .stride_page = paged ? stride(0) : 0,
          .stride_token = stride(paged ? 1 : 0),
          .stride_head = stride(paged ? 2 : 1),
          .stride_item = groups ? stride(t.rank - 1) : 1};
}

void run_kv(const Problem& problem, const core::Call& call, const BatchParams& batch,
            const RequestRecord* requests, cudaStream_t stream) {
  const Format kv = core::kv_format(problem);
  const bool paged = problem.bounds.page_size != 0;
  const bool groups = core::counts_groups(kv.scale);
  const auto side = [&](const Tensor& rows, const Tensor& cache, const Tensor& given,
                        const Tensor& all, const Tensor& written, std::int64_t dim) {
    return common::quantize_kv::Side{.rows = make_rows<const void>(rows),
                                     .cache = make_places(cache, paged, false),
                                     .given = scale_kind(kv.scale) == ScaleKind::Given
                                                  ? make_scales(problem, kv, given)
                                                  : Scales{},
                                     .all = static_cast<const float*>(all.data),
                                     .written = make_places(written, paged, groups),
                                     .dim = static_cast<int>(dim)};
  };
  common::quantize_kv::launch(
      storage_of(problem.attention.q.storage),
      {.batch = batch,
       .requests = requests,
       .sides = {side(call.k_rows, call.k_cache, call.k_scale, call.k_global_scale,
                      call.k_scale_cache, problem.attention.head_dim),
                 side(call.v_rows, call.v_cache, call.v_scale, call.v_global_scale,
                      call.v_scale_cache, problem.attention.value_dim)},
       .storage = storage_of(kv.storage),
       .scale = scale_kind(kv.scale),
       .rounded = kv.rounded ? 1 : 0,
       .heads = static_cast<int>(problem.attention.heads_kv)},
      stream);
}

void run_index(const Problem& problem, const core::Call& call, const BatchParams& batch,
               const RequestRecord* requests, cudaStream_t stream) {
  common::quantize_index::launch(
      storage_of(problem.index.q.storage),
      {.batch = batch,
       .requests = requests,
       .keys = make_key_rows<const void>(call.index_k),
       .codes = make_key_rows<std::int8_t>(call.index_k8_out),
       .bounds = make_filter_bounds<float>(problem, call.index_k8_bounds_out),
       .heads = static_cast<int>(problem.index.heads_k),
       .dim = static_cast<int>(problem.index.dim)},
      stream);
}

}  // namespace

bool StoreStage::has_requests(const Problem& problem) {
  return problem.op == Op::QuantizeIndex || problem.bounds.page_size != 0;
}

StoreStage::StoreStage(const Problem& problem, Layout& layout)
    : requests_(layout.take<RequestRecord>(problem.bounds.batch)) {}

void StoreStage::run(const Problem& problem, const core::Call& call, void* workspace,
                     cudaStream_t stream) const {
  const bool index = problem.op == Op::QuantizeIndex;
  RequestRecord* const requests = requests_.in(workspace);
  const BatchParams batch =
      make_batch(problem, call, index ? call.index_k : call.k_cache, kStatus.in(workspace));
  if (has_requests(problem)) {
    common::prologue::launch(
        {.batch = batch, .requests = requests, .new_keys = index ? NewKeys::Tail : NewKeys::Rows},
        stream);
  }
  if (index) return run_index(problem, call, batch, requests, stream);
  run_kv(problem, call, batch, requests, stream);
}

}  // namespace msa::cuda
