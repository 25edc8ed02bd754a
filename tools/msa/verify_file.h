// SPDX-License-Identifier: MIT
// `msa verify OP FILE...`.
#pragma once

#include <string>
#include <vector>

#include "problem_file.h"

namespace msa::cli {

/// Compares the outputs in the files with the oracle; returns an exit code.
int verify_files(FileOptions options, const std::vector<std::string>& paths);

}  // namespace msa::cli
