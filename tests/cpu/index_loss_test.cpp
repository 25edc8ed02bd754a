// SPDX-License-Identifier: MIT
// The loss of the index branch on the CPU: what must hold between two calls or by itself, on every
// level of this machine. Against the oracle it is held by cases (tests/cases).
#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

#include "testkit/generate.h"
#include "testkit/requests.h"
#include "testkit/verify.h"
#include "tests/cpu/gradients.h"

namespace msa::test {
namespace {

using testkit::Data;
using testkit::float_at;
using testkit::Operands;

struct Losses {
  std::vector<float> loss, d_index_q, d_index_k;
};

Losses loss_of(const Problem& problem, const Operands& operands, const Options& options) {
  run_poisoned(problem, operands, options);
  return {numbers_of(operands.loss), numbers_of(operands.d_index_q),
          numbers_of(operands.d_index_k)};
}

Losses loss_of_case(const std::string& line, const Options& options) {
  Data data(testkit::parse_case(line));
  const Operands o = data.prepare();
  return loss_of(data.problem(), o, options);
}

void expect_same_losses(const Losses& a, const Losses& b) {
  EXPECT_TRUE(same_bits(a.loss, b.loss)) << "loss";
  EXPECT_TRUE(same_bits(a.d_index_q, b.d_index_q)) << "d_index_q";
  EXPECT_TRUE(same_bits(a.d_index_k, b.d_index_k)) << "d_index_k";
}

const std::string kListedLoss =
    "op=index_loss heads=6/2 dim=48 index_dim=32 block=32 topk=3 lens=70:200,9:33 row_weight=1 ";

TEST(IndexLoss, AnyNumberOfThreadsGivesTheSameBits) {
  for (const std::string& isa : levels())
    expect_same_losses(loss_of_case(kListedLoss, on(isa, 1)),
                       loss_of_case(kListedLoss, on(isa, 3)));
}

TEST(IndexLoss, AnOutputAloneIsThatOfAll) {
  for (const std::string& isa : levels()) {
    const Losses all = loss_of_case(kListedLoss, on(isa));
    EXPECT_TRUE(same_bits(loss_of_case(kListedLoss + "grads=loss", on(isa)).loss, all.loss));
    EXPECT_TRUE(same_bits(loss_of_case(kListedLoss + "grads=q", on(isa)).d_index_q, all.d_index_q));
    EXPECT_TRUE(same_bits(loss_of_case(kListedLoss + "grads=k", on(isa)).d_index_k, all.d_index_k));
  }
}

TEST(IndexLoss, EveryBlockListedIsTheWarmUp) {
  const std::string rest =
      "op=index_loss heads=6/2 dim=48 index_dim=32 block=32 topk=3 lens=70:90,9:33 ";
  for (const std::string& isa : levels())
    expect_same_losses(loss_of_case(rest, on(isa)), loss_of_case(rest + "lists=0", on(isa)));
}

// A student that is the teacher has nothing to learn, and so has a row with one key.
TEST(IndexLoss, ATeacherTeachesItselfNothing) {
  for (const std::string& isa : levels()) {
    Data data(testkit::parse_case(
        "op=index_loss dtype=f32 heads=2/2 dim=32 block=16 lists=0 lens=40:90 index_heads_k=2"));
    Operands o = data.prepare();
    o.index_q = o.q;
    o.index_k = o.k;
    const Losses found = loss_of(data.problem(), o, on(isa));
    for (const float x : found.loss) EXPECT_NEAR(x, 0.0f, 2e-6f);
    for (const float x : found.d_index_q) EXPECT_NEAR(x, 0.0f, 2e-6f);
    for (const float x : found.d_index_k) EXPECT_NEAR(x, 0.0f, 2e-6f);
    const Losses one =
        loss_of_case("op=index_loss dtype=f32 heads=2/2 dim=32 block=16 lens=1:1", on(isa));
    for (const float x : one.loss) EXPECT_NEAR(x, 0.0f, 1e-6f);
    for (const float x : one.d_index_q) EXPECT_NEAR(x, 0.0f, 2e-6f);
  }
}

// Weights of rows reach the gradients, once, and not the loss.
TEST(IndexLoss, WeightsScaleGradientsOnce) {
  const std::string line = "op=index_loss dtype=f32 heads=4/2 dim=32 block=16 topk=2 lens=30:80 ";
  for (const std::string& isa : levels()) {
    const Losses plain = loss_of_case(line, on(isa));
    Data data(testkit::parse_case(line + "row_weight=1"));
    const Operands o = data.prepare();
    for (std::int64_t row = 0; row < 30; ++row)
      *reinterpret_cast<float*>(testkit::address(o.row_weight, row)) = 0.25f;
    Losses weighted = loss_of(data.problem(), o, on(isa));
    for (float& x : weighted.d_index_q) x *= 4;
    for (float& x : weighted.d_index_k) x *= 4;
    expect_same_losses(plain, weighted);
  }
}

}  // namespace
}  // namespace msa::test
