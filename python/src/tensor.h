// SPDX-License-Identifier: MIT
// From Python objects to views of memory: the exchange interface of the object's type where it has
// one, a capsule of __dlpack__ otherwise. Capsules are held until the call has ended and never
// renamed, so that their own destructors free them.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "state.h"

namespace msa_python {

/// What a call expects of one tensor.
struct Wanted {
  const char* name;
  int part = -1;          // of a merge, or -1
  bool writable = false;  // an output
  msa_dtype words = -1;   // what 16-bit unsigned words hold, or -1
  bool keys = false;      // keys or values, which bytes may hold
  msa_dtype bytes = -1;   // what unsigned bytes hold, or -1
};

/// Tensors of one call: their memory stays valid while this lives.
class Views {
 public:
  explicit Views(State& state) : state_(state) {}

  /// False with an exception set.
  bool add(const Wanted& wanted, PyObject* object, msa_tensor* tensor);
  /// Bytes of device or host memory, aligned to 256 inside the object.
  bool add_bytes(const char* name, PyObject* object, const msa_tensor& like, void** data,
                 std::size_t* bytes);
  void hold(PyObject* object) { held_.push_back(Ref::borrow(object)); }

  /// The stream of the call: given by the caller, or the one that the producer of the first tensor
  /// on a GPU works on.
  bool set_stream(PyObject* stream);
  void* stream() const { return stream_.value_or(nullptr); }

 private:
  bool exchange(const Wanted& wanted, const ArrayType& type, PyObject* object,
                dlpack::Tensor* view);
  bool capsule(const Wanted& wanted, const ArrayType& type, PyObject* object, dlpack::Tensor* view);
  bool export_capsule(const Wanted& wanted, const ArrayType& type, PyObject* object, Ref* capsule);
  Ref view_as_words(PyObject* object, msa_dtype* words);
  bool open(const Wanted& wanted, PyObject* capsule, dlpack::Tensor* view);
  bool raw(const Wanted& wanted, PyObject* object, dlpack::Tensor* view);
  bool translate(const Wanted& wanted, const dlpack::Tensor& view, msa_tensor* tensor);

  State& state_;
  std::vector<Ref> held_;
  std::optional<void*> stream_;
  bool legacy_ = false;   // stream_ is the default that no producer named
  msa_dtype words_ = -1;  // what the words of the object in hand hold, as its own dtype says
};

}  // namespace msa_python
