// SPDX-License-Identifier: MIT
// Values of the case language: each type's text, read and written.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "testkit/case.h"

namespace msa::testkit {

/// Words of an enumeration and what they stand for.
template <class Value>
using Names = std::vector<std::pair<const char*, Value>>;

const Names<Op>& names_of(Op);
const Names<DType>& names_of(DType);
const Names<Layout>& names_of(Layout);
const Names<Strides>& names_of(Strides);
const Names<Regime>& names_of(Regime);
const Names<Hostile>& names_of(Hostile);
const Names<Corrupt>& names_of(Corrupt);
const Names<Precision>& names_of(Precision);
const Names<Order>& names_of(Order);
const Names<Grads>& names_of(Grads);
const Names<Deal>& names_of(Deal);

/// Of keys and values that are stored as codes.
const std::vector<Format>& coded_formats();

template <class Value>
std::string name_list(const Names<Value>& names) {
  std::string list;
  for (const auto& entry : names) list += std::string(list.empty() ? "" : "|") + entry.first;
  return list;
}

[[noreturn]] void bad_value(std::string_view text, const std::string& expected);

std::vector<std::string_view> split(std::string_view text, char separator);

std::int64_t read_integer(std::string_view text);
inline void read_value(std::string_view text, std::int64_t& value) { value = read_integer(text); }
void read_value(std::string_view text, std::uint64_t& value);
void read_value(std::string_view text, bool& value);
void read_value(std::string_view text, std::optional<DType>& value);
void read_value(std::string_view text, std::optional<float>& value);
void read_value(std::string_view text, std::optional<Format>& value);
void read_value(std::string_view text, std::vector<Lengths>& value);

template <class Value>
requires std::is_enum_v<Value>
void read_value(std::string_view text, Value& value) {
  for (const auto& [name, named] : names_of(Value{})) {
    if (text == name) {
      value = named;
      return;
    }
  }
  bad_value(text, "one of " + name_list(names_of(Value{})));
}

inline std::string write_value(std::int64_t value) { return std::to_string(value); }
inline std::string write_value(std::uint64_t value) { return std::to_string(value); }
inline std::string write_value(bool value) { return value ? "1" : "0"; }
std::string write_value(const std::optional<DType>& value);
std::string write_value(const std::optional<float>& value);
std::string write_value(const std::optional<Format>& value);
std::string write_value(const std::vector<Lengths>& value);

template <class Value>
requires std::is_enum_v<Value> std::string write_value(Value value) {
  for (const auto& [name, named] : names_of(Value{})) {
    if (value == named) return name;
  }
  return "?";
}

}  // namespace msa::testkit
