// SPDX-License-Identifier: MIT
// Rows of keys and values to the format of a cache: row for row, or appended to pages behind the
// prologue.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "cuda/params.h"

namespace msa::cuda::common::quantize_kv {

/// Rows of a cache or of its scales: pages, or one of ragged rows. Strides count items.
struct Places {
  void* data = nullptr;
  std::int64_t stride_page = 0;
  std::int64_t stride_token = 0;
  std::int64_t stride_head = 0;
  std::int64_t stride_item = 1;  // of scales of groups
};

/// What a code's scale is.
enum class ScaleKind : std::uint32_t {
  None,   // of e4m3: a value is its code
  Given,  // of all, of heads, of pages
  Token,  // worked out of a row
  Group,  // worked out of 16 elements
};

/// Keys or values.
struct Side {
  Rows<const void> rows{};  // [T, Hkv, dim]
  Places cache{};
  Scales given{};
  const float* all = nullptr;  // one more for all scales of groups, or none
  Places written{};            // scales that are worked out
  int dim = 0;
};

struct Params {
  BatchParams batch{};
  const RequestRecord* requests = nullptr;  // of pages
  Side sides[2]{};                          // keys, values
  Storage storage = Storage::Bf16;          // of the cache
  ScaleKind scale = ScaleKind::None;
  int rounded = 0;  // code times scale is rounded to e4m3 by readers: scales stay in its range
  int heads = 1;    // Hkv
};

/// `storage`: of the rows.
void launch(Storage storage, const Params& params, cudaStream_t stream);

}  // namespace msa::cuda::common::quantize_kv
