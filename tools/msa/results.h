// SPDX-License-Identifier: MIT
// What the bench found: rows, the machine and its peaks; as TSV, as the JSON of docs/formats.md,
// against a baseline.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "roofline.h"
#include "testkit/case.h"
#include "useful.h"

namespace msa::cli {

/// A figure that does not apply is left out.
struct Row {
  std::string id;
  std::string what;
  testkit::Case spec;
  std::string backend;
  std::string isa;
  int threads = 0;
  std::vector<double> seconds{};  // of every run
  UsefulWork work{};
  double read_rate = 0;  // bytes per second, measured between its runs; 0: that of the whole run
  std::optional<double> floor_seconds{};
  std::string peer{};
  std::vector<double> peer_seconds{};
  std::optional<double> bytes{};  // where the figure is bytes
  std::optional<double> blocks_per_8{};
  std::optional<double> recall{};        // of the peer's selection, where keys are ranked by codes
  std::optional<double> executed_ops{};  // with what tiles multiply in vain, where that is known
  std::optional<bool> verified = false;  // left out where nothing is computed

  double median() const;
  std::optional<double> share() const;
  std::optional<double> ratio() const;
};

struct Results {
  std::vector<Row> rows;
  Peaks peaks{};
  std::string isa;
  std::string gpu;  // empty: the rows are the processor's
  int threads = 0;
  std::string command;
};

/// Fills in floor_seconds: the larger of useful bytes over the read rate and useful operations over
/// the peak of the arithmetic in use. Leaves it out where a peak is not known.
void add_floor(Row& row, const Peaks& peaks);

std::string tsv_header();
std::string tsv_line(const Row& row);
std::string to_json(const Results& results);

/// What became slower (or larger) than in the baseline by more than `tolerance`, one line each.
/// Throws Failure kBadInput where the file is no results file, speaks of another machine, or shares
/// no row with these results.
std::vector<std::string> regressions(const Results& results, const std::string& baseline,
                                     double tolerance);

/// Whether a selection may differ from its peer's, as it goes by other keys.
bool may_lose_ids(const testkit::Case& spec, const testkit::Case& peer);

/// Which share of the ids of one selection another one holds, too: of chosen blocks, forced ones
/// among them.
double recall_of(const Tensor& truth, const Tensor& ids);

}  // namespace msa::cli
