// SPDX-License-Identifier: MIT
// One row of attention by itself: reads the keys that its query lists and sees and no others, so
// nothing that a neighbour in the tile met can reach it. Slow; only rows whose tile sums were not
// finite come here.
#include <array>
#include <cmath>
#include <limits>

#include "cpu/attend_kernels.h"
#include "cpu/convert.h"

namespace msa::cpu {
namespace {

double read(const std::byte* data, DType dtype, std::int64_t i) {
  if (dtype == DType::F32) return reinterpret_cast<const float*>(data)[i];
  const std::uint16_t half = reinterpret_cast<const std::uint16_t*>(data)[i];
  return dtype == DType::F16 ? f16_to_float(half) : bf16_to_float(half);
}

void write(std::byte* data, DType dtype, std::int64_t i, float x) {
  if (dtype == DType::F32) {
    reinterpret_cast<float*>(data)[i] = x;
  } else {
    reinterpret_cast<std::uint16_t*>(data)[i] =
        dtype == DType::F16 ? float_to_f16(x) : float_to_bf16(x);
  }
}

/// Element offset of key j of the tile's request and head.
std::int64_t offset_of(const AttendCall& call, const AttendTile& tile, const KeyTensor& keys,
                       std::int64_t j) {
  const std::int64_t head = tile.head * keys.head;
  if (call.page_size == 0) return head + (tile.request.k_begin + j) * keys.row;
  const std::int64_t id =
      call.page_table[tile.batch * call.table_row + j / call.page_size * call.table_col];
  return head + id * keys.page + j % call.page_size * keys.row;
}

/// Calls f(key) for every key that the token sees and, in a sparse call, lists.
template <class F>
void for_each_key(const AttendCall& call, const AttendTile& tile, std::int64_t token, const F& f) {
  const std::int64_t visible = tile.request.visible_keys(token);
  if (call.ids == nullptr) {
    for (std::int64_t j = 0; j < visible; ++j) f(j);
    return;
  }
  const std::int64_t row = tile.request.q_begin + token - call.first_row;
  const std::int32_t* ids = call.ids + row * call.ids_row + tile.head * call.ids_head;
  for (std::int64_t slot = 0; slot < call.topk && ids[slot * call.ids_slot] >= 0; ++slot) {
    const std::int64_t block = ids[slot * call.ids_slot] - tile.request.blocks().begin;
    if (block < 0) continue;
    const std::int64_t end = std::min((block + 1) * call.step, visible);
    for (std::int64_t j = block * call.step; j < end; ++j) f(j);
  }
}

struct Row {
  std::array<double, kMaxDim> o{};
  double top = -std::numeric_limits<double>::infinity();
  double sum = 0;
  bool nan = false;
};

}  // namespace

void attend_row_exact(const AttendCall& call, const AttendTile& tile, std::int64_t token,
                      std::int64_t g) {
  const std::int64_t row = tile.request.q_begin + token, head = tile.head * call.group + g;
  const auto score = [&](std::int64_t j) {
    const std::int64_t q = row * call.q_row + head * call.q_head,
                       k = offset_of(call, tile, call.k, j);
    double dot = 0;
    for (std::int64_t d = 0; d < call.head_dim; ++d) {
      dot += read(call.q, call.dtype, q + d) * read(call.k.data, call.dtype, k + d);
    }
    return dot * double{call.scale};
  };
  Row r;
  for_each_key(call, tile, token, [&](std::int64_t j) {
    const double s = score(j);
    r.nan = r.nan || std::isnan(s) || s == std::numeric_limits<double>::infinity();
    r.top = std::max(r.top, s);
  });
  if (r.nan) {
    r.sum = std::numeric_limits<double>::quiet_NaN();
  } else if (r.top > -std::numeric_limits<double>::infinity()) {
    for_each_key(call, tile, token, [&](std::int64_t j) {
      const double p = std::exp(score(j) - r.top);
      const std::int64_t v = offset_of(call, tile, call.v, j);
      r.sum += p;
      for (std::int64_t d = 0; d < call.value_dim; ++d)
        r.o[d] += p * read(call.v.data, call.dtype, v + d);
    });
  }
  const std::int64_t out = row * call.out_row + head * call.out_head;
  for (std::int64_t d = 0; d < call.value_dim; ++d) {
    const double x = r.nan ? r.sum : r.sum == 0 ? 0.0 : r.o[d] / r.sum;
    write(call.out, call.out_dtype, out + d, static_cast<float>(x));
  }
  if (call.lse != nullptr) {
    call.lse[row * call.lse_row + head * call.lse_head] =
        static_cast<float>(r.top + std::log(r.sum));
  }
}

}  // namespace msa::cpu
