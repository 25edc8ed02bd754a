// SPDX-License-Identifier: MIT
// libFuzzer target of the safetensors reader: any bytes are a typed error or a header that keeps
// every promise.
#include <cstdint>
#include <cstdlib>
#include <set>

#include "safetensors.h"

namespace {

using msa::safetensors::Entry;
using msa::safetensors::Header;

void require(bool condition) {
  if (!condition) std::abort();
}

std::uint64_t item_bytes(msa::DType dtype) {
  switch (dtype) {
    case msa::DType::I64:
      return 8;
    case msa::DType::F16:
    case msa::DType::BF16:
      return 2;
    default:
      return 4;
  }
}

/// Tensors lie one behind the other, fill the data, and hold what their shapes say.
void check(const Header& header, std::uint64_t file_bytes) {
  std::set<std::string> names;
  std::uint64_t at = 0;
  for (const Entry& entry : header.entries) {
    require(names.insert(entry.name).second);
    require(entry.begin == at && entry.end >= at && entry.end <= file_bytes);
    unsigned __int128 bytes = item_bytes(entry.dtype);
    for (const std::int64_t extent : entry.shape) {
      require(extent >= 0);
      bytes *= static_cast<std::uint64_t>(extent);
    }
    require(bytes == entry.end - entry.begin);
    at = entry.end;
  }
  require(at + msa::safetensors::kPrefixBytes <= file_bytes);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  try {
    check(msa::safetensors::parse_file({reinterpret_cast<const std::byte*>(data), size}), size);
  } catch (const msa::safetensors::FormatError&) {
  }
  return 0;
}
