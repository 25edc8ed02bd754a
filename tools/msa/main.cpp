// SPDX-License-Identifier: MIT
// `msa`, the command-line tool: understands the command line, runs one command, turns failures into
// exit codes.
#include <fmt/format.h>

#include <csignal>
#include <cstdio>
#include <new>

#include "cli.h"
#include "msa/error.h"
#include "msa/version.h"
#include "safetensors.h"

namespace msa::cli {
namespace {

int exit_code(const Error& error) {
  switch (error.code()) {
    case ErrorCode::Unsupported:
    case ErrorCode::Device:
      return kNoBackend;
    case ErrorCode::InvalidContent:
      return kBadInput;
    case ErrorCode::InvalidArgument:
      return kUsage;
    case ErrorCode::Workspace:
    case ErrorCode::OutOfMemory:
    case ErrorCode::Internal:
      break;
  }
  return kCheckFailed;
}

int report(int code, const char* message) {
  fmt::print(stderr, "msa: {}\n", message);
  return code;
}

/// Runs the action; every failure leaves one line on stderr.
int run_action(const Action& action) {
  try {
    const int code = action();
    if (std::fflush(stdout) != 0 || std::ferror(stdout)) {
      return report(kCheckFailed, "could not write to standard output");
    }
    return code;
  } catch (const Failure& failure) {
    return report(failure.code(), failure.what());
  } catch (const Error& error) {
    return report(exit_code(error), error.what());
  } catch (const safetensors::FormatError& error) {
    return report(kBadInput, error.what());
  } catch (const std::bad_alloc&) {
    return report(kCheckFailed, "out of memory");
  } catch (const std::exception& error) {
    return report(kCheckFailed, error.what());
  }
}

int parse_and_run(int argc, char** argv) {
  CLI::App app{
      "MiniMax Sparse Attention: inspect, run, make problems, verify, show, measure, demonstrate"};
  app.name("msa");
  app.set_version_flag("--version", std::string("msa ") + version());
  app.require_subcommand(1);
  app.footer(
      "Exit codes: 0 good, 1 a check failed or a write did, 2 wrong usage, 3 bad input file, "
      "4 backend not available.");
  Action action;
  add_info(app, action);
  add_run(app, action);
  add_make(app, action);
  add_verify(app, action);
  add_show(app, action);
  std::string command_line = "msa";
  for (int i = 1; i < argc; ++i) command_line += std::string(" ") + argv[i];
  add_bench(app, action, command_line);
  add_demo(app, action);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? kGood : kUsage;
  }
  return run_action(action);
}

}  // namespace
}  // namespace msa::cli

int main(int argc, char** argv) {
  // A file over the size limit is then a failed write, with its exit code.
  std::signal(SIGXFSZ, SIG_IGN);
  return msa::cli::parse_and_run(argc, argv);
}
