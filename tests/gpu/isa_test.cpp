// SPDX-License-Identifier: MIT
// Forced instruction sets: each that the GPU runs is in force and right, others are refused by
// name; and tiles that are planned for other cards, on this one. Needs a GPU: ./test.sh --gpu runs
// it.
#include <gtest/gtest.h>

#include <string>

#include "cuda/device.h"
#include "cuda/isa.h"
#include "cuda/layout.h"
#include "cuda/path.h"
#include "gpu_case.h"
#include "msa/error.h"

namespace msa {
namespace {

using gpu::GpuCase;

const cuda::GpuInfo& first_gpu() { return cuda::machine().gpus.front(); }

TEST(ForcedIsa, IsInForceAndRight) {
  for (const cuda::Isa* isa : cuda::kIsas) {
    const auto forced = [&](Problem& p) { p.options.isa = isa->name; };
    for (const char* op : {"dense", "sparse", "msa", "select", "topk"}) {
      const std::string line = std::string("op=") + op + " heads=16/1 topk=4 lens=70:900,1:300";
      if (!cuda::isa_rejects(*isa, first_gpu()).empty()) {
        try {
          GpuCase refused(line, 0, forced);
          ADD_FAILURE() << isa->name << ": planned " << op;
        } catch (const Error& error) {
          EXPECT_NE(std::string(error.what()).find(std::string("isa ") + isa->name),
                    std::string::npos)
              << error.what();
        }
        continue;
      }
      GpuCase call(line, 0, forced);
      EXPECT_EQ(call.plan().isa(), isa->name) << op;
      call.run();
      call.fetch();
      EXPECT_EQ(call.difference(), "") << isa->name << ": " << line;
    }
  }
}

TEST(ForcedIsa, OfAnotherBackendIsRefused) {
  EXPECT_THROW(GpuCase("op=dense lens=9:90", 0, [](Problem& p) { p.options.isa = "avx2"; }), Error);
}

// Cards with less shared memory have tiles of their own: here they are run, if slower. Those of
// three stages are not among them: machine code for them is made for 8.x alone.
TEST(ForcedIsa, TilesOfSmallerCardsAreRightHere) {
  for (const std::string rest :
       {"heads=16/1 lens=70:900,20:300", "heads=16/1 lens=70:900 page=32 block=64",
        "heads=16/1 lens=40:700 kv=e4m3/token page=64", "heads=16/1 lens=70:900 hostile=nan",
        "heads=7/7 lens=40:700 dtype=f16"}) {
    for (const char* op : {"dense", "sparse"}) {
      const std::string line = std::string("op=") + op + " topk=4 lse=1 " + rest;
      GpuCase call(line, 0, [](Problem& p) { p.options.isa = "mma"; });
      cuda::GpuInfo small = first_gpu();
      small.shared_memory = 99 << 10;
      std::string why;
      const cuda::PathRow* row = cuda::find_path(call.plan().problem(), small, why);
      ASSERT_NE(row, nullptr) << why;
      cuda::Layout layout;
      const auto path = row->plan(call.plan().problem(), small, layout);
      ASSERT_LE(layout.bytes(), call.workspace().bytes) << line;
      path->run(call.plan().problem(), call.operands(), call.workspace().data, call.stream());
      call.fetch();
      EXPECT_EQ(call.difference(), "") << line;
    }
  }
}

}  // namespace
}  // namespace msa
