// SPDX-License-Identifier: MIT
// What a type of array can do, asked once a type: how it gives away its memory, and whose it is.
#pragma once

#include <string>

#include "state.h"

namespace msa_python {

/// What the type of an object can do; `spare` holds the answer where the module keeps none. Entries
/// that are kept lie on the heap and are never removed.
const ArrayType& array_type(State& state, PyObject* object, ArrayType* spare);

/// torch, if this process has imported it.
Ref torch_module();

/// The text of a str, or nothing.
std::string utf8(PyObject* text);
std::string type_name(PyObject* type);

}  // namespace msa_python
