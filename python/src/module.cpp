// SPDX-License-Identifier: MIT
// msa._core: the method table, what the module fills on import and what it gives back.
#include <string>

#include "call.h"
#include "error.h"
#include "numbers.h"
#include "peers.h"
#include "plan.h"
#include "state.h"

namespace msa_python {
namespace {

// ---- operations: one body for all ----

PyObject* call(State& state, Operation& operation, PyObject* const* args, Py_ssize_t count,
               PyObject* keywords) {
  PyObject* values[kMaxParameters];
  if (!operation.call.parse(args, count, keywords, values)) return nullptr;
  PyObject* const* setting = values + operation.inputs;
  PyObject* const* outputs = setting + operation.settings.size() + operation.writes_format;
  PyObject* out_dtype = operation.writes_format ? outputs[-1] : nullptr;
  PyObject* const* other = outputs + operation.count - operation.inputs;
  PyObject *dtype = other[0], *workspace = other[1], *stream = other[2];

  msa_problem staged = MSA_PROBLEM_INIT;
  staged.max_seqlen_q = staged.max_seqlen_k = -1;
  staged.grad_dtype = -1;
  for (std::size_t i = 0; i < operation.settings.size(); ++i) {
    const Number& number = numbers()[operation.settings[i]];
    if (setting[i] != nullptr && !put_number(state, number, setting[i], &staged)) return nullptr;
  }
  Stored stored;
  if (dtype != nullptr && (stored.words = parse_dtype(state, "dtype", dtype)) < 0) return nullptr;
  if (operation.reads_kv && other[3] != nullptr &&
      !parse_byte_dtype(state, "kv_dtype", other[3], &stored.bytes)) {
    return nullptr;
  }
  PyObject* const index_dtype = operation.reads_index ? other[3 + operation.reads_kv] : nullptr;
  if (index_dtype != nullptr &&
      !parse_byte_dtype(state, "index_k_dtype", index_dtype, &stored.index)) {
    return nullptr;
  }
  // Of ranks that share a sequence: msa.distributed alone says it.
  PyObject* const among = operation.op == MSA_OP_MSA_ATTENTION
                              ? other[3 + operation.reads_kv + operation.reads_index]
                              : nullptr;
  if (staged.kv_given != 0 && stored.bytes < 0) stored.bytes = staged.kv.storage;
  if (staged.index_k_given != 0 && stored.index < 0) stored.index = staged.index_k.storage;
  Call run(state, operation);
  msa_problem problem;
  if (!run.gather(values, outputs, stream, stored) || !run.pose(staged, &problem)) return nullptr;
  if (out_dtype != nullptr) {
    problem.out_dtype = parse_dtype(state, "out_dtype", out_dtype);
    if (problem.out_dtype < 0) return nullptr;
  }
  msa_plan* plan = cached_plan(state, problem);
  if (plan == nullptr) return nullptr;
  const bool done = run.complete(problem) && run.run(plan, problem, workspace, among);
  msa_plan_free(plan);
  return done ? run.result() : nullptr;
}

template <int op>
PyObject* operation(PyObject* module, PyObject* const* args, Py_ssize_t count, PyObject* keywords) {
  State& state = state_of(module);
  return call(state, state.operations[op], args, count, keywords);
}

template <int... ops>
std::array<void*, sizeof...(ops)> entry_points(std::integer_sequence<int, ops...>) {
  return {reinterpret_cast<void*>(&operation<ops>)...};
}

// ---- plans and facts ----

PyObject* make_plan(PyObject* module, PyObject* const* args, Py_ssize_t count, PyObject* keywords) {
  State& state = state_of(module);
  msa_problem problem;
  std::vector<Ref> texts;
  if (!pose_by_name(state, args, count, keywords, &problem, &texts)) return nullptr;
  msa_plan* plan = nullptr;
  msa_error error;
  msa_status status = MSA_OK;
  {
    const NoGil other_threads_run;
    status = msa_plan_make(&problem, &plan, &error);
  }
  return status == MSA_OK ? new_plan(state, plan) : raise(state, error);
}

PyObject* supports(PyObject* module, PyObject* const* args, Py_ssize_t count, PyObject* keywords) {
  State& state = state_of(module);
  msa_problem problem;
  std::vector<Ref> texts;
  if (!pose_by_name(state, args, count, keywords, &problem, &texts)) return nullptr;
  std::int32_t supported = 0;
  std::string text(msa_supports(&problem, &supported, nullptr, 0), '\0');
  msa_supports(&problem, &supported, text.data(), text.size() + 1);
  return Py_BuildValue("(Ns#)", PyBool_FromLong(supported), text.data(),
                       static_cast<Py_ssize_t>(text.size()));
}

PyObject* info(PyObject*, PyObject*) {
  std::string text(msa_info(nullptr, 0), '\0');
  msa_info(text.data(), text.size() + 1);
  return PyUnicode_DecodeUTF8(text.data(), static_cast<Py_ssize_t>(text.size()), "replace");
}

// (op, ((name, role, parts, element, shape), ...)) for each operation: what stubs, documents and
// tests are made from.
PyObject* fields(PyObject* module, PyObject*) {
  State& state = state_of(module);
  const Ref table = Ref::steal(PyDict_New());
  if (!table) return nullptr;
  for (const Operation& operation : state.operations) {
    const Ref rows = Ref::steal(PyTuple_New(static_cast<Py_ssize_t>(operation.count)));
    if (!rows) return nullptr;
    for (std::size_t i = 0; i < operation.count; ++i) {
      const msa_field& field = operation.fields[i];
      PyObject* row = Py_BuildValue("(siiss)", field.name, static_cast<int>(field.role),
                                    static_cast<int>(field.parts), field.element, field.shape);
      if (row == nullptr || PyTuple_SetItem(rows.get(), static_cast<Py_ssize_t>(i), row) != 0) {
        return nullptr;
      }
    }
    if (PyDict_SetItemString(table.get(), operation.name, rows.get()) != 0) return nullptr;
  }
  return Py_NewRef(table.get());
}

// The settings that each operation reads, in the order of its parameters.
PyObject* settings(PyObject* module, PyObject*) {
  const Ref table = Ref::steal(PyDict_New());
  if (!table) return nullptr;
  for (const Operation& operation : state_of(module).operations) {
    const auto size = static_cast<Py_ssize_t>(operation.settings.size());
    const Ref names = Ref::steal(PyTuple_New(size));
    for (Py_ssize_t i = 0; names && i < size; ++i) {
      const std::size_t row = operation.settings[static_cast<std::size_t>(i)];
      PyTuple_SetItem(names.get(), i, PyUnicode_FromString(numbers()[row].name));
    }
    if (!names || PyDict_SetItemString(table.get(), operation.name, names.get()) != 0) {
      return nullptr;
    }
  }
  return Py_NewRef(table.get());
}

PyObject* plans_info(PyObject* module, PyObject*) {
  const PlanCache& plans = state_of(module).plans;
  return Py_BuildValue("(KKnn)", static_cast<unsigned long long>(plans.hits()),
                       static_cast<unsigned long long>(plans.misses()),
                       static_cast<Py_ssize_t>(plans.size()),
                       static_cast<Py_ssize_t>(plans.capacity()));
}

PyObject* plans_clear(PyObject* module, PyObject*) {
  state_of(module).plans.clear();
  Py_RETURN_NONE;
}

PyObject* plans_resize(PyObject* module, PyObject* capacity) {
  const Py_ssize_t given = PyLong_AsSsize_t(capacity);
  if (given == -1 && PyErr_Occurred()) return nullptr;
  if (given < 0) {
    PyErr_SetString(PyExc_ValueError, "capacity: expected 0 or more");
    return nullptr;
  }
  state_of(module).plans.resize(static_cast<std::size_t>(given));
  Py_RETURN_NONE;
}

PyCFunction fast(PyObject* (*function)(PyObject*, PyObject* const*, Py_ssize_t, PyObject*)) {
  return reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(function));
}

PyMethodDef kMethods[] = {
    // plans
    {"make_plan", fast(make_plan), METH_FASTCALL | METH_KEYWORDS, nullptr},
    {"supports", fast(supports), METH_FASTCALL | METH_KEYWORDS, nullptr},
    {"plans_info", plans_info, METH_NOARGS, nullptr},
    {"plans_clear", plans_clear, METH_NOARGS, nullptr},
    {"plans_resize", plans_resize, METH_O, nullptr},
    // ranks
    {"peers_choose", peers_choose, METH_VARARGS, nullptr},
    {"peers_join", peers_join, METH_VARARGS, nullptr},
    {"peers_deal", peers_deal, METH_VARARGS, nullptr},
    // facts
    {"info", info, METH_NOARGS, nullptr},
    {"fields", fields, METH_NOARGS, nullptr},
    {"settings", settings, METH_NOARGS, nullptr},
    {nullptr, nullptr, 0, nullptr},
};

// ---- the module ----

bool intern(const char* text, Ref* name) {
  *name = Ref::steal(PyUnicode_InternFromString(text));
  return static_cast<bool>(*name);
}

bool make_names(Names* names) {
  return intern("is_neg", &names->is_neg) && intern("__dlpack__", &names->dlpack) &&
         intern("__dlpack_device__", &names->dlpack_device) &&
         intern("__dlpack_c_exchange_api__", &names->exchange) &&
         intern("requires_grad", &names->requires_grad) &&
         intern("cuda_stream", &names->cuda_stream) && intern("ptr", &names->ptr) &&
         intern("dtype", &names->dtype) && intern("name", &names->name) &&
         intern("view", &names->view) && intern("uint16", &names->uint16) &&
         intern("uint8", &names->uint8);
}

// From a module beside this one, whatever their package is called.
bool take(PyObject* self, const char* module, const char* name, Ref* object) {
  const char* own = PyModule_GetName(self);
  if (own == nullptr) return false;
  const std::string full(own);
  const std::string beside = full.substr(0, full.rfind('.') + 1) + module;
  const Ref from = Ref::steal(PyImport_ImportModule(beside.c_str()));
  if (!from) return false;
  *object = Ref::steal(PyObject_GetAttrString(from.get(), name));
  return static_cast<bool>(*object);
}

// Classes of the front, by msa_status.
bool take_classes(State& state, PyObject* module) {
  const char* const names[] = {"Error",       "InvalidArgument", "InvalidContent",
                               "Unsupported", "WorkspaceError",  "OutOfMemory",
                               "DeviceError", "InternalError"};
  for (std::size_t i = 0; i < state.errors.size(); ++i) {
    if (!take(module, "errors", names[i], &state.errors[i])) return false;
  }
  return take(module, "arrays", "allocate", &state.allocate) &&
         take(module, "arrays", "dtype_name", &state.dtype_name) &&
         take(module, "results", "result_class", &state.result_class);
}

bool add_operations(State& state, PyObject* module) {
  const auto entries = entry_points(std::make_integer_sequence<int, kOps>());
  const Ref module_name = Ref::steal(PyObject_GetAttrString(module, "__name__"));
  if (!module_name) return false;
  for (int op = 0; op < kOps; ++op) {
    Operation& row = state.operations[static_cast<std::size_t>(op)];
    if (!make_operation(op, &row)) return false;
    row.call_doc = std::string(row.name) + "($module, " + row.call.text() + ")\n--\n\n";
    row.method = {row.name, reinterpret_cast<PyCFunction>(entries[static_cast<std::size_t>(op)]),
                  METH_FASTCALL | METH_KEYWORDS, row.call_doc.c_str()};
    const Ref function = Ref::steal(PyCFunction_NewEx(&row.method, module, module_name.get()));
    if (!function || PyModule_AddObjectRef(module, row.name, function.get()) != 0) return false;
  }
  return true;
}

int fill(PyObject* module) {
  auto* state = new (std::nothrow) State;
  if (state == nullptr) {
    PyErr_NoMemory();
    return -1;
  }
  *static_cast<State**>(PyModule_GetState(module)) = state;
  state->empty = Ref::steal(PyTuple_New(0));
  state->newest = Ref::steal(Py_BuildValue("{s(ii)}", "max_version", 1, 0));
  state->plan_type = Ref::steal(make_plan_type(module));
  const bool ready = state->empty && state->newest && state->plan_type &&
                     make_names(&state->names) && take_classes(*state, module) &&
                     add_operations(*state, module) &&
                     PyModule_AddObjectRef(module, "Plan", state->plan_type.get()) == 0 &&
                     PyModule_AddStringConstant(module, "__version__", msa_version()) == 0;
  return ready ? 0 : -1;
}

State* state_if_any(PyObject* module) {
  auto* place = static_cast<State**>(PyModule_GetState(module));
  return place != nullptr ? *place : nullptr;
}

int traverse(PyObject* module, visitproc visit, void* arg) {
  const State* state = state_if_any(module);
  if (state == nullptr) return 0;
  for (const Ref& error : state->errors) Py_VISIT(error.get());
  Py_VISIT(state->allocate.get());
  Py_VISIT(state->dtype_name.get());
  Py_VISIT(state->result_class.get());
  Py_VISIT(state->plan_type.get());
  for (const auto& type : state->types) Py_VISIT(type->type.get());
  for (const Operation& operation : state->operations) {
    for (const auto& result : operation.results) Py_VISIT(result.second.get());
  }
  return 0;
}

// Functions stay callable until the module is freed, so what they read stays too; only what may
// lead back here is let go.
int clear(PyObject* module) {
  State* state = state_if_any(module);
  if (state == nullptr) return 0;
  state->types.clear();
  for (Operation& operation : state->operations) operation.results.clear();
  return 0;
}

void release(void* module) {
  State* state = state_if_any(static_cast<PyObject*>(module));
  delete state;
  if (auto* place = static_cast<State**>(PyModule_GetState(static_cast<PyObject*>(module)))) {
    *place = nullptr;
  }
}

PyModuleDef_Slot kSlots[] = {{Py_mod_exec, reinterpret_cast<void*>(fill)}, {0, nullptr}};

PyModuleDef kModule = {
    PyModuleDef_HEAD_INIT,
    "msa._core",
    "The operations of libmsa over DLPack.",
    sizeof(State*),
    kMethods,
    kSlots,
    traverse,
    clear,
    release,
};

}  // namespace
}  // namespace msa_python

PyMODINIT_FUNC PyInit__core() { return PyModuleDef_Init(&msa_python::kModule); }
