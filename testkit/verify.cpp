// SPDX-License-Identifier: MIT
// verify(): see verify.h.
#include "testkit/verify.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <memory>
#include <new>
#include <optional>

#include "msa/info.h"
#include "testkit/generate.h"
#include "testkit/making.h"
#include "testkit/ranks.h"
#include "testkit/requests.h"

namespace msa::testkit {

namespace {

std::string place_of(std::int64_t request, std::int64_t row) {
  const std::string text = "request " + std::to_string(request);
  return row < 0 ? text : text + ", query row " + std::to_string(row);
}

Bits bits_of(Operands operands) {
  Bits bits;
  const std::size_t inputs = first_output(operands);
  std::size_t index = 0;
  for_each_tensor(operands, [&](Tensor& t) {
    if (index++ < inputs) return;
    std::vector<std::byte>& bytes = bits.emplace_back();
    std::int64_t elements = 1;
    for (int d = 0; d < t.rank; ++d) elements *= t.shape[static_cast<std::size_t>(d)];
    bytes.reserve(static_cast<std::size_t>(size_in_bytes(t.dtype, elements)));
    for_each_run(t, [&](const std::byte* run, std::size_t count) {
      bytes.insert(bytes.end(), run, run + count);
    });
  });
  return bits;
}

Bits output_bits(const Data& data) { return bits_of(data.operands()); }

class Verification {
 public:
  Verification(const Case& spec, const VerifyOptions& options)
      : spec_(spec),
        options_(options),
        space_(options.space != nullptr ? *options.space : host_memory()),
        made_(options.memory != nullptr ? options.memory->of(spec)
                                        : std::make_shared<MadeCase>(spec)),
        data_(made_->data) {
    expect_rankable(spec);
    if (spec.ranks > 0 && space_.device().type != DeviceType::Cpu)
      throw CaseError("ranks: expected host memory, where shards are cut");
    problem_ = data_.problem();
    problem_.device = space_.device();
    const bool invariant = problem_.options.batch_invariant || options.under_test.batch_invariant;
    problem_.options = options.under_test;
    problem_.options.batch_invariant = invariant;
    outcome_.repro = repro_command(spec, options.under_test);
  }

  Outcome run() {
    std::optional<Plan> plan;
    try {
      plan = make_plan(problem_);
    } catch (const Error& error) {
      if (error.code() == ErrorCode::Unsupported) return finish(Result::Rejected, error.what());
      return finish(Result::Failed, std::string("make_plan threw: ") + error.what());
    }
    outcome_.backend = plan->backend();
    outcome_.isa = plan->isa();
    const std::string wrong = wrong_backend();
    if (!wrong.empty()) return finish(Result::Failed, wrong);
    return spec_.corrupt == Corrupt::None ? run_good(*plan) : run_corrupt(*plan);
  }

 private:
  Outcome finish(Result result, const std::string& reason) {
    outcome_.result = result;
    outcome_.reason = reason;
    return outcome_;
  }

  /// The fault of a case with `corrupt`, under the name of the very argument that was spoilt.
  bool is_expected(const Error& error) const {
    return error.code() == ErrorCode::InvalidContent &&
           error.argument() == data_.planted().argument;
  }

  /// A GPU's kernels may refuse strides and alignments, which planning does not see.
  bool may_refuse(const Error& error) const {
    return space_.device().type == DeviceType::Cuda && error.code() == ErrorCode::InvalidArgument &&
           !error.argument().empty();
  }

  /// A forced backend or instruction set must be the one in force.
  std::string wrong_backend() const {
    const Options& wanted = options_.under_test;
    if (!wanted.backend.empty() && wanted.backend != outcome_.backend) {
      return "asked for backend " + wanted.backend + ", planned for " + outcome_.backend;
    }
    if (!wanted.isa.empty() && wanted.isa != outcome_.isa) {
      return "asked for instruction set " + wanted.isa + ", planned for " + outcome_.isa;
    }
    return "";
  }

  Outcome run_good(const Plan& plan) {
    const Outcome ran = execute(plan);
    if (ran.result != Result::Passed) return ran;
    if (spec_.op == Op::MsaAttention && !spec_.ids) return run_with_ids();
    const Outcome compared = judge_outputs();
    if (compared.result != Result::Passed) return compared;
    std::string difference = difference_from_f32();
    if (difference.empty()) difference = difference_of_filter();
    return difference.empty() ? compared : finish(Result::Failed, difference);
  }

  /// Runs, and what must hold whatever the outputs are.
  Outcome execute(const Plan& plan) {
    GuardedWorkspace workspace(plan.workspace_bytes(), space_);
    Placement placement(data_, space_);
    Bits first;
    for (int n = 0; n < options_.repeats; ++n) {
      workspace.poison();
      try {
        run_once(plan, placement.prepare(), workspace.view());
      } catch (const Error& error) {
        if (!may_refuse(error))
          return finish(Result::Failed, std::string("run threw: ") + error.what());
        placement.fetch();
        const std::string touched = data_.touched();
        return touched.empty() ? finish(Result::Rejected, error.what())
                               : finish(Result::Failed, "rejected, but " + touched);
      }
      placement.fetch();
      if (!workspace.guards_intact())
        return finish(Result::Failed, "the workspace's red zone was written");
      const std::string damage = data_.damage();
      if (!damage.empty()) return finish(Result::Failed, damage);
      if (const auto fault = check(plan, workspace.view(), space_.stream())) {
        return finish(Result::Failed,
                      "a legal call left a fault: " + place_of(fault->request, fault->row) + ": " +
                          fault->what);
      }
      if (options_.repeats == 1) break;
      Bits bits = output_bits(data_);
      if (n > 0 && bits != first) {
        return finish(Result::Failed,
                      "run " + std::to_string(n + 1) + " gave other bits than the first");
      }
      first = std::move(bits);
    }
    return finish(Result::Passed, "");
  }

  void run_once(const Plan& plan, const Operands& operands, Workspace workspace) const {
    if (spec_.ranks > 0) return run_over_ranks(spec_, problem_, operands);
    msa::testkit::run(plan, operands, workspace, space_.stream());
  }

  /// The outputs against the oracle, which has nothing new to say of bits that it has seen.
  Outcome judge_outputs() {
    if (options_.memory == nullptr) return compare_outputs(data_.operands());
    Bits bits = output_bits(data_);
    if (made_->good == bits) {
      outcome_.report = made_->report;
      return finish(Result::Passed, "");
    }
    const Outcome compared = compare_outputs(data_.operands());
    if (compared.result != Result::Passed) return compared;
    made_->good = std::move(bits);
    made_->report = compared.report;
    return compared;
  }

  Outcome compare_outputs(const Operands& operands) {
    CompareOptions compare_options = options_.compare;
    if (options_.memory != nullptr) compare_options.memory = &options_.memory->oracle();
    compare_options.exact_scores = has_exact_scores(spec_);
    compare_options.independent_errors = has_independent_errors(spec_);
    compare_options.keys_alike = has_keys_alike(spec_);
    Problem host = problem_;
    host.device = {};
    outcome_.report = compare(host, operands, compare_options);
    return finish(outcome_.report.ok ? Result::Passed : Result::Failed, outcome_.report.what);
  }

  /// Whether 16-bit outputs come from f32 numbers. The reference rounds fp64 once, and a GPU merges
  /// states in fp64 where the result is f32.
  bool rounds_f32() const {
    const bool merges_on_gpu = spec_.op == Op::MergeStates && outcome_.backend == "cuda";
    return outcome_.backend != "reference" && !merges_on_gpu;
  }

  /// The twin rule, with a second call that writes f32. Cases so large that the twin's output would
  /// not fit anywhere do without.
  std::string difference_from_f32() const {
    constexpr std::int64_t kMostElements = std::int64_t{1} << 26;
    if (derives(spec_.op)) return gradients_from_f32();
    const Tensor& out = data_.operands().out;
    if (!out || out.dtype == DType::F32 || !rounds_f32()) return "";
    if (out.shape[0] * out.shape[1] * out.shape[2] > kMostElements) return "";
    Case wide = spec_;
    wide.out_dtype = DType::F32;
    wide.in_place = false;
    VerifyOptions once = options_;
    once.repeats = 1;
    Verification twin(wide, once);
    if (!supports(twin.problem_).supported) return "";
    const Outcome ran = twin.execute(make_plan(twin.problem_));
    if (ran.result == Result::Failed) return "with out=f32: " + ran.reason;
    if (ran.result == Result::Rejected) return "";
    return other_rounding(out, twin.data_.operands().out);
  }

  /// The same of gradients.
  std::string gradients_from_f32() const {
    if (spec_.gradient_type() == DType::F32 || !rounds_f32()) return "";
    Case wide = spec_;
    wide.grad_dtype = DType::F32;
    VerifyOptions once = options_;
    once.repeats = 1;
    Verification twin(wide, once);
    const Outcome ran = twin.execute(make_plan(twin.problem_));
    if (ran.result != Result::Passed) return "with grad_dtype=f32: " + ran.reason;
    for (const auto& [name, tensor] :
         {std::pair{"dq", &Operands::dq}, std::pair{"dk", &Operands::dk},
          std::pair{"dv", &Operands::dv}, std::pair{"d_index_q", &Operands::d_index_q},
          std::pair{"d_index_k", &Operands::d_index_k}}) {
      if (!(data_.operands().*tensor)) continue;
      const std::string difference =
          other_rounding(data_.operands().*tensor, twin.data_.operands().*tensor);
      if (!difference.empty()) return std::string(name) + " as " + difference;
    }
    return "";
  }

  /// With a filter and without, the bits are the same.
  std::string difference_of_filter() {
    if (!problem_.index.filter || spec_.op == Op::QuantizeIndex) return "";
    if (spec_.precision == Precision::Fast) return "";
    Case plain = spec_;
    plain.filter = plain.rotated = false;
    VerifyOptions once = options_;
    once.repeats = 1;
    Verification twin(plain, once);
    if (!supports(twin.problem_).supported) return "";
    const Outcome ran = twin.execute(make_plan(twin.problem_));
    if (ran.result != Result::Passed) return "without the filter: " + ran.reason;
    Operands with = data_.operands();
    with.candidates = {};
    return bits_of(with) == output_bits(twin.data_) ? "" : "the filter changed the outputs";
  }

  /// msa_attention that was not asked for its selection must compute what it computes when asked.
  Outcome run_with_ids() {
    Case asked = spec_;
    asked.ids = true;
    Verification twin(asked, options_);
    const Outcome outcome = twin.run();
    outcome_.report = outcome.report;
    if (outcome.result != Result::Passed) return finish(outcome.result, outcome.reason);
    Bits bits = output_bits(twin.data_);
    bits.pop_back();  // the ids come last
    if (bits != output_bits(data_)) {
      return finish(Result::Failed, "asking for the selection changed the output");
    }
    return finish(Result::Passed, "");
  }

  Outcome run_corrupt(const Plan& plan) {
    GuardedWorkspace workspace(plan.workspace_bytes(), space_);
    Placement placement(data_, space_);
    try {
      msa::testkit::run(plan, placement.prepare(), workspace.view(), space_.stream());
    } catch (const Error& error) {
      placement.fetch();
      const std::string touched = data_.touched();
      if (!touched.empty()) return finish(Result::Failed, "rejected, but " + touched);
      if (is_expected(error)) return finish(Result::Passed, "");
      if (may_refuse(error)) return finish(Result::Rejected, error.what());
      return finish(Result::Failed, std::string("expected a fault of ") + data_.planted().argument +
                                        ", got " + error.what());
    }
    placement.fetch();
    const std::string damage = data_.damage();
    if (!damage.empty()) return finish(Result::Failed, damage);
    return judge_fault(check(plan, workspace.view(), space_.stream()));
  }

  /// A GPU accepts the call; its status word names the fault, and what is spoilt counts as not
  /// visible.
  Outcome judge_fault(const std::optional<Fault>& fault) {
    const std::string corrupt = "corrupt=" + case_value(spec_, "corrupt");
    const PlantedFault& planted = data_.planted();
    if (!fault) {
      const bool gpu = space_.device().type == DeviceType::Cuda;
      if (gpu && planted.may_pass) return finish(Result::Passed, "");
      return finish(Result::Failed, "accepted " + corrupt);
    }
    if (fault->request != planted.request || fault->row != planted.row) {
      return finish(Result::Failed, corrupt + ": expected a fault of " +
                                        place_of(planted.request, planted.row) + ", got " +
                                        place_of(fault->request, fault->row) + ": " + fault->what);
    }
    // Of new keys that are stored, tests/gpu compares what a bad page leaves.
    if (spec_.op == Op::QuantizeKv || spec_.op == Op::QuantizeIndex)
      return finish(Result::Passed, "");
    if (planted.page_begin >= 0) return compare_without_last_page();
    const bool in_list = planted.row >= 0 && spec_.corrupt != Corrupt::BlockTwice;
    if (!in_list || spec_.op != Op::SparseAttention) return finish(Result::Passed, "");
    drop_first_id();
    return compare_outputs(data_.operands());
  }

  /// The oracle sees what a GPU makes of a bad last page: a shard of the sequence that ends in
  /// front of the page. A whole block that is not there may be selected, but not in the shard.
  Outcome compare_without_last_page() {
    const std::int64_t begin = data_.planted().page_begin;
    const bool selects = spec_.op == Op::SelectBlocks || spec_.op == Op::MsaAttention;
    if (selects && begin % spec_.block_size == 0) return finish(Result::Passed, "");
    Operands shard = data_.operands();
    const std::vector<Request> requests = requests_of(problem_, shard.batch);
    const std::size_t count = requests.size();
    std::vector<std::int32_t> held(count), offsets(count), begins(count), totals(count);
    for (std::size_t b = 0; b < count; ++b) {
      const Request& r = requests[b];
      const bool spoilt = r.index == data_.planted().request;
      held[b] = static_cast<std::int32_t>(spoilt ? begin : r.seqlen_k);
      offsets[b] = static_cast<std::int32_t>(r.offset);
      totals[b] = static_cast<std::int32_t>(r.key_offset + r.seqlen_k);
    }
    const auto vector = [&](std::vector<std::int32_t>& numbers) {
      return make_tensor(numbers.data(), DType::I32, {static_cast<std::int64_t>(count)});
    };
    shard.batch.seqlens_k = vector(held);
    shard.batch.q_offsets = vector(offsets);
    if (!shard.batch.key_offsets) {
      shard.batch.key_offsets = vector(begins);
      shard.batch.total_seqlens_k = vector(totals);
    }
    return compare_outputs(shard);
  }

  /// Takes the bad id out of its list, so that the oracle sees what a GPU makes of it.
  void drop_first_id() {
    const Tensor& ids = data_.operands().block_ids_in;
    const Batch& batch = data_.operands().batch;
    const PlantedFault& planted = data_.planted();
    const std::int64_t row = int_at(batch.cu_seqlens_q, planted.request) + planted.row;
    const std::int64_t last = ids.shape[2] - 1;
    for (std::int64_t slot = 0; slot <= last; ++slot) {
      const std::int32_t id = slot < last ? int_at(ids, row, 0, slot + 1) : -1;
      std::memcpy(address(ids, row, 0, slot), &id, sizeof(id));
    }
  }

  const Case& spec_;
  const VerifyOptions& options_;
  MemorySpace& space_;
  std::shared_ptr<MadeCase> made_;
  Data& data_;
  Problem problem_;
  Outcome outcome_{};
};

}  // namespace

Outcome verify(const Case& spec, const VerifyOptions& options) {
  const auto failed = [&](const std::string& reason) {
    return Outcome{.result = Result::Failed,
                   .reason = reason,
                   .repro = repro_command(spec, options.under_test)};
  };
  try {
    Outcome outcome = Verification(spec, options).run();
    if (outcome.result == Result::Failed && options.memory != nullptr) options.memory->forget();
    return outcome;
  } catch (const CaseError& error) {
    Outcome outcome = failed(std::string("the case cannot be made: ") + error.what());
    outcome.result = Result::Unmade;
    return outcome;
  } catch (const std::bad_alloc&) {
    return failed("out of memory");
  } catch (const Error& error) {
    return failed(std::string("the oracle failed: ") + error.what());
  }
}

std::string repro_command(const Case& spec, const Options& under_test) {
  std::string command = "msa verify";
  if (!under_test.backend.empty()) command += " --backend " + under_test.backend;
  if (!under_test.isa.empty()) command += " --isa " + under_test.isa;
  if (under_test.threads != 0) command += " --threads " + std::to_string(under_test.threads);
  return command + " --case '" + to_line(spec) + "'";
}

bool has_exact_scores(const Case& spec) {
  const bool scaled = spec.kv_format().scale != Scale::None;
  if (spec.op == Op::DenseAttention && scaled) return false;
  if (spec.regime == Regime::Near) return spec.op != Op::DenseAttention;  // its q and k are normal
  return spec.regime != Regime::Random && spec.regime != Regime::Drift &&
         spec.regime != Regime::Offset && spec.regime != Regime::Wide;
}

bool has_independent_errors(const Case& spec) {
  const bool random = spec.regime == Regime::Random || spec.regime == Regime::Drift;
  // A merged state close to its heaviest part, which has 16 bits, is rounded to that: outwards, as
  // the other parts had drawn it towards zero.
  const bool attends = spec.op != Op::MergeStates;
  return random && attends && spec.dtype != DType::F32 && !spec.softmax_scale;
}

bool has_keys_alike(const Case& spec) {
  return spec.regime == Regime::Offset && spec.hostile == Hostile::None &&
         spec.dtype != DType::F32 && spec.grad_dtype == DType::F32;
}

std::vector<IsaInfo> isas_of(const std::string& backend) {
  for (const BackendInfo& info : build_info().backends) {
    if (info.name == backend) return info.isas;
  }
  return {};
}

}  // namespace msa::testkit
