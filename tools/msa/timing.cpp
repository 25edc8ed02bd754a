// SPDX-License-Identifier: MIT
#include "timing.h"

#include <algorithm>
#include <chrono>
#include <fstream>
#include <numeric>
#include <string>

namespace msa::cli {
namespace {

/// A field of /proc/self/status in bytes, or -1.
std::int64_t status_bytes(const std::string& field) {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with(field + ":")) return std::stoll(line.substr(field.size() + 1)) * 1024;
  }
  return -1;
}

}  // namespace

double median_of(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const std::size_t middle = values.size() / 2;
  if (values.size() % 2 == 1) return values[middle];
  return (values[middle - 1] + values[middle]) / 2;
}

double HostTimer::seconds(const std::function<void()>& call) {
  const auto start = std::chrono::steady_clock::now();
  call();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

bool TimingRule::enough(const std::vector<double>& seconds) const {
  const double total = std::accumulate(seconds.begin(), seconds.end(), 0.0);
  const bool often = static_cast<int>(seconds.size()) >= repeat && total >= min_time;
  return often || total >= max_time;
}

std::int64_t resident_growth(const std::function<void()>& call) {
  {
    std::ofstream reset("/proc/self/clear_refs");
    reset << "5";  // sets the high-water mark to what is resident now
  }
  const std::int64_t before = status_bytes("VmRSS");
  call();
  const std::int64_t peak = status_bytes("VmHWM");
  return before < 0 || peak < 0 ? -1 : std::max<std::int64_t>(0, peak - before);
}

}  // namespace msa::cli
