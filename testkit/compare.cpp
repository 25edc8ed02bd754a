// SPDX-License-Identifier: MIT
// Comparison with the oracle: which rows, in which order, and what their findings add up to.
#include "testkit/compare.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <optional>
#include <sstream>
#include <tuple>
#include <utility>

#include "testkit/compare_attention.h"
#include "testkit/compare_gradients.h"
#include "testkit/compare_selections.h"
#include "testkit/making.h"
#include "testkit/number.h"
#include "testkit/oracle.h"
#include "testkit/requests.h"
#include "testkit/sample_gradients.h"
#include "testkit/sampling.h"

namespace msa::testkit {

namespace {

/// One operation with its operands and the oracle's answer to it or to a row of it.
class Stage {
 public:
  Stage(const Problem& problem, const Operands& operands, const CompareOptions& options,
        Remembered* known)
      : o_(operands),
        attention_(problem, operands, known),
        selections_(problem, operands, options.exact_scores) {}

  void row(const CallRow& row, const Answer& answer, Findings& found) const {
    if (o_.out) attention_.row(row, answer, found);
    selections_.row(row, answer, found);
  }

  /// A row behind the last request: nothing is visible.
  void padding_row(const CallRow& row, Findings& found) const {
    for (const auto& [name, tensor, value] :
         {std::tuple{"out", o_.out, 0.0}, std::tuple{"lse", o_.lse, -kInfinity},
          std::tuple{"block_max", o_.block_max, -kInfinity},
          std::tuple{"scores", o_.scores, -kInfinity},
          std::tuple{"chosen_scores", o_.chosen_scores, -kInfinity}}) {
      if (!tensor) continue;
      const std::int64_t inner = tensor.rank > 2 ? tensor.shape[2] : 1;
      for (std::int64_t h = 0; h < tensor.shape[1]; ++h) {
        for (std::int64_t x = 0; x < inner; ++x) {
          check_number(found, value, float_at(tensor, row.row, h, x), 0, Place{name, row, h, x});
        }
      }
    }
    if (!o_.block_ids) return;
    for (std::int64_t h = 0; h < o_.block_ids.shape[1]; ++h) {
      for (std::int64_t s = 0; s < o_.block_ids.shape[2]; ++s) {
        const std::int32_t id = int_at(o_.block_ids, row.row, h, s);
        if (id != -1)
          found.fail(Place{"block_ids", row, h, s}() + ": expected -1, got " + std::to_string(id));
      }
    }
  }

  /// Integer outputs as a whole: invert_selection.
  void inversion(const Answer& answer, Findings& found) const {
    const Operands& e = answer.operands();
    for (const auto& [name, given, expected] : {std::tuple{"row_ptr", o_.row_ptr, e.row_ptr},
                                                std::tuple{"q_indices", o_.q_indices, e.q_indices},
                                                std::tuple{"q_slots", o_.q_slots, e.q_slots}}) {
      for (std::int64_t h = 0; h < given.shape[0]; ++h) {
        for (std::int64_t n = 0; n < given.shape[1]; ++n) {
          const std::int32_t a = int_at(expected, h, n), b = int_at(given, h, n);
          if (a == b) continue;
          found.fail(std::string(name) + "[" + std::to_string(h) + ", " + std::to_string(n) +
                     "]: expected " + std::to_string(a) + ", got " + std::to_string(b));
        }
      }
    }
  }

 private:
  const Operands& o_;
  AttentionComparison attention_;
  SelectionComparison selections_;
};

class Comparison {
 public:
  Comparison(const Problem& problem, const Operands& operands, const CompareOptions& options)
      : p_(problem), o_(operands), options_(options) {
    if (o_.batch.cu_seqlens_q) requests_ = requests_of(p_, o_.batch);
    rows_ = all_rows(requests_, num_rows(o_));
    report_.rows = static_cast<std::int64_t>(rows_.size());
  }

  std::vector<std::int64_t> rows_read() const {
    std::vector<Op> stages{p_.op};
    if (p_.op == Op::MsaAttention) stages = {Op::SelectBlocks, Op::SparseAttention};
    const bool all = std::any_of(stages.begin(), stages.end(), [&](Op op) {
      Problem stage = p_;
      stage.op = op;
      return takes_whole(work_of(stage, o_));
    });
    std::vector<std::int64_t> rows;
    for (const CallRow& row :
         all || rows_.empty() ? rows_ : sample(rows_, options_.sample_rows, options_.seed))
      rows.push_back(row.row);
    std::sort(rows.begin(), rows.end());
    rows.erase(std::unique(rows.begin(), rows.end()), rows.end());
    return rows;
  }

  Report run() {
    if (p_.op == Op::MsaAttention) {
      run_msa();
    } else {
      run_stage(p_, o_);
    }
    if (options_.independent_errors) check_lean();
    report_.ok = found_.failure.empty();
    report_.what = found_.failure;
    report_.worst_error = found_.worst_error;
    report_.worst_share = found_.worst_share;
    report_.worst_place = found_.worst_place;
    report_.upward = found_.upward.standard_errors();
    report_.outward = found_.outward.standard_errors();
    return report_;
  }

 private:
  void check_lean() {
    for (const auto& [where, lean] : {std::pair{"towards plus infinity", &found_.upward},
                                      std::pair{"away from zero", &found_.outward}}) {
      if (!lean->leans()) continue;
      std::ostringstream text;
      text << "out: errors lean " << where << ": their mean over " << lean->samples()
           << " rows and heads is " << lean->mean() << " of the tolerance, "
           << lean->standard_errors() << " of its standard errors";
      found_.fail(text.str());
    }
  }

  /// The selection first, then attention over the very blocks that were selected.
  void run_msa() {
    Problem select = p_;
    select.op = Op::SelectBlocks;
    select.outputs.lse = false;
    Problem attend = p_;
    attend.op = Op::SparseAttention;
    Operands ids = o_, state = o_;
    ids.q = ids.k = ids.v = ids.k_scale = ids.v_scale = ids.out = ids.lse = {};
    ids.k_global_scale = ids.v_global_scale = {};
    state.index_q = state.index_k = state.index_k_scale = state.index_k_global_scale =
        state.index_k8 = state.index_k8_bounds = state.block_ids = {};
    state.block_ids_in = o_.block_ids;
    std::optional<Answer> selected;
    std::vector<std::int32_t> own;
    if (o_.block_ids) {
      run_stage(select, ids);
      if (!found_.failure.empty()) return;
    } else {
      own.resize(
          static_cast<std::size_t>(rows_.size() * p_.attention.heads_kv * p_.selection.topk));
      ids.block_ids = make_tensor(own.data(), DType::I32,
                                  {report_.rows, p_.attention.heads_kv, p_.selection.topk});
      selected.emplace(select, ids);
      state.block_ids_in = selected->operands().block_ids;
    }
    run_stage(attend, state);
  }

  bool takes_whole(double work) const { return work <= options_.max_work || requests_.empty(); }

  void run_stage(const Problem& problem, const Operands& operands) {
    if (problem.op == Op::QuantizeKv || problem.op == Op::QuantizeIndex)
      return compare_caches(problem, operands);
    if (derives(problem.op)) return compare_all_gradients(problem, operands);
    if (rows_.empty() && problem.op != Op::InvertSelection) return;
    const double work = work_of(problem, operands);
    if (!takes_whole(work)) {
      sampled(problem, operands, Stage(problem, operands, options_, nullptr), work);
    } else if (options_.memory != nullptr) {
      Remembered& known = options_.memory->of(problem, operands);
      whole(problem, known.answer, Stage(problem, operands, options_, &known));
    } else {
      whole(problem, Answer(problem, operands), Stage(problem, operands, options_, nullptr));
    }
  }

  /// Every byte of the caches, those that must not be written included.
  void compare_caches(const Problem& problem, const Operands& operands) {
    const Answer answer(problem, operands);
    for (const auto& [name, tensor] :
         {std::pair{"k_cache", &Operands::k_cache}, std::pair{"v_cache", &Operands::v_cache},
          std::pair{"k_scale_cache", &Operands::k_scale_cache},
          std::pair{"v_scale_cache", &Operands::v_scale_cache},
          std::pair{"index_k8", &Operands::index_k8_out},
          std::pair{"index_k8_bounds", &Operands::index_k8_bounds_out}}) {
      const Tensor& given = operands.*tensor;
      std::vector<std::byte> expected, got;
      const auto append_to = [](std::vector<std::byte>& bytes) {
        return [&bytes](const std::byte* run, std::size_t count) {
          bytes.insert(bytes.end(), run, run + count);
        };
      };
      for_each_run(answer.operands().*tensor, append_to(expected));
      for_each_run(given, append_to(got));
      const auto differs = std::mismatch(expected.begin(), expected.end(), got.begin(), got.end());
      if (differs.first == expected.end() && differs.second == got.end()) continue;
      const auto at = differs.first - expected.begin();
      std::ostringstream text;
      text << name << ": byte " << at << " of its elements: expected "
           << std::to_integer<int>(*differs.first) << ", got "
           << std::to_integer<int>(*differs.second);
      found_.fail(text.str());
    }
    report_.rows_compared = report_.rows;
  }

  /// Gradients of keys are sums over all rows, so that no row can be compared alone; of large calls
  /// parts are, which are calls of their own.
  void compare_all_gradients(const Problem& problem, const Operands& operands) {
    const bool loss_of_all = problem.op == Op::IndexLoss && !problem.causal;
    if (!problem.gradients.accumulate && !loss_of_all) {
      Problem forward = problem;
      forward.op = operands.block_ids_in ? Op::SparseAttention : Op::DenseAttention;
      if (!takes_whole(work_of(forward, operands)))
        return compare_some_gradients(problem, operands);
    }
    if (options_.memory != nullptr) {
      Remembered& known = options_.memory->of(problem, operands);
      if (!known.gradient_marks)
        known.gradient_marks = marks_of_gradients(problem, operands, known.answer);
      compare_whole(operands, known.answer, *known.gradient_marks);
    } else {
      const Answer answer(problem, operands);
      compare_whole(operands, answer, marks_of_gradients(problem, operands, answer));
    }
    report_.rows_compared = report_.rows;
  }

  void compare_whole(const Operands& operands, const Answer& answer, const GradientMarks& marks) {
    compare_gradients(operands, answer, marks, found_);
    if (options_.keys_alike) expect_given_back(operands, answer, marks, found_);
  }

  void compare_some_gradients(const Problem& problem, const Operands& operands) {
    for (const Request& request : requests_) {
      for (const GradientPart& part : sample_gradients(problem, operands, request)) {
        const Answer answer(part.problem, part.operands);
        compare_gradients(part.operands, answer,
                          marks_of_gradients(part.problem, part.operands, answer), found_,
                          part.first_key);
        if (part.operands.dq || part.operands.d_index_q)
          report_.rows_compared += part.problem.bounds.total_q;
      }
    }
  }

  void whole(const Problem& problem, const Answer& answer, const Stage& stage) {
    if (problem.op == Op::InvertSelection) {
      stage.inversion(answer, found_);
      report_.rows_compared = report_.rows;
      return;
    }
    const bool merge = problem.op == Op::MergeStates || problem.op == Op::MergeSelections;
    std::vector<Findings> found(rows_.size());
#pragma omp parallel for schedule(dynamic, 4) if (rows_.size() > 16)
    for (std::size_t n = 0; n < rows_.size(); ++n) {
      if (rows_[n].request != nullptr || merge) {
        stage.row(rows_[n], answer, found[n]);
      } else {
        stage.padding_row(rows_[n], found[n]);
      }
    }
    for (const Findings& f : found) found_.add(f);
    report_.rows_compared = report_.rows;
  }

  /// Single rows; where even one is much work, one KV head of it, another for each sample.
  void sampled(const Problem& problem, const Operands& operands, const Stage& stage, double work) {
    const std::vector<CallRow> rows = sample(rows_, options_.sample_rows, options_.seed);
    const bool attends = static_cast<bool>(operands.q);
    const std::int64_t heads = attends ? problem.attention.heads_kv : problem.index.heads;
    const double of_row = work / static_cast<double>(rows_.size());
    const bool split = of_row * static_cast<double>(rows.size()) > options_.max_work && heads > 1;
    std::vector<Findings> found(rows.size());
#pragma omp parallel for schedule(dynamic, 1)
    for (std::size_t n = 0; n < rows.size(); ++n) {
      if (rows[n].request == nullptr) {
        stage.padding_row(rows[n], found[n]);
        continue;
      }
      Part part{.kv_heads = heads};
      if (split) part = {.kv_head_begin = static_cast<std::int64_t>(n) % heads, .kv_heads = 1};
      sampled_row(problem, operands, stage, rows[n], part, found[n]);
    }
    for (const Findings& f : found) found_.add(f);
    report_.rows_compared = static_cast<std::int64_t>(rows.size());
  }

  /// Inside a parallel region: no exception leaves.
  static void sampled_row(const Problem& problem, const Operands& operands, const Stage& stage,
                          const CallRow& row, const Part& part, Findings& found) {
    try {
      const Answer answer(problem, operands, *row.request, row.i, part);
      stage.row(row, answer, found);
    } catch (const std::exception& error) {
      found.fail(std::string("the oracle failed: ") + error.what());
    }
  }

  const Problem& p_;
  const Operands& o_;
  const CompareOptions& options_;
  std::vector<Request> requests_{};
  std::vector<CallRow> rows_{};
  Findings found_{};
  Report report_{};
};

}  // namespace

std::string other_rounding(const Tensor& out, const Tensor& wide) {
  for (std::int64_t i = 0; i < out.shape[0]; ++i) {
    for (std::int64_t h = 0; h < out.shape[1]; ++h) {
      for (std::int64_t d = 0; d < out.shape[2]; ++d) {
        const float given = float_at(out, i, h, d), whole = float_at(wide, i, h, d);
        const float expected = round_to(whole, out.dtype);
        const bool same =
            std::bit_cast<std::uint32_t>(expected) == std::bit_cast<std::uint32_t>(given);
        if (same || (std::isnan(expected) && std::isnan(given))) continue;
        std::ostringstream text;
        text.precision(9);
        text << "out[" << i << ", " << h << ", " << d << "]: with out=f32 it is " << whole
             << ", which rounds to " << expected << ", got " << given;
        return text.str();
      }
    }
  }
  return "";
}

std::vector<std::int64_t> rows_to_compare(const Problem& problem, const Operands& operands,
                                          const CompareOptions& options) {
  return Comparison(problem, operands, options).rows_read();
}

Report compare(const Problem& problem, const Operands& operands, const CompareOptions& options) {
  try {
    return Comparison(problem, operands, options).run();
  } catch (const Error& error) {
    Report report;
    report.ok = false;
    report.what = std::string("the oracle failed: ") + error.what();
    return report;
  }
}

}  // namespace msa::testkit
