// SPDX-License-Identifier: MIT
// CUDA kernels on a machine without a GPU: the kernels of src/cuda/common and src/cuda/mma,
// compiled as C++ for the host, and what they ask of a GPU, made of plain loops. Built with
// MSA_EMULATE_CUDA; `msa_emulated verify --backend cuda --isa mma` checks them with the cases of
// any other backend.
//
// Shown: indices, fragments, masks, bounds, what is written where; exchanges that not all lanes
// reach, barriers that wait for ever, misaligned copies, copies that nobody waited for, shared
// memory that nobody wrote (it starts as NaN). On cards that nobody has: see runtime.cpp. Not
// shown: races and memory order, as one thread runs at a time and only gives way where it waits;
// speed, registers, bank conflicts; the last bits of exp2, log2 and of sums inside mma; anything
// of src/cuda/sm90, whose copy engine and wgmma have no counterpart here.
//
// This file: a thread of a kernel, as the device functions in include/ and words.h see it. Each is
// a fiber with a stack of its own; fibers.cpp switches between them.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <vector>

namespace emulator {

/// A cp.async under way: its bytes arrive when the thread waits for them, not before.
struct Copy {
  void* to;
  const void* from;
  int bytes;  // that are read; the rest of `size` is zero
  int size;
};

struct Thread {
  void* stack_pointer = nullptr;
  bool done = false;
  int linear = 0;  // in its CTA
  uint3 index{};
  std::vector<std::vector<Copy>> copies{1};  // groups, oldest first; the last is not committed
};

struct Cta {
  dim3 threads;
  dim3 grid;
  uint3 index{};
};

/// Those that run; of the calling host thread's grid, as grids run one at a time.
extern Thread* self;
extern Cta* cta;

inline int lane() { return self->linear % 32; }

/// Lets the other threads of the CTA run.
void yield();

/// Dynamic shared memory of the CTA.
std::uint8_t* dynamic_shared();

/// Arrives at barrier `id` and waits for `threads` of them.
void barrier(int id, int threads);

constexpr int kWords = 6;  // the registers of a product's factors
using Words = std::uint64_t[kWords];

/// Every lane of the mask says up to kWords words and hears, by lane, what the others said: valid
/// until the caller waits for anything else.
const Words* exchange(unsigned mask, const std::uint64_t* mine, int count);

/// Runs a kernel, CTA after CTA.
void run_grid(dim3 grid, dim3 threads, std::size_t shared_bytes, const std::function<void()>& body);

/// Ends the process: the kernel did what no GPU lets it do.
[[noreturn]] void fail(const char* what);

template <class T>
T read_as(std::uint64_t word) {
  static_assert(sizeof(T) <= sizeof word);
  T value;
  std::memcpy(&value, &word, sizeof(T));
  return value;
}

template <class T>
std::uint64_t word_of(T value) {
  static_assert(sizeof(T) <= sizeof(std::uint64_t));
  std::uint64_t word = 0;
  std::memcpy(&word, &value, sizeof(T));
  return word;
}

/// The value of lane `source`, 0 to 31.
template <class T>
T shuffle(unsigned mask, T value, int source) {
  const std::uint64_t mine = word_of(value);
  return read_as<T>(exchange(mask, &mine, 1)[source][0]);
}

/// The values of the mask's lanes, folded.
template <class T, class Fold>
T reduce(unsigned mask, T value, Fold fold) {
  const std::uint64_t mine = word_of(value);
  const Words* all = exchange(mask, &mine, 1);
  bool first = true;
  T result{};
  for (int i = 0; i < 32; ++i) {
    if ((mask >> i & 1) == 0) continue;
    const T other = read_as<T>(all[i][0]);
    result = first ? other : fold(result, other);
    first = false;
  }
  return result;
}

}  // namespace emulator
