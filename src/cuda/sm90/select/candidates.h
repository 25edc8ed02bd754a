// SPDX-License-Identifier: MIT
// From the products of a filter's codes to the parts of keys that decide: of each tile and index
// head a list.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "cuda/common/topk/launch.h"
#include "cuda/sm90/select/config.h"

namespace msa::cuda::sm90::select {

struct CandidateParams {
  BatchParams batch{};
  common::topk::TopkParams rows{};          // who chooses from what; a group is an index head
  Rows<const void> queries{};               // [T, Hi, 128]
  Storage storage = Storage::Bf16;          // of them
  FilterBounds<const float> bounds{};       // of pages that hold whole blocks
  int shares = 1;                           // index heads of one index-K head
  const std::uint32_t* products = nullptr;  // as in Params
  std::int64_t stride_products = 0;
  std::int64_t columns = 0;  // blocks of the longest request
  PartLists lists{};
  Rows<int> candidates{};  // [T, Hi], or none: blocks that may be chosen
};

void launch_candidates(const CandidateParams& params, cudaStream_t stream);

}  // namespace msa::cuda::sm90::select
