// SPDX-License-Identifier: MIT
// quantize_kv: what it refuses, what it reads off the tensors, and that an append touches nothing
// else. The codes themselves: tests/cases and tests/python/quantize_test.py.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "testkit/generate.h"
#include "testkit/requests.h"
#include "tests/core/bad_input.h"

namespace msa::test {
namespace {

using testkit::Data;
using testkit::Operands;

constexpr BadInput kQuantizeKv{"op=quantize heads=2/2 dim=32 "};

TEST(QuantizeKv, ScalesAreGivenOrWorkedOut) {
  const std::vector<float> one(1, 1.0f);
  const Tensor scale = make_tensor(one.data(), DType::F32, {1});
  kQuantizeKv.refused("kv=e4m3/tensor lens=5:0", "k_scale", "a tensor of f32",
                      [](Operands& o) { o.k_scale = {}; });
  kQuantizeKv.refused("kv=e4m3/head lens=5:0", "v_scale", "a tensor of f32",
                      [](Operands& o) { o.v_scale = {}; });
  kQuantizeKv.refused("kv=e4m3/token lens=5:0", "k_scale", "as the call works the scales out",
                      [&](Operands& o) { o.k_scale = scale; });
  kQuantizeKv.refused("kv=q8kv4 lens=5:0", "v_scale", "as the call works the scales out",
                      [&](Operands& o) { o.v_scale = scale; });
  kQuantizeKv.refused("kv=e4m3/token lens=5:0", "k_scale_cache", "a tensor of f32",
                      [](Operands& o) { o.k_scale_cache = {}; });
  kQuantizeKv.refused("kv=nvfp4 lens=5:0", "v_scale_cache", "a tensor of e4m3",
                      [](Operands& o) { o.v_scale_cache = {}; });
  kQuantizeKv.refused("kv=e4m3/tensor lens=5:0", "k_scale_cache", "none",
                      [](Operands& o) { o.k_scale_cache = o.k_cache; });
  kQuantizeKv.refused("kv=nvfp4/tensor lens=5:0", "k_global_scale", "a tensor of f32",
                      [](Operands& o) { o.k_global_scale = {}; });
  kQuantizeKv.refused("kv=nvfp4 lens=5:0", "k_global_scale", "no scale of scales",
                      [&](Operands& o) { o.k_global_scale = scale; });
}

TEST(QuantizeKv, ShapesAndBatches) {
  const std::vector<std::int32_t> lengths{5, 5};
  kQuantizeKv.refused("kv=e4m3 lens=5:0", "k_cache", "5",
                      [](Operands& o) { ++o.k_cache.shape[0]; });
  kQuantizeKv.refused("kv=e4m3 lens=5:0", "v_rows", "2", [](Operands& o) { --o.v_rows.shape[1]; });
  kQuantizeKv.refused(
      "kv=e4m3 lens=5:0", "batch.seqlens_k", "rows without a batch",
      [&](Operands& o) { o.batch.seqlens_k = make_tensor(lengths.data(), DType::I32, {1}); });
  kQuantizeKv.refused("kv=e4m3 page=16 lens=5:20", "batch.page_table", "a tensor of i32",
                      [](Operands& o) { o.batch.page_table = {}; });
  kQuantizeKv.refused("kv=e4m3 page=16 lens=5:20", "batch.seqlens_k", "a tensor of i32",
                      [](Operands& o) { o.batch.seqlens_k = {}; });
  kQuantizeKv.refused("kv=e4m3/page page=16 lens=5:20", "k_cache", "dimension 0",
                      [](Operands& o) { --o.k_cache.shape[0]; });
  kQuantizeKv.refused("kv=e4m3 page=16 lens=5:20", "v_cache", "memory apart",
                      [](Operands& o) { o.v_cache = o.k_cache; });
  const std::vector<std::int32_t> short_of_one{4};
  kQuantizeKv.refused("kv=e4m3 page=16 lens=5:20", "batch.seqlens_k", "5 to 20", [&](Operands& o) {
    o.batch.seqlens_k = make_tensor(short_of_one.data(), DType::I32, {1});
  });
}

TEST(QuantizeKv, TheFormatIsReadOffTheTensors) {
  for (const char* kv : {"auto", "e4m3", "e4m3/tensor", "e4m3/head", "e4m3/token", "nvfp4",
                         "nvfp4/tensor", "q8kv4", "e4m3/page"}) {
    for (const char* page : {"0", "16"}) {
      if (kv == std::string("e4m3/page") && page == std::string("0")) continue;
      Data data = kQuantizeKv.data_of(std::string("lens=5:20 kv=") + kv + " page=" + page);
      const Operands operands = data.prepare();
      const Problem p = testkit::problem_of(Op::QuantizeKv, operands, data.settings());
      EXPECT_EQ(p.attention.kv, data.problem().attention.kv) << kv;
      EXPECT_EQ(p.bounds.page_size, data.problem().bounds.page_size) << kv;
      testkit::run_once(Op::QuantizeKv, operands, data.settings());
      for (const Field& field : fields_of(Op::QuantizeKv)) {
        if (field.is_input() || !field.in(operands) || p.bounds.page_size != 0) continue;
        const Tensor made = output_of(p, operands, field);
        EXPECT_EQ(made.shape, field.in(operands).shape) << field.name;
        EXPECT_EQ(made.dtype, field.in(operands).dtype) << field.name;
      }
    }
  }
}

// Of rows that meet in one place the last one stays, whatever the number of threads.
TEST(QuantizeKv, TheLastOfTwoRowsStays) {
  for (const char* backend : kBackends) {
    Data data = kQuantizeKv.data_of("kv=e4m3/token page=16 lens=3:10,3:10");
    const Operands operands = data.prepare();
    const Tensor& table = operands.batch.page_table;
    const std::int32_t page = testkit::int_at(table, 0, 0);
    *reinterpret_cast<std::int32_t*>(testkit::address(table, 1, 0)) = page;
    run_with(data, operands, backend);
    Data alone = kQuantizeKv.data_of("kv=e4m3/token lens=6:0");
    const Operands rows = alone.prepare();
    run_with(alone, rows, backend);
    for (std::int64_t i = 0; i < 3; ++i) {
      for (std::int64_t d = 0; d < 32; ++d) {
        EXPECT_EQ(*testkit::address(operands.k_cache, page, 7 + i, 1, d),
                  *testkit::address(rows.k_cache, 3 + i, 1, d));
      }
    }
  }
}

}  // namespace
}  // namespace msa::test
