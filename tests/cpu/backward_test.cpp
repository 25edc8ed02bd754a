// SPDX-License-Identifier: MIT
// Backward passes of the CPU: what must hold between two calls, bit for bit, on every level of this
// machine. Against the oracle they are held by cases (tests/cases).
#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "testkit/generate.h"
#include "testkit/number.h"
#include "testkit/requests.h"
#include "testkit/verify.h"
#include "tests/cpu/gradients.h"

namespace msa::test {
namespace {

using testkit::address;
using testkit::Case;
using testkit::Data;
using testkit::float_at;
using testkit::Operands;

struct Gradients3 {
  std::vector<float> dq, dk, dv;
};

void expect_same_gradients(const Gradients3& a, const Gradients3& b) {
  EXPECT_TRUE(same_bits(a.dq, b.dq)) << "dq";
  EXPECT_TRUE(same_bits(a.dk, b.dk)) << "dk";
  EXPECT_TRUE(same_bits(a.dv, b.dv)) << "dv";
}

Gradients3 gradients_in(const Operands& o) {
  return {numbers_of(o.dq), numbers_of(o.dk), numbers_of(o.dv)};
}

Gradients3 gradients_of(const std::string& line, const Options& options) {
  Data data(testkit::parse_case(line));
  const Operands o = data.prepare();
  run_poisoned(data.problem(), o, options);
  EXPECT_EQ(data.damage(), "");
  return gradients_in(o);
}

const std::string kSparseBackward =
    "op=sparse_backward heads=6/2 dim=48 value_dim=32 block=32 topk=3 lens=70:200,9:33 ";

TEST(Backward, AnyNumberOfThreadsGivesTheSameBits) {
  for (const std::string& isa : levels()) {
    for (const std::string& line :
         {kSparseBackward, std::string("op=dense_backward heads=4/4 dim=32 "
                                       "lens=90:300,40:40 dlse=1")}) {
      expect_same_gradients(gradients_of(line, on(isa, 1)), gradients_of(line, on(isa, 3)));
    }
  }
}

// Products of two bfloats a weight leave their trace in gradients of bf16, in no other's.
TEST(Backward, TilesAreInForceWhereTheyServe) {
  const std::vector<std::string> here = levels();
  for (const std::string& isa : here) {
    const std::string plain = isa == "amx" ? "avx512" : isa == "amx_emulated" ? "scalar" : "";
    if (plain.empty() || std::ranges::find(here, plain) == here.end()) continue;
    for (const std::string dtype : {"bf16", "f16"}) {
      Problem problem =
          testkit::problem_of(testkit::parse_case(kSparseBackward + "dtype=" + dtype));
      problem.options = on(isa);
      const bool tiles = dtype == "bf16";
      EXPECT_NE(make_plan(problem).to_string().find(tiles ? "products bf16" : "products f32"),
                std::string::npos)
          << isa << " " << dtype;
      if (isa != "amx") continue;
      const std::string line = kSparseBackward + "grad_dtype=f32 dtype=" + dtype;
      const Gradients3 own = gradients_of(line, on(isa)), others = gradients_of(line, on(plain));
      EXPECT_EQ(same_bits(own.dq, others.dq), !tiles) << dtype;
      EXPECT_EQ(same_bits(own.dk, others.dk), !tiles) << dtype;
      EXPECT_EQ(same_bits(own.dv, others.dv), !tiles) << dtype;
    }
  }
}

TEST(Backward, AnOutputAloneIsThatOfAll) {
  for (const std::string& isa : levels()) {
    const Gradients3 all = gradients_of(kSparseBackward, on(isa));
    EXPECT_TRUE(same_bits(gradients_of(kSparseBackward + "grads=q", on(isa)).dq, all.dq));
    EXPECT_TRUE(same_bits(gradients_of(kSparseBackward + "grads=k", on(isa)).dk, all.dk));
    EXPECT_TRUE(same_bits(gradients_of(kSparseBackward + "grads=v", on(isa)).dv, all.dv));
  }
}

TEST(Backward, TheOrderOfListsChangesNothing) {
  for (const std::string& isa : levels()) {
    expect_same_gradients(gradients_of(kSparseBackward, on(isa)),
                          gradients_of(kSparseBackward + "order=descending", on(isa)));
  }
}

TEST(Backward, EveryBlockListedIsDense) {
  const std::string rest = " heads=6/2 dim=48 block=32 lens=70:90,9:33";
  for (const std::string& isa : levels()) {
    expect_same_gradients(gradients_of("op=sparse_backward topk=3" + rest, on(isa)),
                          gradients_of("op=dense_backward" + rest, on(isa)));
  }
}

// Padding rows and gaps aside, a request's gradients do not know of its neighbours.
TEST(Backward, ARequestAloneHasTheBitsOfItsBatch) {
  for (const std::string& isa : levels()) {
    Data data(testkit::parse_case(kSparseBackward));
    const Operands o = data.prepare();
    run_poisoned(data.problem(), o, on(isa));
    const Gradients3 batch = gradients_in(o);
    std::vector<float> dq, dk, dv;
    for (const testkit::Request& r : testkit::requests_of(data.problem(), o.batch)) {
      Operands one = data.prepare();
      const auto cut = [](Tensor& t, std::int64_t first, std::int64_t count) {
        t.data = address(t, first);
        t.shape[0] = count;
      };
      for (Tensor* t : {&one.q, &one.out_in, &one.lse_in, &one.dout, &one.block_ids_in, &one.dq})
        cut(*t, r.q_begin, r.seqlen_q);
      for (Tensor* t : {&one.k, &one.v, &one.dk, &one.dv}) cut(*t, r.k_begin, r.seqlen_k);
      one.batch = {};
      run_poisoned(data.problem(), one, on(isa));
      const Gradients3 own = gradients_in(one);
      dq.insert(dq.end(), own.dq.begin(), own.dq.end());
      dk.insert(dk.end(), own.dk.begin(), own.dk.end());
      dv.insert(dv.end(), own.dv.begin(), own.dv.end());
    }
    const auto front = [](std::vector<float> all, std::size_t count) {
      all.resize(std::min(count, all.size()));
      return all;
    };
    EXPECT_TRUE(same_bits(dq, front(batch.dq, dq.size())));
    EXPECT_TRUE(same_bits(dk, front(batch.dk, dk.size())));
    EXPECT_TRUE(same_bits(dv, front(batch.dv, dv.size())));
  }
}

TEST(Backward, TwiceTheGradientGivesTwiceTheGradients) {
  for (const std::string& isa : levels()) {
    const std::string line = kSparseBackward + "dtype=f32 dlse=1";
    const Gradients3 once = gradients_of(line, on(isa));
    Data data(testkit::parse_case(line));
    const Operands o = data.prepare();
    for (const Tensor& t : {o.dout, o.dlse}) {
      for (std::int64_t i = 0; i < t.shape[0]; ++i) {
        for (std::int64_t h = 0; h < t.shape[1]; ++h) {
          for (std::int64_t d = 0; d < (t.rank > 2 ? t.shape[2] : 1); ++d)
            *reinterpret_cast<float*>(address(t, i, h, d)) *= 2;
        }
      }
    }
    run_poisoned(data.problem(), o, on(isa));
    Gradients3 twice = gradients_in(o);
    for (auto* all : {&twice.dq, &twice.dk, &twice.dv}) {
      for (float& x : *all) x /= 2;
    }
    expect_same_gradients(once, twice);
  }
}

// What a gradient is added to is added once, in f32.
TEST(Backward, AccumulatingIsAddingAfterwards) {
  for (const std::string& isa : levels()) {
    const Gradients3 alone = gradients_of(kSparseBackward + "grad_dtype=f32", on(isa));
    Data data(testkit::parse_case(kSparseBackward + "grad_dtype=f32 accumulate=1"));
    const Operands o = data.prepare();
    const std::vector<float> before = numbers_of(o.dk);
    run_poisoned(data.problem(), o, on(isa));
    std::vector<float> expected = alone.dk;
    for (std::size_t n = 0; n < expected.size(); ++n) expected[n] += before[n];
    EXPECT_TRUE(same_bits(numbers_of(o.dk), expected));
    EXPECT_TRUE(same_bits(numbers_of(o.dq), alone.dq)) << "dq is written";
  }
}

// Shards of the keys, each with the out and lse of all: their parts of dq add up, and each has the
// gradients of its own keys.
TEST(Backward, KeyShardsAddUp) {
  const std::string line =
      "op=dense_backward dtype=f32 heads=4/2 dim=32 block=16 lens=40:100 dlse=1";
  for (const std::string& isa : levels()) {
    const Gradients3 whole = gradients_of(line, on(isa));
    Data data(testkit::parse_case(line));
    Gradients3 sums{std::vector<float>(whole.dq.size(), 0.0f), {}, {}};
    for (const auto& [first, count] : {std::pair{0, 48}, std::pair{48, 52}}) {
      Operands o = data.prepare();
      for (Tensor* t : {&o.k, &o.v, &o.dk, &o.dv}) {
        t->data = address(*t, first);
        t->shape[0] = count;
      }
      const std::vector<std::int32_t> lengths{count}, offsets{60}, keys{first}, totals{100};
      const auto of = [](const std::vector<std::int32_t>& x) {
        return make_tensor(x.data(), DType::I32, {1});
      };
      o.batch.seqlens_k = of(lengths);
      o.batch.cu_seqlens_k = {};
      o.batch.q_offsets = of(offsets);
      o.batch.key_offsets = of(keys);
      o.batch.total_seqlens_k = of(totals);
      run_poisoned(data.problem(), o, on(isa));
      const Gradients3 part = gradients_in(o);
      for (std::size_t n = 0; n < part.dq.size(); ++n) sums.dq[n] += part.dq[n];
      sums.dk.insert(sums.dk.end(), part.dk.begin(), part.dk.end());
      sums.dv.insert(sums.dv.end(), part.dv.begin(), part.dv.end());
    }
    for (std::size_t n = 0; n < whole.dq.size(); ++n)
      EXPECT_NEAR(sums.dq[n], whole.dq[n], 1e-5) << n;
    EXPECT_TRUE(same_bits(std::vector<float>(sums.dk.begin(), sums.dk.begin() + 48 * 2 * 32),
                          std::vector<float>(whole.dk.begin(), whole.dk.begin() + 48 * 2 * 32)));
    EXPECT_TRUE(same_bits(sums.dk, whole.dk));
    EXPECT_TRUE(same_bits(sums.dv, whole.dv));
  }
}

// Rows of the tensor behind the last request's keys receive nothing, and that is written.
TEST(Backward, RowsBehindTheLastKeyAreZero) {
  for (const std::string& isa : levels()) {
    Data data(
        testkit::parse_case("op=dense_backward dtype=f32 heads=2/1 dim=16 block=16 lens=4:20"));
    Operands o = data.prepare();
    const std::vector<std::int32_t> fewer{15};
    o.batch.seqlens_k = make_tensor(fewer.data(), DType::I32, {1});
    o.batch.cu_seqlens_k = {};
    run_poisoned(data.problem(), o, on(isa));
    for (const Tensor& t : {o.dk, o.dv}) {
      for (std::int64_t row = 15; row < 20; ++row) {
        for (std::int64_t d = 0; d < 16; ++d) EXPECT_EQ(float_at(t, row, 0, d), 0.0f);
      }
    }
  }
}

// Keys are told apart by a vector that all share: dq must not see it (docs/kernels).
TEST(Backward, ACommonOffsetOfKeysChangesNoGradientOfQueries) {
  const std::string line = "op=dense_backward dtype=f32 heads=2/1 dim=64 block=16 lens=1:512:512";
  for (const std::string& isa : levels()) {
    const Gradients3 plain = gradients_of(line, on(isa));
    Data data(testkit::parse_case(line));
    const Operands o = data.prepare();
    double shift[2] = {};
    for (std::int64_t d = 0; d < 64; ++d) {
      const float offset = d % 2 == 0 ? 3.0f : -3.0f;
      for (std::int64_t key = 0; key < 512; ++key)
        *reinterpret_cast<float*>(address(o.k, key, 0, d)) += offset;
      for (std::int64_t h = 0; h < 2; ++h)
        shift[h] += double(float_at(o.q, 0, h, d)) * double(offset) / 8;
    }
    for (std::int64_t h = 0; h < 2; ++h)
      *reinterpret_cast<float*>(address(o.lse_in, 0, h)) += static_cast<float>(shift[h]);
    run_poisoned(data.problem(), o, on(isa));
    const std::vector<float> shifted = numbers_of(o.dq);
    float largest = 0;
    for (const float x : plain.dq) largest = std::max(largest, std::fabs(x));
    for (std::size_t n = 0; n < shifted.size(); ++n)
      EXPECT_NEAR(shifted[n], plain.dq[n], 2e-4f * largest) << n;
  }
}

}  // namespace
}  // namespace msa::test
