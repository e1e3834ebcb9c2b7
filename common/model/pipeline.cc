#include "common/model/pipeline.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <utility>

namespace millrace {
namespace {

template <class E, std::size_t N>
using NameTable = std::array<std::pair<E, std::string_view>, N>;

constexpr NameTable<FileFormat, 6> kFileFormats{{{FileFormat::kAuto, "auto"},
                                                 {FileFormat::kCsv, "csv"},
                                                 {FileFormat::kTsv, "tsv"},
                                                 {FileFormat::kNdjson, "ndjson"},
                                                 {FileFormat::kJson, "json"},
                                                 {FileFormat::kParquet, "parquet"}}};
constexpr NameTable<OnViolation, 3> kOnViolations{
    {{OnViolation::kFail, "fail"}, {OnViolation::kQuarantine, "quarantine"}, {OnViolation::kDrop, "drop"}}};
constexpr NameTable<LoadMode, 3> kLoadModes{
    {{LoadMode::kAppend, "append"}, {LoadMode::kReplace, "replace"}, {LoadMode::kMerge, "merge"}}};
constexpr NameTable<CheckKind, 5> kCheckKinds{{{CheckKind::kNotNull, "not_null"},
                                               {CheckKind::kUnique, "unique"},
                                               {CheckKind::kAcceptedValues, "accepted_values"},
                                               {CheckKind::kExpression, "expression"},
                                               {CheckKind::kRowCount, "row_count"}}};

template <class E, std::size_t N>
std::string_view NameIn(const NameTable<E, N>& table, E value) {
  for (const auto& [candidate, name] : table)
    if (candidate == value) return name;
  return "unknown";
}

template <class E, std::size_t N>
std::optional<E> ValueIn(const NameTable<E, N>& table, std::string_view name) {
  for (const auto& [value, candidate] : table)
    if (candidate == name) return value;
  return std::nullopt;
}

constexpr std::size_t kExcerptColumnsMax = 160;

bool IsContinuation(char c) { return (static_cast<unsigned char>(c) & 0xC0) == 0x80; }

std::string_view LineOf(std::string_view source, int line) {
  if (source.starts_with("\xEF\xBB\xBF")) source.remove_prefix(3);
  for (int i = 1; i < line; ++i) {
    const auto end = source.find('\n');
    if (end == std::string_view::npos) return {};
    source.remove_prefix(end + 1);
  }
  source = source.substr(0, source.find('\n'));
  if (source.ends_with('\r')) source.remove_suffix(1);
  return source;
}

// One printed column per code point; control characters would move the caret (or the terminal), so they become spaces.
struct Excerpt {
  std::string text;
  int caret = 0;    // 0-based printed column
  int columns = 0;  // printed columns of the text
};
Excerpt MakeExcerpt(std::string_view line, int column) {
  std::vector<std::string_view> points;
  for (std::size_t i = 0; i < line.size();) {
    std::size_t n = 1;
    while (i + n < line.size() && n < 4 && IsContinuation(line[i + n])) ++n;
    points.push_back(line.substr(i, n));
    i += n;
  }
  const std::size_t at = static_cast<std::size_t>(std::max(column - 1, 0));
  std::size_t first = 0;
  Excerpt out;
  if (points.size() > kExcerptColumnsMax && at > kExcerptColumnsMax / 2) {
    first = std::min(at - kExcerptColumnsMax / 2, points.size());
    out.text = "...";
  }
  out.caret = static_cast<int>(std::min(at, points.size()) - first + out.text.size());
  const std::size_t last = std::min(points.size(), first + kExcerptColumnsMax);
  out.columns = static_cast<int>(out.text.size() + last - first);
  for (std::size_t i = first; i < last; ++i) {
    const char c = points[i].front();
    const bool printable = points[i].size() > 1 || (static_cast<unsigned char>(c) >= 0x20 && c != 0x7F);
    if (printable) {
      out.text += points[i];
    } else {
      out.text += ' ';
    }
  }
  if (last < points.size()) out.text += "...";
  return out;
}

}  // namespace

std::string_view Name(FileFormat format) { return NameIn(kFileFormats, format); }
std::string_view Name(OnViolation action) { return NameIn(kOnViolations, action); }
std::string_view Name(LoadMode mode) { return NameIn(kLoadModes, mode); }
std::string_view Name(CheckKind kind) { return NameIn(kCheckKinds, kind); }
std::optional<FileFormat> ParseFileFormat(std::string_view name) { return ValueIn(kFileFormats, name); }
std::optional<OnViolation> ParseOnViolation(std::string_view name) { return ValueIn(kOnViolations, name); }
std::optional<LoadMode> ParseLoadMode(std::string_view name) { return ValueIn(kLoadModes, name); }
std::optional<CheckKind> ParseCheckKind(std::string_view name) { return ValueIn(kCheckKinds, name); }

std::string_view StageSpec::KindName() const {
  static constexpr std::array<std::string_view, 4> kNames{"extract", "transform", "load", "command"};
  static_assert(std::variant_size_v<decltype(work)> == kNames.size());
  return kNames.at(work.index());
}

const StageSpec* Pipeline::FindStage(std::string_view stage_name) const {
  const auto it = std::ranges::find(stages, stage_name, &StageSpec::name);
  return it == stages.end() ? nullptr : &*it;
}

std::string Render(const Diagnostic& diagnostic, std::string_view source) {
  std::string out = diagnostic.file;
  if (diagnostic.place.line > 0) {
    out += fmt::format(":{}", diagnostic.place.line);
    if (diagnostic.place.column > 0) out += fmt::format(":{}", diagnostic.place.column);
  }
  out += fmt::format(": error: {}\n", diagnostic.message);
  const std::string_view line = diagnostic.place.line > 0 ? LineOf(source, diagnostic.place.line) : std::string_view{};
  if (!line.empty()) {
    const Excerpt excerpt = MakeExcerpt(line, diagnostic.place.column);
    out += fmt::format("{:>5} | {}\n", diagnostic.place.line, excerpt.text);
    if (diagnostic.place.column > 0) {
      const int marked = std::clamp(diagnostic.length, 1, std::max(1, excerpt.columns - excerpt.caret));
      out += fmt::format("{:>5} | {:>{}}{:~>{}}\n", "", "", excerpt.caret, "^", 1);
      out.pop_back();
      out.append(static_cast<std::size_t>(marked - 1), '~');
      out += '\n';
    }
  }
  if (!diagnostic.help.empty()) out += fmt::format("  help: {}\n", diagnostic.help);
  return out;
}

}  // namespace millrace
