// SPDX-License-Identifier: MIT
// Keys and values, or index keys, in four or eight bits become items in memory, in pages of their
// own: for kernels that read a key many times. Behind the prologue.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "cuda/params.h"

namespace msa::cuda::common::unpack {

inline constexpr int kRowItems = 128;  // of a key and head

struct Params {
  BatchParams batch{};
  const RequestRecord* requests = nullptr;
  int sides = 2;                           // keys and values, or index keys alone
  KeyRows<const std::uint8_t> codes[2]{};  // of each; bytes
  GroupScales groups[2]{};    // of four bits; what scales codes of eight stays outside the items
  void* items[2]{};           // [B * columns, Hkv, page, 128]
  Scales scales[2]{};         // of eight bits, where every key is to have its own beside the items
  float* key_scales[2]{};     // [B * columns, Hkv, page], or none
  int* page_table = nullptr;  // [B, columns]
  int columns = 0;            // pages of the longest request
  int page = 0;               // keys of a page of items: as those of codes where these are paged
  int heads_kv = 1;
  // The launch in front has let this one start behind its own wait for the prologue, and reads none
  // of what this one writes: they run beside each other.
  bool beside = false;
};

/// `from`: E2m1 or E4m3; `to`: of the items, Bf16 or F16.
void launch(Storage from, Storage to, const Params& params, cudaStream_t stream);

}  // namespace msa::cuda::common::unpack
