// SPDX-License-Identifier: MIT
// What kind of work each operation does, so that printing, deriving and validating agree on which
// fields matter.
#pragma once

#include "msa/problem.h"

namespace msa::core {

struct OpTraits {
  bool attends = false;  // takes q, k, v
  bool indexes = false;  // takes index_q, index_k
  bool selects = false;  // ranks blocks: topk, local_blocks, init_blocks
  bool lists = false;    // takes block ids
  bool merges = false;   // takes parts and no batch
  bool stores = false;   // writes keys and values
  bool copies = false;   // takes index_k and writes its filter
  bool derives = false;  // writes gradients
  bool teaches = false;  // takes q and k without v, and block ids where there are any
};

constexpr OpTraits op_traits(Op op) {
  switch (op) {
    case Op::DenseAttention:
      return {.attends = true};
    case Op::BlockScores:
      return {.indexes = true};
    case Op::SelectTopk:
      return {.selects = true};
    case Op::SelectBlocks:
      return {.indexes = true, .selects = true};
    case Op::SparseAttention:
      return {.attends = true, .lists = true};
    case Op::MsaAttention:
      return {.attends = true, .indexes = true, .selects = true};
    case Op::MergeStates:
      return {.merges = true};
    case Op::MergeSelections:
      return {.merges = true};
    case Op::InvertSelection:
      return {.lists = true};
    case Op::QuantizeKv:
      return {.stores = true};
    case Op::QuantizeIndex:
      return {.copies = true};
    case Op::SparseAttentionBackward:
      return {.attends = true, .lists = true, .derives = true};
    case Op::DenseAttentionBackward:
      return {.attends = true, .derives = true};
    case Op::IndexLoss:
      return {.indexes = true, .lists = true, .derives = true, .teaches = true};
  }
  return {};
}

}  // namespace msa::core
