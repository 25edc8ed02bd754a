// SPDX-License-Identifier: MIT
// A Problem says in host numbers what a call computes: which operation, on which device, within
// which bounds. It is a plain aggregate: build it with designated initialisers, compare it, print
// it, plan it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
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
  QuantizeKv,
  QuantizeIndex,
  SparseAttentionBackward,
  DenseAttentionBackward,
  IndexLoss,
};

inline constexpr Op kLastOp = Op::IndexLoss;

/// "dense_attention", "select_blocks", ...
MSA_API const char* to_string(Op op) noexcept;

/// How to compute, not what. The environment (MSA_BACKEND, MSA_ISA) fills in `backend` and `isa`
/// where they are empty.
struct Options {
  std::string backend{};  // "cpu", "cuda", "reference"; empty: the first that accepts
  // cpu backend: "scalar", "avx2", "avx512", "avx512_bf16", "amx"; empty: the best there is
  std::string isa{};
  int threads = 0;               // cpu backend; 0: what OpenMP would use
  bool batch_invariant = false;  // a request's bits do not depend on the batch around it
  friend bool operator==(const Options&, const Options&) = default;
};

/// Who shares a scale of a stored tensor.
enum class Scale : std::uint8_t {
  None,    // a value is its code
  Tensor,  // one for all
  Head,    // one for each head
  Page,    // one for each page and head
  Token,   // one for each token and head
  // one in e4m3 for every `group` elements of a token and head
  Group,
  GroupTensor,  // the same, times one in f32 for all
};

/// "none", "tensor", "head", ...
MSA_API const char* to_string(Scale scale) noexcept;

/// What is stored and how it is scaled. A value is code times scale, rounded to fp32, and where
/// `rounded` says so once more: to e4m3, half to even, saturating. `rotated`, of a filter alone:
/// the codes are those of the keys' products with a Hadamard matrix.
struct Format {
  DType storage = DType::BF16;
  Scale scale = Scale::None;
  // elements that share a scale, where the scale counts elements
  std::int64_t group = 0;
  bool rounded = false;
  bool rotated = false;
  friend bool operator==(const Format&, const Format&) = default;
};

/// "bf16", "e4m3/page", "i8/page", "i8/page/rotated"; of e2m1 with a scale for every 16: "nvfp4",
/// "nvfp4/tensor", "q8kv4".
MSA_API std::string to_string(const Format& format);

/// Upper limits: a plan serves every call whose tensors stay within them.
struct Bounds {
  std::int64_t batch = 1;         // B: requests
  std::int64_t total_q = 0;       // T: rows of q, padding rows included
  std::int64_t max_seqlen_q = 0;  // longest request, query side
  std::int64_t max_seqlen_k = 0;  // longest request, key side
  std::int64_t page_size = 0;     // S: tokens in a page, exactly; 0: keys are ragged rows
  std::int64_t parts = 0;         // merges: how many parts, exactly, 1 to kMaxParts
  friend bool operator==(const Bounds&, const Bounds&) = default;
};

/// Queries, keys and values.
struct Attention {
  Format q{};                            // also the parts of merge_states
  std::optional<Format> kv{};            // of k and v; left out: as q. Others: e4m3, e2m1
  std::int64_t heads_q = 0;              // Hq
  std::int64_t heads_kv = 0;             // Hkv; also heads of block ids
  std::int64_t head_dim = 0;             // D
  std::int64_t value_dim = 0;            // Dv
  std::optional<float> softmax_scale{};  // left out: 1 / sqrt(D)
  friend bool operator==(const Attention&, const Attention&) = default;
};

/// Index queries and keys.
struct Index {
  Format q{};
  std::optional<Format> k{};  // left out: as q. Others: e4m3, e2m1
  std::int64_t heads = 0;     // Hi: heads of index_q and of block scores
  std::int64_t heads_k = 1;   // Hik: heads of index_k
  std::int64_t dim = 0;       // Di
  // Of a copy of index_k that spares reading most of it: i8, with bounds for each page (16 rows
  // where keys are ragged). The selection is the same; select_blocks and msa_attention.
  // quantize_index makes it
  std::optional<Format> filter{};
  std::optional<float> scale{};  // index_loss: of its softmax over index scores; 1 / sqrt(Di)
  friend bool operator==(const Index&, const Index&) = default;
};

/// What a selection beside a filter goes by.
enum class Precision : std::uint8_t {
  Exact,  // the keys: the filter only spares reading them
  Fast,   // the filter's codes and those of queries: keys are not read
};

/// "exact", "fast".
MSA_API const char* to_string(Precision precision) noexcept;

/// Blocks, and how they are chosen.
struct Selection {
  std::int64_t block_size = 128;  // Bk
  std::int64_t topk = 16;         // k: width of block ids; index_loss: 0 where there are none
  std::int64_t local_blocks = 1;
  std::int64_t init_blocks = 0;
  Precision precision = Precision::Exact;
  friend bool operator==(const Selection&, const Selection&) = default;
};

/// What is written.
struct Outputs {
  // of `out`, and of the gradient that arrives there: the storage of q, or F32; of e4m3 any float
  DType dtype = DType::BF16;
  bool out = true;             // false, dense_attention alone: block maxima without an output
  bool lse = false;            // attention and merge_states
  bool block_max = false;      // dense_attention
  bool chosen_scores = false;  // selections: the scores of the chosen blocks
  friend bool operator==(const Outputs&, const Outputs&) = default;
};

/// What a backward pass writes.
struct Gradients {
  // Of dq, dk and dv the storage of q, of d_index_q and d_index_k that of index_q; or F32.
  DType dtype = DType::BF16;
  bool accumulate = false;  // gradients of keys and values are added to what lies there
  friend bool operator==(const Gradients&, const Gradients&) = default;
};

/// A group that the operation does not use is ignored.
struct Problem {
  Op op = Op::MsaAttention;
  Device device{};
  bool causal = true;
  Bounds bounds{};
  Attention attention{};
  Index index{};
  Selection selection{};
  Outputs outputs{};
  Gradients gradients{};
  Options options{};
  friend bool operator==(const Problem&, const Problem&) = default;
};

inline constexpr int kMaxParts = 64;  // of one merge call
inline constexpr int kMaxTopk = 256;  // ids in a block list
/// Rows of ragged index keys that share the bounds of a filter, counted from the first of the pool.
inline constexpr int kFilterRows = 16;
/// Index dims of a rotated filter, powers of two, and of selections by codes alone.
inline constexpr int kMaxCodedDim = 256;

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

/// Equal problems give equal numbers; std::hash below for unordered containers.
MSA_API std::size_t hash_value(const Problem& problem) noexcept;

}  // namespace msa

/// Problems as keys, of a cache of plans for example.
template <>
struct std::hash<msa::Problem> {
  std::size_t operator()(const msa::Problem& problem) const noexcept {
    return msa::hash_value(problem);
  }
};
