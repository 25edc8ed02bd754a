// SPDX-License-Identifier: MIT
// Merges over GPUs of one host, for msa.distributed: addresses are numbers, tensors are as in every
// call.
#pragma once

#include <vector>

#include "msa/c.h"
#include "ref.h"
#include "tensor.h"

namespace msa_python {

/// Where ranks meet; its lists of addresses live here.
class Peers {
 public:
  /// False with an exception set.
  bool read(long long rank, PyObject* boxes, PyObject* pads, long long timeout_ms);
  /// Whether there is an address for each rank; false with an exception set.
  bool expect_ranks(const std::vector<void*>& list) const;
  const msa_peers* get() const { return &peers_; }

 private:
  std::vector<void*> boxes_;
  std::vector<void*> pads_;
  msa_peers peers_{};
};

/// A tensor that may be None.
struct Given {
  msa_tensor tensor{};
  bool there = false;
  bool read(Views& views, const char* name, bool writable, PyObject* object);
  const msa_tensor* get() const { return there ? &tensor : nullptr; }
};

/// (rank, boxes, pads, timeout_ms, states, forced, last_keys): ranks of an attention.
class Among {
 public:
  /// False with an exception set.
  bool read(Views& views, PyObject* tuple);
  msa_status attend(const msa_plan* plan, const msa_args& args, void* workspace,
                    std::size_t workspace_bytes, void* stream, msa_error* error) const;

 private:
  Peers peers_;
  std::vector<void*> states_;
  Given forced_, last_keys_;
};

/// peers_choose(rank, boxes, pads, timeout_ms, dealt, first_blocks, forced, block_ids, own_ids)
PyObject* peers_choose(PyObject* module, PyObject* args);
/// peers_join(rank, boxes, pads, timeout_ms, out, lse)
PyObject* peers_join(PyObject* module, PyObject* args);
/// peers_deal(rank, ranks, block_size, init_blocks, local_blocks, columns_per_block, seqlens_k,
/// page_table, candidates, last_keys, forced, pages)
PyObject* peers_deal(PyObject* module, PyObject* args);

}  // namespace msa_python
