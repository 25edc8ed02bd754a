// SPDX-License-Identifier: MIT
// The operations. Each one has three forms:
//   Problem p = ...; Plan plan = make_plan(p);
//   run(plan, args, workspace, stream);       // allocates nothing
//   Problem p = problem_of(args, settings);   // the same, with bounds read off the tensors
//   msa_attention(args, settings);            // CPU only: plan and run at once
// Words, shapes and rules are those of docs/contract.md: T new tokens, B requests, Hq query heads,
// Hkv KV heads, D head dim, Dv value dim, Hi / Hik index heads, Di index dim, N rows of ragged
// keys, P pages of S tokens, k blocks kept.
#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include "msa/error.h"
#include "msa/export.h"
#include "msa/problem.h"
#include "msa/tensor.h"

namespace msa {

/// Which rows belong to which request. All tensors int32 on the device of the operands.
struct Batch {
  Tensor cu_seqlens_q{};  // [B + 1], from 0, never decreasing
  Tensor seqlens_k{};     // [B]
  // [B + 1], ragged keys: first row of each request; left out: the prefix sums of seqlens_k
  Tensor cu_seqlens_k{};
  // [B, pages], paged keys; entries past a request's last page may hold anything
  Tensor page_table{};
  // [B], position of a request's first query; left out: key_offset + seqlen_k - seqlen_q
  Tensor q_offsets{};
  // [B], shards: position of a request's first key, a multiple of the block size; left out: 0
  Tensor key_offsets{};
  // [B], shards: length of the whole sequence; left out: long enough for every query when causal,
  // key_offset + seqlen_k otherwise
  Tensor total_seqlens_k{};
};

struct DenseAttentionArgs {
  Tensor q{};  // [T, Hq, D]
  Tensor k{};  // [N, Hkv, D], or pages [P, S, Hkv, D]
  Tensor v{};  // [N, Hkv, Dv], or pages [P, S, Hkv, Dv]
  Batch batch{};
  Tensor out{};  // [T, Hq, Dv]; left out when only block maxima are wanted
  Tensor lse{};  // f32 [T, Hq], optional
  // f32 [T, Hq, blocks], optional: unscaled maxima, blocks >= ceil(longest seqlen_k / Bk)
  Tensor block_max{};
  // f32, where k and v are stored as e4m3 and scaled: [1], one for each head [Hkv], each page and
  // head [P, Hkv], or each token and head [N, Hkv] ([P, S, Hkv] in pages); both the same way.
  // e4m3, where they are stored as e2m1: [N, Hkv, D / 16] or [P, S, Hkv, D / 16], of v Dv / 16
  Tensor k_scale{}, v_scale{};
  // f32 [1], where scales of groups are scaled by one more
  Tensor k_global_scale{}, v_global_scale{};
};

struct BlockScoresArgs {
  Tensor index_q{};  // [T, Hi, Di]
  Tensor index_k{};  // [N, Hik, Di], or pages [P, S, Hik, Di]
  Batch batch{};
  Tensor scores{};  // f32 [T, Hi, blocks]: -inf where nothing is visible
  // f32, where index_k is stored as e4m3 and scaled: [1], one for each head [Hik], each page and
  // head [P, Hik], or each token and head [N, Hik] ([P, S, Hik] in pages). e4m3, where it is stored
  // as e2m1: [N, Hik, Di / 16] or [P, S, Hik, Di / 16]
  Tensor index_k_scale{};
  Tensor index_k_global_scale{};  // f32 [1], where scales of groups are scaled by one more
};

struct SelectTopkArgs {
  Tensor scores{};         // f32 [T, Hi, blocks]
  Batch batch{};           // lengths and positions; no page table, no cu_seqlens_k
  Tensor block_ids{};      // int32 [T, Hi, k]
  Tensor chosen_scores{};  // f32 [T, Hi, k], optional
};

struct SelectBlocksArgs {
  Tensor index_q{};  // [T, Hi, Di]
  Tensor index_k{};  // [N, Hik, Di], or pages
  Batch batch{};
  Tensor block_ids{};  // int32 [T, Hi, k]
  // f32 [T, Hi, k], optional: +inf for forced blocks, -inf behind the last id
  Tensor chosen_scores{};
  // A filter, both or none: index_k in i8 codes, of the same shape, and for each page (each 16 rows
  // of ragged keys) f32 {scale, error, norm}: [P, Hik, 3] or [ceil(N / 16), Hik, 3]. The product of
  // codes and scale differs from the key (of a rotated filter: from its product with the Hadamard
  // matrix) by at most `error`, and is at most `norm`, in Euclidean norm. The selection is the same
  // bit for bit
  Tensor index_k8{}, index_k8_bounds{};
  // int32 [T, Hi], optional, with a filter: blocks that were scored from index_k; -1 where all were
  Tensor candidates{};
  Tensor index_k_scale{}, index_k_global_scale{};  // as in BlockScoresArgs
};

struct SparseAttentionArgs {
  Tensor q{};
  Tensor k{};
  Tensor v{};
  Tensor block_ids{};  // int32 [T, Hkv, k], in: any order, the first -1 ends a row
  Batch batch{};
  Tensor out{};  // [T, Hq, Dv]
  Tensor lse{};  // f32 [T, Hq], optional
  Tensor k_scale{}, v_scale{};
  Tensor k_global_scale{}, v_global_scale{};
};

struct MsaAttentionArgs {
  Tensor q{};
  Tensor k{};
  Tensor v{};
  Tensor index_q{};  // [T, Hi, Di], Hi = Hkv
  Tensor index_k{};
  Batch batch{};
  Tensor out{};
  Tensor lse{};        // optional
  Tensor block_ids{};  // int32 [T, Hkv, k], out, optional: what was selected
  Tensor k_scale{}, v_scale{};
  Tensor k_global_scale{}, v_global_scale{};
  Tensor index_k8{}, index_k8_bounds{};            // as in SelectBlocksArgs
  Tensor index_k_scale{}, index_k_global_scale{};  // as in BlockScoresArgs
};

/// Parts of a merge: a list of tensors, or one tensor whose first dimension counts the parts (what
/// an all-gather returns). A view, like Tensor.
class MSA_API Parts {
 public:
  Parts() = default;
  Parts(const Tensor& stacked) noexcept : stacked_(stacked) {}
  template <class List>
  requires std::constructible_from < std::span<const Tensor>,
  const List& > Parts(const List& list) noexcept : list_(list) {}

  std::size_t size() const noexcept;
  bool empty() const noexcept { return size() == 0; }
  /// The one tensor; not given where this is a list.
  const Tensor& stacked() const noexcept { return stacked_; }
  /// Part i, without the dimension that counts parts.
  Tensor operator[](std::size_t i) const noexcept;

 private:
  std::span<const Tensor> list_{};
  Tensor stacked_{};
};

struct MergeStatesArgs {
  Parts outs{};  // parts of [T, Hq, Dv]
  Parts lses{};  // parts of f32 [T, Hq]
  Tensor out{};  // [T, Hq, Dv]; may be outs[0] itself
  Tensor lse{};  // f32 [T, Hq], optional; may be lses[0] itself
};

struct MergeSelectionsArgs {
  // parts of int32 [T, Hkv, k_part], global ids, k_part <= 256
  Parts block_ids_parts{};
  // parts of f32 [T, Hkv, k_part], +inf for forced blocks
  Parts chosen_scores_parts{};
  Tensor block_ids{};      // int32 [T, Hkv, k]
  Tensor chosen_scores{};  // f32 [T, Hkv, k], optional
};

/// Rows of the result: request 0's blocks, then request 1's, ... (ceil(seqlen_k / Bk) each).
struct InvertSelectionArgs {
  Tensor block_ids{};  // int32 [T, Hkv, k], in
  Batch batch{};       // lengths; no page table
  Tensor row_ptr{};    // int32 [Hkv, rows + 1]; entries behind the last block repeat the total
  // int32 [Hkv, >= T * k]: query rows of the batch, ascending in each row; -1 behind the total
  Tensor q_indices{};
  Tensor q_slots{};  // int32 like q_indices: where in its list the query holds the block
};

/// Keys and values of new tokens, stored in the format of a cache. With a page table, request b's
/// rows go to its positions seqlens_k[b] - seqlen_q .. seqlens_k[b] - 1, in ascending order, and
/// nothing else of the caches is touched; without one there is no batch, and row i goes to row i.
struct QuantizeKvArgs {
  Tensor k_rows{};   // f32, f16 or bf16 [T, Hkv, D]
  Tensor v_rows{};   // [T, Hkv, Dv]
  Batch batch{};     // cu_seqlens_q, seqlens_k and page_table, or none
  Tensor k_cache{};  // [T, Hkv, D], or pages [P, S, Hkv, D]
  Tensor v_cache{};  // [T, Hkv, Dv], or pages [P, S, Hkv, Dv]
  // in, of e4m3: f32 [1], [Hkv] or [P, Hkv]
  Tensor k_scale{}, v_scale{};
  // in, of groups that share one more: f32 [1]
  Tensor k_global_scale{}, v_global_scale{};
  // out: of e4m3 with a scale for each token f32 [T, Hkv] or [P, S, Hkv]; of e2m1 e4m3
  // [T, Hkv, D / 16] or [P, S, Hkv, D / 16]
  Tensor k_scale_cache{}, v_scale_cache{};
};

/// The filter of index keys that select_blocks and msa_attention take: codes, and bounds that are
/// true. Each page (each 16 rows of ragged keys) that holds a key from position q_offsets[b] on is
/// made anew, of all its keys; nothing else is touched.
struct QuantizeIndexArgs {
  Tensor index_k{};  // f32, f16 or bf16 [N, Hik, Di], or pages [P, S, Hik, Di]
  // seqlens_k; cu_seqlens_k or page_table; q_offsets: the first new position of each request, 0
  // where they are left out
  Batch batch{};
  Tensor index_k8{};         // i8 like index_k
  Tensor index_k8_bounds{};  // f32 [ceil(N / 16), Hik, 3], or [P, Hik, 3] of pages
};

/// Gradients of sparse_attention: of q, k and v, from those that arrive at its outputs. `out` and
/// `lse` are what the forward pass wrote over all keys that a row attends to; with sharded keys,
/// merged. Each gradient is written where its tensor is given: zeros where nothing arrives.
struct SparseAttentionBackwardArgs {
  Tensor q{};  // [T, Hq, D]
  Tensor k{};  // [N, Hkv, D], ragged
  Tensor v{};  // [N, Hkv, Dv]
  Tensor block_ids{};
  Tensor out{};   // [T, Hq, Dv], in
  Tensor lse{};   // f32 [T, Hq], in
  Tensor dout{};  // [T, Hq, Dv], in: the gradient of out, stored as out is
  Tensor dlse{};  // f32 [T, Hq], in, optional: the gradient of lse; left out: 0
  Batch batch{};
  Tensor dq{};  // [T, Hq, D], optional
  Tensor dk{};  // [N, Hkv, D], optional
  Tensor dv{};  // [N, Hkv, Dv], optional
};

/// The same of dense_attention.
struct DenseAttentionBackwardArgs {
  Tensor q{};
  Tensor k{};
  Tensor v{};
  Tensor out{};
  Tensor lse{};
  Tensor dout{};
  Tensor dlse{};
  Batch batch{};
  Tensor dq{};
  Tensor dk{};
  Tensor dv{};
};

/// How far the index branch is from attention, and the gradients that bring it nearer. The support
/// of a row under KV head r are its listed visible keys, or without block_ids all that it sees; the
/// teacher is the mean of attention's weights over the heads of the group, held constant; the
/// student is the softmax of `index scale` times the index scores of head r.
struct IndexLossArgs {
  Tensor q{};           // [T, Hq, D]
  Tensor k{};           // [N, Hkv, D], ragged
  Tensor lse{};         // f32 [T, Hq], in: what attention over the support wrote
  Tensor index_q{};     // [T, Hi, Di], Hi = Hkv
  Tensor index_k{};     // [N, Hik, Di], ragged
  Tensor block_ids{};   // int32 [T, Hkv, k], optional
  Tensor row_weight{};  // f32 [T], in, optional: of each row in the gradients; left out: 1
  Batch batch{};
  Tensor loss{};       // f32 [T, Hi], optional: of each row, KL(teacher || student)
  Tensor d_index_q{};  // [T, Hi, Di], optional: of the sum of row_weight times loss
  Tensor d_index_k{};  // [N, Hik, Di], optional
};

struct Workspace {
  void* data = nullptr;  // on the device of the tensors, aligned to kWorkspaceAlignment
  std::size_t bytes = 0;
};

inline constexpr std::size_t kWorkspaceAlignment = 256;

struct Stream {
  void* handle = nullptr;  // cudaStream_t; ignored on the CPU
};

namespace core {
class Planned;
}

/// Immutable, cheap to copy, safe to share between threads (each call has its own workspace). A
/// plan that was default-constructed or moved from is empty: it converts to false, and every other
/// use of it throws Error InvalidArgument.
class MSA_API Plan {
 public:
  Plan() noexcept = default;
  explicit operator bool() const noexcept { return planned_ != nullptr; }
  const Problem& problem() const;
  /// "cpu".
  const std::string& backend() const;
  /// "avx512_bf16", "sm90": the instruction set in force.
  const std::string& isa() const;
  std::size_t workspace_bytes() const;
  /// The problem, the backend and what it decided.
  std::string to_string() const;

 private:
  friend struct PlanAccess;
  explicit Plan(std::shared_ptr<const core::Planned> planned) noexcept;
  std::shared_ptr<const core::Planned> planned_{};
};

/// Throws Error: InvalidArgument for an illegal problem, Unsupported with every backend's reason.
MSA_API Plan make_plan(const Problem& problem);

MSA_API void run(const Plan& plan, const DenseAttentionArgs& args, Workspace workspace = {},
                 Stream stream = {});
MSA_API void run(const Plan& plan, const BlockScoresArgs& args, Workspace workspace = {},
                 Stream stream = {});
MSA_API void run(const Plan& plan, const SelectTopkArgs& args, Workspace workspace = {},
                 Stream stream = {});
MSA_API void run(const Plan& plan, const SelectBlocksArgs& args, Workspace workspace = {},
                 Stream stream = {});
MSA_API void run(const Plan& plan, const SparseAttentionArgs& args, Workspace workspace = {},
                 Stream stream = {});
MSA_API void run(const Plan& plan, const MsaAttentionArgs& args, Workspace workspace = {},
                 Stream stream = {});
MSA_API void run(const Plan& plan, const MergeStatesArgs& args, Workspace workspace = {},
                 Stream stream = {});
MSA_API void run(const Plan& plan, const MergeSelectionsArgs& args, Workspace workspace = {},
                 Stream stream = {});
MSA_API void run(const Plan& plan, const InvertSelectionArgs& args, Workspace workspace = {},
                 Stream stream = {});
MSA_API void run(const Plan& plan, const QuantizeKvArgs& args, Workspace workspace = {},
                 Stream stream = {});
MSA_API void run(const Plan& plan, const QuantizeIndexArgs& args, Workspace workspace = {},
                 Stream stream = {});
MSA_API void run(const Plan& plan, const SparseAttentionBackwardArgs& args,
                 Workspace workspace = {}, Stream stream = {});
MSA_API void run(const Plan& plan, const DenseAttentionBackwardArgs& args, Workspace workspace = {},
                 Stream stream = {});
MSA_API void run(const Plan& plan, const IndexLossArgs& args, Workspace workspace = {},
                 Stream stream = {});

/// What tensors cannot tell. The fields mean what they mean in Problem.
struct Settings {
  std::int64_t block_size = 128;
  std::int64_t topk = 16;  // where the shape of block_ids does not tell
  std::int64_t local_blocks = 1;
  std::int64_t init_blocks = 0;
  bool causal = true;
  std::optional<float> softmax_scale{};
  bool kv_rounded = false;       // Format::rounded of keys and values in e2m1
  bool index_k_rounded = false;  // the same of index keys
  bool filter_rotated = false;   // Format::rotated of the filter of index keys
  Precision precision = Precision::Exact;
  bool accumulate = false;  // Gradients::accumulate
  std::optional<float> index_scale{};
  // bounds; -1: read off the lengths, which must then lie in host memory
  std::int64_t max_seqlen_q = -1;
  std::int64_t max_seqlen_k = -1;
  Options options{};
};

/// The problem that these tensors pose, ready for make_plan. Throws Error where a tensor that tells
/// a size is missing or of the wrong rank or dtype; make_plan and run check the rest.
MSA_API Problem problem_of(const DenseAttentionArgs& args, const Settings& settings = {});
MSA_API Problem problem_of(const BlockScoresArgs& args, const Settings& settings = {});
MSA_API Problem problem_of(const SelectTopkArgs& args, const Settings& settings = {});
MSA_API Problem problem_of(const SelectBlocksArgs& args, const Settings& settings = {});
MSA_API Problem problem_of(const SparseAttentionArgs& args, const Settings& settings = {});
MSA_API Problem problem_of(const MsaAttentionArgs& args, const Settings& settings = {});
MSA_API Problem problem_of(const MergeStatesArgs& args, const Settings& settings = {});
MSA_API Problem problem_of(const MergeSelectionsArgs& args, const Settings& settings = {});
MSA_API Problem problem_of(const InvertSelectionArgs& args, const Settings& settings = {});
MSA_API Problem problem_of(const QuantizeKvArgs& args, const Settings& settings = {});
MSA_API Problem problem_of(const QuantizeIndexArgs& args, const Settings& settings = {});
MSA_API Problem problem_of(const SparseAttentionBackwardArgs& args, const Settings& settings = {});
MSA_API Problem problem_of(const DenseAttentionBackwardArgs& args, const Settings& settings = {});
MSA_API Problem problem_of(const IndexLossArgs& args, const Settings& settings = {});

/// One call on the CPU: problem_of, make_plan, a workspace of its own, run.
MSA_API void dense_attention(const DenseAttentionArgs& args, const Settings& settings = {});
MSA_API void block_scores(const BlockScoresArgs& args, const Settings& settings = {});
MSA_API void select_topk(const SelectTopkArgs& args, const Settings& settings = {});
MSA_API void select_blocks(const SelectBlocksArgs& args, const Settings& settings = {});
MSA_API void sparse_attention(const SparseAttentionArgs& args, const Settings& settings = {});
MSA_API void msa_attention(const MsaAttentionArgs& args, const Settings& settings = {});
MSA_API void merge_states(const MergeStatesArgs& args, const Settings& settings = {});
MSA_API void merge_selections(const MergeSelectionsArgs& args, const Settings& settings = {});
MSA_API void invert_selection(const InvertSelectionArgs& args, const Settings& settings = {});
MSA_API void quantize_kv(const QuantizeKvArgs& args, const Settings& settings = {});
MSA_API void quantize_index(const QuantizeIndexArgs& args, const Settings& settings = {});
MSA_API void sparse_attention_backward(const SparseAttentionBackwardArgs& args,
                                       const Settings& settings = {});
MSA_API void dense_attention_backward(const DenseAttentionBackwardArgs& args,
                                      const Settings& settings = {});
MSA_API void index_loss(const IndexLossArgs& args, const Settings& settings = {});

/// The first fault that a run on a GPU met in the contents of its index tensors: a bad page id,
/// block id or length.
struct Fault {
  std::int64_t request = 0;
  std::int64_t row = 0;  // query row inside the request, or -1 where the fault is the request's
  std::string what;      // "page id out of range"
};

/// Waits for the stream and reads the status word that the last run left in the workspace. CPU
/// plans never leave one: there a fault is an Error of run.
MSA_API std::optional<Fault> check(const Plan& plan, Workspace workspace, Stream stream = {});

}  // namespace msa
