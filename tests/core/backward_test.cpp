// SPDX-License-Identifier: MIT
// Backward passes: what they refuse, what they read off the tensors, and whether their gradients
// are those of the forward pass, by differences of a forward pass of its own in fp64.
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

using testkit::address;
using testkit::Data;
using testkit::Operands;

constexpr BadInput kSparseBackward{"op=sparse_backward heads=4/2 dim=16 block=16 topk=2 "};
constexpr BadInput kDenseBackward{"op=dense_backward heads=4/2 dim=16 block=16 "};

TEST(Backward, EveryFaultOfATensorIsNamed) {
  for (const BadInput& kind : {kSparseBackward, kDenseBackward}) {
    const std::string rest = "lens=5:20,3:33 dlse=1";
    const auto refused = [&](const char* argument, const std::string& expected,
                             const std::function<void(Operands&)>& spoil) {
      kind.refused(rest, argument, expected, spoil);
    };
    refused("out", "a tensor of bf16", [](Operands& o) { o.out_in = {}; });
    refused("out", "bf16", [](Operands& o) { o.out_in.dtype = DType::F32; });
    refused("lse", "a tensor of f32", [](Operands& o) { o.lse_in = {}; });
    refused("lse", "dimension 1", [](Operands& o) { --o.lse_in.shape[1]; });
    refused("dout", "a tensor of bf16", [](Operands& o) { o.dout = {}; });
    refused("dout", "dimension 0", [](Operands& o) { --o.dout.shape[0]; });
    refused("dlse", "f32", [](Operands& o) { o.dlse.dtype = DType::BF16; });
    refused("dq", "bf16", [](Operands& o) { o.dq.dtype = DType::F32; });
    refused("dk", "dimension 0", [](Operands& o) { --o.dk.shape[0]; });
    refused("dk", "memory apart", [](Operands& o) { o.dk.data = o.k.data; });
    refused("dv", "memory apart", [](Operands& o) { o.dv.data = o.dk.data; });
    refused("dv", "stride", [](Operands& o) { o.dv.stride[2] = 2; });
    refused("v", "a tensor of bf16", [](Operands& o) { o.v = {}; });
  }
  kSparseBackward.refused("lens=5:20", "block_ids", "a tensor of i32",
                          [](Operands& o) { o.block_ids_in = {}; });
}

TEST(Backward, IllegalProblemsNameTheField) {
  const auto names = [](const char* field, const std::function<void(Problem&)>& spoil) {
    for (const BadInput& kind : {kSparseBackward, kDenseBackward}) kind.illegal(field, spoil);
  };
  names("page_size", [](Problem& p) { p.bounds.page_size = 16; });
  names("dtype", [](Problem& p) { p.attention.q.storage = DType::E4M3; });
  names("attention.kv", [](Problem& p) { p.attention.kv = Format{DType::E4M3}; });
  names("attention.kv", [](Problem& p) { p.attention.kv = Format{DType::E2M1, Scale::Group, 16}; });
  names("gradients.dtype", [](Problem& p) { p.gradients.dtype = DType::F16; });
  names("gradients.dtype", [](Problem& p) { p.gradients.dtype = DType::E4M3; });
  names("out_dtype", [](Problem& p) { p.outputs.dtype = DType::F16; });
  names("lse", [](Problem& p) { p.outputs.lse = true; });
  names("block_max", [](Problem& p) { p.outputs.block_max = true; });
  names("output", [](Problem& p) { p.outputs.out = false; });
}

TEST(Backward, TheProblemIsReadOffTheTensors) {
  for (const char* rest :
       {"lens=5:20,3:33", "lens=5:20 out=f32 grad_dtype=f32", "lens=5:20 grads=k",
        "lens=5:20 dtype=f32 grads=q accumulate=1 dlse=1"}) {
    for (const BadInput& kind : {kSparseBackward, kDenseBackward}) {
      Data data = kind.data_of(rest);
      const Operands o = data.prepare();
      const Problem& planned = data.problem();
      const Problem p = testkit::problem_of(planned.op, o, data.settings());
      EXPECT_EQ(p.attention, planned.attention) << rest;
      EXPECT_EQ(p.gradients, planned.gradients) << rest;
      EXPECT_EQ(p.outputs, planned.outputs) << rest;
      EXPECT_EQ(p.bounds.max_seqlen_k, planned.bounds.max_seqlen_k);
      for (const Field& field : fields_of(planned.op)) {
        if (field.is_input() || !field.in(o)) continue;
        if (p.gradients.accumulate && field.name != "dq") {
          EXPECT_THROW(output_of(p, o.view(), field), Error) << field.name;
          continue;
        }
        const Tensor made = output_of(p, o.view(), field);
        EXPECT_EQ(made.shape, field.in(o).shape) << field.name;
        EXPECT_EQ(made.dtype, field.in(o).dtype) << field.name;
      }
    }
  }
}

TEST(Backward, PrintsWhatItWrites) {
  Problem p = kDenseBackward.data_of("lens=5:20").problem();
  p.gradients = {.dtype = DType::F32, .accumulate = true};
  EXPECT_NE(to_string(p).find("gradients f32, accumulate"), std::string::npos) << to_string(p);
}

// ---- differences ----

/// A forward pass in fp64 over copies of the tensors, and the sum that gradients are of: out times
/// dout plus lse times dlse.
class Forward {
 public:
  Forward(const Problem& p, const Operands& o) : p_(p), o_(o) {
    for (const auto& [copy, tensor] : {std::pair{&q, o.q}, std::pair{&k, o.k}, std::pair{&v, o.v}})
      *copy = numbers(tensor);
    dout_ = numbers(o.dout);
  }

  double sum() const {
    double total = 0;
    const std::int64_t group = p_.attention.heads_q / p_.attention.heads_kv;
    for (const testkit::Request& r : testkit::requests_of(p_, o_.batch)) {
      for (std::int64_t i = 0; i < r.seqlen_q; ++i) {
        for (std::int64_t h = 0; h < p_.attention.heads_q; ++h) total += row(r, i, h, h / group);
      }
    }
    return total;
  }

  std::vector<double> q, k, v;

 private:
  static std::vector<double> numbers(const Tensor& t) {
    std::vector<double> all;
    for (std::int64_t i = 0; i < t.shape[0]; ++i) {
      for (std::int64_t h = 0; h < t.shape[1]; ++h) {
        for (std::int64_t d = 0; d < t.shape[2]; ++d) all.push_back(testkit::float_at(t, i, h, d));
      }
    }
    return all;
  }

  double row(const testkit::Request& r, std::int64_t i, std::int64_t h, std::int64_t head) const {
    const std::int64_t dim = p_.attention.head_dim, value_dim = p_.attention.value_dim;
    const std::int64_t at = r.q_begin + i;
    const double* query = &q[static_cast<std::size_t>((at * p_.attention.heads_q + h) * dim)];
    const double* dout =
        &dout_[static_cast<std::size_t>((at * p_.attention.heads_q + h) * value_dim)];
    double weights = 0, products = 0;
    const auto visit = [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t key = begin; key < end; ++key) {
        const std::int64_t place = (r.k_begin + key) * p_.attention.heads_kv + head;
        double score = 0, product = 0;
        for (std::int64_t d = 0; d < dim; ++d)
          score += query[d] * k[static_cast<std::size_t>(place * dim + d)];
        for (std::int64_t d = 0; d < value_dim; ++d)
          product += dout[d] * v[static_cast<std::size_t>(place * value_dim + d)];
        const double weight = std::exp(score / std::sqrt(double(dim)));
        weights += weight;
        products += weight * product;
      }
    };
    if (!o_.block_ids_in) {
      visit(0, r.visible_keys(i));
    } else {
      for (std::int64_t s = 0; s < o_.block_ids_in.shape[2]; ++s) {
        const std::int32_t id = testkit::int_at(o_.block_ids_in, at, head, s);
        if (id == -1) break;
        const auto [begin, end] = r.block_keys(i, id);
        visit(begin, end);
      }
    }
    if (weights == 0) return 0;
    const double dlse = o_.dlse ? testkit::float_at(o_.dlse, at, h) : 0.0;
    return products / weights + dlse * std::log(weights);
  }

  const Problem& p_;
  const Operands& o_;
  std::vector<double> dout_;
};

// out and lse come to the call in f32, which is where most of the 1e-6 goes.
void expect_gradients_are_differences(const std::string& line) {
  SCOPED_TRACE(line);
  Data data(testkit::parse_case(line));
  const Operands o = data.prepare();
  run_with(data, o, "reference");
  Forward forward(data.problem(), o);
  const testkit::Stream64 random(7, 1);
  constexpr double kStep = 1e-4;
  std::uint64_t counter = 0;
  double along = 0;
  std::vector<std::pair<std::vector<double>*, std::vector<double>>> directions;
  for (const auto& [name, numbers, gradient] :
       {std::tuple{"dq", &forward.q, o.dq}, std::tuple{"dk", &forward.k, o.dk},
        std::tuple{"dv", &forward.v, o.dv}}) {
    const std::int64_t heads = gradient.shape[1], dim = gradient.shape[2];
    const auto of = [&, tensor = gradient](std::int64_t n) {
      return double(testkit::float_at(tensor, n / dim / heads, n / dim % heads, n % dim));
    };
    const auto count = static_cast<std::int64_t>(numbers->size());
    double largest = 0;
    std::vector<double> direction;
    for (std::int64_t n = 0; n < count; ++n) {
      largest = std::max(largest, std::fabs(of(n)));
      direction.push_back(random.normal(++counter));
      along += direction.back() * of(n);
    }
    EXPECT_GT(largest, 0.01) << name;
    directions.emplace_back(numbers, direction);
    // All elements of one row, and some of all others.
    std::vector<std::int64_t> chosen;
    for (std::int64_t d = 0; d < dim; ++d) chosen.push_back(count / 2 / dim * dim + d);
    for (int n = 0; n < 40; ++n) chosen.push_back(random.below(++counter, count));
    for (const std::int64_t n : chosen) {
      double& x = (*numbers)[static_cast<std::size_t>(n)];
      const double before = x;
      x = before + kStep;
      const double above = forward.sum();
      x = before - kStep;
      const double below = forward.sum();
      x = before;
      EXPECT_NEAR(of(n), (above - below) / (2 * kStep), 1e-6 * largest) << name << " " << n;
    }
  }
  const auto move = [&](double step) {
    for (const auto& [numbers, direction] : directions) {
      for (std::size_t n = 0; n < direction.size(); ++n) (*numbers)[n] += step * direction[n];
    }
  };
  constexpr double kSmall = 1e-5;
  move(kSmall);
  const double above = forward.sum();
  move(-2 * kSmall);
  EXPECT_NEAR(along, (above - forward.sum()) / (2 * kSmall), 1e-5 * std::fabs(along));
}

TEST(Backward, SparseGradientsAreDifferences) {
  expect_gradients_are_differences(
      "op=sparse_backward dtype=f32 heads=8/2 dim=16 value_dim=24 block=16 topk=3 dlse=1 "
      "lens=25:45,15:27");
}

TEST(Backward, DenseGradientsAreDifferences) {
  expect_gradients_are_differences(
      "op=dense_backward dtype=f32 heads=4/2 dim=16 value_dim=24 block=16 dlse=1 "
      "lens=12:30,5:3");
}

}  // namespace
}  // namespace msa::test
