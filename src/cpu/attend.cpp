// SPDX-License-Identifier: MIT
// The runner of attention: cuts a call into tiles of neighbouring query tokens under one KV head
// (and, where tiles are few, into pieces of their keys), turns block lists into visits, and hands
// tiles to the kernels of the level in force.
#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <span>
#include <string>

#include "core/contents.h"
#include "core/fields.h"
#include "core/parallel.h"
#include "cpu/kernels.h"
#include "cpu/scratch.h"
#include "cpu/stage.h"

namespace msa::cpu {
namespace {

// Keys of a dense visit where nobody asks for block maxima.
constexpr std::int64_t kDenseStep = 128;
// Queries and accumulators of a sparse tile stay in a 1 MB L2.
constexpr std::int64_t kSparseBytes = 768 << 10;
// Fewer tiles than this are split along the keys.
constexpr std::int64_t kTasksWanted = 64;
// Up to here, decode, the heads of a token lie side by side and are read together.
constexpr std::int64_t kFewColumns = 4;
// At least: a piece costs a packing of queries and a merge.
constexpr std::int64_t kVisitsOfPiece = 4;
// Padding rows that one task clears.
constexpr std::int64_t kPaddingRows = 64;

/// All sizes that a plan decides.
struct Layout {
  bool sparse = false;
  std::int64_t group = 1;
  std::int64_t step = 0;         // keys of a visit
  std::int64_t tile_tokens = 1;  // query tokens of a tile
  std::int64_t columns = 1;      // vectors of rows of a tile
  std::int64_t pack = 1;         // values of a packed word
  std::int64_t splits = 1;       // pieces of a tile's keys
  std::int64_t heads = 1;        // KV heads that a task may take together
  std::int64_t tiles = 0;        // upper bound of tiles per KV head
  std::int64_t list = 0;         // upper bound of a tile's (block, token) pairs
};

/// Whether bf16 holds every query and every value as it is.
bool fits_bf16(const Problem& p) {
  const DType q = p.attention.q.storage;
  const Format kv = core::kv_format(p);
  if (q != DType::BF16 && q != DType::E4M3) return false;
  if (kv.storage == DType::E4M3) return kv.scale == Scale::None;
  return kv.storage == DType::BF16 || kv.scale == Scale::Group;
}

Layout make_layout(const Problem& p, const AttendKernels& kernels) {
  Layout l;
  l.sparse = p.op != Op::DenseAttention;
  l.group = p.attention.heads_q / p.attention.heads_kv;
  l.pack = fits_bf16(p) ? kernels.words_of_bf16 : 1;
  l.step = l.sparse || p.outputs.block_max ? p.selection.block_size : kDenseStep;
  const std::int64_t longest = std::max<std::int64_t>(1, p.bounds.max_seqlen_q);
  if (l.sparse) {
    const std::int64_t row_bytes = 4 * (p.attention.head_dim / l.pack + p.attention.value_dim);
    const std::int64_t fit =
        std::clamp<std::int64_t>(kSparseBytes / row_bytes / l.group, 1, kRowCut);
    l.tile_tokens = static_cast<std::int64_t>(
        std::bit_floor(static_cast<std::uint64_t>(std::min(fit, longest))));
  } else {
    l.tile_tokens = std::clamp<std::int64_t>(kernels.dense_rows / l.group, 1, longest);
  }
  l.columns = core::ceil_div(l.tile_tokens * l.group, kernels.lanes);
  l.tiles = std::min(p.bounds.total_q, p.bounds.total_q / l.tile_tokens + p.bounds.batch);
  l.list = l.sparse ? l.tile_tokens * p.selection.topk : 0;
  const std::int64_t blocks = core::ceil_div(p.bounds.max_seqlen_k, l.step);
  const std::int64_t visits = l.sparse ? std::min(blocks, l.list) : blocks;
  if (!l.sparse && l.columns <= kFewColumns) l.heads = std::min(p.attention.heads_kv, kMaxHeads);
  const std::int64_t wanted =
      kTasksWanted /
      std::max<std::int64_t>(1, core::ceil_div(p.attention.heads_kv, l.heads) * l.tiles);
  l.splits =
      std::clamp<std::int64_t>(wanted, 1, std::max<std::int64_t>(1, visits / kVisitsOfPiece));
  return l;
}

/// Rows of one request inside the window of a run.
struct Job {
  core::Request request;
  std::int64_t batch = 0;
  std::int64_t token_begin = 0, token_end = 0;
  std::int64_t tiles = 0;
  std::int64_t tiles_before = 0;  // of the jobs in front
};

/// Buffers of one thread: those of the kernels and those of list building.
struct ThreadScratch {
  AttendScratch kernel{};
  AttendState states[kMaxHeads] = {};  // of tiles in one piece
  AttendState lone{};                  // of a token that is computed again
  std::int32_t* suspects = nullptr;    // tokens of the tile in hand
  std::uint64_t* pairs = nullptr;      // block << 32 | token of the tile
  Visit* visits = nullptr;
  std::int32_t* tokens = nullptr;
};

/// The workspace of one run.
struct Shared {
  std::int64_t* mended = nullptr;  // see mended_tokens
  Job* jobs = nullptr;
  std::byte* states = nullptr;  // of the pieces of split tiles, state_bytes each
  std::byte* threads = nullptr;
};

/// One task: a piece of a tile.
struct Place {
  const Job* job = nullptr;
  std::int64_t tile = 0;  // of the job
  std::int64_t head = 0, heads = 1;
  std::int64_t piece = 0;
  std::int64_t index = 0;  // of the tile under its head, over all jobs: where its states lie
};

class AttentionStage final : public Stage {
 public:
  AttentionStage(const Problem& problem, const Machine& machine);

  std::size_t workspace_bytes() const override {
    return bytes_of([&](Scratch& from) { take_shared(from); });
  }
  std::string decisions() const override;
  void run(const core::Call& call, Rows rows, std::byte* workspace) const override;

 private:
  AttendState take_state(Scratch& from, std::int64_t columns) const;
  ThreadScratch take_thread(Scratch& from) const;
  Shared take_shared(Scratch& from) const;
  ThreadScratch thread_scratch(const Shared& shared, int thread) const {
    Scratch at(shared.threads + static_cast<std::size_t>(thread) * thread_bytes_);
    return take_thread(at);
  }
  AttendState state_of(const Shared& shared, const Place& place, std::int64_t head) const;

  AttendCall describe(const core::Call& call, Rows rows) const;
  std::int64_t make_jobs(const core::Call& call, Rows rows, Job* jobs) const;
  Place place_of(std::int64_t task, std::span<const Job> jobs, std::int64_t heads,
                 std::int64_t pieces) const;
  AttendTile make_tile(const AttendCall& call, const Place& place,
                       const ThreadScratch& scratch) const;
  void find_visits(const AttendCall& call, AttendTile& tile, const ThreadScratch& scratch) const;
  void list_visits(const AttendCall& call, AttendTile& tile, const ThreadScratch& scratch) const;
  std::int64_t heads_together(const AttendCall& call, std::int64_t tiles) const;
  void finish(const AttendCall& call, const AttendTile& tile, const ThreadScratch& scratch,
              const AttendState& state, const Shared& shared) const;
  void mend(const AttendCall& call, AttendTile tile, const ThreadScratch& scratch,
            const AttendState* known) const;
  void sweep(const AttendCall& call, std::span<const Job> jobs, const Shared& shared) const;
  void join(const AttendCall& call, std::span<const Job> jobs, const Shared& shared) const;

  Problem p_;
  Machine machine_;
  AttendKernels kernels_;
  Layout l_;
  std::size_t state_bytes_ = 0, thread_bytes_ = 0;
};

AttentionStage::AttentionStage(const Problem& problem, const Machine& machine)
    : p_(problem),
      machine_(machine),
      kernels_(machine.kernels->attend),
      l_(make_layout(problem, kernels_)) {
  Scratch state(nullptr), thread(nullptr);
  take_state(state, l_.columns);
  take_thread(thread);
  state_bytes_ = state.used();
  thread_bytes_ = thread.used();
}

std::string AttentionStage::decisions() const {
  const auto line = [](const char* key, std::int64_t value) {
    return std::string(key) + " " + std::to_string(value) + "\n";
  };
  return std::string("products ") + (l_.pack == 2 ? "bf16" : "f32") + "\n" +
         line("tile_tokens", l_.tile_tokens) + line("visit_keys", l_.step) +
         line("key_pieces", l_.splits) + line("heads_together", l_.heads);
}

// ---- workspace ----

AttendState AttentionStage::take_state(Scratch& from, std::int64_t columns) const {
  const std::int64_t rows = columns * kernels_.lanes;
  AttendState s;
  s.o = from.take<float>(rows * p_.attention.value_dim);
  s.m = from.take<float>(rows);
  s.l = from.take<float>(rows);
  return s;
}

ThreadScratch AttentionStage::take_thread(Scratch& from) const {
  const std::int64_t lanes = kernels_.lanes, rows = l_.columns * lanes,
                     d_words = p_.attention.head_dim / l_.pack;
  const std::int64_t padded_step = core::round_up(l_.step, kernels_.tile);
  const std::int64_t row_floats =
      core::round_up(std::max(p_.attention.head_dim, p_.attention.value_dim), lanes);
  ThreadScratch t;
  t.kernel.q = from.take<std::byte>(4 * l_.heads * rows * core::round_up(d_words, lanes));
  t.kernel.k = from.take<std::byte>(4 * padded_step * core::round_up(d_words, lanes));
  t.kernel.v = from.take<std::byte>(4 * (padded_step / l_.pack + 1) *
                                    core::round_up(p_.attention.value_dim, lanes));
  const std::int64_t columns = kernels_.columns;
  t.kernel.s = from.take<float>(lanes * std::max(columns * padded_step, row_floats));
  t.kernel.p = from.take<std::byte>(4 * columns * padded_step / l_.pack * lanes);
  t.kernel.visible = from.take<std::int32_t>(rows);
  t.kernel.limits = from.take<std::int32_t>(rows);
  t.kernel.active = from.take<std::int32_t>(l_.columns);
  t.kernel.ahead = from.take<const std::byte*>(3 * l_.step + 1);
  for (std::int64_t h = 0; h < l_.heads && l_.splits == 1; ++h)
    t.states[h] = take_state(from, l_.columns);
  t.lone = take_state(from, core::ceil_div(l_.group, lanes));
  t.suspects = from.take<std::int32_t>(l_.tile_tokens);
  t.pairs = from.take<std::uint64_t>(l_.list);
  t.visits = from.take<Visit>(l_.list);
  t.tokens = from.take<std::int32_t>(l_.list);
  return t;
}

Shared AttentionStage::take_shared(Scratch& from) const {
  Shared s;
  s.mended = from.take<std::int64_t>(1);
  s.jobs = from.take<Job>(p_.bounds.batch);
  if (l_.splits > 1) {
    s.states = from.take<std::byte>(l_.tiles * p_.attention.heads_kv * l_.splits *
                                    static_cast<std::int64_t>(state_bytes_));
  }
  s.threads = from.take<std::byte>(machine_.threads * static_cast<std::int64_t>(thread_bytes_));
  return s;
}

/// Where a piece of a split tile keeps one head.
AttendState AttentionStage::state_of(const Shared& shared, const Place& place,
                                     std::int64_t head) const {
  const std::int64_t piece = (place.index * p_.attention.heads_kv + head) * l_.splits + place.piece;
  Scratch at(shared.states + static_cast<std::size_t>(piece) * state_bytes_);
  return take_state(at, l_.columns);
}

// ---- what a call looks like to the kernels ----

constexpr float kOne = 1.0f;  // the scale of what has none

void add_scales(KeyTensor& keys, const Tensor& scales, Scale scale, bool paged) {
  const void* const data = scale == Scale::None ? &kOne : scales.data;
  keys.scales = static_cast<const std::byte*>(data);
  const auto& stride = scales.stride;
  switch (scale) {
    case Scale::None:
    case Scale::Tensor:
      return;
    case Scale::Head:
      keys.scale_head = stride[0];
      return;
    case Scale::Page:
      keys.scale_page = stride[0];
      keys.scale_head = stride[1];
      return;
    case Scale::Token:
    case Scale::Group:
    case Scale::GroupTensor:
      if (core::counts_groups(scale)) keys.scale_group = stride[paged ? 3 : 2];
      keys.scale_page = paged ? stride[0] : 0;
      keys.scale_row = paged ? stride[1] : stride[0];
      keys.scale_head = paged ? stride[2] : stride[1];
      return;
  }
}

KeyTensor key_tensor(const Tensor& t, const Tensor& scales, const Tensor& global,
                     const Format& format) {
  const bool paged = t.rank == 4;
  KeyTensor keys{.data = static_cast<const std::byte*>(t.data)};
  keys.page = paged ? t.stride[0] : 0;
  keys.row = paged ? t.stride[1] : t.stride[0];
  keys.head = paged ? t.stride[2] : t.stride[1];
  if (format.storage == DType::E4M3) add_scales(keys, scales, format.scale, paged);
  if (format.storage == DType::E2M1) {
    for (std::int64_t* stride : {&keys.page, &keys.row, &keys.head}) *stride /= 2;
    add_scales(keys, scales, format.scale, paged);
    keys.groups = format.rounded ? kRoundedProducts.data() : kProducts.data();
    const bool one_more = format.scale == Scale::GroupTensor;
    keys.global = one_more ? static_cast<const float*>(global.data) : &kOne;
  }
  return keys;
}

AttendCall AttentionStage::describe(const core::Call& call, Rows rows) const {
  AttendCall c;
  c.dtype = p_.attention.q.storage;
  c.kv_dtype = core::kv_format(p_).storage;
  c.pairs = l_.pack == 2;
  c.out_dtype = p_.outputs.dtype;
  c.group = l_.group;
  c.head_dim = p_.attention.head_dim;
  c.value_dim = p_.attention.value_dim;
  c.step = l_.step;
  c.scale = p_.attention.softmax_scale.value_or(
      1.0f / std::sqrt(static_cast<float>(p_.attention.head_dim)));
  c.attend = p_.op != Op::DenseAttention || p_.outputs.out;
  c.negate = c.attend && c.scale < 0;
  c.q = static_cast<const std::byte*>(call.q.data);
  c.q_row = call.q.stride[0];
  c.q_head = call.q.stride[1];
  c.k = key_tensor(call.k, call.k_scale, call.k_global_scale, core::kv_format(p_));
  c.v = key_tensor(call.v, call.v_scale, call.v_global_scale, core::kv_format(p_));
  if (call.batch.page_table) {
    c.page_table = static_cast<const std::int32_t*>(call.batch.page_table.data);
    c.table_row = call.batch.page_table.stride[0];
    c.table_col = call.batch.page_table.stride[1];
    c.page_size = p_.bounds.page_size;
  }
  if (l_.sparse) {
    const Tensor& ids = call.block_ids_in;
    c.ids = static_cast<const std::int32_t*>(ids.data);
    c.ids_row = ids.stride[0];
    c.ids_head = ids.stride[1];
    c.ids_slot = ids.stride[2];
    c.topk = ids.shape[2];
    c.first_row = rows.begin;
  }
  if (call.out) {
    c.out = static_cast<std::byte*>(call.out.data);
    c.out_row = call.out.stride[0];
    c.out_head = call.out.stride[1];
  }
  if (call.lse) {
    c.lse = static_cast<float*>(call.lse.data);
    c.lse_row = call.lse.stride[0];
    c.lse_head = call.lse.stride[1];
  }
  if (call.block_max) {
    c.block_max = static_cast<float*>(call.block_max.data);
    c.max_row = call.block_max.stride[0];
    c.max_head = call.block_max.stride[1];
    c.max_block = call.block_max.stride[2];
    c.max_blocks = call.block_max.shape[2];
  }
  return c;
}

// ---- jobs and tiles ----

/// The requests with rows in the window, those with the longest keys first; returns how many there
/// are.
std::int64_t AttentionStage::make_jobs(const core::Call& call, Rows rows, Job* jobs) const {
  std::int64_t count = 0, k_begin = 0;
  for (std::int64_t b = 0; b < core::num_requests(call); ++b) {
    Job job{.request = core::read_request(p_, call, b, k_begin), .batch = b};
    k_begin += job.request.seqlen_k;
    const std::int64_t first = job.request.q_begin;
    job.token_begin = std::max<std::int64_t>(0, rows.begin - first);
    job.token_end = std::min(job.request.seqlen_q, rows.end - first);
    if (job.token_begin >= job.token_end) continue;
    job.tiles = core::ceil_div(job.token_end - job.token_begin, l_.tile_tokens);
    jobs[count++] = job;
  }
  std::sort(jobs, jobs + count, [](const Job& a, const Job& b) {
    return a.request.seqlen_k != b.request.seqlen_k ? a.request.seqlen_k > b.request.seqlen_k
                                                    : a.batch < b.batch;
  });
  for (std::int64_t i = 1; i < count; ++i)
    jobs[i].tiles_before = jobs[i - 1].tiles_before + jobs[i - 1].tiles;
  return count;
}

/// Task order: job, head, tile (late tokens, which see most, first), piece.
Place AttentionStage::place_of(std::int64_t task, std::span<const Job> jobs, std::int64_t heads,
                               std::int64_t pieces) const {
  const std::int64_t per_tile = core::ceil_div(p_.attention.heads_kv, heads) * pieces;
  const auto after = std::upper_bound(
      jobs.begin(), jobs.end(), task,
      [&](std::int64_t t, const Job& job) { return t < job.tiles_before * per_tile; });
  const Job& job = *(after - 1);
  const std::int64_t rest = task - job.tiles_before * per_tile;
  Place place{.job = &job, .piece = rest % pieces};
  place.tile = job.tiles - 1 - rest / pieces % job.tiles;
  place.head = rest / (pieces * job.tiles) * heads;
  place.heads = std::min(heads, p_.attention.heads_kv - place.head);
  place.index = job.tiles_before + place.tile;
  return place;
}

/// Inverts the lists of the tile's tokens: every block that one of them lists and sees, ascending,
/// with those tokens.
void AttentionStage::list_visits(const AttendCall& call, AttendTile& tile,
                                 const ThreadScratch& scratch) const {
  const std::int64_t first_block = tile.request.blocks().begin;
  std::int64_t pairs = 0;
  for (std::int64_t t = 0; t < tile.tokens; ++t) {
    const std::int64_t blocks = tile.request.visible_blocks(tile.token + t).size();
    const std::int64_t row = tile.request.q_begin + tile.token + t - call.first_row;
    const std::int32_t* ids = call.ids + row * call.ids_row + tile.head * call.ids_head;
    for (std::int64_t slot = 0; slot < call.topk && ids[slot * call.ids_slot] >= 0; ++slot) {
      const std::int64_t block = ids[slot * call.ids_slot] - first_block;
      if (block < 0 || block >= blocks) continue;
      scratch.pairs[pairs++] =
          static_cast<std::uint64_t>(block) << 32 | static_cast<std::uint64_t>(t);
    }
  }
  std::sort(scratch.pairs, scratch.pairs + pairs);
  std::int64_t visits = 0;
  for (std::int64_t i = 0; i < pairs; ++i) {
    const auto block = static_cast<std::int32_t>(scratch.pairs[i] >> 32);
    scratch.tokens[i] = static_cast<std::int32_t>(scratch.pairs[i] & 0xffffffffu);
    if (visits == 0 || scratch.visits[visits - 1].block != block) {
      scratch.visits[visits++] = {block, static_cast<std::int32_t>(i), 0};
    }
    ++scratch.visits[visits - 1].count;
  }
  tile.visits = scratch.visits;
  tile.visit_tokens = scratch.tokens;
  tile.end = visits;
}

/// All visits of the tile's tokens.
void AttentionStage::find_visits(const AttendCall& call, AttendTile& tile,
                                 const ThreadScratch& scratch) const {
  tile.begin = 0;
  if (l_.sparse) return list_visits(call, tile, scratch);
  tile.end = core::ceil_div(tile.request.visible_keys(tile.token + tile.tokens - 1), l_.step);
}

AttendTile AttentionStage::make_tile(const AttendCall& call, const Place& place,
                                     const ThreadScratch& scratch) const {
  const Job& job = *place.job;
  AttendTile tile{
      .request = job.request, .batch = job.batch, .head = place.head, .heads = place.heads};
  tile.token = job.token_begin + place.tile * l_.tile_tokens;
  tile.tokens = std::min(l_.tile_tokens, job.token_end - tile.token);
  find_visits(call, tile, scratch);
  const std::int64_t visits = tile.end;
  tile.begin = visits * place.piece / l_.splits;
  tile.end = visits * (place.piece + 1) / l_.splits;
  tile.last = place.piece + 1 == l_.splits;
  return tile;
}

// ---- running ----

/// Rows that no request owns.
void clear_rows(const AttendCall& call, std::int64_t heads, std::int64_t begin, std::int64_t end) {
  const std::int64_t item = call.out_dtype == DType::F32 ? 4 : 2;
  const float nothing = -std::numeric_limits<float>::infinity();
  for (std::int64_t row = begin; row < end; ++row) {
    for (std::int64_t h = 0; h < heads; ++h) {
      if (call.attend) {
        std::memset(call.out + (row * call.out_row + h * call.out_head) * item, 0,
                    static_cast<std::size_t>(call.value_dim * item));
      }
      if (call.lse != nullptr) call.lse[row * call.lse_row + h * call.lse_head] = nothing;
      for (std::int64_t b = 0; b < call.max_blocks; ++b) {
        call.block_max[row * call.max_row + h * call.max_head + b * call.max_block] = nothing;
      }
    }
  }
}

/// KV heads that a task takes: several where their rows lie side by side and tasks are many enough
/// for all threads.
std::int64_t AttentionStage::heads_together(const AttendCall& call, std::int64_t tiles) const {
  const bool side_by_side = call.k.head < call.k.row && call.v.head < call.v.row;
  const std::int64_t tasks = tiles * core::ceil_div(p_.attention.heads_kv, l_.heads) * l_.splits;
  return side_by_side && tasks >= 4 * machine_.threads ? l_.heads : 1;
}

/// Writes a head of a tile, then computes again what its neighbours may have spoilt.
void AttentionStage::finish(const AttendCall& call, const AttendTile& tile,
                            const ThreadScratch& scratch, const AttendState& state,
                            const Shared& shared) const {
  const std::int64_t count = kernels_.finish(call, tile, scratch.kernel, state, scratch.suspects);
  if (count == 0) return;
  std::atomic_ref<std::int64_t>(*shared.mended).fetch_add(count, std::memory_order_relaxed);
  AttendCall again = call;
  again.block_max = nullptr;  // right already: scores of neighbours never mix
  AttendTile lone = tile;
  lone.heads = lone.tokens = 1;
  for (std::int64_t n = 0; n < count; ++n) {
    lone.token = tile.token + scratch.suspects[n];
    mend(again, lone, scratch, tile.tokens == 1 ? &state : nullptr);
  }
}

/// Computes a token by itself: a lone token reads its own keys only. `known` is its state where
/// that is what it was. Values so large that their sum overflows get a second pass over smaller
/// weights.
void AttentionStage::mend(const AttendCall& call, AttendTile tile, const ThreadScratch& scratch,
                          const AttendState* known) const {
  std::int32_t self = 0;
  find_visits(call, tile, scratch);
  if (known == nullptr) {
    kernels_.attend(call, tile, scratch.kernel, &scratch.lone);
    if (kernels_.finish(call, tile, scratch.kernel, scratch.lone, &self) == 0) return;
    known = &scratch.lone;
  }
  if (!kernels_.overflows(call, tile, scratch.kernel, *known)) return;
  const auto keys = static_cast<std::uint64_t>(tile.request.visible_keys(tile.token));
  tile.bias = static_cast<float>(std::bit_width(keys));  // no sum of weights exceeds 1
  kernels_.attend(call, tile, scratch.kernel, &scratch.lone);
  kernels_.finish(call, tile, scratch.kernel, scratch.lone, &self);
}

/// One pass over all tiles and pieces; tiles that are not split are written at once.
void AttentionStage::sweep(const AttendCall& call, std::span<const Job> jobs,
                           const Shared& shared) const {
  const std::int64_t tiles = jobs.back().tiles_before + jobs.back().tiles;
  const std::int64_t heads = heads_together(call, tiles);
  const std::int64_t tasks = tiles * core::ceil_div(p_.attention.heads_kv, heads) * l_.splits;
  core::for_each_task(machine_.threads, tasks, [&](std::int64_t task, int thread) {
    ThreadScratch scratch = thread_scratch(shared, thread);
    const Place place = place_of(task, jobs, heads, l_.splits);
    AttendTile tile = make_tile(call, place, scratch);
    // Maxima of blocks that nobody sees.
    const bool clears = call.block_max != nullptr && tile.last;
    if (tile.begin == tile.end && place.piece > 0 && !clears) return;
    for (std::int64_t h = 0; h < tile.heads && l_.splits > 1; ++h) {
      scratch.states[h] = state_of(shared, place, place.head + h);
    }
    kernels_.attend(call, tile, scratch.kernel, scratch.states);
    if (!call.attend || l_.splits > 1) return;
    for (std::int64_t h = 0; h < place.heads; ++h) {
      tile.head = place.head + h;
      finish(call, tile, scratch, scratch.states[h], shared);
    }
  });
}

/// Joins the pieces of split tiles in order and writes them.
void AttentionStage::join(const AttendCall& call, std::span<const Job> jobs,
                          const Shared& shared) const {
  const std::int64_t tiles = jobs.back().tiles_before + jobs.back().tiles;
  core::for_each_task(machine_.threads, tiles * p_.attention.heads_kv,
                      [&](std::int64_t task, int thread) {
                        const ThreadScratch scratch = thread_scratch(shared, thread);
                        Place place = place_of(task, jobs, 1, 1);
                        const AttendState first = state_of(shared, place, place.head);
                        for (place.piece = 1; place.piece < l_.splits; ++place.piece) {
                          const AttendTile tile = make_tile(call, place, scratch);
                          if (tile.begin == tile.end) continue;
                          kernels_.merge(call, tile, first, state_of(shared, place, place.head));
                        }
                        place.piece = 0;
                        finish(call, make_tile(call, place, scratch), scratch, first, shared);
                      });
}

void AttentionStage::run(const core::Call& call, Rows rows, std::byte* workspace) const {
  Scratch at(workspace);
  const Shared shared = take_shared(at);
  const std::span<const Job> jobs(shared.jobs,
                                  static_cast<std::size_t>(make_jobs(call, rows, shared.jobs)));
  AttendCall c = describe(call, rows);

  std::int64_t owned = rows.begin;  // rows behind the last request's are padding
  for (const Job& job : jobs) owned = std::max(owned, job.request.q_begin + job.token_end);
  core::for_each_task(machine_.threads, core::ceil_div(rows.end - owned, kPaddingRows),
                      [&](std::int64_t task, int) {
                        const std::int64_t begin = owned + task * kPaddingRows;
                        clear_rows(c, p_.attention.heads_q, begin,
                                   std::min(begin + kPaddingRows, rows.end));
                      });

  *shared.mended = 0;
  if (jobs.empty()) return;
  if (c.negate && c.block_max != nullptr) {
    // The maxima are of scores without the scale's sign: a pass of their own.
    AttendCall maxima = c;
    maxima.attend = maxima.negate = false;
    sweep(maxima, jobs, shared);
    c.block_max = nullptr;
  }
  sweep(c, jobs, shared);
  if (c.attend && l_.splits > 1) join(c, jobs, shared);
}

}  // namespace

StagePtr plan_attention(const Problem& problem, const Machine& machine) {
  return std::make_unique<AttentionStage>(problem, machine);
}

}  // namespace msa::cpu
