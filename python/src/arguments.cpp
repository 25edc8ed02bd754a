// SPDX-License-Identifier: MIT
#include "arguments.h"

#include <algorithm>

namespace msa_python {

bool Signature::make(const char* function, const std::vector<const char*>& names,
                     std::size_t positional, std::size_t required) {
  function_ = function;
  positional_ = positional;
  required_ = required;
  texts_ = names;
  for (const char* name : names) {
    names_.push_back(Ref::steal(PyUnicode_InternFromString(name)));
    if (!names_.back()) return false;
  }
  return true;
}

// Callers name arguments in the order of the table mostly, so the search begins behind the last.
std::size_t Signature::find(PyObject* name, std::size_t guess) const {
  const std::size_t size = names_.size();
  for (std::size_t i = guess; i < size; ++i) {
    if (names_[i].get() == name) return i;
  }
  for (std::size_t i = 0; i < std::min(guess, size); ++i) {
    if (names_[i].get() == name) return i;
  }
  for (std::size_t i = 0; i < size; ++i) {
    if (PyUnicode_Compare(names_[i].get(), name) == 0) return i;
  }
  return size;
}

bool Signature::put(PyObject* value, std::size_t index, PyObject** values) const {
  if (values[index] != nullptr) {
    PyErr_Format(PyExc_TypeError, "%s() got two values for '%s'", function_, texts_[index]);
    return false;
  }
  values[index] = value;
  return true;
}

bool Signature::parse(PyObject* const* args, Py_ssize_t count, PyObject* keywords,
                      PyObject** values) const {
  std::fill(values, values + names_.size(), nullptr);
  if (static_cast<std::size_t>(count) > positional_) {
    PyErr_Format(PyExc_TypeError, "%s() takes at most %zu arguments by position, got %zd",
                 function_, positional_, count);
    return false;
  }
  std::copy(args, args + count, values);
  const Py_ssize_t named = keywords != nullptr ? PyTuple_Size(keywords) : 0;
  std::size_t guess = static_cast<std::size_t>(count);
  for (Py_ssize_t i = 0; i < named; ++i) {
    PyObject* name = PyTuple_GetItem(keywords, i);
    const std::size_t index = find(name, guess);
    if (index == names_.size()) {
      PyErr_Format(PyExc_TypeError, "%s() takes no argument '%U'", function_, name);
      return false;
    }
    if (!put(args[count + i], index, values)) return false;
    guess = index + 1;
  }
  for (std::size_t i = 0; i < names_.size(); ++i) {
    if (values[i] == Py_None) values[i] = nullptr;
    if (i < required_ && values[i] == nullptr) {
      PyErr_Format(PyExc_TypeError, "%s() needs '%s'", function_, texts_[i]);
      return false;
    }
  }
  return true;
}

std::string Signature::text() const {
  std::string text;
  for (std::size_t i = 0; i < texts_.size(); ++i) {
    if (i > 0) text += ", ";
    if (i == positional_) text += "*, ";
    text += texts_[i];
    if (i >= required_) text += "=None";
  }
  return text;
}

}  // namespace msa_python
