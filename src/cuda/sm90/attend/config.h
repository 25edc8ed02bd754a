// SPDX-License-Identifier: MIT
// What an instance of the attention kernel is compiled for, and what a launch tells it. Host and
// device read the same.
#pragma once

#include <cuda.h>

#include <cstdint>

#include "cuda/common/attend/params.h"
#include "cuda/params.h"

namespace msa::cuda::sm90::attend {

using common::attend::kMaxTopk;
using common::attend::kMaxUnionTokens;
using common::attend::list_index;
using common::attend::ListEntry;
using common::attend::ListHeader;
using common::attend::Params;
using common::attend::Walk;

struct Config {
  Storage storage = Storage::Bf16;  // of queries, and what is multiplied
  int head_dim = 128;               // of keys and values
  int block = 128;                  // keys of one step; Union: the block size of the lists
  Walk walk = Walk::Dense;
  Storage kv = storage;  // of keys and values: as queries, or E4m3
  bool folds = false;    // one scale of keys and one of values a head, beside items
  friend constexpr bool operator==(const Config&, const Config&) = default;
};

inline constexpr int kTileRows = 128;  // rows of q in a tile: tokens x heads of one group

struct Maps {
  CUtensorMap q;
  CUtensorMap k;
  CUtensorMap v;
};

}  // namespace msa::cuda::sm90::attend
