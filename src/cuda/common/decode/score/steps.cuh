// SPDX-License-Identifier: MIT
// Steps of 128 keys, numbered over all requests: which there are, and which a producer takes.
#pragma once

#include "cuda/common/decode/request.cuh"
#include "cuda/common/decode/score/traits.cuh"
#include "cuda/common/warp.cuh"
#include "cuda/geometry.cuh"

namespace msa::cuda::common::decode {

/// Of an index-key head, every producer has one of the shares that steps are dealt out in.
template <class Traits>
struct Share {
  int index;
  int count;

  __device__ __forceinline__ explicit Share(int producer)
      : index(static_cast<int>(producer * gridDim.x + blockIdx.x)),
        count(static_cast<int>(Traits::kProducers * gridDim.x)) {}

  /// The request of the first step where all are equally long.
  __device__ __forceinline__ int likely_request(const ScoreParams& p) const {
    // Requests and shares are fewer than 2^16: a 64-bit division takes long.
    return static_cast<int>(static_cast<unsigned>(index) * static_cast<unsigned>(p.batch.batch) /
                            static_cast<unsigned>(count));
  }
};

/// A step, and what the producer must know of its request.
struct FoundStep {
  int request = -1;
  int step = 0;
  std::int64_t left = 0;  // steps of the request from this one on
  std::int64_t k_begin = 0;
  int seqlen_k = 0;
};

/// Finds steps, numbered over all requests, by whole warps. Numbers never fall from one find() to
/// the next.
class StepFinder {
 public:
  __device__ __forceinline__ StepFinder(const ScoreParams& params, int lane)
      : params_(params), lane_(lane) {
    const int batch = params.batch.batch;
#pragma unroll 1
    for (int first = 0; first < batch; first += 32) {
      read(first);
      total_ += __shfl_sync(common::kAllLanes, behind_, 31);
    }
    if (batch <= 32) return;
    first_ = -32;  // from the front again
    behind_ = 0;
  }

  __device__ __forceinline__ std::int64_t count() const { return total_; }

  /// The step of number `n` below count().
  __device__ __forceinline__ FoundStep find(std::int64_t n) {
#pragma unroll 1
    while (n - before_ >= __shfl_sync(common::kAllLanes, behind_, 31)) {
      before_ += __shfl_sync(common::kAllLanes, behind_, 31);
      read(first_ + 32);
    }
    const unsigned owners = __ballot_sync(common::kAllLanes, n - before_ < behind_);
    const int owner = __ffs(static_cast<int>(owners)) - 1;
    const std::int64_t left = before_ + __shfl_sync(common::kAllLanes, behind_, owner) - n;
    return {.request = first_ + owner,
            .step = __shfl_sync(common::kAllLanes, steps_, owner) - static_cast<int>(left),
            .left = left,
            .k_begin = __shfl_sync(common::kAllLanes, k_begin_, owner),
            .seqlen_k = __shfl_sync(common::kAllLanes, seqlen_k_, owner)};
  }

 private:
  /// The steps of 32 requests; a request without queries has none.
  __device__ __forceinline__ void read(int first) {
    first_ = first;
    steps_ = 0;
    if (first + lane_ < params_.batch.batch) {
      const RequestRecord r = early_request(params_.batch, params_.records, first + lane_);
      if (r.seqlen_q != 0) steps_ = (r.seqlen_k + kScoreStep - 1) / kScoreStep;
      k_begin_ = r.k_begin;
      seqlen_k_ = r.seqlen_k;
    }
    behind_ = common::warp::inclusive_sum<std::int64_t>(steps_, lane_);
  }

  const ScoreParams& params_;
  const int lane_;
  int first_ = 0;  // request of lane 0
  // Of this lane's request:
  int steps_ = 0;
  int seqlen_k_ = 0;
  std::int64_t k_begin_ = 0;
  std::int64_t behind_ = 0;  // steps of the group's requests up to this lane's
  std::int64_t before_ = 0;  // of the groups before
  std::int64_t total_ = 0;
};

/// How the steps are dealt out: share s is numbers s * fixed to (s + 1) * fixed - 1, what lies
/// behind all shares, a quarter at most and what did not divide, is claimed, `claim` at a time.
/// A CTA of several producers claims as many as it has, in parts, and so do CTAs that share an SM:
/// a step takes each as long as it takes all of them.
template <int kProducers, int kCtasPerSm>
struct Deal {
  std::int64_t fixed;
  int claim;

  __device__ __forceinline__ Deal(std::int64_t total, int shares) {
    constexpr std::int64_t kMostClaims = std::int64_t{1} << 30;  // the counter has 32 bits
    const bool small = total < kMostClaims;
    const std::int64_t each =
        small ? static_cast<unsigned>(total) / static_cast<unsigned>(shares) : total / shares;
    const std::int64_t of_cta = each * kProducers;
    const std::int64_t of_sm = of_cta * kCtasPerSm;
    const bool claims = small && of_cta >= 4;
    fixed = claims ? each - each / 4 : ceil_div(total, std::int64_t{shares});
    claim = of_sm < 16 ? 1 : (of_sm < 64 ? 4 : of_sm < 192 ? 8 : 16) / (kProducers * kCtasPerSm);
  }
};

}  // namespace msa::cuda::common::decode
