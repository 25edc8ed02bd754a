// SPDX-License-Identifier: MIT
// Printing, deriving and judging problems; what a plan and supports() say.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "core/backend.h"
#include "core/cpu_features.h"
#include "core/validate.h"
#include "msa/msa.h"

namespace msa {
namespace {

constexpr std::int64_t kTooMany = std::int64_t{1} << 31;

Problem legal(Op op) {
  Problem p{
      .op = op,
      .bounds = {.batch = 2, .total_q = 64, .max_seqlen_q = 32, .max_seqlen_k = 1024},
      .attention = {.heads_q = 8, .heads_kv = 2, .head_dim = 64, .value_dim = 32},
      .index = {.heads = 2, .heads_k = 1, .dim = 48},
      .selection = {.block_size = 64, .topk = 4},
  };
  if (op == Op::MergeStates || op == Op::MergeSelections) p.bounds.parts = 3;
  if (op == Op::QuantizeIndex) p.index.filter = Format{DType::I8, Scale::Page};
  return p;
}

constexpr Op kOps[] = {Op::DenseAttention,  Op::BlockScores,  Op::SelectTopk,   Op::SelectBlocks,
                       Op::SparseAttention, Op::MsaAttention, Op::MergeStates,  Op::MergeSelections,
                       Op::InvertSelection, Op::QuantizeKv,   Op::QuantizeIndex};

TEST(Print, Tensors) {
  const float data[6] = {};
  EXPECT_EQ(to_string(make_tensor(data, DType::F32, {2, 3})), "f32[2, 3] strides (3, 1) on cpu");
  EXPECT_EQ(to_string(make_tensor(data, DType::BF16, {2}, {5}, {DeviceType::Cuda, 1})),
            "bf16[2] strides (5) on cuda:1");
  EXPECT_EQ(to_string(Tensor{}), "none");
}

TEST(Print, ItemBits) {
  EXPECT_EQ(item_bits(DType::F32), 32);
  EXPECT_EQ(item_bits(DType::BF16), 16);
  EXPECT_EQ(item_bits(DType::I64), 64);
  EXPECT_EQ(item_bits(DType::E2M1), 4);
}

TEST(Print, EveryCodeHasANameOfItsOwn) {
  std::vector<std::string> names;
  for (int code = 0; code <= static_cast<int>(ErrorCode::Internal); ++code) {
    names.emplace_back(to_string(static_cast<ErrorCode>(code)));
  }
  std::sort(names.begin(), names.end());
  EXPECT_EQ(std::adjacent_find(names.begin(), names.end()), names.end());
}

TEST(Print, ProblemShowsWhatMatters) {
  Problem p = legal(Op::MsaAttention);
  p.bounds.page_size = 16;
  p.outputs.lse = true;
  EXPECT_EQ(to_string(p),
            "msa_attention on cpu, batch 2, total_q 64, max_seqlen_q 32, max_seqlen_k 1024, "
            "page_size 16, dtype bf16, heads 8/2, head_dim 64, value_dim 32, index_dtype bf16, "
            "index_heads 2/1, index_dim 48, block_size 64, topk 4, local_blocks 1, init_blocks 0, "
            "lse");
  EXPECT_EQ(to_string(legal(Op::MergeSelections)),
            "merge_selections on cpu, parts 3, total_q 64, heads_kv 2, topk 4");
}

TEST(Print, ProblemsThatDifferPrintDifferently) {
  Problem p = legal(Op::DenseAttention);
  const std::string before = to_string(p);
  p.causal = false;
  EXPECT_NE(to_string(p), before);
  p = legal(Op::DenseAttention);
  p.attention.softmax_scale = 0.5f;
  EXPECT_NE(to_string(p).find("softmax_scale 0.5"), std::string::npos);
}

TEST(MakeTensor, StridesAreRowMajor) {
  const Tensor t = make_tensor(nullptr, DType::F16, {2, 0, 5});
  EXPECT_EQ(t.rank, 3);
  EXPECT_EQ(t.stride[2], 1);
  EXPECT_EQ(t.stride[1], 5);
  EXPECT_EQ(t.stride[0], 5);
}

TEST(MakeTensor, RejectsWhatNoTensorCanBe) {
  const auto code_of = [](const std::function<void()>& make) {
    try {
      make();
    } catch (const Error& error) {
      return error.code();
    }
    return ErrorCode::Internal;
  };
  const std::int64_t huge = std::int64_t{1} << 40;
  EXPECT_EQ(code_of([] { make_tensor(nullptr, DType::F32, {}); }), ErrorCode::InvalidArgument);
  EXPECT_EQ(code_of([] {
              make_tensor(nullptr, DType::F32, {1, 1, 1, 1, 1});
            }),
            ErrorCode::InvalidArgument);
  EXPECT_EQ(code_of([] { make_tensor(nullptr, DType::F32, {2, -1}); }), ErrorCode::InvalidArgument);
  EXPECT_EQ(code_of([] {
              make_tensor(nullptr, DType::F32, {2, 2}, {1});
            }),
            ErrorCode::InvalidArgument);
  EXPECT_EQ(code_of([=] {
              make_tensor(nullptr, DType::F32, {huge, huge});
            }),
            ErrorCode::InvalidArgument);
}

TEST(Problem, LegalOnesPass) {
  for (const Op op : kOps) EXPECT_NO_THROW(core::validate_problem(legal(op))) << to_string(op);
}

TEST(Problem, EmptyBatchesAreLegal) {
  for (const Op op : kOps) {
    Problem p = legal(op);
    p.bounds.batch = p.bounds.total_q = p.bounds.max_seqlen_q = p.bounds.max_seqlen_k = 0;
    EXPECT_NO_THROW(core::validate_problem(p)) << to_string(op);
  }
}

struct Illegal {
  const char* argument;
  const char* expected;
  const char* given;
  Op op;
  std::function<void(Problem&)> change;
};

const std::vector<Illegal>& illegal_problems() {
  using P = Problem;
  constexpr Op kDense = Op::DenseAttention;
  constexpr Op kMsa = Op::MsaAttention;
  constexpr float kInf = std::numeric_limits<float>::infinity();
  static const std::vector<Illegal> table = {
      {"op", "an operation", "99", kMsa, [](P& p) { p.op = static_cast<Op>(99); }},
      {"device", "cpu or cuda:N", "cpu:1", kMsa, [](P& p) { p.device.index = 1; }},
      {"device", "cpu or cuda:N", "cuda:-1", kMsa,
       [](P& p) {
         p.device = {DeviceType::Cuda, -1};
       }},
      {"options.threads", "0 to", "-2", kMsa, [](P& p) { p.options.threads = -2; }},
      {"batch", "0 to", "-1", kMsa, [](P& p) { p.bounds.batch = -1; }},
      {"batch", "0 to", "2147483648", kMsa, [](P& p) { p.bounds.batch = kTooMany; }},
      {"total_q", "0 to 2147483647", "-1", kMsa, [](P& p) { p.bounds.total_q = -1; }},
      {"total_q", "0 to 2147483647", "2147483648", kMsa, [](P& p) { p.bounds.total_q = kTooMany; }},
      {"max_seqlen_q", "0 to", "-5", kMsa, [](P& p) { p.bounds.max_seqlen_q = -5; }},
      {"max_seqlen_q", "0 to", "2147483648", kMsa, [](P& p) { p.bounds.max_seqlen_q = kTooMany; }},
      {"max_seqlen_k", "0 to", "-5", kMsa, [](P& p) { p.bounds.max_seqlen_k = -5; }},
      {"max_seqlen_k", "0 to", "2147483648", kMsa, [](P& p) { p.bounds.max_seqlen_k = kTooMany; }},
      {"page_size", "0 to", "-16", kMsa, [](P& p) { p.bounds.page_size = -16; }},
      {"page_size", "a multiple of 16", "24", kMsa, [](P& p) { p.bounds.page_size = 24; }},
      {"block_size", "16 to 256", "0", kMsa, [](P& p) { p.selection.block_size = 0; }},
      {"block_size", "16 to 256", "-128", kMsa, [](P& p) { p.selection.block_size = -128; }},
      {"block_size", "16 to 256", "512", kMsa, [](P& p) { p.selection.block_size = 512; }},
      {"block_size", "a multiple of 16", "100", kMsa, [](P& p) { p.selection.block_size = 100; }},
      {"dtype", "f32, f16, bf16 or e4m3", "i32", kDense,
       [](P& p) { p.attention.q.storage = DType::I32; }},
      {"dtype", "f32, f16, bf16 or e4m3", "e2m1", kDense,
       [](P& p) { p.attention.q.storage = DType::E2M1; }},
      {"dtype", "f32, f16 or bf16", "e4m3", Op::MergeStates,
       [](P& p) { p.attention.q.storage = DType::E4M3; }},
      {"index_dtype", "f32, f16, bf16 or e4m3", "e2m1", kMsa,
       [](P& p) { p.index.q.storage = DType::E2M1; }},
      {"out_dtype", "bf16 or f32", "f16", kDense, [](P& p) { p.outputs.dtype = DType::F16; }},
      {"heads_q", "1 to", "0", kDense, [](P& p) { p.attention.heads_q = 0; }},
      {"heads_kv", "1 to", "0", kDense, [](P& p) { p.attention.heads_kv = 0; }},
      {"heads_kv", "a divisor of heads_q 8", "3", kDense, [](P& p) { p.attention.heads_kv = 3; }},
      {"heads_kv", "a divisor of heads_q 8", "16", kDense, [](P& p) { p.attention.heads_kv = 16; }},
      {"head_dim", "1 to", "0", kDense, [](P& p) { p.attention.head_dim = 0; }},
      {"head_dim", "1 to", "-16", kDense, [](P& p) { p.attention.head_dim = -16; }},
      {"value_dim", "1 to", "0", kDense, [](P& p) { p.attention.value_dim = 0; }},
      {"index_heads", "1 to", "0", kMsa, [](P& p) { p.index.heads = 0; }},
      {"index_heads", "heads_kv 2", "4", kMsa, [](P& p) { p.index.heads = 4; }},
      {"index_heads", "1 to", "0", Op::SelectTopk, [](P& p) { p.index.heads = 0; }},
      {"index_heads_k", "1 to", "0", kMsa, [](P& p) { p.index.heads_k = 0; }},
      {"index_heads_k", "a divisor of index_heads 2", "3", kMsa, [](P& p) { p.index.heads_k = 3; }},
      {"index_dim", "1 to", "0", Op::BlockScores, [](P& p) { p.index.dim = 0; }},
      {"topk", "1 to 256", "0", kMsa, [](P& p) { p.selection.topk = 0; }},
      {"topk", "1 to 256", "257", kMsa, [](P& p) { p.selection.topk = 257; }},
      {"topk", "1 to 256", "0", Op::InvertSelection, [](P& p) { p.selection.topk = 0; }},
      {"topk", "1 to 256", "300", Op::MergeSelections, [](P& p) { p.selection.topk = 300; }},
      {"local_blocks", "0 to 4", "-1", kMsa, [](P& p) { p.selection.local_blocks = -1; }},
      {"local_blocks", "0 to 4", "5", kMsa, [](P& p) { p.selection.local_blocks = 5; }},
      {"init_blocks", "0 to 4", "-1", kMsa, [](P& p) { p.selection.init_blocks = -1; }},
      {"init_blocks", "at most topk 4", "4 + 1", kMsa, [](P& p) { p.selection.init_blocks = 4; }},
      {"softmax_scale", "finite", "nan", kMsa,
       [](P& p) { p.attention.softmax_scale = std::nanf(""); }},
      {"softmax_scale", "finite", "inf", kMsa, [=](P& p) { p.attention.softmax_scale = kInf; }},
      {"output", "true for msa_attention", "false", kMsa, [](P& p) { p.outputs.out = false; }},
      {"output", "true where block_max is false", "false", kDense,
       [](P& p) { p.outputs.out = false; }},
      {"lse", "false where output is false", "true", kDense,
       [](P& p) { p.outputs.out = false, p.outputs.lse = p.outputs.block_max = true; }},
      {"lse", "false for select_blocks", "true", Op::SelectBlocks,
       [](P& p) { p.outputs.lse = true; }},
      {"block_max", "false for msa_attention", "true", kMsa,
       [](P& p) { p.outputs.block_max = true; }},
      {"chosen_scores", "false for msa_attention", "true", kMsa,
       [](P& p) { p.outputs.chosen_scores = true; }},
      {"parts", "1 to 64", "0", Op::MergeStates, [](P& p) { p.bounds.parts = 0; }},
      {"parts", "1 to 64", "65", Op::MergeSelections, [](P& p) { p.bounds.parts = 65; }},
      {"dtype", "f32, f16 or bf16", "i8", Op::MergeStates,
       [](P& p) { p.attention.q.storage = DType::I8; }},
      {"out_dtype", "bf16 or f32", "f16", Op::MergeStates,
       [](P& p) { p.outputs.dtype = DType::F16; }},
      {"heads_q", "1 to", "0", Op::MergeStates, [](P& p) { p.attention.heads_q = 0; }},
      {"value_dim", "1 to", "-1", Op::MergeStates, [](P& p) { p.attention.value_dim = -1; }},
      {"heads_kv", "1 to", "0", Op::MergeSelections, [](P& p) { p.attention.heads_kv = 0; }},
      {"heads_kv", "1 to", "0", Op::InvertSelection, [](P& p) { p.attention.heads_kv = 0; }},
      {"total_q", "fewer than 2^61 elements", "2147483647 * 1073741824 * 64", kDense,
       [](P& p) { p.bounds.total_q = kTooMany - 1, p.attention.heads_q = std::int64_t{1} << 30; }},
      {"max_seqlen_k", "fewer than 2^61 elements", "2147483647 * 1048576 * 134217728",
       Op::SelectTopk,
       [](P& p) {
         p.bounds.total_q = p.bounds.max_seqlen_k = kTooMany - 1;
         p.index.heads = std::int64_t{1} << 20;
         p.selection.block_size = 16;
         p.selection.topk = 1;
       }},
      {"total_q", "int32", "2147483647 * 4", Op::InvertSelection,
       [](P& p) { p.bounds.total_q = kTooMany - 1; }},
  };
  return table;
}

TEST(Problem, IllegalOnesNameFieldExpectedAndGiven) {
  for (const Illegal& row : illegal_problems()) {
    Problem p = legal(row.op);
    row.change(p);
    const std::string label = std::string(row.argument) + " " + row.given;
    try {
      make_plan(p);
      ADD_FAILURE() << "accepted: " << label;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::InvalidArgument) << label;
      EXPECT_EQ(error.argument(), row.argument) << error.what();
      EXPECT_NE(std::string(error.what()).find(row.expected), std::string::npos) << error.what();
      EXPECT_NE(std::string(error.what()).find(row.given), std::string::npos) << error.what();
    }
    const Support support = supports(p);
    EXPECT_FALSE(support.supported) << label;
    EXPECT_NE(support.error.find(row.given), std::string::npos) << support.error;
  }
}

TEST(Supports, EveryBackendAnswersInOrder) {
  const Support support = supports(legal(Op::MsaAttention));
  ASSERT_EQ(support.backends.size(), core::backends().size());
  EXPECT_TRUE(support.supported);
  for (std::size_t i = 0; i < support.backends.size(); ++i) {
    EXPECT_EQ(support.backends[i].backend, core::backends()[i]->name());
    EXPECT_EQ(support.backends[i].accepts, support.backends[i].reason.empty());
  }
  EXPECT_EQ(support.backends.back().backend, "reference");
}

TEST(Supports, UnknownBackendIsUnsupportedWithEveryReason) {
  Problem p = legal(Op::MsaAttention);
  p.options.backend = "abacus";
  EXPECT_FALSE(supports(p).supported);
  try {
    make_plan(p);
    ADD_FAILURE() << "planned";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::Unsupported);
    for (const core::Backend* backend : core::backends()) {
      EXPECT_NE(std::string(error.what()).find(std::string(backend->name()) + ": "),
                std::string::npos)
          << error.what();
    }
    EXPECT_NE(std::string(error.what()).find("abacus"), std::string::npos) << error.what();
  }
}

TEST(Supports, ForcedReferenceIsInForce) {
  for (const Op op : kOps) {
    Problem p = legal(op);
    p.options.backend = "reference";
    EXPECT_EQ(make_plan(p).backend(), "reference");
  }
}

TEST(Plan, PrintsWhatWasDecided) {
  Problem p = legal(Op::MsaAttention);
  p.options.backend = "reference";
  const Plan plan = make_plan(p);
  const std::string text = plan.to_string();
  EXPECT_EQ(plan.problem(), p);
  EXPECT_NE(text.find("backend reference"), std::string::npos) << text;
  EXPECT_NE(text.find("workspace " + std::to_string(plan.workspace_bytes())), std::string::npos);
}

// Heads, rows and lengths at the ends of their ranges: sizes are refused or numbers, which UBSan
// holds to no overflow on the way.
TEST(Plan, SizesOfAbsurdProblemsAreNumbers) {
  constexpr std::int64_t kMost = INT32_MAX;
  for (const Op op : kOps) {
    for (const std::int64_t heads :
         {std::int64_t{1}, std::int64_t{64}, std::int64_t{65536}, kMost}) {
      for (int bit = 0; bit < 32; ++bit) {
        Problem p = legal(op);
        p.bounds.batch = kMost - 1;
        p.bounds.total_q = (std::int64_t{1} << bit) - bit % 2;
        p.bounds.max_seqlen_q = p.bounds.max_seqlen_k = kMost;
        p.attention = {.heads_q = heads, .heads_kv = 1, .head_dim = 256, .value_dim = 16};
        p.index.heads = op == Op::MsaAttention ? 1 : heads;
        p.selection = {.block_size = 16, .topk = kMaxTopk};
        p.options = {.backend = "cpu", .threads = 1024};
        if (!supports(p).supported) continue;
        EXPECT_LT(make_plan(p).workspace_bytes(), std::size_t{1} << 60) << to_string(p);
      }
    }
  }
}

TEST(Plan, OfAnotherOperationIsRejected) {
  Problem p = legal(Op::MsaAttention);
  p.options.backend = "reference";
  const Plan plan = make_plan(p);
  try {
    run(plan, DenseAttentionArgs{});
    ADD_FAILURE() << "ran";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::InvalidArgument);
    EXPECT_EQ(error.argument(), "plan");
  }
}

TEST(Derive, ReadsBoundsOffTensorsAndLengths) {
  const std::int32_t starts[] = {0, 3, 8};
  const std::int32_t lengths[] = {40, 7};
  const std::int32_t table[2 * 3] = {};
  const Batch batch{.cu_seqlens_q = make_tensor(starts, DType::I32, {3}),
                    .seqlens_k = make_tensor(lengths, DType::I32, {2}),
                    .page_table = make_tensor(table, DType::I32, {2, 3})};
  const DenseAttentionArgs args{.q = make_tensor(starts, DType::F16, {9, 8, 64}),
                                .k = make_tensor(starts, DType::F16, {5, 16, 2, 64}),
                                .v = make_tensor(starts, DType::F16, {5, 16, 2, 32}),
                                .batch = batch,
                                .out = make_tensor(starts, DType::F32, {9, 8, 32}),
                                .lse = make_tensor(starts, DType::F32, {9, 8})};
  const Problem p = problem_of(args, {.causal = false});
  const Problem expected{
      .op = Op::DenseAttention,
      .causal = false,
      .bounds = {.batch = 2, .total_q = 9, .max_seqlen_q = 5, .max_seqlen_k = 40, .page_size = 16},
      .attention =
          {.q = {DType::F16}, .heads_q = 8, .heads_kv = 2, .head_dim = 64, .value_dim = 32},
      .outputs = {.dtype = DType::F32, .lse = true}};
  EXPECT_EQ(p, expected) << to_string(p);
}

TEST(Derive, WildLengthsDoNotMakeWildBounds) {
  const std::int32_t starts[] = {0, 2147483647};
  const std::int32_t lengths[] = {2147483647};
  const SelectBlocksArgs args{.index_q = make_tensor(starts, DType::F32, {4, 1, 16}),
                              .index_k = make_tensor(starts, DType::F32, {32, 1, 16}),
                              .batch = {.cu_seqlens_q = make_tensor(starts, DType::I32, {2}),
                                        .seqlens_k = make_tensor(lengths, DType::I32, {1})},
                              .block_ids = make_tensor(starts, DType::I32, {4, 1, 5})};
  const Problem p = problem_of(args);
  EXPECT_EQ(p.bounds.max_seqlen_q, 4);
  EXPECT_EQ(p.bounds.max_seqlen_k, 32);
  EXPECT_EQ(p.selection.topk, 5);
}

TEST(Derive, LengthsOnADeviceNeedBounds) {
  const Device gpu{DeviceType::Cuda, 0};
  const std::int32_t data[4] = {};
  DenseAttentionArgs args{.q = make_tensor(data, DType::F16, {9, 8, 64}, gpu),
                          .k = make_tensor(data, DType::F16, {5, 2, 64}, gpu),
                          .v = make_tensor(data, DType::F16, {5, 2, 64}, gpu),
                          .batch = {.cu_seqlens_q = make_tensor(data, DType::I32, {3}, gpu),
                                    .seqlens_k = make_tensor(data, DType::I32, {2}, gpu)}};
  const auto argument_of = [&](const Settings& settings) -> std::string {
    try {
      problem_of(args, settings);
    } catch (const Error& error) {
      return error.argument();
    }
    return "none";
  };
  EXPECT_EQ(argument_of({}), "settings.max_seqlen_q");
  EXPECT_EQ(argument_of({.max_seqlen_q = 9}), "settings.max_seqlen_k");
  EXPECT_EQ(argument_of({.max_seqlen_q = 9, .max_seqlen_k = 5}), "none");
}

struct BadSource {
  const char* argument;
  const char* given;
  std::function<void()> call;
};

// The one-call forms read sizes off tensors: a tensor that tells none is named itself, not the size
// that it lacks.
TEST(Derive, NamesTheTensorThatTellsNoSize) {
  const float data[64] = {};
  const Tensor rows = make_tensor(data, DType::F32, {2, 1, 16});
  const Tensor flat = make_tensor(data, DType::F32, {2, 16});
  const Tensor ints = make_tensor(data, DType::I32, {2, 1, 16});
  const Tensor pages = make_tensor(data, DType::F32, {1, 2, 1, 16});
  const Tensor outs[] = {flat}, lists[] = {flat};
  const BadSource table[] = {
      {"q", "none", [] { dense_attention({}); }},
      {"q", "rank 2", [=] { dense_attention({.q = flat, .k = rows, .v = rows}); }},
      {"q", "rank 4", [=] { sparse_attention({.q = pages, .k = rows, .v = rows}); }},
      {"q", "i32", [=] { msa_attention({.q = ints, .k = rows, .v = rows}); }},
      {"k", "none", [=] { dense_attention({.q = rows, .v = rows}); }},
      {"k", "rank 2", [=] { dense_attention({.q = rows, .k = flat, .v = flat}); }},
      {"v", "none", [=] { dense_attention({.q = rows, .k = rows, .out = rows}); }},
      {"v", "rank 4", [=] { dense_attention({.q = rows, .k = rows, .v = pages, .out = rows}); }},
      {"block_ids", "none", [=] { sparse_attention({.q = rows, .k = rows, .v = rows}); }},
      {"index_q", "none", [=] { msa_attention({.q = rows, .k = rows, .v = rows}); }},
      {"index_q", "i32", [=] { block_scores({.index_q = ints, .index_k = rows}); }},
      {"index_k", "rank 2", [=] { select_blocks({.index_q = rows, .index_k = flat}); }},
      {"block_ids", "rank 2",
       [=] { select_blocks({.index_q = rows, .index_k = rows, .block_ids = flat}); }},
      {"scores", "none", [] { select_topk({}); }},
      {"scores", "rank 2", [=] { select_topk({.scores = flat}); }},
      {"block_ids", "none", [] { invert_selection({}); }},
      {"outs[0]", "rank 2", [&] { merge_states({.outs = outs}); }},
      {"block_ids_parts[0]", "rank 2", [&] { merge_selections({.block_ids_parts = lists}); }},
      {"parts", "0", [] { merge_states({}); }},
      {"parts", "0", [] { merge_selections({}); }},
  };
  for (const BadSource& row : table) {
    try {
      row.call();
      ADD_FAILURE() << "accepted: " << row.argument << " " << row.given;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::InvalidArgument) << error.what();
      EXPECT_EQ(error.argument(), row.argument) << error.what();
      EXPECT_NE(std::string(error.what()).find(std::string("got ") + row.given), std::string::npos)
          << error.what();
    }
  }
}

class EnvironmentTest : public testing::Test {
 protected:
  void TearDown() override {
    unsetenv("MSA_BACKEND");
    unsetenv("MSA_ISA");
  }
};

TEST_F(EnvironmentTest, FillsWhatTheProblemLeavesEmpty) {
  setenv("MSA_BACKEND", "reference", 1);
  const Plan plan = make_plan(legal(Op::DenseAttention));
  EXPECT_EQ(plan.backend(), "reference");
  EXPECT_EQ(plan.problem().options.backend, "reference");
  setenv("MSA_BACKEND", "abacus", 1);
  EXPECT_THROW(make_plan(legal(Op::DenseAttention)), Error);
}

TEST_F(EnvironmentTest, DoesNotOverrideTheProblem) {
  setenv("MSA_BACKEND", "abacus", 1);
  setenv("MSA_ISA", "abacus", 1);
  Problem p = legal(Op::DenseAttention);
  p.options.backend = "reference";
  const Plan plan = make_plan(p);
  EXPECT_EQ(plan.backend(), "reference");
  EXPECT_EQ(plan.problem().options.isa, "abacus");
}

TEST(Supports, ReferenceDoesNotStandInForAnInstructionSet) {
  Problem p = legal(Op::DenseAttention);
  p.options.isa = "abacus";
  const Support support = supports(p);
  EXPECT_FALSE(support.supported);
  EXPECT_FALSE(support.backends.back().accepts);
  for (const BackendAnswer& answer : support.backends) {
    if (answer.backend == "cpu") {
      EXPECT_NE(answer.reason.find("abacus"), std::string::npos) << answer.reason;
    }
  }
}

TEST(Info, TellsVersionAndBackends) {
  const BuildInfo info = build_info();
  EXPECT_EQ(info.version, version());
  EXPECT_EQ(info.version, MSA_VERSION_STRING);
  EXPECT_EQ(info.cpu_features, core::feature_names(core::detect_cpu_features()));
  EXPECT_GE(info.threads, 1);
  EXPECT_FALSE(info.commit.empty());
  ASSERT_EQ(info.backends.size(), core::backends().size());
  EXPECT_TRUE(info.backends.back().available);
}

TEST(Info, FeaturesAgreeWithTheCompilersOwnCheck) {
#if defined(__x86_64__)
  const core::CpuFeatures f = core::detect_cpu_features();
  EXPECT_EQ(f.avx2, __builtin_cpu_supports("avx2") != 0);
  EXPECT_EQ(f.fma, __builtin_cpu_supports("fma") != 0);
  EXPECT_EQ(f.avx512f, __builtin_cpu_supports("avx512f") != 0);
  EXPECT_EQ(f.avx512bw, __builtin_cpu_supports("avx512bw") != 0);
  EXPECT_EQ(f.avx512_vbmi, __builtin_cpu_supports("avx512vbmi") != 0);
  EXPECT_EQ(f.avx512_vnni, __builtin_cpu_supports("avx512vnni") != 0);
  EXPECT_EQ(f.avx512_bf16, __builtin_cpu_supports("avx512bf16") != 0);
  EXPECT_TRUE(f.amx_tile || (!f.amx_bf16 && !f.amx_int8 && !f.amx_permitted));
#elif defined(__aarch64__)
  EXPECT_TRUE(core::detect_cpu_features().neon);
#else
  EXPECT_EQ(core::detect_cpu_features(), core::CpuFeatures{});
#endif
}

}  // namespace
}  // namespace msa
