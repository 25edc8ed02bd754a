// SPDX-License-Identifier: MIT
// The tensors of a call against the table of fields, within the bounds of the planned problem.
#include <algorithm>
#include <array>
#include <cstdint>
#include <string>

#include "core/checker.h"
#include "core/fields.h"
#include "core/validate.h"

namespace msa::core {
namespace {

// Names in the table end with a null.
Argument argument(const Field& field, const Tensor& tensor) {
  return {field.name.data(), -1, &tensor};
}

void expect_none(const Field& field, const Tensor& tensor, const char* why) {
  if (!tensor) return;
  reject(argument(field, tensor), "", std::string("none, ") + why, to_string(tensor));
}

/// Turns the letters of a shape into extents. Some are open until a first tensor has told them:
/// rows, keys, the width of a part, the slots of an inverse.
class Extents {
 public:
  explicit Extents(const Problem& problem) : p_(problem) {}

  Expected expected(const Field& field, const Axes& axes) const {
    const bool numbers = field.element == Element::F32 || field.element == Element::I32 ||
                         holds_scales(field) || holds_global_scale(field) ||
                         field.element == Element::FilterBounds;
    Expected expected{.dtype = dtype_of(p_, field.element),
                      .innermost = numbers ? Innermost::Strided : Innermost::Dense};
    for (std::size_t i = 0; i < static_cast<std::size_t>(axes.rank); ++i) {
      add(expected.shape, of(axes.axis[i]));
      if (axes.axis[i] == Axis::Keys && p_.bounds.page_size != 0) {
        add(expected.shape, exactly(p_.bounds.page_size));
      }
    }
    return expected;
  }

  /// What a tensor that was as expected has told.
  void learn(const Axes& axes, const Tensor& tensor) {
    for (std::size_t i = 0; i < static_cast<std::size_t>(axes.rank); ++i) {
      if (axes.axis[i] == Axis::Rows) rows_ = exactly(tensor.shape[i]);
      if (axes.axis[i] == Axis::Keys || axes.axis[i] == Axis::Pool)
        keys_ = exactly(tensor.shape[0]);
      if (axes.axis[i] == Axis::PartTopk) part_topk_ = exactly(tensor.shape[i]);
      if (axes.axis[i] == Axis::InverseSlots) slots_ = exactly(tensor.shape[i]);
    }
  }
  void learn_requests(std::int64_t requests) { requests_ = requests; }
  void next_part() { part_topk_ = kAnyPart; }
  std::int64_t requests() const { return requests_; }
  std::int64_t rows() const { return rows_.low; }

 private:
  static constexpr Extent kAnyPart{1, kMaxTopk};

  static void add(Shape& shape, Extent extent) {
    shape.extent[static_cast<std::size_t>(shape.rank++)] = extent;
  }
  static bool open(const Extent& extent) { return extent.low != extent.high; }

  Extent of(Axis axis) const {
    switch (axis) {
      case Axis::Rows:
        return open(rows_) ? at_most(p_.bounds.total_q) : rows_;
      case Axis::HeadsQ:
        return exactly(p_.attention.heads_q);
      case Axis::HeadsKv:
        return exactly(p_.attention.heads_kv);
      case Axis::HeadDim:
        return exactly(p_.attention.head_dim);
      case Axis::ValueDim:
        return exactly(p_.attention.value_dim);
      case Axis::HeadGroups:
        return exactly(p_.attention.head_dim / kGroup);
      case Axis::ValueGroups:
        return exactly(p_.attention.value_dim / kGroup);
      case Axis::IndexGroups:
        return exactly(p_.index.dim / kGroup);
      case Axis::IndexHeads:
        return exactly(p_.index.heads);
      case Axis::IndexHeadsK:
        return exactly(p_.index.heads_k);
      case Axis::IndexDim:
        return exactly(p_.index.dim);
      case Axis::Keys:
        return op_traits(p_.op).stores && p_.bounds.page_size == 0 ? rows_ : keys_;
      case Axis::Pool:
        return keys_;
      case Axis::BoundGroups:
        return p_.bounds.page_size != 0 ? keys_ : exactly(ceil_div(keys_.low, kFilterRows));
      case Axis::One:
        return exactly(1);
      case Axis::Three:
        return exactly(3);
      case Axis::Blocks:
        return at_least(ceil_div(p_.bounds.max_seqlen_k, p_.selection.block_size));
      case Axis::Topk:
        return exactly(p_.selection.topk);
      case Axis::PartTopk:
        return part_topk_;
      case Axis::Requests:
        return exactly(requests_);
      case Axis::Starts:
        return exactly(requests_ + 1);
      case Axis::Pages:
        return {};
      case Axis::InverseRows:
        return at_least(1);
      case Axis::InverseSlots:
        return open(slots_) ? at_least(rows_.low * p_.selection.topk) : slots_;
    }
    return {};
  }

  const Problem& p_;
  Extent rows_{};
  Extent keys_{};
  Extent part_topk_ = kAnyPart;
  Extent slots_{};
  std::int64_t requests_ = 0;
};

/// One call under check: what the table says of it, field after field.
class CallCheck {
 public:
  /// `parts` is room for the lists of a merge: outs[0], lses[0], outs[1], ...
  CallCheck(const Problem& problem, const Call& call, std::span<Tensor> parts)
      : p_(problem), call_(call), parts_(parts), extents_(problem), checker_(problem.device) {}

  void run(Workspace workspace, std::size_t workspace_bytes) {
    const std::span<const Field> fields = fields_of(p_.op);
    const std::span<const Axes> axes = axes_of(p_.op);
    std::size_t i = check_parts(fields, axes);
    for (; i < fields.size() && fields[i].tensor != nullptr && fields[i].is_input(); ++i) {
      check_input(fields[i], axes[i]);
    }
    if (op_traits(p_.op).stores && p_.bounds.page_size == 0) {
      for (; i < fields.size() && fields[i].length != nullptr; ++i) {
        expect_none(fields[i], fields[i].in(call_), "as the plan is for rows without a batch");
      }
    }
    if (i < fields.size() && fields[i].length != nullptr) {
      extents_.learn_requests(count_requests(fields[i], axes[i]));
      for (++i; i < fields.size() && fields[i].length != nullptr; ++i) {
        check_length(fields[i], axes[i]);
      }
      if (!call_.k && !call_.index_k && !call_.k_rows) expect_no_keys();
      if (op_traits(p_.op).copies) expect_no_queries();
      if (op_traits(p_.op).teaches) expect_no_shards();
      check_missing_lengths();
    }
    for (; i < fields.size(); ++i) check_output(fields[i], axes[i]);
    checker_.workspace(workspace, workspace_bytes);
  }

 private:
  // ---- inputs ----

  void check_input(const Field& field, const Axes& table_axes) {
    const Tensor& tensor = field.in(call_);
    const bool scales = holds_scales(field);
    if (scales && scale_of(p_, field) == Scale::None) {
      return expect_none(field, tensor, "as the format has no scale");
    }
    if (scales && !is_planned(p_, field) && op_traits(p_.op).stores) {
      return expect_none(field, tensor, "as the call works the scales out");
    }
    if (holds_global_scale(field) && scale_of(p_, field) != Scale::GroupTensor) {
      return expect_none(field, tensor, "as the format has no scale of scales");
    }
    const bool filter = field.element == Element::Filter || field.element == Element::FilterBounds;
    if (filter && !p_.index.filter) {
      return expect_none(field, tensor, "as the problem has no filter");
    }
    if (field.tensor == &Operands::block_ids_in && !is_planned(p_, field))
      return expect_none(field, tensor, "as the plan is for all visible keys");
    if (!tensor && !is_planned(p_, field)) return;
    const Axes axes = scales ? axes_of_scales(p_, field) : table_axes;
    checker_.input(argument(field, tensor), extents_.expected(field, axes));
    extents_.learn(axes, tensor);
  }

  /// The lists of a merge, part after part. Returns the number of fields they take in the table.
  std::size_t check_parts(std::span<const Field> fields, std::span<const Axes> axes) {
    std::size_t lists = 0;
    while (lists < fields.size() && fields[lists].parts != nullptr) {
      const Field& field = fields[lists++];
      const std::size_t given = (call_.*field.parts).size();
      if (static_cast<std::int64_t>(given) == p_.bounds.parts) continue;
      reject({field.name.data()}, "", std::to_string(p_.bounds.parts) + " parts",
             std::to_string(given));
    }
    if (lists == 0) return 0;
    for (std::size_t f = 0; f < lists; ++f) check_stacked(fields[f], axes[f]);
    const std::size_t count = static_cast<std::size_t>(p_.bounds.parts);
    for (std::size_t part = 0; part < count; ++part) {
      extents_.next_part();
      for (std::size_t f = 0; f < lists; ++f) {
        Tensor& tensor = parts_[part * lists + f];
        tensor = (call_.*fields[f].parts)[part];
        checker_.input({fields[f].name.data(), static_cast<int>(part), &tensor},
                       extents_.expected(fields[f], axes[f]));
        extents_.learn(axes[f], tensor);
      }
    }
    return lists;
  }

  // Parts in one tensor: it must be sound as a whole before it is cut.
  void check_stacked(const Field& field, const Axes& axes) const {
    const Tensor& stacked = (call_.*field.parts).stacked();
    if (!stacked) return;
    const Expected part = extents_.expected(field, axes);
    Expected whole{.dtype = part.dtype, .innermost = part.innermost};
    whole.shape.rank = part.shape.rank + 1;
    whole.shape.extent[0] = exactly(p_.bounds.parts);
    std::copy_n(part.shape.extent.begin(), part.shape.rank, whole.shape.extent.begin() + 1);
    checker_.whole(argument(field, stacked), whole);
  }

  // ---- the batch ----

  // B of this call. One request owns everything where no tensor tells.
  std::int64_t count_requests(const Field& field, const Axes& axes) {
    const Batch& batch = call_.batch;
    if (field.length != &Batch::cu_seqlens_q) return count_lengths(field, axes);
    if (batch.cu_seqlens_q) {
      Expected expected = extents_.expected(field, axes);
      expected.shape.extent[0] = {1, p_.bounds.batch + 1};
      checker_.input(argument(field, batch.cu_seqlens_q), expected);
      return batch.cu_seqlens_q.shape[0] - 1;
    }
    const std::int64_t requests =
        batch.seqlens_k && batch.seqlens_k.rank == 1 ? batch.seqlens_k.shape[0] : 1;
    if (requests != 1 || p_.bounds.batch < 1) {
      reject({field.name.data()}, "", "a tensor of i32, as there is not one request", "none");
    }
    return requests;
  }

  // Where an operation takes no queries.
  std::int64_t count_lengths(const Field& field, const Axes& axes) {
    const Tensor& lengths = field.in(call_);
    if (lengths) {
      Expected expected = extents_.expected(field, axes);
      expected.shape.extent[0] = {0, p_.bounds.batch};
      checker_.input(argument(field, lengths), expected);
      return lengths.shape[0];
    }
    if (p_.bounds.batch < 1 || p_.bounds.page_size != 0) {
      const char* why = p_.bounds.page_size != 0 ? "keys lie in pages" : "there is not one request";
      reject({field.name.data()}, "", std::string("a tensor of i32, as ") + why, "none");
    }
    return 1;
  }

  void check_length(const Field& field, const Axes& axes) {
    const Tensor& tensor = field.in(call_);
    const bool paged = p_.bounds.page_size != 0;
    const bool table = field.length == &Batch::page_table;
    if (table && !paged) return expect_none(field, tensor, "as the plan is for ragged keys");
    if (field.length == &Batch::cu_seqlens_k && paged) {
      return expect_none(field, tensor, "as the plan is for paged keys");
    }
    if (tensor || table) {
      checker_.input(argument(field, tensor), extents_.expected(field, axes));
    }
  }

  void expect_no_keys() const {
    for (const Field& field : std::span(table::kBatch).last(table::kKeyFields)) {
      expect_none(field, field.in(call_), "as the operation takes no keys");
    }
  }

  void expect_no_queries() const {
    for (const Field& field : table::kBatch) {
      if (field.length == &Batch::cu_seqlens_q || field.length == &Batch::key_offsets ||
          field.length == &Batch::total_seqlens_k) {
        expect_none(field, field.in(call_), "as quantize_index takes keys where they lie");
      }
    }
  }

  // A softmax over the index scores of a shard alone would be another.
  void expect_no_shards() const {
    for (const Field& field : table::kBatch) {
      if (field.length == &Batch::key_offsets || field.length == &Batch::total_seqlens_k)
        expect_none(field, field.in(call_), "as index_loss takes whole requests");
    }
  }

  static void expect_within(const char* name, std::int64_t rows, std::int64_t bound) {
    if (rows <= bound) return;
    reject({name}, "",
           "a tensor of i32, or at most " + std::to_string(bound) + " rows in one request",
           "none and " + std::to_string(rows) + " rows");
  }

  // Lengths may be left out where one request owns all rows.
  void check_missing_lengths() const {
    const Batch& batch = call_.batch;
    const Tensor& keys = call_.k ? call_.k : call_.index_k;
    if (!batch.cu_seqlens_q && !op_traits(p_.op).copies) {
      expect_within("batch.cu_seqlens_q", extents_.rows(), p_.bounds.max_seqlen_q);
    }
    if (batch.seqlens_k) return;
    const std::int64_t requests = extents_.requests();
    const bool one = requests == 1 && keys && p_.bounds.page_size == 0 && !batch.cu_seqlens_k;
    if (!one) {
      reject({"batch.seqlens_k"}, "",
             "a tensor of i32 with an extent of " + std::to_string(requests), "none");
    }
    expect_within("batch.seqlens_k", keys.shape[0], p_.bounds.max_seqlen_k);
  }

  // ---- outputs ----

  void check_output(const Field& field, const Axes& table_axes) {
    const Tensor& tensor = field.in(call_);
    const bool scales = holds_scales(field);
    const Axes axes = scales ? axes_of_scales(p_, field) : table_axes;
    if (!is_planned(p_, field)) {
      return expect_none(field, tensor, "as the plan does not write it");
    }
    // No flag plans it: it is written where somebody wants it.
    if (field.role == Role::OptionalOutput && field.planned == nullptr && !scales && !tensor)
      return;
    checker_.output(field.name.data(), tensor, extents_.expected(field, axes), twin_of(field));
    extents_.learn(axes, tensor);
  }

  /// merge_states may write over its first part.
  const Tensor* twin_of(const Field& field) const {
    if (p_.op != Op::MergeStates) return nullptr;
    return &parts_[field.tensor == &Operands::out ? 0 : 1];
  }

  const Problem& p_;
  const Call& call_;
  std::span<Tensor> parts_;
  Extents extents_;
  Checker checker_;
};

}  // namespace

void validate_call(const Problem& problem, const Call& call, Workspace workspace,
                   std::size_t workspace_bytes) {
  if (fields_of(problem.op)[0].parts == nullptr) {
    return CallCheck(problem, call, {}).run(workspace, workspace_bytes);
  }
  std::array<Tensor, std::size_t{2} * kMaxParts> parts;
  CallCheck(problem, call, parts).run(workspace, workspace_bytes);
}

void expect_no_strays(Op op, const Operands& operands) {
  const std::span<const Field> own = fields_of(op);
  const auto takes = [own](const Field& stray) {
    for (const Field& field : own) {
      if (field.tensor == stray.tensor && field.length == stray.length &&
          field.parts == stray.parts) {
        return true;
      }
    }
    return false;
  };
  for (int other = 0; other <= static_cast<int>(kLastOp); ++other) {
    for (const Field& field : fields_of(static_cast<Op>(other))) {
      const bool given = field.parts != nullptr ? !(operands.*field.parts).empty()
                                                : static_cast<bool>(field.in(operands));
      if (!given || takes(field)) continue;
      reject({field.name.data()}, "",
             std::string("none, as ") + msa::to_string(op) + " takes no such tensor", "one");
    }
  }
}

}  // namespace msa::core
