// SPDX-License-Identifier: MIT
// Plans by the value of their problem, the least recently used given up first. The caller holds the
// GIL, which is the lock. Workspaces are never kept.
#pragma once

#include <cstdint>
#include <list>
#include <string>
#include <string_view>
#include <unordered_map>

#include "msa/c.h"

namespace msa_python {

class PlanCache {
 public:
  PlanCache() = default;
  ~PlanCache() { clear(); }
  PlanCache(const PlanCache&) = delete;
  PlanCache& operator=(const PlanCache&) = delete;

  /// A count of the plan for the caller, or null.
  msa_plan* find(const std::string& key);
  /// Keeps a count of its own.
  void insert(const std::string& key, msa_plan* plan);
  void clear();
  void resize(std::size_t capacity);

  std::size_t size() const { return entries_.size(); }
  std::size_t capacity() const { return capacity_; }
  std::uint64_t hits() const { return hits_; }
  std::uint64_t misses() const { return misses_; }

 private:
  struct Entry {
    std::string key;
    msa_plan* plan;
  };
  void shrink(std::size_t size);

  std::list<Entry> entries_;  // the last used first
  std::unordered_map<std::string_view, std::list<Entry>::iterator> index_;
  std::size_t capacity_ = 256;
  std::uint64_t hits_ = 0;
  std::uint64_t misses_ = 0;
};

/// The problem as bytes, and what the environment adds to its options.
std::string key_of(const msa_problem& problem);

/// Upper limits rounded up, so that a sequence that grows token by token meets few plans: eight
/// steps between powers of two, and never below `floor`.
std::int64_t bucket(std::int64_t bound, std::int64_t floor);

}  // namespace msa_python
