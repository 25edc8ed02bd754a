// SPDX-License-Identifier: MIT
// Memory for test data: host buffers between red zones, mapped lazily so that addresses past 2^31
// elements cost nothing, and the small interface through which a device's memory stands in for
// them.
#pragma once

#include <cstddef>
#include <string>

#include "msa/attention.h"

namespace msa::testkit {

/// Host bytes with a red zone on each side. Untouched pages of a sparse buffer take no memory and
/// read as zero. Under AddressSanitizer the red zones cannot be read either.
class Buffer {
 public:
  static constexpr int kSentinel = 0x7f;  // outputs before a call: huge in bf16 and f32, NaN in f16

  /// `misalign` bytes are added to a start that is aligned to kWorkspaceAlignment. Throws
  /// std::bad_alloc.
  Buffer(std::string name, std::size_t bytes, std::size_t misalign, bool sparse);
  Buffer(Buffer&& other) noexcept;
  Buffer& operator=(Buffer&&) = delete;
  ~Buffer();

  const std::string& name() const { return name_; }
  std::byte* data() const { return data_; }
  std::size_t bytes() const { return bytes_; }
  bool sparse() const { return sparse_; }
  /// Sets every byte; pages of a sparse buffer are given back first, so it costs nothing where
  /// `value` is 0.
  void fill(int value);
  /// Whether both red zones still hold what the constructor wrote.
  bool guards_intact() const;
  /// The whole mapping, red zones included: what a device copy copies.
  std::byte* mapping() const { return mapping_; }
  std::size_t mapping_bytes() const { return mapping_bytes_; }

 private:
  void guard(bool closed) const;

  std::string name_;
  std::size_t bytes_;
  bool sparse_;
  std::size_t mapping_bytes_ = 0;
  std::byte* mapping_ = nullptr;
  std::byte* data_ = nullptr;
};

/// Where a call's tensors lie. The host is one; a GPU is another.
class MemorySpace {
 public:
  virtual ~MemorySpace() = default;
  virtual Device device() const = 0;
  virtual void* allocate(std::size_t bytes) = 0;  // aligned to kWorkspaceAlignment
  virtual void release(void* data) noexcept = 0;
  virtual void copy_in(void* target, const void* host, std::size_t bytes) = 0;
  virtual void copy_out(void* host, const void* source, std::size_t bytes) = 0;
  virtual void fill(void* target, int value, std::size_t bytes) = 0;
  virtual Stream stream() const { return {}; }
  virtual void synchronize() {}
};

/// The host's memory: needs no copies.
MemorySpace& host_memory();

/// A workspace between red zones, filled with NaN before use.
class GuardedWorkspace {
 public:
  GuardedWorkspace(std::size_t bytes, MemorySpace& space);
  GuardedWorkspace(const GuardedWorkspace&) = delete;
  GuardedWorkspace& operator=(const GuardedWorkspace&) = delete;
  ~GuardedWorkspace();
  Workspace view() const;
  void poison();
  bool guards_intact() const;

 private:
  MemorySpace& space_;
  std::size_t bytes_;
  std::byte* base_;
};

}  // namespace msa::testkit
