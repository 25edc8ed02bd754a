// SPDX-License-Identifier: MIT
// The arithmetic of a filter, on the device and, for tests, on the host: between which two numbers
// the score of a key lies that scoring computes from the key itself, once the integer product of
// the codes is known.
//
// With a query q of codes times scale q8, and keys k8 of which the caller says |k - k8| <= error
// and |k8| <= norm,
//   |q k - q8 k8| <= |q| error + |q - q8| norm     (Cauchy-Schwarz, twice)
// and the tensor cores' sum differs from q k by at most gamma |q| |k|: a k16 step cuts each of its
// 17 summands off at 2^-23 of the largest. Everything is rounded outwards.
//
// Of a rotated filter all of this is said of R q / dim and R k, whose product is that of q and k: R
// is the Hadamard matrix, and R R = dim. Rotating the query is off by 2^-20 of its length.
#pragma once

#include <cuda_runtime_api.h>

#include <cmath>
#include <cstdint>

namespace msa::cuda::common {

inline constexpr int kBoundRows = 16;  // ragged index keys that share bounds; pages are multiples

/// A half-width above tells nothing: beyond, scores might overflow, or the width itself.
inline constexpr float kWidest = 0x1p100f;
/// More than 16 times what an instruction may take for zero.
inline constexpr float kTiny = 0x1p-120f;
/// Sums of a few products and of 128 squares, each rounded, stay below this many times themselves.
inline constexpr float kOutwards = 1 + 0x1p-17f;
/// Largest items of queries that have codes lie between 2^-100 and 2^100: their squares do not
/// overflow once the query is divided by a power of two.
inline constexpr int kMostExponent = 100;

/// Of one key: its score lies within |q| error + |q - q8| norm + floor of the codes' product.
struct KeyBound {
  float scale;
  float error;  // NaN: nothing is known
  float norm;
  float floor;
};

__host__ __device__ inline KeyBound key_bound(float scale, float error, float norm, int dim,
                                              bool rotated) {
  constexpr float kInf = __builtin_inff();
  const bool sound =
      scale >= 0 && scale < kInf && error >= 0 && error < kInf && norm >= 0 && norm < kInf;
  const float gamma = static_cast<float>(2 * dim + (rotated ? 72 : 64)) * 0x1p-23f;
  // As long as q is at most 16 times as long as R q / dim.
  const float tiny = rotated ? 16 * kTiny : kTiny;
  const float longest = (error + norm) * kOutwards;  // of the keys
  const float wide = (error + gamma * longest) * kOutwards + tiny;
  return {scale, sound ? wide : __builtin_nanf(""), norm, longest * kTiny + 0x1p-115f};
}

/// A query in codes.
struct QueryBound {
  float scale;
  float norm;  // NaN: nothing is known
  float error;
};

/// How a query's items become codes, from its largest magnitude: `unit` is a power of two. Zero and
/// what is not finite or extreme have an inverse of 0.
struct QueryUnit {
  float unit;     // items are divided by it
  float divide;   // 1 / unit
  float inverse;  // code = item * divide * inverse, rounded
  float scale;    // of the divided items
  bool known;
};

__host__ __device__ inline float power_of_two(int exponent) {
#ifdef __CUDA_ARCH__
  return __int_as_float((127 + exponent) << 23);
#else
  return std::ldexp(1.0f, exponent);
#endif
}

__host__ __device__ inline QueryUnit query_unit(float largest) {
  const bool none = largest == 0.0f;
  // False for NaN, too.
  const bool fits = largest >= 0x1p-100f && largest < 0x1p100f;
  int exponent = 0;
#ifdef __CUDA_ARCH__
  if (fits) exponent = (__float_as_int(largest) >> 23) - 127;
#else
  if (fits) exponent = std::ilogb(largest);
#endif
  const float divide = power_of_two(-exponent);
  const float top = fits ? largest * divide : 1.0f;  // 1 to 2
  return {.unit = power_of_two(exponent),
          .divide = divide,
          .inverse = fits ? 127.0f / top : 0.0f,
          .scale = fits ? top / 127.0f : 0.0f,
          .known = fits || none};
}

/// To the nearest integer, half to even; |x| is at most 127 and a rounding. Whoever computes it
/// finds the same code: nothing is left for a compiler to fuse.
__host__ __device__ inline float code_of(const QueryUnit& u, float divided) {
  return fmaf(divided, u.inverse, 12582912.0f) - 12582912.0f;
}

/// Four floats that are small integers as signed bytes.
__host__ __device__ inline std::uint32_t pack_codes(const float (&codes)[4]) {
  std::uint32_t word = 0;
  for (int i = 0; i < 4; ++i)
    word |= (static_cast<std::uint32_t>(static_cast<int>(codes[i])) & 0xffu) << (8 * i);
  return word;
}

/// Adds an item, divided by the unit, to the sums of squares of the query and of its codes' error.
__host__ __device__ inline void add_squares(const QueryUnit& u, float divided, float code,
                                            float& squares, float& errors) {
  const float error = fmaf(-code, u.scale, divided);
  squares = fmaf(divided, divided, squares);
  errors = fmaf(error, error, errors);
}

/// `share`: 1, or of a rotated query 1 / dim.
__host__ __device__ inline QueryBound query_bound(const QueryUnit& u, float squares, float errors,
                                                  float share) {
  // What underflowed is below the small number, which in a zero query stays.
  const float norm = sqrtf(squares) * kOutwards + 0x1p-60f;
  const float error = sqrtf(errors) * kOutwards + 0x1p-60f;
  return {.scale = u.scale * u.unit * share,
          .norm = u.known ? norm * u.unit * share : __builtin_nanf(""),
          .error = error * u.unit * share};
}

struct Interval {
  float lower;
  float upper;
};

__host__ __device__ inline Interval interval(std::int32_t product, const QueryBound& q,
                                             const KeyBound& k) {
  constexpr float kInf = __builtin_inff();
  const float middle = static_cast<float>(product) * (q.scale * k.scale);
  const float width = fmaf(q.norm, k.error, fmaf(q.error, k.norm, k.floor));
  // Not where one is NaN: codes of 0 may have any scale.
  const bool known = width < kWidest && fabsf(middle) < kWidest;
  return {known ? middle - width : -kInf, known ? middle + width : kInf};
}

}  // namespace msa::cuda::common
