// SPDX-License-Identifier: MIT
// A CUDA runtime without a GPU: the linker puts it (--wrap) in place of every function that the
// library calls. It runs nothing, counts, is as strict about launches as a driver, and can make the
// n-th call fail. GPUs 0 and 1 are Hoppers, GPU 2 does not answer.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

namespace msa::fake {

struct Call {
  const char* function = "";
  int device = 0;                // current then
  const void* stream = nullptr;  // where the function takes one
  const void* kernel = nullptr;  // of a launch or an attribute
  std::size_t shared_bytes = 0;  // dynamic, of a launch; the limit that an attribute sets
};

/// What a call that fails answers.
inline constexpr const char* kFailureName = "cudaErrorLaunchOutOfResources";

/// Forgets the calls so far; the next ones succeed.
void reset();
/// Call `n` from now on fails; 0 is the next one.
void fail_at(long n);
std::span<const Call> calls();
long count_of(const char* function);

int current_device();
void set_current_device(int device);
/// Whether cudaGetLastError would tell an error; asking does not clear it.
bool error_is_pending();

/// What the driver's encoder of tensor maps answers to its next calls, numbers of CUresult; success
/// behind them.
void encoder_answers(std::vector<int> results);
/// Whether the library was given the encoder: it keeps it for good.
bool encoder_is_known();

}  // namespace msa::fake
