// SPDX-License-Identifier: MIT
// Reading batches; see requests.h.
#include "testkit/requests.h"

#include <algorithm>
#include <cstring>

#include "testkit/number.h"

namespace msa::testkit {

std::byte* address(const Tensor& t, std::int64_t i0, std::int64_t i1, std::int64_t i2,
                   std::int64_t i3) {
  const std::int64_t element =
      i0 * t.stride[0] + i1 * t.stride[1] + i2 * t.stride[2] + i3 * t.stride[3];
  return static_cast<std::byte*>(t.data) + size_in_bytes(t.dtype, element);
}

std::int32_t int_at(const Tensor& t, std::int64_t i0, std::int64_t i1, std::int64_t i2) {
  std::int32_t value = 0;
  std::memcpy(&value, address(t, i0, i1, i2), sizeof(value));
  return value;
}

float float_at(const Tensor& t, std::int64_t i0, std::int64_t i1, std::int64_t i2) {
  float value = 0;
  load(address(t, i0, i1, i2), t.dtype, 1, &value);
  return value;
}

std::int64_t Request::visible_keys(std::int64_t i) const {
  std::int64_t end = key_offset + seqlen_k;  // one past the last key that this row may see
  if (total_k) end = std::min(end, *total_k);
  if (causal) end = std::min(end, offset + i + 1);
  return std::clamp<std::int64_t>(end - key_offset, 0, seqlen_k);
}

std::pair<std::int64_t, std::int64_t> Request::block_keys(std::int64_t i, std::int64_t id) const {
  const std::int64_t begin = (id - first_block()) * block_size;
  const std::int64_t visible = visible_keys(i);
  if (begin < 0 || begin >= visible) return {0, 0};
  return {begin, std::min(begin + block_size, visible)};
}

std::vector<Request> requests_of(const Problem& problem, const Batch& batch) {
  std::vector<Request> requests;
  const std::int64_t count = batch.cu_seqlens_q ? batch.cu_seqlens_q.shape[0] - 1 : 0;
  std::int64_t k_begin = 0;
  for (std::int64_t b = 0; b < count; ++b) {
    Request r;
    r.index = b;
    r.q_begin = int_at(batch.cu_seqlens_q, b);
    r.seqlen_q = int_at(batch.cu_seqlens_q, b + 1) - r.q_begin;
    r.seqlen_k = int_at(batch.seqlens_k, b);
    r.k_begin = batch.cu_seqlens_k ? int_at(batch.cu_seqlens_k, b) : k_begin;
    if (batch.key_offsets) r.key_offset = int_at(batch.key_offsets, b);
    if (batch.total_seqlens_k) r.total_k = int_at(batch.total_seqlens_k, b);
    r.offset =
        batch.q_offsets ? int_at(batch.q_offsets, b) : r.key_offset + r.seqlen_k - r.seqlen_q;
    r.block_size = problem.selection.block_size;
    r.causal = problem.causal;
    k_begin += r.seqlen_k;
    requests.push_back(r);
  }
  return requests;
}

std::byte* key_row(const Tensor& keys, const Batch& batch, const Request& request, std::int64_t key,
                   std::int64_t head) {
  if (!batch.page_table) return address(keys, request.k_begin + key, head);
  const std::int64_t page_size = keys.shape[1];
  return address(keys, int_at(batch.page_table, request.index, key / page_size), key % page_size,
                 head);
}

KeyRows key_rows(const Problem& problem, const msa::Operands& operands) {
  const Format format = problem.attention.kv.value_or(problem.attention.q);
  return {operands.k,   operands.batch, operands.k_scale, format.scale, operands.k_global_scale,
          format.group, format.rounded};
}

KeyRows value_rows(const Problem& problem, const msa::Operands& operands) {
  const Format format = problem.attention.kv.value_or(problem.attention.q);
  return {operands.v,   operands.batch, operands.v_scale, format.scale, operands.v_global_scale,
          format.group, format.rounded};
}

KeyRows index_rows(const Problem& problem, const msa::Operands& operands) {
  const Format format = problem.index.k.value_or(problem.index.q);
  return {operands.index_k,
          operands.batch,
          operands.index_k_scale,
          format.scale,
          operands.index_k_global_scale,
          format.group,
          format.rounded};
}

std::byte* scale_address(const KeyRows& rows, const Request& request, std::int64_t key,
                         std::int64_t head, std::int64_t group) {
  const bool paged = static_cast<bool>(rows.batch.page_table);
  const std::int64_t page_size = paged ? rows.keys.shape[1] : 1;
  const std::int64_t page =
      paged ? int_at(rows.batch.page_table, request.index, key / page_size) : 0;
  switch (rows.scale) {
    case Scale::None:
      break;
    case Scale::Tensor:
      return address(rows.scales, 0);
    case Scale::Head:
      return address(rows.scales, head);
    case Scale::Page:
      return address(rows.scales, page, head);
    case Scale::Token:
      return paged ? address(rows.scales, page, key % page_size, head)
                   : address(rows.scales, request.k_begin + key, head);
    case Scale::Group:
    case Scale::GroupTensor:
      return paged ? address(rows.scales, page, key % page_size, head, group)
                   : address(rows.scales, request.k_begin + key, head, group);
  }
  return nullptr;
}

namespace {

/// Every step is exact but the last product and the last rounding.
void scale_groups(const KeyRows& rows, const Request& request, std::int64_t key, std::int64_t head,
                  std::int64_t count, float* target) {
  const float global = rows.scale == Scale::GroupTensor ? float_at(rows.global, 0) : 1.0f;
  for (std::int64_t d = 0; d < count; ++d) {
    const std::byte* place = scale_address(rows, request, key, head, d / rows.group);
    target[d] *= e4m3_to_float(std::to_integer<std::uint8_t>(*place));
    if (rows.rounded) {
      target[d] = round_to(target[d], DType::E4M3);
    } else {
      target[d] *= global;
    }
  }
}

}  // namespace

void load_key(const KeyRows& rows, const Request& request, std::int64_t key, std::int64_t head,
              std::int64_t count, float* target) {
  load(key_row(rows.keys, rows.batch, request, key, head), rows.keys.dtype, count, target);
  if (rows.has_groups()) return scale_groups(rows, request, key, head, count, target);
  const std::byte* place = scale_address(rows, request, key, head);
  if (place == nullptr) return;
  float scale = 0;
  std::memcpy(&scale, place, sizeof scale);
  for (std::int64_t d = 0; d < count; ++d) target[d] *= scale;
}

}  // namespace msa::testkit
