// SPDX-License-Identifier: MIT
// Runs block_scores and select_blocks: cuts the batch into tiles of rows and slices of blocks,
// hands them to the level's kernel, merges what slices found. The score matrix never exists: a tile
// keeps a list of candidates per row.
#include "cpu/select.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <string>

#include "core/fields.h"
#include "core/parallel.h"
#include "cpu/filter.h"
#include "cpu/kernels.h"
#include "cpu/scratch.h"
#include "cpu/select_rows.h"

namespace msa::cpu {
namespace {

constexpr std::int64_t kMaxSlices = 64;
// Of equal cost: the last one idles 1/16 of the others' time at most.
constexpr std::int64_t kTasksPerThread = 16;
constexpr std::int64_t kMinSliceKeys = 2048;  // 30 us of one thread, to be worth a task
constexpr std::int64_t kSerialMerges = 8;     // rows, 3 us each: what a second parallel loop costs
constexpr std::int64_t kSliceBytes = std::int64_t{32} << 20;  // candidates of all slices of a call
constexpr std::int64_t kPaddingRows = 64;                     // padding rows that one task clears
// Upper bounds of all tiles in slices, with a filter: as much as their candidates.
constexpr std::int64_t kUpperFloats = std::int64_t{4} << 20;
constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr std::int64_t kCodeStride = 256;  // of rows in codes: the largest dim
constexpr float kOne = 1.0f;               // the scale of what has none

/// Whether bf16 holds every query and every value of codes.
bool fits_bf16(const Problem& p) {
  const bool q = p.index.q.storage == DType::BF16 || p.index.q.storage == DType::E4M3;
  return q && core::index_k_format(p).scale == Scale::Group;
}

/// One request's share of a call.
struct Work {
  core::Request request{};
  std::int64_t index = 0;   // in the batch
  core::Range tokens{};     // those inside the rows of the call
  std::int64_t tiles = 0;   // per index-key head
  std::int64_t slices = 1;  // per tile
  std::int64_t first_task = 0;
  std::int64_t first_slot = 0;  // where its slices' candidates begin
  // with a filter, where there are slices: of its upper bounds, and of one of its tiles
  std::int64_t first_upper = 0;
  std::int64_t upper_floats = 0;
};

/// One tile of one request.
struct Tile {
  const Work* work = nullptr;
  std::int64_t key_head = 0;
  std::int64_t slice = 0;
  std::int64_t first_row = 0;  // token * group + head inside the group
  std::int64_t num_rows = 0;
};

struct ThreadMemory {
  TileRows rows{};
  TileBuffers buffers{};
  FilterRows filter{};
};

constexpr std::int64_t padded(std::int64_t rows) {
  return core::ceil_div(rows, kMaxLanes) * kMaxLanes;
}

class SelectionStage final : public Stage {
 public:
  SelectionStage(const Problem& problem, const Machine& machine)
      : problem_(problem), kernels_(machine.kernels->select), threads_(machine.threads) {
    group_ = problem.index.heads / problem.index.heads_k;
    const std::int64_t most = std::min(problem.bounds.total_q * problem.index.heads * kMaxSlices,
                                       2 * kTileRows * kTasksPerThread * std::int64_t{threads_});
    if (!writes_scores() && threads_ > 1)
      slots_ = std::min(most, kSliceBytes / (8 * problem.selection.topk));
    if (filters() && slots_ > 0) {
      const std::int64_t rows = std::min(problem.bounds.total_q * problem.index.heads, slots_);
      upper_floats_ = std::min(kUpperFloats, rows * kMaxLanes * most_blocks());
    }
  }

  std::size_t workspace_bytes() const override {
    Scratch counter(nullptr);
    cut(counter);
    return counter.used();
  }
  void run(const core::Call& call, Rows rows, std::byte* workspace) const override;
  std::string decisions() const override {
    return "score_tile_rows " + std::to_string(kTileRows) + "\nscore_slices_at_most " +
           std::to_string(slots_ > 0 ? kMaxSlices : 1) + "\n" + (filters() ? "filter i8\n" : "");
  }

 private:
  struct Memory {
    core::Request* requests = nullptr;    // [batch]
    Work* work = nullptr;                 // [batch]
    Candidate* slots = nullptr;           // [slots, topk]
    std::int32_t* slot_counts = nullptr;  // [slots]
    float* upper = nullptr;               // [upper_floats]
    std::uint32_t* runs = nullptr;        // [upper_floats]
    float* least = nullptr;               // [slots], of a row where its first slice is
    std::int32_t* wanted = nullptr;       // [slots]
    std::byte* threads = nullptr;         // [threads, thread_bytes]
  };
  struct FilteredTile {
    ScoreTile score;
    FilterRows filter;
  };
  struct Context {
    const core::Call& call;
    Rows rows;
    const Memory& memory;
    std::span<const Work> work;
    SelectionWriter writer;
  };

  bool writes_scores() const { return problem_.op == Op::BlockScores; }
  bool filters() const { return problem_.index.filter.has_value(); }
  std::int64_t most_blocks() const {
    return core::ceil_div(problem_.bounds.max_seqlen_k, problem_.selection.block_size);
  }
  std::int64_t most_tile_rows() const {
    return std::min(kTileRows, padded(problem_.bounds.total_q * group_));
  }
  Memory cut(Scratch& scratch) const;
  ThreadMemory cut_thread(Scratch& scratch) const;
  std::size_t thread_bytes() const;
  std::span<Work> share_work(const core::Call& call, Rows rows, const Memory& memory) const;
  void choose_slices(std::span<Work> work) const;
  std::int64_t slice_slot(const Tile& tile, std::int64_t r) const;
  Tile tile_of_task(std::span<const Work> work, std::int64_t task) const;
  ScoreTile describe(const core::Call& call, const Tile& tile) const;
  IndexKeys describe_keys(const core::Call& call, const Tensor& keys, const Tile& tile) const;
  void add_scales(const core::Call& call, const Tile& tile, IndexKeys& keys) const;
  FilterKeys describe_filter(const core::Call& call, const Tile& tile) const;
  core::Range prepare_rows(const Tile& tile, bool wants_scores, const TileRows& rows) const;
  void run_tile(const Context& context, const Tile& tile, const ThreadMemory& memory) const;
  ScoreTarget score_target(const core::Call& call, const Tile& tile) const;
  void finish_scores(const core::Call& call, const Tile& tile) const;
  void finish_rows(const Context& context, const Tile& tile, const TileRows& rows) const;
  void keep_slice(const Context& context, const Tile& tile, const TileRows& rows) const;
  std::int64_t join_slices(const Context& context, const Tile& tile, std::int64_t slot) const;
  std::int64_t wanted_of_slices(const Context& context, const Tile& tile, std::int64_t slot) const;
  void merge_slices(const Context& context, const Tile& tile) const;
  void cut_filter(Scratch& scratch, FilterRows& rows) const;
  core::Range slice_of(const Tile& tile, core::Range blocks) const;
  void place_bounds(const Context& context, const Tile& tile, FilterRows& filter) const;
  void quantize_rows(const ScoreTile& tile, const TileRows& rows, const FilterRows& filter) const;
  float least_of(Candidate* list, std::int64_t count, const RowChoice& choice) const;
  bool ranks(const RowChoice& choice, const SelectionWriter& writer) const;
  FilteredTile open_tile(const Context& context, const Tile& tile,
                         const ThreadMemory& memory) const;
  void bound_tile(const Context& context, const Tile& tile, const ThreadMemory& memory) const;
  void merge_bounds(const Context& context, const Tile& tile) const;
  void score_wanted(const Context& context, const Tile& tile, const ThreadMemory& memory) const;
  void write_wanted(const Context& context, const Tile& tile, std::int64_t r,
                    std::int64_t count) const;
  void write_padding(const Context& context) const;
  void write_empty_row(const Context& context, std::int64_t row) const;

  Problem problem_;
  const SelectKernels& kernels_;
  int threads_;
  std::int64_t group_ = 1;
  std::int64_t slots_ = 0;  // candidate lists of slices
  std::int64_t upper_floats_ = 0;
};

// ---- memory ----

ThreadMemory SelectionStage::cut_thread(Scratch& scratch) const {
  const std::int64_t row_bytes = problem_.index.dim * 4;
  ThreadMemory memory;
  memory.buffers.q = scratch.take<std::byte>(kTileRows * row_bytes);
  memory.buffers.k = scratch.take<std::byte>(problem_.selection.block_size * row_bytes);
  memory.buffers.keys = scratch.take<const std::byte*>(problem_.selection.block_size);
  memory.rows.visible = scratch.take<std::int64_t>(kTileRows);
  memory.rows.end = scratch.take<std::int64_t>(kTileRows);
  memory.rows.threshold = scratch.take<float>(kTileRows);
  memory.rows.room = scratch.take<std::int32_t>(kTileRows);
  memory.rows.count = scratch.take<std::int32_t>(kTileRows);
  memory.rows.list_stride = writes_scores() ? 0 : candidate_capacity(problem_.selection.topk);
  memory.rows.lists = scratch.take<Candidate>(kTileRows * memory.rows.list_stride);
  if (filters()) {
    memory.buffers.starts = scratch.take<std::int32_t>(problem_.selection.block_size);
    memory.buffers.rows = scratch.take<std::byte>(kMaxLanes * row_bytes);
    cut_filter(scratch, memory.filter);
  }
  return memory;
}

void SelectionStage::cut_filter(Scratch& scratch, FilterRows& rows) const {
  rows.code_stride = kCodeStride;
  rows.codes = scratch.take<std::int8_t>(most_tile_rows() * kCodeStride);
  rows.scale = scratch.take<float>(kTileRows);
  rows.norm = scratch.take<float>(kTileRows);
  rows.error = scratch.take<float>(kTileRows);
  rows.least = scratch.take<float>(kTileRows);
  rows.wanted = scratch.take<std::int32_t>(kTileRows);
  rows.upper = scratch.take<float>(most_tile_rows() * most_blocks());
  rows.runs = scratch.take<std::uint32_t>(most_tile_rows() * most_blocks());
  rows.lower = scratch.take<float>(most_tile_rows() * problem_.selection.topk);
  rows.topk = problem_.selection.topk;
}

std::size_t SelectionStage::thread_bytes() const {
  Scratch counter(nullptr);
  cut_thread(counter);
  return counter.used();
}

SelectionStage::Memory SelectionStage::cut(Scratch& scratch) const {
  Memory memory;
  memory.requests = scratch.take<core::Request>(problem_.bounds.batch);
  memory.work = scratch.take<Work>(problem_.bounds.batch);
  memory.slots = scratch.take<Candidate>(slots_ * problem_.selection.topk);
  memory.slot_counts = scratch.take<std::int32_t>(slots_);
  if (filters()) {
    memory.upper = scratch.take<float>(upper_floats_);
    memory.runs = scratch.take<std::uint32_t>(upper_floats_);
    memory.least = scratch.take<float>(slots_);
    memory.wanted = scratch.take<std::int32_t>(slots_);
  }
  memory.threads = scratch.take<std::byte>(static_cast<std::int64_t>(thread_bytes()) * threads_);
  return memory;
}

// ---- cutting ----

/// The part of each request that lies in the rows of the call, in tiles.
std::span<Work> SelectionStage::share_work(const core::Call& call, Rows rows,
                                           const Memory& memory) const {
  const auto requests = read_requests(problem_, call, memory.requests);
  for (std::size_t b = 0; b < requests.size(); ++b) {
    const core::Request& request = requests[b];
    Work work{.request = request, .index = static_cast<std::int64_t>(b)};
    work.tokens.begin = std::max<std::int64_t>(rows.begin - request.q_begin, 0);
    work.tokens.end = std::min(rows.end - request.q_begin, request.seqlen_q);
    work.tiles = core::ceil_div(work.tokens.size() * group_, kTileRows);
    memory.work[b] = work;
  }
  const std::span<Work> work(memory.work, requests.size());
  if (slots_ > 0) choose_slices(work);
  std::int64_t task = 0;
  for (Work& w : work) {
    w.first_task = task;
    task += w.tiles * problem_.index.heads_k * w.slices;
  }
  return work;
}

/// Cuts the tiles of long requests so that all threads get equal work. What a row selects does not
/// depend on the cuts.
void SelectionStage::choose_slices(std::span<Work> work) const {
  const auto tile_cost = [&](const Work& w) {  // keys, times the vectors of rows that each meets
    if (w.tokens.empty()) return std::int64_t{0};
    const std::int64_t rows = std::min(w.tokens.size() * group_, kTileRows);
    return w.request.visible_keys(w.tokens.end - 1) * core::ceil_div(rows, kMaxLanes);
  };
  std::int64_t total = 0;
  for (const Work& w : work) total += tile_cost(w) * w.tiles * problem_.index.heads_k;
  const std::int64_t target =
      std::max(core::ceil_div(total, kTasksPerThread * threads_), kMinSliceKeys);
  std::int64_t slot = 0, upper = 0;
  for (Work& w : work) {
    const std::int64_t lists = w.tokens.size() * problem_.index.heads;
    if (lists == 0) continue;
    w.slices =
        std::clamp<std::int64_t>(core::ceil_div(tile_cost(w), target), 1,
                                 std::clamp<std::int64_t>((slots_ - slot) / lists, 1, kMaxSlices));
    if (filters()) {
      w.upper_floats =
          padded(std::min(w.tokens.size() * group_, kTileRows)) * w.request.blocks().size();
      const std::int64_t floats = w.upper_floats * w.tiles * problem_.index.heads_k;
      if (floats > upper_floats_ - upper) w.slices = 1;
      w.first_upper = upper;
      if (w.slices > 1) upper += floats;
    }
    w.first_slot = slot;
    if (w.slices > 1) slot += lists * w.slices;
  }
}

/// Where the candidates of the tile's row r from slice 0 lie; the other slices follow.
std::int64_t SelectionStage::slice_slot(const Tile& tile, std::int64_t r) const {
  const Work& work = *tile.work;
  const std::int64_t row =
      tile.key_head * work.tokens.size() * group_ + tile.first_row - work.tokens.begin * group_ + r;
  return work.first_slot + row * work.slices;
}

/// Tasks of a request start with its last rows, which see the most.
Tile SelectionStage::tile_of_task(std::span<const Work> work, std::int64_t task) const {
  const auto behind =
      std::upper_bound(work.begin(), work.end(), task,
                       [](std::int64_t t, const Work& w) { return t < w.first_task; });
  const Work& w = *(behind - 1);
  std::int64_t rest = task - w.first_task;
  Tile tile{.work = &w};
  tile.slice = rest % w.slices;
  rest /= w.slices;
  tile.key_head = rest % problem_.index.heads_k;
  const std::int64_t index = w.tiles - 1 - rest / problem_.index.heads_k;
  tile.first_row = w.tokens.begin * group_ + index * kTileRows;
  tile.num_rows = std::min(w.tokens.end * group_ - tile.first_row, kTileRows);
  return tile;
}

IndexKeys SelectionStage::describe_keys(const core::Call& call, const Tensor& k,
                                        const Tile& tile) const {
  const core::Request& request = tile.work->request;
  const bool paged = problem_.bounds.page_size != 0;
  const int token_axis = paged ? 1 : 0;
  IndexKeys keys;
  keys.data = static_cast<const std::byte*>(k.data) +
              size_in_bytes(k.dtype, request.k_begin * k.stride[0] +
                                         tile.key_head * k.stride[token_axis + 1]);
  keys.token_stride = size_in_bytes(k.dtype, k.stride[token_axis]);
  if (paged) {
    const Tensor& table = call.batch.page_table;
    keys.page_stride = size_in_bytes(k.dtype, k.stride[0]);
    keys.page_size = problem_.bounds.page_size;
    const auto size = static_cast<std::uint64_t>(keys.page_size);
    if (std::has_single_bit(size)) keys.page_shift = std::countr_zero(size);
    keys.pages = static_cast<const std::int32_t*>(table.data) + tile.work->index * table.stride[0];
    keys.pages_stride = table.stride[1];
  }
  return keys;
}

void SelectionStage::add_scales(const core::Call& call, const Tile& tile, IndexKeys& keys) const {
  const Tensor& t = call.index_k_scale;
  const Format format = core::index_k_format(problem_);
  const bool paged = problem_.bounds.page_size != 0;
  const std::int64_t head = tile.key_head, item = t ? size_in_bytes(t.dtype, 1) : 0;
  const auto* scales = static_cast<const std::byte*>(t ? t.data : &kOne);
  // A scale for each token, or for each of its groups.
  const auto add_tokens = [&] {
    const std::int64_t first = tile.work->request.k_begin;
    scales += (paged ? head * t.stride[2] : first * t.stride[0] + head * t.stride[1]) * item;
    keys.scale_token = t.stride[paged ? 1 : 0] * item;
    keys.scale_page = paged ? t.stride[0] * item : 0;
  };
  switch (format.scale) {
    case Scale::None:
    case Scale::Tensor:
      break;
    case Scale::Head:
      scales += head * t.stride[0] * item;
      break;
    case Scale::Page:
      scales += head * t.stride[1] * item;
      keys.scale_page = t.stride[0] * item;
      break;
    case Scale::Token:
      add_tokens();
      break;
    case Scale::Group:
    case Scale::GroupTensor:
      add_tokens();
      keys.scale_group = t.stride[paged ? 3 : 2] * item;
      keys.groups = format.rounded ? kRoundedProducts.data() : kProducts.data();
      keys.global = format.scale == Scale::GroupTensor
                        ? static_cast<const float*>(call.index_k_global_scale.data)
                        : &kOne;
      break;
  }
  keys.scales = scales;
}

FilterKeys SelectionStage::describe_filter(const core::Call& call, const Tile& tile) const {
  const Tensor& bounds = call.index_k8_bounds;
  return {.codes = describe_keys(call, call.index_k8, tile),
          .bounds = static_cast<const float*>(bounds.data) + tile.key_head * bounds.stride[1],
          .page_stride = bounds.stride[0],
          .item_stride = bounds.stride[2],
          .first_row = tile.work->request.k_begin,
          .rotated = problem_.index.filter->rotated};
}

ScoreTile SelectionStage::describe(const core::Call& call, const Tile& tile) const {
  const core::Request& request = tile.work->request;
  const Tensor& q = call.index_q;
  const std::int64_t item = size_in_bytes(q.dtype, 1);
  ScoreTile score{.request = &request, .dtype = q.dtype, .key_dtype = call.index_k.dtype};
  score.q = static_cast<const std::byte*>(q.data) +
            (request.q_begin * q.stride[0] + tile.key_head * group_ * q.stride[1]) * item;
  score.q_token_stride = q.stride[0] * item;
  score.q_head_stride = q.stride[1] * item;
  score.dim = q.shape[2];
  score.group = group_;
  score.first_row = tile.first_row;
  score.num_rows = tile.num_rows;
  score.pairs = fits_bf16(problem_);
  score.few_rows = request.seqlen_q * group_ <= kFewRows;
  score.keys = describe_keys(call, call.index_k, tile);
  add_scales(call, tile, score.keys);
  return score;
}

// ---- tiles ----

/// Fills in what each row sees and needs; returns the blocks that this tile scores, 0 being the
/// request's first here.
core::Range SelectionStage::prepare_rows(const Tile& tile, bool wants_scores,
                                         const TileRows& rows) const {
  const core::Request& request = tile.work->request;
  const std::int64_t first_block = request.blocks().begin;
  std::int64_t end = 0;
  for (std::int64_t r = 0; r < core::ceil_div(tile.num_rows, kMaxLanes) * kMaxLanes; ++r) {
    rows.visible[r] = 0;
    rows.threshold[r] = kTakeNone;
    rows.count[r] = 0;
    if (r >= tile.num_rows) continue;
    const std::int64_t token = (tile.first_row + r) / group_;
    rows.visible[r] = request.visible_keys(token);
    if (writes_scores()) {
      end = request.visible_blocks(token).end - first_block;
    } else {
      const RowChoice choice = choose_row(request, token, problem_);
      rows.room[r] = static_cast<std::int32_t>(choice.room);
      if (choice.room > 0 && (wants_scores || !choice.takes_all())) {
        rows.threshold[r] = kTakeAll;
        end = choice.candidates.end - first_block;
      }
    }
    rows.end[r] = end;
  }
  if (writes_scores()) return {0, end};
  return {std::max<std::int64_t>(problem_.selection.init_blocks - first_block, 0), end};
}

ScoreTarget SelectionStage::score_target(const core::Call& call, const Tile& tile) const {
  if (!writes_scores()) return {};
  const Tensor& t = call.scores;
  return {static_cast<float*>(t.data) + tile.work->request.q_begin * t.stride[0] +
              tile.key_head * group_ * t.stride[1],
          t.stride[0], t.stride[1], t.stride[2]};
}

core::Range SelectionStage::slice_of(const Tile& tile, core::Range blocks) const {
  const std::int64_t slices = tile.work->slices;
  return {blocks.begin + blocks.size() * tile.slice / slices,
          blocks.begin + blocks.size() * (tile.slice + 1) / slices};
}

void SelectionStage::run_tile(const Context& context, const Tile& tile,
                              const ThreadMemory& memory) const {
  ScoreTile score = describe(context.call, tile);
  const core::Range blocks = prepare_rows(tile, context.writer.wants_scores(), memory.rows);
  score.blocks = slice_of(tile, blocks);
  kernels_.score_tile(score, memory.rows, memory.buffers, score_target(context.call, tile));
  if (writes_scores()) return finish_scores(context.call, tile);
  if (tile.work->slices > 1) return keep_slice(context, tile, memory.rows);
  finish_rows(context, tile, memory.rows);
}

/// -inf behind the last visible block of each row.
void SelectionStage::finish_scores(const core::Call& call, const Tile& tile) const {
  const core::Request& request = tile.work->request;
  const ScoreTarget target = score_target(call, tile);
  for (std::int64_t r = tile.first_row; r < tile.first_row + tile.num_rows; ++r) {
    float* row = target.scores + r / group_ * target.token_stride + r % group_ * target.head_stride;
    for (std::int64_t block = request.visible_blocks(r / group_).size();
         block < call.scores.shape[2]; ++block) {
      row[block * target.block_stride] = -std::numeric_limits<float>::infinity();
    }
  }
}

void SelectionStage::finish_rows(const Context& context, const Tile& tile,
                                 const TileRows& rows) const {
  const core::Request& request = tile.work->request;
  for (std::int64_t r = 0; r < tile.num_rows; ++r) {
    const std::int64_t row = tile.first_row + r;
    Candidate* list = rows.lists + r * rows.list_stride;
    const std::int64_t count = keep_best(list, rows.count[r], rows.room[r]);
    sort_by_id(list, count);
    context.writer.write(request.q_begin + row / group_, tile.key_head * group_ + row % group_,
                         choose_row(request, row / group_, problem_),
                         {list, static_cast<std::size_t>(count)});
  }
}

void SelectionStage::keep_slice(const Context& context, const Tile& tile,
                                const TileRows& rows) const {
  for (std::int64_t r = 0; r < tile.num_rows; ++r) {
    const std::int64_t slot = slice_slot(tile, r) + tile.slice;
    Candidate* list = rows.lists + r * rows.list_stride;
    const std::int64_t count = keep_best(list, rows.count[r], rows.room[r]);
    std::copy_n(list, count, context.memory.slots + slot * problem_.selection.topk);
    context.memory.slot_counts[slot] = static_cast<std::int32_t>(count);
  }
}

/// Moves the candidates of all slices of a row together; returns how many they are.
std::int64_t SelectionStage::join_slices(const Context& context, const Tile& tile,
                                         std::int64_t slot) const {
  Candidate* list = context.memory.slots + slot * problem_.selection.topk;
  std::int64_t count = 0;
  for (std::int64_t s = 0; s < tile.work->slices; ++s) {
    // A slice never lies before where it is moved to.
    const Candidate* from = list + s * problem_.selection.topk;
    std::copy_n(from, context.memory.slot_counts[slot + s], list + count);
    count += context.memory.slot_counts[slot + s];
  }
  return count;
}

/// Blocks of a row that were scored; -1 where its query is not finite.
std::int64_t SelectionStage::wanted_of_slices(const Context& context, const Tile& tile,
                                              std::int64_t slot) const {
  std::int64_t sum = 0;
  for (std::int64_t s = 0; s < tile.work->slices; ++s) {
    if (context.memory.wanted[slot + s] < 0) return -1;
    sum += context.memory.wanted[slot + s];
  }
  return sum;
}

void SelectionStage::merge_slices(const Context& context, const Tile& tile) const {
  const core::Request& request = tile.work->request;
  for (std::int64_t r = 0; r < tile.num_rows; ++r) {
    const std::int64_t row = tile.first_row + r;
    const std::int64_t slot = slice_slot(tile, r);
    const RowChoice choice = choose_row(request, row / group_, problem_);
    Candidate* list = context.memory.slots + slot * problem_.selection.topk;
    const std::int64_t count = keep_best(list, join_slices(context, tile, slot), choice.room);
    sort_by_id(list, count);
    context.writer.write(request.q_begin + row / group_, tile.key_head * group_ + row % group_,
                         choice, {list, static_cast<std::size_t>(count)});
    if (filters()) write_wanted(context, tile, r, wanted_of_slices(context, tile, slot));
  }
}

// ---- the 8-bit filter ----
//
// A tile is scored in two passes. The first bounds all its blocks by codes: the k-th largest lower
// bound is what a block's upper bound must reach. The second scores the blocks that do, with the
// bits that they have without a filter; no other can be chosen. Tiles in slices pass one after the
// other, as the k-th largest is that of all slices.

/// Whether scores decide what the row takes, or are wanted.
bool SelectionStage::ranks(const RowChoice& choice, const SelectionWriter& writer) const {
  return choice.room > 0 && (writer.wants_scores() || !choice.takes_all());
}

/// Where the upper bounds of a tile in slices lie.
void SelectionStage::place_bounds(const Context& context, const Tile& tile,
                                  FilterRows& filter) const {
  const Work& work = *tile.work;
  const std::int64_t index = (tile.first_row - work.tokens.begin * group_) / kTileRows;
  const std::int64_t at =
      work.first_upper + (tile.key_head * work.tiles + index) * work.upper_floats;
  filter.upper = context.memory.upper + at;
  filter.runs = context.memory.runs + at;
}

void SelectionStage::quantize_rows(const ScoreTile& tile, const TileRows& rows,
                                   const FilterRows& filter) const {
  for (std::int64_t r = 0; r < padded(tile.num_rows); ++r) {
    std::int8_t* codes = filter.codes + r * filter.code_stride;
    std::fill_n(codes, filter.code_stride, std::int8_t{0});
    QueryBound bound;
    if (rows.threshold[r] != kTakeNone) {
      const std::int64_t row = tile.first_row + r;
      const std::byte* q =
          tile.q + row / group_ * tile.q_token_stride + row % group_ * tile.q_head_stride;
      bound = quantize_query(q, tile.dtype, tile.dim, problem_.index.filter->rotated, codes);
    }
    filter.scale[r] = bound.scale;
    filter.norm[r] = bound.norm;
    filter.error[r] = bound.error;
  }
}

/// The k-th largest of the lower bounds in a list; -inf where there are fewer.
float SelectionStage::least_of(Candidate* list, std::int64_t count, const RowChoice& choice) const {
  if (count < choice.room) return -kInfinity;
  keep_best(list, count, choice.room);
  return score_of(*std::min_element(list, list + choice.room));
}

/// What both passes over a tile begin with: its rows made ready, its slice of the blocks, and where
/// the bounds of its rows lie.
SelectionStage::FilteredTile SelectionStage::open_tile(const Context& context, const Tile& tile,
                                                       const ThreadMemory& memory) const {
  FilteredTile opened{describe(context.call, tile), memory.filter};
  opened.score.blocks =
      slice_of(tile, prepare_rows(tile, context.writer.wants_scores(), memory.rows));
  opened.filter.stride = padded(tile.num_rows);
  if (tile.work->slices > 1) place_bounds(context, tile, opened.filter);
  return opened;
}

void SelectionStage::bound_tile(const Context& context, const Tile& tile,
                                const ThreadMemory& memory) const {
  auto [score, filter] = open_tile(context, tile, memory);
  const bool sliced = tile.work->slices > 1;
  quantize_rows(score, memory.rows, filter);
  kernels_.bound_tile(score, describe_filter(context.call, tile), memory.rows, filter,
                      memory.buffers);
  for (std::int64_t r = 0; sliced && r < tile.num_rows; ++r)
    context.memory.wanted[slice_slot(tile, r) + tile.slice] = std::isnan(filter.norm[r]) ? -1 : 0;
  if (sliced) return keep_slice(context, tile, memory.rows);
  for (std::int64_t r = 0; r < filter.stride; ++r) {
    filter.least[r] = std::numeric_limits<float>::quiet_NaN();
    if (r >= tile.num_rows) continue;
    const RowChoice choice =
        choose_row(tile.work->request, (tile.first_row + r) / group_, problem_);
    if (!ranks(choice, context.writer)) continue;
    filter.least[r] =
        least_of(memory.rows.lists + r * memory.rows.list_stride, memory.rows.count[r], choice);
  }
  score_wanted(context, tile, memory);
  for (std::int64_t r = 0; r < tile.num_rows; ++r)
    write_wanted(context, tile, r, std::isnan(filter.norm[r]) ? -1 : filter.wanted[r]);
}

/// Of all slices.
void SelectionStage::merge_bounds(const Context& context, const Tile& tile) const {
  for (std::int64_t r = 0; r < tile.num_rows; ++r) {
    const std::int64_t slot = slice_slot(tile, r);
    const RowChoice choice =
        choose_row(tile.work->request, (tile.first_row + r) / group_, problem_);
    Candidate* list = context.memory.slots + slot * problem_.selection.topk;
    context.memory.least[slot] = ranks(choice, context.writer)
                                     ? least_of(list, join_slices(context, tile, slot), choice)
                                     : std::numeric_limits<float>::quiet_NaN();
  }
}

/// The second pass; `least` is known, in memory.filter or, for tiles in slices, in the call's.
void SelectionStage::score_wanted(const Context& context, const Tile& tile,
                                  const ThreadMemory& memory) const {
  auto [score, filter] = open_tile(context, tile, memory);
  const bool sliced = tile.work->slices > 1;
  score.scattered = true;
  for (std::int64_t r = 0; r < filter.stride; ++r) {
    filter.wanted[r] = 0;
    if (!sliced) continue;
    filter.least[r] = r < tile.num_rows ? context.memory.least[slice_slot(tile, r)]
                                        : std::numeric_limits<float>::quiet_NaN();
  }
  // So many scores reach `least` that others need no room.
  for (std::int64_t r = 0; r < tile.num_rows; ++r) {
    if (memory.rows.threshold[r] != kTakeNone && filter.least[r] > -kInfinity)
      memory.rows.threshold[r] = std::nextafter(filter.least[r], -kInfinity);
  }
  kernels_.score_wanted(score, memory.rows, filter, memory.buffers);
  if (!sliced) return finish_rows(context, tile, memory.rows);
  for (std::int64_t r = 0; r < tile.num_rows; ++r) {
    std::int32_t& count = context.memory.wanted[slice_slot(tile, r) + tile.slice];
    if (count >= 0) count = filter.wanted[r];
  }
  keep_slice(context, tile, memory.rows);
}

/// `count`: -1 where the query is not finite, so that every block was scored.
void SelectionStage::write_wanted(const Context& context, const Tile& tile, std::int64_t r,
                                  std::int64_t count) const {
  const Tensor& t = context.call.candidates;
  if (!t) return;
  const std::int64_t row = tile.first_row + r, head = tile.key_head * group_ + row % group_;
  const std::int64_t token = tile.work->request.q_begin + row / group_;
  static_cast<std::int32_t*>(t.data)[token * t.stride[0] + head * t.stride[1]] =
      static_cast<std::int32_t>(count);
}

/// Rows of the tensors behind the last request.
void SelectionStage::write_padding(const Context& context) const {
  std::int64_t row = context.rows.begin;
  for (const Work& w : context.work) row = std::max(row, w.request.q_begin + w.request.seqlen_q);
  for_each_row(threads_, {row, context.rows.end}, kPaddingRows,
               [&](std::int64_t empty, int) { write_empty_row(context, empty); });
}

void SelectionStage::write_empty_row(const Context& context, std::int64_t row) const {
  if (!writes_scores()) {
    context.writer.write_empty(row);
    const Tensor& t = context.call.candidates;
    for (std::int64_t head = 0; t && head < t.shape[1]; ++head)
      static_cast<std::int32_t*>(t.data)[row * t.stride[0] + head * t.stride[1]] = 0;
    return;
  }
  const Tensor& t = context.call.scores;
  float* scores = static_cast<float*>(t.data) + row * t.stride[0];
  for (std::int64_t head = 0; head < t.shape[1]; ++head) {
    for (std::int64_t block = 0; block < t.shape[2]; ++block) {
      scores[head * t.stride[1] + block * t.stride[2]] = -kInfinity;
    }
  }
}

void SelectionStage::run(const core::Call& call, Rows rows, std::byte* workspace) const {
  Scratch scratch(workspace);
  const Memory memory = cut(scratch);
  const std::span<Work> work = share_work(call, rows, memory);
  const Context context{call, rows, memory, work, SelectionWriter(call, rows)};
  std::int64_t tasks = 0, merged_rows = 0;
  for (const Work& w : work) {
    tasks += w.tiles * problem_.index.heads_k * w.slices;
    if (w.slices > 1) merged_rows += w.tokens.size() * problem_.index.heads;
  }
  using Step = void (SelectionStage::*)(const Context&, const Tile&, const ThreadMemory&) const;
  const auto for_tiles = [&](Step step, bool sliced_only) {
    core::for_each_task(threads_, tasks, [&](std::int64_t task, int thread) {
      const Tile tile = tile_of_task(work, task);
      if (sliced_only && tile.work->slices == 1) return;
      Scratch cut_from(memory.threads + thread_bytes() * static_cast<std::size_t>(thread));
      (this->*step)(context, tile, cut_thread(cut_from));
    });
  };
  using Merge = void (SelectionStage::*)(const Context&, const Tile&) const;
  const auto for_merges = [&](Merge merge) {
    core::for_each_task(merged_rows > kSerialMerges ? threads_ : 1, tasks,
                        [&](std::int64_t task, int) {
                          const Tile tile = tile_of_task(work, task);
                          if (tile.work->slices > 1 && tile.slice == 0)
                            (this->*merge)(context, tile);
                        });
  };
  for_tiles(filters() ? &SelectionStage::bound_tile : &SelectionStage::run_tile, false);
  if (merged_rows > 0 && filters()) {
    for_merges(&SelectionStage::merge_bounds);
    for_tiles(&SelectionStage::score_wanted, true);
  }
  if (merged_rows > 0) for_merges(&SelectionStage::merge_slices);
  write_padding(context);
}

}  // namespace

StagePtr plan_selection(const Problem& problem, const Machine& machine) {
  return std::make_unique<SelectionStage>(problem, machine);
}

}  // namespace msa::cpu
