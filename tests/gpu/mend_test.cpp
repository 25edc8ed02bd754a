// SPDX-License-Identifier: MIT
// What is computed again: nothing where all numbers are finite, however large; the rows of a NaN
// where there is one. Needs a GPU: ./test.sh --gpu runs it.
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "cuda/device.h"
#include "cuda/layout.h"
#include "cuda/path.h"
#include "gpu_case.h"
#include "testkit/number.h"
#include "testkit/requests.h"

namespace msa {
namespace {

using gpu::GpuCase;

// Every kernel that shares tiles between rows: dense in one piece and in splits, unions of lists,
// keys outermost, codes with one scale and with a scale a token; pages, rows without keys, padding.
const std::vector<std::string> kSharedTiles{
    "op=dense heads=16/2 lens=70:700,9:300",
    "op=dense heads=4/4 dim=64 dtype=f16 lens=300:426,70:196,9:8",
    "op=dense heads=16/2 lens=20:6000,9:3000 page=64 lse=1",
    "op=dense heads=16/2 lens=40:900:100,30:50:-10,20:0 pad_rows=9 lse=1",
    "op=sparse heads=16/2 block=64 topk=4 lens=70:700,9:300",
    "op=sparse heads=16/2 dtype=f16 block=64 topk=4 lens=40:900,9:300 page=64 partial=1",
    "op=sparse heads=16/1 topk=16 lens=600:9000",
    "op=sparse heads=32/2 topk=16 lens=20x100:5000,0:0,300:4500 page=64",
    "op=msa heads=16/2 block=64 topk=4 lens=70:3000,1:500 page=64",
    "op=dense heads=16/2 kv=e4m3/head lens=70:700,9:300 page=64",
    "op=sparse heads=16/1 topk=16 kv=e4m3/head lens=600:9000",
    "op=sparse heads=16/2 topk=4 kv=e4m3/token lens=60:1260,33:500",
};

/// Pairs of a row and a KV head that the last run computed again.
int mended(GpuCase& call) {
  const Problem& problem = call.plan().problem();
  const cuda::GpuInfo& gpu = cuda::machine().gpus[static_cast<std::size_t>(problem.device.index)];
  std::string why;
  const cuda::PathRow* row = cuda::find_path(problem, gpu, why);
  if (row == nullptr) {
    ADD_FAILURE() << why;
    return -1;
  }
  cuda::Layout layout;
  const auto path = row->plan(problem, gpu, layout);
  EXPECT_EQ(layout.bytes(), call.plan().workspace_bytes());
  const auto words = path->suspects(call.host().q.shape[0], call.workspace().data);
  if (words.empty()) {
    ADD_FAILURE() << "no kernel that shares tiles between rows";
    return -1;
  }
  std::vector<int> here(words.size());
  call.space().copy_out(here.data(), words.data(), words.size_bytes());
  int pairs = 0;
  for (std::size_t i = 1; i < here.size(); ++i)
    pairs += std::popcount(static_cast<std::uint32_t>(here[i]));
  EXPECT_EQ(here[0] != 0, pairs != 0);
  return pairs;
}

void multiply(std::byte* row, DType dtype, std::int64_t dim, float factor) {
  std::vector<float> items(static_cast<std::size_t>(dim));
  testkit::load(row, dtype, dim, items.data());
  for (float& x : items) x *= factor;
  testkit::store(items.data(), dim, dtype, row);
}

/// Of the keys that requests hold.
void multiply_keys(const GpuCase& call, const Tensor& tensor, float factor) {
  for (const auto& r : testkit::requests_of(call.plan().problem(), call.host().batch)) {
    for (std::int64_t key = 0; key < r.seqlen_k; ++key) {
      for (std::int64_t h = 0; h < call.plan().problem().attention.heads_kv; ++h) {
        multiply(testkit::key_row(tensor, call.host().batch, r, key, h), tensor.dtype,
                 tensor.shape[tensor.rank - 1], factor);
      }
    }
  }
}

void multiply_queries(const GpuCase& call, float factor) {
  const Tensor& q = call.host().q;
  for (std::int64_t row = 0; row < q.shape[0]; ++row) {
    for (std::int64_t h = 0; h < q.shape[1]; ++h)
      multiply(testkit::address(q, row, h), q.dtype, q.shape[2], factor);
  }
}

TEST(Mended, NothingIsOfFiniteData) {
  for (const std::string& rest : kSharedTiles) {
    for (const char* regime : {"random", "drift", "integers", "onehot", "low", "rising"}) {
      const std::string line = rest + " regime=" + regime;
      GpuCase call(line);
      call.run();
      call.finish();
      EXPECT_EQ(mended(call), 0) << line;
    }
  }
}

// Scores of some 2^14 times the usual, values up to 2^102, in f16 2^14, and as small.
TEST(Mended, NothingIsOfLargeOrSmallNumbers) {
  for (const std::string& line : kSharedTiles) {
    const bool f16 = line.find("dtype=f16") != std::string::npos;
    const bool codes = line.find("kv=") != std::string::npos;
    for (const int sign : {1, -1}) {
      GpuCase call(line);
      multiply_queries(call, std::ldexp(1.0f, 7 * sign));
      if (!codes) {
        multiply_keys(call, call.host().k, std::ldexp(1.0f, 7 * sign));
        multiply_keys(call, call.host().v, std::ldexp(1.0f, (f16 ? 12 : 100) * sign));
      }
      call.refill();
      call.run();
      call.finish();
      EXPECT_EQ(mended(call), 0) << line << (sign > 0 ? ", large" : ", small");
    }
  }
}

TEST(Mended, RowsThatMeetANanAre) {
  for (const std::string& rest : kSharedTiles) {
    for (const char* hostile : {"nan_v", "nan_q"}) {
      const std::string line = rest + " hostile=" + hostile;
      GpuCase call(line);
      call.run();
      call.fetch();
      EXPECT_EQ(call.difference(), "") << line;
      EXPECT_GT(mended(call), 0) << line;
    }
  }
}

}  // namespace
}  // namespace msa
