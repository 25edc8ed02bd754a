// SPDX-License-Identifier: MIT
#include "bench_data.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <limits>
#include <numeric>
#include <utility>

#include "cli.h"
#include "tensors.h"
#include "testkit/block_lists.h"
#include "testkit/generate.h"
#include "testkit/number.h"
#include "testkit/random.h"
#include "testkit/values.h"

namespace msa::cli {
namespace {

using testkit::Case;
using testkit::Operands;
using testkit::Regime;
using testkit::Request;
using testkit::Role;

constexpr std::size_t kStagingBytes = std::size_t{256} << 20;
constexpr std::int64_t kPoolRows = 8191;  // no multiple of a block: copies of a row lie everywhere
constexpr std::uint64_t kScoreStream = 301;
constexpr std::uint64_t kPageStream = 300;
constexpr std::uint64_t kSampleStream = 400;
constexpr std::uint64_t kGroupStream = 500;  // and the role
constexpr std::int64_t kMaxDim = 256;

std::size_t row_bytes(const Tensor& tensor) {
  std::int64_t elements = 1;
  for (int i = 1; i < tensor.rank; ++i) elements *= tensor.shape[i];
  return static_cast<std::size_t>(size_in_bytes(tensor.dtype, elements));
}

std::size_t bytes_of(const Tensor& tensor) {
  return row_bytes(tensor) * static_cast<std::size_t>(tensor.shape[0]);
}

bool attends(Op op) {
  return op == Op::DenseAttention || op == Op::SparseAttention || op == Op::MsaAttention;
}
bool indexes(Op op) {
  return op == Op::BlockScores || op == Op::SelectBlocks || op == Op::MsaAttention;
}

void require_plain(const Case& spec) {
  const bool op = attends(spec.op) || indexes(spec.op) || spec.op == Op::SelectTopk;
  const bool lengths = std::all_of(
      spec.lengths.begin(), spec.lengths.end(),
      [](const testkit::Lengths& r) { return !r.q_offset && r.key_offset == 0 && !r.total_k; });
  const bool memory = spec.layout == testkit::Layout::Separate && spec.pool == 0 &&
                      spec.strides == testkit::Strides::Dense && !spec.ids_head_major;
  const bool contents =
      spec.hostile == testkit::Hostile::None && spec.corrupt == testkit::Corrupt::None;
  const auto is_made = [](const Format& format) {
    return format.scale != Scale::Page && format.scale != Scale::Token;
  };
  const bool filter = spec.filter && spec.page_size == 0;
  const bool made = is_made(spec.kv_format()) && is_made(spec.index_k_format()) && !filter;
  if (op && lengths && memory && contents && !spec.block_max && spec.output && made &&
      !spec.lengths.empty() && spec.head_dim <= kMaxDim && spec.rows() > 0) {
    return;
  }
  throw Failure(kUsage, "bench --backend cuda: expected a case of plain memory and lengths, got " +
                            testkit::to_line(spec));
}

/// Of keys, values or index keys.
Format format_of(const Case& spec, Role role) {
  return role == Role::IndexKey ? spec.index_k_format() : spec.kv_format();
}

/// The scale of a head's keys, values or index keys; no power of two.
float scale_of(const Case& spec, Role role, std::int64_t head) {
  const std::int64_t place = format_of(spec, role).scale == Scale::Head ? head : 0;
  return (role == Role::Value ? 0.55f : 0.4f) + 0.1f * static_cast<float>(place % 8);
}

/// That of a group, one of a few that e4m3 holds, whose largest codes stand for 1.5 to 2.8.
float group_scale(const Case& spec, Role role, std::int64_t group) {
  const testkit::Stream64 random(spec.seed, kGroupStream + static_cast<std::uint64_t>(role));
  return static_cast<float>(8 + random.below(static_cast<std::uint64_t>(group), 8)) / 32;
}

float score(const Case& spec, const testkit::Stream64& random, std::uint64_t counter) {
  if (spec.regime == Regime::Ties) return 1.0f;
  if (spec.regime == Regime::Near)
    return 1.0f + static_cast<float>(random.below(counter, 64)) * 0x1p-23f;
  return random.normal(counter);
}

}  // namespace

BenchData::BenchData(const Case& spec, testkit::MemorySpace& space)
    : spec_(spec), space_(space), problem_(testkit::problem_of(spec)) {
  require_plain(spec);
  problem_.device = space.device();
  make_batch();
  staging_.resize(kStagingBytes);
  make_inputs();
  staging_ = {};
  make_outputs();
}

BenchData::~BenchData() {
  for (void* data : allocations_) space_.release(data);
}

void* BenchData::allocate(std::size_t bytes) {
  allocations_.reserve(allocations_.size() + 1);
  void* data = space_.allocate(bytes);
  allocations_.push_back(data);
  return data;
}

Tensor BenchData::make(DType dtype, const std::vector<std::int64_t>& shape) {
  Tensor tensor = view_of(nullptr, dtype, shape);
  tensor.device = space_.device();
  tensor.data = allocate(bytes_of(tensor));
  return tensor;
}

/// On the device; the host's copy is kept.
Tensor BenchData::make_ints(const std::vector<std::int32_t>& values,
                            const std::vector<std::int64_t>& shape) {
  const Tensor tensor = make(DType::I32, shape);
  host_ints_.push_back(values);
  space_.copy_in(tensor.data, values.data(), values.size() * sizeof(std::int32_t));
  return tensor;
}

void BenchData::make_batch() {
  const std::int64_t count = spec_.requests();
  host_ints_.reserve(4);
  std::vector<std::int32_t> starts{0}, keys;
  for (const testkit::Lengths& r : spec_.lengths) {
    starts.push_back(starts.back() + static_cast<std::int32_t>(r.seqlen_q));
    keys.push_back(static_cast<std::int32_t>(r.seqlen_k));
  }
  Batch& batch = operands_.batch;
  batch.cu_seqlens_q = make_ints(starts, {count + 1});
  batch.seqlens_k = make_ints(keys, {count});
  host_batch_.cu_seqlens_q = view_of(host_ints_[0].data(), DType::I32, {count + 1});
  host_batch_.seqlens_k = view_of(host_ints_[1].data(), DType::I32, {count});
  requests_ = testkit::requests_of(problem_, host_batch_);
  if (spec_.page_size > 0 && spec_.op != Op::SelectTopk) make_page_table();
}

/// Pages of all requests in random order.
void BenchData::make_page_table() {
  std::int64_t width = 0;
  for (const Request& r : requests_) {
    const std::int64_t pages = testkit::ceil_div(r.seqlen_k, spec_.page_size);
    pages_ += pages;
    width = std::max(width, pages);
  }
  std::vector<std::int32_t> order(static_cast<std::size_t>(pages_));
  std::iota(order.begin(), order.end(), 0);
  const testkit::Stream64 random(spec_.seed, kPageStream);
  for (std::int64_t n = pages_; n > 1; --n) {
    std::swap(order[static_cast<std::size_t>(n - 1)],
              order[static_cast<std::size_t>(random.below(static_cast<std::uint64_t>(n), n))]);
  }
  page_owners_.resize(order.size());
  std::vector<std::int32_t> table(static_cast<std::size_t>(width * spec_.requests()), -1);
  std::size_t next = 0;
  for (const Request& r : requests_) {
    for (std::int64_t p = 0; p < testkit::ceil_div(r.seqlen_k, spec_.page_size); ++p) {
      const std::int32_t page = order[next++];
      table[static_cast<std::size_t>(r.index * width + p)] = page;
      page_owners_[static_cast<std::size_t>(page)] = {static_cast<std::int32_t>(r.index),
                                                      static_cast<std::int32_t>(p)};
    }
  }
  operands_.batch.page_table = make_ints(table, {spec_.requests(), width});
  host_batch_.page_table = view_of(host_ints_.back().data(), DType::I32, {spec_.requests(), width});
}

void BenchData::make_inputs() {
  const auto role = [](Role r) { return static_cast<int>(r); };
  if (indexes(spec_.op)) {
    operands_.index_q = make_queries(role(Role::IndexQuery), spec_.index_type(),
                                     spec_.heads_index(), spec_.dim_index());
    operands_.index_k = make_keys(role(Role::IndexKey), spec_.index_heads_k, spec_.dim_index());
    operands_.index_k_scale =
        make_scales(role(Role::IndexKey), operands_.index_k, &operands_.index_k_global_scale);
    if (problem_.index.filter) make_filter();
  }
  if (attends(spec_.op)) {
    operands_.q = make_queries(role(Role::Query), spec_.dtype, spec_.heads_q, spec_.head_dim);
    operands_.k = make_keys(role(Role::Key), spec_.heads_kv, spec_.head_dim);
    operands_.v = make_keys(role(Role::Value), spec_.heads_kv, spec_.dim_v());
    operands_.k_scale = make_scales(role(Role::Key), operands_.k, &operands_.k_global_scale);
    operands_.v_scale = make_scales(role(Role::Value), operands_.v, &operands_.v_global_scale);
  }
  if (spec_.op == Op::SelectTopk) operands_.scores_in = make_scores();
  if (spec_.op == Op::SparseAttention) operands_.block_ids_in = make_lists();
}

void BenchData::make_outputs() {
  const std::int64_t rows = spec_.rows();
  if (attends(spec_.op)) {
    operands_.out = make(spec_.out_type(), {rows, spec_.heads_q, spec_.dim_v()});
    if (spec_.lse) operands_.lse = make(DType::F32, {rows, spec_.heads_q});
  }
  if (spec_.op == Op::BlockScores) {
    operands_.scores =
        make(DType::F32, {rows, spec_.heads_index(),
                          testkit::ceil_div(problem_.bounds.max_seqlen_k, spec_.block_size)});
  }
  const bool selects = spec_.op == Op::SelectBlocks || spec_.op == Op::SelectTopk;
  if (selects || spec_.op == Op::MsaAttention)
    operands_.block_ids = make(DType::I32, {rows, spec_.heads_index(), spec_.topk});
  if (selects && spec_.chosen_scores)
    operands_.chosen_scores = make(DType::F32, {rows, spec_.heads_index(), spec_.topk});
}

void BenchData::fill(const Tensor& tensor, std::int64_t rows, std::int64_t period,
                     const RowMaker& maker) {
  const std::size_t bytes = row_bytes(tensor);
  const auto piece = static_cast<std::int64_t>(kStagingBytes / bytes);
  const bool repeats = period <= piece;  // the pool stays where it is
  const std::int64_t step = repeats ? period : piece;
  for (std::int64_t begin = 0; begin < rows; begin += step) {
    const std::int64_t count = std::min(step, rows - begin);
    if (!repeats || begin == 0) {
#pragma omp parallel for schedule(static)
      for (std::int64_t n = 0; n < count; ++n) {
        maker((begin + n) % period, staging_.data() + static_cast<std::size_t>(n) * bytes);
      }
    }
    space_.copy_in(static_cast<std::byte*>(tensor.data) + static_cast<std::size_t>(begin) * bytes,
                   staging_.data(), static_cast<std::size_t>(count) * bytes);
  }
}

const Request& BenchData::owner(std::int64_t row) const {
  const auto behind =
      std::upper_bound(requests_.begin(), requests_.end(), row,
                       [](std::int64_t r, const Request& request) { return r < request.q_begin; });
  return *std::prev(behind);
}

Tensor BenchData::make_queries(int role, DType dtype, std::int64_t heads, std::int64_t dim) {
  const Tensor tensor = make(dtype, {spec_.rows(), heads, dim});
  const testkit::Values values(spec_, static_cast<Role>(role), dim, heads,
                               problem_.bounds.max_seqlen_k);
  const bool pooled = static_cast<Role>(role) == Role::Query;
  const std::int64_t period = pooled ? std::min(kPoolRows, spec_.rows()) : spec_.rows();
  const auto item = static_cast<std::size_t>(size_in_bytes(dtype, 1));
  fill(tensor, spec_.rows(), period, [&](std::int64_t row, std::byte* out) {
    const Request& r = owner(row);
    std::array<float, kMaxDim> numbers;
    for (std::int64_t h = 0; h < heads; ++h) {
      values.row(r.index, r.offset + row - r.q_begin, h, numbers.data());
      testkit::store(numbers.data(), dim, dtype, out + static_cast<std::size_t>(h * dim) * item);
    }
  });
  return tensor;
}

Tensor BenchData::make_keys(int role, std::int64_t heads, std::int64_t dim) {
  const Format format = format_of(spec_, static_cast<Role>(role));
  const DType dtype = format.storage;
  const std::int64_t page = spec_.page_size;
  const std::int64_t ragged = requests_.back().k_begin + requests_.back().seqlen_k;
  const Tensor tensor =
      page > 0 ? make(dtype, {pages_, page, heads, dim}) : make(dtype, {ragged, heads, dim});
  Tensor rows = tensor;  // keys outermost
  if (page > 0) rows = view_of(tensor.data, dtype, {pages_ * page, heads, dim});
  const testkit::Values values(spec_, static_cast<Role>(role), dim, heads,
                               problem_.bounds.max_seqlen_k);
  const std::int64_t head_bytes = size_in_bytes(dtype, dim);
  const bool scaled = format.scale != Scale::None && format.scale != Scale::Group;
  const auto locate = [&](std::int64_t row) -> std::pair<std::int64_t, std::int64_t> {
    if (page > 0) {
      const auto [request, logical] = page_owners_[static_cast<std::size_t>(row / page)];
      return {request, logical * page + row % page};
    }
    const auto behind =
        std::upper_bound(requests_.begin(), requests_.end(), row,
                         [](std::int64_t n, const Request& r) { return n < r.k_begin; });
    return {std::prev(behind)->index, row - std::prev(behind)->k_begin};
  };
  fill(rows, rows.shape[0], std::max<std::int64_t>(rows.shape[0], 1),
       [&](std::int64_t row, std::byte* out) {
         const auto [request, key] = locate(row);
         if (key >= requests_[static_cast<std::size_t>(request)].seqlen_k) {
           std::memset(out, 0xff, row_bytes(rows));
           return;
         }
         std::array<float, kMaxDim> numbers{};
         for (std::int64_t h = 0; h < heads; ++h) {
           values.row(request, key, h, numbers.data());
           if (scaled) {
             const float scale = scale_of(spec_, static_cast<Role>(role), h);
             for (float& x : numbers) x /= scale;
           }
           float scale = 1;
           for (std::int64_t d = 0; format.group > 0 && d < dim; ++d) {
             if (d % format.group == 0)
               scale = group_scale(spec_, static_cast<Role>(role),
                                   ((row * heads + h) * dim + d) / format.group);
             numbers[static_cast<std::size_t>(d)] /= scale;
           }
           testkit::store(numbers.data(), dim, dtype,
                          out + static_cast<std::size_t>(h * head_bytes));
         }
       });
  return tensor;
}

/// Codes of the index keys, as good as they can be, and their bounds, page by page.
void BenchData::make_filter() {
  const std::int64_t heads = spec_.index_heads_k, dim = spec_.dim_index(), page = spec_.page_size;
  const DType dtype = operands_.index_k.dtype;
  operands_.index_k8 = make(DType::I8, {pages_, page, heads, dim});
  operands_.index_k8_bounds = make(DType::F32, {pages_, heads, 3});
  std::vector<float> bounds(static_cast<std::size_t>(pages_ * heads * 3));
  const testkit::Values values(spec_, Role::IndexKey, dim, heads, problem_.bounds.max_seqlen_k);
  const auto up = [](double x) {
    return std::nextafter(static_cast<float>(x * (1 + 1e-9)),
                          std::numeric_limits<float>::infinity());
  };
  fill(operands_.index_k8, pages_, pages_, [&](std::int64_t at, std::byte* out) {
    const auto [request, logical] = page_owners_[static_cast<std::size_t>(at)];
    const std::int64_t first = logical * page;
    const std::int64_t keys =
        std::min(page, requests_[static_cast<std::size_t>(request)].seqlen_k - first);
    std::memset(out, 0x7f, static_cast<std::size_t>(page * heads * dim));
    std::vector<float> rows(static_cast<std::size_t>(keys * dim));
    std::vector<double> rotated(static_cast<std::size_t>(dim));
    std::array<std::byte, kMaxDim * sizeof(float)> stored{};
    for (std::int64_t h = 0; h < heads; ++h) {
      float largest = 0;
      for (std::int64_t key = 0; key < keys; ++key) {
        float* const row = rows.data() + key * dim;
        values.row(request, first + key, h, row);
        testkit::store(row, dim, dtype, stored.data());
        testkit::load(stored.data(), dtype, dim, row);
        if (spec_.rotated) {
          std::copy_n(row, dim, rotated.begin());
          testkit::rotate(rotated);
          std::copy_n(rotated.begin(), dim, row);
        }
        for (std::int64_t d = 0; d < dim; ++d) largest = std::max(largest, std::fabs(row[d]));
      }
      const float scale = largest / 127;
      double error = 0, norm = 0;
      for (std::int64_t key = 0; key < keys; ++key) {
        double off = 0, length = 0;
        for (std::int64_t d = 0; d < dim; ++d) {
          const float x = rows[static_cast<std::size_t>(key * dim + d)];
          const float ratio = scale > 0 ? x / scale : 0;
          const auto code = static_cast<std::int8_t>(std::nearbyint(ratio));
          const double value = static_cast<double>(code) * scale;
          off += (x - value) * (x - value);
          length += value * value;
          out[(key * heads + h) * dim + d] = static_cast<std::byte>(code);
        }
        error = std::max(error, std::sqrt(off));
        norm = std::max(norm, std::sqrt(length));
      }
      float* const bound = bounds.data() + (at * heads + h) * 3;
      bound[0] = scale;
      bound[1] = up(spec_.rotated ? error + 0x1p-22 * (error + norm) : error);  // rounded once
      bound[2] = up(norm);
    }
  });
  space_.copy_in(operands_.index_k8_bounds.data, bounds.data(), bounds.size() * sizeof(float));
}

/// One for all, or one a head, or none, the host's copy of which is kept; or those of groups, and
/// then the one for all in `all`.
Tensor BenchData::make_scales(int role, const Tensor& keys, Tensor* all) {
  const Format format = format_of(spec_, static_cast<Role>(role));
  if (format.scale == Scale::None) return {};
  if (format.group > 0) {
    if (format.scale == Scale::GroupTensor) *all = make_shared_scales(role, 1);
    return make_group_scales(role, keys, format.group);
  }
  return make_shared_scales(role, format.scale == Scale::Head ? keys.shape[keys.rank - 2] : 1);
}

Tensor BenchData::make_group_scales(int role, const Tensor& keys, std::int64_t group) {
  std::vector<std::int64_t> shape(keys.shape.begin(), keys.shape.begin() + keys.rank);
  shape.back() /= group;
  const Tensor tensor = make(DType::E4M3, shape);
  const std::int64_t heads = shape[shape.size() - 2], row_groups = heads * shape.back();
  const std::int64_t count = shape.size() == 4 ? shape[0] * shape[1] : shape[0];
  const Tensor rows = view_of(tensor.data, DType::E4M3, {count, heads, shape.back()});
  fill(rows, count, std::max<std::int64_t>(count, 1), [&](std::int64_t row, std::byte* out) {
    for (std::int64_t n = 0; n < row_groups; ++n) {
      const float scale = group_scale(spec_, static_cast<Role>(role), row * row_groups + n);
      testkit::store(&scale, 1, DType::E4M3, out + n);
    }
  });
  return tensor;
}

Tensor BenchData::make_shared_scales(int role, std::int64_t count) {
  std::vector<float>& host = host_scales_[role];
  for (std::int64_t h = 0; h < count; ++h)
    host.push_back(scale_of(spec_, static_cast<Role>(role), h));
  const Tensor tensor = make(DType::F32, {static_cast<std::int64_t>(host.size())});
  space_.copy_in(tensor.data, host.data(), host.size() * sizeof(float));
  return tensor;
}

Tensor BenchData::make_scores() {
  const std::int64_t columns = testkit::ceil_div(problem_.bounds.max_seqlen_k, spec_.block_size);
  const std::int64_t row_items = spec_.heads_index() * columns;
  const Tensor tensor = make(DType::F32, {spec_.rows(), spec_.heads_index(), columns});
  const testkit::Stream64 random(spec_.seed, kScoreStream);
  fill(tensor, spec_.rows(), spec_.rows(), [&](std::int64_t row, std::byte* out) {
    for (std::int64_t n = 0; n < row_items; ++n) {
      const float value = score(spec_, random, static_cast<std::uint64_t>(row * row_items + n));
      std::memcpy(out + static_cast<std::size_t>(n) * sizeof(float), &value, sizeof(value));
    }
  });
  return tensor;
}

Tensor BenchData::make_lists() {
  const Tensor tensor = make(DType::I32, {spec_.rows(), spec_.heads_kv, spec_.topk});
  fill(tensor, spec_.rows(), spec_.rows(), [&](std::int64_t row, std::byte* out) {
    const Request& r = owner(row);
    for (std::int64_t h = 0; h < spec_.heads_kv; ++h) {
      std::vector<std::int32_t> list = testkit::block_list(spec_, r, row - r.q_begin, h);
      list.resize(static_cast<std::size_t>(spec_.topk), -1);
      const std::size_t bytes = list.size() * sizeof(std::int32_t);
      std::memcpy(out + static_cast<std::size_t>(h) * bytes, list.data(), bytes);
    }
  });
  return tensor;
}

void BenchData::poison() {
  const Tensor& v = operands_.v;
  const auto item = static_cast<std::size_t>(size_in_bytes(v.dtype, 1));
  const float nan = std::numeric_limits<float>::quiet_NaN();
  std::array<std::byte, sizeof(float)> stored{};
  testkit::store(&nan, 1, v.dtype, stored.data());
  for (std::int64_t h = 0; h < spec_.heads_kv; ++h) {
    const auto at = static_cast<std::size_t>(h * spec_.dim_v()) * item;
    space_.copy_in(static_cast<std::byte*>(v.data) + at, stored.data(), item);
  }
}

Operands BenchData::copy(const Operands& operands) {
  Operands twin = operands;
  const auto stream = static_cast<cudaStream_t>(space_.stream().handle);
  testkit::for_each_tensor(twin, [&](Tensor& tensor) {
    void* data = allocate(bytes_of(tensor));
    if (cudaMemcpyAsync(data, tensor.data, bytes_of(tensor), cudaMemcpyDeviceToDevice, stream) !=
        cudaSuccess) {
      throw Error(ErrorCode::Device, "", "copy on the device failed");
    }
    tensor.data = data;
  });
  space_.synchronize();
  return twin;
}

std::shared_ptr<std::byte[]> BenchData::fetch(const Tensor& tensor, std::int64_t begin,
                                              std::int64_t count) {
  const std::size_t bytes = row_bytes(tensor);
  const std::shared_ptr<std::byte[]> memory(new std::byte[static_cast<std::size_t>(count) * bytes]);
  space_.copy_out(
      memory.get(),
      static_cast<const std::byte*>(tensor.data) + static_cast<std::size_t>(begin) * bytes,
      static_cast<std::size_t>(count) * bytes);
  return memory;
}

/// A request's keys one after the other, whatever pages they lie in.
Tensor BenchData::fetch_keys(const Tensor& keys, const Request& request,
                             std::vector<std::shared_ptr<std::byte[]>>& memory) {
  const std::int64_t count = request.seqlen_k;
  if (keys.rank == 3) {
    memory.push_back(fetch(keys, request.k_begin, count));
    return view_of(memory.back().get(), keys.dtype, {count, keys.shape[1], keys.shape[2]});
  }
  const std::size_t page_bytes = row_bytes(keys);
  const std::int64_t pages = testkit::ceil_div(count, spec_.page_size);
  memory.emplace_back(new std::byte[static_cast<std::size_t>(pages) * page_bytes]);
  for (std::int64_t p = 0; p < pages; ++p) {
    const std::int32_t page = testkit::int_at(host_batch_.page_table, request.index, p);
    space_.copy_out(
        memory.back().get() + static_cast<std::size_t>(p) * page_bytes,
        static_cast<const std::byte*>(keys.data) + static_cast<std::size_t>(page) * page_bytes,
        page_bytes);
  }
  return view_of(memory.back().get(), keys.dtype, {count, keys.shape[2], keys.shape[3]});
}

/// Bounds of its pages, for each 16 rows of what fetch_keys gives.
Tensor BenchData::fetch_bounds(const Tensor& bounds, const Request& request,
                               std::vector<std::shared_ptr<std::byte[]>>& memory) {
  const std::int64_t groups = testkit::ceil_div(request.seqlen_k, kFilterRows);
  const std::size_t bytes = row_bytes(bounds);
  memory.emplace_back(new std::byte[static_cast<std::size_t>(groups) * bytes]);
  std::byte* const to = memory.back().get();
  for (std::int64_t group = 0; group < groups; ++group) {
    const std::int64_t column = group * kFilterRows / spec_.page_size;
    std::byte* const mine = to + static_cast<std::size_t>(group) * bytes;
    if (group * kFilterRows % spec_.page_size != 0) {
      std::memcpy(mine, mine - bytes, bytes);
      continue;
    }
    const std::int32_t page = testkit::int_at(host_batch_.page_table, request.index, column);
    space_.copy_out(
        mine, static_cast<const std::byte*>(bounds.data) + static_cast<std::size_t>(page) * bytes,
        bytes);
  }
  return view_of(to, DType::F32, {groups, bounds.shape[1], 3});
}

HostRow BenchData::host_row(const Problem& problem, const Operands& operands,
                            const Request& request, std::int64_t i) {
  HostRow host{.problem = problem, .operands = operands, .memory = {}};
  Problem& p = host.problem;
  p.device = {};
  p.options = {};
  p.bounds.batch = p.bounds.total_q = p.bounds.max_seqlen_q = 1;
  p.bounds.max_seqlen_k = request.seqlen_k;
  p.bounds.page_size = 0;
  Operands& o = host.operands;
  if (p.selection.precision == Precision::Exact) {
    p.index.filter.reset();  // the oracle reads none
    o.index_k8 = o.index_k8_bounds = {};
  }
  for (Tensor* t : {&o.q, &o.index_q, &o.scores_in, &o.block_ids_in, &o.out, &o.lse, &o.scores,
                    &o.block_ids, &o.chosen_scores}) {
    if (!*t) continue;
    host.memory.push_back(fetch(*t, request.q_begin + i, 1));
    t->data = host.memory.back().get();
    t->shape[0] = 1;
    t->device = {};
  }
  const std::array<std::pair<Tensor*, Role>, 6> scales{{{&o.k_scale, Role::Key},
                                                        {&o.v_scale, Role::Value},
                                                        {&o.index_k_scale, Role::IndexKey},
                                                        {&o.k_global_scale, Role::Key},
                                                        {&o.v_global_scale, Role::Value},
                                                        {&o.index_k_global_scale, Role::IndexKey}}};
  for (const auto& [tensor, role] : scales) {
    if (!*tensor || tensor->dtype != DType::F32) continue;  // those of groups lie as keys do
    const std::vector<float>& numbers = host_scales_.at(static_cast<int>(role));
    *tensor = view_of(numbers.data(), DType::F32, {static_cast<std::int64_t>(numbers.size())});
  }
  const std::array<std::int32_t, 4> numbers{0, 1, static_cast<std::int32_t>(request.seqlen_k),
                                            static_cast<std::int32_t>(request.offset + i)};
  host.memory.emplace_back(new std::byte[sizeof(numbers)]);
  std::memcpy(host.memory.back().get(), numbers.data(), sizeof(numbers));
  const auto* at = reinterpret_cast<const std::int32_t*>(host.memory.back().get());
  o.batch = {};
  o.batch.cu_seqlens_q = view_of(at, DType::I32, {2});
  o.batch.seqlens_k = view_of(at + 2, DType::I32, {1});
  o.batch.q_offsets = view_of(at + 3, DType::I32, {1});
  return host;
}

std::vector<HostRow> BenchData::sample(const Problem& problem, const Operands& operands,
                                       int count) {
  const std::int64_t used = spec_.rows() - spec_.pad_rows;
  std::vector<std::int64_t> rows{0, used - 1};
  const testkit::Stream64 random(spec_.seed, kSampleStream);
  for (int n = 2; n < count; ++n) {
    rows.push_back(random.below(static_cast<std::uint64_t>(n), used));
  }
  std::sort(rows.begin(), rows.end());
  rows.erase(std::unique(rows.begin(), rows.end()), rows.end());
  std::vector<HostRow> sampled;
  const std::array<Tensor Operands::*, 7> of_keys{
      &Operands::k,       &Operands::v,       &Operands::index_k,      &Operands::index_k8,
      &Operands::k_scale, &Operands::v_scale, &Operands::index_k_scale};
  const auto lies_by_key = [&](Tensor Operands::*field) {
    return (operands.*field).rank >= 3;  // scales that are shared do not
  };
  const Request* last = nullptr;
  Operands keys;  // of the last request
  std::vector<std::shared_ptr<std::byte[]>> memory;
  for (const std::int64_t row : rows) {
    const Request& r = owner(row);
    HostRow host = host_row(problem, operands, r, row - r.q_begin);
    if (&r != last) {
      memory.clear();
      keys = {};
      for (const auto field : of_keys) {
        if (lies_by_key(field) && host.operands.*field)
          keys.*field = fetch_keys(operands.*field, r, memory);
      }
      if (host.operands.index_k8)
        keys.index_k8_bounds = fetch_bounds(operands.index_k8_bounds, r, memory);
      last = &r;
    }
    for (const auto field : of_keys) {
      if (host.operands.*field && lies_by_key(field)) host.operands.*field = keys.*field;
    }
    if (host.operands.index_k8) host.operands.index_k8_bounds = keys.index_k8_bounds;
    host.memory.insert(host.memory.end(), memory.begin(), memory.end());
    sampled.push_back(std::move(host));
  }
  return sampled;
}

Operands BenchData::host_view(const Operands& operands) {
  Operands view = operands;
  view.batch = host_batch_;
  Tensor& ids = view.block_ids_in ? view.block_ids_in : view.block_ids;
  if (!ids) return view;
  ids_.resize(bytes_of(ids) / sizeof(std::int32_t));
  space_.copy_out(ids_.data(), ids.data, bytes_of(ids));
  ids.data = ids_.data();
  return view;
}

}  // namespace msa::cli
