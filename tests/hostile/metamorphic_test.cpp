// SPDX-License-Identifier: MIT
// What must hold between two calls, with no oracle at all.
#include <cmath>

#include "targets.h"
#include "testkit/generate.h"
#include "testkit/number.h"
#include "testkit/oracle.h"
#include "testkit/requests.h"

namespace msa::testkit {
namespace {

class Metamorphic : public OnTarget {
 protected:
  void run_case(Data& data) const { run_operands(data.problem(), data.prepare()); }

  void run_operands(Problem problem, const Operands& operands) const {
    problem.options = options();
    const Plan plan = make_plan(problem);
    GuardedWorkspace workspace(plan.workspace_bytes(), host_memory());
    run(plan, operands, workspace.view());
  }

  /// Two computations of one thing, each within an ulp or two of the truth.
  static void expect_near(const Tensor& a, const Tensor& b, double ulps = 4) {
    ASSERT_EQ(a.shape, b.shape);
    for (std::int64_t i = 0; i < a.shape[0]; ++i) {
      for (std::int64_t h = 0; h < a.shape[1]; ++h) {
        double largest = 0, worst = 0;
        for (std::int64_t d = 0; d < a.shape[2]; ++d) {
          const double x = float_at(a, i, h, d), y = float_at(b, i, h, d);
          largest = std::max({largest, std::fabs(x), std::fabs(y)});
          worst = std::max(worst, std::fabs(x - y));
        }
        ASSERT_LE(worst, ulps * ulp(largest, a.dtype)) << "row " << i << ", head " << h;
      }
    }
  }

  static void expect_equal(const Tensor& a, const Tensor& b) {
    ASSERT_EQ(a.shape, b.shape);
    for (std::int64_t i = 0; i < a.shape[0]; ++i) {
      for (std::int64_t h = 0; h < a.shape[1]; ++h) {
        for (std::int64_t d = 0; d < a.shape[2]; ++d) {
          ASSERT_EQ(float_at(a, i, h, d), float_at(b, i, h, d))
              << "[" << i << ", " << h << ", " << d << "]";
        }
      }
    }
  }
};

TEST_P(Metamorphic, AllBlocksSelectedIsDense) {
  const std::string rest = " heads=4/2 dim=64 block=16 topk=32 lens=40:300,9:9,1:500";
  Data dense(parse_case("op=dense" + rest)), sparse(parse_case("op=sparse" + rest)),
      whole(parse_case("op=msa" + rest));
  for (Data* data : {&dense, &sparse, &whole}) run_case(*data);
  expect_near(dense.operands().out, sparse.operands().out);
  expect_near(dense.operands().out, whole.operands().out);
}

TEST_P(Metamorphic, OrderOfIdsDoesNotMatterForExactData) {
  const std::string rest =
      "op=sparse heads=4/2 dim=32 block=16 topk=4 lens=40:300 regime=ties order=";
  Data ascending(parse_case(rest + "ascending")), descending(parse_case(rest + "descending"));
  run_case(ascending);
  run_case(descending);
  expect_near(ascending.operands().out, descending.operands().out, 1);
}

// V names the block: which blocks were read, and how many keys of each, can be read off the output.
TEST_P(Metamorphic, OneHotValuesNameTheBlocks) {
  Data data(
      parse_case("op=sparse dtype=f32 heads=2/2 dim=64 block=16 topk=4 lens=30:600 regime=onehot"));
  run_case(data);
  const Operands& o = data.operands();
  const Request r = requests_of(data.problem(), o.batch).front();
  for (std::int64_t i = 0; i < r.seqlen_q; ++i) {
    for (std::int64_t h = 0; h < 2; ++h) {
      std::vector<double> keys(64, 0.0);
      double total = 0;
      for (std::int64_t s = 0; s < 4; ++s) {
        const std::int32_t id = int_at(o.block_ids_in, i, h, s);
        if (id == -1) break;
        const auto [begin, end] = r.block_keys(i, id);
        keys[id % 64] += static_cast<double>(end - begin);
        total += static_cast<double>(end - begin);
      }
      for (std::int64_t d = 0; d < 64; ++d) {
        ASSERT_NEAR(float_at(o.out, i, h, d), keys[d] / total, 1e-6) << i << " " << h << " " << d;
      }
    }
  }
}

TEST_P(Metamorphic, PagesMayLieAnywhere) {
  for (const std::string op : {"dense", "sparse", "msa"}) {
    const std::string rest = " heads=4/2 dim=64 block=32 topk=4 lens=40:300,1:200 page=32";
    Data near(parse_case("op=" + op + rest)), far(parse_case("op=" + op + rest + " pool=500"));
    run_case(near);
    run_case(far);
    expect_equal(near.operands().out, far.operands().out);
  }
}

TEST_P(Metamorphic, RaggedEqualsPaged) {
  for (const std::string op : {"dense", "sparse", "msa"}) {
    const std::string rest = " heads=4/2 dim=64 block=32 topk=4 lens=40:300,1:200";
    Data ragged(parse_case("op=" + op + rest)), paged(parse_case("op=" + op + rest + " page=16"));
    run_case(ragged);
    run_case(paged);
    expect_near(ragged.operands().out, paged.operands().out);
  }
}

// Heads cut into shards, as tensor parallelism does: the parts are the whole.
TEST_P(Metamorphic, HeadShardsConcatenate) {
  Data data(parse_case("op=sparse heads=8/4 dim=64 block=16 topk=4 lens=40:300 lse=1"));
  run_case(data);
  std::vector<float> out(40 * 8 * 64);
  for (std::int64_t h = 0; h < 4; ++h) {
    Operands part = data.operands();
    Problem problem = data.problem();
    problem.attention.heads_q = 2;
    problem.attention.heads_kv = 1;
    problem.outputs.dtype = DType::F32;
    problem.outputs.lse = false;
    part.lse = {};
    part.q = narrow(part.q, 1, 2 * h, 2);
    part.k = narrow(part.k, 1, h, 1);
    part.v = narrow(part.v, 1, h, 1);
    part.block_ids_in = narrow(part.block_ids_in, 1, h, 1);
    part.out = narrow(make_tensor(out.data(), DType::F32, {40, 8, 64}), 1, 2 * h, 2);
    run_operands(problem, part);
  }
  for (float& x : out) x = round_to(x, DType::BF16);
  const Tensor joined = make_tensor(out.data(), DType::F32, {40, 8, 64});
  for (std::int64_t i = 0; i < 40; ++i) {
    for (std::int64_t h = 0; h < 8; ++h) {
      for (std::int64_t d = 0; d < 64; ++d) {
        const double whole = float_at(data.operands().out, i, h, d);
        ASSERT_NEAR(whole, float_at(joined, i, h, d), 4 * ulp(1, DType::BF16));
      }
    }
  }
}

// Keys cut into shards: select on each, join the candidates, attend on each, join the states.
TEST_P(Metamorphic, KeyShardsMergeToTheWhole) {
  constexpr std::int64_t kRows = 9, kKeys = 384, kHeads = 2, kTopk = 4, kDim = 32, kShards = 3;
  const std::string rest = " dtype=f32 heads=2/2 dim=32 block=16 topk=4 regime=integers";
  Data whole(parse_case("op=msa lens=9:384:375@0/384 lse=1" + rest));
  run_case(whole);
  std::vector<std::vector<std::int32_t>> ids(kShards,
                                             std::vector<std::int32_t>(kRows * kHeads * kTopk));
  std::vector<std::vector<float>> scores(kShards, std::vector<float>(kRows * kHeads * kTopk));
  std::vector<std::vector<float>> outs(kShards, std::vector<float>(kRows * kHeads * kDim));
  std::vector<std::vector<float>> lses(kShards, std::vector<float>(kRows * kHeads));
  std::vector<std::int32_t> joined(kRows * kHeads * kTopk);
  std::vector<std::int32_t> numbers{0, kRows, kKeys / kShards, kKeys - kRows, 0, kKeys};
  const auto shard = [&](std::int64_t n, Operands& o) {
    for (Tensor* t : {&o.k, &o.v, &o.index_k}) {
      if (*t) *t = narrow(*t, 0, n * kKeys / kShards, kKeys / kShards);
    }
    numbers[4] = static_cast<std::int32_t>(n * kKeys / kShards);
    o.batch = {.cu_seqlens_q = make_tensor(&numbers[0], DType::I32, {2}),
               .seqlens_k = make_tensor(&numbers[2], DType::I32, {1}),
               .q_offsets = make_tensor(&numbers[3], DType::I32, {1}),
               .key_offsets = make_tensor(&numbers[4], DType::I32, {1}),
               .total_seqlens_k = make_tensor(&numbers[5], DType::I32, {1})};
  };
  const Operands& all = whole.operands();
  Operands join;
  for (std::int64_t n = 0; n < kShards; ++n) {
    Operands o;
    o.index_q = all.index_q;
    o.index_k = all.index_k;
    shard(n, o);
    o.block_ids = make_tensor(ids[n].data(), DType::I32, {kRows, kHeads, kTopk});
    o.chosen_scores = make_tensor(scores[n].data(), DType::F32, {kRows, kHeads, kTopk});
    Problem problem = whole.problem();
    problem.op = Op::SelectBlocks;
    problem.outputs.lse = false;
    problem.outputs.chosen_scores = true;
    run_operands(problem, o);
    join.part_ids.push_back(o.block_ids);
    join.part_scores.push_back(o.chosen_scores);
  }
  join.block_ids = make_tensor(joined.data(), DType::I32, {kRows, kHeads, kTopk});
  Problem merge = whole.problem();
  merge.op = Op::MergeSelections;
  merge.outputs.lse = false;
  merge.bounds.parts = kShards;
  run_operands(merge, join);
  for (std::int64_t i = 0; i < kRows; ++i) {
    for (std::int64_t h = 0; h < kHeads; ++h) {
      for (std::int64_t s = 0; s < kTopk; ++s) {
        ASSERT_EQ(int_at(join.block_ids, i, h, s), int_at(all.block_ids, i, h, s));
      }
    }
  }
  Operands states;
  for (std::int64_t n = 0; n < kShards; ++n) {
    Operands o;
    o.q = all.q;
    o.k = all.k;
    o.v = all.v;
    o.block_ids_in = join.block_ids;
    shard(n, o);
    o.out = make_tensor(outs[n].data(), DType::F32, {kRows, kHeads, kDim});
    o.lse = make_tensor(lses[n].data(), DType::F32, {kRows, kHeads});
    Problem problem = whole.problem();
    problem.op = Op::SparseAttention;
    run_operands(problem, o);
    states.part_outs.push_back(o.out);
    states.part_lses.push_back(o.lse);
  }
  std::vector<float> result(kRows * kHeads * kDim);
  states.out = make_tensor(result.data(), DType::F32, {kRows, kHeads, kDim});
  merge.op = Op::MergeStates;
  run_operands(merge, states);
  expect_near(states.out, all.out, 16);
}

// The same vector added to every key moves all scores of a row alike.
TEST_P(Metamorphic, ConstantOnAllScoresChangesNothing) {
  Data plain(parse_case("op=dense dtype=f32 heads=2/1 dim=32 lens=20:90 regime=integers"));
  Data moved(parse_case("op=dense dtype=f32 heads=2/1 dim=32 lens=20:90 regime=integers"));
  const Tensor& keys = moved.operands().k;
  for (std::int64_t key = 0; key < keys.shape[0]; ++key) {
    auto* row = reinterpret_cast<float*>(address(keys, key, 0));
    for (std::int64_t d = 0; d < 32; ++d) row[d] += static_cast<float>(d % 5);
  }
  run_case(plain);
  run_operands(moved.problem(), moved.prepare());
  expect_near(plain.operands().out, moved.operands().out, 64);
}

MSA_FOR_ALL_TARGETS(Metamorphic);

}  // namespace
}  // namespace msa::testkit
