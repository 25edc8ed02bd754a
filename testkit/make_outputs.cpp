// SPDX-License-Identifier: MIT
// The outputs that a case asks for.
#include <algorithm>
#include <cstddef>
#include <tuple>

#include "testkit/making.h"

namespace msa::testkit {

namespace {

void make_selection_outputs(Making& m, std::int64_t heads) {
  const Shape shape{m.spec.rows(), heads, m.spec.topk};
  m.operands.block_ids =
      m.tensors.output("block_ids", DType::I32, shape, m.tensors.ids_order(), false);
  if (m.spec.chosen_scores && m.spec.op != Op::MsaAttention) {
    m.operands.chosen_scores =
        m.tensors.output("chosen_scores", DType::F32, shape, m.tensors.ids_order(), false);
  }
}

/// Keys and values of new tokens as a cache holds them, and the scales that are worked out.
void make_caches(Making& m) {
  const Format kv = m.spec.kv_format();
  const std::int64_t heads = m.spec.heads_kv, dim = m.spec.head_dim, dim_v = m.spec.dim_v();
  const auto shape = [&](std::initializer_list<std::int64_t> inner) {
    Shape all{m.key_extent};
    if (m.spec.page_size > 0) all.push_back(m.spec.page_size);
    all.insert(all.end(), inner);
    return all;
  };
  Operands& o = m.operands;
  // With gaps behind every dimension nobody could tell that the two lie apart.
  if (m.spec.layout == Layout::Packed && m.spec.strides != Strides::Padded) {
    o.k_cache = o.v_cache =
        m.tensors.stored_keys("k_cache and v_cache", kv.storage, shape({heads, dim + dim_v}));
    const auto last = static_cast<std::size_t>(o.k_cache.rank - 1);
    o.k_cache.shape[last] = dim;
    o.v_cache.shape[last] = dim_v;
    o.v_cache.data = static_cast<std::byte*>(o.v_cache.data) + size_in_bytes(kv.storage, dim);
  } else {
    o.k_cache = m.tensors.stored_keys("k_cache", kv.storage, shape({heads, dim}));
    o.v_cache = m.tensors.stored_keys("v_cache", kv.storage, shape({heads, dim_v}));
  }
  if (!computes_scales(kv)) return;
  for (const auto& [name, tensor, groups] :
       {std::tuple{"k_scale_cache", &o.k_scale_cache, dim / 16},
        std::tuple{"v_scale_cache", &o.v_scale_cache, dim_v / 16}}) {
    const bool token = kv.scale == Scale::Token;
    const Shape all = token ? shape({heads}) : shape({heads, groups});
    DimOrder order;
    for (std::size_t d = 0; d < all.size(); ++d) order.push_back(static_cast<int>(d));
    if (m.spec.strides == Strides::Transposed)
      std::rotate(order.begin(), order.end() - 1, order.end());
    *tensor = m.tensors.output(name, token ? DType::F32 : DType::E4M3, all, order, false);
  }
}

/// The 8-bit copy of index keys, and its bounds.
void make_copy(Making& m) {
  const std::int64_t heads = m.spec.index_heads_k, pages = m.spec.page_size;
  Shape shape{m.key_extent, heads, m.spec.dim_index()};
  if (pages > 0) shape.insert(shape.begin() + 1, pages);
  m.operands.index_k8_out = m.tensors.stored_keys("index_k8", DType::I8, shape);
  const std::int64_t count = pages > 0 ? m.key_extent : ceil_div(m.key_extent, kFilterRows);
  const bool heads_first = m.spec.layout == Layout::HeadMajor;
  m.operands.index_k8_bounds_out =
      m.tensors.output("index_k8_bounds", DType::F32, {count, heads, 3},
                       heads_first ? DimOrder{1, 0, 2} : DimOrder{0, 1, 2}, false);
}

/// The gradients that the case asks for.
void make_gradient_outputs(Making& m) {
  const Grads grads = m.spec.grads;
  const DType dtype = m.spec.gradient_type();
  const std::int64_t heads = m.spec.heads_kv;
  Operands& o = m.operands;
  if (m.spec.op == Op::IndexLoss) {
    const std::int64_t index_heads = m.spec.heads_index(), dim = m.spec.dim_index();
    if (grads == Grads::All || grads == Grads::Loss) {
      o.loss = m.tensors.output("loss", DType::F32, {m.spec.rows(), index_heads},
                                m.tensors.lse_order(), false);
    }
    if (grads == Grads::All || grads == Grads::Queries) {
      o.d_index_q = m.tensors.output("d_index_q", dtype, {m.spec.rows(), index_heads, dim},
                                     m.tensors.row_order());
    }
    if (grads == Grads::All || grads == Grads::Keys) {
      o.d_index_k =
          m.tensors.stored_keys("d_index_k", dtype, {m.key_extent, m.spec.index_heads_k, dim});
    }
    return;
  }
  if (grads == Grads::All || grads == Grads::Queries) {
    o.dq = m.tensors.output("dq", dtype, {m.spec.rows(), m.spec.heads_q, m.spec.head_dim},
                            m.tensors.row_order());
  }
  if (grads == Grads::All || grads == Grads::Keys)
    o.dk = m.tensors.stored_keys("dk", dtype, {m.key_extent, heads, m.spec.head_dim});
  if (grads == Grads::All || grads == Grads::Values)
    o.dv = m.tensors.stored_keys("dv", dtype, {m.key_extent, heads, m.spec.dim_v()});
}

}  // namespace

void make_outputs(Making& m) {
  if (derives(m.spec.op)) return make_gradient_outputs(m);
  if (copies_index(m.spec.op)) return make_copy(m);
  if (stores_keys(m.spec.op)) return make_caches(m);
  const std::int64_t rows = m.spec.rows(), heads = m.spec.heads_q;
  const Op op = m.spec.op;
  const bool state = reads_attention_keys(op) || op == Op::MergeStates;
  if (state && (m.spec.output || op != Op::DenseAttention)) {
    m.operands.out = m.tensors.output("out", m.spec.out_type(), {rows, heads, m.spec.dim_v()},
                                      m.tensors.row_order());
  }
  if (state && m.spec.lse) {
    m.operands.lse =
        m.tensors.output("lse", DType::F32, {rows, heads}, m.tensors.lse_order(), false);
  }
  if (op == Op::DenseAttention && m.spec.block_max) {
    m.operands.block_max = m.tensors.output(
        "block_max", DType::F32, {rows, heads, score_blocks(m.spec)}, m.tensors.row_order(), false);
  }
  if (op == Op::BlockScores) {
    const Shape shape{rows, m.spec.heads_index(), score_blocks(m.spec)};
    m.operands.scores = m.tensors.output("scores", DType::F32, shape, m.tensors.row_order(), false);
  }
  if (op == Op::SelectTopk || op == Op::SelectBlocks)
    make_selection_outputs(m, m.spec.heads_index());
  const bool exact = m.problem.selection.precision == Precision::Exact;
  if (op == Op::SelectBlocks && m.problem.index.filter && exact) {
    m.operands.candidates = m.tensors.output("candidates", DType::I32, {rows, m.spec.heads_index()},
                                             m.tensors.lse_order(), false);
  }
  if (op == Op::MergeSelections || (op == Op::MsaAttention && m.spec.ids)) {
    make_selection_outputs(m, m.spec.heads_kv);
  }
  if (op == Op::InvertSelection) {
    std::int64_t blocks = 0;
    for (const Request& r : m.requests) blocks += ceil_div(r.seqlen_k, m.spec.block_size);
    const std::int64_t entries = rows * m.spec.topk + (m.spec.slack > 0 ? 5 : 0);
    const std::int64_t extra = m.spec.slack > 0 ? 2 : 0;
    const Shape lists{m.spec.heads_kv, entries};
    m.operands.row_ptr = m.tensors.output("row_ptr", DType::I32,
                                          {m.spec.heads_kv, blocks + 1 + extra}, {0, 1}, false);
    m.operands.q_indices = m.tensors.output("q_indices", DType::I32, lists, {0, 1}, false);
    m.operands.q_slots = m.tensors.output("q_slots", DType::I32, lists, {0, 1}, false);
  }
}

}  // namespace msa::testkit
