// SPDX-License-Identifier: MIT
#include "numbers.h"

#include <cstddef>
#include <string>

#include "error.h"

namespace msa_python {
namespace {

using Kind = Number::Kind;

#define MSA_NUMBER(name, kind, field, setting) \
  { #name, Kind::kind, offsetof(msa_problem, field), setting }

constexpr Number kNumbers[] = {
    MSA_NUMBER(block_size, Int, block_size, true),
    MSA_NUMBER(topk, Int, topk, true),
    MSA_NUMBER(local_blocks, Int, local_blocks, true),
    MSA_NUMBER(init_blocks, Int, init_blocks, true),
    MSA_NUMBER(causal, Flag, causal, true),
    MSA_NUMBER(softmax_scale, Float, softmax_scale, true),
    MSA_NUMBER(max_seqlen_q, Int, max_seqlen_q, true),
    MSA_NUMBER(max_seqlen_k, Int, max_seqlen_k, true),
    MSA_NUMBER(backend, Text, options.backend, true),
    MSA_NUMBER(isa, Text, options.isa, true),
    MSA_NUMBER(threads, Int, options.threads, true),
    MSA_NUMBER(batch_invariant, Flag, options.batch_invariant, true),
    MSA_NUMBER(kv_format, Format, kv, true),
    MSA_NUMBER(index_k_format, Format, index_k, true),
    MSA_NUMBER(index_filter, Filter, index_filter, true),
    MSA_NUMBER(precision, Precision, precision, true),
    MSA_NUMBER(index_scale, Float, index_scale, true),
    MSA_NUMBER(grad_dtype, Dtype, grad_dtype, true),
    MSA_NUMBER(accumulate, Flag, accumulate, true),
    MSA_NUMBER(out_dtype, Dtype, out_dtype, false),
    MSA_NUMBER(device, Device, device_type, false),
    MSA_NUMBER(batch, Int, batch, false),
    MSA_NUMBER(total_q, Int, total_q, false),
    MSA_NUMBER(page_size, Int, page_size, false),
    MSA_NUMBER(parts, Int, parts, false),
    MSA_NUMBER(dtype, Dtype, q.storage, false),
    MSA_NUMBER(kv, Format, kv, false),
    MSA_NUMBER(heads_q, Int, heads_q, false),
    MSA_NUMBER(heads_kv, Int, heads_kv, false),
    MSA_NUMBER(head_dim, Int, head_dim, false),
    MSA_NUMBER(value_dim, Int, value_dim, false),
    MSA_NUMBER(index_dtype, Dtype, index_q.storage, false),
    MSA_NUMBER(index_heads, Int, index_heads, false),
    MSA_NUMBER(index_heads_k, Int, index_heads_k, false),
    MSA_NUMBER(index_dim, Int, index_dim, false),
    MSA_NUMBER(output, Flag, output, false),
    MSA_NUMBER(lse, Flag, lse, false),
    MSA_NUMBER(block_max, Flag, block_max, false),
    MSA_NUMBER(chosen_scores, Flag, chosen_scores, false),
};
static_assert(kNumbers[kSettings - 1].setting && !kNumbers[kSettings].setting);

template <class T>
T& at(msa_problem* problem, const Number& number) {
  return *reinterpret_cast<T*>(reinterpret_cast<char*>(problem) + number.offset);
}

template <class T>
const T& at(const msa_problem& problem, const Number& number) {
  return *reinterpret_cast<const T*>(reinterpret_cast<const char*>(&problem) + number.offset);
}

bool refuse(const Number& number, const char* expected, PyObject* value) {
  PyErr_Format(PyExc_TypeError, "%s: expected %s, got %R", number.name, expected, value);
  return false;
}

bool put_int(const State& state, const Number& number, PyObject* value, msa_problem* problem) {
  if (PyBool_Check(value) || PyIndex_Check(value) == 0) {
    return refuse(number, "an integer", value);
  }
  const Ref index = Ref::steal(PyNumber_Index(value));
  if (!index) return false;
  int overflow = 0;
  const long long given = PyLong_AsLongLongAndOverflow(index.get(), &overflow);
  if (overflow != 0) {
    raise(state, MSA_INVALID_ARGUMENT, number.name,
          std::string(number.name) + ": expected an integer of 64 bits, got a larger one");
    return false;
  }
  if (number.offset == offsetof(msa_problem, options.threads)) {
    if (given < INT32_MIN || given > INT32_MAX) {
      raise(state, MSA_INVALID_ARGUMENT, number.name,
            "threads: expected an integer of 32 bits, got " + std::to_string(given));
      return false;
    }
    at<std::int32_t>(problem, number) = static_cast<std::int32_t>(given);
  } else {
    at<std::int64_t>(problem, number) = given;
  }
  return true;
}

/// Whether a scale is not the one that dims say.
std::int32_t& given_scale(const Number& number, msa_problem& problem) {
  const bool index = number.offset == offsetof(msa_problem, index_scale);
  return index ? problem.index_scale_given : problem.softmax_scale_given;
}

bool put_float(const Number& number, PyObject* value, msa_problem* problem) {
  if (PyBool_Check(value) || PyUnicode_Check(value)) return refuse(number, "a number", value);
  const double given = PyFloat_AsDouble(value);
  if (given == -1.0 && PyErr_Occurred()) {
    PyErr_Clear();
    return refuse(number, "a number", value);
  }
  at<float>(problem, number) = static_cast<float>(given);
  given_scale(number, *problem) = 1;
  return true;
}

bool put_text(const Number& number, PyObject* value, msa_problem* problem) {
  if (!PyUnicode_Check(value)) return refuse(number, "text", value);
  Py_ssize_t size = 0;
  const char* text = PyUnicode_AsUTF8AndSize(value, &size);
  if (text == nullptr) return false;
  at<const char*>(problem, number) = text;
  return true;
}

bool put_device(const State& state, const Number& number, PyObject* value, msa_problem* problem) {
  const Ref shown = Ref::steal(PyObject_Str(value));
  Py_ssize_t size = 0;
  const char* data = shown ? PyUnicode_AsUTF8AndSize(shown.get(), &size) : nullptr;
  if (data == nullptr) return false;
  const std::string text(data, static_cast<std::size_t>(size));
  if (text == "cpu" || text == "cuda") {
    problem->device_type = text == "cpu" ? MSA_CPU : MSA_CUDA;
    problem->device_index = 0;
    return true;
  }
  const bool cuda = text.starts_with("cuda:") && text.size() > 5 && text.size() < 10 &&
                    text.find_first_not_of("0123456789", 5) == std::string::npos;
  if (!cuda) {
    raise(state, MSA_INVALID_ARGUMENT, number.name, "device: expected cpu or cuda:N, got " + text);
    return false;
  }
  problem->device_type = MSA_CUDA;
  problem->device_index = std::stoi(text.substr(5));
  return true;
}

struct NamedFormat {
  const char* name;
  msa_format format;
};

constexpr NamedFormat kFormats[] = {
    {"e4m3", {MSA_E4M3, MSA_SCALE_NONE, 0, 0}},
    {"e4m3/tensor", {MSA_E4M3, MSA_SCALE_TENSOR, 0, 0}},
    {"e4m3/head", {MSA_E4M3, MSA_SCALE_HEAD, 0, 0}},
    {"e4m3/page", {MSA_E4M3, MSA_SCALE_PAGE, 0, 0}},
    {"e4m3/token", {MSA_E4M3, MSA_SCALE_TOKEN, 0, 0}},
    {"nvfp4", {MSA_E2M1, MSA_SCALE_GROUP, 16, 0}},
    {"nvfp4/tensor", {MSA_E2M1, MSA_SCALE_GROUP_TENSOR, 16, 0}},
    {"q8kv4", {MSA_E2M1, MSA_SCALE_GROUP, 16, MSA_FORMAT_ROUNDED}},
};

bool same(const msa_format& a, const msa_format& b) {
  return a.storage == b.storage && a.scale == b.scale && a.group == b.group && a.flags == b.flags;
}

/// Whether the format of keys is not that of queries.
std::int32_t& given_flag(const Number& number, msa_problem& problem) {
  const bool index = number.offset == offsetof(msa_problem, index_k);
  return index ? problem.index_k_given : problem.kv_given;
}

bool put_keys(const State& state, const Number& number, PyObject* value, msa_problem* problem) {
  if (!PyUnicode_Check(value)) return refuse(number, "text", value);
  Py_ssize_t size = 0;
  const char* text = PyUnicode_AsUTF8AndSize(value, &size);
  if (text == nullptr) return false;
  for (const NamedFormat& known : kFormats) {
    if (std::string(known.name) != text) continue;
    at<msa_format>(problem, number) = known.format;
    given_flag(number, *problem) = 1;
    return true;
  }
  raise(state, MSA_INVALID_ARGUMENT, number.name,
        std::string(number.name) +
            ": expected e4m3 or e4m3/tensor, /head, /page or /token, nvfp4, "
            "nvfp4/tensor or q8kv4, got " +
            text);
  return false;
}

constexpr NamedFormat kFilters[] = {
    {"i8/page", {MSA_I8, MSA_SCALE_PAGE, 0, 0}},
    {"i8/page/rotated", {MSA_I8, MSA_SCALE_PAGE, 0, MSA_FORMAT_ROTATED}},
};

bool put_filter(const State& state, const Number& number, PyObject* value, msa_problem* problem) {
  if (!PyUnicode_Check(value)) return refuse(number, "text", value);
  Py_ssize_t size = 0;
  const char* text = PyUnicode_AsUTF8AndSize(value, &size);
  if (text == nullptr) return false;
  for (const NamedFormat& known : kFilters) {
    if (std::string(known.name) != text) continue;
    problem->index_filter = known.format;
    problem->index_filter_given = 1;
    return true;
  }
  raise(state, MSA_INVALID_ARGUMENT, number.name,
        std::string(number.name) + ": expected i8/page or i8/page/rotated, got " + text);
  return false;
}

PyObject* get_filter(const msa_problem& problem) {
  if (problem.index_filter_given == 0) Py_RETURN_NONE;
  for (const NamedFormat& known : kFilters) {
    if (same(known.format, problem.index_filter)) return PyUnicode_FromString(known.name);
  }
  return PyUnicode_FromString(msa_dtype_name(problem.index_filter.storage));
}

constexpr const char* kPrecisions[] = {"exact", "fast"};  // by MSA_EXACT, MSA_FAST

bool put_precision(const State& state, const Number& number, PyObject* value,
                   msa_problem* problem) {
  if (!PyUnicode_Check(value)) return refuse(number, "text", value);
  Py_ssize_t size = 0;
  const char* text = PyUnicode_AsUTF8AndSize(value, &size);
  if (text == nullptr) return false;
  for (std::int64_t i = MSA_EXACT; i <= MSA_FAST; ++i) {
    if (std::string(kPrecisions[i]) != text) continue;
    problem->precision = i;
    return true;
  }
  raise(state, MSA_INVALID_ARGUMENT, number.name,
        std::string(number.name) + ": expected exact or fast, got " + text);
  return false;
}

PyObject* get_keys(const Number& number, msa_problem problem) {
  if (given_flag(number, problem) == 0) Py_RETURN_NONE;
  const msa_format& format = at<msa_format>(&problem, number);
  for (const NamedFormat& known : kFormats) {
    if (same(known.format, format)) return PyUnicode_FromString(known.name);
  }
  return PyUnicode_FromString(msa_dtype_name(format.storage));
}

}  // namespace

bool parse_byte_dtype(const State& state, const char* name, PyObject* value, msa_dtype* dtype) {
  *dtype = parse_dtype(state, name, value);
  if (*dtype == MSA_E4M3) return true;
  if (*dtype >= 0) {
    raise(state, MSA_INVALID_ARGUMENT, name,
          std::string(name) + ": expected e4m3, got " + msa_dtype_name(*dtype));
  }
  return false;
}

std::span<const Number> numbers() { return kNumbers; }

const Number* find_number(PyObject* name) {
  for (const Number& number : numbers()) {
    if (PyUnicode_CompareWithASCIIString(name, number.name) == 0) return &number;
  }
  return nullptr;
}

msa_dtype parse_dtype(const State& state, const char* argument, PyObject* value) {
  const Ref text =
      PyUnicode_Check(value)
          ? Ref::borrow(value)
          : Ref::steal(PyObject_CallFunctionObjArgs(state.dtype_name.get(), value, nullptr));
  Py_ssize_t size = 0;
  const char* given = text ? PyUnicode_AsUTF8AndSize(text.get(), &size) : nullptr;
  if (given == nullptr) return -1;
  for (msa_dtype dtype = MSA_F32; dtype <= MSA_E2M1; ++dtype) {
    if (std::string(given) == msa_dtype_name(dtype)) return dtype;
  }
  raise(state, MSA_INVALID_ARGUMENT, argument,
        std::string(argument) + ": expected f32, f16 or bf16, got " + given);
  return -1;
}

bool put_number(const State& state, const Number& number, PyObject* value, msa_problem* problem) {
  switch (number.kind) {
    case Kind::Int:
      return put_int(state, number, value, problem);
    case Kind::Flag:
      if (!PyBool_Check(value)) return refuse(number, "True or False", value);
      at<std::int32_t>(problem, number) = value == Py_True;
      return true;
    case Kind::Float:
      return put_float(number, value, problem);
    case Kind::Text:
      return put_text(number, value, problem);
    case Kind::Device:
      return put_device(state, number, value, problem);
    case Kind::Format:
      return put_keys(state, number, value, problem);
    case Kind::Filter:
      return put_filter(state, number, value, problem);
    case Kind::Precision:
      return put_precision(state, number, value, problem);
    case Kind::Dtype:
      break;
  }
  const msa_dtype dtype = parse_dtype(state, number.name, value);
  if (dtype < 0) return false;
  at<msa_dtype>(problem, number) = dtype;
  return true;
}

PyObject* get_number(const Number& number, const msa_problem& problem) {
  switch (number.kind) {
    case Kind::Int:
      if (number.offset == offsetof(msa_problem, options.threads)) {
        return PyLong_FromLong(problem.options.threads);
      }
      return PyLong_FromLongLong(at<std::int64_t>(problem, number));
    case Kind::Flag:
      return PyBool_FromLong(at<std::int32_t>(problem, number));
    case Kind::Float: {
      msa_problem copy = problem;
      if (given_scale(number, copy) == 0) Py_RETURN_NONE;
      return PyFloat_FromDouble(at<float>(problem, number));
    }
    case Kind::Text:
      if (at<const char*>(problem, number) == nullptr) Py_RETURN_NONE;
      return PyUnicode_FromString(at<const char*>(problem, number));
    case Kind::Device:
      if (problem.device_type == MSA_CPU) return PyUnicode_FromString("cpu");
      return PyUnicode_FromFormat("cuda:%d", static_cast<int>(problem.device_index));
    case Kind::Format:
      return get_keys(number, problem);
    case Kind::Filter:
      return get_filter(problem);
    case Kind::Precision:
      return PyUnicode_FromString(
          kPrecisions[problem.precision == MSA_FAST ? MSA_FAST : MSA_EXACT]);
    case Kind::Dtype:
      break;
  }
  return PyUnicode_FromString(msa_dtype_name(at<msa_dtype>(problem, number)));
}

msa_settings settings_of(const msa_problem& problem) {
  msa_settings settings = MSA_SETTINGS_INIT;
  settings.block_size = problem.block_size;
  settings.topk = problem.topk;
  settings.local_blocks = problem.local_blocks;
  settings.init_blocks = problem.init_blocks;
  settings.max_seqlen_q = problem.max_seqlen_q;
  settings.max_seqlen_k = problem.max_seqlen_k;
  settings.causal = problem.causal;
  settings.softmax_scale_given = problem.softmax_scale_given;
  settings.softmax_scale = problem.softmax_scale;
  settings.options = problem.options;
  settings.accumulate = problem.accumulate;
  settings.index_scale = problem.index_scale;
  settings.index_scale_given = problem.index_scale_given;
  settings.kv_rounded = problem.kv_given != 0 && (problem.kv.flags & MSA_FORMAT_ROUNDED) != 0;
  settings.index_k_rounded =
      problem.index_k_given != 0 && (problem.index_k.flags & MSA_FORMAT_ROUNDED) != 0;
  settings.filter_rotated =
      problem.index_filter_given != 0 && (problem.index_filter.flags & MSA_FORMAT_ROTATED) != 0;
  settings.precision = problem.precision;
  return settings;
}

}  // namespace msa_python
