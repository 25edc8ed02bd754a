// SPDX-License-Identifier: MIT
// A case's tensors, made step by step (making.h), and what a call may not have changed.
#include "testkit/generate.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "testkit/making.h"
#include "testkit/number.h"
#include "testkit/requests.h"

namespace msa::testkit {

namespace {

/// Inputs above are not compared byte for byte.
constexpr std::size_t kChecksummed = std::size_t{64} << 20;

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

void make_tensors(Making& making) {
  const Op op = making.spec.op;
  if (!is_merge(op)) make_batch(making);
  if (takes_lists(op) && (op != Op::IndexLoss || making.spec.lists)) make_block_ids(making);
  if (reads_index_keys(op) || copies_index(op)) make_index(making);
  if (making.problem.index.filter && !copies_index(op)) make_filter(making);
  if (op == Op::SelectTopk) make_scores(making);
  if (reads_attention_keys(op)) make_attention(making);
  if (derives(op)) make_gradients(making);
  if (op == Op::MergeStates) make_part_states(making);
  if (op == Op::MergeSelections) make_part_selections(making);
  if (stores_keys(op)) make_rows(making);
  make_outputs(making);
}

}  // namespace

void fill_accumulated(const Tensor& gradient) {
  if (!gradient) return;
  for (std::int64_t row = 0; row < gradient.shape[0]; ++row) {
    for (std::int64_t head = 0; head < gradient.shape[1]; ++head) {
      for (std::int64_t d = 0; d < gradient.shape[2]; ++d) {
        const float x = static_cast<float>((row * 7 + head * 3 + d) % 33 - 16) / 8;
        store(&x, 1, gradient.dtype, address(gradient, row, head, d));
      }
    }
  }
}

Problem problem_of(const Case& spec) {
  Problem p;
  p.op = spec.op;
  p.attention.q.storage = spec.dtype;
  if (reads_attention_keys(spec.op) || stores_keys(spec.op)) p.attention.kv = spec.kv;
  p.index.q.storage = spec.index_type();
  if (reads_index_keys(spec.op)) p.index.k = spec.index_k;
  if ((spec.filter && takes_filter(spec.op)) || copies_index(spec.op))
    p.index.filter = Format{.storage = DType::I8, .scale = Scale::Page, .rotated = spec.rotated};
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
  p.selection.topk = spec.op == Op::IndexLoss && !spec.lists ? 0 : spec.topk;
  p.index.scale = spec.index_scale;
  p.selection.local_blocks = spec.local_blocks;
  p.selection.init_blocks = spec.init_blocks;
  if (takes_filter(spec.op)) p.selection.precision = spec.precision;
  p.causal = spec.causal;
  p.attention.softmax_scale = spec.softmax_scale;
  p.gradients = {.dtype = spec.gradient_type(), .accumulate = spec.accumulate};
  p.outputs.out = spec.output;
  p.outputs.lse = spec.lse;
  p.outputs.block_max = spec.block_max;
  p.outputs.chosen_scores = spec.chosen_scores;
  p.bounds.parts = is_merge(spec.op) ? spec.parts : 0;
  p.options.batch_invariant = spec.batch_invariant;
  return p;
}

Settings settings_of(const Case& spec) {
  Settings settings;
  settings.block_size = spec.block_size;
  settings.topk = spec.topk;
  settings.local_blocks = spec.local_blocks;
  settings.init_blocks = spec.init_blocks;
  settings.causal = spec.causal;
  settings.softmax_scale = spec.softmax_scale;
  settings.kv_rounded =
      (reads_attention_keys(spec.op) || stores_keys(spec.op)) && spec.kv_format().rounded;
  settings.filter_rotated = spec.rotated;
  if (takes_filter(spec.op)) settings.precision = spec.precision;
  settings.index_k_rounded = reads_index_keys(spec.op) && spec.index_k_format().rounded;
  settings.index_scale = spec.index_scale;
  settings.accumulate = derives(spec.op) && spec.accumulate;
  settings.options.batch_invariant = spec.batch_invariant;
  return settings;
}

Data::Data(const Case& spec) : spec_(spec), problem_(problem_of(spec)) {
  TensorMaker tensors(spec_);
  Making making{.spec = spec_, .problem = problem_, .tensors = tensors, .operands = operands_};
  make_tensors(making);
  planted_ = corrupt(spec_, problem_, operands_);
  buffers_ = tensors.take_buffers();
  views_ = tensors.take_views();
  accumulated_.resize(buffers_.size());
  call_ = operands_;
  if (spec_.in_place && spec_.op == Op::MergeStates && spec_.parts > 0) {
    call_.part_outs[0] = call_.out;
    if (call_.lse) call_.part_lses[0] = call_.lse;
  }
  for (std::size_t i = 0; i < buffers_.size(); ++i) {
    sums_.push_back(views_[i] ? 0 : checksum(buffers_[i]));
  }
}

Operands Data::prepare() {
  for (std::size_t i = 0; i < buffers_.size(); ++i) {
    if (views_[i]) buffers_[i].fill(Buffer::kSentinel);
  }
  if (spec_.accumulate) {
    for (const Tensor* t : {&call_.dk, &call_.dv, &call_.d_index_k}) fill_accumulated(*t);
    keep_accumulated();
  }
  const bool in_place = !call_.part_outs.empty() && call_.part_outs[0].data == call_.out.data;
  if (!in_place) return call_;
  const auto copy_row = [](const Tensor& from, const Tensor& to, std::int64_t i, std::int64_t h,
                           std::int64_t count) {
    const auto bytes = static_cast<std::size_t>(size_in_bytes(from.dtype, count));
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

/// First byte of the buffer that is neither an element of the tensor nor what was there before (a
/// sentinel where `before` is empty); the buffer's size where none is.
std::size_t first_changed(const Buffer& buffer, const Tensor& view, bool ignore_elements,
                          const std::vector<std::byte>& before) {
  std::vector<bool> element(buffer.bytes(), false);
  const Tensor elements = ignore_elements ? view : Tensor{};
  for_each_run(elements, [&](const std::byte* run, std::size_t bytes) {
    std::fill_n(element.begin() + (run - buffer.data()), bytes, true);
  });
  for (std::size_t i = 0; i < buffer.bytes(); ++i) {
    const std::byte expected = before.empty() ? std::byte{Buffer::kSentinel} : before[i];
    if (!element[i] && buffer.data()[i] != expected) return i;
  }
  return buffer.bytes();
}

bool is_dense(const Buffer& buffer, const Tensor& view) {
  std::int64_t elements = 1;
  for (int d = 0; d < view.rank; ++d) elements *= view.shape[d];
  return static_cast<std::size_t>(size_in_bytes(view.dtype, elements)) == buffer.bytes();
}

}  // namespace

void Data::keep_accumulated() {
  for (std::size_t i = 0; i < buffers_.size(); ++i) {
    const Buffer& buffer = buffers_[i];
    if (!views_[i] || buffer.sparse() || !accumulated_[i].empty()) continue;
    for (const Tensor* t : {&call_.dk, &call_.dv, &call_.d_index_k}) {
      if (*t && t->data == views_[i].data)
        accumulated_[i].assign(buffer.data(), buffer.data() + buffer.bytes());
    }
  }
}

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
    const std::size_t byte = first_changed(buffer, views_[i], true, accumulated_[i]);
    if (byte != buffer.bytes()) {
      return buffer.name() + ": byte " + std::to_string(byte) + " between its rows was written";
    }
  }
  return "";
}

bool Data::watches_inputs() const {
  for (std::size_t i = 0; i < buffers_.size(); ++i) {
    if (!views_[i] && sums_[i] == 0) return false;
  }
  return true;
}

std::string Data::touched() const {
  const bool in_place = !call_.part_outs.empty() && call_.part_outs[0].data == call_.out.data;
  for (std::size_t i = 0; i < buffers_.size(); ++i) {
    if (!views_[i] || buffers_[i].sparse() || in_place) continue;
    const std::size_t byte = first_changed(buffers_[i], views_[i], false, accumulated_[i]);
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

}  // namespace msa::testkit
