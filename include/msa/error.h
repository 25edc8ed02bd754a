// SPDX-License-Identifier: MIT
// The one exception type of the library. A call that fails throws an Error and leaves its outputs
// untouched.
#pragma once

#include <stdexcept>
#include <string>

#include "msa/export.h"

namespace msa {

enum class ErrorCode {
  InvalidArgument,  // a number, shape, dtype, device, stride or overlap that the contract forbids
  InvalidContent,   // what an index tensor holds: a length, page id or block id out of range
  Unsupported,      // legal, but no backend serves it; the message holds every reason
  Workspace,        // the workspace is missing, too small or misaligned
  OutOfMemory,      // an allocation of a one-call form failed
  Device,           // the driver or a device reported a failure
  Internal,         // a defect of the library
};

/// Name of a code, for messages: "invalid argument".
MSA_API const char* to_string(ErrorCode code) noexcept;

class MSA_API Error : public std::runtime_error {
 public:
  /// `argument` is the name of the argument at fault ("k", "batch.page_table"), or empty.
  Error(ErrorCode code, std::string argument, const std::string& message);
  ErrorCode code() const noexcept { return code_; }
  const std::string& argument() const noexcept { return argument_; }

 private:
  ErrorCode code_;
  std::string argument_;
};

}  // namespace msa
