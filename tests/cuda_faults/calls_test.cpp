// SPDX-License-Identifier: MIT
// Which functions of the CUDA runtime a call uses, on which device and stream, and what becomes of
// one that fails. The runtime is a fake (fake_runtime.h): needs nvcc at build time and no GPU.
#include <cuda.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "../faults/allocations.h"
#include "fake_runtime.h"
#include "msa/msa.h"
#include "testkit/generate.h"
#include "testkit/verify.h"

namespace msa {
namespace {

using testkit::Data;
using testkit::Operands;

/// A way through every stage and kernel.
const std::vector<std::string> kCases{
    "op=dense heads=16/2 lens=70:300,9:90 lse=1",
    "op=dense heads=16/2 lens=900:9000",
    "op=dense heads=16/2 lens=1:300,8:90 page=64 lse=1",
    "op=dense heads=16/2 lens=1:90000",
    "op=dense heads=8/2 dim=64 block=64 lens=70:700 block_max=1",
    "op=dense heads=8/2 dim=64 block=64 lens=70:700 block_max=1 output=0",
    "op=scores heads=4/4 lens=70:700",
    "op=scores heads=4/4 lens=1:700 page=128",
    "op=topk heads=4/4 block=64 topk=4 lens=70:700 chosen=1",
    "op=topk heads=4/4 block=64 topk=4 lens=3:70000",
    "op=select heads=4/4 block=64 topk=4 lens=70:700 chosen=1",
    "op=select heads=4/4 block=64 topk=4 lens=2:700 page=64",
    "op=sparse heads=16/2 block=64 topk=4 lens=70:700,9:90 lse=1",
    "op=sparse heads=16/1 topk=16 lens=600:9000 page=128",
    "op=sparse heads=16/2 block=64 topk=4 lens=2:700",
    "op=sparse heads=16/2 block=64 topk=4 lens=70:700 strides=transposed",
    "op=msa heads=16/2 block=64 topk=4 lens=70:700,9:90 ids=0",
    "op=msa heads=16/2 block=64 topk=4 lens=2:700,1:90 page=64 lse=1",
    "op=dense heads=16/2 kv=e4m3 lens=1:90000",
    "op=dense heads=16/2 kv=e4m3/head dtype=f16 lens=1:300,8:90 page=64 lse=1",
    "op=sparse heads=16/2 kv=e4m3/token block=64 topk=4 lens=2:700",
    "op=msa heads=16/2 kv=e4m3/page topk=4 lens=2:700,1:90 page=16 lse=1",
    "op=dense heads=16/2 kv=e4m3/head dtype=f16 lens=70:300,9:90 lse=1",
    "op=dense heads=16/2 kv=e4m3/token lens=70:300 strides=transposed",
    "op=sparse heads=16/1 kv=e4m3 topk=16 lens=600:9000 page=128",
    "op=sparse heads=16/2 kv=e4m3/token block=64 topk=4 lens=70:700,9:90 lse=1",
    "op=msa heads=16/2 kv=e4m3/page topk=4 lens=70:700 page=64",
    "op=dense heads=16/2 kv=q8kv4 lens=1:90000",
    "op=dense heads=16/2 kv=q8kv4 lens=70:300,9:90 lse=1",
    "op=msa heads=16/2 kv=nvfp4 dtype=f16 topk=4 lens=70:700 page=64",
    "op=sparse heads=16/2 kv=nvfp4 dtype=f16 block=64 topk=4 lens=2:700 lse=1",
    "op=msa heads=16/2 kv=nvfp4/tensor topk=4 lens=2:700,1:90 page=16 lse=1",
    "op=sparse heads=4/4 topk=16 lens=80x8:260 page=128 lse=1",
    "op=msa heads=4/4 topk=16 lens=80x8:260 ids=0",
    "op=merge_states heads=4/4 lens=20:0 parts=3 lse=1",
    "op=merge_states heads=4/4 lens=20:0 parts=40",
    "op=merge_selections heads=4/4 topk=4 lens=20:0 parts=3 chosen=1",
    "op=merge_selections heads=4/4 topk=256 lens=20:0 parts=64",
    "op=invert heads=4/4 block=64 topk=4 lens=70:700",
    "op=quantize heads=4/4 kv=e4m3/token lens=20:0 strides=padded",  // any address will do
    "op=quantize heads=4/4 kv=q8kv4 dim=32 dtype=f32 page=16 lens=20:90,3:33",
    "op=quantize_index heads=4/4 dim=33 dtype=f16 lens=20:90,3:33 strides=padded",
    "op=quantize_index heads=4/4 page=16 lens=20:90,3:33",
};

/// The tensors of a case. Nothing writes them, and numbers take longer to draw than all calls do:
/// those of kCases, which most tests walk through, are made once.
std::shared_ptr<Data> data_of(const std::string& line) {
  static std::map<std::string, std::shared_ptr<Data>> known;
  if (const auto found = known.find(line); found != known.end()) return found->second;
  auto made = std::make_shared<Data>(testkit::parse_case(line));
  if (std::find(kCases.begin(), kCases.end(), line) != kCases.end()) known.emplace(line, made);
  return made;
}

/// A case whose tensors are said to lie on GPU 1. Nothing runs, so host memory stands in for its
/// memory.
class FakeCase {
 public:
  explicit FakeCase(const std::string& line, int device = 1,
                    const std::function<void(Problem&)>& change = nullptr)
      : data_(data_of(line)), problem_(data_->problem()) {
    problem_.device = {DeviceType::Cuda, device};
    problem_.options.backend = "cuda";
    if (change) change(problem_);
    plan_ = make_plan(problem_);
    // Nothing runs in it, so it is never touched.
    memory_ =
        std::make_unique_for_overwrite<std::byte[]>(plan_.workspace_bytes() + kWorkspaceAlignment);
    std::memset(workspace().data, 0xff, sizeof(std::uint64_t));
    operands_ = data_->prepare();
    testkit::for_each_tensor(operands_, [&](Tensor& tensor) {
      tensor.device = problem_.device;
      // What a framework hands over for a tensor of no rows.
      for (int i = 0; i < tensor.rank; ++i) {
        if (tensor.shape[static_cast<std::size_t>(i)] == 0) tensor.data = nullptr;
      }
    });
  }

  void run() const { testkit::run(plan_, operands_, workspace(), stream()); }
  std::optional<Fault> check() const { return msa::check(plan_, workspace(), stream()); }

  const Problem& problem() const { return problem_; }
  const Data& data() const { return *data_; }
  /// To spoil them.
  Operands& operands() { return operands_; }
  Stream stream() const { return {const_cast<int*>(&stream_)}; }

 private:
  Workspace workspace() const {
    const auto at = reinterpret_cast<std::uintptr_t>(memory_.get());
    const std::uintptr_t begin =
        (at + kWorkspaceAlignment - 1) / kWorkspaceAlignment * kWorkspaceAlignment;
    return {reinterpret_cast<void*>(begin), plan_.workspace_bytes()};
  }

  std::shared_ptr<Data> data_;
  Problem problem_;
  Plan plan_{};
  std::unique_ptr<std::byte[]> memory_{};
  Operands operands_{};
  int stream_ = 0;
};

/// The error of a call, or nothing.
std::optional<Error> error_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const Error& error) {
    return error;
  }
  return std::nullopt;
}

std::string name_in_message(const fake::Call& call) {
  const std::string name = call.function;
  return name == "cudaLaunchKernelExC" ? "cudaLaunchKernelEx" : name;
}

// Must come before anything that runs: the library keeps the function for good.
TEST(CudaCalls, ADriverWithoutTheFunctionIsATypedError) {
  ASSERT_FALSE(fake::encoder_is_known()) << "another test came first";
  const FakeCase call("op=dense heads=16/2 lens=70:300");
  std::optional<Error> error;
  std::size_t n = 0;
  for (; n == 0 || fake::calls()[n - 1].function != std::string("cudaGetDriverEntryPointByVersion");
       ++n) {
    fake::reset();
    fake::fail_at(static_cast<long>(n));
    error = error_of([&] { call.run(); });
    ASSERT_TRUE(error.has_value()) << n;
  }
  EXPECT_EQ(error->code(), ErrorCode::Device);
  EXPECT_NE(std::string(error->what()).find(fake::kFailureName), std::string::npos);
  EXPECT_EQ(fake::current_device(), 0);
  fake::reset();
  EXPECT_NO_THROW(call.run());
  EXPECT_TRUE(fake::encoder_is_known());
}

TEST(CudaCalls, EveryFailureIsATypedErrorAndLeavesNothing) {
  for (const std::string& line : kCases) {
    const FakeCase call(line);
    ASSERT_NO_THROW(call.run()) << line;  // the first one of the process also looks up the driver
    fake::reset();
    ASSERT_NO_THROW(call.run()) << line;
    const std::size_t count = fake::calls().size();
    EXPECT_GE(count, 4U) << line;  // two of the device's, two of the stream's at least
    for (std::size_t n = 0; n < count; ++n) {
      SCOPED_TRACE("call " + std::to_string(n) + " of " + line);
      const long live = faults::live.load();
      fake::reset();
      fake::fail_at(static_cast<long>(n));
      {
        const auto error = error_of([&] { call.run(); });
        const fake::Call failed = fake::calls()[n];
        if (!error) {
          // Putting the caller's device back happens on the way out, where nothing may throw.
          EXPECT_EQ(n, count - 1);
          EXPECT_EQ(failed.function, std::string("cudaSetDevice"));
          fake::set_current_device(0);
          continue;
        }
        EXPECT_EQ(error->code(), ErrorCode::Device);
        const std::string message = error->what();
        EXPECT_NE(message.find(name_in_message(failed)), std::string::npos) << message;
        EXPECT_NE(message.find(fake::kFailureName), std::string::npos) << message;
      }
      EXPECT_EQ(fake::current_device(), 0) << "the caller's device";
      EXPECT_FALSE(fake::error_is_pending()) << "a later check would meet this error";
      EXPECT_EQ(faults::live.load(), live) << "leaked";
    }
    fake::reset();
    EXPECT_NO_THROW(call.run()) << line;
    EXPECT_EQ(fake::calls().size(), count) << line;
  }
}

TEST(CudaCalls, CheckSaysWhatFailed) {
  const FakeCase call(kCases.front());
  fake::reset();
  static_cast<void>(call.check());
  const std::size_t count = fake::calls().size();
  for (std::size_t n = 0; n + 1 < count; ++n) {
    fake::reset();
    fake::fail_at(static_cast<long>(n));
    const auto error = error_of([&] { static_cast<void>(call.check()); });
    ASSERT_TRUE(error.has_value()) << n;
    EXPECT_EQ(error->code(), ErrorCode::Device);
    EXPECT_NE(std::string(error->what()).find(fake::calls()[n].function), std::string::npos);
    EXPECT_EQ(fake::current_device(), 0);
  }
}

TEST(CudaCalls, RunOnTheTensorsDeviceAndTheCallersStreamAlone) {
  const std::vector<std::string> allowed{"cudaGetDevice",       "cudaSetDevice",
                                         "cudaMemsetAsync",     "cudaFuncSetAttribute",
                                         "cudaLaunchKernelExC", "cudaGetDriverEntryPointByVersion"};
  for (const int current : {0, 1}) {
    for (const int device : {0, 1}) {
      for (const std::string& line : kCases) {
        const FakeCase call(line, device);
        fake::set_current_device(current);
        fake::reset();
        call.run();
        EXPECT_EQ(fake::current_device(), current) << line;
        EXPECT_EQ(fake::count_of("cudaSetDevice"), current == device ? 0 : 2) << line;
        long launches = 0;
        for (const fake::Call& made : fake::calls()) {
          const std::string function = made.function;
          EXPECT_NE(std::find(allowed.begin(), allowed.end(), function), allowed.end())
              << function << " waits, copies or allocates: " << line;
          const bool works = function == "cudaLaunchKernelExC" || function == "cudaMemsetAsync";
          if (works || function == "cudaFuncSetAttribute") {
            EXPECT_EQ(made.device, device) << function << ": " << line;
          }
          if (!works) continue;
          EXPECT_EQ(made.stream, call.stream().handle) << line;
          ++launches;
        }
        EXPECT_GE(launches, 2) << line;
      }
    }
  }
  fake::set_current_device(0);
}

TEST(CudaCalls, RunAllocatesNothing) {
  for (const std::string& line : kCases) {
    const FakeCase call(line);
    call.run();  // the first may fetch the driver's function
    fake::reset();
    const long before = faults::allocations.load();
    call.run();
    EXPECT_EQ(faults::allocations.load() - before, 0) << line;
  }
}

TEST(CudaCalls, PlanningCallsNothing) {
  for (const std::string& line : kCases) {
    const FakeCase call(line);  // the first one looks the GPUs up
    fake::reset();
    EXPECT_NO_THROW(make_plan(call.problem())) << line;
    EXPECT_TRUE(supports(call.problem()).supported) << line;
    EXPECT_TRUE(fake::calls().empty()) << line << ": " << fake::calls()[0].function;
  }
}

// The driver keeps one limit a kernel for all threads: were it each launch's own, one thread would
// lower another's between its setting and its launch.
TEST(CudaCalls, NoLaunchLowersAKernelsLimit) {
  std::map<const void*, std::size_t> limits;
  for (const char* line :
       {"op=select dim=64 lens=1:300000 topk=64", "op=select dim=64 lens=1:300000 topk=4",
        "op=select dim=64 lens=1:3000 topk=4", "op=merge_selections topk=256 lens=9:0 parts=64",
        "op=merge_selections topk=256 lens=9:0 parts=33",
        "op=msa heads=1/1 dim=64 lens=1:300000 topk=64",
        "op=msa heads=1/1 dim=64 lens=1:3000 topk=4", "op=sparse heads=16/1 topk=16 lens=600:9000",
        "op=sparse heads=16/1 topk=4 lens=70:900", "op=dense heads=16/2 lens=70:300"}) {
    const FakeCase call(line);
    fake::reset();
    call.run();
    for (const fake::Call& made : fake::calls()) {
      if (made.function != std::string("cudaFuncSetAttribute")) continue;
      const auto [known, is_new] = limits.emplace(made.kernel, made.shared_bytes);
      EXPECT_EQ(known->second, made.shared_bytes) << line;
    }
  }
  EXPECT_GE(limits.size(), 4U);
}

// A refusal touches no output: all tensors are looked at before the first launch that writes one.
void expect_refused(const FakeCase& call, const std::string& argument, const std::string& line) {
  fake::reset();
  const auto error = error_of([&] { call.run(); });
  ASSERT_TRUE(error.has_value()) << line << ", " << argument;
  EXPECT_EQ(error->code(), ErrorCode::InvalidArgument) << error->what();
  EXPECT_EQ(error->argument(), argument) << error->what();
  EXPECT_EQ(fake::count_of("cudaLaunchKernelExC"), 0) << line;
  EXPECT_EQ(fake::count_of("cudaMemsetAsync"), 0) << line;
}

// What attention and scoring read must lie in whole 16 bytes, for few queries and for many: the
// call is refused before anything is launched, and the tensor is named.
TEST(CudaCalls, TensorsOffSixteenBytesAreRefusedByName) {
  const std::vector<std::pair<std::string, Tensor Operands::*>> fields{
      {"q", &Operands::q},
      {"k", &Operands::k},
      {"v", &Operands::v},
      {"index_q", &Operands::index_q},
      {"index_k", &Operands::index_k},
      {"index_k8", &Operands::index_k8}};
  for (const std::string op : {"dense", "sparse", "msa", "scores", "select"}) {
    for (const char* lens :
         {"lens=8:500", "lens=9:500", "lens=90:500", "lens=8:500 page=64",
          "lens=8:500 kv=e4m3/token", "lens=90:500 kv=e4m3/head", "lens=8:500 kv=q8kv4",
          "lens=8:500 page=64 kv=nvfp4/tensor", "lens=8:500 filter=1", "lens=2:400000 filter=1",
          "lens=90:500 page=64 filter=1 precision=fast", "lens=90:500 index_k=q8kv4",
          "lens=90:500 page=64 index_k=e4m3"}) {
      if (std::string(lens).find("400000") != std::string::npos && op != "select") continue;
      const std::string line = "op=" + op + " heads=8/4 topk=4 " + lens;
      FakeCase call(line);
      for (const auto& [name, field] : fields) {
        Tensor& tensor = call.operands().*field;
        if (!tensor) continue;
        const Tensor right = tensor;
        Tensor shifted = right;
        shifted.data = static_cast<char*>(right.data) + 2;
        Tensor wide = right;
        wide.stride[0] += 4;
        for (const Tensor& wrong : {shifted, wide}) {
          tensor = wrong;
          expect_refused(call, name, line);
        }
        tensor = right;
      }
      EXPECT_NO_THROW(call.run()) << line;
    }
  }
}

// Nor does a backward pass read `out` or `dout` item by item.
TEST(CudaCalls, OutAndItsGradientLieInWholeVectors) {
  for (const char* line : {"op=sparse_backward heads=16/1 topk=4 lens=90:500",
                           "op=dense_backward heads=4/2 dim=64 lens=90:500"}) {
    FakeCase call(line);
    for (const auto& [name, field] :
         {std::pair{"out", &Operands::out_in}, {"dout", &Operands::dout}}) {
      Tensor& tensor = call.operands().*field;
      const Tensor right = tensor;
      tensor.data = static_cast<char*>(right.data) + 2;
      expect_refused(call, name, line);
      tensor = right;
    }
    EXPECT_NO_THROW(call.run()) << line;
  }
}

// Scales of groups are read a row at a time.
TEST(CudaCalls, ScalesOfGroupsLieInRowsOfEight) {
  for (const char* lens : {"lens=8:500", "lens=1:500 page=64"}) {
    const std::string line =
        std::string("op=msa heads=8/4 topk=4 kv=q8kv4 index_k=nvfp4 index_heads_k=4 ") + lens;
    FakeCase call(line);
    for (const auto& [name, field] : {std::pair{"k_scale", &Operands::k_scale},
                                      {"v_scale", &Operands::v_scale},
                                      {"index_k_scale", &Operands::index_k_scale}}) {
      Tensor& tensor = call.operands().*field;
      const Tensor right = tensor;
      const auto groups = static_cast<std::size_t>(right.rank - 1);
      Tensor shifted = right, wide = right, apart = right;
      shifted.data = static_cast<char*>(right.data) + 4;
      wide.stride[groups - 1] += 4;
      apart.stride[groups] = 16;
      for (const Tensor& wrong : {shifted, wide, apart}) {
        tensor = wrong;
        expect_refused(call, name, line);
      }
      tensor = right;
    }
    EXPECT_NO_THROW(call.run()) << line;
  }
}

TEST(CudaCalls, TheDriverMayRefuseATensor) {
  const FakeCase call("op=dense heads=16/2 lens=70:300");
  call.run();
  fake::encoder_answers({CUDA_SUCCESS, CUDA_ERROR_INVALID_VALUE});
  auto error = error_of([&] { call.run(); });
  ASSERT_TRUE(error.has_value());
  EXPECT_EQ(error->code(), ErrorCode::InvalidArgument);
  EXPECT_EQ(error->argument(), "k");
  EXPECT_EQ(fake::current_device(), 0);
  // A thread without a context gets one, once.
  fake::encoder_answers({CUDA_ERROR_INVALID_CONTEXT});
  EXPECT_NO_THROW(call.run());
  fake::encoder_answers({CUDA_ERROR_INVALID_CONTEXT, CUDA_ERROR_INVALID_CONTEXT});
  error = error_of([&] { call.run(); });
  ASSERT_TRUE(error.has_value());
  EXPECT_EQ(error->argument(), "q");
  fake::encoder_answers({});
}

TEST(CudaCalls, TensorsWithoutElementsNeedNoAddress) {
  for (const std::string op : {"dense", "sparse", "msa", "select", "scores", "invert", "topk"}) {
    for (const char* lens : {"lens=none", "lens=0:0", "lens=5:0", "lens=70:0", "lens=0:0 slack=70",
                             "lens=none pad_rows=9", "lens=0:9", "lens=3:0,70:0"}) {
      const FakeCase call("op=" + op + " heads=16/2 block=64 topk=4 " + lens);
      EXPECT_NO_THROW(call.run()) << op << " " << lens;
    }
  }
}

// The fake judges grids, clusters and shared memory as a driver does.
TEST(CudaCalls, GridsAreLegalAtTheEdgesOfWhatIsServed) {
  for (const std::string op : {"dense", "msa", "scores"}) {
    for (const char* shape :
         {"heads=65535/65535 dim=64 lens=1:1", "heads=65535/65535 dim=64 lens=9:1",
          "heads=65535/65535 index_heads_k=65535 dim=64 lens=9:1", "heads=4/1 dim=64 lens=8191x8:1",
          "heads=1/1 dim=64 lens=65536x1:1", "heads=1/1 dim=64 lens=70000:1",
          "heads=1/1 dim=64 lens=none pad_rows=70000"}) {
      const std::string line = "op=" + op + " regime=ties block=64 topk=1 " + shape;
      const testkit::Case spec = testkit::parse_case(line);
      Problem problem = testkit::problem_of(spec);
      problem.device = {DeviceType::Cuda, 0};
      problem.options.backend = "cuda";
      if (!supports(problem).supported) continue;
      const auto error = error_of([&] { FakeCase(line, 0).run(); });
      EXPECT_FALSE(error.has_value()) << line << ": " << error->what();
    }
  }
}

TEST(CudaCalls, LaunchesAreTheCallsAndNotThePlans) {
  for (const std::string op : {"msa", "select", "sparse", "dense", "invert"}) {
    const std::string line = "op=" + op + " heads=64/4 topk=16 lens=200:900,9:300";
    const auto launches = [&](std::int64_t rows) {
      const FakeCase call(line, 1, [&](Problem& problem) {
        problem.bounds.total_q = problem.bounds.max_seqlen_q = rows;
        problem.bounds.max_seqlen_k = 1 << 20;
        problem.bounds.batch = 8;
      });
      fake::reset();
      call.run();
      return fake::count_of("cudaLaunchKernelExC");
    };
    EXPECT_LE(launches(1 << 20), launches(1 << 14)) << line;
  }
}

TEST(CudaCalls, AGpuThatDoesNotAnswerIsARefusalAndHidesNoOther) {
  Problem problem = FakeCase(kCases.front()).problem();
  problem.device.index = 2;
  Support support;
  EXPECT_NO_THROW(support = supports(problem));
  EXPECT_FALSE(support.supported);
  bool named = false;
  for (const BackendAnswer& answer : support.backends)
    named |= answer.reason.find("cudaErrorDevicesUnavailable") != std::string::npos;
  EXPECT_TRUE(named);
  EXPECT_THROW(make_plan(problem), Error);
  problem.device.index = 7;
  EXPECT_NO_THROW(support = supports(problem));
  EXPECT_FALSE(support.supported);
  for (const int device : {0, 1}) {
    problem.device.index = device;
    EXPECT_TRUE(supports(problem).supported) << device;
  }
  for (const BackendInfo& info : build_info().backends) {
    if (info.name != "cuda") continue;
    EXPECT_TRUE(info.available);
    EXPECT_EQ(info.devices.size(), 2U);
  }
}

}  // namespace
}  // namespace msa
