// SPDX-License-Identifier: MIT
// Keys that do not fit one device: a sequence is cut into shards, each shard scores its own keys
// and attends to its own blocks, and two merges join the results. The selection is that of the
// whole, id by id; outputs differ by the order of additions alone. Who sends what to whom is the
// engine's part: here a loop over shards stands for its ranks, and the stacked vectors for what an
// all-gather returns.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <random>
#include <vector>

#include "msa/msa.h"

namespace {

constexpr std::int64_t kHeadsQ = 8, kHeadsKv = 2, kDim = 64, kBlock = 64, kTopk = 8;
constexpr std::int32_t kTokens = 3000;
// First key of each shard, a multiple of the block size; shards may differ in length.
constexpr std::int32_t kCuts[] = {0, 1024, 1536, 2560, kTokens};
constexpr std::int64_t kShards = 4;

std::vector<float> random_vectors(std::int64_t count, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> data(count);
  for (float& x : data) x = normal(random);
  return data;
}

msa::Tensor floats(const std::vector<float>& data, std::int64_t heads, std::int64_t width) {
  return msa::make_tensor(data.data(), msa::DType::F32, {kTokens, heads, width});
}

// Some of the rows of all keys.
msa::Tensor rows(msa::Tensor t, std::int64_t first, std::int64_t count) {
  t.data = static_cast<char*>(t.data) + msa::size_in_bytes(t.dtype, first * t.stride[0]);
  t.shape[0] = count;
  return t;
}

// What a rank says of its shard: a request whose keys begin at key_offset of a longer sequence.
struct Shard {
  std::int32_t first, keys;
  std::int32_t cu_seqlens_q[2]{0, kTokens}, position = 0, total = kTokens;

  msa::Batch batch() const {
    const auto one = [](const std::int32_t& x) {
      return msa::make_tensor(&x, msa::DType::I32, {1});
    };
    return {.cu_seqlens_q = msa::make_tensor(cu_seqlens_q, msa::DType::I32, {2}),
            .seqlens_k = one(keys),
            .q_offsets = one(position),
            .key_offsets = one(first),
            .total_seqlens_k = one(total)};
  }
};

}  // namespace

int main() {
  std::vector<float> q = random_vectors(kTokens * kHeadsQ * kDim, 1);
  std::vector<float> k = random_vectors(kTokens * kHeadsKv * kDim, 2);
  std::vector<float> v = random_vectors(kTokens * kHeadsKv * kDim, 3);
  std::vector<float> index_q = random_vectors(kTokens * kHeadsKv * kDim, 4);
  std::vector<float> index_k = random_vectors(kTokens * kDim, 5);
  const msa::Tensor all_k = floats(k, kHeadsKv, kDim), all_v = floats(v, kHeadsKv, kDim);
  const msa::Tensor all_index_k = floats(index_k, 1, kDim);
  const msa::Settings settings{.block_size = kBlock, .topk = kTopk};

  constexpr std::int64_t kIds = kTokens * kHeadsKv * kTopk, kOuts = kTokens * kHeadsQ * kDim;
  std::vector<std::int32_t> part_ids(kShards * kIds), ids(kIds), whole_ids(kIds);
  std::vector<float> part_scores(kShards * kIds);
  std::vector<float> part_outs(kShards * kOuts), part_lses(kShards * kTokens * kHeadsQ);
  std::vector<float> out(kOuts), whole(kOuts);
  const auto id_view = [](const std::vector<std::int32_t>& x) {
    return msa::make_tensor(x.data(), msa::DType::I32, {kTokens, kHeadsKv, kTopk});
  };
  const msa::Parts stacked_ids =
      msa::make_tensor(part_ids.data(), msa::DType::I32, {kShards, kTokens, kHeadsKv, kTopk});
  const msa::Parts stacked_scores =
      msa::make_tensor(part_scores.data(), msa::DType::F32, {kShards, kTokens, kHeadsKv, kTopk});
  const msa::Parts stacked_outs =
      msa::make_tensor(part_outs.data(), msa::DType::F32, {kShards, kTokens, kHeadsQ, kDim});
  const msa::Parts stacked_lses =
      msa::make_tensor(part_lses.data(), msa::DType::F32, {kShards, kTokens, kHeadsQ});

  // 1. Each rank: the best blocks of its own keys, with their scores. Ids are global.
  for (std::int64_t r = 0; r < kShards; ++r) {
    const Shard shard{kCuts[r], kCuts[r + 1] - kCuts[r]};
    msa::select_blocks({.index_q = floats(index_q, kHeadsKv, kDim),
                        .index_k = rows(all_index_k, shard.first, shard.keys),
                        .batch = shard.batch(),
                        .block_ids = stacked_ids[r],
                        .chosen_scores = stacked_scores[r]},
                       settings);
  }
  // 2. All-gather the candidates (here they already lie side by side); every rank joins them.
  msa::merge_selections({.block_ids_parts = stacked_ids,
                         .chosen_scores_parts = stacked_scores,
                         .block_ids = id_view(ids)});
  // 3. Each rank: attention over those of the chosen blocks that it holds.
  for (std::int64_t r = 0; r < kShards; ++r) {
    const Shard shard{kCuts[r], kCuts[r + 1] - kCuts[r]};
    msa::sparse_attention({.q = floats(q, kHeadsQ, kDim),
                           .k = rows(all_k, shard.first, shard.keys),
                           .v = rows(all_v, shard.first, shard.keys),
                           .block_ids = id_view(ids),
                           .batch = shard.batch(),
                           .out = stacked_outs[r],
                           .lse = stacked_lses[r]},
                          settings);
  }
  // 4. Gather outputs and lse; join them, in the order given.
  msa::merge_states(
      {.outs = stacked_outs, .lses = stacked_lses, .out = floats(out, kHeadsQ, kDim)});

  msa::msa_attention({.q = floats(q, kHeadsQ, kDim),
                      .k = all_k,
                      .v = all_v,
                      .index_q = floats(index_q, kHeadsKv, kDim),
                      .index_k = all_index_k,
                      .out = floats(whole, kHeadsQ, kDim),
                      .block_ids = id_view(whole_ids)},
                     settings);
  std::int64_t other_ids = 0;
  for (std::int64_t i = 0; i < kIds; ++i) other_ids += ids[i] != whole_ids[i];
  std::int64_t apart = 0;
  for (std::int64_t i = 0; i < kOuts; ++i) apart += !(std::abs(out[i] - whole[i]) <= 1e-5f);
  std::printf("%d tokens in %d shards: %d of %d ids and %d of %d outputs differ\n", kTokens,
              static_cast<int>(kShards), static_cast<int>(other_ids), static_cast<int>(kIds),
              static_cast<int>(apart), static_cast<int>(kOuts));
  const bool good = other_ids == 0 && apart == 0;
  std::puts(good ? "ok" : "FAILED");
  return good ? 0 : 1;
}
