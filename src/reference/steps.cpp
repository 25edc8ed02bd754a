// SPDX-License-Identifier: MIT
// The arithmetic of the oracle.
#include "reference/steps.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace msa::reference {
namespace {

constexpr double kInf = std::numeric_limits<double>::infinity();
constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

// Forced blocks first, then the higher score, then the lower id. -0 equals +0.
bool better(const Candidate& a, const Candidate& b) {
  if (a.forced != b.forced) return a.forced;
  if (a.score != b.score) return a.score > b.score;
  return a.id < b.id;
}

}  // namespace

float block_score(const Vector& query, const Keys& keys, std::int64_t head, core::Range visible,
                  std::int64_t dim) {
  double best = -kInf;
  for (std::int64_t key = visible.begin; key < visible.end; ++key) {
    const double score = dot(query, keys.at(key, head), dim);
    if (score > best) best = score;  // never true for NaN
  }
  return static_cast<float>(best);
}

std::span<Candidate> select(std::span<Candidate> candidates, std::int64_t k) {
  std::sort(candidates.begin(), candidates.end(), better);
  const std::size_t kept = std::min(candidates.size(), static_cast<std::size_t>(k));
  const std::span<Candidate> chosen = candidates.first(kept);
  std::sort(chosen.begin(), chosen.end(),
            [](const Candidate& a, const Candidate& b) { return a.id < b.id; });
  return chosen;
}

RowResult softmax(std::span<double> scores) {
  double top = -kInf;
  for (const double score : scores) {
    if (std::isnan(score) || score == kInf) return {.lse = kNaN, .nan = true};
    top = std::max(top, score);
  }
  if (top == -kInf) return {.lse = -kInf, .zero = true};
  double sum = 0;
  for (const double score : scores) sum += std::exp(score - top);
  for (double& score : scores) score = std::exp(score - top) / sum;
  return {.lse = top + std::log(sum)};
}

}  // namespace msa::reference
