// SPDX-License-Identifier: MIT
// merge_states: joins partial (o, lse) of disjoint key sets, in the order given. The output may be
// the first part itself: a row is read whole before it is written.
#include <array>
#include <cmath>
#include <limits>

#include "cpu/stage.h"
#include "cpu/storage.h"

namespace msa::cpu {
namespace {

constexpr std::int64_t kRowsOfTask = 16;
constexpr std::int64_t kPiece = 256;  // values of a row that are joined at a time

float read(const Tensor& t, std::int64_t i) {
  return with_storage(t.dtype, [&](auto storage) {
    using S = decltype(storage);
    return S::read(static_cast<const typename S::T*>(t.data)[i]);
  });
}

void write(const Tensor& t, std::int64_t i, float x) {
  with_storage(t.dtype, [&](auto storage) {
    using S = decltype(storage);
    static_cast<typename S::T*>(t.data)[i] = S::write(x);
  });
}

/// How much each part counts, and the joint lse. A part whose lse is -inf has the weight 0 and is
/// not read. Sums are fp64: 64 parts in fp32 drift by several ulp, and memory is the bound anyway.
struct Weights {
  std::array<double, kMaxParts> of{};
  float lse = -std::numeric_limits<float>::infinity();
};

Weights weigh(const core::Call& call, std::int64_t row, std::int64_t head) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  Weights w;
  float top = -kInfinity;
  bool broken = false;
  for (std::size_t i = 0; i < call.part_lses.size(); ++i) {
    const Tensor& t = call.part_lses[i];
    const float lse = static_cast<const float*>(t.data)[row * t.stride[0] + head * t.stride[1]];
    w.of[i] = lse;
    broken = broken || !(lse < kInfinity);
    top = std::max(top, lse);
  }
  if (broken) {
    w.of.fill(std::numeric_limits<double>::quiet_NaN());
    w.lse = std::numeric_limits<float>::quiet_NaN();
    return w;
  }
  double sum = 0;
  for (std::size_t i = 0; i < call.part_lses.size(); ++i) {
    w.of[i] = w.of[i] == -kInfinity ? 0.0 : std::exp(w.of[i] - top);
    sum += w.of[i];
  }
  if (sum == 0) return w;
  for (std::size_t i = 0; i < call.part_lses.size(); ++i) w.of[i] /= sum;
  w.lse = static_cast<float>(top + std::log(sum));
  return w;
}

void merge_row(const core::Call& call, std::int64_t row, std::int64_t head) {
  const Weights w = weigh(call, row, head);
  const std::int64_t dim = call.out.shape[2];
  const std::int64_t to = row * call.out.stride[0] + head * call.out.stride[1];
  for (std::int64_t begin = 0; begin < dim; begin += kPiece) {
    const std::int64_t count = std::min(kPiece, dim - begin);
    std::array<double, kPiece> o{};
    for (std::size_t i = 0; i < call.part_outs.size(); ++i) {
      if (w.of[i] == 0) continue;
      const Tensor& part = call.part_outs[i];
      const std::int64_t from = row * part.stride[0] + head * part.stride[1];
      for (std::int64_t d = 0; d < count; ++d) {
        o[static_cast<std::size_t>(d)] += w.of[i] * read(part, from + (begin + d) * part.stride[2]);
      }
    }
    for (std::int64_t d = 0; d < count; ++d) {
      write(call.out, to + (begin + d) * call.out.stride[2],
            static_cast<float>(o[static_cast<std::size_t>(d)]));
    }
  }
  if (call.lse) {
    static_cast<float*>(call.lse.data)[row * call.lse.stride[0] + head * call.lse.stride[1]] =
        w.lse;
  }
}

class MergeStatesStage final : public Stage {
 public:
  explicit MergeStatesStage(const Machine& machine) : threads_(machine.threads) {}
  std::size_t workspace_bytes() const override { return 0; }
  std::string decisions() const override {
    return "rows_of_task " + std::to_string(kRowsOfTask) + "\n";
  }

  void run(const core::Call& call, Rows rows, std::byte*) const override {
    for_each_row(threads_, rows, kRowsOfTask, [&](std::int64_t row, int) {
      for (std::int64_t head = 0; head < call.out.shape[1]; ++head) merge_row(call, row, head);
    });
  }

 private:
  int threads_;
};

}  // namespace

StagePtr plan_merge_states(const Problem&, const Machine& machine) {
  return std::make_unique<MergeStatesStage>(machine);
}

}  // namespace msa::cpu
