// SPDX-License-Identifier: MIT
// Queries, keys and values; values.cpp says what they hold. With hostile data only those keys are
// written that some query both lists and sees.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <tuple>
#include <utility>

#include "testkit/generate.h"
#include "testkit/making.h"
#include "testkit/number.h"
#include "testkit/values.h"

namespace msa::testkit {

namespace {

constexpr std::uint64_t kPoisonStream = 303;
constexpr std::uint64_t kScaleStream = 320;
constexpr std::uint64_t kRowStream = 350;
constexpr std::uint64_t kGradientStream = 360;

/// Marks of keys, [requests][heads * keys]; empty: all.
using Used = std::vector<std::vector<std::uint8_t>>;

Tensor make_keys(const Making& m, const std::string& name, DType dtype, std::int64_t heads,
                 std::int64_t dim) {
  Shape shape{m.key_extent, heads, dim};
  if (m.spec.page_size > 0) shape.insert(shape.begin() + 1, m.spec.page_size);
  return m.tensors.keys(name, dtype, shape);
}

void fill_queries(const Making& m, const Tensor& q, Role role) {
  const std::int64_t heads = q.shape[1], dim = q.shape[2];
  const Values values(m.spec, role, dim, heads, m.longest);
  const Stream64 poison(m.spec.seed, kPoisonStream + static_cast<std::uint64_t>(role));
  const bool spoil =
      m.spec.hostile == (role == Role::IndexQuery ? Hostile::NanIndexQ : Hostile::NanQ);
  for (const Request& r : m.requests) {
    const std::int64_t first = std::max<std::int64_t>(r.offset, 0);
    for_rows(r.seqlen_q, heads * dim, [&](std::int64_t i) {
      std::vector<float> row(static_cast<std::size_t>(dim));
      for (std::int64_t h = 0; h < heads; ++h) {
        values.row(r.index, first + i, h, row.data());
        const std::uint64_t counter = (r.q_begin + i) * heads + h;
        if (spoil && poison.below(counter, 4) == 0) spoil_row(poison, counter, row);
        store(row.data(), dim, q.dtype, address(q, r.q_begin + i, h));
      }
    });
  }
}

Format format_of(const Making& m, Role role) {
  return role == Role::IndexKey ? m.spec.index_k_format() : m.spec.kv_format();
}

/// Of keys or values.
std::int64_t heads_of(const Making& m, Role role) {
  return role == Role::IndexKey ? m.spec.index_heads_k : m.spec.heads_kv;
}

/// Whether scores over the keys are exact, so that scales must not spoil that.
bool has_exact_values(const Making& m, Role role) {
  const Regime regime = m.spec.regime;
  const bool inexact = regime == Regime::Random || regime == Regime::Drift ||
                       regime == Regime::Offset || regime == Regime::Wide;
  return role == Role::IndexKey && !inexact;
}

/// The scale of a key: no two neighbours have the same, and none is a power of two. Of index keys
/// whose scores are exact all are, so that scores stay so.
float scale_of(const Making& m, Role role, const Request& r, std::int64_t key, std::int64_t head) {
  const std::int64_t heads = heads_of(m, role);
  std::uint64_t place = 0;
  switch (format_of(m, role).scale) {
    case Scale::None:
    case Scale::Group:
      return 1;
    case Scale::Tensor:
    case Scale::GroupTensor:
      break;
    case Scale::Head:
      place = static_cast<std::uint64_t>(head);
      break;
    case Scale::Page:
      place = (static_cast<std::uint64_t>(r.index) << 40) +
              static_cast<std::uint64_t>(key / m.spec.page_size * heads + head);
      break;
    case Scale::Token:
      place = (static_cast<std::uint64_t>(r.index) << 40) +
              static_cast<std::uint64_t>(key * heads + head);
      break;
  }
  const Stream64 random(m.spec.seed, kScaleStream + static_cast<std::uint64_t>(role));
  if (has_exact_values(m, role))
    return std::ldexp(1.0f, static_cast<int>(random.below(place, 5)) - 2);
  return 0.37f + 0.011f * static_cast<float>(random.below(place, 97));
}

bool is_used(const Used& used, const Request& r, std::int64_t key, std::int64_t head,
             std::int64_t heads, bool one_head) {
  const std::vector<std::uint8_t>& marks = used[r.index];
  if (!one_head) return marks[head * r.seqlen_k + key] != 0;
  for (std::int64_t h = 0; h < heads; ++h) {
    if (marks[h * r.seqlen_k + key] != 0) return true;
  }
  return false;
}

float odd_scale(const Stream64& poison, std::uint64_t counter) {
  return std::array<float, 3>{kNan, kInf, -kInf}[mix(poison.bits(counter)) % 3];
}

/// Scales of the keys that may be read. `spoil` makes some of them not finite: of tokens and pages,
/// and of whole heads of index keys.
void fill_scales(const Making& m, const KeyRows& rows, Role role, const Used& used, bool spoil) {
  if (rows.scale == Scale::None || rows.has_groups()) return;
  const std::int64_t heads = heads_of(m, role);
  const bool one_head = m.spec.strides == Strides::Broadcast;
  const Stream64 poison(m.spec.seed, kScaleStream + 8 + static_cast<std::uint64_t>(role));
  const bool shared = rows.scale == Scale::Tensor || rows.scale == Scale::Head;
  const std::int64_t rarely = 2 * m.spec.block_size,
                     step = rows.scale == Scale::Page ? m.spec.page_size : 1;
  const auto write = [&](std::byte* place, float scale) {
    std::memcpy(place, &scale, sizeof scale);
  };
  for (std::int64_t h = 0; shared && h < (one_head ? 1 : heads); ++h) {
    const Request any{};
    float scale = scale_of(m, role, any, 0, h);
    // Of index keys alone: a head that says nothing leaves the others something to select by.
    if (spoil && role == Role::IndexKey && poison.below(static_cast<std::uint64_t>(h), 3) == 0)
      scale = odd_scale(poison, static_cast<std::uint64_t>(h));
    write(scale_address(rows, any, 0, h), scale);
  }
  for (const Request& r : m.requests) {
    for (std::int64_t key = 0; !shared && key < r.seqlen_k; ++key) {
      for (std::int64_t h = 0; h < (one_head ? 1 : heads); ++h) {
        if (!used.empty() && !is_used(used, r, key, h, heads, one_head)) continue;
        float scale = scale_of(m, role, r, key, h);
        const std::uint64_t counter = (static_cast<std::uint64_t>(r.index) << 36) +
                                      static_cast<std::uint64_t>(key / step * heads + h);
        if (spoil && poison.below(counter, step == 1 ? rarely : 9) == 0)
          scale = odd_scale(poison, counter);
        write(scale_address(rows, r, key, h), scale);
      }
    }
  }
}

/// A row of codes and the scales of its groups: such that every code occurs, over many binades, and
/// now and then with a minus. Of index keys whose scores are exact they are powers of two within
/// two binades, and of those that drift what a quantizer makes, so that they find what it finds.
/// `spoil` makes one of the scales NaN.
void store_groups(const Making& m, const KeyRows& rows, Role role, const Request& r,
                  std::int64_t key, std::int64_t head, bool spoil, std::vector<float>& row) {
  const std::uint64_t counter = (static_cast<std::uint64_t>(r.index) << 36) +
                                static_cast<std::uint64_t>(key * heads_of(m, role) + head);
  const Stream64 random(m.spec.seed, kScaleStream + 16 + static_cast<std::uint64_t>(role));
  const auto groups = static_cast<std::int64_t>(row.size()) / rows.group;
  const float global = scale_of(m, role, r, key, head);
  const bool exact = has_exact_values(m, role);
  const bool plain = role == Role::IndexKey && m.spec.regime == Regime::Drift;
  for (std::int64_t g = 0; g < groups; ++g) {
    const std::uint64_t bits = mix(random.bits(counter * 64 + static_cast<std::uint64_t>(g)));
    float* x = row.data() + g * rows.group;
    float largest = 0;
    for (std::int64_t d = 0; d < rows.group; ++d) largest = std::max(largest, std::fabs(x[d]));
    const float stretch = plain             ? 1.0f
                          : (bits & 7) == 0 ? std::ldexp(1.0f, -static_cast<int>(bits >> 8 & 7))
                                            : std::array{1.0f, 0.5f, 1.7f, 0.83f}[bits >> 16 & 3];
    std::uint8_t code = float_to_e4m3(largest / 6 / global * stretch);
    if (exact && largest > 0) {
      const int above = std::ilogb(largest / 6 / global) + 1;
      code = float_to_e4m3(std::ldexp(1.0f, above - static_cast<int>(bits & 1)));
    }
    if (code == 0) code = 1;
    if ((bits >> 32 & 31) == 0 && !plain) code |= 0x80;
    for (std::int64_t d = 0; d < rows.group; ++d) x[d] /= e4m3_to_float(code) * global;
    if (spoil && static_cast<std::int64_t>(bits >> 40) % groups == g) code |= 0x7f;
    *scale_address(rows, r, key, head, g) = std::byte{code};
  }
}

void fill_keys(const Making& m, const KeyRows& rows, Role role, const Used& used, bool spoil) {
  const Tensor& keys = rows.keys;
  const bool paged = m.spec.page_size > 0;
  const std::int64_t heads = keys.shape[paged ? 2 : 1], dim = keys.shape[paged ? 3 : 2];
  const bool one_head = m.spec.strides == Strides::Broadcast;
  const Values values(m.spec, role, dim, one_head ? 1 : heads, m.longest);
  const Stream64 poison(m.spec.seed, kPoisonStream + static_cast<std::uint64_t>(role));
  const std::int64_t rarely = std::max<std::int64_t>(2, 3 * m.spec.block_size / 2);
  const bool scaled = !rows.has_groups() && rows.scale != Scale::None;
  const bool spoils_scales = rows.scale == Scale::Page || rows.scale == Scale::Token;
  for (const Request& r : m.requests) {
    // Of every second request only scales are spoilt: codes beside them would hide what they do.
    const bool spoils_codes = spoil && (!spoils_scales || r.index % 2 != 0);
    for_rows(r.seqlen_k, heads * dim, [&](std::int64_t key) {
      std::vector<float> row(static_cast<std::size_t>(dim));
      for (std::int64_t h = 0; h < (one_head ? 1 : heads); ++h) {
        if (!used.empty() && !is_used(used, r, key, h, heads, one_head)) continue;
        values.row(r.index, r.key_offset + key, h, row.data());
        const std::uint64_t counter = (static_cast<std::uint64_t>(r.index) << 36) +
                                      static_cast<std::uint64_t>(key * heads + h);
        const bool bad = spoils_codes && poison.below(counter, rarely) == 0;
        if (rows.has_groups()) {
          store_groups(m, rows, role, r, key, h, bad, row);
        } else if (bad) {
          spoil_row(poison, counter, row);
        }
        if (scaled) {
          const float scale = scale_of(m, role, r, key, h);
          for (float& x : row) x /= scale;
        }
        store(row.data(), dim, keys.dtype, key_row(keys, m.operands.batch, r, key, h));
      }
    });
  }
}

/// Keys that some query sees, of every head.
Used seen_keys(const Making& m, std::int64_t heads) {
  Used used;
  for (const Request& r : m.requests) {
    auto& marks = used.emplace_back(static_cast<std::size_t>(heads * r.seqlen_k), 0);
    const std::int64_t seen = r.seqlen_q > 0 ? r.visible_keys(r.seqlen_q - 1) : 0;
    for (std::int64_t h = 0; h < heads; ++h) {
      std::fill_n(marks.begin() + h * r.seqlen_k, seen, std::uint8_t{1});
    }
  }
  return used;
}

/// Keys that some query both lists and sees.
Used listed_keys(const Making& m, const Tensor& ids) {
  Used used;
  const std::int64_t heads = ids.shape[1];
  for (const Request& r : m.requests) {
    auto& marks = used.emplace_back(static_cast<std::size_t>(heads * r.seqlen_k), 0);
    for (std::int64_t i = 0; i < r.seqlen_q; ++i) {
      for (std::int64_t h = 0; h < heads; ++h) {
        for (std::int64_t s = 0; s < ids.shape[2]; ++s) {
          const std::int32_t id = int_at(ids, r.q_begin + i, h, s);
          if (id == -1) break;
          const auto [begin, end] = r.block_keys(i, id);
          std::fill(marks.begin() + h * r.seqlen_k + begin, marks.begin() + h * r.seqlen_k + end,
                    std::uint8_t{1});
        }
      }
    }
  }
  return used;
}

/// Index keys that some query both lists, under a head that reads them, and sees.
Used listed_index_keys(const Making& m) {
  const Used listed = listed_keys(m, m.operands.block_ids_in);
  const std::int64_t heads = m.spec.index_heads_k, shared = m.spec.heads_kv / heads;
  Used used;
  for (const Request& r : m.requests) {
    auto& marks = used.emplace_back(static_cast<std::size_t>(heads * r.seqlen_k), 0);
    for (std::int64_t n = 0; n < heads * shared * r.seqlen_k; ++n) {
      const std::int64_t head = n / r.seqlen_k / shared;
      if (listed[r.index][n] != 0) marks[head * r.seqlen_k + n % r.seqlen_k] = 1;
    }
  }
  return used;
}

/// What the oracle selects, marked.
Used selected_keys(const Making& m) {
  Operands select;
  select.index_q = m.operands.index_q;
  select.index_k = m.operands.index_k;
  select.index_k_scale = m.operands.index_k_scale;
  select.index_k_global_scale = m.operands.index_k_global_scale;
  if (m.spec.precision == Precision::Fast) {
    select.index_k8 = m.operands.index_k8;
    select.index_k8_bounds = m.operands.index_k8_bounds;
  }
  select.batch = m.operands.batch;
  const std::int64_t rows = m.spec.rows(), heads = m.spec.heads_index();
  std::vector<std::int32_t> ids(static_cast<std::size_t>(rows * heads * m.spec.topk), -1);
  select.block_ids = make_tensor(ids.data(), DType::I32, {rows, heads, m.spec.topk});
  Settings settings = settings_of(m.spec);
  settings.options.backend = "reference";
  run_once(Op::SelectBlocks, select, settings);
  return listed_keys(m, select.block_ids);
}

Tensor make_scales(const Making& m, const std::string& name, Role role, std::int64_t dim) {
  const std::int64_t heads = heads_of(m, role), groups = dim / 16;
  constexpr DType kF32 = DType::F32;
  switch (format_of(m, role).scale) {
    case Scale::None:
      break;
    case Scale::Tensor:
      return m.tensors.scales(name, kF32, {1}, 0);
    case Scale::Head:
      return m.tensors.scales(name, kF32, {heads}, 0);
    case Scale::Page:
      return m.tensors.scales(name, kF32, {m.key_extent, heads}, 1);
    case Scale::Token:
      if (m.spec.page_size == 0) return m.tensors.scales(name, kF32, {m.key_extent, heads}, 1);
      return m.tensors.scales(name, kF32, {m.key_extent, m.spec.page_size, heads}, 2);
    case Scale::Group:
    case Scale::GroupTensor:
      if (m.spec.page_size == 0)
        return m.tensors.scales(name, DType::E4M3, {m.key_extent, heads, groups}, 1);
      return m.tensors.scales(name, DType::E4M3, {m.key_extent, m.spec.page_size, heads, groups},
                              2);
  }
  return {};
}

}  // namespace

void spoil_row(const Stream64& random, std::uint64_t counter, std::vector<float>& row) {
  const std::uint64_t bits = mix(random.bits(counter));
  const float value = std::array<float, 3>{kNan, kInf, -kInf}[bits % 3];
  if ((bits >> 8) % 4 == 0) {
    std::fill(row.begin(), row.end(), value);
  } else {
    row[(bits >> 16) % row.size()] = value;
  }
}

namespace {

/// One scale of all scales, where the format has it.
Tensor make_global(const Making& m, const std::string& name, Role role) {
  if (format_of(m, role).scale != Scale::GroupTensor) return {};
  const Tensor tensor = m.tensors.scales(name, DType::F32, {1}, 0);
  const float scale = scale_of(m, role, {}, 0, 0);
  std::memcpy(tensor.data, &scale, sizeof scale);
  return tensor;
}

}  // namespace

void make_index(Making& m) {
  if (!copies_index(m.spec.op)) {
    m.operands.index_q = m.tensors.input("index_q", m.spec.index_type(),
                                         {m.spec.rows(), m.spec.heads_index(), m.spec.dim_index()},
                                         m.tensors.row_order());
    fill_queries(m, m.operands.index_q, Role::IndexQuery);
  }
  m.operands.index_k = make_keys(m, "index_k", m.spec.index_k_format().storage,
                                 m.spec.index_heads_k, m.spec.dim_index());
  m.operands.index_k_scale = make_scales(m, "index_k_scale", Role::IndexKey, m.spec.dim_index());
  m.operands.index_k_global_scale = make_global(m, "index_k_global_scale", Role::IndexKey);
  Used used;
  if (is_hostile(m.spec)) {
    used = m.operands.block_ids_in ? listed_index_keys(m) : seen_keys(m, m.spec.index_heads_k);
  }
  const KeyRows keys = index_rows(m.problem, m.operands);
  const bool spoil = m.spec.hostile == Hostile::NanIndex;
  fill_keys(m, keys, Role::IndexKey, used, spoil);
  fill_scales(m, keys, Role::IndexKey, used, spoil);
}

void make_rows(Making& m) {
  const std::int64_t heads = m.spec.heads_kv;
  const Format kv = m.spec.kv_format();
  const Stream64 random(m.spec.seed, kRowStream);
  for (const auto& [name, tensor, role, dim] :
       {std::tuple{"k_rows", &Operands::k_rows, Role::Key, m.spec.head_dim},
        std::tuple{"v_rows", &Operands::v_rows, Role::Value, m.spec.dim_v()}}) {
    const Tensor rows = m.operands.*tensor = m.tensors.input(
                            name, m.spec.dtype, {m.spec.rows(), heads, dim}, m.tensors.row_order());
    const Values values(m.spec, role, dim, heads, m.longest + m.spec.rows());
    std::vector<float> row(static_cast<std::size_t>(dim));
    for (std::int64_t i = 0; i < m.spec.rows(); ++i) {
      for (std::int64_t h = 0; h < heads; ++h) {
        values.row(0, i, h, row.data());
        for (std::int64_t d = 0; d < dim; ++d) {
          // Every 16 elements of another size; some of them zeros, some such that codes are ties.
          const auto place = static_cast<std::uint64_t>((i * heads + h) * dim + d);
          const std::uint64_t group = mix(random.bits(place / 16 * 16 + 7));
          float& x = row[static_cast<std::size_t>(d)];
          x = std::ldexp(x, static_cast<int>(group % 40) - 20);
          if (group / 64 % 8 == 0) x = std::copysign(0.0f, x);
          if (group / 64 % 8 == 1) {
            const auto quarters = static_cast<float>(random.below(place, 25));
            x = d % 16 == 0 ? 6.0f : std::copysign(quarters / 4, x);
          }
        }
        const auto counter = static_cast<std::uint64_t>(i * heads + h);
        if (is_hostile(m.spec) && random.below(counter, 3) == 0) spoil_row(random, counter, row);
        store(row.data(), dim, rows.dtype, address(rows, i, h));
      }
    }
  }
  const bool given = kv.storage == DType::E4M3 && kv.scale != Scale::None;
  if (given && !computes_scales(kv)) {
    std::uint64_t place = 0;  // goes on: values have other scales than keys
    for (const auto& [name, tensor] :
         {std::pair{"k_scale", &Operands::k_scale}, std::pair{"v_scale", &Operands::v_scale}}) {
      const Tensor scales = m.operands.*tensor = make_scales(m, name, Role::Key, 0);
      for_each_run(scales, [&](std::byte* run, std::size_t bytes) {
        for (std::size_t at = 0; at < bytes; at += sizeof(float)) {
          const float scale = 0.37f + 0.011f * static_cast<float>(random.below(++place, 97));
          std::memcpy(run + at, &scale, sizeof scale);
        }
      });
    }
  }
  m.operands.k_global_scale = make_global(m, "k_global_scale", Role::Key);
  m.operands.v_global_scale = make_global(m, "v_global_scale", Role::Value);
}

void make_attention(Making& m) {
  const DType stored = m.spec.kv_format().storage;
  const std::int64_t heads = m.spec.heads_kv, dim = m.spec.head_dim, dim_v = m.spec.dim_v();
  m.operands.q = m.tensors.input("q", m.spec.dtype, {m.spec.rows(), m.spec.heads_q, dim},
                                 m.tensors.row_order());
  fill_queries(m, m.operands.q, Role::Query);
  if (m.spec.layout == Layout::Packed) {
    m.operands.k = make_keys(m, "k and v", stored, heads, dim + dim_v);
    m.operands.k.shape[m.operands.k.rank - 1] = dim;
    m.operands.v = m.operands.k;
    m.operands.v.shape[m.operands.v.rank - 1] = dim_v;
    m.operands.v.data = static_cast<std::byte*>(m.operands.v.data) + size_in_bytes(stored, dim);
  } else {
    m.operands.k = make_keys(m, "k", stored, heads, dim);
    m.operands.v = make_keys(m, "v", stored, heads, dim_v);
  }
  m.operands.k_scale = make_scales(m, "k_scale", Role::Key, dim);
  m.operands.v_scale = make_scales(m, "v_scale", Role::Value, dim_v);
  m.operands.k_global_scale = make_global(m, "k_global_scale", Role::Key);
  m.operands.v_global_scale = make_global(m, "v_global_scale", Role::Value);
  Used used;
  if (is_hostile(m.spec)) {
    if (m.operands.block_ids_in) {
      used = listed_keys(m, m.operands.block_ids_in);
    } else {
      used = m.spec.op == Op::MsaAttention ? selected_keys(m) : seen_keys(m, heads);
    }
  }
  const KeyRows k = key_rows(m.problem, m.operands), v = value_rows(m.problem, m.operands);
  fill_keys(m, k, Role::Key, used, m.spec.hostile == Hostile::NanK);
  fill_keys(m, v, Role::Value, used, m.spec.hostile == Hostile::NanV);
  fill_scales(m, k, Role::Key, used, m.spec.hostile == Hostile::NanK);
  fill_scales(m, v, Role::Value, used, m.spec.hostile == Hostile::NanV);
}

void make_gradients(Making& m) {
  const std::int64_t rows = m.spec.rows(), heads = m.spec.heads_q, dim = m.spec.dim_v();
  const bool loss = m.spec.op == Op::IndexLoss;
  Operands& o = m.operands;
  o.out_in = m.tensors.input("out", m.spec.out_type(), {rows, heads, dim}, m.tensors.row_order());
  o.lse_in = m.tensors.input("lse", DType::F32, {rows, heads}, m.tensors.lse_order(), false);
  Operands forward;
  forward.q = o.q;
  forward.k = o.k;
  forward.v = o.v;
  forward.block_ids_in = o.block_ids_in;
  forward.batch = o.batch;
  forward.out = o.out_in;
  forward.lse = o.lse_in;
  Settings settings = settings_of(m.spec);
  settings.accumulate = false;
  // The oracle takes out and lse as they are, so that in calls as large as a bench has them, for
  // which a forward pass in fp64 takes minutes, they come from a kernel.
  const double pairs = double(rows) * double(m.problem.bounds.max_seqlen_k) * double(heads);
  settings.options.backend = pairs > 0x1p28 ? "cpu" : "reference";
  run_once(o.block_ids_in ? Op::SparseAttention : Op::DenseAttention, forward, settings);

  if (loss) {
    o.out_in = o.v = {};
    if (!m.spec.row_weight) return;
    o.row_weight = m.tensors.input("row_weight", DType::F32, {rows}, {0}, false);
    const Stream64 weights(m.spec.seed, kGradientStream + 1);
    for (const Request& r : m.requests) {
      for (std::int64_t row = r.q_begin; row < r.q_begin + r.seqlen_q; ++row) {
        const auto sixteenths =
            static_cast<float>(weights.below(static_cast<std::uint64_t>(row), 17));
        const float x = sixteenths / 16;
        std::memcpy(address(o.row_weight, row), &x, sizeof x);
      }
    }
    return;
  }
  o.dout = m.tensors.input("dout", m.spec.out_type(), {rows, heads, dim}, m.tensors.row_order());
  fill_queries(m, o.dout, Role::Gradient);
  const Stream64 random(m.spec.seed, kGradientStream);
  const std::vector<float> nothing(static_cast<std::size_t>(dim), 0.0f);
  for (const Request& r : m.requests) {
    for (std::int64_t row = r.q_begin; row < r.q_begin + r.seqlen_q; ++row) {
      // Some rows that no gradient reaches.
      if (random.below(static_cast<std::uint64_t>(row), 8) != 0) continue;
      for (std::int64_t h = 0; h < heads; ++h)
        store(nothing.data(), dim, o.dout.dtype, address(o.dout, row, h));
    }
  }
  if (!m.spec.dlse) return;
  o.dlse = m.tensors.input("dlse", DType::F32, {rows, heads}, m.tensors.lse_order(), false);
  for (const Request& r : m.requests) {
    for (std::int64_t row = r.q_begin; row < r.q_begin + r.seqlen_q; ++row) {
      for (std::int64_t h = 0; h < heads; ++h) {
        const float x = random.normal(static_cast<std::uint64_t>((row + 1) * heads + h));
        std::memcpy(address(o.dlse, row, h), &x, sizeof x);
      }
    }
  }
}

}  // namespace msa::testkit
