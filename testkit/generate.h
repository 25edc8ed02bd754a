// SPDX-License-Identifier: MIT
// From a case to a call: Data owns the memory of every tensor, between red zones, filled
// deterministically from the case's seed, and says afterwards what the call changed that it must
// not change.
#pragma once

#include <string>
#include <vector>

#include "testkit/case.h"
#include "testkit/corrupt.h"
#include "testkit/memory.h"
#include "testkit/operands.h"

namespace msa::testkit {

/// What lies in a gradient that a call adds to: numbers that every type holds. Nothing where the
/// tensor is not given.
void fill_accumulated(const Tensor& gradient);

/// The problem of a case: shapes and bounds.
Problem problem_of(const Case& spec);

/// What a case says beside shapes, as the one-call forms take it.
Settings settings_of(const Case& spec);

class Data {
 public:
  /// Throws CaseError where the case cannot be made (a fault to plant where there is nothing to
  /// spoil) and std::bad_alloc.
  explicit Data(const Case& spec);
  Data(Data&&) = default;

  const Case& spec() const { return spec_; }
  /// Bounds read off the lengths, with the case's slack; no backend or instruction set named.
  const Problem& problem() const { return problem_; }
  Settings settings() const { return settings_of(spec_); }
  /// The tensors in host memory, as a comparison reads them: parts that a merge writes in place
  /// keep their values here.
  const Operands& operands() const { return operands_; }
  /// Where the fault of a case with `corrupt` lies.
  const PlantedFault& planted() const { return planted_; }

  /// Fills the outputs with sentinels, or with numbers where the call adds to them, and gives the
  /// tensors to run with.
  Operands prepare();
  /// After a call: what changed outside the outputs' elements, or "" (red zones, gaps between
  /// strided rows, inputs).
  std::string damage() const;
  /// Whether damage() sees every input that changed: not those of gigabytes, nor sparse ones.
  bool watches_inputs() const;
  /// After a call that was rejected: the output that changed, or "".
  std::string touched() const;

  const std::vector<Buffer>& buffers() const { return buffers_; }
  std::size_t input_bytes() const;

 private:
  /// Remembers what prepare() left in outputs that the call adds to.
  void keep_accumulated();

  Case spec_;
  Problem problem_{};
  Operands operands_{};
  PlantedFault planted_{};
  Operands call_{};  // operands_, but for the parts of an in-place merge
  std::vector<Buffer> buffers_{};
  std::vector<Tensor> views_{};        // of each output buffer; rank 0 for inputs
  std::vector<std::uint64_t> sums_{};  // of each input buffer; 0 where it was not taken
  std::vector<std::vector<std::byte>> accumulated_{};  // of each buffer; empty: sentinels
};

/// Data in a device's memory: tensors that point there and the way back for outputs and red zones.
/// In host memory nothing is copied.
class Placement {
 public:
  Placement(Data& data, MemorySpace& space);
  Placement(const Placement&) = delete;
  Placement& operator=(const Placement&) = delete;
  ~Placement();
  /// Fresh sentinels in the outputs, and the tensors to run with.
  Operands prepare();
  /// Copies outputs and red zones back into the host's buffers.
  void fetch();

 private:
  Data& data_;
  MemorySpace& space_;
  std::vector<void*> copies_{};  // of each buffer's mapping; empty in host memory
};

}  // namespace msa::testkit
