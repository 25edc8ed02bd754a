// SPDX-License-Identifier: MIT
// The parallel loop of everything that computes on the CPU: tasks are handed out by an atomic
// counter in ascending order, so callers put the heaviest first. Which thread takes a task may
// vary; what a task computes may not depend on it.
#pragma once

#include <omp.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>

#include "core/floats.h"

namespace msa::core {

/// Calls body(task, thread) for task = 0 .. count - 1, with thread < threads. Serial inside a
/// caller's parallel region. Where tasks throw, the exception of the first of them is thrown again
/// here, after the region: all tasks before it have been handed out, so it is always the same one.
template <class Body>
void for_each_task(int threads, std::int64_t count, const Body& body) {
  const int wanted = static_cast<int>(std::min<std::int64_t>(threads, count));
  if (wanted <= 1 || omp_in_parallel() != 0) {
    const DefaultFloats floats;
    for (std::int64_t task = 0; task < count; ++task) body(task, 0);
    return;
  }
  std::atomic<std::int64_t> next{0};
  std::atomic<bool> failed{false};
  std::int64_t first_failed = count;
  std::exception_ptr error;
#pragma omp parallel num_threads(wanted)
  {
    const DefaultFloats floats;
    const int thread = omp_get_thread_num();
    std::int64_t task = 0;
    try {
      while (!failed.load(std::memory_order_relaxed)) {
        task = next.fetch_add(1, std::memory_order_relaxed);
        if (task >= count) break;
        body(task, thread);
      }
    } catch (...) {
      failed.store(true, std::memory_order_relaxed);
#pragma omp critical(msa_first_failed)
      if (task < first_failed) {
        first_failed = task;
        error = std::current_exception();
      }
    }
  }
  if (error) std::rethrow_exception(error);
}

}  // namespace msa::core
