// SPDX-License-Identifier: MIT
// What vec_avx512_bf16.h and vec_avx512_tiles.h add, over the plain vectors: products of tiles and
// of bf16 pairs, with the sums of the instructions, so that all that surrounds them can be tested
// anywhere.

/// bf16 pairs: what packing and softmax need of them.
struct Bf16Products {
  using Word = std::uint32_t;
  static constexpr int kPack = 2;
  /// Groups of 16 codes and of a query's elements, in the order 0, 4, 8, 12, 1, 5, ...
  struct Groups {
    static void widen(const std::uint8_t* pairs, const std::uint16_t* values, std::byte* to) {
      std::uint16_t halves[16];
      widen_e2m1(pairs, values, halves);
      std::memcpy(to, halves, sizeof halves);
      turn(to);
    }
    static void turn(std::byte* halves) {
      std::uint16_t from[16], to[16];
      std::memcpy(from, halves, sizeof from);
      for (int i = 0; i < 16; ++i) to[i] = from[i % 4 * 4 + i / 4];
      std::memcpy(halves, to, sizeof to);
    }
  };
  MSA_INLINE static IVec load_lanes(const std::uint32_t* p) { return iload(p); }
  MSA_INLINE static IVec broadcast(const std::uint32_t* p) {
    return iset1(static_cast<std::int32_t>(*p));
  }
  static float half(std::int32_t word, int odd) {
    return bf16_to_float(static_cast<std::uint16_t>(static_cast<std::uint32_t>(word) >> 16 * odd));
  }
  static Vec step(In<Vec> acc, In<IVec> a, In<IVec> b) {
    return each<Vec>([&](int i) {
      return acc.v[i] + half(a.v[i], 0) * half(b.v[i], 0) + half(a.v[i], 1) * half(b.v[i], 1);
    });
  }
  static IVec pair(In<Vec> even, In<Vec> odd) {
    return each<IVec>([&](int i) {
      const std::uint32_t high = float_to_bf16(odd.v[i]);
      return static_cast<std::int32_t>(high << 16 | float_to_bf16(even.v[i]));
    });
  }
  static void split(In<Vec> even, In<Vec> odd, IVec (&words)[2]) {
    Vec left[2];
    for (int i = 0; i < kLanes; ++i) {
      const std::uint32_t upper[2] = {std::bit_cast<std::uint32_t>(even.v[i]) & 0xffff0000u,
                                      std::bit_cast<std::uint32_t>(odd.v[i]) & 0xffff0000u};
      words[0].v[i] = static_cast<std::int32_t>(upper[1] | upper[0] >> 16);
      left[0].v[i] = even.v[i] - std::bit_cast<float>(upper[0]);
      left[1].v[i] = odd.v[i] - std::bit_cast<float>(upper[1]);
      for (Vec& x : left) x.v[i] = std::isnan(x.v[i]) ? 0.0f : x.v[i];
    }
    words[1] = pair(left[0], left[1]);
  }
  static void widen_e4m3(const std::uint8_t* codes, std::uint16_t* to) {
    for (int i = 0; i < 16; ++i) to[i] = float_to_bf16(e4m3_to_float(codes[i]));
  }
  static void widen_e2m1(const std::uint8_t* pairs, const std::uint16_t* values,
                         std::uint16_t* to) {
    for (int i = 0; i < 16; ++i) to[i] = values[pairs[i / 2] >> (i % 2 * 4) & 15];
  }
  static void interleave(const std::uint16_t* even, const std::uint16_t* odd, std::int64_t dim,
                         std::uint32_t* to, std::int64_t strip) {
    for (std::int64_t d = 0; d < dim; ++d)
      to[d / kLanes * strip + d % kLanes] = static_cast<std::uint32_t>(odd[d]) << 16 | even[d];
  }
};

/// The tile registers of one thread.
class Tiles {
  struct Register {
    alignas(64) std::byte rows[16][64];
    /// All values at once: where sanitizers watch, each copy is a call.
    template <class T, std::size_t kColumns>
    void read(T (&values)[16][kColumns]) const {
      static_assert(sizeof values == sizeof rows);
      std::memcpy(values, rows, sizeof rows);
    }
    template <class T, std::size_t kColumns>
    void write(const T (&values)[16][kColumns]) {
      static_assert(sizeof values == sizeof rows);
      std::memcpy(rows, values, sizeof rows);
    }
  };
  struct Registers {
    bool ready = false;  // between the making and the end of a Tiles
    Register tiles[8];
  };
  static Registers& registers() {
    static thread_local Registers all;
    return all;
  }
  static Register& tile(int i) {
    // As the processor does.
    if (!registers().ready) __builtin_trap();
    return registers().tiles[i];
  }
  /// What the products take for zero.
  static float flushed(float x) {
    return std::fabs(x) < std::numeric_limits<float>::min() ? std::copysign(0.0f, x) : x;
  }

 public:
  Tiles() {
    if (registers().ready) __builtin_trap();
    registers().ready = true;
    std::memset(registers().tiles, 0, sizeof registers().tiles);
  }
  ~Tiles() { registers().ready = false; }
  Tiles(const Tiles&) = delete;
  Tiles& operator=(const Tiles&) = delete;

  template <int kTile>
  static void clear() {
    std::memset(tile(kTile).rows, 0, sizeof tile(kTile).rows);
  }
  template <int kTile>
  static void load(const void* rows, std::int64_t stride) {
    for (int i = 0; i < 16; ++i)
      std::memcpy(tile(kTile).rows[i], static_cast<const std::byte*>(rows) + i * stride, 64);
  }
  template <int kTile>
  static void store(void* rows, std::int64_t stride) {
    for (int i = 0; i < 16; ++i)
      std::memcpy(static_cast<std::byte*>(rows) + i * stride, tile(kTile).rows[i], 64);
  }
  template <int kAcc, int kA, int kB>
  static void add_pairs() {
    add_pairs(tile(kAcc), tile(kA), tile(kB));
  }
  template <int kAcc, int kA, int kB>
  static void add_codes() {
    add_codes(tile(kAcc), tile(kA), tile(kB));
  }

 private:
  // Products of bf16 are exact in fp32, so that fusing them or not is the same.
  static void add_pairs(Register& acc, const Register& a, const Register& b) {
    std::uint16_t pairs[16][2 * kLanes];
    b.read(pairs);
    Vec even_factor[16], odd_factor[16];  // of b
    for (int k = 0; k < 16; ++k) {
      even_factor[k] = each<Vec>([&](int j) { return flushed(bf16_to_float(pairs[k][2 * j])); });
      odd_factor[k] = each<Vec>([&](int j) { return flushed(bf16_to_float(pairs[k][2 * j + 1])); });
    }
    a.read(pairs);
    float sum[16][kLanes];
    acc.read(sum);
    for (int i = 0; i < 16; ++i) {
      Vec even = zero(), odd = zero();
      for (int k = 0; k < 16; ++k) {
        even = fma(set1(flushed(bf16_to_float(pairs[i][2 * k]))), even_factor[k], even);
        odd = fma(set1(flushed(bf16_to_float(pairs[i][2 * k + 1]))), odd_factor[k], odd);
      }
      const Vec both = add(even, odd);
      for (int j = 0; j < kLanes; ++j) sum[i][j] = flushed(flushed(sum[i][j]) + flushed(both.v[j]));
    }
    acc.write(sum);
  }
  // So are products of codes, and sums of 64 of them.
  static void add_codes(Register& acc, const Register& a, const Register& b) {
    std::int8_t row[16][64], column[16][4 * kLanes];
    a.read(row);
    b.read(column);
    Vec factor[64];
    for (int n = 0; n < 64; ++n)
      factor[n] =
          each<Vec>([&](int j) { return static_cast<float>(column[n / 4][4 * j + n % 4]); });
    std::int32_t sum[16][kLanes];
    acc.read(sum);
    for (int i = 0; i < 16; ++i) {
      Vec added = zero();
      for (int n = 0; n < 64; ++n) added = fma(set1(row[i][n]), factor[n], added);
      for (int j = 0; j < kLanes; ++j) sum[i][j] += static_cast<std::int32_t>(added.v[j]);
    }
    acc.write(sum);
  }
};

struct TileProducts : Bf16Products {
  static constexpr bool kTiles = true;
};

struct LevelBelow {
  static const Kernels& kernels() { return scalar::kKernels; }
  static constexpr bool kHasOtherLanes = true;
};
