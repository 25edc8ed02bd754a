// SPDX-License-Identifier: MIT
// Words, numbers and requests of the case language.
#include "testkit/case_values.h"

#include <array>
#include <charconv>

namespace msa::testkit {

namespace {

Lengths read_request(std::string_view text) {
  Lengths request;
  const std::vector<std::string_view> halves = split(text, '@');
  const std::vector<std::string_view> numbers = split(halves[0], ':');
  if (halves.size() > 2 || numbers.size() < 2 || numbers.size() > 3) {
    bad_value(text, "new:keys[:offset][@key_offset[/total]]");
  }
  request.seqlen_q = read_integer(numbers[0]);
  request.seqlen_k = read_integer(numbers[1]);
  if (numbers.size() == 3) request.q_offset = read_integer(numbers[2]);
  if (halves.size() == 2) {
    const std::vector<std::string_view> shard = split(halves[1], '/');
    if (shard.size() > 2) bad_value(text, "new:keys[:offset][@key_offset[/total]]");
    request.key_offset = read_integer(shard[0]);
    if (shard.size() == 2) request.total_k = read_integer(shard[1]);
  }
  if (request.seqlen_q < 0 || request.seqlen_k < 0 || request.key_offset < 0) {
    bad_value(text, "lengths from 0");
  }
  return request;
}

}  // namespace

const Names<Op>& names_of(Op) {
  static const Names<Op> names{{"dense", Op::DenseAttention},
                               {"scores", Op::BlockScores},
                               {"topk", Op::SelectTopk},
                               {"select", Op::SelectBlocks},
                               {"sparse", Op::SparseAttention},
                               {"msa", Op::MsaAttention},
                               {"merge_states", Op::MergeStates},
                               {"merge_selections", Op::MergeSelections},
                               {"invert", Op::InvertSelection},
                               {"quantize", Op::QuantizeKv},
                               {"quantize_index", Op::QuantizeIndex},
                               {"sparse_backward", Op::SparseAttentionBackward},
                               {"dense_backward", Op::DenseAttentionBackward},
                               {"index_loss", Op::IndexLoss}};
  return names;
}

const Names<DType>& names_of(DType) {
  static const Names<DType> names{
      {"f32", DType::F32}, {"f16", DType::F16}, {"bf16", DType::BF16}, {"e4m3", DType::E4M3}};
  return names;
}

const std::vector<Format>& coded_formats() {
  static const std::vector<Format> formats{{DType::E4M3, Scale::None},
                                           {DType::E4M3, Scale::Tensor},
                                           {DType::E4M3, Scale::Head},
                                           {DType::E4M3, Scale::Page},
                                           {DType::E4M3, Scale::Token},
                                           {DType::E2M1, Scale::Group, 16},
                                           {DType::E2M1, Scale::GroupTensor, 16},
                                           {DType::E2M1, Scale::Group, 16, true}};
  return formats;
}

const Names<Layout>& names_of(Layout) {
  static const Names<Layout> names{{"separate", Layout::Separate},
                                   {"packed", Layout::Packed},
                                   {"head_major", Layout::HeadMajor},
                                   {"slot_major", Layout::SlotMajor}};
  return names;
}

const Names<Strides>& names_of(Strides) {
  static const Names<Strides> names{{"dense", Strides::Dense},
                                    {"padded", Strides::Padded},
                                    {"transposed", Strides::Transposed},
                                    {"broadcast", Strides::Broadcast},
                                    {"huge", Strides::Huge}};
  return names;
}

const Names<Regime>& names_of(Regime) {
  static const Names<Regime> names{{"random", Regime::Random},     {"drift", Regime::Drift},
                                   {"integers", Regime::Integers}, {"ties", Regime::Ties},
                                   {"near", Regime::Near},         {"onehot", Regime::OneHot},
                                   {"low", Regime::Low},           {"rising", Regime::Rising},
                                   {"offset", Regime::Offset},     {"wide", Regime::Wide}};
  return names;
}

const Names<Hostile>& names_of(Hostile) {
  static const Names<Hostile> names{{"none", Hostile::None},
                                    {"nan", Hostile::Nan},
                                    {"nan_v", Hostile::NanV},
                                    {"nan_k", Hostile::NanK},
                                    {"nan_q", Hostile::NanQ},
                                    {"nan_index", Hostile::NanIndex},
                                    {"nan_index_q", Hostile::NanIndexQ}};
  return names;
}

const Names<Corrupt>& names_of(Corrupt) {
  static const Names<Corrupt> names{{"none", Corrupt::None},
                                    {"page_negative", Corrupt::PageNegative},
                                    {"page_min", Corrupt::PageMin},
                                    {"page_max", Corrupt::PageMax},
                                    {"page_end", Corrupt::PageEnd},
                                    {"block_negative", Corrupt::BlockNegative},
                                    {"block_min", Corrupt::BlockMin},
                                    {"block_max", Corrupt::BlockMax},
                                    {"block_end", Corrupt::BlockEnd},
                                    {"block_twice", Corrupt::BlockTwice},
                                    {"length_negative", Corrupt::LengthNegative},
                                    {"length_above", Corrupt::LengthAbove},
                                    {"queries_above", Corrupt::QueriesAbove},
                                    {"start_decreasing", Corrupt::StartDecreasing},
                                    {"start_not_zero", Corrupt::StartNotZero},
                                    {"start_past_end", Corrupt::StartPastEnd},
                                    {"keys_past_end", Corrupt::KeysPastEnd},
                                    {"key_start_past_end", Corrupt::KeyStartPastEnd},
                                    {"key_offset", Corrupt::KeyOffset}};
  return names;
}

const Names<Precision>& names_of(Precision) {
  static const Names<Precision> names{{"exact", Precision::Exact}, {"fast", Precision::Fast}};
  return names;
}

const Names<Grads>& names_of(Grads) {
  static const Names<Grads> names{{"all", Grads::All},
                                  {"q", Grads::Queries},
                                  {"k", Grads::Keys},
                                  {"v", Grads::Values},
                                  {"loss", Grads::Loss}};
  return names;
}

const Names<Order>& names_of(Order) {
  static const Names<Order> names{{"ascending", Order::Ascending},
                                  {"descending", Order::Descending},
                                  {"shuffled", Order::Shuffled}};
  return names;
}

const Names<Deal>& names_of(Deal) {
  static const Names<Deal> names{{"contiguous", Deal::Contiguous},
                                 {"zigzag", Deal::Zigzag},
                                 {"interleaved", Deal::Interleaved}};
  return names;
}

void bad_value(std::string_view text, const std::string& expected) {
  throw CaseError("expected " + expected + ", got '" + std::string(text) + "'");
}

std::int64_t read_integer(std::string_view text) {
  std::int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || text.empty()) {
    bad_value(text, "an integer");
  }
  return value;
}

void read_value(std::string_view text, std::uint64_t& value) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || text.empty()) {
    bad_value(text, "an integer from 0");
  }
}

void read_value(std::string_view text, bool& value) {
  if (text != "0" && text != "1") bad_value(text, "0 or 1");
  value = text == "1";
}

void read_value(std::string_view text, std::optional<DType>& value) {
  DType dtype{};
  if (text == "auto") {
    value.reset();
    return;
  }
  read_value(text, dtype);
  value = dtype;
}

void read_value(std::string_view text, std::optional<float>& value) {
  if (text == "auto") {
    value.reset();
    return;
  }
  float number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc() || end != text.data() + text.size()) bad_value(text, "a number or auto");
  value = number;
}

void read_value(std::string_view text, std::optional<Format>& value) {
  value.reset();
  if (text == "auto") return;
  for (const Format& format : coded_formats()) {
    if (text == to_string(format)) value = format;
  }
  if (!value) {
    bad_value(text,
              "auto, e4m3, e4m3/tensor, /head, /page or /token, nvfp4, nvfp4/tensor or q8kv4");
  }
}

std::string write_value(const std::optional<Format>& value) {
  return value ? to_string(*value) : "auto";
}

std::string write_value(const std::optional<DType>& value) {
  return value ? write_value(*value) : "auto";
}

std::string write_value(const std::optional<float>& value) {
  if (!value) return "auto";
  std::array<char, 32> text{};
  const auto result = std::to_chars(text.data(), text.data() + text.size(), *value);
  return {text.data(), result.ptr};
}

std::vector<std::string_view> split(std::string_view text, char separator) {
  std::vector<std::string_view> parts;
  for (;;) {
    const std::size_t end = text.find(separator);
    parts.push_back(text.substr(0, end));
    if (end == std::string_view::npos) return parts;
    text.remove_prefix(end + 1);
  }
}

void read_value(std::string_view text, std::vector<Lengths>& value) {
  value.clear();
  if (text == "none") return;
  for (std::string_view word : split(text, ',')) {
    std::int64_t copies = 1;
    if (const std::size_t times = word.find('x'); times != std::string_view::npos) {
      copies = read_integer(word.substr(0, times));
      word.remove_prefix(times + 1);
      if (copies < 1 || copies > 1'000'000) bad_value(word, "1 to 1000000 copies");
    }
    value.insert(value.end(), static_cast<std::size_t>(copies), read_request(word));
  }
}

std::string write_value(const std::vector<Lengths>& value) {
  if (value.empty()) return "none";
  std::string text;
  for (std::size_t i = 0; i < value.size();) {
    const Lengths& request = value[i];
    std::size_t copies = 1;
    while (i + copies < value.size() && value[i + copies] == request) ++copies;
    if (!text.empty()) text += ',';
    if (copies > 1) text.append(std::to_string(copies)).append("x");
    text.append(std::to_string(request.seqlen_q)).append(":");
    text.append(std::to_string(request.seqlen_k));
    if (request.q_offset) text.append(":").append(std::to_string(*request.q_offset));
    if (request.key_offset != 0 || request.total_k) {
      text.append("@").append(std::to_string(request.key_offset));
    }
    if (request.total_k) text.append("/").append(std::to_string(*request.total_k));
    i += copies;
  }
  return text;
}

}  // namespace msa::testkit
