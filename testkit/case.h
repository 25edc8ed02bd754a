// SPDX-License-Identifier: MIT
// The case language: one line of text <-> one Case, which is all that a problem, its tensors and
// their contents depend on. Tests, benchmarks, fuzzers and the command-line tool share it;
// docs/case-language.md is its manual.
#pragma once

#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "msa/attention.h"

namespace msa::testkit {

/// One request: `new:keys[:offset][@key_offset[/total]]` in text.
struct Lengths {
  std::int64_t seqlen_q = 0;
  std::int64_t seqlen_k = 0;
  std::optional<std::int64_t> q_offset{};  // left out: bottom-right alignment
  std::int64_t key_offset = 0;             // shards
  std::optional<std::int64_t> total_k{};   // shards: length of the whole sequence
  friend bool operator==(const Lengths&, const Lengths&) = default;
};

/// Where keys and values lie.
enum class Layout : std::uint8_t {
  Separate,   // [N, H, D] or [P, S, H, D]
  Packed,     // a row of k and the row of v behind it
  HeadMajor,  // [H, N, D] or [P, H, S, D]
  SlotMajor,  // [S, P, H, D], paged keys
};

/// Strides of every tensor of the call.
enum class Strides : std::uint8_t {
  Dense,
  Padded,      // gaps behind every dimension and a start that no vector is aligned to
  Transposed,  // heads outermost on the query side
  Broadcast,   // all key heads are one: stride 0
  Huge,        // the outermost stride passes 2^31 elements (sparse mappings)
};

/// What the vectors hold.
enum class Regime : std::uint8_t {
  Random,    // independent normal vectors
  Drift,     // index vectors that move slowly: neighbouring queries share most blocks
  Integers,  // small integers: every dot product is exact
  Ties,      // all scores equal
  Near,      // scores that differ in their last bits
  OneHot,    // all scores equal; v names its block
  Low,       // large negative scores
  Rising,    // the later a key, the higher its score
  Offset,    // normal vectors, keys with an offset of three deviations in common
  Wide,      // normal vectors, items of queries far smaller than their neighbours
};

/// What lies where it must not matter, and non-finite numbers where they do.
enum class Hostile : std::uint8_t {
  None,
  Nan,        // NaN in everything that no query both lists and sees
  NanV,       // NaN and infinities in some keys' v, and NaN outside
  NanK,       // the same in k
  NanQ,       // the same in some rows of q
  NanIndex,   // the same in index keys and in given scores
  NanIndexQ,  // the same in some rows of index_q
};

/// A call that must be rejected, and how it was made so.
enum class Corrupt : std::uint8_t {
  None,
  PageNegative,     // page id -1 among the pages in use
  PageMin,          // INT_MIN
  PageMax,          // INT_MAX
  PageEnd,          // the number of pages
  BlockNegative,    // block id -2
  BlockMin,         // INT_MIN
  BlockMax,         // INT_MAX
  BlockEnd,         // one past the last legal id
  BlockTwice,       // a block listed twice
  LengthNegative,   // seqlens_k below 0
  LengthAbove,      // seqlens_k above the planned bound
  QueriesAbove,     // a request with more queries than planned
  StartDecreasing,  // cu_seqlens_q goes back
  StartNotZero,     // cu_seqlens_q begins behind 0
  StartPastEnd,     // cu_seqlens_q ends behind the rows of q
  KeysPastEnd,      // a ragged request's keys end behind the rows of k
  KeyStartPastEnd,  // cu_seqlens_k ends behind the rows of k, though every request's keys fit
  KeyOffset,        // a shard's offset is no multiple of the block size
};

/// Lists of block ids that a case gives: sparse and invert.
enum class Order : std::uint8_t { Ascending, Descending, Shuffled };

/// Which gradients a backward pass is asked for.
enum class Grads : std::uint8_t { All, Queries, Keys, Values, Loss };

/// How the keys of a case over ranks are dealt to them, block by block.
enum class Deal : std::uint8_t {
  Contiguous,   // one run each
  Zigzag,       // runs r and 2 * ranks - 1 - r of 2 * ranks
  Interleaved,  // block b to rank b % ranks
};

struct Case {
  Op op = Op::MsaAttention;
  DType dtype = DType::BF16;
  std::optional<Format> kv{};          // of k and v; left out: dtype
  std::optional<DType> index_dtype{};  // of index_q; left out: dtype
  std::optional<Format> index_k{};     // left out: as index_q
  bool filter = false;                 // select and msa: with an 8-bit filter of the index keys
  bool rotated = false;                // the filter's codes are of rotated keys
  Precision precision = Precision::Exact;
  std::optional<DType> out_dtype{};  // left out: dtype
  std::int64_t heads_q = 64;
  std::int64_t heads_kv = 4;
  std::int64_t head_dim = 128;
  std::int64_t value_dim = 0;    // 0: head_dim
  std::int64_t index_heads = 0;  // 0: heads_kv
  std::int64_t index_heads_k = 1;
  std::int64_t index_dim = 0;  // 0: head_dim
  std::int64_t block_size = 128;
  std::int64_t topk = 16;
  std::int64_t local_blocks = 1;
  std::int64_t init_blocks = 0;
  bool causal = true;
  std::optional<float> softmax_scale{};
  std::vector<Lengths> lengths{{.seqlen_q = 128, .seqlen_k = 128}};
  std::int64_t page_size = 0;  // 0: ragged keys
  std::int64_t pool = 0;       // pages (or ragged rows) that exist; 0: few more than needed
  std::int64_t pad_rows = 0;   // rows of q behind the last request
  std::int64_t slack = 0;      // how far the planned bounds lie above the lengths
  Layout layout = Layout::Separate;
  Strides strides = Strides::Dense;
  bool ids_head_major = false;
  Order order = Order::Ascending;
  bool partial_lists = false;  // lists of any length up to topk, garbage behind the first -1
  bool lse = false;
  bool chosen_scores = false;
  bool ids = true;  // msa: ask for the selection
  bool output = true;
  bool block_max = false;
  std::int64_t parts = 2;
  bool in_place = false;  // merge_states into its first part
  Grads grads = Grads::All;
  std::optional<DType> grad_dtype{};  // left out: dtype
  bool accumulate = false;            // backward passes: into what lies in dk and dv
  bool dlse = false;                  // backward passes: a gradient arrives at lse
  bool lists = true;                  // index_loss: over listed blocks
  bool row_weight = false;            // index_loss: with weights of rows
  std::optional<float> index_scale{};
  bool batch_invariant = false;
  Regime regime = Regime::Random;
  Hostile hostile = Hostile::None;
  Corrupt corrupt = Corrupt::None;
  std::int64_t ranks = 0;  // shards that the case is run as, one after the other; 0: whole
  Deal deal = Deal::Contiguous;
  std::uint64_t seed = 1;

  Format kv_format() const { return kv.value_or(Format{.storage = dtype}); }
  /// Of numbers that are no codes: bf16 where dtype is e4m3.
  DType wide_type() const { return dtype == DType::E4M3 ? DType::BF16 : dtype; }
  DType index_type() const { return index_dtype.value_or(wide_type()); }
  Format index_k_format() const { return index_k.value_or(Format{.storage = index_type()}); }
  DType out_type() const { return out_dtype.value_or(wide_type()); }
  DType gradient_type() const {
    return grad_dtype.value_or(op == Op::IndexLoss ? index_type() : dtype);
  }
  std::int64_t dim_v() const { return value_dim == 0 ? head_dim : value_dim; }
  std::int64_t heads_index() const { return index_heads == 0 ? heads_kv : index_heads; }
  std::int64_t dim_index() const { return index_dim == 0 ? head_dim : index_dim; }
  std::int64_t requests() const { return static_cast<std::int64_t>(lengths.size()); }
  std::int64_t rows() const;  // of q: all requests and the padding
  friend bool operator==(const Case&, const Case&) = default;
};

/// What is wrong with a line: the key or value at fault and what would do.
class CaseError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// One line, one case. Throws CaseError, also where the line stands for several cases.
Case parse_case(std::string_view line);

/// A line with alternatives (`dtype=bf16|f16`) and ranges (`dim=16..256+16`) is the product of them
/// all, last key fastest. A line that is empty or a comment gives none.
std::vector<Case> expand_cases(std::string_view line);

/// Every case of a text or file; errors name the line.
std::vector<Case> parse_cases(std::string_view text, const std::string& name = "cases");
std::vector<Case> read_cases(const std::string& path);

/// The shortest line that parse_case turns into this case again.
std::string to_line(const Case& spec);

/// Short name of an operation: dense, scores, topk, select, sparse, msa, merge_states,
/// merge_selections, invert, quantize, quantize_index, sparse_backward, dense_backward, index_loss.
const char* short_name(Op op);

/// All keys with their values and meanings, one a line, for help texts.
std::string case_keys();

/// One value of a case as the language writes it ("group" is heads_q / heads_kv); throws CaseError
/// for an unknown key.
std::string case_value(const Case& spec, std::string_view key);

/// Sets one value; throws CaseError for an unknown key or value.
void set_case_value(Case& spec, std::string_view key, std::string_view value);

/// One word of a line as its alternatives: "a|b" -> {a, b}, "16..64+16" -> {16, 32, 48, 64}.
std::vector<std::string> alternatives(std::string_view value);

}  // namespace msa::testkit
