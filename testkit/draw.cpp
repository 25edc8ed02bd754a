// SPDX-License-Identifier: MIT
// Choosing a case, field by field.
#include "testkit/draw.h"

#include <algorithm>
#include <string>
#include <vector>

#include "testkit/case_values.h"
#include "testkit/making.h"

namespace msa::testkit {

namespace {

/// Of one request.
struct Reach {
  std::int64_t queries, keys;
};

Reach choose_reach(Choices& choices) {
  switch (choices.below(8)) {
    case 0:
      return {300, 1500};  // tiles of queries, slices of rows
    case 1:
      return {8, 20000};  // decode: slices of blocks, pieces of keys
    default:
      return {40, 220};
  }
}

std::int64_t near_block(Choices& choices, std::int64_t block, std::int64_t most) {
  if (choices.one_in(2)) return choices.below(most + 1);
  const std::int64_t blocks = std::max<std::int64_t>(4, most / block);
  const std::int64_t edge = block * choices.below(blocks) + choices.below(3) - 1;
  return std::clamp<std::int64_t>(edge, 0, most);
}

void choose_lengths(Choices& choices, Case& spec) {
  spec.lengths.clear();
  const Reach reach = choose_reach(choices);
  const std::int64_t requests = choices.pick<std::int64_t>({1, 1, 2, 3, 4, 0});
  for (std::int64_t b = 0; b < requests; ++b) {
    Lengths r;
    r.seqlen_k = near_block(choices, spec.block_size, reach.keys);
    r.seqlen_q = choices.one_in(3) ? choices.below(reach.queries + 1) : 1 + choices.below(8);
    if (choices.one_in(8)) r.q_offset = choices.below(2 * reach.keys) - reach.queries;
    if (choices.one_in(12)) {
      r.key_offset = spec.block_size * choices.below(4);
      const std::int64_t past = choices.below(3) * spec.block_size;
      r.total_k = r.key_offset + r.seqlen_k + past;
    }
    spec.lengths.push_back(r);
  }
  spec.pad_rows = choices.one_in(6) ? choices.below(4) : 0;
  spec.slack = choices.one_in(6) ? 1 + choices.below(60) : 0;
}

/// Halves lengths until the case's work fits. The oracle and the plain computation do a gradient's
/// products several times, and each key has a gradient, whether one query sees it or many.
void fit(Case& spec, double max_work) {
  const bool gradients = derives(spec.op);
  if (gradients) max_work /= 8;
  const auto width = static_cast<double>(spec.heads_q * (spec.head_dim + spec.dim_v()) +
                                         spec.heads_index() * spec.dim_index());
  for (Lengths& r : spec.lengths) {
    const auto work = [&] {
      const std::int64_t queries = gradients ? std::max<std::int64_t>(r.seqlen_q, 8) : r.seqlen_q;
      return static_cast<double>(queries * r.seqlen_k) * width;
    };
    while (work() > max_work) {
      std::int64_t& longer = r.seqlen_q > 16 ? r.seqlen_q : r.seqlen_k;
      longer /= 2;
    }
  }
}

void choose_shape(Choices& choices, Case& spec) {
  spec.dtype = choices.pick({DType::BF16, DType::F16, DType::F32});
  if (choices.one_in(5)) spec.out_dtype = DType::F32;
  spec.heads_kv = choices.pick<std::int64_t>({1, 2, 3, 4});
  spec.heads_q = spec.heads_kv * choices.pick<std::int64_t>({1, 2, 3, 4, 5, 7, 8, 16});
  spec.head_dim = 16 * (1 + choices.below(choices.one_in(4) ? 16 : 4));
  if (choices.one_in(6)) spec.value_dim = 16 * (1 + choices.below(8));
  if (choices.one_in(6)) spec.index_dim = 16 * (1 + choices.below(8));
  if (choices.one_in(4)) spec.index_heads_k = spec.heads_kv;
  if (choices.one_in(8)) spec.index_dtype = choices.pick({DType::BF16, DType::F16, DType::F32});
  spec.block_size = 16 * choices.pick<std::int64_t>({1, 1, 2, 3, 4, 8, 16});
  spec.topk = choices.pick<std::int64_t>({4, 1, 2, 3, 5, 8, 16, 17, 64, 256});
  spec.local_blocks = choices.below(spec.topk < 4 ? spec.topk + 1 : 4);
  spec.init_blocks = choices.one_in(3) ? choices.below(spec.topk - spec.local_blocks + 1) : 0;
  spec.causal = !choices.one_in(5);
  if (choices.one_in(6)) spec.softmax_scale = choices.pick({0.125f, 0.0f, -0.25f, 2.0f});
}

void choose_memory(Choices& choices, Case& spec) {
  if (choices.one_in(2)) spec.page_size = 16 * (1 + choices.below(choices.one_in(3) ? 16 : 4));
  spec.layout = choices.pick({Layout::Separate, Layout::Packed, Layout::HeadMajor});
  if (spec.page_size > 0 && choices.one_in(6)) spec.layout = Layout::SlotMajor;
  spec.strides = choices.pick(
      {Strides::Dense, Strides::Dense, Strides::Padded, Strides::Transposed, Strides::Broadcast});
  spec.ids_head_major = choices.one_in(4);
  spec.order = choices.pick({Order::Ascending, Order::Descending, Order::Shuffled});
  spec.partial_lists = choices.one_in(3);
}

void choose_outputs(Choices& choices, Case& spec) {
  const bool attends = spec.op == Op::DenseAttention || spec.op == Op::SparseAttention ||
                       spec.op == Op::MsaAttention;
  const bool selects = spec.op == Op::SelectTopk || spec.op == Op::SelectBlocks;
  spec.grads = choices.pick({Grads::All, Grads::All, Grads::Queries, Grads::Keys, Grads::Values});
  if (choices.one_in(3)) spec.grad_dtype = DType::F32;
  spec.accumulate = choices.one_in(3);
  spec.dlse = choices.one_in(3);
  spec.lists = !choices.one_in(3);
  spec.row_weight = choices.one_in(2);
  spec.lse = (attends || spec.op == Op::MergeStates) && choices.one_in(2);
  spec.chosen_scores = (selects || spec.op == Op::MergeSelections) && choices.one_in(2);
  spec.ids = !choices.one_in(4);
  if (spec.op == Op::DenseAttention && choices.one_in(4)) {
    spec.block_max = true;
    spec.output = choices.one_in(2);
    spec.lse = spec.lse && spec.output;
  }
  if (spec.op != Op::MergeStates && spec.op != Op::MergeSelections) return;
  spec.parts = 1 + choices.below(choices.one_in(8) ? 64 : 5);
  const bool same = spec.out_type() == spec.dtype;
  spec.in_place = spec.op == Op::MergeStates && same && choices.one_in(4);
}

/// Everything but the lengths, which depend on the blocks.
Case choose_all(Choices& choices, const DrawOptions& options) {
  Case spec;
  spec.op = static_cast<Op>(choices.below(static_cast<std::int64_t>(kLastOp) + 1));
  choose_shape(choices, spec);
  choose_memory(choices, spec);
  spec.regime = choices.pick({Regime::Random, Regime::Drift, Regime::Integers, Regime::Ties,
                              Regime::Near, Regime::OneHot});
  spec.hostile =
      choices.pick({Hostile::None, Hostile::None, Hostile::Nan, Hostile::NanV, Hostile::NanK,
                    Hostile::NanQ, Hostile::NanIndex, Hostile::NanIndexQ});
  const auto any_format = [&choices] {
    const auto& formats = coded_formats();
    return formats[static_cast<std::size_t>(
        choices.below(static_cast<std::int64_t>(formats.size())))];
  };
  if (choices.one_in(2)) {
    spec.kv = any_format();
    if (reads_attention_keys(spec.op) && choices.one_in(4)) spec.dtype = DType::E4M3;
  }
  spec.filter = choices.one_in(3);
  spec.rotated = choices.one_in(2);
  if (choices.one_in(4)) spec.precision = Precision::Fast;
  if (choices.one_in(3)) {
    spec.index_k = any_format();
    if (choices.one_in(3)) spec.index_dtype = DType::E4M3;
  }
  spec.batch_invariant = choices.one_in(6);
  if (options.faults && choices.one_in(5)) {
    spec.corrupt =
        static_cast<Corrupt>(1 + choices.below(static_cast<std::int64_t>(Corrupt::KeyOffset)));
  }
  spec.seed = 1 + static_cast<std::uint64_t>(choices.below(1000));
  return spec;
}

/// What depends on choices made before.
Case finish(Choices& choices, Case spec, const DrawOptions& options) {
  spec.local_blocks = std::min(spec.local_blocks, spec.topk);
  spec.init_blocks = std::min(spec.init_blocks, spec.topk - spec.local_blocks);
  if (spec.op == Op::IndexLoss) {
    spec.index_k.reset();
    if (spec.index_dtype == DType::E4M3) spec.index_dtype.reset();
  }
  if (derives(spec.op)) {
    spec.kv.reset();
    spec.page_size = 0;
  }
  if (derives(spec.op) || !reads_attention_keys(spec.op)) spec.dtype = spec.wide_type();
  if (spec.page_size == 0 && spec.layout == Layout::SlotMajor) spec.layout = Layout::Separate;
  if (spec.page_size == 0 && spec.kv_format().scale == Scale::Page) spec.kv->scale = Scale::Token;
  if (spec.page_size == 0 && spec.index_k_format().scale == Scale::Page)
    spec.index_k->scale = Scale::Token;
  if (spec.index_k || spec.index_k_format().storage == DType::E4M3) spec.filter = false;
  const std::int64_t dim = spec.dim_index();
  const bool filters = spec.filter || copies_index(spec.op);
  if (!filters || (dim & (dim - 1)) != 0 || dim > kMaxCodedDim) spec.rotated = false;
  if (!spec.filter || !takes_filter(spec.op)) spec.precision = Precision::Exact;
  choose_lengths(choices, spec);
  for (Lengths& r : spec.lengths) {
    if (!stores_keys(spec.op)) break;
    r = {.seqlen_q = std::min(r.seqlen_q, r.seqlen_k), .seqlen_k = r.seqlen_k};
  }
  if (copies_index(spec.op)) {
    spec.index_k.reset();
    if (spec.index_dtype == DType::E4M3) spec.index_dtype.reset();
    spec.filter = false;
  }
  for (Lengths& r : spec.lengths) {
    if (spec.op != Op::IndexLoss) break;
    r.key_offset = 0;
    r.total_k.reset();
  }
  choose_outputs(choices, spec);
  if (spec.op == Op::IndexLoss && spec.grads == Grads::Values) spec.grads = Grads::Loss;
  fit(spec, options.max_work);
  for (Lengths& r : spec.lengths) {
    if (!copies_index(spec.op)) break;
    r = {.seqlen_q = std::min(r.seqlen_q, r.seqlen_k), .seqlen_k = r.seqlen_k};
  }
  return spec;
}

/// One of the values that a table's line allows. Pages are as often small as large.
const std::string& choose_value(Choices& choices, const SupportTable::Condition& condition) {
  const auto count = static_cast<std::int64_t>(condition.values.size());
  const std::int64_t reach = choices.one_in(2) ? count : std::min<std::int64_t>(count, 6);
  return condition.values[static_cast<std::size_t>(choices.below(reach))];
}

}  // namespace

Case draw_case(Choices& choices, const DrawOptions& options) {
  return finish(choices, choose_all(choices, options), options);
}

Case draw_case_inside(Choices& choices, const SupportTable& table, const DrawOptions& options) {
  Case spec = choose_all(choices, options);
  const auto lines = static_cast<std::int64_t>(table.lines().size());
  if (lines == 0) throw CaseError("the support table is empty");
  std::int64_t group = 0, queries = -1;
  bool maxima = true, varies = true;
  for (const SupportTable::Condition& c : table.lines()[choices.below(lines)]) {
    const std::string& value = choose_value(choices, c);
    if (c.key == "block_max" && value == "0") maxima = false;
    if (c.key == "batch_invariant" && value == "0") varies = false;
    if (c.key == "group") {
      group = read_integer(value);
    } else if (c.key == "queries") {
      queries = read_integer(value);
    } else if (value != "huge") {
      set_case_value(spec, c.key, value);
    } else {
      spec.strides = Strides::Dense;
    }
  }
  if (group > 0) {
    if (group > 16) spec.heads_kv = 1;
    if (spec.index_heads_k > 1) spec.index_heads_k = spec.heads_kv;
    spec.heads_q = spec.heads_kv * group;
  }
  spec = finish(choices, spec, options);
  if (queries >= 0) {
    spec.slack = 0;
    for (Lengths& lengths : spec.lengths) lengths.seqlen_q = std::min(lengths.seqlen_q, queries);
  }
  // Options and outputs are chosen last; what the line says of them holds.
  if (!varies) spec.batch_invariant = false;
  if (!maxima) {
    spec.block_max = false;
    spec.output = true;
  }
  return spec;
}

}  // namespace msa::testkit
