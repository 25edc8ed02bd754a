// SPDX-License-Identifier: MIT
#include "tensors.h"

#include <sys/mman.h>

#include <algorithm>

namespace msa::cli {

Buffer::Buffer(std::uint64_t bytes) : bytes_(bytes) {
  // Empty tensors get an address too.
  const std::uint64_t mapped = std::max<std::uint64_t>(bytes, 1);
  void* data = ::mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (data == MAP_FAILED) throw std::bad_alloc();
  ::madvise(data, mapped,
            MADV_HUGEPAGE);  // long streams lose bandwidth to small pages; advice may be ignored
  data_ = {data, Unmap{mapped}};
}

void Buffer::Unmap::operator()(void* p) const noexcept {
  if (p != nullptr) ::munmap(p, bytes);
}

Tensor view_of(const void* data, DType dtype, const std::vector<std::int64_t>& shape) {
  Tensor tensor;
  tensor.data = const_cast<void*>(data);
  tensor.dtype = dtype;
  tensor.rank = static_cast<int>(shape.size());
  std::int64_t stride = 1;
  for (std::size_t i = shape.size(); i-- > 0;) {
    tensor.shape[i] = shape[i];
    tensor.stride[i] = stride;
    stride *= std::max<std::int64_t>(shape[i], 1);
  }
  return tensor;
}

OwnedTensor::OwnedTensor(DType dtype, const std::vector<std::int64_t>& shape) {
  std::uint64_t bytes = static_cast<std::uint64_t>(size_in_bytes(dtype, 1));
  for (const std::int64_t extent : shape) {
    if (extent < 0 || __builtin_mul_overflow(bytes, static_cast<std::uint64_t>(extent), &bytes)) {
      throw std::bad_alloc();
    }
  }
  memory = Buffer(bytes);
  view = view_of(memory.data(), dtype, shape);
}

}  // namespace msa::cli
