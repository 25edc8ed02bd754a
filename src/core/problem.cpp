// SPDX-License-Identifier: MIT
// Problems in print: one line with the fields that matter for the operation.
#include "msa/problem.h"

#include <cstdio>

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
  }
  return "unknown";
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
  line.add("batch", p.batch);
  line.add("total_q", p.total_q);
  line.add("max_seqlen_q", p.max_seqlen_q);
  line.add("max_seqlen_k", p.max_seqlen_k);
  if (p.page_size != 0) line.add("page_size", p.page_size);
}

void add_attention(Line& line, const Problem& p) {
  line.add("dtype", to_string(p.dtype));
  if (p.output && p.out_dtype != p.dtype) line.add("out", to_string(p.out_dtype));
  line.add("heads", heads(p.heads_q, p.heads_kv));
  line.add("head_dim", p.head_dim);
  if (p.value_dim != p.head_dim) line.add("value_dim", p.value_dim);
  if (p.softmax_scale) line.add("softmax_scale", number(*p.softmax_scale));
}

void add_index(Line& line, const Problem& p) {
  line.add("index_dtype", to_string(p.index_dtype));
  line.add("index_heads", heads(p.index_heads, p.index_heads_k));
  line.add("index_dim", p.index_dim);
}

void add_merge(Line& line, const Problem& p) {
  line.add("parts", p.parts);
  line.add("total_q", p.total_q);
  if (p.op == Op::MergeStates) {
    line.add("dtype", to_string(p.dtype));
    if (p.out_dtype != p.dtype) line.add("out", to_string(p.out_dtype));
    line.add("heads_q", p.heads_q);
    line.add("value_dim", p.value_dim);
  } else {
    line.add("heads_kv", p.heads_kv);
    line.add("topk", p.topk);
  }
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
  } else {
    add_batch(line, p);
    if (traits.attends) add_attention(line, p);
    if (traits.indexes) add_index(line, p);
    if (p.op == Op::SelectTopk) line.add("index_heads", p.index_heads);
    if (p.op == Op::InvertSelection) line.add("heads_kv", p.heads_kv);
    line.add("block_size", p.block_size);
    if (traits.selects || traits.lists) line.add("topk", p.topk);
    if (traits.selects) {
      line.add("local_blocks", p.local_blocks);
      line.add("init_blocks", p.init_blocks);
    }
    if (p.op != Op::InvertSelection) line.add_if(!p.causal, "not causal");
  }
  line.add_if(p.op == Op::DenseAttention && !p.output, "no output");
  line.add_if(p.lse, "lse");
  line.add_if(p.block_max, "block_max");
  line.add_if(p.chosen_scores, "chosen_scores");
  add_options(line, p.options);
  return line.text();
}

}  // namespace msa
