// SPDX-License-Identifier: MIT
// `msa info`: what this build holds, what this machine offers, and why the rest is not in force.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <nlohmann/json.hpp>

#include "cli.h"
#include "msa/info.h"

namespace msa::cli {
namespace {

using Json = nlohmann::ordered_json;

template <class Info>
Json availability(const Info& info) {
  Json json{{"name", info.name}, {"available", info.available}};
  if (!info.available) json["reason"] = info.reason;
  return json;
}

Json to_json(const BuildInfo& info) {
  Json backends = Json::array();
  for (const BackendInfo& backend : info.backends) {
    Json json = availability(backend);
    for (const IsaInfo& isa : backend.isas) json["isas"].push_back(availability(isa));
    if (!backend.devices.empty()) json["devices"] = backend.devices;
    backends.push_back(std::move(json));
  }
  return {{"version", info.version},   {"commit", info.commit},
          {"compiler", info.compiler}, {"build_type", info.build_type},
          {"cpu", info.cpu},           {"cpu_features", info.cpu_features},
          {"threads", info.threads},   {"backends", backends}};
}

template <class Info>
void print_availability(const char* kind, const Info& info) {
  fmt::print("{}\t{}\t{}\n", kind, info.name, info.available ? "yes" : "no: " + info.reason);
}

void print_table(const BuildInfo& info) {
  fmt::print("version\t{}\ncommit\t{}\ncompiler\t{}\nbuild\t{}\n", info.version, info.commit,
             info.compiler, info.build_type);
  fmt::print("cpu\t{}\nfeatures\t{}\nthreads\t{}\n", info.cpu, fmt::join(info.cpu_features, " "),
             info.threads);
  for (const BackendInfo& backend : info.backends) {
    print_availability("backend", backend);
    for (const IsaInfo& isa : backend.isas) print_availability("isa", isa);
    for (const std::string& device : backend.devices) fmt::print("device\t{}\n", device);
  }
}

}  // namespace

void add_info(CLI::App& app, Action& action) {
  CLI::App* command = app.add_subcommand("info", "Show the build, the machine and its backends");
  auto json = std::make_shared<bool>(false);
  command->add_flag("--json", *json, "Print JSON");
  command->callback([&action, json] {
    action = [json] {
      const BuildInfo info = build_info();
      if (*json) {
        fmt::print("{}\n", to_json(info).dump(2));
      } else {
        print_table(info);
      }
      return kGood;
    };
  });
}

}  // namespace msa::cli
