// SPDX-License-Identifier: MIT
// The driver, opened on first use and never at load: which GPUs there are, which device is current,
// checked calls. Everything here works, by saying why not, on a machine without a GPU or a driver.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace msa::cuda {

inline constexpr std::int64_t kMaxGridYZ = 65535;  // CTAs along y or z

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

/// Throws Error(ErrorCode::Device) with the call, the place and the driver's words.
[[noreturn]] void throw_cuda_error(cudaError_t error, const char* call, const char* file, int line);

inline void check_cuda(cudaError_t error, const char* call, const char* file, int line) {
  if (error != cudaSuccess) throw_cuda_error(error, call, file, line);
}

#define MSA_CUDA_CHECK(call) ::msa::cuda::check_cuda((call), #call, __FILE__, __LINE__)

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
