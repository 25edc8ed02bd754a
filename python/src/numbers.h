// SPDX-License-Identifier: MIT
// The numbers of a problem by name: what callers may give beside tensors, and what a plan tells.
#pragma once

#include <cstdint>
#include <span>

#include "state.h"

namespace msa_python {

struct Number {
  enum class Kind { Int, Flag, Float, Dtype, Text, Device, Format, Filter, Precision };
  const char* name;
  Kind kind;
  std::size_t offset;  // in msa_problem
  bool setting;        // tensors cannot tell it: a keyword of the one-call forms
};

/// The rows of the table; settings first.
std::span<const Number> numbers();
inline constexpr std::size_t kSettings = 19;
/// The row of a name, or null.
const Number* find_number(PyObject* name);

/// Writes a number into the problem; text is borrowed from `value`. False with an exception set.
bool put_number(const State& state, const Number& number, PyObject* value, msa_problem* problem);
/// A new reference.
PyObject* get_number(const Number& number, const msa_problem& problem);

/// msa_dtype of a name or of a dtype object of numpy, ml_dtypes or torch; -1 with an exception set.
msa_dtype parse_dtype(const State& state, const char* argument, PyObject* value);

/// What bytes of keys and values hold: e4m3. False with an exception set.
bool parse_byte_dtype(const State& state, const char* name, PyObject* value, msa_dtype* dtype);

/// The settings among the numbers.
msa_settings settings_of(const msa_problem& problem);

}  // namespace msa_python
