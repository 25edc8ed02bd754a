// SPDX-License-Identifier: MIT
// What AMX adds to vec_avx512_bf16.h: products of whole tiles. The compilers' own intrinsics do not
// say which memory they read (g++ 12), so that stores before them may come late: these do.

/// The eight tile registers, each 16 rows of 64 bytes, from when it is made until it ends.
class Tiles {
 public:
  Tiles() {
    struct alignas(64) Layout {
      std::uint8_t palette = 1, start_row = 0;
      std::uint8_t reserved[14] = {};
      std::uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } const layout;
    asm volatile("ldtilecfg %0" ::"m"(layout));
  }
  ~Tiles() { asm volatile("tilerelease"); }
  Tiles(const Tiles&) = delete;
  Tiles& operator=(const Tiles&) = delete;

  template <int kTile>
  MSA_INLINE static void clear() {
    asm volatile("tilezero %%tmm%c0" ::"i"(kTile));
  }
  /// Rows lie `stride` bytes apart.
  template <int kTile>
  MSA_INLINE static void load(const void* rows, std::int64_t stride) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(rows), "r"(stride), "i"(kTile) : "memory");
  }
  template <int kTile>
  MSA_INLINE static void store(void* rows, std::int64_t stride) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(rows), "r"(stride), "i"(kTile) : "memory");
  }
  /// acc[i][j] += the sum over n of a[i][n] b[n / 2][j][n % 2], n < 32, of bf16 to fp32. Even and
  /// odd n are summed apart, one after the other, then joined and added. Numbers below 2^-126 are
  /// zero.
  template <int kAcc, int kA, int kB>
  MSA_INLINE static void add_pairs() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kAcc), "i"(kA), "i"(kB));
  }
  /// The same of codes of 8 bits: acc[i][j] += a[i][n] b[n / 4][j][n % 4], n < 64, exactly.
  template <int kAcc, int kA, int kB>
  MSA_INLINE static void add_codes() {
    asm volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kAcc), "i"(kA), "i"(kB));
  }
};

/// bf16 pairs as tiles multiply them.
struct TileProducts : Bf16Products {
  static constexpr bool kTiles = true;
};

/// What has no use for tiles: products of floats, and selections of few rows, which wait for
/// memory.
struct LevelBelow {
  static const Kernels& kernels() { return avx512_bf16::kKernels; }
  static constexpr bool kHasOtherLanes = false;
};
