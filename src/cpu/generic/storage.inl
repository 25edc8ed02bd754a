// SPDX-License-Identifier: MIT
// How each storage type meets the vectors: loads and stores, what codes are scaled by, and the
// products that multiply them.

/// Nothing scales the row.
struct Unscaled {};

/// Of types that hold values as they are. Rows are read from dim `d` on, a vector of fp32 or 16
/// bfloats at a time.
template <class Own, class Element>
struct PlainStorage {
  using T = Element;
  using Scale = float;
  static constexpr std::int64_t bytes(std::int64_t dim) {
    return dim * static_cast<std::int64_t>(sizeof(T));
  }
  template <class Keys>
  MSA_INLINE static Unscaled scaling(const Keys&, const float*) {
    return {};
  }
  MSA_INLINE static Vec values(const T* row, std::int64_t d, Unscaled) {
    return Own::load_vec(row + d);
  }
};

template <DType kType>
struct StoredAs;

template <>
struct StoredAs<DType::F32> : PlainStorage<StoredAs<DType::F32>, float> {
  MSA_INLINE static Vec load_vec(const T* p) { return load(p); }
  MSA_INLINE static void store_vec(T* p, Vec x) { store(p, x); }
};
template <>
struct StoredAs<DType::F16> : PlainStorage<StoredAs<DType::F16>, std::uint16_t> {
  MSA_INLINE static Vec load_vec(const T* p) { return load_f16(p); }
  MSA_INLINE static void store_vec(T* p, Vec x) { store_f16(p, x); }
};
template <>
struct StoredAs<DType::BF16> : PlainStorage<StoredAs<DType::BF16>, std::uint16_t> {
  MSA_INLINE static Vec load_vec(const T* p) { return load_bf16(p); }
  MSA_INLINE static void store_vec(T* p, Vec x) { store_bf16(p, x); }
  template <class P>
  MSA_INLINE static void halves(const T* row, std::int64_t d, Unscaled, std::uint16_t* to) {
    std::memcpy(to, row + d, 32);
  }
};

/// Queries as they are; keys and values times their scale, each product rounded. Pairs of bf16 meet
/// them where they have no scale.
template <>
struct StoredAs<DType::E4M3> {
  using T = std::uint8_t;
  using Scale = float;
  static constexpr std::int64_t bytes(std::int64_t dim) { return dim; }
  MSA_INLINE static Vec load_vec(const T* p) { return load_e4m3(p); }
  template <class Keys>
  MSA_INLINE static Vec scaling(const Keys&, const float* scale) {
    return set1(*scale);
  }
  MSA_INLINE static Vec values(const T* row, std::int64_t d, Vec scale) {
    return rounded(mul(load_e4m3(row + d), scale));
  }
  template <class P, class Any>
  MSA_INLINE static void halves(const T* row, std::int64_t d, Any, std::uint16_t* to) {
    P::widen_e4m3(row + d, to);
  }
};

/// Two codes in a byte; every 16 have a scale, looked up together with what they stand for.
template <>
struct StoredAs<DType::E2M1> {
  using T = std::uint8_t;
  using Scale = std::uint8_t;
  static constexpr std::int64_t kGroup = 16;
  struct Groups {
    const GroupValues* table;
    const std::uint8_t* scales;
    std::int64_t step;
    Vec global;
    const GroupValues& at(std::int64_t d) const { return table[scales[d / kGroup * step]]; }
  };
  static constexpr std::int64_t bytes(std::int64_t dim) { return dim / 2; }
  template <class Keys>
  MSA_INLINE static Groups scaling(const Keys& keys, const std::uint8_t* scales) {
    return {keys.groups, scales, keys.scale_group, set1(*keys.global)};
  }
  MSA_INLINE static Vec values(const T* row, std::int64_t d, const Groups& groups) {
    const Vec products = load_e2m1(row + d / 2, groups.at(d).magnitudes.data());
    return rounded(mul(products, groups.global));
  }
  template <class P>
  MSA_INLINE static void halves(const T* row, std::int64_t d, const Groups& groups,
                                std::uint16_t* to) {
    P::widen_e2m1(row + d / 2, groups.at(d).halves.data(), to);
  }
};

/// Whether the words that pairs of bf16 multiply are what is stored.
template <class S>
inline constexpr bool kWordsAreStored = std::is_same_v<S, StoredAs<DType::BF16>>;

/// Pairs of bf16 where the level multiplies them, fp32 otherwise.
template <DType kType>
using ProductsAs = std::conditional_t<kType == DType::BF16, ProductsOfBf16, F32Products>;

/// Products of 8-bit codes by 16-bit arithmetic, two to a word: where the level multiplies no
/// bytes.
struct PairProducts {
  static constexpr int kPack = 2;
  static constexpr std::int32_t kShift = 0;
  MSA_INLINE static IVec step(IVec acc, IVec a, IVec b) { return pair_step(acc, a, b); }
  MSA_INLINE static IVec broadcast(const std::byte* word) {
    std::int32_t x = 0;
    std::memcpy(&x, word, sizeof x);
    return iset1(x);
  }
  MSA_INLINE static IVec codes(const std::int8_t* p, std::int64_t n) { return load_codes(p, n); }
  MSA_INLINE static IVec shifted(IVec codes) { return codes; }
  MSA_INLINE static std::int32_t sum(const std::int8_t*, std::int64_t) { return 0; }
};
