// SPDX-License-Identifier: MIT
// The table of fields, the generic form of the operations, merges of stacked parts, empty plans and
// the other edges of the API that no single operation owns.
#include <gtest/gtest.h>

#include <chrono>
#include <cstring>
#include <set>
#include <unordered_set>
#include <vector>

#include "msa/msa.h"
#include "tests/core/scene.h"

namespace msa::test {
namespace {

constexpr Op kEveryOp[] = {Op::DenseAttention, Op::BlockScores,     Op::SelectTopk,
                           Op::SelectBlocks,   Op::SparseAttention, Op::MsaAttention,
                           Op::MergeStates,    Op::MergeSelections, Op::InvertSelection};

std::string refusal_of(const std::function<void()>& call, ErrorCode code, const char* argument) {
  try {
    call();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), code) << error.what();
    EXPECT_EQ(error.argument(), argument) << error.what();
    return error.what();
  }
  ADD_FAILURE() << "no error";
  return "";
}

TEST(Fields, NameEveryTensorThatASceneHas) {
  for (const auto& [op, keys] : all_scenes()) {
    const Scene scene(op, keys);
    std::set<std::string> known, paged_or_ragged;
    for (const Field& field : fields_of(op)) known.insert(std::string(field.name));
    for (const auto& arg : scene.args) {
      const std::string name = arg->name.substr(0, arg->name.find('['));
      EXPECT_EQ(known.count(name), 1u) << to_string(op) << ": " << arg->name;
    }
  }
}

TEST(Fields, HaveOnePlaceAndInputsComeFirst) {
  for (const Op op : kEveryOp) {
    bool outputs = false;
    for (const Field& f : fields_of(op)) {
      const int places = (f.tensor != nullptr) + (f.length != nullptr) + (f.parts != nullptr);
      EXPECT_EQ(places, 1) << f.name;
      EXPECT_FALSE(outputs && f.is_input()) << f.name;
      outputs = outputs || !f.is_input();
      EXPECT_EQ(f.name.data()[f.name.size()], '\0');
    }
    EXPECT_TRUE(outputs) << to_string(op);
  }
  EXPECT_TRUE(fields_of(static_cast<Op>(200)).empty());
}

TEST(Fields, WhatAFlagPlansIsOptional) {
  for (const Op op : kEveryOp) {
    for (const Field& f : fields_of(op)) {
      const bool optional = f.role == Role::OptionalInput || f.role == Role::OptionalOutput;
      EXPECT_TRUE(optional || f.planned == nullptr) << to_string(op) << ": " << f.name;
    }
  }
  // Block maxima need no values.
  const auto table = fields_of(Op::DenseAttention);
  const auto v =
      std::find_if(table.begin(), table.end(), [](const Field& f) { return f.name == "v"; });
  ASSERT_NE(v, table.end());
  EXPECT_EQ(v->role, Role::OptionalInput);
  EXPECT_EQ(v->planned, &Outputs::out);
}

msa::Operands operands_of(const Scene& scene, std::vector<std::vector<Tensor>>& lists) {
  msa::Operands o;
  for (const Field& f : fields_of(scene.problem.op)) {
    if (f.parts != nullptr) {
      std::vector<Tensor>& list = lists.emplace_back();
      for (const auto& arg : scene.args) {
        if (arg->name.starts_with(std::string(f.name) + "[")) list.push_back(arg->tensor);
      }
      o.*f.parts = list;
      continue;
    }
    for (const auto& arg : scene.args) {
      if (arg->name == f.name) f.in(o) = arg->tensor;
    }
  }
  return o;
}

TEST(Generic, GivesTheBitsOfTheTypedForm) {
  for (const auto& [op, keys] : all_scenes()) {
    Scene typed(op, keys), generic(op, keys);
    typed.run("reference");
    std::vector<std::vector<Tensor>> lists;
    lists.reserve(4);
    const msa::Operands operands = operands_of(generic, lists);
    const Plan plan = generic.plan("reference");
    std::vector<std::byte> memory(plan.workspace_bytes() + kWorkspaceAlignment);
    void* start = memory.data();
    std::size_t room = memory.size();
    std::align(kWorkspaceAlignment, plan.workspace_bytes(), start, room);
    run(plan, operands, {start, plan.workspace_bytes()});
    EXPECT_EQ(typed.snapshot(), generic.snapshot()) << to_string(op);
  }
}

TEST(Generic, OutputsHaveTheShapesThatTheCallTakes) {
  for (const auto& [op, keys] : all_scenes()) {
    Scene scene(op, keys);
    std::vector<std::vector<Tensor>> lists;
    lists.reserve(4);
    const msa::Operands operands = operands_of(scene, lists);
    for (const Field& f : fields_of(op)) {
      if (f.is_input()) {
        refusal_of([&] { output_of(scene.problem, operands, f); }, ErrorCode::InvalidArgument,
                   std::string(f.name).c_str());
        continue;
      }
      const Tensor made = output_of(scene.problem, operands, f), given = f.in(operands);
      if (!given) continue;  // the scenes have no filter
      EXPECT_EQ(made.dtype, given.dtype) << f.name;
      EXPECT_EQ(made.rank, given.rank) << f.name;
      EXPECT_EQ(made.shape[0], given.shape[0]) << f.name;
      for (std::size_t i = 0; i < static_cast<std::size_t>(made.rank); ++i) {
        EXPECT_GE(made.shape[i], given.shape[i]) << f.name << " dimension " << i;
      }
      EXPECT_EQ(made.data, nullptr);
    }
  }
}

TEST(Generic, RefusesTensorsThatTheOperationDoesNotTake) {
  for (const auto& [op, keys] : all_scenes()) {
    if (keys == Keys::Paged) continue;
    for (const auto& [other, other_keys] : all_scenes()) {
      const Scene scene(op, keys), stranger(other, other_keys);
      std::vector<std::vector<Tensor>> lists, theirs;
      lists.reserve(4);
      theirs.reserve(4);
      const msa::Operands spare = operands_of(stranger, theirs);
      for (const Field& f : fields_of(other)) {
        const auto own = [&](const Field& g) {
          return g.tensor == f.tensor && g.length == f.length && g.parts == f.parts;
        };
        const auto table = fields_of(op);
        if (std::any_of(table.begin(), table.end(), own)) continue;
        if (f.parts == nullptr && !f.in(spare)) continue;
        msa::Operands o = operands_of(scene, lists);
        if (f.parts != nullptr) {
          o.*f.parts = spare.*f.parts;
        } else {
          f.in(o) = f.in(spare);
        }
        const std::string text =
            refusal_of([&, which = op] { problem_of(which, o); }, ErrorCode::InvalidArgument,
                       std::string(f.name).c_str());
        EXPECT_NE(text.find(to_string(op)), std::string::npos) << text;
        lists.clear();
      }
    }
  }
}

TEST(Generic, RefusesWhatIsNoOperation) {
  refusal_of([] { problem_of(static_cast<Op>(99), msa::Operands{}); }, ErrorCode::InvalidArgument,
             "op");
  refusal_of([] { run_once(static_cast<Op>(99), msa::Operands{}); }, ErrorCode::InvalidArgument,
             "op");
}

// ---- merges of one tensor ----

constexpr std::int64_t kStackedParts = 3, kStackedRows = 5, kHeads = 2, kDim = 16, kStackedTopk = 4;

struct States {
  std::vector<float> outs = std::vector<float>(kStackedParts * kStackedRows * kHeads * kDim);
  std::vector<float> lses = std::vector<float>(kStackedParts * kStackedRows * kHeads);
  std::vector<float> out = std::vector<float>(kStackedRows * kHeads * kDim, -7.0f);
  std::vector<float> lse = std::vector<float>(kStackedRows * kHeads, -7.0f);

  States() {
    for (std::size_t i = 0; i < outs.size(); ++i) outs[i] = static_cast<float>(i % 37) * 0.25f;
    for (std::size_t i = 0; i < lses.size(); ++i) lses[i] = static_cast<float>(i % 11) - 3.0f;
  }
  Tensor stacked_outs() const {
    return make_tensor(outs.data(), DType::F32, {kStackedParts, kStackedRows, kHeads, kDim});
  }
  Tensor stacked_lses() const {
    return make_tensor(lses.data(), DType::F32, {kStackedParts, kStackedRows, kHeads});
  }
  Tensor out_view() const {
    return make_tensor(out.data(), DType::F32, {kStackedRows, kHeads, kDim});
  }
  Tensor lse_view() const { return make_tensor(lse.data(), DType::F32, {kStackedRows, kHeads}); }
};

TEST(StackedParts, MergeLikeAList) {
  for (const char* backend : {"cpu", "reference"}) {
    const Settings settings{.options = {.backend = backend}};
    States list, stacked;
    const Parts outs = list.stacked_outs(), lses = list.stacked_lses();
    std::vector<Tensor> out_list, lse_list;
    for (std::size_t i = 0; i < outs.size(); ++i) {
      out_list.push_back(outs[i]);
      lse_list.push_back(lses[i]);
    }
    merge_states({out_list, lse_list, list.out_view(), list.lse_view()}, settings);
    merge_states(
        {stacked.stacked_outs(), stacked.stacked_lses(), stacked.out_view(), stacked.lse_view()},
        settings);
    EXPECT_EQ(list.out, stacked.out) << backend;
    EXPECT_EQ(list.lse, stacked.lse) << backend;
    EXPECT_NE(stacked.out[0], -7.0f);
    // Over the first part itself.
    const Parts own_outs = stacked.stacked_outs(), own_lses = stacked.stacked_lses();
    merge_states({own_outs, own_lses, own_outs[0], own_lses[0]}, settings);
    EXPECT_EQ(std::memcmp(stacked.outs.data(), list.out.data(), list.out.size() * 4), 0) << backend;
    // Over the second part: refused.
    refusal_of(
        [&] {
          merge_states({own_outs, own_lses, own_outs[1], own_lses[0]}, settings);
        },
        ErrorCode::InvalidArgument, "out");
  }
}

TEST(StackedParts, SelectionsMergeLikeAList) {
  std::vector<std::int32_t> ids(kStackedParts * kStackedRows * kHeads * kStackedTopk);
  std::vector<float> scores(ids.size());
  for (std::size_t i = 0; i < ids.size(); ++i) {
    const std::size_t part = i / (kStackedRows * kHeads * kStackedTopk);
    ids[i] = static_cast<std::int32_t>(part * 10 + i % kStackedTopk);
    scores[i] = static_cast<float>((i * 7) % 23);
  }
  std::vector<std::int32_t> a(kStackedRows * kHeads * kStackedTopk), b = a;
  const Parts id_parts =
      make_tensor(ids.data(), DType::I32, {kStackedParts, kStackedRows, kHeads, kStackedTopk});
  const Parts score_parts =
      make_tensor(scores.data(), DType::F32, {kStackedParts, kStackedRows, kHeads, kStackedTopk});
  std::vector<Tensor> id_list, score_list;
  for (std::size_t i = 0; i < id_parts.size(); ++i) {
    id_list.push_back(id_parts[i]);
    score_list.push_back(score_parts[i]);
  }
  const auto view = [](std::vector<std::int32_t>& of) {
    return make_tensor(of.data(), DType::I32, {kStackedRows, kHeads, kStackedTopk});
  };
  merge_selections({id_list, score_list, view(a)});
  merge_selections({id_parts, score_parts, view(b)});
  EXPECT_EQ(a, b);
  EXPECT_NE(a, std::vector<std::int32_t>(a.size()));
}

TEST(StackedParts, AreCheckedAsAWhole) {
  const States s;
  const auto merge = [&](Tensor outs, Tensor lses) {
    return [=, &s] { merge_states({outs, lses, s.out_view(), s.lse_view()}); };
  };
  Tensor negative = s.stacked_outs();
  negative.stride[0] = -1;
  refusal_of(merge(negative, s.stacked_lses()), ErrorCode::InvalidArgument, "outs");
  Tensor far = s.stacked_outs();
  far.stride[0] = INT64_MAX / 2;
  refusal_of(merge(far, s.stacked_lses()), ErrorCode::InvalidArgument, "outs");
  Tensor flat = s.stacked_outs();
  flat.rank = 3;
  refusal_of(merge(flat, s.stacked_lses()), ErrorCode::InvalidArgument, "outs[0]");
  Tensor fewer = s.stacked_lses();
  fewer.shape[0] = 2;
  refusal_of(merge(s.stacked_outs(), fewer), ErrorCode::InvalidArgument, "lses");
  Tensor null = s.stacked_outs();
  null.data = nullptr;
  refusal_of(merge(null, s.stacked_lses()), ErrorCode::InvalidArgument, "outs");
}

// ---- plans ----

TEST(EmptyPlan, ThrowsWhereItIsUsed) {
  Plan made = Scene(Op::MsaAttention, Keys::Ragged).plan("cpu");
  EXPECT_TRUE(made);
  const Plan kept = std::move(made);
  EXPECT_TRUE(kept);
  for (const Plan& plan : {Plan(), made}) {
    EXPECT_FALSE(plan);
    const auto uses = std::to_array<std::function<void()>>({
        [&] { plan.problem(); },
        [&] { plan.backend(); },
        [&] { plan.isa(); },
        [&] { plan.workspace_bytes(); },
        [&] { plan.to_string(); },
        [&] { run(plan, MsaAttentionArgs{}); },
        [&] { run(plan, msa::Operands{}); },
        [&] { check(plan, {}); },
    });
    for (const auto& use : uses) refusal_of(use, ErrorCode::InvalidArgument, "plan");
  }
}

TEST(Problems, HashLikeTheyCompare) {
  std::unordered_set<Problem> set;
  const Problem base = Scene(Op::MsaAttention, Keys::Ragged).problem;
  const auto changes = std::to_array<std::function<void(Problem&)>>({
      [](Problem&) {},
      [](Problem& p) { p.op = Op::SelectBlocks; },
      [](Problem& p) {
        p.device = {DeviceType::Cuda, 0};
      },
      [](Problem& p) {
        p.device = {DeviceType::Cuda, 1};
      },
      [](Problem& p) { p.causal = false; },
      [](Problem& p) { ++p.bounds.batch; },
      [](Problem& p) { ++p.bounds.total_q; },
      [](Problem& p) { ++p.bounds.max_seqlen_q; },
      [](Problem& p) { ++p.bounds.max_seqlen_k; },
      [](Problem& p) { ++p.bounds.page_size; },
      [](Problem& p) { ++p.bounds.parts; },
      [](Problem& p) { p.attention.q.storage = DType::F16; },
      [](Problem& p) { p.attention.q.group = 16; },
      [](Problem& p) { p.attention.kv = Format{}; },
      [](Problem& p) { p.attention.kv = Format{DType::E4M3}; },
      [](Problem& p) {
        p.attention.kv = Format{DType::E4M3, Scale::Token};
      },
      [](Problem& p) {
        p.attention.kv = Format{DType::E2M1, Scale::Group, 16};
      },
      [](Problem& p) {
        p.attention.kv = Format{DType::E2M1, Scale::Group, 16, true};
      },
      [](Problem& p) {
        p.index.filter = Format{DType::I8, Scale::Page};
      },
      [](Problem& p) { ++p.attention.heads_q; },
      [](Problem& p) { ++p.attention.heads_kv; },
      [](Problem& p) { ++p.attention.head_dim; },
      [](Problem& p) { ++p.attention.value_dim; },
      [](Problem& p) { p.attention.softmax_scale = 0.5f; },
      [](Problem& p) { p.index.q.storage = DType::F16; },
      [](Problem& p) { p.index.k = Format{}; },
      [](Problem& p) { ++p.index.heads; },
      [](Problem& p) { ++p.index.heads_k; },
      [](Problem& p) { ++p.index.dim; },
      [](Problem& p) { p.index.scale = 0.5f; },
      [](Problem& p) { ++p.selection.block_size; },
      [](Problem& p) { ++p.selection.topk; },
      [](Problem& p) { ++p.selection.local_blocks; },
      [](Problem& p) { ++p.selection.init_blocks; },
      [](Problem& p) { p.outputs.dtype = DType::F32; },
      [](Problem& p) { p.outputs.out = false; },
      [](Problem& p) { p.outputs.lse = !p.outputs.lse; },
      [](Problem& p) { p.outputs.block_max = true; },
      [](Problem& p) { p.outputs.chosen_scores = true; },
      [](Problem& p) { p.gradients.dtype = DType::F32; },
      [](Problem& p) { p.gradients.accumulate = true; },
      [](Problem& p) { p.options.backend = "cpu"; },
      [](Problem& p) { p.options.isa = "cpu"; },
      [](Problem& p) { p.options.threads = 3; },
      [](Problem& p) { p.options.batch_invariant = true; },
  });
  std::set<std::size_t> hashes;
  for (const auto& change : changes) {
    Problem p = base;
    change(p);
    set.insert(p);
    hashes.insert(hash_value(p));
    EXPECT_TRUE(set.contains(Problem(p)));
  }
  EXPECT_EQ(set.size(), std::size(changes));
  EXPECT_EQ(hashes.size(), std::size(changes));
}

// ---- edges ----

TEST(Edges, LengthsOfOneElementAreReadOnce) {
  const std::int32_t zero = 0;
  const Tensor rows = make_tensor(&zero, DType::F32, {0, 2, 16});
  for (const std::int64_t claimed : {std::int64_t{1} << 40, std::int64_t{INT32_MAX}}) {
    const DenseAttentionArgs args{
        .q = rows,
        .k = rows,
        .v = rows,
        .batch = {.cu_seqlens_q = make_tensor(&zero, DType::I32, {claimed + 1}, {0}),
                  .seqlens_k = make_tensor(&zero, DType::I32, {claimed}, {0})},
        .out = rows};
    const auto begin = std::chrono::steady_clock::now();
    EXPECT_THROW(
        {
          const Problem p = problem_of(args);
          make_plan(p);
        },
        Error);
    EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(1));
  }
}

TEST(Edges, ThreadsAreCapped) {
  Problem p = Scene(Op::MsaAttention, Keys::Ragged).problem;
  p.options.threads = 1024;
  EXPECT_NO_THROW(make_plan(p));
  p.options.threads = 1025;
  refusal_of([&] { make_plan(p); }, ErrorCode::InvalidArgument, "options.threads");
}

TEST(Edges, TheOracleServesOnlyWhereItIsNamed) {
  Problem p = Scene(Op::DenseAttention, Keys::Ragged).problem;
  p.attention.head_dim = p.attention.value_dim = 72;  // no kernel has it
  const std::string text = refusal_of([&] { make_plan(p); }, ErrorCode::Unsupported, "problem");
  EXPECT_NE(text.find("options.backend"), std::string::npos) << text;
  EXPECT_FALSE(supports(p).supported);
  p.options.backend = "reference";
  EXPECT_EQ(make_plan(p).backend(), "reference");
}

TEST(Edges, PlanningIsPure) {
  for (const auto& [op, keys] : all_scenes()) {
    const Scene scene(op, keys);
    EXPECT_EQ(scene.plan("cpu").to_string(), scene.plan("cpu").to_string());
  }
}

TEST(Edges, FormatsThatNobodyReadsAreRefused) {
  Problem p = Scene(Op::MsaAttention, Keys::Ragged).problem;
  p.attention.kv = p.attention.q;
  p.index.k = p.index.q;
  EXPECT_NO_THROW(make_plan(p));
  p.attention.kv = Format{DType::I8};
  refusal_of([&] { make_plan(p); }, ErrorCode::InvalidArgument, "attention.kv");
  p.attention.kv.reset();
  p.index.q.group = 16;
  refusal_of([&] { make_plan(p); }, ErrorCode::InvalidArgument, "index.q");
}

}  // namespace
}  // namespace msa::test
