// SPDX-License-Identifier: MIT
// The table of fields: for each operation its tensors, where they lie in its argument struct, their
// role and the rule of their shape. Gathering, validation, the C interface, the Python stubs and
// docs/api.md derive from it; a new operation is one more table here.
#pragma once

#include <array>
#include <cstddef>

#include "core/op_traits.h"
#include "msa/operands.h"

namespace msa::core {

/// A field of an argument struct: its place there and what it is.
template <class Args>
struct ArgsField {
  Field field{};
  Tensor Args::*tensor = nullptr;
  Parts Args::*parts = nullptr;
};

/// Which tensors of Batch an operation takes.
enum class BatchKind : std::uint8_t {
  None,     // merges
  Lengths,  // lengths and positions, no keys
  Keys,     // and where the keys lie
  Whole,    // the same without shards
  Append,   // lengths, and pages to write to
  Stored,   // lengths, positions and where the keys lie, without queries
};

namespace table {

// What each tensor is, whatever operation takes it.
inline constexpr Field kQ{"q", "[T, Hq, D]", Element::Q, Role::Input, &Operands::q};
inline constexpr Field kK{"k", "[N, Hkv, D]", Element::Kv, Role::Input, &Operands::k};
inline constexpr Field kV{"v", "[N, Hkv, Dv]", Element::Kv, Role::Input, &Operands::v};
inline constexpr Field kKScale{"k_scale", "[N, Hkv]", Element::KvScale, Role::OptionalInput,
                               &Operands::k_scale};
inline constexpr Field kVScale{"v_scale", "[N, Hkv]", Element::KvScale, Role::OptionalInput,
                               &Operands::v_scale};
inline constexpr Field kKGlobalScale{"k_global_scale", "[1]", Element::KvGlobalScale,
                                     Role::OptionalInput, &Operands::k_global_scale};
inline constexpr Field kVGlobalScale{"v_global_scale", "[1]", Element::KvGlobalScale,
                                     Role::OptionalInput, &Operands::v_global_scale};
inline constexpr Field kIndexQ{"index_q", "[T, Hi, Di]", Element::IndexQ, Role::Input,
                               &Operands::index_q};
inline constexpr Field kIndexK{"index_k", "[N, Hik, Di]", Element::IndexK, Role::Input,
                               &Operands::index_k};
inline constexpr Field kIndexKScale{"index_k_scale", "[N, Hik]", Element::IndexKScale,
                                    Role::OptionalInput, &Operands::index_k_scale};
inline constexpr Field kIndexKGlobalScale{"index_k_global_scale", "[1]", Element::IndexKGlobalScale,
                                          Role::OptionalInput, &Operands::index_k_global_scale};
inline constexpr Field kIndexK8{"index_k8", "[N, Hik, Di]", Element::Filter, Role::OptionalInput,
                                &Operands::index_k8};
inline constexpr Field kIndexK8Bounds{"index_k8_bounds", "[F, Hik, 3]", Element::FilterBounds,
                                      Role::OptionalInput, &Operands::index_k8_bounds};
inline constexpr Field kScoresIn{"scores", "[T, Hi, blocks]", Element::F32, Role::Input,
                                 &Operands::scores_in};
inline constexpr Field kListed{"block_ids", "[T, Hkv, k]", Element::I32, Role::Input,
                               &Operands::block_ids_in};
inline constexpr Field kKRows{"k_rows", "[T, Hkv, D]", Element::Q, Role::Input, &Operands::k_rows};
inline constexpr Field kVRows{"v_rows", "[T, Hkv, Dv]", Element::Q, Role::Input, &Operands::v_rows};
inline constexpr Field kKCache{"k_cache", "[N, Hkv, D]", Element::Kv, Role::Output,
                               &Operands::k_cache};
inline constexpr Field kVCache{"v_cache", "[N, Hkv, Dv]", Element::Kv, Role::Output,
                               &Operands::v_cache};
inline constexpr Field kKScaleCache{"k_scale_cache", "[N, Hkv]", Element::KvScale,
                                    Role::OptionalOutput, &Operands::k_scale_cache};
inline constexpr Field kVScaleCache{"v_scale_cache", "[N, Hkv]", Element::KvScale,
                                    Role::OptionalOutput, &Operands::v_scale_cache};
inline constexpr Field kIndexK8Out{"index_k8", "[N, Hik, Di]", Element::Filter, Role::Output,
                                   &Operands::index_k8_out};
inline constexpr Field kIndexK8BoundsOut{"index_k8_bounds", "[F, Hik, 3]", Element::FilterBounds,
                                         Role::Output, &Operands::index_k8_bounds_out};
inline constexpr Field kOutIn{"out", "[T, Hq, Dv]", Element::Out, Role::Input, &Operands::out_in};
inline constexpr Field kLseIn{"lse", "[T, Hq]", Element::F32, Role::Input, &Operands::lse_in};
inline constexpr Field kDout{"dout", "[T, Hq, Dv]", Element::Out, Role::Input, &Operands::dout};
inline constexpr Field kDlse{"dlse", "[T, Hq]", Element::F32, Role::OptionalInput, &Operands::dlse};
inline constexpr Field kRowWeight{"row_weight", "[T]", Element::F32, Role::OptionalInput,
                                  &Operands::row_weight};
inline constexpr Field kOut{"out", "[T, Hq, Dv]", Element::Out, Role::Output, &Operands::out};
inline constexpr Field kScores{"scores", "[T, Hi, blocks]", Element::F32, Role::Output,
                               &Operands::scores};
inline constexpr Field kChosen{"block_ids", "[T, Hi, k]", Element::I32, Role::Output,
                               &Operands::block_ids};
inline constexpr Field kMerged{"block_ids", "[T, Hkv, k]", Element::I32, Role::Output,
                               &Operands::block_ids};
inline constexpr Field kRowPtr{"row_ptr", "[Hkv, rows + 1]", Element::I32, Role::Output,
                               &Operands::row_ptr};
inline constexpr Field kQIndices{"q_indices", "[Hkv, T * k]", Element::I32, Role::Output,
                                 &Operands::q_indices};
inline constexpr Field kQSlots{"q_slots", "[Hkv, T * k]", Element::I32, Role::Output,
                               &Operands::q_slots};

/// An output that the problem may leave out.
constexpr Field optional_output(Field field, bool Outputs::*planned) {
  field.role = Role::OptionalOutput;
  field.planned = planned;
  return field;
}

/// An input that may be left out where the problem's flag is not set.
constexpr Field needed_where(bool Outputs::*planned, Field field) {
  field.role = Role::OptionalInput;
  field.planned = planned;
  return field;
}

inline constexpr Field kLse =
    optional_output({"lse", "[T, Hq]", Element::F32, Role::Output, &Operands::lse}, &Outputs::lse);
inline constexpr Field kBlockMax = optional_output(
    {"block_max", "[T, Hq, blocks]", Element::F32, Role::Output, &Operands::block_max},
    &Outputs::block_max);
inline constexpr Field kChosenScores = optional_output(
    {"chosen_scores", "[T, Hi, k]", Element::F32, Role::Output, &Operands::chosen_scores},
    &Outputs::chosen_scores);
inline constexpr Field kMergedScores = optional_output(
    {"chosen_scores", "[T, Hkv, k]", Element::F32, Role::Output, &Operands::chosen_scores},
    &Outputs::chosen_scores);

// Written where somebody wants them; no flag of the problem.
inline constexpr Field kCandidates = optional_output(
    {"candidates", "[T, Hi]", Element::I32, Role::Output, &Operands::candidates}, nullptr);

inline constexpr Field kDq =
    optional_output({"dq", "[T, Hq, D]", Element::Gradient, Role::Output, &Operands::dq}, nullptr);
inline constexpr Field kDk =
    optional_output({"dk", "[N, Hkv, D]", Element::Gradient, Role::Output, &Operands::dk}, nullptr);
inline constexpr Field kDv = optional_output(
    {"dv", "[N, Hkv, Dv]", Element::Gradient, Role::Output, &Operands::dv}, nullptr);

inline constexpr Field kLoss =
    optional_output({"loss", "[T, Hi]", Element::F32, Role::Output, &Operands::loss}, nullptr);
inline constexpr Field kDIndexQ = optional_output(
    {"d_index_q", "[T, Hi, Di]", Element::IndexGradient, Role::Output, &Operands::d_index_q},
    nullptr);
inline constexpr Field kDIndexK = optional_output(
    {"d_index_k", "[N, Hik, Di]", Element::IndexGradient, Role::Output, &Operands::d_index_k},
    nullptr);

/// Parts of a merge.
constexpr Field list_of(const char* name, const char* shape, Element element,
                        Parts Operands::*parts) {
  return {name, shape, element, Role::Input, nullptr, nullptr, parts};
}

inline constexpr Field kOuts = list_of("outs", "[T, Hq, Dv]", Element::Q, &Operands::part_outs);
inline constexpr Field kLses = list_of("lses", "[T, Hq]", Element::F32, &Operands::part_lses);
inline constexpr Field kIdsParts =
    list_of("block_ids_parts", "[T, Hkv, part k]", Element::I32, &Operands::part_ids);
inline constexpr Field kScoresParts =
    list_of("chosen_scores_parts", "[T, Hkv, part k]", Element::F32, &Operands::part_scores);

/// A tensor of the batch; validation says when it must be there.
constexpr Field length(const char* name, const char* shape, Tensor Batch::*tensor) {
  return {name, shape, Element::I32, Role::OptionalInput, nullptr, tensor};
}

/// In the order in which they are checked; the last kKeyFields say where keys lie.
inline constexpr auto kBatch = std::to_array<Field>({
    length("batch.cu_seqlens_q", "[B + 1]", &Batch::cu_seqlens_q),
    length("batch.seqlens_k", "[B]", &Batch::seqlens_k),
    length("batch.q_offsets", "[B]", &Batch::q_offsets),
    length("batch.key_offsets", "[B]", &Batch::key_offsets),
    length("batch.total_seqlens_k", "[B]", &Batch::total_seqlens_k),
    length("batch.cu_seqlens_k", "[B + 1]", &Batch::cu_seqlens_k),
    length("batch.page_table", "[B, pages]", &Batch::page_table),
});

inline constexpr std::size_t kKeyFields = 2;

constexpr bool takes(BatchKind kind, std::size_t field) {
  switch (kind) {
    case BatchKind::None:
      return false;
    case BatchKind::Lengths:
      return field < kBatch.size() - kKeyFields;
    case BatchKind::Keys:
      return true;
    case BatchKind::Whole:
      return field < 3 || field + kKeyFields >= kBatch.size();
    case BatchKind::Append:
      return field < 2 || field + 1 == kBatch.size();
    case BatchKind::Stored:
      return field == 1 || field == 2 || field + kKeyFields >= kBatch.size();
  }
  return false;
}

constexpr std::size_t batch_fields(BatchKind kind) {
  std::size_t count = 0;
  for (std::size_t i = 0; i < kBatch.size(); ++i) count += takes(kind, i) ? 1 : 0;
  return count;
}

}  // namespace table

/// The table of an argument struct: kOp, kBatch and kFields, inputs first.
template <class Args>
struct FieldsOf;

template <>
struct FieldsOf<DenseAttentionArgs> {
  using A = DenseAttentionArgs;
  static constexpr Op kOp = Op::DenseAttention;
  static constexpr BatchKind kBatch = BatchKind::Keys;
  static constexpr auto kFields = std::to_array<ArgsField<A>>({
      {table::kQ, &A::q},
      {table::kK, &A::k},
      {table::needed_where(&Outputs::out, table::kV), &A::v},  // block maxima need no values
      {table::kKScale, &A::k_scale},
      {table::needed_where(&Outputs::out, table::kVScale), &A::v_scale},
      {table::kKGlobalScale, &A::k_global_scale},
      {table::needed_where(&Outputs::out, table::kVGlobalScale), &A::v_global_scale},
      {table::optional_output(table::kOut, &Outputs::out), &A::out},
      {table::kLse, &A::lse},
      {table::kBlockMax, &A::block_max},
  });
};

template <>
struct FieldsOf<BlockScoresArgs> {
  using A = BlockScoresArgs;
  static constexpr Op kOp = Op::BlockScores;
  static constexpr BatchKind kBatch = BatchKind::Keys;
  static constexpr auto kFields = std::to_array<ArgsField<A>>({
      {table::kIndexQ, &A::index_q},
      {table::kIndexK, &A::index_k},
      {table::kIndexKScale, &A::index_k_scale},
      {table::kIndexKGlobalScale, &A::index_k_global_scale},
      {table::kScores, &A::scores},
  });
};

template <>
struct FieldsOf<SelectTopkArgs> {
  using A = SelectTopkArgs;
  static constexpr Op kOp = Op::SelectTopk;
  static constexpr BatchKind kBatch = BatchKind::Lengths;
  static constexpr auto kFields = std::to_array<ArgsField<A>>({
      {table::kScoresIn, &A::scores},
      {table::kChosen, &A::block_ids},
      {table::kChosenScores, &A::chosen_scores},
  });
};

template <>
struct FieldsOf<SelectBlocksArgs> {
  using A = SelectBlocksArgs;
  static constexpr Op kOp = Op::SelectBlocks;
  static constexpr BatchKind kBatch = BatchKind::Keys;
  static constexpr auto kFields = std::to_array<ArgsField<A>>({
      {table::kIndexQ, &A::index_q},
      {table::kIndexK, &A::index_k},
      {table::kIndexKScale, &A::index_k_scale},
      {table::kIndexKGlobalScale, &A::index_k_global_scale},
      {table::kIndexK8, &A::index_k8},
      {table::kIndexK8Bounds, &A::index_k8_bounds},
      {table::kChosen, &A::block_ids},
      {table::kChosenScores, &A::chosen_scores},
      {table::kCandidates, &A::candidates},
  });
};

template <>
struct FieldsOf<SparseAttentionArgs> {
  using A = SparseAttentionArgs;
  static constexpr Op kOp = Op::SparseAttention;
  static constexpr BatchKind kBatch = BatchKind::Keys;
  static constexpr auto kFields = std::to_array<ArgsField<A>>({
      {table::kQ, &A::q},
      {table::kK, &A::k},
      {table::kV, &A::v},
      {table::kListed, &A::block_ids},
      {table::kKScale, &A::k_scale},
      {table::kVScale, &A::v_scale},
      {table::kKGlobalScale, &A::k_global_scale},
      {table::kVGlobalScale, &A::v_global_scale},
      {table::kOut, &A::out},
      {table::kLse, &A::lse},
  });
};

template <>
struct FieldsOf<MsaAttentionArgs> {
  using A = MsaAttentionArgs;
  static constexpr Op kOp = Op::MsaAttention;
  static constexpr BatchKind kBatch = BatchKind::Keys;
  static constexpr auto kFields = std::to_array<ArgsField<A>>({
      {table::kQ, &A::q},
      {table::kK, &A::k},
      {table::kV, &A::v},
      {table::kIndexQ, &A::index_q},
      {table::kIndexK, &A::index_k},
      {table::kKScale, &A::k_scale},
      {table::kVScale, &A::v_scale},
      {table::kKGlobalScale, &A::k_global_scale},
      {table::kVGlobalScale, &A::v_global_scale},
      {table::kIndexKScale, &A::index_k_scale},
      {table::kIndexKGlobalScale, &A::index_k_global_scale},
      {table::kIndexK8, &A::index_k8},
      {table::kIndexK8Bounds, &A::index_k8_bounds},
      {table::kOut, &A::out},
      {table::kLse, &A::lse},
      // Written where somebody wants them; no flag of the problem.
      {table::optional_output(table::kChosen, nullptr), &A::block_ids},
  });
};

template <>
struct FieldsOf<MergeStatesArgs> {
  using A = MergeStatesArgs;
  static constexpr Op kOp = Op::MergeStates;
  static constexpr BatchKind kBatch = BatchKind::None;
  static constexpr auto kFields = std::to_array<ArgsField<A>>({
      {table::kOuts, nullptr, &A::outs},
      {table::kLses, nullptr, &A::lses},
      {table::kOut, &A::out},
      {table::kLse, &A::lse},
  });
};

template <>
struct FieldsOf<MergeSelectionsArgs> {
  using A = MergeSelectionsArgs;
  static constexpr Op kOp = Op::MergeSelections;
  static constexpr BatchKind kBatch = BatchKind::None;
  static constexpr auto kFields = std::to_array<ArgsField<A>>({
      {table::kIdsParts, nullptr, &A::block_ids_parts},
      {table::kScoresParts, nullptr, &A::chosen_scores_parts},
      {table::kMerged, &A::block_ids},
      {table::kMergedScores, &A::chosen_scores},
  });
};

template <>
struct FieldsOf<InvertSelectionArgs> {
  using A = InvertSelectionArgs;
  static constexpr Op kOp = Op::InvertSelection;
  static constexpr BatchKind kBatch = BatchKind::Lengths;
  static constexpr auto kFields = std::to_array<ArgsField<A>>({
      {table::kListed, &A::block_ids},
      {table::kRowPtr, &A::row_ptr},
      {table::kQIndices, &A::q_indices},
      {table::kQSlots, &A::q_slots},
  });
};

template <>
struct FieldsOf<QuantizeKvArgs> {
  using A = QuantizeKvArgs;
  static constexpr Op kOp = Op::QuantizeKv;
  static constexpr BatchKind kBatch = BatchKind::Append;
  static constexpr auto kFields = std::to_array<ArgsField<A>>({
      {table::kKRows, &A::k_rows},
      {table::kVRows, &A::v_rows},
      {table::kKScale, &A::k_scale},
      {table::kVScale, &A::v_scale},
      {table::kKGlobalScale, &A::k_global_scale},
      {table::kVGlobalScale, &A::v_global_scale},
      {table::kKCache, &A::k_cache},
      {table::kVCache, &A::v_cache},
      {table::kKScaleCache, &A::k_scale_cache},
      {table::kVScaleCache, &A::v_scale_cache},
  });
};

template <>
struct FieldsOf<QuantizeIndexArgs> {
  using A = QuantizeIndexArgs;
  static constexpr Op kOp = Op::QuantizeIndex;
  static constexpr BatchKind kBatch = BatchKind::Stored;
  static constexpr auto kFields = std::to_array<ArgsField<A>>({
      {table::kIndexK, &A::index_k},
      {table::kIndexK8Out, &A::index_k8},
      {table::kIndexK8BoundsOut, &A::index_k8_bounds},
  });
};

template <>
struct FieldsOf<SparseAttentionBackwardArgs> {
  using A = SparseAttentionBackwardArgs;
  static constexpr Op kOp = Op::SparseAttentionBackward;
  static constexpr BatchKind kBatch = BatchKind::Keys;
  static constexpr auto kFields = std::to_array<ArgsField<A>>({
      {table::kQ, &A::q},
      {table::kK, &A::k},
      {table::kV, &A::v},
      {table::kListed, &A::block_ids},
      {table::kOutIn, &A::out},
      {table::kLseIn, &A::lse},
      {table::kDout, &A::dout},
      {table::kDlse, &A::dlse},
      {table::kDq, &A::dq},
      {table::kDk, &A::dk},
      {table::kDv, &A::dv},
  });
};

template <>
struct FieldsOf<DenseAttentionBackwardArgs> {
  using A = DenseAttentionBackwardArgs;
  static constexpr Op kOp = Op::DenseAttentionBackward;
  static constexpr BatchKind kBatch = BatchKind::Keys;
  static constexpr auto kFields = std::to_array<ArgsField<A>>({
      {table::kQ, &A::q},
      {table::kK, &A::k},
      {table::kV, &A::v},
      {table::kOutIn, &A::out},
      {table::kLseIn, &A::lse},
      {table::kDout, &A::dout},
      {table::kDlse, &A::dlse},
      {table::kDq, &A::dq},
      {table::kDk, &A::dk},
      {table::kDv, &A::dv},
  });
};

template <>
struct FieldsOf<IndexLossArgs> {
  using A = IndexLossArgs;
  static constexpr Op kOp = Op::IndexLoss;
  static constexpr BatchKind kBatch = BatchKind::Whole;
  static constexpr auto kFields = std::to_array<ArgsField<A>>({
      {table::kQ, &A::q},
      {table::kK, &A::k},
      {table::kLseIn, &A::lse},
      {table::kIndexQ, &A::index_q},
      {table::kIndexK, &A::index_k},
      {table::needed_where(nullptr, table::kListed), &A::block_ids},
      {table::kRowWeight, &A::row_weight},
      {table::kLoss, &A::loss},
      {table::kDIndexQ, &A::d_index_q},
      {table::kDIndexK, &A::d_index_k},
  });
};

/// The tensors of an argument struct under the names that all operations share.
template <class Args>
Operands gather(const Args& args) {
  Operands operands;
  for (const ArgsField<Args>& row : FieldsOf<Args>::kFields) {
    if (row.parts != nullptr) {
      operands.*row.field.parts = args.*row.parts;
    } else {
      operands.*row.field.tensor = args.*row.tensor;
    }
  }
  if constexpr (FieldsOf<Args>::kBatch != BatchKind::None) operands.batch = args.batch;
  return operands;
}

/// What one letter of a shape stands for.
enum class Axis : std::uint8_t {
  Rows,          // T
  HeadsQ,        // Hq
  HeadsKv,       // Hkv
  HeadDim,       // D
  ValueDim,      // Dv
  HeadGroups,    // D / 16
  ValueGroups,   // Dv / 16
  IndexGroups,   // Di / 16
  IndexHeads,    // Hi
  IndexHeadsK,   // Hik
  IndexDim,      // Di
  Keys,          // N: rows, or pages and their tokens
  Pool,          // P: pages alone
  BoundGroups,   // F: pages, or groups of kFilterRows rows
  One,           // 1
  Three,         // 3
  Blocks,        // blocks
  Topk,          // k
  PartTopk,      // part k
  Requests,      // B
  Starts,        // B + 1
  Pages,         // pages
  InverseRows,   // rows + 1
  InverseSlots,  // T * k
};

struct Axes {
  std::array<Axis, kMaxRank> axis{};
  int rank = 0;
};

/// The letters of the shapes of fields_of(op), one entry a field.
std::span<const Axes> axes_of(Op op);

/// Whether the field holds scales that a format says the shape of.
constexpr bool holds_scales(const Field& field) {
  return field.element == Element::KvScale || field.element == Element::IndexKScale;
}

/// Whether the field holds the one scale of all scales of groups.
constexpr bool holds_global_scale(const Field& field) {
  return field.element == Element::KvGlobalScale || field.element == Element::IndexKGlobalScale;
}

/// Whether the field's tensor is added to where the problem accumulates.
constexpr bool accumulates(const Field& field) {
  return field.tensor == &Operands::dk || field.tensor == &Operands::dv ||
         field.tensor == &Operands::d_index_k;
}

/// The shape of the field's scales, in place of the one that the table gives them.
Axes axes_of_scales(const Problem& problem, const Field& field);

constexpr bool counts_groups(Scale scale) {
  return scale == Scale::Group || scale == Scale::GroupTensor;
}

/// Elements that share a scale of a group.
inline constexpr std::int64_t kGroup = 16;

/// The format of keys and values.
inline Format kv_format(const Problem& problem) {
  return problem.attention.kv.value_or(problem.attention.q);
}

/// The format of index keys.
inline Format index_k_format(const Problem& problem) {
  return problem.index.k.value_or(problem.index.q);
}

/// Who shares a scale of the tensor that the field's scales belong to.
inline Scale scale_of(const Problem& problem, const Field& field) {
  const bool index =
      field.element == Element::IndexKScale || field.element == Element::IndexKGlobalScale;
  return (index ? index_k_format(problem) : kv_format(problem)).scale;
}

/// Whether the scale is worked out from what it scales, where keys and values are stored.
constexpr bool is_computed(Scale scale) { return scale == Scale::Token || counts_groups(scale); }

/// Whether the call is to write this output, or needs this input.
bool is_planned(const Problem& problem, const Field& field);

/// Query rows of the call: the first extent of its first input.
std::int64_t rows_of(Op op, const Operands& operands);

/// The dtype that the problem says a field has.
DType dtype_of(const Problem& problem, Element element);

}  // namespace msa::core
