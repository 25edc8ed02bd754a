// SPDX-License-Identifier: MIT
// A writer for the few shapes of JSON that BuildInfo needs.
#include "core/json.h"

#include <cstdio>
#include <string_view>
#include <vector>

namespace msa::core {
namespace {

std::string quoted(std::string_view text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (static_cast<unsigned char>(c) < 0x20) {
      char code[8];
      std::snprintf(code, sizeof code, "\\u%04x", static_cast<unsigned>(c));
      out += code;
    } else {
      out += c;
    }
  }
  return out + "\"";
}

class Object {
 public:
  Object& add(std::string_view key, const std::string& value) {
    text_ += text_.empty() ? "" : ", ";
    text_ += quoted(key) + ": " + value;
    return *this;
  }
  Object& text(std::string_view key, std::string_view value) { return add(key, quoted(value)); }
  Object& flag(std::string_view key, bool value) { return add(key, value ? "true" : "false"); }
  std::string close() const { return "{" + text_ + "}"; }

 private:
  std::string text_;
};

template <class List, class Text>
std::string array(const List& list, const Text& text) {
  std::string out;
  for (const auto& item : list) out += (out.empty() ? "" : ", ") + text(item);
  return "[" + out + "]";
}

std::string isa_json(const IsaInfo& isa) {
  return Object()
      .text("name", isa.name)
      .flag("available", isa.available)
      .text("reason", isa.reason)
      .close();
}

std::string backend_json(const BackendInfo& backend) {
  return Object()
      .text("name", backend.name)
      .flag("available", backend.available)
      .text("reason", backend.reason)
      .add("isas", array(backend.isas, isa_json))
      .add("devices", array(backend.devices, quoted))
      .close();
}

}  // namespace

std::string to_json(const BuildInfo& info) {
  return Object()
      .text("version", info.version)
      .text("compiler", info.compiler)
      .text("build_type", info.build_type)
      .text("commit", info.commit)
      .text("cpu", info.cpu)
      .add("cpu_features", array(info.cpu_features, quoted))
      .add("threads", std::to_string(info.threads))
      .add("backends", array(info.backends, backend_json))
      .close();
}

}  // namespace msa::core
