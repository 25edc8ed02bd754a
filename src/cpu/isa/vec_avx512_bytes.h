// SPDX-License-Identifier: MIT
// What AVX-512 VBMI and VNNI know of keys in groups of e2m1 codes before these are multiplied as
// they are: bounds of their scores from products of bytes, 8 keys at a time. Keys 0, 2, 4 and 6 and
// the others are a vector each: lane 4 c + k has 32 bits of key k of the four, out of groups 2 c
// and 2 c + 1, so that nothing crosses quarters before sums do.

/// Orders of bytes in vectors of scales, each of them those of one vector of keys in its lanes.
namespace lane_orders {

using Order = std::array<std::uint8_t, 64>;
/// Of [key][group], eight keys: the scale to all bytes of its lanes. Vector `odd`, groups 2 c + g.
constexpr Order scales_to_lanes(std::size_t odd, std::size_t g) {
  Order order{};
  for (std::size_t i = 0; i < 64; ++i) {
    const std::size_t key = i / 4 % 4 * 2 + odd, group = i / 16 * 2 + g;
    order[i] = static_cast<std::uint8_t>(key * 8 + group);
  }
  return order;
}
/// Of words as [key][group], four keys: the word to the upper half of its lane.
constexpr Order words_to_lanes(std::size_t g) {
  Order order{};
  for (std::size_t i = 0; i < 64; ++i) {
    const std::size_t key = i / 4 % 4, group = i / 16 * 2 + g;
    order[i] = static_cast<std::uint8_t>((key * 8 + group) * 2 + i % 2);
  }
  return order;
}
alignas(64) inline constexpr Order kScales[2][2] = {{scales_to_lanes(0, 0), scales_to_lanes(0, 1)},
                                                    {scales_to_lanes(1, 0), scales_to_lanes(1, 1)}};
alignas(64) inline constexpr Order kWords[2] = {words_to_lanes(0), words_to_lanes(1)};
inline constexpr std::uint64_t kUpperHalves = 0xcccccccccccccccc;

}  // namespace lane_orders

struct ByteBounds {
  static constexpr std::int64_t kDim = 128;  // a key is a vector of codes
  static constexpr std::int64_t kGroups = kDim / 16;
  static constexpr std::int64_t kKeys = 8;
  static constexpr int kRows = 4;  // at once, or one
  /// A sum is an integer in the last bits of this float, which costs no conversion.
  static constexpr float kBase = 12582912.0f;  // 2^23 + 2^22
  static constexpr std::int32_t kBaseBits = 0x4b400000;
  static constexpr std::int32_t kShift = 128;  // of keys' bytes

  /// A row in bytes, as the lanes have it: every lane of a quarter has the same.
  struct Row {
    alignas(64) std::int32_t starts[2][16];   // of the sums of groups 2 c and 2 c + 1
    alignas(64) std::int8_t codes[2][4][64];  // even elements of each 8, odd ones

    void set_start(std::int64_t group, std::int32_t start) {
      std::fill_n(starts[group % 2] + group / 2 * 4, 4, start);
    }
    void set_code(std::int64_t group, std::int64_t i, std::int8_t code) {
      std::int8_t* lanes = codes[group % 2][i / 8 * 2 + i % 2] + group / 2 * 16;
      for (std::int64_t key = 0; key < 4; ++key) lanes[key * 4 + i % 8 / 2] = code;
    }
  };

  /// Word w of each quarter of four keys.
  MSA_INLINE static void load_keys(const std::byte* keys, std::int64_t stride, __m512i* words) {
    __m512i k[4];
    for (int i = 0; i < 4; ++i) k[i] = _mm512_loadu_si512(keys + i * stride);
    const __m512i first[2] = {_mm512_unpacklo_epi32(k[0], k[1]), _mm512_unpacklo_epi32(k[2], k[3])};
    const __m512i last[2] = {_mm512_unpackhi_epi32(k[0], k[1]), _mm512_unpackhi_epi32(k[2], k[3])};
    words[0] = _mm512_unpacklo_epi64(first[0], first[1]);
    words[1] = _mm512_unpackhi_epi64(first[0], first[1]);
    words[2] = _mm512_unpacklo_epi64(last[0], last[1]);
    words[3] = _mm512_unpackhi_epi64(last[0], last[1]);
  }

  MSA_INLINE static __m512i load_order(const lane_orders::Order& order) {
    return _mm512_load_si512(order.data());
  }
  MSA_INLINE static __m512i look_up(const std::uint8_t* table, __m512i index) {
    return _mm512_permutex2var_epi8(_mm512_load_si512(table), index, _mm512_load_si512(table + 64));
  }
  /// Quarter i: the sum of the quarters of v[i].
  MSA_INLINE static __m512 sum_quarters(const __m512* v) {
    __m512 pairs[2];
    for (int i = 0; i < 2; ++i) {
      pairs[i] = _mm512_add_ps(_mm512_shuffle_f32x4(v[2 * i], v[2 * i + 1], 0x88),
                               _mm512_shuffle_f32x4(v[2 * i], v[2 * i + 1], 0xdd));
    }
    return _mm512_add_ps(_mm512_shuffle_f32x4(pairs[0], pairs[1], 0x88),
                         _mm512_shuffle_f32x4(pairs[0], pairs[1], 0xdd));
  }

  /// Bit k: key k of 8 may score more than some row's limit. `scales`: those of key 0, of key 1,
  /// ... `limits`: lane 4 c + k of row c, or all of one row.
  template <int kRows>
  MSA_INLINE static unsigned above(const GroupBytes& values, const std::byte* keys,
                                   std::int64_t stride, const std::uint8_t* scales, const Row* q,
                                   const float* limits) {
    __m512i words[2][4];
    for (int n = 0; n < 2; ++n) load_keys(keys + n * stride, 2 * stride, words[n]);
    const __m512i scale = _mm512_loadu_si512(scales);
    const __m512i mantissas = _mm512_and_si512(_mm512_slli_epi16(scale, 4), _mm512_set1_epi8(0x70));
    const __m512i high = look_up(values.high.data(), scale);
    const __m512i low = look_up(values.low.data(), scale);
    const __m512i units[2] = {_mm512_unpacklo_epi8(low, high), _mm512_unpackhi_epi8(low, high)};
    const __m512i nibble = _mm512_set1_epi8(0x0f);

    __m512 sums[2][kRows], bases[2];
    for (int g = 0; g < 2; ++g) {
      __m512i table[2], products[2][kRows];
      for (int n = 0; n < 2; ++n) {
        table[n] = _mm512_permutexvar_epi8(load_order(lane_orders::kScales[n][g]), mantissas);
        for (int r = 0; r < kRows; ++r) products[n][r] = _mm512_load_si512(q[r].starts[g]);
      }
      for (int i = 0; i < 4; ++i) {
        __m512i bytes[2];
        for (int n = 0; n < 2; ++n) {
          const __m512i word = words[n][2 * g + i / 2];
          const __m512i code = i % 2 == 0 ? word : _mm512_srli_epi32(word, 4);
          // table | (code & nibble)
          bytes[n] =
              look_up(values.bytes.data(), _mm512_ternarylogic_epi32(table[n], code, nibble, 0xf8));
        }
        for (int r = 0; r < kRows; ++r) {
          const __m512i row = _mm512_load_si512(q[r].codes[g][i]);
          for (int n = 0; n < 2; ++n)
            products[n][r] = _mm512_dpbusd_epi32(products[n][r], bytes[n], row);
        }
      }
      for (int n = 0; n < 2; ++n) {
        const __m512 unit = _mm512_castsi512_ps(_mm512_maskz_permutexvar_epi8(
            lane_orders::kUpperHalves, load_order(lane_orders::kWords[g]), units[n]));
        bases[n] = g == 0 ? unit : _mm512_add_ps(bases[n], unit);
        for (int r = 0; r < kRows; ++r) {
          const __m512 product = _mm512_castsi512_ps(products[n][r]);
          sums[n][r] =
              g == 0 ? _mm512_mul_ps(product, unit) : _mm512_fmadd_ps(product, unit, sums[n][r]);
        }
      }
    }

    // A sign would turn a group's bound around.
    if (_mm512_movepi8_mask(scale) != 0) return 0xff;
    constexpr int kSums = std::max(2 * kRows, 4);  // of one row twice
    __m512 all[kSums];
    for (int i = 0; i < kSums; ++i) {
      const int n = i / kRows % 2;
      all[i] = _mm512_fnmadd_ps(bases[n], _mm512_set1_ps(kBase), sums[n][i % kRows]);
    }
    unsigned found[kSums / 4], any = 0;
    for (int i = 0; i < kSums / 4; ++i) {
      found[i] = _mm512_cmp_ps_mask(sum_quarters(all + 4 * i), _mm512_load_ps(limits),
                                    _CMP_NLE_UQ);  // as NaN is
      any |= found[i];
    }
    if (any == 0) return 0;
    unsigned bits = 0;
    for (int i = 0; i < kSums; ++i) {
      for (int k = 0; k < 4; ++k)
        bits |= (found[i / 4] >> (i % 4 * 4 + k) & 1) << (2 * k + i / kRows % 2);
    }
    return bits;
  }
};
