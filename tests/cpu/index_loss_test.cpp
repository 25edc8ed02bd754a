// SPDX-License-Identifier: MIT
// The loss of the index branch on the CPU: what must hold between two calls or by itself, on every
// level of this machine. Against the oracle it is held by cases (tests/cases).
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "testkit/generate.h"
#include "testkit/requests.h"
#include "testkit/verify.h"
#include "tests/cpu/common.h"

namespace msa::test {
namespace {

using testkit::Data;
using testkit::float_at;
using testkit::Operands;

const std::vector<std::string>& levels() {
  static const std::vector<std::string> list = [] {
    std::vector<std::string> names;
    for (const IsaInfo& isa : testkit::isas_of("cpu")) {
      if (isa.available) names.push_back(isa.name);
    }
    return names;
  }();
  return list;
}

struct Found {
  std::vector<float> loss, d_index_q, d_index_k;
};

std::vector<float> numbers(const Tensor& t) {
  std::vector<float> all;
  if (!t) return all;
  for (std::int64_t i = 0; i < t.shape[0]; ++i) {
    for (std::int64_t h = 0; h < t.shape[1]; ++h) {
      for (std::int64_t d = 0; d < (t.rank > 2 ? t.shape[2] : 1); ++d)
        all.push_back(float_at(t, i, h, d));
    }
  }
  return all;
}

Found run(const Problem& given, const Operands& operands, const Options& options) {
  Problem problem = given;
  problem.options = options;
  const Plan plan = make_plan(problem);
  testkit::GuardedWorkspace workspace(plan.workspace_bytes(), testkit::host_memory());
  workspace.poison();
  testkit::run(plan, operands, workspace.view());
  EXPECT_TRUE(workspace.guards_intact());
  return {numbers(operands.loss), numbers(operands.d_index_q), numbers(operands.d_index_k)};
}

Found run_case(const std::string& line, const Options& options) {
  Data data(testkit::parse_case(line));
  const Operands o = data.prepare();
  return run(data.problem(), o, options);
}

bool same(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

void expect_same(const Found& a, const Found& b) {
  EXPECT_TRUE(same(a.loss, b.loss)) << "loss";
  EXPECT_TRUE(same(a.d_index_q, b.d_index_q)) << "d_index_q";
  EXPECT_TRUE(same(a.d_index_k, b.d_index_k)) << "d_index_k";
}

const std::string kListed =
    "op=index_loss heads=6/2 dim=48 index_dim=32 block=32 topk=3 lens=70:200,9:33 row_weight=1 ";

TEST(IndexLoss, AnyNumberOfThreadsGivesTheSameBits) {
  for (const std::string& isa : levels())
    expect_same(run_case(kListed, on(isa, 1)), run_case(kListed, on(isa, 3)));
}

TEST(IndexLoss, AnOutputAloneIsThatOfAll) {
  for (const std::string& isa : levels()) {
    const Found all = run_case(kListed, on(isa));
    EXPECT_TRUE(same(run_case(kListed + "grads=loss", on(isa)).loss, all.loss));
    EXPECT_TRUE(same(run_case(kListed + "grads=q", on(isa)).d_index_q, all.d_index_q));
    EXPECT_TRUE(same(run_case(kListed + "grads=k", on(isa)).d_index_k, all.d_index_k));
  }
}

TEST(IndexLoss, EveryBlockListedIsTheWarmUp) {
  const std::string rest =
      "op=index_loss heads=6/2 dim=48 index_dim=32 block=32 topk=3 lens=70:90,9:33 ";
  for (const std::string& isa : levels())
    expect_same(run_case(rest, on(isa)), run_case(rest + "lists=0", on(isa)));
}

// A student that is the teacher has nothing to learn, and so has a row with one key.
TEST(IndexLoss, ATeacherTeachesItselfNothing) {
  for (const std::string& isa : levels()) {
    Data data(testkit::parse_case(
        "op=index_loss dtype=f32 heads=2/2 dim=32 block=16 lists=0 lens=40:90 index_heads_k=2"));
    Operands o = data.prepare();
    o.index_q = o.q;
    o.index_k = o.k;
    const Found found = run(data.problem(), o, on(isa));
    for (const float x : found.loss) EXPECT_NEAR(x, 0.0f, 2e-6f);
    for (const float x : found.d_index_q) EXPECT_NEAR(x, 0.0f, 2e-6f);
    for (const float x : found.d_index_k) EXPECT_NEAR(x, 0.0f, 2e-6f);
    const Found one =
        run_case("op=index_loss dtype=f32 heads=2/2 dim=32 block=16 lens=1:1", on(isa));
    for (const float x : one.loss) EXPECT_NEAR(x, 0.0f, 1e-6f);
    for (const float x : one.d_index_q) EXPECT_NEAR(x, 0.0f, 2e-6f);
  }
}

// Weights of rows reach the gradients, once, and not the loss.
TEST(IndexLoss, WeightsScaleGradientsOnce) {
  const std::string line = "op=index_loss dtype=f32 heads=4/2 dim=32 block=16 topk=2 lens=30:80 ";
  for (const std::string& isa : levels()) {
    const Found plain = run_case(line, on(isa));
    Data data(testkit::parse_case(line + "row_weight=1"));
    const Operands o = data.prepare();
    for (std::int64_t row = 0; row < 30; ++row)
      *reinterpret_cast<float*>(testkit::address(o.row_weight, row)) = 0.25f;
    Found weighted = run(data.problem(), o, on(isa));
    for (float& x : weighted.d_index_q) x *= 4;
    for (float& x : weighted.d_index_k) x *= 4;
    expect_same(plain, weighted);
  }
}

}  // namespace
}  // namespace msa::test
