// SPDX-License-Identifier: MIT
// Planting one fault; see corrupt.h.
#include "testkit/corrupt.h"

#include <algorithm>
#include <cstring>
#include <limits>

#include "testkit/block_lists.h"
#include "testkit/requests.h"

namespace msa::testkit {

namespace {

constexpr std::int32_t kMin = std::numeric_limits<std::int32_t>::min();
constexpr std::int32_t kMax = std::numeric_limits<std::int32_t>::max();

void set(const Tensor& tensor, std::int64_t value, std::int64_t i0, std::int64_t i1 = 0,
         std::int64_t i2 = 0) {
  const auto number = static_cast<std::int32_t>(value);
  std::memcpy(address(tensor, i0, i1, i2), &number, sizeof(number));
}

[[noreturn]] void nothing_to_spoil(const Case& spec, const std::string& need) {
  throw CaseError("corrupt=" + case_value(spec, "corrupt") + " needs " + need + ": " +
                  to_line(spec));
}

class Spoiler {
 public:
  Spoiler(const Case& spec, Problem& problem, Operands& operands)
      : spec_(spec), problem_(problem), o_(operands) {
    if (o_.batch.cu_seqlens_q) requests_ = requests_of(problem, o_.batch);
  }

  PlantedFault page(std::int64_t id) {
    if (!o_.batch.page_table) nothing_to_spoil(spec_, "paged keys");
    const Request& r = with_keys();
    const std::int64_t last = (r.seqlen_k - 1) / spec_.page_size;
    set(o_.batch.page_table, id, r.index, last);
    return {.request = r.index, .may_pass = !is_read(r, last * spec_.page_size)};
  }

  std::int64_t pages() const { return (o_.k ? o_.k : o_.index_k).shape[0]; }

  /// Puts `id` (or the row's own first id) at `slot` of a list that is long enough.
  PlantedFault block(std::int64_t id, std::int64_t slot, bool copy_first = false) {
    if (!o_.block_ids_in) nothing_to_spoil(spec_, "given block ids");
    for (const Request& r : requests_) {
      for (std::int64_t i = 0; i < r.seqlen_q; ++i) {
        bool filled = true;
        for (std::int64_t s = 0; s <= slot; ++s) {
          filled = filled && int_at(o_.block_ids_in, r.q_begin + i, 0, s) != -1;
        }
        if (!filled) continue;
        if (copy_first) id = int_at(o_.block_ids_in, r.q_begin + i, 0, 0);
        set(o_.block_ids_in, id, r.q_begin + i, 0, slot);
        return {.request = r.index, .row = i, .may_pass = copy_first};
      }
    }
    nothing_to_spoil(spec_, "a list of " + std::to_string(slot + 1) + " ids");
  }

  std::int64_t first_illegal() const { return legal_blocks(with_keys()); }

  PlantedFault length(std::int64_t value) {
    const Request& r = with_keys();
    set(o_.batch.seqlens_k, value, r.index);
    return {.request = r.index};
  }

  PlantedFault lower_key_bound() {
    need_batch();
    if (problem_.bounds.max_seqlen_k < 2 + spec_.slack)
      nothing_to_spoil(spec_, "a request with 2 keys");
    problem_.bounds.max_seqlen_k -= 1 + spec_.slack;
    return first_request(
        [&](const Request& r) { return r.seqlen_k > problem_.bounds.max_seqlen_k; });
  }
  PlantedFault lower_query_bound() {
    need_batch();
    if (problem_.bounds.max_seqlen_q < 2 + spec_.slack)
      nothing_to_spoil(spec_, "a request with 2 queries");
    problem_.bounds.max_seqlen_q -= 1 + spec_.slack;
    return first_request(
        [&](const Request& r) { return r.seqlen_q > problem_.bounds.max_seqlen_q; });
  }

  PlantedFault start(std::int64_t index, std::int64_t value) {
    if (!o_.batch.cu_seqlens_q || index >= o_.batch.cu_seqlens_q.shape[0]) {
      nothing_to_spoil(spec_, "more requests");
    }
    set(o_.batch.cu_seqlens_q, value, index);
    return {.request = std::max<std::int64_t>(index - 1, 0)};  // whose end it is
  }

  PlantedFault last_key_row() {
    const std::int64_t keys = requests_.empty() ? 0 : requests_.back().seqlen_k;
    if (!(o_.k || o_.index_k) || spec_.page_size > 0 || keys == 0)
      nothing_to_spoil(spec_, "ragged keys");
    for (Tensor* tensor : {&o_.k, &o_.v, &o_.index_k}) {
      if (*tensor) --tensor->shape[0];
    }
    return {.request = requests_.back().index};
  }

  PlantedFault key_start_past_end() {
    if (!o_.batch.cu_seqlens_k || requests_.empty())
      nothing_to_spoil(spec_, "requests in a pool of ragged keys");
    set(o_.batch.cu_seqlens_k, spec_.pool + 1, spec_.requests());
    return {.request = requests_.back().index};
  }

  PlantedFault key_offset() {
    if (!o_.batch.key_offsets) nothing_to_spoil(spec_, "a shard");
    set(o_.batch.key_offsets, int_at(o_.batch.key_offsets, 0) + 1, 0);
    return {};
  }

 private:
  void need_batch() const {
    if (!o_.batch.cu_seqlens_q) nothing_to_spoil(spec_, "a batch of requests");
  }

  template <class Wanted>
  PlantedFault first_request(const Wanted& wanted) const {
    const auto found = std::find_if(requests_.begin(), requests_.end(), wanted);
    return {.request = found == requests_.end() ? 0 : found->index};
  }

  /// Whether some row reads the request's key or one behind it: sees it and, where ids are given,
  /// lists it.
  bool is_read(const Request& r, std::int64_t key) const {
    for (std::int64_t i = 0; i < r.seqlen_q; ++i) {
      if (r.visible_keys(i) <= key) continue;
      if (!o_.block_ids_in || lists(r, i, key)) return true;
    }
    return false;
  }

  bool lists(const Request& r, std::int64_t i, std::int64_t key) const {
    const Tensor& ids = o_.block_ids_in;
    for (std::int64_t h = 0; h < ids.shape[1]; ++h) {
      for (std::int64_t s = 0; s < ids.shape[2]; ++s) {
        const std::int32_t id = int_at(ids, r.q_begin + i, h, s);
        if (id == -1) break;
        if (r.block_keys(i, id).second > key) return true;
      }
    }
    return false;
  }

  const Request& with_keys() const {
    for (const Request& r : requests_) {
      if (r.seqlen_k > 0 && r.seqlen_q > 0) return r;
    }
    nothing_to_spoil(spec_, "a request with keys");
  }

  const Case& spec_;
  Problem& problem_;
  Operands& o_;
  std::vector<Request> requests_{};
};

}  // namespace

PlantedFault corrupt(const Case& spec, Problem& problem, Operands& operands) {
  if (spec.corrupt == Corrupt::None) return {};
  Spoiler spoil(spec, problem, operands);
  switch (spec.corrupt) {
    case Corrupt::None:
      break;
    case Corrupt::PageNegative:
      return spoil.page(-1);
    case Corrupt::PageMin:
      return spoil.page(kMin);
    case Corrupt::PageMax:
      return spoil.page(kMax);
    case Corrupt::PageEnd:
      return spoil.page(spoil.pages());
    case Corrupt::BlockNegative:
      return spoil.block(-2, 0);
    case Corrupt::BlockMin:
      return spoil.block(kMin, 0);
    case Corrupt::BlockMax:
      return spoil.block(kMax, 0);
    case Corrupt::BlockEnd:
      return spoil.block(spoil.first_illegal(), 0);
    case Corrupt::BlockTwice:
      return spoil.block(0, 1, true);
    case Corrupt::LengthNegative:
      return spoil.length(-1);
    case Corrupt::LengthAbove:
      return spoil.lower_key_bound();
    case Corrupt::QueriesAbove:
      return spoil.lower_query_bound();
    case Corrupt::StartDecreasing:
      return spoil.start(1, spec.rows() + 1);
    case Corrupt::StartNotZero:
      return spoil.start(0, 1);
    case Corrupt::StartPastEnd:
      return spoil.start(spec.requests(), spec.rows() + spec.slack + 1);
    case Corrupt::KeysPastEnd:
      return spoil.last_key_row();
    case Corrupt::KeyStartPastEnd:
      return spoil.key_start_past_end();
    case Corrupt::KeyOffset:
      return spoil.key_offset();
  }
  return {};
}

}  // namespace msa::testkit
