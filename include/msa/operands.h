// SPDX-License-Identifier: MIT
// The generic form of the operations, for bindings and tools: the tensors of any operation under
// one set of names, and for each operation the table of its fields. The argument structs of
// attention.h are views of the same table.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

#include "msa/attention.h"

namespace msa {

/// What an operation does not take is a tensor that was not given.
struct Operands {
  // inputs
  Tensor q{}, k{}, v{};
  Tensor k_scale{}, v_scale{};  // where the format of k and v has a scale
  // where groups share one more
  Tensor k_global_scale{}, v_global_scale{};
  Tensor index_q{}, index_k{};
  Tensor index_k_scale{};                     // where the format of index_k has a scale
  Tensor index_k_global_scale{};              // where its groups share one more
  Tensor index_k8{}, index_k8_bounds{};       // where the problem has a filter
  Tensor scores_in{};                         // select_topk
  Tensor block_ids_in{};                      // sparse_attention, invert_selection
  Tensor k_rows{}, v_rows{};                  // quantize_kv
  Tensor out_in{}, lse_in{}, dout{}, dlse{};  // backward passes
  Tensor row_weight{};                        // index_loss
  Batch batch{};
  Parts part_outs{}, part_lses{};   // merge_states
  Parts part_ids{}, part_scores{};  // merge_selections
  // outputs
  Tensor out{}, lse{}, block_max{};
  Tensor scores{};                           // block_scores
  Tensor block_ids{}, chosen_scores{};       // selections
  Tensor candidates{};                       // select_blocks with a filter
  Tensor row_ptr{}, q_indices{}, q_slots{};  // invert_selection
  // quantize_kv
  Tensor k_cache{}, v_cache{}, k_scale_cache{}, v_scale_cache{};
  Tensor index_k8_out{}, index_k8_bounds_out{};  // quantize_index
  Tensor dq{}, dk{}, dv{};                       // backward passes
  Tensor loss{}, d_index_q{}, d_index_k{};       // index_loss
};

enum class Role : std::uint8_t { Input, OptionalInput, Output, OptionalOutput };

/// What a field's elements are: a format of the problem, or a type.
enum class Element : std::uint8_t {
  Q,
  Kv,
  KvScale,
  KvGlobalScale,
  IndexQ,
  IndexK,
  Out,
  F32,
  I32,
  Filter,        // codes of the filter
  FilterBounds,  // f32, where the problem has a filter
  IndexKScale,
  IndexKGlobalScale,  // f32 [1]
  Gradient,
  IndexGradient,
};

/// "q", "kv", "kv_scale", "kv_global_scale", "index_q", "index_k", "out", "f32", "i32", "filter",
/// "filter_bounds", "index_k_scale", "index_k_global_scale", "gradient",
/// "index_gradient".
MSA_API const char* to_string(Element element) noexcept;

/// One row of an operation's table. Exactly one of the three member pointers is set.
struct Field {
  std::string_view name;  // as in the argument struct: "q", "batch.seqlens_k", "outs"
  // "[T, Hq, D]", in the letters of docs/contract.md; of one part; of scales, where each token has
  // one
  std::string_view shape;
  Element element = Element::Q;
  Role role = Role::Input;
  Tensor Operands::*tensor = nullptr;
  Tensor Batch::*length = nullptr;
  Parts Operands::*parts = nullptr;
  // The problem's flag: of an optional output, or of an input that is needed only where it is set.
  bool Outputs::*planned = nullptr;

  constexpr bool is_input() const { return role == Role::Input || role == Role::OptionalInput; }
  /// The field's tensor; only where it is no list of parts.
  Tensor& in(Operands& o) const { return length != nullptr ? o.batch.*length : o.*tensor; }
  const Tensor& in(const Operands& o) const {
    return length != nullptr ? o.batch.*length : o.*tensor;
  }
};

/// The fields of an operation, inputs first; empty where `op` is none.
MSA_API std::span<const Field> fields_of(Op op) noexcept;

MSA_API void run(const Plan& plan, const Operands& operands, Workspace workspace = {},
                 Stream stream = {});
MSA_API Problem problem_of(Op op, const Operands& operands, const Settings& settings = {});
/// One call on the CPU.
MSA_API void run_once(Op op, const Operands& operands, const Settings& settings = {});

/// An output as the problem and the inputs say, without memory: what a caller allocates. Row-major.
MSA_API Tensor output_of(const Problem& problem, const Operands& operands, const Field& field);

}  // namespace msa
