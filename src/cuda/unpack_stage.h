// SPDX-License-Identifier: MIT
// Keys and values in four or eight bits as a stage in front of attention that reads each key for
// many tiles of queries, index keys in front of such scoring: they become items once, in pages in
// the workspace.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <optional>
#include <string>

#include "core/call.h"
#include "cuda/common/prologue/launch.h"
#include "cuda/layout.h"

namespace msa::cuda {

class UnpackStage {
 public:
  /// Why the stage does not serve the problem, whose keys and values are in four bits; empty: it
  /// does. Of eight bits it serves those that a scale of their own multiplies, if any, outside.
  static std::string rejects(const Problem& problem);

  /// `key_scales`: those of e4m3 lie beside the items, one a key and head.
  UnpackStage(const Problem& problem, Layout& layout, bool key_scales = false);

  /// Of the workspace, for keys and values of the bounds.
  static std::int64_t bytes(const Problem& problem);

  /// What attention behind the stage computes: the same of keys and values stored as queries are.
  static Problem unpacked(const Problem& problem);

  /// Behind the prologue `front`. `call` and `front` become what attention behind the stage takes.
  /// `beside`: see common/unpack/launch.h.
  void run(const Problem& problem, core::Call& call, common::prologue::Params& front,
           void* workspace, cudaStream_t stream, bool beside = false) const;

  bool gives_key_scales() const { return key_scales_[0].has_value(); }
  /// Those of `call` behind a run that gave some.
  static Scales key_scales_of(const Tensor& scales);

 private:
  std::int64_t columns_ = 0;  // pages of the longest request
  std::int64_t page_ = 0;
  Piece<std::uint16_t> items_[2]{};  // of keys, of values: [B * columns, Hkv, page, D]
  Piece<std::int32_t> page_table_{};
  std::optional<Piece<float>> key_scales_[2]{};  // [B * columns, Hkv, page]
};

/// The same of index keys, in front of scoring.
class UnpackIndexStage {
 public:
  /// Why the stage does not serve the problem, whose index keys are in four or eight bits; empty:
  /// it does. A scale that is not that of a group multiplies scores, which nobody behind it does.
  static std::string rejects(const Problem& problem);

  UnpackIndexStage(const Problem& problem, Layout& layout);

  /// What scoring behind the stage computes.
  static Problem unpacked(const Problem& problem);

  /// As UnpackStage::run.
  void run(const Problem& problem, core::Call& call, common::prologue::Params& front,
           void* workspace, cudaStream_t stream) const;

 private:
  std::int64_t columns_ = 0;
  std::int64_t page_ = 0;
  Piece<std::uint16_t> items_{};  // [B * columns, Hik, page, Di]
  Piece<std::int32_t> page_table_{};
};

}  // namespace msa::cuda
