// SPDX-License-Identifier: MIT
// index_loss: what it refuses, what it reads off the tensors, and whether its gradients are those
// of its loss, by differences of a loss of its own in fp64.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <string>
#include <vector>

#include "testkit/random.h"
#include "testkit/requests.h"
#include "tests/core/bad_input.h"

namespace msa::test {
namespace {

using testkit::Data;
using testkit::Operands;

constexpr BadInput kListedLoss{"op=index_loss heads=4/2 dim=16 index_dim=32 block=16 topk=2 "};
constexpr BadInput kWarmUp{"op=index_loss heads=4/2 dim=16 index_dim=32 block=16 lists=0 "};

TEST(IndexLoss, EveryFaultOfATensorIsNamed) {
  for (const BadInput& kind : {kListedLoss, kWarmUp}) {
    const auto refused = [&](const char* argument, const std::string& expected,
                             const std::function<void(Operands&)>& spoil) {
      kind.refused("lens=5:20,3:33 row_weight=1", argument, expected, spoil);
    };
    refused("lse", "a tensor of f32", [](Operands& o) { o.lse_in = {}; });
    refused("index_q", "a tensor of bf16", [](Operands& o) { o.index_q = {}; });
    refused("index_k", "dimension 0", [](Operands& o) { --o.index_k.shape[0]; });
    refused("row_weight", "dimension 0", [](Operands& o) { --o.row_weight.shape[0]; });
    refused("loss", "f32", [](Operands& o) { o.loss.dtype = DType::BF16; });
    refused("d_index_q", "bf16", [](Operands& o) { o.d_index_q.dtype = DType::F32; });
    refused("d_index_k", "dimension 0", [](Operands& o) { ++o.d_index_k.shape[0]; });
    refused("d_index_k", "memory apart", [](Operands& o) { o.d_index_k.data = o.index_k.data; });
  }
  kListedLoss.refused("lens=5:20", "block_ids", "a tensor of i32",
                      [](Operands& o) { o.block_ids_in = {}; });
  kWarmUp.refused("lens=5:20", "block_ids", "none", [](Operands& o) {
    o.block_ids_in = make_tensor(o.batch.seqlens_k.data, DType::I32, {5, 2, 1}, {0, 0, 0});
  });
}

// A shard's scores are not all that the student's softmax is over.
TEST(IndexLoss, ShardsAreRefused) {
  for (const auto& [member, name] : {std::pair{&Batch::key_offsets, "batch.key_offsets"},
                                     std::pair{&Batch::total_seqlens_k, "batch.total_seqlens_k"}}) {
    Data data = kWarmUp.data_of("lens=5:20");
    const Operands o = data.prepare();
    IndexLossArgs args{.q = o.q,
                       .k = o.k,
                       .lse = o.lse_in,
                       .index_q = o.index_q,
                       .index_k = o.index_k,
                       .batch = o.batch,
                       .loss = o.loss};
    args.batch.*member = o.batch.seqlens_k;
    error_of([&] { index_loss(args, {.block_size = 16}); }, name);
    EXPECT_EQ(data.touched(), "");
  }
}

TEST(IndexLoss, IllegalProblemsNameTheField) {
  const auto names = [](const char* field, const std::function<void(Problem&)>& spoil) {
    for (const BadInput& kind : {kListedLoss, kWarmUp}) kind.illegal(field, spoil);
  };
  names("page_size", [](Problem& p) { p.bounds.page_size = 16; });
  names("dtype", [](Problem& p) { p.attention.q.storage = DType::E4M3; });
  names("attention.kv", [](Problem& p) { p.attention.kv = Format{DType::E4M3}; });
  names("index_dtype", [](Problem& p) { p.index.q.storage = DType::E4M3; });
  names("index.k", [](Problem& p) { p.index.k = Format{DType::E4M3}; });
  names("index_heads", [](Problem& p) { p.index.heads = 4; });
  names("index_heads_k", [](Problem& p) { p.index.heads_k = 3; });
  names("index_scale", [](Problem& p) { p.index.scale = NAN; });
  names("softmax_scale", [](Problem& p) { p.attention.softmax_scale = INFINITY; });
  names("gradients.dtype", [](Problem& p) { p.gradients.dtype = DType::F16; });
  names("lse", [](Problem& p) { p.outputs.lse = true; });
  names("topk", [](Problem& p) { p.selection.topk = -1; });
}

TEST(IndexLoss, TheProblemIsReadOffTheTensors) {
  for (const char* rest : {"lens=5:20,3:33", "lens=5:20 grad_dtype=f32 index_scale=0.5",
                           "lens=5:20 dtype=f32 index_dtype=bf16 grads=k accumulate=1"}) {
    for (const BadInput& kind : {kListedLoss, kWarmUp}) {
      Data data = kind.data_of(rest);
      const Operands o = data.prepare();
      const Problem& planned = data.problem();
      const Problem p = testkit::problem_of(planned.op, o, data.settings());
      EXPECT_EQ(p.index, planned.index) << rest;
      EXPECT_EQ(p.gradients, planned.gradients) << rest;
      EXPECT_EQ(p.selection.topk, planned.selection.topk) << rest;
      EXPECT_EQ(p.attention.heads_kv, 2);
      for (const Field& field : fields_of(planned.op)) {
        if (field.is_input() || !field.in(o)) continue;
        if (p.gradients.accumulate && field.name == "d_index_k") {
          EXPECT_THROW(output_of(p, o.view(), field), Error);
          continue;
        }
        const Tensor made = output_of(p, o.view(), field);
        EXPECT_EQ(made.shape, field.in(o).shape) << field.name;
        EXPECT_EQ(made.dtype, field.in(o).dtype) << field.name;
      }
    }
  }
}

// ---- differences ----

/// The weighted sum of all losses in fp64, over copies of the index; the teacher stays.
class Losses {
 public:
  Losses(const Problem& p, const Operands& o) : p_(p), o_(o) {
    for (const auto& [copy, tensor] :
         {std::pair{&index_q, o.index_q}, std::pair{&index_k, o.index_k}}) {
      for (std::int64_t i = 0; i < tensor.shape[0]; ++i) {
        for (std::int64_t h = 0; h < tensor.shape[1]; ++h) {
          for (std::int64_t d = 0; d < tensor.shape[2]; ++d)
            copy->push_back(testkit::float_at(tensor, i, h, d));
        }
      }
    }
    for_each_row([&](const testkit::Request& r, std::int64_t i, std::int64_t head) {
      std::vector<double>& weights = teacher_.emplace_back();
      const std::int64_t group = p_.attention.heads_q / p_.attention.heads_kv;
      for (const std::int64_t key : keys(r, i, head)) {
        double mean = 0;
        for (std::int64_t h = head * group; h < (head + 1) * group; ++h) {
          double score = 0;
          for (std::int64_t d = 0; d < p_.attention.head_dim; ++d)
            score += double(testkit::float_at(o_.q, r.q_begin + i, h, d)) *
                     testkit::float_at(o_.k, r.k_begin + key, head, d);
          const double scale = 1 / std::sqrt(double(p_.attention.head_dim));
          mean += std::exp(score * scale - testkit::float_at(o_.lse_in, r.q_begin + i, h));
        }
        weights.push_back(mean / double(group));
      }
    });
  }

  double sum() const {
    double total = 0;
    std::size_t n = 0;
    for_each_row([&](const testkit::Request& r, std::int64_t i, std::int64_t head) {
      total += loss(r, i, head, n++) * testkit::float_at(o_.row_weight, r.q_begin + i);
    });
    return total;
  }

  /// Of row n, in the order of requests, rows and heads.
  double loss(const testkit::Request& r, std::int64_t i, std::int64_t head, std::size_t n) const {
    const std::int64_t dim = p_.index.dim, shared = p_.index.heads / p_.index.heads_k;
    std::vector<double> scores;
    double sum = 0;
    for (const std::int64_t key : keys(r, i, head)) {
      const double* q =
          &index_q[static_cast<std::size_t>(((r.q_begin + i) * p_.index.heads + head) * dim)];
      const double* k = &index_k[static_cast<std::size_t>(
          ((r.k_begin + key) * p_.index.heads_k + head / shared) * dim)];
      double score = 0;
      for (std::int64_t d = 0; d < dim; ++d) score += q[d] * k[d];
      scores.push_back(score / std::sqrt(double(dim)));
      sum += std::exp(scores.back());
    }
    double total = 0;
    for (std::size_t at = 0; at < scores.size(); ++at) {
      const double p = teacher_[n][at];
      total += p * (std::log(p) - scores[at] + std::log(sum));
    }
    return total;
  }

  template <class Visit>
  void for_each_row(const Visit& visit) const {
    for (const testkit::Request& r : testkit::requests_of(p_, o_.batch)) {
      for (std::int64_t i = 0; i < r.seqlen_q; ++i) {
        for (std::int64_t head = 0; head < p_.index.heads; ++head) visit(r, i, head);
      }
    }
  }

  std::vector<double> index_q, index_k;

 private:
  std::vector<std::int64_t> keys(const testkit::Request& r, std::int64_t i,
                                 std::int64_t head) const {
    std::vector<std::int64_t> all;
    const auto take = [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t key = begin; key < end; ++key) all.push_back(key);
    };
    if (!o_.block_ids_in) take(0, r.visible_keys(i));
    for (std::int64_t s = 0; o_.block_ids_in && s < o_.block_ids_in.shape[2]; ++s) {
      const std::int32_t id = testkit::int_at(o_.block_ids_in, r.q_begin + i, head, s);
      if (id == -1) break;
      const auto [begin, end] = r.block_keys(i, id);
      take(begin, end);
    }
    return all;
  }

  const Problem& p_;
  const Operands& o_;
  std::vector<std::vector<double>> teacher_;
};

void expect_loss_gradients_are_differences(const std::string& line) {
  SCOPED_TRACE(line);
  Data data(testkit::parse_case(line));
  const Operands o = data.prepare();
  run_with(data, o, "reference");
  Losses losses(data.problem(), o);
  std::size_t row = 0;
  losses.for_each_row([&](const testkit::Request& r, std::int64_t i, std::int64_t head) {
    EXPECT_NEAR(testkit::float_at(o.loss, r.q_begin + i, head), losses.loss(r, i, head, row++),
                1e-5);
  });
  const testkit::Stream64 random(7, 1);
  std::uint64_t counter = 0;
  constexpr double kStep = 1e-4;
  for (const auto& [name, numbers, gradient] :
       {std::tuple{"d_index_q", &losses.index_q, o.d_index_q},
        std::tuple{"d_index_k", &losses.index_k, o.d_index_k}}) {
    const std::int64_t heads = gradient.shape[1], dim = gradient.shape[2];
    const auto count = static_cast<std::int64_t>(numbers->size());
    const auto of = [&, tensor = gradient](std::int64_t n) {
      return double(testkit::float_at(tensor, n / dim / heads, n / dim % heads, n % dim));
    };
    double largest = 0;
    for (std::int64_t n = 0; n < count; ++n) largest = std::max(largest, std::fabs(of(n)));
    EXPECT_GT(largest, 0.001) << name;
    for (int chosen = 0; chosen < 50; ++chosen) {
      const std::int64_t n = random.below(++counter, count);
      double& x = (*numbers)[static_cast<std::size_t>(n)];
      const double before = x;
      x = before + kStep;
      const double above = losses.sum();
      x = before - kStep;
      const double below = losses.sum();
      x = before;
      EXPECT_NEAR(of(n), (above - below) / (2 * kStep), 1e-6 * largest) << name << " " << n;
    }
  }
}

TEST(IndexLoss, GradientsOfListedBlocksAreDifferences) {
  expect_loss_gradients_are_differences(
      "op=index_loss dtype=f32 heads=8/4 index_heads_k=2 dim=16 index_dim=24 block=16 topk=3 "
      "row_weight=1 lens=15:45,9:20");
}

TEST(IndexLoss, GradientsOfTheWarmUpAreDifferences) {
  expect_loss_gradients_are_differences(
      "op=index_loss dtype=f32 heads=4/2 dim=16 index_dim=24 block=16 lists=0 row_weight=1 "
      "lens=12:30,5:9");
}

}  // namespace
}  // namespace msa::test
