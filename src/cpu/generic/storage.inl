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

/// Codes: keys and values alone, times their scale.
template <>
struct StoredAs<DType::E4M3> {
  using T = std::uint8_t;
  MSA_INLINE static Vec load_vec(const T* p) { return load_e4m3(p); }
};

/// A vector of values: of e4m3 the codes' products with `scale`, each rounded.
template <class S>
MSA_INLINE Vec load_values(const typename S::T* p, Vec scale) {
  if constexpr (std::is_same_v<S, StoredAs<DType::E4M3>>)
    return rounded(mul(S::load_vec(p), scale));
  return S::load_vec(p);
}

/// Pairs of bf16 where the level multiplies them, fp32 otherwise.
template <DType kType>
using ProductsAs = std::conditional_t<kType == DType::BF16, ProductsOfBf16, F32Products>;
