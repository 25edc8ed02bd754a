// SPDX-License-Identifier: MIT
// The header is read through a SAX handler: it sees equal keys that a document tree would merge,
// and it refuses any nesting that the format does not have.
#include "safetensors.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>

#include "pending_file.h"

namespace msa::safetensors {
namespace {

struct DTypeRow {
  DType dtype;
  const char* name;
  std::uint64_t bytes;
};
constexpr std::array<DTypeRow, 7> kDTypes{{{DType::F32, "F32", 4},
                                           {DType::F16, "F16", 2},
                                           {DType::BF16, "BF16", 2},
                                           {DType::E4M3, "F8_E4M3", 1},
                                           {DType::I8, "I8", 1},
                                           {DType::I32, "I32", 4},
                                           {DType::I64, "I64", 8}}};

const DTypeRow& row_of(DType dtype) {
  for (const DTypeRow& row : kDTypes) {
    if (row.dtype == dtype) return row;
  }
  throw std::invalid_argument("safetensors: a dtype that files do not hold");
}

std::string str(std::uint64_t value) { return std::to_string(value); }

/// Plain ASCII, cut at `longest`: what a file says may not steer a terminal.
std::string escaped(std::string_view text, std::size_t longest) {
  constexpr const char* kHex = "0123456789abcdef";
  std::string plain;
  for (const char c : text.substr(0, longest)) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte < 0x20 || byte >= 0x7f) {
      plain += {'\\', 'x', kHex[byte >> 4], kHex[byte & 15]};
    } else {
      plain += c;
    }
  }
  return plain + (text.size() > longest ? "..." : "");
}

[[noreturn]] void fail(const std::string& message) { throw FormatError("safetensors: " + message); }

[[noreturn]] void fail_tensor(const std::string& name, const std::string& message) {
  fail("tensor " + printable(name) + ": " + message);
}

DType parse_dtype(const std::string& tensor, const std::string& text) {
  for (const DTypeRow& row : kDTypes) {
    if (text == row.name) return row.dtype;
  }
  fail_tensor(tensor,
              "expected dtype F32, F16, BF16, F8_E4M3, I8, I32 or I64, got " + printable(text));
}

std::string shape_text(const std::vector<std::int64_t>& shape) {
  std::string text = "[";
  for (std::size_t i = 0; i < shape.size(); ++i) {
    text += (i ? ", " : "") + std::to_string(shape[i]);
  }
  return text + "]";
}

/// Bytes of a dense tensor. Extents of 0 do not excuse the others: their product must fit all the
/// same, so that no order of multiplication can wrap.
std::optional<std::uint64_t> byte_size(DType dtype, const std::vector<std::int64_t>& shape) {
  std::uint64_t bytes = row_of(dtype).bytes;
  bool empty = false;
  for (const std::int64_t extent : shape) {
    if (extent == 0) {
      empty = true;
    } else if (__builtin_mul_overflow(bytes, static_cast<std::uint64_t>(extent), &bytes)) {
      return std::nullopt;
    }
  }
  if (bytes > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max())) {
    return std::nullopt;
  }
  return empty ? 0 : bytes;
}

/// Builds a Header out of parser events. Where it stands in the file is one enum; every event that
/// does not belong there is an error. Throws FormatError, so its callbacks always return true.
class HeaderSax : public nlohmann::json_sax<nlohmann::json> {
 public:
  Header take() { return std::move(header_); }

  bool null() override { return unexpected("null"); }
  bool boolean(bool) override { return unexpected("a boolean"); }
  bool number_integer(number_integer_t value) override {
    return unexpected("the negative number " + std::to_string(value));
  }
  bool number_float(number_float_t, const string_t& text) override {
    return unexpected("the number " + printable(text));
  }
  bool binary(binary_t&) override { return unexpected("binary data"); }

  bool number_unsigned(number_unsigned_t value) override {
    if (at_ == At::Shape) {
      if (value > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max())) {
        fail_tensor(entry_.name, "expected extents of at most 2^63 - 1, got " + str(value));
      }
      if (entry_.shape.size() == kMaxRank) {
        fail_tensor(entry_.name, "expected a rank of at most " + str(kMaxRank) + ", got more");
      }
      entry_.shape.push_back(static_cast<std::int64_t>(value));
      return true;
    }
    if (at_ == At::Offsets) {
      if (offsets_seen_ == 2) fail_tensor(entry_.name, "expected 2 data_offsets, got more");
      (offsets_seen_++ == 0 ? entry_.begin : entry_.end) = value;
      return true;
    }
    return unexpected("the number " + str(value));
  }

  bool string(string_t& value) override {
    if (at_ == At::DTypeValue) {
      entry_.dtype = parse_dtype(entry_.name, value);
      at_ = At::Entry;
      return true;
    }
    if (at_ == At::MetadataValue) {
      header_.metadata[metadata_key_] = value;
      at_ = At::Metadata;
      return true;
    }
    return unexpected("the string " + printable(value));
  }

  bool start_object(std::size_t) override {
    if (at_ == At::Start) {
      at_ = At::Top;
    } else if (at_ == At::EntryValue) {
      at_ = At::Entry;
    } else if (at_ == At::MetadataObject) {
      at_ = At::Metadata;
    } else {
      return unexpected("an object");
    }
    return true;
  }

  bool key(string_t& name) override {
    if (at_ == At::Top) return top_key(name);
    if (at_ == At::Metadata) {
      if (header_.metadata.count(name)) fail("metadata key " + printable(name) + " stands twice");
      metadata_key_ = name;
      at_ = At::MetadataValue;
      return true;
    }
    return entry_key(name);
  }

  bool end_object() override {
    if (at_ == At::Entry) {
      for (const char* field : {"dtype", "shape", "data_offsets"}) {
        if (!fields_.count(field)) fail_tensor(entry_.name, std::string("has no ") + field);
      }
      header_.entries.push_back(std::move(entry_));
      at_ = At::Top;
    } else if (at_ == At::Metadata) {
      at_ = At::Top;
    } else {
      at_ = At::End;
    }
    return true;
  }

  bool start_array(std::size_t) override {
    if (at_ == At::ShapeArray) {
      at_ = At::Shape;
    } else if (at_ == At::OffsetsArray) {
      at_ = At::Offsets;
    } else {
      return unexpected("an array");
    }
    return true;
  }

  bool end_array() override {
    if (at_ == At::Offsets && offsets_seen_ != 2) {
      fail_tensor(entry_.name, "expected 2 data_offsets, got " + str(offsets_seen_));
    }
    at_ = At::Entry;
    return true;
  }

  bool parse_error(std::size_t position, const std::string&,
                   const nlohmann::detail::exception& error) override {
    fail("header is not JSON at byte " + str(position) + ": " + escaped(error.what(), 160));
  }

 private:
  enum class At {
    Start,           // before the outer object
    Top,             // in the outer object, before a key
    MetadataObject,  // behind "__metadata__"
    Metadata,        // in its object, before a key
    MetadataValue,   // behind a key of it
    EntryValue,      // behind a tensor's name
    Entry,           // in a tensor's object, before a key
    DTypeValue,      // behind "dtype"
    ShapeArray,      // behind "shape"
    Shape,           // in its array
    OffsetsArray,    // behind "data_offsets"
    Offsets,         // in its array
    End,             // behind the outer object
  };

  bool top_key(const std::string& name) {
    if (!names_.insert(name).second) fail("tensor " + printable(name) + " stands twice");
    if (name == "__metadata__") {
      at_ = At::MetadataObject;
      return true;
    }
    entry_ = {};
    entry_.name = name;
    fields_.clear();
    offsets_seen_ = 0;
    at_ = At::EntryValue;
    return true;
  }

  bool entry_key(const std::string& field) {
    if (!fields_.insert(field).second) {
      fail_tensor(entry_.name, "field " + printable(field) + " stands twice");
    }
    if (field == "dtype") {
      at_ = At::DTypeValue;
    } else if (field == "shape") {
      at_ = At::ShapeArray;
    } else if (field == "data_offsets") {
      at_ = At::OffsetsArray;
    } else {
      fail_tensor(entry_.name,
                  "expected the fields dtype, shape and data_offsets, got " + printable(field));
    }
    return true;
  }

  bool unexpected(const std::string& what) const {
    switch (at_) {
      case At::Start:
        fail("expected the header to be an object, got " + what);
      case At::MetadataObject:
        fail("expected __metadata__ to be an object, got " + what);
      case At::MetadataValue:
        fail("expected metadata " + printable(metadata_key_) + " to be a string, got " + what);
      case At::EntryValue:
        fail_tensor(entry_.name, "expected an object, got " + what);
      case At::DTypeValue:
        fail_tensor(entry_.name, "expected dtype to be a string, got " + what);
      case At::ShapeArray:
        fail_tensor(entry_.name, "expected shape to be an array, got " + what);
      case At::OffsetsArray:
        fail_tensor(entry_.name, "expected data_offsets to be an array, got " + what);
      case At::Shape:
      case At::Offsets:
        fail_tensor(entry_.name, "expected an unsigned integer below 2^64, got " + what);
      case At::Top:
      case At::Metadata:
      case At::Entry:
      case At::End:
        break;
    }
    fail("expected a name, got " + what);
  }

  At at_ = At::Start;
  Header header_;
  Entry entry_;
  std::set<std::string> names_;
  std::set<std::string> fields_;
  std::string metadata_key_;
  std::uint64_t offsets_seen_ = 0;
};

void check_size(const Entry& entry, std::uint64_t data_bytes) {
  if (entry.begin > entry.end || entry.end > data_bytes) {
    fail_tensor(entry.name, "expected data_offsets inside the " + str(data_bytes) +
                                " bytes of data, got [" + str(entry.begin) + ", " + str(entry.end) +
                                "]");
  }
  const auto bytes = byte_size(entry.dtype, entry.shape);
  if (!bytes) {
    fail_tensor(entry.name, "expected a shape that fits in memory, got " + shape_text(entry.shape));
  }
  if (entry.end - entry.begin != *bytes) {
    fail_tensor(entry.name, "expected " + str(*bytes) + " bytes for " + dtype_name(entry.dtype) +
                                shape_text(entry.shape) + ", got data_offsets [" +
                                str(entry.begin) + ", " + str(entry.end) + "] of " +
                                str(entry.end - entry.begin) + " bytes");
  }
}

void check_ranges(std::vector<Entry>& entries, std::uint64_t data_bytes) {
  for (const Entry& entry : entries) check_size(entry, data_bytes);
  std::stable_sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) {
    return a.begin != b.begin ? a.begin < b.begin : a.end < b.end;
  });
  std::uint64_t expected = 0;
  std::string previous = "the start of the data";
  for (const Entry& entry : entries) {
    if (entry.begin != expected) {
      fail_tensor(entry.name,
                  std::string(entry.begin < expected ? "overlaps" : "leaves a gap behind") + " " +
                      previous + ": expected it to begin at byte " + str(expected) + ", got " +
                      str(entry.begin));
    }
    expected = entry.end;
    previous = "tensor " + printable(entry.name);
  }
  if (expected != data_bytes) {
    fail("expected the data to end at byte " + str(expected) + " with " + previous + ", got " +
         str(data_bytes) + " bytes of data");
  }
}

std::uint64_t header_length(const std::byte* prefix, std::uint64_t file_bytes) {
  std::uint64_t length = 0;
  for (std::size_t i = kPrefixBytes; i-- > 0;) {
    length = length << 8 | std::to_integer<std::uint64_t>(prefix[i]);
  }
  if (length > kMaxHeaderBytes) {
    fail("expected a header of at most " + str(kMaxHeaderBytes) + " bytes, got " + str(length));
  }
  if (length > file_bytes - kPrefixBytes) {
    fail("expected a header of " + str(length) + " bytes, got a file with " +
         str(file_bytes - kPrefixBytes) + " bytes behind its length");
  }
  return length;
}

std::string system_error() { return std::strerror(errno); }

std::string make_header(std::span<const View> tensors,
                        const std::map<std::string, std::string>& metadata) {
  nlohmann::ordered_json json = nlohmann::ordered_json::object();
  if (!metadata.empty()) json["__metadata__"] = metadata;
  std::uint64_t offset = 0;
  for (const View& view : tensors) {
    const auto bytes = byte_size(view.dtype, view.shape);
    if (!bytes) throw WriteError("tensor " + printable(view.name) + ": too large");
    json[view.name] = {{"dtype", dtype_name(view.dtype)},
                       {"shape", view.shape},
                       {"data_offsets", {offset, offset + *bytes}}};
    offset += *bytes;
  }
  std::string text = json.dump();
  text.append((8 - text.size() % 8) % 8, ' ');  // data begin 8-byte aligned, as other writers do
  return text;
}

}  // namespace

Header parse_header(std::string_view json, std::uint64_t data_bytes) {
  if (json.empty() || json.front() != '{') fail("expected the header to begin with '{'");
  HeaderSax sax;
  nlohmann::json::sax_parse(json.begin(), json.end(), &sax);
  Header header = sax.take();
  check_ranges(header.entries, data_bytes);
  return header;
}

Header parse_file(std::span<const std::byte> file) {
  if (file.size() < kPrefixBytes) {
    fail("expected at least 8 bytes, got a file of " + str(file.size()));
  }
  const std::uint64_t length = header_length(file.data(), file.size());
  const char* text = reinterpret_cast<const char*>(file.data()) + kPrefixBytes;
  return parse_header({text, length}, file.size() - kPrefixBytes - length);
}

File::File(std::string path) : path_(std::move(path)) {
  fd_ = ::open(path_.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd_ < 0) throw FormatError(path_ + ": " + system_error());
  try {
    struct stat status {};
    if (::fstat(fd_, &status) != 0) throw FormatError(path_ + ": " + system_error());
    if (!S_ISREG(status.st_mode)) throw FormatError(path_ + ": not a regular file");
    const std::uint64_t size = static_cast<std::uint64_t>(status.st_size);
    if (size < kPrefixBytes) fail("expected at least 8 bytes, got a file of " + str(size));
    std::array<std::byte, kPrefixBytes> prefix{};
    read_at(0, prefix.data(), prefix.size(), "header length");
    std::string text(header_length(prefix.data(), size), '\0');
    read_at(kPrefixBytes, text.data(), text.size(), "header");
    data_begin_ = kPrefixBytes + text.size();
    header_ = parse_header(text, size - data_begin_);
  } catch (...) {
    ::close(fd_);
    throw;
  }
}

File::~File() { ::close(fd_); }

const Entry* File::find(std::string_view name) const noexcept {
  for (const Entry& entry : header_.entries) {
    if (entry.name == name) return &entry;
  }
  return nullptr;
}

void File::read(const Entry& entry, void* to) const {
  read_at(data_begin_ + entry.begin, to, entry.end - entry.begin,
          "tensor " + printable(entry.name));
}

void File::read_at(std::uint64_t offset, void* to, std::uint64_t bytes,
                   const std::string& what) const {
  char* into = static_cast<char*>(to);
  while (bytes > 0) {
    const std::size_t chunk = std::min<std::uint64_t>(bytes, 1u << 30);
    const ssize_t got = ::pread(fd_, into, chunk, static_cast<off_t>(offset));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) fail(what + ": read failed: " + system_error());
    if (got == 0) fail(what + ": the file ended " + str(bytes) + " bytes early while being read");
    into += got;
    offset += static_cast<std::uint64_t>(got);
    bytes -= static_cast<std::uint64_t>(got);
  }
}

void write(const std::string& path, std::span<const View> tensors,
           const std::map<std::string, std::string>& metadata) {
  const std::string header = make_header(tensors, metadata);
  std::array<std::byte, kPrefixBytes> prefix{};
  for (std::size_t i = 0; i < kPrefixBytes; ++i) {
    prefix[i] = static_cast<std::byte>(header.size() >> (8 * i) & 0xff);
  }
  PendingFile file(path);
  file.append(prefix.data(), prefix.size());
  file.append(header.data(), header.size());
  for (const View& view : tensors) file.append(view.data, *byte_size(view.dtype, view.shape));
  file.publish();
}

const char* dtype_name(DType dtype) { return row_of(dtype).name; }

std::string printable(std::string_view name) { return "'" + escaped(name, 80) + "'"; }

}  // namespace msa::safetensors
