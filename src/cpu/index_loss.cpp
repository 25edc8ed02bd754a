// SPDX-License-Identifier: MIT
// The runner of index_loss: losses and gradients of index queries by tiles of query tokens, which
// also leave the logarithms of the student's sums, then gradients of index keys by blocks. Each
// number has one writer.
#include <algorithm>
#include <cmath>
#include <string>

#include "core/parallel.h"
#include "cpu/backward_walk.h"
#include "cpu/kernels.h"
#include "cpu/scratch.h"
#include "cpu/stage.h"

namespace msa::cpu {
namespace {

/// Buffers of one thread.
struct ThreadScratch {
  IndexLossScratch kernel{};
  VisitScratch visits{};
};

/// The workspace of one run.
struct Shared {
  BackwardWalk::Run walk{};
  float* index_lse = nullptr;  // [T, Hi]
  std::byte* threads = nullptr;
};

class IndexLossStage final : public Stage {
 public:
  IndexLossStage(const Problem& problem, const Machine& machine)
      : p_(problem),
        machine_(machine),
        kernels_(machine.kernels->gradients->index_loss),
        tiles_(problem.attention.q.storage == DType::BF16 && problem.index.q.storage == DType::BF16
                   ? machine.kernels->gradient_tiles
                   : nullptr),
        walk_(problem, problem.selection.topk > 0, kRowCut) {
    thread_bytes_ = bytes_of([&](Scratch& from) { take_thread(from); });
  }

  std::size_t workspace_bytes() const override {
    return bytes_of([&](Scratch& from) { take_shared(from); });
  }
  std::string decisions() const override {
    return std::string("products ") + (tiles_ != nullptr ? "bf16" : "f32") + "\ntile_tokens " +
           std::to_string(walk_.tile_tokens()) + "\n";
  }
  void run(const core::Call& call, Rows rows, std::byte* workspace) const override;

 private:
  /// Keys of a block as products take them.
  std::int64_t padded_keys() const {
    return core::round_up(
        p_.selection.block_size,
        tiles_ != nullptr ? kTileKeys : machine_.kernels->gradients->backward.tile);
  }
  BackwardScratch take_rows(Scratch& from, std::int64_t dim) const;
  ThreadScratch take_thread(Scratch& from) const;
  Shared take_shared(Scratch& from) const;
  ThreadScratch thread_scratch(const Shared& shared, int thread) const {
    Scratch at(shared.threads + static_cast<std::size_t>(thread) * thread_bytes_);
    return take_thread(at);
  }
  IndexLossCall describe(const core::Call& call, const Shared& shared) const;
  void write_rows(const IndexLossCall& c, const core::Call& call, const Shared& shared) const;
  void write_keys(const IndexLossCall& c, const core::Call& call, const Shared& shared) const;

  Problem p_;
  Machine machine_;
  IndexLossKernels kernels_;
  const GradientTiles* tiles_;  // null: products of fp32
  BackwardWalk walk_;
  std::size_t thread_bytes_ = 0;
};

// ---- workspace ----

/// What a chunk of rows and a block of keys take, without values.
BackwardScratch IndexLossStage::take_rows(Scratch& from, std::int64_t dim) const {
  const std::int64_t keys = padded_keys();
  const std::int64_t wide = core::round_up(dim, machine_.kernels->gradients->backward.lanes);
  BackwardScratch s;
  if (tiles_ != nullptr) {
    s.tiles.k = take_tile_keys(from, keys, dim);
    s.tiles.q = take_tile_rows(from, dim);
    s.tiles.q_rows = from.take<const std::uint16_t*>(kBackwardRows);
  } else {
    s.k = from.take<float>(keys * dim);
    s.q = from.take<float>(kBackwardRows * wide);
    s.q_lanes = from.take<float>(kBackwardRows * wide);
  }
  s.ds = from.take<float>(kBackwardRows * keys);
  s.numbers = from.take<float>(2 * kBackwardRows);
  s.limits = from.take<std::int32_t>(kBackwardRows);
  s.rows = from.take<std::int64_t>(kBackwardRows);
  return s;
}

ThreadScratch IndexLossStage::take_thread(Scratch& from) const {
  const BackwardKernels& sizes = machine_.kernels->gradients->backward;
  const std::int64_t keys = padded_keys();
  const std::int64_t tokens = walk_.tile_tokens();
  ThreadScratch t;
  IndexLossScratch& k = t.kernel;
  k.teacher = take_rows(from, p_.attention.head_dim);
  k.student = take_rows(from, p_.index.dim);
  // The teacher's packed keys and rows meet scores alone.
  k.teacher.tiles.k.strips = k.teacher.tiles.q.strips = nullptr;
  k.student.tiles.parts = from.take<std::uint32_t>(tiles_ != nullptr ? kBackwardRows * keys : 0);
  k.student.turn = from.take<float>(
      tiles_ != nullptr ? kBackwardRows * p_.index.dim
                        : 2 * core::round_up(p_.index.dim, sizes.lanes) * sizes.lanes);
  k.student.sums = from.take<float>(std::max(tokens, keys) * p_.index.dim);
  k.mean = from.take<float>(kBackwardRows * keys);
  k.best = from.take<float>(tokens);
  k.sum = from.take<float>(tokens);
  k.loss = from.take<double>(tokens);
  t.visits = walk_.take_thread(from);
  return t;
}

Shared IndexLossStage::take_shared(Scratch& from) const {
  Shared s;
  s.walk = walk_.take(from);
  s.index_lse = from.take<float>(p_.bounds.total_q * p_.index.heads);
  s.threads = from.take<std::byte>(machine_.threads * static_cast<std::int64_t>(thread_bytes_));
  return s;
}

// ---- what a call looks like to the kernels ----

IndexLossCall IndexLossStage::describe(const core::Call& call, const Shared& shared) const {
  const auto root = [](std::int64_t dim) { return 1.0f / std::sqrt(static_cast<float>(dim)); };
  IndexLossCall c;
  BackwardCall& t = c.teacher;
  t.dtype = p_.attention.q.storage;
  t.tiles = tiles_;
  t.heads = p_.attention.heads_q;
  t.group = p_.attention.heads_q / p_.attention.heads_kv;
  t.head_dim = p_.attention.head_dim;
  t.step = p_.selection.block_size;
  t.scale = p_.attention.softmax_scale.value_or(root(t.head_dim));
  t.q = row_tensor(call.q);
  t.k = row_tensor(call.k);
  t.lse = number_tensor(call.lse_in);
  BackwardCall& s = c.student;
  s.dtype = p_.index.q.storage;
  s.tiles = tiles_;
  s.gradient_dtype = p_.gradients.dtype;
  s.accumulate = p_.gradients.accumulate;
  s.heads = p_.index.heads;
  s.head_dim = p_.index.dim;
  s.step = p_.selection.block_size;
  s.scale = p_.index.scale.value_or(root(s.head_dim));
  s.q = row_tensor(call.index_q);
  s.k = row_tensor(call.index_k);
  s.lse = {shared.index_lse, p_.index.heads, 1};
  s.dq = row_tensor(call.d_index_q);
  s.dk = row_tensor(call.d_index_k);
  c.shared = p_.index.heads / p_.index.heads_k;
  c.index_lse = shared.index_lse;
  if (call.row_weight) {
    c.row_weight = static_cast<const float*>(call.row_weight.data);
    c.weight_row = call.row_weight.stride[0];
  }
  if (call.loss) {
    c.loss = static_cast<float*>(call.loss.data);
    c.loss_row = call.loss.stride[0];
    c.loss_head = call.loss.stride[1];
  }
  return c;
}

// ---- running ----

/// Late tokens, which see most, first.
void IndexLossStage::write_rows(const IndexLossCall& c, const core::Call& call,
                                const Shared& shared) const {
  const std::int64_t heads = p_.index.heads, tiles = shared.walk.tiles();
  core::for_each_task(machine_.threads, tiles * heads, [&](std::int64_t task, int thread) {
    const ThreadScratch scratch = thread_scratch(shared, thread);
    const std::int64_t index = tiles - 1 - task / heads;
    kernels_.rows(c, walk_.tile(call, shared.walk, index, task % heads, scratch.visits),
                  scratch.kernel);
  });
}

/// Early blocks, which most tokens see, first; the heads that share a key head one after the other.
void IndexLossStage::write_keys(const IndexLossCall& c, const core::Call& call,
                                const Shared& shared) const {
  if (walk_.sparse()) {
    core::for_each_task(machine_.threads, p_.index.heads,
                        [&](std::int64_t head, int) { walk_.invert(call, shared.walk, head); });
  }
  const std::int64_t heads = p_.index.heads_k;
  core::for_each_task(machine_.threads, shared.walk.blocks() * heads,
                      [&](std::int64_t task, int thread) {
                        const ThreadScratch scratch = thread_scratch(shared, thread);
                        const std::int64_t first = task % heads * c.shared;
                        for (std::int64_t n = 0; n < c.shared; ++n) {
                          kernels_.keys(c, walk_.block(shared.walk, task / heads, first + n),
                                        scratch.kernel, n == 0, n + 1 == c.shared);
                        }
                      });
}

void IndexLossStage::run(const core::Call& call, Rows rows, std::byte* workspace) const {
  Scratch at(workspace);
  Shared shared = take_shared(at);
  walk_.read(call, shared.walk);
  const IndexLossCall c = describe(call, shared);

  // What no request owns receives nothing.
  const std::int64_t owned = shared.walk.rows();
  const DType dtype = p_.gradients.dtype;
  clear_gradient(c.student.dq, dtype, p_.index.heads, p_.index.dim, owned, rows.end);
  for (std::int64_t row = owned; c.loss != nullptr && row < rows.end; ++row) {
    for (std::int64_t h = 0; h < p_.index.heads; ++h)
      c.loss[row * c.loss_row + h * c.loss_head] = 0.0f;
  }
  if (!c.student.accumulate) {
    clear_unowned(c.student.dk, dtype, p_.index.heads_k, p_.index.dim, shared.walk.jobs,
                  call.index_k.shape[0]);
  }

  write_rows(c, call, shared);
  if (call.d_index_k) write_keys(c, call, shared);
}

}  // namespace

StagePtr plan_index_loss(const Problem& problem, const Machine& machine) {
  return std::make_unique<IndexLossStage>(problem, machine);
}

}  // namespace msa::cpu
