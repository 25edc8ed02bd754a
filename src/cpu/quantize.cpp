// SPDX-License-Identifier: MIT
// quantize_kv: rows of keys and values to the format of a cache. A task is a piece of rows, or, in
// pages, where two rows may have the same place and the last one stays, one head of keys or values.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>

#include "core/contents.h"
#include "core/fields.h"
#include "core/host_tensor.h"
#include "core/parallel.h"
#include "cpu/stage.h"
#include "cpu/storage.h"

namespace msa::cpu {
namespace {

constexpr std::int64_t kRowsOfTask = 64;
constexpr std::int64_t kPiece = 512;  // values of a row that are widened at a time
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

/// Keys or values: what is read, and what is written.
struct Side {
  const Tensor &rows, &cache, &scales, &global, &written;
};

/// Where a row of a head goes; outside pages, `page` is 0 and no stride of pages counts.
struct Target {
  std::int64_t page = 0, row = 0, head = 0;
  std::int64_t in(const Tensor& t, bool paged) const {
    const int first = paged ? 1 : 0;
    const auto stride = [&](int d) { return t.stride[static_cast<std::size_t>(d)]; };
    return (paged ? page * stride(0) : 0) + row * stride(first) + head * stride(first + 1);
  }
};

void widen(const Tensor& rows, std::int64_t at, std::int64_t count, float* to) {
  with_storage(rows.dtype, [&](auto storage) {
    using S = decltype(storage);
    const auto* const from = static_cast<const typename S::T*>(rows.data) + at;
    for (std::int64_t d = 0; d < count; ++d) to[d] = S::read(from[d]);
  });
}

/// Half to even; what is too large becomes 6.
std::uint8_t float_to_e2m1(float x) {
  const float y = std::fabs(x);
  const int code = (y > 0.25f) + (y >= 0.75f) + (y > 1.25f) + (y >= 1.75f) + (y > 2.5f) +
                   (y >= 3.5f) + (y > 5.0f);
  return static_cast<std::uint8_t>(code | (std::signbit(x) ? 8 : 0));
}

class QuantizeStage final : public Stage {
 public:
  QuantizeStage(const Problem& problem, const Machine& machine)
      : p_(problem), kv_(core::kv_format(problem)), threads_(machine.threads) {}
  std::size_t workspace_bytes() const override { return 0; }
  std::string decisions() const override {
    return "rows_of_task " + std::to_string(paged() ? 0 : kRowsOfTask) + "\n";
  }

  void run(const core::Call& call, Rows rows, std::byte*) const override {
    const Side keys{call.k_rows, call.k_cache, call.k_scale, call.k_global_scale,
                    call.k_scale_cache};
    const Side values{call.v_rows, call.v_cache, call.v_scale, call.v_global_scale,
                      call.v_scale_cache};
    if (paged()) {
      core::for_each_task(threads_, 2 * p_.attention.heads_kv, [&](std::int64_t task, int) {
        append(call, task % 2 == 0 ? keys : values, task / 2);
      });
      return;
    }
    for_each_row(threads_, rows, kRowsOfTask, [&](std::int64_t row, int) {
      for (std::int64_t head = 0; head < p_.attention.heads_kv; ++head) {
        store(keys, row, {.row = row, .head = head});
        store(values, row, {.row = row, .head = head});
      }
    });
  }

 private:
  bool paged() const { return p_.bounds.page_size != 0; }

  void append(const core::Call& call, const Side& side, std::int64_t head) const {
    const std::int64_t page_size = p_.bounds.page_size;
    for (std::int64_t b = 0; b < core::num_requests(call); ++b) {
      const core::Request r = core::read_request(p_, call, b, 0);
      for (std::int64_t i = 0; i < r.seqlen_q; ++i) {
        const std::int64_t position = r.seqlen_k - r.seqlen_q + i;
        const std::int64_t page = core::read_i32(call.batch.page_table, b, position / page_size);
        store(side, r.q_begin + i, {.page = page, .row = position % page_size, .head = head});
      }
    }
  }

  void store(const Side& s, std::int64_t from_row, const Target& to) const {
    const std::int64_t dim = s.rows.shape[2];
    const std::int64_t from = from_row * s.rows.stride[0] + to.head * s.rows.stride[1];
    const std::int64_t at = to.in(s.cache, paged());
    auto* const cache = static_cast<std::uint8_t*>(s.cache.data) + size_in_bytes(kv_.storage, at);
    if (kv_.storage == DType::E2M1) return store_groups(s, from, to, dim, cache);
    if (kv_.storage != DType::E4M3) {
      std::memcpy(cache,
                  static_cast<const std::byte*>(s.rows.data) + size_in_bytes(kv_.storage, from),
                  static_cast<std::size_t>(size_in_bytes(kv_.storage, dim)));
      return;
    }
    const float scale = scale_of(s, from, to, dim);
    const bool divides = kv_.scale != Scale::None;
    std::array<float, kPiece> x{};
    for (std::int64_t begin = 0; begin < dim; begin += kPiece) {
      const std::int64_t count = std::min(kPiece, dim - begin);
      widen(s.rows, from + begin, count, x.data());
      for (std::int64_t d = 0; d < count; ++d) {
        const float value = x[static_cast<std::size_t>(d)];
        cache[begin + d] = float_to_e4m3(divides ? value / scale : value);
      }
    }
  }

  /// Given, or worked out and written: what makes the largest element 448.
  float scale_of(const Side& s, std::int64_t from, const Target& to, std::int64_t dim) const {
    const auto* const given = static_cast<const float*>(s.scales.data);
    switch (kv_.scale) {
      case Scale::Tensor:
        return given[0];
      case Scale::Head:
        return given[to.head * s.scales.stride[0]];
      case Scale::Page:
        return given[to.page * s.scales.stride[0] + to.head * s.scales.stride[1]];
      case Scale::Token:
        break;
      case Scale::None:
      case Scale::Group:
      case Scale::GroupTensor:
        return 1;
    }
    float largest = 0;
    std::array<float, kPiece> x{};
    for (std::int64_t begin = 0; begin < dim; begin += kPiece) {
      const std::int64_t count = std::min(kPiece, dim - begin);
      widen(s.rows, from + begin, count, x.data());
      for (std::int64_t d = 0; d < count; ++d) {
        const float y = std::fabs(x[static_cast<std::size_t>(d)]);
        largest = y > largest ? y : largest;  // a NaN is never larger
      }
    }
    float scale = largest / 448.0f;
    if (!(scale > 0)) scale = 1;
    static_cast<float*>(s.written.data)[to.in(s.written, paged())] = scale;
    return scale;
  }

  void store_groups(const Side& s, std::int64_t from, const Target& to, std::int64_t dim,
                    std::uint8_t* cache) const {
    const float global = kv_.scale == Scale::GroupTensor ? *static_cast<const float*>(s.global.data)
                                                         : 1.0f;  // divides exactly
    const std::int64_t step = s.written.stride[static_cast<std::size_t>(s.written.rank - 1)];
    auto* scale = static_cast<std::uint8_t*>(s.written.data) + to.in(s.written, paged());
    for (std::int64_t begin = 0; begin < dim; begin += core::kGroup, scale += step) {
      std::array<float, core::kGroup> x{};
      widen(s.rows, from + begin, core::kGroup, x.data());
      float largest = 0;
      bool broken = false;
      for (float& value : x) {
        value /= global;
        broken = broken || std::isnan(value);
        largest = std::max(largest, std::fabs(value));
      }
      float wanted = broken ? kNaN : largest / 6.0f;
      if (kv_.rounded && !broken) wanted = std::clamp(wanted, 0x1p-9f, 448.0f);
      *scale = float_to_e4m3(wanted);
      store_codes(x, e4m3_to_float(*scale), cache + begin / 2);
    }
  }

  /// A scale of zero or NaN leaves nothing to say to the codes.
  void store_codes(const std::array<float, core::kGroup>& x, float scale,
                   std::uint8_t* pairs) const {
    const bool none = std::isnan(scale) || scale == 0;
    for (std::size_t d = 0; d < x.size(); d += 2) {
      std::array<std::uint8_t, 2> codes{};
      for (std::size_t half = 0; half < 2 && !none; ++half) {
        codes[half] = float_to_e2m1(x[d + half] / scale);
        if (kv_.rounded && codes[half] == 8) codes[half] = 0;
      }
      pairs[d / 2] = static_cast<std::uint8_t>(codes[0] | codes[1] << 4);
    }
  }

  Problem p_;
  Format kv_;
  int threads_;
};

}  // namespace

StagePtr plan_quantize_kv(const Problem& problem, const Machine& machine) {
  return std::make_unique<QuantizeStage>(problem, machine);
}

}  // namespace msa::cpu
