// SPDX-License-Identifier: MIT
// A file that appears whole under its name or not at all: written beside it, synced, then renamed
// onto it.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>

namespace msa {

/// The file could not be written; nothing appeared under its name.
class WriteError : public std::runtime_error {
  using std::runtime_error::runtime_error;
};

class PendingFile {
 public:
  explicit PendingFile(const std::string& path);
  ~PendingFile();
  PendingFile(const PendingFile&) = delete;
  PendingFile& operator=(const PendingFile&) = delete;

  void append(const void* data, std::uint64_t bytes);
  void append(std::string_view text) { append(text.data(), text.size()); }
  /// Gives the file its name. Without it the destructor leaves nothing behind.
  void publish();

 private:
  std::string path_;
  std::string temporary_;
  int fd_ = -1;
  bool done_ = false;
};

}  // namespace msa
