// SPDX-License-Identifier: MIT
// DLPack as its specification lays it out in memory (version 1, with the exchange interface
// of 1.3): what producers hand over, declared here so that the build needs no header of theirs.
#pragma once

#include <cstddef>
#include <cstdint>

namespace msa_python::dlpack {

struct Version {
  std::uint32_t major;
  std::uint32_t minor;
};

enum DeviceType : std::int32_t { kCpu = 1, kCuda = 2, kCudaHost = 3, kCudaManaged = 13 };

struct Device {
  std::int32_t type;
  std::int32_t id;
};

enum TypeCode : std::uint8_t {
  kInt = 0,
  kUInt = 1,
  kFloat = 2,
  kBfloat = 4,
  kComplex = 5,
  kBool = 6,
  kE4M3 = 10,
  kE2M1 = 17
};

struct DataType {
  std::uint8_t code;
  std::uint8_t bits;
  std::uint16_t lanes;
};

struct Tensor {
  void* data;
  Device device;
  std::int32_t rank;
  DataType dtype;
  std::int64_t* shape;
  std::int64_t* strides;  // in elements; null: row-major
  std::uint64_t byte_offset;
};

/// In a capsule "dltensor".
struct Managed {
  Tensor tensor;
  void* context;
  void (*deleter)(Managed*);
};

inline constexpr std::uint64_t kReadOnly = 1;
inline constexpr std::uint64_t kCopied = 2;

/// In a capsule "dltensor_versioned".
struct ManagedVersioned {
  Version version;
  void* context;
  void (*deleter)(ManagedVersioned*);
  std::uint64_t flags;
  Tensor tensor;
};

struct ExchangeHeader {
  Version version;
  const ExchangeHeader* previous;
};

/// Behind the attribute __dlpack_c_exchange_api__ of a type, in a capsule "dlpack_exchange_api".
struct Exchange {
  ExchangeHeader header;
  void* allocate;
  void* to_managed;
  void* from_managed;
  /// Fills a view that lives as long as the object; 0, or -1 with a Python error. May be null.
  int (*view)(void* object, Tensor* tensor);
  /// The stream that the producer works on.
  int (*current_stream)(DeviceType type, std::int32_t id, void** stream);
};

static_assert(sizeof(Tensor) == 48 && offsetof(ManagedVersioned, tensor) == 32);

}  // namespace msa_python::dlpack
