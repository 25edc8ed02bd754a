// SPDX-License-Identifier: MIT
// Operands: the tensors of any operation under one set of names, and one way to run them. What a
// case generates, a comparison reads and a tool loads is an Operands.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "msa/operands.h"

namespace msa::testkit {

/// Those of the library, and the lists of a merge: the library's are views of them.
struct Operands : msa::Operands {
  std::vector<Tensor> part_outs{}, part_lses{};   // merge_states
  std::vector<Tensor> part_ids{}, part_scores{};  // merge_selections

  /// What the library takes; it views this object's lists.
  msa::Operands view() const;
  /// The list of a field with parts.
  std::vector<Tensor>& list(const Field& field);
};

/// msa::run of the plan's operation.
void run(const Plan& plan, const Operands& operands, Workspace workspace = {}, Stream stream = {});

/// The one-call form of the operation.
void run_once(Op op, const Operands& operands, const Settings& settings);

/// msa::problem_of of the operation.
Problem problem_of(Op op, const Operands& operands, const Settings& settings);

/// Every field that any operation has, once; inputs first, those of the batch behind the others.
std::span<const Field> all_fields();

/// Calls visit(tensor) for every tensor of the operands that is given, inputs first.
template <class Visit>
void for_each_tensor(Operands& o, const Visit& visit) {
  for (const Field& field : all_fields()) {
    if (field.parts != nullptr) {
      for (Tensor& part : o.list(field)) visit(part);
    } else if (field.in(o)) {
      visit(field.in(o));
    }
  }
}

/// Index of the first output among the tensors that for_each_tensor visits.
std::size_t first_output(const Operands& operands);

}  // namespace msa::testkit
