// SPDX-License-Identifier: MIT
// The command line of the fuzz targets:
//   fuzz_api --cases N [--seed S] [--first I] [--backend B] [--isa X[,Y]...] [--verbose]
//   fuzz_api [libFuzzer's options] [corpus]
#include "driver.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <stdexcept>
#include <vector>

extern "C" int LLVMFuzzerRunDriver(int* argc, char*** argv,
                                   int (*target)(const std::uint8_t* data, std::size_t size));

namespace msa::fuzz {

namespace {

Target g_target = nullptr;  // libFuzzer's callback takes no context

int one_input(const std::uint8_t* data, std::size_t size) {
  Choices choices(data, size);
  testkit::CaseMemory memory;
  try {
    g_target(choices, {}, memory);
  } catch (const std::runtime_error& failure) {
    std::fprintf(stderr, "%s\n", failure.what());
    std::abort();
  }
  return 0;
}

struct Arguments {
  long cases = 0;
  long first = 0;
  std::uint64_t seed = 1;
  bool verbose = false;
  std::string backend{};
  std::vector<std::string> isas{};
};

/// The names between the commas of a list.
std::vector<std::string> names_in(const std::string& list) {
  std::vector<std::string> names{""};
  for (const char c : list) {
    if (c == ',') {
      names.emplace_back();
    } else {
      names.back() += c;
    }
  }
  return names;
}

int usage(const char* word) {
  std::fprintf(stderr, "unknown or incomplete argument: %s\n", word);
  return 2;
}

/// Each case on each instruction set, from the same choices; the oracle answers once. Of several
/// instruction sets, each must pass something.
int run_cases(const Arguments& arguments, Target target) {
  std::map<Verdict, long> counts;
  std::map<std::string, long> passed_on;
  long failed = 0;
  for (long n = arguments.first; n < arguments.first + arguments.cases; ++n) {
    if (arguments.verbose) std::fprintf(stderr, "case %ld\n", n);
    testkit::CaseMemory memory;
    for (const std::string& isa : arguments.isas) {
      Choices choices(arguments.seed, static_cast<std::uint64_t>(n));
      try {
        const Verdict verdict = target(choices, {.backend = arguments.backend, .isa = isa}, memory);
        ++counts[verdict];
        passed_on[isa] += verdict == Verdict::Passed ? 1 : 0;
      } catch (const std::runtime_error& failure) {
        ++failed;
        std::printf("FAILED case %ld (--seed %llu --first %ld --cases 1%s%s): %s\n", n,
                    static_cast<unsigned long long>(arguments.seed), n,
                    isa.empty() ? "" : " --isa ", isa.c_str(), failure.what());
      }
    }
  }
  for (const std::string& isa : arguments.isas) {
    if (arguments.isas.size() == 1 || passed_on[isa] > 0) continue;
    ++failed;
    std::printf("FAILED nothing passed on %s\n", isa.c_str());
  }
  std::printf("%ld passed, %ld failed, %ld rejected, %ld without a fault to plant\n",
              counts[Verdict::Passed], failed, counts[Verdict::Rejected], counts[Verdict::Skipped]);
  return failed == 0 ? 0 : 1;
}

}  // namespace

int drive(int argc, char** argv, Target target) {
  Arguments arguments;
  bool own = false;
  for (int i = 1; i < argc; ++i) own = own || std::strcmp(argv[i], "--cases") == 0;
  if (!own) {
    g_target = target;
    return LLVMFuzzerRunDriver(&argc, &argv, one_input);
  }
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    if (word == "--verbose") {
      arguments.verbose = true;
      continue;
    }
    if (i + 1 == argc) return usage(argv[i]);
    const char* value = argv[++i];
    if (word == "--cases") {
      arguments.cases = std::atol(value);
    } else if (word == "--first") {
      arguments.first = std::atol(value);
    } else if (word == "--seed") {
      arguments.seed = std::strtoull(value, nullptr, 10);
    } else if (word == "--backend") {
      arguments.backend = value;
    } else if (word == "--isa") {
      arguments.isas = names_in(value);
    } else {
      return usage(argv[i - 1]);
    }
  }
  if (arguments.isas.empty()) {
    arguments.isas = {""};
  } else if (arguments.backend.empty()) {
    arguments.backend = "cpu";
  }
  return run_cases(arguments, target);
}

}  // namespace msa::fuzz
