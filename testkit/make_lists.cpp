// SPDX-License-Identifier: MIT
// What selections and merges are given: lists of block ids, scores, partial states.
#include <algorithm>
#include <array>
#include <cstring>
#include <limits>
#include <string>

#include "testkit/block_lists.h"
#include "testkit/making.h"
#include "testkit/number.h"

namespace msa::testkit {

namespace {

constexpr std::uint64_t kScoreStream = 301;
constexpr std::uint64_t kPartStream = 302;

float score(const Case& spec, const Stream64& random, std::uint64_t counter) {
  if (spec.hostile == Hostile::NanIndex && random.below(~counter, 5) == 0) {
    return std::array<float, 6>{kNan, -kNan, kInf, -kInf, -0.0f, 0.0f}[random.below(counter, 6)];
  }
  switch (spec.regime) {
    case Regime::Integers:
      return static_cast<float>(random.below(counter, 7) - 3);
    case Regime::Ties:
    case Regime::OneHot:
      return 1.0f;
    case Regime::Near:
      return 1.0f + static_cast<float>(random.below(counter, 64)) * 0x1p-23f;
    case Regime::Low:
      return -6e4f - static_cast<float>(random.below(counter, 3));
    case Regime::Random:
    case Regime::Rising:
    case Regime::Drift:
    case Regime::Offset:
    case Regime::Wide:
      break;
  }
  return random.normal(counter);
}

std::string part_name(const char* list, std::int64_t part) {
  return std::string(list).append("[").append(std::to_string(part)).append("]");
}

}  // namespace

std::int64_t score_blocks(const Case& spec) {
  std::int64_t longest = 0;
  for (const Lengths& r : spec.lengths) longest = std::max(longest, r.seqlen_k);
  return ceil_div(longest + spec.slack, spec.block_size) + (spec.slack > 0 ? 2 : 0);
}

void make_block_ids(Making& m) {
  const std::int64_t heads = m.spec.heads_kv, topk = m.spec.topk;
  m.operands.block_ids_in = m.tensors.input("block_ids", DType::I32, {m.spec.rows(), heads, topk},
                                            m.tensors.ids_order(), false);
  const bool garbage = is_hostile(m.spec) || m.spec.partial_lists;
  for (const Request& r : m.requests) {
    for_rows(r.seqlen_q, heads * topk * 8, [&](std::int64_t i) {
      for (std::int64_t h = 0; h < heads; ++h) {
        const std::vector<std::int32_t> list = block_list(m.spec, r, i, h);
        const auto length = static_cast<std::int64_t>(list.size());
        for (std::int64_t s = 0; s < topk; ++s) {
          std::int32_t id = s < length ? list[s] : -1;
          if (s > length && garbage) id = kGarbage[s % kGarbage.size()];
          std::memcpy(address(m.operands.block_ids_in, r.q_begin + i, h, s), &id, sizeof(id));
        }
      }
    });
  }
}

void make_scores(Making& m) {
  const std::int64_t heads = m.spec.heads_index(), blocks = score_blocks(m.spec);
  m.operands.scores_in = m.tensors.input("scores", DType::F32, {m.spec.rows(), heads, blocks},
                                         m.tensors.row_order(), false);
  const Stream64 random(m.spec.seed, kScoreStream);
  for (const Request& r : m.requests) {
    for_rows(r.seqlen_q, heads * blocks, [&](std::int64_t i) {
      for (std::int64_t h = 0; h < heads; ++h) {
        // Blocks that the row does not see keep the background: NaN or a large score.
        for (std::int64_t block = 0; block < r.visible_blocks(i); ++block) {
          const std::int64_t row = r.q_begin + i;
          const float value = score(m.spec, random, ((row * heads) + h) * (blocks + 1) + block);
          std::memcpy(address(m.operands.scores_in, row, h, block), &value, sizeof(value));
        }
      }
    });
  }
}

void make_part_states(Making& m) {
  const std::int64_t rows = m.spec.rows(), heads = m.spec.heads_q, dim = m.spec.dim_v();
  const Stream64 random(m.spec.seed, kPartStream);
  for (std::int64_t part = 0; part < m.spec.parts; ++part) {
    m.operands.part_outs.push_back(m.tensors.input(part_name("outs", part), m.spec.dtype,
                                                   {rows, heads, dim}, m.tensors.row_order()));
    m.operands.part_lses.push_back(m.tensors.input(part_name("lses", part), DType::F32,
                                                   {rows, heads}, m.tensors.lse_order(), false));
    for_rows(rows, heads * dim, [&](std::int64_t i) {
      std::vector<float> row(static_cast<std::size_t>(dim));
      for (std::int64_t h = 0; h < heads; ++h) {
        const std::uint64_t counter = ((part * rows + i) * heads + h) * (dim + 2);
        float lse = 4.0f * random.normal(counter);
        if (m.spec.regime == Regime::Low) lse -= 6e4f;
        const std::int64_t draw = random.below(counter + 1, 16);
        if (draw < 4) lse = -kInf;  // an empty part; what its row holds stays background
        if (m.spec.hostile == Hostile::NanQ && draw == 4) lse = kNan;
        if (m.spec.hostile == Hostile::NanQ && draw == 5) lse = kInf;
        std::memcpy(address(m.operands.part_lses[part], i, h), &lse, sizeof(lse));
        if (draw < 4) continue;
        for (std::int64_t d = 0; d < dim; ++d) row[d] = random.normal(counter + 2 + d);
        if (m.spec.hostile == Hostile::NanV && draw == 6) spoil_row(random, counter, row);
        store(row.data(), dim, m.spec.dtype, address(m.operands.part_outs[part], i, h));
      }
    });
  }
}

/// Candidates of one row: part p holds ids that are p modulo the number of parts.
void make_part_selections(Making& m) {
  const std::int64_t rows = m.spec.rows(), heads = m.spec.heads_kv, width = m.spec.topk;
  const Stream64 random(m.spec.seed, kPartStream);
  for (std::int64_t part = 0; part < m.spec.parts; ++part) {
    m.operands.part_ids.push_back(m.tensors.input(part_name("block_ids_parts", part), DType::I32,
                                                  {rows, heads, width}, m.tensors.ids_order(),
                                                  false));
    m.operands.part_scores.push_back(m.tensors.input(part_name("chosen_scores_parts", part),
                                                     DType::F32, {rows, heads, width},
                                                     m.tensors.ids_order(), false));
    for_rows(rows, heads * width, [&](std::int64_t i) {
      for (std::int64_t h = 0; h < heads; ++h) {
        const std::uint64_t counter = ((part * rows + i) * heads + h) * (2 * width + 2);
        const std::int64_t length = random.below(counter, width + 1);
        std::int64_t step = 0;
        for (std::int64_t s = 0; s < width; ++s) {
          step += 1 + random.below(counter + 1 + s, 3);
          std::int32_t id = s < length ? static_cast<std::int32_t>(step * m.spec.parts + part) : -1;
          if (s > length) id = kGarbage[s % kGarbage.size()];
          float value = s < length ? score(m.spec, random, counter + 1 + width + s) : kNan;
          // The first part's first block is forced, as block 0 of a sequence may be.
          if (part == 0 && s == 0 && length > 0 && m.spec.init_blocks > 0) value = kInf;
          std::memcpy(address(m.operands.part_ids[part], i, h, s), &id, sizeof(id));
          std::memcpy(address(m.operands.part_scores[part], i, h, s), &value, sizeof(value));
        }
      }
    });
  }
}

}  // namespace msa::testkit
