// SPDX-License-Identifier: MIT
// The legal calls that bad_input_test spoils: two requests, the second a shard, and one row of
// padding.
#include "tests/core/scene.h"

#include <algorithm>
#include <cstring>
#include <new>

#include "core/fields.h"

namespace msa::test {
namespace {

constexpr std::int64_t kRows = 6, kRequests = 2, kKeyRows = 80, kPages = 6, kPageSize = 16;
constexpr std::int64_t kHeadsQ = 4, kHeadsKv = 2, kHeadDim = 16, kValueDim = 32;
constexpr std::int64_t kIndexHeads = 2, kIndexHeadsK = 1, kIndexDim = 16;
constexpr std::int64_t kBlocks = 3, kTopk = 2, kParts = 3, kInverseRows = 6;
constexpr std::uint64_t kSentinel = 0xa5a5a5a5a5a5a5a5;
// Words before and behind each tensor: more than any other tensor of the scene is long.
constexpr std::size_t kRoom = 256;

bool takes_keys(Op op) {
  return op == Op::DenseAttention || op == Op::BlockScores || op == Op::SelectBlocks ||
         op == Op::SparseAttention || op == Op::MsaAttention;
}

}  // namespace

std::vector<std::pair<Op, Keys>> all_scenes() {
  std::vector<std::pair<Op, Keys>> scenes;
  for (int op = 0; op <= static_cast<int>(Op::InvertSelection); ++op) {
    scenes.emplace_back(static_cast<Op>(op), Keys::Ragged);
    if (takes_keys(static_cast<Op>(op))) scenes.emplace_back(static_cast<Op>(op), Keys::Paged);
  }
  return scenes;
}

std::vector<std::string> serving_backends(const Problem& problem) {
  std::vector<std::string> names;
  for (const BackendAnswer& answer : supports(problem).backends) {
    Problem forced = problem;
    forced.options.backend = answer.backend;
    if (supports(forced).supported) names.push_back(answer.backend);
  }
  return names;
}

Scene::Scene(Op op, Keys keys) : keys_(keys) {
  problem = {.op = op,
             .bounds = {.batch = kRequests,
                        .total_q = kRows,
                        .max_seqlen_q = 3,
                        .max_seqlen_k = 40,
                        .page_size = keys == Keys::Paged ? kPageSize : 0},
             .attention = {.heads_q = kHeadsQ,
                           .heads_kv = kHeadsKv,
                           .head_dim = kHeadDim,
                           .value_dim = kValueDim},
             .index = {.heads = kIndexHeads, .heads_k = kIndexHeadsK, .dim = kIndexDim},
             .selection = {.block_size = 16, .topk = kTopk}};
  const bool merge = op == Op::MergeStates || op == Op::MergeSelections;
  const bool attends =
      op == Op::DenseAttention || op == Op::SparseAttention || op == Op::MsaAttention;
  problem.outputs.lse = attends || op == Op::MergeStates;
  problem.outputs.block_max = op == Op::DenseAttention;
  problem.outputs.chosen_scores =
      op == Op::SelectTopk || op == Op::SelectBlocks || op == Op::MergeSelections;
  if (merge) problem.bounds.parts = kParts;

  if (attends) add_attention();
  if (op == Op::BlockScores || op == Op::SelectBlocks) add_index(Dim::Bound);
  if (op == Op::MsaAttention) add_index(Dim::Exact);
  if (op == Op::SelectTopk) {
    add({"scores",
         DType::F32,
         {kRows, kIndexHeads, kBlocks},
         {Dim::Bound, Dim::Exact, Dim::AtLeast}},
        false);
  }
  if (op == Op::SparseAttention) add_lists(Dim::Exact);
  if (op == Op::InvertSelection) add_lists(Dim::Bound);
  if (merge) add_parts();
  if (!merge) add_batch();
  add_outputs();
  fill();
}

void Scene::add(const Spec& spec, bool output) {
  auto arg = std::make_unique<Arg>();
  arg->name = spec.name;
  arg->output = output;
  arg->optional = spec.optional;
  arg->dense_innermost = spec.dense;
  arg->dims = spec.dims;
  Tensor& t = arg->tensor;
  t.dtype = spec.dtype;
  t.rank = static_cast<int>(spec.shape.size());
  std::int64_t count = 1;
  for (std::size_t i = spec.shape.size(); i-- > 0;) {
    t.shape[i] = spec.shape[i];
    t.stride[i] = count;
    count *= spec.shape[i];
  }
  const std::size_t bytes = static_cast<std::size_t>(size_in_bytes(spec.dtype, count));
  arg->memory.assign(bytes / 8 + 1 + 2 * kRoom, kSentinel);
  t.data = arg->memory.data() + kRoom;
  if (!output) std::memset(t.data, 0, bytes);
  args.push_back(std::move(arg));
}

void Scene::add_keys(const char* name, DType dtype, std::int64_t heads, std::int64_t dim,
                     Dim first) {
  if (keys_ == Keys::Paged) {
    add({name,
         dtype,
         {kPages, kPageSize, heads, dim},
         {first, Dim::Exact, Dim::Exact, Dim::Exact},
         true},
        false);
  } else {
    add({name, dtype, {kKeyRows, heads, dim}, {first, Dim::Exact, Dim::Exact}, true}, false);
  }
}

void Scene::add_attention() {
  add({"q", DType::BF16, {kRows, kHeadsQ, kHeadDim}, {Dim::Bound, Dim::Exact, Dim::Exact}, true},
      false);
  add_keys("k", DType::BF16, kHeadsKv, kHeadDim, Dim::Free);
  add_keys("v", DType::BF16, kHeadsKv, kValueDim, Dim::Exact);
}

void Scene::add_index(Dim rows) {
  add({"index_q",
       DType::BF16,
       {kRows, kIndexHeads, kIndexDim},
       {rows, Dim::Exact, Dim::Exact},
       true},
      false);
  add_keys("index_k", DType::BF16, kIndexHeadsK, kIndexDim,
           rows == Dim::Bound ? Dim::Free : Dim::Exact);
}

void Scene::add_lists(Dim rows) {
  add({"block_ids", DType::I32, {kRows, kHeadsKv, kTopk}, {rows, Dim::Exact, Dim::Exact}}, false);
}

void Scene::add_batch() {
  const auto lengths = [&](const char* name, bool optional) {
    add({name, DType::I32, {kRequests}, {Dim::Exact}, false, optional}, false);
  };
  add({"batch.cu_seqlens_q", DType::I32, {kRequests + 1}, {Dim::Bound}}, false);
  lengths("batch.seqlens_k", false);
  lengths("batch.q_offsets", true);
  lengths("batch.key_offsets", true);
  lengths("batch.total_seqlens_k", true);
  if (!takes_keys(problem.op)) return;
  if (keys_ == Keys::Paged) {
    add({"batch.page_table", DType::I32, {kRequests, 3}, {Dim::Exact, Dim::Free}}, false);
  } else {
    add({"batch.cu_seqlens_k", DType::I32, {kRequests + 1}, {Dim::Exact}, false, true}, false);
  }
}

void Scene::add_parts() {
  const bool states = problem.op == Op::MergeStates;
  for (std::int64_t n = 0; n < kParts; ++n) {
    const Dim rows = n == 0 ? Dim::Bound : Dim::Exact;
    const auto part = [n](const char* list) { return list + ('[' + std::to_string(n)) + ']'; };
    if (states) {
      add({part("outs").c_str(),
           DType::BF16,
           {kRows, kHeadsQ, kValueDim},
           {rows, Dim::Exact, Dim::Exact},
           true},
          false);
      add({part("lses").c_str(), DType::F32, {kRows, kHeadsQ}, {Dim::Exact, Dim::Exact}}, false);
    } else {
      add({part("block_ids_parts").c_str(),
           DType::I32,
           {kRows, kHeadsKv, kTopk},
           {rows, Dim::Exact, Dim::Free}},
          false);
      add({part("chosen_scores_parts").c_str(),
           DType::F32,
           {kRows, kHeadsKv, kTopk},
           {Dim::Exact, Dim::Exact, Dim::Exact}},
          false);
    }
  }
}

void Scene::add_outputs() {
  const std::vector<Dim> exact3(3, Dim::Exact);
  const Op op = problem.op;
  const bool attends =
      op == Op::DenseAttention || op == Op::SparseAttention || op == Op::MsaAttention;
  if (attends || op == Op::MergeStates) {
    add({"out", DType::BF16, {kRows, kHeadsQ, kValueDim}, exact3, true}, true);
    add({"lse", DType::F32, {kRows, kHeadsQ}, {Dim::Exact, Dim::Exact}}, true);
  }
  const std::vector<Dim> scores{Dim::Exact, Dim::Exact, Dim::AtLeast};
  if (problem.outputs.block_max)
    add({"block_max", DType::F32, {kRows, kHeadsQ, kBlocks}, scores}, true);
  if (op == Op::BlockScores)
    add({"scores", DType::F32, {kRows, kIndexHeads, kBlocks}, scores}, true);
  if (problem.outputs.chosen_scores || op == Op::MsaAttention) {
    const bool optional = op == Op::MsaAttention;
    add({"block_ids", DType::I32, {kRows, kIndexHeads, kTopk}, exact3, false, optional}, true);
  }
  if (problem.outputs.chosen_scores) {
    add({"chosen_scores", DType::F32, {kRows, kIndexHeads, kTopk}, exact3}, true);
  }
  if (op == Op::InvertSelection) {
    const std::vector<Dim> list{Dim::Exact, Dim::AtLeast};
    // An extent of row_ptr that is too small for the lengths is a fault of contents.
    add({"row_ptr", DType::I32, {kHeadsKv, kInverseRows + 1}, {Dim::Exact, Dim::Free}}, true);
    add({"q_indices", DType::I32, {kHeadsKv, kRows * kTopk}, list}, true);
    add({"q_slots", DType::I32, {kHeadsKv, kRows * kTopk}, {Dim::Exact, Dim::Exact}}, true);
  }
}

void Scene::fill() {
  const auto write = [&](const char* name, std::initializer_list<std::int32_t> values) {
    if (Arg* arg = find(name)) {
      std::copy(values.begin(), values.end(), static_cast<std::int32_t*>(arg->tensor.data));
    }
  };
  write("batch.cu_seqlens_q", {0, 2, 5});
  write("batch.seqlens_k", {40, 33});
  write("batch.q_offsets", {38, 46});
  write("batch.key_offsets", {0, 16});
  write("batch.total_seqlens_k", {40, 64});
  write("batch.cu_seqlens_k", {0, 44, 80});
  write("batch.page_table", {4, 1, 2, 0, 3, 5});
  const Arg* ids = find("block_ids");
  if (ids != nullptr && !ids->output) {
    // Row 4 lists blocks out of order and one of another shard; row 5 is padding, which nobody
    // reads.
    write("block_ids",
          {0, 2, 1, -1, 2, 1, 0, 1, 1, 2, -1, 99, 3, 1, 2, -1, 3, 0, 1, 3, 99, 99, 99, 99});
  }
  for (std::int32_t n = 0; n < kParts; ++n) {
    if (Arg* part = find("block_ids_parts[" + std::to_string(n) + "]")) {
      auto* list = static_cast<std::int32_t*>(part->tensor.data);
      for (std::int64_t i = 0; i < kRows * kHeadsKv; ++i) {
        list[2 * i] = 10 * n + 1;
        list[2 * i + 1] = i % 2 == 0 ? -1 : 10 * n;
      }
    }
  }
}

Arg* Scene::find(const std::string& name) {
  for (const auto& arg : args) {
    if (arg->name == name) return arg.get();
  }
  return nullptr;
}

Tensor& Scene::tensor(const std::string& name) { return find(name)->tensor; }

std::int32_t& Scene::i32(const std::string& name, std::int64_t index) {
  return static_cast<std::int32_t*>(tensor(name).data)[index];
}

std::vector<std::vector<std::uint64_t>> Scene::snapshot() const {
  std::vector<std::vector<std::uint64_t>> memory;
  for (const auto& arg : args) memory.push_back(arg->memory);
  return memory;
}

Tensor Scene::get(const std::string& name) const {
  for (const auto& arg : args) {
    if (arg->name == name) return arg->tensor;
  }
  return {};
}

Batch Scene::batch() const {
  return {.cu_seqlens_q = get("batch.cu_seqlens_q"),
          .seqlens_k = get("batch.seqlens_k"),
          .cu_seqlens_k = get("batch.cu_seqlens_k"),
          .page_table = get("batch.page_table"),
          .q_offsets = get("batch.q_offsets"),
          .key_offsets = get("batch.key_offsets"),
          .total_seqlens_k = get("batch.total_seqlens_k")};
}

std::vector<Tensor> Scene::parts(const std::string& name) const {
  std::vector<Tensor> list;
  for (const auto& arg : args) {
    if (arg->name.rfind(name + "[", 0) == 0) list.push_back(arg->tensor);
  }
  return list;
}

Plan Scene::plan(const std::string& backend) const {
  Problem forced = problem;
  forced.options.backend = backend;
  return make_plan(forced);
}

void Scene::run(const std::string& backend) {
  const Plan p = plan(backend);
  const std::align_val_t alignment{kWorkspaceAlignment};
  const std::unique_ptr<void, void (*)(void*)> memory(
      ::operator new(p.workspace_bytes() + 1, alignment),
      [](void* data) { ::operator delete (data, std::align_val_t{kWorkspaceAlignment}); });
  run(p, {memory.get(), p.workspace_bytes()});
}

void Scene::run(const Plan& plan, Workspace w) {
  with_args([&](const auto& given) { msa::run(plan, given, w); });
}

void Scene::run_once(const std::string& backend) {
  const Settings settings{.block_size = problem.selection.block_size,
                          .topk = problem.selection.topk,
                          .local_blocks = problem.selection.local_blocks,
                          .init_blocks = problem.selection.init_blocks,
                          .causal = problem.causal,
                          .softmax_scale = problem.attention.softmax_scale,
                          .options = {.backend = backend}};
  with_args([&](const auto& given) { msa::run_once(problem.op, core::gather(given), settings); });
}

// The arguments of the operation, as its own struct.
template <class Use>
void Scene::with_args(const Use& use) const {
  const Tensor q = get("q"), k = get("k"), v = get("v"), out = get("out"), lse = get("lse");
  const Tensor index_q = get("index_q"), index_k = get("index_k"), scores = get("scores");
  const Tensor ids = get("block_ids"), chosen = get("chosen_scores");
  switch (problem.op) {
    case Op::DenseAttention:
      return use(DenseAttentionArgs{q, k, v, batch(), out, lse, get("block_max")});
    case Op::BlockScores:
      return use(BlockScoresArgs{index_q, index_k, batch(), scores});
    case Op::SelectTopk:
      return use(SelectTopkArgs{scores, batch(), ids, chosen});
    case Op::SelectBlocks:
      return use(SelectBlocksArgs{index_q, index_k, batch(), ids, chosen});
    case Op::SparseAttention:
      return use(SparseAttentionArgs{q, k, v, ids, batch(), out, lse});
    case Op::MsaAttention:
      return use(MsaAttentionArgs{q, k, v, index_q, index_k, batch(), out, lse, ids});
    case Op::MergeStates: {
      auto outs = parts("outs"), lses = parts("lses");
      outs.resize(outs.size() - drop_parts);
      return use(MergeStatesArgs{outs, lses, out, lse});
    }
    case Op::MergeSelections: {
      auto lists = parts("block_ids_parts"), of = parts("chosen_scores_parts");
      of.resize(of.size() - drop_parts);
      return use(MergeSelectionsArgs{lists, of, ids, chosen});
    }
    case Op::InvertSelection:
      return use(
          InvertSelectionArgs{ids, batch(), get("row_ptr"), get("q_indices"), get("q_slots")});
    case Op::QuantizeKv:     // tests/core/quantize_test.cpp
    case Op::QuantizeIndex:  // tests/core/quantize_index_test.cpp
    // tests/core/backward_test.cpp
    case Op::SparseAttentionBackward:
    case Op::DenseAttentionBackward:
    case Op::IndexLoss:
      break;
  }
}

}  // namespace msa::test
