// SPDX-License-Identifier: MIT
#include "tensor.h"

#include <algorithm>
#include <string_view>

#include "array_type.h"
#include "error.h"

namespace msa_python {
namespace {

constexpr std::uintptr_t kAlignment = 256;

std::string text_of(const Wanted& wanted) {
  std::string name = wanted.name;
  return wanted.part < 0 ? name : name + "[" + std::to_string(wanted.part) + "]";
}

/// The text of the exception that is set, which is cleared.
std::string take_message() {
  PyObject *type = nullptr, *value = nullptr, *trace = nullptr;
  PyErr_Fetch(&type, &value, &trace);
  const Ref kept[] = {Ref::steal(type), Ref::steal(value), Ref::steal(trace)};
  const Ref text = Ref::steal(value != nullptr ? PyObject_Str(value) : nullptr);
  if (!text) PyErr_Clear();
  return utf8(text.get());
}

bool refuse(const State& state, const Wanted& wanted, const std::string& expected,
            const std::string& given) {
  const std::string name = text_of(wanted);
  raise(state, MSA_INVALID_ARGUMENT, name, name + ": expected " + expected + ", got " + given);
  return false;
}

bool refuse_type(const Wanted& wanted, PyObject* object) {
  PyErr_Format(PyExc_TypeError, "%s: expected an array, got %s", text_of(wanted).c_str(),
               type_name(reinterpret_cast<PyObject*>(Py_TYPE(object))).c_str());
  return false;
}

// ---- dtypes and devices ----

struct DtypeRow {
  std::uint8_t code, bits;
  msa_dtype dtype;
};
constexpr DtypeRow kDtypes[] = {
    {dlpack::kFloat, 32, MSA_F32}, {dlpack::kFloat, 16, MSA_F16}, {dlpack::kBfloat, 16, MSA_BF16},
    {dlpack::kInt, 32, MSA_I32},   {dlpack::kInt, 64, MSA_I64},   {dlpack::kInt, 8, MSA_I8},
    {dlpack::kE4M3, 8, MSA_E4M3},
};

std::string text_of(const dlpack::DataType& dtype) {
  const char* kind = "";
  switch (dtype.code) {
    case dlpack::kInt:
      kind = "int";
      break;
    case dlpack::kUInt:
      kind = "uint";
      break;
    case dlpack::kFloat:
      kind = "float";
      break;
    case dlpack::kComplex:
      kind = "complex";
      break;
    case dlpack::kBool:
      return "bool";
    default: {
      std::string text = "type code ";
      text += std::to_string(dtype.code);
      text += " of ";
      text += std::to_string(dtype.bits);
      text += " bits";
      return text;
    }
  }
  std::string text = kind;
  text += std::to_string(dtype.bits);
  if (dtype.lanes != 1) text.append("x").append(std::to_string(dtype.lanes));
  return text;
}

bool is_words(const dlpack::DataType& dtype) {
  return dtype.code == dlpack::kUInt && dtype.bits == 16 && dtype.lanes == 1;
}

bool is_bytes(const dlpack::DataType& dtype) {
  return dtype.code == dlpack::kUInt && dtype.bits == 8 && dtype.lanes == 1;
}

msa_dtype dtype_of(const dlpack::DataType& dtype) {
  if (dtype.lanes != 1) return -1;
  for (const DtypeRow& row : kDtypes) {
    if (row.code == dtype.code && row.bits == dtype.bits) return row.dtype;
  }
  return -1;
}

bool device_of(const dlpack::Device& device, msa_tensor* tensor) {
  const bool host = device.type == dlpack::kCpu || device.type == dlpack::kCudaHost;
  const bool cuda = device.type == dlpack::kCuda || device.type == dlpack::kCudaManaged;
  tensor->device_type = host ? MSA_CPU : MSA_CUDA;
  tensor->device_index = host ? 0 : device.id;
  return host || cuda;
}

// The imaginary part of a conjugate is a view with its sign in a flag, which the exchange interface
// does not tell. It lies between real parts, so that no stride of it is 1.
bool may_be_negated(const dlpack::Tensor& view) {
  for (int d = 0; d < view.rank; ++d) {
    if (view.shape[d] > 1 && view.strides != nullptr && view.strides[d] == 1) return false;
  }
  return true;
}

bool grad_mode(PyObject* torch) {
  const Ref answer = Ref::steal(PyObject_CallMethod(torch, "is_grad_enabled", nullptr));
  if (!answer) PyErr_Clear();
  return answer.get() != Py_False;
}

}  // namespace

// ---- one tensor ----

bool Views::exchange(const Wanted& wanted, const ArrayType& type, PyObject* object,
                     dlpack::Tensor* view) {
  if (type.torch) {
    const Ref grad = Ref::steal(PyObject_GetAttr(object, state_.names.requires_grad.get()));
    if (!grad) return false;
    if (grad.get() == Py_True && grad_mode(torch_module().get())) {
      return refuse(state_, wanted,
                    "a tensor that needs no gradient, as there is no backward pass (detach it, or "
                    "call under torch.no_grad())",
                    "one with requires_grad");
    }
  }
  if (type.exchange->view(object, view) != 0) {
    return refuse(state_, wanted, "memory that can be viewed", take_message());
  }
  if (type.torch && may_be_negated(*view)) {
    const Ref negated =
        Ref::steal(PyObject_CallMethodObjArgs(object, state_.names.is_neg.get(), nullptr));
    if (!negated) return false;
    if (negated.get() == Py_True) {
      return refuse(state_, wanted, "memory that holds the values", "a negated view of them");
    }
  }
  const bool asks = !stream_ || legacy_;
  if (view->device.type == dlpack::kCuda && asks && type.exchange->current_stream != nullptr) {
    void* stream = nullptr;
    if (type.exchange->current_stream(dlpack::kCuda, view->device.id, &stream) != 0) return false;
    if (legacy_ && reinterpret_cast<std::uintptr_t>(stream) > 1) {
      raise(state_, MSA_INVALID_ARGUMENT, "stream",
            "stream: expected one, as arrays of several libraries meet, got none");
      return false;
    }
    if (!stream_) stream_ = stream;
  }
  return true;
}

// Arrays of ml_dtypes export neither DLPack nor a buffer; as words they do.
Ref Views::view_as_words(PyObject* object, msa_dtype* words) {
  const Ref dtype = Ref::steal(PyObject_GetAttr(object, state_.names.dtype.get()));
  const Ref name =
      Ref::steal(dtype ? PyObject_GetAttr(dtype.get(), state_.names.name.get()) : nullptr);
  const std::string text = name ? utf8(name.get()) : "";
  const bool bf16 = text == "bfloat16";
  Ref view;
  if (bf16 || text == "float8_e4m3fn") {
    const Ref& as = bf16 ? state_.names.uint16 : state_.names.uint8;
    view =
        Ref::steal(PyObject_CallMethodObjArgs(object, state_.names.view.get(), as.get(), nullptr));
    *words = bf16 ? MSA_BF16 : MSA_E4M3;
  }
  PyErr_Clear();
  return view;
}

bool Views::export_capsule(const Wanted& wanted, const ArrayType& type, PyObject* object,
                           Ref* capsule) {
  Ref keywords = Ref::borrow(state_.newest.get());
  if (type.how != ArrayType::How::Numpy) {
    const Ref device =
        Ref::steal(PyObject_CallMethodObjArgs(object, state_.names.dlpack_device.get(), nullptr));
    if (!device) return refuse(state_, wanted, "an array that names its device", take_message());
    PyObject* kind = PyTuple_Check(device.get()) && PyTuple_Size(device.get()) == 2
                         ? PyTuple_GetItem(device.get(), 0)
                         : nullptr;
    const long code = kind != nullptr ? PyLong_AsLong(kind) : -1;
    PyErr_Clear();
    if (code == dlpack::kCuda || code == dlpack::kCudaManaged) {
      // 1 is the legacy default stream, in DLPack's numbers as in the driver's.
      if (!stream_) {
        stream_ = reinterpret_cast<void*>(1);
        legacy_ = true;
      }
      const auto number = reinterpret_cast<std::uintptr_t>(*stream_);
      keywords = Ref::steal(PyDict_Copy(keywords.get()));
      const Ref stream = Ref::steal(PyLong_FromUnsignedLongLong(number == 0 ? 1 : number));
      if (!keywords || !stream) return false;
      if (PyDict_SetItemString(keywords.get(), "stream", stream.get()) != 0) return false;
    }
  }
  const Ref method = Ref::steal(PyObject_GetAttr(object, state_.names.dlpack.get()));
  if (!method) return false;
  *capsule = Ref::steal(PyObject_Call(method.get(), state_.empty.get(), keywords.get()));
  if (!*capsule && PyErr_ExceptionMatches(PyExc_TypeError)) {  // an old producer knows no version
    PyErr_Clear();
    const Ref old = Ref::steal(PyDict_Copy(keywords.get()));
    if (!old || PyDict_DelItemString(old.get(), "max_version") != 0) return false;
    *capsule = Ref::steal(PyObject_Call(method.get(), state_.empty.get(), old.get()));
  }
  return static_cast<bool>(*capsule);
}

bool Views::open(const Wanted& wanted, PyObject* capsule, dlpack::Tensor* view) {
  std::uint64_t flags = 0;
  if (PyCapsule_IsValid(capsule, "dltensor_versioned")) {
    const auto* managed = static_cast<const dlpack::ManagedVersioned*>(
        PyCapsule_GetPointer(capsule, "dltensor_versioned"));
    if (managed->version.major != 1) {
      return refuse(state_, wanted, "DLPack of version 1", std::to_string(managed->version.major));
    }
    flags = managed->flags;
    *view = managed->tensor;
  } else if (PyCapsule_IsValid(capsule, "dltensor")) {
    *view = static_cast<const dlpack::Managed*>(PyCapsule_GetPointer(capsule, "dltensor"))->tensor;
  } else {
    return refuse(state_, wanted, "an array that exports a DLPack capsule",
                  "something else, or a capsule that was used before");
  }
  if ((flags & dlpack::kCopied) != 0) {
    return refuse(state_, wanted, "an array that exports its own memory", "a copy of it");
  }
  if (wanted.writable && (flags & dlpack::kReadOnly) != 0) {
    return refuse(state_, wanted, "memory to write to", "a read-only array");
  }
  return true;
}

bool Views::capsule(const Wanted& wanted, const ArrayType& type, PyObject* object,
                    dlpack::Tensor* view) {
  if (type.immutable && wanted.writable) {
    return refuse(state_, wanted, "memory to write to", "an array that never changes");
  }
  Ref capsule;
  if (!export_capsule(wanted, type, object, &capsule)) {
    if (!PyErr_Occurred()) return refuse(state_, wanted, "an array that exports DLPack", "none");
    if (!PyErr_ExceptionMatches(PyExc_BufferError) && !PyErr_ExceptionMatches(PyExc_TypeError) &&
        !PyErr_ExceptionMatches(PyExc_RuntimeError)) {
      return false;  // KeyboardInterrupt, MemoryError, an Error of ours
    }
    const std::string why = take_message();
    const Ref words = type.how == ArrayType::How::Numpy ? view_as_words(object, &words_) : Ref();
    if (!words || !export_capsule(wanted, type, words.get(), &capsule)) {
      PyErr_Clear();
      return refuse(state_, wanted, "an array that exports DLPack", why);
    }
  }
  if (!open(wanted, capsule.get(), view)) return false;
  held_.push_back(std::move(capsule));
  return true;
}

bool Views::raw(const Wanted& wanted, PyObject* object, dlpack::Tensor* view) {
  ArrayType spare;
  const ArrayType& type = array_type(state_, object, &spare);
  words_ = -1;
  switch (type.how) {
    case ArrayType::How::Exchange:
      return exchange(wanted, type, object, view);
    case ArrayType::How::Numpy:
    case ArrayType::How::Dlpack:
      return capsule(wanted, type, object, view);
    case ArrayType::How::Refused:
      return refuse(state_, wanted, "a plain tensor", type_name(type.type.get()));
    case ArrayType::How::NoArray:
      break;
  }
  return refuse_type(wanted, object);
}

bool Views::translate(const Wanted& wanted, const dlpack::Tensor& view, msa_tensor* tensor) {
  if (view.rank < 1 || view.rank > 4) {
    return refuse(state_, wanted, "rank 1 to 4", "rank " + std::to_string(view.rank));
  }
  if (!device_of(view.device, tensor)) {
    return refuse(state_, wanted, "a tensor on cpu or cuda",
                  "one on a device of type " + std::to_string(view.device.type));
  }
  tensor->dtype = dtype_of(view.dtype);
  if (is_words(view.dtype)) {
    tensor->dtype = words_ >= 0 ? words_ : wanted.words;
    if (tensor->dtype < 0) {
      return refuse(state_, wanted, "a dtype, or what the words hold (dtype=\"bf16\")", "uint16");
    }
  }
  if (is_bytes(view.dtype) && (wanted.keys || words_ >= 0)) {
    tensor->dtype = words_ >= 0 ? words_ : wanted.bytes;
    if (tensor->dtype < 0) {
      return refuse(state_, wanted,
                    "a dtype, or what the bytes hold (kv_dtype=\"e4m3\", kv_format=\"nvfp4\")",
                    "uint8");
    }
  }
  // Two elements a byte: torch.float4_e2m1fn_x2 says so itself.
  if (view.dtype.code == dlpack::kE2M1 && view.dtype.bits * view.dtype.lanes == 8)
    tensor->dtype = MSA_E2M1;
  if (tensor->dtype < 0) {
    return refuse(state_, wanted, "a dtype of f32, f16, bf16 or i32", text_of(view.dtype));
  }
  tensor->rank = view.rank;
  std::int64_t dense = 1;
  const bool empty = std::find(view.shape, view.shape + view.rank, 0) != view.shape + view.rank;
  for (int d = view.rank - 1; d >= 0; --d) {
    tensor->shape[d] = view.shape[d];
    // A stride that is never taken says nothing.
    const bool steps = view.shape[d] > 1 || d < view.rank - 1;
    const bool taken = view.strides != nullptr && steps && !empty;
    tensor->stride[d] = taken ? view.strides[d] : dense;
    if (__builtin_mul_overflow(dense, std::max<std::int64_t>(view.shape[d], 1), &dense)) {
      return refuse(state_, wanted, "an extent that can be counted", "an overflow");
    }
  }
  if (tensor->dtype == MSA_E2M1) {
    tensor->shape[view.rank - 1] *= 2;
    for (int d = 0; d < view.rank - 1; ++d) tensor->stride[d] *= 2;
  }
  tensor->data = static_cast<char*>(view.data) + view.byte_offset;
  return true;
}

bool Views::add(const Wanted& wanted, PyObject* object, msa_tensor* tensor) {
  dlpack::Tensor view{};
  return raw(wanted, object, &view) && translate(wanted, view, tensor);
}

bool Views::add_bytes(const char* name, PyObject* object, const msa_tensor& like, void** data,
                      std::size_t* bytes) {
  const Wanted wanted{.name = name, .writable = true};
  dlpack::Tensor view{};
  if (!raw(wanted, object, &view)) return false;
  msa_tensor place{};
  if (!device_of(view.device, &place) || place.device_type != like.device_type ||
      place.device_index != like.device_index) {
    return refuse(state_, wanted, "memory on the device of the tensors", "another device");
  }
  std::int64_t size = view.dtype.bits * view.dtype.lanes / 8;
  for (int d = view.rank - 1; d >= 0; --d) {
    if (view.strides != nullptr && view.shape[d] > 1 &&
        view.strides[d] * (view.dtype.bits * view.dtype.lanes / 8) != size) {
      return refuse(state_, wanted, "contiguous memory", "strides");
    }
    size *= view.shape[d];
  }
  const auto begin = reinterpret_cast<std::uintptr_t>(view.data) + view.byte_offset;
  const std::uintptr_t aligned = (begin + kAlignment - 1) / kAlignment * kAlignment;
  const auto skipped = static_cast<std::int64_t>(aligned - begin);
  *bytes = static_cast<std::size_t>(std::max<std::int64_t>(size - skipped, 0));
  *data = *bytes > 0 ? reinterpret_cast<void*>(aligned) : nullptr;
  return true;
}

bool Views::set_stream(PyObject* stream) {
  if (stream == nullptr) return true;
  Ref number = Ref::borrow(stream);
  if (!PyLong_Check(stream)) {
    number = Ref::steal(PyObject_GetAttr(stream, state_.names.cuda_stream.get()));
    if (!number) {
      PyErr_Clear();
      number = Ref::steal(PyObject_GetAttr(stream, state_.names.ptr.get()));
    }
    if (!number || !PyLong_Check(number.get())) {
      PyErr_Format(PyExc_TypeError,
                   "stream: expected a number or an object with one in cuda_stream or ptr, got %s",
                   type_name(reinterpret_cast<PyObject*>(Py_TYPE(stream))).c_str());
      return false;
    }
  }
  stream_ = PyLong_AsVoidPtr(number.get());
  return !PyErr_Occurred();
}

}  // namespace msa_python
