// SPDX-License-Identifier: MIT
// Loops over requests, rows and heads.
#include "reference/operations.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>

#include "core/contents.h"
#include "core/fields.h"
#include "core/op_traits.h"
#include "reference/backward.h"
#include "reference/index_loss.h"
#include "reference/walk.h"

namespace msa::reference {
namespace {

using core::Call;
using core::Range;
using core::Request;

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

// Index keys, with their scales.
Keys index_keys(const Problem& p, const Call& call, const Request& r, std::int64_t b) {
  return {call.index_k,
          call.batch.page_table,
          b,
          r.k_begin,
          &call.index_k_scale,
          &call.index_k_global_scale,
          core::index_k_format(p)};
}

// Keys or values of attention, with their scales.
Keys attended_keys(const Problem& p, const Call& call, const Request& r, std::int64_t b) {
  return {call.k,
          call.batch.page_table,
          b,
          r.k_begin,
          &call.k_scale,
          &call.k_global_scale,
          core::kv_format(p)};
}

Keys attended_values(const Problem& p, const Call& call, const Request& r, std::int64_t b) {
  return {call.v,
          call.batch.page_table,
          b,
          r.k_begin,
          &call.v_scale,
          &call.v_global_scale,
          core::kv_format(p)};
}

// ---- codes of 8 bits ----

// Numbers that fp32 holds, divided and rounded to fp32.
float divided(double x, double by) { return static_cast<float>(x / by); }

// What is coded of a vector: its elements, or of a rotated filter its products with the Hadamard
// matrix. In fp32, pass after pass, as docs/numerics.md says; elements that are not finite are 0
// before, and those that are not afterwards stay.
class CodedVector {
 public:
  CodedVector(const Vector& vector, std::int64_t dim, bool rotated)
      : vector_(vector), rotated_(rotated) {
    if (!rotated) return;
    for (std::int64_t d = 0; d < dim; ++d) {
      const double x = vector[d];
      finite_ = finite_ && std::isfinite(x);
      rotated_items_[index(d)] = std::isfinite(x) ? static_cast<float>(x) : 0.0f;
    }
    for (std::int64_t half = 1; half < dim; half *= 2) {
      for (std::int64_t d = 0; d < dim; ++d) {
        if ((d & half) != 0) continue;
        const float low = rotated_items_[index(d)], high = rotated_items_[index(d + half)];
        rotated_items_[index(d)] = low + high;
        rotated_items_[index(d + half)] = low - high;
      }
    }
  }

  double operator[](std::int64_t d) const {
    return rotated_ ? static_cast<double>(rotated_items_[index(d)]) : vector_[d];
  }
  // Whether the elements were.
  bool finite() const { return finite_; }

 private:
  static std::size_t index(std::int64_t d) { return static_cast<std::size_t>(d); }

  const Vector& vector_;
  bool rotated_;
  bool finite_ = true;
  std::array<float, kMaxCodedDim> rotated_items_;
};

// To the nearest code, half to even.
std::int64_t code_of(double x, float scale) {
  if (!(scale > 0)) return 0;
  const float ratio = divided(x, static_cast<double>(scale));
  return static_cast<std::int64_t>(std::clamp(std::nearbyint(ratio), -127.0f, 127.0f));
}

// Score of a block by codes alone: an exact product of integers, times the product of both scales,
// each rounded to fp32. Scales that are no numbers from 0 on score -inf.
float coded_score(const Problem& p, const Call& call, const Request& r, std::int64_t b,
                  std::int64_t i, std::int64_t h, std::int64_t id) {
  const std::int64_t dim = p.index.dim, head = h * p.index.heads_k / p.index.heads;
  const Vector stored = row_vector(call.index_q, r.q_begin + i, h);
  const CodedVector query(stored, dim, p.index.filter->rotated);
  double largest = query.finite() ? 0 : kInf;
  for (std::int64_t d = 0; d < dim; ++d) {
    largest = std::isfinite(query[d]) ? std::max(largest, std::fabs(query[d])) : kInf;
    if (largest == kInf) return -std::numeric_limits<float>::infinity();
  }
  const float own = divided(largest, 127);
  const float scale = p.index.filter->rotated ? own / static_cast<float>(dim) : own;
  std::array<std::int64_t, kMaxCodedDim> codes;
  for (std::int64_t d = 0; d < dim; ++d)
    codes[static_cast<std::size_t>(d)] = code_of(query[d], own);
  const Keys keys{call.index_k8, call.batch.page_table, b, r.k_begin};
  const Range visible = visible_keys(r, i, id);
  float best = -std::numeric_limits<float>::infinity();
  for (std::int64_t key = visible.begin; key < visible.end; ++key) {
    const std::int64_t page =
        call.batch.page_table ? core::read_i32(call.batch.page_table, b, key / p.bounds.page_size)
                              : (r.k_begin + key) / kFilterRows;
    const auto of_keys =
        static_cast<float>(load(call.index_k8_bounds, offset(call.index_k8_bounds, page, head, 0)));
    if (!(of_keys >= 0) || !std::isfinite(of_keys)) continue;
    const auto* const row =
        static_cast<const std::int8_t*>(call.index_k8.data) + keys.at(key, head).begin;
    std::int64_t product = 0;
    for (std::int64_t d = 0; d < dim; ++d) product += codes[static_cast<std::size_t>(d)] * row[d];
    const float both = scale * of_keys;
    const float score = both * static_cast<float>(product);
    if (score > best) best = score;  // never true for NaN
  }
  return best;
}

// ---- step 1: block scores ----

// Head h of `heads` reads key head h * heads_k / heads.
float score_of(const Problem& p, const Call& call, const Request& r, std::int64_t b, std::int64_t i,
               std::int64_t h, std::int64_t id) {
  if (p.selection.precision == Precision::Fast) return coded_score(p, call, r, b, i, h, id);
  const Vector query = row_vector(call.index_q, r.q_begin + i, h);
  return block_score(query, index_keys(p, call, r, b), h * p.index.heads_k / p.index.heads,
                     visible_keys(r, i, id), p.index.dim);
}

// Writes score(id) for the visible blocks of a row and -inf for all others.
template <class Score>
void write_scores(const Tensor& scores, const Request& r, std::int64_t i, std::int64_t h,
                  const Score& score) {
  const Range visible = r.visible_blocks(i);
  for (std::int64_t column = 0; column < scores.shape[2]; ++column) {
    const std::int64_t id = r.blocks().begin + column;
    store(scores, offset(scores, r.q_begin + i, h, column),
          visible.contains(id) ? score(id) : -kInf);
  }
}

void block_scores(const Problem& p, const Call& call) {
  for_each_request(p, call, [&](const Request& r, std::int64_t b) {
    for (std::int64_t i = 0; i < r.seqlen_q; ++i) {
      for (std::int64_t h = 0; h < p.index.heads; ++h) {
        write_scores(call.scores, r, i, h,
                     [&](std::int64_t id) { return score_of(p, call, r, b, i, h, id); });
      }
    }
  });
}

// ---- step 2: selection ----

float given_score(const Call& call, const Request& r, std::int64_t i, std::int64_t h,
                  std::int64_t id) {
  const Tensor& scores = call.scores_in;
  const double score = load(scores, offset(scores, r.q_begin + i, h, id - r.blocks().begin));
  return static_cast<float>(std::isnan(score) ? -kInf : score);
}

std::span<Candidate> select_row(const Problem& p, const Call& call, const Scratch& scratch,
                                const Request& r, std::int64_t b, std::int64_t i, std::int64_t h) {
  const Range visible = r.visible_blocks(i);
  for (std::int64_t id = visible.begin; id < visible.end; ++id) {
    scratch.candidates[static_cast<std::size_t>(id - visible.begin)] = {
        .id = id,
        .score =
            call.scores_in ? given_score(call, r, i, h, id) : score_of(p, call, r, b, i, h, id),
        .forced = r.is_forced(i, id, p.selection.local_blocks, p.selection.init_blocks)};
  }
  return select(scratch.candidates.first(static_cast<std::size_t>(visible.size())),
                p.selection.topk);
}

// Step 3: ids ascending, then -1; scores beside them, +inf for forced blocks.
void write_selection(const Call& call, std::int64_t row, std::int64_t h, std::int64_t k,
                     std::span<const Candidate> chosen) {
  for (std::int64_t slot = 0; slot < k; ++slot) {
    const std::size_t s = static_cast<std::size_t>(slot);
    const bool valid = s < chosen.size();
    if (call.block_ids) {
      store_i32(call.block_ids, offset(call.block_ids, row, h, slot), valid ? chosen[s].id : -1);
    }
    if (call.chosen_scores) {
      const double score = !valid             ? -kInf
                           : chosen[s].forced ? kInf
                                              : static_cast<double>(chosen[s].score);
      store(call.chosen_scores, offset(call.chosen_scores, row, h, slot), score);
    }
  }
}

void select_blocks(const Problem& p, const Call& call, const Scratch& scratch) {
  for_each_request(p, call, [&](const Request& r, std::int64_t b) {
    for (std::int64_t i = 0; i < r.seqlen_q; ++i) {
      for (std::int64_t h = 0; h < p.index.heads; ++h) {
        write_selection(call, r.q_begin + i, h, p.selection.topk,
                        select_row(p, call, scratch, r, b, i, h));
        // Bounds are not read here: every block is scored from its keys.
        if (call.candidates) {
          store_i32(call.candidates, offset(call.candidates, r.q_begin + i, h), -1);
        }
      }
    }
  });
}

// ---- step 4: attention ----

KeyList chosen_keys(std::span<const Candidate> chosen, const Request& r, std::int64_t i) {
  KeyList list;
  for (const Candidate& block : chosen) list.ranges[list.count++] = visible_keys(r, i, block.id);
  return list;
}

// One row and one query head over a list of keys.
void attend(const Problem& p, const Call& call, const Scratch& scratch, const Request& r,
            std::int64_t b, std::int64_t i, std::int64_t h, const KeyList& list) {
  const std::int64_t head = h / (p.attention.heads_q / p.attention.heads_kv);
  const std::int64_t row = r.q_begin + i;
  const Vector query = row_vector(call.q, row, h);
  const Keys keys = attended_keys(p, call, r, b);
  const Keys values = attended_values(p, call, r, b);

  const std::span<double> weights = scratch.scores.first(static_cast<std::size_t>(list.size()));
  list.for_each([&](std::int64_t key, std::size_t n) {
    weights[n] = dot(query, keys.at(key, head), p.attention.head_dim) * scale_of(p);
  });
  const RowResult result = softmax(weights);
  if (call.lse) store(call.lse, offset(call.lse, row, h), result.lse);
  constexpr std::int64_t kColumns = 32;  // of a walk over the values
  for (std::int64_t first = 0; first < p.attention.value_dim; first += kColumns) {
    const std::int64_t columns = std::min(kColumns, p.attention.value_dim - first);
    std::array<double, kColumns> sums{}, value{};
    if (result.nan) sums.fill(kNaN);
    if (!result.nan && !result.zero) {
      list.for_each([&](std::int64_t key, std::size_t n) {
        values.at(key, head).read(first, columns, value.data());
        for (std::int64_t c = 0; c < columns; ++c) sums[c] += weights[n] * value[c];
      });
    }
    for (std::int64_t c = 0; c < columns; ++c)
      store(call.out, offset(call.out, row, h, first + c), sums[c]);
  }
}

void write_block_max(const Problem& p, const Call& call, const Request& r, std::int64_t b,
                     std::int64_t i, std::int64_t h) {
  const Vector query = row_vector(call.q, r.q_begin + i, h);
  write_scores(call.block_max, r, i, h, [&](std::int64_t id) {
    return block_score(query, attended_keys(p, call, r, b),
                       h / (p.attention.heads_q / p.attention.heads_kv), visible_keys(r, i, id),
                       p.attention.head_dim);
  });
}

void dense_attention(const Problem& p, const Call& call, const Scratch& scratch) {
  for_each_request(p, call, [&](const Request& r, std::int64_t b) {
    for (std::int64_t i = 0; i < r.seqlen_q; ++i) {
      for (std::int64_t h = 0; h < p.attention.heads_q; ++h) {
        if (p.outputs.out) attend(p, call, scratch, r, b, i, h, all_keys(r, i));
        if (p.outputs.block_max) write_block_max(p, call, r, b, i, h);
      }
    }
  });
}

// Attends with every query head of KV head h.
void attend_group(const Problem& p, const Call& call, const Scratch& scratch, const Request& r,
                  std::int64_t b, std::int64_t i, std::int64_t h, const KeyList& list) {
  const std::int64_t group = p.attention.heads_q / p.attention.heads_kv;
  for (std::int64_t g = 0; g < group; ++g) {
    attend(p, call, scratch, r, b, i, h * group + g, list);
  }
}

void sparse_attention(const Problem& p, const Call& call, const Scratch& scratch) {
  for_each_request(p, call, [&](const Request& r, std::int64_t b) {
    for (std::int64_t i = 0; i < r.seqlen_q; ++i) {
      for (std::int64_t h = 0; h < p.attention.heads_kv; ++h) {
        attend_group(p, call, scratch, r, b, i, h, listed_keys(call, r, i, h));
      }
    }
  });
}

void msa_attention(const Problem& p, const Call& call, const Scratch& scratch) {
  for_each_request(p, call, [&](const Request& r, std::int64_t b) {
    for (std::int64_t i = 0; i < r.seqlen_q; ++i) {
      for (std::int64_t h = 0; h < p.attention.heads_kv; ++h) {
        const std::span<const Candidate> chosen = select_row(p, call, scratch, r, b, i, h);
        write_selection(call, r.q_begin + i, h, p.selection.topk, chosen);
        attend_group(p, call, scratch, r, b, i, h, chosen_keys(chosen, r, i));
      }
    }
  });
}

// ---- merging shards ----

void merge_state(const Call& call, std::int64_t row, std::int64_t h, std::int64_t value_dim) {
  std::array<double, kMaxParts> lses{};
  const std::size_t parts = call.part_lses.size();
  for (std::size_t n = 0; n < parts; ++n) {
    lses[n] = load(call.part_lses[n], offset(call.part_lses[n], row, h));
  }
  std::array<double, kMaxParts> weights = lses;
  const RowResult result = softmax(std::span(weights).first(parts));
  for (std::int64_t d = 0; d < value_dim; ++d) {
    double sum = result.nan ? kNaN : 0;
    for (std::size_t n = 0; n < parts; ++n) {
      // A part without keys adds nothing, whatever its output holds.
      if (lses[n] == -kInf) continue;
      sum += weights[n] * load(call.part_outs[n], offset(call.part_outs[n], row, h, d));
    }
    store(call.out, offset(call.out, row, h, d), sum);
  }
  if (call.lse) store(call.lse, offset(call.lse, row, h), result.lse);
}

void merge_states(const Problem& p, const Call& call) {
  for (std::int64_t row = 0; row < call.part_outs[0].shape[0]; ++row) {
    for (std::int64_t h = 0; h < p.attention.heads_q; ++h)
      merge_state(call, row, h, p.attention.value_dim);
  }
}

std::span<Candidate> gather_parts(const Call& call, const Scratch& scratch, std::int64_t row,
                                  std::int64_t h) {
  std::size_t count = 0;
  for (std::size_t n = 0; n < call.part_ids.size(); ++n) {
    const Tensor& ids = call.part_ids[n];
    const Tensor& scores = call.part_scores[n];
    for (std::int64_t slot = 0; slot < ids.shape[2]; ++slot) {
      const std::int64_t id = core::read_i32(ids, row, h, slot);
      if (id == -1) break;
      const double score = load(scores, offset(scores, row, h, slot));
      scratch.candidates[count++] = {
          .id = id, .score = static_cast<float>(std::isnan(score) ? -kInf : score)};
    }
  }
  return scratch.candidates.first(count);
}

void merge_selections(const Problem& p, const Call& call, const Scratch& scratch) {
  for (std::int64_t row = 0; row < call.part_ids[0].shape[0]; ++row) {
    for (std::int64_t h = 0; h < p.attention.heads_kv; ++h) {
      // Forced blocks carry +inf, which makes them the best.
      const std::span<Candidate> candidates = gather_parts(call, scratch, row, h);
      write_selection(call, row, h, p.selection.topk, select(candidates, p.selection.topk));
    }
  }
}

// ---- inverting a selection ----

// Calls visit(result row, query row, slot) for every listed block of a KV head, queries ascending.
template <class Visit>
void for_each_listed(const Problem& p, const Call& call, std::int64_t h, const Visit& visit) {
  const Tensor& ids = call.block_ids_in;
  std::int64_t first_row = 0;
  for_each_request(p, call, [&](const Request& r, std::int64_t) {
    for (std::int64_t row = r.q_begin; row < r.q_begin + r.seqlen_q; ++row) {
      for (std::int64_t slot = 0; slot < ids.shape[2]; ++slot) {
        const std::int64_t id = core::read_i32(ids, row, h, slot);
        if (id == -1) break;
        if (r.blocks().contains(id)) visit(first_row + id - r.blocks().begin, row, slot);
      }
    }
    first_row += r.blocks().size();
  });
}

void invert_head(const Problem& p, const Call& call, std::int64_t h) {
  const std::int64_t rows = call.row_ptr.shape[1] - 1;
  const auto entry = [&](std::int64_t row) { return offset(call.row_ptr, h, row); };
  const auto add = [&](std::int64_t row, std::int64_t more) {
    store_i32(call.row_ptr, entry(row), core::read_i32(call.row_ptr, h, row) + more);
  };
  for (std::int64_t row = 0; row <= rows; ++row) store_i32(call.row_ptr, entry(row), 0);
  for (std::int64_t n = 0; n < call.q_indices.shape[1]; ++n) {
    store_i32(call.q_indices, offset(call.q_indices, h, n), -1);
    store_i32(call.q_slots, offset(call.q_slots, h, n), -1);
  }
  // Count, sum up, place; placing moves each start to its end, which is the next row's start.
  for_each_listed(p, call, h,
                  [&](std::int64_t row, std::int64_t, std::int64_t) { add(row + 1, 1); });
  for (std::int64_t row = 0; row < rows; ++row) add(row + 1, core::read_i32(call.row_ptr, h, row));
  for_each_listed(p, call, h, [&](std::int64_t row, std::int64_t query, std::int64_t slot) {
    const std::int64_t n = core::read_i32(call.row_ptr, h, row);
    store_i32(call.q_indices, offset(call.q_indices, h, n), query);
    store_i32(call.q_slots, offset(call.q_slots, h, n), slot);
    add(row, 1);
  });
  for (std::int64_t row = rows; row > 0; --row) {
    store_i32(call.row_ptr, entry(row), core::read_i32(call.row_ptr, h, row - 1));
  }
  store_i32(call.row_ptr, entry(0), 0);
}

void invert_selection(const Problem& p, const Call& call) {
  for (std::int64_t h = 0; h < p.attention.heads_kv; ++h) invert_head(p, call, h);
}

// ---- storing keys and values ----

// The largest magnitude; NaN where one is.
double largest_of(const Vector& row, std::int64_t begin, std::int64_t end) {
  double largest = 0;
  for (std::int64_t d = begin; d < end; ++d) {
    if (std::isnan(row[d])) return kNaN;
    largest = std::max(largest, std::fabs(row[d]));
  }
  return largest;
}

// The nearest code; of two that are as near the even one. Zero has no sign where `plain_zero`.
int nearest_e2m1(double x, bool plain_zero) {
  constexpr std::array<double, 8> kSizes{0, 0.5, 1, 1.5, 2, 3, 4, 6};
  int best = 0;
  for (int code = 1; code < 8; ++code) {
    const double now = std::fabs(std::fabs(x) - kSizes[static_cast<std::size_t>(best)]);
    const double then = std::fabs(std::fabs(x) - kSizes[static_cast<std::size_t>(code)]);
    if (then < now || (then == now && code % 2 == 0)) best = code;
  }
  if (std::isinf(x)) best = 7;
  return best + (std::signbit(x) && !(best == 0 && plain_zero) ? 8 : 0);
}

void store_e2m1(const Tensor& t, std::int64_t at, int code) {
  auto* const pair = static_cast<std::uint8_t*>(t.data) + at / 2;
  const int other = at % 2 == 0 ? *pair & 0xf0 : *pair & 0x0f;
  *pair = static_cast<std::uint8_t>(other | (at % 2 == 0 ? code : code << 4));
}

void store_e4m3(const Tensor& t, std::int64_t at, double value) {
  static_cast<std::uint8_t*>(t.data)[at] = encode_e4m3(value);
}

/// A row's place in a cache and in its scales; outside pages, `page` is -1.
struct Slot {
  std::int64_t page = -1, row = 0, head = 0;
  std::int64_t in(const Tensor& t) const {
    return page < 0 ? offset(t, row, head) : offset(t, page, row, head);
  }
};

// A row of a head in groups: each with the scale that makes its largest element 6.
void store_groups(const Format& kv, const Vector& row, std::int64_t dim, double global,
                  const Tensor& cache, std::int64_t at, const Tensor& scales,
                  std::int64_t scales_at) {
  const std::int64_t step = scales.stride[static_cast<std::size_t>(scales.rank - 1)];
  for (std::int64_t begin = 0; begin < dim; begin += kv.group) {
    const double largest = largest_of(row, begin, begin + kv.group);
    const bool tensor = kv.scale == Scale::GroupTensor;
    double scale = divided(tensor ? std::fabs(divided(largest, global)) : largest, 6);
    if (kv.rounded) scale = std::isnan(scale) ? scale : std::clamp(scale, 0x1p-9, kLargestE4M3);
    const std::int64_t place = scales_at + begin / kv.group * step;
    store_e4m3(scales, place, scale);
    const double stored = load(scales, place);
    for (std::int64_t d = begin; d < begin + kv.group; ++d) {
      const double x = tensor ? static_cast<double>(divided(row[d], global)) : row[d];
      int code = nearest_e2m1(divided(x, stored), kv.rounded);
      if (std::isnan(stored) || stored == 0) code = 0;
      store_e2m1(cache, at + d, code);
    }
  }
}

double given_scale(const Format& kv, const Tensor& scales, const Slot& slot) {
  switch (kv.scale) {
    case Scale::Tensor:
      return load(scales, 0);
    case Scale::Head:
      return load(scales, slot.head * scales.stride[0]);
    case Scale::Page:
      return load(scales, offset(scales, slot.page, slot.head));
    case Scale::None:
    case Scale::Token:
    case Scale::Group:
    case Scale::GroupTensor:
      break;
  }
  return 1;
}

// fp32 for each token and head: what makes the largest element 448, 1 where that is no number
// above 0.
double token_scale(const Vector& row, std::int64_t dim) {
  double largest = 0;
  for (std::int64_t d = 0; d < dim; ++d) {
    if (!std::isnan(row[d])) largest = std::max(largest, std::fabs(row[d]));
  }
  const float scale = divided(largest, kLargestE4M3);
  return scale > 0 ? static_cast<double>(scale) : 1.0;
}

// The very bits, those of a NaN too.
void copy_row(const Vector& row, std::int64_t dim, const Tensor& cache, std::int64_t at) {
  const auto bytes = [&](std::int64_t n) { return size_in_bytes(cache.dtype, n); };
  std::memcpy(static_cast<std::byte*>(cache.data) + bytes(at),
              static_cast<const std::byte*>(row.tensor.data) + bytes(row.begin),
              static_cast<std::size_t>(bytes(dim)));
}

struct Stored {
  const Tensor &rows, &cache, &scales, &global, &written_scales;
};

void store_row(const Problem& p, const Stored& s, std::int64_t from, const Slot& slot) {
  const Format kv = core::kv_format(p);
  const Vector row = row_vector(s.rows, from, slot.head);
  const std::int64_t dim = s.rows.shape[2], at = slot.in(s.cache);
  if (kv.storage == DType::E2M1) {
    const double global = kv.scale == Scale::GroupTensor ? load(s.global, 0) : 1.0;
    const Tensor& scales = s.written_scales;
    return store_groups(kv, row, dim, global, s.cache, at, scales, slot.in(scales));
  }
  double scale = given_scale(kv, s.scales, slot);
  if (kv.scale == Scale::Token) {
    scale = token_scale(row, dim);
    store(s.written_scales, slot.in(s.written_scales), scale);
  }
  if (kv.storage != DType::E4M3) return copy_row(row, dim, s.cache, at);
  for (std::int64_t d = 0; d < dim; ++d) {
    if (kv.scale == Scale::None) {
      store_e4m3(s.cache, at + d, row[d]);
    } else {
      store_e4m3(s.cache, at + d, divided(row[d], scale));
    }
  }
}

void store_both(const Problem& p, const Call& call, std::int64_t from, Slot slot) {
  const Stored keys{call.k_rows, call.k_cache, call.k_scale, call.k_global_scale,
                    call.k_scale_cache};
  const Stored values{call.v_rows, call.v_cache, call.v_scale, call.v_global_scale,
                      call.v_scale_cache};
  for (slot.head = 0; slot.head < p.attention.heads_kv; ++slot.head) {
    store_row(p, keys, from, slot);
    store_row(p, values, from, slot);
  }
}

void quantize_kv(const Problem& p, const Call& call) {
  const std::int64_t page_size = p.bounds.page_size;
  if (page_size == 0) {
    for (std::int64_t i = 0; i < call.k_rows.shape[0]; ++i) {
      store_both(p, call, i, {.page = -1, .row = i});
    }
    return;
  }
  for (std::int64_t b = 0; b < core::num_requests(call); ++b) {
    const Request r = core::read_request(p, call, b, 0);
    for (std::int64_t i = 0; i < r.seqlen_q; ++i) {
      const std::int64_t position = r.seqlen_k - r.seqlen_q + i;
      const std::int64_t page = core::read_i32(call.batch.page_table, b, position / page_size);
      store_both(p, call, r.q_begin + i, {.page = page, .row = position % page_size});
    }
  }
}

// ---- the filter of index keys ----

// A key that lies in the pages of the copy: a page, or a group of ragged rows, and a row of it.
struct Copied {
  std::int64_t page = -1;  // -1: ragged
  std::int64_t row = 0;
  std::int64_t in(const Tensor& t, std::int64_t head) const {
    return page < 0 ? offset(t, row, head) : offset(t, page, row, head);
  }
};

// At least x, in fp32.
float upwards(double x) {
  const auto nearest = static_cast<float>(x);
  return static_cast<double>(nearest) < x
             ? std::nextafter(nearest, std::numeric_limits<float>::infinity())
             : nearest;
}

// Codes of a key; adds what the bounds need of it.
class KeyCopy {
 public:
  KeyCopy(const Problem& p, const Call& call, std::int64_t head, float scale)
      : call_(call),
        head_(head),
        dim_(p.index.dim),
        rotated_(p.index.filter->rotated),
        scale_(scale) {}

  void copy(const Copied& key) {
    const Vector stored{call_.index_k, key.in(call_.index_k, head_)};
    const CodedVector row(stored, dim_, rotated_);
    broken_ = broken_ || !row.finite();
    auto* const codes =
        static_cast<std::int8_t*>(call_.index_k8_out.data) + key.in(call_.index_k8_out, head_);
    std::array<double, 16> sums{};
    double length = 0;
    for (std::int64_t d = 0; d < dim_; ++d) {
      const bool finite = std::isfinite(row[d]);
      const auto code = static_cast<double>(finite ? code_of(row[d], scale_) : 0);
      codes[d] = static_cast<std::int8_t>(code);
      const double off = row[d] - code * static_cast<double>(scale_);
      sums[static_cast<std::size_t>(d % 16)] += off * off;
      length += code * code;
      broken_ = broken_ || !finite;
    }
    double sum = 0;
    for (const double part : sums) sum += part;
    error_ = std::max(error_, sum);
    norm_ = std::max(norm_, length);
  }

  void store_bounds(std::int64_t page) const {
    const double pad = 1 + static_cast<double>(dim_ + 64) * 0x1p-52;
    const double norm = static_cast<double>(scale_) * std::sqrt(norm_) * pad;
    double error = std::sqrt(error_) * pad;
    if (rotated_) error += 0x1p-20 * (error + norm);  // more than what rotating was off
    const Tensor& bounds = call_.index_k8_bounds_out;
    store(bounds, offset(bounds, page, head_, 0), static_cast<double>(scale_));
    store(bounds, offset(bounds, page, head_, 1),
          broken_ ? kInf : static_cast<double>(upwards(error)));
    store(bounds, offset(bounds, page, head_, 2), static_cast<double>(upwards(norm)));
  }

 private:
  const Call& call_;
  std::int64_t head_, dim_;
  bool rotated_;
  float scale_;
  bool broken_ = false;
  double error_ = 0, norm_ = 0;  // squared; the norm in codes
};

// Calls visit(key) for the keys of the batch that lie in column `column` of request b's pages, or
// in group `column` of ragged rows.
template <class Visit>
void for_each_copied(const Problem& p, const Call& call, std::int64_t b, std::int64_t column,
                     const Visit& visit) {
  const std::int64_t page_size = p.bounds.page_size;
  std::int64_t k_begin = 0, count = 0;
  for (std::int64_t other = 0; other < core::num_requests(call); ++other) {
    const Request r = core::read_request(p, call, other, k_begin);
    k_begin += r.seqlen_k;
    if (page_size == 0) {
      const std::int64_t end = std::min(r.k_begin + r.seqlen_k, (column + 1) * kFilterRows);
      for (std::int64_t row = std::max(r.k_begin, column * kFilterRows); row < end; ++row)
        visit(Copied{.row = row});
      continue;
    }
    const std::int64_t keys = std::min(page_size, r.seqlen_k - column * page_size);
    const Tensor& table = call.batch.page_table;
    if (keys > 0 && core::read_i32(table, other, column) == core::read_i32(table, b, column))
      count = std::max(count, keys);
  }
  for (std::int64_t row = 0; row < count; ++row)
    visit(Copied{core::read_i32(call.batch.page_table, b, column), row});
}

void copy_page(const Problem& p, const Call& call, std::int64_t b, std::int64_t column) {
  const bool paged = p.bounds.page_size != 0;
  const std::int64_t page = paged ? core::read_i32(call.batch.page_table, b, column) : column;
  for (std::int64_t head = 0; head < p.index.heads_k; ++head) {
    double largest = 0;
    for_each_copied(p, call, b, column, [&](const Copied& key) {
      const Vector stored{call.index_k, key.in(call.index_k, head)};
      const CodedVector row(stored, p.index.dim, p.index.filter->rotated);
      for (std::int64_t d = 0; d < p.index.dim; ++d) {
        if (std::isfinite(row[d])) largest = std::max(largest, std::fabs(row[d]));
      }
    });
    KeyCopy copy(p, call, head, divided(largest, 127));
    for_each_copied(p, call, b, column, [&](const Copied& key) { copy.copy(key); });
    copy.store_bounds(page);
  }
}

void quantize_index(const Problem& p, const Call& call) {
  const std::int64_t page_size = p.bounds.page_size;
  std::int64_t k_begin = 0;
  for (std::int64_t b = 0; b < core::num_requests(call); ++b) {
    const Request r = core::read_request(p, call, b, k_begin);
    k_begin += r.seqlen_k;
    const std::int64_t first = core::first_new_key(call, b);
    if (first == r.seqlen_k) continue;
    const std::int64_t begin = page_size != 0 ? 0 : r.k_begin;
    const std::int64_t size = page_size != 0 ? page_size : kFilterRows;
    const std::int64_t end = core::ceil_div(begin + r.seqlen_k, size);
    for (std::int64_t column = (begin + first) / size; column < end; ++column)
      copy_page(p, call, b, column);
  }
}

// ---- working memory ----

std::size_t num_scores(const Problem& p) {
  const core::OpTraits traits = core::op_traits(p.op);
  if (traits.teaches) return num_loss_sums(p);
  if (traits.derives) return num_sums(p);
  if (!traits.attends || !p.outputs.out) return 0;
  const bool sparse = traits.selects || traits.lists;
  return static_cast<std::size_t>(
      sparse ? std::min(p.bounds.max_seqlen_k, p.selection.topk * p.selection.block_size)
             : p.bounds.max_seqlen_k);
}

std::size_t num_candidates(const Problem& p) {
  if (p.op == Op::MergeSelections) return static_cast<std::size_t>(p.bounds.parts * kMaxTopk);
  if (!core::op_traits(p.op).selects) return 0;
  return static_cast<std::size_t>(core::ceil_div(p.bounds.max_seqlen_k, p.selection.block_size));
}

}  // namespace

std::size_t workspace_bytes(const Problem& p) {
  return num_scores(p) * sizeof(double) + num_candidates(p) * sizeof(Candidate);
}

Scratch cut(const Problem& p, Workspace workspace) {
  static_assert(alignof(Candidate) <= alignof(double));
  double* const scores = static_cast<double*>(workspace.data);
  Candidate* const candidates = reinterpret_cast<Candidate*>(scores + num_scores(p));
  return {{scores, num_scores(p)}, {candidates, num_candidates(p)}};
}

void run(const Problem& p, const Call& call, const Scratch& scratch) {
  switch (p.op) {
    case Op::DenseAttention:
      return dense_attention(p, call, scratch);
    case Op::BlockScores:
      return block_scores(p, call);
    case Op::SelectTopk:
      return select_blocks(p, call, scratch);
    case Op::SelectBlocks:
      return select_blocks(p, call, scratch);
    case Op::SparseAttention:
      return sparse_attention(p, call, scratch);
    case Op::MsaAttention:
      return msa_attention(p, call, scratch);
    case Op::MergeStates:
      return merge_states(p, call);
    case Op::MergeSelections:
      return merge_selections(p, call, scratch);
    case Op::InvertSelection:
      return invert_selection(p, call);
    case Op::QuantizeKv:
      return quantize_kv(p, call);
    case Op::QuantizeIndex:
      return quantize_index(p, call);
    case Op::SparseAttentionBackward:
    case Op::DenseAttentionBackward:
      return attention_backward(p, call, scratch.scores);
    case Op::IndexLoss:
      return index_loss(p, call, scratch.scores);
  }
}

}  // namespace msa::reference
