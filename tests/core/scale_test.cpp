// SPDX-License-Identifier: MIT
// Scales of keys and values: when they must be there, what they must look like, and which format
// the tensors of a call pose.
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "reference/number.h"
#include "testkit/generate.h"
#include "testkit/number.h"

namespace msa::test {
namespace {

using testkit::Data;
using testkit::Operands;

const std::string kBase = " heads=4/2 dim=16 block=16 topk=2 lens=3:40,2:20 lse=1 kv=";

std::string error_of(const std::function<void()>& call, const char* argument) {
  try {
    call();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::InvalidArgument) << error.what();
    EXPECT_EQ(error.argument(), argument) << error.what();
    return error.what();
  }
  ADD_FAILURE() << "no error";
  return "";
}

/// Plans what the case says and runs other tensors.
void run_with(const Data& data, const Operands& operands, const std::string& backend) {
  Problem problem = data.problem();
  problem.options.backend = backend;
  const Plan plan = make_plan(problem);
  testkit::GuardedWorkspace workspace(plan.workspace_bytes(), testkit::host_memory());
  testkit::run(plan, operands, workspace.view());
}

struct Kind {
  const char* name;
  Scale scale;
  std::int64_t page;
};
constexpr std::array kKinds{
    Kind{"e4m3/tensor", Scale::Tensor, 0}, Kind{"e4m3/head", Scale::Head, 0},
    Kind{"e4m3/token", Scale::Token, 0},   Kind{"e4m3/tensor", Scale::Tensor, 16},
    Kind{"e4m3/head", Scale::Head, 16},    Kind{"e4m3/page", Scale::Page, 16},
    Kind{"e4m3/token", Scale::Token, 16}};
constexpr std::array kOps{"dense", "sparse", "msa"};

Data data_of(const char* op, const Kind& kind) {
  return Data(testkit::parse_case(std::string("op=") + op + kBase + kind.name +
                                  " page=" + std::to_string(kind.page)));
}

using Spoil = std::function<void(Tensor&)>;
struct Fault {
  const char* what;
  const char* expected;
  Spoil spoil;
};

TEST(Scales, EveryFaultOfATensorIsNamed) {
  const std::array faults{
      Fault{"missing", "a tensor of f32", [](Tensor& t) { t = {}; }},
      Fault{"rank", "rank", [](Tensor& t) { ++t.rank; }},
      Fault{"dtype", "f32", [](Tensor& t) { t.dtype = DType::F16; }},
      Fault{"device", "cpu",
            [](Tensor& t) {
              t.device = {DeviceType::Cuda, 0};
            }},
      Fault{"heads", "dimension",
            [](Tensor& t) { ++t.shape[static_cast<std::size_t>(t.rank - 1)]; }},
      Fault{"first extent", "dimension", [](Tensor& t) { ++t.shape[0]; }},
      Fault{"stride", "at least 0", [](Tensor& t) { t.stride[0] = -1; }},
      Fault{"null", "the address", [](Tensor& t) { t.data = nullptr; }},
      Fault{"odd", "a multiple of 4", [](Tensor& t) { t.data = static_cast<char*>(t.data) + 1; }}};
  for (const char* op : kOps) {
    for (const Kind& kind : kKinds) {
      for (const Fault& fault : faults) {
        for (const auto& [name, member] :
             {std::pair{"k_scale", &Operands::k_scale}, std::pair{"v_scale", &Operands::v_scale}}) {
          for (const char* backend : {"reference", "cpu"}) {
            SCOPED_TRACE(std::string(op) + " " + kind.name + ": " + name + " " + fault.what);
            Data data = data_of(op, kind);
            Operands operands = data.prepare();
            fault.spoil(operands.*member);
            const std::string text = error_of([&] { run_with(data, operands, backend); }, name);
            EXPECT_NE(text.find(fault.expected), std::string::npos) << text;
            EXPECT_EQ(data.touched(), "");
          }
        }
      }
    }
  }
}

TEST(Scales, AStrayOneIsRefusedNeverIgnored) {
  const std::vector<float> one(1, 2.0f);
  for (const char* format : {"auto", "e4m3"}) {
    for (const char* op : kOps) {
      for (const auto& [name, member] :
           {std::pair{"k_scale", &Operands::k_scale}, std::pair{"v_scale", &Operands::v_scale}}) {
        SCOPED_TRACE(std::string(op) + " " + format + ": " + name);
        Data data(testkit::parse_case(std::string("op=") + op + kBase + format));
        Operands operands = data.prepare();
        operands.*member = make_tensor(one.data(), DType::F32, {1});
        const std::string text = error_of([&] { run_with(data, operands, "cpu"); }, name);
        EXPECT_NE(text.find("as the format has no scale"), std::string::npos) << text;
      }
    }
  }
  // Operations without keys and values take none at all.
  Data data(testkit::parse_case("op=select heads=2/2 dim=16 block=16 topk=2 lens=3:40"));
  Operands operands = data.prepare();
  operands.k_scale = make_tensor(one.data(), DType::F32, {1});
  error_of([&] { run_with(data, operands, "cpu"); }, "k_scale");
}

TEST(Scales, BlockMaximaNeedThoseOfKeysAlone) {
  Data data(
      testkit::parse_case("op=dense heads=4/2 dim=16 block=16 lens=3:40 kv=e4m3/token "
                          "block_max=1 output=0"));
  Operands operands = data.prepare();
  operands.v = operands.v_scale = {};
  EXPECT_NO_THROW(run_with(data, operands, "cpu"));
  operands.k_scale = {};
  error_of([&] { run_with(data, operands, "cpu"); }, "k_scale");
}

TEST(Scales, TheFormatIsReadOffTheTensors) {
  for (const char* op : kOps) {
    for (const Kind& kind : kKinds) {
      Data data = data_of(op, kind);
      const Problem p = testkit::problem_of(data.spec().op, data.prepare(), data.settings());
      const Format expected{DType::E4M3, kind.scale};
      EXPECT_EQ(p.attention.kv, expected) << op << " " << kind.name;
      EXPECT_NE(to_string(p).find(", kv " + to_string(expected)), std::string::npos);
      EXPECT_EQ(to_string(expected), kind.name);
    }
    Data plain(testkit::parse_case(std::string("op=") + op + kBase + "e4m3"));
    EXPECT_EQ(testkit::problem_of(plain.spec().op, plain.prepare(), plain.settings()).attention.kv,
              Format{DType::E4M3});
    Data wide(testkit::parse_case(std::string("op=") + op + kBase + "auto"));
    EXPECT_FALSE(testkit::problem_of(wide.spec().op, wide.prepare(), wide.settings()).attention.kv);
  }
}

TEST(Scales, KeysAndValuesAreStoredAlike) {
  Data data = data_of("sparse", kKinds[1]);
  Operands operands = data.prepare();
  operands.v.dtype = DType::BF16;
  error_of([&] { run_with(data, operands, "cpu"); }, "v");
}

TEST(Formats, IllegalOnesNameTheField) {
  const Data data = data_of("dense", kKinds[0]);
  const auto refused = [&](const Format& kv, const char* expected) {
    Problem p = data.problem();
    p.attention.kv = kv;
    const std::string text = error_of([&] { make_plan(p); }, "attention.kv");
    EXPECT_NE(text.find(expected), std::string::npos) << text;
  };
  refused({DType::E4M3, Scale::Page}, "as keys are ragged");
  refused({DType::E4M3, Scale::Tensor, 16}, "without a group");
  refused({DType::E4M3, static_cast<Scale>(9)}, "a scale of none");
  refused({DType::BF16, Scale::Tensor}, "bf16, as q, or e4m3");
  refused({DType::F16}, "bf16, as q, or e4m3");
  refused({DType::I8, Scale::Token}, "bf16, as q, or e4m3");
  refused({DType::NVFP4}, "bf16, as q, or e4m3");
  Problem p = data.problem();
  p.attention.q = {DType::E4M3};
  error_of([&] { make_plan(p); }, "dtype");
  p = testkit::problem_of(testkit::parse_case("op=msa heads=2/2 lens=3:40"));
  p.index.k = Format{DType::E4M3};
  error_of([&] { make_plan(p); }, "index.k");
}

TEST(Formats, GpusRefuseWhatTheirKernelsDoNotTake) {
  Problem p = data_of("dense", kKinds[0]).problem();
  p.device = {DeviceType::Cuda, 0};
  EXPECT_FALSE(supports(p).supported);
}

// All codes, from the definition of the format.
TEST(Codes, MeanWhatTheFormatSays) {
  for (int code = 0; code < 256; ++code) {
    const auto c = static_cast<std::uint8_t>(code);
    const int exponent = code >> 3 & 15, mantissa = code & 7;
    double value = std::ldexp(mantissa / 8.0 + (exponent > 0 ? 1 : 0), std::max(exponent, 1) - 7);
    if (code >= 128) value = -value;
    if ((code & 127) == 127) value = std::numeric_limits<double>::quiet_NaN();
    for (const double given : {reference::ReadE4M3::read(c), double{testkit::e4m3_to_float(c)}}) {
      EXPECT_TRUE(given == value || (std::isnan(given) && std::isnan(value))) << code;
      EXPECT_EQ(std::signbit(given), code >= 128) << code;
    }
    // Back again.
    EXPECT_EQ(testkit::float_to_e4m3(testkit::e4m3_to_float(c)), c);
  }
  for (const auto& [value, code] :
       {std::pair{1e9f, 0x7e}, std::pair{-460.0f, 0xfe}, std::pair{17.0f, 0x58},
        std::pair{19.0f, 0x5a}, std::pair{0x1p-10f, 0x00}, std::pair{0x1.8p-9f, 0x02},
        std::pair{0x1.fp-7f, 0x08}, std::pair{std::numeric_limits<float>::infinity(), 0x7f}}) {
    EXPECT_EQ(testkit::float_to_e4m3(value), code) << value;
  }
}

}  // namespace
}  // namespace msa::test
