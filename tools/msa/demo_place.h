// SPDX-License-Identifier: MIT
// Where the demo computes: in the host's memory as it lies, or on a GPU that holds a copy of it.
// Callers name tensors by their place in host memory and fetch what they want to look at.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "msa/attention.h"
#include "tensors.h"
#include "testkit/memory.h"
#include "testkit/operands.h"

namespace msa::cli {

class Place {
 public:
  enum class Contents : std::uint8_t { Copied, Unset };

  /// Host memory needs no copies: there every call below leaves things as they are.
  explicit Place(testkit::MemorySpace& space) : space_(space) {}
  Place(const Place&) = delete;
  Place& operator=(const Place&) = delete;
  ~Place();

  bool on_gpu() const { return space_.device().type == DeviceType::Cuda; }
  testkit::MemorySpace& space() const { return space_; }

  /// Makes room for a dense tensor.
  void hold(const Tensor& host, Contents contents);
  /// The operands over there. Each must lie inside a tensor that is held.
  testkit::Operands there(testkit::Operands operands) const;
  /// Back into the host's tensor: all of it, or some rows (of the outermost extent).
  void fetch(const Tensor& host) const;
  void fetch(const Tensor& host, const std::vector<std::int64_t>& rows) const;

 private:
  struct Held {
    std::byte* host = nullptr;
    std::size_t bytes = 0;
    std::byte* there = nullptr;
  };
  std::byte* find(const void* host) const;

  testkit::MemorySpace& space_;
  std::vector<Held> held_{};
};

/// Everything ready for one run of an operation.
class PlacedCall {
 public:
  /// `host`: the operands in host memory, their lengths filled.
  PlacedCall(Op op, const testkit::Operands& host, const Settings& settings, const Place& place);
  PlacedCall(const PlacedCall&) = delete;
  PlacedCall& operator=(const PlacedCall&) = delete;
  ~PlacedCall();

  /// Returns when the outputs are there.
  void run() const;
  std::optional<Fault> fault() const;

  const Plan& plan() const { return plan_; }
  const testkit::Operands& host() const { return host_; }

 private:
  Workspace workspace() const;

  const Place& place_;
  testkit::Operands host_;
  testkit::Operands operands_;
  Plan plan_;
  Buffer host_workspace_{};
  void* gpu_workspace_ = nullptr;
};

}  // namespace msa::cli
