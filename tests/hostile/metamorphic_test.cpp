// SPDX-License-Identifier: MIT
// What must hold between two calls, with no oracle at all.
#include <cmath>
#include <cstring>

#include "targets.h"
#include "testkit/generate.h"
#include "testkit/number.h"
#include "testkit/oracle.h"
#include "testkit/requests.h"

namespace msa::testkit {
namespace {

/// Row-major tensors of a case's keys and of its values as they stand for numbers, in f32.
struct Widened {
  std::vector<float> keys{}, values{};

  Operands operands(const Data& data) {
    Operands o = data.operands();
    const KeyRows k = key_rows(data.problem(), o), v = value_rows(data.problem(), o);
    const Tensor wide_k = fill(data, k, keys), wide_v = fill(data, v, values);
    o.k = wide_k;
    o.v = wide_v;
    o.k_scale = o.v_scale = o.k_global_scale = o.v_global_scale = {};
    return o;
  }

  Operands index_operands(const Data& data) {
    Operands o = data.operands();
    o.index_k = fill(data, index_rows(data.problem(), o), keys);
    o.index_k_scale = o.index_k_global_scale = {};
    return o;
  }

 private:
  static Tensor fill(const Data& data, const KeyRows& rows, std::vector<float>& memory) {
    Tensor wide = rows.keys;
    std::int64_t elements = 1;
    for (int d = wide.rank; d-- > 0;) {
      wide.stride[d] = elements;
      elements *= wide.shape[d];
    }
    memory.assign(static_cast<std::size_t>(elements), std::nanf(""));
    wide.data = memory.data();
    wide.dtype = DType::F32;
    const std::int64_t heads = wide.shape[wide.rank - 2], dim = wide.shape[wide.rank - 1];
    for (const Request& r : requests_of(data.problem(), data.operands().batch)) {
      for (std::int64_t key = 0; key < r.seqlen_k; ++key) {
        for (std::int64_t h = 0; h < heads; ++h) {
          load_key(rows, r, key, h, dim,
                   reinterpret_cast<float*>(key_row(wide, rows.batch, r, key, h)));
        }
      }
    }
    return wide;
  }
};

class Metamorphic : public OnTarget {
 protected:
  void run_case(Data& data) const { run_operands(data.problem(), data.prepare()); }

  void run_operands(Problem problem, const Operands& operands) const {
    problem.options = options();
    const Plan plan = make_plan(problem);
    GuardedWorkspace workspace(plan.workspace_bytes(), host_memory());
    run(plan, operands, workspace.view());
  }

  /// Runs a case whose keys are codes, and once more over what `other` puts in their place: it
  /// changes the problem's format and gives the operands. `outputs` have the same bits.
  template <class Other>
  void expect_same_bits_over(const std::string& line, const Other& other,
                             std::initializer_list<Tensor msa::Operands::*> outputs) const {
    SCOPED_TRACE(line);
    Data coded(parse_case(line)), plain(parse_case(line));
    run_case(coded);
    Problem problem = plain.problem();
    plain.prepare();
    Widened wide;
    const Operands operands = other(problem, plain, wide);  // before the problem is read
    run_operands(problem, operands);
    for (Tensor msa::Operands::*output : outputs) {
      expect_equal(coded.operands().*output, plain.operands().*output);
    }
  }

  /// Two computations of one thing, each within an ulp of the row's largest.
  static void expect_near(const Tensor& a, const Tensor& b, double ulps = 2) {
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

  /// Element by element the same bits.
  static void expect_equal(const Tensor& a, const Tensor& b) {
    ASSERT_EQ(a.shape, b.shape);
    ASSERT_EQ(a.dtype, b.dtype);
    const auto item = static_cast<std::size_t>(size_in_bytes(a.dtype, 1));
    for (std::int64_t i = 0; i < a.shape[0]; ++i) {
      for (std::int64_t h = 0; h < a.shape[1]; ++h) {
        for (std::int64_t d = 0; d < (a.rank > 2 ? a.shape[2] : 1); ++d) {
          ASSERT_EQ(std::memcmp(address(a, i, h, d), address(b, i, h, d), item), 0)
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
    const std::string rest = " heads=4/2 dim=64 block=32 topk=4 lens=40:300,1:200" +
                             std::string(op == "sparse" ? " kv=e4m3/token" : "");
    Data ragged(parse_case("op=" + op + rest)), paged(parse_case("op=" + op + rest + " page=16"));
    run_case(ragged);
    run_case(paged);
    expect_near(ragged.operands().out, paged.operands().out);
  }
}

// What is stored as codes with scales gives the bits of the values stored as they are.
TEST_P(Metamorphic, CodesTimesScalesAreValues) {
  for (const std::string op : {"dense", "sparse", "msa"}) {
    for (const char* how : {"kv=e4m3", "kv=e4m3/tensor", "kv=e4m3/head", "kv=e4m3/token",
                            "kv=e4m3/page page=16", "kv=e4m3/token page=32 hostile=nan", "kv=nvfp4",
                            "kv=nvfp4/tensor page=16", "kv=q8kv4 page=32 hostile=nan"}) {
      const std::string line = "op=" + op +
                               " dtype=f32 heads=8/2 dim=64 block=32 topk=4 "
                               "lens=40:300,1:500,3:3 lse=1 " +
                               how;
      expect_same_bits_over(line,
                            [](Problem& problem, const Data& data, Widened& wide) {
                              problem.attention.kv.reset();
                              return wide.operands(data);
                            },
                            {&Operands::out, &Operands::lse});
    }
  }
}

TEST_P(Metamorphic, IndexCodesTimesScalesAreValues) {
  for (const std::string op : {"scores", "select"}) {
    for (const char* how : {"index_k=e4m3", "index_k=e4m3/token page=32 hostile=nan",
                            "index_k=nvfp4", "index_k=nvfp4/tensor page=16",
                            "index_k=q8kv4 page=32 hostile=nan", "index_k=q8kv4 regime=drift"}) {
      for (const char* lens : {"40:300,1:500,3:3", "2:300,1:500,3:3"}) {
        const std::string line =
            "op=" + op + " dtype=f32 heads=4/4 index_heads_k=2 dim=48 block=32 topk=4 chosen=" +
            (op == "select" ? "1 " : "0 ") + how + " lens=" + lens;
        const auto other = [](Problem& problem, const Data& data, Widened& wide) {
          problem.index.k.reset();
          return wide.index_operands(data);
        };
        if (op == "scores") {
          expect_same_bits_over(line, other, {&Operands::scores});
        } else {
          expect_same_bits_over(line, other, {&Operands::block_ids, &Operands::chosen_scores});
        }
      }
    }
  }
}

/// The same in e4m3 without a scale, which holds every value of q8kv4.
Tensor in_e4m3(const Tensor& wide, std::vector<std::uint8_t>& codes) {
  std::int64_t elements = 1;
  for (int d = 0; d < wide.rank; ++d) elements *= wide.shape[static_cast<std::size_t>(d)];
  codes.resize(static_cast<std::size_t>(elements));
  testkit::store(static_cast<const float*>(wide.data), elements, DType::E4M3, codes.data());
  Tensor tensor = wide;
  tensor.data = codes.data();
  tensor.dtype = DType::E4M3;
  return tensor;
}

// Q8KV4 is attention over what its codes stand for, bit for bit.
TEST_P(Metamorphic, Q8KV4IsAttentionOverE4M3) {
  for (const std::string op : {"dense", "sparse", "msa"}) {
    for (const char* how :
         {"dtype=e4m3 lens=1:900,3:3", "dtype=e4m3 lens=4:400,8:700 page=16",
          "dtype=bf16 lens=70:300,1:500 page=32 hostile=nan", "dtype=f16 lens=40:300,2:90",
          "dtype=e4m3 lens=300:300 causal=0 out=f32", "dtype=f32 lens=40:300,1:500 page=16"}) {
      const std::string line =
          "op=" + op + " kv=q8kv4 heads=8/2 dim=64 block=32 topk=4 lse=1 " + how;
      std::vector<std::uint8_t> keys, values;
      expect_same_bits_over(line,
                            [&](Problem& problem, const Data& data, Widened& wide) {
                              problem.attention.kv = Format{DType::E4M3};
                              Operands operands = wide.operands(data);
                              operands.k = in_e4m3(operands.k, keys);
                              operands.v = in_e4m3(operands.v, values);
                              return operands;
                            },
                            {&Operands::out, &Operands::lse});
    }
  }
}

// Heads cut into shards, as tensor parallelism does: the parts are the whole.
TEST_P(Metamorphic, HeadShardsConcatenate) {
  Data data(parse_case("op=sparse out=f32 heads=8/4 dim=64 block=16 topk=4 lens=40:300 lse=1"));
  run_case(data);
  std::vector<float> out(40 * 8 * 64);
  for (std::int64_t h = 0; h < 4; ++h) {
    Operands part = data.operands();
    Problem problem = data.problem();
    problem.attention.heads_q = 2;
    problem.attention.heads_kv = 1;
    problem.outputs.lse = false;
    part.lse = {};
    part.q = narrow(part.q, 1, 2 * h, 2);
    part.k = narrow(part.k, 1, h, 1);
    part.v = narrow(part.v, 1, h, 1);
    part.block_ids_in = narrow(part.block_ids_in, 1, h, 1);
    part.out = narrow(make_tensor(out.data(), DType::F32, {40, 8, 64}), 1, 2 * h, 2);
    run_operands(problem, part);
  }
  expect_near(make_tensor(out.data(), DType::F32, {40, 8, 64}), data.operands().out, 1);
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
  expect_near(states.out, all.out, 5);  // 3.5 seen
}

// Two calls that a whole MSA is made of, on one backend: the same bits.
TEST_P(Metamorphic, MsaIsSelectThenSparse) {
  for (const char* how : {"lens=70:300,1:500,8:90", "lens=70:300,9:90 page=32 init=1 dtype=f16",
                          "lens=300:300 regime=drift", "lens=9:200 causal=0 dtype=f32",
                          "lens=70:300,9:90 page=32 kv=e4m3/page"}) {
    const std::string rest = std::string(" heads=8/2 dim=64 block=32 topk=4 ") + how;
    Data whole(parse_case("op=msa lse=1" + rest)), select(parse_case("op=select" + rest));
    run_case(whole);
    run_case(select);
    expect_equal(whole.operands().block_ids, select.operands().block_ids);
    Operands attend = whole.operands();
    Data sparse(parse_case("op=sparse lse=1" + rest));
    sparse.prepare();
    attend.index_q = attend.index_k = attend.block_ids = {};
    attend.block_ids_in = select.operands().block_ids;
    attend.out = sparse.operands().out;
    attend.lse = sparse.operands().lse;
    run_operands(sparse.problem(), attend);
    expect_equal(whole.operands().out, attend.out);
    expect_equal(whole.operands().lse, attend.lse);
  }
}

// Scoring, then choosing, is what selection fuses: the same ids on one backend.
TEST_P(Metamorphic, SelectIsTopkOfScores) {
  for (const char* how :
       {"lens=70:300,1:500", "lens=40:900 regime=drift init=1 local=2",
        "lens=30:300 regime=integers", "lens=30:300 causal=0 hostile=nan_index"}) {
    const std::string rest = std::string(" dtype=bf16 heads=2/2 dim=64 block=32 topk=4 ") + how;
    Data scores(parse_case("op=scores" + rest)), select(parse_case("op=select chosen=1" + rest)),
        topk(parse_case("op=topk chosen=1" + rest));
    run_case(scores);
    run_case(select);
    Operands choose = topk.prepare();
    choose.scores_in = scores.operands().scores;
    run_operands(topk.problem(), choose);
    expect_equal(select.operands().block_ids, choose.block_ids);
    expect_equal(select.operands().chosen_scores, choose.chosen_scores);
  }
}

// The same vector added to every key moves all scores of a row alike.
TEST_P(Metamorphic, ConstantOnAllScoresChangesNothing) {
  const char* line = "op=dense dtype=f32 heads=2/1 dim=32 lens=20:90 regime=integers scale=0.125";
  Data plain(parse_case(line)), moved(parse_case(line));
  const Tensor& keys = moved.operands().k;
  for (std::int64_t key = 0; key < keys.shape[0]; ++key) {
    auto* row = reinterpret_cast<float*>(address(keys, key, 0));
    for (std::int64_t d = 0; d < 32; ++d) row[d] += static_cast<float>(d % 5);
  }
  run_case(plain);
  run_operands(moved.problem(), moved.prepare());
  // In powers of two scores reach 16 here: their own rounding is 2^-20 of a weight, 8 ulps.
  expect_near(plain.operands().out, moved.operands().out, 8);
}

MSA_FOR_ALL_TARGETS(Metamorphic);

}  // namespace
}  // namespace msa::testkit
