// SPDX-License-Identifier: MIT
// The wrappers of the level over arrays: see cpu/vector_checks.h.

namespace checks {

inline unsigned pick_greater(const float* a, const float* b, float* y) {
  const Mask m = greater(load(a), load(b));
  store(y, select(m, load(a), load(b)));
  return bits(m);
}

inline unsigned clamp_difference(const std::int32_t* a, std::int32_t b, std::int32_t* y) {
  const IVec clamped = imin(imax(isub(iload(a), iset1(b)), iset1(0)), iset1(b));
  istore(y, clamped);
  return bits(igreater(clamped, iset1(0)));
}

inline void sum_rows(const float* x, float* y) {
  Vec rows[kLanes];
  for (int i = 0; i < kLanes; ++i) rows[i] = load(x + i * kLanes);
  store(y, sum_each(rows));
}

template <class P>
inline void step(const typename P::Word* a, const typename P::Word* b, float* acc) {
  store(acc, P::step(load(acc), P::load_lanes(a), P::load_lanes(b)));
}

template <class P>
constexpr void add_pairs(VectorChecks& t) {
  if constexpr (P::kPack == 2) {
    t.step_bf16 = step<P>;
    t.pair = [](const float* even, const float* odd, std::uint32_t* words) {
      istore(words, P::pair(load(even), load(odd)));
    };
    t.interleave = P::interleave;
    t.widen_e4m3 = P::widen_e4m3;
    t.widen_e2m1 = P::widen_e2m1;
  }
}

constexpr VectorChecks table() {
  VectorChecks t{
      .lanes = kLanes,
      .exp2 = [](const float* x, float* y) { store(y, exp2(load(x))); },
      .load_f16 = [](const std::uint16_t* x, float* y) { store(y, load_f16(x)); },
      .load_bf16 = [](const std::uint16_t* x, float* y) { store(y, load_bf16(x)); },
      .load_e4m3 = [](const std::uint8_t* x, float* y) { store(y, load_e4m3(x)); },
      .load_e2m1 = [](const std::uint8_t* x, const float* magnitudes,
                      float* y) { store(y, load_e2m1(x, magnitudes)); },
      .store_f16 = [](const float* x, std::uint16_t* y) { store_f16(y, load(x)); },
      .store_bf16 = [](const float* x, std::uint16_t* y) { store_bf16(y, load(x)); },
      .max = [](const float* a, const float* b, float* y) { store(y, max(load(a), load(b))); },
      .fma = [](const float* a, const float* b, const float* c,
                float* y) { store(y, fma(load(a), load(b), load(c))); },
      .pick_greater = pick_greater,
      .clamp_difference = clamp_difference,
      .nan_or_equal =
          [](const float* a, const float* b) {
            return bits(either(is_nan(load(a)), equal(load(a), load(b))));
          },
      .transpose = [](const std::uint32_t* from,
                      std::uint32_t* to) { transpose_words(from, kLanes, to, kLanes); },
      .sum_each = sum_rows,
      .step_f32 = step<F32Products>,
  };
  add_pairs<ProductsOfBf16>(t);
  return t;
}

}  // namespace checks
