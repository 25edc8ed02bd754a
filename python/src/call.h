// SPDX-License-Identifier: MIT
// One call of an operation: gathers tensors by the table of fields, poses the problem, allocates
// what is missing and runs. The one-call forms and Plan.run share it.
#pragma once

#include <array>
#include <cstdint>

#include "state.h"
#include "tensor.h"

namespace msa_python {

/// What arrays of unsigned integers hold, for libraries without the type; -1: nobody said.
struct Stored {
  msa_dtype words = -1;  // of 16 bits
  msa_dtype bytes = -1;  // keys and values
  msa_dtype index = -1;  // bytes of index queries and index keys
};

class Call {
 public:
  Call(State& state, Operation& operation);

  /// Inputs and given outputs. An output given as True is wanted and allocated later; False and
  /// None are not given. `words`: what 16-bit words hold, or -1.
  bool gather(PyObject* const* inputs, PyObject* const* outputs, PyObject* stream,
              const Stored& stored);
  /// Whether any input was given.
  bool has_inputs() const { return first_ != nullptr; }

  /// Sets the flags of the outputs that were given as True.
  void want(msa_problem* problem) const;
  /// The problem of the tensors under the numbers in `staged`, bounds as they are.
  bool pose(const msa_problem& staged, msa_problem* problem);
  /// Allocates what the problem writes and the caller did not give.
  bool complete(const msa_problem& problem);
  /// `among`: what msa_peers_attend takes beside, as read_among knows it; or null.
  bool run(const msa_plan* plan, const msa_problem& problem, PyObject* workspace,
           PyObject* among = nullptr);
  /// The output, or the named tuple of all outputs.
  PyObject* result();

 private:
  bool gather_tensor(std::size_t field, PyObject* value, const Stored& stored);
  bool gather_parts(std::size_t field, PyObject* value, msa_dtype words);
  bool is_wanted(std::size_t field) const { return (wanted_ >> field & 1) != 0; }
  bool is_given(std::size_t field) const { return static_cast<bool>(outputs_[field]); }
  bool is_planned(const msa_problem& problem, std::size_t field) const;

  bool allocate(const msa_problem& problem, std::size_t field);
  bool own_workspace(const msa_problem& problem, std::size_t bytes, void** data,
                     std::size_t* given);
  std::size_t find(const char* name) const;
  template <class T>
  T* at(std::size_t field) {
    return reinterpret_cast<T*>(reinterpret_cast<char*>(&args_) + operation_.fields[field].offset);
  }

  State& state_;
  Operation& operation_;
  Views views_;
  msa_args args_;
  std::array<std::vector<msa_tensor>, 2> parts_;
  std::array<Ref, 32> outputs_;  // by field
  std::uint32_t wanted_ = 0;     // fields to allocate, as bits
  PyObject* first_ = nullptr;    // an input: whose namespace outputs come from
  PyObject* user_stream_ = nullptr;
  Ref workspace_;
  std::unique_ptr<void, void (*)(void*)> host_workspace_;
};

/// Bounds rounded up where no output's shape hangs on them.
msa_problem with_buckets(const msa_problem& problem);

/// The plan of a problem, out of the cache of the module where it has one; the caller frees it.
/// Null with an exception set. Where the rounded problem cannot be planned, the exact one is.
msa_plan* cached_plan(State& state, const msa_problem& problem);

/// Makes the tables of an operation.
bool make_operation(msa_op op, Operation* operation);

}  // namespace msa_python
