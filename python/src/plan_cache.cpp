// SPDX-License-Identifier: MIT
#include "plan_cache.h"

#include <algorithm>
#include <bit>
#include <cstdlib>

namespace msa_python {

msa_plan* PlanCache::find(const std::string& key) {
  const auto found = index_.find(key);
  if (found == index_.end()) {
    ++misses_;
    return nullptr;
  }
  ++hits_;
  entries_.splice(entries_.begin(), entries_, found->second);
  return msa_plan_share(found->second->plan);
}

void PlanCache::insert(const std::string& key, msa_plan* plan) {
  if (capacity_ == 0 || index_.contains(key)) return;  // another thread planned the same
  shrink(capacity_ - 1);
  entries_.push_front({key, msa_plan_share(plan)});
  index_.emplace(entries_.front().key, entries_.begin());
}

void PlanCache::shrink(std::size_t size) {
  while (entries_.size() > size) {
    index_.erase(entries_.back().key);
    msa_plan_free(entries_.back().plan);
    entries_.pop_back();
  }
}

void PlanCache::clear() {
  shrink(0);
  hits_ = misses_ = 0;
}

void PlanCache::resize(std::size_t capacity) {
  capacity_ = capacity;
  shrink(capacity);
}

std::string key_of(const msa_problem& problem) {
  // Up to the last number: what follows are padding and pointers.
  constexpr std::size_t first = offsetof(msa_problem, op);
  constexpr std::size_t end = MSA_STRUCT_SIZE(msa_problem, index_k_given);
  std::string key(reinterpret_cast<const char*>(&problem) + first, end - first);
  key.append(reinterpret_cast<const char*>(&problem.index_filter), sizeof problem.index_filter);
  key.append(reinterpret_cast<const char*>(&problem.index_filter_given),
             sizeof problem.index_filter_given);
  key.append(reinterpret_cast<const char*>(&problem.precision), sizeof problem.precision);
  key.append(reinterpret_cast<const char*>(&problem.grad_dtype), sizeof problem.grad_dtype);
  key.append(reinterpret_cast<const char*>(&problem.accumulate), sizeof problem.accumulate);
  key.append(reinterpret_cast<const char*>(&problem.index_scale), sizeof problem.index_scale);
  key.append(reinterpret_cast<const char*>(&problem.index_scale_given),
             sizeof problem.index_scale_given);
  const msa_options& options = problem.options;
  key.append(reinterpret_cast<const char*>(&options.threads), sizeof options.threads);
  key.append(reinterpret_cast<const char*>(&options.batch_invariant),
             sizeof options.batch_invariant);
  for (const char* text :
       {options.backend, options.isa, static_cast<const char*>(std::getenv("MSA_BACKEND")),
        static_cast<const char*>(std::getenv("MSA_ISA"))}) {
    key += text != nullptr ? text : "";
    key += '\n';
  }
  return key;
}

std::int64_t bucket(std::int64_t bound, std::int64_t floor) {
  if (bound <= 0 || bound > INT32_MAX) return bound;  // what is illegal stays so
  const std::int64_t power =
      static_cast<std::int64_t>(std::bit_floor(static_cast<std::uint64_t>(bound)));
  const std::int64_t step = std::max<std::int64_t>({power / 8, floor, 1});
  return std::min<std::int64_t>((bound + step - 1) / step * step, INT32_MAX);
}

}  // namespace msa_python
