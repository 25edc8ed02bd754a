// SPDX-License-Identifier: MIT
#include "peers.h"

#include <vector>

#include "error.h"
#include "tensor.h"

namespace msa_python {
namespace {

/// Where ranks meet; its lists of addresses live here.
class Peers {
 public:
  /// False with an exception set.
  bool read(long long rank, PyObject* boxes, PyObject* pads, long long timeout_ms) {
    if (!addresses(boxes, &boxes_) || !addresses(pads, &pads_)) return false;
    if (boxes_.size() != pads_.size()) {
      PyErr_SetString(PyExc_ValueError, "pads: expected as many as boxes");
      return false;
    }
    peers_ = {.struct_size = MSA_STRUCT_SIZE(msa_peers, timeout_ms),
              .rank = rank,
              .ranks = static_cast<std::int64_t>(boxes_.size()),
              .boxes = boxes_.data(),
              .pads = pads_.data(),
              .timeout_ms = timeout_ms};
    return true;
  }
  const msa_peers* get() const { return &peers_; }

 private:
  static bool addresses(PyObject* list, std::vector<void*>* to) {
    const Py_ssize_t size = PySequence_Size(list);
    for (Py_ssize_t i = 0; i < size; ++i) {
      const Ref number = Ref::steal(PySequence_GetItem(list, i));
      if (!number) return false;
      to->push_back(PyLong_AsVoidPtr(number.get()));
      if (PyErr_Occurred() != nullptr) return false;
    }
    return size >= 0;
  }

  std::vector<void*> boxes_;
  std::vector<void*> pads_;
  msa_peers peers_{};
};

/// A tensor that may be None.
struct Given {
  msa_tensor tensor{};
  bool there = false;
  bool read(Views& views, const char* name, bool writable, PyObject* object) {
    there = object != Py_None;
    return !there || views.add({.name = name, .writable = writable}, object, &tensor);
  }
  const msa_tensor* get() const { return there ? &tensor : nullptr; }
};

PyObject* finish(const State& state, msa_status status, const msa_error& error) {
  if (status != MSA_OK) return raise(state, error);
  Py_RETURN_NONE;
}

}  // namespace

PyObject* peers_choose(PyObject* module, PyObject* args) {
  State& state = state_of(module);
  long long rank = 0, timeout_ms = 0, first_blocks = 0;
  int dealt = 0;
  PyObject *boxes = nullptr, *pads = nullptr, *lists[3] = {};
  if (!PyArg_ParseTuple(args, "LOOLpLOOO", &rank, &boxes, &pads, &timeout_ms, &dealt, &first_blocks,
                        lists, lists + 1, lists + 2)) {
    return nullptr;
  }
  Peers peers;
  Views views(state);
  Given forced, block_ids, own_ids;
  if (!peers.read(rank, boxes, pads, timeout_ms) ||
      !block_ids.read(views, "block_ids", true, lists[1]) ||
      !forced.read(views, "forced", false, lists[0]) ||
      !own_ids.read(views, "own_ids", true, lists[2])) {
    return nullptr;
  }
  msa_error error;
  const msa_status status =
      msa_peers_choose(peers.get(), dealt, first_blocks, forced.get(), block_ids.get(),
                       own_ids.get(), views.stream(), &error);
  return finish(state, status, error);
}

PyObject* peers_join(PyObject* module, PyObject* args) {
  State& state = state_of(module);
  long long rank = 0, timeout_ms = 0;
  PyObject *boxes = nullptr, *pads = nullptr, *outputs[2] = {};
  if (!PyArg_ParseTuple(args, "LOOLOO", &rank, &boxes, &pads, &timeout_ms, outputs, outputs + 1))
    return nullptr;
  Peers peers;
  Views views(state);
  Given out, lse;
  if (!peers.read(rank, boxes, pads, timeout_ms) || !out.read(views, "out", true, outputs[0]) ||
      !lse.read(views, "lse", true, outputs[1])) {
    return nullptr;
  }
  msa_error error;
  const msa_status status =
      msa_peers_join(peers.get(), out.get(), lse.get(), views.stream(), &error);
  return finish(state, status, error);
}

}  // namespace msa_python
