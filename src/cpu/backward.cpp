// SPDX-License-Identifier: MIT
// The runner of backward passes, in three steps: what is known of each row before its keys, dq by
// tiles of query tokens, dk and dv by blocks of keys over the inverse of the lists. Each gradient
// has one writer, which adds in an order that neither threads nor tiles change.
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

// Sums of a tile's dq stay in a 1 MB L2 beside a block of keys and values.
constexpr std::int64_t kTileBytes = 256 << 10;
// Rows of q that a task prepares or clears.
constexpr std::int64_t kRowsOfTask = 64;

/// Buffers of one thread.
struct ThreadScratch {
  BackwardScratch kernel{};
  VisitScratch visits{};
};

/// The workspace of one run.
struct Shared {
  BackwardWalk::Run walk{};
  float* rest = nullptr;  // [T, Hq]
  std::byte* threads = nullptr;
};

class BackwardStage final : public Stage {
 public:
  BackwardStage(const Problem& problem, const Machine& machine)
      : p_(problem),
        machine_(machine),
        kernels_(machine.kernels->gradients->backward),
        tiles_(problem.attention.q.storage == DType::BF16 && problem.outputs.dtype == DType::BF16
                   ? machine.kernels->gradient_tiles
                   : nullptr),
        group_(problem.attention.heads_q / problem.attention.heads_kv),
        walk_(problem, problem.op == Op::SparseAttentionBackward,
              std::clamp<std::int64_t>(kTileBytes / (4 * group_ * problem.attention.head_dim), 1,
                                       kRowCut)) {
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
    return core::round_up(p_.selection.block_size, tiles_ != nullptr ? kTileKeys : kernels_.tile);
  }
  ThreadScratch take_thread(Scratch& from) const;
  Shared take_shared(Scratch& from) const;
  ThreadScratch thread_scratch(const Shared& shared, int thread) const {
    Scratch at(shared.threads + static_cast<std::size_t>(thread) * thread_bytes_);
    return take_thread(at);
  }

  BackwardCall describe(const core::Call& call, const Shared& shared) const;
  void write_queries(const BackwardCall& c, const core::Call& call, const Shared& shared) const;
  void write_keys(const BackwardCall& c, const core::Call& call, const Shared& shared) const;

  Problem p_;
  Machine machine_;
  BackwardKernels kernels_;
  const GradientTiles* tiles_;  // null: products of fp32
  std::int64_t group_;
  BackwardWalk walk_;
  std::size_t thread_bytes_ = 0;
};

// ---- workspace ----

ThreadScratch BackwardStage::take_thread(Scratch& from) const {
  const std::int64_t keys = padded_keys();
  const std::int64_t dim = p_.attention.head_dim, value_dim = p_.attention.value_dim;
  // A last vector of dims may be half empty.
  const std::int64_t wide = core::round_up(dim, kernels_.lanes),
                     wide_value = core::round_up(value_dim, kernels_.lanes);
  ThreadScratch t;
  BackwardScratch& k = t.kernel;
  if (tiles_ != nullptr) {
    k.tiles.k = take_tile_keys(from, keys, dim);
    k.tiles.v = take_tile_keys(from, keys, value_dim);
    k.tiles.v.strips = nullptr;
    k.tiles.q = take_tile_rows(from, dim);
    k.tiles.dout = take_tile_rows(from, value_dim);
    k.tiles.q_rows = from.take<const std::uint16_t*>(kBackwardRows);
    k.tiles.dout_rows = from.take<const std::uint16_t*>(kBackwardRows);
    k.tiles.parts = from.take<std::uint32_t>(kBackwardRows * keys);
    k.turn = from.take<float>(kBackwardRows * dim);
  } else {
    k.k = from.take<float>(keys * dim);
    k.v = from.take<float>(keys * value_dim);
    k.q = from.take<float>(kBackwardRows * wide);
    k.dout = from.take<float>(kBackwardRows * wide_value);
    k.q_lanes = from.take<float>(kBackwardRows * wide);
    k.dout_lanes = from.take<float>(kBackwardRows * wide_value);
    k.turn = from.take<float>(2 * wide * kernels_.lanes);
  }
  k.p = from.take<float>(kBackwardRows * keys);
  k.ds = from.take<float>(kBackwardRows * keys);
  k.numbers = from.take<float>(2 * kBackwardRows);
  k.limits = from.take<std::int32_t>(kBackwardRows);
  k.rows = from.take<std::int64_t>(kBackwardRows);
  k.sums = from.take<float>(std::max(walk_.tile_tokens() * group_ * dim, keys * (dim + value_dim)));
  t.visits = walk_.take_thread(from);
  return t;
}

Shared BackwardStage::take_shared(Scratch& from) const {
  Shared s;
  s.walk = walk_.take(from);
  s.rest = from.take<float>(p_.bounds.total_q * p_.attention.heads_q);
  s.threads = from.take<std::byte>(machine_.threads * static_cast<std::int64_t>(thread_bytes_));
  return s;
}

// ---- what a call looks like to the kernels ----

BackwardCall BackwardStage::describe(const core::Call& call, const Shared& shared) const {
  BackwardCall c;
  c.dtype = p_.attention.q.storage;
  c.tiles = tiles_;
  c.out_dtype = p_.outputs.dtype;
  c.gradient_dtype = p_.gradients.dtype;
  c.accumulate = p_.gradients.accumulate;
  c.heads = p_.attention.heads_q;
  c.group = group_;
  c.head_dim = p_.attention.head_dim;
  c.value_dim = p_.attention.value_dim;
  c.step = p_.selection.block_size;
  c.scale = p_.attention.softmax_scale.value_or(
      1.0f / std::sqrt(static_cast<float>(p_.attention.head_dim)));
  c.q = row_tensor(call.q);
  c.k = row_tensor(call.k);
  c.v = row_tensor(call.v);
  c.out = row_tensor(call.out_in);
  c.dout = row_tensor(call.dout);
  c.lse = number_tensor(call.lse_in);
  c.dlse = number_tensor(call.dlse);
  c.rest = shared.rest;
  c.dq = row_tensor(call.dq);
  c.dk = row_tensor(call.dk);
  c.dv = row_tensor(call.dv);
  return c;
}

// ---- running ----

/// Late tokens, which see most, first.
void BackwardStage::write_queries(const BackwardCall& c, const core::Call& call,
                                  const Shared& shared) const {
  const std::int64_t heads = p_.attention.heads_kv, tiles = shared.walk.tiles();
  core::for_each_task(machine_.threads, tiles * heads, [&](std::int64_t task, int thread) {
    const ThreadScratch scratch = thread_scratch(shared, thread);
    const std::int64_t index = tiles - 1 - task / heads;
    kernels_.queries(c, walk_.tile(call, shared.walk, index, task % heads, scratch.visits),
                     scratch.kernel);
  });
}

/// Early blocks, which most tokens see, first.
void BackwardStage::write_keys(const BackwardCall& c, const core::Call& call,
                               const Shared& shared) const {
  const std::int64_t heads = p_.attention.heads_kv;
  if (walk_.sparse()) {
    core::for_each_task(machine_.threads, heads,
                        [&](std::int64_t head, int) { walk_.invert(call, shared.walk, head); });
  }
  core::for_each_task(machine_.threads, shared.walk.blocks() * heads,
                      [&](std::int64_t task, int thread) {
                        kernels_.keys(c, walk_.block(shared.walk, task / heads, task % heads),
                                      thread_scratch(shared, thread).kernel);
                      });
}

void BackwardStage::run(const core::Call& call, Rows rows, std::byte* workspace) const {
  Scratch at(workspace);
  Shared shared = take_shared(at);
  walk_.read(call, shared.walk);
  const BackwardCall c = describe(call, shared);

  // What no request owns receives nothing.
  const std::int64_t owned = shared.walk.rows(), heads = p_.attention.heads_kv;
  clear_gradient(c.dq, c.gradient_dtype, c.heads, c.head_dim, owned, rows.end);
  if (!c.accumulate) {
    const std::int64_t keys = call.k.shape[0];
    clear_unowned(c.dk, c.gradient_dtype, heads, c.head_dim, shared.walk.jobs, keys);
    clear_unowned(c.dv, c.gradient_dtype, heads, c.value_dim, shared.walk.jobs, keys);
  }

  core::for_each_task(machine_.threads, core::ceil_div(owned, kRowsOfTask),
                      [&](std::int64_t task, int) {
                        const std::int64_t begin = task * kRowsOfTask;
                        kernels_.rest(c, begin, std::min(begin + kRowsOfTask, owned));
                      });
  if (call.dq) write_queries(c, call, shared);
  if (call.dk || call.dv) write_keys(c, call, shared);
}

}  // namespace

StagePtr plan_backward(const Problem& problem, const Machine& machine) {
  return std::make_unique<BackwardStage>(problem, machine);
}

}  // namespace msa::cpu
