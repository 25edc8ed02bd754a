// SPDX-License-Identifier: MIT
// Error and how the library words it.
#include "msa/error.h"

#include <utility>

#include "core/fail.h"
#include "core/guard.h"

namespace msa {

const char* to_string(ErrorCode code) noexcept {
  switch (code) {
    case ErrorCode::InvalidArgument:
      return "invalid argument";
    case ErrorCode::InvalidContent:
      return "invalid content";
    case ErrorCode::Unsupported:
      return "unsupported";
    case ErrorCode::Workspace:
      return "workspace";
    case ErrorCode::OutOfMemory:
      return "out of memory";
    case ErrorCode::Device:
      return "device";
    case ErrorCode::Internal:
      return "internal";
  }
  return "unknown";
}

Error::Error(ErrorCode code, std::string argument, const std::string& message)
    : std::runtime_error(message), code_(code), argument_(std::move(argument)) {}

namespace core {

namespace {
const Error kOutOfMemory(ErrorCode::OutOfMemory, "", "out of memory");
}

const Error& out_of_memory() { return kOutOfMemory; }

void fail(ErrorCode code, const std::string& argument, const std::string& where,
          const std::string& expected, const std::string& given) {
  const std::string place = where.empty() ? argument : argument + ": " + where;
  throw Error(code, argument, place + ": expected " + expected + ", got " + given);
}

}  // namespace core
}  // namespace msa
