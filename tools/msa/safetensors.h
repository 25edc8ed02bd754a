// SPDX-License-Identifier: MIT
// A strict reader and an atomic writer of safetensors files. The reader believes nothing: every
// name, dtype, shape and offset is checked before a byte of data is touched. Shared by the command
// line and the fuzzer; knows no operation.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "msa/tensor.h"

namespace msa::safetensors {

inline constexpr std::uint64_t kMaxHeaderBytes = 100ull << 20;
inline constexpr std::size_t kMaxRank = 8;
inline constexpr std::size_t kPrefixBytes = 8;  // length of the header, little endian

/// The file is not what it should be. The message names the tensor and the values at odds.
class FormatError : public std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Entry {
  std::string name;
  DType dtype = DType::F32;
  std::vector<std::int64_t> shape;
  std::uint64_t begin = 0;  // bytes from the start of the data
  std::uint64_t end = 0;
};

struct Header {
  std::vector<Entry> entries;  // in the order of their data, without gap or overlap
  std::map<std::string, std::string> metadata;
};

/// Checks a whole header: `json` is the text behind the 8-byte prefix, `data_bytes` what the file
/// holds behind it.
Header parse_header(std::string_view json, std::uint64_t data_bytes);

/// The same for a file in memory, prefix included.
Header parse_file(std::span<const std::byte> file);

/// An open file whose header has been checked.
class File {
 public:
  explicit File(std::string path);
  ~File();
  File(const File&) = delete;
  File& operator=(const File&) = delete;

  const Header& header() const noexcept { return header_; }
  const std::string& path() const noexcept { return path_; }
  /// The entry of that name, or null.
  const Entry* find(std::string_view name) const noexcept;
  /// Reads the data of an entry; `to` holds end - begin bytes.
  void read(const Entry& entry, void* to) const;

 private:
  void read_at(std::uint64_t offset, void* to, std::uint64_t bytes, const std::string& what) const;

  std::string path_;
  int fd_ = -1;
  std::uint64_t data_begin_ = 0;
  Header header_;
};

/// A dense row-major tensor to be written.
struct View {
  std::string name;
  DType dtype = DType::F32;
  std::vector<std::int64_t> shape;
  const void* data = nullptr;
};

/// Writes a file that appears whole under `path` or not at all; throws WriteError.
void write(const std::string& path, std::span<const View> tensors,
           const std::map<std::string, std::string>& metadata);

/// "F32", "BF16", ...; throws std::invalid_argument for a dtype that files do not hold.
const char* dtype_name(DType dtype);

/// A name from a file in quotes, safe to print: control bytes and quotes are escaped, long names
/// are cut.
std::string printable(std::string_view name);

}  // namespace msa::safetensors
