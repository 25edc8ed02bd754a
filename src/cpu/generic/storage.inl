// SPDX-License-Identifier: MIT
// How each storage type meets the vectors: loads and stores, and the products that multiply it.

template <DType kType>
struct StoredAs;

template <>
struct StoredAs<DType::F32> {
  using T = float;
  MSA_INLINE static Vec load_vec(const T* p) { return load(p); }
  MSA_INLINE static void store_vec(T* p, Vec x) { store(p, x); }
};
template <>
struct StoredAs<DType::F16> {
  using T = std::uint16_t;
  MSA_INLINE static Vec load_vec(const T* p) { return load_f16(p); }
  MSA_INLINE static void store_vec(T* p, Vec x) { store_f16(p, x); }
};
template <>
struct StoredAs<DType::BF16> {
  using T = std::uint16_t;
  MSA_INLINE static Vec load_vec(const T* p) { return load_bf16(p); }
  MSA_INLINE static void store_vec(T* p, Vec x) { store_bf16(p, x); }
};

/// Pairs of bf16 where the level multiplies them, fp32 otherwise.
template <DType kType>
using ProductsAs = std::conditional_t<kType == DType::BF16, ProductsOfBf16, F32Products>;
