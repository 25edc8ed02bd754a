// SPDX-License-Identifier: MIT
// The C interface: it gives the bits of the C++ one, refuses what it must, grows as it says, and
// its layout does not move.
#include <gtest/gtest.h>

#include <cstddef>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "msa/c.h"
#include "msa/msa.h"
#include "tests/core/scene.h"

namespace msa::test {
namespace {

// ---- layout: a change here breaks callers that were compiled before it ----

static_assert(sizeof(msa_error) == 2016);
static_assert(sizeof(msa_tensor) == 88);
static_assert(offsetof(msa_tensor, shape) == 8 && offsetof(msa_tensor, stride) == 40);
static_assert(offsetof(msa_tensor, dtype) == 72 && offsetof(msa_tensor, rank) == 76);
static_assert(offsetof(msa_tensor, device_type) == 80 && offsetof(msa_tensor, device_index) == 84);
static_assert(sizeof(msa_parts) == 16);
static_assert(sizeof(msa_format) == 24);
static_assert(sizeof(msa_options) == 24);
static_assert(sizeof(msa_fault) == 128);
static_assert(sizeof(msa_field) == 48 && offsetof(msa_field, flag) == 40);
static_assert(offsetof(msa_args, q) == 8 && offsetof(msa_args, outs) == 1240);
static_assert(MSA_STRUCT_SIZE(msa_args, q_slots) == 1920);
static_assert(offsetof(msa_args, k_scale) == 1920 && offsetof(msa_args, v_scale) == 2008);
static_assert(MSA_STRUCT_SIZE(msa_args, v_scale_cache) == 2800);
static_assert(MSA_STRUCT_SIZE(msa_args, candidates) == 3064);
static_assert(MSA_STRUCT_SIZE(msa_args, index_k_scale) == 3152);
static_assert(MSA_STRUCT_SIZE(msa_settings, options) == 96);
static_assert(MSA_STRUCT_SIZE(msa_args, index_k_global_scale) == 3240);
static_assert(offsetof(msa_settings, kv_rounded) == 96);
static_assert(offsetof(msa_settings, index_k_rounded) == 104);
static_assert(MSA_STRUCT_SIZE(msa_problem, options) == 320);
static_assert(offsetof(msa_problem, index_filter) == 320);
static_assert(MSA_STRUCT_SIZE(msa_problem, index_filter_given) == 352);
// What a larger struct has behind these must not begin with padding.
static_assert(offsetof(msa_settings, filter_rotated) == 112);
static_assert(offsetof(msa_settings, precision) == 120);
static_assert(offsetof(msa_problem, precision) == 352);
static_assert(MSA_STRUCT_SIZE(msa_args, d_index_k) == sizeof(msa_args));
static_assert(MSA_STRUCT_SIZE(msa_settings, index_scale_given) == sizeof(msa_settings));
static_assert(MSA_STRUCT_SIZE(msa_problem, index_scale_given) == sizeof(msa_problem));

TEST(CInterface, StructsStartAsTheCppOnesDo) {
  const msa_problem problem = MSA_PROBLEM_INIT;
  const Problem expected{};
  msa_error error;
  char text[512];
  msa_problem_text(&problem, text, sizeof text);
  EXPECT_EQ(text, to_string(expected));
  EXPECT_EQ(msa_problem_hash(&problem), hash_value(expected));
  const msa_settings settings = MSA_SETTINGS_INIT;
  const Settings defaults{};
  EXPECT_EQ(settings.block_size, defaults.block_size);
  EXPECT_EQ(settings.topk, defaults.topk);
  EXPECT_EQ(settings.local_blocks, defaults.local_blocks);
  EXPECT_EQ(settings.init_blocks, defaults.init_blocks);
  EXPECT_EQ(settings.max_seqlen_q, defaults.max_seqlen_q);
  EXPECT_EQ(settings.max_seqlen_k, defaults.max_seqlen_k);
  EXPECT_EQ(settings.causal != 0, defaults.causal);
  (void)error;
}

TEST(CInterface, Names) {
  EXPECT_STREQ(msa_version(), version());
  EXPECT_STREQ(msa_op_name(MSA_OP_MSA_ATTENTION), "msa_attention");
  EXPECT_EQ(msa_op_name(99), nullptr);
  EXPECT_EQ(msa_op_name(-1), nullptr);
  EXPECT_STREQ(msa_dtype_name(MSA_BF16), "bf16");
  EXPECT_EQ(msa_dtype_name(99), nullptr);
  EXPECT_EQ(msa_dtype_bits(MSA_E2M1), 4);
  EXPECT_EQ(msa_dtype_bits(-1), 0);
}

// ---- calls ----

msa_tensor c_tensor(const Tensor& t) {
  msa_tensor c{};
  c.data = t.data;
  std::copy(t.shape.begin(), t.shape.end(), c.shape);
  std::copy(t.stride.begin(), t.stride.end(), c.stride);
  c.dtype = static_cast<msa_dtype>(t.dtype);
  c.rank = t.rank;
  c.device_type = static_cast<msa_device_type>(t.device.type);
  c.device_index = t.device.index;
  return c;
}

std::string bare(const std::string& name) {
  return name.starts_with("batch.") ? name.substr(6) : name;
}

/// A scene's tensors as msa_args.
struct CArgs {
  msa_args args = MSA_ARGS_INIT;
  std::vector<std::vector<msa_tensor>> lists;

  explicit CArgs(const Scene& scene) {
    lists.reserve(4);
    const msa_field* fields = nullptr;
    const std::size_t count = msa_fields(static_cast<msa_op>(scene.problem.op), &fields);
    for (std::size_t i = 0; i < count; ++i) {
      char* place = reinterpret_cast<char*>(&args) + fields[i].offset;
      if (fields[i].parts != 0) {
        std::vector<msa_tensor>& list = lists.emplace_back();
        for (const auto& arg : scene.args) {
          if (arg->name.starts_with(std::string(fields[i].name) + "[")) {
            list.push_back(c_tensor(arg->tensor));
          }
        }
        const msa_parts parts{list.data(), static_cast<std::int64_t>(list.size())};
        std::memcpy(place, &parts, sizeof parts);
        continue;
      }
      for (const auto& arg : scene.args) {
        if (bare(arg->name) != fields[i].name) continue;
        const msa_tensor tensor = c_tensor(arg->tensor);
        std::memcpy(place, &tensor, sizeof tensor);
      }
    }
  }
};

msa_problem c_problem(const Scene& scene, const CArgs& args) {
  msa_settings settings = MSA_SETTINGS_INIT;
  settings.block_size = scene.problem.selection.block_size;
  settings.topk = scene.problem.selection.topk;
  settings.max_seqlen_q = scene.problem.bounds.max_seqlen_q;
  settings.max_seqlen_k = scene.problem.bounds.max_seqlen_k;
  settings.options.backend = "reference";
  msa_problem problem = MSA_PROBLEM_INIT;
  msa_error error;
  EXPECT_EQ(msa_problem_of(static_cast<msa_op>(scene.problem.op), &args.args, &settings, &problem,
                           &error),
            MSA_OK)
      << error.message;
  return problem;
}

TEST(CInterface, GivesTheBitsOfTheCppOne) {
  for (const auto& [op, keys] : all_scenes()) {
    Scene cpp(op, keys), c(op, keys);
    cpp.run("reference");
    const CArgs args(c);
    const msa_problem problem = c_problem(c, args);
    msa_plan* plan = nullptr;
    msa_error error;
    ASSERT_EQ(msa_plan_make(&problem, &plan, &error), MSA_OK) << error.message;
    EXPECT_STREQ(msa_plan_backend(plan), "reference");
    EXPECT_STREQ(msa_plan_isa(plan), "scalar");
    const std::size_t bytes = msa_plan_workspace_bytes(plan);
    std::vector<std::byte> memory(bytes + kWorkspaceAlignment);
    void* start = memory.data();
    std::size_t room = memory.size();
    std::align(kWorkspaceAlignment, bytes, start, room);
    EXPECT_EQ(msa_run(plan, &args.args, start, bytes, nullptr, &error), MSA_OK) << error.message;
    EXPECT_EQ(cpp.snapshot(), c.snapshot()) << to_string(op);

    msa_problem planned = MSA_PROBLEM_INIT;
    ASSERT_EQ(msa_plan_problem(plan, &planned, &error), MSA_OK);
    EXPECT_EQ(msa_problem_hash(&planned), msa_problem_hash(&problem));
    msa_fault fault{};
    fault.found = 7;
    EXPECT_EQ(msa_check(plan, start, bytes, nullptr, &fault, &error), MSA_OK);
    EXPECT_EQ(fault.found, 0);
    EXPECT_EQ(msa_plan_share(plan), plan);
    msa_plan_free(plan);
    char text[4096];
    EXPECT_GT(msa_plan_text(plan, text, sizeof text), 20u);
    EXPECT_NE(std::string(text).find("backend reference"), std::string::npos) << text;
    msa_plan_free(plan);
  }
  msa_plan_free(nullptr);
}

TEST(CInterface, OneCallForm) {
  for (const auto& [op, keys] : all_scenes()) {
    if (op == Op::SelectTopk || op == Op::InvertSelection) continue;  // lengths alone: same path
    Scene cpp(op, keys), c(op, keys);
    cpp.run("reference");
    const CArgs args(c);
    msa_settings settings = MSA_SETTINGS_INIT;
    settings.block_size = 16;
    settings.topk = c.problem.selection.topk;
    settings.options.backend = "reference";
    msa_error error;
    EXPECT_EQ(msa_run_once(static_cast<msa_op>(op), &args.args, &settings, &error), MSA_OK)
        << error.message;
    EXPECT_EQ(cpp.snapshot(), c.snapshot()) << to_string(op);
  }
}

TEST(CInterface, StackedPartsAreOneTensorOfOneRankMore) {
  std::vector<float> outs(3 * 2 * 1 * 16, 1.0f), lses(3 * 2, 0.0f), out(2 * 16, -1.0f);
  outs[5] = 4.0f;
  const msa_tensor stacked = c_tensor(make_tensor(outs.data(), DType::F32, {3, 2, 1, 16}));
  const msa_tensor stacked_lse = c_tensor(make_tensor(lses.data(), DType::F32, {3, 2, 1}));
  msa_args args = MSA_ARGS_INIT;
  args.outs = {&stacked, 1};
  args.lses = {&stacked_lse, 1};
  args.out = c_tensor(make_tensor(out.data(), DType::F32, {2, 1, 16}));
  msa_error error;
  ASSERT_EQ(msa_run_once(MSA_OP_MERGE_STATES, &args, nullptr, &error), MSA_OK) << error.message;
  EXPECT_FLOAT_EQ(out[0], 1.0f);
  EXPECT_FLOAT_EQ(out[5], 2.0f);
}

TEST(CInterface, OutputsOf) {
  for (const auto& [op, keys] : all_scenes()) {
    const Scene scene(op, keys);
    const CArgs args(scene);
    const msa_problem problem = c_problem(scene, args);
    const msa_field* fields = nullptr;
    const std::size_t count = msa_fields(static_cast<msa_op>(op), &fields);
    msa_error error;
    for (std::size_t i = 0; i < count; ++i) {
      msa_tensor made{};
      const msa_status status = msa_output_of(&problem, &args.args, fields[i].name, &made, &error);
      const bool output = fields[i].role == MSA_OUTPUT || fields[i].role == MSA_OPTIONAL_OUTPUT;
      EXPECT_EQ(status == MSA_OK, output) << fields[i].name;
      if (!output) continue;
      msa_tensor given;
      std::memcpy(&given, reinterpret_cast<const char*>(&args.args) + fields[i].offset,
                  sizeof given);
      if (given.rank == 0) continue;  // the scenes have no filter
      EXPECT_EQ(made.rank, given.rank) << fields[i].name;
      EXPECT_EQ(made.dtype, given.dtype) << fields[i].name;
    }
  }
}

TEST(CInterface, FlagsPlanWhatTheySay) {
  for (const auto& [op, keys] : all_scenes()) {
    const Scene scene(op, keys);
    CArgs args(scene);
    const msa_field* fields = nullptr;
    const std::size_t count = msa_fields(static_cast<msa_op>(op), &fields);
    for (std::size_t i = 0; i < count; ++i) {
      const msa_field& field = fields[i];
      if (field.role != MSA_OPTIONAL_OUTPUT || field.flag == 0) continue;
      for (const bool given : {true, false}) {
        CArgs call(scene);
        char* place = reinterpret_cast<char*>(&call.args) + field.offset;
        if (!given) std::memset(place, 0, sizeof(msa_tensor));
        const msa_problem problem = c_problem(scene, call);
        std::int32_t flag = -1;
        std::memcpy(&flag, reinterpret_cast<const char*>(&problem) + field.flag, sizeof flag);
        // Dense attention without an output, and without maxima, is still asked for its output.
        const bool alone = op == Op::DenseAttention && field.name == std::string("out") &&
                           call.args.block_max.rank == 0;
        EXPECT_EQ(flag, given || alone) << msa_op_name(static_cast<msa_op>(op)) << field.name;
      }
    }
  }
  const msa_field* fields = nullptr;
  msa_fields(MSA_OP_DENSE_ATTENTION, &fields);
  EXPECT_STREQ(fields[2].name, "v");
  EXPECT_EQ(fields[2].role, MSA_OPTIONAL_INPUT);
  EXPECT_EQ(fields[2].flag, offsetof(msa_problem, output));
}

// ---- refusals ----

struct Refusal {
  const char* what;
  std::function<msa_status(msa_error*)> call;
  msa_status status;
  std::string argument;
};

TEST(CInterface, Refusals) {
  const Scene scene(Op::DenseAttention, Keys::Ragged);
  const CArgs good(scene);
  const msa_problem problem = c_problem(scene, good);
  msa_plan* plan = nullptr;
  ASSERT_EQ(msa_plan_make(&problem, &plan, nullptr), MSA_OK);
  msa_tensor tensor{};
  msa_fault fault{};
  const auto before = scene.snapshot();
  const auto run_with = [&](const std::function<void(msa_args&)>& spoil) {
    return [&, spoil](msa_error* error) {
      msa_args args = good.args;
      spoil(args);
      return msa_run(plan, &args, nullptr, 0, nullptr, error);
    };
  };
  const auto make_with = [&](const std::function<void(msa_problem&)>& spoil) {
    return [&, spoil](msa_error* error) {
      msa_problem p = problem;
      spoil(p);
      msa_plan* made = nullptr;
      const msa_status status = msa_plan_make(&p, &made, error);
      EXPECT_EQ(made, nullptr);
      return status;
    };
  };
  const std::vector<Refusal> refusals{
      {"no plan",
       [&](msa_error* e) { return msa_run(nullptr, &good.args, nullptr, 0, nullptr, e); },
       MSA_INVALID_ARGUMENT, "plan"},
      {"no args", [&](msa_error* e) { return msa_run(plan, nullptr, nullptr, 0, nullptr, e); },
       MSA_INVALID_ARGUMENT, "args"},
      {"zeroed args", run_with([](msa_args& a) { a.struct_size = 0; }), MSA_INVALID_ARGUMENT,
       "args"},
      {"wild args", run_with([](msa_args& a) { a.struct_size = std::size_t{1} << 40; }),
       MSA_INVALID_ARGUMENT, "args"},
      {"dtype", run_with([](msa_args& a) { a.q.dtype = 99; }), MSA_INVALID_ARGUMENT, "q"},
      {"negative dtype", run_with([](msa_args& a) { a.q.dtype = -1; }), MSA_INVALID_ARGUMENT, "q"},
      {"device", run_with([](msa_args& a) { a.k.device_type = 5; }), MSA_INVALID_ARGUMENT, "k"},
      {"rank", run_with([](msa_args& a) { a.q.rank = 2; }), MSA_INVALID_ARGUMENT, "q"},
      {"wild rank", run_with([](msa_args& a) { a.q.rank = 1 << 30; }), MSA_INVALID_ARGUMENT, "q"},
      {"negative rank", run_with([](msa_args& a) { a.q.rank = -3; }), MSA_INVALID_ARGUMENT, "q"},
      {"stray", run_with([](msa_args& a) { a.row_ptr = a.lse; }), MSA_INVALID_ARGUMENT, "row_ptr"},
      {"stray parts", run_with([](msa_args& a) {
         a.outs = {&a.q, 1};
       }),
       MSA_INVALID_ARGUMENT, "outs"},
      {"overlap", run_with([](msa_args& a) { a.out.data = a.q.data; }), MSA_INVALID_ARGUMENT,
       "out"},
      {"op", make_with([](msa_problem& p) { p.op = 77; }), MSA_INVALID_ARGUMENT, "op"},
      {"format", make_with([](msa_problem& p) { p.q.storage = 77; }), MSA_INVALID_ARGUMENT, "q"},
      {"scale", make_with([](msa_problem& p) { p.q.scale = 77; }), MSA_INVALID_ARGUMENT, "q"},
      {"heads", make_with([](msa_problem& p) { p.heads_kv = 3; }), MSA_INVALID_ARGUMENT,
       "heads_kv"},
      {"backend", make_with([](msa_problem& p) { p.options.backend = "abacus"; }), MSA_UNSUPPORTED,
       "problem"},
      {"no problem", [](msa_error* e) { return msa_plan_make(nullptr, nullptr, e); },
       MSA_INVALID_ARGUMENT, "plan"},
      {"no output",
       [&](msa_error* e) { return msa_output_of(&problem, &good.args, "q", &tensor, e); },
       MSA_INVALID_ARGUMENT, "name"},
      {"no name",
       [&](msa_error* e) { return msa_output_of(&problem, &good.args, nullptr, &tensor, e); },
       MSA_INVALID_ARGUMENT, "name"},
      {"no fault", [&](msa_error* e) { return msa_check(plan, nullptr, 0, nullptr, nullptr, e); },
       MSA_INVALID_ARGUMENT, "fault"},
      {"op of once", [&](msa_error* e) { return msa_run_once(-1, &good.args, nullptr, e); },
       MSA_INVALID_ARGUMENT, "op"},
      {"check", [&](msa_error* e) { return msa_check(nullptr, nullptr, 0, nullptr, &fault, e); },
       MSA_INVALID_ARGUMENT, "plan"},
  };
  for (const Refusal& refusal : refusals) {
    msa_error error{};
    EXPECT_EQ(refusal.call(&error), refusal.status) << refusal.what << ": " << error.message;
    EXPECT_EQ(error.status, refusal.status) << refusal.what;
    EXPECT_EQ(error.argument, refusal.argument) << refusal.what << ": " << error.message;
    EXPECT_NE(std::string(error.message), "") << refusal.what;
    EXPECT_EQ(refusal.call(nullptr), refusal.status) << refusal.what << " without room for a text";
  }
  EXPECT_EQ(before, scene.snapshot());
  msa_plan_free(plan);
}

TEST(CInterface, StructsGrowAtTheirEnd) {
  struct Larger {
    msa_problem known = MSA_PROBLEM_INIT;
    std::int64_t future[2] = {0, 0};
  } larger;
  larger.known.struct_size = sizeof larger;
  larger.known.total_q = 1;
  larger.known.op = MSA_OP_MERGE_STATES;
  larger.known.parts = 2;
  larger.known.heads_q = 1;
  larger.known.value_dim = 16;
  msa_plan* plan = nullptr;
  msa_error error;
  EXPECT_EQ(msa_plan_make(&larger.known, &plan, &error), MSA_OK) << error.message;
  msa_plan_free(plan);
  larger.future[1] = 1;
  EXPECT_EQ(msa_plan_make(&larger.known, &plan, &error), MSA_INVALID_ARGUMENT);
  EXPECT_STREQ(error.argument, "problem");
  EXPECT_NE(std::string(error.message).find(version()), std::string::npos) << error.message;
}

/// Dense, on GPU 0, where nobody looks.
msa_tensor tensor_on_gpu(msa_dtype dtype, std::initializer_list<std::int64_t> shape) {
  msa_tensor tensor{};
  tensor.data = reinterpret_cast<void*>(std::uintptr_t{4096});
  tensor.dtype = dtype;
  tensor.device_type = MSA_CUDA;
  tensor.rank = static_cast<std::int32_t>(shape.size());
  std::copy(shape.begin(), shape.end(), tensor.shape);
  std::int64_t stride = 1;
  for (int d = tensor.rank - 1; d >= 0; --d) {
    tensor.stride[d] = stride;
    stride *= tensor.shape[d];
  }
  return tensor;
}

struct PeersCall {
  void* boxes[2] = {reinterpret_cast<void*>(std::uintptr_t{4096}),
                    reinterpret_cast<void*>(std::uintptr_t{8192})};
  msa_peers peers{MSA_STRUCT_SIZE(msa_peers, timeout_ms), 1, 2, boxes, boxes, 1000};
  std::int32_t dealt = 1;
  std::int64_t first = 0;
  msa_tensor forced = tensor_on_gpu(MSA_I32, {3, 1});
  msa_tensor ids = tensor_on_gpu(MSA_I32, {3, 2, 16});
  msa_tensor own = ids;
  msa_tensor out = tensor_on_gpu(MSA_BF16, {3, 8, 64});
  msa_tensor lse = tensor_on_gpu(MSA_F32, {3, 8});

  /// The argument that is refused.
  std::string choose() const {
    msa_error error{};
    EXPECT_EQ(msa_peers_choose(&peers, dealt, first, &forced, &ids, &own, nullptr, &error),
              MSA_INVALID_ARGUMENT);
    return error.argument;
  }
  std::string join() const {
    msa_error error{};
    EXPECT_EQ(msa_peers_join(&peers, &out, &lse, nullptr, &error), MSA_INVALID_ARGUMENT);
    return error.argument;
  }
};

struct DealCall {
  std::int64_t rank = 1, ranks = 2, block_size = 128, init = 0, local = 1, columns_per_block = 1;
  msa_tensor lengths = tensor_on_gpu(MSA_I32, {3});
  msa_tensor candidates = lengths;
  msa_tensor last = lengths;
  msa_tensor table = tensor_on_gpu(MSA_I32, {3, 8});
  msa_tensor pages = table;
  msa_tensor forced = tensor_on_gpu(MSA_I32, {3, 1});
};

TEST(Peers, EveryFaultOfADealIsNamed) {
  const auto dealing = [](const auto& change) {
    DealCall c;
    change(c);
    msa_error error{};
    EXPECT_EQ(msa_peers_deal(c.rank, c.ranks, c.block_size, c.init, c.local, c.columns_per_block,
                             &c.lengths, &c.table, &c.candidates, &c.last, &c.forced, &c.pages,
                             nullptr, &error),
              MSA_INVALID_ARGUMENT);
    return std::string(error.argument);
  };
  EXPECT_EQ(dealing([](DealCall& c) { c.rank = 2; }), "rank");
  EXPECT_EQ(dealing([](DealCall& c) { c.ranks = 64; }), "ranks");
  EXPECT_EQ(dealing([](DealCall& c) { c.block_size = 0; }), "block_size");
  EXPECT_EQ(dealing([](DealCall& c) { c.init = -1; }), "init_blocks");
  EXPECT_EQ(dealing([](DealCall& c) { c.local = 257; }), "local_blocks");
  EXPECT_EQ(dealing([](DealCall& c) { c.columns_per_block = 0; }), "columns_per_block");
  EXPECT_EQ(dealing([](DealCall& c) { c.lengths.shape[0] = 4; }), "seqlens_k");
  EXPECT_EQ(dealing([](DealCall& c) { c.table.shape[1] = 7; }), "page_table");
  EXPECT_EQ(dealing([](DealCall& c) { c.candidates.dtype = MSA_F32; }), "candidates");
  EXPECT_EQ(dealing([](DealCall& c) { c.last.device_index = 1; }), "last_keys");
  EXPECT_EQ(dealing([](DealCall& c) { c.init = 1; }), "forced");
  EXPECT_EQ(dealing([](DealCall& c) { c.pages.device_type = MSA_CPU; }), "pages");
}

TEST(Peers, EveryFaultIsNamed) {
  const auto choosing = [](const auto& change) {
    PeersCall call;
    change(call);
    return call.choose();
  };
  const auto joining = [](const auto& change) {
    PeersCall call;
    change(call);
    return call.join();
  };
  EXPECT_EQ(choosing([](PeersCall& c) { c.peers.struct_size -= 8; }), "peers");
  EXPECT_EQ(choosing([](PeersCall& c) { c.peers.ranks = 64; }), "ranks");
  EXPECT_EQ(choosing([](PeersCall& c) { c.peers.rank = 2; }), "rank");
  EXPECT_EQ(choosing([](PeersCall& c) { c.peers.boxes = nullptr; }), "boxes");
  EXPECT_EQ(choosing([](PeersCall& c) { c.boxes[1] = nullptr; }), "boxes");
  EXPECT_EQ(choosing([](PeersCall& c) { c.peers.timeout_ms = -1; }), "timeout_ms");
  EXPECT_EQ(choosing([](PeersCall& c) { c.ids.stride[1] = 17; }), "block_ids");
  EXPECT_EQ(choosing([](PeersCall& c) { c.ids.shape[2] = 257; }), "block_ids");
  EXPECT_EQ(choosing([](PeersCall& c) { c.ids.device_type = MSA_CPU; }), "block_ids");
  EXPECT_EQ(choosing([](PeersCall& c) { c.own.shape[0] = 2; }), "own_ids");
  EXPECT_EQ(choosing([](PeersCall& c) { c.own.device_index = 1; }), "own_ids");
  EXPECT_EQ(choosing([](PeersCall& c) { c.dealt = 0; }), "own_ids");
  EXPECT_EQ(choosing([](PeersCall& c) { c.first = -1; }), "first_blocks");
  EXPECT_EQ(choosing([](PeersCall& c) { c.forced.shape[0] = 4; }), "forced");
  EXPECT_EQ(choosing([](PeersCall& c) { c.forced.dtype = MSA_F32; }), "forced");
  EXPECT_EQ(joining([](PeersCall& c) { c.peers.rank = -1; }), "rank");
  EXPECT_EQ(joining([](PeersCall& c) { c.out.dtype = MSA_E4M3; }), "out");
  EXPECT_EQ(joining([](PeersCall& c) { c.out.data = nullptr; }), "out");
  EXPECT_EQ(joining([](PeersCall& c) { c.lse.shape[1] = 4; }), "lse");
}

TEST(CInterface, TextsAreCutAndTellTheirLength) {
  const msa_problem problem = MSA_PROBLEM_INIT;
  const std::size_t whole = msa_problem_text(&problem, nullptr, 0);
  std::vector<char> text(whole + 1);
  EXPECT_EQ(msa_problem_text(&problem, text.data(), text.size()), whole);
  EXPECT_EQ(std::strlen(text.data()), whole);
  char small[16];
  EXPECT_EQ(msa_problem_text(&problem, small, sizeof small), whole);
  EXPECT_EQ(std::string(small).substr(12), "...");
  std::int32_t supported = 7;
  char why[2048];
  msa_supports(&problem, &supported, why, sizeof why);  // no heads: illegal
  EXPECT_EQ(supported, 0);
  EXPECT_NE(std::string(why).find("heads_q"), std::string::npos) << why;
  char info[8192];
  const std::size_t length = msa_info(info, sizeof info);
  EXPECT_LT(length, sizeof info);
  EXPECT_NE(std::string(info).find("\"version\": \"" + std::string(version()) + "\""),
            std::string::npos)
      << info;
}

}  // namespace
}  // namespace msa::test
