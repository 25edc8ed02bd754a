// SPDX-License-Identifier: MIT
// The status word: the lowest (request, row) at fault, cleared by every run. Needs a GPU: ./test.sh
// --gpu runs it.
#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <cstring>
#include <string>
#include <vector>

#include "gpu_case.h"
#include "testkit/requests.h"

namespace msa {
namespace {

using gpu::Capture;
using gpu::GpuCase;

void write(const Tensor& tensor, std::int32_t value, std::int64_t i, std::int64_t h = 0,
           std::int64_t slot = 0) {
  std::memcpy(testkit::address(tensor, i, h, slot), &value, sizeof(value));
}

struct Place {
  std::int64_t request;
  std::int64_t row;
  std::int64_t head = 0;
};

/// Ids far out of range in these places.
void spoil_ids(const GpuCase& call, const std::vector<Place>& places) {
  const Tensor& ids = call.host().block_ids_in;
  for (const Place& place : places) {
    const std::int64_t begin = testkit::int_at(call.host().batch.cu_seqlens_q, place.request);
    write(ids, 1 << 28, begin + place.row, place.head);
  }
}

void expect_fault(const GpuCase& call, std::int64_t request, std::int64_t row, const char* what,
                  const std::string& line) {
  const std::optional<Fault> fault = call.fault();
  ASSERT_TRUE(fault.has_value()) << line;
  EXPECT_EQ(fault->request, request) << line;
  EXPECT_EQ(fault->row, row) << line;
  EXPECT_NE(fault->what.find(what), std::string::npos) << line << ": " << fault->what;
}

// Union lists, keys outermost, decode, strides of another order, the inverse: every reader of given
// ids. Three requests, the first without a fault.
const std::vector<std::string> kListed{
    "op=sparse heads=16/2 block=64 topk=4 lens=20:200,40:2000,90:900",
    "op=sparse heads=16/1 topk=16 lens=3:3,300:9000,200:5000",
    "op=sparse heads=16/2 block=64 topk=4 lens=1:200,8:2000,8:900",
    "op=sparse heads=16/2 block=64 topk=4 lens=20:200,40:2000,90:900 strides=transposed",
    "op=invert heads=16/2 block=64 topk=4 lens=20:200,40:2000,90:900",
};

TEST(Status, KeepsTheLowestRequestAndRow) {
  for (const std::string& line : kListed) {
    const std::int64_t heads = testkit::parse_case(line).heads_kv;
    for (int n = 0; n < 10; ++n) {  // whichever kernel comes first
      GpuCase call(line + " seed=" + std::to_string(n + 1));
      spoil_ids(call, {{2, 0}, {2, 7}, {1, 7, heads - 1}, {1, 5, heads - 1}, {1, 6}});
      call.refill();
      call.run();
      expect_fault(call, 1, 5, "block id", line);
    }
  }
}

TEST(Status, RanksRequestsBeforeRowsAndPages) {
  // A page is its request's fault, and so stands before the rows of its request and behind those
  // of lower requests.
  for (const char* lens : {"lens=20:200,40:900", "lens=8:200,8:900"}) {
    const std::string line = std::string("op=sparse heads=16/2 block=64 topk=16 page=64 ") + lens;
    GpuCase both(line);
    spoil_ids(both, {{0, 4}});
    write(both.host().batch.page_table, -5, 1, 0);
    both.refill();
    both.run();
    expect_fault(both, 0, 4, "block id", line);
    write(both.host().batch.page_table, -5, 0, 0);
    both.refill();
    both.run();
    expect_fault(both, 0, -1, "page id", line);
  }
}

TEST(Status, IsClearedByTheNextRun) {
  for (const std::string& line : kListed) {
    GpuCase call(line);
    const Tensor& ids = call.host().block_ids_in;
    const std::int64_t row = testkit::int_at(call.host().batch.cu_seqlens_q, 1) + 2;
    const std::int32_t was = testkit::int_at(ids, row);
    spoil_ids(call, {{1, 2}});
    call.refill();
    call.run();
    expect_fault(call, 1, 2, "block id", line);
    write(ids, was, row);
    call.refill();
    call.run();
    EXPECT_FALSE(call.fault().has_value()) << line;
    call.fetch();
    EXPECT_EQ(call.difference(), "") << line;
  }
}

TEST(Status, EveryOperationClearsIt) {
  for (const char* line : {"op=dense heads=16/2 lens=70:300",
                           "op=dense heads=16/2 lens=2:300",
                           "op=dense heads=16/2 lens=70:300 block_max=1 output=0",
                           "op=scores heads=4/4 lens=70:300",
                           "op=scores heads=4/4 lens=2:300",
                           "op=topk heads=4/4 topk=4 lens=70:3000",
                           "op=select heads=4/4 topk=4 lens=70:3000",
                           "op=select heads=4/4 topk=4 lens=2:3000",
                           "op=sparse heads=16/2 topk=4 lens=70:3000",
                           "op=sparse heads=16/2 topk=4 lens=2:3000",
                           "op=msa heads=16/2 topk=4 lens=70:3000",
                           "op=msa heads=16/2 topk=4 lens=2:3000",
                           "op=merge_states lens=9:0 parts=3",
                           "op=merge_selections topk=4 lens=9:0 parts=3",
                           "op=invert topk=4 lens=70:3000",
                           "op=quantize kv=e4m3/token lens=20:0",
                           "op=quantize kv=e4m3/token page=16 lens=20:90",
                           "op=quantize_index lens=20:90",
                           "op=dense lens=none",
                           "op=select lens=none",
                           "op=topk lens=none",
                           "op=invert lens=none",
                           "op=merge_states lens=none"}) {
    GpuCase call(line);
    call.space().fill(call.workspace().data, 0, sizeof(std::uint64_t));  // the lowest of all faults
    EXPECT_TRUE(call.fault().has_value()) << line;
    call.run();
    EXPECT_FALSE(call.fault().has_value()) << line;
  }
}

TEST(Status, OfAWorkspaceInWhichNothingRan) {
  GpuCase call("op=dense heads=16/2 lens=70:300");
  call.space().fill(call.workspace().data, 0x5a, call.workspace().bytes);
  const std::optional<Fault> fault = call.fault();
  ASSERT_TRUE(fault.has_value());
  EXPECT_NE(fault->what.find("has the plan run"), std::string::npos) << fault->what;
}

TEST(Status, FollowsReplaysOfAGraph) {
  for (const std::string& line : kListed) {
    GpuCase call(line);
    const Tensor& ids = call.host().block_ids_in;
    const std::int64_t row = testkit::int_at(call.host().batch.cu_seqlens_q, 2) + 3;
    const std::int32_t was = testkit::int_at(ids, row);
    const Capture graph(call.stream(), [&] { call.run(); });
    for (int n = 0; n < 6; ++n) {
      const bool bad = n % 2 == 0;
      write(ids, bad ? -7 : was, row);
      call.refill();
      graph.launch();
      if (bad) {
        expect_fault(call, 2, 3, "block id", line);
      } else {
        EXPECT_FALSE(call.fault().has_value()) << line;
      }
    }
  }
}

// What is spoilt counts as not visible; the rows of other requests keep their bits.
TEST(Status, AFaultInOneRequestChangesNoBitsOfAnother) {
  for (const std::string op : {"dense", "sparse", "select", "msa", "scores"}) {
    for (const char* lens : {"lens=40:900,60:2000", "lens=8:900,7:2000"}) {
      const std::string line =
          "op=" + op + " heads=16/2 block=64 topk=4 page=64 pool=80 batch_invariant=1 " + lens;
      std::vector<std::vector<std::byte>> second;
      for (const std::int32_t spoilt : {0, 1, 2, 3}) {
        GpuCase call(line);
        const Batch& batch = call.host().batch;
        const std::int64_t rows = testkit::int_at(batch.cu_seqlens_q, 1);
        if (spoilt == 1) write(batch.page_table, 1 << 30, 0, 0);
        if (spoilt == 2) write(batch.seqlens_k, -3, 0);
        if (spoilt == 3) {
          if (op == "sparse") {
            spoil_ids(call, {{0, 0}});
          } else {
            write(batch.seqlens_k, 1 << 30, 0);
          }
        }
        call.refill();
        call.run();
        EXPECT_EQ(call.fault().has_value(), spoilt != 0) << line << ", " << spoilt;
        call.fetch();
        EXPECT_TRUE(call.guarded().guards_intact());
        std::vector<std::byte>& kept = second.emplace_back();
        for (const Tensor* t :
             {&call.host().out, &call.host().lse, &call.host().scores, &call.host().block_ids}) {
          if (!*t) continue;
          const std::vector<std::byte> some = gpu::bits(*t, rows, t->shape[0] - rows);
          kept.insert(kept.end(), some.begin(), some.end());
        }
        EXPECT_TRUE(kept == second.front()) << line << ", " << spoilt;
      }
    }
  }
}

/// Bits of rows [begin, end) of every output that has rows of queries.
std::vector<std::byte> rows_of(const testkit::Operands& host, std::int64_t begin,
                               std::int64_t end) {
  std::vector<std::byte> kept;
  for (const Tensor* t : {&host.out, &host.scores, &host.block_ids}) {
    if (!*t) continue;
    const std::vector<std::byte> some = gpu::bits(*t, begin, end - begin);
    kept.insert(kept.end(), some.begin(), some.end());
  }
  return kept;
}

// Rows that a request and the padding, or two requests, both claim are open. Nothing outside the
// outputs is touched, the fault is told, and all other rows have the same bits each time.
TEST(Status, DecreasingStartsAreAFaultAndStayInside) {
  for (const std::string op : {"dense", "sparse", "select", "msa", "scores", "invert"}) {
    for (const char* lens : {"lens=60:900,40:500 pad_rows=30", "lens=8:900,5:500 pad_rows=9"}) {
      const std::string line = "op=" + op + " heads=16/2 block=64 topk=4 " + lens;
      GpuCase call(line);
      const Tensor& starts = call.host().batch.cu_seqlens_q;
      const std::int64_t rows = testkit::int_at(starts, 1);
      const std::int64_t claimed_once = rows / 2;
      write(starts, static_cast<std::int32_t>(claimed_once), 2);  // ends inside the first request
      std::vector<std::byte> first;
      for (int n = 0; n < 20; ++n) {
        call.refill();
        call.run();
        expect_fault(call, 1, -1, "length", line);
        call.fetch();
        EXPECT_TRUE(call.guarded().guards_intact());
        for (const testkit::Buffer& buffer : call.data().buffers())
          EXPECT_TRUE(buffer.guards_intact()) << line << ": " << buffer.name();
        const std::int64_t all = op == "invert" ? 0 : rows + (rows == 8 ? 14 : 70);
        std::vector<std::byte> found = rows_of(call.host(), 0, op == "invert" ? 0 : claimed_once);
        const std::vector<std::byte> behind = rows_of(call.host(), op == "invert" ? 0 : rows, all);
        found.insert(found.end(), behind.begin(), behind.end());
        if (n == 0) first = found;
        EXPECT_TRUE(found == first) << line << ", run " << n;
      }
    }
  }
}

}  // namespace
}  // namespace msa
