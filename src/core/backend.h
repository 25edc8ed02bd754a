// SPDX-License-Identifier: MIT
// The interface between the core and a backend, and the ordered table of backends. A backend says
// why it cannot serve a problem, or plans it; what it planned is immutable and runs validated
// calls. Backends never see each other.
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "core/call.h"
#include "core/peers.h"
#include "msa/info.h"

namespace msa::core {

/// What a Plan holds: a problem that one backend accepted and all that was decided for it.
class Planned {
 public:
  explicit Planned(const Problem& planned) : problem(planned) {}
  Planned(const Planned&) = delete;
  Planned& operator=(const Planned&) = delete;
  virtual ~Planned() = default;

  /// Runs a call that passed validate_call (metadata). Contents (lengths, ids) are the backend's to
  /// check: see core/contents.h for the host-side checks. Allocates nothing, keeps no state, uses
  /// only `workspace`.
  virtual void run(const Call& call, Workspace workspace, Stream stream) const = 0;
  /// The same among ranks; nothing is written where a plan has no such way.
  virtual void attend(const Call&, const AttendCall&, Workspace, Stream) const { no_peers(); }
  /// Reads the status word of the last run; backends whose run throws have none.
  virtual std::optional<Fault> check(Workspace, Stream) const { return std::nullopt; }
  /// What was decided, one "key value" a line: tiles, splits, threads.
  virtual std::string decisions() const = 0;

  const Problem problem;
  std::string backend;
  std::string isa;
  std::size_t workspace_bytes = 0;

 protected:
  [[noreturn]] void no_peers() const;
};

class Backend {
 public:
  virtual ~Backend() = default;
  virtual std::string_view name() const = 0;
  /// Why this backend does not serve the (legal) problem; empty: it does. Looks at host numbers and
  /// the machine only.
  virtual std::string rejects(const Problem& problem) const = 0;
  /// Plans a problem that it does not reject.
  virtual std::shared_ptr<const Planned> plan(const Problem& problem) const = 0;
  virtual BackendInfo info() const = 0;
  /// Merges over ranks, of calls that passed validate: only GPUs read each other's memory.
  virtual void choose(const ChooseCall&, Stream) const { no_peers(); }
  virtual void join(const JoinCall&, Stream) const { no_peers(); }
  virtual void deal(const DealCall&, Stream) const { no_peers(); }

 private:
  [[noreturn]] void no_peers() const;
};

/// In order of preference: cuda (where built), cpu, reference.
std::span<const Backend* const> backends();

// One object each, defined by the backend's own folder; none has mutable state.
const Backend& cuda_backend();  // only where MSA_WITH_CUDA is defined
const Backend& cpu_backend();
const Backend& reference_backend();

}  // namespace msa::core
