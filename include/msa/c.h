// SPDX-License-Identifier: MIT
// The C interface: what every other language stands on. C99, no globals, no allocation that a
// caller must know of but plans.
//
// Ownership. A plan is counted: msa_plan_make and msa_plan_share hand out one count each,
// msa_plan_free gives one back, and threads may share a plan. Tensors, argument structs and text
// buffers are the caller's and are never kept after a call returns. A pointer into a plan lives as
// long as the plan. Everything else that is handed out is static.
//
// Structs grow at their end. `struct_size` comes first and is MSA_STRUCT_SIZE of the last field
// that the caller knows; the MSA_..._INIT macros set it and every default. A field that the caller
// does not know is read as 0, which means "as before". A larger struct than the library knows is
// accepted where the unknown tail is 0 and refused otherwise; so no struct ends in padding, which
// nobody sets.
//
// Errors. Functions that can fail return a msa_status; the text goes into the caller's msa_error,
// which may be NULL. Outputs are untouched where a call failed.
//
// Words, shapes and rules are those of docs/contract.md; docs/api.md lists the fields of each
// operation.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "msa/export.h"

#ifdef __cplusplus
extern "C" {
#endif

/// Bytes of a struct up to and with its last field, so that padding never counts.
#define MSA_STRUCT_SIZE(type, last_field) \
  (offsetof(type, last_field) + sizeof(((type*)0)->last_field))

// Enumerations travel as int32_t.

typedef int32_t msa_status;
enum {
  MSA_OK = 0,
  MSA_INVALID_ARGUMENT = 1,
  MSA_INVALID_CONTENT = 2,
  MSA_UNSUPPORTED = 3,
  MSA_WORKSPACE = 4,
  MSA_OUT_OF_MEMORY = 5,
  MSA_DEVICE = 6,
  MSA_INTERNAL = 7
};

typedef int32_t msa_op;
enum {
  MSA_OP_DENSE_ATTENTION = 0,
  MSA_OP_BLOCK_SCORES = 1,
  MSA_OP_SELECT_TOPK = 2,
  MSA_OP_SELECT_BLOCKS = 3,
  MSA_OP_SPARSE_ATTENTION = 4,
  MSA_OP_MSA_ATTENTION = 5,
  MSA_OP_MERGE_STATES = 6,
  MSA_OP_MERGE_SELECTIONS = 7,
  MSA_OP_INVERT_SELECTION = 8,
  MSA_OP_QUANTIZE_KV = 9,
  MSA_OP_QUANTIZE_INDEX = 10,
  MSA_OP_SPARSE_ATTENTION_BACKWARD = 11,
  MSA_OP_DENSE_ATTENTION_BACKWARD = 12,
  MSA_OP_INDEX_LOSS = 13
};

typedef int32_t msa_dtype;
enum {
  MSA_F32 = 0,
  MSA_F16 = 1,
  MSA_BF16 = 2,
  MSA_I32 = 3,
  MSA_I64 = 4,
  MSA_E4M3 = 5,
  MSA_I8 = 6,
  MSA_E2M1 = 7
};

typedef int32_t msa_device_type;
enum { MSA_CPU = 0, MSA_CUDA = 1 };

typedef int32_t msa_scale;
enum {
  MSA_SCALE_NONE = 0,
  MSA_SCALE_TENSOR = 1,
  MSA_SCALE_HEAD = 2,
  MSA_SCALE_PAGE = 3,
  MSA_SCALE_TOKEN = 4,
  MSA_SCALE_GROUP = 5,
  MSA_SCALE_GROUP_TENSOR = 6
};

/// Room for one failure, filled by the call that failed and by no other.
typedef struct msa_error {
  msa_status status;
  /// The argument at fault ("k", "batch.page_table"), or empty.
  char argument[64];
  /// Cut with "..." where it is longer.
  char message[1948];
} msa_error;

/// A view of memory. Strides count elements. rank 0: not given. The layout never changes.
typedef struct msa_tensor {
  void* data;
  int64_t shape[4];
  int64_t stride[4];
  msa_dtype dtype;
  int32_t rank;
  msa_device_type device_type;
  int32_t device_index;
} msa_tensor;

/// Parts of a merge: `count` tensors, or one tensor whose first dimension counts the parts.
typedef struct msa_parts {
  const msa_tensor* tensors;
  int64_t count;
} msa_parts;

/// The tensors of any operation. An operation takes those that msa_fields lists for it; one that it
/// does not take must not be given.
typedef struct msa_args {
  size_t struct_size;
  msa_tensor q;
  msa_tensor k;
  msa_tensor v;
  msa_tensor index_q;
  msa_tensor index_k;
  msa_tensor scores;
  msa_tensor block_ids;
  msa_tensor cu_seqlens_q;
  msa_tensor seqlens_k;
  msa_tensor cu_seqlens_k;
  msa_tensor page_table;
  msa_tensor q_offsets;
  msa_tensor key_offsets;
  msa_tensor total_seqlens_k;
  msa_parts outs;
  msa_parts lses;
  msa_parts block_ids_parts;
  msa_parts chosen_scores_parts;
  msa_tensor out;
  msa_tensor lse;
  msa_tensor block_max;
  msa_tensor chosen_scores;
  msa_tensor row_ptr;
  msa_tensor q_indices;
  msa_tensor q_slots;
  /// Where k and v are stored as MSA_E4M3 and scaled, or as MSA_E2M1.
  msa_tensor k_scale;
  msa_tensor v_scale;
  /// Of MSA_SCALE_GROUP_TENSOR.
  msa_tensor k_global_scale;
  msa_tensor v_global_scale;
  /// Of MSA_OP_QUANTIZE_KV.
  msa_tensor k_rows;
  msa_tensor v_rows;
  msa_tensor k_cache;
  msa_tensor v_cache;
  msa_tensor k_scale_cache;
  msa_tensor v_scale_cache;
  /// A filter of index_k: MSA_I8 codes and their bounds, which MSA_OP_QUANTIZE_INDEX writes; and
  /// what it did.
  msa_tensor index_k8;
  msa_tensor index_k8_bounds;
  msa_tensor candidates;
  /// Where index_k is stored as MSA_E4M3 and scaled, or as MSA_E2M1.
  msa_tensor index_k_scale;
  /// Of MSA_SCALE_GROUP_TENSOR.
  msa_tensor index_k_global_scale;
  /// Of backward passes, which take out and lse.
  msa_tensor dout;
  msa_tensor dlse;
  msa_tensor dq;
  msa_tensor dk;
  msa_tensor dv;
  /// Of MSA_OP_INDEX_LOSS.
  msa_tensor row_weight;
  msa_tensor loss;
  msa_tensor d_index_q;
  msa_tensor d_index_k;
} msa_args;
// clang-format off
#define MSA_TENSOR_NONE {NULL, {0, 0, 0, 0}, {0, 0, 0, 0}, 0, 0, 0, 0}
#define MSA_PARTS_NONE {NULL, 0}
#define MSA_ARGS_INIT                                                       \
  {MSA_STRUCT_SIZE(msa_args, d_index_k),                                    \
   MSA_TENSOR_NONE, MSA_TENSOR_NONE, MSA_TENSOR_NONE, MSA_TENSOR_NONE,      \
   MSA_TENSOR_NONE, MSA_TENSOR_NONE, MSA_TENSOR_NONE, MSA_TENSOR_NONE,      \
   MSA_TENSOR_NONE, MSA_TENSOR_NONE, MSA_TENSOR_NONE, MSA_TENSOR_NONE,      \
   MSA_TENSOR_NONE, MSA_TENSOR_NONE,                                        \
   MSA_PARTS_NONE,  MSA_PARTS_NONE,  MSA_PARTS_NONE,  MSA_PARTS_NONE,       \
   MSA_TENSOR_NONE, MSA_TENSOR_NONE, MSA_TENSOR_NONE, MSA_TENSOR_NONE,      \
   MSA_TENSOR_NONE, MSA_TENSOR_NONE, MSA_TENSOR_NONE, MSA_TENSOR_NONE,      \
   MSA_TENSOR_NONE, MSA_TENSOR_NONE, MSA_TENSOR_NONE, MSA_TENSOR_NONE,      \
   MSA_TENSOR_NONE, MSA_TENSOR_NONE, MSA_TENSOR_NONE, MSA_TENSOR_NONE,      \
   MSA_TENSOR_NONE, MSA_TENSOR_NONE, MSA_TENSOR_NONE, MSA_TENSOR_NONE,      \
   MSA_TENSOR_NONE, MSA_TENSOR_NONE,                                        \
   MSA_TENSOR_NONE, MSA_TENSOR_NONE, MSA_TENSOR_NONE, MSA_TENSOR_NONE,      \
   MSA_TENSOR_NONE, MSA_TENSOR_NONE, MSA_TENSOR_NONE, MSA_TENSOR_NONE,      \
   MSA_TENSOR_NONE}
// clang-format on

enum {
  /// Values are rounded once more, to e4m3.
  MSA_FORMAT_ROUNDED = 1,
  /// Of a filter: codes are those of the keys' products with a Hadamard matrix.
  MSA_FORMAT_ROTATED = 2
};

/// What is stored and how it is scaled. `flags` is a sum of MSA_FORMAT_... The layout never
/// changes.
typedef struct msa_format {
  msa_dtype storage;
  msa_scale scale;
  int64_t group;
  int64_t flags;
} msa_format;

/// What a selection beside a filter goes by: the keys, or the filter's codes alone.
enum { MSA_EXACT = 0, MSA_FAST = 1 };

/// How to compute, not what. NULL and 0 leave the choice to the library. The layout never changes.
typedef struct msa_options {
  const char* backend;
  const char* isa;
  int32_t threads;
  int32_t batch_invariant;
} msa_options;

/// msa::Problem: what a call computes, within which bounds.
typedef struct msa_problem {
  size_t struct_size;
  msa_op op;
  msa_device_type device_type;
  int32_t device_index;
  int32_t causal;
  int64_t batch;
  int64_t total_q;
  int64_t max_seqlen_q;
  int64_t max_seqlen_k;
  int64_t page_size;
  int64_t parts;
  msa_format q;
  msa_format kv;
  int64_t heads_q;
  int64_t heads_kv;
  int64_t head_dim;
  int64_t value_dim;
  float softmax_scale;
  /// 0: 1 / sqrt(D), and softmax_scale is not read.
  int32_t softmax_scale_given;
  msa_format index_q;
  msa_format index_k;
  int64_t index_heads;
  int64_t index_heads_k;
  int64_t index_dim;
  int64_t block_size;
  int64_t topk;
  int64_t local_blocks;
  int64_t init_blocks;
  msa_dtype out_dtype;
  int32_t output;
  int32_t lse;
  int32_t block_max;
  int32_t chosen_scores;
  /// 0: keys and values are stored as queries are, and kv and index_k are not read.
  int32_t kv_given;
  int32_t index_k_given;
  msa_options options;
  /// Of the copy of index_k that select_blocks and msa_attention may be given beside it.
  msa_format index_filter;
  int64_t index_filter_given;
  int64_t precision;
  /// Of dq, dk and dv.
  msa_dtype grad_dtype;
  /// 1: dk and dv are added to what lies there.
  int32_t accumulate;
  float index_scale;
  /// 0: 1 / sqrt(Di), and index_scale is not read.
  int32_t index_scale_given;
} msa_problem;

/// msa::Settings: what tensors cannot tell. -1: read off the lengths, which lie in host memory
/// then.
typedef struct msa_settings {
  size_t struct_size;
  int64_t block_size;
  int64_t topk;
  int64_t local_blocks;
  int64_t init_blocks;
  int64_t max_seqlen_q;
  int64_t max_seqlen_k;
  int32_t causal;
  int32_t softmax_scale_given;
  float softmax_scale;
  msa_options options;
  /// 1: keys and values in MSA_E2M1 have MSA_FORMAT_ROUNDED.
  int64_t kv_rounded;
  /// 1: the same of index keys.
  int64_t index_k_rounded;
  /// 1: the filter of index keys has MSA_FORMAT_ROTATED.
  int64_t filter_rotated;
  int64_t precision;
  /// 1: gradients of keys and values are added to what lies there.
  int64_t accumulate;
  float index_scale;
  int32_t index_scale_given;
} msa_settings;
// clang-format off
#define MSA_SETTINGS_INIT \
  {MSA_STRUCT_SIZE(msa_settings, index_scale_given), 128, 16, 1, 0, -1, -1, 1, 0, 0.0f, \
   {NULL, NULL, 0, 0}, 0, 0, 0, MSA_EXACT, 0, 0.0f, 0}

/// Every default of msa::Problem.
#define MSA_PROBLEM_INIT                                                                         \
  {MSA_STRUCT_SIZE(msa_problem, index_scale_given), MSA_OP_MSA_ATTENTION, MSA_CPU, 0, 1, 1, 0,   \
   0, 0, 0, 0,                                                                                   \
   {MSA_BF16, MSA_SCALE_NONE, 0, 0}, {MSA_BF16, MSA_SCALE_NONE, 0, 0}, 0, 0, 0, 0, 0.0f, 0,      \
   {MSA_BF16, MSA_SCALE_NONE, 0, 0}, {MSA_BF16, MSA_SCALE_NONE, 0, 0}, 0, 1, 0, 128, 16, 1, 0,   \
   MSA_BF16, 1, 0, 0, 0, 0, 0, {NULL, NULL, 0, 0}, {MSA_BF16, MSA_SCALE_NONE, 0, 0}, 0,          \
   MSA_EXACT, MSA_BF16, 0, 0.0f, 0}
// clang-format on

typedef struct msa_plan msa_plan;

/// The first fault that a run on a GPU met in its index tensors.
typedef struct msa_fault {
  /// 0: none.
  int32_t found;
  int64_t request;
  /// Query row inside the request, or -1 where the fault is the request's.
  int64_t row;
  char what[104];
} msa_fault;

typedef int32_t msa_role;
enum { MSA_INPUT = 0, MSA_OPTIONAL_INPUT = 1, MSA_OUTPUT = 2, MSA_OPTIONAL_OUTPUT = 3 };

/// One row of the table of fields: a tensor that an operation takes.
typedef struct msa_field {
  /// As in msa_args.
  const char* name;
  /// Where it lies in msa_args.
  size_t offset;
  msa_role role;
  /// 1: a msa_parts, else a msa_tensor.
  int32_t parts;
  /// "q", "kv", "index_q", "index_k" or "out": a format of the problem; "f32" or "i32": a type;
  /// "kv_scale": f32, or e4m3 of groups, needed and shaped as the scale of the format kv says;
  /// "kv_global_scale": f32, needed where that is MSA_SCALE_GROUP_TENSOR; "filter": the format
  /// index_filter, needed where it is given, and "filter_bounds": f32, likewise;
  /// "index_k_scale" and "index_k_global_scale": as those of kv, of the format index_k.
  const char* element;
  /// "[T, Hq, D]", in the letters of docs/contract.md; of one part where it is a msa_parts; of
  /// scales, where each token has one.
  const char* shape;
  /// Where in msa_problem the flag lies (an int32_t) that plans an optional output, or that makes
  /// an optional input needed. 0: there is none.
  size_t flag;
} msa_field;

/// Where ranks meet: GPUs of one host that read each other's memory where it lies. Addresses are
/// those that this rank's GPU has for them.
typedef struct msa_peers {
  size_t struct_size;
  int64_t rank;
  /// 1 to 63.
  int64_t ranks;
  /// `ranks` addresses: what each rank wrote for all.
  void* const* boxes;
  /// `ranks` addresses of 2 * ranks + 2 words of 32 bits each, 0 at first, which are the library's.
  void* const* pads;
  /// A rank that waits longer ends in an error of its GPU; 0: it waits for ever.
  int64_t timeout_ms;
} msa_peers;

/// "0.2.0": of the library in use.
MSA_API const char* msa_version(void);
/// "msa_attention", or NULL.
MSA_API const char* msa_op_name(msa_op op);
/// "bf16", or NULL.
MSA_API const char* msa_dtype_name(msa_dtype dtype);
/// 16, or 0 for no dtype.
MSA_API int32_t msa_dtype_bits(msa_dtype dtype);

/// The fields of an operation, inputs first, in the order of its argument struct. Returns their
/// number, 0 for no operation; `fields` points to a static array.
MSA_API size_t msa_fields(msa_op op, const msa_field** fields);

/// The problem that these tensors pose. Outputs that are not given are not planned; set their flags
/// in the result to plan them.
MSA_API msa_status msa_problem_of(msa_op op, const msa_args* args, const msa_settings* settings,
                                  msa_problem* problem, msa_error* error);

/// Dtype, rank, extents, dense strides and device of an output as the problem and the inputs of a
/// call say; data is NULL. What a caller allocates.
MSA_API msa_status msa_output_of(const msa_problem* problem, const msa_args* args, const char* name,
                                 msa_tensor* tensor, msa_error* error);

/// Who would serve the problem. `supported` is 1 or 0; `text` gets a line "backend: reason" for
/// each backend ("backend: yes" where it accepts) or the error of an illegal problem. Returns the
/// length of the whole text; what does not fit is cut. `text` may be NULL where capacity is 0.
MSA_API size_t msa_supports(const msa_problem* problem, int32_t* supported, char* text,
                            size_t capacity);

/// The problem in one line. Returns the length of the whole text, like msa_supports.
MSA_API size_t msa_problem_text(const msa_problem* problem, char* text, size_t capacity);

/// Equal problems give equal numbers.
MSA_API uint64_t msa_problem_hash(const msa_problem* problem);

MSA_API msa_status msa_plan_make(const msa_problem* problem, msa_plan** plan, msa_error* error);
/// The same plan, with one count more.
MSA_API msa_plan* msa_plan_share(msa_plan* plan);
/// NULL is legal.
MSA_API void msa_plan_free(msa_plan* plan);
/// The planned problem; its strings lie in the plan.
MSA_API msa_status msa_plan_problem(const msa_plan* plan, msa_problem* problem, msa_error* error);
/// "cpu".
MSA_API const char* msa_plan_backend(const msa_plan* plan);
/// "avx512_bf16".
MSA_API const char* msa_plan_isa(const msa_plan* plan);
MSA_API size_t msa_plan_workspace_bytes(const msa_plan* plan);
/// The problem, the backend and what it decided. Returns the length of the whole text.
MSA_API size_t msa_plan_text(const msa_plan* plan, char* text, size_t capacity);

/// Runs the plan's operation. `workspace` lies on the device of the tensors, aligned to 256 bytes,
/// and may be NULL where the plan needs none; `stream` is a cudaStream_t, not read on the CPU.
/// Allocates nothing, never synchronises.
MSA_API msa_status msa_run(const msa_plan* plan, const msa_args* args, void* workspace,
                           size_t workspace_bytes, void* stream, msa_error* error);

/// One call on the CPU: problem, plan, a workspace of its own, run.
MSA_API msa_status msa_run_once(msa_op op, const msa_args* args, const msa_settings* settings,
                                msa_error* error);

/// Waits for the stream and reads the status word that the last run left in the workspace. CPU
/// plans never leave one.
MSA_API msa_status msa_check(const msa_plan* plan, void* workspace, size_t workspace_bytes,
                             void* stream, msa_fault* fault, msa_error* error);

/// What this build holds and what this machine offers, as JSON. Returns the length of the whole
/// text.
MSA_API size_t msa_info(char* text, size_t capacity);

/// merge_selections of what every rank wrote into its box, i32 [2, T, H, k]: block ids, -1 behind
/// the last, and the bits of their scores. Begins with a barrier of all ranks, so that each may
/// read what was written before on the streams of all. msa_peers_choose and msa_peers_join take
/// turns on the same pads, and a box may be written again once the other call has returned its
/// stream. `dealt` 1: ids in boxes are local, block l of rank n is block l * ranks + n of the
/// sequence; they count behind those of a rank that are among the `first_blocks` first ones of the
/// sequence. `forced`, i32 [T, F], the first -1 ends a row: ids that are chosen anyway. `own_ids`,
/// i32 [T, H, k], where dealt: those chosen that lie on this rank, local, ascending. Both may be
/// NULL. All dense. Allocates nothing, never synchronises; a CUDA graph may capture it.
MSA_API msa_status msa_peers_choose(const msa_peers* peers, int32_t dealt, int64_t first_blocks,
                                    const msa_tensor* forced, const msa_tensor* block_ids,
                                    const msa_tensor* own_ids, void* stream, msa_error* error);

/// merge_states of what every rank wrote into its box, f32 [T, H, Dv + 4], the lse of a row behind
/// its output: with the bits of msa_run over these parts in f32, rounded to the type of `out` (f32,
/// f16 or bf16 [T, H, Dv]). `lse`, f32 [T, H], may be NULL. Otherwise as msa_peers_choose.
MSA_API msa_status msa_peers_join(const msa_peers* peers, const msa_tensor* out,
                                  const msa_tensor* lse, void* stream, msa_error* error);

/// msa_run of a plan of msa_attention (no local_blocks, no init_blocks, requests of one row over
/// pages) of this rank's part of sequences whose blocks are dealt round robin, and in the place of
/// msa_peers_choose: what is selected are candidates of the `seqlens_k` keys here that come before
/// what is forced; attended to is what all ranks choose among theirs and `forced` and what lies
/// here, up to `last_keys`, i32 [T]. `block_ids` are those of the whole sequence. Boxes of `peers`
/// are [ranks, T, Hi, k] of 16 bytes, 0 at first, which are the library's. `out` and `lse` are this
/// rank's part of `states[rank]`, f32 [ranks, T, Hq, Dv + 4]; every rank gets them into its own
/// box, behind the parts of the ranks before, for msa_peers_join. MSA_UNSUPPORTED, and nothing is
/// written, where the plan has no such way: bf16 and f16 of head dim 128 and blocks of 128 on
/// compute capability 9.0 have, without a filter.
MSA_API msa_status msa_peers_attend(const msa_peers* peers, void* const* states,
                                    const msa_tensor* forced, const msa_tensor* last_keys,
                                    const msa_plan* plan, const msa_args* args, void* workspace,
                                    size_t workspace_bytes, void* stream, msa_error* error);

/// What a step's layers share, of sequences of one row each whose blocks are dealt to ranks round
/// robin, from their lengths, i32 [T], and this rank's pages, i32 [T, C]: `candidates`, the keys
/// here that are none of a forced block, and `last_keys`, both i32 [T]; `forced`, i32 [T,
/// init_blocks + local_blocks], or NULL where these are 0; `pages`, those that a row sees, 0 behind
/// them. All dense.
MSA_API msa_status msa_peers_deal(int64_t rank, int64_t ranks, int64_t block_size,
                                  int64_t init_blocks, int64_t local_blocks,
                                  int64_t columns_per_block, const msa_tensor* seqlens_k,
                                  const msa_tensor* page_table, const msa_tensor* candidates,
                                  const msa_tensor* last_keys, const msa_tensor* forced,
                                  const msa_tensor* pages, void* stream, msa_error* error);

#ifdef __cplusplus
}
#endif
