// SPDX-License-Identifier: MIT
// What the CUDA backend plans and refuses, on made-up GPUs: needs nvcc at build time and no GPU.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <stdexcept>
#include <string>
#include <vector>

#include "core/fields.h"
#include "cuda/attend_stage.h"
#include "cuda/batch.h"
#include "cuda/decode_stage.h"
#include "cuda/device.h"
#include "cuda/invert_stage.h"
#include "cuda/layout.h"
#include "cuda/merge_stage.h"
#include "cuda/path.h"
#include "cuda/select_stage.h"
#include "cuda/tuning.h"
#include "msa/error.h"
#include "msa/msa.h"
#include "testkit/case.h"
#include "testkit/generate.h"
#include "testkit/support.h"
#include "tests/cuda/made_up.h"

namespace msa::cuda {
namespace {

Problem problem(const std::string& line) {
  Problem p = testkit::problem_of(testkit::parse_case(line));
  p.device = {DeviceType::Cuda, 0};
  return p;
}

std::size_t prefill_workspace(const std::string& line) {
  const Problem p = problem(line);
  Layout layout;
  layout.take<RequestRecord>(p.bounds.batch);
  layout.take<int>(p.bounds.total_q * p.attention.heads_kv * p.selection.topk);
  const AttendStage attend(p, kHopper, true, layout);
  Layout scores(attend.run_begin());
  const SelectStage select(p, kHopper, scores);
  return std::max(layout.bytes(), scores.bytes());
}

struct Refused {
  const char* line;
  const char* reason;
};

TEST(CudaPlans, AttentionSaysWhatItDoesNotTake) {
  for (const auto& [line, reason] : {Refused{"op=sparse dtype=f32", "bf16 and f16"},
                                     {"op=sparse dim=96", "head_dim"},
                                     {"op=sparse value_dim=64", "value_dim"},
                                     {"op=sparse heads=65/1", "64 query heads"},
                                     {"op=sparse block=32", "block_size"},
                                     {"op=sparse topk=65", "topk"},
                                     {"op=sparse page=48", "pages"},
                                     {"op=sparse page=192", "pages"},
                                     {"op=sparse scale=0", "softmax_scale"},
                                     {"op=sparse scale=-1", "softmax_scale"}}) {
    const std::string why = AttendStage::rejects(problem(line), true);
    EXPECT_NE(why.find(reason), std::string::npos) << line << ": '" << why << "'";
  }
  for (const char* line : {"op=sparse", "op=sparse dtype=f16 dim=64 block=64 topk=64 heads=64/1",
                           "op=sparse page=16", "op=sparse page=256", "op=sparse heads=7/7"}) {
    EXPECT_EQ(AttendStage::rejects(problem(line), true), "") << line;
  }
}

TEST(CudaPlans, GridsHoldEveryHead) {
  for (const auto& [line, reason] :
       {Refused{"op=sparse heads=70000/70000 dim=64 lens=20:200", "KV heads"},
        {"op=dense heads=70000/70000 dim=64 lens=20:200", "KV heads"},
        {"op=topk heads=70000/70000 lens=20:200", "index heads"},
        {"op=scores heads=70000/70000 index_heads_k=70000 dim=64 lens=20:200",
         "index-key heads"}}) {
    const Problem p = problem(line);
    const bool attends = p.op == Op::SparseAttention || p.op == Op::DenseAttention;
    const std::string why =
        attends ? AttendStage::rejects(p, p.op == Op::SparseAttention) : SelectStage::rejects(p);
    EXPECT_NE(why.find(reason), std::string::npos) << line << ": '" << why << "'";
  }
  const std::string why =
      DecodeStage::rejects(problem("op=dense heads=2112000/33000 dim=64 lens=1:200"));
  EXPECT_NE(why.find("65535 KV heads x tiles"), std::string::npos) << why;
}

TEST(CudaPlans, SelectionCutsTheCallNotThePlan) {
  const common::select::SelectPlan plan = common::select::plan_select({.total_q = 1 << 20,
                                                                       .max_seqlen_q = 1 << 20,
                                                                       .max_seqlen_k = 1 << 20,
                                                                       .batch = 8,
                                                                       .index_heads = 4},
                                                                      tuning_for(kHopper));
  EXPECT_GT(common::select::num_chunks(plan, plan.num_tiles), 100);
  const std::int64_t tiles = common::select::tiles_of_call(plan, 4096, 2);
  EXPECT_LE(tiles, 4096 / plan.tokens_per_tile + 3);
  EXPECT_EQ(common::select::num_chunks(plan, tiles), 1);
  EXPECT_LE(common::select::tiles_of_call(plan, 1 << 20, 8), plan.num_tiles);
  EXPECT_EQ(common::select::tiles_of_call(plan, 0, 8), 0);
}

TEST(CudaTuning, FollowsTheCard) {
  const auto card = [](int sms, double flops, double bytes, std::size_t l2_mib) {
    GpuInfo gpu = kHopper;
    gpu.multiprocessors = sms;
    gpu.bf16_flops = flops;
    gpu.bytes_per_s = bytes;
    gpu.l2_bytes = l2_mib << 20;
    return tuning_for(gpu);
  };
  const Tuning h200 = card(132, 989e12, 4.8e12, 60);
  const Tuning h100 = card(132, 989e12, 3.35e12, 50);
  const Tuning pcie = card(114, 756e12, 2.0e12, 50);
  const Tuning h20 = card(78, 148e12, 4.0e12, 60);
  const Tuning slice = card(16, 989e12 / 8, 3.35e12 / 8, 6);
  // Where products are dear beside bytes, fewer of them in vain: keys outermost sooner.
  for (const Tuning& tuning : {h200, h100, pcie, slice, tuning_for(kHopper)})
    EXPECT_NEAR(tuning.list_factor, 2.1, 0.15);
  EXPECT_LT(h20.list_factor, 1.9);
  EXPECT_GT(h20.list_factor, 1.0);
  // A slice holds an eighth of the keys.
  EXPECT_GE(h100.cached_bytes, std::int64_t{131072} * 256);
  EXPECT_LT(slice.cached_bytes, std::int64_t{5} << 20);
  EXPECT_EQ(slice.multiprocessors, 16);
  EXPECT_EQ(tuning_for(GpuInfo{}).multiprocessors, 1);
  EXPECT_EQ(card(132, 989e12, 4.8e12, 60), h200);
}

TEST(CudaMachine, AGpuThatDoesNotAnswerHidesNoOther) {
  const Machine found = machine_of(3, [](int device) -> GpuInfo {
    if (device == 1) throw Error(ErrorCode::Device, "", "in another process's hands");
    GpuInfo gpu = kHopper;
    gpu.name += std::to_string(device);
    return gpu;
  });
  ASSERT_EQ(found.gpus.size(), 3U);
  EXPECT_EQ(found.gpus[0].name, "made up0");
  EXPECT_EQ(found.gpus[0].fault, "");
  EXPECT_NE(found.gpus[1].fault.find("another process"), std::string::npos);
  EXPECT_EQ(found.gpus[2].name, "made up2");
  EXPECT_EQ(machine_of(0, nullptr).reason, "no GPU");
}

TEST(CudaPlans, SelectionSaysWhatItDoesNotTake) {
  for (const auto& [line, reason] : {Refused{"op=select dtype=f32", "bf16 and f16"},
                                     {"op=select index_dim=32", "index_dim"},
                                     {"op=select block=16", "block_size"},
                                     {"op=select topk=65", "topk"},
                                     {"op=topk topk=65", "topk"},
                                     {"op=select page=48", "pages"}}) {
    const std::string why = SelectStage::rejects(problem(line));
    EXPECT_NE(why.find(reason), std::string::npos) << line << ": '" << why << "'";
  }
  EXPECT_EQ(SelectStage::rejects(problem("op=select")), "");
  EXPECT_EQ(SelectStage::rejects(problem("op=topk block=16 dtype=f32")), "");
}

TEST(CudaPlans, DecodeTakesUpToEightTokens) {
  EXPECT_EQ(DecodeStage::rejects(problem("op=msa lens=8:5000")), "");
  EXPECT_EQ(DecodeStage::rejects(problem("op=dense heads=8/1 lens=128x1:5000")), "");
  EXPECT_NE(DecodeStage::rejects(problem("op=msa lens=9:5000")), "");
  EXPECT_NE(DecodeStage::rejects(problem("op=topk lens=1:5000")), "");
}

TEST(CudaPlans, KeysAndValuesInCodes) {
  for (const char* kv : {"e4m3", "e4m3/tensor", "e4m3/head", "e4m3/page", "e4m3/token"}) {
    for (const char* op : {"dense", "sparse", "msa"}) {
      const std::string line = std::string("op=") + op + " page=64 kv=" + kv;
      EXPECT_EQ(DecodeStage::rejects(problem(line + " lens=8:5000")), "") << line;
      EXPECT_EQ(DecodeStage::rejects(problem(line + " block=64 dtype=f16 lens=1:50")), "") << line;
    }
  }
  const std::string why = DecodeStage::rejects(problem("op=sparse kv=e4m3 dim=64 lens=1:5000"));
  EXPECT_NE(why.find("head_dim is 128 here where keys and values are e4m3"), std::string::npos)
      << why;
  for (const auto& [line, reason] :
       {Refused{"op=dense lens=90:500 kv=e4m3/head block_max=1", "block maxima"},
        {"op=dense lens=1:500 kv=e4m3 block_max=1 output=0", "block maxima"},
        {"op=msa lens=90:500 dtype=f16 kv=e4m3/token", "f16"},
        {"op=sparse lens=9:500 dtype=f16 kv=e4m3/page page=128", "f16"},
        {"op=sparse lens=90:500 dim=64 kv=e4m3", "head_dim"}}) {
    std::string refusal;
    EXPECT_EQ(find_path(problem(line), kHopper, refusal), nullptr) << line;
    EXPECT_NE(refusal.find(reason), std::string::npos) << line << ": '" << refusal << "'";
  }
}

TEST(CudaPlans, KeysAndValuesInFourBits) {
  for (const char* kv : {"nvfp4", "nvfp4/tensor", "q8kv4"}) {
    for (const char* op : {"dense", "sparse", "msa"}) {
      const std::string line = std::string("op=") + op + " page=64 kv=" + kv;
      EXPECT_EQ(DecodeStage::rejects(problem(line + " lens=8:5000")), "") << line;
      EXPECT_EQ(DecodeStage::rejects(problem(line + " block=64 dtype=f16 lens=1:50")), "") << line;
      std::string why;
      const bool all = std::string(kv) == "nvfp4/tensor";
      const PathRow* longer = find_path(problem(line + " lens=9:5000"), kHopper, why);
      EXPECT_EQ(longer == nullptr, all) << line << ": " << why;
      EXPECT_EQ(why.find("no scale of all") != std::string::npos, all) << line << ": " << why;
    }
    const std::string line = std::string("op=dense lens=1:500 kv=") + kv;
    const std::string why = DecodeStage::rejects(problem(line + " dim=64"));
    EXPECT_NE(why.find("head_dim is 128 here where keys and values are e2m1"), std::string::npos)
        << why;
    std::string refusal;
    EXPECT_EQ(find_path(problem(line + " block_max=1"), kHopper, refusal), nullptr);
    EXPECT_NE(refusal.find("block maxima"), std::string::npos) << refusal;
  }
}

TEST(CudaPlans, NewKeysAreStoredInEveryFormat) {
  std::vector<std::string> lines;
  for (const char* rows : {" page=16 lens=20:90,1:200", " page=48 lens=3:3", " lens=20:0"}) {
    for (const char* dtype : {"f32", "f16", "bf16"}) {
      for (const char* kv : {"auto", "e4m3", "e4m3/tensor", "e4m3/head", "e4m3/page", "e4m3/token",
                             "nvfp4", "nvfp4/tensor", "q8kv4"}) {
        const bool pages = std::string(kv) == "e4m3/page" && std::string(rows) == " lens=20:0";
        if (!pages)
          lines.push_back(std::string("op=quantize heads=3/3 dim=48 value_dim=80 dtype=") + dtype +
                          " kv=" + kv + rows);
      }
      lines.push_back(std::string("op=quantize_index heads=2/2 dim=16 index_dim=33 index_dtype=") +
                      dtype + rows);
    }
  }
  for (const std::string& line : lines) {
    std::string why;
    const PathRow* row = find_path(problem(line), kHopper, why);
    ASSERT_NE(row, nullptr) << line << ": " << why;
    EXPECT_EQ(std::string(row->name), "store") << line;
  }
}

// A record for each request, and nothing that grows with rows or keys.
TEST(CudaPlans, StoringNewKeysNeedsNoRoom) {
  for (const char* line : {"op=quantize kv=e4m3/token page=16 lens=100x900:90000",
                           "op=quantize_index page=16 lens=100x900:90000"}) {
    const Problem p = problem(line);
    Layout layout;
    std::string why;
    const PathRow* row = find_path(p, kHopper, why);
    ASSERT_NE(row, nullptr) << line << ": " << why;
    const auto path = row->plan(p, kHopper, layout);
    EXPECT_LE(layout.bytes(), 100 * sizeof(RequestRecord) + 2 * kWorkspaceAlignment) << line;
  }
}

// As many pages of items as the requests may have of codes, in bf16 and f16.
TEST(CudaPlans, UnpackedKeysHaveRoom) {
  const auto bytes = [](const std::string& line) {
    Layout layout;
    std::string why;
    const Problem p = problem(line);
    const PathRow* row = find_path(p, kHopper, why);
    EXPECT_NE(row, nullptr) << line << ": " << why;
    if (row != nullptr) row->plan(p, kHopper, layout);
    return static_cast<std::int64_t>(layout.bytes());
  };
  for (const char* shape : {" lens=90:1000", " lens=90:1000,9:70 page=64", " lens=9:1 page=384"}) {
    const std::string line = std::string("op=dense heads=4/2") + shape;
    const Problem p = problem(line);
    const std::int64_t page = p.bounds.page_size == 0 ? 128 : p.bounds.page_size;
    const std::int64_t pages = p.bounds.batch * ((p.bounds.max_seqlen_k + page - 1) / page);
    EXPECT_GE(bytes(line + " kv=q8kv4") - bytes(line), pages * (page * 2 * 2 * 256 + 4)) << line;
    EXPECT_LE(bytes(line + " kv=q8kv4") - bytes(line), pages * (page * 2 * 2 * 256 + 4) + 4096);
  }
}

// A block's keys share their scale there, so that it multiplies what is multiplied anyway.
TEST(CudaPlans, KeysOutermostTakesOneScaleABlock) {
  const auto serves = [](const std::string& kv) {
    Layout layout;
    const Problem p = problem("op=sparse lens=8192:8192 " + kv);
    const AttendStage attend(p, kHopper, true, layout);
    return attend.decisions().find("attend_keys_outermost no") == std::string::npos;
  };
  for (const char* kv : {"kv=e4m3", "kv=e4m3/tensor", "kv=e4m3/head", "kv=e4m3/head page=16",
                         "kv=e4m3/page page=128", "kv=e4m3/page page=384"})
    EXPECT_TRUE(serves(kv)) << kv;
  for (const char* kv : {"kv=e4m3/page page=64", "kv=e4m3/token", "kv=e4m3/token page=128"})
    EXPECT_FALSE(serves(kv)) << kv;
}

TEST(CudaPlans, AFilterIsReadWherePlansSayThatItPays) {
  const auto reads = [](const std::string& line) {
    Layout layout;
    const DecodeStage stage(problem("op=msa filter=1 page=128 " + line), kHopper, layout);
    return stage.decisions().find("decode_filter") != std::string::npos;
  };
  EXPECT_TRUE(reads("lens=1:1048576"));
  EXPECT_TRUE(reads("lens=8:1048576"));
  EXPECT_TRUE(reads("lens=32x1:131072"));
  EXPECT_FALSE(reads("lens=1:131072"));
  EXPECT_TRUE(reads("lens=128x1:32768"));
  EXPECT_FALSE(reads("lens=256x1:16384"));
  EXPECT_FALSE(reads("lens=none"));
  EXPECT_TRUE(reads("kv=e4m3/head lens=1:1048576"));  // whatever keys and values are stored as
  EXPECT_FALSE(reads("kv=e4m3/head lens=1:131072"));
  for (const char* op : {"select", "msa"}) {
    for (const char* lens : {"1:5000", "8:1048576"}) {
      const std::string line = std::string("op=") + op + " filter=1 heads=8/4 lens=" + lens;
      EXPECT_EQ(DecodeStage::rejects(problem(line)), "") << line;
      EXPECT_EQ(DecodeStage::rejects(problem(line + " dtype=f16 page=16")), "") << line;
    }
    for (const char* line :
         {" filter=1 lens=1:5000 index_dim=64", " filter=1 lens=9:5000 index_dim=64"}) {
      std::string why;
      EXPECT_EQ(find_path(problem(std::string("op=") + op + line), kHopper, why), nullptr) << line;
      EXPECT_NE(why.find("filter"), std::string::npos) << line << ": " << why;
    }
  }
  EXPECT_EQ(common::decode::rescore_ctas(4, 8192, 132), 33);
  EXPECT_EQ(common::decode::rescore_ctas(128, 1024, 132), 2);
  EXPECT_EQ(common::decode::rescore_ctas(512, 256, 132), 1);
  EXPECT_EQ(common::decode::rescore_ctas(0, 0, 132), 1);
}

// Whatever the lengths are: by the prefill's kernel, in pages of any size.
TEST(CudaPlans, SelectionsGoByCodesAloneWhereTheyAreAskedTo) {
  const auto why_not = [](const std::string& line) {
    const Problem p = problem(line + " filter=1 precision=fast");
    std::string why;
    const PathRow* row = find_path(p, kHopper, why);
    if (row == nullptr) return why;
    Layout layout;
    const std::string decisions = row->plan(p, kHopper, layout)->decisions();
    EXPECT_NE(decisions.find("select_fast"), std::string::npos) << line;
    return std::string();
  };
  for (const char* op : {"op=select ", "op=msa "}) {
    for (const char* rest : {"lens=131072:131072 page=128", "lens=1:500 page=16 block=64",
                             "lens=8:40000 page=384 dtype=f16", "lens=3:70,1:9 page=64 topk=64"}) {
      EXPECT_EQ(why_not(op + std::string(rest)), "") << rest;
    }
    EXPECT_NE(why_not(op + std::string("lens=9:500")).find("ragged"), std::string::npos);
    EXPECT_NE(why_not(op + std::string("lens=9:500 page=48")).find("pages"), std::string::npos);
    EXPECT_NE(why_not(op + std::string("lens=9:500 page=64 index_dim=64")).find("index_dim"),
              std::string::npos);
  }
}

TEST(CudaPlans, APrefillReadsTheFilterWherePlansSayThatItPays) {
  const auto reads = [](const std::string& line) {
    for (const char* op : {"op=select", "op=msa"}) {
      const Problem p = problem(std::string(op) + " filter=1 " + line);
      std::string why;
      const PathRow* row = find_path(p, kHopper, why);
      if (row == nullptr) throw std::runtime_error(why);
      Layout layout;
      const std::string decisions = row->plan(p, kHopper, layout)->decisions();
      EXPECT_LE(layout.bytes(), std::size_t{2} << 30) << line;
      if (decisions.find("select_filter") == std::string::npos) return false;
    }
    return true;
  };
  EXPECT_TRUE(reads("lens=131072:131072 page=128"));
  EXPECT_TRUE(reads("lens=1048576:1048576 page=128"));
  EXPECT_TRUE(reads("lens=8192:40000 page=256 dtype=f16"));
  EXPECT_TRUE(reads("lens=8192:40000 page=64 block=64"));
  EXPECT_TRUE(reads("lens=9000:60000,300:300,1:90 page=128 topk=64 heads=8/4 index_heads_k=4"));
  // Blocks of several pages, or of rows that share bounds with others.
  EXPECT_FALSE(reads("lens=131072:131072"));
  EXPECT_FALSE(reads("lens=131072:131072 page=64"));
  // Too short, too few rows, rows of too many requests, blocks that no CTA holds bounds of.
  EXPECT_FALSE(reads("lens=16384:16384 page=128"));
  EXPECT_FALSE(reads("lens=128:1048576 page=128"));
  EXPECT_FALSE(reads("lens=150x100:40000 page=128"));
  EXPECT_FALSE(reads("lens=9000:1048576 page=64 block=64"));
}

TEST(CudaPlans, AFilteredPrefillHasTilesOfOneHead) {
  using namespace common::select;
  const SelectShape shape{.total_q = 131072,
                          .max_seqlen_q = 131072,
                          .max_seqlen_k = 131072,
                          .index_heads = 8,
                          .index_heads_k = 2,
                          .filtered = true};
  const Tuning tuning = tuning_for(kHopper);
  const SelectPlan plan = plan_select(shape, tuning);
  EXPECT_EQ(plan.tokens_per_tile, kTileRows);
  EXPECT_EQ(plan.heads, 1);
  EXPECT_EQ(plan.groups, 8);
  EXPECT_EQ(plan.shares, 4);
  EXPECT_EQ(plan.scratch_stride, 1024);
  EXPECT_EQ(plan.list_parts, 4096);
  EXPECT_GE(plan.scratch_stride, plan.columns);  // scores of listed blocks lie there, too
  EXPECT_LE(scratch_words(plan) * 4, tuning.filter_scratch_bytes);
  EXPECT_GT(scratch_words(plan) * 4, tuning.filter_scratch_bytes / 2);
}

// A stride that nobody reads would be a scale that nobody honours.
TEST(CudaPlans, ScalesAreReadByTheirStrides) {
  std::array<float, 1> memory{};
  Tensor scale = make_tensor(memory.data(), DType::F32, {7, 5, 3});
  scale.stride = {1000, 100, 10};
  struct Expected {
    const char* line;
    std::int64_t page, token, head;
  };
  for (const auto& [line, page, token, head] : {Expected{"kv=e4m3/tensor", 0, 0, 0},
                                                {"kv=e4m3/head", 0, 0, 1000},
                                                {"kv=e4m3/page page=64", 1000, 0, 100},
                                                {"kv=e4m3/token", 0, 1000, 100},
                                                {"kv=e4m3/token page=64", 1000, 100, 10}}) {
    const Problem p = problem(std::string("op=dense lens=1:500 ") + line);
    const Scales read = make_scales(p, core::kv_format(p), scale);
    EXPECT_EQ(read.data, memory.data()) << line;
    EXPECT_EQ(read.stride_page, page) << line;
    EXPECT_EQ(read.stride_token, token) << line;
    EXPECT_EQ(read.stride_head, head) << line;
    EXPECT_EQ(make_scales(p, core::kv_format(p), Tensor{}).data, nullptr) << line;
  }
}

TEST(CudaPlans, ScalesOfGroupsAreReadByTheirStrides) {
  std::array<std::uint8_t, 8> memory{};
  float all = 2;
  const Tensor global = make_tensor(&all, DType::F32, {1});
  Tensor ragged = make_tensor(memory.data(), DType::E4M3, {7, 5, 8});
  ragged.stride = {800, 80, 1};
  Tensor paged = make_tensor(memory.data(), DType::E4M3, {7, 64, 5, 8});
  paged.stride = {8000, 800, 80, 1};
  const Format q8kv4{DType::E2M1, Scale::Group, 16, true};
  const Format nvfp4{DType::E2M1, Scale::GroupTensor, 16};
  const GroupScales rows = make_group_scales(q8kv4, ragged, {});
  EXPECT_EQ(rows.data, memory.data());
  EXPECT_EQ(rows.stride_page, 0);
  EXPECT_EQ(rows.stride_token, 800);
  EXPECT_EQ(rows.stride_head, 80);
  EXPECT_EQ(rows.all, nullptr);
  EXPECT_EQ(rows.rounded, 1);
  const GroupScales pages = make_group_scales(nvfp4, paged, global);
  EXPECT_EQ(pages.stride_page, 8000);
  EXPECT_EQ(pages.stride_token, 800);
  EXPECT_EQ(pages.stride_head, 80);
  EXPECT_EQ(pages.all, &all);
  EXPECT_EQ(pages.rounded, 0);
  EXPECT_EQ(make_group_scales({DType::E4M3, Scale::Token}, ragged, {}).data, nullptr);
  const Problem p = problem("op=dense lens=1:500 kv=q8kv4");
  EXPECT_EQ(make_scales(p, core::kv_format(p), ragged).data, nullptr);
}

// Then the copy engine brings them: whoever scores 128 keys in the time that their bytes take has
// none for 128 copies.
TEST(CudaPlans, ScalesOfAPageMayLieSideBySide) {
  using common::decode::groups_are_dense;
  alignas(16) std::array<std::uint8_t, 16> memory{};
  const Format q8kv4{DType::E2M1, Scale::Group, 16, true};
  const auto dense = [&](const Tensor& scales, int page, int heads) {
    return groups_are_dense(make_group_scales(q8kv4, scales, {}), page, heads);
  };
  const std::uint8_t* const data = memory.data();
  for (const int page : {16, 32, 64, 128, 384}) {
    EXPECT_TRUE(dense(make_tensor(data, DType::E4M3, {7, page, 1, 8}), page, 1)) << page;
    EXPECT_FALSE(dense(make_tensor(data, DType::E4M3, {7, page, 2, 8}), page, 2)) << page;
    const Tensor heads_outside =
        make_tensor(data, DType::E4M3, {7, page, 2, 8}, {page * 16, 8, page * 8, 1});
    EXPECT_TRUE(dense(heads_outside, page, 2)) << page;
    const Tensor slots_outside = make_tensor(data, DType::E4M3, {7, page, 1, 8}, {8, 7 * 8, 8, 1});
    EXPECT_FALSE(dense(slots_outside, page, 1)) << page;
    EXPECT_FALSE(dense(make_tensor(data + 8, DType::E4M3, {7, page, 1, 8}), page, 1)) << page;
  }
  EXPECT_FALSE(dense(make_tensor(data, DType::E4M3, {500, 1, 8}), 0, 1));
}

TEST(CudaPlans, DecodeSharesTheGpuByBoundsAlone) {
  namespace decode = common::decode;
  constexpr int kSms = 132;
  EXPECT_EQ(decode::score_ctas(1, 131072, 1, kSms), kSms);
  EXPECT_EQ(decode::score_ctas(32, 131072, 1, kSms), kSms);
  EXPECT_EQ(decode::score_ctas(1, 8192, 1, kSms), 64);  // one a step
  EXPECT_EQ(decode::score_ctas(1, 131072, 4, kSms), 33);
  EXPECT_EQ(decode::score_ctas(0, 0, 200, kSms), 1);
  EXPECT_EQ(decode::attend_splits(1, 4, 16, 16, kSms), 8);
  EXPECT_EQ(decode::attend_splits(32, 4, 16, 16, kSms), 2);
  EXPECT_EQ(decode::attend_splits(32, 1, 8, 16, kSms), 8);
  EXPECT_EQ(decode::attend_splits(128, 4, 16, 16, kSms), 1);
  EXPECT_EQ(decode::attend_splits(1, 4, 16, 1024, kSms), 66);
  for (const int splits : {1, 2, 4, 8}) {
    EXPECT_FALSE(decode::uses_partials(splits, true)) << splits;
    EXPECT_EQ(decode::uses_partials(splits, false), splits != 1) << splits;
  }
  EXPECT_TRUE(decode::uses_partials(66, true));
}

TEST(CudaPlans, DecodeSelectsInTheMemoryOfOneCta) {
  namespace decode = common::decode;
  EXPECT_EQ(decode::select_lanes(16, 8192), 4);
  EXPECT_EQ(decode::select_lanes(17, 8192), 1);
  EXPECT_EQ(decode::select_lanes(16, 65536), 1);
  EXPECT_EQ(decode::select_candidates(1, 1, 1), 32);
  for (const int topk : {1, 16, 17, 64}) {
    for (const std::int64_t blocks : {1, 513, 12288}) {
      const int lanes = decode::select_lanes(topk, blocks);
      EXPECT_LE(decode::select_candidates(topk, blocks, lanes), decode::kMostCandidates)
          << topk << ' ' << blocks;
    }
  }
  EXPECT_EQ(DecodeStage::rejects(problem("op=msa topk=64 lens=1:1500000 block=128")), "");
  const std::string why = DecodeStage::rejects(problem("op=msa topk=64 lens=1:1600000 block=128"));
  EXPECT_NE(why.find("blocks"), std::string::npos) << why;
}

TEST(CudaPlans, HeadsFollowEachOtherWhereTheirKeysOutgrowTheCache) {
  const auto order = [](const char* line, bool lists) {
    Layout layout;
    const AttendStage attend(problem(line), kHopper, lists, layout);
    return attend.decisions();
  };
  const char* outermost = "attend_heads outermost";
  const char* innermost = "attend_heads innermost";
  EXPECT_NE(order("op=dense heads=64/4 lens=8192:8192", false).find(innermost), std::string::npos);
  EXPECT_NE(order("op=dense heads=64/4 lens=32768:32768", false).find(outermost),
            std::string::npos);
  EXPECT_NE(order("op=dense heads=64/4 kv=e4m3 lens=12000:12000", false).find(innermost),
            std::string::npos);
  EXPECT_NE(order("op=sparse heads=64/4 topk=16 lens=8192:8192", true).find(outermost),
            std::string::npos);
}

// Codes become items once where many tiles read each block, if their scale is the head's or none.
TEST(CudaPlans, CodesThatManyTilesReadAreUnpacked) {
  const auto unpacks = [](const std::string& line, bool lists) {
    Layout layout;
    const AttendStage attend(problem(line), kHopper, lists, layout);
    return attend.decisions().find("attend_unpacks yes") != std::string::npos;
  };
  for (const char* kv : {"e4m3", "e4m3/tensor", "e4m3/head"}) {
    const std::string line = std::string("kv=") + kv;
    EXPECT_TRUE(unpacks("op=sparse lens=32768:32768 " + line, true)) << kv;
    EXPECT_TRUE(unpacks("op=sparse lens=524288:524288 page=64 " + line, true)) << kv;
    EXPECT_TRUE(unpacks("op=dense lens=2048:131072 " + line, false)) << kv;
  }
  for (const char* rest : {"kv=auto lens=32768:32768", "kv=e4m3/token lens=32768:32768",
                           "kv=e4m3/page page=128 lens=32768:32768",
                           "kv=e4m3/head lens=2048:131072",    // few visits of a block
                           "kv=e4m3/head lens=600000:600000",  // more than a gigabyte
                           "kv=e4m3/head lens=64x8:131072"}) {
    EXPECT_FALSE(unpacks(std::string("op=sparse ") + rest, true)) << rest;
  }
  EXPECT_FALSE(unpacks("op=dense kv=e4m3/head lens=128:131072", false));
}

TEST(CudaPlans, KeysOutermostChunksAreEquallyLarge) {
  const Problem p = problem("op=sparse heads=64/4 topk=16 lens=8192:8192");
  Layout layout;
  const AttendStage attend(p, kHopper, true, layout);
  EXPECT_NE(attend.decisions().find("attend_keys_outermost beyond 33 blocks"), std::string::npos)
      << attend.decisions();
  EXPECT_LE(layout.bytes(), std::size_t{1200} << 20);  // half of the tokens at a time
  const AttendStage few(problem("op=sparse heads=64/4 topk=16 lens=4096:4096"), kHopper, true,
                        layout);
  EXPECT_NE(few.decisions().find("attend_keys_outermost no"), std::string::npos);
}

TEST(CudaPlans, KeysOutermostServesLargeBatches) {
  for (const char* lens : {"lens=17x512:131072", "lens=64x512:131072", "lens=160x512:131072"}) {
    const Problem p = problem(std::string("op=sparse ") + lens);
    Layout layout;
    const AttendStage attend(p, kHopper, true, layout);
    EXPECT_NE(attend.decisions().find("attend_keys_outermost beyond 33 blocks"), std::string::npos)
        << attend.decisions();
    EXPECT_LE(layout.bytes(), std::size_t{2500} << 20) << lens;
  }
}

TEST(CudaPlans, WorkspaceStaysSmall) {
  std::size_t last = 0;
  for (const char* lens : {"8192:8192", "131072:131072", "1048576:1048576"}) {
    const std::size_t bytes = prefill_workspace(std::string("op=msa lens=") + lens);
    EXPECT_EQ(bytes % kWorkspaceAlignment, 0U);
    EXPECT_GE(bytes, last) << lens;
    EXPECT_LE(bytes, std::size_t{2} << 30) << lens;
    last = bytes;
  }
  const Problem decode = problem("op=msa lens=128x1:1048576 page=128");
  Layout layout;
  const DecodeStage stage(decode, kHopper, layout);
  EXPECT_LE(layout.bytes(), std::size_t{1} << 30);
}

std::size_t invert_workspace(const std::string& line) {
  Layout layout;
  const InvertStage stage(problem(line), layout);
  return layout.bytes();
}

TEST(CudaPlans, MergesTakeAnyDtypeAndWidth) {
  for (const char* line :
       {"op=merge_states dtype=f32 parts=64 lens=20:0", "op=merge_states dtype=f16 dim=7 lens=20:0",
        "op=merge_states out=f32 in_place=0 lens=none", "op=merge_states strides=padded lens=20:0",
        "op=merge_selections topk=256 parts=64 lens=20:0",
        "op=merge_selections heads=65/65 topk=1 parts=1 lens=none"}) {
    EXPECT_EQ(MergeStage::rejects(problem(line)), "") << line;
  }
  Problem wide = problem("op=merge_states heads=64/4 lens=20:0");
  wide.bounds.total_q = std::int64_t{1} << 25;
  EXPECT_NE(MergeStage::rejects(wide).find("2^31"), std::string::npos);
  wide.bounds.total_q -= 1;
  EXPECT_EQ(MergeStage::rejects(wide), "");
  Problem lists = problem("op=merge_selections heads=4/4 lens=20:0");
  lists.bounds.total_q = std::int64_t{1} << 29;
  EXPECT_NE(MergeStage::rejects(lists).find("2^31"), std::string::npos);
}

TEST(CudaPlans, InversionSaysWhatItDoesNotTake) {
  for (const char* line : {"op=invert", "op=invert block=16 topk=256", "op=invert lens=none",
                           "op=invert lens=1048576:1048576", "op=invert lens=4096x1:1048576"}) {
    EXPECT_EQ(InvertStage::rejects(problem(line)), "") << line;
  }
  Problem p = problem("op=invert heads=65536/65536 lens=20:200");
  EXPECT_NE(InvertStage::rejects(p).find("KV heads, not 65536"), std::string::npos);
  p = problem("op=invert lens=20:200");
  p.bounds.max_seqlen_k = 1 << 30;
  EXPECT_NE(InvertStage::rejects(p).find("2^30 keys"), std::string::npos);
  p = problem("op=invert lens=20:200");
  p.bounds.batch = 1 << 23;
  EXPECT_NE(InvertStage::rejects(p).find("2^23 requests"), std::string::npos);
  p = problem("op=invert block=16 heads=64/64 lens=20:1048576");
  p.bounds.batch = 1 << 12;
  EXPECT_NE(InvertStage::rejects(p).find("2^32 lists"), std::string::npos);
}

TEST(CudaPlans, InversionKeepsItsCountersSmall) {
  EXPECT_LE(invert_workspace("op=invert heads=64/4 lens=8192:8192"), std::size_t{1} << 20);
  EXPECT_LE(invert_workspace("op=invert heads=64/4 lens=1048576:1048576"), std::size_t{260} << 20);
  EXPECT_LE(invert_workspace("op=invert block=16 heads=64/4 lens=1048576:1048576"),
            std::size_t{260} << 20);
  EXPECT_EQ(invert_workspace("op=invert lens=none") % kWorkspaceAlignment, 0U);
}

TEST(CudaPaths, TheFirstRowThatTakesAProblemHasIt) {
  const auto name = [](const std::string& line) {
    std::string why;
    const PathRow* row = find_path(problem(line), kHopper, why);
    EXPECT_EQ(row == nullptr, !why.empty()) << line << ": " << why;
    return row == nullptr ? why : std::string(row->name);
  };
  for (const std::string op : {"dense", "sparse", "msa", "scores", "select"}) {
    EXPECT_EQ(name("op=" + op + " lens=1:5000,8:300"), "decode") << op;
    const bool attends = op != "scores" && op != "select";
    EXPECT_EQ(name("op=" + op + " lens=9:5000"), attends ? "attention" : "select") << op;
  }
  for (const std::string kv : {"e4m3", "e4m3/tensor", "e4m3/head", "e4m3/page", "e4m3/token"}) {
    for (const std::string op : {"dense", "sparse", "msa"}) {
      EXPECT_EQ(name("op=" + op + " page=64 lens=1:5000 kv=" + kv), "decode") << op << kv;
      EXPECT_EQ(name("op=" + op + " page=64 lens=9:5000 kv=" + kv), "attention") << op << kv;
    }
  }
  for (const std::string kv : {"nvfp4", "nvfp4/tensor", "q8kv4"})
    EXPECT_EQ(name("op=msa page=64 lens=8:5000 kv=" + kv), "decode") << kv;
  for (const std::string kv : {"nvfp4", "q8kv4"})
    EXPECT_EQ(name("op=msa page=64 lens=9:5000 kv=" + kv), "attention") << kv;
  EXPECT_EQ(name("op=topk lens=1:5000"), "select");
  EXPECT_EQ(name("op=merge_states parts=3 lens=20:0"), "merge");
  EXPECT_EQ(name("op=merge_selections parts=3 lens=20:0"), "merge");
  EXPECT_EQ(name("op=invert lens=20:200"), "invert");
  EXPECT_EQ(name("op=dense lens=1:5000 block_max=1 output=0"), "attention");
  // The reason is that of the row that takes longer requests, too.
  EXPECT_NE(name("op=sparse lens=1:5000 topk=65").find("topk is at most 64"), std::string::npos);
  for (const std::string op : {"scores", "select", "msa"}) {
    const std::string line = "op=" + op + " page=128 index_k=e4m3/page lens=";
    EXPECT_EQ(name(line + "8:5000"), "decode") << op;
    for (const std::string& other : {line + "1:5000 index_dim=64", line + "9:5000"}) {
      EXPECT_NE(name(other).find("those of groups alone, not e4m3/page"), std::string::npos)
          << name(other);
    }
    const std::string path = op == "msa" ? "attention" : "select";
    for (const std::string format : {"e4m3", "nvfp4", "q8kv4"}) {
      for (const char* rest : {" page=64", "", " page=384 index_dtype=f16"}) {
        EXPECT_EQ(name("op=" + op + " lens=9:5000 index_k=" + format + rest), path) << format;
        if (op == "msa") {
          EXPECT_EQ(name("op=msa kv=q8kv4 lens=9:5000 index_k=" + format + rest), path) << format;
        }
      }
    }
    for (const std::string format : {"nvfp4", "nvfp4/tensor", "q8kv4"}) {
      const std::string four = "op=" + op + " page=128 index_k=" + format + " lens=";
      for (const char* kv : {"auto", "e4m3/head", "q8kv4"})
        EXPECT_EQ(name(four + "8:5000 kv=" + kv), "decode") << four << kv;
      if (format == "nvfp4/tensor") {
        for (const std::string& other : {four + "1:5000 index_dim=64", four + "9:5000"})
          EXPECT_NE(name(other).find("groups alone, not " + format), std::string::npos);
      } else {
        EXPECT_NE(name(four + "9:5000 index_dim=64").find("index_dim is 128 here"),
                  std::string::npos);
      }
      const std::string why = DecodeStage::rejects(problem(four + "1:5000 index_dim=64"));
      EXPECT_NE(why.find("index_dim is 128 here where index keys are e2m1"), std::string::npos)
          << why;
    }
  }
  GpuInfo older = kHopper;
  older.major = 7;
  std::string why;
  EXPECT_EQ(find_path(problem("op=dense"), older, why), nullptr);
  EXPECT_NE(why.find("needs compute capability"), std::string::npos) << why;
}

TEST(CudaIsas, AreBuiltForACardOrRunWhatAnOlderOneRuns) {
  const auto runs = [](const Isa& isa, std::vector<Compiled> compiled, int capability) {
    return runs_compiled(isa, compiled, capability);
  };
  EXPECT_TRUE(runs(kMma, {{80, false}}, 80));
  EXPECT_TRUE(runs(kMma, {{80, false}}, 89));
  EXPECT_FALSE(runs(kMma, {{86, false}}, 80));
  EXPECT_FALSE(runs(kMma, {{80, false}, {89, false}}, 90));
  EXPECT_FALSE(runs(kMma, {{90, false}}, 120));
  EXPECT_TRUE(runs(kMma, {{90, false}, {100, true}}, 120));
  EXPECT_FALSE(runs(kMma, {{120, true}}, 100));
  EXPECT_TRUE(runs(kSm90, {{80, false}, {90, false}}, 90));
  EXPECT_FALSE(runs(kSm90, {{80, false}, {90, true}}, 90));
  EXPECT_FALSE(runs(kMma, {}, 90));
  for (const Isa* isa : kIsas) EXPECT_TRUE(runs_compiled(*isa, compiled_for(), 90)) << isa->name;
}

TEST(CudaIsas, SayWhatTheyNeed) {
  for (const GpuInfo& gpu : every_kind()) {
    EXPECT_EQ(isa_rejects(kMma, gpu), "") << gpu.name;
    const std::string why = isa_rejects(kSm90, gpu);
    EXPECT_EQ(why.empty(), gpu.major == 9) << gpu.name;
    if (!why.empty()) {
      EXPECT_NE(why.find("isa sm90 needs compute capability 9.0, " + gpu.name + " has "),
                std::string::npos)
          << why;
    }
    GpuInfo unbuilt = gpu;
    unbuilt.compiled = {};
    EXPECT_NE(isa_rejects(kMma, unbuilt).find("was not built for"), std::string::npos);
  }
  const GpuInfo turing = made_up("older", 75, 40, 64, 4);
  EXPECT_EQ(isa_rejects(kMma, turing),
            "isa mma needs compute capability 8.0 or newer, older has 7.5");
}

// Which one an option names is honoured or refused; where it names none, the best there is serves.
TEST(CudaIsas, AreForcedByName) {
  const auto isa = [](const std::string& name, const GpuInfo& gpu) {
    Problem p = problem("op=merge_states parts=2 lens=20:0");
    p.options.isa = name;
    std::string why;
    const PathRow* row = find_path(p, gpu, why);
    return row == nullptr ? why : std::string(row->isa->name);
  };
  for (const GpuInfo& gpu : every_kind()) {
    EXPECT_EQ(isa("", gpu), gpu.major == 9 ? "sm90" : "mma") << gpu.name;
    EXPECT_EQ(isa("mma", gpu), "mma") << gpu.name;
    if (gpu.major == 9)
      EXPECT_EQ(isa("sm90", gpu), "sm90");
    else
      EXPECT_NE(isa("sm90", gpu).find("isa sm90 needs"), std::string::npos) << gpu.name;
    EXPECT_EQ(isa("avx2", gpu), "isa: expected sm90 or mma, got \"avx2\"");
  }
}

// Neighbours share most blocks: read once for a tile of them, where there are enough requests.
TEST(CudaPaths, DecodeOfSeveralTokensSharesBlocksWhereThatPays) {
  const auto name = [](const std::string& line) {
    std::string why;
    const PathRow* row = find_path(problem(line), kHopper, why);
    return row == nullptr ? why : std::string(row->name);
  };
  for (const std::string op : {"sparse", "msa"}) {
    for (const char* rest :
         {"", " dtype=f16", " lse=1 pad_rows=9", " block=64 topk=32", " batch_invariant=1"})
      EXPECT_EQ(name("op=" + op + rest + " page=128 lens=32x8:131072"), "decode_shared") << rest;
    EXPECT_EQ(name("op=" + op + " kv=e4m3/head lens=64x8:131072"), "decode_shared");
    EXPECT_EQ(name("op=" + op + " heads=4/4 topk=16 lens=80x8:260"), "decode_shared");
    EXPECT_EQ(name("op=" + op + " kv=e4m3/token lens=64x8:131072"), "decode_shared");
    for (const char* rest :
         {"lens=1x8:131072", "lens=8x8:131072", "lens=64x1:131072", "lens=32x4:131072",
          "lens=32x8:131072 heads=8/1", "lens=none", "lens=64x8:131072 dtype=f16 kv=e4m3/token"})
      EXPECT_EQ(name("op=" + op + " " + rest), "decode") << rest;
    EXPECT_EQ(name("op=" + op + " lens=32x9:131072"), "attention");
  }
  EXPECT_EQ(name("op=dense lens=32x8:131072"), "decode");
  EXPECT_EQ(name("op=select lens=32x8:131072"), "decode");
  int shared = 0;
  for (const testkit::Case& spec :
       testkit::read_cases(std::string(MSA_TESTS_DIR) + "/cases/cuda.txt"))
    shared += name(testkit::to_line(spec)) == "decode_shared" ? 1 : 0;
  EXPECT_GE(shared, 54);
}

// A tile a request: no lists for the keys-outermost kernel, and no tiles of padding to split for.
TEST(CudaPaths, SharedDecodePlansAnItemARequestAndHead) {
  const auto decisions = [](const std::string& line) {
    const Problem p = problem(line);
    std::string why;
    const PathRow* row = find_path(p, kHopper, why);
    Layout layout;
    return row == nullptr ? why : row->plan(p, kHopper, layout)->decisions();
  };
  for (const char* op : {"sparse", "msa"}) {
    const std::string text = decisions(std::string("op=") + op + " page=128 lens=32x8:131072");
    for (const char* line : {"attend union", "attend_splits 1\n", "attend_keys_outermost no"})
      EXPECT_NE(text.find(line), std::string::npos) << text;
    EXPECT_EQ(text.find("decode_score") != std::string::npos, op == std::string("msa")) << text;
  }
  EXPECT_NE(decisions("op=msa filter=1 page=128 lens=64x8:1048576").find("decode_filter"),
            std::string::npos);
}

// Beside several teams of scoring an SM has no registers for a CTA of attention, which would begin
// behind them and rehearse when scores are there.
TEST(CudaPaths, AttentionRehearsesWhereItStandsBesideScoring) {
  const auto rehearses = [](const std::string& line) {
    const Problem p = problem("op=msa page=128 " + line);
    std::string why;
    const PathRow* row = find_path(p, kHopper, why);
    Layout layout;
    const std::string text = row == nullptr ? why : row->plan(p, kHopper, layout)->decisions();
    EXPECT_NE(text.find("decode_splits "), std::string::npos) << text;
    return text.find("decode_rehearsals ") != std::string::npos;
  };
  EXPECT_TRUE(rehearses("lens=1:131072"));
  EXPECT_TRUE(rehearses("lens=32x1:131072 kv=e4m3/head"));
  EXPECT_TRUE(rehearses("lens=1:131072 kv=e4m3/head index_k=e4m3/head"));
  EXPECT_FALSE(rehearses("lens=32x1:131072 kv=e4m3/head index_k=e4m3/head"));
  EXPECT_FALSE(
      rehearses("lens=1:8500,63x1:200,1:0 heads=8/2 index_heads_k=1 topk=4 "
                "kv=e4m3/head index_k=e4m3/head"));  // of cases/cuda.txt
  EXPECT_FALSE(rehearses("lens=1:131072 kv=q8kv4 index_k=q8kv4"));
  EXPECT_TRUE(rehearses("lens=32x4:131072 kv=e4m3/head index_k=e4m3/head"));
}

TEST(CudaPaths, TakeEveryCaseInsideTheSupportTable) {
  const std::string tests = MSA_TESTS_DIR;
  const auto table = testkit::SupportTable::read(tests + "/support/cuda.txt");
  int inside = 0, codes = 0, packed = 0, packed_index = 0, unpacked = 0;
  for (const char* file : {"/cases/cuda.txt", "/cases/sanitizer.txt"}) {
    for (const testkit::Case& spec : testkit::read_cases(tests + file)) {
      if (!table.contains(spec)) continue;
      ++inside;
      codes += spec.kv_format().storage == DType::E4M3 ? 1 : 0;
      packed += spec.kv_format().storage == DType::E2M1 ? 1 : 0;
      packed_index += spec.index_k_format().storage == DType::E2M1 ? 1 : 0;
      std::string why;
      const Problem p = problem(testkit::to_line(spec));
      const PathRow* row = find_path(p, kHopper, why);
      ASSERT_NE(row, nullptr) << testkit::to_line(spec) << ": " << why;
      Layout layout;
      const std::string decisions = row->plan(p, kHopper, layout)->decisions();
      unpacked += decisions.find("attend_unpacks yes") != std::string::npos ? 1 : 0;
    }
  }
  EXPECT_GE(inside, 1000);
  EXPECT_GE(codes, 200);
  EXPECT_GE(packed, 100);
  EXPECT_GE(packed_index, 100);
  EXPECT_GE(unpacked, 73);
}

// Or no case would run the kernels that read it.
TEST(CudaPaths, CasesReadTheFilter) {
  const std::string tests = MSA_TESTS_DIR;
  int reads = 0, spares = 0, prefills = 0;
  for (const char* file : {"/cases/cuda.txt", "/cases/sanitizer.txt"}) {
    for (const testkit::Case& spec : testkit::read_cases(tests + file)) {
      if (!spec.filter) continue;
      const Problem p = problem(testkit::to_line(spec));
      std::string why;
      const PathRow* row = find_path(p, kHopper, why);
      ASSERT_NE(row, nullptr) << testkit::to_line(spec) << ": " << why;
      Layout layout;
      const std::string decisions = row->plan(p, kHopper, layout)->decisions();
      const bool fast = decisions.find("select_fast") != std::string::npos;
      EXPECT_EQ(fast, spec.precision == Precision::Fast) << testkit::to_line(spec);
      if (fast) continue;
      const bool selects = decisions.find("select_filter") != std::string::npos;
      const bool read = selects || decisions.find("decode_filter") != std::string::npos;
      (read ? reads : spares) += 1;
      prefills += selects ? 1 : 0;
      const bool is_long = testkit::to_line(spec).find("0000") != std::string::npos;  // of keys
      EXPECT_EQ(read, is_long) << testkit::to_line(spec);
    }
  }
  EXPECT_GE(reads, 40);
  EXPECT_GE(prefills, 40);
  EXPECT_GE(spares, 8);
}

TEST(CudaPaths, WorkspaceIsThatOfTheStages) {
  const Problem p = problem("op=msa lens=131072:131072");
  std::string why;
  const PathRow* row = find_path(p, kHopper, why);
  ASSERT_NE(row, nullptr) << why;
  Layout layout;
  EXPECT_NE(row->plan(p, kHopper, layout)->decisions().find("attend union"), std::string::npos);
  EXPECT_EQ(layout.bytes(), prefill_workspace("op=msa lens=131072:131072"));
}

TEST(CudaPlans, PlanningIsPure) {
  EXPECT_EQ(prefill_workspace("op=msa lens=32768:32768"),
            prefill_workspace("op=msa lens=32768:32768"));
}

TEST(CudaBackend, WithoutAGpuItSaysWhy) {
  for (const BackendInfo& info : build_info().backends) {
    if (info.name != "cuda") continue;
    EXPECT_EQ(info.available, !info.devices.empty());
    EXPECT_EQ(info.available, info.reason.empty());
    return;
  }
  FAIL() << "a build with CUDA lists no cuda backend";
}

TEST(CudaBackend, HostTensorsAreNotItsBusiness) {
  Problem p = problem("op=msa lens=64:64");
  p.device = {};
  p.options.backend = "cuda";
  const Support support = supports(p);
  EXPECT_FALSE(support.supported);
  for (const BackendAnswer& answer : support.backends) {
    if (answer.backend == "cuda") {
      EXPECT_EQ(answer.reason, "the tensors are on cpu");
    }
  }
}

}  // namespace
}  // namespace msa::cuda
