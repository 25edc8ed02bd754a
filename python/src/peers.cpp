// SPDX-License-Identifier: MIT
#include "peers.h"

#include <vector>

#include "error.h"
#include "tensor.h"

namespace msa_python {
namespace {

/// Numbers of a list, as addresses; false with an exception set.
bool read_addresses(PyObject* list, std::vector<void*>* to) {
  const Py_ssize_t size = PySequence_Size(list);
  for (Py_ssize_t i = 0; i < size; ++i) {
    const Ref number = Ref::steal(PySequence_GetItem(list, i));
    if (!number) return false;
    to->push_back(PyLong_AsVoidPtr(number.get()));
    if (PyErr_Occurred() != nullptr) return false;
  }
  return size >= 0;
}

bool expect_as_many(const std::vector<void*>& list, const std::vector<void*>& boxes,
                    const char* text) {
  if (list.size() == boxes.size()) return true;
  PyErr_SetString(PyExc_ValueError, text);
  return false;
}

PyObject* finish(const State& state, msa_status status, const msa_error& error) {
  if (status != MSA_OK) return raise(state, error);
  Py_RETURN_NONE;
}

}  // namespace

bool Peers::read(long long rank, PyObject* boxes, PyObject* pads, long long timeout_ms) {
  if (!read_addresses(boxes, &boxes_) || !read_addresses(pads, &pads_) ||
      !expect_as_many(pads_, boxes_, "pads: expected as many as boxes")) {
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

bool Peers::expect_ranks(const std::vector<void*>& list) const {
  return expect_as_many(list, boxes_, "states: expected as many as boxes");
}

bool Given::read(Views& views, const char* name, bool writable, PyObject* object) {
  there = object != Py_None;
  return !there || views.add({.name = name, .writable = writable}, object, &tensor);
}

bool Among::read(Views& views, PyObject* tuple) {
  long long rank = 0, timeout_ms = 0;
  PyObject *boxes = nullptr, *pads = nullptr, *states = nullptr, *forced = nullptr,
           *last_keys = nullptr;
  if (!PyArg_ParseTuple(tuple, "LOOLOOO", &rank, &boxes, &pads, &timeout_ms, &states, &forced,
                        &last_keys)) {
    return false;
  }
  return peers_.read(rank, boxes, pads, timeout_ms) && read_addresses(states, &states_) &&
         peers_.expect_ranks(states_) && forced_.read(views, "forced", false, forced) &&
         last_keys_.read(views, "last_keys", false, last_keys);
}

msa_status Among::attend(const msa_plan* plan, const msa_args& args, void* workspace,
                         std::size_t workspace_bytes, void* stream, msa_error* error) const {
  return msa_peers_attend(peers_.get(), states_.data(), forced_.get(), last_keys_.get(), plan,
                          &args, workspace, workspace_bytes, stream, error);
}

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

PyObject* peers_deal(PyObject* module, PyObject* args) {
  State& state = state_of(module);
  constexpr int kTensors = 6;
  long long numbers[6] = {};
  PyObject* objects[kTensors] = {};
  if (!PyArg_ParseTuple(args, "LLLLLLOOOOOO", numbers, numbers + 1, numbers + 2, numbers + 3,
                        numbers + 4, numbers + 5, objects, objects + 1, objects + 2, objects + 3,
                        objects + 4, objects + 5)) {
    return nullptr;
  }
  constexpr const char* kNames[kTensors] = {"seqlens_k", "page_table", "candidates",
                                            "last_keys", "forced",     "pages"};
  Views views(state);
  Given given[kTensors];
  for (int i = 0; i < kTensors; ++i) {
    if (!given[i].read(views, kNames[i], i >= 2, objects[i])) return nullptr;
  }
  msa_error error;
  const msa_status status =
      msa_peers_deal(numbers[0], numbers[1], numbers[2], numbers[3], numbers[4], numbers[5],
                     given[0].get(), given[1].get(), given[2].get(), given[3].get(), given[4].get(),
                     given[5].get(), views.stream(), &error);
  return finish(state, status, error);
}

}  // namespace msa_python
