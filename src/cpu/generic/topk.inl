// SPDX-License-Identifier: MIT
// The best blocks of one row of given scores: one pass, a vector of scores at a time against the
// row's threshold.

namespace selection {

/// kLanes scores from `block` on, NaN as -inf; blocks behind the end take -inf and are masked by
/// the caller.
MSA_INLINE Vec load_scores(const ScoreRow& row, std::int64_t block, std::int64_t n) {
  const Vec lowest = set1(-std::numeric_limits<float>::infinity());
  const float* p = row.scores + block * row.stride;
  if (row.stride == 1 && n >= kLanes) return max(load(p), lowest);
  alignas(64) float lanes[kLanes] = {};
  for (std::int64_t i = 0; i < std::min<std::int64_t>(n, kLanes); ++i) lanes[i] = p[i * row.stride];
  return max(load(lanes), lowest);
}

inline std::int64_t scan_scores(const ScoreRow& row, std::int64_t room, Candidate* list) {
  float threshold = kTakeAll;
  std::int32_t count = 0;
  for (std::int64_t block = row.blocks.begin; block < row.blocks.end; block += kLanes) {
    const std::int64_t n = row.blocks.end - block;
    const Vec scores = load_scores(row, block, n);
    const Vec limit = set1(threshold);
    unsigned passing = bits(either(greater(scores, limit), is_nan(limit)));
    if (n < kLanes) passing &= (1u << n) - 1u;
    if (passing == 0) continue;
    alignas(64) float lanes[kLanes];
    store(lanes, scores);
    for (; passing != 0; passing &= passing - 1) {
      const int lane = std::countr_zero(passing);
      threshold = push_candidate(
          list, count, room, threshold,
          make_candidate(lanes[lane], static_cast<std::int32_t>(row.first_id + block + lane)));
    }
  }
  return count;
}

constexpr SelectKernels kernels() {
  return {.score_tile = score_tile,
          .bound_tile = bound_tile,
          .score_wanted = score_wanted,
          .scan_scores = scan_scores};
}

}  // namespace selection
