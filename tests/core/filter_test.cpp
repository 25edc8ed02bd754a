// SPDX-License-Identifier: MIT
// The filter of index keys: when its tensors must be there, what they must look like, and which
// problem the tensors of a call pose.
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

const std::string kBase = " heads=4/2 dim=16 block=16 topk=2 lens=3:40,2:20 filter=1 page=";
constexpr std::array kOps{"select", "msa"};
constexpr std::array kPages{0, 16, 32};

Data data_of(const std::string& op, int page) {
  return Data(testkit::parse_case("op=" + op + kBase + std::to_string(page)));
}

struct FilterFault {
  const char* what;
  const char* expected;
  std::function<void(Tensor&)> spoil;
};

TEST(Filter, EveryFaultOfATensorIsNamed) {
  const std::array faults{
      FilterFault{"missing", "a tensor of", [](Tensor& t) { t = {}; }},
      FilterFault{"rank", "rank", [](Tensor& t) { ++t.rank; }},
      FilterFault{"dtype", "got f16", [](Tensor& t) { t.dtype = DType::F16; }},
      FilterFault{"device", "cpu",
                  [](Tensor& t) {
                    t.device = {DeviceType::Cuda, 0};
                  }},
      FilterFault{"last extent", "dimension",
                  [](Tensor& t) { ++t.shape[static_cast<std::size_t>(t.rank - 1)]; }},
      FilterFault{"heads", "dimension",
                  [](Tensor& t) { ++t.shape[static_cast<std::size_t>(t.rank - 2)]; }},
      FilterFault{"first extent", "dimension", [](Tensor& t) { ++t.shape[0]; }},
      FilterFault{"fewer pages", "dimension", [](Tensor& t) { --t.shape[0]; }},
      FilterFault{"stride", "at least 0", [](Tensor& t) { t.stride[0] = -1; }},
      FilterFault{"null", "the address", [](Tensor& t) { t.data = nullptr; }}};
  for (const char* op : kOps) {
    for (const int page : kPages) {
      for (const FilterFault& fault : faults) {
        for (const auto& [name, member] :
             {std::pair{"index_k8", &Operands::index_k8},
              std::pair{"index_k8_bounds", &Operands::index_k8_bounds}}) {
          for (const char* backend : {"reference", "cpu"}) {
            SCOPED_TRACE(std::string(op) + " " + std::to_string(page) + ": " + name + " " +
                         fault.what);
            Data data = data_of(op, page);
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

TEST(Filter, CodesAreDenseAndCountsAreNot) {
  Data data = data_of("select", 16);
  Operands operands = data.prepare();
  operands.index_k8.stride[3] = 2;
  error_of([&] { run_with(data, operands, "cpu"); }, "index_k8");
  operands = data.prepare();
  operands.candidates.dtype = DType::F32;
  error_of([&] { run_with(data, operands, "cpu"); }, "candidates");
  operands = data.prepare();
  operands.candidates = {};  // nobody needs to want them
  EXPECT_NO_THROW(run_with(data, operands, "cpu"));
  EXPECT_NO_THROW(run_with(data, operands, "reference"));
}

TEST(Filter, StraysAreRefusedNeverIgnored) {
  for (const char* op : kOps) {
    for (const auto& [name, member] : {std::pair{"index_k8", &Operands::index_k8},
                                       std::pair{"index_k8_bounds", &Operands::index_k8_bounds}}) {
      SCOPED_TRACE(std::string(op) + ": " + name);
      Data with = data_of(op, 16);
      Data plain(testkit::parse_case("op=" + std::string(op) +
                                     " heads=4/2 dim=16 block=16 topk=2 lens=3:40,2:20 page=16"));
      Operands operands = plain.prepare();
      operands.*member = with.operands().*member;
      const std::string text = error_of([&] { run_with(plain, operands, "cpu"); }, name);
      EXPECT_NE(text.find("as the problem has no filter"), std::string::npos) << text;
    }
  }
  Data with = data_of("select", 16);
  Data plain(
      testkit::parse_case("op=select heads=4/2 dim=16 block=16 topk=2 lens=3:40,2:20 page=16"));
  Operands operands = plain.prepare();
  operands.candidates = with.operands().candidates;
  error_of([&] { run_with(plain, operands, "cpu"); }, "candidates");
  Data scores(testkit::parse_case("op=scores heads=4/2 dim=16 block=16 lens=3:40,2:20 page=16"));
  operands = scores.prepare();
  operands.index_k8 = with.operands().index_k8;
  error_of([&] { run_with(scores, operands, "cpu"); }, "index_k8");
}

TEST(Filter, TheProblemIsReadOffTheTensors) {
  const Format expected{DType::I8, Scale::Page};
  for (const char* op : kOps) {
    for (const int page : kPages) {
      Data data = data_of(op, page);
      const Problem p = testkit::problem_of(data.spec().op, data.prepare(), data.settings());
      EXPECT_EQ(p.index.filter, expected);
      EXPECT_NE(to_string(p).find(", filter i8/page"), std::string::npos) << to_string(p);
      Operands operands = data.prepare();
      operands.index_k8 = {};
      EXPECT_FALSE(
          testkit::problem_of(data.spec().op, operands, data.settings()).index.filter.has_value());
    }
  }
}

TEST(Filter, SettingsTellThatItIsRotated) {
  for (const char* op : {"select", "msa", "quantize_index"}) {
    for (const int page : kPages) {
      Data data(testkit::parse_case("op=" + std::string(op) + kBase + std::to_string(page) +
                                    " rotated=1"));
      const Problem p = testkit::problem_of(data.spec().op, data.prepare(), data.settings());
      EXPECT_EQ(p.index.filter,
                (Format{.storage = DType::I8, .scale = Scale::Page, .rotated = true}));
      EXPECT_NE(to_string(p).find(", filter i8/page/rotated"), std::string::npos) << to_string(p);
      Problem plain = p;
      plain.index.filter->rotated = false;
      EXPECT_NE(plain, p);
      EXPECT_NE(hash_value(plain), hash_value(p));
    }
  }
}

TEST(Filter, PrecisionIsThatOfSelectionsBesideOne) {
  for (const char* op : kOps) {
    Data data = data_of(op, 16);
    Settings settings = data.settings();
    settings.precision = Precision::Fast;
    const Problem p = testkit::problem_of(data.spec().op, data.prepare(), settings);
    EXPECT_EQ(p.selection.precision, Precision::Fast);
    EXPECT_NE(to_string(p).find(", precision fast"), std::string::npos) << to_string(p);
    EXPECT_NE(hash_value(p), hash_value(data.problem()));
    EXPECT_NE(p, data.problem());
    const auto refused = [&](const std::function<void(Problem&)>& spoil, const char* field,
                             const char* expected) {
      Problem odd = p;
      odd.options.backend = "reference";
      spoil(odd);
      const std::string text = error_of([&] { make_plan(odd); }, field);
      EXPECT_NE(text.find(expected), std::string::npos) << text;
    };
    refused([](Problem& odd) { odd.index.filter.reset(); }, "precision", "there is no filter");
    refused([](Problem& odd) { odd.index.dim = 272; }, "index_dim", "at most 256");
    refused([](Problem& odd) { odd.selection.precision = static_cast<Precision>(2); }, "precision",
            "exact or fast");
    const Support support = supports(p);
    EXPECT_FALSE(support.supported);
    for (const BackendAnswer& answer : support.backends) {
      if (answer.backend != "cpu") continue;
      EXPECT_NE(answer.reason.find("precision is exact here"), std::string::npos) << answer.reason;
    }
  }
  Problem topk = Data(testkit::parse_case("op=topk heads=2/2 block=16 topk=2 lens=3:40")).problem();
  topk.selection.precision = Precision::Fast;
  error_of([&] { make_plan(topk); }, "precision");
  // Nothing is scored from keys: there is nothing to count.
  Data fast(testkit::parse_case("op=select precision=fast" + kBase + "16"));
  Operands operands = fast.prepare();
  EXPECT_FALSE(operands.candidates);
  EXPECT_NO_THROW(run_with(fast, operands, "reference"));
  operands.candidates = data_of("select", 16).operands().candidates;
  error_of([&] { run_with(fast, operands, "reference"); }, "candidates");
}

TEST(Filter, NothingElseIsRotated) {
  const Format kv{.storage = DType::E4M3, .rotated = true};
  const Format groups{.storage = DType::E2M1, .scale = Scale::Group, .group = 16, .rotated = true};
  const auto refused = [](const char* field, const std::function<void(Problem&)>& spoil) {
    Problem p =
        Data(testkit::parse_case("op=msa heads=4/2 dim=16 block=16 topk=2 lens=3:40")).problem();
    spoil(p);
    error_of([&] { make_plan(p); }, field);
  };
  for (const Format& format : {kv, groups}) {
    refused("attention.kv", [&](Problem& p) { p.attention.kv = format; });
    refused("index.k", [&](Problem& p) { p.index.k = format; });
  }
  refused("index.q", [](Problem& p) { p.index.q.rotated = true; });
  refused("attention.q", [](Problem& p) { p.attention.q.rotated = true; });
}

TEST(Filter, IllegalProblemsNameTheField) {
  const auto refused = [&](Problem p, const Format& filter, const char* expected) {
    p.index.filter = filter;
    const std::string text = error_of([&] { make_plan(p); }, "index.filter");
    EXPECT_NE(text.find(expected), std::string::npos) << text;
  };
  for (const char* op : kOps) {
    const Problem p = data_of(op, 16).problem();
    refused(p, {DType::I8}, "i8/page");
    refused(p, {DType::I8, Scale::Token}, "i8/page");
    refused(p, {DType::E4M3, Scale::Page}, "i8/page");
    refused(p, {DType::I8, Scale::Page, 16}, "i8/page");
  }
  // Rotations are of powers of two.
  for (const auto& [dim, legal] : {std::pair{48, false}, {512, false}, {16, true}, {256, true}}) {
    Problem p = data_of("select", 16).problem();
    p.index.filter->rotated = true;
    p.index.dim = dim;
    if (legal) {
      EXPECT_NO_THROW(make_plan(p)) << dim;
      continue;
    }
    const std::string text = error_of([&] { make_plan(p); }, "index_dim");
    EXPECT_NE(text.find("a power of two of at most 256"), std::string::npos) << text;
  }
  const testkit::Case scores = testkit::parse_case("op=scores heads=2/2 dim=16 block=16 lens=3:40");
  refused(testkit::problem_of(scores), {DType::I8, Scale::Page}, "none for block_scores");
}

TEST(Filter, CountsHaveARowAndAHead) {
  Data data = data_of("select", 16);
  const Operands operands = data.prepare();
  for (const Field& field : fields_of(Op::SelectBlocks)) {
    if (field.name != "candidates") continue;
    const Tensor made = output_of(data.problem(), operands.view(), field);
    EXPECT_EQ(to_string(made), "i32[5, 2] strides (2, 1) on cpu");
    EXPECT_EQ(field.role, Role::OptionalOutput);
  }
}

TEST(Filter, GpusRefuseIt) {
  for (const char* op : kOps) {
    Problem p = data_of(op, 16).problem();
    p.device = {DeviceType::Cuda, 0};
    EXPECT_FALSE(supports(p).supported);
  }
}

}  // namespace
}  // namespace msa::test
