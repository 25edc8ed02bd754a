// SPDX-License-Identifier: MIT
// Copies of a Data's buffers in a device's memory; see generate.h.
#include <cstddef>

#include "testkit/generate.h"

namespace msa::testkit {

Placement::Placement(Data& data, MemorySpace& space) : data_(data), space_(space) {
  if (space.device().type == DeviceType::Cpu) return;
  for (const Buffer& buffer : data.buffers()) {
    copies_.push_back(space.allocate(buffer.mapping_bytes()));
    space.copy_in(copies_.back(), buffer.mapping(), buffer.mapping_bytes());
  }
}

Placement::~Placement() {
  for (void* copy : copies_) space_.release(copy);
}

Operands Placement::prepare() {
  Operands operands = data_.prepare();
  if (copies_.empty()) return operands;
  const std::vector<Buffer>& buffers = data_.buffers();
  for (std::size_t i = 0; i < buffers.size(); ++i) {
    space_.copy_in(copies_[i], buffers[i].mapping(), buffers[i].mapping_bytes());
  }
  for_each_tensor(operands, [&](Tensor& tensor) {
    const auto* at = static_cast<std::byte*>(tensor.data);
    tensor.device = space_.device();
    for (std::size_t i = 0; i < buffers.size(); ++i) {
      const std::byte* begin = buffers[i].mapping();
      if (at < begin || at >= begin + buffers[i].mapping_bytes()) continue;
      tensor.data = static_cast<std::byte*>(copies_[i]) + (at - begin);
      return;
    }
  });
  return operands;
}

void Placement::fetch() {
  space_.synchronize();
  const std::vector<Buffer>& buffers = data_.buffers();
  for (std::size_t i = 0; i < copies_.size(); ++i) {
    space_.copy_out(buffers[i].mapping(), copies_[i], buffers[i].mapping_bytes());
  }
}

}  // namespace msa::testkit
