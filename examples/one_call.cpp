// SPDX-License-Identifier: MIT
// The one-call form: two requests of different length in one batch, whole MSA over both, and what
// an error looks like. A needle is planted in one block of the longer request; the last query must
// find it.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <random>
#include <vector>

#include "msa/msa.h"

namespace {

constexpr std::int64_t kHeadsQ = 8, kHeadsKv = 2, kDim = 64, kBlock = 128, kTopk = 8;
constexpr std::int32_t kShort = 500, kLong = 6000, kNeedle = 2600;  // tokens, tokens, a key

std::vector<float> random_vectors(std::int64_t count, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> data(count);
  for (float& x : data) x = normal(random);
  return data;
}

// A view: the library never owns or copies a caller's memory.
msa::Tensor view(std::vector<float>& data, std::int64_t tokens, std::int64_t heads) {
  return msa::make_tensor(data.data(), msa::DType::F32, {tokens, heads, kDim});
}

msa::Tensor view(std::vector<std::int32_t>& data) {
  return msa::make_tensor(data.data(), msa::DType::I32, {static_cast<std::int64_t>(data.size())});
}

bool says_what_is_wrong(msa::MsaAttentionArgs args) {
  args.k.shape[1] = 3;  // 8 query heads cannot share 3 key heads
  try {
    msa::msa_attention(args);
  } catch (const msa::Error& error) {
    std::printf("refused as it should be: %s\n", error.what());
    return error.code() == msa::ErrorCode::InvalidArgument;
  }
  return false;
}

}  // namespace

int main() {
  // Tokens of all requests lie one after the other; the lengths say whose they are.
  constexpr std::int64_t kTokens = kShort + kLong;
  std::vector<std::int32_t> cu_seqlens_q{0, kShort, kTokens}, seqlens_k{kShort, kLong};
  std::vector<float> q = random_vectors(kTokens * kHeadsQ * kDim, 1);
  std::vector<float> k = random_vectors(kTokens * kHeadsKv * kDim, 2);
  std::vector<float> v = random_vectors(kTokens * kHeadsKv * kDim, 3);
  std::vector<float> index_q = random_vectors(kTokens * kHeadsKv * kDim, 4);
  std::vector<float> index_k = random_vectors(kTokens * kDim, 5);

  // The needle: one index key of the longer request that the last query's index vector points at.
  for (std::int64_t d = 0; d < kDim; ++d) {
    for (std::int64_t h = 0; h < kHeadsKv; ++h) {
      index_q[((kTokens - 1) * kHeadsKv + h) * kDim + d] = index_k[(kShort + kNeedle) * kDim + d];
    }
  }

  std::vector<float> out(kTokens * kHeadsQ * kDim);
  std::vector<std::int32_t> block_ids(kTokens * kHeadsKv * kTopk);
  const msa::MsaAttentionArgs args{
      .q = view(q, kTokens, kHeadsQ),
      .k = view(k, kTokens, kHeadsKv),
      .v = view(v, kTokens, kHeadsKv),
      .index_q = view(index_q, kTokens, kHeadsKv),
      .index_k = view(index_k, kTokens, 1),
      .batch = {.cu_seqlens_q = view(cu_seqlens_q), .seqlens_k = view(seqlens_k)},
      .out = view(out, kTokens, kHeadsQ),
      .block_ids = msa::make_tensor(block_ids.data(), msa::DType::I32, {kTokens, kHeadsKv, kTopk})};
  msa::msa_attention(args, {.block_size = kBlock});

  const std::int32_t* last = &block_ids[(kTokens - 1) * kHeadsKv * kTopk];
  bool found = false;
  std::printf("the last token reads blocks");
  for (std::int64_t i = 0; i < kTopk; ++i) {
    std::printf(" %d", last[i]);
    found = found || last[i] == kNeedle / kBlock;
  }
  std::printf("; the needle lies in block %d\n", static_cast<int>(kNeedle / kBlock));

  // The short request has 4 blocks, fewer than 8: there sparse and dense attention are the same.
  std::vector<float> dense(out.size());
  msa::dense_attention(
      {.q = args.q, .k = args.k, .v = args.v, .batch = args.batch, .out = view(dense, kTokens, 8)});
  std::int64_t apart = 0;
  for (std::int64_t i = 0; i < kShort * kHeadsQ * kDim; ++i) {
    apart += !(std::abs(out[i] - dense[i]) <= 1e-5f);  // counts NaN, too
  }
  std::printf("short request, sparse against dense: %d values differ\n", static_cast<int>(apart));

  const bool good = found && apart == 0 && says_what_is_wrong(args);
  std::puts(good ? "ok" : "FAILED");
  return good ? 0 : 1;
}
