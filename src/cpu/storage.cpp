// SPDX-License-Identifier: MIT
#include "cpu/storage.h"

#include "core/fail.h"

namespace msa::cpu {

void unserved(DType dtype) {
  core::fail(ErrorCode::Internal, "dtype", "", "a type that planning accepts", to_string(dtype));
}

}  // namespace msa::cpu
