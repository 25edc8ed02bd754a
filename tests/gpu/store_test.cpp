// SPDX-License-Identifier: MIT
// Storing new keys where what runs first must not matter: rows of two requests in one place, pages
// that requests share, a bad page beside good ones; and every code that a number may become. Needs
// a GPU: ./test.sh --gpu runs it.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "gpu_case.h"
#include "testkit/number.h"
#include "testkit/requests.h"

namespace msa {
namespace {

using gpu::GpuCase;

/// The pages of all requests become a few, at random columns.
void share_pages(const GpuCase& call, int pages, unsigned seed) {
  const Tensor& table = call.host().batch.page_table;
  std::mt19937 random(seed);
  for (std::int64_t b = 0; b < table.shape[0]; ++b) {
    for (std::int64_t column = 0; column < table.shape[1]; ++column) {
      const auto page = static_cast<std::int32_t>(random() % static_cast<unsigned>(pages));
      std::memcpy(testkit::address(table, b, column), &page, sizeof(page));
    }
  }
}

TEST(Store, TheLastOfTwoRowsStays) {
  for (const char* line :
       {"op=quantize kv=e4m3/token heads=2/2 dim=32 page=16 lens=20:90,1:200,0:5,3:3,90:100,40:41",
        "op=quantize kv=q8kv4 heads=2/2 dim=32 page=48 lens=20:90,1:200,0:5,3:3,90:100,40:41",
        "op=quantize kv=auto heads=2/2 dim=64 page=16 lens=200x1:90,300:300",
        "op=quantize_index heads=2/2 index_dim=32 page=16 lens=20:90,1:200,0:5,3:3,90:100,40:41",
        "op=quantize_index heads=2/2 index_dim=32 page=16 lens=200x1:90,300:300,1:17"}) {
    for (const int pages : {1, 3, 6}) {
      GpuCase call(line);
      share_pages(call, pages, 7);
      call.refill();
      call.run();
      EXPECT_FALSE(call.fault().has_value()) << line;
      call.fetch();
      EXPECT_EQ(call.difference(), "") << line << ", " << pages << " pages";
    }
  }
}

TEST(Store, ABadPageKeepsItsRowsAndNoOthers) {
  for (const char* line : {"op=quantize kv=e4m3/token heads=2/2 dim=32 page=16 lens=20:90,40:200",
                           "op=quantize_index heads=2/2 index_dim=32 page=16 lens=20:90,40:200"}) {
    GpuCase good(line), bad(line);
    const Tensor& table = bad.host().batch.page_table;
    const std::int64_t column = 199 / 16;
    const std::int32_t page = testkit::int_at(table, 1, column);
    const std::int32_t none = -7;
    std::memcpy(testkit::address(table, 1, column), &none, sizeof(none));
    bad.refill();
    std::vector<Tensor> outputs;
    for (const Tensor& t : {bad.host().k_cache, bad.host().v_cache, bad.host().k_scale_cache,
                            bad.host().index_k8_out, bad.host().index_k8_bounds_out}) {
      if (t) outputs.push_back(t);
    }
    std::vector<std::vector<std::byte>> before;
    for (const Tensor& t : outputs) before.push_back(gpu::bits(t, page, 1));
    bad.run();
    const std::optional<Fault> fault = bad.fault();
    ASSERT_TRUE(fault.has_value()) << line;
    EXPECT_EQ(fault->request, 1) << line;
    bad.fetch();
    for (std::size_t n = 0; n < outputs.size(); ++n)
      EXPECT_TRUE(gpu::bits(outputs[n], page, 1) == before[n]) << line << ", output " << n;
    good.run();
    good.fetch();
    const Tensor& got = bad.host().k_cache ? bad.host().k_cache : bad.host().index_k8_out;
    const Tensor& want = good.host().k_cache ? good.host().k_cache : good.host().index_k8_out;
    for (std::int64_t other = 0; other < got.shape[0]; ++other) {
      if (other == page) continue;
      EXPECT_TRUE(gpu::bits(got, other, 1) == gpu::bits(want, other, 1)) << line << ", " << other;
    }
  }
}

// Every code of e4m3 and e2m1, the numbers half between two of them and their neighbours, and what
// no code is for.
TEST(Store, EveryCode) {
  const float inf = std::numeric_limits<float>::infinity();
  std::vector<float> numbers{0.0f,
                             -0.0f,
                             inf,
                             -inf,
                             std::nanf(""),
                             -std::nanf(""),
                             std::numeric_limits<float>::denorm_min(),
                             1e30f,
                             3.4e38f};
  for (int step = 0; step < 16 * 19; ++step) {
    const float code = std::ldexp(1.0f + static_cast<float>(step % 16) / 16, step / 16 - 10);
    for (const float x : {code, std::nextafter(code, 0.0f), std::nextafter(code, inf)}) {
      numbers.push_back(x);
      numbers.push_back(-x);
    }
  }
  for (const char* kv : {"e4m3", "e4m3/tensor", "e4m3/token", "nvfp4", "nvfp4/tensor", "q8kv4"}) {
    GpuCase call(std::string("op=quantize dtype=f32 heads=1/1 dim=64 lens=64:0 kv=") + kv);
    const Tensor& rows = call.host().k_rows;
    for (std::size_t n = 0; n < numbers.size(); ++n) {
      const auto at = static_cast<std::int64_t>(n);
      std::memcpy(testkit::address(rows, at / 64, 0, at % 64), &numbers[n], sizeof(float));
    }
    ASSERT_LE(numbers.size(), 64U * 64U);
    call.refill();
    call.run();
    call.fetch();
    EXPECT_EQ(call.difference(), "") << kv;
  }
}

}  // namespace
}  // namespace msa
