// SPDX-License-Identifier: MIT
// Problems in print: one line with the fields that matter for the operation.
#include "msa/problem.h"

#include <cstdio>
#include <functional>

#include "core/op_traits.h"

namespace msa {

const char* to_string(Op op) noexcept {
  switch (op) {
    case Op::DenseAttention:
      return "dense_attention";
    case Op::BlockScores:
      return "block_scores";
    case Op::SelectTopk:
      return "select_topk";
    case Op::SelectBlocks:
      return "select_blocks";
    case Op::SparseAttention:
      return "sparse_attention";
    case Op::MsaAttention:
      return "msa_attention";
    case Op::MergeStates:
      return "merge_states";
    case Op::MergeSelections:
      return "merge_selections";
    case Op::InvertSelection:
      return "invert_selection";
    case Op::QuantizeKv:
      return "quantize_kv";
    case Op::QuantizeIndex:
      return "quantize_index";
    case Op::SparseAttentionBackward:
      return "sparse_attention_backward";
    case Op::DenseAttentionBackward:
      return "dense_attention_backward";
    case Op::IndexLoss:
      return "index_loss";
  }
  return "unknown";
}

const char* to_string(Scale scale) noexcept {
  switch (scale) {
    case Scale::None:
      return "none";
    case Scale::Tensor:
      return "tensor";
    case Scale::Head:
      return "head";
    case Scale::Page:
      return "page";
    case Scale::Token:
      return "token";
    case Scale::Group:
      return "group";
    case Scale::GroupTensor:
      return "group_tensor";
  }
  return "unknown";
}

const char* to_string(Precision precision) noexcept {
  switch (precision) {
    case Precision::Exact:
      return "exact";
    case Precision::Fast:
      return "fast";
  }
  return "unknown";
}

std::string to_string(const Format& format) {
  if (format == Format{DType::E2M1, Scale::Group, 16}) return "nvfp4";
  if (format == Format{DType::E2M1, Scale::GroupTensor, 16}) return "nvfp4/tensor";
  if (format == Format{DType::E2M1, Scale::Group, 16, true}) return "q8kv4";
  std::string text = to_string(format.storage);
  if (format.scale != Scale::None) text.append("/").append(to_string(format.scale));
  if (format.group != 0) text.append("/").append(std::to_string(format.group));
  if (format.rounded) text.append("/rounded");
  if (format.rotated) text.append("/rotated");
  return text;
}

namespace {

class Line {
 public:
  explicit Line(std::string text) : text_(std::move(text)) {}
  void add(const char* name, const std::string& value) { text_ += ", " + (name + (' ' + value)); }
  void add(const char* name, std::int64_t value) { add(name, std::to_string(value)); }
  void add_if(bool flag, const char* name) {
    if (flag) text_ += std::string(", ") + name;
  }
  std::string text() const { return text_; }

 private:
  std::string text_;
};

std::string heads(std::int64_t query_heads, std::int64_t key_heads) {
  return std::to_string(query_heads) + "/" + std::to_string(key_heads);
}

std::string number(float value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.9g", static_cast<double>(value));
  return text;
}

void add_batch(Line& line, const Problem& p) {
  line.add("batch", p.bounds.batch);
  line.add("total_q", p.bounds.total_q);
  line.add("max_seqlen_q", p.bounds.max_seqlen_q);
  line.add("max_seqlen_k", p.bounds.max_seqlen_k);
  if (p.bounds.page_size != 0) line.add("page_size", p.bounds.page_size);
}

void add_attention(Line& line, const Problem& p) {
  line.add("dtype", to_string(p.attention.q.storage));
  const Format kv = p.attention.kv.value_or(p.attention.q);
  if (kv != p.attention.q) line.add("kv", to_string(kv));
  if (p.outputs.out && p.outputs.dtype != p.attention.q.storage)
    line.add("out", to_string(p.outputs.dtype));
  line.add("heads", heads(p.attention.heads_q, p.attention.heads_kv));
  line.add("head_dim", p.attention.head_dim);
  if (p.attention.value_dim != p.attention.head_dim) line.add("value_dim", p.attention.value_dim);
  if (p.attention.softmax_scale) line.add("softmax_scale", number(*p.attention.softmax_scale));
}

void add_teacher(Line& line, const Problem& p) {
  line.add("dtype", to_string(p.attention.q.storage));
  line.add("heads", heads(p.attention.heads_q, p.attention.heads_kv));
  line.add("head_dim", p.attention.head_dim);
  if (p.attention.softmax_scale) line.add("softmax_scale", number(*p.attention.softmax_scale));
  if (p.index.scale) line.add("index_scale", number(*p.index.scale));
}

void add_gradients(Line& line, const Problem& p) {
  const Format& own = p.op == Op::IndexLoss ? p.index.q : p.attention.q;
  if (p.gradients.dtype != own.storage) line.add("gradients", to_string(p.gradients.dtype));
  line.add_if(p.gradients.accumulate, "accumulate");
}

void add_index(Line& line, const Problem& p) {
  line.add("index_dtype", to_string(p.index.q.storage));
  const Format k = p.index.k.value_or(p.index.q);
  if (k != p.index.q) line.add("index_k", to_string(k));
  line.add("index_heads", heads(p.index.heads, p.index.heads_k));
  line.add("index_dim", p.index.dim);
  if (p.index.filter) line.add("filter", to_string(*p.index.filter));
}

void add_merge(Line& line, const Problem& p) {
  line.add("parts", p.bounds.parts);
  line.add("total_q", p.bounds.total_q);
  if (p.op == Op::MergeStates) {
    line.add("dtype", to_string(p.attention.q.storage));
    if (p.outputs.dtype != p.attention.q.storage) line.add("out", to_string(p.outputs.dtype));
    line.add("heads_q", p.attention.heads_q);
    line.add("value_dim", p.attention.value_dim);
  } else {
    line.add("heads_kv", p.attention.heads_kv);
    line.add("topk", p.selection.topk);
  }
}

void add_store(Line& line, const Problem& p) {
  if (p.bounds.page_size != 0) {
    add_batch(line, p);
  } else {
    line.add("total_q", p.bounds.total_q);
  }
  line.add("dtype", to_string(p.attention.q.storage));
  line.add("kv", to_string(p.attention.kv.value_or(p.attention.q)));
  line.add("heads_kv", p.attention.heads_kv);
  line.add("head_dim", p.attention.head_dim);
  if (p.attention.value_dim != p.attention.head_dim) line.add("value_dim", p.attention.value_dim);
}

void add_copy(Line& line, const Problem& p) {
  line.add("batch", p.bounds.batch);
  line.add("max_seqlen_k", p.bounds.max_seqlen_k);
  if (p.bounds.page_size != 0) line.add("page_size", p.bounds.page_size);
  line.add("index_dtype", to_string(p.index.q.storage));
  line.add("index_heads_k", p.index.heads_k);
  line.add("index_dim", p.index.dim);
  if (p.index.filter) line.add("filter", to_string(*p.index.filter));
}

void add_options(Line& line, const Options& o) {
  if (!o.backend.empty()) line.add("backend", o.backend);
  if (!o.isa.empty()) line.add("isa", o.isa);
  if (o.threads != 0) line.add("threads", o.threads);
  line.add_if(o.batch_invariant, "batch_invariant");
}

}  // namespace

std::string to_string(const Problem& p) {
  const core::OpTraits traits = core::op_traits(p.op);
  Line line(std::string(to_string(p.op)) + " on " + to_string(p.device));
  if (traits.merges) {
    add_merge(line, p);
  } else if (traits.stores) {
    add_store(line, p);
  } else if (traits.copies) {
    add_copy(line, p);
  } else {
    add_batch(line, p);
    if (traits.attends) add_attention(line, p);
    if (traits.teaches) add_teacher(line, p);
    if (traits.indexes) add_index(line, p);
    if (traits.derives) add_gradients(line, p);
    if (p.op == Op::SelectTopk) line.add("index_heads", p.index.heads);
    if (p.op == Op::InvertSelection) line.add("heads_kv", p.attention.heads_kv);
    line.add("block_size", p.selection.block_size);
    if (traits.selects || traits.lists) line.add("topk", p.selection.topk);
    if (traits.selects) {
      line.add("local_blocks", p.selection.local_blocks);
      line.add("init_blocks", p.selection.init_blocks);
      if (p.selection.precision != Precision::Exact)
        line.add("precision", to_string(p.selection.precision));
    }
    if (p.op != Op::InvertSelection) line.add_if(!p.causal, "not causal");
  }
  line.add_if(p.op == Op::DenseAttention && !p.outputs.out, "no output");
  line.add_if(p.outputs.lse, "lse");
  line.add_if(p.outputs.block_max, "block_max");
  line.add_if(p.outputs.chosen_scores, "chosen_scores");
  add_options(line, p.options);
  return line.text();
}

namespace {

/// Folds values into one number, field after field.
class Hash {
 public:
  template <class T>
  void add(const T& value) {
    const std::size_t h = std::hash<T>{}(value);
    sum_ ^= h + 0x9e3779b97f4a7c15u + (sum_ << 6) + (sum_ >> 2);
  }
  void add(const Format& f) {
    add(f.storage);
    add(f.scale);
    add(f.group);
    add(f.rounded);
    add(f.rotated);
  }
  void add(const std::optional<Format>& f) {
    add(f.has_value());
    if (f) add(*f);
  }
  template <class... T>
  void add_all(const T&... values) {
    (add(values), ...);
  }
  std::size_t sum() const { return sum_; }

 private:
  std::size_t sum_ = 0;
};

}  // namespace

std::size_t hash_value(const Problem& p) noexcept {
  const auto& [op, device, causal, bounds, attention, index, selection, outputs, gradients,
               options] = p;
  const auto& [batch, total_q, max_seqlen_q, max_seqlen_k, page_size, parts] = bounds;
  const auto& [q, kv, heads_q, heads_kv, head_dim, value_dim, softmax_scale] = attention;
  const auto& [index_q, index_k, index_heads, index_heads_k, index_dim, filter, index_scale] =
      index;
  const auto& [block_size, topk, local_blocks, init_blocks, precision] = selection;
  const auto& [dtype, out, lse, block_max, chosen_scores] = outputs;
  const auto& [gradient_dtype, accumulate] = gradients;
  const auto& [backend, isa, threads, batch_invariant] = options;
  // A field that is added to a group breaks its line above until it is named here, too.
  Hash all;
  all.add_all(op, device.type, device.index, causal);
  all.add_all(batch, total_q, max_seqlen_q, max_seqlen_k, page_size, parts);
  all.add_all(q, kv, heads_q, heads_kv, head_dim, value_dim, softmax_scale);
  all.add_all(index_q, index_k, index_heads, index_heads_k, index_dim, filter, index_scale);
  all.add_all(block_size, topk, local_blocks, init_blocks, precision);
  all.add_all(dtype, out, lse, block_max, chosen_scores);
  all.add_all(gradient_dtype, accumulate);
  all.add_all(backend, isa, threads, batch_invariant);
  return all.sum();
}

}  // namespace msa
