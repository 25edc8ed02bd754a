// SPDX-License-Identifier: MIT
#include "plan.h"

#include <cstring>
#include <string>

#include "call.h"
#include "error.h"
#include "numbers.h"

namespace msa_python {
namespace {

struct PlanObject {
  PyObject_HEAD msa_plan* plan;
  msa_problem problem;  // its strings lie in the plan
};

PlanObject* plan_of(PyObject* self) { return reinterpret_cast<PlanObject*>(self); }

State& state_of_plan(PyObject* self) {
  return **static_cast<State**>(PyType_GetModuleState(Py_TYPE(self)));
}

void dealloc(PyObject* self) {
  PyTypeObject* type = Py_TYPE(self);
  msa_plan_free(plan_of(self)->plan);
  PyObject_Free(self);
  Py_DecRef(reinterpret_cast<PyObject*>(type));
}

template <class Write>
PyObject* text_of(const Write& write) {
  std::string text(write(nullptr, 0), '\0');
  write(text.data(), text.size() + 1);
  return PyUnicode_DecodeUTF8(text.data(), static_cast<Py_ssize_t>(text.size()), "replace");
}

PyObject* str(PyObject* self) {
  return text_of([&](char* text, std::size_t capacity) {
    return msa_plan_text(plan_of(self)->plan, text, capacity);
  });
}

PyObject* repr(PyObject* self) {
  const Ref problem = Ref::steal(text_of([&](char* text, std::size_t capacity) {
    return msa_problem_text(&plan_of(self)->problem, text, capacity);
  }));
  if (!problem) return nullptr;
  const msa_plan* plan = plan_of(self)->plan;
  return PyUnicode_FromFormat("<msa.Plan %U on %s %s>", problem.get(), msa_plan_backend(plan),
                              msa_plan_isa(plan));
}

/// What unsigned bytes of index tensors hold, or -1.
msa_dtype bytes_of_index(const msa_problem& problem) {
  if (problem.index_k_given != 0) return problem.index_k.storage;
  return problem.index_q.storage == MSA_E4M3 ? MSA_E4M3 : msa_dtype{-1};
}

PyObject* run(PyObject* self, PyObject* const* args, Py_ssize_t count, PyObject* keywords) {
  State& state = state_of_plan(self);
  const PlanObject* object = plan_of(self);
  Operation& operation = state.operations[static_cast<std::size_t>(object->problem.op)];
  PyObject* values[kMaxParameters];
  if (!operation.run.parse(args, count, keywords, values)) return nullptr;
  PyObject* workspace = values[operation.count];
  PyObject* stream = values[operation.count + 1];
  // 16-bit words are what the plan says they are.
  const bool indexes =
      object->problem.op == MSA_OP_BLOCK_SCORES || object->problem.op == MSA_OP_SELECT_BLOCKS;
  const msa_format& format = indexes ? object->problem.index_q : object->problem.q;
  Call call(state, operation);
  const msa_problem& problem = object->problem;
  const bool words = format.storage == MSA_BF16 || format.storage == MSA_E4M3;
  const Stored stored{.words = words ? format.storage : msa_dtype{-1},
                      .bytes = problem.kv_given != 0 ? problem.kv.storage : msa_dtype{-1},
                      .index = bytes_of_index(problem)};
  if (!call.gather(values, values + operation.inputs, stream, stored)) return nullptr;
  if (!call.complete(object->problem)) return nullptr;
  if (!call.run(object->plan, object->problem, workspace)) return nullptr;
  return call.result();
}

bool fault_of(PyObject* self, State& state, PyObject* workspace, void* stream, msa_fault* fault) {
  const PlanObject* object = plan_of(self);
  msa_tensor place{};
  place.device_type = object->problem.device_type;
  place.device_index = object->problem.device_index;
  Views views(state);
  void* data = nullptr;
  std::size_t bytes = 0;
  if (workspace != nullptr && !views.add_bytes("workspace", workspace, place, &data, &bytes)) {
    return false;
  }
  if (stream == nullptr) stream = views.stream();
  msa_error error;
  msa_status status = MSA_OK;
  {
    const NoGil other_threads_run;
    status = msa_check(object->plan, data, bytes, stream, fault, &error);
  }
  if (status == MSA_OK) return true;
  raise(state, error);
  return false;
}

// (request, row, what) or None.
PyObject* check(PyObject* self, PyObject* args) {
  PyObject *workspace = nullptr, *stream = nullptr;
  if (!PyArg_ParseTuple(args, "OO", &workspace, &stream)) return nullptr;
  State& state = state_of_plan(self);
  Views views(state);
  if (stream != Py_None && !views.set_stream(stream)) return nullptr;
  msa_fault fault{};
  if (!fault_of(self, state, workspace == Py_None ? nullptr : workspace, views.stream(), &fault)) {
    return nullptr;
  }
  if (fault.found == 0) Py_RETURN_NONE;
  return Py_BuildValue("(LLs)", static_cast<long long>(fault.request),
                       static_cast<long long>(fault.row), fault.what);
}

PyObject* reduce(PyObject* self, PyObject*) {
  PyErr_SetString(PyExc_TypeError, "a Plan belongs to its process; make it again there");
  (void)self;
  return nullptr;
}

// ---- attributes ----

PyObject* get_op(PyObject* self, void*) {
  return PyUnicode_FromString(msa_op_name(plan_of(self)->problem.op));
}
PyObject* get_backend(PyObject* self, void*) {
  return PyUnicode_FromString(msa_plan_backend(plan_of(self)->plan));
}
PyObject* get_isa(PyObject* self, void*) {
  return PyUnicode_FromString(msa_plan_isa(plan_of(self)->plan));
}
PyObject* get_workspace_bytes(PyObject* self, void*) {
  return PyLong_FromSize_t(msa_plan_workspace_bytes(plan_of(self)->plan));
}
PyObject* get_problem(PyObject* self, void*) {
  const Ref problem = Ref::steal(PyDict_New());
  if (!problem) return nullptr;
  for (const Number& number : numbers()) {
    const Ref value = Ref::steal(get_number(number, plan_of(self)->problem));
    if (!value || PyDict_SetItemString(problem.get(), number.name, value.get()) != 0) {
      return nullptr;
    }
  }
  return Py_NewRef(problem.get());
}

PyMethodDef kMethods[] = {
    {"run", reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(run)),
     METH_FASTCALL | METH_KEYWORDS,
     "Runs the planned operation on tensors within its bounds; takes them like the function of the "
     "same name."},
    {"_check", check, METH_VARARGS, "The fault that the last run left in a workspace."},
    {"__reduce__", reduce, METH_NOARGS, nullptr},
    {nullptr, nullptr, 0, nullptr},
};

PyGetSetDef kAttributes[] = {
    {"op", get_op, nullptr, "Name of the operation.", nullptr},
    {"backend", get_backend, nullptr, "Who runs it: \"cpu\", \"cuda\" or \"reference\".", nullptr},
    {"isa", get_isa, nullptr, "The instruction set in force.", nullptr},
    {"workspace_bytes", get_workspace_bytes, nullptr,
     "Bytes that run needs in its workspace, from an address that is a multiple of 256.", nullptr},
    {"problem", get_problem, nullptr, "What was planned: the numbers by name.", nullptr},
    {nullptr, nullptr, nullptr, nullptr, nullptr},
};

const char kDoc[] =
    "An operation planned for a device and bounds: immutable, shared by threads freely.";

}  // namespace

PyObject* make_plan_type(PyObject* module) {
  static PyType_Slot slots[] = {
      {Py_tp_dealloc, reinterpret_cast<void*>(dealloc)},
      {Py_tp_str, reinterpret_cast<void*>(str)},
      {Py_tp_repr, reinterpret_cast<void*>(repr)},
      {Py_tp_methods, kMethods},
      {Py_tp_getset, kAttributes},
      {Py_tp_doc, const_cast<char*>(kDoc)},
      {0, nullptr},
  };
  static PyType_Spec spec = {
      "msa.Plan", sizeof(PlanObject), 0,
      Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE | Py_TPFLAGS_DISALLOW_INSTANTIATION, slots};
  return PyType_FromModuleAndSpec(module, &spec, nullptr);
}

PyObject* new_plan(State& state, msa_plan* plan) {
  auto* type = reinterpret_cast<PyTypeObject*>(state.plan_type.get());
  auto* object = PyObject_New(PlanObject, type);
  if (object == nullptr) {
    msa_plan_free(plan);
    return nullptr;
  }
  object->plan = plan;
  std::memset(&object->problem, 0, sizeof object->problem);
  object->problem.struct_size = MSA_STRUCT_SIZE(msa_problem, index_scale_given);
  msa_error error;
  const Ref made = Ref::steal(reinterpret_cast<PyObject*>(object));
  if (msa_plan_problem(plan, &object->problem, &error) != MSA_OK) return raise(state, error);
  return Py_NewRef(made.get());
}

namespace {

Operation* find_operation(State& state, PyObject* name) {
  if (!PyUnicode_Check(name)) {
    PyErr_Format(PyExc_TypeError, "op: expected the name of an operation, got %R", name);
    return nullptr;
  }
  std::string all;
  for (Operation& operation : state.operations) {
    if (PyUnicode_CompareWithASCIIString(name, operation.name) == 0) return &operation;
    all += (all.empty() ? "" : ", ") + std::string(operation.name);
  }
  Py_ssize_t size = 0;
  const char* given = PyUnicode_AsUTF8AndSize(name, &size);
  if (given == nullptr) return nullptr;
  raise(state, MSA_INVALID_ARGUMENT, "op", "op: expected one of " + all + ", got " + given);
  return nullptr;
}

std::size_t find_field(const Operation& operation, PyObject* name) {
  std::size_t i = 0;
  while (i < operation.count &&
         PyUnicode_CompareWithASCIIString(name, operation.fields[i].name) != 0) {
    ++i;
  }
  return i;
}

struct Given {
  const Number* number;
  PyObject* value;
};

}  // namespace

bool pose_by_name(State& state, PyObject* const* args, Py_ssize_t count, PyObject* keywords,
                  msa_problem* problem, std::vector<Ref>* texts) {
  if (count != 1) {
    PyErr_SetString(PyExc_TypeError, "expected the name of an operation, then keywords alone");
    return false;
  }
  Operation* operation = find_operation(state, args[0]);
  if (operation == nullptr) return false;
  const std::size_t named =
      keywords != nullptr ? static_cast<std::size_t>(PyTuple_Size(keywords)) : 0;
  std::vector<PyObject*> values(operation->count, nullptr);
  std::vector<Given> given;
  for (std::size_t i = 0; i < named; ++i) {
    PyObject* name = PyTuple_GetItem(keywords, static_cast<Py_ssize_t>(i));
    PyObject* value = args[1 + i];
    if (value == Py_None) continue;
    const std::size_t field = find_field(*operation, name);
    if (field < operation->count) {
      values[field] = value;
      continue;
    }
    const Number* number = find_number(name);
    if (number == nullptr) {
      PyErr_Format(PyExc_TypeError, "%s takes no argument '%U'", operation->name, name);
      return false;
    }
    given.push_back({number, value});
    texts->push_back(Ref::borrow(value));
  }

  msa_problem staged = MSA_PROBLEM_INIT;
  staged.op = operation->op;
  staged.max_seqlen_q = staged.max_seqlen_k = -1;
  staged.grad_dtype = -1;
  for (const Given& row : given) {
    if (!put_number(state, *row.number, row.value, &staged)) return false;
  }
  Call call(state, *operation);
  Stored stored;
  for (const Given& row : given) {
    if (std::strcmp(row.number->name, "dtype") == 0) stored.words = staged.q.storage;
  }
  if (staged.kv_given != 0) stored.bytes = staged.kv.storage;
  stored.index = bytes_of_index(staged);
  if (!call.gather(values.data(), values.data() + operation->inputs, nullptr, stored)) return false;
  if (!call.has_inputs()) {
    bool index_dtype = false, dtype = false, out_dtype = false;
    for (const Given& row : given) {
      index_dtype |= std::strcmp(row.number->name, "index_dtype") == 0;
      dtype |= std::strcmp(row.number->name, "dtype") == 0;
      out_dtype |= std::strcmp(row.number->name, "out_dtype") == 0;
    }
    const bool codes = staged.q.storage == MSA_E4M3;  // beside them numbers are bf16
    if (dtype && !index_dtype && !codes) staged.index_q.storage = staged.q.storage;
    if (dtype && !out_dtype && !codes) staged.out_dtype = staged.q.storage;
    if (staged.grad_dtype < 0) staged.grad_dtype = codes ? MSA_BF16 : staged.q.storage;
    if (staged.max_seqlen_q < 0) staged.max_seqlen_q = staged.total_q;
    if (staged.max_seqlen_k < 0) staged.max_seqlen_k = 0;
    *problem = staged;
    call.want(problem);
    return true;
  }
  if (!call.pose(staged, problem)) return false;
  for (const Given& row : given) {
    const bool words_alone = std::strcmp(row.number->name, "dtype") == 0;
    if (!row.number->setting && !words_alone &&
        !put_number(state, *row.number, row.value, problem)) {
      return false;
    }
  }
  return true;
}

}  // namespace msa_python
