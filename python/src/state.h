// SPDX-License-Identifier: MIT
// What one module object owns: interned names, the classes of msa/errors.py, what it has learned of
// the types of arrays, the tables of arguments and the cache of plans. No static Python object.
#pragma once

#include <array>
#include <memory>
#include <string>
#include <vector>

#include "arguments.h"
#include "dlpack.h"
#include "msa/c.h"
#include "plan_cache.h"
#include "ref.h"

namespace msa_python {

inline constexpr int kOps = MSA_OP_INDEX_LOSS + 1;

/// How objects of one type give away their memory. Asked once a type, never of a value.
struct ArrayType {
  enum class How { Exchange, Numpy, Dlpack, Refused, NoArray };
  Ref type;
  How how = How::NoArray;
  const dlpack::Exchange* exchange = nullptr;
  bool torch = false;
  bool immutable = false;
};

/// An operation as the extension sees it.
struct Operation {
  msa_op op = 0;
  const char* name = nullptr;
  const msa_field* fields = nullptr;
  std::size_t count = 0;
  std::size_t inputs = 0;             // the first fields
  std::vector<std::size_t> settings;  // rows of numbers() that the operation reads
  bool writes_format = false;         // takes out_dtype
  bool reads_kv = false;              // it takes keys and values
  bool reads_index = false;           // it takes index queries and index keys
  bool filters = false;               // it takes or makes a filter of index keys
  bool derives = false;               // it writes gradients
  Signature call;  // inputs, settings, out_dtype, outputs; then by name dtype, workspace, stream
  Signature run;   // fields, workspace, stream
  std::string call_doc;
  PyMethodDef method{};
  /// Result classes by the set of outputs in them, in bits by field.
  std::vector<std::pair<std::uint32_t, Ref>> results;
};

struct Names {
  Ref is_neg, dlpack, dlpack_device, exchange, requires_grad, cuda_stream, ptr, dtype, name, view,
      uint16, uint8;
};

struct State {
  Names names;
  std::array<Ref, MSA_INTERNAL + 1> errors;  // by msa_status
  Ref allocate;                              // msa.arrays.allocate
  Ref dtype_name;                            // msa.arrays.dtype_name
  Ref result_class;                          // msa.results.result_class
  Ref empty;                                 // ()
  Ref newest;                                // {"max_version": (1, 0)}
  Ref plan_type;
  std::array<Operation, kOps> operations;
  std::vector<std::unique_ptr<ArrayType>> types;
  PlanCache plans;
};

/// The state of the module that a function or a type belongs to.
inline State& state_of(PyObject* module) {
  return **static_cast<State**>(PyModule_GetState(module));
}

}  // namespace msa_python
