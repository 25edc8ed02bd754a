// SPDX-License-Identifier: MIT
// The case language: one table of keys, each with a reader and a writer.
#include "testkit/case.h"

#include <fstream>
#include <iterator>
#include <sstream>
#include <utility>

#include "testkit/case_values.h"

namespace msa::testkit {

namespace {

struct Key {
  std::string name;
  std::string meaning;
  void (*read)(std::string_view, Case&);
  std::string (*write)(const Case&);
};

template <auto Member>
Key key(const char* name, const char* meaning) {
  return {name, meaning, [](std::string_view text, Case& spec) { read_value(text, spec.*Member); },
          [](const Case& spec) { return write_value(spec.*Member); }};
}

void read_heads(std::string_view text, Case& spec) {
  const std::vector<std::string_view> numbers = split(text, '/');
  if (numbers.size() != 2) bad_value(text, "query heads/key heads, as in 64/4");
  spec.heads_q = read_integer(numbers[0]);
  spec.heads_kv = read_integer(numbers[1]);
}

std::string write_heads(const Case& spec) {
  return std::to_string(spec.heads_q) + "/" + std::to_string(spec.heads_kv);
}

const std::vector<Key>& keys() {
  static const std::vector<Key> table{
      key<&Case::op>("op", "the operation"),
      key<&Case::dtype>("dtype", "of q, k, v; e4m3: of q, beside kv of codes"),
      key<&Case::kv>("kv", "format of k and v; auto: dtype"),
      key<&Case::index_dtype>("index_dtype", "of index_q; auto: dtype, or bf16 where that is e4m3"),
      key<&Case::index_k>("index_k", "format of index_k, one of those of kv; auto: as index_q"),
      key<&Case::filter>("filter", "1: select and msa with an 8-bit filter of the index keys"),
      key<&Case::rotated>("rotated", "1: the filter's codes are of rotated keys"),
      key<&Case::precision>("precision", "of a selection beside a filter: exact or fast"),
      key<&Case::out_dtype>("out", "dtype of the output; auto: dtype, or bf16 where that is e4m3"),
      {"heads", "query heads/key heads", read_heads, write_heads},
      key<&Case::head_dim>("dim", "head dim"),
      key<&Case::value_dim>("value_dim", "value dim; 0: dim"),
      key<&Case::index_heads>("index_heads", "index query heads; 0: key heads"),
      key<&Case::index_heads_k>("index_heads_k", "index key heads"),
      key<&Case::index_dim>("index_dim", "index dim; 0: dim"),
      key<&Case::block_size>("block", "tokens in a block"),
      key<&Case::topk>("topk", "blocks kept"),
      key<&Case::local_blocks>("local", "last visible blocks always kept"),
      key<&Case::init_blocks>("init", "first visible blocks always kept"),
      key<&Case::causal>("causal", "0 or 1"),
      key<&Case::softmax_scale>("scale", "softmax scale; auto: 1/sqrt(dim)"),
      key<&Case::lengths>("lens",
                          "requests new:keys[:offset][@key_offset[/total]],...; 4x1:64 is "
                          "four of a kind; none: no request"),
      key<&Case::page_size>("page", "tokens in a page; 0: ragged keys"),
      key<&Case::pool>("pool", "pages, or ragged rows, that exist; 0: few more than needed"),
      key<&Case::pad_rows>("pad_rows", "rows of q behind the last request"),
      key<&Case::slack>("slack", "how far the planned bounds lie above the lengths"),
      key<&Case::layout>("layout", "of keys and values"),
      key<&Case::strides>("strides", "of every tensor"),
      key<&Case::ids_head_major>("ids_head_major", "1: ids lie head-major"),
      key<&Case::order>("order", "of given block ids"),
      key<&Case::partial_lists>("partial",
                                "1: given lists of any length, garbage behind the first -1"),
      key<&Case::lse>("lse", "1: ask for the log-sum-exp"),
      key<&Case::chosen_scores>("chosen", "1: ask for the scores of the chosen blocks"),
      key<&Case::ids>("ids", "0: msa without asking for the selection"),
      key<&Case::output>("output", "0: dense without output, block maxima alone"),
      key<&Case::block_max>("block_max", "1: dense with block maxima"),
      key<&Case::parts>("parts", "parts of a merge"),
      key<&Case::in_place>("in_place", "1: merge_states into its first part"),
      key<&Case::grads>("grads", "gradients that a backward pass is asked for"),
      key<&Case::grad_dtype>("grad_dtype", "of gradients; auto: dtype"),
      key<&Case::accumulate>("accumulate", "1: backward passes add to what lies in dk and dv"),
      key<&Case::dlse>("dlse", "1: backward passes with a gradient of lse"),
      key<&Case::lists>("lists", "0: index_loss over all visible keys"),
      key<&Case::row_weight>("row_weight", "1: index_loss with weights of rows"),
      key<&Case::index_scale>("index_scale", "of index_loss; auto: 1/sqrt(index_dim)"),
      key<&Case::batch_invariant>("batch_invariant", "1: plan with the option"),
      key<&Case::regime>("regime", "what the vectors hold"),
      key<&Case::hostile>("hostile", "NaN where it must not matter, and where it does"),
      key<&Case::corrupt>("corrupt", "a fault that must be rejected"),
      key<&Case::ranks>("ranks", "paged cases run as so many shards and merged; 0: whole"),
      key<&Case::deal>("deal", "of blocks to ranks"),
      key<&Case::seed>("seed", "of all random numbers"),
  };
  return table;
}

const Key& find_key(std::string_view name) {
  for (const Key& entry : keys()) {
    if (entry.name == name) return entry;
  }
  std::string known;
  for (const Key& entry : keys()) known += " " + entry.name;
  throw CaseError("unknown key '" + std::string(name) + "'; known keys:" + known);
}

struct Word {
  const Key* entry;
  std::vector<std::string> values;
};

std::vector<Word> read_words(std::string_view line) {
  std::vector<Word> words;
  line = line.substr(0, line.find('#'));
  std::istringstream stream{std::string(line)};
  for (std::string word; stream >> word;) {
    const std::size_t equals = word.find('=');
    if (equals == std::string::npos) bad_value(word, "key=value");
    const Key& entry = find_key(std::string_view(word).substr(0, equals));
    for (const Word& earlier : words) {
      if (earlier.entry == &entry) throw CaseError("key '" + entry.name + "' stands twice");
    }
    words.push_back({&entry, alternatives(std::string_view(word).substr(equals + 1))});
  }
  return words;
}

void read_word(const Word& word, std::size_t choice, Case& spec) {
  try {
    word.entry->read(word.values[choice], spec);
  } catch (const CaseError& error) {
    throw CaseError(word.entry->name + ": " + error.what());
  }
}

}  // namespace

std::int64_t Case::rows() const {
  std::int64_t total = pad_rows;
  for (const Lengths& request : lengths) total += request.seqlen_q;
  return total;
}

std::vector<std::string> alternatives(std::string_view value) {
  std::vector<std::string> values;
  for (const std::string_view part : split(value, '|')) {
    const std::size_t dots = part.find("..");
    if (dots == std::string_view::npos) {
      values.emplace_back(part);
      continue;
    }
    const std::vector<std::string_view> upper = split(part.substr(dots + 2), '+');
    if (upper.size() > 2) bad_value(part, "a range low..high+step");
    const std::int64_t step = upper.size() == 2 ? read_integer(upper[1]) : 1;
    const std::int64_t high = read_integer(upper[0]);
    if (step < 1) bad_value(part, "a range with a step above 0");
    for (std::int64_t x = read_integer(part.substr(0, dots)); x <= high; x += step) {
      values.push_back(std::to_string(x));
    }
  }
  return values;
}

std::vector<Case> expand_cases(std::string_view line) {
  const std::vector<Word> words = read_words(line);
  if (words.empty()) return {};
  std::vector<Case> cases;
  std::vector<std::size_t> choice(words.size(), 0);
  for (;;) {
    Case spec;
    for (std::size_t i = 0; i < words.size(); ++i) read_word(words[i], choice[i], spec);
    cases.push_back(std::move(spec));
    std::size_t digit = words.size();
    while (digit > 0 && ++choice[digit - 1] == words[digit - 1].values.size()) choice[--digit] = 0;
    if (digit == 0) return cases;
  }
}

Case parse_case(std::string_view line) {
  std::vector<Case> cases = expand_cases(line);
  if (cases.size() != 1) {
    throw CaseError("expected one case, got " + std::to_string(cases.size()) + " from '" +
                    std::string(line) + "'");
  }
  return std::move(cases.front());
}

std::vector<Case> parse_cases(std::string_view text, const std::string& name) {
  std::vector<Case> cases;
  int number = 0;
  for (const std::string_view line : split(text, '\n')) {
    ++number;
    try {
      std::vector<Case> more = expand_cases(line);
      cases.insert(cases.end(), std::make_move_iterator(more.begin()),
                   std::make_move_iterator(more.end()));
    } catch (const CaseError& error) {
      throw CaseError(name + ":" + std::to_string(number) + ": " + error.what());
    }
  }
  return cases;
}

std::vector<Case> read_cases(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  if (!file) throw CaseError("cannot read " + path);
  return parse_cases(text.view(), path);
}

std::string to_line(const Case& spec) {
  const Case defaults;
  std::string line;
  for (const Key& entry : keys()) {
    const std::string value = entry.write(spec);
    if (entry.name != "op" && value == entry.write(defaults)) continue;
    line += (line.empty() ? "" : " ") + entry.name + "=" + value;
  }
  return line;
}

const char* short_name(Op op) {
  for (const auto& [name, named] : names_of(Op{})) {
    if (op == named) return name;
  }
  return "?";
}

std::string case_keys() {
  const Case defaults;
  std::string text;
  for (const Key& entry : keys()) {
    text += entry.name + "=" + entry.write(defaults) + "  " + entry.meaning + "\n";
  }
  return text;
}

namespace {

/// Query tokens of a request that the plan allows.
std::int64_t most_queries(const Case& spec) {
  std::int64_t most = 0;
  for (const Lengths& lengths : spec.lengths) most = std::max(most, lengths.seqlen_q);
  return most + spec.slack;
}

}  // namespace

std::string case_value(const Case& spec, std::string_view name) {
  if (name == "group") {
    return std::to_string(spec.heads_kv > 0 ? spec.heads_q / spec.heads_kv : 0);
  }
  if (name == "queries") return std::to_string(most_queries(spec));
  return find_key(name).write(spec);
}

void set_case_value(Case& spec, std::string_view key, std::string_view value) {
  find_key(key).read(value, spec);
}

}  // namespace msa::testkit
