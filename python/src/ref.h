// SPDX-License-Identifier: MIT
// The only hands on references and on the GIL. A Ref owns one reference and gives it back; a NoGil
// lets other threads run while it lives.
#pragma once

#ifndef Py_LIMITED_API
#define Py_LIMITED_API 0x030A0000
#endif
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <utility>

namespace msa_python {

class Ref {
 public:
  Ref() = default;
  /// Takes over a reference that the caller owns.
  static Ref steal(PyObject* object) { return Ref(object); }
  /// Adds a reference of its own.
  static Ref borrow(PyObject* object) {
    Py_XINCREF(object);
    return Ref(object);
  }
  Ref(Ref&& other) noexcept : object_(std::exchange(other.object_, nullptr)) {}
  Ref& operator=(Ref&& other) noexcept {
    Ref(std::move(other)).swap(*this);
    return *this;
  }
  Ref(const Ref&) = delete;
  Ref& operator=(const Ref&) = delete;
  ~Ref() { Py_XDECREF(object_); }

  PyObject* get() const { return object_; }
  /// Hands the reference to the caller.
  PyObject* release() { return std::exchange(object_, nullptr); }
  explicit operator bool() const { return object_ != nullptr; }

 private:
  explicit Ref(PyObject* object) : object_(object) {}
  void swap(Ref& other) { std::swap(object_, other.object_); }
  PyObject* object_ = nullptr;
};

/// Nothing of Python may be touched while one lives.
class NoGil {
 public:
  NoGil() : thread_(PyEval_SaveThread()) {}
  ~NoGil() { PyEval_RestoreThread(thread_); }
  NoGil(const NoGil&) = delete;
  NoGil& operator=(const NoGil&) = delete;

 private:
  PyThreadState* thread_;
};

}  // namespace msa_python
