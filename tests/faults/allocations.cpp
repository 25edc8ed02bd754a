// SPDX-License-Identifier: MIT
#include "allocations.h"

#include <cstddef>
#include <cstdlib>
#include <new>

namespace msa::faults {

std::atomic<long> allocations{0};
std::atomic<long> live{0};
std::atomic<long> fail_at{-1};

}  // namespace msa::faults

namespace {

void* allocate(std::size_t bytes, std::size_t alignment) noexcept {
  if (msa::faults::allocations.fetch_add(1) == msa::faults::fail_at.load()) return nullptr;
  const std::size_t rounded = (bytes + alignment) / alignment * alignment;
  void* memory = std::aligned_alloc(alignment, rounded);
  if (memory != nullptr) msa::faults::live.fetch_add(1);
  return memory;
}

void release(void* memory) noexcept {
  if (memory != nullptr) msa::faults::live.fetch_sub(1);
  std::free(memory);
}

void* allocate_or_throw(std::size_t bytes, std::size_t alignment) {
  if (void* memory = allocate(bytes, alignment)) return memory;
  throw std::bad_alloc();
}

constexpr std::size_t kAlign = __STDCPP_DEFAULT_NEW_ALIGNMENT__;

}  // namespace

// clang-format off
void* operator new(std::size_t n) { return allocate_or_throw(n, kAlign); }
void* operator new[](std::size_t n) { return allocate_or_throw(n, kAlign); }
void* operator new(std::size_t n, std::align_val_t a) { return allocate_or_throw(n, static_cast<std::size_t>(a)); }
void* operator new[](std::size_t n, std::align_val_t a) { return allocate_or_throw(n, static_cast<std::size_t>(a)); }
void* operator new(std::size_t n, const std::nothrow_t&) noexcept { return allocate(n, kAlign); }
void* operator new[](std::size_t n, const std::nothrow_t&) noexcept { return allocate(n, kAlign); }
void* operator new(std::size_t n, std::align_val_t a, const std::nothrow_t&) noexcept { return allocate(n, static_cast<std::size_t>(a)); }
void* operator new[](std::size_t n, std::align_val_t a, const std::nothrow_t&) noexcept { return allocate(n, static_cast<std::size_t>(a)); }
void operator delete(void* p) noexcept { release(p); }
void operator delete[](void* p) noexcept { release(p); }
void operator delete(void* p, std::size_t) noexcept { release(p); }
void operator delete[](void* p, std::size_t) noexcept { release(p); }
void operator delete(void* p, std::align_val_t) noexcept { release(p); }
void operator delete[](void* p, std::align_val_t) noexcept { release(p); }
void operator delete(void* p, std::size_t, std::align_val_t) noexcept { release(p); }
void operator delete[](void* p, std::size_t, std::align_val_t) noexcept { release(p); }
// clang-format on
