// SPDX-License-Identifier: MIT
// The tables of all operations behind one type, and what their words mean.
#include "core/fields.h"

#include <algorithm>
#include <iterator>

#include "core/fail.h"
#include "core/geometry.h"
#include "core/validate.h"

namespace msa {
namespace core {
namespace {

/// Inputs, the batch, outputs.
template <class Args>
constexpr auto joined() {
  constexpr auto& own = FieldsOf<Args>::kFields;
  constexpr std::size_t lengths = table::batch_fields(FieldsOf<Args>::kBatch);
  std::array<Field, own.size() + lengths> all{};
  std::size_t n = 0;
  for (const auto& row : own) {
    if (row.field.is_input()) all[n++] = row.field;
  }
  for (std::size_t i = 0; i < table::kBatch.size(); ++i) {
    if (table::takes(FieldsOf<Args>::kBatch, i)) all[n++] = table::kBatch[i];
  }
  for (const auto& row : own) {
    if (!row.field.is_input()) all[n++] = row.field;
  }
  return all;
}

template <class Args>
constexpr auto kTable = joined<Args>();

struct Letter {
  std::string_view text;
  Axis axis;
};

constexpr Letter kLetters[] = {
    {"T", Axis::Rows},
    {"Hq", Axis::HeadsQ},
    {"Hkv", Axis::HeadsKv},
    {"D", Axis::HeadDim},
    {"Dv", Axis::ValueDim},
    {"D / 16", Axis::HeadGroups},
    {"Dv / 16", Axis::ValueGroups},
    {"Di / 16", Axis::IndexGroups},
    {"Hi", Axis::IndexHeads},
    {"Hik", Axis::IndexHeadsK},
    {"Di", Axis::IndexDim},
    {"N", Axis::Keys},
    {"P", Axis::Pool},
    {"F", Axis::BoundGroups},
    {"1", Axis::One},
    {"3", Axis::Three},
    {"blocks", Axis::Blocks},
    {"k", Axis::Topk},
    {"part k", Axis::PartTopk},
    {"B", Axis::Requests},
    {"B + 1", Axis::Starts},
    {"pages", Axis::Pages},
    {"rows + 1", Axis::InverseRows},
    {"T * k", Axis::InverseSlots},
};

/// Reads "[T, Hq, D]". A letter that nobody knows is refused while the library is compiled.
constexpr Axes parse(std::string_view shape) {
  Axes axes;
  shape = shape.substr(1, shape.size() - 2);
  while (!shape.empty()) {
    const std::size_t comma = std::min(shape.find(", "), shape.size());
    const std::string_view word = shape.substr(0, comma);
    const auto* const letter =
        std::find_if(std::begin(kLetters), std::end(kLetters),
                     [word](const Letter& known) { return known.text == word; });
    if (letter == std::end(kLetters)) throw "a letter that no shape has";
    axes.axis[static_cast<std::size_t>(axes.rank++)] = letter->axis;
    shape.remove_prefix(std::min(comma + 2, shape.size()));
  }
  return axes;
}

template <class Args>
constexpr auto parsed() {
  std::array<Axes, kTable<Args>.size()> all{};
  for (std::size_t i = 0; i < all.size(); ++i) all[i] = parse(kTable<Args>[i].shape);
  return all;
}

template <class Args>
constexpr auto kAxes = parsed<Args>();

/// One switch for everything that is asked of an operation's table.
template <class Visit>
auto with_table(Op op, const Visit& visit) {
  switch (op) {
    case Op::DenseAttention:
      return visit.template operator()<DenseAttentionArgs>();
    case Op::BlockScores:
      return visit.template operator()<BlockScoresArgs>();
    case Op::SelectTopk:
      return visit.template operator()<SelectTopkArgs>();
    case Op::SelectBlocks:
      return visit.template operator()<SelectBlocksArgs>();
    case Op::SparseAttention:
      return visit.template operator()<SparseAttentionArgs>();
    case Op::MsaAttention:
      return visit.template operator()<MsaAttentionArgs>();
    case Op::MergeStates:
      return visit.template operator()<MergeStatesArgs>();
    case Op::MergeSelections:
      return visit.template operator()<MergeSelectionsArgs>();
    case Op::InvertSelection:
      return visit.template operator()<InvertSelectionArgs>();
    case Op::QuantizeKv:
      return visit.template operator()<QuantizeKvArgs>();
    case Op::QuantizeIndex:
      return visit.template operator()<QuantizeIndexArgs>();
    case Op::SparseAttentionBackward:
      return visit.template operator()<SparseAttentionBackwardArgs>();
    case Op::DenseAttentionBackward:
      return visit.template operator()<DenseAttentionBackwardArgs>();
    case Op::IndexLoss:
      return visit.template operator()<IndexLossArgs>();
  }
  return decltype(visit.template operator()<DenseAttentionArgs>()){};
}

std::int64_t extent_of(const Problem& p, std::int64_t rows, std::int64_t keys,
                       std::int64_t blocks_of_batch, Axis axis) {
  switch (axis) {
    case Axis::Rows:
      return rows;
    case Axis::HeadsQ:
      return p.attention.heads_q;
    case Axis::HeadsKv:
      return p.attention.heads_kv;
    case Axis::HeadDim:
      return p.attention.head_dim;
    case Axis::ValueDim:
      return p.attention.value_dim;
    case Axis::HeadGroups:
      return p.attention.head_dim / kGroup;
    case Axis::ValueGroups:
      return p.attention.value_dim / kGroup;
    case Axis::IndexGroups:
      return p.index.dim / kGroup;
    case Axis::IndexHeads:
      return p.index.heads;
    case Axis::IndexHeadsK:
      return p.index.heads_k;
    case Axis::IndexDim:
      return p.index.dim;
    case Axis::Blocks:
      return ceil_div(p.bounds.max_seqlen_k, p.selection.block_size);
    case Axis::Topk:
      return p.selection.topk;
    case Axis::InverseRows:
      return blocks_of_batch + 1;
    case Axis::InverseSlots:
      return rows * p.selection.topk;
    case Axis::Keys:
      return keys;
    case Axis::BoundGroups:
      return p.bounds.page_size != 0 ? rows : ceil_div(rows, kFilterRows);
    case Axis::Three:
      return 3;
    // Of inputs alone: their tensors say.
    case Axis::Pool:
    case Axis::One:
    case Axis::PartTopk:
    case Axis::Requests:
    case Axis::Starts:
    case Axis::Pages:
      return 0;
  }
  return 0;
}

Tensor output(const Problem& problem, const Operands& operands, const Field& field) {
  if (field.is_input()) {
    fail(ErrorCode::InvalidArgument, std::string(field.name), "", "an output", "an input");
  }
  validate_problem(problem);
  if (op_traits(problem.op).stores && problem.bounds.page_size != 0) {
    fail(ErrorCode::InvalidArgument, std::string(field.name), "",
         "a cache of the caller's, as the problem is for pages", "none");
  }
  if (op_traits(problem.op).copies && operands.batch.q_offsets) {
    fail(ErrorCode::InvalidArgument, std::string(field.name), "",
         "a copy of the caller's, as batch.q_offsets leaves pages as they are", "none");
  }
  if (problem.gradients.accumulate && accumulates(field)) {
    fail(ErrorCode::InvalidArgument, std::string(field.name), "",
         "a tensor of the caller's, as the call adds to it", "none");
  }
  const Axes axes = holds_scales(field) ? axes_of_scales(problem, field) : parse(field.shape);
  const std::int64_t blocks =
      problem.bounds.batch * ceil_div(problem.bounds.max_seqlen_k, problem.selection.block_size);
  const std::int64_t rows = rows_of(problem.op, operands);
  // Gradients of keys have their rows; what is stored goes row for row.
  const std::int64_t keys = op_traits(problem.op).derives ? operands.k.shape[0] : rows;
  Tensor tensor{
      .dtype = dtype_of(problem, field.element), .device = problem.device, .rank = axes.rank};
  std::size_t rank = 0;
  for (std::size_t i = 0; i < static_cast<std::size_t>(axes.rank); ++i) {
    tensor.shape[rank++] = extent_of(problem, rows, keys, blocks, axes.axis[i]);
    if (axes.axis[i] == Axis::Keys && problem.bounds.page_size != 0)
      tensor.shape[rank++] = problem.bounds.page_size;
  }
  tensor.rank = static_cast<int>(rank);
  std::int64_t stride = 1;
  while (rank-- > 0) {
    tensor.stride[rank] = stride;
    stride *= std::max<std::int64_t>(tensor.shape[rank], 1);
  }
  return tensor;
}

}  // namespace

std::span<const Axes> axes_of(Op op) {
  return with_table(op, []<class Args>() { return std::span<const Axes>(kAxes<Args>); });
}

Axes axes_of_scales(const Problem& problem, const Field& field) {
  const bool index = field.element == Element::IndexKScale;
  const bool values =
      field.tensor == &Operands::v_scale || field.tensor == &Operands::v_scale_cache;
  switch (scale_of(problem, field)) {
    case Scale::None:
      break;
    case Scale::Tensor:
      return parse("[1]");
    case Scale::Head:
      return index ? parse("[Hik]") : parse("[Hkv]");
    case Scale::Page:
      return index ? parse("[P, Hik]") : parse("[P, Hkv]");
    case Scale::Token:
      return index ? parse("[N, Hik]") : parse("[N, Hkv]");
    case Scale::Group:
    case Scale::GroupTensor:
      if (index) return parse("[N, Hik, Di / 16]");
      return values ? parse("[N, Hkv, Dv / 16]") : parse("[N, Hkv, D / 16]");
  }
  return {};
}

std::int64_t rows_of(Op op, const Operands& operands) {
  for (const Field& field : fields_of(op)) {
    if (field.tensor != nullptr) return field.in(operands).shape[0];
    if (field.parts == nullptr) continue;
    const Parts& parts = operands.*field.parts;
    return parts.empty() ? 0 : parts[0].shape[0];
  }
  return 0;
}

bool is_planned(const Problem& problem, const Field& field) {
  const Scale scale = scale_of(problem, field);
  if (holds_scales(field) && scale == Scale::None) return false;
  if (field.element == Element::KvScale && op_traits(problem.op).stores)
    return is_computed(scale) != field.is_input();
  if (holds_global_scale(field) && scale != Scale::GroupTensor) return false;
  const bool filter = field.element == Element::Filter || field.element == Element::FilterBounds ||
                      field.tensor == &Operands::candidates;
  if (filter && !problem.index.filter) return false;
  if (field.tensor == &Operands::candidates && problem.selection.precision == Precision::Fast)
    return false;  // none are scored from index keys
  // Taken where they are given.
  if (field.tensor == &Operands::dlse || field.tensor == &Operands::row_weight) return false;
  if (field.tensor == &Operands::block_ids_in) return problem.selection.topk > 0;
  return field.planned == nullptr || problem.outputs.*field.planned;
}

DType dtype_of(const Problem& p, Element element) {
  switch (element) {
    case Element::Q:
      return p.attention.q.storage;
    case Element::Kv:
      return kv_format(p).storage;
    case Element::KvScale:
      return counts_groups(kv_format(p).scale) ? DType::E4M3 : DType::F32;
    case Element::KvGlobalScale:
    case Element::IndexKGlobalScale:
      return DType::F32;
    case Element::IndexQ:
      return p.index.q.storage;
    case Element::IndexK:
      return index_k_format(p).storage;
    case Element::Out:
      return p.outputs.dtype;
    case Element::F32:
      return DType::F32;
    case Element::I32:
      return DType::I32;
    case Element::Filter:
      return p.index.filter.value_or(Format{DType::I8}).storage;
    case Element::FilterBounds:
      return DType::F32;
    case Element::IndexKScale:
      return counts_groups(index_k_format(p).scale) ? DType::E4M3 : DType::F32;
    case Element::Gradient:
    case Element::IndexGradient:
      return p.gradients.dtype;
  }
  return DType::F32;
}

}  // namespace core

const char* to_string(Element element) noexcept {
  switch (element) {
    case Element::Q:
      return "q";
    case Element::Kv:
      return "kv";
    case Element::KvScale:
      return "kv_scale";
    case Element::KvGlobalScale:
      return "kv_global_scale";
    case Element::IndexQ:
      return "index_q";
    case Element::IndexK:
      return "index_k";
    case Element::Out:
      return "out";
    case Element::F32:
      return "f32";
    case Element::I32:
      return "i32";
    case Element::Filter:
      return "filter";
    case Element::FilterBounds:
      return "filter_bounds";
    case Element::IndexKScale:
      return "index_k_scale";
    case Element::IndexKGlobalScale:
      return "index_k_global_scale";
    case Element::Gradient:
      return "gradient";
    case Element::IndexGradient:
      return "index_gradient";
  }
  return "unknown";
}

std::span<const Field> fields_of(Op op) noexcept {
  return core::with_table(op,
                          []<class Args>() { return std::span<const Field>(core::kTable<Args>); });
}

Tensor output_of(const Problem& problem, const Operands& operands, const Field& field) {
  return core::output(problem, operands, field);
}

}  // namespace msa
