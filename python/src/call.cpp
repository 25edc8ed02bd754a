// SPDX-License-Identifier: MIT
#include "call.h"

#include <cstring>
#include <new>
#include <string_view>

#include "error.h"
#include "numbers.h"
#include "peers.h"

namespace msa_python {
namespace {

constexpr std::align_val_t kAlignment{256};
constexpr std::int64_t kMaxParts = 64;

bool is_output(const msa_field& field) {
  return field.role == MSA_OUTPUT || field.role == MSA_OPTIONAL_OUTPUT;
}

// Lengths, positions and page tables have names alone; what comes before them has positions.
bool is_batch(const msa_field& field) {
  for (const char* name : {"cu_seqlens_q", "seqlens_k", "cu_seqlens_k", "page_table", "q_offsets",
                           "key_offsets", "total_seqlens_k"}) {
    if (std::strcmp(field.name, name) == 0) return true;
  }
  return false;
}

bool is_kv(const msa_field& field) { return std::strcmp(field.element, "kv") == 0; }
bool is_index_q(const msa_field& field) { return std::strcmp(field.element, "index_q") == 0; }
bool is_index_k(const msa_field& field) { return std::strcmp(field.element, "index_k") == 0; }
bool is_gradient(const msa_field& field) {
  return std::strcmp(field.element, "gradient") == 0 ||
         std::strcmp(field.element, "index_gradient") == 0;
}
bool is_kv_scale(const msa_field& field) { return std::strcmp(field.element, "kv_scale") == 0; }

/// What unsigned bytes of a field hold, or -1.
msa_dtype bytes_of(const msa_field& field, const Stored& stored) {
  if (is_kv(field)) return stored.bytes;
  if (is_index_k(field)) return stored.index;
  const bool index_groups = stored.index == MSA_E2M1;
  if (is_index_q(field)) return index_groups ? msa_dtype{MSA_E4M3} : stored.index;
  const bool groups = (is_kv_scale(field) && stored.bytes == MSA_E2M1) ||
                      (std::strcmp(field.element, "index_k_scale") == 0 && index_groups);
  const bool query = std::strcmp(field.element, "q") == 0 && stored.words == MSA_E4M3;
  return groups || query ? MSA_E4M3 : msa_dtype{-1};
}

/// What unsigned words hold beside queries in bytes: bf16.
msa_dtype words_of(const Stored& stored) {
  return stored.words == MSA_E4M3 ? MSA_BF16 : stored.words;
}

// Given beside what they belong to, by name alone.
bool is_beside(const msa_field& field) {
  for (const char* element : {"kv_scale", "kv_global_scale", "filter", "filter_bounds",
                              "index_k_scale", "index_k_global_scale"}) {
    if (std::strcmp(field.element, element) == 0) return true;
  }
  return false;
}

bool is_format(const msa_field& field) {
  return std::strcmp(field.element, "f32") != 0 && std::strcmp(field.element, "i32") != 0 &&
         !is_beside(field);
}

// The flag of the problem that plans an output, or null where the operation always writes it.
std::int32_t* flag_of(const msa_field& field, msa_problem* problem) {
  if (field.flag == 0) return nullptr;
  return reinterpret_cast<std::int32_t*>(reinterpret_cast<char*>(problem) + field.flag);
}

}  // namespace

Call::Call(State& state, Operation& operation)
    : state_(state),
      operation_(operation),
      views_(state),
      host_workspace_(nullptr, [](void* data) { ::operator delete(data, kAlignment); }) {
  std::memset(&args_, 0, sizeof args_);
  args_.struct_size = MSA_STRUCT_SIZE(msa_args, d_index_k);
}

std::size_t Call::find(const char* name) const {
  std::size_t i = 0;
  while (i < operation_.count && std::strcmp(operation_.fields[i].name, name) != 0) ++i;
  return i;
}

bool Call::gather_tensor(std::size_t field, PyObject* value, const Stored& stored) {
  const msa_field& row = operation_.fields[field];
  const bool output = is_output(row);
  const Wanted wanted{.name = row.name,
                      .writable = output,
                      .words = is_format(row) ? words_of(stored) : msa_dtype{-1},
                      .keys = is_kv(row) || bytes_of(row, stored) >= 0,
                      .bytes = bytes_of(row, stored)};
  if (!views_.add(wanted, value, at<msa_tensor>(field))) return false;
  if (output) {
    outputs_[field] = Ref::borrow(value);
  } else if (first_ == nullptr) {
    first_ = value;
  }
  return true;
}

bool Call::gather_parts(std::size_t field, PyObject* value, msa_dtype words) {
  const msa_field& row = operation_.fields[field];
  std::vector<msa_tensor>& parts = parts_[parts_[0].empty() ? 0 : 1];
  Wanted wanted{.name = row.name, .words = is_format(row) ? words : msa_dtype{-1}};
  const bool list = PyList_Check(value);
  if (!list && !PyTuple_Check(value)) {
    parts.resize(1);
    if (!views_.add(wanted, value, &parts[0])) return false;
    if (first_ == nullptr) first_ = value;
    *at<msa_parts>(field) = {parts.data(), 1};
    return true;
  }
  const Py_ssize_t count = list ? PyList_Size(value) : PyTuple_Size(value);
  if (count < 1 || count > kMaxParts) {
    raise(state_, MSA_INVALID_ARGUMENT, row.name,
          std::string(row.name) + ": expected 1 to 64 parts, got " + std::to_string(count));
    return false;
  }
  // Exporting runs code of others, which may change the list: take hold of everything first.
  const Ref items = Ref::steal(PySequence_Tuple(value));
  if (!items || PyTuple_Size(items.get()) != count) return false;
  views_.hold(items.get());
  parts.resize(static_cast<std::size_t>(count));
  for (Py_ssize_t i = 0; i < count; ++i) {
    wanted.part = static_cast<int>(i);
    PyObject* item = PyTuple_GetItem(items.get(), i);
    if (!views_.add(wanted, item, &parts[static_cast<std::size_t>(i)])) return false;
    if (first_ == nullptr) first_ = item;
  }
  *at<msa_parts>(field) = {parts.data(), count};
  return true;
}

bool Call::gather(PyObject* const* inputs, PyObject* const* outputs, PyObject* stream,
                  const Stored& stored) {
  if (!views_.set_stream(stream)) return false;
  user_stream_ = stream;
  for (std::size_t i = 0; i < operation_.count; ++i) {
    PyObject* value = i < operation_.inputs ? inputs[i] : outputs[i - operation_.inputs];
    if (value == nullptr) continue;
    const msa_field& row = operation_.fields[i];
    if (PyBool_Check(value) && is_output(row)) {
      if (value == Py_True) wanted_ |= std::uint32_t{1} << i;
      continue;
    }
    if (row.parts != 0 ? !gather_parts(i, value, stored.words) : !gather_tensor(i, value, stored)) {
      return false;
    }
  }
  return true;
}

// What the caller wants beside what the tensors tell.
void Call::want(msa_problem* problem) const {
  for (std::size_t i = 0; i < operation_.count; ++i) {
    if (!is_wanted(i)) continue;
    std::int32_t* flag = flag_of(operation_.fields[i], problem);
    if (flag != nullptr) *flag = 1;
  }
}

bool Call::pose(const msa_problem& staged, msa_problem* problem) {
  msa_tensor* block_max = nullptr;
  if (operation_.op == MSA_OP_DENSE_ATTENTION) {
    // With values there is an output; without, block maxima may be wanted alone.
    const std::size_t maxima = find("block_max");
    if (args_.v.rank != 0) wanted_ |= is_given(find("out")) ? 0 : std::uint32_t{1} << find("out");
    if (is_wanted(maxima) && !is_given(maxima)) {
      block_max = at<msa_tensor>(maxima);
      block_max->rank = 3;  // stands for the tensor that will be allocated
      block_max->device_type = args_.q.device_type;
      block_max->device_index = args_.q.device_index;
    }
  }
  const msa_settings settings = settings_of(staged);
  msa_error error;
  std::memset(problem, 0, sizeof *problem);
  problem->struct_size = MSA_STRUCT_SIZE(msa_problem, index_scale_given);
  const msa_status status = msa_problem_of(operation_.op, &args_, &settings, problem, &error);
  if (block_max != nullptr) *block_max = {};
  if (status != MSA_OK) {
    raise(state_, error);
    return false;
  }
  if (staged.kv_given != 0) {
    problem->kv = staged.kv;
    problem->kv_given = 1;
  }
  if (staged.index_k_given != 0) {
    problem->index_k = staged.index_k;
    problem->index_k_given = 1;
  }
  if (staged.index_filter_given != 0) {
    problem->index_filter = staged.index_filter;
    problem->index_filter_given = 1;
  }
  if (staged.grad_dtype >= 0) problem->grad_dtype = staged.grad_dtype;
  want(problem);
  return true;
}

bool Call::is_planned(const msa_problem& problem, std::size_t field) const {
  const msa_field& row = operation_.fields[field];
  if (!is_output(row)) return false;
  const std::int32_t* flag = flag_of(row, const_cast<msa_problem*>(&problem));
  if (flag != nullptr) return *flag != 0;
  if (is_kv_scale(row)) {
    const msa_scale scale = problem.kv_given != 0 ? problem.kv.scale : msa_scale{MSA_SCALE_NONE};
    return scale >= MSA_SCALE_TOKEN;  // those that are worked out
  }
  return row.role == MSA_OUTPUT || is_wanted(field);
}

bool Call::allocate(const msa_problem& problem, std::size_t field) {
  const msa_field& row = operation_.fields[field];
  msa_tensor like{};
  msa_error error;
  if (msa_output_of(&problem, &args_, row.name, &like, &error) != MSA_OK) {
    raise(state_, error);
    return false;
  }
  const Ref shape = Ref::steal(PyTuple_New(like.rank));
  if (!shape) return false;
  if (like.dtype == MSA_E2M1) like.shape[like.rank - 1] /= 2;  // bytes
  for (int d = 0; d < like.rank; ++d) {
    PyObject* extent = PyLong_FromLongLong(like.shape[d]);
    if (extent == nullptr || PyTuple_SetItem(shape.get(), d, extent) != 0) return false;
  }
  const Ref dtype = Ref::steal(PyUnicode_InternFromString(msa_dtype_name(like.dtype)));
  if (!dtype) return false;
  PyObject* stream = user_stream_ != nullptr ? user_stream_ : Py_None;
  Ref made = Ref::steal(PyObject_CallFunctionObjArgs(state_.allocate.get(), first_, shape.get(),
                                                     dtype.get(), stream, nullptr));
  if (!made) return false;
  const Wanted wanted{
      .name = row.name, .writable = true, .words = like.dtype, .keys = true, .bytes = like.dtype};
  if (!views_.add(wanted, made.get(), at<msa_tensor>(field))) return false;
  outputs_[field] = std::move(made);
  return true;
}

bool Call::complete(const msa_problem& problem) {
  for (std::size_t i = 0; i < operation_.count; ++i) {
    if (!is_given(i) && is_planned(problem, i) && !allocate(problem, i)) return false;
  }
  return true;
}

bool Call::own_workspace(const msa_problem& problem, std::size_t bytes, void** data,
                         std::size_t* given) {
  if (problem.device_type == MSA_CPU) {
    host_workspace_.reset(::operator new(bytes, kAlignment, std::nothrow));
    *data = host_workspace_.get();
    *given = bytes;
    if (*data != nullptr) return true;
    raise(state_, MSA_OUT_OF_MEMORY, "workspace",
          "workspace: could not allocate " + std::to_string(bytes) + " bytes");
    return false;
  }
  PyObject* stream = user_stream_ != nullptr ? user_stream_ : Py_None;
  const Ref shape = Ref::steal(Py_BuildValue("(n)", static_cast<Py_ssize_t>(bytes)));
  const Ref dtype = Ref::steal(PyUnicode_InternFromString("u8"));
  if (!shape || !dtype) return false;
  workspace_ = Ref::steal(PyObject_CallFunctionObjArgs(state_.allocate.get(), first_, shape.get(),
                                                       dtype.get(), stream, nullptr));
  msa_tensor place{};
  place.device_type = problem.device_type;
  place.device_index = problem.device_index;
  return workspace_ && views_.add_bytes("workspace", workspace_.get(), place, data, given);
}

bool Call::run(const msa_plan* plan, const msa_problem& problem, PyObject* workspace,
               PyObject* among) {
  Among ranks;
  if (among != nullptr && !ranks.read(views_, among)) return false;
  void* data = nullptr;
  std::size_t bytes = 0;
  const std::size_t needed = msa_plan_workspace_bytes(plan);
  if (workspace != nullptr) {
    msa_tensor place{};
    place.device_type = problem.device_type;
    place.device_index = problem.device_index;
    if (!views_.add_bytes("workspace", workspace, place, &data, &bytes)) return false;
  } else if (needed > 0 && !own_workspace(problem, needed, &data, &bytes)) {
    return false;
  }
  msa_error error;
  msa_status status = MSA_OK;
  {
    const NoGil other_threads_run;
    status = among == nullptr ? msa_run(plan, &args_, data, bytes, views_.stream(), &error)
                              : ranks.attend(plan, args_, data, bytes, views_.stream(), &error);
  }
  if (status == MSA_OK) return true;
  raise(state_, error);
  return false;
}

PyObject* Call::result() {
  std::uint32_t set = 0;
  Py_ssize_t count = 0;
  std::size_t last = 0;
  for (std::size_t i = 0; i < operation_.count; ++i) {
    if (!outputs_[i]) continue;
    set |= std::uint32_t{1} << i;
    ++count;
    last = i;
  }
  if (count == 1) return outputs_[last].release();
  if (count == 0) return PyTuple_New(0);
  const Ref values = Ref::steal(PyTuple_New(count));
  if (!values) return nullptr;
  Py_ssize_t at = 0;
  for (std::size_t i = 0; i < operation_.count; ++i) {
    if (outputs_[i]) PyTuple_SetItem(values.get(), at++, outputs_[i].release());
  }
  for (const auto& known : operation_.results) {
    if (known.first == set) return PyObject_Call(known.second.get(), values.get(), nullptr);
  }
  const Ref names = Ref::steal(PyTuple_New(count));
  at = 0;
  for (std::size_t i = 0; names && i < operation_.count; ++i) {
    if ((set >> i & 1) == 0) continue;
    PyTuple_SetItem(names.get(), at++, PyUnicode_FromString(operation_.fields[i].name));
  }
  Ref found = names ? Ref::steal(PyObject_CallFunctionObjArgs(state_.result_class.get(),
                                                              names.get(), nullptr))
                    : Ref();
  if (!found) return nullptr;
  operation_.results.emplace_back(set, std::move(found));
  return PyObject_Call(operation_.results.back().second.get(), values.get(), nullptr);
}

// ---- plans ----

msa_problem with_buckets(const msa_problem& problem) {
  msa_problem wide = problem;
  // Widths of score tensors hang on the longest request.
  const bool scores = problem.op == MSA_OP_BLOCK_SCORES || problem.op == MSA_OP_SELECT_TOPK ||
                      problem.block_max != 0;
  wide.batch = bucket(problem.batch, 1);
  wide.total_q = bucket(problem.total_q, 1);
  wide.max_seqlen_q = bucket(problem.max_seqlen_q, 1);
  if (!scores) wide.max_seqlen_k = bucket(problem.max_seqlen_k, problem.block_size);
  return wide;
}

msa_plan* cached_plan(State& state, const msa_problem& problem) {
  const msa_problem wide = with_buckets(problem);
  const std::string key = key_of(wide);
  msa_plan* plan = state.plans.find(key);
  if (plan != nullptr) return plan;
  msa_error error;
  msa_status status = MSA_OK;
  {
    const NoGil other_threads_run;
    msa_error ignored;
    status = msa_plan_make(&wide, &plan, &ignored);
    if (status != MSA_OK)
      status = msa_plan_make(&problem, &plan, &error);
    else
      status = MSA_OK;
  }
  if (status != MSA_OK) {
    raise(state, error);
    return nullptr;
  }
  state.plans.insert(key, plan);
  return plan;
}

namespace {

// Which settings an operation reads, told by its tensors.
bool takes(const Operation& operation, const char* setting) {
  bool attends = false, batch = false, chooses = false;
  for (std::size_t i = 0; i < operation.count; ++i) {
    const msa_field& field = operation.fields[i];
    attends |= std::strcmp(field.name, "q") == 0;
    batch |= is_batch(field);
    chooses |= is_output(field) && std::strcmp(field.name, "block_ids") == 0;
  }
  const std::string_view name = setting;
  if (name == "softmax_scale") return attends;
  if (name == "topk") return chooses;
  if (name == "local_blocks" || name == "init_blocks") return chooses && batch;
  if (name == "kv_format") return operation.reads_kv && !operation.derives;
  if (name == "grad_dtype" || name == "accumulate") return operation.derives;
  if (name == "index_scale") return operation.op == MSA_OP_INDEX_LOSS;
  if (name == "index_k_format")
    return operation.reads_index && operation.op != MSA_OP_QUANTIZE_INDEX && !operation.derives;
  const bool copies = operation.op == MSA_OP_QUANTIZE_INDEX;
  if (name == "index_filter") return operation.filters;
  if (name == "precision") return operation.filters && !copies;
  const bool stores = operation.op == MSA_OP_QUANTIZE_KV || copies;
  if (name == "causal") return batch && operation.op != MSA_OP_INVERT_SELECTION && !stores;
  if (name == "block_size") return batch && !stores;
  if (name.starts_with("max_seqlen")) return batch && !(copies && name == "max_seqlen_q");
  return true;  // how to compute
}

// The inputs that have a place in a call by hand, and how many of them must be given.
void count_places(const Operation& operation, std::size_t* places, std::size_t* required) {
  *places = *required = 0;
  for (std::size_t i = 0; i < operation.inputs; ++i) {
    if (is_batch(operation.fields[i]) || is_beside(operation.fields[i])) break;
    *places = i + 1;
    if (operation.fields[i].role == MSA_INPUT && *required == i) *required = i + 1;
  }
}

}  // namespace

bool make_operation(msa_op op, Operation* operation) {
  operation->op = op;
  operation->name = msa_op_name(op);
  operation->count = msa_fields(op, &operation->fields);
  while (operation->inputs < operation->count && !is_output(operation->fields[operation->inputs])) {
    ++operation->inputs;
  }
  std::vector<const char*> run, call;
  for (std::size_t i = 0; i < operation->count; ++i) {
    run.push_back(operation->fields[i].name);
    operation->writes_format |=
        is_output(operation->fields[i]) && std::strcmp(operation->fields[i].element, "out") == 0;
    operation->derives |= is_gradient(operation->fields[i]);
    operation->reads_kv |= is_kv(operation->fields[i]);
    operation->reads_index |= is_index_k(operation->fields[i]);
    operation->filters |= std::strcmp(operation->fields[i].element, "filter") == 0;
  }
  call.assign(run.begin(), run.begin() + static_cast<std::ptrdiff_t>(operation->inputs));
  for (std::size_t i = 0; i < kSettings; ++i) {
    if (!takes(*operation, numbers()[i].name)) continue;
    operation->settings.push_back(i);
    call.push_back(numbers()[i].name);
  }
  if (operation->writes_format) call.push_back("out_dtype");
  call.insert(call.end(), run.begin() + static_cast<std::ptrdiff_t>(operation->inputs), run.end());
  // Dispatchers hand over everything by its place; people name all but the first tensors.
  const std::size_t by_place = call.size();
  for (const char* name : {"dtype", "workspace", "stream"}) call.push_back(name);
  if (operation->reads_kv) call.push_back("kv_dtype");
  if (operation->reads_index) call.push_back("index_k_dtype");
  if (op == MSA_OP_MSA_ATTENTION) call.push_back("among");
  for (const char* name : {"workspace", "stream"}) run.push_back(name);
  if (operation->count > 32 || call.size() > kMaxParameters) {
    PyErr_SetString(PyExc_SystemError, "msa: an operation has too many fields");
    return false;
  }
  std::size_t places = 0, required = 0;
  count_places(*operation, &places, &required);
  return operation->call.make(operation->name, call, by_place, required) &&
         operation->run.make("run", run, places, required);
}

}  // namespace msa_python
