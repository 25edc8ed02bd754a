// SPDX-License-Identifier: MIT
// What vec_avx512_bf16.h and vec_avx512_tiles.h add, over the plain vectors: products of tiles and
// of bf16 pairs, with the sums of the instructions, so that all that surrounds them can be tested
// anywhere.

/// bf16 pairs: what packing and softmax need of them.
struct Bf16Products {
  using Word = std::uint32_t;
  static constexpr int kPack = 2;
  struct Groups {};  // of few rows alone
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
    std::uint16_t pairs[16][32];
    b.read(pairs);
    float factor[16][32];  // of b: the even ones of all columns, then the odd ones
    for (int k = 0; k < 16; ++k) {
      for (int j = 0; j < 16; ++j) {
        factor[k][j] = flushed(bf16_to_float(pairs[k][2 * j]));
        factor[k][16 + j] = flushed(bf16_to_float(pairs[k][2 * j + 1]));
      }
    }
    a.read(pairs);
    float sum[16][16];
    acc.read(sum);
    for (int i = 0; i < 16; ++i) {
      float even[16] = {}, odd[16] = {};
      for (int k = 0; k < 16; ++k) {
        const float x = flushed(bf16_to_float(pairs[i][2 * k]));
        const float y = flushed(bf16_to_float(pairs[i][2 * k + 1]));
        for (int j = 0; j < 16; ++j) even[j] += x * factor[k][j];
        for (int j = 0; j < 16; ++j) odd[j] += y * factor[k][16 + j];
      }
      for (int j = 0; j < 16; ++j)
        sum[i][j] = flushed(flushed(sum[i][j]) + flushed(even[j] + odd[j]));
    }
    acc.write(sum);
  }
  static void add_codes(Register& acc, const Register& a, const Register& b) {
    std::int8_t row[16][64], column[16][64];
    a.read(row);
    b.read(column);
    std::int32_t sum[16][16];
    acc.read(sum);
    for (int i = 0; i < 16; ++i) {
      for (int k = 0; k < 16; ++k) {
        for (int n = 0; n < 4; ++n) {
          const std::int32_t x = row[i][4 * k + n];
          for (int j = 0; j < 16; ++j) sum[i][j] += x * column[k][4 * j + n];
        }
      }
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
