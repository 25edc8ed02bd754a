// SPDX-License-Identifier: MIT
// Buffers between red zones (POSIX mappings) and the host's MemorySpace.
#include "testkit/memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <new>
#include <utility>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#define MSA_TESTKIT_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define MSA_TESTKIT_ASAN 1
#endif
#endif
#if defined(MSA_TESTKIT_ASAN)
#include <sanitizer/asan_interface.h>
#endif

namespace msa::testkit {

namespace {

constexpr std::size_t kGuard = 4096;  // bytes on each side
constexpr int kGuardByte = 0xc7;

bool all_bytes(const std::byte* begin, const std::byte* end, int value) {
  return std::all_of(begin, end, [value](std::byte b) { return std::to_integer<int>(b) == value; });
}

std::size_t round_up(std::size_t bytes, std::size_t unit) {
  return (bytes + unit - 1) / unit * unit;
}

}  // namespace

Buffer::Buffer(std::string name, std::size_t bytes, std::size_t misalign, bool sparse)
    : name_(std::move(name)), bytes_(bytes), sparse_(sparse) {
  mapping_bytes_ = round_up(bytes + misalign, kGuard) + 2 * kGuard;
  void* mapping = ::mmap(nullptr, mapping_bytes_, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapping == MAP_FAILED) throw std::bad_alloc();
  mapping_ = static_cast<std::byte*>(mapping);
  constexpr std::size_t kHugePage = std::size_t{2} << 20;
  if (!sparse && bytes > 2 * kHugePage) ::madvise(mapping, mapping_bytes_, MADV_HUGEPAGE);
  data_ = mapping_ + kGuard + misalign;
  std::memset(mapping_, kGuardByte, kGuard + misalign);
  std::memset(data_ + bytes_, kGuardByte, mapping_bytes_ - kGuard - misalign - bytes_);
  guard(true);
}

Buffer::Buffer(Buffer&& other) noexcept
    : name_(std::move(other.name_)),
      bytes_(other.bytes_),
      sparse_(other.sparse_),
      mapping_bytes_(other.mapping_bytes_),
      mapping_(std::exchange(other.mapping_, nullptr)),
      data_(other.data_) {}

Buffer::~Buffer() {
  if (mapping_ == nullptr) return;
  guard(false);
  ::munmap(mapping_, mapping_bytes_);
}

void Buffer::guard([[maybe_unused]] bool closed) const {
#if defined(MSA_TESTKIT_ASAN)
  const std::byte* end = data_ + bytes_;
  const auto before = static_cast<std::size_t>(data_ - mapping_);
  const auto behind = static_cast<std::size_t>(mapping_ + mapping_bytes_ - end);
  if (closed) {
    ASAN_POISON_MEMORY_REGION(mapping_, before);
    ASAN_POISON_MEMORY_REGION(end, behind);
  } else {
    ASAN_UNPOISON_MEMORY_REGION(mapping_, before);
    ASAN_UNPOISON_MEMORY_REGION(end, behind);
  }
#endif
}

void Buffer::fill(int value) {
  if (sparse_) {
    // Whole pages inside the data go back to the system and read as zero again.
    auto* begin = mapping_ + round_up(static_cast<std::size_t>(data_ - mapping_), kGuard);
    auto* end = mapping_ + static_cast<std::size_t>(data_ + bytes_ - mapping_) / kGuard * kGuard;
    if (begin < end) ::madvise(begin, static_cast<std::size_t>(end - begin), MADV_DONTNEED);
    return;
  }
  constexpr std::size_t kChunk = std::size_t{1} << 22;
  const auto chunks = static_cast<std::ptrdiff_t>((bytes_ + kChunk - 1) / kChunk);
#pragma omp parallel for schedule(static) if (chunks > 1)
  for (std::ptrdiff_t i = 0; i < chunks; ++i) {
    const std::size_t begin = static_cast<std::size_t>(i) * kChunk;
    std::memset(data_ + begin, value, std::min(kChunk, bytes_ - begin));
  }
}

bool Buffer::guards_intact() const {
  guard(false);
  const bool intact = all_bytes(mapping_, data_, kGuardByte) &&
                      all_bytes(data_ + bytes_, mapping_ + mapping_bytes_, kGuardByte);
  guard(true);
  return intact;
}

namespace {

class HostMemory final : public MemorySpace {
 public:
  Device device() const override { return {}; }
  void* allocate(std::size_t bytes) override {
    return ::operator new(bytes, std::align_val_t(kWorkspaceAlignment));
  }
  void release(void* data) noexcept override {
    ::operator delete(data, std::align_val_t(kWorkspaceAlignment));
  }
  void copy_in(void* target, const void* host, std::size_t bytes) override {
    std::memcpy(target, host, bytes);
  }
  void copy_out(void* host, const void* source, std::size_t bytes) override {
    std::memcpy(host, source, bytes);
  }
  void fill(void* target, int value, std::size_t bytes) override {
    std::memset(target, value, bytes);
  }
};

constexpr std::size_t kWorkspaceGuard = 1024;  // a multiple of kWorkspaceAlignment

}  // namespace

MemorySpace& host_memory() {
  static HostMemory space;
  return space;
}

GuardedWorkspace::GuardedWorkspace(std::size_t bytes, MemorySpace& space)
    : space_(space),
      bytes_(bytes),
      base_(static_cast<std::byte*>(space.allocate(bytes + 2 * kWorkspaceGuard))) {
  space_.fill(base_, kGuardByte, kWorkspaceGuard);
  space_.fill(base_ + kWorkspaceGuard + bytes_, kGuardByte, kWorkspaceGuard);
  poison();
}

GuardedWorkspace::~GuardedWorkspace() { space_.release(base_); }

Workspace GuardedWorkspace::view() const {
  return {bytes_ == 0 ? nullptr : base_ + kWorkspaceGuard, bytes_};
}

void GuardedWorkspace::poison() { space_.fill(base_ + kWorkspaceGuard, 0xff, bytes_); }

bool GuardedWorkspace::guards_intact() const {
  std::vector<std::byte> zone(kWorkspaceGuard);
  for (const std::byte* begin : {base_, base_ + kWorkspaceGuard + bytes_}) {
    space_.copy_out(zone.data(), begin, zone.size());
    if (!all_bytes(zone.data(), zone.data() + zone.size(), kGuardByte)) return false;
  }
  return true;
}

}  // namespace msa::testkit
