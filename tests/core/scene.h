// SPDX-License-Identifier: MIT
// A small legal call of each operation with every optional tensor given, whose arguments tests can
// spoil one by one. Each tensor has memory of its own, filled with a sentinel, so that any write
// shows.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "msa/msa.h"

namespace msa::test {

/// How an extent relates to what the plan and the other tensors say.
enum class Dim {
  Bound,    // at its planned bound: one more is too many
  Exact,    // one more and one less are wrong
  AtLeast,  // one less is too few
  Free,
};

struct Arg {
  std::string name;  // "q", "batch.page_table", "outs[1]"
  bool output = false;
  bool optional = false;         // may be left out without a change of the plan
  bool dense_innermost = false;  // the last stride must be 1
  std::vector<Dim> dims;
  Tensor tensor{};
  std::vector<std::uint64_t> memory{};  // 8-byte aligned storage with room around the tensor
};

enum class Keys { Ragged, Paged };

class Scene {
 public:
  Scene(Op op, Keys keys);

  Tensor& tensor(const std::string& name);
  Arg* find(const std::string& name);
  std::int32_t& i32(const std::string& name, std::int64_t index);  // of a contiguous tensor
  std::vector<std::vector<std::uint64_t>> snapshot() const;

  /// Plans for the backend and runs with these tensors.
  void run(const std::string& backend);
  void run(const Plan& plan, Workspace workspace);
  /// The one-call form, which reads the problem off the tensors.
  void run_once(const std::string& backend);
  Plan plan(const std::string& backend) const;

  Problem problem{};
  std::vector<std::unique_ptr<Arg>> args{};
  std::size_t drop_parts = 0;  // parts left out at the end of each list

 private:
  struct Spec {
    const char* name;
    DType dtype;
    std::vector<std::int64_t> shape;
    std::vector<Dim> dims;
    bool dense = false;
    bool optional = false;
  };
  void add(const Spec& spec, bool output);
  void add_keys(const char* name, DType dtype, std::int64_t heads, std::int64_t dim, Dim first);
  void add_attention();
  void add_index(Dim rows);
  void add_batch();
  void add_lists(Dim rows);
  void add_outputs();
  void add_parts();
  void fill();
  Tensor get(const std::string& name) const;
  Batch batch() const;
  std::vector<Tensor> parts(const std::string& name) const;
  template <class Use>
  void with_args(const Use& use) const;

  Keys keys_;
};

/// Every operation, ragged and, where it takes keys, paged.
std::vector<std::pair<Op, Keys>> all_scenes();

/// Names of the backends that serve the scene on this machine.
std::vector<std::string> serving_backends(const Problem& problem);

}  // namespace msa::test
