// SPDX-License-Identifier: MIT
// A shard is a sequence of its own, its blocks numbered in the order of their positions. A query
// row sees a prefix of it and becomes a request with that many keys; page tables say where they
// lie. docs/contract.md says more under sharded keys.
#include "testkit/ranks.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "testkit/memory.h"
#include "testkit/number.h"
#include "testkit/requests.h"

namespace msa::testkit {

namespace {

bool chooses_blocks(Op op) { return op == Op::SelectBlocks || op == Op::MsaAttention; }
bool joins_states(Op op) { return op != Op::SelectBlocks; }

std::int64_t rank_of(const Case& spec, std::int64_t block, std::int64_t blocks) {
  switch (spec.deal) {
    case Deal::Contiguous:
      return block * spec.ranks / blocks;
    case Deal::Interleaved:
      return block % spec.ranks;
    case Deal::Zigzag:
      break;
  }
  const std::int64_t run = block * 2 * spec.ranks / blocks;
  return std::min(run, 2 * spec.ranks - 1 - run);
}

void run_here(const Problem& problem, const Operands& operands) {
  const Plan plan = make_plan(problem);
  GuardedWorkspace workspace(plan.workspace_bytes(), host_memory());
  run(plan, operands, workspace.view());
}

/// A tensor [T, heads, width] and its numbers.
template <class Number>
struct Block {
  std::int64_t rows, heads, width;
  std::vector<Number> numbers;

  Block(std::int64_t t, std::int64_t h, std::int64_t w, Number value)
      : rows(t), heads(h), width(w), numbers(static_cast<std::size_t>(t * h * w), value) {}
  Number* row(std::int64_t t, std::int64_t h) {
    return numbers.data() + static_cast<std::size_t>((t * heads + h) * width);
  }
  Tensor tensor() {
    return make_tensor(numbers.data(), std::is_same_v<Number, float> ? DType::F32 : DType::I32,
                       {rows, heads, width});
  }
};
using Ids = Block<std::int32_t>;
using Floats = Block<float>;

struct Candidates {
  Ids ids;
  Floats scores;
};

struct State {
  Floats out;
  Floats lse;  // [T, Hq, 1]
  Tensor lse_tensor() { return make_tensor(lse.numbers.data(), DType::F32, {lse.rows, lse.heads}); }
};

/// A query row of the batch; rows of padding belong to nobody and see nothing.
struct Row {
  const Request* request = nullptr;
  std::int64_t seen = 0;  // keys of the whole sequence, always a prefix
};

class Ranks {
 public:
  Ranks(const Case& spec, const Problem& problem, const Operands& operands)
      : spec_(spec), problem_(problem), operands_(operands) {
    requests_ = requests_of(problem, operands.batch);
    const Tensor& queries = joins_states(problem.op) ? operands.q : operands.index_q;
    rows_.resize(static_cast<std::size_t>(queries.shape[0]));
    for (const Request& request : requests_) {
      for (std::int64_t i = 0; i < request.seqlen_q; ++i)
        rows_[static_cast<std::size_t>(request.q_begin + i)] = {&request, request.visible_keys(i)};
    }
  }

  void run() {
    Ids ids(rows(), problem_.attention.heads_kv, problem_.selection.topk, -1);
    if (chooses_blocks(problem_.op)) ids = select();
    if (problem_.op == Op::SparseAttention) ids = given();
    if (!joins_states(problem_.op)) return;
    std::vector<State> states;
    for (std::int64_t rank = 0; rank < spec_.ranks; ++rank) states.push_back(attend(rank, ids));
    join(states);
  }

 private:
  std::int64_t rows() const { return static_cast<std::int64_t>(rows_.size()); }
  std::int64_t block_size() const { return problem_.selection.block_size; }

  std::vector<std::int64_t> blocks_of(const Row& row, std::int64_t rank) const {
    std::vector<std::int64_t> own;
    if (row.request == nullptr) return own;
    const std::int64_t blocks = ceil_div(row.request->seqlen_k, block_size());
    for (std::int64_t id = 0; id < blocks; ++id) {
      if (rank_of(spec_, id, blocks) == rank) own.push_back(id);
    }
    return own;
  }

  /// Blocks that the row sees of the whole sequence.
  std::int64_t visible_blocks(const Row& row) const { return ceil_div(row.seen, block_size()); }

  /// The batch of one rank: every row a request.
  struct Shard {
    std::vector<std::vector<std::int64_t>> blocks{};  // of each row
    std::vector<std::int32_t> starts{}, lengths{}, table{};
    Problem problem{};
    Operands operands{};
  };

  /// keys(row, blocks of the row here) says how many keys each row sees here.
  template <class Keys>
  Shard shard(std::int64_t rank, const Keys& keys) const {
    Shard s;
    std::int64_t most = 0;
    for (const Row& row : rows_) {
      s.blocks.push_back(blocks_of(row, rank));
      most = std::max(most, static_cast<std::int64_t>(s.blocks.back().size()));
    }
    const std::int64_t page = problem_.bounds.page_size, pages = block_size() / page;
    const std::int64_t columns = std::max<std::int64_t>(1, most * pages);
    for (std::int64_t t = 0; t < rows(); ++t) {
      const Row& row = rows_[static_cast<std::size_t>(t)];
      const std::vector<std::int64_t>& own = s.blocks[static_cast<std::size_t>(t)];
      s.starts.push_back(static_cast<std::int32_t>(t));
      s.lengths.push_back(static_cast<std::int32_t>(keys(row, own)));
      std::vector<std::int32_t> line(static_cast<std::size_t>(columns), -1);
      for (std::size_t n = 0; n < own.size(); ++n) {
        for (std::int64_t part = 0; part < pages; ++part) {
          const std::int64_t column = own[n] * pages + part;
          if (column * page >= row.request->seqlen_k) break;
          line[n * static_cast<std::size_t>(pages) + static_cast<std::size_t>(part)] =
              int_at(operands_.batch.page_table, row.request->index, column);
        }
      }
      s.table.insert(s.table.end(), line.begin(), line.end());
    }
    s.starts.push_back(static_cast<std::int32_t>(rows()));
    s.problem = problem_;
    s.problem.bounds = {.batch = rows(),
                        .total_q = rows(),
                        .max_seqlen_q = std::min<std::int64_t>(1, rows()),
                        .max_seqlen_k = most * block_size(),
                        .page_size = page};
    s.problem.outputs = {};
    s.operands = operands_;
    s.operands.batch = {.cu_seqlens_q = make_tensor(s.starts.data(), DType::I32, {rows() + 1}),
                        .seqlens_k = make_tensor(s.lengths.data(), DType::I32, {rows()}),
                        .page_table = make_tensor(s.table.data(), DType::I32, {rows(), columns})};
    s.operands.block_ids_in = s.operands.block_ids = s.operands.chosen_scores = {};
    s.operands.out = s.operands.lse = {};
    return s;
  }

  // ---- selection ----

  /// The best unforced blocks of a rank, by global ids.
  Candidates candidates(std::int64_t rank) const {
    Shard s = shard(rank, [&](const Row& row, const std::vector<std::int64_t>& own) {
      if (problem_.selection.local_blocks == 0) return keys_here(row, own);
      const std::int64_t end = visible_blocks(row) - problem_.selection.local_blocks;
      return block_size() *
             (std::lower_bound(own.begin(), own.end(), std::max<std::int64_t>(0, end)) -
              own.begin());
    });
    const std::int64_t heads = problem_.index.heads, k = problem_.selection.topk;
    Ids local(rows(), heads, k, -1);
    Candidates found{Ids(rows(), heads, k, -1), Floats(rows(), heads, k, -kInf)};
    Floats scores(rows(), heads, k, -kInf);
    s.problem.op = Op::SelectBlocks;
    s.problem.selection.local_blocks = s.problem.selection.init_blocks = 0;
    s.problem.outputs.chosen_scores = true;
    s.operands.block_ids = local.tensor();
    s.operands.chosen_scores = scores.tensor();
    s.operands.q = s.operands.k = s.operands.v = {};
    s.operands.k_scale = s.operands.v_scale = {};
    s.operands.k_global_scale = s.operands.v_global_scale = {};
    run_here(s.problem, s.operands);
    for (std::int64_t t = 0; t < rows(); ++t) {
      for (std::int64_t h = 0; h < heads; ++h) {
        std::int64_t slot = 0;
        for (std::int64_t n = 0; n < k && local.row(t, h)[n] != -1; ++n) {
          const auto place = static_cast<std::size_t>(local.row(t, h)[n]);
          const std::int64_t id = s.blocks[static_cast<std::size_t>(t)][place];
          if (id < problem_.selection.init_blocks) continue;
          found.ids.row(t, h)[slot] = static_cast<std::int32_t>(id);
          found.scores.row(t, h)[slot++] = scores.row(t, h)[n];
        }
      }
    }
    return found;
  }

  Candidates forced() const {
    const std::int64_t init = problem_.selection.init_blocks,
                       local = problem_.selection.local_blocks, heads = problem_.index.heads;
    Candidates found{Ids(rows(), heads, init + local, -1),
                     Floats(rows(), heads, init + local, -kInf)};
    for (std::int64_t t = 0; t < rows(); ++t) {
      const std::int64_t visible = visible_blocks(rows_[static_cast<std::size_t>(t)]);
      for (std::int64_t h = 0; h < heads; ++h) {
        std::int64_t slot = 0;
        for (std::int64_t id = 0; id < visible; ++id) {
          if (id >= init && id < visible - local) continue;
          found.ids.row(t, h)[slot] = static_cast<std::int32_t>(id);
          found.scores.row(t, h)[slot++] = kInf;
        }
      }
    }
    return found;
  }

  Ids select() const {
    std::vector<Candidates> parts;
    for (std::int64_t rank = 0; rank < spec_.ranks; ++rank) parts.push_back(candidates(rank));
    if (problem_.selection.init_blocks + problem_.selection.local_blocks > 0)
      parts.push_back(forced());
    const std::int64_t heads = problem_.index.heads;
    Ids merged(rows(), heads, problem_.selection.topk, -1);
    Operands o;
    for (Candidates& part : parts) {
      o.part_ids.push_back(part.ids.tensor());
      o.part_scores.push_back(part.scores.tensor());
    }
    const Tensor wanted = operands_.block_ids;
    o.block_ids = wanted ? wanted : merged.tensor();
    o.chosen_scores = operands_.chosen_scores;
    Problem p = merging(Op::MergeSelections, parts.size());
    p.attention.heads_kv = heads;
    p.outputs.chosen_scores = static_cast<bool>(o.chosen_scores);
    run_here(p, o);
    if (wanted) copy_ids(wanted, merged);
    return merged;
  }

  Ids given() const {
    const Tensor& ids = operands_.block_ids_in;
    Ids copy(rows(), ids.shape[1], ids.shape[2], -1);
    copy_ids(ids, copy);
    return copy;
  }

  static void copy_ids(const Tensor& from, Ids& to) {
    for (std::int64_t t = 0; t < to.rows; ++t) {
      for (std::int64_t h = 0; h < to.heads; ++h) {
        for (std::int64_t n = 0; n < to.width; ++n) to.row(t, h)[n] = int_at(from, t, h, n);
      }
    }
  }

  // ---- attention ----

  std::int64_t keys_here(const Row& row, const std::vector<std::int64_t>& own) const {
    std::int64_t keys = 0;
    for (const std::int64_t id : own)
      keys += std::clamp<std::int64_t>(row.seen - id * block_size(), 0, block_size());
    return keys;
  }

  State attend(std::int64_t rank, Ids& ids) const {
    Shard s = shard(rank, [&](const Row& row, const std::vector<std::int64_t>& own) {
      return keys_here(row, own);
    });
    State state{Floats(rows(), problem_.attention.heads_q, problem_.attention.value_dim, kNan),
                Floats(rows(), problem_.attention.heads_q, 1, kNan)};
    Ids local(rows(), ids.heads, ids.width, -1);
    if (problem_.op != Op::DenseAttention) {
      for (std::int64_t t = 0; t < rows(); ++t) {
        const std::vector<std::int64_t>& own = s.blocks[static_cast<std::size_t>(t)];
        for (std::int64_t h = 0; h < ids.heads; ++h) {
          std::int64_t slot = 0;
          for (std::int64_t n = 0; n < ids.width && ids.row(t, h)[n] != -1; ++n) {
            const auto at = std::lower_bound(own.begin(), own.end(), ids.row(t, h)[n]);
            if (at == own.end() || *at != ids.row(t, h)[n]) continue;
            local.row(t, h)[slot++] = static_cast<std::int32_t>(at - own.begin());
          }
        }
      }
      // Ids that are legal in the whole, and lie behind what a row sees, are none of the shard's.
      drop_unseen(s, local);
      s.problem.op = Op::SparseAttention;
      s.operands.block_ids_in = local.tensor();
    }
    s.problem.outputs.dtype = DType::F32;
    s.problem.outputs.lse = true;
    s.operands.out = state.out.tensor();
    s.operands.lse = state.lse_tensor();
    s.operands.index_q = s.operands.index_k = {};
    s.operands.index_k_scale = s.operands.index_k_global_scale = {};
    run_here(s.problem, s.operands);
    return state;
  }

  void drop_unseen(const Shard& s, Ids& local) const {
    for (std::int64_t t = 0; t < rows(); ++t) {
      const std::int64_t end = ceil_div(s.lengths[static_cast<std::size_t>(t)], block_size());
      for (std::int64_t h = 0; h < local.heads; ++h) {
        std::int32_t* const list = local.row(t, h);
        std::fill(std::remove_if(list, list + local.width,
                                 [end](std::int32_t id) { return id < 0 || id >= end; }),
                  list + local.width, -1);
      }
    }
  }

  void join(std::vector<State>& states) const {
    State whole{Floats(rows(), problem_.attention.heads_q, problem_.attention.value_dim, kNan),
                Floats(rows(), problem_.attention.heads_q, 1, kNan)};
    Operands o;
    for (State& state : states) {
      o.part_outs.push_back(state.out.tensor());
      o.part_lses.push_back(state.lse_tensor());
    }
    o.out = whole.out.tensor();
    o.lse = whole.lse_tensor();
    Problem p = merging(Op::MergeStates, states.size());
    p.attention.q = {.storage = DType::F32};
    p.attention.kv.reset();
    p.outputs = {.dtype = DType::F32, .lse = true};
    run_here(p, o);
    const Tensor& out = operands_.out;
    for (std::int64_t t = 0; t < rows(); ++t) {
      for (std::int64_t h = 0; h < problem_.attention.heads_q; ++h) {
        store(whole.out.row(t, h), whole.out.width, out.dtype, address(out, t, h));
        if (operands_.lse)
          std::memcpy(address(operands_.lse, t, h), whole.lse.row(t, h), sizeof(float));
      }
    }
  }

  Problem merging(Op op, std::size_t parts) const {
    Problem p = problem_;
    p.op = op;
    p.bounds = {.total_q = rows(), .parts = static_cast<std::int64_t>(parts)};
    p.outputs = {};
    return p;
  }

  const Case& spec_;
  const Problem& problem_;
  const Operands& operands_;
  std::vector<Request> requests_{};
  std::vector<Row> rows_{};
};

}  // namespace

void expect_rankable(const Case& spec) {
  if (spec.ranks == 0) return;
  const auto expect = [](bool holds, const char* what) {
    if (!holds) throw CaseError(std::string("ranks: expected ") + what);
  };
  expect(spec.ranks > 0 && spec.ranks < kMaxParts, "1 to 63");
  expect(chooses_blocks(spec.op) || spec.op == Op::SparseAttention || spec.op == Op::DenseAttention,
         "op=select, sparse, msa or dense");
  expect(spec.page_size > 0 && spec.block_size % spec.page_size == 0, "pages that fill a block");
  expect(spec.output && !spec.block_max && !spec.filter, "no block maxima, and no filter");
  expect(spec.corrupt == Corrupt::None, "no fault");
  for (const Lengths& lengths : spec.lengths)
    expect(lengths.key_offset == 0 && !lengths.total_k, "whole sequences");
}

void run_over_ranks(const Case& spec, const Problem& problem, const Operands& operands) {
  Ranks(spec, problem, operands).run();
}

}  // namespace msa::testkit
