// SPDX-License-Identifier: MIT
#include "cuda/batch.h"

#include <algorithm>
#include <cstdint>
#include <limits>
#include <span>
#include <string>

#include "core/contents.h"
#include "core/fields.h"
#include "cuda/tensor_map.h"
#include "msa/error.h"

namespace msa::cuda {
namespace {

/// Kernels and the copy engine count key rows and pages in int32.
void check_key_rows(const Tensor& keys) {
  const std::int64_t limit = std::numeric_limits<std::int32_t>::max();
  if (!keys || keys.shape[0] < limit) return;
  throw Error(
      ErrorCode::InvalidArgument, "k",
      "k: expected fewer than " + std::to_string(limit) + " rows or pages, got " + to_string(keys));
}

}  // namespace

IntVector make_int_vector(const Tensor& tensor, int dim) {
  if (!tensor) return {};
  return {static_cast<const int*>(tensor.data), tensor.stride[static_cast<std::size_t>(dim)]};
}

KeyRows<const std::uint8_t> make_byte_rows(const Tensor& keys) {
  const bool paged = keys.rank == 4;
  const int bits = bits_of(storage_of(keys.dtype));
  const auto bytes = [&](int dim) { return keys.stride[static_cast<std::size_t>(dim)] * bits / 8; };
  return {.data = static_cast<const std::uint8_t*>(keys.data),
          .stride_page = paged ? bytes(0) : 0,
          .stride_token = bytes(paged ? 1 : 0),
          .stride_head = bytes(paged ? 2 : 1)};
}

Scales make_scales(const Problem& problem, const Format& format, const Tensor& tensor) {
  if (!tensor) return {};
  const auto* const data = static_cast<const float*>(tensor.data);
  const auto& stride = tensor.stride;
  switch (format.scale) {
    case Scale::Group:
    case Scale::GroupTensor:
      return {};  // make_group_scales
    case Scale::None:
      break;
    case Scale::Tensor:
      return {.data = data};
    case Scale::Head:
      return {.data = data, .stride_head = stride[0]};
    case Scale::Page:
      return {.data = data, .stride_page = stride[0], .stride_head = stride[1]};
    case Scale::Token:
      if (problem.bounds.page_size == 0)
        return {.data = data, .stride_token = stride[0], .stride_head = stride[1]};
      return {.data = data,
              .stride_page = stride[0],
              .stride_token = stride[1],
              .stride_head = stride[2]};
  }
  throw Error(ErrorCode::Internal, "", "cuda: a scale that the format does not have");
}

GroupScales make_group_scales(const Format& format, const Tensor& tensor, const Tensor& all) {
  if (!core::counts_groups(format.scale)) return {};
  const bool paged = tensor.rank == 4;
  const auto& stride = tensor.stride;
  return {.data = static_cast<const std::uint8_t*>(tensor.data),
          .stride_page = paged ? stride[0] : 0,
          .stride_token = stride[paged ? 1 : 0],
          .stride_head = stride[paged ? 2 : 1],
          .all = static_cast<const float*>(all.data),
          .rounded = format.rounded ? 1 : 0};
}

const char* group_scales_refuse(const Tensor& scales) {
  constexpr std::int64_t kRow = 8;  // bytes of a row's scales
  const auto extents = std::span(scales.shape).first(static_cast<std::size_t>(scales.rank));
  if (std::find(extents.begin(), extents.end(), 0) != extents.end()) return "";
  if (reinterpret_cast<std::uintptr_t>(scales.data) % kRow != 0)
    return "expected an address that is a multiple of 8";
  const int groups = scales.rank - 1;
  if (scales.stride[groups] != 1) return "expected the scales of a row side by side";
  for (int i = 0; i < groups; ++i) {
    if (scales.shape[i] > 1 && scales.stride[i] % kRow != 0)
      return "expected strides that are multiples of 8";
  }
  return "";
}

RowsOut make_rows_out(const Tensor& out, const Tensor& lse) {
  return {.out = make_rows<void>(out),
          .f32 = out.dtype == DType::F32 ? 1 : 0,
          .vectors = *copy_engine_refuses(out) == '\0' ? 1 : 0,
          .lse = make_rows<float>(lse)};
}

BatchParams make_batch(const Problem& problem, const core::Call& call, const Tensor& keys,
                       StatusWord* status) {
  check_key_rows(keys);
  const Batch& batch = call.batch;
  BatchParams params{.cu_seqlens_q = make_int_vector(batch.cu_seqlens_q, 0),
                     .seqlens_k = make_int_vector(batch.seqlens_k, 0),
                     .cu_seqlens_k = make_int_vector(batch.cu_seqlens_k, 0),
                     .q_offsets = make_int_vector(batch.q_offsets, 0),
                     .key_offsets = make_int_vector(batch.key_offsets, 0),
                     .total_seqlens_k = make_int_vector(batch.total_seqlens_k, 0),
                     .page_table = make_int_vector(batch.page_table, 1)};
  if (batch.page_table) {
    params.page_table_stride_b = batch.page_table.stride[0];
    params.page_columns = batch.page_table.shape[1];
  }
  const bool paged = problem.bounds.page_size != 0;
  params.num_pages = keys && paged ? keys.shape[0] : 0;
  // An operation without keys has neither pages nor rows that could run out.
  params.num_rows_k = keys && !paged ? keys.shape[0] : kNoLimit;
  params.total_q = core::num_query_rows(call);
  params.max_seqlen_q = problem.bounds.max_seqlen_q;
  params.max_seqlen_k = problem.bounds.max_seqlen_k;
  params.batch = static_cast<int>(core::num_requests(call));
  params.page_size = keys ? static_cast<int>(problem.bounds.page_size) : 0;
  params.block_size = static_cast<int>(problem.selection.block_size);
  params.local_blocks = static_cast<int>(problem.selection.local_blocks);
  params.init_blocks = static_cast<int>(problem.selection.init_blocks);
  params.causal = problem.causal ? 1 : 0;
  params.status = status;
  return params;
}

}  // namespace msa::cuda
