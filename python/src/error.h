// SPDX-License-Identifier: MIT
// From codes to exceptions: the only place that knows the classes of msa/errors.py.
#pragma once

#include <string>

#include "state.h"

namespace msa_python {

/// Sets the exception of a failed call of the library. Returns null.
PyObject* raise(const State& state, const msa_error& error);
/// Sets an exception of our own, with the words of the library: "name: expected ..., got ...".
PyObject* raise(const State& state, msa_status status, const std::string& argument,
                const std::string& message);

}  // namespace msa_python
