// SPDX-License-Identifier: MIT
// Measured on an H200 (132 SMs, 790 bf16 TFLOP/s, 4.3 TB/s, 60 MB of L2) unless a line says
// otherwise; an H100 SXM (3.0 TB/s, 50 MB) ran the same plans. No other card was measured.
#include "cuda/tuning.h"

#include <algorithm>

#include "cuda/device.h"

namespace msa::cuda {
namespace {

constexpr double kMeasuredFlops = 790e12;
constexpr double kMeasuredBytes = 4.3e12;  // a second, read and written
constexpr int kMeasuredSms = 132;
// Lists of 33 to 36 blocks broke even: k = 16, 8 tokens a tile.
constexpr double kMeasuredFactor = 2.1;

/// Bytes of one (query, block) of keys-outermost attention: q in and a partial out beside products,
/// the partial in again alone. 16 heads of 128.
constexpr double kVisitBytes = 8.2e3;
constexpr double kCombineBytes = 4.1e3;
constexpr double kStepFlops = 4.0 * 128 * 128 * 128;  // of a block of a union tile
constexpr double kUnionRate = 0.83;                   // of the peak, in the loop
constexpr double kVisitRate = 0.54;
constexpr double kTileTokens = 8;

/// Steps of the union kernel that take as long as the visits of a tile's tokens, for each of the k.
double break_even(double flops, double bytes, int sms) {
  const double sm_flops = flops / sms;
  const double sm_bytes = bytes / sms;
  const double step = kStepFlops / (kUnionRate * sm_flops);
  const double visit =
      std::max(kStepFlops / kTileTokens / (kVisitRate * sm_flops), kVisitBytes / sm_bytes) +
      kCombineBytes / sm_bytes;
  return kTileTokens * visit / step;
}

/// By the model above, held against the one point that is measured, and never beyond it: a longer
/// list on the union kernel has not been seen to pay.
double list_factor(const GpuInfo& gpu) {
  if (gpu.bf16_flops <= 0 || gpu.bytes_per_s <= 0) return kMeasuredFactor;
  const double here = break_even(gpu.bf16_flops, gpu.bytes_per_s, std::max(1, gpu.multiprocessors));
  const double measured = break_even(kMeasuredFlops, kMeasuredBytes, kMeasuredSms);
  return kMeasuredFactor * std::clamp(here / measured, 0.5, 1.0);
}

/// 131,072 keys of 128 stayed in the 50 MB of an H100.
std::int64_t cached_bytes(const GpuInfo& gpu) {
  constexpr std::int64_t kL2 = std::int64_t{50} << 20;
  const std::int64_t l2 = gpu.l2_bytes > 0 ? static_cast<std::int64_t>(gpu.l2_bytes) : kL2;
  return l2 / 3 * 2;
}

}  // namespace

Tuning tuning_for(const GpuInfo& gpu) {
  return {
      .multiprocessors = std::max(1, gpu.multiprocessors),
      // 128K tokens of 64/4 heads, top-16.
      .list_bytes = std::int64_t{64} << 20,
      .split_waves = 4,
      .most_splits = 32,
      // First and last step of an item overlap with nothing.
      .item_steps = 2,
      // The combine kernel, about 4 us.
      .combine_steps = 4,
      .list_factor = list_factor(gpu),
      // 6,081 tokens of 64/4 heads, top-16: every chunk reads the keys again, so few; a million
      // tokens stay below 2 GiB of workspace in all.
      .partial_bytes = (std::int64_t{3} << 29) + (std::int64_t{32} << 20),
      // 64 requests of a million tokens, 4 KV heads, take 128 MiB in 8 chunks. What a call does
      // not have costs no time.
      .inverse_bytes = std::int64_t{256} << 20,
      // 512K tokens of 4 heads.
      .unpack_bytes = std::int64_t{1} << 30,
      // By arithmetic: a block of a head takes 40 ns, and a tile that reads it gains 1.5.
      .unpack_visits = 48,
      // By arithmetic (docs/kernels/backward.md), not measured: 3,855 tokens of 64/4 heads, top-16;
      // more of them, and each tile's sums are read and written less often.
      .share_bytes = std::int64_t{1} << 30,
      // 2,048 parts of 128 keys and 128 columns.
      .part_bytes = std::int64_t{256} << 20,
      // 128K keys of 4 heads: with the shares, the parts and the inverse less than 2 GiB.
      .sum_bytes = std::int64_t{544} << 20,
      // 7,200 queries over a million tokens of 4 heads; smaller chunks lose time to their tails.
      .scratch_bytes = std::int64_t{900} << 20,
      // Queries, first rows, drain: 5 us.
      .select_overhead = 6,
      // Measured at 32K and 128K.
      .select_full_waves = 2,
      // More of them only add overhead.
      .select_most_waves = 32,
      // A chunk of a million keys then has two tiles of 192 tokens and 4 heads for three CTAs; less
      // than what attention behind it takes.
      .filter_scratch_bytes = std::int64_t{1500} << 20,
      // Not measured: below, launches and lists take what products in 8 bits spare.
      .filter_keys = 32768,
      .cached_bytes = cached_bytes(gpu),
      // On an H200 8 steps lost 1.2 us of 25, and 248 gained 32 of 199, 0.13 a step: by arithmetic
      // attention that has rehearsed spares what 17 steps gain. Nothing between was measured.
      .lone_steps = 32,
      // 38 to 118 of random vectors, 128K and 1M keys, by this arithmetic on the host.
      .filter_parts = 96,
      // 8 us at 3 TB/s, not measured.
      .filter_bytes = std::int64_t{24} << 20,
      // H100: 7.4 and 3.07 TB/s.
      .memory_factor = 2.4,
      // 43 us: 32 requests of 8 tokens gained 50 us of 145, of 4 nothing, 8 of 8 lost 18 of 38.
      .union_bytes = std::int64_t{320} << 20};
}

}  // namespace msa::cuda
