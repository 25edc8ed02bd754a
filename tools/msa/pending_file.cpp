// SPDX-License-Identifier: MIT
#include "pending_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

namespace msa {
namespace {

[[noreturn]] void fail(const std::string& path, const std::string& what) {
  throw WriteError(path + ": " + what + ": " + std::strerror(errno));
}

}  // namespace

PendingFile::PendingFile(const std::string& path) : path_(path) {
  struct stat status {};
  if (::stat(path.c_str(), &status) == 0 && !S_ISREG(status.st_mode)) {
    throw WriteError(path + ": not a regular file");
  }
  // Names of an earlier process that was killed may be taken.
  for (int attempt = 0; attempt < 1000; ++attempt) {
    temporary_ = path + ".tmp" + std::to_string(::getpid()) + "-" + std::to_string(attempt);
    fd_ = ::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (fd_ >= 0) return;
    if (errno != EEXIST) break;
  }
  fail(path_, "cannot create " + temporary_);
}

PendingFile::~PendingFile() {
  if (fd_ >= 0) ::close(fd_);
  if (!done_) ::unlink(temporary_.c_str());
}

void PendingFile::append(const void* data, std::uint64_t bytes) {
  const char* from = static_cast<const char*>(data);
  while (bytes > 0) {
    const std::size_t chunk = std::min<std::uint64_t>(bytes, 1u << 30);
    const ssize_t written = ::write(fd_, from, chunk);
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) fail(path_, "write failed");
    from += written;
    bytes -= static_cast<std::uint64_t>(written);
  }
}

void PendingFile::publish() {
  if (::fsync(fd_) != 0) fail(path_, "fsync failed");
  const int fd = fd_;
  fd_ = -1;
  if (::close(fd) != 0) fail(path_, "close failed");
  if (::rename(temporary_.c_str(), path_.c_str()) != 0) fail(path_, "rename failed");
  done_ = true;
}

}  // namespace msa
