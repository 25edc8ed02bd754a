// SPDX-License-Identifier: MIT
#include "array_type.h"

#include <algorithm>

namespace msa_python {

std::string utf8(PyObject* text) {
  Py_ssize_t size = 0;
  const char* data = text != nullptr ? PyUnicode_AsUTF8AndSize(text, &size) : nullptr;
  if (data == nullptr) PyErr_Clear();
  return data != nullptr ? std::string(data, static_cast<std::size_t>(size)) : std::string();
}

std::string type_name(PyObject* type) {
  const Ref name = Ref::steal(PyObject_GetAttrString(type, "__name__"));
  if (!name) PyErr_Clear();
  return utf8(name.get());
}

Ref torch_module() {
  PyObject* modules = PyImport_GetModuleDict();
  return Ref::borrow(PyDict_GetItemString(modules, "torch"));
}

namespace {

constexpr std::size_t kMaxTypes = 64;  // types whose ways are remembered

std::string type_module(PyObject* type) {
  const Ref name = Ref::steal(PyObject_GetAttrString(type, "__module__"));
  if (!name) PyErr_Clear();
  return utf8(name.get());
}

const dlpack::Exchange* exchange_of(const State& state, PyObject* type) {
  const Ref capsule = Ref::steal(PyObject_GetAttr(type, state.names.exchange.get()));
  if (!capsule || !PyCapsule_IsValid(capsule.get(), "dlpack_exchange_api")) {
    PyErr_Clear();
    return nullptr;
  }
  const void* pointer = PyCapsule_GetPointer(capsule.get(), "dlpack_exchange_api");
  const auto* header = static_cast<const dlpack::ExchangeHeader*>(pointer);
  while (header != nullptr && header->version.major > 1) header = header->previous;
  const auto* exchange = reinterpret_cast<const dlpack::Exchange*>(header);
  return exchange != nullptr && exchange->view != nullptr ? exchange : nullptr;
}

// A subclass of torch.Tensor that dispatches by itself holds its memory elsewhere, if anywhere.
bool dispatches_itself(PyObject* type, PyObject* tensor) {
  const Ref own = Ref::steal(PyObject_GetAttrString(type, "__torch_dispatch__"));
  const Ref base = Ref::steal(PyObject_GetAttrString(tensor, "__torch_dispatch__"));
  PyErr_Clear();
  return own.get() != base.get();
}

ArrayType look_at(const State& state, PyObject* type) {
  ArrayType found;
  found.type = Ref::borrow(type);
  const std::string module = type_module(type);
  found.immutable = module.starts_with("jax");
  if (const Ref torch = torch_module()) {
    const Ref tensor = Ref::steal(PyObject_GetAttrString(torch.get(), "Tensor"));
    found.torch = tensor && PyObject_IsSubclass(type, tensor.get()) == 1;
    if (found.torch && dispatches_itself(type, tensor.get())) {
      found.how = ArrayType::How::Refused;
    }
    PyErr_Clear();
  }
  if (found.how == ArrayType::How::Refused) return found;
  found.exchange = exchange_of(state, type);
  if (found.exchange != nullptr) {
    found.how = ArrayType::How::Exchange;
  } else if (PyObject_HasAttrString(type, "__dlpack__")) {
    const bool numpy = module == "numpy" && type_name(type) == "ndarray";
    found.how = numpy ? ArrayType::How::Numpy : ArrayType::How::Dlpack;
  }
  return found;
}

}  // namespace

const ArrayType& array_type(State& state, PyObject* object, ArrayType* spare) {
  PyObject* type = reinterpret_cast<PyObject*>(Py_TYPE(object));
  for (const auto& known : state.types) {
    if (known->type.get() == type) return *known;
  }
  *spare = look_at(state, type);
  if (spare->how == ArrayType::How::NoArray || state.types.size() >= kMaxTypes) return *spare;
  state.types.push_back(std::make_unique<ArrayType>(std::move(*spare)));
  return *state.types.back();
}

}  // namespace msa_python
