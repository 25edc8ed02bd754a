// SPDX-License-Identifier: MIT
// The checks of one tensor, and of what it may share memory with.
#include "core/checker.h"

#include "core/fail.h"
#include "core/overlap.h"

namespace msa::core {
namespace {

std::string text(const Extent& e) {
  if (e.low == e.high) return std::to_string(e.low);
  if (e.high == kNoLimit) return "at least " + std::to_string(e.low);
  return std::to_string(e.low) + " to " + std::to_string(e.high);
}

std::string dimension(std::size_t i) { return "dimension " + std::to_string(i); }

std::size_t rank_of(const Tensor& t) { return static_cast<std::size_t>(t.rank); }

void check_shape(const Argument& a, const Shape& expected) {
  const Tensor& t = *a.tensor;
  if (t.rank != expected.rank) {
    reject(a, "", rank_text(expected.rank, t.rank), "rank " + std::to_string(t.rank));
  }
  for (std::size_t i = 0; i < rank_of(t); ++i) {
    const Extent& e = expected.extent[i];
    if (t.shape[i] >= e.low && t.shape[i] <= e.high) continue;
    reject(a, dimension(i), text(e), std::to_string(t.shape[i]));
  }
}

void check_strides(const Argument& a, Innermost innermost) {
  const Tensor& t = *a.tensor;
  for (std::size_t i = 0; i < rank_of(t); ++i) {
    if (t.stride[i] >= 0) continue;
    reject(a, "stride of " + dimension(i), "at least 0", std::to_string(t.stride[i]));
  }
  const std::size_t last = rank_of(t) - 1;
  for (std::size_t i = 0; i < last && t.dtype == DType::E2M1; ++i) {
    if (t.shape[i] <= 1 || t.stride[i] % 2 == 0) continue;
    reject(a, "stride of " + dimension(i), "an even one, as two elements share a byte",
           std::to_string(t.stride[i]));
  }
  if (innermost == Innermost::Dense && t.shape[last] > 1 && t.stride[last] != 1) {
    reject(a, "stride of " + dimension(last), "1", std::to_string(t.stride[last]));
  }
}

std::uintptr_t bytes_beyond(const void* data, std::uintptr_t alignment) {
  return reinterpret_cast<std::uintptr_t>(data) % alignment;
}

std::string multiple_of(std::uintptr_t alignment) {
  return "an address that is a multiple of " + std::to_string(alignment);
}

void check_memory(const Argument& a) {
  const Tensor& t = *a.tensor;
  std::int64_t count = 0;
  std::int64_t bytes = 0;
  if (!element_count(t, count) || !byte_extent(t, bytes)) {
    reject(a, "", "elements inside the address space", to_string(t));
  }
  if (count == 0) return;
  if (t.data == nullptr) {
    reject(a, "pointer", "the address of " + std::to_string(count) + " elements", "null");
  }
  const std::uintptr_t item = static_cast<std::uintptr_t>(size_in_bytes(t.dtype, 1));
  const std::uintptr_t beyond = bytes_beyond(t.data, item);
  if (beyond != 0)
    reject(a, "pointer", multiple_of(item), std::to_string(beyond) + " bytes beyond one");
}

}  // namespace

std::string Argument::text() const {
  return part < 0 ? name : std::string(name) + "[" + std::to_string(part) + "]";
}

std::string rank_text(int expected, int given) {
  const bool batched = expected == 3 && given == 4;  // what callers of padded batches give first
  return "rank " + std::to_string(expected) +
         (batched ? " (the rows of all requests one after the other)" : "");
}

void reject(const Argument& a, const std::string& where, const std::string& expected,
            const std::string& given) {
  fail(ErrorCode::InvalidArgument, a.text(), where, expected, given);
}

void Checker::check(const Argument& a, const Expected& expected) const {
  const Tensor& t = *a.tensor;
  if (!t) reject(a, "", std::string("a tensor of ") + to_string(expected.dtype), "none");
  check_shape(a, expected.shape);
  if (t.dtype != expected.dtype) {
    reject(a, "dtype", to_string(expected.dtype), to_string(t.dtype));
  }
  if (t.device != device_) reject(a, "device", to_string(device_), to_string(t.device));
  check_strides(a, expected.innermost);
  check_memory(a);
}

void Checker::input(const Argument& a, const Expected& expected) {
  check(a, expected);
  kept_[count_++] = a;
}

void Checker::output(const char* name, const Tensor& tensor, const Expected& expected,
                     const Tensor* twin) {
  const Argument a{name, -1, &tensor};
  check(a, expected);
  if (overlaps_itself(tensor)) {
    reject(a, "strides", "elements that do not overlap", to_string(tensor));
  }
  const bool in_place = twin != nullptr && *twin == tensor;
  for (std::size_t i = 0; i < count_; ++i) {
    if (in_place && kept_[i].tensor == twin) continue;
    if (overlap(tensor, *kept_[i].tensor)) {
      reject(a, "", "memory apart from " + kept_[i].text(), "memory that overlaps it");
    }
  }
  kept_[count_++] = a;
}

void Checker::workspace(Workspace w, std::size_t needed) const {
  const auto refuse = [](const std::string& where, const std::string& expected,
                         const std::string& given) {
    fail(ErrorCode::Workspace, "workspace", where, expected, given);
  };
  if (needed == 0) return;
  // No text before something is wrong: run allocates nothing.
  const auto size = [needed] { return "at least " + std::to_string(needed) + " bytes"; };
  if (w.data == nullptr) refuse("", size(), "null");
  if (w.bytes < needed) refuse("", size(), std::to_string(w.bytes));
  const std::uintptr_t beyond = bytes_beyond(w.data, kWorkspaceAlignment);
  if (beyond != 0) {
    refuse("pointer", multiple_of(kWorkspaceAlignment),
           std::to_string(beyond) + " bytes beyond one");
  }
  Tensor memory{.data = w.data, .dtype = DType::I8, .rank = 1};
  memory.shape[0] = static_cast<std::int64_t>(needed);
  memory.stride[0] = 1;
  for (std::size_t i = 0; i < count_; ++i) {
    if (!overlap(memory, *kept_[i].tensor)) continue;
    refuse("", "memory apart from " + kept_[i].text(), "memory that overlaps it");
  }
}

}  // namespace msa::core
