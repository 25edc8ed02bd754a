// SPDX-License-Identifier: MIT
// quantize_index: what it refuses, what it reads off the tensors, which pages it makes anew, and
// that their bounds are true. The codes themselves: tests/cases and
// tests/python/quantize_index_test.py.
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "testkit/generate.h"
#include "testkit/requests.h"
#include "tests/core/bad_input.h"

namespace msa::test {
namespace {

using testkit::address;
using testkit::Data;
using testkit::Operands;

constexpr BadInput kQuantizeIndex{"op=quantize_index heads=2/2 dim=16 index_dim=32 "};

Tensor ints(const std::vector<std::int32_t>& values) {
  return make_tensor(values.data(), DType::I32, {static_cast<std::int64_t>(values.size())});
}

TEST(QuantizeIndex, EveryFaultOfATensorIsNamed) {
  const std::string ragged = "lens=5:20,3:33", paged = "lens=5:20,3:33 page=16";
  for (const std::string& rest : {ragged, paged}) {
    kQuantizeIndex.refused(rest, "index_k", "a tensor of bf16",
                           [](Operands& o) { o.index_k = {}; });
    kQuantizeIndex.refused(rest, "index_k", "bf16",
                           [](Operands& o) { o.index_k.dtype = DType::F16; });
    kQuantizeIndex.refused(rest, "index_k", "32",
                           [](Operands& o) { --o.index_k.shape[o.index_k.rank - 1]; });
    kQuantizeIndex.refused(rest, "index_k8", "a tensor of i8",
                           [](Operands& o) { o.index_k8_out = {}; });
    kQuantizeIndex.refused(rest, "index_k8", "i8",
                           [](Operands& o) { o.index_k8_out.dtype = DType::E4M3; });
    kQuantizeIndex.refused(rest, "index_k8", "dimension 0",
                           [](Operands& o) { --o.index_k8_out.shape[0]; });
    kQuantizeIndex.refused(rest, "index_k8", "memory apart",
                           [](Operands& o) { o.index_k8_out.data = o.index_k.data; });
    kQuantizeIndex.refused(rest, "index_k8_bounds", "a tensor of f32",
                           [](Operands& o) { o.index_k8_bounds_out = {}; });
    kQuantizeIndex.refused(rest, "index_k8_bounds", "dimension 0",
                           [](Operands& o) { ++o.index_k8_bounds_out.shape[0]; });
    kQuantizeIndex.refused(rest, "index_k8_bounds", "3",
                           [](Operands& o) { --o.index_k8_bounds_out.shape[2]; });
    kQuantizeIndex.refused(rest, "index_k8_bounds", "stride",
                           [](Operands& o) { o.index_k8_bounds_out.stride[0] = -1; });
    kQuantizeIndex.refused(rest, "batch.q_offsets", "2",
                           [](Operands& o) { --o.batch.q_offsets.shape[0]; });
    const std::vector<std::int32_t> below{15, -1}, above{15, 34};
    kQuantizeIndex.refused(rest, "batch.q_offsets", "0 to 33",
                           [&](Operands& o) { o.batch.q_offsets = ints(below); });
    kQuantizeIndex.refused(rest, "batch.q_offsets", "0 to 33",
                           [&](Operands& o) { o.batch.q_offsets = ints(above); });
    const std::vector<std::int32_t> three{1, 1, 1}, longer{20, 34};
    kQuantizeIndex.refused(rest, "batch.seqlens_k", "0 to 2",
                           [&](Operands& o) { o.batch.seqlens_k = ints(three); });
    kQuantizeIndex.refused(rest, "batch.seqlens_k", "0 to 33",
                           [&](Operands& o) { o.batch.seqlens_k = ints(longer); });
  }
  kQuantizeIndex.refused(ragged, "batch.page_table", "none",
                         [](Operands& o) { o.batch.page_table = o.batch.seqlens_k; });
  kQuantizeIndex.refused(paged, "batch.page_table", "a tensor of i32",
                         [](Operands& o) { o.batch.page_table = {}; });
  kQuantizeIndex.refused(paged, "batch.page_table", "at least 3 columns",
                         [](Operands& o) { o.batch.page_table.shape[1] = 2; });
  kQuantizeIndex.refused(paged, "batch.seqlens_k", "a tensor of i32",
                         [](Operands& o) { o.batch.seqlens_k = o.batch.q_offsets = {}; });
  const std::vector<std::int32_t> starts{0, 20, 53};
  kQuantizeIndex.refused(paged, "batch.cu_seqlens_k", "none",
                         [&](Operands& o) { o.batch.cu_seqlens_k = ints(starts); });
}

// Through the struct of the operation, which holds all tensors of a batch.
TEST(QuantizeIndex, StraysOfTheBatchAreRefused) {
  const std::vector<std::int32_t> numbers{0, 5, 8};
  for (const auto& [name, member] : {std::pair{"batch.cu_seqlens_q", &Batch::cu_seqlens_q},
                                     std::pair{"batch.key_offsets", &Batch::key_offsets},
                                     std::pair{"batch.total_seqlens_k", &Batch::total_seqlens_k}}) {
    Data data = kQuantizeIndex.data_of("lens=5:20,3:33");
    const Operands o = data.prepare();
    QuantizeIndexArgs args{o.index_k, o.batch, o.index_k8_out, o.index_k8_bounds_out};
    args.batch.*member = ints(numbers);
    try {
      quantize_index(args);
      ADD_FAILURE() << "no error";
    } catch (const Error& error) {
      EXPECT_EQ(error.argument(), name) << error.what();
    }
    EXPECT_EQ(data.touched(), "");
  }
}

TEST(QuantizeIndex, TheProblemIsReadOffTheTensors) {
  for (const char* rest : {"lens=53:53", "lens=20:20,33:33 page=16", "index_dtype=f32 lens=8:9"}) {
    Data data = kQuantizeIndex.data_of(rest);
    const Operands o = data.prepare();
    Problem p = testkit::problem_of(Op::QuantizeIndex, o, data.settings());
    EXPECT_EQ(p.index.filter, (Format{DType::I8, Scale::Page}));
    EXPECT_EQ(p.index.q, data.problem().index.q);
    EXPECT_EQ(p.index.heads_k, 1);
    EXPECT_EQ(p.index.dim, 32);
    EXPECT_EQ(p.bounds.page_size, data.problem().bounds.page_size);
    EXPECT_EQ(p.bounds.max_seqlen_k, data.problem().bounds.max_seqlen_k);
    for (const Field& field : fields_of(Op::QuantizeIndex)) {
      if (field.is_input()) continue;
      if (o.batch.q_offsets) {
        EXPECT_THROW(output_of(p, o.view(), field), Error);
        continue;
      }
      const Tensor made = output_of(p, o.view(), field);
      EXPECT_EQ(made.rank, field.in(o).rank) << field.name;
      EXPECT_EQ(made.shape, field.in(o).shape) << field.name;
      EXPECT_EQ(made.dtype, field.in(o).dtype) << field.name;
    }
  }
}

TEST(QuantizeIndex, IllegalProblemsNameTheField) {
  const Problem good = kQuantizeIndex.data_of("lens=5:20 page=16").problem();
  const auto fault = [&](const std::function<void(Problem&)>& spoil) {
    Problem p = good;
    spoil(p);
    return supports(p).error;
  };
  EXPECT_EQ(fault([](Problem&) {}), "");
  const auto names = [&](const char* field, const std::function<void(Problem&)>& spoil) {
    EXPECT_EQ(fault(spoil).rfind(std::string(field) + ":", 0), 0U) << field << ": " << fault(spoil);
  };
  names("index_dtype", [](Problem& p) { p.index.q.storage = DType::E4M3; });
  names("index.q", [](Problem& p) { p.index.q.scale = Scale::Token; });
  names("index.k", [](Problem& p) { p.index.k = Format{DType::E4M3}; });
  names("index.filter", [](Problem& p) { p.index.filter.reset(); });
  names("index.filter", [](Problem& p) { p.index.filter = Format{DType::I8, Scale::Token}; });
  names("index_heads_k", [](Problem& p) { p.index.heads_k = 0; });
  names("index_dim", [](Problem& p) { p.index.dim = 0; });
  names("page_size", [](Problem& p) { p.bounds.page_size = 24; });
  names("batch", [](Problem& p) { p.bounds.batch = -1; });
  names("max_seqlen_k", [](Problem& p) { p.bounds.max_seqlen_k = -1; });
}

/// {scale, error, norm} of a page of one head.
std::array<float, 3> bounds_of(const Tensor& t, std::int64_t page) {
  std::array<float, 3> bounds{};
  for (std::int64_t i = 0; i < 3; ++i)
    bounds[static_cast<std::size_t>(i)] = testkit::float_at(t, page, 0, i);
  return bounds;
}

// A token joins its page, which is made anew as a whole; pages before it are not.
TEST(QuantizeIndex, OnlyPagesWithNewKeysAreTouched) {
  for (const char* backend : kBackends) {
    Data data = kQuantizeIndex.data_of("index_dtype=f32 lens=3:40 page=16");
    const Operands o = data.prepare();
    run_with(data, o, backend);
    Data whole = kQuantizeIndex.data_of("index_dtype=f32 lens=40:40 page=16");
    const Operands all = whole.prepare();
    run_with(whole, all, backend);
    for (std::int64_t column = 0; column < 3; ++column) {
      const std::int64_t page = testkit::int_at(o.batch.page_table, 0, column);
      const std::int64_t same = testkit::int_at(all.batch.page_table, 0, column);
      const bool made = column == 2;
      for (std::int64_t row = 0; row < 16; ++row) {
        const int equal = std::memcmp(address(o.index_k8_out, page, row, 0),
                                      address(all.index_k8_out, same, row, 0), 32);
        const int at_rest = std::to_integer<int>(*address(o.index_k8_out, page, row, 0));
        if (made && row < 8) {
          EXPECT_EQ(equal, 0) << row;
        } else {
          EXPECT_EQ(at_rest, testkit::Buffer::kSentinel) << row;
        }
      }
      EXPECT_EQ(bounds_of(o.index_k8_bounds_out, page) == bounds_of(all.index_k8_bounds_out, same),
                made);
    }
  }
}

// Of requests that share a page, all keys count, whoever comes first.
TEST(QuantizeIndex, SharedPagesCountTheKeysOfAll) {
  for (const char* backend : kBackends) {
    for (const char* lens : {"lens=5:5,9:9", "lens=9:9,5:5"}) {
      Data data = kQuantizeIndex.data_of(std::string("page=16 index_dtype=f32 ") + lens);
      const Operands o = data.prepare();
      const std::int32_t page = testkit::int_at(o.batch.page_table, 0, 0);
      std::memcpy(address(o.batch.page_table, 1, 0), &page, sizeof page);
      // The key that only the longer request sees is the largest.
      const float large = 254;
      for (std::int64_t row = 0; row < 9; ++row)
        std::memset(address(o.index_k, page, row, 0), 0, 32 * sizeof large);
      std::memcpy(address(o.index_k, page, 8, 0, 3), &large, sizeof large);
      run_with(data, o, backend);
      EXPECT_EQ(bounds_of(o.index_k8_bounds_out, page)[0], 2.0f) << lens;
      EXPECT_EQ(std::to_integer<int>(*address(o.index_k8_out, page, 8, 0, 3)), 127);
    }
  }
}

// Where a group of ragged rows holds keys of two requests, those of the one without new keys too.
TEST(QuantizeIndex, GroupsOfRowsCountTheirNeighbours) {
  for (const char* backend : kBackends) {
    Data data = kQuantizeIndex.data_of("index_dtype=f32 lens=0:20,3:20");
    const Operands o = data.prepare();
    const float large = 254, larger = 508;
    std::memcpy(address(o.index_k, 19, 0, 3), &large, sizeof large);
    std::memcpy(address(o.index_k, 15, 0, 3), &larger, sizeof larger);
    std::memcpy(address(o.batch.q_offsets, 1), "\0\0\0\0", 4);
    run_with(data, o, backend);
    EXPECT_EQ(bounds_of(o.index_k8_bounds_out, 1)[0], 2.0f);
    EXPECT_EQ(std::to_integer<int>(*address(o.index_k8_out, 19, 0, 3)), 127);
    EXPECT_EQ(std::to_integer<int>(*address(o.index_k8_out, 15, 0, 3)), testkit::Buffer::kSentinel);
  }
}

TEST(QuantizeIndex, NumbersThatAreNotFiniteSayNothing) {
  for (const char* backend : kBackends) {
    for (const float odd :
         {std::numeric_limits<float>::quiet_NaN(), -std::numeric_limits<float>::infinity()}) {
      Data data = kQuantizeIndex.data_of("index_dtype=f32 lens=20:20");
      const Operands o = data.prepare();
      std::memcpy(address(o.index_k, 3, 0, 7), &odd, sizeof odd);
      run_with(data, o, backend);
      const auto bounds = bounds_of(o.index_k8_bounds_out, 0);
      EXPECT_EQ(bounds[1], std::numeric_limits<float>::infinity());
      EXPECT_TRUE(std::isfinite(bounds[0]) && std::isfinite(bounds[2]));
      EXPECT_EQ(std::to_integer<int>(*address(o.index_k8_out, 3, 0, 7)), 0);
      EXPECT_TRUE(std::isfinite(bounds_of(o.index_k8_bounds_out, 1)[1]));
    }
  }
}

TEST(QuantizeIndex, ManyThreadsGiveTheSameBits) {
  Data data = kQuantizeIndex.data_of("lens=700:900,33:64,1:300 page=16 index_heads_k=2");
  const Operands o = data.prepare();
  const auto bytes = [&](int threads) {
    data.prepare();
    Problem problem = data.problem();
    problem.options = {.backend = "cpu", .threads = threads};
    testkit::run(make_plan(problem), o);
    std::vector<std::byte> all;
    for (const Tensor* t : {&o.index_k8_out, &o.index_k8_bounds_out}) {
      testkit::for_each_run(*t, [&](const std::byte* run, std::size_t count) {
        all.insert(all.end(), run, run + count);
      });
    }
    return all;
  };
  const auto one = bytes(1);
  EXPECT_EQ(bytes(2), one);
  EXPECT_EQ(bytes(7), one);
}

}  // namespace
}  // namespace msa::test
