// SPDX-License-Identifier: MIT
// In place of the library's file of this name: fragments as the PTX ISA draws them (9.7.14).
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <cstring>

#include "cuda/common/ptx/shared.cuh"

namespace msa::cuda::common::ptx {

/// Where the rows of four 8x8 matrices are: lane l names row l % 8 of matrix l / 8.
struct MatrixRows {
  const emulator::Words* said;
  explicit MatrixRows(std::uint32_t mine) {
    if (mine % 16 != 0) emulator::fail("misaligned ldmatrix");
    const std::uint64_t word = mine;
    said = emulator::exchange(~0u, &word, 1);
  }
  std::uint16_t item(int matrix, int row, int column) const {
    std::uint16_t bits;
    std::memcpy(&bits,
                at_shared(static_cast<std::uint32_t>(said[8 * matrix + row][0])) + 2 * column,
                sizeof bits);
    return bits;
  }
};

inline void ldmatrix_x4(std::uint32_t (&r)[4], std::uint32_t row) {
  const MatrixRows rows(row);
  const int lane = emulator::lane();
  for (int i = 0; i < 4; ++i)
    r[i] = rows.item(i, lane / 4, lane % 4 * 2) |
           std::uint32_t{rows.item(i, lane / 4, lane % 4 * 2 + 1)} << 16;
}
inline void ldmatrix_x4(std::uint32_t (&r)[4], const void* row) {
  ldmatrix_x4(r, cvta_to_shared(row));
}

inline void ldmatrix_x4_trans(std::uint32_t (&r)[4], std::uint32_t row) {
  const MatrixRows rows(row);
  const int lane = emulator::lane();
  for (int i = 0; i < 4; ++i)
    r[i] = rows.item(i, lane % 4 * 2, lane / 4) |
           std::uint32_t{rows.item(i, lane % 4 * 2 + 1, lane / 4)} << 16;
}
inline void ldmatrix_x4_trans(std::uint32_t (&r)[4], const void* row) {
  ldmatrix_x4_trans(r, cvta_to_shared(row));
}

/// D += A * B of kItems to a register, 16 x 8 x 8 * kItems: rows of A and columns of B are dealt to
/// groups of four lanes, each of which holds kItems of every 4 * kItems.
template <int kItems, class Sum, class Value>
void multiply(Sum (&d)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1,
              Value value) {
  const std::uint64_t mine[] = {a[0], a[1], a[2], a[3], b0, b1};
  const emulator::Words* all = emulator::exchange(~0u, mine, 6);
  const int lane = emulator::lane();
  constexpr int kHalf = 4 * kItems;  // of the inner dimension
  for (int x = 0; x < 4; ++x) {
    const int row = lane / 4 + 8 * (x / 2);
    const int column = lane % 4 * 2 + x % 2;
    Sum sum = 0;
    for (int k = 0; k < 2 * kHalf; ++k) {
      const int holder = k % kHalf / kItems;
      const auto in_a = all[row % 8 * 4 + holder][row / 8 + 2 * (k / kHalf)];
      const auto in_b = all[column * 4 + holder][4 + k / kHalf];
      sum += value(in_a, k % kItems) * value(in_b, k % kItems);
    }
    d[x] += sum;
  }
}

template <class T>
void mma_m16n8k16(float (&d)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1) {
  multiply<2>(d, a, b0, b1, [](std::uint64_t word, int i) {
    return static_cast<float>(emulator::read_as<T>(word >> (16 * i)));
  });
}

inline void mma_m16n8k32_s8(std::int32_t (&d)[4], const std::uint32_t (&a)[4], std::uint32_t b0,
                            std::uint32_t b1) {
  multiply<4>(d, a, b0, b1, [](std::uint64_t word, int i) {
    return std::int32_t{static_cast<std::int8_t>(word >> (8 * i))};
  });
}

}  // namespace msa::cuda::common::ptx
