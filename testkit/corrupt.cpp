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

constexpr const char* kLengths = "batch.seqlens_k";
constexpr const char* kStarts = "batch.cu_seqlens_q";
constexpr const char* kKeyStarts = "batch.cu_seqlens_k";

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
    if (spec.op == Op::QuantizeIndex) requests_ = with_new_keys();
  }

  PlantedFault page(std::int64_t id) {
    if (!o_.batch.page_table) nothing_to_spoil(spec_, "paged keys");
    const Request& r = with_keys();
    const std::int64_t last = (r.seqlen_k - 1) / spec_.page_size;
    set(o_.batch.page_table, id, r.index, last);
    return {.argument = "batch.page_table",
            .request = r.index,
            .page_begin = last * spec_.page_size,
            .may_pass = !is_read(r, last * spec_.page_size)};
  }

  std::int64_t pages() const {
    return (o_.k ? o_.k : o_.index_k ? o_.index_k : o_.k_cache).shape[0];
  }

  PlantedFault block(std::int64_t id) {
    const List list = first_list(1);
    return put(list, id, 0);
  }

  /// One past the last id that is legal for the very row it goes to.
  PlantedFault block_end() {
    const List list = first_list(1);
    return put(list, legal_blocks(*list.request), 0);
  }

  PlantedFault block_twice() {
    const List list = first_list(2);
    PlantedFault fault = put(list, int_at(o_.block_ids_in, list.row(), 0, 0), 1);
    fault.may_pass = true;
    return fault;
  }

  PlantedFault length(std::int64_t value) {
    const Request& r = with_keys();
    set(o_.batch.seqlens_k, value, r.index);
    return {.argument = kLengths, .request = r.index};
  }

  PlantedFault lower_key_bound() {
    need_batch();
    if (problem_.bounds.max_seqlen_k < 2 + spec_.slack)
      nothing_to_spoil(spec_, "a request with 2 keys");
    problem_.bounds.max_seqlen_k -= 1 + spec_.slack;
    return first_request(
        kLengths, [&](const Request& r) { return r.seqlen_k > problem_.bounds.max_seqlen_k; });
  }
  PlantedFault lower_query_bound() {
    need_batch();
    if (!o_.batch.cu_seqlens_q) nothing_to_spoil(spec_, "requests with queries");
    if (problem_.bounds.max_seqlen_q < 2 + spec_.slack)
      nothing_to_spoil(spec_, "a request with 2 queries");
    problem_.bounds.max_seqlen_q -= 1 + spec_.slack;
    return first_request(
        kStarts, [&](const Request& r) { return r.seqlen_q > problem_.bounds.max_seqlen_q; });
  }

  PlantedFault start(std::int64_t index, std::int64_t value) {
    if (!o_.batch.cu_seqlens_q || index >= o_.batch.cu_seqlens_q.shape[0]) {
      nothing_to_spoil(spec_, "more requests");
    }
    set(o_.batch.cu_seqlens_q, value, index);
    // The request whose end it is.
    return {.argument = kStarts, .request = std::max<std::int64_t>(index - 1, 0)};
  }

  PlantedFault last_key_row() {
    const std::int64_t keys = requests_.empty() ? 0 : requests_.back().seqlen_k;
    if (!(o_.k || o_.index_k) || spec_.page_size > 0 || keys == 0)
      nothing_to_spoil(spec_, "ragged keys");
    const auto by_row = [](const Format& format) {
      return format.scale == Scale::Token || format.storage == DType::E2M1;
    };
    for (Tensor* tensor : {&o_.k, &o_.v, &o_.index_k, &o_.index_k8, &o_.index_k8_out, &o_.dk,
                           &o_.dv, &o_.d_index_k}) {
      if (*tensor) --tensor->shape[0];
    }
    for (Tensor* tensor : {&o_.index_k8_bounds, &o_.index_k8_bounds_out}) {
      if (*tensor) tensor->shape[0] = ceil_div(o_.index_k.shape[0], kFilterRows);
    }
    for (Tensor* tensor : {&o_.k_scale, &o_.v_scale}) {
      if (*tensor && by_row(spec_.kv_format())) --tensor->shape[0];
    }
    if (o_.index_k_scale && by_row(spec_.index_k_format())) --o_.index_k_scale.shape[0];
    return {.argument = o_.batch.cu_seqlens_k ? kKeyStarts : kLengths,
            .request = requests_.back().index};
  }

  PlantedFault key_start_past_end() {
    if (!o_.batch.cu_seqlens_k || requests_.empty())
      nothing_to_spoil(spec_, "requests in a pool of ragged keys");
    set(o_.batch.cu_seqlens_k, spec_.pool + 1, spec_.requests());
    return {.argument = kKeyStarts, .request = requests_.back().index};
  }

  PlantedFault key_offset() {
    if (!o_.batch.key_offsets) nothing_to_spoil(spec_, "a shard");
    set(o_.batch.key_offsets, int_at(o_.batch.key_offsets, 0) + 1, 0);
    return {.argument = "batch.key_offsets"};
  }

 private:
  /// Requests whose new keys are their queries, where there are no others.
  std::vector<Request> with_new_keys() const {
    std::vector<Request> requests;
    for (std::int64_t b = 0; b < spec_.requests(); ++b) {
      const Lengths& r = spec_.lengths[static_cast<std::size_t>(b)];
      const std::int64_t first = o_.batch.q_offsets ? int_at(o_.batch.q_offsets, b) : 0;
      requests.push_back(
          {.index = b, .seqlen_q = r.seqlen_k - first, .seqlen_k = r.seqlen_k, .offset = first});
    }
    return requests;
  }

  void need_batch() const {
    if (!o_.batch.cu_seqlens_q && spec_.op != Op::QuantizeIndex)
      nothing_to_spoil(spec_, "a batch of requests");
  }

  template <class Wanted>
  PlantedFault first_request(const char* argument, const Wanted& wanted) const {
    const auto found = std::find_if(requests_.begin(), requests_.end(), wanted);
    return {.argument = argument, .request = found == requests_.end() ? 0 : found->index};
  }

  /// Head 0's list of one query row.
  struct List {
    const Request* request;
    std::int64_t i;
    std::int64_t row() const { return request->q_begin + i; }
  };

  List first_list(std::int64_t length) const {
    if (!o_.block_ids_in) nothing_to_spoil(spec_, "given block ids");
    for (const Request& r : requests_) {
      for (std::int64_t i = 0; i < r.seqlen_q; ++i) {
        if (length_of_list(r.q_begin + i) >= length) return {&r, i};
      }
    }
    nothing_to_spoil(spec_, "a list of " + std::to_string(length) + " ids");
  }

  std::int64_t length_of_list(std::int64_t row) const {
    std::int64_t length = 0;
    while (length < o_.block_ids_in.shape[2] && int_at(o_.block_ids_in, row, 0, length) != -1) {
      ++length;
    }
    return length;
  }

  PlantedFault put(const List& list, std::int64_t id, std::int64_t slot) {
    set(o_.block_ids_in, id, list.row(), 0, slot);
    return {.argument = "block_ids", .request = list.request->index, .row = list.i};
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
      return spoil.block(-2);
    case Corrupt::BlockMin:
      return spoil.block(kMin);
    case Corrupt::BlockMax:
      return spoil.block(kMax);
    case Corrupt::BlockEnd:
      return spoil.block_end();
    case Corrupt::BlockTwice:
      return spoil.block_twice();
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
