// SPDX-License-Identifier: MIT
// Building the tensors of a case; values.cpp says what vectors hold, block_lists.cpp what lists
// hold.
#include "testkit/generate.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <limits>
#include <numeric>
#include <utility>

#include "testkit/block_lists.h"
#include "testkit/number.h"
#include "testkit/random.h"
#include "testkit/requests.h"
#include "testkit/values.h"

namespace msa::testkit {

namespace {

constexpr std::uint64_t kPageStream = 300;
constexpr std::uint64_t kScoreStream = 301;
constexpr std::uint64_t kPartStream = 302;
constexpr std::uint64_t kPoisonStream = 303;
constexpr std::int64_t kParallelElements = 1 << 16;  // below, threads cost more than they bring
constexpr std::size_t kChecksummed = std::size_t{64}
                                     << 20;  // inputs above are not compared byte for byte

constexpr std::array<std::int32_t, 4> kGarbage{std::numeric_limits<std::int32_t>::min(),
                                               std::numeric_limits<std::int32_t>::max(), -2,
                                               1 << 30};

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();

std::uint64_t checksum(const Buffer& buffer) {
  if (buffer.sparse() || buffer.bytes() > kChecksummed) return 0;
  std::uint64_t sum = buffer.bytes() + 1;
  std::size_t i = 0;
  for (; i + 8 <= buffer.bytes(); i += 8) {
    std::uint64_t word = 0;
    std::memcpy(&word, buffer.data() + i, 8);
    sum = (sum ^ word) * 0x9e3779b97f4a7c15u;
    sum ^= sum >> 29;
  }
  for (; i < buffer.bytes(); ++i)
    sum = (sum ^ std::to_integer<std::uint64_t>(buffer.data()[i])) * 31;
  return sum | 1;
}

bool reads_attention_keys(Op op) {
  return op == Op::DenseAttention || op == Op::SparseAttention || op == Op::MsaAttention;
}
bool reads_index_keys(Op op) {
  return op == Op::BlockScores || op == Op::SelectBlocks || op == Op::MsaAttention;
}
bool is_merge(Op op) { return op == Op::MergeStates || op == Op::MergeSelections; }

std::int64_t offset_of(const Lengths& r) {
  return r.q_offset.value_or(r.key_offset + r.seqlen_k - r.seqlen_q);
}

/// A shard's total where the case gives none but another request does: long enough for every query.
std::int64_t total_of(const Case& spec, const Lengths& r) {
  const std::int64_t keys = r.key_offset + r.seqlen_k;
  return r.total_k.value_or(spec.causal ? std::max(keys, offset_of(r) + r.seqlen_q) : keys);
}

}  // namespace

/// Makes the tensors of one Data, one group a function.
class Builder {
 public:
  Builder(const Case& spec, Data& data) : spec_(spec), data_(data), o_(data.operands_) {}

  void build() {
    data_.problem_ = problem_of(spec_);
    if (!is_merge(spec_.op)) make_batch();
    if (reads_index_keys(spec_.op)) make_index();
    if (spec_.op == Op::SelectTopk) make_scores();
    if (spec_.op == Op::SparseAttention || spec_.op == Op::InvertSelection) make_block_ids();
    if (reads_attention_keys(spec_.op)) make_attention();
    if (spec_.op == Op::MergeStates) make_part_states();
    if (spec_.op == Op::MergeSelections) make_part_selections();
    make_outputs();
    data_.planted_ = corrupt(spec_, data_.problem_, o_);
  }

 private:
  using Shape = std::vector<std::int64_t>;

  bool hostile() const { return spec_.hostile != Hostile::None; }
  /// What inputs hold where nobody wrote: NaN, or numbers so large that a leak shows.
  int background() const { return hostile() ? 0xff : 0x47; }

  // ---- memory ----

  /// Strides for `shape` with dimensions in `order` (outermost first), as the case wants them.
  Shape strides_for(const Shape& shape, const std::vector<int>& order, bool unit_inner) const {
    Shape strides(shape.size());
    std::int64_t step = spec_.strides == Strides::Padded && !unit_inner ? 2 : 1;
    std::int64_t gap = 3;
    for (std::size_t n = order.size(); n-- > 0;) {
      const int dim = order[n];
      if (spec_.strides == Strides::Huge && n == 0 && shape[dim] > 1) {
        step = std::max(step, ((std::int64_t{1} << 31) + 4096) / (shape[dim] - 1) + 1);
      }
      strides[dim] = step;
      step *= std::max<std::int64_t>(shape[dim], 1);
      if (spec_.strides == Strides::Padded) {
        step += gap;
        gap = 1;
      }
    }
    return strides;
  }

  static std::int64_t extent(const Shape& shape, const Shape& strides) {
    std::int64_t elements = 1;
    for (std::size_t d = 0; d < shape.size(); ++d) {
      if (shape[d] == 0) return 0;
      elements += (shape[d] - 1) * strides[d];
    }
    return elements;
  }

  Tensor make(const std::string& name, bool output, DType dtype, const Shape& shape,
              const Shape& strides) {
    const std::size_t item = static_cast<std::size_t>(item_bits(dtype) / 8);
    const auto bytes = static_cast<std::size_t>(extent(shape, strides)) * item;
    const bool sparse = spec_.strides == Strides::Huge || (spec_.pool > 0 && bytes > (1u << 30));
    const std::size_t misalign = spec_.strides == Strides::Padded ? item : 0;
    Buffer& buffer = data_.buffers_.emplace_back(name, bytes, misalign, sparse);
    Tensor tensor{.data = buffer.data(), .dtype = dtype, .rank = static_cast<int>(shape.size())};
    std::copy(shape.begin(), shape.end(), tensor.shape.begin());
    std::copy(strides.begin(), strides.end(), tensor.stride.begin());
    data_.views_.push_back(output ? tensor : Tensor{});
    return tensor;
  }

  Tensor make_input(const std::string& name, DType dtype, const Shape& shape,
                    const std::vector<int>& order, bool unit_inner = true) {
    const Shape strides = strides_for(shape, order, unit_inner);
    Tensor tensor = make(name, false, dtype, shape, strides);
    data_.buffers_.back().fill(background());
    return tensor;
  }

  Tensor make_output(const std::string& name, DType dtype, const Shape& shape,
                     const std::vector<int>& order, bool unit_inner = true) {
    return make(name, true, dtype, shape, strides_for(shape, order, unit_inner));
  }

  /// Order of [T, H, x] in memory.
  std::vector<int> row_order() const {
    if (spec_.strides == Strides::Transposed) return {1, 0, 2};
    return {0, 1, 2};
  }
  std::vector<int> ids_order() const {
    if (spec_.ids_head_major) return {1, 0, 2};
    return {0, 1, 2};
  }
  std::vector<int> lse_order() const {
    if (spec_.strides == Strides::Transposed) return {1, 0};
    return {0, 1};
  }

  /// Index tensors of the batch are small and dense.
  Tensor make_ints(const std::string& name, const Shape& shape,
                   const std::vector<std::int32_t>& values) {
    Shape strides(shape.size(), 1);
    for (std::size_t d = shape.size() - 1; d-- > 0;) strides[d] = strides[d + 1] * shape[d + 1];
    Tensor tensor = make(name, false, DType::I32, shape, strides);
    if (!values.empty())
      std::memcpy(tensor.data, values.data(), values.size() * sizeof(std::int32_t));
    return tensor;
  }

  // ---- the batch ----

  bool keyed() const { return reads_attention_keys(spec_.op) || reads_index_keys(spec_.op); }

  void make_batch() {
    const std::int64_t batch = spec_.requests();
    std::vector<std::int32_t> starts{0}, keys, offsets, shards, totals;
    bool offset_given = false, shard_given = false, total_given = false;
    for (const Lengths& r : spec_.lengths) {
      starts.push_back(starts.back() + static_cast<std::int32_t>(r.seqlen_q));
      keys.push_back(static_cast<std::int32_t>(r.seqlen_k));
      offsets.push_back(static_cast<std::int32_t>(offset_of(r)));
      shards.push_back(static_cast<std::int32_t>(r.key_offset));
      totals.push_back(static_cast<std::int32_t>(total_of(spec_, r)));
      offset_given |= r.q_offset.has_value();
      shard_given |= r.key_offset != 0;
      total_given |= r.total_k.has_value();
      longest_ = std::max(longest_, r.key_offset + r.seqlen_k);
      longest_ = std::max(longest_, std::max<std::int64_t>(offset_of(r), 0) + r.seqlen_q);
    }
    o_.batch.cu_seqlens_q = make_ints("batch.cu_seqlens_q", {batch + 1}, starts);
    o_.batch.seqlens_k = make_ints("batch.seqlens_k", {batch}, keys);
    if (offset_given) o_.batch.q_offsets = make_ints("batch.q_offsets", {batch}, offsets);
    if (shard_given) o_.batch.key_offsets = make_ints("batch.key_offsets", {batch}, shards);
    if (total_given) o_.batch.total_seqlens_k = make_ints("batch.total_seqlens_k", {batch}, totals);
    if (keyed()) spec_.page_size > 0 ? make_page_table() : make_key_starts();
    requests_ = requests_of(data_.problem_, o_.batch);
  }

  void make_page_table() {
    const std::int64_t batch = spec_.requests();
    std::int64_t used = 0, width = 0;
    for (const Lengths& r : spec_.lengths) {
      const std::int64_t pages = ceil_div(r.seqlen_k, spec_.page_size);
      used += pages;
      width = std::max(width, pages);
    }
    key_extent_ = spec_.pool > 0 ? spec_.pool : used + 3;
    if (key_extent_ < used) {
      throw CaseError("pool: expected at least " + std::to_string(used) + " pages, got " +
                      std::to_string(spec_.pool));
    }
    // Spread over the whole pool, the last page among them, in random order.
    std::vector<std::int32_t> pages(static_cast<std::size_t>(used));
    for (std::int64_t i = 0; i < used; ++i) {
      pages[i] = static_cast<std::int32_t>(key_extent_ - 1 - i * key_extent_ / used);
    }
    const Stream64 random(spec_.seed, kPageStream);
    for (std::int64_t n = used; n > 1; --n) std::swap(pages[n - 1], pages[random.below(n, n)]);
    width += 2;
    std::vector<std::int32_t> table(static_cast<std::size_t>(batch * width));
    for (std::size_t i = 0; i < table.size(); ++i) table[i] = kGarbage[i % kGarbage.size()];
    std::size_t next = 0;
    for (std::int64_t b = 0; b < batch; ++b) {
      const std::int64_t count = ceil_div(spec_.lengths[b].seqlen_k, spec_.page_size);
      for (std::int64_t i = 0; i < count; ++i) table[b * width + i] = pages[next++];
    }
    o_.batch.page_table = make_ints("batch.page_table", {batch, width}, table);
  }

  void make_key_starts() {
    std::int64_t total = 0;
    for (const Lengths& r : spec_.lengths) total += r.seqlen_k;
    key_extent_ = total;
    if (spec_.pool == 0) return;
    if (spec_.pool < total) {
      throw CaseError("pool: expected at least " + std::to_string(total) + " rows, got " +
                      std::to_string(spec_.pool));
    }
    key_extent_ = spec_.pool;
    const std::int64_t batch = spec_.requests();
    std::vector<std::int32_t> starts;
    std::int64_t before = 0;
    for (std::int64_t b = 0; b < batch; ++b) {
      starts.push_back(static_cast<std::int32_t>(before + (spec_.pool - total) * (b + 1) / batch));
      before += spec_.lengths[b].seqlen_k;
    }
    starts.push_back(static_cast<std::int32_t>(spec_.pool));
    o_.batch.cu_seqlens_k = make_ints("batch.cu_seqlens_k", {batch + 1}, starts);
  }

  // ---- vectors ----

  /// A tensor of key rows, [N, H, D] or [P, S, H, D].
  Tensor make_keys(const std::string& name, DType dtype, std::int64_t heads, std::int64_t dim) {
    const bool paged = spec_.page_size > 0;
    const Shape shape =
        paged ? Shape{key_extent_, spec_.page_size, heads, dim} : Shape{key_extent_, heads, dim};
    std::vector<int> order = paged ? std::vector<int>{0, 1, 2, 3} : std::vector<int>{0, 1, 2};
    if (spec_.layout == Layout::HeadMajor) {
      order = paged ? std::vector<int>{0, 2, 1, 3} : std::vector<int>{1, 0, 2};
    }
    if (spec_.layout == Layout::SlotMajor && paged) order = {1, 0, 2, 3};
    if (spec_.strides != Strides::Broadcast) return make_input(name, dtype, shape, order);
    Shape one = shape;
    one[one.size() - 2] = 1;
    Shape strides = strides_for(one, order, true);
    strides[strides.size() - 2] = 0;
    Tensor tensor = make(name, false, dtype, shape, strides);
    data_.buffers_.back().fill(background());
    return tensor;
  }

  template <class Fn>
  void for_rows(std::int64_t count, std::int64_t elements_of_row, const Fn& fn) const {
#pragma omp parallel for schedule(static) if (count * elements_of_row > kParallelElements)
    for (std::int64_t i = 0; i < count; ++i) fn(i);
  }

  void fill_queries(const Tensor& q, Role role) {
    const std::int64_t heads = q.shape[1], dim = q.shape[2];
    const Values values(spec_, role, dim, heads, longest_);
    const Stream64 poison(spec_.seed, kPoisonStream + static_cast<std::uint64_t>(role));
    const bool spoil = role == Role::Query ? spec_.hostile == Hostile::NanQ : false;
    for (const Request& r : requests_) {
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

  /// One element (or all of them) becomes NaN or an infinity.
  static void spoil_row(const Stream64& random, std::uint64_t counter, std::vector<float>& row) {
    const std::uint64_t bits = mix(random.bits(counter));
    const float value = std::array<float, 3>{kNan, kInf, -kInf}[bits % 3];
    if ((bits >> 8) % 4 == 0) {
      std::fill(row.begin(), row.end(), value);
    } else {
      row[(bits >> 16) % row.size()] = value;
    }
  }

  using Used = std::vector<std::vector<std::uint8_t>>;  // [requests][heads * keys]; empty: all

  void fill_keys(const Tensor& keys, Role role, const Used& used, bool spoil) {
    const bool paged = spec_.page_size > 0;
    const std::int64_t heads = keys.shape[paged ? 2 : 1], dim = keys.shape[paged ? 3 : 2];
    const bool one_head = spec_.strides == Strides::Broadcast;
    const Values values(spec_, role, dim, one_head ? 1 : heads, longest_);
    const Stream64 poison(spec_.seed, kPoisonStream + static_cast<std::uint64_t>(role));
    const std::int64_t rarely = std::max<std::int64_t>(2, 3 * spec_.block_size / 2);
    for (const Request& r : requests_) {
      for_rows(r.seqlen_k, heads * dim, [&](std::int64_t key) {
        std::vector<float> row(static_cast<std::size_t>(dim));
        for (std::int64_t h = 0; h < (one_head ? 1 : heads); ++h) {
          if (!used.empty() && !is_used(used, r, key, h, heads, one_head)) continue;
          values.row(r.index, r.key_offset + key, h, row.data());
          const std::uint64_t counter = (static_cast<std::uint64_t>(r.index) << 36) +
                                        static_cast<std::uint64_t>(key * heads + h);
          if (spoil && poison.below(counter, rarely) == 0) spoil_row(poison, counter, row);
          store(row.data(), dim, keys.dtype, key_row(keys, o_.batch, r, key, h));
        }
      });
    }
  }

  static bool is_used(const Used& used, const Request& r, std::int64_t key, std::int64_t head,
                      std::int64_t heads, bool one_head) {
    const std::vector<std::uint8_t>& marks = used[r.index];
    if (!one_head) return marks[head * r.seqlen_k + key] != 0;
    for (std::int64_t h = 0; h < heads; ++h) {
      if (marks[h * r.seqlen_k + key] != 0) return true;
    }
    return false;
  }

  /// Keys that some query sees, of every head.
  Used seen_keys(std::int64_t heads) const {
    Used used;
    for (const Request& r : requests_) {
      auto& marks = used.emplace_back(static_cast<std::size_t>(heads * r.seqlen_k), 0);
      const std::int64_t seen = r.seqlen_q > 0 ? r.visible_keys(r.seqlen_q - 1) : 0;
      for (std::int64_t h = 0; h < heads; ++h) {
        std::fill_n(marks.begin() + h * r.seqlen_k, seen, std::uint8_t{1});
      }
    }
    return used;
  }

  /// Keys that some query both lists and sees.
  Used listed_keys(const Tensor& ids) const {
    Used used;
    const std::int64_t heads = ids.shape[1];
    for (const Request& r : requests_) {
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

  void make_index() {
    const DType dtype = spec_.index_type();
    o_.index_q = make_input("index_q", dtype,
                            {spec_.rows(), spec_.heads_index(), spec_.dim_index()}, row_order());
    o_.index_k = make_keys("index_k", dtype, spec_.index_heads_k, spec_.dim_index());
    fill_queries(o_.index_q, Role::IndexQuery);
    const Used used = hostile() ? seen_keys(spec_.index_heads_k) : Used{};
    fill_keys(o_.index_k, Role::IndexKey, used, spec_.hostile == Hostile::NanIndex);
  }

  void make_attention() {
    const std::int64_t heads = spec_.heads_kv, dim = spec_.head_dim, dim_v = spec_.dim_v();
    o_.q = make_input("q", spec_.dtype, {spec_.rows(), spec_.heads_q, dim}, row_order());
    fill_queries(o_.q, Role::Query);
    if (spec_.layout == Layout::Packed) {
      o_.k = make_keys("k and v", spec_.dtype, heads, dim + dim_v);
      o_.k.shape[o_.k.rank - 1] = dim;
      o_.v = o_.k;
      o_.v.shape[o_.v.rank - 1] = dim_v;
      o_.v.data = static_cast<std::byte*>(o_.v.data) + dim * item_bits(spec_.dtype) / 8;
    } else {
      o_.k = make_keys("k", spec_.dtype, heads, dim);
      o_.v = make_keys("v", spec_.dtype, heads, dim_v);
    }
    Used used;
    if (hostile()) {
      if (spec_.op == Op::SparseAttention) {
        used = listed_keys(o_.block_ids_in);
      } else {
        used = spec_.op == Op::MsaAttention ? selected_keys() : seen_keys(heads);
      }
    }
    fill_keys(o_.k, Role::Key, used, spec_.hostile == Hostile::NanK);
    fill_keys(o_.v, Role::Value, used, spec_.hostile == Hostile::NanV);
  }

  /// What the oracle selects, marked.
  Used selected_keys() const {
    Operands select;
    select.index_q = o_.index_q;
    select.index_k = o_.index_k;
    select.batch = o_.batch;
    const std::int64_t rows = spec_.rows(), heads = spec_.heads_index();
    std::vector<std::int32_t> ids(static_cast<std::size_t>(rows * heads * spec_.topk), -1);
    select.block_ids = make_tensor(ids.data(), DType::I32, {rows, heads, spec_.topk});
    Settings settings = data_.settings();
    settings.options.backend = "reference";
    run_once(Op::SelectBlocks, select, settings);
    return listed_keys(select.block_ids);
  }

  // ---- ids, scores, parts ----

  void make_block_ids() {
    const std::int64_t heads = spec_.heads_kv, topk = spec_.topk;
    o_.block_ids_in =
        make_input("block_ids", DType::I32, {spec_.rows(), heads, topk}, ids_order(), false);
    const bool garbage = hostile() || spec_.partial_lists;
    for (const Request& r : requests_) {
      for_rows(r.seqlen_q, heads * topk * 8, [&](std::int64_t i) {
        for (std::int64_t h = 0; h < heads; ++h) {
          const std::vector<std::int32_t> list = block_list(spec_, r, i, h);
          const auto length = static_cast<std::int64_t>(list.size());
          for (std::int64_t s = 0; s < topk; ++s) {
            std::int32_t id = s < length ? list[s] : -1;
            if (s > length && garbage) id = kGarbage[s % kGarbage.size()];
            std::memcpy(address(o_.block_ids_in, r.q_begin + i, h, s), &id, sizeof(id));
          }
        }
      });
    }
  }

  /// Room for the planned bound, and with slack for two more.
  std::int64_t score_blocks() const {
    std::int64_t longest = 0;
    for (const Lengths& r : spec_.lengths) longest = std::max(longest, r.seqlen_k);
    return ceil_div(longest + spec_.slack, spec_.block_size) + (spec_.slack > 0 ? 2 : 0);
  }

  float score(const Stream64& random, std::uint64_t counter) const {
    if (spec_.hostile == Hostile::NanIndex && random.below(~counter, 5) == 0) {
      return std::array<float, 6>{kNan, -kNan, kInf, -kInf, -0.0f, 0.0f}[random.below(counter, 6)];
    }
    switch (spec_.regime) {
      case Regime::Integers:
        return static_cast<float>(random.below(counter, 7) - 3);
      case Regime::Ties:
      case Regime::OneHot:
        return 1.0f;
      case Regime::Near:
        return 1.0f + static_cast<float>(random.below(counter, 64)) * 0x1p-23f;
      case Regime::Low:
        return -6e4f - static_cast<float>(random.below(counter, 3));
      default:
        return random.normal(counter);
    }
  }

  void make_scores() {
    const std::int64_t heads = spec_.heads_index(), blocks = score_blocks();
    o_.scores_in =
        make_input("scores", DType::F32, {spec_.rows(), heads, blocks}, row_order(), false);
    const Stream64 random(spec_.seed, kScoreStream);
    for (const Request& r : requests_) {
      for_rows(r.seqlen_q, heads * blocks, [&](std::int64_t i) {
        for (std::int64_t h = 0; h < heads; ++h) {
          // Blocks that the row does not see keep the background: NaN or a large score.
          for (std::int64_t block = 0; block < r.visible_blocks(i); ++block) {
            const std::int64_t row = r.q_begin + i;
            const float value = score(random, ((row * heads) + h) * (blocks + 1) + block);
            std::memcpy(address(o_.scores_in, row, h, block), &value, sizeof(value));
          }
        }
      });
    }
  }

  void make_part_states() {
    const std::int64_t rows = spec_.rows(), heads = spec_.heads_q, dim = spec_.dim_v();
    const Stream64 random(spec_.seed, kPartStream);
    for (std::int64_t part = 0; part < spec_.parts; ++part) {
      const std::string number = "[" + std::to_string(part) + "]";
      o_.part_outs.push_back(
          make_input("outs" + number, spec_.dtype, {rows, heads, dim}, row_order()));
      o_.part_lses.push_back(
          make_input("lses" + number, DType::F32, {rows, heads}, lse_order(), false));
      for_rows(rows, heads * dim, [&](std::int64_t i) {
        std::vector<float> row(static_cast<std::size_t>(dim));
        for (std::int64_t h = 0; h < heads; ++h) {
          const std::uint64_t counter = ((part * rows + i) * heads + h) * (dim + 2);
          float lse = 4.0f * random.normal(counter);
          if (spec_.regime == Regime::Low) lse -= 6e4f;
          const std::int64_t draw = random.below(counter + 1, 16);
          if (draw < 4) lse = -kInf;  // an empty part; what its row holds stays background
          if (spec_.hostile == Hostile::NanQ && draw == 4) lse = kNan;
          if (spec_.hostile == Hostile::NanQ && draw == 5) lse = kInf;
          std::memcpy(address(o_.part_lses[part], i, h), &lse, sizeof(lse));
          if (draw < 4) continue;
          for (std::int64_t d = 0; d < dim; ++d) row[d] = random.normal(counter + 2 + d);
          if (spec_.hostile == Hostile::NanV && draw == 6) spoil_row(random, counter, row);
          store(row.data(), dim, spec_.dtype, address(o_.part_outs[part], i, h));
        }
      });
    }
  }

  /// Candidates of one row: part p holds ids that are p modulo the number of parts.
  void make_part_selections() {
    const std::int64_t rows = spec_.rows(), heads = spec_.heads_kv, width = spec_.topk;
    const Stream64 random(spec_.seed, kPartStream);
    for (std::int64_t part = 0; part < spec_.parts; ++part) {
      const std::string number = "[" + std::to_string(part) + "]";
      o_.part_ids.push_back(make_input("block_ids_parts" + number, DType::I32, {rows, heads, width},
                                       ids_order(), false));
      o_.part_scores.push_back(make_input("chosen_scores_parts" + number, DType::F32,
                                          {rows, heads, width}, ids_order(), false));
      for_rows(rows, heads * width, [&](std::int64_t i) {
        for (std::int64_t h = 0; h < heads; ++h) {
          const std::uint64_t counter = ((part * rows + i) * heads + h) * (2 * width + 2);
          const std::int64_t length = random.below(counter, width + 1);
          std::int64_t step = 0;
          for (std::int64_t s = 0; s < width; ++s) {
            step += 1 + random.below(counter + 1 + s, 3);
            std::int32_t id =
                s < length ? static_cast<std::int32_t>(step * spec_.parts + part) : -1;
            if (s > length) id = kGarbage[s % kGarbage.size()];
            float value = s < length ? score(random, counter + 1 + width + s) : kNan;
            // The first part's first block is forced, as block 0 of a sequence may be.
            if (part == 0 && s == 0 && length > 0 && spec_.init_blocks > 0) value = kInf;
            std::memcpy(address(o_.part_ids[part], i, h, s), &id, sizeof(id));
            std::memcpy(address(o_.part_scores[part], i, h, s), &value, sizeof(value));
          }
        }
      });
    }
  }

  // ---- outputs ----

  void make_selection_outputs(std::int64_t heads) {
    const Shape shape{spec_.rows(), heads, spec_.topk};
    o_.block_ids = make_output("block_ids", DType::I32, shape, ids_order(), false);
    if (spec_.chosen_scores && spec_.op != Op::MsaAttention) {
      o_.chosen_scores = make_output("chosen_scores", DType::F32, shape, ids_order(), false);
    }
  }

  void make_outputs() {
    const std::int64_t rows = spec_.rows(), heads = spec_.heads_q;
    const Op op = spec_.op;
    const bool state = reads_attention_keys(op) || op == Op::MergeStates;
    if (state && (spec_.output || op != Op::DenseAttention)) {
      o_.out = make_output("out", spec_.out_type(), {rows, heads, spec_.dim_v()}, row_order());
    }
    if (state && spec_.lse) {
      o_.lse = make_output("lse", DType::F32, {rows, heads}, lse_order(), false);
    }
    if (op == Op::DenseAttention && spec_.block_max) {
      o_.block_max =
          make_output("block_max", DType::F32, {rows, heads, score_blocks()}, row_order(), false);
    }
    if (op == Op::BlockScores) {
      const Shape shape{rows, spec_.heads_index(), score_blocks()};
      o_.scores = make_output("scores", DType::F32, shape, row_order(), false);
    }
    if (op == Op::SelectTopk || op == Op::SelectBlocks) make_selection_outputs(spec_.heads_index());
    if (op == Op::MergeSelections || (op == Op::MsaAttention && spec_.ids)) {
      make_selection_outputs(spec_.heads_kv);
    }
    if (op == Op::InvertSelection) {
      std::int64_t blocks = 0;
      for (const Request& r : requests_) blocks += ceil_div(r.seqlen_k, spec_.block_size);
      const std::int64_t entries = rows * spec_.topk + (spec_.slack > 0 ? 5 : 0);
      const std::int64_t extra = spec_.slack > 0 ? 2 : 0;
      const Shape lists{spec_.heads_kv, entries};
      o_.row_ptr =
          make_output("row_ptr", DType::I32, {spec_.heads_kv, blocks + 1 + extra}, {0, 1}, false);
      o_.q_indices = make_output("q_indices", DType::I32, lists, {0, 1}, false);
      o_.q_slots = make_output("q_slots", DType::I32, lists, {0, 1}, false);
    }
  }

  const Case& spec_;
  Data& data_;
  Operands& o_;
  std::vector<Request> requests_{};
  std::int64_t key_extent_ = 0;  // rows of ragged keys, or pages
  std::int64_t longest_ = 0;     // one past the largest position
};

Problem problem_of(const Case& spec) {
  Problem p;
  p.op = spec.op;
  p.attention.q.storage = spec.dtype;
  p.index.q.storage = spec.index_type();
  p.outputs.dtype = spec.out_type();
  p.bounds.batch = spec.requests() + (spec.slack > 0 ? 1 : 0);
  p.bounds.total_q = spec.rows() + spec.slack;
  for (const Lengths& r : spec.lengths) {
    p.bounds.max_seqlen_q = std::max(p.bounds.max_seqlen_q, r.seqlen_q);
    p.bounds.max_seqlen_k = std::max(p.bounds.max_seqlen_k, r.seqlen_k);
  }
  p.bounds.max_seqlen_q += spec.slack;
  p.bounds.max_seqlen_k += spec.slack;
  p.bounds.page_size = spec.page_size;
  p.attention.heads_q = spec.heads_q;
  p.attention.heads_kv = spec.heads_kv;
  p.attention.head_dim = spec.head_dim;
  p.attention.value_dim = spec.dim_v();
  p.index.heads = spec.heads_index();
  p.index.heads_k = spec.index_heads_k;
  p.index.dim = spec.dim_index();
  p.selection.block_size = spec.block_size;
  p.selection.topk = spec.topk;
  p.selection.local_blocks = spec.local_blocks;
  p.selection.init_blocks = spec.init_blocks;
  p.causal = spec.causal;
  p.attention.softmax_scale = spec.softmax_scale;
  p.outputs.out = spec.output;
  p.outputs.lse = spec.lse;
  p.outputs.block_max = spec.block_max;
  p.outputs.chosen_scores = spec.chosen_scores;
  p.bounds.parts = is_merge(spec.op) ? spec.parts : 0;
  p.options.batch_invariant = spec.batch_invariant;
  return p;
}

Data::Data(const Case& spec) : spec_(spec) {
  buffers_.reserve(32 + 2 * static_cast<std::size_t>(std::max<std::int64_t>(spec.parts, 0)));
  Builder(spec_, *this).build();
  call_ = operands_;
  if (spec_.in_place && spec_.op == Op::MergeStates && spec_.parts > 0) {
    call_.part_outs[0] = call_.out;
    if (call_.lse) call_.part_lses[0] = call_.lse;
  }
  for (std::size_t i = 0; i < buffers_.size(); ++i) {
    sums_.push_back(views_[i] ? 0 : checksum(buffers_[i]));
  }
}

Settings Data::settings() const {
  Settings settings;
  settings.block_size = spec_.block_size;
  settings.topk = spec_.topk;
  settings.local_blocks = spec_.local_blocks;
  settings.init_blocks = spec_.init_blocks;
  settings.causal = spec_.causal;
  settings.softmax_scale = spec_.softmax_scale;
  settings.options.batch_invariant = spec_.batch_invariant;
  return settings;
}

Operands Data::prepare() {
  for (std::size_t i = 0; i < buffers_.size(); ++i) {
    if (views_[i]) buffers_[i].fill(Buffer::kSentinel);
  }
  const bool in_place = !call_.part_outs.empty() && call_.part_outs[0].data == call_.out.data;
  if (!in_place) return call_;
  const auto copy_row = [](const Tensor& from, const Tensor& to, std::int64_t i, std::int64_t h,
                           std::int64_t count) {
    const auto bytes = static_cast<std::size_t>(count * item_bits(from.dtype) / 8);
    std::memcpy(address(to, i, h), address(from, i, h), bytes);
  };
  for (std::int64_t i = 0; i < spec_.rows(); ++i) {
    for (std::int64_t h = 0; h < spec_.heads_q; ++h) {
      copy_row(operands_.part_outs[0], call_.out, i, h, spec_.dim_v());
      if (call_.lse) copy_row(operands_.part_lses[0], call_.lse, i, h, 1);
    }
  }
  return call_;
}

namespace {

/// First byte of the buffer that is neither an element of the tensor nor a sentinel; the buffer's
/// size where none is.
std::size_t first_changed(const Buffer& buffer, const Tensor& view, bool ignore_elements) {
  std::vector<bool> element(buffer.bytes(), false);
  const std::size_t item = static_cast<std::size_t>(item_bits(view.dtype) / 8);
  std::array<std::int64_t, kMaxRank> shape{1, 1, 1, 1};
  std::copy_n(view.shape.begin(), view.rank, shape.begin());
  for (std::int64_t a = 0; ignore_elements && a < shape[0]; ++a) {
    for (std::int64_t b = 0; b < shape[1]; ++b) {
      for (std::int64_t c = 0; c < shape[2]; ++c) {
        const auto start = static_cast<std::size_t>(address(view, a, b, c) - buffer.data());
        std::fill_n(element.begin() + static_cast<std::ptrdiff_t>(start), item, true);
      }
    }
  }
  for (std::size_t i = 0; i < buffer.bytes(); ++i) {
    if (!element[i] && std::to_integer<int>(buffer.data()[i]) != Buffer::kSentinel) return i;
  }
  return buffer.bytes();
}

bool is_dense(const Buffer& buffer, const Tensor& view) {
  std::int64_t elements = 1;
  for (int d = 0; d < view.rank; ++d) elements *= view.shape[d];
  return static_cast<std::size_t>(elements * item_bits(view.dtype) / 8) == buffer.bytes();
}

}  // namespace

std::string Data::damage() const {
  for (std::size_t i = 0; i < buffers_.size(); ++i) {
    const Buffer& buffer = buffers_[i];
    if (!buffer.guards_intact()) return buffer.name() + ": the red zone around it was written";
    if (!views_[i]) {
      if (sums_[i] != 0 && checksum(buffer) != sums_[i])
        return buffer.name() + ": an input was written";
      continue;
    }
    if (buffer.sparse() || is_dense(buffer, views_[i])) continue;
    const std::size_t byte = first_changed(buffer, views_[i], true);
    if (byte != buffer.bytes()) {
      return buffer.name() + ": byte " + std::to_string(byte) + " between its rows was written";
    }
  }
  return "";
}

std::string Data::touched() const {
  const bool in_place = !call_.part_outs.empty() && call_.part_outs[0].data == call_.out.data;
  for (std::size_t i = 0; i < buffers_.size(); ++i) {
    if (!views_[i] || buffers_[i].sparse() || in_place) continue;
    const std::size_t byte = first_changed(buffers_[i], views_[i], false);
    if (byte != buffers_[i].bytes()) {
      return buffers_[i].name() + ": byte " + std::to_string(byte) + " was written";
    }
  }
  return damage();
}

std::size_t Data::input_bytes() const {
  std::size_t bytes = 0;
  for (std::size_t i = 0; i < buffers_.size(); ++i) bytes += views_[i] ? 0 : buffers_[i].bytes();
  return bytes;
}

double blocks_per_8(const Tensor& block_ids, const Batch& batch) {
  constexpr std::int64_t kNeighbours = 8;
  const std::int64_t requests = batch.cu_seqlens_q.shape[0] - 1;
  const std::int64_t heads = block_ids.shape[1], topk = block_ids.shape[2];
  std::int64_t groups = 0, distinct = 0;
  for (std::int64_t b = 0; b < requests; ++b) {
    const std::int64_t begin = int_at(batch.cu_seqlens_q, b),
                       end = int_at(batch.cu_seqlens_q, b + 1);
    const std::int64_t whole = (end - begin) / kNeighbours;
    groups += whole * heads;
#pragma omp parallel for schedule(static) reduction(+ : distinct) if (whole > 64)
    for (std::int64_t g = 0; g < whole; ++g) {
      std::vector<std::int32_t> ids;
      for (std::int64_t h = 0; h < heads; ++h) {
        ids.clear();
        for (std::int64_t i = 0; i < kNeighbours; ++i) {
          for (std::int64_t s = 0; s < topk; ++s) {
            const std::int32_t id = int_at(block_ids, begin + g * kNeighbours + i, h, s);
            if (id == -1) break;
            ids.push_back(id);
          }
        }
        std::sort(ids.begin(), ids.end());
        distinct += std::unique(ids.begin(), ids.end()) - ids.begin();
      }
    }
  }
  return groups == 0 ? 0.0 : static_cast<double>(distinct) / static_cast<double>(groups);
}

Placement::Placement(Data& data, MemorySpace& space) : data_(data), space_(space) {
  if (space.device().type == DeviceType::Cpu) return;
  for (const Buffer& buffer : data.buffers()) {
    copies_.push_back(space.allocate(buffer.mapping_bytes()));
    space.copy_in(copies_.back(), buffer.mapping(), buffer.mapping_bytes());
  }
}

Placement::~Placement() {
  for (void* copy : copies_) space_.release(copy);
}

Operands Placement::prepare() {
  Operands operands = data_.prepare();
  if (copies_.empty()) return operands;
  const std::vector<Buffer>& buffers = data_.buffers();
  for (std::size_t i = 0; i < buffers.size(); ++i) {
    space_.copy_in(copies_[i], buffers[i].mapping(), buffers[i].mapping_bytes());
  }
  for_each_tensor(operands, [&](Tensor& tensor) {
    const auto* at = static_cast<std::byte*>(tensor.data);
    tensor.device = space_.device();
    for (std::size_t i = 0; i < buffers.size(); ++i) {
      const std::byte* begin = buffers[i].mapping();
      if (at < begin || at >= begin + buffers[i].mapping_bytes()) continue;
      tensor.data = static_cast<std::byte*>(copies_[i]) + (at - begin);
      return;
    }
  });
  return operands;
}

void Placement::fetch() {
  space_.synchronize();
  const std::vector<Buffer>& buffers = data_.buffers();
  for (std::size_t i = 0; i < copies_.size(); ++i) {
    space_.copy_out(buffers[i].mapping(), copies_[i], buffers[i].mapping_bytes());
  }
}

}  // namespace msa::testkit
