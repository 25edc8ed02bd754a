// SPDX-License-Identifier: MIT
#include "error.h"

#include <string_view>

namespace msa_python {
namespace {

// Arguments of the library lie in structs ("batch.page_table"); here they are keywords.
std::string_view keyword_of(std::string_view argument) {
  for (const std::string_view group : {"batch.", "settings.", "options."}) {
    if (argument.starts_with(group)) return argument.substr(group.size());
  }
  return argument;
}

}  // namespace

PyObject* raise(const State& state, msa_status status, const std::string& argument,
                const std::string& message) {
  const bool known = status > MSA_OK && status <= MSA_INTERNAL;
  PyObject* type = state.errors[static_cast<std::size_t>(known ? status : MSA_INTERNAL)].get();
  const Ref text = Ref::steal(
      PyUnicode_DecodeUTF8(message.data(), static_cast<Py_ssize_t>(message.size()), "replace"));
  const Ref name = Ref::steal(
      PyUnicode_DecodeUTF8(argument.data(), static_cast<Py_ssize_t>(argument.size()), "replace"));
  if (!text || !name) return nullptr;
  const Ref error = Ref::steal(PyObject_CallFunctionObjArgs(type, text.get(), name.get(), nullptr));
  if (error) PyErr_SetObject(type, error.get());
  return nullptr;
}

PyObject* raise(const State& state, const msa_error& error) {
  const std::string_view given = error.argument;
  const std::string_view argument = keyword_of(given);
  std::string message = error.message;
  if (argument.size() < given.size() && message.starts_with(given)) {
    message.erase(0, given.size() - argument.size());
  }
  return raise(state, error.status, std::string(argument), message);
}

}  // namespace msa_python
