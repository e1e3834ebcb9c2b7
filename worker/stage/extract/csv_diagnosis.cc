#include "worker/stage/extract/csv_diagnosis.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <charconv>
#include <filesystem>
#include <fstream>

#include "worker/stage/extract/packed.h"

namespace millrace {
namespace {

constexpr std::string_view kSetAside =
    "mend the line, or declare columns: and a contract with on_violation: quarantine to set such lines aside";

std::string Option(const std::map<std::string, std::string>& options, const std::string& name, std::string_view otherwise) {
  const auto found = options.find(name);
  return found == options.end() ? std::string(otherwise) : found->second;
}

std::string ReadStart(const std::string& path, std::size_t bytes_max) {
  std::ifstream in(path, std::ios::binary);
  std::string text;
  std::error_code ec;
  text.resize(std::min<std::uintmax_t>(std::filesystem::file_size(path, ec), bytes_max));
  if (ec || !in) return {};
  in.read(text.data(), static_cast<std::streamsize>(text.size()));
  text.resize(static_cast<std::size_t>(in.gcount()));
  return text;
}

// The first byte that no UTF-8 text has there.
std::optional<std::size_t> FirstNotUtf8(std::string_view text, bool cut) {
  for (std::size_t i = 0; i < text.size();) {
    const auto byte = static_cast<unsigned char>(text[i]);
    const std::size_t more = byte < 0x80                   ? 0
                             : byte >= 0xC2 && byte < 0xE0 ? 1
                             : (byte & 0xF0U) == 0xE0      ? 2
                             : byte >= 0xF0 && byte < 0xF5 ? 3
                                                           : 4;
    if (more == 4) return i;
    for (std::size_t k = 1; k <= more; ++k) {
      if (i + k >= text.size()) return cut ? std::nullopt : std::optional(i);
      if ((static_cast<unsigned char>(text[i + k]) & 0xC0U) != 0x80U) return i;
    }
    i += more + 1;
  }
  return std::nullopt;
}

// Reads records as the engine does, one at a time.
class Records {
 public:
  Records(std::string_view text, FileFormat format, const std::map<std::string, std::string>& options)
      : text_(text),
        delimiter_(Option(options, "delimiter", format == FileFormat::kTsv ? "\t" : ",")),
        comment_(Option(options, "comment", "")) {
    if (delimiter_ == "\\t") delimiter_ = "\t";
    const std::string quote = Option(options, "quote", "\""), escape = Option(options, "escape", "\"");
    quote_ = quote.empty() ? '\0' : quote[0];
    escape_ = escape.empty() ? quote_ : escape[0];
    std::size_t skip = 0;
    const std::string lines = Option(options, "skip", "0");
    std::from_chars(lines.data(), lines.data() + lines.size(), skip);
    while (skip-- > 0 && at_ < text_.size()) SkipLine();
  }

  // The number of fields of the next record that is not empty and no comment; 0 at the end.
  std::size_t Next() {
    while (at_ < text_.size()) {
      if (text_[at_] == '\n' || text_[at_] == '\r') {
        Take();
      } else if (!comment_.empty() && text_.substr(at_).starts_with(comment_)) {
        SkipLine();
      } else {
        return Record();
      }
    }
    return 0;
  }
  std::size_t line() const { return record_line_; }       // where the last record began
  std::size_t bytes() const { return at_ - record_at_; }  // of the last record, with its end of line
  bool open_quote() const { return open_quote_; }         // the text ended inside it

 private:
  void Take() {
    if (text_[at_++] == '\n') ++line_;
  }
  void SkipLine() {
    while (at_ < text_.size() && text_[at_] != '\n') ++at_;
    if (at_ < text_.size()) Take();
  }
  void Quoted() {
    for (++at_; at_ < text_.size();) {
      const bool next_is_quote = at_ + 1 < text_.size() && text_[at_ + 1] == quote_;
      if (text_[at_] == escape_ && next_is_quote) {
        at_ += 2;
      } else if (text_[at_] == quote_) {
        ++at_;
        return;
      } else {
        Take();
      }
    }
    open_quote_ = true;
  }
  std::size_t Record() {
    record_line_ = line_;
    record_at_ = at_;
    std::size_t fields = 1;
    bool start = true;
    while (at_ < text_.size()) {
      if (start && quote_ != '\0' && text_[at_] == quote_) {
        Quoted();
        start = false;
      } else if (text_.substr(at_).starts_with(delimiter_)) {
        at_ += delimiter_.size();
        ++fields;
        start = true;
      } else if (text_[at_] == '\n') {
        Take();
        return fields;
      } else {
        start = start && text_[at_] == ' ';
        Take();
      }
    }
    return fields;
  }

  std::string_view text_;
  std::string delimiter_, comment_;
  char quote_ = '"', escape_ = '"';
  std::size_t at_ = 0, line_ = 1, record_line_ = 1, record_at_ = 0;
  bool open_quote_ = false;
};

}  // namespace

std::optional<CsvProblem> FindCsvProblem(const std::string& path, FileFormat format,
                                         const std::map<std::string, std::string>& options, std::size_t bytes_max) {
  if (path.ends_with(".gz") || path.ends_with(".zst")) return std::nullopt;
  const std::string name = std::filesystem::path(path).filename().string();
  const std::string bytes = ReadStart(path, bytes_max);
  const bool cut = bytes.size() == bytes_max;
  std::string_view text = bytes;
  const std::string encoding = Option(options, "encoding", "utf-8");
  if (encoding == "utf-8" && (text.starts_with("\xFF\xFE") || text.starts_with("\xFE\xFF")))
    return CsvProblem{CsvProblem::Kind::kEncoding, fmt::format("{}: is UTF-16; set options: {{ encoding: utf-16 }}", name)};
  if (encoding == "utf-8") {
    if (const auto bad = FirstNotUtf8(text, cut)) {
      const auto line = 1 + std::count(text.begin(), text.begin() + static_cast<std::ptrdiff_t>(*bad), '\n');
      const std::size_t start = *bad == 0 ? 0 : text.rfind('\n', *bad - 1) + 1;  // npos + 1 is 0
      return CsvProblem{
          CsvProblem::Kind::kEncoding,
          fmt::format("{}:{}: is not UTF-8: byte 0x{:02x} at byte {} of the line; set options: {{ encoding: latin-1 }} "
                      "if that is what it is, or save the file as UTF-8",
                      name, line, static_cast<unsigned char>(text[*bad]), *bad - start + 1)};
    }
  }
  if (encoding == "utf-16") return std::nullopt;
  if (text.starts_with("\xEF\xBB\xBF")) text.remove_prefix(3);
  Records records(text, format, options);
  const std::size_t expected = records.Next();
  const std::size_t first_line = records.line();
  std::optional<CsvProblem> ragged;
  for (std::size_t fields = expected; fields > 0 && !records.open_quote(); fields = records.Next()) {
    if (records.bytes() > kRecordBytesMax)
      return CsvProblem{CsvProblem::Kind::kTooLong,
                        fmt::format("{}:{}: the line is longer than {} bytes", name, records.line(), kRecordBytesMax)};
    if (fields == expected || ragged) continue;
    if (cut && fields < expected) break;  // perhaps the end of what was looked at
    ragged =
        CsvProblem{CsvProblem::Kind::kFields, fmt::format("{}:{}: {} {} where line {} has {}; {}", name, records.line(), fields,
                                                          fields == 1 ? "field" : "fields", first_line, expected, kSetAside)};
  }
  // An open quote comes first: it swallows lines, so that the engine cannot set any aside.
  if (!records.open_quote() || cut) return ragged;
  return CsvProblem{CsvProblem::Kind::kQuote,
                    fmt::format("{}:{}: a quote is never closed; {}", name, records.line(),
                                "mend the line, or set options: { quote: \"\" } if quotes mean nothing in this file")};
}

namespace {

// Values as long as a line would bury what the message says.
std::string WithShortQuotes(const std::string& message) {
  constexpr std::size_t kShown = 60;
  std::string out;
  for (std::size_t at = 0; at < message.size();) {
    // A text in quotes, or what the engine shows without any: a run without a space. In "isn't" there is no quote.
    const bool in_word = at > 0 && std::isalnum(static_cast<unsigned char>(message[at - 1])) != 0;
    const char quote = (message[at] == '"' || message[at] == '\'') && !in_word ? message[at] : ' ';
    const std::size_t end =
        std::min(message.find_first_of(quote == ' ' ? " \n\"'" : std::string(1, quote), at + 1), message.size());
    std::string part = message.substr(at, end - at);
    if (part.size() > kShown + 1) {
      std::size_t keep = kShown + 1;
      while ((static_cast<unsigned char>(part[keep]) & 0xC0U) == 0x80U) --keep;
      part = part.substr(0, keep) + "...";
    }
    out += part;
    at = end;
    if (quote != ' ' && at < message.size()) out += message[at++];
  }
  return out;
}

}  // namespace

std::string WithoutEngineAdvice(std::string message) {
  std::size_t end = message.size();
  for (const std::string_view advice : {"Possible fixes", "Possible Solution", "Possible solution", "The search space used was",
                                        "Try setting", "Try increasing"})
    end = std::min(end, message.find(advice));
  message.resize(end);
  while (message.ends_with(' ') || message.ends_with('\n')) message.pop_back();
  return WithShortQuotes(message);
}

std::optional<char> OtherDelimiter(std::string_view only_column, char delimiter) {
  for (const char c : {';', '\t', '|', ','})
    if (c != delimiter && only_column.find(c) != std::string_view::npos) return c;
  return std::nullopt;
}

}  // namespace millrace
