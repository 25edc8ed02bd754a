// SPDX-License-Identifier: MIT
// Threads as fibers: one runs until it waits, then the next of its warp does. The order of the
// warps changes from round to round.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <mutex>

#include "thread.h"

/// Leaves the registers that a call keeps on the stack, its pointer in *from, and goes on with
/// `to`.
extern "C" void emulator_switch(void** from, void* to);
asm(R"(
.globl emulator_switch
emulator_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
)");

namespace emulator {

Thread* self = nullptr;
Cta* cta = nullptr;

namespace {

constexpr std::size_t kStackBytes = 64 << 10;
constexpr std::size_t kSharedBytes = 228 << 10;
constexpr int kBarriers = 16;
constexpr int kRoundsWithoutProgress = 100000;

struct Warp {
  std::uint64_t said[32][kWords]{};
  unsigned partners[32]{};  // the mask of each lane's last exchange
  unsigned arrived = 0;
  unsigned to_hear = 0;  // lanes whose exchange is complete and who have not run since
  unsigned lanes = 0;    // that exist
};

struct Barrier {
  int arrived = 0;
  unsigned generation = 0;
};

alignas(1024) std::uint8_t shared_memory[kSharedBytes];
std::vector<Thread> threads;
std::vector<Warp> warps;
Barrier barriers[kBarriers];
const std::function<void()>* kernel = nullptr;
void* scheduler = nullptr;  // its stack
std::size_t finished = 0;
long progress = 0;  // arrivals and ends: a round without any has only waited

void enter() {
  (*kernel)();
  self->done = true;
  ++finished;
  ++progress;
  for (;;) yield();
}

/// As if emulator_switch had left at the first instruction of enter(), which a call would have
/// entered with 8 bytes on an aligned stack.
void* fresh_stack(std::vector<char>& memory) {
  memory.resize(kStackBytes);
  const auto end = reinterpret_cast<std::uintptr_t>(memory.data() + memory.size());
  constexpr int kSaved = 6;
  auto* top = reinterpret_cast<std::uint64_t*>(end & ~std::uintptr_t{15}) - kSaved - 2;
  std::fill(top, top + kSaved + 2, 0);
  top[kSaved] = reinterpret_cast<std::uint64_t>(&enter);
  return top;
}

void start_threads() {
  static std::vector<std::vector<char>> stacks;
  const dim3 shape = cta->threads;
  const std::size_t count = std::size_t{shape.x} * shape.y * shape.z;
  if (stacks.size() < count) stacks.resize(count);
  threads.assign(count, {});
  warps.assign((count + 31) / 32, {});
  finished = 0;
  for (Barrier& barrier : barriers) barrier = {};
  for (std::size_t i = 0; i < count; ++i) {
    const auto linear = static_cast<unsigned>(i);
    threads[i].linear = static_cast<int>(i);
    threads[i].index = {linear % shape.x, linear / shape.x % shape.y, linear / shape.x / shape.y};
    threads[i].stack_pointer = fresh_stack(stacks[i]);
    warps[i / 32].lanes |= 1u << (i % 32);
  }
}

/// Until all lanes wait for another warp.
void run_warp(std::size_t warp) {
  for (long before = -1; before != progress;) {
    before = progress;
    for (std::size_t i = warp * 32; i < std::min(threads.size(), warp * 32 + 32); ++i) {
      if (threads[i].done) continue;
      self = &threads[i];
      emulator_switch(&scheduler, self->stack_pointer);
    }
  }
}

void run_cta() {
  static std::size_t round = 0;
  start_threads();
  int idle = 0;
  while (finished < threads.size()) {
    const long before = progress;
    ++round;
    const std::size_t step = round % 2 == 0 ? 1 : warps.size() - 1;  // upwards or downwards
    for (std::size_t i = 0; i < warps.size(); ++i) run_warp((i * step + round) % warps.size());
    idle = progress == before ? idle + 1 : 0;
    if (idle > kRoundsWithoutProgress) fail("every thread waits for another one");
  }
}

}  // namespace

void fail(const char* what) {
  std::fprintf(stderr, "emulated GPU: %s", what);
  if (self != nullptr) std::fprintf(stderr, " (CTA %u, thread %d)", cta->index.x, self->linear);
  std::fprintf(stderr, "\n");
  std::abort();
}

void yield() { emulator_switch(&self->stack_pointer, scheduler); }

std::uint8_t* dynamic_shared() { return shared_memory; }

void barrier(int id, int expected) {
  Barrier& at = barriers[id];
  const unsigned generation = at.generation;
  ++progress;
  if (++at.arrived == expected) {
    at.arrived = 0;
    ++at.generation;
    return;
  }
  while (at.generation == generation) yield();
}

const Words* exchange(unsigned mask, const std::uint64_t* mine, int count) {
  Warp& warp = warps[static_cast<std::size_t>(self->linear) / 32];
  const int me = lane();
  const unsigned bit = 1u << me;
  mask &= warp.lanes;
  if ((mask & bit) == 0) fail("a lane exchanges under a mask that leaves it out");
  // Somebody has yet to hear what this lane said last.
  while ((warp.to_hear & warp.partners[me]) != 0) yield();
  std::copy(mine, mine + count, warp.said[me]);
  warp.partners[me] = mask;
  warp.arrived |= bit;
  ++progress;
  if ((warp.arrived & mask) != mask) {
    while ((warp.to_hear & bit) == 0) yield();
    warp.to_hear &= ~bit;
    ++progress;
    return warp.said;
  }
  for (int i = 0; i < 32; ++i)
    if ((mask >> i & 1) != 0 && warp.partners[i] != mask) fail("lanes name different masks");
  warp.arrived &= ~mask;
  warp.to_hear |= mask & ~bit;
  return warp.said;
}

void run_grid(dim3 grid, dim3 shape, std::size_t shared_bytes, const std::function<void()>& body) {
  static std::mutex one_grid;
  const std::lock_guard guard(one_grid);
  if (shared_bytes > kSharedBytes) fail("more shared memory than any card has");
  Cta running{.threads = shape, .grid = grid};
  cta = &running;
  kernel = &body;
  for (unsigned z = 0; z < grid.z; ++z) {
    for (unsigned y = 0; y < grid.y; ++y) {
      for (unsigned x = 0; x < grid.x; ++x) {
        running.index = {x, y, z};
        std::memset(shared_memory, 0xff, sizeof shared_memory);
        run_cta();
      }
    }
  }
  self = nullptr;
}

}  // namespace emulator
