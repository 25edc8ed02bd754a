// SPDX-License-Identifier: MIT
// Threads, and nothing else: callers that share a plan, and any number of the library's own. Made
// for ThreadSanitizer, which takes minutes to build the test kit; so the data are made here.
#include <gtest/gtest.h>

#include <bit>
#include <cstdint>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "msa/msa.h"

namespace msa::test {
namespace {

constexpr std::int64_t kHeads = 8, kHeadsKv = 2, kDim = 64, kPage = 32, kBlock = 32, kTopk = 4;

/// bf16 numbers in [-1, 1), always the same.
std::vector<std::uint16_t> numbers(std::int64_t count, std::uint32_t seed) {
  std::vector<std::uint16_t> all(static_cast<std::size_t>(count));
  for (std::uint16_t& x : all) {
    seed = seed * 1664525u + 1013904223u;
    const float value = static_cast<float>(seed >> 8) * 0x1p-23f - 1.0f;
    x = static_cast<std::uint16_t>(std::bit_cast<std::uint32_t>(value) >> 16);
  }
  return all;
}

/// A batch over pages, with requests without queries and of one, and all that its calls write.
class Batched {
 public:
  explicit Batched(Op op) : op_(op) {
    const std::vector<std::int32_t> queries{70, 1, 0, 8, 33}, keys{300, 500, 9, 90, 33};
    for (const std::int32_t n : queries) starts_.push_back(starts_.back() + n);
    lengths_ = keys;
    const std::int64_t requests = std::ssize(keys), columns = (500 + kPage - 1) / kPage;
    pages_ = requests * columns;
    for (std::int64_t page = 0; page < pages_; ++page)
      table_.push_back(static_cast<std::int32_t>((page * 7) % pages_));
    rows_ = starts_.back();
    q_ = numbers(rows_ * kHeads * kDim, 1);
    k_ = numbers(pages_ * kPage * kHeadsKv * kDim, 2);
    v_ = numbers(pages_ * kPage * kHeadsKv * kDim, 3);
    index_q_ = numbers(rows_ * kHeadsKv * kDim, 4);
    index_k_ = numbers(pages_ * kPage * kDim, 5);
    ids_.resize(static_cast<std::size_t>(rows_ * kHeadsKv * kTopk));
    out_.resize(static_cast<std::size_t>(rows_ * kHeads * kDim));
    lse_.resize(static_cast<std::size_t>(rows_ * kHeads));
    batch_ = {.cu_seqlens_q = make_tensor(starts_.data(), DType::I32, {requests + 1}),
              .seqlens_k = make_tensor(lengths_.data(), DType::I32, {requests}),
              .page_table = make_tensor(table_.data(), DType::I32, {requests, columns})};
    if (op == Op::SparseAttention) select_blocks(select_args(), settings({.backend = "cpu"}));
  }
  Batched(const Batched&) = delete;
  Batched& operator=(const Batched&) = delete;

  Plan plan(const Options& options) {
    if (op_ == Op::DenseAttention) return make_plan(problem_of(dense_args(), settings(options)));
    if (op_ == Op::SparseAttention) return make_plan(problem_of(sparse_args(), settings(options)));
    if (op_ == Op::SelectBlocks) return make_plan(problem_of(select_args(), settings(options)));
    return make_plan(problem_of(msa_args(), settings(options)));
  }

  void run(const Plan& plan) {
    const std::size_t bytes = plan.workspace_bytes();
    const std::unique_ptr<std::byte[]> memory(new std::byte[bytes + kWorkspaceAlignment]);
    const auto at = reinterpret_cast<std::uintptr_t>(memory.get());
    const std::size_t skip = (kWorkspaceAlignment - at % kWorkspaceAlignment) % kWorkspaceAlignment;
    const Workspace workspace{memory.get() + skip, bytes};
    if (op_ == Op::DenseAttention) return msa::run(plan, dense_args(), workspace);
    if (op_ == Op::SparseAttention) return msa::run(plan, sparse_args(), workspace);
    if (op_ == Op::SelectBlocks) return msa::run(plan, select_args(), workspace);
    msa::run(plan, msa_args(), workspace);
  }

  /// Bit patterns of what the last run wrote.
  std::vector<std::uint32_t> bits() const {
    std::vector<std::uint32_t> all(out_.begin(), out_.end());
    for (const float x : lse_) all.push_back(std::bit_cast<std::uint32_t>(x));
    for (const std::int32_t id : ids_) all.push_back(static_cast<std::uint32_t>(id));
    return all;
  }

 private:
  static Settings settings(const Options& options) {
    Settings s;
    s.block_size = kBlock;
    s.topk = kTopk;
    s.options = options;
    return s;
  }
  Tensor q() { return make_tensor(q_.data(), DType::BF16, {rows_, kHeads, kDim}); }
  Tensor k() { return make_tensor(k_.data(), DType::BF16, {pages_, kPage, kHeadsKv, kDim}); }
  Tensor v() { return make_tensor(v_.data(), DType::BF16, {pages_, kPage, kHeadsKv, kDim}); }
  Tensor index_q() { return make_tensor(index_q_.data(), DType::BF16, {rows_, kHeadsKv, kDim}); }
  Tensor index_k() { return make_tensor(index_k_.data(), DType::BF16, {pages_, kPage, 1, kDim}); }
  Tensor ids() { return make_tensor(ids_.data(), DType::I32, {rows_, kHeadsKv, kTopk}); }
  Tensor out() { return make_tensor(out_.data(), DType::BF16, {rows_, kHeads, kDim}); }
  Tensor lse() { return make_tensor(lse_.data(), DType::F32, {rows_, kHeads}); }

  DenseAttentionArgs dense_args() {
    return {.q = q(), .k = k(), .v = v(), .batch = batch_, .out = out(), .lse = lse()};
  }
  SparseAttentionArgs sparse_args() {
    return {.q = q(),
            .k = k(),
            .v = v(),
            .block_ids = ids(),
            .batch = batch_,
            .out = out(),
            .lse = lse()};
  }
  SelectBlocksArgs select_args() {
    return {.index_q = index_q(), .index_k = index_k(), .batch = batch_, .block_ids = ids()};
  }
  MsaAttentionArgs msa_args() {
    return {.q = q(),
            .k = k(),
            .v = v(),
            .index_q = index_q(),
            .index_k = index_k(),
            .batch = batch_,
            .out = out(),
            .lse = lse(),
            .block_ids = ids()};
  }

  Op op_;
  std::int64_t rows_ = 0, pages_ = 0;
  std::vector<std::int32_t> starts_{0}, lengths_{}, table_{}, ids_{};
  std::vector<std::uint16_t> q_{}, k_{}, v_{}, index_q_{}, index_k_{}, out_{};
  std::vector<float> lse_{};
  Batch batch_{};
};

std::vector<std::string> levels() {
  std::vector<std::string> names;
  for (const BackendInfo& backend : build_info().backends) {
    for (const IsaInfo& isa : backend.isas) {
      if (backend.name == "cpu" && isa.available) names.push_back(isa.name);
    }
  }
  return names;
}

constexpr Op kOps[] = {Op::DenseAttention, Op::SparseAttention, Op::SelectBlocks, Op::MsaAttention};

TEST(Threads, AnyNumberGivesTheSameBits) {
  for (const std::string& isa : levels()) {
    for (const Op op : kOps) {
      Batched data(op);
      data.run(data.plan({.backend = "cpu", .isa = isa, .threads = 1}));
      const auto expected = data.bits();
      for (const int threads : {2, 3, 5}) {
        data.run(data.plan({.backend = "cpu", .isa = isa, .threads = threads}));
        EXPECT_EQ(data.bits(), expected) << isa << ", " << to_string(op) << ", " << threads;
      }
    }
  }
}

// Callers share plans and nothing else; each must get the bits of a lone run.
TEST(Threads, CallersShareAPlan) {
  constexpr int kCallers = 6, kRounds = 3;
  for (const std::string& isa : levels()) {
    std::vector<Plan> plans;
    std::vector<std::vector<std::uint32_t>> expected;
    for (const Op op : kOps) {
      Batched data(op);
      plans.push_back(data.plan({.backend = "cpu", .isa = isa, .threads = 1}));
      data.run(plans.back());
      expected.push_back(data.bits());
    }
    std::vector<int> wrong(kCallers, 0);
    std::vector<std::thread> callers;
    for (int caller = 0; caller < kCallers; ++caller) {
      callers.emplace_back([&, caller] {
        const std::size_t which = static_cast<std::size_t>(caller) % plans.size();
        Batched data(kOps[which]);
        for (int n = 0; n < kRounds; ++n) {
          data.run(plans[which]);
          wrong[static_cast<std::size_t>(caller)] += data.bits() != expected[which];
        }
      });
    }
    for (std::thread& caller : callers) caller.join();
    EXPECT_EQ(wrong, std::vector<int>(kCallers, 0)) << isa;
  }
}

}  // namespace
}  // namespace msa::test
