// SPDX-License-Identifier: MIT
#include "results.h"

#include <fmt/chrono.h>
#include <fmt/format.h>

#include <algorithm>
#include <ctime>
#include <fstream>
#include <nlohmann/json.hpp>

#include "cli.h"
#include "msa/info.h"
#include "testkit/requests.h"
#include "timing.h"

namespace msa::cli {

bool may_lose_ids(const testkit::Case& spec, const testkit::Case& peer) {
  const bool selects = spec.op == Op::SelectBlocks || spec.op == Op::MsaAttention;
  return selects && peer.op == spec.op &&
         (spec.index_k_format() != peer.index_k_format() || spec.precision != peer.precision);
}

double recall_of(const Tensor& truth, const Tensor& ids) {
  std::int64_t there = 0, all = 0;
  for (std::int64_t row = 0; row < truth.shape[0]; ++row) {
    for (std::int64_t head = 0; head < truth.shape[1]; ++head) {
      std::int64_t other = 0;  // both ascend
      for (std::int64_t slot = 0; slot < truth.shape[2]; ++slot) {
        const std::int32_t id = testkit::int_at(truth, row, head, slot);
        if (id < 0) break;
        ++all;
        for (; other < ids.shape[2]; ++other) {
          const std::int32_t found = testkit::int_at(ids, row, head, other);
          if (found < 0 || found > id) break;
          if (found == id) ++there;
        }
      }
    }
  }
  return all == 0 ? 1.0 : static_cast<double>(there) / static_cast<double>(all);
}

namespace {

using Json = nlohmann::ordered_json;

/// Peak of the multiply-adds that an instruction set does on a dtype; 0: unknown.
double peak_of(const Peaks& peaks, const std::string& isa, DType dtype) {
  if (isa == "avx512_bf16" && dtype == DType::BF16) return peaks.bf16_flops;
  if (isa == "amx" && dtype == DType::BF16) return peaks.tile_bf16_flops;
  if (isa.starts_with("avx512") || isa == "amx") return peaks.fp32_flops;
  if (isa == "avx2") return peaks.avx2_fp32_flops;
  if ((isa == "sm90" || isa == "mma") && dtype != DType::F32) return peaks.bf16_flops;
  return 0;
}

Json to_json(const Row& row) {
  Json json{{"id", row.id}, {"what", row.what}};
  if (!row.seconds.empty()) {
    const auto [least, most] = std::minmax_element(row.seconds.begin(), row.seconds.end());
    json["seconds"] = row.median();
    json["spread"] = {*least, *most};
  }
  if (row.share()) json["share"] = *row.share();
  if (row.floor_seconds) json["floor_seconds"] = *row.floor_seconds;
  if (row.ratio()) {
    json["peer"] = row.peer;
    json["peer_seconds"] = median_of(row.peer_seconds);
    json["ratio"] = *row.ratio();
  }
  if (!row.seconds.empty() && row.work.attend_ops > 0) {
    json["useful_tflops"] = (row.work.attend_ops + row.work.index_ops) / row.median() / 1e12;
    if (row.executed_ops) json["executed_tflops"] = *row.executed_ops / row.median() / 1e12;
  }
  if (row.bytes) json["bytes"] = *row.bytes;
  if (row.blocks_per_8) json["blocks_per_8"] = *row.blocks_per_8;
  if (row.recall) json["recall"] = *row.recall;
  if (row.verified) json["verified"] = *row.verified;
  return json;
}

Json to_json(const Peaks& peaks) {
  Json json = Json::object();
  const auto add = [&](const char* name, double value) {
    if (value > 0) json[name] = value;
  };
  add("bf16_flops", peaks.bf16_flops);
  add("tile_bf16_flops", peaks.tile_bf16_flops);
  add("fp32_flops", peaks.fp32_flops);
  add("int8_ops", peaks.int8_ops);
  add("tile_int8_ops", peaks.tile_int8_ops);
  add("avx2_fp32_flops", peaks.avx2_fp32_flops);
  add("read_bytes_per_s", peaks.read_bytes_per_s);
  return json;
}

std::string field(const std::optional<double>& value, double scale, int digits) {
  return value ? fmt::format("\t{:.{}f}", scale * *value, digits) : std::string("\t-");
}

Json read_results(const std::string& path) {
  std::ifstream file(path);
  if (!file) throw Failure(kBadInput, path + ": cannot be read");
  try {
    Json json = Json::parse(file);
    if (!json.at("machine").is_object() || !json.at("rows").is_array())
      throw std::runtime_error("no rows");
    return json;
  } catch (const std::exception& error) {
    throw Failure(kBadInput, path + ": not a results file: " + error.what());
  }
}

/// One field of a row, held against the same field of the baseline.
void hold_against(const Row& row, const char* unit, double now, const Json& before,
                  double tolerance, std::vector<std::string>& found) {
  if (!before.is_number() || before.get<double>() <= 0) return;
  const double change = now / before.get<double>() - 1;
  if (change <= tolerance) return;
  found.push_back(fmt::format("{}: {:.6g} {}, was {:.6g} (+{:.1f} %)", row.id, now, unit,
                              before.get<double>(), 100 * change));
}

}  // namespace

double Row::median() const { return median_of(seconds); }

std::optional<double> Row::share() const {
  if (!floor_seconds || seconds.empty()) return std::nullopt;
  return *floor_seconds / median();
}

std::optional<double> Row::ratio() const {
  if (peer_seconds.empty() || seconds.empty()) return std::nullopt;
  return median_of(peer_seconds) / median();
}

void add_floor(Row& row, const Peaks& peaks) {
  // Codes with a scale in f32, and index keys in e4m3, are multiplied as fp32, on a GPU as queries
  // are stored.
  const Format kv = row.spec.kv_format();
  const bool scaled =
      kv.storage == DType::E4M3 ? kv.scale != Scale::None : kv.scale == Scale::GroupTensor;
  const Op op = row.spec.op;
  const bool derives = op == Op::SparseAttentionBackward || op == Op::DenseAttentionBackward;
  // Gradients are held against fp32 there, whatever their products are.
  const bool widened = (scaled || derives) && row.backend != "cuda";
  const double attend = peak_of(peaks, row.isa, widened ? DType::F32 : row.spec.wide_type());
  const Format keys = row.spec.index_k_format();
  const bool codes =
      (keys.storage == DType::E4M3 || keys.scale == Scale::GroupTensor) && row.backend != "cuda";
  const DType wide =
      row.spec.index_type() == DType::E4M3 ? row.spec.wide_type() : row.spec.index_type();
  const double index = peak_of(peaks, row.isa, codes ? DType::F32 : wide);
  const double read = row.read_rate > 0 ? row.read_rate : peaks.read_bytes_per_s;
  if (attend <= 0 || index <= 0 || read <= 0) return;
  row.floor_seconds =
      std::max(row.work.attend_ops / attend + row.work.index_ops / index, row.work.bytes / read);
}

std::string tsv_header() {
  return "id\top\tregime\tdtype\tbatch_size\tq_len\tkv_len\tq_head\tkv_head\thead_"
         "dim\tbackend\tisa\tthreads\t"
         "latency_ms\tmin_ms\tmax_ms\truns\ttflops\tgbs\tfloor_ms\tshare\tratio\tbytes\tblocks_per_"
         "8\trecall\tverified";
}

std::string tsv_line(const Row& row) {
  std::int64_t longest_q = 0, longest_k = 0;
  for (const testkit::Lengths& request : row.spec.lengths) {
    longest_q = std::max(longest_q, request.seqlen_q);
    longest_k = std::max(longest_k, request.seqlen_k);
  }
  const auto& spec = row.spec;
  std::string line = fmt::format(
      "{}\t{}\t{}\t{}\t{}\t{}\t{}\t{}\t{}\t{}\t{}\t{}\t{}", row.id, testkit::short_name(spec.op),
      testkit::case_value(spec, "regime"), to_string(spec.dtype), spec.requests(), longest_q,
      longest_k, spec.heads_q, spec.heads_kv, spec.head_dim, row.backend, row.isa, row.threads);
  if (row.seconds.empty()) {
    line += "\t-\t-\t-\t0\t-\t-";
  } else {
    const double seconds = row.median();
    const auto [least, most] = std::minmax_element(row.seconds.begin(), row.seconds.end());
    line += fmt::format("\t{:.4f}\t{:.4f}\t{:.4f}\t{}\t{:.4f}\t{:.3f}", 1e3 * seconds, 1e3 * *least,
                        1e3 * *most, row.seconds.size(),
                        (row.work.attend_ops + row.work.index_ops) / seconds / 1e12,
                        row.work.bytes / seconds / 1e9);
  }
  line += field(row.floor_seconds, 1e3, 4) + field(row.share(), 1, 3) + field(row.ratio(), 1, 3);
  line += field(row.bytes, 1, 0) + field(row.blocks_per_8, 1, 2) + field(row.recall, 1, 5);
  line += !row.verified ? "\t-" : *row.verified ? "\tyes" : "\tno";
  return line;
}

std::string to_json(const Results& results) {
  const BuildInfo info = build_info();
  Json rows = Json::array();
  for (const Row& row : results.rows) rows.push_back(to_json(row));
  Json machine{{"cpu", info.cpu}, {"isa", results.isa}};
  if (results.gpu.empty()) {
    machine["threads"] = results.threads;
  } else {
    machine["gpu"] = results.gpu;
  }
  const Json json{{"machine", machine},
                  {"peaks", to_json(results.peaks)},
                  {"commit", info.commit},
                  {"version", info.version},
                  {"command", results.command},
                  {"date", fmt::format("{:%Y-%m-%d}", fmt::gmtime(std::time(nullptr)))},
                  {"rows", rows}};
  return json.dump(1) + "\n";
}

std::vector<std::string> regressions(const Results& results, const std::string& baseline,
                                     double tolerance) {
  const Json file = read_results(baseline);
  const Json machine = file["machine"];
  const std::string cpu = build_info().cpu;
  const int threads = results.gpu.empty() ? results.threads : 0;
  if (machine.value("cpu", "") != cpu || machine.value("threads", 0) != threads ||
      machine.value("gpu", "") != results.gpu) {
    throw Failure(
        kBadInput,
        fmt::format("{}: measured on '{}' with {} threads, this is '{}' with {}", baseline,
                    machine.value("cpu", ""), machine.value("threads", 0), cpu, results.threads));
  }
  std::vector<std::string> found;
  bool any = false;
  for (const Row& row : results.rows) {
    for (const Json& before : file["rows"]) {
      if (!before.is_object() || before.value("id", "") != row.id) continue;
      any = true;
      if (!row.seconds.empty())
        hold_against(row, "s", row.median(), before.value("seconds", Json()), tolerance, found);
      if (row.bytes)
        hold_against(row, "bytes", *row.bytes, before.value("bytes", Json()), tolerance, found);
    }
  }
  if (!any) throw Failure(kBadInput, baseline + ": has none of the rows of this run");
  return found;
}

}  // namespace msa::cli
