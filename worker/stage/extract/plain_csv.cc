#include "worker/stage/extract/plain_csv.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <memory>
#include <string_view>
#include <system_error>
#include <thread>

#include "worker/stage/exact_text.h"
#include "worker/stage/extract/packed.h"

namespace millrace {
namespace {

constexpr std::size_t kHeaderBytesMax = 1u << 20;
constexpr std::int64_t kPieceBytes = 4 << 20;
constexpr char kQuote = '"';

enum class Kind : std::uint8_t { kText, kInteger, kDecimal, kDouble, kBoolean, kDate, kTime, kTimestamp };

struct Field {
  Kind kind = Kind::kText;
  bool not_null = false;
  std::uint64_t max = 0, min = 0;   // integers: the largest value, and the magnitude of the smallest
  int whole_digits = 0, scale = 0;  // decimals
  bool exact_whole = false;         // doubles: whole numbers must stay exact
  bool fraction = true;             // timestamps: may have parts of a second
};

struct Form {
  std::vector<Field> fields;
  char delimiter = ',';
  bool crlf = false;  // as the header ends
};

bool Digit(char c) { return c >= '0' && c <= '9'; }

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
  const auto format = [&](const char* name) {
    const auto found = reader.options.find(name);
    return found == reader.options.end() ? std::string() : found->second;
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
  if (const std::string f = format("dateformat"); type == "date" && (f.empty() || f == "%Y-%m-%d"))
    field = Field{.kind = Kind::kDate};
  if (const std::string f = format("timestampformat"); type == "timestamp" && (f.empty() || f == "%Y-%m-%d %H:%M:%S"))
    field = Field{.kind = Kind::kTimestamp, .fraction = f.empty()};
  if (field) field->not_null = column.not_null;
  return field;
}

// Nothing when the options or types are not among those that are understood here.
std::optional<Form> FormOf(const std::string& path, const ReaderOptions& reader) {
  if (!IsCsv(reader.format) || path.ends_with(".gz") || path.ends_with(".zst")) return std::nullopt;
  Form form{.fields = {}, .delimiter = reader.format == FileFormat::kTsv ? '\t' : ','};
  for (const auto& [name, value] : reader.options) {
    if (name == "delimiter") {
      const std::string text = value == "\\t" ? "\t" : value;
      if (text.size() != 1 || std::string_view(",;|\t").find(text[0]) == std::string_view::npos) return std::nullopt;
      form.delimiter = text[0];
      continue;
    }
    const bool as_ever = (name == "header" && value == "true") || (name == "quote" && value == "\"") ||
                         (name == "escape" && value == "\"") || (name == "encoding" && value == "utf-8") ||
                         (name == "skip" && value == "0") || (name == "null" && value.empty()) ||
                         (name == "decimal_separator" && value == ".") || name == "dateformat" || name == "timestampformat";
    if (!as_ever) return std::nullopt;
  }
  if (reader.columns.size() < 2) return std::nullopt;  // an empty line of one column may be a null
  for (const ColumnSpec& column : reader.columns) {
    const auto field = FieldOf(column, reader);
    if (!field) return std::nullopt;
    form.fields.push_back(*field);
  }
  return form;
}

// ---- fields: each takes the longest run that is one, and returns its end, or null. Lines end in '\n', so that none of them
// needs to know where the bytes end.

const char* Digits(const char* at, int count, int* value) {
  *value = 0;
  for (int i = 0; i < count; ++i, ++at) {
    if (!Digit(*at)) return nullptr;
    *value = *value * 10 + (*at - '0');
  }
  return at;
}

const char* Integer(const char* at, const Field& field) {
  constexpr std::ptrdiff_t kDigitsMax = 19;  // fit 64 bits whatever they are
  const bool negative = *at == '-';
  const char* begin = at += negative ? 1 : 0;
  std::uint64_t value = 0;
  for (; Digit(*at); ++at) {
    if (at - begin == kDigitsMax) return nullptr;
    value = value * 10 + static_cast<std::uint64_t>(*at - '0');
  }
  if (at == begin || (negative && field.min == 0)) return nullptr;
  return value <= (negative ? field.min : field.max) ? at : nullptr;
}

const char* Decimal(const char* at, const Field& field) {
  if (*at == '-') ++at;
  const char* whole = at;
  while (*at == '0') ++at;
  const char* significant = at;
  while (Digit(*at)) ++at;
  if (at == whole || at - significant > field.whole_digits) return nullptr;
  if (*at != '.') return at;
  const char* fraction = ++at;
  while (Digit(*at)) ++at;
  return at == fraction || at - fraction > field.scale ? nullptr : at;
}

const char* Double(const char* at, const Field& field) {
  constexpr std::ptrdiff_t kDigitsMax = 15;  // exact in a double; twice as many are still in the range of a float
  if (*at == '-') ++at;
  const char* whole = at;
  while (Digit(*at)) ++at;
  const std::ptrdiff_t digits = at - whole;
  if (digits == 0 || digits > (field.exact_whole ? kDigitsMax : 2 * kDigitsMax)) return nullptr;
  if (*at != '.') return at;
  const char* fraction = ++at;
  while (Digit(*at)) ++at;
  return at == fraction || at - fraction > 2 * kDigitsMax ? nullptr : at;
}

const char* Boolean(const char* at) {
  for (const std::string_view word : {"true", "false", "True", "False", "TRUE", "FALSE"})
    if (std::strncmp(at, word.data(), word.size()) == 0) return at + word.size();
  return nullptr;
}

const char* Date(const char* at) {
  constexpr std::array<int, 13> kDays = {0, 31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31};
  int year = 0, month = 0, day = 0;
  if ((at = Digits(at, 4, &year)) == nullptr || *at != '-') return nullptr;
  if ((at = Digits(at + 1, 2, &month)) == nullptr || *at != '-') return nullptr;
  if ((at = Digits(at + 1, 2, &day)) == nullptr) return nullptr;
  if (year == 0 || month == 0 || month > 12 || day == 0) return nullptr;
  const bool leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
  return day <= kDays[static_cast<std::size_t>(month)] + (month == 2 && leap ? 1 : 0) ? at : nullptr;
}

const char* Time(const char* at, bool may_have_fraction) {
  constexpr std::ptrdiff_t kMicroDigits = 6;
  int hour = 0, minute = 0, second = 0;
  if ((at = Digits(at, 2, &hour)) == nullptr || *at != ':') return nullptr;
  if ((at = Digits(at + 1, 2, &minute)) == nullptr || *at != ':') return nullptr;
  if ((at = Digits(at + 1, 2, &second)) == nullptr || hour > 23 || minute > 59 || second > 59) return nullptr;
  if (*at != '.') return at;
  const char* fraction = ++at;
  while (Digit(*at)) ++at;
  return !may_have_fraction || at == fraction || at - fraction > kMicroDigits ? nullptr : at;
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

// What ends a run of text: 1; what needs a closer look: 2.
using Classes = std::array<std::uint8_t, 256>;
Classes ClassesFor(char delimiter) {
  Classes classes{};
  for (std::size_t i = 0x80; i < 256; ++i) classes[i] = 2;
  for (const char c : {'\n', '\r', '\0', kQuote, delimiter}) classes[static_cast<unsigned char>(c)] = 1;
  return classes;
}

const char* Text(const char* at, const Classes& classes) {
  const char* begin = at;
  bool wide = false;
  while (true) {
    const std::uint8_t c = classes[static_cast<unsigned char>(*at)];
    if (c == 1) break;
    wide = wide || c == 2;
    ++at;
  }
  return wide && !IsUtf8(begin, at) ? nullptr : at;
}

const char* Value(const char* at, const Field& field, const Classes& classes) {
  switch (field.kind) {
    case Kind::kText: return Text(at, classes);
    case Kind::kInteger: return Integer(at, field);
    case Kind::kDecimal: return Decimal(at, field);
    case Kind::kDouble: return Double(at, field);
    case Kind::kBoolean: return Boolean(at);
    case Kind::kDate: return Date(at);
    case Kind::kTime: return Time(at, true);
    case Kind::kTimestamp: at = Date(at); return at == nullptr || *at != ' ' ? nullptr : Time(at + 1, field.fraction);
  }
  return nullptr;
}

// One line: past its end, or null.
class LineReader {
 public:
  explicit LineReader(const Form& form) : form_(form), outside_(ClassesFor(form.delimiter)), inside_(ClassesFor(kQuote)) {}

  const char* Read(const char* at) const {
    const std::size_t count = form_.fields.size();
    for (std::size_t i = 0; i < count; ++i) {
      const Field& field = form_.fields[i];
      const char end = i + 1 < count ? form_.delimiter : form_.crlf ? '\r' : '\n';
      if (*at == end) {  // nothing: a null
        if (field.not_null) return nullptr;
      } else if (*at == kQuote) {
        if (at[1] == kQuote) return nullptr;  // an empty text or a null, or the beginning of a quote in a text
        at = Value(at + 1, field, inside_);
        if (at == nullptr || *at != kQuote) return nullptr;
        ++at;
      } else {
        at = Value(at, field, outside_);
        if (at == nullptr) return nullptr;
      }
      if (*at++ != end) return nullptr;
    }
    if (!form_.crlf) return at;
    return *at == '\n' ? at + 1 : nullptr;
  }

 private:
  const Form& form_;
  Classes outside_, inside_;
};

// ---- the file, in pieces that several threads take in turn

class File {
 public:
  explicit File(const std::string& path) : fd_(::open(path.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC)) {
    struct stat status{};
    if (fd_ >= 0 && ::fstat(fd_, &status) == 0 && S_ISREG(status.st_mode)) size_ = status.st_size;
  }
  File(const File&) = delete;
  File& operator=(const File&) = delete;
  ~File() {
    if (fd_ >= 0) ::close(fd_);
  }
  std::int64_t size() const { return size_; }  // -1: not a regular file
  bool Read(std::int64_t from, std::int64_t bytes, char* into) const {
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

 private:
  int fd_;
  std::int64_t size_ = -1;
};

// The header's end; it also says how lines end.
std::optional<std::int64_t> ReadHeader(const File& file, Form* form) {
  std::string text(static_cast<std::size_t>(std::min<std::int64_t>(file.size(), kHeaderBytesMax)), '\0');
  if (!file.Read(0, static_cast<std::int64_t>(text.size()), text.data())) return std::nullopt;
  const std::size_t end = text.find('\n');
  if (end == std::string::npos) return std::nullopt;
  form->crlf = end > 0 && text[end - 1] == '\r';
  const Form names{.fields = std::vector<Field>(form->fields.size()), .delimiter = form->delimiter, .crlf = form->crlf};
  const char* past = LineReader(names).Read(text.data());
  if (past != text.data() + end + 1) return std::nullopt;
  return static_cast<std::int64_t>(end + 1);
}

class Pieces {
 public:
  Pieces(const File& file, const Form& form, std::int64_t begin) : file_(file), form_(form), begin_(begin) {}

  std::optional<std::int64_t> Run(int threads) {
    const std::int64_t pieces = (file_.size() - begin_ + kPieceBytes - 1) / kPieceBytes;
    std::vector<std::jthread> others;
    try {
      for (std::int64_t i = 1; i < std::min<std::int64_t>(threads, pieces); ++i) others.emplace_back([this] { Work(); });
    } catch (const std::system_error&) {  // no further thread to be had
    }
    Work();
    others.clear();
    if (failed_) return std::nullopt;
    return rows_;
  }

 private:
  void Work() {
    try {
      const LineReader reader(form_);
      std::string bytes;
      while (!failed_) {
        const std::int64_t at = begin_ + next_++ * kPieceBytes;
        if (at >= file_.size()) return;
        const auto rows = Lines(reader, at, std::min(at + kPieceBytes, file_.size()), &bytes);
        if (!rows) break;
        rows_ += *rows;
        if (at + kPieceBytes >= file_.size()) return;
      }
    } catch (const std::bad_alloc&) {
    }
    failed_ = true;
  }

  // The lines that begin in [from, to). A line break inside of quotes would make the line before it end inside of quotes, which
  // no line may here.
  std::optional<std::int64_t> Lines(const LineReader& reader, std::int64_t from, std::int64_t to, std::string* bytes) const {
    const std::int64_t before = from - 1;  // is a line's last byte, or inside of a line; the header's in the first piece
    bytes->resize(static_cast<std::size_t>(to - before));
    if (!file_.Read(before, to - before, bytes->data())) return std::nullopt;
    if (!CompleteLastLine(to, bytes)) return std::nullopt;
    const char* at = bytes->data();
    const char* const last = at + (to - before);
    const char* first = static_cast<const char*>(std::memchr(at, '\n', bytes->size()));
    std::int64_t rows = 0;
    for (at = first + 1; at < last; ++rows) {
      const char* next = reader.Read(at);
      if (next == nullptr || static_cast<std::size_t>(next - at) > kRecordBytesMax) return std::nullopt;
      at = next;
    }
    return rows;
  }

  // So that `bytes`, which end at `to`, end with a line.
  bool CompleteLastLine(std::int64_t to, std::string* bytes) const {
    constexpr std::int64_t kMore = 64 << 10;
    for (std::int64_t at = to; bytes->back() != '\n';) {
      const std::int64_t more = std::min(kMore, file_.size() - at);
      if (more == 0) {  // the file's last line need not end
        *bytes += form_.crlf ? "\r\n" : "\n";
        return true;
      }
      const std::size_t had = bytes->size();
      if (had > kPieceBytes + kRecordBytesMax) return false;
      bytes->resize(had + static_cast<std::size_t>(more));
      if (!file_.Read(at, more, bytes->data() + had)) return false;
      at += more;
      if (const std::size_t end = bytes->find('\n', had); end != std::string::npos) bytes->resize(end + 1);
    }
    return true;
  }

  const File& file_;
  const Form& form_;
  std::int64_t begin_;
  std::atomic<std::int64_t> next_ = 0, rows_ = 0;
  std::atomic<bool> failed_ = false;
};

std::optional<std::int64_t> PlainRows(const std::string& path, const ReaderOptions& reader, int threads) {
  auto form = FormOf(path, reader);
  if (!form) return std::nullopt;
  const File file(path);
  if (file.size() <= 0) return std::nullopt;
  const auto begin = ReadHeader(file, &*form);
  if (!begin) return std::nullopt;
  return Pieces(file, *form, *begin).Run(threads);
}

}  // namespace

std::optional<std::int64_t> PlainCsv::Rows(const std::string& path, const ReaderOptions& reader) {
  const auto found = known_.find(path);
  if (found != known_.end() && found->second.columns == reader.columns && found->second.options == reader.options &&
      found->second.guessed_doubles == reader.guessed_doubles)
    return found->second.rows;
  const auto rows = PlainRows(path, reader, threads_);
  known_.insert_or_assign(path, Known{reader.columns, reader.options, reader.guessed_doubles, rows});
  return rows;
}

std::optional<std::int64_t> PlainCsv::Rows(const std::vector<std::string>& paths, const ReaderOptions& reader) {
  std::int64_t all = 0;
  for (const auto& path : paths) {
    const auto rows = Rows(path, reader);
    if (!rows) return std::nullopt;
    all += *rows;
  }
  return all;
}

}  // namespace millrace
