// SPDX-License-Identifier: MIT
// Plan: a heap type around a counted plan of the library.
#pragma once

#include "state.h"

namespace msa_python {

/// A new reference to the type.
PyObject* make_plan_type(PyObject* module);
/// Takes over the caller's count.
PyObject* new_plan(State& state, msa_plan* plan);

/// The problem that keyword arguments pose: by tensors where any is given, by numbers otherwise.
bool pose_by_name(State& state, PyObject* const* args, Py_ssize_t count, PyObject* keywords,
                  msa_problem* problem, std::vector<Ref>* texts);

}  // namespace msa_python
