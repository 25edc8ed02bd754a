// SPDX-License-Identifier: MIT
// Two calls that must give the same bits: what an operation is made of, and a request alone and in
// a batch. Needs a GPU: ./test.sh --gpu runs it.
#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "gpu_case.h"
#include "testkit/draw.h"
#include "testkit/number.h"
#include "testkit/requests.h"
#include "testkit/support.h"

namespace msa {
namespace {

using gpu::GpuCase;
using testkit::Operands;
using testkit::Request;

// Decode and prefill, pages and ragged keys, several chunks and spans of selection, forced blocks,
// both block sizes.
const std::vector<std::string> kShapes{
    "lens=70:3000,1:500 block=64 topk=4",
    "lens=3:9000,8:90,1:1 block=64 topk=16 page=64",
    "lens=300:9000 block=128 topk=16 regime=drift page=128",
    "lens=40:900,9:300 block=64 topk=8 init=1 local=2 dtype=f16",
    "lens=2:30000 block=64 topk=33 dtype=f16",
    "lens=60:900 block=64 topk=4 causal=0 dim=64",
    "lens=50:900,30:70 block=64 topk=4 regime=ties",
    "lens=8:2000,5:70 block=64 topk=4 regime=near",
    "lens=76x8:2600,3:900 block=128 topk=16 page=128 regime=drift",  // over unions of lists
};

TEST(Bits, SelectIsTopkOfScores) {
  for (const std::string& shape : kShapes) {
    for (const char* hostile : {"", " hostile=nan_index"}) {
      const std::string rest = " heads=4/4 " + shape + hostile;
      GpuCase scores("op=scores" + rest), select("op=select chosen=1" + rest);
      scores.run();
      scores.finish();
      select.run();
      select.fetch();
      EXPECT_EQ(select.difference(), "") << rest;
      // A plan of topk takes no pages.
      std::string ragged = rest;
      if (const auto at = ragged.find(" page="); at != std::string::npos) ragged.resize(at);
      GpuCase topk("op=topk chosen=1" + ragged);
      topk.operands().scores_in = scores.operands().scores;
      topk.run();
      topk.fetch();
      EXPECT_TRUE(gpu::bits(select.host().block_ids) == gpu::bits(topk.host().block_ids)) << rest;
      EXPECT_TRUE(gpu::bits(select.host().chosen_scores) == gpu::bits(topk.host().chosen_scores))
          << rest;
    }
  }
}

TEST(Bits, MsaIsSelectThenSparse) {
  for (const std::string& shape : kShapes) {
    for (const char* heads : {" heads=16/2 ", " heads=16/1 "}) {
      const std::string rest = heads + shape;
      GpuCase whole("op=msa lse=1" + rest), select("op=select" + rest),
          sparse("op=sparse lse=1" + rest);
      whole.run();
      whole.fetch();
      EXPECT_EQ(whole.difference(), "") << rest;
      select.run();
      select.fetch();
      EXPECT_TRUE(gpu::bits(whole.host().block_ids) == gpu::bits(select.host().block_ids)) << rest;
      Operands attend = whole.operands();
      attend.index_q = attend.index_k = attend.block_ids = {};
      attend.block_ids_in = select.operands().block_ids;
      attend.out = sparse.operands().out;
      attend.lse = sparse.operands().lse;
      testkit::run(sparse.plan(), attend, sparse.workspace(), sparse.space().stream());
      sparse.fetch();
      EXPECT_TRUE(gpu::bits(whole.host().out) == gpu::bits(sparse.host().out)) << rest;
      EXPECT_TRUE(gpu::bits(whole.host().lse) == gpu::bits(sparse.host().lse)) << rest;
    }
  }
}

/// The rows of one request, of inputs and outputs, as a batch of their own; its lengths lie at
/// `numbers` in the GPU's memory.
Operands alone(const Operands& all, const Request& r, const Tensor& numbers, bool paged) {
  const auto rows = [](const Tensor& tensor, std::int64_t begin, std::int64_t count) {
    if (!tensor) return tensor;
    Tensor part = tensor;
    part.data = testkit::address(tensor, begin);
    part.shape[0] = count;
    return part;
  };
  Operands one = all;
  for (Tensor* t : {&one.q, &one.index_q, &one.block_ids_in, &one.scores_in, &one.out, &one.lse,
                    &one.block_ids, &one.chosen_scores, &one.scores}) {
    *t = rows(*t, r.q_begin, r.seqlen_q);
  }
  one.batch = {};
  one.batch.cu_seqlens_q = rows(numbers, 0, 2);
  one.batch.seqlens_k = rows(numbers, 2, 1);
  if (paged) {
    one.batch.page_table = rows(all.batch.page_table, r.index, 1);
  } else {
    for (Tensor* t : {&one.k, &one.v, &one.index_k}) *t = rows(*t, r.k_begin, r.seqlen_k);
  }
  return one;
}

/// Bits of the outputs' rows of one request, in host memory.
std::vector<std::byte> rows_of(const Operands& host, const Request& r) {
  std::vector<std::byte> kept;
  for (const Tensor* t :
       {&host.out, &host.lse, &host.scores, &host.block_ids, &host.chosen_scores}) {
    if (!*t) continue;
    const std::vector<std::byte> some = gpu::bits(*t, r.q_begin, r.seqlen_q);
    kept.insert(kept.end(), some.begin(), some.end());
  }
  return kept;
}

// The same plan, so the same bounds; with the option the batch around a request is nobody's
// business, whatever it holds.
TEST(BatchInvariance, ARequestAloneHasTheBitsOfItsBatch) {
  for (const std::string op :
       {"dense lse=1", "sparse lse=1", "msa lse=1", "scores", "select chosen=1", "topk chosen=1"}) {
    const bool is_topk = op.starts_with("topk");
    for (const std::string shape :
         {"heads=16/2 lens=70:3000,1:500,8:90,40:40", "heads=16/1 lens=100:5000,30:9000,8:90",
          "heads=16/2 lens=3:3000,1:500,8:90,0:3,2:2", "heads=16/2 page=64 lens=60:2000,9:900",
          "heads=16/2 page=64 lens=5:9000,1:900,8:64",
          "heads=16/2 lens=70:3000,1:500,8:90 hostile=nan_v",
          "heads=16/2 page=64 lens=8:3000,5:900 hostile=nan_k",
          "heads=16/2 page=64 lens=8:3000,3:500,1:900 bounds", "heads=8/1 lens=8:3000,7:500 bounds",
          "heads=16/2 lens=8:3000,5:900 hostile=nan_v bounds"}) {
      const bool paged = shape.find("page=") != std::string::npos;
      if (is_topk && paged) continue;
      std::string line = "op=" + op + " block=64 topk=4 batch_invariant=1 " + shape;
      const auto bounds = line.find(" bounds");
      const bool many = bounds != std::string::npos;  // planned, so that lists are read as unions
      if (many) line.resize(bounds);
      GpuCase call(line, 0, [&](Problem& problem) {
        if (many) problem.bounds.batch = 2000;
      });
      call.run();
      call.fetch();
      EXPECT_EQ(call.difference(), "") << line;
      const auto requests = testkit::requests_of(call.data().problem(), call.host().batch);
      std::vector<std::vector<std::byte>> expected;
      for (const Request& r : requests) expected.push_back(rows_of(call.host(), r));
      void* memory = call.space().allocate(3 * sizeof(std::int32_t));
      const Tensor numbers = make_tensor(memory, DType::I32, {3}, call.space().device());
      for (const Request& r : requests) {
        const std::array<std::int32_t, 3> lengths{0, static_cast<std::int32_t>(r.seqlen_q),
                                                  static_cast<std::int32_t>(r.seqlen_k)};
        call.refill();
        call.space().copy_in(memory, lengths.data(), sizeof(lengths));
        testkit::run(call.plan(), alone(call.operands(), r, numbers, paged), call.workspace(),
                     call.space().stream());
        EXPECT_FALSE(call.fault().has_value()) << line;
        call.fetch();
        EXPECT_TRUE(rows_of(call.host(), r) == expected[static_cast<std::size_t>(r.index)])
            << line << ", request " << r.index;
      }
      call.space().release(memory);
    }
  }
}

/// NaN in every value of request 0's first key row.
void poison_first_key(const GpuCase& call) {
  const Tensor& v = call.host().v;
  const std::vector<float> nan(static_cast<std::size_t>(v.shape[v.rank - 1]),
                               std::numeric_limits<float>::quiet_NaN());
  std::byte* first = testkit::key_row(
      v, call.host().batch, testkit::requests_of(call.plan().problem(), call.host().batch).front(),
      0, 0);
  testkit::store(nan.data(), static_cast<std::int64_t>(nan.size()), v.dtype, first);
}

// Whole MSA and decode as well as prefill, many rows at fault (all of request 0 sees its first
// block when dense, and some lists hold it), splits and none.
TEST(BatchInvariance, NanInOneRequestLeavesTheBitsOfAllOthers) {
  for (const char* line : {"op=dense heads=16/2 lens=40:20000,40:20000,5:300",
                           "op=dense heads=64/4 lens=500:900,300:900",
                           "op=sparse heads=16/1 topk=16 lens=300:2000,300:9000",
                           "op=msa heads=16/2 block=64 topk=8 lens=90:500,40:20000",
                           "op=dense heads=16/2 lens=2:9000,8:5000",
                           "op=dense heads=16/2 kv=e4m3/token lens=2:9000,8:5000",
                           "op=dense heads=16/2 kv=nvfp4 lens=2:9000,8:5000",
                           "op=sparse heads=16/1 topk=16 kv=e4m3/head lens=300:2000,300:9000",
                           "op=msa heads=16/2 block=64 topk=8 lens=8:400,8:20000 page=64"}) {
    std::vector<std::vector<std::byte>> found[2];
    for (int poisoned = 0; poisoned < 2; ++poisoned) {
      GpuCase call(std::string(line) + " batch_invariant=1 lse=1");
      if (poisoned == 1) poison_first_key(call);
      call.refill();
      call.run();
      call.fetch();
      const auto requests = testkit::requests_of(call.data().problem(), call.host().batch);
      for (const Request& r : requests) found[poisoned].push_back(rows_of(call.host(), r));
    }
    EXPECT_FALSE(found[0][0] == found[1][0]) << "the NaN reached no row: " << line;
    for (std::size_t r = 1; r < found[0].size(); ++r) {
      EXPECT_TRUE(found[0][r] == found[1][r]) << line << ", request " << r;
    }
  }
}

// At lengths that plans read a filter for; random scores, and such whose best blocks stand
// together.
TEST(Bits, AFilterChangesNone) {
  struct Line {
    std::string rest;
    double most;  // share of the visible blocks that may be scored
  };
  for (const auto& [rest, most] : std::vector<Line>{
           {"heads=4/4 lens=1:1048576 page=128", 0.02},
           {"heads=4/4 lens=1:1048576 page=128 regime=drift", 0.02},
           {"heads=4/4 lens=5x1:131072 page=64 block=64", 0.05},
           {"heads=4/4 lens=8:600000 topk=64 dtype=f16", 0.1},
           {"heads=4/4 index_heads_k=4 lens=2:131072,1:9000 regime=near", 1},
           {"heads=4/4 lens=3x1:131072 page=128 hostile=nan", 1},
           {"heads=4/4 lens=3x1:131072 page=128 hostile=nan_index", 1},
           {"heads=4/4 lens=32768:32768 page=128 regime=drift", 0.35},
           {"heads=4/4 lens=131072:131072 page=128 regime=drift", 0.12},
           {"heads=4/4 lens=6400:131072 page=128", 0.08},
           {"heads=2/2 lens=13000:524288 page=256 dtype=f16", 0.03},
           {"heads=4/4 index_heads_k=4 lens=6000:131072,700:131072 page=64 block=64 topk=64", 0.2},
           {"heads=4/4 lens=8000:65536 page=128 regime=near", 1},
           {"heads=4/4 lens=8000:65536 page=128 regime=ties", 1},
           {"heads=4/4 lens=8000:65536 page=128 hostile=nan_index", 1},
           {"rotated=1 heads=4/4 lens=1:1048576 page=128 regime=drift", 0.02},
           {"rotated=1 heads=4/4 index_heads_k=4 lens=2:131072,1:9000 dtype=f16", 0.1},
           {"rotated=1 heads=4/4 lens=32768:32768 page=128 regime=drift", 0.35},
           {"rotated=1 heads=4/4 lens=6400:131072 page=128", 0.08},
           {"rotated=1 heads=4/4 lens=8000:65536 page=64 block=64 hostile=nan_index", 1}}) {
    const std::string plain_rest = rest.starts_with("rotated=1 ") ? rest.substr(10) : rest;
    GpuCase with("op=select filter=1 chosen=1 " + rest),
        without("op=select chosen=1 " + plain_rest);
    for (GpuCase* call : {&with, &without}) {
      call->run();
      call->fetch();
      EXPECT_FALSE(call->fault().has_value()) << rest;
    }
    const Operands &found = with.host(), &expected = without.host();
    EXPECT_TRUE(gpu::bits(found.block_ids) == gpu::bits(expected.block_ids)) << rest;
    EXPECT_TRUE(gpu::bits(found.chosen_scores) == gpu::bits(expected.chosen_scores)) << rest;
    // What mma selects for many rows reads no filter, and says so.
    const bool reads =
        with.plan().isa() == "sm90" || with.plan().problem().bounds.max_seqlen_q <= 8;
    const bool plain = rest.find("hostile") == std::string::npos;
    std::int64_t scored = 0, visible = 0;
    for (const Request& r : testkit::requests_of(with.plan().problem(), found.batch)) {
      for (std::int64_t i = 0; i < r.seqlen_q; ++i) {
        for (std::int64_t h = 0; h < found.candidates.shape[1]; ++h) {
          const std::int32_t count = testkit::int_at(found.candidates, r.q_begin + i, h);
          EXPECT_TRUE(reads ? count >= (plain ? 0 : -1) : count == -1)
              << rest << ", row " << r.q_begin + i << ": " << count;
          scored += count;
          visible += r.visible_blocks(i);
        }
      }
    }
    std::printf("%s: %lld of %lld blocks scored\n", rest.c_str(), static_cast<long long>(scored),
                static_cast<long long>(visible));
    EXPECT_LE(static_cast<double>(scored), most * static_cast<double>(visible)) << rest;
  }
}

// Small ones, under bounds for which a plan reads the filter.
TEST(Bits, AFilterChangesNoneOfCasesAtRandom) {
  const auto table = testkit::SupportTable::read(std::string(MSA_TESTS_DIR) + "/support/cuda.txt");
  const auto larger = [](Problem& p) {
    const bool few = p.bounds.max_seqlen_q <= 8;
    const std::int64_t keys = few ? 700000 : 500000;
    p.bounds.max_seqlen_k = std::max<std::int64_t>(p.bounds.max_seqlen_k, keys);
    if (!few) p.bounds.total_q = std::max<std::int64_t>(p.bounds.total_q, 40000);
  };
  int ran = 0;
  bool read = false, read_by_many = false, many_read = false;
  for (std::uint64_t seed = 1; ran < 200 && seed < 8000; ++seed) {
    testkit::Choices choices(seed, 0);
    testkit::Case spec = testkit::draw_case_inside(choices, table, {.faults = false});
    const bool selects = spec.op == Op::SelectBlocks || spec.op == Op::MsaAttention;
    if (!spec.filter || !selects) continue;
    spec.precision = Precision::Exact;  // the fast one may list other blocks
    const std::string line = testkit::to_line(spec);
    spec.filter = false;
    GpuCase with(line, 0, larger), without(testkit::to_line(spec), 0, larger);
    ++ran;
    for (GpuCase* call : {&with, &without}) {
      call->run();
      call->fetch();
    }
    EXPECT_EQ(with.difference(), "") << line;
    const Operands &found = with.host(), &expected = without.host();
    for (const auto& tensor :
         {&Operands::block_ids, &Operands::chosen_scores, &Operands::out, &Operands::lse}) {
      if (found.*tensor) {
        EXPECT_TRUE(gpu::bits(found.*tensor) == gpu::bits(expected.*tensor)) << line;
      }
    }
    const std::int64_t rows = found.candidates ? found.candidates.shape[0] : 0;
    many_read |= with.plan().isa() == "sm90";
    bool& reads = with.plan().problem().bounds.max_seqlen_q <= 8 ? read : read_by_many;
    for (std::int64_t row = 0; row < rows; ++row)
      reads |= testkit::int_at(found.candidates, row, 0) > 0;  // -1: no filter was read
  }
  EXPECT_EQ(ran, 200);
  EXPECT_TRUE(read);
  EXPECT_EQ(read_by_many, many_read);
}

using RowsOf = testkit::KeyRows (*)(const Problem&, const msa::Operands&);

/// Makes keys, values or index keys of `plain` what those of `coded` stand for.
void copy_values(const GpuCase& coded, const GpuCase& plain, RowsOf rows_of) {
  const testkit::KeyRows from = rows_of(coded.plan().problem(), coded.host());
  const testkit::KeyRows to = rows_of(plain.plan().problem(), plain.host());
  const std::int64_t heads = to.keys.shape[to.keys.rank - 2], dim = to.keys.shape[to.keys.rank - 1];
  std::vector<float> values(static_cast<std::size_t>(dim));
  for (const Request& r : testkit::requests_of(plain.plan().problem(), plain.host().batch)) {
    for (std::int64_t key = 0; key < r.seqlen_k; ++key) {
      for (std::int64_t h = 0; h < heads; ++h) {
        testkit::load_key(from, r, key, h, dim, values.data());
        testkit::store(values.data(), dim, to.keys.dtype,
                       testkit::key_row(to.keys, to.batch, r, key, h));
      }
    }
  }
}

TEST(Bits, Q8KV4IsAttentionOverE4M3) {
  for (const char* line :
       {"op=dense heads=16/2 lens=1:1300,2:700,8:90", "op=sparse heads=16/1 topk=16 lens=2:9000",
        "op=sparse dtype=f16 heads=64/4 block=64 topk=4 lens=3:700,1:40 page=16",
        "op=msa heads=16/2 topk=4 lens=2:3000,8:90 page=128",
        "op=dense dtype=f16 heads=5/1 lens=1:3000 hostile=nan out=f32",
        "op=msa heads=64/4 topk=4 block=64 lens=32x1:900 page=64 hostile=nan_v",
        "op=sparse heads=16/1 topk=4 lens=1:2000,3:90 regime=wide"}) {
    GpuCase coded(std::string(line) + " kv=q8kv4 lse=1"),
        plain(std::string(line) + " kv=e4m3 lse=1");
    ASSERT_TRUE(gpu::bits(coded.host().q) == gpu::bits(plain.host().q)) << line;
    copy_values(coded, plain, testkit::key_rows);
    copy_values(coded, plain, testkit::value_rows);
    for (GpuCase* call : {&coded, &plain}) {
      call->refill();
      call->run();
      call->fetch();
    }
    EXPECT_EQ(coded.difference(), "") << line;
    EXPECT_TRUE(gpu::bits(coded.host().out) == gpu::bits(plain.host().out)) << line;
    EXPECT_TRUE(gpu::bits(coded.host().lse) == gpu::bits(plain.host().lse)) << line;
  }
}

/// Index keys as codes and as what these stand for give the same bits.
void expect_same_index(const std::string& coded_line, const std::string& plain_line) {
  SCOPED_TRACE(coded_line);
  GpuCase coded(coded_line), plain(plain_line);
  ASSERT_TRUE(gpu::bits(coded.host().index_q) == gpu::bits(plain.host().index_q));
  copy_values(coded, plain, testkit::index_rows);
  for (GpuCase* call : {&coded, &plain}) {
    call->refill();
    call->run();
    call->fetch();
  }
  EXPECT_EQ(coded.difference(), "");
  for (const auto& tensor : {&Operands::scores, &Operands::block_ids, &Operands::chosen_scores,
                             &Operands::out, &Operands::lse}) {
    if (coded.host().*tensor) {
      EXPECT_TRUE(gpu::bits(coded.host().*tensor) == gpu::bits(plain.host().*tensor));
    }
  }
}

// Of any vectors where both are widened alike; beside keys that are stored as queries are, whose
// products come in another order, where sums are exact.
TEST(Bits, FourBitIndexKeysAreTheirValues) {
  for (const char* line :
       {"op=scores heads=4/4 lens=1:1300,2:700,8:90",
        "op=select heads=4/4 topk=4 chosen=1 lens=2:9000,1:40 page=128",
        "op=scores dtype=f16 heads=4/4 index_heads_k=2 block=64 lens=3:700,1:40 page=16",
        "op=select dtype=f16 heads=16/16 index_heads=16 topk=4 chosen=1 lens=2:1500,1:90",
        "op=msa kv=q8kv4 heads=64/4 topk=4 block=64 lens=32x1:900 page=64 lse=1"}) {
    const std::string text(line);
    expect_same_index(text + " index_k=q8kv4", text + " index_k=e4m3");
    for (const char* format : {" index_k=nvfp4", " index_k=q8kv4"})
      expect_same_index(text + " regime=integers" + format, text + " regime=integers");
  }
}

TEST(Bits, AreTheSameInEveryRunAndOnEveryStream) {
  for (const char* line :
       {"op=msa heads=16/2 block=64 topk=4 lens=70:3000,9:90 lse=1",
        "op=msa heads=16/2 block=64 topk=4 lens=2:9000,1:90 page=64 lse=1",
        "op=dense heads=16/2 lens=1:30000 lse=1", "op=dense heads=16/2 lens=60:6000 hostile=nan_v",
        "op=sparse heads=16/1 topk=16 lens=600:9000 lse=1",
        "op=msa heads=16/2 topk=4 kv=e4m3/token lens=2:9000,1:90 page=64 lse=1",
        "op=msa heads=16/4 topk=16 lens=24x8:2600,3:900 page=128 regime=drift lse=1",
        "op=dense heads=16/2 kv=e4m3/head lens=60:6000 hostile=nan_v",
        "op=sparse heads=16/1 topk=16 kv=e4m3/head lens=600:9000 lse=1",
        "op=msa heads=16/2 topk=4 kv=q8kv4 lens=2:9000,1:90 page=64 lse=1",
        "op=select filter=1 heads=4/4 lens=1:300000 page=128 regime=drift chosen=1",
        "op=select filter=1 heads=4/4 lens=500:9000,90:90 page=128 slack=40000 chosen=1",
        "op=invert heads=4/4 lens=3000:9000"}) {
    GpuCase call(line);
    const auto other = testkit::cuda_memory(0);
    std::vector<std::byte> first;
    for (int n = 0; n < 40; ++n) {
      call.refill();
      call.run_on(n % 2 == 0 ? call.space().stream() : other->stream());
      other->synchronize();
      call.fetch();
      const std::vector<std::byte> found = gpu::output_bits(call.host());
      if (n == 0) first = found;
      ASSERT_TRUE(found == first) << line << ", run " << n;
    }
  }
}

}  // namespace
}  // namespace msa
