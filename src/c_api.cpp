// SPDX-License-Identifier: MIT
// The C interface over the generic form of the operations. Reads the caller's structs into the
// library's own, and turns every exception into a status and a text.
#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>
#include <memory>
#include <new>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "core/backend.h"
#include "core/fail.h"
#include "core/json.h"
#include "msa/c.h"
#include "msa/msa.h"

/// A counted plan.
struct msa_plan {
  msa::Plan plan;
  std::atomic<std::int64_t> count{1};
};

namespace msa {
namespace {

static_assert(MSA_INTERNAL == static_cast<int>(ErrorCode::Internal) + 1);
static_assert(MSA_OP_INDEX_LOSS == static_cast<int>(kLastOp));
static_assert(MSA_E2M1 == static_cast<int>(DType::E2M1));
static_assert(MSA_SCALE_GROUP_TENSOR == static_cast<int>(Scale::GroupTensor));
static_assert(MSA_CUDA == static_cast<int>(DeviceType::Cuda));
static_assert(MSA_OPTIONAL_OUTPUT == static_cast<int>(Role::OptionalOutput));
static_assert(sizeof(msa_tensor::shape) == sizeof(Tensor::shape));

// ---- errors ----

void copy_text(char* room, std::size_t capacity, std::string_view text) {
  if (room == nullptr || capacity == 0) return;
  const std::size_t count = std::min(text.size(), capacity - 1);
  std::memcpy(room, text.data(), count);
  room[count] = '\0';
  if (count < text.size() && count >= 3) std::memcpy(room + count - 3, "...", 3);
}

msa_status report(msa_error* error, ErrorCode code, std::string_view argument,
                  std::string_view message) {
  const msa_status status = static_cast<msa_status>(code) + 1;
  if (error != nullptr) {
    error->status = status;
    copy_text(error->argument, sizeof error->argument, argument);
    copy_text(error->message, sizeof error->message, message);
  }
  return status;
}

/// The only catch: no exception crosses the border.
template <class Body>
msa_status guard(msa_error* error, const Body& body) {
  try {
    body();
    return MSA_OK;
  } catch (const Error& e) {
    return report(error, e.code(), e.argument(), e.what());
  } catch (const std::bad_alloc&) {
    return report(error, ErrorCode::OutOfMemory, "", "out of memory");
  } catch (const std::exception& e) {
    return report(error, ErrorCode::Internal, "", e.what());
  } catch (...) {
    return report(error, ErrorCode::Internal, "", "an exception of no known type");
  }
}

[[noreturn]] void expect(const char* argument, const char* expected, const std::string& given) {
  core::fail(ErrorCode::InvalidArgument, argument, "", expected, given);
}

template <class T>
T* required(T* pointer, const char* argument) {
  if (pointer == nullptr) expect(argument, "an address", "null");
  return pointer;
}

// ---- structs that grow ----

/// The caller's struct as far as this library knows it.
template <class T>
T known(const T* given, std::size_t first_size, std::size_t size, const char* argument) {
  const std::size_t claimed = required(given, argument)->struct_size;
  if (claimed < first_size || claimed > 4096 + size) {
    core::fail(ErrorCode::InvalidArgument, argument, "struct_size",
               std::to_string(first_size) + " or more, as the INIT macro sets it",
               std::to_string(claimed));
  }
  T copy;
  std::memset(static_cast<void*>(&copy), 0, sizeof copy);
  std::memcpy(static_cast<void*>(&copy), given, std::min(claimed, size));
  const auto* tail = reinterpret_cast<const unsigned char*>(given);
  for (std::size_t i = size; i < claimed; ++i) {
    if (tail[i] == 0) continue;
    core::fail(ErrorCode::InvalidArgument, argument, "byte " + std::to_string(i),
               "0, as msa " + std::string(version()) + " does not know this field",
               std::to_string(tail[i]));
  }
  return copy;
}

constexpr std::size_t kArgsSize = MSA_STRUCT_SIZE(msa_args, d_index_k);
constexpr std::size_t kSettingsSize = MSA_STRUCT_SIZE(msa_settings, index_scale_given);
constexpr std::size_t kProblemSize = MSA_STRUCT_SIZE(msa_problem, index_scale_given);
// Of version 0.2.0, the first that had them.
constexpr std::size_t kFirstArgsSize = 1920;
constexpr std::size_t kFirstSettingsSize = 96;
constexpr std::size_t kFirstProblemSize = 320;

// ---- numbers in, enumerations out ----

template <class Enum>
Enum read_enum(std::int32_t value, Enum last, const char* argument, const char* expected) {
  if (value < 0 || value > static_cast<std::int32_t>(last)) {
    expect(argument, expected, std::to_string(value));
  }
  return static_cast<Enum>(value);
}

Op read_op(msa_op op) { return read_enum(op, kLastOp, "op", "an operation"); }

DType read_dtype(msa_dtype dtype, const char* argument) {
  return read_enum(dtype, DType::E2M1, argument, "a dtype");
}

Device read_device(msa_device_type type, std::int32_t index, const char* argument) {
  return {read_enum(type, DeviceType::Cuda, argument, "cpu or cuda"), index};
}

Format read_format(const msa_format& f, const char* argument) {
  if ((f.flags & ~std::int64_t{MSA_FORMAT_ROUNDED | MSA_FORMAT_ROTATED}) != 0) {
    expect(argument, "flags that msa knows", std::to_string(f.flags));
  }
  return {read_dtype(f.storage, argument),
          read_enum(f.scale, Scale::GroupTensor, argument, "a scale"), f.group,
          (f.flags & MSA_FORMAT_ROUNDED) != 0, (f.flags & MSA_FORMAT_ROTATED) != 0};
}

msa_format write_format(const Format& f) {
  return {static_cast<msa_dtype>(f.storage), static_cast<msa_scale>(f.scale), f.group,
          (f.rounded ? MSA_FORMAT_ROUNDED : 0) | (f.rotated ? MSA_FORMAT_ROTATED : 0)};
}

Precision read_precision(std::int64_t value) {
  if (value == MSA_EXACT) return Precision::Exact;
  if (value == MSA_FAST) return Precision::Fast;
  expect("precision", "a precision", std::to_string(value));
}

Options read_options(const msa_options& o) {
  return {.backend = o.backend == nullptr ? "" : o.backend,
          .isa = o.isa == nullptr ? "" : o.isa,
          .threads = o.threads,
          .batch_invariant = o.batch_invariant != 0};
}

Tensor read_tensor(const msa_tensor& t, const char* argument) {
  if (t.rank == 0) return {};
  Tensor tensor{.data = t.data,
                .dtype = read_dtype(t.dtype, argument),
                .device = read_device(t.device_type, t.device_index, argument),
                .rank = t.rank};
  std::copy(std::begin(t.shape), std::end(t.shape), tensor.shape.begin());
  std::copy(std::begin(t.stride), std::end(t.stride), tensor.stride.begin());
  return tensor;
}

void write_tensor(const Tensor& tensor, msa_tensor& t) {
  t.data = tensor.data;
  std::copy(tensor.shape.begin(), tensor.shape.end(), std::begin(t.shape));
  std::copy(tensor.stride.begin(), tensor.stride.end(), std::begin(t.stride));
  t.dtype = static_cast<msa_dtype>(tensor.dtype);
  t.rank = tensor.rank;
  t.device_type = static_cast<msa_device_type>(tensor.device.type);
  t.device_index = tensor.device.index;
}

// ---- fields ----

struct Member {
  std::string_view name;
  std::size_t offset;
};

#define MSA_MEMBER(name) \
  { #name, offsetof(msa_args, name) }
constexpr Member kMembers[] = {
    MSA_MEMBER(q),
    MSA_MEMBER(k),
    MSA_MEMBER(v),
    MSA_MEMBER(index_q),
    MSA_MEMBER(index_k),
    MSA_MEMBER(scores),
    MSA_MEMBER(block_ids),
    MSA_MEMBER(cu_seqlens_q),
    MSA_MEMBER(seqlens_k),
    MSA_MEMBER(cu_seqlens_k),
    MSA_MEMBER(page_table),
    MSA_MEMBER(q_offsets),
    MSA_MEMBER(key_offsets),
    MSA_MEMBER(total_seqlens_k),
    MSA_MEMBER(outs),
    MSA_MEMBER(lses),
    MSA_MEMBER(block_ids_parts),
    MSA_MEMBER(chosen_scores_parts),
    MSA_MEMBER(out),
    MSA_MEMBER(lse),
    MSA_MEMBER(block_max),
    MSA_MEMBER(chosen_scores),
    MSA_MEMBER(row_ptr),
    MSA_MEMBER(q_indices),
    MSA_MEMBER(q_slots),
    MSA_MEMBER(k_scale),
    MSA_MEMBER(v_scale),
    MSA_MEMBER(k_global_scale),
    MSA_MEMBER(v_global_scale),
    MSA_MEMBER(k_rows),
    MSA_MEMBER(v_rows),
    MSA_MEMBER(k_cache),
    MSA_MEMBER(v_cache),
    MSA_MEMBER(k_scale_cache),
    MSA_MEMBER(v_scale_cache),
    MSA_MEMBER(index_k8),
    MSA_MEMBER(index_k8_bounds),
    MSA_MEMBER(candidates),
    MSA_MEMBER(index_k_scale),
    MSA_MEMBER(index_k_global_scale),
    MSA_MEMBER(dout),
    MSA_MEMBER(dlse),
    MSA_MEMBER(dq),
    MSA_MEMBER(dk),
    MSA_MEMBER(dv),
    MSA_MEMBER(row_weight),
    MSA_MEMBER(loss),
    MSA_MEMBER(d_index_q),
    MSA_MEMBER(d_index_k),
};
#undef MSA_MEMBER

/// msa_args is flat: "batch.seqlens_k" is its seqlens_k.
std::string_view c_name(const Field& field) {
  constexpr std::string_view kPrefix = "batch.";
  return field.name.starts_with(kPrefix) ? field.name.substr(kPrefix.size()) : field.name;
}

/// Index of the member that holds a field.
std::size_t member_of(const Field& field) {
  const auto* const member =
      std::find_if(std::begin(kMembers), std::end(kMembers),
                   [name = c_name(field)](const Member& m) { return m.name == name; });
  return static_cast<std::size_t>(member - std::begin(kMembers));
}

/// A flag of the problem that plans outputs.
struct Flag {
  bool Outputs::*planned;
  std::int32_t msa_problem::*member;
  std::size_t offset;
};

#define MSA_FLAG(planned, member) \
  { &Outputs::planned, &msa_problem::member, offsetof(msa_problem, member) }
constexpr Flag kFlags[] = {
    MSA_FLAG(out, output),
    MSA_FLAG(lse, lse),
    MSA_FLAG(block_max, block_max),
    MSA_FLAG(chosen_scores, chosen_scores),
};
#undef MSA_FLAG

/// Where the flag lies in msa_problem; 0: the field has none.
std::size_t flag_of(const Field& field) {
  for (const Flag& flag : kFlags) {
    if (field.planned == flag.planned) return flag.offset;
  }
  return 0;
}

constexpr std::size_t kOps = std::size_t{MSA_OP_INDEX_LOSS} + 1;
constexpr std::size_t kMostFields = 32;

struct FieldTable {
  std::array<std::array<msa_field, kMostFields>, kOps> rows{};
  std::array<std::size_t, kOps> count{};
  std::array<std::array<bool, std::size(kMembers)>, kOps> takes{};

  FieldTable() {
    for (std::size_t op = 0; op < kOps; ++op) {
      for (const Field& field : fields_of(static_cast<Op>(op))) {
        const std::size_t member = member_of(field);
        takes[op][member] = true;
        rows[op][count[op]++] = {.name = c_name(field).data(),
                                 .offset = kMembers[member].offset,
                                 .role = static_cast<msa_role>(field.role),
                                 .parts = field.parts != nullptr,
                                 .element = to_string(field.element),
                                 .shape = field.shape.data(),
                                 .flag = flag_of(field)};
      }
    }
  }
};

/// Made at the first use, constant from then on.
const FieldTable& field_table() {
  static const FieldTable kTable;
  return kTable;
}

// ---- arguments ----

using PartList = std::array<Tensor, kMaxParts>;

/// Operands, and the memory of their lists, which only merges need.
struct ReadArgs {
  Operands operands{};
  std::optional<std::array<PartList, 2>> lists{};
};

Parts read_parts(const msa_parts& parts, const char* argument, PartList& list) {
  if (parts.count < 0 || parts.count > kMaxParts) {
    expect(argument, "0 to 64 parts", std::to_string(parts.count));
  }
  if (parts.count == 0) return {};
  required(parts.tensors, argument);
  for (std::size_t i = 0; i < static_cast<std::size_t>(parts.count); ++i) {
    list[i] = read_tensor(parts.tensors[i], argument);
  }
  return std::span<const Tensor>(list).first(static_cast<std::size_t>(parts.count));
}

/// One tensor of one rank more than a part has is all parts in one.
Parts stacked_or_list(const Parts& parts, const Field& field) {
  const auto letters = 1 + std::count(field.shape.begin(), field.shape.end(), ',');
  if (parts.size() == 1 && parts[0].rank == letters + 1) return Parts(parts[0]);
  return parts;
}

bool is_given(const msa_args& args, const Member& member) {
  const auto* const place = reinterpret_cast<const std::byte*>(&args) + member.offset;
  const bool parts =
      member.offset >= offsetof(msa_args, outs) && member.offset < offsetof(msa_args, out);
  return parts ? reinterpret_cast<const msa_parts*>(place)->count != 0
               : reinterpret_cast<const msa_tensor*>(place)->rank != 0;
}

/// Every member that is given must be a field of the operation.
void expect_no_strays(Op op, const msa_args& args) {
  const auto& takes = field_table().takes[static_cast<std::size_t>(op)];
  for (std::size_t i = 0; i < takes.size(); ++i) {
    if (takes[i] || !is_given(args, kMembers[i])) continue;
    expect(kMembers[i].name.data(),
           (std::string("none, as ") + to_string(op) + " takes no such tensor").c_str(), "one");
  }
}

/// Allocates nothing, so that msa_run does not.
void read_args(Op op, const msa_args* given, ReadArgs& read) {
  const msa_args args = known(given, kFirstArgsSize, kArgsSize, "args");
  expect_no_strays(op, args);
  const auto* const bytes = reinterpret_cast<const std::byte*>(&args);
  const auto& rows = field_table().rows[static_cast<std::size_t>(op)];
  const std::span<const Field> fields = fields_of(op);
  std::size_t lists = 0;
  for (std::size_t i = 0; i < fields.size(); ++i) {
    const Field& field = fields[i];
    const std::byte* const place = bytes + rows[i].offset;
    if (field.parts != nullptr) {
      if (!read.lists) read.lists.emplace();
      const auto& parts = *reinterpret_cast<const msa_parts*>(place);
      read.operands.*field.parts =
          stacked_or_list(read_parts(parts, rows[i].name, (*read.lists)[lists++]), field);
    } else {
      field.in(read.operands) =
          read_tensor(*reinterpret_cast<const msa_tensor*>(place), rows[i].name);
    }
  }
}

// ---- problems and settings ----

Settings read_settings(const msa_settings* given) {
  if (given == nullptr) return {};
  const msa_settings s = known(given, kFirstSettingsSize, kSettingsSize, "settings");
  Settings settings{.block_size = s.block_size,
                    .topk = s.topk,
                    .local_blocks = s.local_blocks,
                    .init_blocks = s.init_blocks,
                    .causal = s.causal != 0,
                    .kv_rounded = s.kv_rounded != 0,
                    .index_k_rounded = s.index_k_rounded != 0,
                    .filter_rotated = s.filter_rotated != 0,
                    .precision = read_precision(s.precision),
                    .accumulate = s.accumulate != 0,
                    .max_seqlen_q = s.max_seqlen_q,
                    .max_seqlen_k = s.max_seqlen_k,
                    .options = read_options(s.options)};
  if (s.softmax_scale_given != 0) settings.softmax_scale = s.softmax_scale;
  if (s.index_scale_given != 0) settings.index_scale = s.index_scale;
  return settings;
}

Problem read_problem(const msa_problem* given) {
  const msa_problem p = known(given, kFirstProblemSize, kProblemSize, "problem");
  Problem problem{.op = read_op(p.op),
                  .device = read_device(p.device_type, p.device_index, "device"),
                  .causal = p.causal != 0,
                  .bounds = {.batch = p.batch,
                             .total_q = p.total_q,
                             .max_seqlen_q = p.max_seqlen_q,
                             .max_seqlen_k = p.max_seqlen_k,
                             .page_size = p.page_size,
                             .parts = p.parts},
                  .attention = {.q = read_format(p.q, "q"),
                                .heads_q = p.heads_q,
                                .heads_kv = p.heads_kv,
                                .head_dim = p.head_dim,
                                .value_dim = p.value_dim},
                  .index = {.q = read_format(p.index_q, "index_q"),
                            .heads = p.index_heads,
                            .heads_k = p.index_heads_k,
                            .dim = p.index_dim},
                  .selection = {.block_size = p.block_size,
                                .topk = p.topk,
                                .local_blocks = p.local_blocks,
                                .init_blocks = p.init_blocks,
                                .precision = read_precision(p.precision)},
                  .outputs = {.dtype = read_dtype(p.out_dtype, "out_dtype")},
                  .gradients = {.accumulate = p.accumulate != 0},
                  .options = read_options(p.options)};
  for (const Flag& flag : kFlags) problem.outputs.*flag.planned = p.*flag.member != 0;
  // A struct from before gradients has 0 there, which is f32.
  problem.gradients.dtype = read_dtype(p.grad_dtype, "grad_dtype");
  if (p.softmax_scale_given != 0) problem.attention.softmax_scale = p.softmax_scale;
  if (p.index_scale_given != 0) problem.index.scale = p.index_scale;
  if (p.kv_given != 0) problem.attention.kv = read_format(p.kv, "kv");
  if (p.index_k_given != 0) problem.index.k = read_format(p.index_k, "index_k");
  if (p.index_filter_given != 0) problem.index.filter = read_format(p.index_filter, "index_filter");
  return problem;
}

const char* text_or_null(const std::string& text) { return text.empty() ? nullptr : text.c_str(); }

/// `strings` holds the texts that the result points to.
msa_problem write_problem(const Problem& p, const Options& strings) {
  return {.struct_size = kProblemSize,
          .op = static_cast<msa_op>(p.op),
          .device_type = static_cast<msa_device_type>(p.device.type),
          .device_index = p.device.index,
          .causal = p.causal,
          .batch = p.bounds.batch,
          .total_q = p.bounds.total_q,
          .max_seqlen_q = p.bounds.max_seqlen_q,
          .max_seqlen_k = p.bounds.max_seqlen_k,
          .page_size = p.bounds.page_size,
          .parts = p.bounds.parts,
          .q = write_format(p.attention.q),
          .kv = write_format(p.attention.kv.value_or(p.attention.q)),
          .heads_q = p.attention.heads_q,
          .heads_kv = p.attention.heads_kv,
          .head_dim = p.attention.head_dim,
          .value_dim = p.attention.value_dim,
          .softmax_scale = p.attention.softmax_scale.value_or(0.0f),
          .softmax_scale_given = p.attention.softmax_scale.has_value(),
          .index_q = write_format(p.index.q),
          .index_k = write_format(p.index.k.value_or(p.index.q)),
          .index_heads = p.index.heads,
          .index_heads_k = p.index.heads_k,
          .index_dim = p.index.dim,
          .block_size = p.selection.block_size,
          .topk = p.selection.topk,
          .local_blocks = p.selection.local_blocks,
          .init_blocks = p.selection.init_blocks,
          .out_dtype = static_cast<msa_dtype>(p.outputs.dtype),
          .output = p.outputs.out,
          .lse = p.outputs.lse,
          .block_max = p.outputs.block_max,
          .chosen_scores = p.outputs.chosen_scores,
          .kv_given = p.attention.kv.has_value(),
          .index_k_given = p.index.k.has_value(),
          .options = {.backend = text_or_null(strings.backend),
                      .isa = text_or_null(strings.isa),
                      .threads = p.options.threads,
                      .batch_invariant = p.options.batch_invariant},
          .index_filter = write_format(p.index.filter.value_or(Format{})),
          .index_filter_given = p.index.filter.has_value(),
          .precision = static_cast<std::int64_t>(p.selection.precision),
          .grad_dtype = static_cast<msa_dtype>(p.gradients.dtype),
          .accumulate = p.gradients.accumulate,
          .index_scale = p.index.scale.value_or(0.0f),
          .index_scale_given = p.index.scale.has_value()};
}

/// Writes into the caller's struct as much as he knows.
void write_known(const msa_problem& problem, msa_problem* out) {
  const std::size_t claimed = required(out, "problem")->struct_size;
  if (claimed < kFirstProblemSize) {
    core::fail(ErrorCode::InvalidArgument, "problem", "struct_size",
               std::to_string(kFirstProblemSize) + " or more, as MSA_PROBLEM_INIT sets it",
               std::to_string(claimed));
  }
  std::memcpy(out, &problem, std::min(claimed, kProblemSize));
  out->struct_size = claimed;
}

std::size_t give_text(char* text, std::size_t capacity, const std::string& whole) {
  copy_text(text, capacity, whole);
  return whole.size();
}

/// Functions that return a text have no status: what fails is the text.
template <class Body>
std::size_t text_of(char* text, std::size_t capacity, const Body& body) {
  msa_error error;
  std::size_t length = 0;
  if (guard(&error, [&] { length = give_text(text, capacity, body()); }) == MSA_OK) return length;
  copy_text(text, capacity, error.message);
  return std::strlen(error.message);
}

std::string support_text(const Support& support) {
  if (!support.error.empty()) return support.error;
  std::string text;
  for (const BackendAnswer& answer : support.backends) {
    text += answer.backend + ": " + (answer.accepts ? "yes" : answer.reason) + "\n";
  }
  return text;
}

// ---- ranks ----

constexpr std::size_t kPeersSize = MSA_STRUCT_SIZE(msa_peers, timeout_ms);

core::Peers read_peers(const msa_peers* given) {
  const msa_peers p = known(given, kPeersSize, kPeersSize, "peers");
  if (p.ranks < 1 || p.ranks > core::kMaxRanks) expect("ranks", "1 to 63", std::to_string(p.ranks));
  const auto ranks = static_cast<std::size_t>(p.ranks);
  return {.rank = p.rank,
          .ranks = p.ranks,
          .boxes = std::span(required(p.boxes, "boxes"), ranks),
          .pads = std::span(required(p.pads, "pads"), ranks),
          .timeout_ms = p.timeout_ms};
}

Tensor read_optional(const msa_tensor* tensor, const char* argument) {
  return tensor == nullptr ? Tensor{} : read_tensor(*tensor, argument);
}

const Field& output_named(Op op, std::string_view name) {
  for (const Field& field : fields_of(op)) {
    if (!field.is_input() && c_name(field) == name) return field;
  }
  expect("name", (std::string("an output of ") + to_string(op)).c_str(), std::string(name));
}

}  // namespace
}  // namespace msa

using namespace msa;  // NOLINT(google-build-using-namespace): the border between both worlds

extern "C" {

const char* msa_version(void) { return msa::version(); }

const char* msa_op_name(msa_op op) {
  return op < 0 || op > MSA_OP_INDEX_LOSS ? nullptr : msa::to_string(static_cast<Op>(op));
}

const char* msa_dtype_name(msa_dtype dtype) {
  return dtype < 0 || dtype > MSA_E2M1 ? nullptr : msa::to_string(static_cast<DType>(dtype));
}

int32_t msa_dtype_bits(msa_dtype dtype) {
  return dtype < 0 || dtype > MSA_E2M1 ? 0 : item_bits(static_cast<DType>(dtype));
}

size_t msa_fields(msa_op op, const msa_field** fields) {
  const bool known = op >= 0 && op <= MSA_OP_INDEX_LOSS;
  const std::size_t at = known ? static_cast<std::size_t>(op) : 0;
  if (fields != nullptr) *fields = known ? field_table().rows[at].data() : nullptr;
  return known ? field_table().count[at] : 0;
}

msa_status msa_problem_of(msa_op op, const msa_args* args, const msa_settings* settings,
                          msa_problem* problem, msa_error* error) {
  return guard(error, [&] {
    const Op operation = read_op(op);
    ReadArgs read;
    read_args(operation, args, read);
    const Problem p = problem_of(operation, read.operands, read_settings(settings));
    msa_problem written = write_problem(p, {});
    // The texts are the caller's own.
    if (settings != nullptr) written.options = settings->options;
    write_known(written, problem);
  });
}

msa_status msa_output_of(const msa_problem* problem, const msa_args* args, const char* name,
                         msa_tensor* tensor, msa_error* error) {
  return guard(error, [&] {
    const Problem p = read_problem(problem);
    ReadArgs read;
    read_args(p.op, args, read);
    const Field& field = output_named(p.op, required(name, "name"));
    write_tensor(output_of(p, read.operands, field), *required(tensor, "tensor"));
  });
}

size_t msa_supports(const msa_problem* problem, int32_t* supported, char* text, size_t capacity) {
  if (supported != nullptr) *supported = 0;
  return text_of(text, capacity, [&] {
    const Support support = supports(read_problem(problem));
    if (supported != nullptr) *supported = support.supported;
    return support_text(support);
  });
}

size_t msa_problem_text(const msa_problem* problem, char* text, size_t capacity) {
  return text_of(text, capacity, [&] { return msa::to_string(read_problem(problem)); });
}

uint64_t msa_problem_hash(const msa_problem* problem) {
  std::uint64_t hash = 0;
  guard(nullptr, [&] { hash = hash_value(read_problem(problem)); });
  return hash;
}

msa_status msa_plan_make(const msa_problem* problem, msa_plan** plan, msa_error* error) {
  return guard(error, [&] {
    msa_plan** const place = required(plan, "plan");
    *place = nullptr;
    *place = new msa_plan{.plan = make_plan(read_problem(problem))};
  });
}

msa_plan* msa_plan_share(msa_plan* plan) {
  if (plan != nullptr) plan->count.fetch_add(1, std::memory_order_relaxed);
  return plan;
}

void msa_plan_free(msa_plan* plan) {
  if (plan == nullptr || plan->count.fetch_sub(1, std::memory_order_acq_rel) != 1) return;
  delete plan;
}

msa_status msa_plan_problem(const msa_plan* plan, msa_problem* problem, msa_error* error) {
  return guard(error, [&] {
    const Problem& p = required(plan, "plan")->plan.problem();
    write_known(write_problem(p, p.options), problem);
  });
}

const char* msa_plan_backend(const msa_plan* plan) {
  return plan == nullptr ? nullptr : plan->plan.backend().c_str();
}

const char* msa_plan_isa(const msa_plan* plan) {
  return plan == nullptr ? nullptr : plan->plan.isa().c_str();
}

size_t msa_plan_workspace_bytes(const msa_plan* plan) {
  return plan == nullptr ? 0 : plan->plan.workspace_bytes();
}

size_t msa_plan_text(const msa_plan* plan, char* text, size_t capacity) {
  return text_of(text, capacity, [&] { return required(plan, "plan")->plan.to_string(); });
}

msa_status msa_run(const msa_plan* plan, const msa_args* args, void* workspace,
                   size_t workspace_bytes, void* stream, msa_error* error) {
  return guard(error, [&] {
    const Plan& p = required(plan, "plan")->plan;
    ReadArgs read;
    read_args(p.problem().op, args, read);
    run(p, read.operands, {workspace, workspace_bytes}, {stream});
  });
}

msa_status msa_run_once(msa_op op, const msa_args* args, const msa_settings* settings,
                        msa_error* error) {
  return guard(error, [&] {
    const Op operation = read_op(op);
    ReadArgs read;
    read_args(operation, args, read);
    run_once(operation, read.operands, read_settings(settings));
  });
}

msa_status msa_check(const msa_plan* plan, void* workspace, size_t workspace_bytes, void* stream,
                     msa_fault* fault, msa_error* error) {
  return guard(error, [&] {
    const Plan& p = required(plan, "plan")->plan;
    msa_fault& place = *required(fault, "fault");
    const std::optional<Fault> found = check(p, {workspace, workspace_bytes}, {stream});
    std::memset(&place, 0, sizeof place);
    if (!found) return;
    place.found = 1;
    place.request = found->request;
    place.row = found->row;
    copy_text(place.what, sizeof place.what, found->what);
  });
}

msa_status msa_peers_choose(const msa_peers* peers, int32_t dealt, int64_t first_blocks,
                            const msa_tensor* forced, const msa_tensor* block_ids,
                            const msa_tensor* own_ids, void* stream, msa_error* error) {
  return guard(error, [&] {
    const core::ChooseCall call{
        .peers = read_peers(peers),
        .dealt = dealt != 0,
        .first_blocks = first_blocks,
        .forced = read_optional(forced, "forced"),
        .block_ids = read_tensor(*required(block_ids, "block_ids"), "block_ids"),
        .own_ids = read_optional(own_ids, "own_ids")};
    core::validate(call);
    core::backends().front()->choose(call, {stream});
  });
}

msa_status msa_peers_join(const msa_peers* peers, const msa_tensor* out, const msa_tensor* lse,
                          void* stream, msa_error* error) {
  return guard(error, [&] {
    const core::JoinCall call{.peers = read_peers(peers),
                              .out = read_tensor(*required(out, "out"), "out"),
                              .lse = read_optional(lse, "lse")};
    core::validate(call);
    core::backends().front()->join(call, {stream});
  });
}

msa_status msa_peers_attend(const msa_peers* peers, void* const* states, const msa_tensor* forced,
                            const msa_tensor* last_keys, const msa_plan* plan, const msa_args* args,
                            void* workspace, size_t workspace_bytes, void* stream,
                            msa_error* error) {
  return guard(error, [&] {
    const Plan& p = required(plan, "plan")->plan;
    ReadArgs read;
    read_args(p.problem().op, args, read);
    core::AttendCall call{.peers = read_peers(peers),
                          .forced = read_optional(forced, "forced"),
                          .last_keys = read_tensor(*required(last_keys, "last_keys"), "last_keys")};
    call.states = std::span(required(states, "states"), call.peers.boxes.size());
    core::attend(p, read.operands, call, {workspace, workspace_bytes}, {stream});
  });
}

msa_status msa_peers_deal(int64_t rank, int64_t ranks, int64_t block_size, int64_t init_blocks,
                          int64_t local_blocks, int64_t columns_per_block,
                          const msa_tensor* seqlens_k, const msa_tensor* page_table,
                          const msa_tensor* candidates, const msa_tensor* last_keys,
                          const msa_tensor* forced, const msa_tensor* pages, void* stream,
                          msa_error* error) {
  return guard(error, [&] {
    const core::DealCall call{
        .rank = rank,
        .ranks = ranks,
        .block_size = block_size,
        .init_blocks = init_blocks,
        .local_blocks = local_blocks,
        .seqlens_k = read_tensor(*required(seqlens_k, "seqlens_k"), "seqlens_k"),
        .page_table = read_tensor(*required(page_table, "page_table"), "page_table"),
        .candidates = read_tensor(*required(candidates, "candidates"), "candidates"),
        .last_keys = read_tensor(*required(last_keys, "last_keys"), "last_keys"),
        .forced = read_optional(forced, "forced"),
        .pages = read_tensor(*required(pages, "pages"), "pages"),
        .columns_per_block = columns_per_block};
    core::validate(call);
    core::backends().front()->deal(call, {stream});
  });
}

size_t msa_info(char* text, size_t capacity) {
  return text_of(text, capacity, [] { return core::to_json(build_info()); });
}

}  // extern "C"
