// SPDX-License-Identifier: MIT
// A Problem says in host numbers what a call computes: which operation, on which device, within
// which bounds. It is a plain aggregate: build it with designated initialisers, compare it, print
// it, plan it.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "msa/export.h"
#include "msa/tensor.h"

namespace msa {

enum class Op : std::uint8_t {
  DenseAttention,
  BlockScores,
  SelectTopk,
  SelectBlocks,
  SparseAttention,
  MsaAttention,
  MergeStates,
  MergeSelections,
  InvertSelection,
};

/// "dense_attention", "select_blocks", ...
MSA_API const char* to_string(Op op) noexcept;

/// How to compute, not what. The environment (MSA_BACKEND, MSA_ISA) fills in `backend` and `isa`
/// where they are empty.
struct Options {
  std::string backend{};  // "cpu", "cuda", "reference"; empty: the first that accepts
  // cpu backend: "scalar", "avx2", "avx512", "avx512_bf16"; empty: the best there is
  std::string isa{};
  int threads = 0;               // cpu backend; 0: what OpenMP would use
  bool batch_invariant = false;  // a request's bits do not depend on the batch around it
  friend bool operator==(const Options&, const Options&) = default;
};

/// Bounds are upper limits: a plan serves every call whose tensors stay within them.
struct Problem {
  Op op = Op::MsaAttention;
  Device device{};
  DType dtype = DType::BF16;        // q, k, v; the parts of merge_states
  DType index_dtype = DType::BF16;  // index_q, index_k
  DType out_dtype = DType::BF16;    // out: dtype or F32

  std::int64_t batch = 1;         // B: requests
  std::int64_t total_q = 0;       // T: rows of q, padding rows included
  std::int64_t max_seqlen_q = 0;  // longest request, query side
  std::int64_t max_seqlen_k = 0;  // longest request, key side
  std::int64_t page_size = 0;     // S: tokens in a page; 0: keys are ragged rows

  std::int64_t heads_q = 0;        // Hq
  std::int64_t heads_kv = 0;       // Hkv; also heads of block ids
  std::int64_t head_dim = 0;       // D
  std::int64_t value_dim = 0;      // Dv
  std::int64_t index_heads = 0;    // Hi: heads of index_q and of block scores
  std::int64_t index_heads_k = 1;  // Hik: heads of index_k
  std::int64_t index_dim = 0;      // Di

  std::int64_t block_size = 128;  // Bk
  std::int64_t topk = 16;         // k: width of block ids
  std::int64_t local_blocks = 1;
  std::int64_t init_blocks = 0;
  bool causal = true;
  std::optional<float> softmax_scale{};  // left out: 1 / sqrt(D)

  bool output = true;          // dense_attention: write `out` (false: block maxima alone)
  bool lse = false;            // write `lse`
  bool block_max = false;      // dense_attention: write `block_max`
  bool chosen_scores = false;  // selections: write the scores of the chosen blocks
  std::int64_t parts = 0;      // merges: how many parts, 1 to kMaxParts

  Options options{};
  friend bool operator==(const Problem&, const Problem&) = default;
};

inline constexpr int kMaxParts = 64;  // of one merge call
inline constexpr int kMaxTopk = 256;  // ids in a block list

/// One line: the operation and every field that matters for it.
MSA_API std::string to_string(const Problem& problem);

/// What one backend says of a problem.
struct BackendAnswer {
  std::string backend;  // "cpu"
  bool accepts = false;
  std::string reason;  // why not; empty when it accepts
};

struct Support {
  bool supported = false;
  std::string error{};                    // the plan error, when the problem itself is illegal
  std::vector<BackendAnswer> backends{};  // in order of preference
};

/// Who would serve the problem. Never throws for what the problem holds.
MSA_API Support supports(const Problem& problem);

}  // namespace msa
