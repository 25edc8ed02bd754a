// SPDX-License-Identifier: MIT
// The driver, opened on first use and never at load: which GPUs there are, which device is current.
// Everything here works, by saying why not, on a machine without a GPU or a driver.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "cuda/check.h"
#include "cuda/isa.h"

namespace msa::cuda {

/// What planning knows of a GPU. Tests make one up.
struct GpuInfo {
  std::string name{};
  std::string fault{};  // why it cannot be used, where its properties could not be read
  int major = 0;
  int minor = 0;
  int multiprocessors = 0;
  std::size_t shared_memory = 0;  // bytes that one CTA may take, opted in
  std::size_t l2_bytes = 0;
  double bf16_flops = 0;   // dense products a second; 0: not known
  double bytes_per_s = 0;  // of its memory; 0: not known
  // What kernels were compiled for: by this build, where nobody makes it up.
  std::span<const Compiled> compiled = compiled_for();
};

/// The GPUs of this machine, or why there are none.
struct Machine {
  std::vector<GpuInfo> gpus{};
  std::string reason{};  // empty when gpus is not
};

/// GPUs 0 to count - 1 by `read`; one that throws stays in its place with a reason.
Machine machine_of(int count, const std::function<GpuInfo(int device)>& read);

/// Looked up once, on the first call. Does not throw for a GPU that does not answer.
const Machine& machine();

/// Makes a device current and puts the former one back.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device);
  ~DeviceGuard();
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int former_ = 0;
  bool changed_ = false;
};

/// A driver function by name, without linking the driver; throws where it is missing.
void* driver_entry_point(const char* name, unsigned version);

}  // namespace msa::cuda
