// SPDX-License-Identifier: MIT
// The ways in which this backend serves an operation, as one ordered table: a row names the
// instruction set and the operations it is for, says what it rejects and plans the rest. The first
// row that takes a problem has it. A new architecture, or a faster way for some problems, is a row
// more.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "core/call.h"
#include "core/peers.h"
#include "cuda/device.h"
#include "cuda/isa.h"
#include "cuda/layout.h"

namespace msa::cuda {

/// A planned way: the launches of a run, from the status word's clearing on.
class Path {
 public:
  Path() = default;
  Path(const Path&) = delete;
  Path& operator=(const Path&) = delete;
  virtual ~Path() = default;
  virtual void run(const Problem& problem, const core::Call& call, void* workspace,
                   cudaStream_t stream) const = 0;
  /// The same among ranks; false, and nothing is launched, where this way has none.
  virtual bool attend(const Problem&, const core::Call&, const core::AttendCall&,
                      void* /*workspace*/, cudaStream_t) const {
    return false;
  }
  virtual std::string decisions() const = 0;
  /// In the GPU's memory, of the last run of a call with so many rows: whether any tile ended
  /// non-finite, then a bit a (row, KV head) that was computed again. Empty where none can be.
  virtual std::span<const int> suspects(std::int64_t /*rows*/, void* /*workspace*/) const {
    return {};
  }
};

struct PathRow {
  const char* name;
  const Isa* isa;
  bool (*takes)(Op op);
  // Why not this problem on this GPU; empty: it does.
  std::string (*rejects)(const Problem& problem, const GpuInfo& gpu);
  std::unique_ptr<Path> (*plan)(const Problem& problem, const GpuInfo& gpu, Layout& layout);
};

std::span<const PathRow> path_table();

/// The first row that takes the problem on this GPU, of the instruction set that its options name;
/// nullptr where none does, and then why the last one asked of the best instruction set that runs
/// there did not.
const PathRow* find_path(const Problem& problem, const GpuInfo& gpu, std::string& why);

}  // namespace msa::cuda
