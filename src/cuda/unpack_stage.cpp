// SPDX-License-Identifier: MIT
#include "cuda/unpack_stage.h"

#include <limits>

#include "core/fields.h"
#include "cuda/batch.h"
#include "cuda/common/unpack/launch.h"

namespace msa::cuda {
namespace {

constexpr std::int64_t kRaggedPage = 128;  // keys of a page of items where those of codes have none

std::int64_t page_of(const Problem& p) {
  return p.bounds.page_size == 0 ? kRaggedPage : p.bounds.page_size;
}
std::int64_t columns_of(const Problem& p) {
  return (p.bounds.max_seqlen_k + page_of(p) - 1) / page_of(p);
}

std::int64_t items_of(const Problem& p) {  // of keys, or of values
  return p.bounds.batch * columns_of(p) * page_of(p) * p.attention.heads_kv * p.attention.head_dim;
}

/// Pages of items in place of those of codes.
void use_pages(common::prologue::Params& front, const std::int32_t* table, std::int64_t columns,
               std::int64_t page) {
  BatchParams& batch = front.batch;
  batch.num_pages = batch.batch * columns;
  batch.page_table = {.data = table, .stride = 1};
  batch.page_table_stride_b = columns;
  batch.page_columns = columns;
  batch.page_size = static_cast<int>(page);
}

/// A head's keys of a page follow each other.
Tensor item_pages(std::uint16_t* items, const Format& like, std::int64_t pages, std::int64_t page,
                  std::int64_t heads, std::int64_t dim, Device device) {
  Tensor tensor = make_tensor(items, like.storage, {pages, page, heads, dim}, device);
  tensor.stride[1] = dim;
  tensor.stride[2] = page * dim;
  return tensor;
}

}  // namespace

std::string UnpackStage::rejects(const Problem& problem) {
  const Format kv = core::kv_format(problem);
  if (kv.scale == Scale::GroupTensor)
    return "requests of more than 8 query tokens take no scale of all beside those of groups, "
           "not " +
           to_string(kv);
  if (problem.attention.head_dim != common::unpack::kRowItems)
    return "head_dim is 128 here where keys and values are e2m1, not " +
           std::to_string(problem.attention.head_dim);
  if (problem.bounds.batch * columns_of(problem) >= std::numeric_limits<std::int32_t>::max())
    return "fewer than 2^31 pages of keys and values in four bits";
  return "";
}

UnpackStage::UnpackStage(const Problem& problem, Layout& layout, bool key_scales)
    : columns_(columns_of(problem)), page_(page_of(problem)) {
  for (Piece<std::uint16_t>& piece : items_) piece = layout.take<std::uint16_t>(items_of(problem));
  page_table_ = layout.take<std::int32_t>(problem.bounds.batch * columns_);
  if (!key_scales) return;
  for (std::optional<Piece<float>>& piece : key_scales_)
    piece = layout.take<float>(items_of(problem) / problem.attention.head_dim);
}

std::int64_t UnpackStage::bytes(const Problem& problem) {
  return items_of(problem) * 2 * static_cast<std::int64_t>(sizeof(std::uint16_t));
}

Problem UnpackStage::unpacked(const Problem& problem) {
  Problem plain = problem;
  plain.attention.kv.reset();
  plain.bounds.page_size = page_of(problem);
  return plain;
}

Scales UnpackStage::key_scales_of(const Tensor& scales) {
  return {.data = static_cast<const float*>(scales.data),
          .stride_page = scales.stride[0],
          .stride_token = scales.stride[1],
          .stride_head = scales.stride[2]};
}

void UnpackStage::run(const Problem& problem, core::Call& call, common::prologue::Params& front,
                      void* workspace, cudaStream_t stream, bool beside) const {
  const Format kv = core::kv_format(problem);
  const std::int64_t requests = front.batch.batch;
  std::int32_t* const table = page_table_.in(workspace);
  common::unpack::Params params{.batch = front.batch,
                                .requests = front.requests,
                                .codes = {make_byte_rows(call.k), make_byte_rows(call.v)},
                                .items = {items_[0].in(workspace), items_[1].in(workspace)},
                                .page_table = table,
                                .columns = static_cast<int>(columns_),
                                .page = static_cast<int>(page_),
                                .heads_kv = static_cast<int>(problem.attention.heads_kv),
                                .beside = beside};
  if (kv.storage == DType::E2M1) {
    params.groups[0] = make_group_scales(kv, call.k_scale, {});
    params.groups[1] = make_group_scales(kv, call.v_scale, {});
  }
  const Tensor* const scales[2] = {&call.k_scale, &call.v_scale};
  for (int of = 0; of < 2; ++of) {
    if (!key_scales_[of]) continue;
    params.scales[of] = make_scales(problem, kv, *scales[of]);
    params.key_scales[of] = key_scales_[of]->in(workspace);
  }
  common::unpack::launch(storage_of(kv.storage), storage_of(problem.attention.q.storage), params,
                         stream);
  const std::int64_t pages = requests * columns_;
  const auto tensor = [&](const Piece<std::uint16_t>& piece) {
    return item_pages(piece.in(workspace), problem.attention.q, pages, page_,
                      problem.attention.heads_kv, problem.attention.head_dim, problem.device);
  };
  call.k = tensor(items_[0]);
  call.v = tensor(items_[1]);
  const auto scales_of = [&](const std::optional<Piece<float>>& piece) {
    if (!piece) return Tensor{};
    const std::int64_t heads = problem.attention.heads_kv;
    Tensor made =
        make_tensor(piece->in(workspace), DType::F32, {pages, page_, heads}, problem.device);
    made.stride = {page_ * heads, 1, page_};
    return made;
  };
  call.k_scale = scales_of(key_scales_[0]);
  call.v_scale = scales_of(key_scales_[1]);
  use_pages(front, table, columns_, page_);
}

std::string UnpackIndexStage::rejects(const Problem& problem) {
  const Format keys = core::index_k_format(problem);
  if (keys.scale != Scale::None && keys.scale != Scale::Group)
    return "requests of more than 8 query tokens take index keys without a scale or with those of "
           "groups alone, not " +
           to_string(keys);
  if (problem.index.dim != common::unpack::kRowItems)
    return std::string("index_dim is 128 here where index keys are ") + to_string(keys.storage) +
           ", not " + std::to_string(problem.index.dim);
  if (problem.bounds.batch * columns_of(problem) >= std::numeric_limits<std::int32_t>::max())
    return std::string("fewer than 2^31 pages of index keys in ") + to_string(keys.storage);
  return "";
}

UnpackIndexStage::UnpackIndexStage(const Problem& problem, Layout& layout)
    : columns_(columns_of(problem)), page_(page_of(problem)) {
  const std::int64_t pages = problem.bounds.batch * columns_;
  items_ = layout.take<std::uint16_t>(pages * page_ * problem.index.heads_k * problem.index.dim);
  page_table_ = layout.take<std::int32_t>(pages);
}

Problem UnpackIndexStage::unpacked(const Problem& problem) {
  Problem plain = problem;
  plain.index.k.reset();
  plain.bounds.page_size = page_of(problem);
  return plain;
}

void UnpackIndexStage::run(const Problem& problem, core::Call& call,
                           common::prologue::Params& front, void* workspace,
                           cudaStream_t stream) const {
  const Format keys = core::index_k_format(problem);
  std::int32_t* const table = page_table_.in(workspace);
  common::unpack::Params params{.batch = front.batch,
                                .requests = front.requests,
                                .sides = 1,
                                .codes = {make_byte_rows(call.index_k)},
                                .items = {items_.in(workspace)},
                                .page_table = table,
                                .columns = static_cast<int>(columns_),
                                .page = static_cast<int>(page_),
                                .heads_kv = static_cast<int>(problem.index.heads_k)};
  if (keys.storage == DType::E2M1)
    params.groups[0] = make_group_scales(keys, call.index_k_scale, {});
  common::unpack::launch(storage_of(keys.storage), storage_of(problem.index.q.storage), params,
                         stream);
  call.index_k = item_pages(items_.in(workspace), problem.index.q, front.batch.batch * columns_,
                            page_, problem.index.heads_k, problem.index.dim, problem.device);
  call.index_k_scale = {};
  use_pages(front, table, columns_, page_);
}

}  // namespace msa::cuda
