// SPDX-License-Identifier: MIT
// Every argument of every operation with every kind of fault that applies to it. Each must be
// refused with the right code, the argument's name, what was expected and what was given, and no
// byte of any tensor may change.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "testkit/nonsense.h"
#include "tests/core/scene.h"

namespace msa::test {
namespace {

constexpr std::int64_t kHuge = std::int64_t{1} << 62;

struct Fault {
  std::string what{};
  std::function<void(Scene&)> spoil{};
  ErrorCode code = ErrorCode::InvalidArgument;
  std::string argument{};
  std::string expected{};
  std::string given{};
};

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

// The words of a message around ", got ".
std::pair<std::string, std::string> halves(const std::string& message) {
  const std::size_t comma = message.rfind(", got ");
  if (comma == std::string::npos) return {message, ""};
  return {message.substr(0, comma), message.substr(comma)};
}

void expect_refused(Scene& scene, const Fault& fault, const std::function<void()>& call) {
  const auto before = scene.snapshot();
  try {
    call();
    ADD_FAILURE() << "accepted";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), fault.code) << error.what();
    EXPECT_EQ(error.argument(), fault.argument) << error.what();
    const auto [expected, given] = halves(error.what());
    const std::string op = to_string(scene.problem.op);
    EXPECT_EQ(expected.rfind(op + ": " + fault.argument, 0), 0u) << error.what();
    EXPECT_TRUE(contains(expected, fault.expected)) << error.what() << "\nlacks " << fault.expected;
    EXPECT_TRUE(contains(given, fault.given)) << error.what() << "\nlacks " << fault.given;
  }
  EXPECT_TRUE(scene.snapshot() == before) << "a tensor was written";
}

class EveryScene : public testing::TestWithParam<std::pair<Op, Keys>> {
 protected:
  Scene scene() const { return Scene(GetParam().first, GetParam().second); }

  // Runs one fault on every backend that serves the scene.
  void refuse(const Fault& fault) const {
    for (const std::string& backend : serving_backends(scene().problem)) {
      Scene spoiled = scene();
      fault.spoil(spoiled);
      SCOPED_TRACE(backend + ": " + fault.argument + ": " + fault.what);
      expect_refused(spoiled, fault, [&] { spoiled.run(backend); });
      expect_refused_or_another_problem(spoiled, backend);
    }
  }

  // The one-call form reads its problem off the tensors: some faults are other legal problems there
  // (a row more everywhere), and some are met under another name.
  static void expect_refused_or_another_problem(Scene& scene, const std::string& backend) {
    SCOPED_TRACE("one-call form");
    const auto before = scene.snapshot();
    try {
      scene.run_once(backend);
    } catch (const Error& error) {
      EXPECT_TRUE(error.code() == ErrorCode::InvalidArgument ||
                  error.code() == ErrorCode::InvalidContent ||
                  error.code() == ErrorCode::Unsupported)
          << error.what();
      EXPECT_FALSE(error.argument().empty()) << error.what();
      EXPECT_TRUE(scene.snapshot() == before) << "a tensor was written: " << error.what();
    }
  }

  // The fault of one tensor.
  void refuse(const Arg& arg, const std::string& what, const std::function<void(Tensor&)>& spoil,
              const std::string& expected, const std::string& given) const {
    refuse({.what = what,
            .spoil = [&](Scene& s) { spoil(s.tensor(arg.name)); },
            .argument = arg.name,
            .expected = expected,
            .given = given});
  }
};

std::string scene_name(const testing::TestParamInfo<std::pair<Op, Keys>>& info) {
  return std::string(to_string(info.param.first)) +
         (info.param.second == Keys::Paged ? "_paged" : "");
}

INSTANTIATE_TEST_SUITE_P(BadInput, EveryScene, testing::ValuesIn(all_scenes()), scene_name);

TEST_P(EveryScene, IsLegalAsItIs) {
  const std::vector<std::string> backends = serving_backends(scene().problem);
  ASSERT_TRUE(std::count(backends.begin(), backends.end(), "reference") == 1);
  for (const std::string& backend : backends) {
    Scene legal = scene();
    const auto before = legal.snapshot();
    EXPECT_NO_THROW(legal.run(backend)) << backend;
    for (std::size_t i = 0; i < legal.args.size(); ++i) {
      EXPECT_EQ(legal.args[i]->memory != before[i], legal.args[i]->output) << legal.args[i]->name;
    }
  }
}

TEST_P(EveryScene, MissingTensor) {
  for (const auto& arg : scene().args) {
    if (arg->optional) continue;
    refuse(
        *arg, "missing", [](Tensor& t) { t = {}; },
        "a tensor of " + std::string(to_string(arg->tensor.dtype)), "none");
  }
}

TEST_P(EveryScene, OptionalTensorMayBeMissing) {
  for (const auto& arg : scene().args) {
    if (!arg->optional) continue;
    for (const std::string& backend : serving_backends(scene().problem)) {
      Scene legal = scene();
      legal.tensor(arg->name) = {};
      EXPECT_NO_THROW(legal.run(backend)) << arg->name;
    }
  }
}

// A fault of one tensor that no other problem explains: the one-call form refuses it by name, too.
TEST_P(EveryScene, TheOneCallFormNamesTheTensor) {
  struct OfOneTensor {
    const char* what;
    std::function<void(Tensor&)> spoil;
  };
  const OfOneTensor faults[] = {
      {"rank 100", [](Tensor& t) { t.rank = 100; }},
      {"rank -1", [](Tensor& t) { t.rank = -1; }},
      {"null", [](Tensor& t) { t.data = nullptr; }},
      {"an odd address", [](Tensor& t) { t.data = static_cast<char*>(t.data) + 1; }},
      {"a negative stride", [](Tensor& t) { t.stride[0] = -1; }},
      {"a wild stride", [](Tensor& t) { t.stride[0] = std::int64_t{1} << 60; }},
      {"a dtype that nobody stores", [](Tensor& t) { t.dtype = DType::I8; }},
      {"a negative extent", [](Tensor& t) { t.shape[0] = -1; }},
  };
  for (const auto& arg : scene().args) {
    for (const OfOneTensor& fault : faults) {
      Scene spoiled = scene();
      SCOPED_TRACE(arg->name + ": " + fault.what);
      fault.spoil(spoiled.tensor(arg->name));
      const auto before = spoiled.snapshot();
      try {
        spoiled.run_once("reference");
        ADD_FAILURE() << "accepted";
      } catch (const Error& error) {
        EXPECT_NE(std::string(error.what()).find(arg->name), std::string::npos) << error.what();
        EXPECT_TRUE(spoiled.snapshot() == before) << "a tensor was written: " << error.what();
      }
    }
  }
}

TEST_P(EveryScene, TheOneCallFormDoesWhatThePlanDoes) {
  for (const std::string& backend : serving_backends(scene().problem)) {
    Scene planned = scene();
    planned.run(backend);
    Scene once = scene();
    once.run_once(backend);
    EXPECT_TRUE(once.snapshot() == planned.snapshot()) << backend;
  }
}

TEST_P(EveryScene, GroupsThatTheOperationDoesNotUseAreIgnored) {
  const std::vector<std::string> backends = serving_backends(scene().problem);
  Scene strange = scene();
  strange.problem = testkit::with_nonsense(strange.problem);
  EXPECT_EQ(serving_backends(strange.problem), backends);
  EXPECT_EQ(to_string(strange.problem), to_string(scene().problem));
  for (const std::string& backend : backends) {
    Scene usual = scene();
    usual.run(backend);
    Scene other = scene();
    other.problem = strange.problem;
    other.run(backend);
    EXPECT_TRUE(other.snapshot() == usual.snapshot()) << backend;
    EXPECT_EQ(strange.plan(backend).workspace_bytes(), scene().plan(backend).workspace_bytes());
  }
}

TEST_P(EveryScene, ABatchDimensionIsToldOf) {
  for (const auto& arg : scene().args) {
    if (arg->tensor.rank != 3) continue;
    refuse(
        *arg, "a batch in front", [](Tensor& t) { t.rank = 4; },
        "rank 3 (the rows of all requests one after the other)", "rank 4");
  }
}

TEST_P(EveryScene, WrongRank) {
  for (const auto& arg : scene().args) {
    const int rank = arg->tensor.rank;
    for (const int wrong : {rank - 1, rank + 1, -1, 100}) {
      if (wrong == 0) continue;  // a tensor of rank 0 is one that is missing
      refuse(
          *arg, "rank", [&](Tensor& t) { t.rank = wrong; }, "rank " + std::to_string(rank),
          "rank " + std::to_string(wrong));
    }
  }
}

TEST_P(EveryScene, WrongDtype) {
  for (const auto& arg : scene().args) {
    const DType right = arg->tensor.dtype;
    for (const DType wrong : {DType::F32, DType::F16, DType::BF16, DType::I32, DType::I64,
                              DType::E4M3, DType::I8, DType::E2M1}) {
      if (wrong == right) continue;
      refuse(
          *arg, "dtype", [&](Tensor& t) { t.dtype = wrong; }, to_string(right), to_string(wrong));
    }
  }
}

TEST_P(EveryScene, WrongDevice) {
  for (const auto& arg : scene().args) {
    refuse(
        *arg, "device",
        [](Tensor& t) {
          t.device = {DeviceType::Cuda, 0};
        },
        "cpu", "cuda:0");
    refuse(
        *arg, "device", [](Tensor& t) { t.device.index = 1; }, "cpu", "cpu:1");
  }
}

TEST_P(EveryScene, WrongShape) {
  for (const auto& arg : scene().args) {
    for (std::size_t i = 0; i < arg->dims.size(); ++i) {
      const std::int64_t right = arg->tensor.shape[i];
      const auto extent = [&](std::int64_t wrong) {
        refuse(
            *arg, "extent " + std::to_string(i), [&](Tensor& t) { t.shape[i] = wrong; },
            std::to_string(right), std::to_string(wrong));
      };
      const Dim dim = arg->dims[i];
      if (dim == Dim::Bound || dim == Dim::Exact) extent(right + 1);
      if (dim == Dim::AtLeast || dim == Dim::Exact) extent(right - 1);
      if (dim == Dim::Bound || dim == Dim::Exact) extent(kHuge);
      if (dim == Dim::AtLeast || dim == Dim::Free) {
        const bool part = arg->name.rfind("block_ids_parts", 0) == 0;
        refuse(
            *arg, "huge extent", [&](Tensor& t) { t.shape[i] = kHuge; },
            part ? "1 to 256" : "inside the address space", std::to_string(kHuge));
      }
      refuse(
          *arg, "negative extent", [&](Tensor& t) { t.shape[i] = -1; }, "expected", "-1");
    }
  }
}

TEST_P(EveryScene, WrongStride) {
  for (const auto& arg : scene().args) {
    for (int i = 0; i < arg->tensor.rank; ++i) {
      refuse(
          *arg, "negative stride", [&](Tensor& t) { t.stride[static_cast<std::size_t>(i)] = -1; },
          "stride of dimension " + std::to_string(i) + ": expected at least 0", "-1");
    }
    const int last = arg->tensor.rank - 1;
    for (const std::int64_t wrong : {0, 2}) {
      if (!arg->dense_innermost) continue;
      refuse(
          *arg, "inner stride",
          [&](Tensor& t) { t.stride[static_cast<std::size_t>(last)] = wrong; },
          "stride of dimension " + std::to_string(last) + ": expected 1", std::to_string(wrong));
    }
  }
}

TEST_P(EveryScene, ExtentBeyondTheAddressSpace) {
  for (const auto& arg : scene().args) {
    for (const std::int64_t wild : {std::int64_t{1} << 62, INT64_MAX, std::int64_t{1} << 60}) {
      refuse(
          *arg, "stride", [&](Tensor& t) { t.stride[0] = wild; }, "inside the address space",
          std::to_string(wild));
    }
  }
}

TEST_P(EveryScene, NullPointer) {
  for (const auto& arg : scene().args) {
    std::int64_t count = 1;
    for (int i = 0; i < arg->tensor.rank; ++i)
      count *= arg->tensor.shape[static_cast<std::size_t>(i)];
    refuse(
        *arg, "null", [](Tensor& t) { t.data = nullptr; },
        "the address of " + std::to_string(count) + " elements", "null");
  }
}

TEST_P(EveryScene, MisalignedPointer) {
  for (const auto& arg : scene().args) {
    refuse(
        *arg, "misaligned", [](Tensor& t) { t.data = static_cast<char*>(t.data) + 1; },
        "a multiple of " + std::to_string(size_in_bytes(arg->tensor.dtype, 1)), "1 bytes beyond");
  }
}

TEST_P(EveryScene, OutputOverlapsItself) {
  for (const auto& arg : scene().args) {
    if (!arg->output) continue;
    refuse(
        *arg, "stride 0", [](Tensor& t) { t.stride[0] = 0; }, "do not overlap", "strides (0, ");
    refuse(
        *arg, "stride too small", [](Tensor& t) { t.stride[0] -= 1; }, "do not overlap",
        "strides (" + std::to_string(arg->tensor.stride[0] - 1));
  }
}

// Outputs are compared with what comes before them, so that of two outputs the later one is
// refused.
TEST_P(EveryScene, OutputOverlapsAnotherTensor) {
  const Scene legal = scene();
  for (std::size_t i = 0; i < legal.args.size(); ++i) {
    const Arg& out = *legal.args[i];
    for (std::size_t j = 0; out.output && j < i; ++j) {
      const Arg& other = *legal.args[j];
      const bool in_place = (out.name == "out" && other.name == "outs[0]") ||
                            (out.name == "lse" && other.name == "lses[0]");
      if (in_place) continue;
      refuse({.what = "memory of " + other.name,
              .spoil = [&](Scene& s) { s.tensor(out.name).data = s.tensor(other.name).data; },
              .argument = out.name,
              .expected = "memory apart from " + other.name,
              .given = "memory that overlaps it"});
    }
  }
}

TEST_P(EveryScene, Workspace) {
  for (const std::string& backend : serving_backends(scene().problem)) {
    const Plan plan = scene().plan(backend);
    const std::size_t needed = plan.workspace_bytes();
    if (needed == 0) continue;
    std::vector<char> memory(needed + 2 * kWorkspaceAlignment);
    const std::size_t up =
        kWorkspaceAlignment - reinterpret_cast<std::uintptr_t>(memory.data()) % kWorkspaceAlignment;
    char* const aligned = memory.data() + up;
    const auto refuse_workspace = [&](msa::Workspace w, const std::string& expected,
                                      const std::string& given) {
      Scene s = scene();
      SCOPED_TRACE(backend + ": " + given);
      const Fault fault{.code = ErrorCode::Workspace,
                        .argument = "workspace",
                        .expected = expected,
                        .given = given};
      expect_refused(s, fault, [&] { s.run(plan, w); });
    };
    const std::string size = "at least " + std::to_string(needed) + " bytes";
    refuse_workspace({}, size, "null");
    refuse_workspace({aligned, needed - 1}, size, std::to_string(needed - 1));
    refuse_workspace({aligned + 64, needed}, "a multiple of 256", "64 bytes beyond");
  }
}

TEST_P(EveryScene, WorkspaceOverlapsATensor) {
  for (const std::string& backend : serving_backends(scene().problem)) {
    const Plan plan = scene().plan(backend);
    if (plan.workspace_bytes() == 0) continue;
    for (const auto& arg : scene().args) {
      std::vector<char> memory(plan.workspace_bytes() + (std::size_t{1} << 16));
      const std::size_t up = kWorkspaceAlignment -
                             reinterpret_cast<std::uintptr_t>(memory.data()) % kWorkspaceAlignment;
      Scene s = scene();
      SCOPED_TRACE(backend + ": " + arg->name);
      s.tensor(arg->name).data = memory.data() + up;
      const auto before = memory;
      const Fault fault{.code = ErrorCode::Workspace,
                        .argument = "workspace",
                        .expected = "memory apart from " + arg->name,
                        .given = "memory that overlaps it"};
      expect_refused(s, fault, [&] { s.run(plan, {memory.data() + up, plan.workspace_bytes()}); });
      EXPECT_EQ(memory, before);
    }
  }
}

TEST_P(EveryScene, OutputThatThePlanLacks) {
  const auto unplanned = [&](const char* name, const std::function<void(Problem&)>& change) {
    if (scene().find(name) == nullptr) return;
    const Tensor given = scene().tensor(name);
    refuse({.what = "not planned",
            .spoil = [&](Scene& s) { change(s.problem); },
            .argument = name,
            .expected = "none, as the plan does not write it",
            .given = std::string(to_string(given.dtype)) + "["});
  };
  if (scene().problem.op == Op::DenseAttention) {
    unplanned("out", [](Problem& p) { p.outputs.out = p.outputs.lse = false; });
    unplanned("block_max", [](Problem& p) { p.outputs.block_max = false; });
  }
  unplanned("lse", [](Problem& p) { p.outputs.lse = false; });
  unplanned("chosen_scores", [](Problem& p) { p.outputs.chosen_scores = false; });
}

TEST_P(EveryScene, TensorThatTheOperationDoesNotTake) {
  const Scene legal = scene();
  if (legal.problem.bounds.parts != 0) return;  // merges have no batch
  const auto extra = [&](const char* name, const char* why) {
    refuse({.what = "unexpected",
            .spoil =
                [&](Scene& s) {
                  auto arg = std::make_unique<Arg>();
                  arg->name = name;
                  arg->tensor = s.tensor("batch.cu_seqlens_q");
                  s.args.push_back(std::move(arg));
                },
            .argument = name,
            .expected = std::string("none, as ") + why,
            .given = "i32[3]"});
  };
  const bool keys = legal.problem.op != Op::SelectTopk && legal.problem.op != Op::InvertSelection;
  if (!keys) {
    extra("batch.page_table", "the operation takes no keys");
    extra("batch.cu_seqlens_k", "the operation takes no keys");
  } else if (GetParam().second == Keys::Paged) {
    extra("batch.cu_seqlens_k", "the plan is for paged keys");
  } else {
    extra("batch.page_table", "the plan is for ragged keys");
  }
}

// Without lengths one request owns all rows, which must then stay within the bounds of one request.
TEST_P(EveryScene, MissingLengthsOfOneRequest) {
  Scene legal = scene();
  if (legal.problem.bounds.parts != 0) return;
  const auto drop_batch = [](Scene& s) {
    for (auto& arg : s.args) {
      if (arg->name.rfind("batch.", 0) == 0 && arg->name != "batch.page_table") arg->tensor = {};
    }
    s.problem.bounds.max_seqlen_q = 6;
    s.problem.bounds.max_seqlen_k = 80;
    s.problem.selection.topk = 2;
  };
  const bool self_told = legal.find("batch.cu_seqlens_k") != nullptr;  // ragged keys say how many
  if (!self_told) {
    refuse({.what = "no lengths",
            .spoil =
                [&](Scene& s) {
                  drop_batch(s);
                  s.problem.bounds.max_seqlen_k = 40;
                  if (s.find("batch.page_table") != nullptr)
                    s.tensor("batch.page_table").shape[0] = 1;
                },
            .argument = "batch.seqlens_k",
            .expected = "a tensor of i32",
            .given = "none"});
    return;
  }
  for (const char* name : {"block_max", "scores"}) {
    if (legal.find(name) != nullptr) return;  // as wide as max_seqlen_k; the others show the rule
  }
  refuse({.what = "too many queries",
          .spoil = [&](Scene& s) { drop_batch(s), s.problem.bounds.max_seqlen_q = 5; },
          .argument = "batch.cu_seqlens_q",
          .expected = "at most 5 rows",
          .given = "6 rows"});
  refuse({.what = "too many keys",
          .spoil = [&](Scene& s) { drop_batch(s), s.problem.bounds.max_seqlen_k = 79; },
          .argument = "batch.seqlens_k",
          .expected = "at most 79 rows",
          .given = "80 rows"});
}

TEST(Merges, WrongNumberOfParts) {
  for (const auto& [op, argument] :
       {std::pair(Op::MergeStates, "outs"), std::pair(Op::MergeSelections, "block_ids_parts")}) {
    Scene s(op, Keys::Ragged);
    s.problem.bounds.parts = 2;
    const Fault fault{.argument = argument, .expected = "2 parts", .given = "3"};
    expect_refused(s, fault, [&] { s.run("reference"); });
  }
  for (const auto& [op, argument] : {std::pair(Op::MergeStates, "outs"),
                                     std::pair(Op::MergeSelections, "chosen_scores_parts")}) {
    Scene s(op, Keys::Ragged);
    s.drop_parts = 1;
    const Fault fault{.argument = argument, .expected = "3 parts", .given = "2"};
    expect_refused(s, fault, [&] { s.run("reference"); });
  }
}

TEST(Merges, PartsWiderThanAList) {
  Scene s(Op::MergeSelections, Keys::Ragged);
  s.tensor("block_ids_parts[1]").shape[2] = 257;
  const Fault fault{.argument = "block_ids_parts[1]", .expected = "1 to 256", .given = "257"};
  expect_refused(s, fault, [&] { s.run("reference"); });
}

TEST(Merges, InPlaceMeansExactlyInPlace) {
  Scene exact(Op::MergeStates, Keys::Ragged);
  exact.tensor("out") = exact.tensor("outs[0]");
  exact.tensor("lse") = exact.tensor("lses[0]");
  EXPECT_NO_THROW(exact.run("reference"));
  Scene shifted(Op::MergeStates, Keys::Ragged);
  shifted.tensor("out") = shifted.tensor("outs[0]");
  shifted.tensor("out").data = static_cast<std::uint16_t*>(shifted.tensor("out").data) + 1;
  const Fault fault{.argument = "out", .expected = "apart from outs[0]", .given = "overlaps"};
  expect_refused(shifted, fault, [&] { shifted.run("reference"); });
}

// ---- what the index tensors hold ----

struct Content {
  const char* tensor;
  std::int64_t index;
  std::int32_t value;
  const char* argument;
  const char* expected;
  const char* given;
};

// One number of one tensor is changed; the rest of the scene is legal.
const std::vector<Content>& bad_contents() {
  static const std::vector<Content> table = {
      {"batch.cu_seqlens_q", 0, 1, "batch.cu_seqlens_q", "entry 0: expected 0 to 0", "1"},
      {"batch.cu_seqlens_q", 0, -1, "batch.cu_seqlens_q", "entry 0: expected 0 to 0", "-1"},
      {"batch.cu_seqlens_q", 1, -1, "batch.cu_seqlens_q", "entry 1: expected 0 to 3", "-1"},
      {"batch.cu_seqlens_q", 1, 4, "batch.cu_seqlens_q", "entry 1: expected 0 to 3", "4"},
      {"batch.cu_seqlens_q", 2, 1, "batch.cu_seqlens_q", "entry 2: expected 2 to 5", "1"},
      {"batch.cu_seqlens_q", 2, 7, "batch.cu_seqlens_q", "entry 2: expected 2 to 5", "7"},
      {"batch.seqlens_k", 0, -1, "batch.seqlens_k", "request 0: expected 0 to 40", "-1"},
      {"batch.seqlens_k", 1, 41, "batch.seqlens_k", "request 1: expected 0 to 40", "41"},
      {"batch.seqlens_k", 1, INT32_MAX, "batch.seqlens_k", "request 1: expected 0 to 40",
       "2147483647"},
      {"batch.key_offsets", 1, 8, "batch.key_offsets", "request 1: expected a multiple of 16", "8"},
      {"batch.key_offsets", 1, -16, "batch.key_offsets", "request 1: expected 0 to", "-16"},
      {"batch.total_seqlens_k", 1, 48, "batch.total_seqlens_k", "request 1: expected 49 to", "48"},
      {"batch.total_seqlens_k", 0, -1, "batch.total_seqlens_k", "request 0: expected 40 to", "-1"},
      {"batch.cu_seqlens_k", 0, -1, "batch.cu_seqlens_k", "entry 0: expected 0 to 80", "-1"},
      {"batch.cu_seqlens_k", 0, 81, "batch.cu_seqlens_k", "entry 0: expected 0 to 80", "81"},
      {"batch.cu_seqlens_k", 1, 39, "batch.cu_seqlens_k", "entry 1: expected 40 to 80", "39"},
      {"batch.cu_seqlens_k", 1, 48, "batch.cu_seqlens_k", "entry 2: expected 81 to 80", "80"},
      {"batch.cu_seqlens_k", 2, 76, "batch.cu_seqlens_k", "entry 2: expected 77 to 80", "76"},
      {"batch.cu_seqlens_k", 2, 81, "batch.cu_seqlens_k", "entry 2: expected 77 to 80", "81"},
      {"batch.page_table", 1, 6, "batch.page_table", "request 0, column 1: expected 0 to 5", "6"},
      {"batch.page_table", 5, -1, "batch.page_table", "request 1, column 2: expected 0 to 5", "-1"},
      {"batch.page_table", 3, INT32_MIN, "batch.page_table", "request 1, column 0: expected 0 to 5",
       "-2147483648"},
      {"block_ids", 1, 3, "block_ids", "row 0, head 0, slot 1: expected 0 to 2 or -1", "3"},
      {"block_ids", 2, -2, "block_ids", "row 0, head 1, slot 0: expected 0 to 2 or -1", "-2"},
      {"block_ids", 12, 4, "block_ids", "row 3, head 0, slot 0: expected 0 to 3 or -1", "4"},
      {"block_ids", 18, 9999, "block_ids", "row 4, head 1, slot 0: expected 0 to 3 or -1", "9999"},
      {"block_ids", 1, 0, "block_ids", "row 0, head 0, slot 1: expected an id not listed before",
       "0 again"},
      {"block_ids", 13, 3, "block_ids", "row 3, head 0, slot 1: expected an id not listed before",
       "3 again"},
      {"block_ids_parts[1]", 4, -7, "block_ids_parts[1]", "row 1, head 0, slot 0: expected 0 to",
       "-7"},
      {"block_ids_parts[1]", 3, 11, "block_ids_parts[1]",
       "row 0, head 1, slot 1: expected an id not", "11 again"},
      {"block_ids_parts[2]", 2, 11, "block_ids_parts",
       "row 0, head 1: expected each id in one part", "11 in two"},
  };
  return table;
}

TEST_P(EveryScene, ContentsOutOfRange) {
  int applied = 0;
  for (const Content& row : bad_contents()) {
    Scene legal = scene();
    const Arg* arg = legal.find(row.tensor);
    if (arg == nullptr || arg->output) continue;
    ++applied;
    refuse({.what = "value " + std::to_string(row.value) + " at " + std::to_string(row.index),
            .spoil = [&](Scene& s) { s.i32(row.tensor, row.index) = row.value; },
            .code = ErrorCode::InvalidContent,
            .argument = row.argument,
            .expected = row.expected,
            .given = row.given});
  }
  EXPECT_TRUE(applied > 0 || scene().problem.op == Op::MergeStates);
}

TEST(Contents, PrefixSumsOfLengthsEndWithinTheKeys) {
  Scene s(Op::SelectBlocks, Keys::Ragged);
  s.tensor("batch.cu_seqlens_k") = {};
  s.tensor("index_k").shape[0] = 72;
  const Fault fault{.code = ErrorCode::InvalidContent,
                    .argument = "batch.seqlens_k",
                    .expected = "request 1: expected 0 to 32",
                    .given = "33"};
  expect_refused(s, fault, [&] { s.run("reference"); });
}

TEST(Contents, PageTableNeedsAColumnForEveryPageInUse) {
  Scene s(Op::DenseAttention, Keys::Paged);
  s.tensor("batch.page_table").shape[1] = 2;
  const Fault fault{.code = ErrorCode::InvalidContent,
                    .argument = "batch.page_table",
                    .expected = "request 0: expected at least 3 columns for 40 keys",
                    .given = "2"};
  expect_refused(s, fault, [&] { s.run("reference"); });
}

TEST(Contents, UnusedPagesMayHoldAnything) {
  Scene s(Op::DenseAttention, Keys::Paged);
  s.i32("batch.seqlens_k", 1) = 16;
  s.i32("batch.page_table", 4) = -7;
  s.i32("batch.page_table", 5) = INT32_MAX;
  EXPECT_NO_THROW(s.run("reference"));
}

TEST(Contents, NothingBehindTheFirstMinusOneIsRead) {
  Scene s(Op::SparseAttention, Keys::Ragged);
  s.i32("block_ids", 3) = 77;  // behind the -1 of row 0, head 1
  s.i32("block_ids", 2) = -1;
  EXPECT_NO_THROW(s.run("reference"));
}

TEST(Contents, InverseNeedsARowForEveryBlock) {
  Scene s(Op::InvertSelection, Keys::Ragged);
  s.tensor("row_ptr").shape[1] = 6;
  const Fault fault{.code = ErrorCode::InvalidContent,
                    .argument = "row_ptr",
                    .expected = "at least 7",
                    .given = "6"};
  expect_refused(s, fault, [&] { s.run("reference"); });
}

TEST(Contents, LongUnorderedListsAreCheckedToo) {
  std::vector<std::int32_t> ids(256), starts{0, 1}, lengths{256 * 16};
  for (std::int32_t n = 0; n < 256; ++n) ids[static_cast<std::size_t>(n)] = 255 - n;
  std::vector<std::int32_t> row_ptr(257), queries(256), slots(256);
  const InvertSelectionArgs args{
      .block_ids = make_tensor(ids.data(), DType::I32, {1, 1, 256}),
      .batch = {.cu_seqlens_q = make_tensor(starts.data(), DType::I32, {2}),
                .seqlens_k = make_tensor(lengths.data(), DType::I32, {1})},
      .row_ptr = make_tensor(row_ptr.data(), DType::I32, {1, 257}),
      .q_indices = make_tensor(queries.data(), DType::I32, {1, 256}),
      .q_slots = make_tensor(slots.data(), DType::I32, {1, 256})};
  const Settings settings{.block_size = 16, .options = {.backend = "reference"}};
  EXPECT_NO_THROW(invert_selection(args, settings));
  EXPECT_EQ(slots[0], 255);  // block 0 stands in the last slot
  ids[3] = 17;
  try {
    invert_selection(args, settings);
    ADD_FAILURE() << "accepted";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::InvalidContent);
    EXPECT_TRUE(contains(error.what(), "slot 238: expected an id not listed before, got 17 again"))
        << error.what();
  }
}

TEST(EmptyTensors, MayBeNull) {
  const Tensor q = make_tensor(nullptr, DType::BF16, {0, 4, 16});
  const Tensor keys = make_tensor(nullptr, DType::BF16, {0, 2, 16});
  const std::int32_t zero = 0;
  const Batch batch{.cu_seqlens_q = make_tensor(&zero, DType::I32, {1}),
                    .seqlens_k = make_tensor(nullptr, DType::I32, {0})};
  for (const Op op : {Op::DenseAttention, Op::MergeStates}) {
    for (const std::string& backend : serving_backends(Scene(op, Keys::Ragged).problem)) {
      const Settings settings{.options = {.backend = backend}};
      if (op == Op::DenseAttention) {
        EXPECT_NO_THROW(dense_attention({q, keys, keys, batch, q}, settings)) << backend;
      } else {
        const Tensor lse = make_tensor(nullptr, DType::F32, {0, 4});
        EXPECT_NO_THROW(merge_states({std::span(&q, 1), std::span(&lse, 1), q, lse}, settings))
            << backend;
      }
    }
  }
}

TEST(OneCallForm, TakesTensorsOnTheCpuOnly) {
  const std::int32_t data[4] = {};
  const Device gpu{DeviceType::Cuda, 0};
  try {
    const Tensor rows = make_tensor(data, DType::F16, {9, 8, 64}, gpu);
    dense_attention({.q = rows, .k = rows, .v = rows, .out = rows},
                    {.max_seqlen_q = 9, .max_seqlen_k = 9});
    ADD_FAILURE() << "accepted";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::InvalidArgument);
    EXPECT_EQ(error.argument(), "device");
    EXPECT_TRUE(contains(error.what(), "cuda:0")) << error.what();
  }
}

}  // namespace
}  // namespace msa::test
