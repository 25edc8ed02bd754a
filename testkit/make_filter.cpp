// SPDX-License-Identifier: MIT
// The 8-bit copy of the index keys and bounds that are true for every key that some query may see.
// Any codes will do as long as the bounds say how far off they are: hostile cases have scales of
// zero, codes at random, and bounds that say nothing.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <map>
#include <utility>
#include <vector>

#include "testkit/making.h"
#include "testkit/number.h"

namespace msa::testkit {

namespace {

constexpr std::uint64_t kFilterStream = 340;

/// A key of a page: which request's, and where in it.
struct Member {
  const Request* request;
  std::int64_t key;
};
/// By (page or group of ragged rows, index-key head).
using Pages = std::map<std::pair<std::int64_t, std::int64_t>, std::vector<Member>>;

Pages pages_of(const Making& m) {
  Pages pages;
  for (const Request& r : m.requests) {
    const std::int64_t last = r.seqlen_q > 0 ? r.visible_keys(r.seqlen_q - 1) : 0;
    const std::int64_t seen = is_hostile(m.spec) ? last : r.seqlen_k;
    for (std::int64_t key = 0; key < seen; ++key) {
      const std::int64_t page = m.spec.page_size > 0 ? int_at(m.operands.batch.page_table, r.index,
                                                              key / m.spec.page_size)
                                                     : (r.k_begin + key) / kFilterRows;
      for (std::int64_t h = 0; h < m.spec.index_heads_k; ++h) pages[{page, h}].push_back({&r, key});
    }
  }
  return pages;
}

float upwards(double x) {
  const double padded = x * (1 + 1e-9);
  const auto rounded = static_cast<float>(padded);
  return rounded < padded ? std::nextafter(rounded, kInf) : rounded;
}

/// How a page is coded: as one would, too coarsely, with a scale of zero, or at random.
enum class Coding : std::uint8_t { Fine, Coarse, Zero, Random };

Coding coding_of(const Making& m, std::uint64_t bits) {
  if (!is_hostile(m.spec)) return Coding::Fine;
  constexpr std::array kKinds{Coding::Fine, Coding::Fine,   Coding::Coarse, Coding::Fine,
                              Coding::Zero, Coding::Random, Coding::Coarse, Coding::Fine};
  return kKinds[bits % kKinds.size()];
}

void make_page(const Making& m, std::int64_t page, std::int64_t head,
               const std::vector<Member>& members) {
  const Tensor& keys = m.operands.index_k;
  const std::int64_t dim = m.spec.dim_index();
  const auto size = static_cast<std::size_t>(dim);
  const Stream64 random(m.spec.seed, kFilterStream);
  // Heads whose keys are the same tensor have the same codes.
  const std::int64_t own = m.spec.strides == Strides::Broadcast ? 0 : head;
  const std::uint64_t place = static_cast<std::uint64_t>(page * m.spec.index_heads_k + own) << 24;
  const std::uint64_t bits = random.bits(place);
  std::vector<float> items(size);
  std::vector<double> row(size);  // what is coded
  bool broken = false;            // a rotated key was not finite
  const auto read = [&](const Member& member) {
    load(key_row(keys, m.operands.batch, *member.request, member.key, head), keys.dtype, dim,
         items.data());
    std::copy(items.begin(), items.end(), row.begin());
    if (!m.spec.rotated) return;
    for (double& x : row) {
      broken = broken || !std::isfinite(x);
      if (!std::isfinite(x)) x = 0;
    }
    rotate(row);
  };
  float largest = 0;
  for (const Member& member : members) {
    read(member);
    for (const double x : row) {
      if (std::isfinite(x)) largest = std::max(largest, static_cast<float>(std::fabs(x)));
    }
  }
  if (!std::isfinite(largest)) largest = 0;  // rotated keys may overflow
  const Coding coding = coding_of(m, bits);
  float scale = largest / (coding == Coding::Coarse ? 9.0f : 127.0f);
  if (coding == Coding::Zero) scale = 0;
  double error = 0, norm = 0;
  std::uint64_t counter = place;
  for (const Member& member : members) {
    read(member);
    std::vector<std::int8_t> codes(size);
    double off = 0, length = 0;
    for (std::size_t d = 0; d < size; ++d) {
      const float ratio =
          std::isfinite(row[d]) && scale > 0 ? static_cast<float>(row[d]) / scale : 0.0f;
      codes[d] = static_cast<std::int8_t>(std::clamp(std::nearbyint(ratio), -127.0f, 127.0f));
      if (coding == Coding::Random || coding == Coding::Zero) {
        codes[d] = static_cast<std::int8_t>(random.below(++counter, 256) - 128);
      }
      const double value = static_cast<double>(codes[d]) * scale;
      off += (row[d] - value) * (row[d] - value);
      length += value * value;
    }
    std::memcpy(key_row(m.operands.index_k8, m.operands.batch, *member.request, member.key, head),
                codes.data(), size);
    error = std::isnan(off) ? kInf : std::max(error, std::sqrt(off));
    norm = std::max(norm, std::sqrt(length));
  }
  if (m.spec.rotated) error = broken ? kInf : error + 1e-14 * (error + norm);
  std::array<float, 3> bounds{scale, upwards(error), upwards(norm)};
  if (m.spec.hostile == Hostile::NanIndex && (bits >> 8) % 9 == 0) {
    bounds[(bits >> 16) % 3] = std::array<float, 4>{std::numeric_limits<float>::quiet_NaN(), kInf,
                                                    -kInf, -0.5f}[(bits >> 24) % 4];
  }
  for (std::int64_t i = 0; i < 3; ++i) {
    std::memcpy(address(m.operands.index_k8_bounds, page, head, i),
                &bounds[static_cast<std::size_t>(i)], sizeof(float));
  }
}

}  // namespace

void make_filter(Making& m) {
  const std::int64_t heads = m.spec.index_heads_k;
  Shape shape{m.key_extent, heads, m.spec.dim_index()};
  if (m.spec.page_size > 0) shape.insert(shape.begin() + 1, m.spec.page_size);
  m.operands.index_k8 = m.tensors.keys("index_k8", DType::I8, shape);
  const std::int64_t pages =
      m.spec.page_size > 0 ? m.key_extent : ceil_div(m.key_extent, kFilterRows);
  const bool heads_first = m.spec.layout == Layout::HeadMajor;
  m.operands.index_k8_bounds =
      m.tensors.input("index_k8_bounds", DType::F32, {pages, heads, 3},
                      heads_first ? DimOrder{1, 0, 2} : DimOrder{0, 1, 2}, false);
  for (const auto& [place, members] : pages_of(m)) make_page(m, place.first, place.second, members);
}

}  // namespace msa::testkit
