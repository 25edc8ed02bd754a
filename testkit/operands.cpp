// SPDX-License-Identifier: MIT
// Operands out of the library's table of fields.
#include "testkit/operands.h"

#include <algorithm>

namespace msa::testkit {

namespace {

struct List {
  Parts msa::Operands::*view;
  std::vector<Tensor> Operands::*own;
};

constexpr List kLists[] = {
    {&msa::Operands::part_outs, &Operands::part_outs},
    {&msa::Operands::part_lses, &Operands::part_lses},
    {&msa::Operands::part_ids, &Operands::part_ids},
    {&msa::Operands::part_scores, &Operands::part_scores},
};

constexpr Op kOps[] = {
    Op::DenseAttention,         Op::BlockScores,  Op::SelectTopk,    Op::SelectBlocks,
    Op::SparseAttention,        Op::MsaAttention, Op::MergeStates,   Op::MergeSelections,
    Op::InvertSelection,        Op::QuantizeKv,   Op::QuantizeIndex, Op::SparseAttentionBackward,
    Op::DenseAttentionBackward, Op::IndexLoss};

// Where for_each_tensor has a field.
int turn(const Field& field) {
  if (!field.is_input()) return 3;
  if (field.parts != nullptr) return 2;
  return field.length != nullptr ? 1 : 0;
}

std::vector<Field> join_tables() {
  std::vector<Field> all;
  for (const Op op : kOps) {
    for (const Field& field : fields_of(op)) {
      const auto same = [&](const Field& known) {
        return known.tensor == field.tensor && known.length == field.length &&
               known.parts == field.parts;
      };
      if (std::none_of(all.begin(), all.end(), same)) all.push_back(field);
    }
  }
  std::stable_sort(all.begin(), all.end(),
                   [](const Field& a, const Field& b) { return turn(a) < turn(b); });
  return all;
}

}  // namespace

msa::Operands Operands::view() const {
  msa::Operands o = *this;
  for (const List& list : kLists) o.*list.view = this->*list.own;
  return o;
}

std::vector<Tensor>& Operands::list(const Field& field) {
  const List* list = std::find_if(std::begin(kLists), std::end(kLists),
                                  [&](const List& known) { return known.view == field.parts; });
  return this->*list->own;
}

void run(const Plan& plan, const Operands& operands, Workspace workspace, Stream stream) {
  msa::run(plan, operands.view(), workspace, stream);
}

void run_once(Op op, const Operands& operands, const Settings& settings) {
  msa::run_once(op, operands.view(), settings);
}

Problem problem_of(Op op, const Operands& operands, const Settings& settings) {
  return msa::problem_of(op, operands.view(), settings);
}

std::span<const Field> all_fields() {
  static const std::vector<Field> kFields = join_tables();
  return kFields;
}

std::size_t first_output(const Operands& operands) {
  std::size_t count = 0;
  Operands inputs = operands;
  for (const Field& field : all_fields()) {
    if (!field.is_input()) break;
    count += field.parts != nullptr ? inputs.list(field).size() : field.in(inputs) ? 1u : 0u;
  }
  return count;
}

}  // namespace msa::testkit
