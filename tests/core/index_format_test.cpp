// SPDX-License-Identifier: MIT
// Index keys in codes: when their scales must be there, what they must look like, and which format
// the tensors of a call pose.
#include <gtest/gtest.h>

#include <array>
#include <functional>
#include <string>
#include <vector>

#include "testkit/generate.h"
#include "tests/core/bad_input.h"

namespace msa::test {
namespace {

using testkit::Data;
using testkit::Operands;

struct IndexKind {
  const char* name;
  Scale scale;
  int page;
  bool rounded = false;

  bool groups() const { return scale == Scale::Group || scale == Scale::GroupTensor; }
  Format format() const {
    return {groups() ? DType::E2M1 : DType::E4M3, scale, groups() ? 16 : 0, rounded};
  }
};
constexpr std::array kIndexKinds{
    IndexKind{"e4m3/tensor", Scale::Tensor, 0}, IndexKind{"e4m3/head", Scale::Head, 0},
    IndexKind{"e4m3/token", Scale::Token, 0},   IndexKind{"e4m3/tensor", Scale::Tensor, 16},
    IndexKind{"e4m3/head", Scale::Head, 16},    IndexKind{"e4m3/page", Scale::Page, 16},
    IndexKind{"e4m3/token", Scale::Token, 16},  IndexKind{"nvfp4", Scale::Group, 0},
    IndexKind{"nvfp4", Scale::Group, 16},       IndexKind{"nvfp4/tensor", Scale::GroupTensor, 0},
    IndexKind{"q8kv4", Scale::Group, 0, true},  IndexKind{"q8kv4", Scale::Group, 16, true}};
constexpr std::array kIndexOps{"scores", "select", "msa"};

Data indexed(const std::string& op, const std::string& format, int page = 0) {
  return Data(testkit::parse_case("op=" + op +
                                  " heads=4/2 index_heads_k=2 dim=16 block=16 topk=2 lens=3:40,2:20"
                                  " index_k=" +
                                  format + " page=" + std::to_string(page)));
}

struct IndexFault {
  const char* what;
  const char* expected;
  std::function<void(Tensor&)> spoil;
};

TEST(IndexScales, EveryFaultOfATensorIsNamed) {
  const std::array faults{
      IndexFault{"missing", "a tensor of ", [](Tensor& t) { t = {}; }},
      IndexFault{"rank", "rank", [](Tensor& t) { t.rank += t.rank < kMaxRank ? 1 : -1; }},
      IndexFault{"dtype", "got f16", [](Tensor& t) { t.dtype = DType::F16; }},
      IndexFault{"device", "cpu",
                 [](Tensor& t) {
                   t.device = {DeviceType::Cuda, 0};
                 }},
      IndexFault{"heads", "dimension",
                 [](Tensor& t) { ++t.shape[static_cast<std::size_t>(t.rank - 1)]; }},
      IndexFault{"first extent", "dimension", [](Tensor& t) { ++t.shape[0]; }},
      IndexFault{"stride", "at least 0", [](Tensor& t) { t.stride[0] = -1; }},
      IndexFault{"null", "the address", [](Tensor& t) { t.data = nullptr; }},
      IndexFault{"odd", "a multiple of 4",
                 [](Tensor& t) { t.data = static_cast<char*>(t.data) + 1; }}};
  for (const char* op : kIndexOps) {
    for (const IndexKind& kind : kIndexKinds) {
      for (const IndexFault& fault : faults) {
        if (kind.groups() && fault.what == std::string("odd")) continue;  // bytes never are
        for (const char* backend : {"reference", "cpu"}) {
          SCOPED_TRACE(std::string(op) + " " + kind.name + ": " + fault.what);
          Data data = indexed(op, kind.name, kind.page);
          Operands operands = data.prepare();
          fault.spoil(operands.index_k_scale);
          const std::string text =
              error_of([&] { run_with(data, operands, backend); }, "index_k_scale");
          EXPECT_NE(text.find(fault.expected), std::string::npos) << text;
          EXPECT_EQ(data.touched(), "");
        }
      }
    }
  }
}

TEST(IndexScales, AScaleOfScalesIsNeededOrRefused) {
  const std::vector<float> one(1, 2.0f);
  for (const char* op : kIndexOps) {
    for (const IndexKind& kind : kIndexKinds) {
      for (const char* backend : {"reference", "cpu"}) {
        SCOPED_TRACE(std::string(op) + " " + kind.name);
        Data data = indexed(op, kind.name, kind.page);
        Operands operands = data.prepare();
        const bool has = kind.scale == Scale::GroupTensor;
        operands.index_k_global_scale = has ? Tensor{} : make_tensor(one.data(), DType::F32, {1});
        const std::string text =
            error_of([&] { run_with(data, operands, backend); }, "index_k_global_scale");
        EXPECT_NE(text.find(has ? "a tensor of f32" : "no scale of scales"), std::string::npos)
            << text;
        EXPECT_EQ(data.touched(), "");
      }
    }
  }
  Data data = indexed("scores", "nvfp4/tensor");
  Operands operands = data.prepare();
  ++operands.index_k_global_scale.shape[0];
  error_of([&] { run_with(data, operands, "cpu"); }, "index_k_global_scale");
}

TEST(IndexScales, CodesLieTwoInAByte) {
  Data data = indexed("select", "q8kv4");
  Operands operands = data.prepare();
  operands.index_k.stride[0] += 1;
  const std::string text = error_of([&] { run_with(data, operands, "cpu"); }, "index_k");
  EXPECT_NE(text.find("two elements share a byte"), std::string::npos) << text;
}

TEST(IndexScales, AStrayOneIsRefusedNeverIgnored) {
  const std::vector<float> one(1, 2.0f);
  for (const char* format : {"auto", "e4m3"}) {
    for (const char* op : kIndexOps) {
      SCOPED_TRACE(std::string(op) + " " + format);
      Data data = indexed(op, format);
      Operands operands = data.prepare();
      operands.index_k_scale = make_tensor(one.data(), DType::F32, {1});
      const std::string text = error_of([&] { run_with(data, operands, "cpu"); }, "index_k_scale");
      EXPECT_NE(text.find("as the format has no scale"), std::string::npos) << text;
    }
  }
  Data dense(testkit::parse_case("op=dense heads=4/2 dim=16 block=16 lens=3:40 kv=e4m3/head"));
  Operands operands = dense.prepare();
  operands.index_k_scale = make_tensor(one.data(), DType::F32, {1});
  const std::string text = error_of([&] { run_with(dense, operands, "cpu"); }, "index_k_scale");
  EXPECT_NE(text.find("takes no such tensor"), std::string::npos) << text;
}

TEST(IndexScales, TheFormatIsReadOffTheTensors) {
  for (const char* op : kIndexOps) {
    for (const IndexKind& kind : kIndexKinds) {
      Data data = indexed(op, kind.name, kind.page);
      const Problem p = testkit::problem_of(data.spec().op, data.prepare(), data.settings());
      EXPECT_EQ(p.index.k, kind.format()) << op << " " << kind.name;
      EXPECT_EQ(p.index.q, Format{DType::BF16});
      EXPECT_NE(to_string(p).find(std::string(", index_k ") + kind.name), std::string::npos);
    }
    Data plain = indexed(op, "e4m3");
    EXPECT_EQ(testkit::problem_of(plain.spec().op, plain.prepare(), plain.settings()).index.k,
              Format{DType::E4M3});
    Data wide = indexed(op, "auto");
    EXPECT_FALSE(testkit::problem_of(wide.spec().op, wide.prepare(), wide.settings()).index.k);
  }
}

TEST(IndexFormats, IllegalOnesNameTheField) {
  for (const char* op : kIndexOps) {
    const Problem legal = indexed(op, "e4m3/head").problem();
    const auto refused = [&](const Format& q, const Format& k, const char* field,
                             const char* expected) {
      Problem p = legal;
      p.index.q = q;
      p.index.k = k;
      const std::string text = error_of([&] { make_plan(p); }, field);
      EXPECT_NE(text.find(expected), std::string::npos) << text;
    };
    const Format bf16{DType::BF16}, e4m3{DType::E4M3};
    refused(bf16, {DType::E4M3, Scale::Page}, "index.k", "as keys are ragged");
    refused(bf16, {DType::E4M3, Scale::Tensor, 16}, "index.k", "without a group");
    refused(bf16, {DType::E4M3, Scale::Tensor, 0, true}, "index.k", "e4m3 that is not rounded");
    refused(bf16, {DType::E4M3, static_cast<Scale>(9)}, "index.k", "a scale of none");
    refused(bf16, {DType::BF16, Scale::Tensor}, "index.k", "bf16, as q, or e4m3");
    refused(bf16, {DType::F16}, "index.k", "bf16, as q, or e4m3");
    refused(bf16, {DType::I8, Scale::Token}, "index.k", "bf16, as q, or e4m3");
    refused(bf16, {DType::E2M1}, "index.k", "nvfp4, nvfp4/tensor or q8kv4");
    refused(bf16, {DType::E2M1, Scale::Group, 32}, "index.k", "nvfp4, nvfp4/tensor or q8kv4");
    refused(bf16, {DType::E2M1, Scale::GroupTensor, 16, true}, "index.k", "nvfp4/tensor or q8kv4");
    refused(bf16, {DType::BF16, Scale::None, 0, true}, "index.k", "bf16, as q, or e4m3");
    refused(e4m3, bf16, "index.k", "expected e4m3, nvfp4 or q8kv4, got bf16");
    refused({DType::E4M3, Scale::Head}, {DType::E4M3, Scale::Head}, "index.q", "no scale");
    refused({DType::I8}, {DType::I8}, "index_dtype", "f32, f16, bf16 or e4m3");
  }
}

TEST(IndexFormats, GroupsFillTheDim) {
  Problem p = indexed("select", "q8kv4").problem();
  p.index.dim = 40;
  const std::string text = error_of([&] { make_plan(p); }, "index_dim");
  EXPECT_NE(text.find("a multiple of 16"), std::string::npos) << text;
}

TEST(IndexFormats, CodesHaveNoFilter) {
  for (const char* op : {"select", "msa"}) {
    for (const std::string format : {"e4m3/page", "q8kv4"}) {
      Problem p = indexed(op, format, 16).problem();
      p.index.filter = Format{DType::I8, Scale::Page};
      const std::string text = error_of([&] { make_plan(p); }, "index.filter");
      EXPECT_NE(text.find("none beside index keys in " + format), std::string::npos) << text;
    }
  }
}

TEST(IndexFormats, GpusRefuseThem) {
  for (const char* op : kIndexOps) {
    for (const char* format : {"e4m3/head", "q8kv4", "nvfp4/tensor"}) {
      Problem p = indexed(op, format).problem();
      p.device = {DeviceType::Cuda, 0};
      EXPECT_FALSE(supports(p).supported) << format;
    }
  }
}

}  // namespace
}  // namespace msa::test
