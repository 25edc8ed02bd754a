// SPDX-License-Identifier: MIT
// Ways to make a good call illegal; each is one, whatever the operation and the contents.
#include "spoil.h"

#include <algorithm>
#include <vector>

namespace msa::fuzz {

namespace {

using testkit::Operands;

bool is_empty(const Tensor& t) {
  return std::any_of(t.shape.begin(), t.shape.begin() + t.rank,
                     [](std::int64_t extent) { return extent == 0; });
}

/// A dimension of more than one element, or -1.
int long_dimension(Choices& choices, const Tensor& t) {
  std::vector<int> dims;
  for (int d = 0; d < t.rank; ++d) {
    if (t.shape[d] > 1) dims.push_back(d);
  }
  if (dims.empty()) return -1;
  return dims[static_cast<std::size_t>(choices.below(static_cast<std::int64_t>(dims.size())))];
}

std::string spoil_type(Choices& choices, Tensor& t) {
  switch (choices.below(5)) {
    case 0:
      t.dtype = t.dtype == DType::I64 ? DType::I32 : DType::I64;
      return "dtype i64";
    case 1:
      t.dtype = t.dtype == DType::E4M3 ? DType::I8 : DType::E4M3;
      return std::string("dtype ") + to_string(t.dtype);
    case 2:
      t.device = {DeviceType::Cuda, 0};
      return "device cuda:0";
    case 3:
      t.rank = choices.pick({kMaxRank + 1, -1});
      return "rank " + std::to_string(t.rank);
    default:
      t.rank = t.rank == 1 ? 2 : t.rank - 1;
      t.shape[1] = std::max<std::int64_t>(t.shape[1], 2);
      return "rank " + std::to_string(t.rank);
  }
}

std::string spoil_memory(Choices& choices, Tensor& t, bool output) {
  if (is_empty(t)) return "";
  const int dim = long_dimension(choices, t);
  switch (choices.below(5)) {
    case 0:
      t.data = nullptr;
      return "null";
    case 1:
      if (size_in_bytes(t.dtype, 1) == 1) return "";  // nothing is out of step with bytes
      t.data = static_cast<char*>(t.data) + 1;
      return "one byte on";
    case 2:
      if (dim < 0) return "";
      t.stride[dim] = -t.stride[dim] - 1;
      return "a negative stride";
    case 3:
      if (dim < 0) return "";
      t.stride[dim] = std::int64_t{1} << 61;
      return "a stride of 2^61";
    default:
      if (dim < 0 || !output) return "";
      t.stride[dim] = 0;
      return "an output of stride 0";
  }
}

std::string spoil_shape(Choices& choices, Tensor& t, bool vectors) {
  if (choices.one_in(2)) {
    t.shape[choices.below(t.rank)] = -1 - choices.below(4);
    return "a negative extent";
  }
  if (!vectors) return "";
  const int last = t.rank - 1;
  if (choices.one_in(2)) {
    t.shape[last - 1] += 1;  // heads
    return "one head more";
  }
  if (choices.one_in(2) && t.shape[last] > 1) {
    t.stride[last] = 2;
    return "an innermost stride of 2";
  }
  t.shape[last] += 1;
  return "one element more in each row";
}

std::string spoil_workspace(Choices& choices, Workspace& workspace) {
  if (workspace.bytes == 0) return "";
  switch (choices.below(3)) {
    case 0:
      workspace.bytes -= 1;
      return "workspace: a byte short";
    case 1:
      workspace.data = static_cast<char*>(workspace.data) + 1;
      return "workspace: misaligned";
    default:
      workspace.data = nullptr;
      return "workspace: null";
  }
}

/// A scale that is missing, or one that the format does not have.
std::string spoil_scales(Choices& choices, Operands& o) {
  static const float kOne = 1.0f;
  if (!o.q || !o.k) return "";
  const bool keys = !o.out || choices.one_in(2);  // block maxima alone need no values
  const bool global = choices.one_in(2);
  Tensor& scale = keys     ? global ? o.k_global_scale : o.k_scale
                  : global ? o.v_global_scale
                           : o.v_scale;
  const std::string name = std::string(keys ? "k_" : "v_") + (global ? "global_scale" : "scale");
  if (scale) {
    scale = {};
    return name + ": missing";
  }
  scale = make_tensor(&kOne, DType::F32, {1});
  return name + ": stray";
}

/// Half a filter, or one that the problem does not have; a scale of index keys likewise.
std::string spoil_filter(Choices& choices, Operands& o) {
  if (!o.index_k) return "";
  if (choices.one_in(3)) {
    static const float kOne = 1.0f;
    const bool global = choices.one_in(2);
    Tensor& scale = global ? o.index_k_global_scale : o.index_k_scale;
    const bool given = static_cast<bool>(scale);
    scale = given ? Tensor{} : make_tensor(&kOne, DType::F32, {1});
    return std::string(global ? "index_k_global_scale: " : "index_k_scale: ") +
           (given ? "missing" : "stray");
  }
  const bool codes = choices.one_in(2);
  Tensor& tensor = codes ? o.index_k8 : o.index_k8_bounds;
  const std::string name = codes ? "index_k8" : "index_k8_bounds";
  if (tensor) {
    tensor = {};
    return name + ": missing";
  }
  tensor = o.index_k;
  return name + ": stray";
}

/// Head vectors, whose innermost stride is 1 and whose two last extents are planned.
std::vector<Tensor*> vectors_of(Operands& o) {
  std::vector<Tensor*> tensors{&o.q, &o.k, &o.v, &o.index_q, &o.index_k, &o.index_k8, &o.out};
  for (Tensor& part : o.part_outs) tensors.push_back(&part);
  return tensors;
}

std::string overlap(Choices& choices, Operands& o) {
  const bool second = choices.one_in(2);
  if (second && o.out && o.lse && !is_empty(o.out)) {
    o.lse.data = o.out.data;
    return "lse inside out";
  }
  Tensor& output = o.out ? o.out : (o.block_ids ? o.block_ids : o.scores);
  const Tensor& input = o.q ? o.q : (o.index_q ? o.index_q : o.scores_in);
  if (!output || !input || is_empty(output) || is_empty(input)) return "";
  output.data = input.data;
  return "an output on an input";
}

}  // namespace

std::string spoil(Choices& choices, Operands& o, Workspace& workspace) {
  switch (choices.below(10)) {
    case 0:
      return spoil_workspace(choices, workspace);
    case 1:
      return overlap(choices, o);
    case 8:
      return spoil_scales(choices, o);
    case 9:
      return spoil_filter(choices, o);
    default:
      break;
  }
  std::vector<Tensor*> given;
  testkit::for_each_tensor(o, [&](Tensor& t) { given.push_back(&t); });
  const auto index =
      static_cast<std::size_t>(choices.below(static_cast<std::int64_t>(given.size())));
  Tensor& tensor = *given[index];
  const bool output = index >= testkit::first_output(o);
  const std::vector<Tensor*> vectors = vectors_of(o);
  const bool is_vector = std::find(vectors.begin(), vectors.end(), &tensor) != vectors.end();
  const std::string before = to_string(tensor);
  std::string how;
  switch (choices.below(3)) {
    case 0:
      how = spoil_type(choices, tensor);
      break;
    case 1:
      how = spoil_memory(choices, tensor, output);
      break;
    default:
      how = spoil_shape(choices, tensor, is_vector);
      break;
  }
  return how.empty() ? how : "tensor " + std::to_string(index) + " " + before + ": " + how;
}

}  // namespace msa::fuzz
