// SPDX-License-Identifier: MIT
// quantize_index: pages of index keys to 8-bit codes and the bounds that a filter reads. A task
// owns a share of all pages, so that a page that requests share is written by one thread.
#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#include "core/contents.h"
#include "core/host_tensor.h"
#include "core/parallel.h"
#include "cpu/rotate.h"
#include "cpu/stage.h"
#include "cpu/storage.h"

namespace msa::cpu {
namespace {

constexpr std::int64_t kLanes = 16;       // sums of a key's squares
constexpr std::int64_t kPiece = 512;      // values of a row that are widened at a time
constexpr std::int64_t kRowsOfTask = 64;  // 16 KiB of keys in bf16, some 10 us
constexpr float kInf = std::numeric_limits<float>::infinity();

using Piece = std::array<float, kPiece>;
using Codes = std::array<std::int8_t, kPiece>;

/// What a filter calls a page: a page, or kFilterRows rows of the pool.
struct Page {
  std::int64_t id = 0;
  std::int64_t first_row = 0;  // of `index_k`; of pages, in the page
  std::int64_t rows = 0;
  std::uint32_t members = ~0u;  // ragged: the rows that are keys
  bool holds(std::int64_t i) const { return rows > kFilterRows || (members >> i & 1u) != 0; }
};

/// Element offset of a row.
std::int64_t place(const Tensor& t, bool paged, const Page& page, std::int64_t i,
                   std::int64_t head) {
  const std::size_t first = paged ? 1 : 0;
  return (paged ? page.id * t.stride[0] : 0) + (page.first_row + i) * t.stride[first] +
         head * t.stride[first + 1];
}

/// Zeros for what is not finite; says whether all was.
bool clear_odd(Piece& x, std::int64_t count) {
  std::int32_t odd = 0;
  for (std::int64_t d = 0; d < count; ++d) odd |= std::fabs(x[d]) < kInf ? 0 : 1;
  if (odd == 0) return true;
  for (std::int64_t d = 0; d < count; ++d) x[d] = std::isfinite(x[d]) ? x[d] : 0;
  return false;
}

/// Widens up to kPiece values, and zeros behind them up to a whole number of lanes. Says whether
/// all of them are finite; others become 0.
bool widen(const Tensor& keys, std::int64_t at, std::int64_t count, Piece& to) {
  with_storage(keys.dtype, [&](auto storage) {
    using S = decltype(storage);
    const auto* const from = static_cast<const typename S::T*>(keys.data) + at;
    for (std::int64_t d = 0; d < count; ++d) to[d] = S::read(from[d]);
  });
  for (std::int64_t d = count; d % kLanes != 0; ++d) to[d] = 0;
  return clear_odd(to, count);
}

/// Magnitudes are ordered as their bits are.
float largest_of(const Piece& x, std::int64_t count) {
  std::int32_t largest = 0;
  for (std::int64_t d = 0; d < count; ++d) {
    const auto size = std::bit_cast<std::int32_t>(std::fabs(x[d]));
    largest = size > largest ? size : largest;
  }
  return std::bit_cast<float>(largest);
}

/// To the nearest integer, half to even; below 2^22.
float round_small(float x) { return (x + 12582912.0f) - 12582912.0f; }

/// At least x.
float upwards(double x) {
  const auto nearest = static_cast<float>(x);
  return static_cast<double>(nearest) < x ? std::nextafter(nearest, kInf) : nearest;
}

/// Of one key: what its codes are off, and their length, squared.
struct Sums {
  std::array<double, kLanes> off{};
  std::int64_t length = 0;
};

/// Writes codes up to a whole number of lanes. Differences and their squares are exact in fp64.
/// Loops without a care for each other, which compilers turn into vectors.
void code_piece(const Piece& x, std::int64_t count, float scale, Codes& codes, Sums& sums) {
  const float divisor = scale > 0 ? scale : kInf;
  std::array<std::int32_t, kPiece> numbers;
  std::array<double, kPiece> squares;
  const std::int64_t padded = core::ceil_div(count, kLanes) * kLanes;
  // Where the scale is subnormal, numbers may pass 127, by less than a half.
  for (std::int64_t d = 0; d < padded; ++d)
    numbers[d] = std::clamp(static_cast<std::int32_t>(round_small(x[d] / divisor)), -127, 127);
  for (std::int64_t d = 0; d < padded; ++d) codes[d] = static_cast<std::int8_t>(numbers[d]);
  for (std::int64_t d = 0; d < padded; ++d) {
    const double off = static_cast<double>(x[d]) - numbers[d] * static_cast<double>(scale);
    squares[d] = off * off;
  }
  std::array<double, kLanes> off = sums.off;
  for (std::int64_t d = 0; d < padded; d += kLanes) {
    for (std::int64_t j = 0; j < kLanes; ++j) off[j] += squares[d + j];
  }
  sums.off = off;
  std::int32_t length = 0;  // of 512 codes at most
  for (std::int64_t d = 0; d < padded; ++d) length += numbers[d] * numbers[d];
  sums.length += length;
}

class CopyStage final : public Stage {
 public:
  CopyStage(const Problem& problem, const Machine& machine)
      : p_(problem), threads_(machine.threads) {}
  std::size_t workspace_bytes() const override { return 0; }
  std::string decisions() const override {
    return "rows_of_task " + std::to_string(kRowsOfTask) + "\n";
  }

  void run(const core::Call& call, Rows, std::byte*) const override {
    std::int64_t keys = 0;
    for (std::int64_t b = 0; b < core::num_requests(call); ++b) {
      const core::Request r = core::read_request(p_, call, b, 0);
      keys += r.seqlen_k - core::first_new_key(call, b);
    }
    // Some shares for each thread, as pages are dealt by chance.
    const std::int64_t tasks = std::min<std::int64_t>(
        core::ceil_div(keys * p_.index.heads_k, kRowsOfTask), std::int64_t{8} * threads_);
    core::for_each_task(threads_, tasks,
                        [&](std::int64_t task, int) { copy_share(call, task, tasks); });
  }

 private:
  bool paged() const { return p_.bounds.page_size != 0; }
  bool rotated() const { return p_.index.filter->rotated; }

  /// As widen; of a rotated filter what is not finite afterwards counts, too. A key is one piece
  /// then.
  bool read(const Tensor& keys, std::int64_t at, std::int64_t count, Piece& to) const {
    const bool finite = widen(keys, at, count, to);
    if (!rotated()) return finite;
    rotate(to.data(), count);
    return clear_odd(to, count) && finite;
  }

  static bool owns(std::int64_t task, std::int64_t tasks, std::int64_t page) {
    const std::uint64_t mixed = static_cast<std::uint64_t>(page) * 0x9e3779b97f4a7c15u >> 33;
    return static_cast<std::int64_t>(mixed % static_cast<std::uint64_t>(tasks)) == task;
  }

  void copy_share(const core::Call& call, std::int64_t task, std::int64_t tasks) const {
    const std::int64_t size = paged() ? p_.bounds.page_size : kFilterRows;
    std::int64_t k_begin = 0;
    for (std::int64_t b = 0; b < core::num_requests(call); ++b) {
      const core::Request r = core::read_request(p_, call, b, k_begin);
      k_begin += r.seqlen_k;
      const std::int64_t first = core::first_new_key(call, b);
      if (first == r.seqlen_k) continue;
      const std::int64_t end = core::ceil_div(r.k_begin + r.seqlen_k, size);
      for (std::int64_t column = (r.k_begin + first) / size; column < end; ++column) {
        const std::int64_t id = paged() ? core::read_i32(call.batch.page_table, b, column) : column;
        if (!owns(task, tasks, id)) continue;
        const Page page = paged() ? page_of(call, r, id, column) : group_of(call, b, r, column);
        for (std::int64_t head = 0; head < p_.index.heads_k; ++head) copy_page(call, page, head);
      }
    }
  }

  /// As many keys as any request has in this page, at this place.
  Page page_of(const core::Call& call, const core::Request& own, std::int64_t id,
               std::int64_t column) const {
    const std::int64_t size = p_.bounds.page_size;
    Page page{.id = id, .rows = std::min(size, own.seqlen_k - column * size)};
    for (std::int64_t b = 0; page.rows < size && b < core::num_requests(call); ++b) {
      const std::int64_t keys =
          std::min(size, core::read_request(p_, call, b, 0).seqlen_k - column * size);
      if (keys > page.rows && core::read_i32(call.batch.page_table, b, column) == id)
        page.rows = keys;
    }
    return page;
  }

  /// The rows of a group that are keys of request b or its neighbours.
  Page group_of(const core::Call& call, std::int64_t b, const core::Request& own,
                std::int64_t group) const {
    Page page{.id = group, .first_row = group * kFilterRows, .rows = kFilterRows, .members = 0};
    const auto add = [&](const core::Request& r) {
      const std::int64_t begin = std::max<std::int64_t>(r.k_begin - page.first_row, 0);
      const std::int64_t end =
          std::min<std::int64_t>(r.k_begin + r.seqlen_k - page.first_row, kFilterRows);
      for (std::int64_t i = begin; i < end; ++i) page.members |= 1u << i;
    };
    add(own);
    core::Request r = own;
    for (std::int64_t i = b - 1; i >= 0 && r.k_begin > page.first_row; --i) {
      r = core::read_request(p_, call, i, r.k_begin);
      if (!call.batch.cu_seqlens_k) r.k_begin -= r.seqlen_k;
      add(r);
    }
    r = own;
    for (std::int64_t i = b + 1; i < core::num_requests(call); ++i) {
      r = core::read_request(p_, call, i, r.k_begin + r.seqlen_k);
      if (r.k_begin >= page.first_row + kFilterRows) break;
      add(r);
    }
    return page;
  }

  void copy_page(const core::Call& call, const Page& page, std::int64_t head) const {
    const std::int64_t dim = p_.index.dim;
    Piece x;
    float largest = 0;
    bool finite = true;
    for (std::int64_t i = 0; i < page.rows; ++i) {
      if (!page.holds(i)) continue;
      const std::int64_t from = place(call.index_k, paged(), page, i, head);
      for (std::int64_t d = 0; d < dim; d += kPiece) {
        const std::int64_t count = std::min(kPiece, dim - d);
        finite = read(call.index_k, from + d, count, x) && finite;
        largest = std::max(largest, largest_of(x, count));
      }
    }
    const float scale = largest / 127.0f;
    double error = 0;
    std::int64_t length = 0;
    for (std::int64_t i = 0; i < page.rows; ++i) {
      if (!page.holds(i)) continue;
      const Sums sums = copy_key(call, page, i, head, scale);
      double sum = 0;
      for (const double part : sums.off) sum += part;
      error = std::max(error, sum);
      length = std::max(length, sums.length);
    }
    // More than what rounding may have taken from the sums and their roots.
    const double pad = 1 + static_cast<double>(dim + 64) * 0x1p-52;
    const double norm = static_cast<double>(scale) * std::sqrt(static_cast<double>(length)) * pad;
    double off = std::sqrt(error) * pad;
    if (rotated()) off += kRotationError * (off + norm);
    const Tensor& t = call.index_k8_bounds_out;
    float* const bounds = static_cast<float*>(t.data) + page.id * t.stride[0] + head * t.stride[1];
    bounds[0] = scale;
    bounds[t.stride[2]] = finite ? upwards(off) : kInf;
    bounds[2 * t.stride[2]] = upwards(norm);
  }

  Sums copy_key(const core::Call& call, const Page& page, std::int64_t i, std::int64_t head,
                float scale) const {
    const std::int64_t dim = p_.index.dim;
    const std::int64_t from = place(call.index_k, paged(), page, i, head);
    auto* const to = static_cast<std::int8_t*>(call.index_k8_out.data) +
                     place(call.index_k8_out, paged(), page, i, head);
    Sums sums;
    Piece x;
    Codes codes;
    for (std::int64_t d = 0; d < dim; d += kPiece) {
      const std::int64_t count = std::min(kPiece, dim - d);
      read(call.index_k, from + d, count, x);
      code_piece(x, count, scale, codes, sums);
      std::memcpy(to + d, codes.data(), static_cast<std::size_t>(count));
    }
    return sums;
  }

  Problem p_;
  int threads_;
};

}  // namespace

StagePtr plan_quantize_index(const Problem& problem, const Machine& machine) {
  return std::make_unique<CopyStage>(problem, machine);
}

}  // namespace msa::cpu
