#include "worker/stage/extract/plain_fields.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <system_error>

#include "worker/stage/exact_text.h"

namespace millrace::plain {
namespace {

constexpr std::int64_t kHeaderBytes = 4 << 10, kHeaderBytesMax = 1 << 20;

std::optional<Field> IntegerField(std::string_view type) {
  struct Range {
    std::string_view type;
    std::uint64_t max, min;
  };
  constexpr std::uint64_t kMax64 = INT64_MAX;
  constexpr std::array<Range, 9> kRanges = {{{"tinyint", 127, 128},
                                             {"smallint", 32'767, 32'768},
                                             {"integer", 2'147'483'647, 2'147'483'648},
                                             {"bigint", kMax64, kMax64 + 1},
                                             {"hugeint", UINT64_MAX, UINT64_MAX},
                                             {"utinyint", 255, 0},
                                             {"usmallint", 65'535, 0},
                                             {"uinteger", UINT32_MAX, 0},
                                             {"ubigint", UINT64_MAX, 0}}};
  for (const Range& range : kRanges)
    if (range.type == type) return Field{.kind = Kind::kInteger, .max = range.max, .min = range.min};
  return std::nullopt;
}

// "decimal(10,2)"
std::optional<Field> DecimalField(std::string_view type) {
  if (!IsDecimalType(type)) return std::nullopt;
  int width = 0, scale = 0;
  const char* end = type.data() + type.size();
  const auto first = std::from_chars(type.data() + std::strlen("decimal("), end, width);
  if (first.ec != std::errc{} || first.ptr == end || *first.ptr != ',') return std::nullopt;
  const auto second = std::from_chars(first.ptr + 1, end, scale);
  if (second.ec != std::errc{}) return std::nullopt;
  return Field{.kind = Kind::kDecimal, .whole_digits = width - scale, .scale = scale};
}

std::optional<Field> FieldOf(const ColumnSpec& column, const ReaderOptions& reader) {
  const std::string& type = column.type;
  // Absent or `usual`: an empty one is for the engine to refuse.
  const auto is = [&](const char* name, std::string_view usual) {
    const auto found = reader.options.find(name);
    return found == reader.options.end() || found->second == usual;
  };
  std::optional<Field> field = IntegerField(type);
  if (!field) field = DecimalField(type);
  if (type == "varchar") field = Field{.kind = Kind::kText};
  if (type == "boolean") field = Field{.kind = Kind::kBoolean};
  if (type == "time") field = Field{.kind = Kind::kTime};
  if (type == "double" || type == "float") {
    const auto& guessed = reader.guessed_doubles;
    field =
        Field{.kind = Kind::kDouble, .exact_whole = std::find(guessed.begin(), guessed.end(), column.name) != guessed.end()};
  }
  if (type == "date" && is("dateformat", "%Y-%m-%d")) field = Field{.kind = Kind::kDate};
  if (type == "timestamp" && is("timestampformat", "%Y-%m-%d %H:%M:%S"))
    field = Field{.kind = Kind::kTimestamp, .fraction = !reader.options.contains("timestampformat")};
  if (field) field->not_null = column.not_null;
  return field;
}

}  // namespace

std::optional<char> DelimiterOf(const std::string& path, FileFormat format, const std::map<std::string, std::string>& options) {
  if (!IsCsv(format) || path.ends_with(".gz") || path.ends_with(".zst")) return std::nullopt;
  char delimiter = format == FileFormat::kTsv ? '\t' : ',';
  for (const auto& [name, value] : options) {
    if (name == "delimiter") {
      const std::string text = value == "\\t" ? "\t" : value;
      if (text.size() != 1 || std::string_view(",;|\t").find(text[0]) == std::string_view::npos) return std::nullopt;
      delimiter = text[0];
      continue;
    }
    const bool as_ever = (name == "header" && value == "true") || (name == "quote" && value == "\"") ||
                         (name == "escape" && value == "\"") || (name == "encoding" && value == "utf-8") ||
                         (name == "skip" && value == "0") || (name == "null" && value.empty()) ||
                         (name == "decimal_separator" && value == ".") || name == "dateformat" || name == "timestampformat";
    if (!as_ever) return std::nullopt;
  }
  return delimiter;
}

std::optional<Form> FormOf(const std::string& path, const ReaderOptions& reader) {
  const auto delimiter = DelimiterOf(path, reader.format, reader.options);
  if (!delimiter || reader.columns.size() < 2) return std::nullopt;  // an empty line of one column may be a null
  Form form{.fields = {}, .delimiter = *delimiter};
  for (const ColumnSpec& column : reader.columns) {
    const auto field = FieldOf(column, reader);
    if (!field) return std::nullopt;
    form.fields.push_back(*field);
  }
  return form;
}

bool IsUtf8(const char* at, const char* end) {
  const auto byte = [&](std::ptrdiff_t i) { return static_cast<unsigned char>(at[i]); };
  while (at < end) {
    const unsigned char first = byte(0);
    if (first < 0x80) {
      ++at;
      continue;
    }
    const std::ptrdiff_t more = first >= 0xC2 && first < 0xE0   ? 1
                                : (first & 0xF0U) == 0xE0       ? 2
                                : first >= 0xF0 && first < 0xF5 ? 3
                                                                : 0;
    if (more == 0 || end - at <= more) return false;
    for (std::ptrdiff_t i = 1; i <= more; ++i)
      if ((byte(i) & 0xC0U) != 0x80U) return false;
    // Longer than needed, half of a surrogate pair, past the last character.
    if ((first == 0xE0 && byte(1) < 0xA0) || (first == 0xED && byte(1) > 0x9F) || (first == 0xF0 && byte(1) < 0x90) ||
        (first == 0xF4 && byte(1) > 0x8F))
      return false;
    at += more + 1;
  }
  return true;
}

Classes ClassesFor(char delimiter) {
  Classes classes{};
  for (std::size_t i = 0x80; i < 256; ++i) classes[i] = 2;
  for (const char c : {'\n', '\r', '\0', kQuote, delimiter}) classes[static_cast<unsigned char>(c)] = 1;
  return classes;
}

File::File(const std::string& path) : fd_(::open(path.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC)) {
  struct stat status{};
  if (fd_ >= 0 && ::fstat(fd_, &status) == 0 && S_ISREG(status.st_mode)) size_ = status.st_size;
}

File::~File() {
  if (fd_ >= 0) ::close(fd_);
}

bool File::Read(std::int64_t from, std::int64_t bytes, char* into) const {
  while (bytes > 0) {
    const ssize_t got = ::pread(fd_, into, static_cast<std::size_t>(bytes), from);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return false;
    from += got;
    bytes -= got;
    into += got;
  }
  return true;
}

std::optional<std::int64_t> ReadHeader(const File& file, Form* form) {
  std::string text;
  std::size_t end = std::string::npos;
  for (std::int64_t wanted = kHeaderBytes; end == std::string::npos; wanted *= 16) {  // mostly it is short
    const std::int64_t size = std::min({file.size(), wanted, kHeaderBytesMax});
    if (size == std::ssize(text)) return std::nullopt;
    text.resize(static_cast<std::size_t>(size));
    if (!file.Read(0, size, text.data())) return std::nullopt;
    end = text.find('\n');
  }
  form->crlf = end > 0 && text[end - 1] == '\r';
  const Form names{.fields = std::vector<Field>(form->fields.size()), .delimiter = form->delimiter, .crlf = form->crlf};
  const auto name = [](std::size_t, const Field&, const char* at, const Classes& classes) { return Text(at, classes); };
  const char* past = LineReader(names).Read(text.data(), name, [](std::size_t) {});
  if (past != text.data() + end + 1) return std::nullopt;
  return static_cast<std::int64_t>(end + 1);
}

}  // namespace millrace::plain
