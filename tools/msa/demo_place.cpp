// SPDX-License-Identifier: MIT
#include "demo_place.h"

#include <algorithm>

#include "msa/error.h"
#include "testkit/requests.h"

namespace msa::cli {
namespace {

std::size_t row_bytes(const Tensor& tensor) {
  std::int64_t elements = 1;
  for (int d = 1; d < tensor.rank; ++d) elements *= tensor.shape[static_cast<std::size_t>(d)];
  return static_cast<std::size_t>(size_in_bytes(tensor.dtype, elements));
}

std::size_t bytes_of(const Tensor& tensor) {
  return row_bytes(tensor) * static_cast<std::size_t>(tensor.shape[0]);
}

/// The problem that operands in host memory pose, on the device where they are copied to.
Plan plan_on(Op op, const testkit::Operands& host, const Settings& settings, const Place& place) {
  Problem problem = testkit::problem_of(op, host, settings);
  problem.device = place.space().device();
  return make_plan(problem);
}

}  // namespace

Place::~Place() {
  for (const Held& held : held_) space_.release(held.there);
}

void Place::hold(const Tensor& host, Contents contents) {
  if (!host || !on_gpu()) return;
  held_.reserve(held_.size() + 1);
  const std::size_t bytes = bytes_of(host);
  held_.push_back(
      {static_cast<std::byte*>(host.data), bytes, static_cast<std::byte*>(space_.allocate(bytes))});
  if (contents == Contents::Copied) space_.copy_in(held_.back().there, host.data, bytes);
}

std::byte* Place::find(const void* host) const {
  const auto* at = static_cast<const std::byte*>(host);
  const auto held = std::find_if(held_.begin(), held_.end(), [&](const Held& h) {
    return at >= h.host && at < h.host + h.bytes;
  });
  if (held == held_.end()) throw Error(ErrorCode::Internal, "", "a tensor has no copy on the GPU");
  return held->there + (at - held->host);
}

testkit::Operands Place::there(testkit::Operands operands) const {
  if (!on_gpu()) return operands;
  testkit::for_each_tensor(operands, [&](Tensor& tensor) {
    tensor.data = find(tensor.data);
    tensor.device = space_.device();
  });
  return operands;
}

void Place::fetch(const Tensor& host) const {
  if (on_gpu()) space_.copy_out(host.data, find(host.data), bytes_of(host));
}

void Place::fetch(const Tensor& host, const std::vector<std::int64_t>& rows) const {
  if (!on_gpu()) return;
  for (const std::int64_t row : rows) {
    std::byte* at = testkit::address(host, row);
    space_.copy_out(at, find(at), row_bytes(host));
  }
}

PlacedCall::PlacedCall(Op op, const testkit::Operands& host, const Settings& settings,
                       const Place& place)
    : place_(place),
      host_(host),
      operands_(place.there(host)),
      plan_(plan_on(op, host, settings, place)) {
  if (place.on_gpu()) {
    gpu_workspace_ = place.space().allocate(plan_.workspace_bytes());
  } else {
    host_workspace_ = Buffer(plan_.workspace_bytes());
  }
}

PlacedCall::~PlacedCall() {
  if (gpu_workspace_ != nullptr) place_.space().release(gpu_workspace_);
}

Workspace PlacedCall::workspace() const {
  void* data = place_.on_gpu() ? gpu_workspace_ : host_workspace_.data();
  return {data, plan_.workspace_bytes()};
}

void PlacedCall::run() const {
  testkit::run(plan_, operands_, workspace(), place_.space().stream());
  place_.space().synchronize();
}

std::optional<Fault> PlacedCall::fault() const {
  return check(plan_, workspace(), place_.space().stream());
}

}  // namespace msa::cli
