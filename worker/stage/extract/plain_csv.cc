#include "worker/stage/extract/plain_csv.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <memory>
#include <system_error>
#include <thread>

#include "worker/stage/extract/packed.h"
#include "worker/stage/extract/plain_fields.h"

namespace millrace {
namespace {

using plain::Classes;
using plain::Field;
using plain::File;
using plain::Form;
using plain::Kind;
using plain::LineReader;

constexpr std::int64_t kPieceBytes = 4 << 20;

const char* Value(const char* at, const Field& field, const Classes& classes) {
  plain::Number number;
  plain::Day day;
  std::int64_t time = 0;
  bool truth = false;
  switch (field.kind) {
    case Kind::kText: return plain::Text(at, classes);
    case Kind::kInteger: return plain::Integer(at, field, &number);
    case Kind::kDecimal: return plain::Decimal(at, field, &number);
    case Kind::kDouble: return plain::Double(at, field, &number);
    case Kind::kBoolean: return plain::Boolean(at, &truth);
    case Kind::kDate: return plain::Date(at, &day);
    case Kind::kTime: return plain::Time(at, true, &time);
    case Kind::kTimestamp:
      at = plain::Date(at, &day);
      return at == nullptr || *at != ' ' ? nullptr : plain::Time(at + 1, field.fraction, &time);
  }
  return nullptr;
}

// ---- the file, in pieces that several threads take in turn

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
      const char* next = reader.Read(
          at, [](std::size_t, const Field& f, const char* begin, const Classes& c) { return Value(begin, f, c); },
          [](std::size_t) {});
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
  auto form = plain::FormOf(path, reader);
  if (!form) return std::nullopt;
  const File file(path);
  if (file.size() <= 0) return std::nullopt;
  const auto begin = plain::ReadHeader(file, &*form);
  if (!begin) return std::nullopt;
  return Pieces(file, *form, *begin).Run(threads);
}

// ---- names

bool InName(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' || plain::Digit(c); }

// Past the header's end, or null; `text` holds a '\n'.
const char* ReadNames(const char* at, char delimiter, bool* crlf, std::vector<std::string>* names) {
  while (true) {
    const bool quoted = *at == plain::kQuote;
    const char* begin = at += quoted ? 1 : 0;
    while (InName(*at)) ++at;
    if (at == begin || plain::Digit(*begin)) return nullptr;
    names->emplace_back(begin, at);
    if (quoted && *at++ != plain::kQuote) return nullptr;
    if (*at != delimiter) break;
    ++at;
  }
  *crlf = *at == '\r';
  if (*crlf) ++at;
  return *at == '\n' ? at + 1 : nullptr;
}

bool AllDiffer(std::vector<std::string> names) {
  for (std::string& name : names)
    for (char& c : name) c = c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c;
  std::ranges::sort(names);
  return std::ranges::adjacent_find(names) == names.end();
}

// Whether the lines in [at, end) are texts, `rows_max` at most.
bool HoldsTexts(const Form& form, const char* at, const char* end, std::int64_t rows_max) {
  const LineReader reader(form);
  for (std::int64_t rows = 0; at < end && rows < rows_max; ++rows) {
    at = reader.Read(
        at, [](std::size_t, const Field&, const char* begin, const Classes& c) { return plain::Text(begin, c); },
        [](std::size_t) {});
    if (at == nullptr) return false;
  }
  return true;
}

}  // namespace

std::optional<std::vector<std::string>> PlainNames(const std::string& path, FileFormat format,
                                                   const std::map<std::string, std::string>& options) {
  constexpr std::int64_t kBytesMax = 4 << 20;
  constexpr std::int64_t kRowsOfASample = 20'480;  // the engine's
  const auto delimiter = plain::DelimiterOf(path, format, options);
  if (!delimiter) return std::nullopt;
  const File file(path);
  if (file.size() <= 0) return std::nullopt;
  std::string text(static_cast<std::size_t>(std::min(file.size(), kBytesMax)), '\0');
  if (!file.Read(0, static_cast<std::int64_t>(text.size()), text.data())) return std::nullopt;
  const std::size_t header = text.find('\n'), last = text.rfind('\n');
  if (header == std::string::npos) return std::nullopt;
  const bool whole = file.size() <= kBytesMax;
  const auto rows = std::count(text.begin(), text.end(), '\n') - 1;
  if (!whole && rows < kRowsOfASample) return std::nullopt;
  Form form{.fields = {}, .delimiter = *delimiter};
  std::vector<std::string> names;
  const char* begin = ReadNames(text.data(), *delimiter, &form.crlf, &names);
  if (begin == nullptr || names.size() < 2 || !AllDiffer(names)) return std::nullopt;
  form.fields.resize(names.size());
  if (!whole) {
    text.resize(last + 1);
  } else if (text.back() != '\n') {
    const std::ptrdiff_t at = begin - text.data();
    text += form.crlf ? "\r\n" : "\n";
    begin = text.data() + at;
  }
  if (!HoldsTexts(form, begin, text.data() + text.size(), kRowsOfASample)) return std::nullopt;
  return names;
}

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
