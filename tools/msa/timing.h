// SPDX-License-Identifier: MIT
// How calls are timed, and what they cost in memory. A Timer stands between the bench and the
// clock, so that a device can bring its own.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

namespace msa::cli {

class Timer {
 public:
  virtual ~Timer() = default;
  /// Seconds that one call takes, from its start until its results are there.
  virtual double seconds(const std::function<void()>& call) = 0;
};

/// The host's monotonic clock, for calls that return when they are done.
class HostTimer final : public Timer {
 public:
  double seconds(const std::function<void()>& call) override;
};

double median_of(std::vector<double> values);

/// When a row has been measured often enough.
struct TimingRule {
  int repeat = 5;         // runs at least, unless they take too long
  double min_time = 1.0;  // seconds of all runs at least
  double max_time = 20;   // seconds of all runs after which no further one begins

  bool enough(const std::vector<double>& seconds) const;
};

/// How far the resident memory of the process rose above its start while `call` ran; -1 where the
/// system does not tell.
std::int64_t resident_growth(const std::function<void()>& call);

}  // namespace msa::cli
