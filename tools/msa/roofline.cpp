// SPDX-License-Identifier: MIT
// Arithmetic loops keep twelve or more independent accumulators in registers, twice what latency
// times throughput asks for on the machines we know (6 clocks for VDPBF16PS). Reading tries one
// stream a thread and four.
#include "roofline.h"

#include <omp.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "msa/info.h"
#include "timing.h"

namespace msa::cli {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

constexpr int kAccumulators = 12;
constexpr double kTarget = 0.03;  // seconds of one arithmetic measurement

/// A loop of `steps` times kAccumulators vector operations.
using Kernel = void (*)(std::int64_t steps);

// One loop of kAccumulators variables a0 .. a11, written out so that no compiler puts them in
// memory. The empty asm keeps a vector in its register and its value unknown to the optimiser.
#define MSA_TWELVE(f) f(0) f(1) f(2) f(3) f(4) f(5) f(6) f(7) f(8) f(9) f(10) f(11)
#define MSA_DECLARE(n) auto a##n = init;
#define MSA_STEP(n)  \
  a##n = step(a##n); \
  asm volatile("" : "+v"(a##n));
#define MSA_LOOP                             \
  MSA_TWELVE(MSA_DECLARE)                    \
  for (std::int64_t i = 0; i < steps; ++i) { \
    MSA_TWELVE(MSA_STEP)                     \
  }

#if defined(__x86_64__)
__attribute__((target("avx512f,avx512bf16"))) void bf16_kernel(std::int64_t steps) {
  const auto ones = (__m512bh)_mm512_set1_epi32(0x3f803f80);
  const __m512 init = _mm512_setzero_ps();
#define step(a) _mm512_dpbf16_ps(a, ones, ones)
  MSA_LOOP
#undef step
}

__attribute__((target("avx512f"))) void fma512_kernel(std::int64_t steps) {
  const __m512 x = _mm512_set1_ps(0.999f);
  const __m512 init = _mm512_set1_ps(0.001f);
#define step(a) _mm512_fmadd_ps(a, x, init)
  MSA_LOOP
#undef step
}

__attribute__((target("avx2,fma"))) void fma256_kernel(std::int64_t steps) {
  const __m256 x = _mm256_set1_ps(0.999f);
  const __m256 init = _mm256_set1_ps(0.001f);
#define step(a) _mm256_fmadd_ps(a, x, init)
  MSA_LOOP
#undef step
}

__attribute__((target("avx512f,avx512vnni"))) void vnni_kernel(std::int64_t steps) {
  const __m512i ones = _mm512_set1_epi8(1);
  const __m512i init = _mm512_setzero_si512();
#define step(a) _mm512_dpbusd_epi32(a, ones, ones)
  MSA_LOOP
#undef step
}

/// All tiles: 16 rows of 64 bytes.
struct alignas(64) TileLayout {
  std::uint8_t palette = 1, start_row = 0;
  std::uint8_t reserved[14] = {};
  std::uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// Twelve products into four tiles.
#define MSA_TILE_STEP(op)                                              \
  op " %%tmm6, %%tmm4, %%tmm0\n\t" op " %%tmm7, %%tmm4, %%tmm1\n\t" op \
     " %%tmm6, %%tmm5, %%tmm2\n\t" op " %%tmm7, %%tmm5, %%tmm3\n\t"
#define MSA_TILE_LOOP(op)                                                  \
  const TileLayout layout;                                                 \
  asm volatile("ldtilecfg %0" ::"m"(layout));                              \
  for (std::int64_t i = 0; i < steps; ++i)                                 \
    asm volatile(MSA_TILE_STEP(op) MSA_TILE_STEP(op) MSA_TILE_STEP(op)::); \
  asm volatile("tilerelease");

__attribute__((target("amx-tile,amx-bf16"))) void tile_bf16_kernel(std::int64_t steps) {
  MSA_TILE_LOOP("tdpbf16ps")
}
__attribute__((target("amx-tile,amx-int8"))) void tile_codes_kernel(std::int64_t steps) {
  MSA_TILE_LOOP("tdpbssd")
}

/// Whether the library has a level of tiles here: then the system has given its permission, too.
bool has_tiles() {
  for (const BackendInfo& backend : build_info().backends) {
    for (const IsaInfo& isa : backend.isas) {
      if (isa.name == "amx" && isa.available) return true;
    }
  }
  return false;
}

/// Reads `bytes` (a multiple of 128 times Streams) as that many equal streams.
template <int Streams>
__attribute__((target("avx2"))) void read_avx2(const std::byte* begin, std::uint64_t bytes) {
  const std::uint64_t part = bytes / Streams;
  __m256i sum[4] = {};
  for (std::uint64_t at = 0; at < part; at += 128) {
    for (std::uint64_t s = 0; s < Streams; ++s) {
      const auto* from = reinterpret_cast<const __m256i*>(begin + s * part + at);
      for (int i = 0; i < 4; ++i) sum[i] = _mm256_or_si256(sum[i], _mm256_load_si256(from + i));
    }
  }
  for (__m256i& value : sum) asm volatile("" : "+v"(value));
}
#endif

/// For machines without any of the above: four lanes, multiply and add.
void portable_kernel(std::int64_t steps) {
  typedef float Vector __attribute__((vector_size(16)));
  const Vector init = {0.001f, 0.001f, 0.001f, 0.001f};
  Vector sums[kAccumulators] = {};
  for (std::int64_t i = 0; i < steps; ++i) {
    for (Vector& sum : sums) sum = sum * 0.999f + init;
    asm volatile("" : : "r"(sums) : "memory");
  }
}

void read_portable(const std::byte* begin, std::uint64_t bytes) {
  std::uint64_t sum = 0;
  for (std::uint64_t at = 0; at < bytes; at += sizeof sum) {
    std::uint64_t value;
    std::memcpy(&value, begin + at, sizeof value);
    sum |= value;
  }
  asm volatile("" : : "r"(sum));
}

/// Runs `body(thread)` on all threads at once; seconds from the common start to the last end.
template <class Body>
double timed_parallel(int threads, const Body& body) {
  Clock::time_point start;
  double longest = 0;
#pragma omp parallel num_threads(threads)
  {
#pragma omp barrier
#pragma omp single
    start = Clock::now();
    body(omp_get_thread_num());
#pragma omp critical
    longest = std::max(longest, seconds_since(start));
  }
  return longest;
}

/// Operations per second of a kernel whose vector operation counts `ops`.
double measure(int threads, Kernel kernel, double ops) {
  static constexpr std::int64_t kProbe = 20000;
  kernel(kProbe);
  const auto start = Clock::now();
  kernel(kProbe);
  const double per_step = seconds_since(start) / kProbe;
  const auto steps = static_cast<std::int64_t>(kTarget / per_step) + 1;
  const double seconds = timed_parallel(threads, [&](int) { kernel(steps); });
  return threads * ops * kAccumulators * static_cast<double>(steps) / seconds;
}

using Reader = void (*)(const std::byte* begin, std::uint64_t bytes);

/// Bytes per second of all threads together, each with a slice of its own.
double measure_read(int threads, Reader reader, const Buffer& buffer) {
  const std::uint64_t slice = buffer.bytes() / static_cast<std::uint64_t>(threads) / 4096 * 4096;
  const auto* begin = static_cast<const std::byte*>(buffer.data());
  const double seconds = timed_parallel(threads, [&](int thread) {
    reader(begin + static_cast<std::uint64_t>(thread) * slice, slice);
  });
  return static_cast<double>(slice) * threads / seconds;
}

void keep_best(double& best, double value) { best = std::max(best, value); }

/// Far more than caches hold. Where sanitizers watch, rates say nothing, and to read that much
/// takes seconds.
std::int64_t stream_bytes() {
#ifdef MSA_SANITIZED
  return std::int64_t{16} << 20;
#else
  return std::max(std::int64_t{256} << 20, 9 * last_cache_bytes() / 2);
#endif
}

}  // namespace

std::int64_t last_cache_bytes() {
  for (const int level : {_SC_LEVEL4_CACHE_SIZE, _SC_LEVEL3_CACHE_SIZE, _SC_LEVEL2_CACHE_SIZE}) {
    const long bytes = ::sysconf(level);
    if (bytes > 0) return bytes;
  }
  return 0;
}

Roofline::Roofline(int threads)
    : threads_(threads), stream_(static_cast<std::uint64_t>(stream_bytes())) {
  // Each thread touches its own slice first: its pages lie in its node's memory.
  const std::uint64_t slice = stream_.bytes() / static_cast<std::uint64_t>(threads);
  timed_parallel(threads, [&](int thread) {
    std::memset(
        static_cast<std::byte*>(stream_.data()) + static_cast<std::uint64_t>(thread) * slice, 1,
        slice);
  });
}

void Roofline::round() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512bf16")) {
    keep_best(peaks_.bf16_flops, measure(threads_, bf16_kernel, 64));
  }
  if (__builtin_cpu_supports("avx512vnni")) {
    keep_best(peaks_.int8_ops, measure(threads_, vnni_kernel, 128));
  }
  if (has_tiles()) {
    keep_best(peaks_.tile_bf16_flops, measure(threads_, tile_bf16_kernel, 16 * 16 * 64));
    keep_best(peaks_.tile_int8_ops, measure(threads_, tile_codes_kernel, 16 * 16 * 128));
  }
  if (__builtin_cpu_supports("avx512f")) {
    keep_best(peaks_.fp32_flops, measure(threads_, fma512_kernel, 32));
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    keep_best(peaks_.avx2_fp32_flops, measure(threads_, fma256_kernel, 16));
    keep_best(peaks_.fp32_flops, peaks_.avx2_fp32_flops);
  } else {
    keep_best(peaks_.fp32_flops, measure(threads_, portable_kernel, 8));
  }
#else
  keep_best(peaks_.fp32_flops, measure(threads_, portable_kernel, 8));
#endif
  read_round();
}

void Roofline::read_round() {
  double rate = 0;
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx2")) {
    keep_best(rate, measure_read(threads_, read_avx2<1>, stream_));
    keep_best(rate, measure_read(threads_, read_avx2<4>, stream_));
  }
#endif
  if (rate == 0) rate = measure_read(threads_, read_portable, stream_);
  reads_.push_back(rate);
  peaks_.read_bytes_per_s = read_rate(0);
}

double Roofline::read_rate(std::size_t first) const {
  return median_of({reads_.begin() + static_cast<std::ptrdiff_t>(first), reads_.end()});
}

}  // namespace msa::cli
