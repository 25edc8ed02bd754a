// SPDX-License-Identifier: MIT
// Overlap of strided views by arithmetic on strides.
#include "core/overlap.h"

#include <algorithm>
#include <array>

namespace msa::core {
namespace {

// No process has more address space than this on the processors and GPUs of today.
constexpr std::int64_t kAddressSpace = std::int64_t{1} << 56;

struct Dim {
  std::int64_t extent = 1;
  std::int64_t stride = 0;  // bits: elements may be smaller than a byte
};

// The dimensions that move the address, innermost first. Extents of 1 and strides of 0 do not.
struct Dims {
  std::array<Dim, kMaxRank> dim{};
  std::size_t count = 0;
};

Dims moving_dims(const Tensor& t) {
  Dims dims;
  for (std::size_t i = 0; i < static_cast<std::size_t>(t.rank); ++i) {
    if (t.shape[i] <= 1 || t.stride[i] <= 0) continue;
    const std::int64_t stride = t.stride[i] * item_bits(t.dtype);
    std::size_t place = dims.count++;
    for (; place > 0 && dims.dim[place - 1].stride > stride; --place) {
      dims.dim[place] = dims.dim[place - 1];
    }
    dims.dim[place] = {t.shape[i], stride};
  }
  return dims;
}

bool empty(const Tensor& t) {
  return std::any_of(t.shape.begin(), t.shape.begin() + t.rank,
                     [](std::int64_t extent) { return extent == 0; });
}

std::uintptr_t address(const Tensor& t) { return reinterpret_cast<std::uintptr_t>(t.data); }

std::int64_t bytes_of(const Tensor& t) {
  std::int64_t bytes = 0;
  byte_extent(t, bytes);
  return bytes;
}

// Bits that the dimensions inside `period` span, if every other dimension is a multiple of the
// period; else 0.
std::int64_t span_within(const Tensor& t, std::int64_t period) {
  std::int64_t span = item_bits(t.dtype);
  const Dims dims = moving_dims(t);
  for (std::size_t i = 0; i < dims.count; ++i) {
    if (dims.dim[i].stride < period) {
      span += (dims.dim[i].extent - 1) * dims.dim[i].stride;
    } else if (dims.dim[i].stride % period != 0) {
      return 0;
    }
  }
  return span;
}

// All bytes of a lie at [a0, a0 + a_span) modulo the period, those of b likewise: disjoint arcs
// share nothing. A period that is no whole number of bytes tells nothing.
bool apart_modulo(const Tensor& a, const Tensor& b, std::int64_t period_bits) {
  const std::int64_t period = period_bits / 8;
  const std::int64_t a_span = (span_within(a, period_bits) + 7) / 8;
  const std::int64_t b_span = (span_within(b, period_bits) + 7) / 8;
  if (period_bits % 8 != 0 || a_span == 0 || b_span == 0) return false;
  const std::uintptr_t p = static_cast<std::uintptr_t>(period);
  const std::int64_t gap = static_cast<std::int64_t>((address(b) % p + p - address(a) % p) % p);
  return gap >= a_span && gap <= period - b_span;
}

bool apart_by_some_stride(const Tensor& a, const Tensor& b, const Tensor& periods_of) {
  const Dims dims = moving_dims(periods_of);
  for (std::size_t i = 0; i < dims.count; ++i) {
    if (apart_modulo(a, b, dims.dim[i].stride)) return true;
  }
  return false;
}

}  // namespace

bool element_count(const Tensor& t, std::int64_t& count) {
  count = 1;
  if (empty(t)) {
    count = 0;
    return true;
  }
  for (std::size_t i = 0; i < static_cast<std::size_t>(t.rank); ++i) {
    if (__builtin_mul_overflow(count, t.shape[i], &count)) return false;
  }
  return true;
}

bool byte_extent(const Tensor& t, std::int64_t& bytes) {
  bytes = 0;
  if (empty(t)) return true;
  std::int64_t last = 0;
  for (std::size_t i = 0; i < static_cast<std::size_t>(t.rank); ++i) {
    std::int64_t reach = 0;
    if (__builtin_mul_overflow(t.shape[i] - 1, t.stride[i], &reach)) return false;
    if (__builtin_add_overflow(last, reach, &last)) return false;
  }
  std::int64_t elements = 0;
  if (__builtin_add_overflow(last, std::int64_t{1}, &elements)) return false;
  std::int64_t bits = 0;
  if (__builtin_mul_overflow(elements, item_bits(t.dtype), &bits)) return false;
  bytes = bits / 8 + (bits % 8 != 0 ? 1 : 0);
  std::uintptr_t end = 0;
  return bytes <= kAddressSpace &&
         !__builtin_add_overflow(address(t), static_cast<std::uintptr_t>(bytes), &end);
}

bool overlaps_itself(const Tensor& t) {
  if (empty(t)) return false;
  for (std::size_t i = 0; i < static_cast<std::size_t>(t.rank); ++i) {
    if (t.shape[i] > 1 && t.stride[i] == 0) return true;
  }
  const Dims dims = moving_dims(t);
  std::int64_t span = item_bits(t.dtype);
  for (std::size_t i = 0; i < dims.count; ++i) {
    if (dims.dim[i].stride < span) return true;
    span += (dims.dim[i].extent - 1) * dims.dim[i].stride;
  }
  return false;
}

bool overlap(const Tensor& a, const Tensor& b) {
  const std::int64_t a_bytes = bytes_of(a);
  const std::int64_t b_bytes = bytes_of(b);
  if (a_bytes == 0 || b_bytes == 0) return false;
  if (address(a) + static_cast<std::uintptr_t>(a_bytes) <= address(b)) return false;
  if (address(b) + static_cast<std::uintptr_t>(b_bytes) <= address(a)) return false;
  return !apart_by_some_stride(a, b, a) && !apart_by_some_stride(a, b, b);
}

}  // namespace msa::core
