// SPDX-License-Identifier: MIT
// Positional and keyword arguments of a call, put in order by a table of names. Names are interned,
// so that almost every comparison is one of pointers.
#pragma once

#include <string>
#include <vector>

#include "ref.h"

namespace msa_python {

inline constexpr std::size_t kMaxParameters = 64;

/// The parameters of one function.
class Signature {
 public:
  Signature() = default;
  /// The first `positional` parameters may be given by position, the others by name alone; the
  /// first `required` must be given.
  bool make(const char* function, const std::vector<const char*>& names, std::size_t positional,
            std::size_t required);

  /// values[i] is what was given for parameter i, borrowed, or null; None counts as not given.
  /// False with a TypeError set.
  bool parse(PyObject* const* args, Py_ssize_t count, PyObject* keywords, PyObject** values) const;

  std::size_t size() const { return names_.size(); }
  /// "q, k, v, *, out=None".
  std::string text() const;

 private:
  std::size_t find(PyObject* name, std::size_t guess) const;
  bool put(PyObject* value, std::size_t index, PyObject** values) const;

  const char* function_ = "";
  std::vector<Ref> names_;
  std::vector<const char*> texts_;
  std::size_t positional_ = 0;
  std::size_t required_ = 0;
};

}  // namespace msa_python
