// SPDX-License-Identifier: MIT
// Scales of keys and values: when they must be there, what they must look like, and which format
// the tensors of a call pose.
#include <gtest/gtest.h>

#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "cpu/convert.h"
#include "reference/number.h"
#include "testkit/generate.h"
#include "testkit/number.h"
#include "tests/core/bad_input.h"

namespace msa::test {
namespace {

using testkit::Data;
using testkit::Operands;

const std::string kBase = " heads=4/2 dim=16 block=16 topk=2 lens=3:40,2:20 lse=1 kv=";

struct Kind {
  const char* name;
  Scale scale;
  std::int64_t page;
  bool rounded = false;

  bool groups() const { return scale == Scale::Group || scale == Scale::GroupTensor; }
  DType stored() const { return groups() ? DType::E2M1 : DType::E4M3; }
  Format format() const { return {stored(), scale, groups() ? 16 : 0, rounded}; }
};
constexpr std::array kKinds{
    Kind{"e4m3/tensor", Scale::Tensor, 0}, Kind{"e4m3/head", Scale::Head, 0},
    Kind{"e4m3/token", Scale::Token, 0},   Kind{"e4m3/tensor", Scale::Tensor, 16},
    Kind{"e4m3/head", Scale::Head, 16},    Kind{"e4m3/page", Scale::Page, 16},
    Kind{"e4m3/token", Scale::Token, 16},  Kind{"nvfp4", Scale::Group, 0},
    Kind{"nvfp4", Scale::Group, 16},       Kind{"nvfp4/tensor", Scale::GroupTensor, 0},
    Kind{"q8kv4", Scale::Group, 0, true},  Kind{"q8kv4", Scale::Group, 16, true}};
constexpr std::array kOpNames{"dense", "sparse", "msa"};

Data data_of(const char* op, const Kind& kind) {
  return Data(testkit::parse_case(std::string("op=") + op + kBase + kind.name +
                                  " page=" + std::to_string(kind.page)));
}

using Spoil = std::function<void(Tensor&)>;
struct ScaleFault {
  const char* what;
  const char* expected;
  Spoil spoil;
};

TEST(Scales, EveryFaultOfATensorIsNamed) {
  const std::array faults{
      ScaleFault{"missing", "a tensor of ", [](Tensor& t) { t = {}; }},
      ScaleFault{"rank", "rank", [](Tensor& t) { t.rank += t.rank < kMaxRank ? 1 : -1; }},
      ScaleFault{"dtype", "got f16", [](Tensor& t) { t.dtype = DType::F16; }},
      ScaleFault{"device", "cpu",
                 [](Tensor& t) {
                   t.device = {DeviceType::Cuda, 0};
                 }},
      ScaleFault{"heads", "dimension",
                 [](Tensor& t) { ++t.shape[static_cast<std::size_t>(t.rank - 1)]; }},
      ScaleFault{"first extent", "dimension", [](Tensor& t) { ++t.shape[0]; }},
      ScaleFault{"stride", "at least 0", [](Tensor& t) { t.stride[0] = -1; }},
      ScaleFault{"null", "the address", [](Tensor& t) { t.data = nullptr; }},
      ScaleFault{"odd", "a multiple of 4",
                 [](Tensor& t) { t.data = static_cast<char*>(t.data) + 1; }}};
  for (const char* op : kOpNames) {
    for (const Kind& kind : kKinds) {
      for (const ScaleFault& fault : faults) {
        if (kind.groups() && fault.what == std::string("odd")) continue;  // bytes never are
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

TEST(Scales, AScaleOfScalesIsNeededOrRefused) {
  const std::vector<float> one(1, 2.0f);
  for (const char* op : kOpNames) {
    for (const Kind& kind : kKinds) {
      for (const auto& [name, member] : {std::pair{"k_global_scale", &Operands::k_global_scale},
                                         std::pair{"v_global_scale", &Operands::v_global_scale}}) {
        SCOPED_TRACE(std::string(op) + " " + kind.name + ": " + name);
        Data data = data_of(op, kind);
        Operands operands = data.prepare();
        const bool has = kind.scale == Scale::GroupTensor;
        operands.*member = has ? Tensor{} : make_tensor(one.data(), DType::F32, {1});
        const std::string text = error_of([&] { run_with(data, operands, "cpu"); }, name);
        EXPECT_NE(text.find(has ? "a tensor of f32" : "no scale of scales"), std::string::npos)
            << text;
        EXPECT_EQ(data.touched(), "");
      }
    }
  }
}

TEST(Scales, CodesLieTwoInAByte) {
  Data data = data_of("dense", {"nvfp4", Scale::Group, 0});
  Operands operands = data.prepare();
  operands.k.stride[0] += 1;
  const std::string text = error_of([&] { run_with(data, operands, "cpu"); }, "k");
  EXPECT_NE(text.find("two elements share a byte"), std::string::npos) << text;
}

TEST(Scales, AStrayOneIsRefusedNeverIgnored) {
  const std::vector<float> one(1, 2.0f);
  for (const char* format : {"auto", "e4m3"}) {
    for (const char* op : kOpNames) {
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
  for (const char* op : kOpNames) {
    for (const Kind& kind : kKinds) {
      Data data = data_of(op, kind);
      const Problem p = testkit::problem_of(data.spec().op, data.prepare(), data.settings());
      const Format expected = kind.format();
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
  refused({DType::E4M3, Scale::Tensor, 0, true}, "e4m3 that is not rounded");
  refused({DType::E4M3, Scale::Group, 16}, "without a group");
  refused({DType::BF16, Scale::Tensor}, "bf16, as q, or e4m3");
  refused({DType::F16}, "bf16, as q, or e4m3");
  refused({DType::I8, Scale::Token}, "bf16, as q, or e4m3");
  refused({DType::E2M1}, "nvfp4, nvfp4/tensor or q8kv4");
  refused({DType::E2M1, Scale::Group, 32}, "nvfp4, nvfp4/tensor or q8kv4");
  refused({DType::E2M1, Scale::GroupTensor, 16, true}, "nvfp4, nvfp4/tensor or q8kv4");
  Problem p = data.problem();
  p.attention.q = {DType::E4M3, Scale::Tensor};
  error_of([&] { make_plan(p); }, "attention.q");
  p.attention.q = {DType::E4M3};
  p.outputs.dtype = DType::E4M3;
  error_of([&] { make_plan(p); }, "out_dtype");
  p.attention.kv = Format{DType::BF16};
  p.outputs.dtype = DType::BF16;
  error_of([&] { make_plan(p); }, "attention.kv");
  p = data.problem();
  p.attention.kv = Format{DType::E2M1, Scale::Group, 16};
  p.attention.head_dim = 24;
  error_of([&] { make_plan(p); }, "head_dim");
  p.attention.head_dim = 32;
  p.attention.value_dim = 40;
  error_of([&] { make_plan(p); }, "value_dim");
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

// The 16 codes of e2m1, both nibbles, and the library's rounding to both formats against the test
// kit's, over every binade and every tie.
TEST(Codes, FourBitsAndBack) {
  constexpr std::array kSizes{0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0};
  for (int code = 0; code < 16; ++code) {
    const std::uint8_t pair = static_cast<std::uint8_t>(code | (15 - code) << 4);
    for (int at = 0; at < 2; ++at) {
      const int c = at == 0 ? code : 15 - code;
      const double value =
          c < 8 ? kSizes[static_cast<std::size_t>(c)] : -kSizes[static_cast<std::size_t>(c - 8)];
      std::array<float, 2> loaded{};
      testkit::load(&pair, DType::E2M1, 2, loaded.data());
      for (const double given :
           {reference::read_e2m1(&pair, at), double{loaded[static_cast<std::size_t>(at)]}}) {
        EXPECT_EQ(given, value);
        EXPECT_EQ(std::signbit(given), c >= 8);
      }
      EXPECT_EQ(testkit::float_to_e2m1(static_cast<float>(value)), c);
    }
  }
}

TEST(Codes, RoundingToE4M3) {
  for (std::uint32_t bits = 0; bits < 0x10000u; ++bits) {
    for (const std::uint32_t tail : {0u, 1u, 0x8000u, 0xffffu}) {
      const float x = std::bit_cast<float>(bits << 16 | tail);
      const std::uint8_t code = reference::encode_e4m3(x);
      EXPECT_EQ(code, cpu::float_to_e4m3(x)) << x;
      if (std::isnan(x)) {
        EXPECT_EQ(code, 0x7f);
      } else {
        EXPECT_EQ(code, std::isinf(x) ? (x < 0 ? 0xfe : 0x7e) : testkit::float_to_e4m3(x)) << x;
      }
    }
  }
}

}  // namespace
}  // namespace msa::test
