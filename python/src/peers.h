// SPDX-License-Identifier: MIT
// Merges over GPUs of one host, for msa.distributed: addresses are numbers, tensors are as in every
// call.
#pragma once

#include "ref.h"

namespace msa_python {

/// peers_choose(rank, boxes, pads, timeout_ms, dealt, first_blocks, forced, block_ids, own_ids)
PyObject* peers_choose(PyObject* module, PyObject* args);
/// peers_join(rank, boxes, pads, timeout_ms, out, lse)
PyObject* peers_join(PyObject* module, PyObject* args);

}  // namespace msa_python
