// SPDX-License-Identifier: MIT
// Building and running of selection cases.
#include "tests/cpu/select_case.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <numeric>
#include <random>

#include "cpu/convert.h"
#include "cpu/select.h"

namespace msa::test {
namespace {

void put(std::vector<std::byte>& bytes, DType dtype, std::int64_t i, float x) {
  if (dtype == DType::F32) {
    std::memcpy(bytes.data() + i * 4, &x, 4);
    return;
  }
  const std::uint16_t half = dtype == DType::F16 ? cpu::float_to_f16(x) : cpu::float_to_bf16(x);
  std::memcpy(bytes.data() + i * 2, &half, 2);
}

class Generator {
 public:
  Generator(Values values, std::uint32_t seed) : values_(values), engine_(seed) {}
  float next() {
    if (values_ == Values::Integers) return static_cast<float>(static_cast<int>(engine_() % 7) - 3);
    return normal_(engine_);
  }
  std::mt19937& engine() { return engine_; }

 private:
  Values values_;
  std::mt19937 engine_;
  std::normal_distribution<float> normal_;
};

Tensor ints(const std::vector<std::int32_t>& v) {
  return make_tensor(v.data(), DType::I32, {static_cast<std::int64_t>(v.size())});
}
Tensor optional_ints(const std::vector<std::int32_t>& v) { return v.empty() ? Tensor{} : ints(v); }

}  // namespace

SelectCase::SelectCase(const SelectShape& shape, Values values, Poison poison, std::uint32_t seed)
    : shape_(shape) {
  cu_q_.push_back(0);
  for (const std::int32_t n : shape_.q_lens) cu_q_.push_back(cu_q_.back() + n);
  rows_ = cu_q_.back() + shape_.padding;
  for (const std::int32_t n : shape_.k_lens) {
    blocks_ = std::max(blocks_, (n + shape_.block_size - 1) / shape_.block_size);
  }
  make_queries(values, seed);
  make_keys(values, poison, seed + 1);
}

void SelectCase::make_queries(Values values, std::uint32_t seed) {
  Generator random(values, seed);
  const std::int64_t head_stride = shape_.dim + shape_.stretch;
  const std::int64_t row_stride = head_stride * shape_.heads + shape_.stretch;
  q_.resize(static_cast<std::size_t>(size_in_bytes(shape_.dtype, rows_ * row_stride + 1)));
  for (std::int64_t i = 0; i < rows_ * row_stride; ++i) put(q_, shape_.dtype, i, NAN);
  for (std::int64_t row = 0; row < cu_q_.back(); ++row) {
    for (std::int64_t h = 0; h < shape_.heads; ++h) {
      for (std::int64_t d = 0; d < shape_.dim; ++d)
        put(q_, shape_.dtype, row * row_stride + h * head_stride + d, random.next());
    }
  }
  index_q_ = make_tensor(q_.data(), shape_.dtype, {rows_, shape_.heads, shape_.dim},
                         {row_stride, head_stride, 1});
}

void SelectCase::make_keys(Values values, Poison poison, std::uint32_t seed) {
  Generator random(values, seed);
  const std::int64_t batch = static_cast<std::int64_t>(shape_.k_lens.size());
  const std::int64_t page = shape_.page_size == 0 ? 1 : shape_.page_size;
  const std::int64_t gap = shape_.page_size == 0 ? 2 : 0;  // rows of poison between ragged requests
  std::int64_t rows = 0;  // of keys, in pages or one after the other
  for (const std::int32_t n : shape_.k_lens) {
    cu_k_.push_back(static_cast<std::int32_t>(rows));
    rows += (n + page - 1) / page * page + gap;
    table_width_ = std::max<std::int64_t>(table_width_, (n + page - 1) / page + 1);
  }
  cu_k_.push_back(static_cast<std::int32_t>(rows));
  const std::int64_t num_pages = rows / page + 2;
  std::vector<std::int32_t> order(static_cast<std::size_t>(num_pages));
  std::iota(order.begin(), order.end(), 0);
  if (shape_.page_size != 0) std::shuffle(order.begin(), order.end(), random.engine());

  const std::int64_t head_stride = shape_.dim + shape_.stretch;
  const std::int64_t row_stride = head_stride * shape_.heads_k + shape_.stretch;
  const std::int64_t page_stride = row_stride * page + shape_.stretch;
  k_.resize(static_cast<std::size_t>(size_in_bytes(shape_.dtype, num_pages * page_stride)));
  for (std::int64_t i = 0; i < num_pages * page_stride; ++i) put(k_, shape_.dtype, i, NAN);
  pages_.assign(static_cast<std::size_t>(batch * table_width_), 1 << 30);
  std::int64_t used = 0;
  for (std::int64_t b = 0; b < batch; ++b) {
    for (std::int64_t j = 0; j < shape_.k_lens[static_cast<std::size_t>(b)]; ++j) {
      const std::int64_t at = order[static_cast<std::size_t>(used + j / page)];
      if (shape_.page_size != 0)
        pages_[static_cast<std::size_t>(b * table_width_ + j / page)] =
            static_cast<std::int32_t>(at);
      const bool bad = poison == Poison::VisibleNaN && random.engine()() % 16 == 0;
      for (std::int64_t h = 0; h < shape_.heads_k; ++h) {
        for (std::int64_t d = 0; d < shape_.dim; ++d) {
          const float value = random.next();
          put(k_, shape_.dtype, at * page_stride + j % page * row_stride + h * head_stride + d,
              bad && d == 3 ? NAN : value);
        }
      }
    }
    used += (shape_.k_lens[static_cast<std::size_t>(b)] + page - 1) / page + gap;
  }
  if (shape_.page_size == 0) {
    index_k_ = make_tensor(k_.data(), shape_.dtype, {num_pages, shape_.heads_k, shape_.dim},
                           {page_stride, head_stride, 1});
  } else {
    index_k_ = make_tensor(k_.data(), shape_.dtype, {num_pages, page, shape_.heads_k, shape_.dim},
                           {page_stride, row_stride, head_stride, 1});
  }
}

Batch SelectCase::batch(bool with_keys) const {
  Batch b;
  b.cu_seqlens_q = ints(cu_q_);
  b.seqlens_k = ints(shape_.k_lens);
  b.q_offsets = optional_ints(shape_.q_offsets);
  b.key_offsets = optional_ints(shape_.key_offsets);
  b.total_seqlens_k = optional_ints(shape_.totals);
  if (!with_keys) return b;
  if (shape_.page_size == 0) {
    b.cu_seqlens_k = ints(cu_k_);
  } else {
    b.page_table = make_tensor(pages_.data(), DType::I32,
                               {static_cast<std::int64_t>(shape_.k_lens.size()), table_width_});
  }
  return b;
}

Settings SelectCase::settings(const Options& options) const {
  return {.block_size = shape_.block_size,
          .topk = shape_.topk,
          .local_blocks = shape_.local_blocks,
          .init_blocks = shape_.init_blocks,
          .causal = shape_.causal,
          .options = options};
}

Selected SelectCase::select(const Options& options, bool with_scores) const {
  const std::size_t count = static_cast<std::size_t>(rows_ * shape_.heads * shape_.topk);
  Selected result{std::vector<std::int32_t>(count, -7),
                  std::vector<float>(with_scores ? count : 0, -7.0f)};
  SelectBlocksArgs args{.index_q = index_q_, .index_k = index_k_, .batch = batch(true)};
  args.block_ids = make_tensor(result.ids.data(), DType::I32, {rows_, shape_.heads, shape_.topk});
  if (with_scores)
    args.chosen_scores =
        make_tensor(result.scores.data(), DType::F32, {rows_, shape_.heads, shape_.topk});
  select_blocks(args, settings(options));
  return result;
}

Selected SelectCase::select_rows(const std::string& isa,
                                 const std::vector<std::int64_t>& cuts) const {
  const std::int64_t width = shape_.heads * shape_.topk;
  Selected result{std::vector<std::int32_t>(static_cast<std::size_t>(rows_ * width), -7), {}};
  SelectBlocksArgs args{.index_q = index_q_, .index_k = index_k_, .batch = batch(true)};
  args.block_ids = make_tensor(result.ids.data(), DType::I32, {rows_, shape_.heads, shape_.topk});
  const auto level = std::find_if(cpu::kIsas.begin(), cpu::kIsas.end(),
                                  [&](cpu::Isa i) { return isa == cpu::to_string(i); });
  const cpu::StagePtr stage =
      cpu::plan_selection(problem_of(args, settings({})),
                          {.isa = *level, .kernels = cpu::find_kernels(*level), .threads = 2});
  std::vector<std::byte> memory(stage->workspace_bytes() + kWorkspaceAlignment);
  const auto address = reinterpret_cast<std::uintptr_t>(memory.data());
  std::byte* workspace = memory.data() + (kWorkspaceAlignment - address % kWorkspaceAlignment);
  for (std::size_t i = 0; i + 1 < cuts.size(); ++i) {
    core::Call call{.index_q = args.index_q, .index_k = args.index_k, .batch = args.batch};
    call.block_ids = make_tensor(result.ids.data() + cuts[i] * width, DType::I32,
                                 {cuts[i + 1] - cuts[i], shape_.heads, shape_.topk});
    stage->run(call, {cuts[i], cuts[i + 1]}, workspace);
  }
  return result;
}

std::vector<float> SelectCase::block_scores(const Options& options) const {
  std::vector<float> scores(static_cast<std::size_t>(rows_ * shape_.heads * blocks_), -7.0f);
  BlockScoresArgs args{.index_q = index_q_, .index_k = index_k_, .batch = batch(true)};
  args.scores = make_tensor(scores.data(), DType::F32, {rows_, shape_.heads, blocks_});
  msa::block_scores(args, settings(options));
  return scores;
}

Selected SelectCase::topk(const std::vector<float>& scores, const Options& options) const {
  const std::size_t count = static_cast<std::size_t>(rows_ * shape_.heads * shape_.topk);
  Selected result{std::vector<std::int32_t>(count, -7), std::vector<float>(count, -7.0f)};
  SelectTopkArgs args{.batch = batch(false)};
  args.scores = make_tensor(scores.data(), DType::F32, {rows_, shape_.heads, blocks_});
  args.block_ids = make_tensor(result.ids.data(), DType::I32, {rows_, shape_.heads, shape_.topk});
  args.chosen_scores =
      make_tensor(result.scores.data(), DType::F32, {rows_, shape_.heads, shape_.topk});
  select_topk(args, settings(options));
  return result;
}

std::vector<std::string> available_isas() {
  std::vector<std::string> names;
  for (const BackendInfo& backend : build_info().backends) {
    for (const IsaInfo& isa : backend.isas) {
      if (isa.available) {
        names.push_back(isa.name);
      } else {
        std::printf("not run: %s, %s\n", isa.name.c_str(), isa.reason.c_str());
      }
    }
  }
  return names;
}

}  // namespace msa::test
