// SPDX-License-Identifier: MIT
#include "cuda/tensor_map.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <string>

#include "cuda/batch.h"
#include "cuda/device.h"
#include "msa/error.h"

namespace msa::cuda {
namespace {

using Encode = CUresult (*)(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*, const cuuint64_t*,
                            const cuuint64_t*, const cuuint32_t*, const cuuint32_t*,
                            CUtensorMapInterleave, CUtensorMapSwizzle, CUtensorMapL2promotion,
                            CUtensorMapFloatOOBfill);

constexpr int kRank = 4;
constexpr std::uint64_t kMaxStride = std::uint64_t{1} << 40;  // bytes, exclusive

struct Dimension {
  std::int64_t extent = 1;
  std::int64_t stride = 0;  // items; of no meaning where the extent is 1
};

Encode encoder() {
  static const Encode encode =
      std::bit_cast<Encode>(driver_entry_point("cuTensorMapEncodeTiled", 12000));
  return encode;
}

constexpr std::int64_t kPanelBytes = 128;  // of a swizzled row

std::int64_t bytes_of(const Tensor& tensor, std::int64_t items) {
  return items * bits_of(storage_of(tensor.dtype)) / 8;
}

/// Items of a swizzled row.
std::int64_t panel_items(const Tensor& tensor) {
  return kPanelBytes * 8 / bits_of(storage_of(tensor.dtype));
}

CUtensorMapDataType type_of(const Tensor& tensor) {
  switch (tensor.dtype) {
    case DType::BF16:
      return CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
    case DType::F16:
      return CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
    default:
      return CU_TENSOR_MAP_DATA_TYPE_UINT8;
  }
}

[[noreturn]] void refuse(const Tensor& tensor, const char* argument, const std::string& why) {
  throw Error(ErrorCode::InvalidArgument, argument,
              std::string(argument) + ": " + why + ", got " + to_string(tensor));
}

/// The runtime binds a device's context to a thread on its first call that needs one; the driver's
/// own functions do not.
void bind_context() {
  int device = 0;
  MSA_CUDA_CHECK(cudaGetDevice(&device));
  MSA_CUDA_CHECK(cudaSetDevice(device));
}

bool holds_nothing(const Tensor& tensor) {
  return std::any_of(tensor.shape.begin(), tensor.shape.begin() + tensor.rank,
                     [](std::int64_t extent) { return extent == 0; });
}

/// `dims` innermost first; `box` items of each.
CUtensorMap encode(const Tensor& tensor, const std::array<Dimension, kRank>& dims,
                   const std::array<std::int64_t, kRank>& box, CUtensorMapSwizzle swizzle,
                   const char* argument) {
  if (const char* why = copy_engine_refuses(tensor); *why != '\0') refuse(tensor, argument, why);
  std::array<cuuint64_t, kRank> extents{};
  std::array<cuuint64_t, kRank - 1> strides{};
  std::array<cuuint32_t, kRank> boxes{};
  std::array<cuuint32_t, kRank> steps{};
  steps.fill(1);
  for (int i = 0; i < kRank; ++i) {
    extents[i] = static_cast<cuuint64_t>(std::max<std::int64_t>(1, dims[i].extent));
    boxes[i] = static_cast<cuuint32_t>(box[i]);
    // The stride of an extent of 1 is never used, but must be a legal one.
    if (i > 0)
      strides[i - 1] =
          dims[i].extent > 1 ? static_cast<cuuint64_t>(bytes_of(tensor, dims[i].stride)) : 16;
  }
  // A tensor without elements may have no address, which the driver refuses; nothing reads it.
  alignas(16) static const std::byte nothing{};
  void* const address = holds_nothing(tensor) ? const_cast<std::byte*>(&nothing) : tensor.data;
  CUtensorMap map{};
  const auto attempt = [&] {
    return encoder()(&map, type_of(tensor), kRank, address, extents.data(), strides.data(),
                     boxes.data(), steps.data(), CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle,
                     CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  };
  CUresult result = attempt();
  if (result == CUDA_ERROR_INVALID_CONTEXT) {  // the first call of this thread
    bind_context();
    result = attempt();
  }
  if (result != CUDA_SUCCESS) {
    refuse(tensor, argument,
           "the copy engine takes no such tensor (driver error " + std::to_string(result) + ")");
  }
  return map;
}

std::array<Dimension, kRank> key_dimensions(const Tensor& keys) {
  const bool paged = keys.rank == 4;
  const int token = paged ? 1 : 0;
  const int head = token + 1;
  const int dim = token + 2;
  return {{{keys.shape[dim], 1},
           {keys.shape[token], keys.stride[token]},
           {keys.shape[head], keys.stride[head]},
           {paged ? keys.shape[0] : 1, paged ? keys.stride[0] : 0}}};
}

}  // namespace

const char* copy_engine_refuses(const Tensor& tensor) {
  if (tensor.dtype != DType::BF16 && tensor.dtype != DType::F16 && tensor.dtype != DType::E4M3 &&
      tensor.dtype != DType::E2M1 && tensor.dtype != DType::I8)
    return "expected bf16, f16, e4m3, e2m1 or i8";
  if (holds_nothing(tensor)) return "";
  if (reinterpret_cast<std::uintptr_t>(tensor.data) % 16 != 0)
    return "expected an address that is a multiple of 16";
  for (int i = 0; i + 1 < tensor.rank; ++i) {
    if (tensor.shape[i] <= 1) continue;
    const auto bytes = static_cast<std::uint64_t>(bytes_of(tensor, tensor.stride[i]));
    if (bytes % 16 != 0) return "expected strides that are multiples of 16 bytes";
    if (bytes >= kMaxStride) return "expected strides below 2^40 bytes";
  }
  return "";
}

CUtensorMap make_key_map(const Tensor& keys, int box_tokens, const char* argument) {
  std::array<Dimension, kRank> dims = key_dimensions(keys);
  if (keys.dtype == DType::E2M1) {  // counted in bytes: rows of 64, each a swizzled row of its own
    dims[0].extent /= 2;
    return encode(keys, dims, {kPanelBytes / 2, box_tokens, 1, 1}, CU_TENSOR_MAP_SWIZZLE_64B,
                  argument);
  }
  return encode(keys, dims, {panel_items(keys), box_tokens, 1, 1}, CU_TENSOR_MAP_SWIZZLE_128B,
                argument);
}

CUtensorMap make_row_map(const Tensor& keys, int box_tokens, const char* argument) {
  std::array<Dimension, kRank> dims = key_dimensions(keys);
  if (keys.dtype == DType::E2M1) dims[0].extent /= 2;  // counted in bytes
  return encode(keys, dims, {dims[0].extent, box_tokens, 1, 1}, CU_TENSOR_MAP_SWIZZLE_NONE,
                argument);
}

CUtensorMap make_query_map(const Tensor& q, std::int64_t heads_kv, int box_heads, int box_tokens,
                           const char* argument) {
  const std::int64_t group = q.shape[1] / heads_kv;
  const std::array<Dimension, kRank> dims{{{q.shape[2], 1},
                                           {group, q.stride[1]},
                                           {q.shape[0], q.stride[0]},
                                           {heads_kv, group * q.stride[1]}}};
  return encode(q, dims, {panel_items(q), box_heads, box_tokens, 1}, CU_TENSOR_MAP_SWIZZLE_128B,
                argument);
}

}  // namespace msa::cuda
