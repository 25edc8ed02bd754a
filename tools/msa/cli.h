// SPDX-License-Identifier: MIT
// What the commands of the tool share: exit codes, typed failures and how a command registers
// itself. Data go to stdout, messages to stderr; a command returns its exit code or throws a
// Failure or an msa::Error.
#pragma once

#include <CLI/CLI.hpp>
#include <functional>
#include <stdexcept>
#include <string>

#include "msa/problem.h"

namespace msa::cli {

enum ExitCode : int {
  kGood = 0,
  kCheckFailed = 1,  // a check, a regression or a write
  kUsage = 2,
  kBadInput = 3,
  kNoBackend = 4,
};

class Failure : public std::runtime_error {
 public:
  Failure(ExitCode code, const std::string& message) : std::runtime_error(message), code_(code) {}
  ExitCode code() const noexcept { return code_; }

 private:
  ExitCode code_;
};

/// A command sets this to what `main` runs once the command line has been understood.
using Action = std::function<int()>;

/// `command_line` becomes part of the results.
void add_bench(CLI::App& app, Action& action, const std::string& command_line);
void add_demo(CLI::App& app, Action& action);
void add_info(CLI::App& app, Action& action);
void add_make(CLI::App& app, Action& action);
void add_run(CLI::App& app, Action& action);
void add_show(CLI::App& app, Action& action);
void add_verify(CLI::App& app, Action& action);

/// --backend, --isa, --threads.
void add_backend_options(CLI::App& command, Options& options);

/// Throws Failure: kUsage for a name nobody knows, kNoBackend for a backend or instruction set that
/// this build or machine lacks.
void require_backend(const Options& options);

}  // namespace msa::cli
